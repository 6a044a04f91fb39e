"""Optimizers and schedules of the model: every setting acts, and a stopped run goes on with the same moments."""

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from studies import tiny_study

from tdro.config import TrainingConfig, WeightsConfig
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.training.checkpoint import OPTIMIZER
from tdro.training.journal import Journal
from tdro.training.loop import Stopped, Workplace, train
from tdro.training.optimizers import make_optimizer, refuse_impossible_optimizers
from tdro.training.pipeline import run_study
from tdro.training.run import Run
from tdro.training.weight_learner import WeightLearner, make_rule


class Line(torch.nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.at = torch.nn.Parameter(torch.zeros(1))


def moved(*gradients: float, **settings: Any) -> list[float]:
    """Where a number that begins at 0 is after each of some gradients."""
    line = Line()
    optimizer = make_optimizer(line, TrainingConfig(learning_rate=0.5, weight_decay=0, **settings))
    places = []
    for gradient in gradients:
        line.at.grad = torch.tensor([gradient])
        optimizer.step()
        places.append(line.at.item())
    return places


def test_epsilon_is_added_to_the_root_of_the_second_moment():
    # The first step of AdamW is learning rate * g / (|g| + epsilon).
    assert moved(3.0, adam_epsilon=1.0) == pytest.approx([-0.5 * 3 / 4])
    assert moved(3.0, adam_epsilon=1e-12) == pytest.approx([-0.5])


def test_betas_decide_how_long_gradients_are_remembered():
    assert moved(1.0, -3.0, adam_betas=(0.0, 0.0)) == pytest.approx([-0.5, 0.0])  # nothing is: only the signs count
    first, second = 0.5, 0.5
    mean = ((1 - first) * first * 1 + (1 - first) * -3) / (1 - first**2)
    square = ((1 - second) * second * 1 + (1 - second) * 9) / (1 - second**2)
    expected = -0.5 - 0.5 * mean / square**0.5
    assert moved(1.0, -3.0, adam_betas=(first, second))[1] == pytest.approx(expected)


class Towards:
    """A stage whose loss is the squared distance of a model's output to a number that changes with the step."""

    def __init__(self, model: torch.nn.Module, stop_at: int = -1) -> None:
        self._model, self._stop_at = model, stop_at

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the gradient."""
        if step == self._stop_at:
            raise Stopped
        found = self._model(torch.arange(12) % 9)
        loss = ((found - step % 5) ** 2).mean()
        loss.backward()
        return {"loss": loss.item(), "losses": {}}

    def state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""


def model() -> torch.nn.Module:
    """Token vectors, a matrix that is large enough for 8 bits, and a bias that is not."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(90, 64), torch.nn.Linear(64, 80))


def run(folder: Path, config: TrainingConfig, stop_at: int = -1) -> torch.nn.Module:
    """Train the model."""
    trained = model()
    place = Workplace("reference", folder / "reference", Journal(folder), "fingerprint", 0)
    train(trained, config, Towards(trained, stop_at), place)
    return trained


def rates(folder: Path) -> list[float]:
    """The learning rates of a run."""
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [event["learning_rate"] for event in events if event["event"] == "step"]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_training_ends_at_the_floor_of_its_learning_rate(tmp_path, schedule):
    for floor in (0.25, 0.0):
        config = TrainingConfig(
            steps=9, warmup_steps=3, learning_rate=0.02, schedule=schedule, final_learning_rate_share=floor
        )
        run(tmp_path / str(floor), config)
        found = rates(tmp_path / str(floor))
        assert found[:3] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02])
        assert found[-1] == pytest.approx(0.02 * floor)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("floor", [0.25, 0.0])
def test_the_weights_end_at_the_floor_of_their_step_size(schedule, floor):
    config = WeightsConfig(
        steps=9, step_size=0.8, step_warmup=2, step_schedule=schedule, final_step_share=floor, clip="none"
    )
    learner = WeightLearner(["a", "b"], config, make_rule(config, {"a": 5, "b": 5}, 10))

    def change(step: int) -> float:
        after = learner.moved(learner.weights, torch.tensor([1.0, 0.0]).numpy(), step, torch.ones(2).bool().numpy())
        return float(after.log_weights_G[0] - after.log_weights_G[1])

    assert [change(0), change(1), change(8)] == pytest.approx([0.4, 0.8, 0.8 * floor])


class AdamW8bit(torch.optim.Optimizer):
    """Keeps what bitsandbytes' optimizer keeps, in the same form: AdamW with moments rounded in blocks of 256."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self._qmap = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state, large = self.state[parameter], parameter.numel() >= 4096
                large = large and not any(parameter is small for small in Manager.in_32_bits)
                moments = [self._read(state, i, large) if state else torch.zeros_like(parameter) for i in (1, 2)]
                state["step"] = step = state.get("step", 0) + 1
                for i, power in enumerate((1, 2)):
                    moments[i] = torch.lerp(parameter.grad**power, moments[i], group["betas"][i])
                    self._keep(state, i + 1, moments[i], large)
                mean, square = (m / (1 - beta**step) for m, beta in zip(moments, group["betas"], strict=True))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * mean / (square.clamp(min=0).sqrt() + group["eps"]))

    def state_dict(self) -> dict[str, Any]:
        """Hide the tensors one level down, as recent versions do."""
        found = super().state_dict()
        hidden = {i: {"step": s["step"], "__quant_state__": dict(s)} for i, s in found["state"].items()}
        return {**found, "state": hidden}

    def _keep(self, state: dict[str, Any], i: int, moment: torch.Tensor, large: bool) -> None:
        if not large:
            state[f"state{i}"] = moment
            return
        blocks = torch.nn.functional.pad(moment.flatten(), (0, -moment.numel() % 256)).view(-1, 256)
        absmax = blocks.abs().amax(1).clamp(min=1e-30)
        codes = ((blocks / absmax[:, None] + 1) * 127.5).round().to(torch.uint8)
        state[f"state{i}"] = codes.flatten()[: moment.numel()].view_as(moment)
        state[f"absmax{i}"], state[f"qmap{i}"] = absmax, self._qmap

    def _read(self, state: dict[str, Any], i: int, large: bool) -> torch.Tensor:
        if not large:
            return state[f"state{i}"]
        codes = state[f"state{i}"]
        scale = state[f"absmax{i}"].repeat_interleave(256)[: codes.numel()].view_as(codes)
        return state[f"qmap{i}"][codes.long()] * scale


class Manager:
    """Remembers which parameters are to keep 32 bits."""

    in_32_bits: list[torch.Tensor] = []  # noqa: RUF012

    @classmethod
    def get_instance(cls) -> type["Manager"]:
        """There is one."""
        return cls

    @classmethod
    def override_config(cls, parameter: torch.Tensor, key: str, value: int) -> None:
        """Note a parameter."""
        assert (key, value) == ("optim_bits", 32)
        cls.in_32_bits.append(parameter)  # itself: another could get its id


@pytest.fixture(params=["stand-in", "real"])
def bitsandbytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, where it is installed, and something that keeps the same moments."""
    if request.param == "real":
        pytest.importorskip("bitsandbytes")
        return
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    module.AdamW8bit, module.GlobalOptimManager = AdamW8bit, Manager  # type: ignore[attr-defined]
    Manager.in_32_bits.clear()


EIGHT_BITS = TrainingConfig(
    optimizer="adamw-8bit", steps=9, warmup_steps=0, learning_rate=0.05, checkpoint_every=4, max_grad_norm=100
)


def test_a_run_with_8_bit_moments_that_was_stopped_goes_on_bit_for_bit(bitsandbytes, tmp_path):
    expected = run(tmp_path / "whole", EIGHT_BITS).state_dict()
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", EIGHT_BITS, stop_at=6)
    kept = load_file(tmp_path / "stopped" / "reference" / "checkpoints" / "step-00000004" / OPTIMIZER)
    kinds = {str(tensor.dtype) for name, tensor in kept.items() if name.endswith(".state1")}
    assert kinds == {"torch.uint8", "torch.float32"}  # the matrix; token vectors and bias
    found = run(tmp_path / "stopped", EIGHT_BITS).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = run(tmp_path / "adamw", EIGHT_BITS.model_copy(update={"optimizer": "adamw"})).state_dict()
    assert torch.allclose(other["1.weight"], expected["1.weight"], atol=0.1)
    assert not torch.equal(other["1.weight"], expected["1.weight"])


@pytest.mark.slow
def test_a_study_trains_with_8_bit_moments(bitsandbytes, tmp_path):
    study = tiny_study(tmp_path, reference={"optimizer": "adamw-8bit"}, robust={"weights": "uniform"})
    run_study(Run(study), "robust")
    assert (study.run_folder / "robust" / "model" / "modules.json").is_file()


def test_what_adamw_8bit_lacks_is_said_before_anything_runs(tmp_path, monkeypatch):
    study = tiny_study(tmp_path, weights={"optimizer": "adamw-8bit"})
    found = importlib.util.find_spec
    gone = {"bitsandbytes"}
    monkeypatch.setattr("tdro.training.optimizers.find_spec", lambda name: None if name in gone else found(name))
    with pytest.raises(EnvironmentProblem, match=r"(?s)needs the package bitsandbytes.*weights\.optimizer.*pip"):
        run_study(Run(study))
    assert not (study.run_folder / "reference").exists()
    monkeypatch.setattr("tdro.training.optimizers.find_spec", lambda name: object())
    sharded = study.model_copy(update={"model": study.model.model_copy(update={"sharding": "full"})})
    with pytest.raises(ConfigError, match=r"(?s)cannot be sharded.*weights\.optimizer"):
        refuse_impossible_optimizers(sharded)
