"""The one loop for all stages: schedule, clip, step, journal, checkpoint, stop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from tdro.config import TrainingConfig
from tdro.data.mixture import seeded
from tdro.devices import ALONE, Ranks, refuse_drift
from tdro.errors import TdroError
from tdro.models.dropout import fast_dropout
from tdro.sharding import gathered, is_sharded, whole
from tdro.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from tdro.training.journal import Journal
from tdro.training.optimizers import make_optimizer
from tdro.training.schedule import learning_rate_share

STOPPING = "stopping after this step; once more stops at once, and the last checkpoint stays"


class Stopped(Exception):
    """The stage was asked to stop; everything up to its last step is saved."""


class StageStep(Protocol):
    """What a stage does in one step, and what it must remember between steps."""

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the model's gradients of a step; return what the journal records, with `loss` in it."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""


class Observer:
    """Looks at the model between steps, without changing how it is trained; this one looks away."""

    def start(self, done: int) -> None:
        """Begin, or go on after so many steps; what was seen of later ones is void."""

    def looks(self, done: int) -> bool:
        """Tell whether it will look at the model after so many steps."""
        return True

    def after(self, done: int) -> None:
        """Look at the model after so many steps; its parameters are whole, and must not be changed."""

    def saved(self) -> None:
        """Know that everything up to now has been saved: training will go on from here, and not from earlier."""

    def end(self) -> None:
        """Have the last word on the model's parameters."""


@dataclass(frozen=True)
class Workplace:
    """Where a stage trains.

    Attributes:
        stage: Its name.
        folder: Its folder.
        journal: Of the run.
        fingerprint: Identifies its inputs.
        seed: Decides its random numbers.
        ranks: Who shares the work.
        inputs: What went into the fingerprint, by name.
    """

    stage: str
    folder: Path
    journal: Journal
    fingerprint: str
    seed: int
    ranks: Ranks = ALONE
    inputs: Mapping[str, Any] = field(default_factory=dict)


def train(
    model: torch.nn.Module,
    config: TrainingConfig,
    stage_step: StageStep,
    place: Workplace,
    observer: Observer | None = None,
) -> None:
    """Train a model, from its last checkpoint if there is one.

    A stage that was stopped at any step and started again ends with the same parameters, bit for bit on a CPU (a GPU
    may add in another order from run to run): the data order is a function of the step, the random numbers of a step
    are seeded by it, and everything else is in the checkpoint.

    Several ranks each accumulate a part of the gradients of a step, which are then summed; everything else every rank
    does alike, so the parameters stay the same on all, which is checked whenever they are saved. Of a sharded model
    each rank has a piece of every parameter. Rank 0 writes checkpoints, which any number of ranks take up.

    Args:
        model: In training mode, on its device.
        config: Settings of the stage.
        stage_step: Computes gradients.
        place: Where checkpoints and events go.
        observer: Sees the model after every step, before it is saved.

    Raises:
        Stopped: SIGINT or SIGTERM came; a checkpoint was written.
        TdroError: A loss or gradient is not finite; the last checkpoint is untouched.
        CheckpointError: What was saved is of another study, or damaged.
        EnvironmentProblem: A checkpoint cannot be written, or the ranks have lost each other.
    """
    optimizer = make_optimizer(model, config)
    note = partial(place.journal.write, "note", place.stage)
    checkpoints = Checkpoints(
        place.folder / "checkpoints", place.fingerprint, place.inputs, config.checkpoints_kept, place.ranks,
        lambda text: note(text=text),
    )  # fmt: skip
    restored = load_checkpoint(checkpoints, model, optimizer)
    start = restored[0] if restored else 0
    if restored:
        stage_step.restore(restored[1])
    place.journal.rewind(place.stage, start)
    if observer is not None:
        observer.start(start)
    place.journal.write("stage_started", place.stage, from_step=start, steps=config.steps)
    parameters = [p for p in model.parameters() if p.requires_grad]
    began = time.monotonic()

    def save(done: int) -> None:
        if not is_sharded(model):
            refuse_drift(parameters, place.ranks)
        save_checkpoint(checkpoints, done, model, optimizer, stage_step.state())
        if observer is not None:
            observer.saved()
        place.ranks.barrier()

    with _stop_signal(partial(note, text=STOPPING)) as stopping, fast_dropout(model):
        for step in range(start, config.steps):
            share = learning_rate_share(
                step, config.steps, config.warmup_steps, config.schedule, config.final_learning_rate_share
            )
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * share
            numbers = stage_step.backward(step, int(seeded(place.seed, place.stage, step).integers(2**62)))
            if not is_sharded(model):
                _sum_gradients(parameters, place.ranks)
            norm = float(gathered(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)))
            _refuse_non_finite(numbers, norm, place.stage, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            left = (time.monotonic() - began) / (done - start) * (config.steps - done)
            place.journal.write(
                "step", place.stage, step=step, steps=config.steps, gradient_norm=norm,
                learning_rate=config.learning_rate * share, seconds_left=round(left, 1), **numbers,
            )  # fmt: skip
            if observer is not None and observer.looks(done):
                with whole(model):
                    observer.after(done)
            if place.ranks.any(stopping()):
                save(done)
                raise Stopped(f"{place.stage} stopped after {done} of {config.steps} steps")
            if done % config.checkpoint_every == 0 and done < config.steps:
                save(done)
    if observer is not None:
        observer.end()


def _sum_gradients(parameters: list[torch.nn.Parameter], ranks: Ranks) -> None:
    """Sum the gradients of all ranks; a parameter without one on every rank keeps none, and is not updated."""
    if ranks.count == 1:
        return
    has_N = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    ranks.add([has_N])
    moving = [parameter for parameter, has in zip(parameters, has_N.tolist(), strict=True) if has]
    for parameter in moving:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    ranks.add([parameter.grad for parameter in moving if parameter.grad is not None])


def _refuse_non_finite(numbers: dict[str, Any], norm: float, stage: str, step: int) -> None:
    """Stop before a NaN reaches the parameters."""
    if math.isfinite(numbers["loss"]) and math.isfinite(norm):
        return
    losses = numbers.get("losses", {})
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)] or list(losses)
    saw = f"loss {numbers['loss']}, gradient norm {norm}"
    do = f"lower {stage}.learning_rate, raise {stage}.temperature, or look at the rows of these datasets"
    raise TdroError("loss or gradient is not finite", where=f"{stage}, step {step}, {', '.join(bad)}", saw=saw, do=do)


@contextmanager
def _stop_signal(announce: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a question that the loop asks after each step; a second signal stops at once."""
    asked = threading.Event()

    def stop(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        announce()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
