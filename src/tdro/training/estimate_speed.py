"""How fast this machine is at what a study does: measured on its own model and texts, in some twenty seconds."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from tdro.devices import Device, peak_memory_gb
from tdro.models.dropout import fast_dropout
from tdro.models.encoder import embed
from tdro.models.packing import pack
from tdro.models.sides import side_of
from tdro.training.budget import Budget
from tdro.training.estimate_machine import time_disk, time_search

ROUNDS = 5
"""Most often that a pass is timed; the median counts, the lower of two: what disturbs makes passes slower."""
ONCE = 0.15
"""Spread that is assumed where there was time for one measurement only."""
_QUANTILES = (0.1, 0.5, 0.95)  # of the texts, by length: where speed is measured
_WORK = 30.0  # a round costs about as much as so many forward passes of a micro-batch
_LOSS = 512  # queries, and passages, of the loss that is timed


@dataclass(frozen=True)
class Curve:
    """Seconds per token, padding included where there is some, at lengths of texts; straight lines between them."""

    lengths: list[float]
    seconds: list[float]

    def of(self, token_n: np.ndarray | float, length_n: np.ndarray | float) -> float:
        """Return the seconds that passes take.

        Args:
            token_n: Tokens of each pass.
            length_n: Its longest text.
        """
        return float(np.sum(np.asarray(token_n) * np.interp(length_n, self.lengths, self.seconds)))


@dataclass(frozen=True)
class Speeds:
    """What was measured.

    Attributes:
        forward: Training mode without a graph: the first pass of the gradient cache.
        backward: Forward and backward pass.
        encode: Evaluation mode.
        proxy: Factor of `backward` for the smaller passes of stage 1.
        reference: Factor of `encode` for the passes that look up similarities.
        loss: Seconds per similarity of a contrastive loss, backward pass included.
        search: Seconds per pair of query and passage.
        optimizer: Seconds of clipping and one optimizer step.
        disk: Bytes per second that are written.
        pads: Whether texts of a pass are padded to the longest; static embeddings and flash attention need not.
        dimension: D.
        parameter_bytes: Bytes of all parameters.
        trained_bytes: Bytes of the trained ones.
        encode_gb: Peak memory of the process while encoding; of the GPU where there is one.
        train_gb: The same in training.
        spread: Usual relative difference between repeated measurements (the median over all kinds of passes), halved.
        busy: Processes that waited for a core while it was measured, per core: the load average; 0 to 1 is an idle
            machine, or one that does nothing else.
        seconds: How long measuring took.
        cut_short: Time was up before every pass was timed once: the others count as the same as those that were.
    """

    forward: Curve
    backward: Curve
    encode: Curve
    proxy: float
    reference: float
    loss: float
    search: float
    optimizer: float
    disk: float
    pads: bool
    dimension: int
    parameter_bytes: int
    trained_bytes: int
    encode_gb: float
    train_gb: float
    spread: float
    busy: float
    seconds: float
    cut_short: bool = False


def measure_speeds(
    model: SentenceTransformer,
    device: Device,
    budget: Budget,
    tokens: Sequence[Sequence[int]],
    folder: Path,
    seconds: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Speeds:
    """Time the passes of a study on the texts of a study.

    Passes of three lengths are timed, five times where time allows. Where one pass is so slow that all of them would
    take much longer than `seconds`, smaller ones are timed; when the wall clock says that time is up all the same, no
    other is begun but one forward and backward pass of the longest texts.

    Args:
        model: To be trained, on its device; it is not changed, and may not be trained afterwards.
        device: Its precision.
        budget: The tokens of a forward pass as the run uses them.
        tokens: Token lists of texts of the study.
        folder: On the disk that the run will write to.
        seconds: What measuring may take.
        clock: Seconds.
    """
    began = clock()
    probe = _Probe(model, device, budget, sorted(tokens, key=len), clock)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), fast_dropout(model):
        probe.fit_into(began + seconds, max(seconds - (clock() - began), seconds / 3))
        encode_gb = probe.warm_up()
        optimizer = probe.optimizer()
        times = [probe.round()]
        cut_short = probe.late
        while len(times) < ROUNDS and clock() - began + (clock() - probe.began) / len(times) < seconds:
            again = probe.round()
            if probe.late:
                break
            times.append(again)
        loss = probe.loss()
    parameters = list(model.parameters())
    middle = {name: np.sort([of_round[name] for of_round in times], axis=0)[(len(times) - 1) // 2] for name in times[0]}
    spread = {name: np.ptp([of_round[name] for of_round in times], axis=0) / middle[name] for name in times[0]}
    curves = {name: Curve(probe.lengths, middle[name].tolist()) for name in ("forward", "backward", "encode")}
    return Speeds(
        **curves,
        proxy=float(middle["proxy"][0] / middle["backward"][1]),
        reference=float(middle["reference"][0] / middle["encode"][1]),
        loss=loss,
        search=time_search(model.get_embedding_dimension() or 1, device, clock),
        optimizer=optimizer,
        disk=time_disk(folder, clock),
        pads=probe.pads,
        dimension=model.get_embedding_dimension() or 1,
        parameter_bytes=sum(p.nbytes for p in parameters),
        trained_bytes=sum(p.nbytes for p in parameters if p.requires_grad),
        encode_gb=encode_gb,
        train_gb=_peak_gb(device),
        spread=float(np.median(np.concatenate(list(spread.values())))) / 2 if len(times) > 1 else ONCE,
        busy=round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        seconds=round(clock() - began, 1),
        cut_short=cut_short,
    )


class _Probe:
    """Times passes of a model.

    Args:
        model: Left in training mode; its parameters are not changed.
        device: Its precision.
        budget: Tokens of a pass.
        tokens: Token lists, shortest first.
        clock: Seconds.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        device: Device,
        budget: Budget,
        tokens: Sequence[Sequence[int]],
        clock: Callable[[], float],
    ) -> None:
        self._model, self._device, self._clock = model.train(), device, clock
        self._encoder = side_of(model, "passages")  # where queries have their own, it is taken for as fast
        first = self._encoder[0]
        self.pads = not (isinstance(first, StaticEmbedding) or getattr(first, "can_flatten_inputs", False))
        self._budget, self._sorted = budget, tokens
        self.began = clock()
        self._choose()

    def fit_into(self, deadline: float, seconds: float) -> None:
        """Make the passes smaller where a round of them would take longer than this.

        Args:
            deadline: When to leave out what can be left out.
            seconds: Of a round.
        """
        self._deadline = deadline
        shortest = self._texts(self._budget.max_tokens // 16, _QUANTILES[1])
        self._time([shortest], grad=False)
        took = self._time([shortest], grad=False) / sum(map(len, shortest))
        fitting = int(seconds / _WORK / max(took, 1e-12))
        if fitting < self._budget.max_tokens:
            self._budget = replace(self._budget, max_tokens=max(fitting, self._budget.max_tokens // 16, 1))
            self._choose()

    def warm_up(self) -> float:
        """Make the passes once that take the most memory in encoding; return the peak in GB."""
        self._model.eval()
        self._time(self._passes[-1][:1], grad=False)
        self._model.train()
        return _peak_gb(self._device)

    def optimizer(self) -> float:
        """Time clipping and a step that changes nothing, with moments and gradients in memory."""
        trained = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)
        best = float("inf")
        for _ in range(2):
            self._backward(self._passes[0][:1])
            self._device.wait()
            began = self._clock()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self._device.wait()
            best = min(best, self._clock() - began)
            if self._is_late():
                break
        self._optimizer = optimizer  # its moments stay in memory, as in training
        self.began = self._clock()
        return best

    def round(self) -> dict[str, np.ndarray]:
        """Time every kind of pass, longest texts first; return seconds per token at each length.

        When time is up, what is left counts as the same as what was measured last.
        """
        found = {name: np.zeros(len(_QUANTILES)) for name in ("forward", "backward", "encode")}
        for number in reversed(range(len(_QUANTILES))):
            if number < len(_QUANTILES) - 1 and self._is_late():
                for seconds in found.values():
                    seconds[number] = seconds[number + 1]
                continue
            passes = self._passes[number]
            tokens = self._tokens(passes[0])
            found["forward"][number] = self._time(passes[:1], grad=False) / tokens
            timed = passes[:1] if self._is_late() else passes
            found["backward"][number] = self._time(timed, grad=True) / (tokens * len(timed))
            if self._is_late():
                found["encode"][number] = found["forward"][number]
                continue
            self._model.eval()
            found["encode"][number] = self._time(passes[:1], grad=False) / tokens
            self._model.train()
        if self._is_late():
            return found | {"proxy": found["backward"][1:2], "reference": found["encode"][1:2]}
        small = [self._texts(max(self._budget.graph_tokens // 4, 1), _QUANTILES[1]) for _ in range(4)]
        found["proxy"] = np.array([self._time(small, grad=True) / sum(map(self._tokens, small))])
        self._model.eval()
        small = [self._texts(max(self._budget.max_tokens // 4, 1), _QUANTILES[1])]
        found["reference"] = np.array([self._time(small, grad=False) / self._tokens(small[0])])
        self._model.train()
        return found

    def loss(self) -> float:
        """Time a contrastive loss; seconds per similarity."""
        shape = 2, _LOSS, self._model.get_embedding_dimension() or 1
        embedding_2QD = torch.randn(shape, device=self._device.name).requires_grad_()
        best = float("inf")
        for _ in range(2):
            self._device.wait()
            began = self._clock()
            similarity_QQ = embedding_2QD[0] @ embedding_2QD[1].T
            (similarity_QQ.logsumexp(1) - similarity_QQ.diagonal()).sum().backward()
            self._device.wait()
            best = min(best, self._clock() - began)
        return best / _LOSS**2

    def _is_late(self) -> bool:
        """Tell whether time is up; `late` keeps that something was left out for it."""
        self.late = self._clock() > self._deadline
        return self.late

    def _tokens(self, texts: Sequence[Sequence[int]]) -> int:
        """Count the tokens that a pass computes."""
        return _padded(texts) if self.pads else sum(map(len, texts))

    def _choose(self) -> None:
        """Choose the texts that are timed: at each length two passes, as many graphs as a step keeps in memory."""
        self._passes = [[self._texts(self._budget.max_tokens, quantile)] * 2 for quantile in _QUANTILES]
        self.lengths = [float(max(map(len, passes[0]))) for passes in self._passes]

    def _texts(self, tokens: int, quantile: float) -> list[Sequence[int]]:
        """Return texts around a quantile of the lengths that fill a pass, as packing would put them together."""
        place = int(quantile * (len(self._sorted) - 1))
        count = max(1, tokens // max(len(self._sorted[place]), 1))
        start = max(0, min(place - count // 2, len(self._sorted) - count))
        near = self._sorted[start : start + count]
        repeated = [near[number % len(near)] for number in range(count)]
        groups = pack(np.array([len(text) for text in repeated]), max(tokens, 1))
        packed = [[repeated[number] for number in group] for group in groups]
        return max(packed, key=_padded)  # the others may be what was left over

    def _time(self, passes: list[list[Sequence[int]]], grad: bool) -> float:
        """Time passes; with gradients, their graphs are in memory together."""
        self._device.wait()
        began = self._clock()
        if grad:
            self._backward(passes)
        else:
            with torch.no_grad(), self._device.precision():
                for texts in passes:
                    embed(self._encoder, texts)
        self._device.wait()
        seconds = self._clock() - began
        if grad:
            self._model.zero_grad(set_to_none=True)
        return seconds

    def _backward(self, passes: list[list[Sequence[int]]]) -> None:
        """Make forward and backward passes."""
        with self._device.precision():
            found = [embed(self._encoder, texts) for texts in passes]
        for embedding_nD in found:
            embedding_nD.backward(torch.ones_like(embedding_nD))


def _padded(texts: Sequence[Sequence[int]]) -> int:
    """Tokens of a pass, padding included."""
    return len(texts) * max(map(len, texts))


def _peak_gb(device: Device) -> float:
    """Peak memory so far, in GB."""
    peaks = peak_memory_gb()
    return peaks.get("gpu", peaks["process"]) if device.name == "cuda" else peaks["process"]
