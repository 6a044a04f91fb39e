"""Who scores candidates for the margins, where it is not the ranker itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from tdro.errors import DataError
from tdro.prepare.candidates import Passages
from tdro.prepare.mining_report import Clock

ScorePairs = Callable[[Sequence[tuple[str, str]]], Sequence[float] | np.ndarray]
"""Takes pairs of query and passage and returns a score for each."""

_PAIRS = 4096  # scored together; bounds the memory that texts take


class Judging(Protocol):
    """A judge that has seen the passages."""

    def scores(self, queries: Sequence[str], numbers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Score passages that are named by number, for each query its own."""
        ...


class Judge(Protocol):
    """Something that scores candidates: a `PairScorer`, or an encoder (`tdro.prepare.candidates.Dense`)."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def at_once(self) -> bool:
        """Whether scoring all candidates of a query costs no more than scoring some."""
        ...

    def open(self, passages: Passages, scratch: Path, clock: Clock) -> Judging:
        """Look at all passages."""
        ...


@dataclass(frozen=True, slots=True)
class PairScorer:
    """A cross-encoder, or any function of query and passage, as the judge; it is asked about no pair in vain.

    Args:
        score: Scores pairs of query and full text of a passage.
        name: Written beside every negative, after that of the ranker.
    """

    score: ScorePairs
    name: str = "cross-encoder"

    @property
    def at_once(self) -> bool:
        """Every pair costs a forward pass."""
        return False

    def open(self, passages: Passages, scratch: Path, clock: Clock) -> "PairJudging":
        """Take the passages to read texts from."""
        return PairJudging(self, passages, clock)


@dataclass(frozen=True, slots=True)
class PairJudging:
    """A pair scorer with passages; made by `PairScorer.open`."""

    scorer: PairScorer
    passages: Passages
    clock: Clock

    def scores(self, queries: Sequence[str], numbers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Score the passages named for each query; see `Judging`."""
        counts = [len(each) for each in numbers]
        number_N = np.concatenate(numbers)
        asked = (query for query, count in zip(queries, counts, strict=True) for _ in range(count))
        found = [np.empty(0, np.float32)]
        with self.clock.span("judge"):
            for start in range(0, len(number_N), _PAIRS):
                texts = self.passages.texts(number_N[start : start + _PAIRS])
                found.append(self._score(list(zip(islice(asked, len(texts)), texts, strict=True))))
        return np.split(np.concatenate(found), np.cumsum(counts)[:-1])

    def _score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Score some pairs, and check the answer."""
        scores = np.asarray(self.scorer.score(pairs), dtype=np.float32)
        if scores.shape != (len(pairs),):
            saw, do = f"{scores.shape} for {len(pairs)} pairs", "use a cross-encoder with one output"
            raise DataError(f"{self.scorer.name} must give one score per pair", saw=saw, do=do)
        if not np.isfinite(scores).all():
            pair = pairs[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise DataError(f"{self.scorer.name} gave a score that is not a finite number", saw=pair)
        return scores
