"""Training with adapters and checkpointed blocks: exact gradients, small checkpoints, the same run after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from studies import tiny_study
from tiny_models import Family, make_tiny_model

from tdro.config import ModelConfig
from tdro.core.losses import in_batch_loss
from tdro.data.collate import tokenize
from tdro.devices import pick_device
from tdro.errors import ConfigError
from tdro.models.encoder import embed, load_encoder
from tdro.models.lora import Lora, add_lora, has_lora
from tdro.models.network import checkpoint_gradients
from tdro.models.packing import pack
from tdro.training import loop
from tdro.training.cached_step import cached_backward
from tdro.training.loop import Stopped
from tdro.training.pipeline import run_study
from tdro.training.run import Run

FAMILIES: list[Family] = ["bert", "qwen2", "llama", "mistral", "phi", "gpt_neox", "gemma"]
TEXTS = [" ".join(["bee", "river", "light"][: 1 + i % 3] * (1 + i % 5)) + f" {i}" for i in range(18)]
LORA = {"lora_rank": 4, "lora_alpha": 8.0}


def loss_of(embedding_nD: torch.Tensor) -> torch.Tensor:
    """In-batch loss of six queries with a positive and a negative each."""
    return in_batch_loss(embedding_nD[:6], embedding_nD[6:], torch.arange(6) * 2, 0.05).mean()


def kept_graph(model: SentenceTransformer, tokens: list[list[int]]) -> torch.Tensor:
    """Embed the micro-batches with the seeds of the cached step, keep all graphs, go back once."""
    groups = pack(torch.tensor([len(t) for t in tokens]).numpy(), 60)
    rows = [torch.empty(0)] * len(tokens)
    for index, group in enumerate(groups):
        torch.manual_seed(5 + index)
        for i, vector in zip(group, embed(model, [tokens[i] for i in group]), strict=True):
            rows[i] = vector
    loss = loss_of(torch.stack(rows))
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_with_adapters_checkpoints_and_dropout_equal_the_kept_graph(
    tmp_path: Path, family: Family, rank: int
) -> None:
    make_tiny_model(family, tmp_path)
    found = []
    for checkpoint in (False, True):
        model = load_encoder(str(tmp_path), dtype=torch.float64).train()
        if rank:
            add_lora(model, Lora(rank, dropout=0.2), seed=0)
        if checkpoint:
            checkpoint_gradients(model)
        tokens = tokenize(model.tokenizer, TEXTS, 32)
        if checkpoint:
            loss = cached_backward(model, tokens, lambda e: [loss_of(e)], pick_device("float64"), 60, 5)
        else:
            loss = kept_graph(model, tokens)
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (plain_loss, plain), (loss, small) = found
    torch.testing.assert_close(loss, plain_loss, rtol=1e-12, atol=0)
    assert plain.keys() == small.keys() and all("lora" in name for name in plain) == (rank > 0)
    for name, gradient in plain.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-9, atol=1e-12)


# --- studies ---


def study_of(folder: Path, family: Family = "qwen2", output: str = "run", steps: int = 4, **model: Any) -> Run:
    """A study without evaluation."""
    stages = {"reference": {"steps": steps}, "weights": {"steps": steps}}
    study = tiny_study(folder, family, model=model, evaluation={"tasks": {}}, **stages)
    return Run(study.model_copy(update={"output": str(folder / output)}))


def outcome(run: Run) -> dict[str, object]:
    """Models, adapters, and the numbers of every step; weights where there are any."""
    steps = [
        {key: value for key, value in event.items() if key not in ("time", "seconds_left")}
        for stage in ("reference", "weights")
        for event in run.journal.read("step", stage)
    ]
    files = [path for end in ("*.safetensors", "weights.json") for path in sorted(run.folder.rglob(end))]
    return {"steps": steps, **{str(path.relative_to(run.folder)): path.read_bytes() for path in files}}


@pytest.mark.parametrize(
    ("stage", "family", "model"),
    [
        ("weights", "qwen2", {**LORA, "gradient_checkpointing": True}),
        ("reference", "qwen2", LORA),
        ("reference", "bert", {"gradient_checkpointing": True}),
    ],
    ids=["all at once", "adapters", "checkpointed blocks"],
)
def test_a_stopped_study_goes_on_bit_for_bit(tmp_path, monkeypatch, stage, family, model):
    undisturbed = study_of(tmp_path, family, **model)
    run_study(undisturbed, stage)
    expected = outcome(undisturbed)
    real = loop._refuse_non_finite

    def disturbed(numbers, norm, name, step):
        if (name, step) == (stage, 1):
            loop.signal.raise_signal(loop.signal.SIGINT)
        real(numbers, norm, name, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_refuse_non_finite", disturbed)
        with pytest.raises(Stopped):
            run_study(study_of(tmp_path, family, "disturbed", **model), stage)
    saved = next((tmp_path / "disturbed" / stage / "checkpoints").iterdir())
    buffers = dict(undisturbed.load_base().named_buffers())
    if "lora_rank" in model:
        assert all("lora" in name or name in buffers for name in load_file(saved / "model.safetensors"))
    run = study_of(tmp_path, family, "disturbed", **model)
    run_study(run, stage)
    found = outcome(run)
    assert found.keys() == expected.keys() and "reference/model/model.safetensors" in found
    assert ("reference/adapter/adapter_model.safetensors" in found) == ("lora_rank" in model)
    for key, value in expected.items():
        assert found[key] == value, key


def test_the_saved_stage_is_the_base_plus_its_adapter(tmp_path):
    run = study_of(tmp_path, **LORA, precision="float64")
    run_study(run, "reference")
    base = load_file(tmp_path / "root" / "model" / "model.safetensors")
    saved = load_file(run.folder / "reference" / "model" / "model.safetensors")
    adapter = load_file(run.folder / "reference" / "adapter" / "adapter_model.safetensors")
    settings = json.loads((run.folder / "reference" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0.1)
    assert settings["base_model_name_or_path"] == str(tmp_path / "root" / "model")
    for name, weight in saved.items():
        expected = base[f"model.{name}"].double()
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in adapter:
            expected = expected + 2 * adapter[f"{prefix}.lora_B.weight"] @ adapter[f"{prefix}.lora_A.weight"]
            assert not torch.allclose(expected, base[f"model.{name}"].double())
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-12)


def test_checkpointed_blocks_change_no_bit_and_no_fingerprint(tmp_path):
    plain, small = study_of(tmp_path, "bert"), study_of(tmp_path, "bert", "small", gradient_checkpointing=True)
    for run in (plain, small):
        run_study(run, "reference")
    path = Path("reference", "model", "model.safetensors")
    assert (plain.folder / path).read_bytes() == (small.folder / path).read_bytes()
    again = study_of(tmp_path, "bert", gradient_checkpointing=True, attention="eager", compile=True)
    run_study(again, "reference")
    assert [event["stage"] for event in again.journal.read("stage_skipped", "reference")]


def test_every_setting_of_an_adapter_changes_what_is_trained(tmp_path):
    def last_loss(name: str, **model: Any) -> float:
        run = study_of(tmp_path, output=name, steps=3, **{**LORA, **model})
        run_study(run, "reference")
        return list(run.journal.read("step", "reference"))[-1]["loss"]

    changes: list[dict[str, Any]] = [
        {}, {"lora_rank": 0}, {"lora_rank": 3}, {"lora_alpha": 9}, {"lora_dropout": 0.5}, {"lora_targets": ("q_proj",)},
    ]  # fmt: skip
    losses = [last_loss(str(number), **change) for number, change in enumerate(changes)]
    assert len(set(losses)) == len(changes)


def test_the_options_reach_the_model_in_training_and_no_other(tmp_path):
    run = study_of(tmp_path, **LORA, attention="eager", gradient_checkpointing=True, compile=True)
    for model, trained in ((run.load_base(), True), (run.load(str(tmp_path / "root" / "model")), False)):
        network = model[0].model
        assert network.config._attn_implementation == "eager"
        assert has_lora(model) is trained and network.layers[0].gradient_checkpointing is trained
        assert (network.layers[1].mlp._compiled_call_impl is not None) is trained


def test_training_all_parameters_removes_the_adapter_of_an_earlier_study(tmp_path):
    run_study(study_of(tmp_path, steps=2, **LORA), "reference")
    folder = tmp_path / "run" / "reference"
    assert (folder / "adapter" / "adapter_config.json").exists()
    run_study(study_of(tmp_path, steps=2), "reference")
    assert not (folder / "adapter").exists() and (folder / "model" / "modules.json").exists()


def test_only_settings_that_change_results_are_part_of_the_fingerprint():
    plain = ModelConfig(base="b")
    same = ({"gradient_checkpointing": True}, {"attention": "sdpa"}, {"compile": True}, {"lora_alpha": 1.0})
    for change in same:
        assert ModelConfig(base="b", **change).influential == plain.influential
    adapted = ModelConfig(base="b", lora_rank=4)
    others = ({"lora_alpha": 1.0}, {"lora_dropout": 0.0}, {"lora_targets": ("q_proj",)}, {"lora_rank": 5})
    for change in others:
        assert ModelConfig(base="b", **{"lora_rank": 4, **change}).influential != adapted.influential
    assert adapted.influential != plain.influential


def test_what_cannot_run_here_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="flash attention needs a GPU"):
        study_of(tmp_path, attention="flash_attention_2")
