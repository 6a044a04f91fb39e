"""What mining found, and where its time went."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tdro.prepare.margins import Choice

PERCENTILES = (5, 25, 50, 75, 95)
_KEPT = 1 << 20  # scores that percentiles are computed from, at most
_MANY = 0.5  # share of refused candidates above which a report warns


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What mining found. Scores are those that margins and limits look at, also where there are none.

    Args:
        ranker: Who ranked the passages.
        judge: Whose scores these are, where it is not the ranker.
        rows: Rows written, which is all rows.
        corpus: Distinct passages that were ranked.
        shared_ids: Passages whose id also stands for another text; none of them is a negative of a query whose
            positive has that id.
        empty: Passages without a letter, left out.
        kept: Rows that were left as they were, because they had negatives and `only_missing` was set.
        mined: Rows that got at least one negative.
        short: Those of them with fewer negatives than asked.
        none: Rows written without negatives: every passage is a positive or the query itself, or was refused.
        fallback: Rows whose rank window was empty, so that better-ranked passages had to do.
        negatives: Negatives mined, over all rows.
        looked_at: Candidates whose score was compared with margins and limits.
        above_margin: Those refused because they score too close to a positive.
        outside_limits: Those refused by the highest or lowest score alone.
        refused_rows: Rows without negatives because all their candidates were refused.
        positive_similarity: Mean score of the positives, over the rows not kept; None without any.
        negative_similarity: Mean score of the negatives mined; None without any.
        inverted: Share of mined rows in which some negative scores higher than some positive. A high share
            means a weak miner or many unlabelled positives; None if no row was mined.
        positive_percentiles: Percentile -> score of positives; of a million of them where there are more.
        negative_percentiles: The same of the negatives.
        seconds: Wall time.
        seconds_of: What it was spent on: read, encode (or index), search, judge, write.
    """

    ranker: str
    judge: str
    rows: int
    corpus: int
    shared_ids: int
    empty: int
    kept: int
    mined: int
    short: int
    none: int
    fallback: int
    negatives: int
    looked_at: int
    above_margin: int
    outside_limits: int
    refused_rows: int
    positive_similarity: float | None
    negative_similarity: float | None
    inverted: float | None
    positive_percentiles: Mapping[str, float]
    negative_percentiles: Mapping[str, float]
    seconds: float
    seconds_of: Mapping[str, float]

    @property
    def skipped(self) -> float | None:
        """Share of the candidates looked at that margins and limits refused; None where there are neither."""
        return (self.above_margin + self.outside_limits) / self.looked_at if self.looked_at else None

    @property
    def warnings(self) -> list[str]:
        """What to look into, one sentence each."""
        found = []
        if self.skipped is not None and self.skipped > _MANY:
            found.append(
                f"{self.skipped:.0%} of the candidates were refused ({self.above_margin} too close to a positive, "
                f"{self.outside_limits} outside the limits); margins depend on the model: choose smaller ones"
            )
        if self.none:
            reason = f" ({self.refused_rows} because every candidate was refused)" if self.refused_rows else ""
            found.append(f"{self.none} of {self.rows} rows have no negatives{reason}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they are written to JSON, with `skipped`."""
        return asdict(self) | {"skipped": self.skipped}


class Clock:
    """Adds up the seconds that go into each kind of work.

    Attributes:
        seconds: Kind -> seconds so far.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("read", "encode", "search", "judge"), 0.0)
        self._began = time.perf_counter()

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Count the block as one kind of work; blocks do not overlap."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - began

    def stop(self) -> tuple[float, dict[str, float]]:
        """Return all seconds, and those of each kind; what is left over is writing."""
        total = time.perf_counter() - self._began
        return total, {**self.seconds, "write": max(0.0, total - sum(self.seconds.values()))}


class Spread:
    """Mean and percentiles of a stream of scores, in bounded memory: every second is dropped when it gets too many."""

    def __init__(self) -> None:
        self.count, self._sum, self._step = 0, 0.0, 1
        self._kept: list[np.ndarray] = []
        self._held = 0

    def add(self, scores: np.ndarray) -> None:
        """Count more scores."""
        part = scores[-self.count % self._step :: self._step]
        self._kept.append(part)
        self._held += len(part)
        self.count += len(scores)
        self._sum += float(scores.sum(dtype=np.float64))
        if self._held > _KEPT:
            self._kept = [np.concatenate(self._kept)[::2]]
            self._held, self._step = len(self._kept[0]), self._step * 2

    @property
    def mean(self) -> float | None:
        """The mean of all scores; None without any."""
        return self._sum / self.count if self.count else None

    @property
    def percentiles(self) -> dict[str, float]:
        """Percentile -> score; empty without scores."""
        if not self.count:
            return {}
        found = np.percentile(np.concatenate(self._kept), PERCENTILES)
        return {str(share): round(float(score), 6) for share, score in zip(PERCENTILES, found, strict=True)}


@dataclass(slots=True)
class Tally:
    """The running sums behind a report."""

    wanted: int
    rows: int = 0
    kept: int = 0
    short: int = 0
    none: int = 0
    fallback: int = 0
    looked_at: int = 0
    above_margin: int = 0
    outside_limits: int = 0
    refused_rows: int = 0
    inverted: int = 0
    positives: Spread = field(default_factory=Spread)
    negatives: Spread = field(default_factory=Spread)

    def keep(self) -> None:
        """Count a row that is left as it is."""
        self.rows += 1
        self.kept += 1

    def add(self, positive_scores: np.ndarray, choice: Choice, *, candidates: int, fallback: bool) -> None:
        """Count a mined row."""
        found = len(choice.places)
        self.rows += 1
        self.none += found == 0
        self.short += 0 < found < self.wanted
        self.fallback += fallback
        self.looked_at += choice.looked_at
        self.above_margin += choice.above_margin
        self.outside_limits += choice.outside_limits
        self.refused_rows += found == 0 < candidates
        self.inverted += found > 0 and bool(choice.scores.max() > positive_scores.min())
        self.positives.add(positive_scores)
        self.negatives.add(choice.scores)

    def report(
        self, *, ranker: str, judge: str, corpus: int, shared_ids: int, empty: int, refuses: bool, clock: Clock
    ) -> MiningReport:
        """Turn sums into a report."""
        mined = self.rows - self.kept - self.none
        seconds, seconds_of = clock.stop()
        return MiningReport(
            ranker=ranker,
            judge=judge,
            rows=self.rows,
            corpus=corpus,
            shared_ids=shared_ids,
            empty=empty,
            kept=self.kept,
            mined=mined,
            short=self.short,
            none=self.none,
            fallback=self.fallback,
            negatives=self.negatives.count,
            looked_at=self.looked_at if refuses else 0,
            above_margin=self.above_margin,
            outside_limits=self.outside_limits,
            refused_rows=self.refused_rows,
            positive_similarity=self.positives.mean,
            negative_similarity=self.negatives.mean,
            inverted=self.inverted / mined if mined else None,
            positive_percentiles=self.positives.percentiles,
            negative_percentiles=self.negatives.percentiles,
            seconds=seconds,
            seconds_of=seconds_of,
        )
