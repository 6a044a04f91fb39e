"""Models on the same queries: what differs, how sure it is, and which queries make the difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from tdro.errors import ConfigError, DataError
from tdro.evaluation.results import Result
from tdro.evaluation.sides import Side, by_task, query_differences, refuse_unlike, subtract
from tdro.evaluation.significance import Differences, PairedTest, holm, mean_over_tasks, paired_test


@dataclass(frozen=True, slots=True)
class Line:
    """Two sides on a task, on a part of one, or over all tasks.

    Attributes:
        name: Of the task or part; "mean" over all tasks.
        first: Mean score of the baseline, over seeds.
        second: Mean score of the other side, over seeds.
        first_spread: Standard deviation over the seeds of the baseline's mean; None for a single seed.
        second_spread: The same of the other side.
        test: Paired over queries, second minus first. Where the parts of a task ask the same questions, a query is
            a question with its mean over the parts.
        p_holm: The randomisation test's p, of a task adjusted for all tasks and all sides, of the mean for all sides;
            None for a part.
    """

    name: str
    first: float
    second: float
    first_spread: float | None
    second_spread: float | None
    test: PairedTest
    p_holm: float | None = None

    @property
    def seed_noise(self) -> float | None:
        """Standard deviation of the difference between one run of each side; None with a single seed everywhere.

        A side with a single seed is taken to spread like the other.
        """
        known = [spread for spread in (self.first_spread, self.second_spread) if spread is not None]
        return math.hypot(known[0], known[-1]) if known else None


@dataclass(frozen=True, slots=True)
class Contrast:
    """One side against the baseline in one measure.

    Attributes:
        measure: For example ndcg@10.
        first: The baseline.
        second: The other side.
        tasks: A line per task.
        parts: A line per part of the tasks that have several.
        mean: Over the tasks, each counting the same.
    """

    measure: str
    first: Side
    second: Side
    tasks: tuple[Line, ...]
    parts: tuple[Line, ...]
    mean: Line


@dataclass(frozen=True, slots=True)
class Found:
    """A document near the top of a ranking: rank from 1, None for a relevant one that was not found."""

    rank: int | None
    document_id: str
    relevant: bool
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """A query on which two sides differ: its scores over seeds, and what the first seed of each found."""

    task: str
    query_id: str
    query: str
    first: float
    second: float
    first_found: tuple[Found, ...]
    second_found: tuple[Found, ...]


def compare(
    sides: Sequence[Side], measures: Sequence[str] = (), *, resamples: int = 10_000, seed: int = 0
) -> tuple[Contrast, ...]:
    """Compare every side with the first, query by query.

    p-values of tasks are adjusted for all tasks and sides of a measure, those of the mean over tasks for all sides.
    Tasks are taken as independent of each other.

    Args:
        sides: At least two; the first is the baseline.
        measures: Each is compared on the tasks that have it; empty: the main measure of each task.
        resamples: Of every bootstrap and randomisation test.
        seed: Of these.

    Returns:
        One contrast per measure and side but the first.

    Raises:
        DataError: The sides have other tasks, queries, corpora or settings, or lack a measure.
        ConfigError: No task has one of the measures.
    """
    refuse_unlike(sides)
    contrasts: list[Contrast] = []
    for measure, names in _tasks_of(sides[0], measures).items():
        found = [_contrast(sides[0], other, measure, names, resamples, seed) for other in sides[1:]]
        p_holm = iter(holm([line.test.p_randomisation for contrast in found for line in contrast.tasks]))
        p_mean = holm([contrast.mean.test.p_randomisation for contrast in found])
        for contrast, p in zip(found, p_mean, strict=True):
            tasks = tuple(replace(line, p_holm=next(p_holm)) for line in contrast.tasks)
            contrasts.append(replace(contrast, tasks=tasks, mean=replace(contrast.mean, p_holm=p)))
    return tuple(contrasts)


def find_examples(contrast: Contrast, count: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Find the queries that gain and lose most, over all tasks and parts.

    Args:
        contrast: Of two sides.
        count: Queries of each kind, at most.

    Returns:
        Those that gain most and those that lose most; equal ones in the order of tasks and query ids.
    """
    compared = {line.name for line in (*contrast.tasks, *contrast.parts)}
    tasks = [task for task in contrast.first.tasks if task in compared]
    changes = subtract(contrast.first, contrast.second, contrast.measure, tasks)
    place = [(task, i) for task, change_Q in changes.items() for i in range(len(change_Q))]
    change_Q = np.concatenate(list(changes.values()))

    def most(gain_Q: np.ndarray) -> tuple[Example, ...]:
        best = [int(i) for i in np.argsort(-gain_Q, kind="stable")[:count] if gain_Q[i] > 0]
        return tuple(_example(contrast, *place[i]) for i in best)

    return most(change_Q), most(-change_Q)


def _tasks_of(norm: Side, measures: Sequence[str]) -> dict[str, list[str]]:
    """Choose the tasks and parts of every measure."""
    results = norm.seeds[0]
    if not measures:
        mains = dict.fromkeys(result.main for result in results.values())
        return {main: [task for task in results if results[task].main == main] for main in mains}
    chosen = {measure: [task for task in results if measure in results[task].scores] for measure in measures}
    for measure, tasks in chosen.items():
        if not tasks:
            have = sorted({name for result in results.values() for name in result.scores})
            raise ConfigError("no task has this measure", saw=measure, do=f"choose from {', '.join(have)}")
    for task, result in results.items():
        if not any(task in tasks for tasks in chosen.values()):
            do = f"add one of {', '.join(result.scores)}, or leave the task out with --only"
            raise DataError(f"{task} has none of the measures", where=result.folder, saw=", ".join(measures), do=do)
    return chosen


def _contrast(first: Side, second: Side, measure: str, tasks: Sequence[str], resamples: int, seed: int) -> Contrast:
    """Compare two sides on tasks, on their parts and over all."""
    whole = {task: query_differences(first, second, measure, parts) for task, parts in by_task(tasks).items()}

    def line(name: str, names: Sequence[str], differences: Differences) -> Line:
        means = [_over_seeds(side, measure, names) for side in (first, second)]
        (before, before_spread), (after, after_spread) = means
        test = paired_test(differences, resamples=resamples, seed=seed)
        return Line(name, before, after, before_spread, after_spread, test)

    return Contrast(
        measure,
        first,
        second,
        tuple(line(task, parts, whole[task]) for task, parts in by_task(tasks).items()),
        tuple(line(part, [part], subtract(first, second, measure, [part])) for part in tasks if "/" in part),
        line("mean", tasks, {name: values for one in whole.values() for name, values in one.items()}),
    )


def _over_seeds(side: Side, measure: str, tasks: Sequence[str]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds of the mean over tasks."""
    means = {task: side.scores(task, measure).mean(axis=1) for task in tasks}
    means_S = [
        mean_over_tasks({task: float(mean_S[seed]) for task, mean_S in means.items()})
        for seed in range(len(side.seeds))
    ]
    return float(np.mean(means_S)), float(np.std(means_S, ddof=1)) if len(means_S) > 1 else None


def _example(contrast: Contrast, task: str, place: int) -> Example:
    """Look up what both sides found for a query."""
    query_id = contrast.first.query_ids(task)[place]
    first, second = (
        float(side.scores(task, contrast.measure)[:, place].mean()) for side in (contrast.first, contrast.second)
    )
    query, first_found = _look_up(contrast.first.seeds[0][task], query_id)
    _, second_found = _look_up(contrast.second.seeds[0][task], query_id)
    return Example(task, query_id, query, first, second, first_found, second_found)


def _look_up(result: Result, query_id: str) -> tuple[str, tuple[Found, ...]]:
    """Return the text of a query and its best documents; a relevant one that was not found comes last."""
    table = result.top()
    rows = table.filter(pc.equal(table["query_id"], query_id)).sort_by("rank").to_pylist()
    found = (
        Found(row["rank"], row["document_id"], (row["relevance"] or 0) > 0, row["title"] or "", row["text"] or "")
        for row in rows
    )
    return (str(rows[0]["query"]) if rows else ""), tuple(found)
