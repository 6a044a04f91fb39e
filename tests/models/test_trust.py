"""Model folders of strangers: what would run code, call functions or unpickle is refused, and good ones are not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense
from tiny_models import make_tiny_model
from transformers.integrations import hub_kernels

from tdro.errors import ConfigError
from tdro.models.encoder import load_encoder, save_encoder
from tdro.models.trust import refuse_code
from tdro.retrieval.cross_encoder import load_cross_encoder

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(load_encoder(str(make_tiny_model("qwen2", folder / "plain"))), folder / "saved")
    return folder / "saved"


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved cross-encoder."""
    folder = tmp_path_factory.mktemp("cross-encoder")
    CrossEncoder(str(make_tiny_model("bert", folder / "plain")), num_labels=1).save_pretrained(str(folder / "saved"))
    return folder / "saved"


def changed(folder: Path, to: Path, *changes: Change) -> str:
    """Copy a model and change the copy."""
    shutil.copytree(folder, to)
    for change in changes:
        change(to)
    return str(to)


def edit(name: str, **changes: Any) -> Change:
    """Change some keys of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        kept = {key: value for key, value in (content | changes).items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def pickle_shards(folder: Path) -> None:
    """Have the index of weights name a pickle, which writes a file `ran` when it is read without limits."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder / "ran",)

    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Trap()}, folder / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "weights.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


ARGS = "sentence_bert_config.json"
KERNEL = "someone/kernel"
TRAPS = {
    "kernel in model_args": edit(ARGS, model_args={"attn_implementation": KERNEL, "allow_all_kernels": True}),
    "kernel in the configuration": edit("config.json", attn_implementation=KERNEL),
    "kernel as the library writes it": edit("config.json", _attn_implementation=f"paged|{KERNEL}@main:forward"),
    "kernel for a part": edit("config.json", attn_implementation={"": "sdpa", "text_config": KERNEL}),
    "kernels of layers": edit(ARGS, model_args={"use_kernels": True}),
    "unlimited unpickling": edit(ARGS, model_kwargs={"weights_only": False}),
    "files elsewhere": edit(ARGS, model_args={"device_map": {"": "disk"}, "offload_folder": "/somewhere"}),
    "pickled shards": pickle_shards,
    "function": edit("config.json", sentence_transformers={"activation_fn": "torch.cuda.init"}),
    "function, older": edit("config.json", sbert_ce_default_activation_function="torch.get_num_threads"),
    "function of a module": edit("config_sentence_transformers.json", activation_fn="torch.nn.functional.relu"),
    "settings that cannot be read": lambda folder: (folder / "config.json").write_text("{") and None,
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_refused_by_name(trap: str, encoder: Path, tmp_path: Path) -> None:
    folder = changed(encoder, tmp_path / "model", TRAPS[trap])
    with pytest.raises(ValueError, match=r"\.json"):
        refuse_code(Path(folder))
    with pytest.raises(ConfigError, match=r"cannot be loaded as a model(.|\n)*\.json"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("name", "also"),
    [("2_Dense/pytorch_model.bin", ""), ("adapter_model.bin", ""), ("2_Dense/adapter_model.bin", "model.safetensors")],
)
def test_pickles_without_safetensors_of_their_own_are_refused(
    name: str, also: str, encoder: Path, tmp_path: Path
) -> None:
    folder = Path(changed(encoder, tmp_path / "model"))
    (folder / "2_Dense").mkdir()
    (folder / name).touch()
    if also:
        (folder / name).with_name(also).touch()
    with pytest.raises(ConfigError, match=f"{name} is pickled"):
        load_encoder(str(folder))


def test_no_kernel_is_fetched(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda name, **_: fetched.append(name))
    with pytest.raises(ConfigError, match="attn_implementation"):
        load_encoder(changed(encoder, tmp_path / "model", TRAPS["kernel in model_args"]))
    assert not fetched


def test_a_cross_encoder_unpickles_nothing(cross_encoder: Path, tmp_path: Path) -> None:
    free = [edit(ARGS, model_args={"weights_only": False}), edit("config.json", dtype=None), pickle_shards]
    with pytest.raises(ConfigError, match="cannot be loaded as a cross-encoder"):
        load_cross_encoder(changed(cross_encoder, tmp_path / "model", *free))
    assert not (tmp_path / "model" / "ran").exists()


@pytest.mark.parametrize("place", ["config_sentence_transformers.json", "config.json", "older"])
def test_a_cross_encoder_calls_no_function_of_torch(
    place: str, cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: called.append("init"))
    trap = {
        "config_sentence_transformers.json": edit("config_sentence_transformers.json", activation_fn="torch.cuda.init"),
        "config.json": edit("config.json", sentence_transformers={"activation_fn": "torch.cuda.init"}),
        "older": edit(
            "config.json", sentence_transformers=None, sbert_ce_default_activation_function="torch.cuda.init"
        ),
    }[place]
    with pytest.raises(ConfigError, match=r"torch\.cuda\.init"):
        load_cross_encoder(changed(cross_encoder, tmp_path / "model", trap))
    assert not called


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity", "torch.nn.Sigmoid"]
)
def test_the_activations_of_cross_encoders_are_kept(name: str, cross_encoder: Path, tmp_path: Path) -> None:
    same = edit("config_sentence_transformers.json", activation_fn=name)
    (score,) = load_cross_encoder(changed(cross_encoder, tmp_path / "model", same))([("a", "b")])
    plain = CrossEncoder(str(cross_encoder), activation_fn=torch.nn.Identity())
    logit = torch.tensor(plain.predict([("a", "b")])[0])
    assert score == pytest.approx(float(logit if name.endswith("Identity") else logit.sigmoid()), abs=1e-6)


def test_what_is_only_data_loads(encoder: Path, tmp_path: Path) -> None:
    def add_dense(folder: Path) -> None:
        dense = Dense(32, 16, activation_function=torch.nn.ReLU())
        (folder / "9_Dense").mkdir()
        dense.save(str(folder / "9_Dense"))
        torch.save(dense.state_dict(), folder / "9_Dense" / "pytorch_model.bin")  # beside safetensors: not read
        modules = json.loads((folder / "modules.json").read_text())
        entry = {"idx": 9, "name": "9", "path": "9_Dense", "type": f"{Dense.__module__}.Dense"}
        (folder / "modules.json").write_text(json.dumps([*modules[:2], entry, *modules[2:]]))

    settings = edit(ARGS, model_args={"attn_implementation": "eager", "weights_only": True, "use_kernels": False})
    folder = changed(encoder, tmp_path / "model", settings, add_dense)
    assert load_encoder(folder).get_embedding_dimension() == 16
