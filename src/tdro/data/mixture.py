"""Which dataset and which rows a step sees: pure functions of (seed, step), no state that a checkpoint must carry.

A dataset is read as an endless stream of passes, each in a new seeded order. A step takes the next rows of the stream
of the dataset(s) that it is given; how many rows were taken before follows from the steps before, so any step can be
asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, Protocol

import numpy as np


@dataclass(frozen=True)
class Draw:
    """The queries of one optimizer step.

    Attributes:
        dataset_B: int64, index of each query's dataset.
        row_B: int64, row within the dataset.
        visit_B: int64, how often that row was drawn before, from 0.
    """

    dataset_B: np.ndarray
    row_B: np.ndarray
    visit_B: np.ndarray


def seeded(*key: object) -> np.random.Generator:
    """Make a random generator that depends on a key alone.

    Example:
        >>> int(seeded(42, "nq", 3).integers(1000)) == int(seeded(42, "nq", 3).integers(1000))
        True
    """
    digest = blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


class Mixture(Protocol):
    """Says which rows each step sees."""

    def draw(self, step: int) -> Draw:
        """Return the queries of a step, counted from 0."""

    def examples_seen(self, steps: int) -> dict[str, int]:
        """Count the queries per dataset in the first `steps` steps."""


class Apportionment:
    """Deal turns to datasets so that every prefix of the turns is as close to the weights as can be.

    After t turns, |count_g - t * weight_g| < 1 for every dataset g and every t. The j-th turn of a dataset may not come
    before it would put the dataset ahead of its due by more than c = 1 - 1/(2G-2), nor after the dataset would be more
    than c behind; the earliest deadline goes first, which meets all of them. Turns with the same deadline are
    ordered by the seed, so uniform weights give a new permutation of the datasets in each round.

    Args:
        weights_G: Not negative, not all 0; normalised here. A dataset of weight 0 never gets a turn.
        seed: Decides the order among equals.

    Source: bound and window from Tijdeman, The chairman assignment problem (1980); earliest deadline first is optimal
    for unit jobs with release times.
    """

    def __init__(self, weights_G: Sequence[float] | np.ndarray, seed: int) -> None:
        self._weights_G = np.asarray(weights_G, np.float64) / np.sum(weights_G)
        groups = int((self._weights_G > 0).sum())
        self._limit = 1 - 1 / (2 * groups - 2) + 1e-9 if groups > 1 else 1.0
        self._seed = seed
        self._count_G = np.zeros(len(self._weights_G), np.int64)
        self._turns: list[int] = []
        self._ordinals: list[int] = []

    def turns(self, start: int, end: int) -> np.ndarray:
        """Return the datasets of turns start..end-1, int64."""
        while len(self._turns) < end:
            self._deal()
        return np.array(self._turns[start:end], np.int64)

    def ordinal(self, turn: int) -> int:
        """Count the turns that the dataset of this turn had before it."""
        self.turns(turn, turn + 1)
        return self._ordinals[turn]

    def _deal(self) -> None:
        """Give out one more turn."""
        turn = len(self._turns) + 1
        due_G = turn * self._weights_G - self._count_G
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            deadline_G = np.floor((self._limit + self._count_G) / self._weights_G)
        deadline_G = np.where((due_G >= 1 - self._limit) & (self._weights_G > 0), deadline_G, np.inf)
        first = np.flatnonzero(deadline_G == deadline_G.min())
        chosen = int(first[seeded(self._seed, "turn", turn).integers(len(first))]) if len(first) > 1 else int(first[0])
        self._turns.append(chosen)
        self._ordinals.append(int(self._count_G[chosen]))
        self._count_G[chosen] += 1


class Streams:
    """The rows of every dataset as endless streams of reshuffled passes."""

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        self.names = list(sizes)
        self._sizes = list(sizes.values())
        self._seed = seed
        self._order = lru_cache(maxsize=2 * len(sizes))(self._shuffle)

    def take(self, dataset: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and visits of positions start..start+count-1 of a dataset's stream, int64."""
        size = self._sizes[dataset]
        visit, offset = np.divmod(np.arange(start, start + count, dtype=np.int64), size)
        row = np.empty(count, np.int64)
        for v in np.unique(visit):
            row[visit == v] = self._order(dataset, int(v))[offset[visit == v]]
        return row, visit

    def _shuffle(self, dataset: int, visit: int) -> np.ndarray:
        """Order of the rows in one pass; keyed by the dataset's name, so other datasets do not matter."""
        return seeded(self._seed, self.names[dataset], visit).permutation(
            np.arange(self._sizes[dataset], dtype=np.int32)
        )


class HomogeneousMixture:
    """One dataset per step, apportioned to the weights (stages 0 and 2).

    Args:
        sizes: Dataset -> rows, each at least 1.
        probabilities: Dataset -> probability per step. Datasets that are absent are never drawn.
        batch_size: Queries per step; more than a dataset has is fine, its rows then repeat within a step.
        seed: Decides everything.

    Source: paper, stages 0 and 2. Departure: the released code draws the dataset of each step independently, so a
    dataset of weight .0005 is never seen in 1000 steps with probability .61.
    """

    def __init__(
        self, sizes: Mapping[str, int], probabilities: Mapping[str, float], batch_size: int, seed: int
    ) -> None:
        self._streams = Streams(sizes, seed)
        self._turns = Apportionment([probabilities.get(name, 0.0) for name in sizes], seed)
        self._batch_size = batch_size

    def draw(self, step: int) -> Draw:
        """Return the queries of a step, counted from 0."""
        dataset = int(self._turns.turns(step, step + 1)[0])
        row_B, visit_B = self._streams.take(dataset, self._turns.ordinal(step) * self._batch_size, self._batch_size)
        return Draw(np.full(self._batch_size, dataset, np.int64), row_B, visit_B)

    def examples_seen(self, steps: int) -> dict[str, int]:
        """Count the queries per dataset in the first `steps` steps."""
        count_G = np.bincount(self._turns.turns(0, steps), minlength=len(self._streams.names)) * self._batch_size
        return dict(zip(self._streams.names, count_G.tolist(), strict=True))


class MixedMixture:
    """All datasets in every step: equally likely (stage 1), or by probability (mixed batches of stages 0 and 2).

    Args:
        sizes: Dataset -> rows, each at least 1.
        batch_size: Queries per step.
        seed: Decides everything.
        sampling: "uniform": each query draws its dataset independently, as in the paper. "stratified": each step holds
            batch_size / G queries per dataset, give or take one, and the excess goes round.
        probabilities: Dataset -> probability that a query is of it; absent ones are never drawn. Without it all are
            equally likely; with it queries draw independently.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_size: int,
        seed: int,
        sampling: Literal["uniform", "stratified"] = "uniform",
        probabilities: Mapping[str, float] | None = None,
    ) -> None:
        if probabilities is not None and sampling != "uniform":
            raise ValueError("stratified batches hold as many queries of each dataset; they take no probabilities")
        self._streams = Streams(sizes, seed)
        self._share_G = None if probabilities is None else _shares(sizes, probabilities)
        self._batch_size, self._seed, self.sampling = batch_size, seed, sampling
        self._before_G = [np.zeros(len(sizes), np.int64)]

    def draw(self, step: int) -> Draw:
        """Return the queries of a step, counted from 0, in an order that mixes the datasets."""
        dataset_B = self._datasets(step)
        row_B, visit_B = np.empty_like(dataset_B), np.empty_like(dataset_B)
        before_G = self._counts_before(step)
        for dataset in np.unique(dataset_B):
            mine_B = dataset_B == dataset
            row_B[mine_B], visit_B[mine_B] = self._streams.take(int(dataset), int(before_G[dataset]), int(mine_B.sum()))
        return Draw(dataset_B, row_B, visit_B)

    def examples_seen(self, steps: int) -> dict[str, int]:
        """Count the queries per dataset in the first `steps` steps."""
        return dict(zip(self._streams.names, self._counts_before(steps).tolist(), strict=True))

    def _datasets(self, step: int) -> np.ndarray:
        """Dataset of each query of a step."""
        if self.sampling == "stratified":
            groups, start = len(self._streams.names), step * self._batch_size
            first, last = start // groups, (start + self._batch_size - 1) // groups
            rounds = np.concatenate([self._round(number) for number in range(first, last + 1)])
            return rounds[start - first * groups :][: self._batch_size]
        random, groups = seeded(self._seed, "mixed", step), len(self._streams.names)
        if self._share_G is None:
            return random.integers(groups, size=self._batch_size)
        return random.choice(groups, size=self._batch_size, p=self._share_G)

    def _counts_before(self, step: int) -> np.ndarray:
        """Queries per dataset in the steps before this one."""
        if self.sampling == "stratified":
            whole, rest = divmod(step * self._batch_size, len(self._streams.names))
            return whole + np.bincount(self._round(whole)[:rest], minlength=len(self._streams.names))
        while len(self._before_G) <= step:
            drawn_G = np.bincount(self._datasets(len(self._before_G) - 1), minlength=len(self._streams.names))
            self._before_G.append(self._before_G[-1] + drawn_G)
        return self._before_G[step]

    def _round(self, number: int) -> np.ndarray:
        """Every dataset once, in a seeded order; stratified steps are cut from one round after the other."""
        return seeded(self._seed, "round", number).permutation(len(self._streams.names))


def _shares(sizes: Mapping[str, int], probabilities: Mapping[str, float]) -> np.ndarray:
    """Return the probabilities in the order of the datasets, with sum 1."""
    share_G = np.array([probabilities.get(name, 0.0) for name in sizes])
    normalised_G: np.ndarray = share_G / share_G.sum()
    return normalised_G
