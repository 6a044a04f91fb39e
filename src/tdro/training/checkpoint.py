"""Everything a stage needs to go on as if it had never stopped. Safetensors and JSON only."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tdro.errors import CheckpointError
from tdro.files import atomic_folder, write_json

FORMAT = 1


def save_checkpoint(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    fingerprint: str,
) -> None:
    """Write a checkpoint atomically and remove the ones before it.

    Args:
        folder: Folder of the stage's checkpoints.
        step: Steps done.
        model: Its parameters are saved, but for frozen ones, which are those of the base.
        optimizer: Its state per parameter is saved, in the order of its parameters.
        state: What else the stage needs, as JSON; floats survive exactly.
        fingerprint: Of the study, data and inputs; a checkpoint is never used for others.
    """
    with atomic_folder(folder / f"step-{step:08d}") as path:
        save_file(
            {name: p.detach().contiguous().cpu() for name, p in _tensors(model).items()}, path / "model.safetensors"
        )
        moments = {
            f"{index}.{name}": value.detach().contiguous().cpu()
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(moments, path / "optimizer.safetensors")
        write_json(path / "state.json", {"format": FORMAT, "step": step, "fingerprint": fingerprint, "state": state})
    for older in _checkpoints(folder)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest checkpoint into a model and an optimizer.

    Returns:
        Steps done and the stage's state; None when there is no checkpoint.

    Raises:
        CheckpointError: It belongs to another study, mixture or data, or is damaged.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    path = found[-1]
    again = f"remove {folder} to start the stage again"
    try:
        content = json.loads((path / "state.json").read_text("utf-8"))
        weights, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError("checkpoint is damaged", where=path, saw=str(error), do=again) from None
    if (content["format"], content["fingerprint"]) != (FORMAT, fingerprint):
        do = f"go back to that study, or {again}"
        saw = f"{content['fingerprint']}, this study is {fingerprint}"
        raise CheckpointError("checkpoint belongs to another study, mixture or data", where=path, saw=saw, do=do)
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(weights[name])
    by_parameter: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in moments.items():
        index, name = key.split(".", 1)
        by_parameter.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": by_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
    return content["step"], content["state"]


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters and buffers by name, shared ones once."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**trained, **dict(model.named_buffers())}


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name))
