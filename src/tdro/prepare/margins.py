"""Which candidates of a query become its negatives: window, draw, margins against the positives, limits."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

import numpy as np

from tdro.errors import ConfigError

Scores = Callable[[list[np.ndarray]], list[np.ndarray]]
"""Takes for every row the places of candidates and returns their scores."""


@dataclass(frozen=True, slots=True)
class Selection:
    """How negatives are selected from the ranking of a query.

    The window comes first, margins and limits refuse within it. Scores are those of the ranker, or of the judge where
    there is one. A margin compares with the positive of the row that scores worst.

    Args:
        ranks: First rank used and first rank not used, counted from 0 among what may be a negative.
        negatives: Negatives per row.
        sampling: "random" draws from the window; "top" takes its best ranked.
        relative_margin: m: a negative scores at most p - m |p|, p being the worst positive's score. That is
            (1 - m) p as long as p is not negative; below 0, where (1 - m) p would let negatives score above the
            positive, it stays a margin.
        absolute_margin: a: a negative scores at most p - a.
        max_score: A negative scores at most this.
        min_score: A negative scores at least this.

    Raises:
        ConfigError: A value is impossible.

    Example:
        >>> selection = Selection(relative_margin=0.05)
        >>> [round(selection.ceiling(np.array(scores)), 2) for scores in ([0.9, 0.8], [-0.2])]
        [0.76, -0.21]
    """

    ranks: tuple[int, int] = (2, 100)
    negatives: int = 16
    sampling: Literal["random", "top"] = "random"
    relative_margin: float | None = None
    absolute_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ranks[0] < self.ranks[1]:
            raise ConfigError("the rank window is empty", where="ranks", saw=self.ranks, do="choose 0 <= first < last")
        if self.negatives < 1:
            raise ConfigError("at least one negative is needed", where="negatives", saw=self.negatives)
        if self.sampling not in ("random", "top"):
            raise ConfigError("unknown sampling", where="sampling", saw=self.sampling, do="use random or top")
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            do = "give a share from 0 to below 1, such as 0.05"
            raise ConfigError("a relative margin is a share", where="relative_margin", saw=self.relative_margin, do=do)
        if self.absolute_margin is not None and self.absolute_margin < 0:
            raise ConfigError("a margin is not negative", where="absolute_margin", saw=self.absolute_margin)
        if None not in (self.min_score, self.max_score) and self.floor > self.limit:
            saw = f"min_score {self.min_score}, max_score {self.max_score}"
            raise ConfigError("no score can pass", where="min_score", saw=saw, do="choose min_score <= max_score")

    @property
    def refuses(self) -> bool:
        """Whether any candidate can be refused for its score."""
        options = (self.relative_margin, self.absolute_margin, self.max_score, self.min_score)
        return any(option is not None for option in options)

    @property
    def limit(self) -> float:
        """Highest score that max_score allows."""
        return math.inf if self.max_score is None else self.max_score

    @property
    def floor(self) -> float:
        """Lowest score that min_score allows."""
        return -math.inf if self.min_score is None else self.min_score

    def ceiling(self, positive_scores: np.ndarray) -> float:
        """Return the highest score that the margins allow beside these positives."""
        worst = float(positive_scores.min())
        relative = math.inf if self.relative_margin is None else worst - self.relative_margin * abs(worst)
        absolute = math.inf if self.absolute_margin is None else worst - self.absolute_margin
        return min(relative, absolute)

    def order(self, candidates: int, *key: object) -> np.ndarray:
        """Return the places 0..candidates-1 in the order in which they are looked at, as far as they can matter.

        Drawn, it is a function of `key`. A margin that refuses nothing changes nothing: the first places are those
        drawn without any, and who comes next where one is refused is drawn after them.
        """
        if self.sampling == "top":
            return np.arange(candidates)
        digest = blake2b(json.dumps(key).encode(), digest_size=16).digest()
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        first = random.choice(candidates, size=min(self.negatives, candidates), replace=False)
        if not self.refuses:
            return first
        return np.concatenate([first, random.permutation(np.setdiff1d(np.arange(candidates), first))])


@dataclass(slots=True)
class Choice:
    """What was selected for a row.

    Args:
        places: Places of the negatives among the candidates.
        scores: Their scores.
        looked_at: Candidates whose score was seen.
        above_margin: Those refused because they score too close to the positives.
        outside_limits: Those refused by max_score or min_score alone.
    """

    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    looked_at: int = 0
    above_margin: int = 0
    outside_limits: int = 0

    def look(self, places: np.ndarray, scores: np.ndarray, selection: Selection, ceiling: float) -> None:
        """Go on with more candidates."""
        close = scores > ceiling
        outside = ~close & ((scores > selection.limit) | (scores < selection.floor))
        passed = np.flatnonzero(~close & ~outside)[: selection.negatives - len(self.places)]
        self.places = np.concatenate([self.places, places[passed]])
        self.scores = np.concatenate([self.scores, scores[passed]])
        self.looked_at += len(places)
        self.above_margin += int(close.sum())
        self.outside_limits += int(outside.sum())

    def by_rank(self) -> "Choice":
        """Sort the negatives by place."""
        order = np.argsort(self.places)
        self.places, self.scores = self.places[order], self.scores[order]
        return self


def choose(
    selection: Selection, orders: Sequence[np.ndarray], ceilings: Sequence[float], scores: Scores, *, at_once: bool
) -> list[Choice]:
    """Select negatives for several rows, seeing no more scores than it takes.

    Candidates are looked at in their order until a row has its negatives. Without `at_once` a round asks, for each
    row, for as many scores as the row still lacks negatives, so that nobody is scored in vain.

    Args:
        selection: What is asked for.
        orders: For each row, places of its candidates in the order in which they are looked at.
        ceilings: For each row, what `Selection.ceiling` allows.
        scores: Gives the scores of candidates.
        at_once: Scores cost nothing: ask for all of them.

    Returns:
        For each row what was selected, by place.
    """
    choices = [Choice() for _ in orders]
    while True:
        parts = []
        for choice, order in zip(choices, orders, strict=True):
            lacking = selection.negatives - len(choice.places)
            end = len(order) if at_once else choice.looked_at + lacking
            parts.append(order[choice.looked_at : end])
        if not any(map(len, parts)):
            return [choice.by_rank() for choice in choices]
        for choice, part, found, ceiling in zip(choices, parts, scores(parts), ceilings, strict=True):
            choice.look(part, found, selection, ceiling)
