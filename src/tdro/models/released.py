"""Folders of the paper's released code: how its `model_args.yaml` says what stands on top of a network.

Such a folder holds a Hugging Face model or a LoRA adapter, its tokenizer, `model_args.yaml`, and with a projection
`pooler.pt`; separate encoders are in `query_model/` and `passage_model/`. Its pickles, `training_args.bin` and
`pooler.pt`, are never read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import Dense

from tdro.errors import ConfigError
from tdro.models.sides import UNTIED, Kind

ARGUMENTS = "model_args.yaml"
POOLER = "pooler.safetensors"

POOLINGS = {
    "lasttoken": "last",
    "last": "last",
    "cls": "cls",
    "mean": "mean",
    "avg": "mean",
    "first_last_avg": "first-last",
    "avg_first_last": "first-last",
    "top2_avg": "top-two",
    "avg_top2": "top-two",
}
"""Names of poolings there, and in the code it goes back to -> ours."""


@dataclass(frozen=True)
class Released:
    """What `model_args.yaml` says; where there is none, what holds for any folder.

    Attributes:
        poolings: Of queries and of passages.
        unit_length: Whether embeddings have length 1.
        projected: Whether a linear layer stands on the pooling.
    """

    poolings: tuple[str, str] = ("auto", "auto")
    unit_length: bool = True
    projected: bool = False

    def pooling(self, kind: Kind) -> str:
        """Return the pooling of one side."""
        return self.poolings[kind == "passages"]


def read_arguments(folder: Path) -> Released:
    """Read the settings of a released folder.

    Raises:
        ConfigError: They cannot be read, or ask for what tdro does not have.
    """
    file = folder / ARGUMENTS
    if not file.is_file():
        return Released()
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        do = "write it anew as plain YAML: pooling_strategy, score_function, normalize"
        what = "the settings of a released model cannot be read"
        raise ConfigError(what, where=file, saw=str(error), do=do) from None
    if not isinstance(found, dict):
        raise ConfigError("the settings of a released model are no names and values", where=file, saw=found)
    score = found.get("score_function") or "cos_sim"
    if score not in ("cos_sim", "dot"):
        raise ConfigError("unknown score function", where=file, saw=score, do="use cos_sim or dot")
    if found.get("untie_encoder") and not is_untied(folder):
        do = f"put the encoders into {' and '.join(UNTIED)}, or set untie_encoder: false"
        raise ConfigError("separate encoders are not there", where=file, saw="untie_encoder: true", do=do)
    queries, passages = (found.get(f"pooling_strategy_{side}") for side in ("qry", "psg"))
    shared = found.get("pooling_strategy")
    return Released(
        poolings=(_pooling(file, queries or shared), _pooling(file, passages or shared)),
        unit_length=score == "cos_sim" or bool(found.get("normalize")),
        projected=bool(found.get("add_pooler")),
    )


def is_untied(folder: Path) -> bool:
    """Tell whether a folder holds separate encoders for queries and passages."""
    return all((folder / name).is_dir() for name in UNTIED) and not (folder / "modules.json").is_file()


def read_projection(folders: tuple[Path, ...], expected: bool) -> Dense | None:
    """Read the linear layer on top of the pooling, from the first folder that has one.

    Args:
        folders: Where it may be.
        expected: Whether there must be one.

    Raises:
        ConfigError: It is missing, pickled, or no single linear layer.
    """
    for folder in folders:
        if (folder / POOLER).is_file():
            return _linear(folder / POOLER)
        if (pickled := folder / "pooler.pt").is_file():
            save = "s.save_file({k: v.clone() for k, v in torch.load('pooler.pt', weights_only=True).items()}"
            do = f"python -c \"import torch, safetensors.torch as s; {save}, '{POOLER}')\""
            raise ConfigError("the projection is pickled", where=pickled, saw=f"no {POOLER} beside it", do=do)
    if expected:
        do = f"add {POOLER}, or set add_pooler: false in {ARGUMENTS}"
        raise ConfigError("the projection of a released model is missing", where=folders[0], do=do)
    return None


def _linear(file: Path) -> Dense:
    """Build a linear layer from its one matrix and, where there is one, its bias."""
    tensors: dict[str, Any] = load_file(file)
    matrices = [tensor for tensor in tensors.values() if tensor.ndim == 2]
    biases = [tensor for tensor in tensors.values() if tensor.ndim == 1]
    if len(matrices) != 1 or len(matrices) + len(biases) != len(tensors) or len(biases) > 1:
        do = "leave the weight, and perhaps the bias, of one linear layer in it"
        raise ConfigError("the projection is no single linear layer", where=file, saw=sorted(tensors), do=do)
    size, width = matrices[0].shape
    layer = Dense(width, size, bias=bool(biases), activation_function=None)
    with torch.no_grad():
        layer.linear.weight.copy_(matrices[0])
        if biases:
            layer.linear.bias.copy_(biases[0])
    return layer


def _pooling(file: Path, name: object) -> str:
    """Translate the name of a pooling."""
    if name is None:
        return "auto"
    if not isinstance(name, str) or name not in POOLINGS:
        do = f"use one of {', '.join(POOLINGS)}"
        raise ConfigError("unknown pooling", where=f"{file}: pooling_strategy", saw=name, do=do)
    return POOLINGS[name]
