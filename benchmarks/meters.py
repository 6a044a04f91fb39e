"""Meters for benchmarks: seconds, peak memory, and where a training step spends its time."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from sentence_transformers import SentenceTransformer


class StepMeter:
    """Watches training steps from outside: seconds in the models and in autograd, and tokens through the models.

    Every module of the models gets hooks, and `torch.autograd.backward` is wrapped. Time counts as inside from the
    moment the outermost of them begins until it ends, so it does not matter which part of a model a step calls. Tokens
    are counted where the token embeddings are looked up.

    Args:
        models: Models that the steps use.

    Attributes:
        inside: Seconds in forward and backward passes.
        total: Seconds of the blocks.
        padded: Tokens that the models have computed, padding included.
        real: Tokens without padding.
    """

    def __init__(self, *models: SentenceTransformer) -> None:
        self._models = models
        self.inside = self.total = 0.0
        self.padded = self.real = 0
        self._depth, self._began = 0, 0.0

    @property
    def overhead(self) -> float:
        """Share of the time that was spent outside forward and backward passes."""
        return 1 - self.inside / self.total

    def found(self) -> dict[str, float]:
        """Return both ratios."""
        return {"padding_ratio": self.padded / self.real, "step_overhead": self.overhead}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch what runs within the block."""
        handles = [hook for model in self._models for hook in self._hooks(model)]
        backward = torch.autograd.backward
        torch.autograd.backward = self._wrapped(backward)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.total += time.perf_counter() - began
            torch.autograd.backward = backward
            for handle in handles:
                handle.remove()

    def _hooks(self, model: SentenceTransformer) -> list[torch.utils.hooks.RemovableHandle]:
        """Put hooks on all modules of a model."""
        handles = [model[0].model.get_input_embeddings().register_forward_pre_hook(self._counter(model))]
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(lambda *_: self._enter()))
            handles.append(module.register_forward_hook(lambda *_: self._leave()))
        return handles

    def _counter(self, model: SentenceTransformer) -> Callable[..., None]:
        """Make the hook that counts tokens."""
        pad = model.tokenizer.pad_token_id

        def count(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            self.padded += arguments[0].numel()
            self.real += int((arguments[0] != pad).sum())

        return count

    def _wrapped(self, backward: Callable[..., None]) -> Callable[..., None]:
        """Wrap autograd's entry."""

        def watched(*arguments: object, **options: object) -> None:
            self._enter()
            try:
                backward(*arguments, **options)
            finally:
                self._leave()

        return watched

    def _enter(self) -> None:
        """A forward or backward pass begins."""
        if self._depth == 0:
            self._began = time.perf_counter()
        self._depth += 1

    def _leave(self) -> None:
        """A forward or backward pass ends."""
        self._depth -= 1
        if self._depth == 0:
            self.inside += time.perf_counter() - self._began


@dataclass(frozen=True)
class Timings:
    """What each side took, repetition by repetition.

    Attributes:
        seconds: Side -> seconds.
        cpu_seconds: Side -> seconds of all threads of this process; suffers less from what else the machine does.
    """

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]

    def ratio(self, other: str, ours: str) -> float:
        """Return the median over repetitions of other / ours in seconds."""
        return _median_ratio(self.seconds[other], self.seconds[ours])

    def cpu_ratio(self, other: str, ours: str) -> float:
        """Return the median over repetitions of other / ours in CPU seconds."""
        return _median_ratio(self.cpu_seconds[other], self.cpu_seconds[ours])


def interleaved(
    sides: Mapping[str, Callable[[int], object]], repeats: int, say: Callable[[str], None] = print
) -> Timings:
    """Time several sides in turn, so that whatever else the machine does slows all of them down alike.

    Args:
        sides: Name -> what to time; called with the number of the repetition.
        repeats: How often each side runs; each repetition begins with another side.
        say: Takes progress lines.
    """
    names = list(sides)
    found = Timings({name: [] for name in names}, {name: [] for name in names})
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            began, cpu_began = time.perf_counter(), time.process_time()
            sides[name](repeat)
            found.seconds[name].append(time.perf_counter() - began)
            found.cpu_seconds[name].append(time.process_time() - cpu_began)
        say(f"{repeat + 1}/{repeats} " + ", ".join(f"{name} {found.seconds[name][-1]:.2f} s" for name in names))
    return found


def _median_ratio(other: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over repetitions of other / ours."""
    return median(a / b for a, b in zip(other, ours, strict=True))
