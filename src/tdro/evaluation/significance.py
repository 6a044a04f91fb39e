"""Is a difference between two models more than the luck of the queries?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference between two models and its 95 % interval over queries.

    Attributes:
        mean: Mean over tasks of the mean over queries, in the unit of the scores.
        low: 2.5 % quantile of the bootstrap.
        high: 97.5 % quantile of the bootstrap.
        queries: Queries over all tasks.
        tasks: Tasks.
    """

    mean: float
    low: float
    high: float
    queries: int
    tasks: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_difference(differences: Mapping[str, np.ndarray], *, resamples: int = 2000, seed: int = 0) -> Difference:
    """Estimate the mean difference and its interval by a bootstrap within each task.

    Queries are drawn with replacement within their task, so every task keeps its share of the mean. The interval says
    nothing about other seeds, tasks or data: it is the noise of the queries alone.

    Args:
        differences: Task -> score of one model minus score of the other, one number per query.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        The difference.

    Raises:
        ValueError: There is no task, or a task without queries.

    Example: every query gains the same, so there is no noise.
        >>> d = paired_difference({"a": np.array([0.1, 0.1]), "b": np.array([0.3])})
        >>> round(d.mean, 3), round(d.low, 3), d.is_clear
        (0.2, 0.2, True)

    Source: Efron and Tibshirani, An introduction to the bootstrap (1993), percentile interval.
    """
    if not differences or any(len(values) == 0 for values in differences.values()):
        raise ValueError("every task needs at least one query")
    random = np.random.Generator(np.random.Philox(seed))
    mean_S = np.zeros(resamples)
    for values in differences.values():
        counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
        mean_S += counts @ values / len(values) / len(differences)
    low, high = np.quantile(mean_S, [0.025, 0.975])
    mean = float(np.mean([values.mean() for values in differences.values()]))
    return Difference(mean, float(low), float(high), sum(map(len, differences.values())), len(differences))
