"""The sides of a comparison: results of the same queries under every side, and refused where they are not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tdro.errors import ConfigError, DataError
from tdro.evaluation.halves import Half, queries_of
from tdro.evaluation.results import Result, find_results, read_result

SAME = ("kind", "split", "language", "variant", "ignore_identical_ids", "depth", "corpus", "content")
"""Entries of a summary in which two results must agree; so must the kind of search, but not its recall."""
_EQUAL = 1e-12  # scores that differ by less are equal; means over seeds are rounded


@dataclass(frozen=True, eq=False)
class Side:
    """The results of one model.

    Attributes:
        name: How it is called.
        seeds: One mapping per training seed, `task` or `task/part` -> result; all have the same keys.
    """

    name: str
    seeds: tuple[Mapping[str, Result], ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of tasks; of their parts where they have several."""
        return tuple(self.seeds[0])

    def query_ids(self, task: str) -> list[str]:
        """The Q query ids of a task or part, sorted."""
        return sorted(self.seeds[0][task].query_ids)

    def scores(self, task: str, measure: str) -> np.ndarray:
        """Scores float64 [S, Q] of S seeds, queries in the order of the sorted ids.

        Raises:
            DataError: A result lacks the measure.
        """
        rows = []
        for result in (seed[task] for seed in self.seeds):
            if measure not in result.scores:
                do = f"there are {', '.join(result.scores)}; choose one of them, or evaluate it again"
                raise DataError("a result lacks this measure", where=result.folder, saw=measure, do=do)
            order_Q = sorted(range(len(result.query_ids)), key=result.query_ids.__getitem__)
            rows.append(result.scores[measure][order_Q])
        return np.stack(rows)


def read_side(name: str, folders: Sequence[Path], only: Sequence[str] = (), half: Half = "all") -> Side:
    """Read the results of one model.

    Args:
        name: How to call it.
        folders: A folder of results per training seed.
        only: Tasks or parts of tasks to read; empty: all.
        half: Queries that count.

    Returns:
        The side.

    Raises:
        DataError: A folder has no results, damaged ones, or other tasks than the first; no query of a task counts.
        ConfigError: A task of `only` is not there.
    """
    seeds: list[dict[str, Result]] = []
    for folder in folders:
        paths = find_results(folder)
        for wanted in only:
            if not any(_is_of(wanted, task) for task in paths):
                raise ConfigError("no results of this task", where=folder, saw=wanted, do=f"there are {_list(paths)}")
        chosen = [task for task in paths if not only or any(_is_of(wanted, task) for wanted in only)]
        seeds.append({task: _half_of(read_result(paths[task]), half) for task in chosen})
        _refuse_other_tasks(seeds[0], seeds[-1], str(folders[0]), str(folder))
    return Side(name, tuple(seeds))


def _half_of(result: Result, half: Half) -> Result:
    """Keep the queries of a half."""
    if half == "all":
        return result
    chosen_Q = queries_of(half, result.query_ids)
    if not chosen_Q.any():
        do = "leave the task out with --only, or compare on all queries"
        raise DataError(f"no query belongs to the half {half}", where=result.folder, do=do)
    return replace(
        result,
        query_ids=tuple(name for name, is_chosen in zip(result.query_ids, chosen_Q, strict=True) if is_chosen),
        scores={measure: score_Q[chosen_Q] for measure, score_Q in result.scores.items()},
    )


def refuse_unlike(sides: Sequence[Side]) -> None:
    """Check that all results can be compared, query by query.

    Raises:
        DataError: Two have other tasks, queries, corpora or settings, or a score is not a number.
    """
    norm = sides[0]
    for side in sides:
        _refuse_other_tasks(norm.tasks, side.tasks, norm.name, side.name)
        for seed in side.seeds:
            for task, result in seed.items():
                _refuse_unlike_result(norm.seeds[0][task], result)


def subtract(first: Side, second: Side, measure: str, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Subtract the means over seeds, second minus first.

    Args:
        first: The baseline.
        second: The other side, comparable with it.
        measure: Of the scores.
        tasks: Tasks and parts.

    Returns:
        Task or part -> difference [Q] in the order of the sorted query ids; exactly 0 where scores are equal.
    """
    changes = {}
    for task in tasks:
        change_Q = second.scores(task, measure).mean(axis=0) - first.scores(task, measure).mean(axis=0)
        change_Q[np.abs(change_Q) < _EQUAL] = 0
        changes[task] = change_Q
    return changes


def by_task(names: Iterable[str]) -> dict[str, list[str]]:
    """Group parts by task.

    Example:
        >>> by_task(["miracl/sw", "miracl/yo", "scifact"])
        {'miracl': ['miracl/sw', 'miracl/yo'], 'scifact': ['scifact']}
    """
    tasks: dict[str, list[str]] = {}
    for name in names:
        tasks.setdefault(name.partition("/")[0], []).append(name)
    return tasks


def join_parts(changes: Mapping[str, np.ndarray], ids: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Make one observation of a question that several parts of a task ask.

    MKQA asks the same questions in every language: its parts are not independent, and a question's mean over the
    languages is what can be drawn or flipped. Parts count as asking the same where at least half the queries of each
    are queries of the largest.

    Args:
        changes: Part -> difference per query.
        ids: Part -> query ids, in the same order.

    Returns:
        The parts as they are or, where they ask the same, the task alone: what each question adds to the mean over
        parts, times the number of questions. The mean over tasks is the same for both.

    Example:
        >>> join_parts({"t/de": np.array([0.5, 0.0]), "t/fr": np.array([0.5, 0.5])}, {"t/de": "ab", "t/fr": "ab"})
        {'t': array([0.5 , 0.25])}
    """
    largest = max((set(part) for part in ids.values()), key=len)
    if len(ids) == 1 or any(2 * len(largest.intersection(part)) < len(part) for part in ids.values()):
        return dict(changes)
    place = {query_id: i for i, query_id in enumerate(sorted(set().union(*ids.values())))}
    sum_Q = np.zeros(len(place))
    for part, query_ids in ids.items():
        sum_Q[[place[query_id] for query_id in query_ids]] += changes[part] / len(query_ids)
    return {next(iter(ids)).partition("/")[0]: sum_Q * len(place) / len(ids)}


def query_differences(first: Side, second: Side, measure: str, tasks: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Subtract the scores of the first side from those of the second, as `significance` wants them.

    Args:
        first: The baseline.
        second: The other side; `refuse_unlike` says whether the two can be compared.
        measure: Of the scores.
        tasks: Tasks and parts; empty: all.

    Returns:
        `task` or `task/part` -> difference per query; parts that ask the same questions are joined.

    Raises:
        DataError: A result lacks the measure.
    """
    changes = subtract(first, second, measure, tuple(tasks) or first.tasks)
    joined: dict[str, np.ndarray] = {}
    for parts in by_task(changes).values():
        joined |= join_parts({part: changes[part] for part in parts}, {part: first.query_ids(part) for part in parts})
    return joined


def _is_of(wanted: str, task: str) -> bool:
    """Whether `task` or `task/part` is what is wanted, or a part of it."""
    return task == wanted or task.startswith(f"{wanted}/")


def _searched(result: Result) -> str:
    """Say how documents were searched; exactly where a result does not say it."""
    return str(result.summary.get("search", {}).get("kind", "exact"))


def _list(names: Iterable[str], most: int = 5) -> str:
    """Write some names and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _refuse_other_tasks(expected: Iterable[str], there: Iterable[str], norm: str, where: str) -> None:
    """Refuse results of other tasks."""
    lacks, more = sorted(set(expected) - set(there)), sorted(set(there) - set(expected))
    if lacks or more:
        saw = "; ".join(f"{what} {_list(names)}" for what, names in (("lacks", lacks), ("alone has", more)) if names)
        do = "evaluate what is missing, or choose tasks that all have with --only"
        raise DataError(f"other tasks than in {norm}", where=where, saw=saw, do=do)


def _refuse_unlike_result(norm: Result, result: Result) -> None:
    """Refuse a result of another task under the same name, and scores that are none."""
    for key in (*SAME, "search"):
        ours, theirs = (_searched(r) if key == "search" else r.summary.get(key) for r in (norm, result))
        if ours != theirs:
            saw, do = f"{theirs}, but {ours} in {norm.folder}", "evaluate both on the same data with the same settings"
            raise DataError(f"results differ in {key}", where=f"{result.folder}:{key}", saw=saw, do=do)
    if sorted(norm.query_ids) != sorted(result.query_ids):
        lacks = sorted(set(norm.query_ids) - set(result.query_ids))
        more = sorted(set(result.query_ids) - set(norm.query_ids))
        saw = f"{len(lacks)} missing: {_list(lacks)}; {len(more)} that only this one has: {_list(more)}"
        do = f"evaluate both on the same queries; the others are in {norm.folder}"
        raise DataError("results have other queries", where=result.folder, saw=saw, do=do)
    for measure, score_Q in result.scores.items():
        lost = [result.query_ids[i] for i in np.flatnonzero(~np.isfinite(score_Q))]
        if lost:
            raise DataError("a score is not a number", where=f"{result.folder}:{measure}", saw=_list(lost))
