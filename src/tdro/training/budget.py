"""How many tokens share a forward pass: found by trying, unless the study says it."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.devices import Device, free_memory, total_memory
from tdro.files import read_json, write_json
from tdro.models.encoder import embed
from tdro.models.sides import side_of

SMALLEST, LARGEST = 512, 1 << 18
RISE = 1.05
"""Throughput must rise by this factor for a larger budget to be worth its memory."""
SHARE = 0.8
"""Share of a GPU's memory that training may fill."""
LONG = 10.0
"""Seconds of one pass beyond which no larger one is tried."""


@dataclass(frozen=True)
class Budget:
    """Tokens of a forward pass, and how they were found.

    Attributes:
        max_tokens: Tokens of one forward pass, padding included.
        tried: Tokens -> tokens per second, forward and backward; empty where nothing was tried.
    """

    max_tokens: int
    tried: dict[int, float]

    @property
    def graph_tokens(self) -> int:
        """Tokens whose graphs may be in memory at once."""
        return 2 * self.max_tokens

    def shared(self, ranks: int, tokens_of_step: int) -> "Budget":
        """Return a budget that leaves every rank at least four forward passes in a step, so that none is idle long."""
        if ranks == 1:
            return self
        fair = max(tokens_of_step // (4 * ranks), SMALLEST)
        return replace(self, max_tokens=min(self.max_tokens, fair))

    def __str__(self) -> str:
        tried = ", ".join(f"{tokens}: {speed:,.0f}/s" for tokens, speed in self.tried.items())
        return f"{self.max_tokens} tokens per forward pass (tokens per second tried: {tried})"


def find_budget(
    model: SentenceTransformer,
    device: Device,
    length: int,
    beside: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Budget:
    """Try forward and backward passes of 512, 1024, ... tokens until more no longer pays or no longer fits.

    On a CPU the smallest budget is taken whose throughput is within 5 % of the best; on a GPU the largest of which two
    fit beside parameters, gradients, the optimizer's moments and other models. The parameters and the random state are
    not changed.

    Args:
        model: The model to be trained, on its device.
        device: Its precision.
        length: Tokens of the longest texts.
        beside: Bytes of a GPU's memory that other models will take.
        clock: Seconds.
    """
    training, side = model.training, side_of(model, "passages")
    model.train()
    tried: dict[int, float] = {}
    tokens = SMALLEST
    every = _bytes(p for p in model.parameters() if p.requires_grad)
    of_side = _bytes(p for p in side.parameters() if p.requires_grad)
    untried = 2 * every + (every - of_side) + beside  # moments, gradients of the other side
    with torch.random.fork_rng():
        while tokens <= LARGEST:
            try:
                seconds, peak = _try(side, device, tokens, length, clock)
            except torch.OutOfMemoryError:
                break
            if device.name != "cpu" and peak + untried > SHARE * total_memory():
                break
            tried[tokens] = tokens / seconds
            if device.name == "cpu" and (seconds > LONG or _no_longer_rises(list(tried.values()))):
                break
            tokens *= 2
    model.zero_grad(set_to_none=True)
    model.train(training)
    free_memory()
    return Budget(_choose(tried, device.name == "cpu"), tried)


def bytes_of(model: SentenceTransformer) -> int:
    """Count the bytes of a model's parameters and buffers."""
    return _bytes(chain(model.parameters(), model.buffers()))


def kept_budget(path: Path, key: str) -> Budget | None:
    """Read a budget that was found before for the same model and machine; None where there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        content = read_json(path)
        if content["for"] != key:
            return None
        return Budget(int(content["max_tokens"]), {int(k): float(v) for k, v in content["tried"].items()})
    return None


def keep_budget(path: Path, key: str, budget: Budget) -> None:
    """Write a budget for the next time."""
    write_json(path, {"for": key, **asdict(budget)})


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _try(
    model: SentenceTransformer, device: Device, tokens: int, length: int, clock: Callable[[], float]
) -> tuple[float, int]:
    """Time a forward and backward pass, the better of two; also the peak of the GPU's memory in bytes."""
    texts = _texts(model, tokens, length)
    best = float("inf")
    for _ in range(2):
        device.reset_peak()
        began = clock()
        with device.precision():
            embedding_nD = embed(model, texts)
        (embedding_nD * torch.ones_like(embedding_nD)).sum().backward()
        device.wait()
        best = min(best, clock() - began)
        model.zero_grad(set_to_none=True)
        if best > LONG:
            break
    return best, device.peak_bytes()


def _texts(model: SentenceTransformer, tokens: int, length: int) -> list[list[int]]:
    """Make token lists of the longest length that are `tokens` tokens together."""
    from tdro.data.collate import tokenize

    length = min(length, tokens)
    sample = tokenize(model.tokenizer, ["a " * length], length)[0]
    text = [*sample[:-1], *[sample[len(sample) // 2]] * (length - len(sample)), sample[-1]]
    return [text] * max(1, tokens // length)


def _no_longer_rises(speeds: list[float]) -> bool:
    """Whether the last doubling did not bring a rise over the best before it."""
    return len(speeds) > 1 and speeds[-1] < RISE * max(speeds[:-1])


def _choose(tried: dict[int, float], fastest: bool) -> int:
    """Take the smallest budget about as fast as the best, or half of the largest that fits."""
    if not tried:
        return SMALLEST
    if not fastest:
        return max(max(tried) // 2, SMALLEST)
    best = max(tried.values())
    return min(tokens for tokens, speed in tried.items() if RISE * speed >= best)
