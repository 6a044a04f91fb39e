"""Everything a stage needs to go on as if it had never stopped. Safetensors and JSON only.

A checkpoint holds whole tensors, also of a sharded model: any number of ranks takes it up, sharded or not. All ranks
call what saves and loads; rank 0 writes.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tdro.config import fingerprint
from tdro.devices import ALONE, Ranks
from tdro.errors import CheckpointError, EnvironmentProblem
from tdro.files import atomic_folder, read_json, write_json
from tdro.sharding import cut_like, gathered
from tdro.training.optimizers import fill_moments, moments_of, read_moments

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a stage.

    Attributes:
        folder: Where they are.
        fingerprint: Of the study, data and inputs; a checkpoint is never used for others.
        inputs: What went into the fingerprint, as far as it can be named, for the error.
        kept: How many of the last ones stay.
        ranks: Who trains the model.
        tell: Called with a sentence when a damaged checkpoint is passed over.
    """

    folder: Path
    fingerprint: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    kept: int = 1
    ranks: Ranks = ALONE
    tell: Callable[[str], None] = lambda text: None


def save_checkpoint(
    place: Checkpoints, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write a checkpoint atomically and remove those that are too old.

    Args:
        place: Where, and what for.
        step: Steps done.
        model: Its parameters are saved, but for frozen ones, which are those of the base.
        optimizer: Its state per parameter is saved, in the order of its parameters.
        state: What else the stage needs, as JSON; floats survive exactly.

    Raises:
        EnvironmentProblem: The disk refuses the files; the checkpoints before are untouched.
    """
    writes = place.ranks.number == 0
    tensors = trained_tensors(model, writes)
    moments = _on_cpu(moments_of(optimizer), writes)
    if not writes:
        return
    about = {"format": FORMAT, "step": step, "fingerprint": place.fingerprint, "inputs": _flat(place.inputs)}
    try:
        with atomic_folder(place.folder / f"step-{step:08d}") as path:
            save_file(tensors, path / MODEL)
            save_file(moments, path / OPTIMIZER)
            write_json(path / STATE, {**about, "state": state})
    except (OSError, SafetensorError) as error:
        do = "free some disk space; the same command goes on from the checkpoint before"
        raise EnvironmentProblem(
            "a checkpoint could not be saved", where=place.folder, saw=str(error), do=do
        ) from error
    for older in _steps(place.folder)[: -place.kept]:
        shutil.rmtree(older)


def load_checkpoint(
    place: Checkpoints, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest checkpoint that is whole into a model and an optimizer.

    Those that are damaged are passed over, with a message, and removed.

    Returns:
        Steps done and the stage's state; None when there is no checkpoint.

    Raises:
        CheckpointError: It belongs to another study, mixture or data, or none is whole.
        EnvironmentProblem: The ranks see different checkpoints.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_steps(place.folder)):
        try:
            found = _read(path, model, optimizer, place)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, SafetensorError) as error:
            damaged[path] = " ".join(str(error).split()) or type(error).__name__
            continue
        _agree_on(found.step, place)
        _pass_over(damaged, place)
        found.fill(model, optimizer)
        return found.step, found.state
    _agree_on(0, place)
    if damaged:
        saw = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
        do = f"remove {place.folder} to start the stage again"
        raise CheckpointError("no checkpoint is whole", where=place.folder, saw=saw, do=do)
    return None


def save_best(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Keep the parameters of a step atomically, beside those that are kept already.

    Args:
        folder: Folder of the stage's checkpoints.
        step: Steps done.
        model: Its parameters are saved, but for frozen ones.
    """
    with atomic_folder(_best(folder, step)) as path:
        save_file(trained_tensors(model), path / MODEL)


def forget_best(folder: Path, but: int | None) -> None:
    """Remove the parameters that `save_best` has kept, but for those of one step.

    Those that were the best when a checkpoint was saved stay as long as it does: training may go on from there.
    """
    found = sorted(p for p in folder.glob("best-*") if re.fullmatch(r"best-\d+", p.name))
    needed = {_best(folder, but)} if but is not None else set()
    for step in _steps(folder):
        needed |= set([path for path in found if _number(path) <= _number(step)][-1:])
    for path in found:
        if path not in needed:
            shutil.rmtree(path)


def require_best(folder: Path, step: int) -> None:
    """Refuse to go on without the parameters of the best step.

    Raises:
        CheckpointError: They are not there.
    """
    path = _best(folder, step)
    if not path.is_dir():
        do = f"remove {folder} to start the stage again"
        raise CheckpointError("parameters of the best step are lost", where=path, do=do)


def load_best(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Fill a model with the parameters that `save_best` has kept.

    Raises:
        CheckpointError: They are not there, or damaged.
    """
    require_best(folder, step)
    path = _best(folder, step)
    try:
        tensors = load_file(path / MODEL)
        _compare(tensors, _tensors(model), MODEL)
    except (OSError, ValueError, SafetensorError) as error:
        do = f"remove {folder} to start the stage again"
        raise CheckpointError("parameters of the best step are damaged", where=path, saw=str(error), do=do) from None
    fill_tensors(model, tensors)


def trained_tensors(model: torch.nn.Module, wanted: bool = True) -> dict[str, Tensor]:
    """Return what is trained of a model as whole tensors in main memory.

    Args:
        model: Maybe sharded: then all ranks call this.
        wanted: Whether this rank wants them; otherwise it only takes part and gets nothing.
    """
    return _on_cpu(_tensors(model).items(), wanted)


def fill_tensors(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `trained_tensors` has given."""
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(cut_like(tensors[name], tensor))


@dataclass(frozen=True)
class _Found:
    """A checkpoint in memory."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    moments: dict[int, dict[str, Tensor]]

    def fill(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put it into a model and an optimizer."""
        fill_tensors(model, self.tensors)
        fill_moments(optimizer, self.moments)


def _read(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, place: Checkpoints) -> _Found:
    """Read a checkpoint and compare it with what it is for.

    Raises:
        CheckpointError: It was made from something else.
        OSError, ValueError, KeyError, TypeError, SafetensorError: It is damaged.
    """
    content = read_json(path / STATE)
    _refuse_others(path, content, place)
    tensors, joined = load_file(path / MODEL), load_file(path / OPTIMIZER)
    _compare(tensors, _tensors(model), MODEL)
    return _Found(int(content["step"]), dict(content["state"]), tensors, read_moments(joined, optimizer))


def _refuse_others(path: Path, content: dict[str, Any], place: Checkpoints) -> None:
    """Refuse a checkpoint that was made from something else.

    Raises:
        CheckpointError: It says what is different.
    """
    if content["format"] == FORMAT and content["fingerprint"] == place.fingerprint:
        return
    again = f"remove {place.folder} to start the stage again"
    if content["format"] != FORMAT:
        saw = f"format {content['format']}, this is format {FORMAT}"
        raise CheckpointError("checkpoint is of another version of tdro", where=path, saw=saw, do=again)
    saw = _differences(content.get("inputs", {}), _flat(place.inputs))
    do = f"go back to that study, or {again}"
    raise CheckpointError("checkpoint belongs to another study, mixture or data", where=path, saw=saw, do=do)


def _agree_on(step: int, place: Checkpoints) -> None:
    """Make sure that all ranks go on from the same step."""
    first = place.ranks.agree(step)
    if place.ranks.any(first != step):
        do = "put the run folder on a file system that all machines see"
        saw = f"step {step} on rank {place.ranks.number}, {first} on rank 0"
        raise EnvironmentProblem("the ranks do not see the same checkpoint", where=place.folder, saw=saw, do=do)


def _pass_over(damaged: dict[Path, str], place: Checkpoints) -> None:
    """Say which checkpoints are not used, and remove them: kept, they would count as newer than the next ones."""
    if place.ranks.number == 0:
        for path, why in damaged.items():
            place.tell(f"{path.name} is damaged ({why}); going on from the checkpoint before")
            shutil.rmtree(path)


def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers by name, shared ones once."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**trained, **dict(model.named_buffers())}


def _on_cpu(tensors: Iterable[tuple[str, Tensor]], wanted: bool) -> dict[str, Tensor]:
    """Gather tensors one after the other, and keep them where they are wanted."""
    found = {}
    for name, tensor in tensors:
        complete = gathered(tensor.detach())
        if wanted:
            found[name] = complete.contiguous().cpu()
    return found


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    """Refuse tensors of other names or shapes.

    Raises:
        ValueError: They differ.
    """
    if odd := sorted(found.keys() ^ wanted.keys()):
        raise ValueError(f"{name} lacks, or has too many: {', '.join(odd[:3])}")
    if odd := [each for each, tensor in wanted.items() if tensor.shape != found[each].shape]:
        raise ValueError(f"{name} has {odd[0]} of shape {list(found[odd[0]].shape)}, not {list(wanted[odd[0]].shape)}")


def _flat(inputs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the names of nested values with dots; long lists become a fingerprint."""
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            long = isinstance(value, list | tuple) and len(json.dumps(value)) > 200
            flat[f"{prefix}{name}"] = fingerprint(value) if long else value
    return flat


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], most: int = 3) -> str:
    """Say which inputs differ, and how; as many as fit into an error."""

    def said(inputs: Mapping[str, Any], name: str) -> str:
        text = str(inputs.get(name, "absent"))
        return text if len(text) <= 24 else f"{text[:8]}..."

    ours = json.loads(json.dumps(ours))  # as they would be read again
    odd = [name for name in {**theirs, **ours} if (name in theirs, theirs.get(name)) != (name in ours, ours.get(name))]
    first = [f"{name} was {said(theirs, name)}, is {said(ours, name)}" for name in odd[:most]]
    more = [f"{len(odd) - most} more"] if len(odd) > most else []
    return "; ".join([*first, *more]) or "another fingerprint"


def _best(folder: Path, step: int) -> Path:
    """Name the folder of the parameters of a step."""
    return folder / f"best-{step:08d}"


def _number(path: Path) -> int:
    """Return the step in the name of a folder."""
    return int(path.name.partition("-")[2])


def _steps(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted((p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)), key=_number)
