"""Checkpoints: the last ones stay, damaged ones are passed over, those of other studies are refused by name."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdro.config import TrainingConfig
from tdro.devices import Ranks
from tdro.errors import CheckpointError, EnvironmentProblem
from tdro.training.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    Checkpoints,
    forget_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from tdro.training.journal import Journal
from tdro.training.loop import Workplace, train

INPUTS = {"seed": 42, "reference": {"learning_rate": 0.1, "steps": 9}, "rows of": {"one": "aa"}}


def trained(steps: int = 1) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    """A layer and its optimizer after some steps."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for step in range(steps):
        (layer(torch.full((1, 3), 1.0 + step)) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, optimizer


def saved(folder: Path, *steps: int, kept: int = 2) -> Checkpoints:
    """Checkpoints after so many steps."""
    place = Checkpoints(folder, "mine", INPUTS, kept)
    for step in steps:
        save_checkpoint(place, step, *trained(step), {"step": step})
    return place


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_last_ones_stay(tmp_path: Path, kept: int) -> None:
    saved(tmp_path, 1, 2, 3, 4, kept=kept)
    assert names(tmp_path) == [f"step-{step:08d}" for step in range(5 - kept, 5)]


def test_the_newest_comes_back_whole(tmp_path: Path) -> None:
    place = saved(tmp_path, 2, 3)
    layer, optimizer = trained(0)
    assert load_checkpoint(place, layer, optimizer) == (3, {"step": 3})
    expected, moments = trained(3)
    assert torch.equal(layer.weight, expected.weight)
    for found, wanted in zip(optimizer.state.values(), moments.state.values(), strict=True):
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def cut(name: str, keep: int) -> Callable[[Path], None]:
    """Leave the first bytes of a file."""
    return lambda path: os.truncate(path / name, keep)


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    """Write nonsense over the beginning of a file."""

    def damage(path: Path) -> None:
        with (path / name).open("r+b") as file:
            file.write(content)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    """Lose a file."""
    return lambda path: (path / name).unlink()


def change(name: str, changes: dict[str, torch.Tensor | None]) -> Callable[[Path], None]:
    """Replace tensors in a file, or leave them out."""

    def damage(path: Path) -> None:
        tensors = {**load_file(path / name), **changes}
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path / name)

    return damage


def state(**changes: Any) -> Callable[[Path], None]:
    """Replace entries of state.json, or leave them out."""

    def damage(path: Path) -> None:
        content = {**json.loads((path / STATE).read_text()), **changes}
        kept = {key: value for key, value in content.items() if value is not None}
        (path / STATE).write_text(json.dumps(kept))

    return damage


DAMAGES = {
    "header of the model": overwrite(MODEL, b"\xff" * 16),
    "header of the optimizer": overwrite(OPTIMIZER, b"\x00" * 8),
    "model cut": cut(MODEL, 90),
    "model empty": cut(MODEL, 0),
    "optimizer cut": cut(OPTIMIZER, 200),
    "state cut": cut(STATE, 10),
    "state empty": cut(STATE, 0),
    "state is a list": lambda path: (path / STATE).write_text("[1]"),
    "state is not text": overwrite(STATE, b"\xff\xfe"),
    "state without step": state(step=None),
    "state without fingerprint": state(fingerprint=None),
    "model lost": remove(MODEL),
    "optimizer lost": remove(OPTIMIZER),
    "state lost": remove(STATE),
    "folder empty": lambda path: [file.unlink() for file in path.iterdir()],
    "parameter of another shape": change(MODEL, {"weight": torch.zeros(5, 3)}),
    "parameter lost": change(MODEL, {"bias": None}),
    "parameter too many": change(MODEL, {"scale": torch.zeros(2)}),
    "moments of another shape": change(OPTIMIZER, {"0.exp_avg": torch.zeros(5)}),
    "moments of nothing": change(OPTIMIZER, {"7.exp_avg": torch.zeros(2, 3)}),
    "moments without number": change(OPTIMIZER, {"exp_avg": torch.zeros(2, 3)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    place = saved(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "step-00000002")
    told: list[str] = []
    layer, optimizer = trained(0)
    found = load_checkpoint(Checkpoints(tmp_path, "mine", INPUTS, 2, tell=told.append), layer, optimizer)
    assert found == (1, {"step": 1}) and torch.equal(layer.weight, trained(1)[0].weight)
    assert len(told) == 1 and told[0].startswith("step-00000002 is damaged (")
    assert names(tmp_path) == ["step-00000001"]  # or it would push a good one out later
    assert load_checkpoint(place, layer, optimizer) == (1, {"step": 1})


def test_what_was_being_written_does_not_count(tmp_path: Path) -> None:
    place = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.host-1.tmp")
    assert load_checkpoint(place, *trained(0)) == (1, {"step": 1})


def test_where_all_are_damaged_nothing_is_lost_and_all_are_named(tmp_path: Path) -> None:
    place = saved(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        os.truncate(path / MODEL, 4)
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint is whole.*step-00000002.*step-00000001.*remove"):
        load_checkpoint(place, *trained(0))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({**INPUTS, "reference": {"learning_rate": 0.2, "steps": 9}}, "reference.learning_rate was 0.1, is 0.2"),
        ({**INPUTS, "rows of": {"one": "bb"}}, "rows of.one was aa, is bb"),
        ({**INPUTS, "rows of": {"one": "aa", "two": "cc"}}, "rows of.two was absent, is cc"),
        (
            {**INPUTS, "seed": 7, "reference": {"steps": 9}},
            "seed was 42, is 7; reference.learning_rate was 0.1, is abs",
        ),
        (INPUTS, "another fingerprint"),
    ],
)
def test_one_of_another_study_is_refused_and_the_difference_named(tmp_path: Path, inputs: Any, said: str) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=f"another study, mixture or data(?s:.*){said}"):
        load_checkpoint(Checkpoints(tmp_path, "other", inputs), *trained(0))
    assert names(tmp_path) == ["step-00000001"]


def test_many_differences_are_counted(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match="; 5 more"):
        load_checkpoint(Checkpoints(tmp_path, "other", {str(n): n for n in range(4)}), *trained(0))


def test_long_values_are_compared_by_their_fingerprint(tmp_path: Path) -> None:
    words = [f"word {number}" for number in range(99)]
    save_checkpoint(Checkpoints(tmp_path, "mine", {"words": words, "pair": (1, 2)}), 1, *trained(1), {})
    assert (tmp_path / "step-00000001" / STATE).stat().st_size < 500
    with pytest.raises(CheckpointError, match=r"saw: +'?words was \w{16}, is \w{16}'?\n"):
        load_checkpoint(Checkpoints(tmp_path, "other", {"words": words[1:], "pair": (1, 2)}), *trained(0))


def test_one_of_another_version_is_refused(tmp_path: Path) -> None:
    place = saved(tmp_path, 1)
    state(format=99)(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"(?s)another version.*format 99"):
        load_checkpoint(place, *trained(0))


class Apart(Ranks):
    """Rank 1 of two, and what rank 0 goes on from."""

    def agree(self, value: Any) -> Any:
        return 3

    def any(self, flag: bool) -> bool:
        return flag


def test_ranks_that_see_different_checkpoints_do_not_begin(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    place = Checkpoints(tmp_path, "mine", INPUTS, 2, Apart(1, 2))
    with pytest.raises(EnvironmentProblem, match=r"(?s)same checkpoint.*step 2 on rank 1, 3 on rank 0.*file system"):
        load_checkpoint(place, *trained(0))
    saved(tmp_path, 2, 3)
    assert load_checkpoint(place, *trained(0)) == (3, {"step": 3})


def test_a_full_disk_ends_the_training_and_leaves_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    place = saved(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tdro.training.checkpoint.write_json", full)
        with pytest.raises(EnvironmentProblem, match=r"(?s)could not be saved.*No space left"):
            save_checkpoint(place, 2, *trained(2), {})
    assert names(tmp_path) == ["step-00000001"]
    assert load_checkpoint(place, *trained(0)) == (1, {"step": 1})


def test_the_best_of_a_checkpoint_that_stays_stays_too(tmp_path: Path) -> None:
    model, _ = trained(0)
    for step in (2, 4, 6, 9):
        save_best(tmp_path, step, model)
    saved(tmp_path, 5, 8)
    forget_best(tmp_path, but=9)
    assert [name for name in names(tmp_path) if "best" in name] == ["best-00000004", "best-00000006", "best-00000009"]
    shutil.rmtree(tmp_path / "step-00000005")
    forget_best(tmp_path, but=None)
    assert [name for name in names(tmp_path) if "best" in name] == ["best-00000006"]


class Descent:
    """A step that pulls a layer to 0, and a count as its state."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer, self.count = layer, 0

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        torch.manual_seed(step_seed)
        loss = (self.layer(torch.randn(1, 3)) ** 2).sum()
        loss.backward()
        self.count += 1
        return {"loss": float(loss.detach()), "count": self.count}

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_training_goes_on_from_the_one_before_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    def run(folder: Path) -> tuple[torch.nn.Linear, Journal]:
        journal = Journal(folder)
        config = TrainingConfig(steps=7, batch_size=1, warmup_steps=0, checkpoint_every=2)
        layer, _ = trained(0)
        train(layer, config, Descent(layer), Workplace("toy", folder / "toy", journal, "mine", 1))
        return layer, journal

    expected, calm = run(tmp_path / "calm")
    run(tmp_path / "again")
    checkpoints = tmp_path / "again" / "toy" / "checkpoints"
    assert names(checkpoints) == ["step-00000004", "step-00000006"]
    os.truncate(checkpoints / "step-00000006" / OPTIMIZER, 50)
    found, journal = run(tmp_path / "again")
    assert torch.equal(found.weight, expected.weight)
    (note,) = journal.read("note", "toy")
    assert "step-00000006 is damaged" in note["text"]
    steps = [[(e["step"], e["loss"], e["count"]) for e in each.read("step", "toy")] for each in (journal, calm)]
    assert steps[0] == steps[1] and len(steps[0]) == 7
