"""Is a difference between two models more than the luck of the queries?

Everything here takes differences per query under the name of their task. A task with several parts (languages, forums)
has an entry per part, `task/part`: parts count the same in their task, and tasks in the mean over tasks.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

Differences = Mapping[str, np.ndarray]
"""`task` or `task/part` -> score of one model minus score of the other, one number per query."""
_BLOCK = 1 << 17  # random numbers held at a time; they fit into the cache of a core
_ROUNDING = 1e-12  # relative; sums of the same numbers in another order differ by less


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


@dataclass(frozen=True, slots=True)
class PairedTest:
    """What a paired comparison says.

    Attributes:
        difference: Mean and interval.
        p_randomisation: Of the randomisation test, two-sided.
        p_t: Of the t-test, two-sided; None where it is not defined.
        effect: Cohen's d_z; None where it is not defined.
        wins: Queries that gain.
        ties: Queries with equal scores.
        losses: Queries that lose.
    """

    difference: Difference
    p_randomisation: float
    p_t: float | None
    effect: float | None
    wins: int
    ties: int
    losses: int


def paired_test(differences: Differences, *, resamples: int = 10_000, seed: int = 0) -> PairedTest:
    """Apply everything in this module to the differences of one task, or of several.

    Args:
        differences: Per query.
        resamples: Of the bootstrap and of the randomisation test.
        seed: Of both.

    Returns:
        The result.

    Raises:
        ValueError: There is no task, or a task without queries.
    """
    values_Q = np.concatenate(list(_checked(differences).values()))
    return PairedTest(
        paired_difference(differences, resamples=resamples, seed=seed),
        randomisation_p(differences, resamples=resamples, seed=seed),
        t_test_p(differences),
        effect_size(differences),
        *(int(count) for count in ((values_Q > 0).sum(), (values_Q == 0).sum(), (values_Q < 0).sum())),
    )


def paired_difference(differences: Differences, *, resamples: int = 2000, seed: int = 0) -> Difference:
    """Estimate the mean difference and its interval by a bootstrap within each task.

    Queries are drawn with replacement within their task and part, so each keeps its share of the mean. The interval
    says nothing about other seeds, tasks or data: it is the noise of the queries alone. With a handful of queries it is
    too narrow, and it has no width at all for a single one.

    Args:
        differences: Per query.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        The difference.

    Raises:
        ValueError: There is no task, or a task without queries.

    Example: every query gains the same, so there is no noise.
        >>> d = paired_difference({"a": np.array([0.1, 0.1]), "b/de": np.array([0.3]), "b/fr": np.array([0.5])})
        >>> round(d.mean, 3), round(d.low, 3), d.is_clear, d.tasks
        (0.25, 0.25, True, 2)

    Source: Efron and Tibshirani, An introduction to the bootstrap (1993), percentile interval.
    """
    shares = _shares(differences)
    random = np.random.Generator(np.random.Philox(seed))
    mean_S = np.zeros(resamples)
    for name, values_Q in differences.items():
        count = len(values_Q)
        for block in _blocks(resamples, count):
            draws = random.integers(count, size=(block.stop - block.start, count), dtype=np.int32)
            mean_S[block] += shares[name] * values_Q[draws].mean(axis=1)
    low, high = np.quantile(mean_S, [0.025, 0.975])
    queries, tasks = sum(map(len, differences.values())), len({_task(name) for name in differences})
    return Difference(_mean(differences), float(low), float(high), queries, tasks)


def randomisation_p(differences: Differences, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Test whether the two models could be exchanged: flip the sign of each query's difference at random.

    p is the share of flips whose mean difference is at least as far from 0 as the one observed. All 2^n flips are
    counted where that takes no more than `resamples`, n being the queries with a difference; otherwise
    p = (hits + 1) / (resamples + 1), which is a valid p-value itself and cannot be 0.

    Args:
        differences: Per query.
        resamples: Random flips of all signs.
        seed: Of the flips.

    Returns:
        p, two-sided, above 0; 1 if no query differs.

    Raises:
        ValueError: There is no task, or a task without queries.

    Example: of the 2^3 ways to flip three gains, only none and all are as extreme.
        >>> randomisation_p({"task": np.array([0.1, 0.2, 0.3, 0.0])})
        0.25

    Source: Fisher, The design of experiments (1935), section 21; Smucker, Allan and Carterette (CIKM 2007) for its use
    in information retrieval; Phipson and Smyth (2010) for the 1 that is added.
    """
    shares = _shares(differences)
    effect_Q = np.concatenate([shares[name] * values / len(values) for name, values in differences.items()])
    effect_Q = effect_Q[effect_Q != 0]  # flipping a zero changes nothing
    count, total = len(effect_Q), effect_Q.sum()
    least = abs(total) - _ROUNDING * np.abs(effect_Q).sum()
    exact = 2 ** min(count, 62) <= resamples
    flips = 2**count if exact else resamples
    random = np.random.Generator(np.random.Philox(seed))
    hits = 0
    for block in _blocks(flips, count):
        rows = block.stop - block.start
        if exact:
            flipped_SQ = (np.arange(block.start, block.stop)[:, None] >> np.arange(count) & 1).astype(np.float64)
        else:
            packed = np.frombuffer(random.bytes(rows * -(-count // 8)), np.uint8)
            flipped_SQ = np.unpackbits(packed.reshape(rows, -1), axis=1, count=count).astype(np.float64)
        hits += int((np.abs(total - 2 * (flipped_SQ @ effect_Q)) >= least).sum())
    return hits / flips if exact else (hits + 1) / (flips + 1)


def t_test_p(differences: Differences) -> float | None:
    """Test whether the mean difference is 0 with Student's t.

    For one task this is the paired t-test. Over several parts or tasks the squared standard errors add up, and the
    degrees of freedom are Welch and Satterthwaite's.

    Args:
        differences: Per query.

    Returns:
        p, two-sided; 1 if no query differs; None if the noise cannot be estimated: a task or part has a single query,
        or the differences do not vary.

    Raises:
        ValueError: There is no task, or a task without queries.

    Example:
        >>> round(t_test_p({"task": np.array([1.0, 2.0, 3.0])}), 4)
        0.0742
    """
    shares = _shares(differences)
    if not any(values.any() for values in differences.values()):
        return 1.0
    if _variance(differences) is None:
        return None
    squared_error, over_freedom = 0.0, 0.0
    for name, values in differences.items():
        part = shares[name] ** 2 * values.var(ddof=1) / len(values)
        squared_error += part
        over_freedom += part**2 / (len(values) - 1)
    t = abs(_mean(differences)) / np.sqrt(squared_error)
    return float(2 * stdtr(squared_error**2 / over_freedom, -t))


def effect_size(differences: Differences) -> float | None:
    """Compute Cohen's d_z: the mean difference over the standard deviation of a query's difference.

    Over several parts or tasks the variance is the mean of theirs.

    Args:
        differences: Per query.

    Returns:
        d_z; 0 if no query differs; None where `t_test_p` is None.

    Raises:
        ValueError: There is no task, or a task without queries.

    Example:
        >>> effect_size({"task": np.array([1.0, 2.0, 3.0])})
        2.0
    """
    if not any(values.any() for values in _checked(differences).values()):
        return 0.0
    variance = _variance(differences)
    return None if variance is None else float(_mean(differences) / np.sqrt(variance))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests, so that a level holds for all of them together.

    The k-th smallest of m is multiplied by m - k + 1; none is smaller than one before it, or above 1.

    Args:
        p_values: Of the tests, in any order.

    Returns:
        The adjusted ones, in the same order.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    p_T = np.asarray(p_values, np.float64)
    order = np.argsort(p_T, kind="stable")
    adjusted_T = np.empty_like(p_T)
    adjusted_T[order] = np.minimum(np.maximum.accumulate(p_T[order] * np.arange(len(p_T), 0, -1)), 1)
    return [float(p) for p in adjusted_T]


def mean_over_tasks(means: Mapping[str, float]) -> float:
    """Average the means of tasks and parts: parts count the same in a task, tasks in the mean.

    Args:
        means: `task` or `task/part` -> mean over its queries.

    Returns:
        The mean over tasks.

    Example:
        >>> mean_over_tasks({"a": 0.5, "b/de": 0.75, "b/fr": 0.25, "b/ja": 0.5})
        0.5
    """
    shares = _shares({name: np.zeros(1) for name in means})
    return float(sum(shares[name] * mean for name, mean in means.items()))


def _checked(differences: Differences) -> Differences:
    """Refuse what has no mean."""
    if not differences or any(len(values) == 0 for values in differences.values()):
        raise ValueError("every task needs at least one query")
    return differences


def _task(name: str) -> str:
    """The task of `task/part`."""
    return name.partition("/")[0]


def _shares(differences: Differences) -> dict[str, float]:
    """The share of each part in the mean over tasks."""
    parts = Counter(map(_task, _checked(differences)))
    return {name: 1 / parts[_task(name)] / len(parts) for name in differences}


def _mean(differences: Differences) -> float:
    """The mean over tasks of the mean over queries."""
    return mean_over_tasks({name: float(values.mean()) for name, values in differences.items()})


def _variance(differences: Differences) -> float | None:
    """The mean variance of a difference; None where it is unknown or nothing but rounding."""
    if any(len(values) < 2 for values in differences.values()):
        return None
    variance = mean_over_tasks({name: float(values.var(ddof=1)) for name, values in differences.items()})
    largest = max(np.abs(values).max() for values in differences.values())
    return variance if variance > (_ROUNDING * largest) ** 2 else None


def _blocks(resamples: int, count: int) -> Iterator[slice]:
    """Cut the resamples so that a block holds a bounded number of draws."""
    size = max(1, _BLOCK // max(1, count))
    for start in range(0, resamples, size):
        yield slice(start, min(start + size, resamples))
