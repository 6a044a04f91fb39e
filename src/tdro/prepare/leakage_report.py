"""Say what was found, and write the rows that are left and those that are not."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tdro.data.reading import write_rows
from tdro.data.records import Passage, Row
from tdro.data.store import Rows
from tdro.files import atomic_path
from tdro.prepare.evaluation_queries import EvaluationSet
from tdro.prepare.leakage import STRENGTH, DatasetLeaks, Leak

EXAMPLES = 5
"""Examples kept per dataset, evaluation set and kind of finding."""


def table(found: Sequence[DatasetLeaks], sets: Sequence[EvaluationSet]) -> list[dict[str, Any]]:
    """Count what was found, per dataset and evaluation set that have anything in common.

    Args:
        found: What was found in each dataset.
        sets: The evaluation sets.

    Returns:
        For each pair: `train`, `test`, `rows`, rows by their strongest finding (`exact`, `near`, `simhash-k2`,
        `template`), `pair` (leaking rows with a relevant positive, either way round), `rate` (leaking rows per row),
        `queries` and `query_rate` (test queries that leak), `shared_documents` and `query_passages` (rows that share a
        relevant document, or have a test query as a positive, and do not leak).
    """
    lines = []
    for one in found:
        by_place: dict[int, list[Leak]] = defaultdict(list)
        for leak in one.leaks:
            by_place[leak.place].append(leak)
        for place in sorted({*by_place, *one.shared_rows, *one.query_passages}):
            lines.append(_line(one, by_place[place], place, sets[place]))
    return lines


def examples(
    one: DatasetLeaks, rows: Rows, sets: Sequence[EvaluationSet], most: int = EXAMPLES
) -> Iterator[dict[str, Any]]:
    """Yield some findings of each kind with their texts, for each evaluation set: the least similar ones.

    Those are where a threshold shows whether it is right.

    Args:
        one: What was found in a dataset.
        rows: The dataset.
        sets: The evaluation sets.
        most: Examples per evaluation set and kind.
    """
    kinds: dict[tuple[int, str], list[Leak]] = defaultdict(list)
    for leak in one.leaks:
        kinds[leak.place, leak.found].append(leak)
    for leaks in kinds.values():
        for leak in islice(sorted(leaks, key=lambda leak: (leak.score, leak.row)), most):
            yield {"train": one.name, "row": leak.row, **_texts(leak, rows[leak.row], sets)}


def write_cleaned(rows: Rows, gone: Mapping[int, Mapping[str, Any]], kept_path: Path | None, gone_path: Path) -> None:
    """Write a dataset without the rows that go, and those rows, each with the reason.

    Args:
        rows: The dataset.
        gone: Row -> why it goes, kept as `removed` in its record.
        kept_path: Where the others go; None writes only the rows that go.
        gone_path: Where the rows that go are written.
    """
    if kept_path is not None:
        write_rows((rows[i] for i in range(len(rows)) if i not in gone), kept_path)
    with atomic_path(gone_path) as path, path.open("w", encoding="utf-8") as file:
        for i in sorted(gone):
            file.write(json.dumps({**_record(rows[i]), "removed": dict(gone[i])}, ensure_ascii=False) + "\n")


def reasons(one: DatasetLeaks, rows: Rows, sets: Sequence[EvaluationSet]) -> dict[int, dict[str, Any]]:
    """Say of every leaking row why it is one, and with which test query."""
    return {row: {"reason": "leak", **_texts(leak, rows[row], sets, own=False)} for row, leak in one.worst().items()}


def without(rows: Rows, gone: Mapping[int, Any]) -> Rows:
    """Select the rows that stay."""
    return rows.select(np.array([i for i in range(len(rows)) if i not in gone], np.int64))


def _line(one: DatasetLeaks, leaks: Sequence[Leak], place: int, test: EvaluationSet) -> dict[str, Any]:
    """Count what a dataset and an evaluation set have in common."""
    strongest: dict[int, Leak] = {}
    for leak in leaks:
        held = strongest.get(leak.row)
        if held is None or STRENGTH[leak.found] > STRENGTH[held.found]:
            strongest[leak.row] = leak
    levels = Counter(leak.found for leak in strongest.values())
    leaking = {leak.row for leak in leaks if leak.counts}
    queries = {leak.query for leak in leaks if leak.counts}
    return {
        "train": one.name,
        "test": test.name,
        "rows": one.rows,
        **{found: levels[found] for found in STRENGTH},
        "pair": len({leak.row for leak in leaks if leak.counts and leak.via != "query"}),
        "rate": len(leaking) / one.rows,
        "queries": len(queries),
        "query_rate": len(queries) / len(test.queries),
        "shared_documents": one.shared_rows.get(place, 0),
        "query_passages": one.query_passages.get(place, 0),
    }


def _texts(leak: Leak, row: Row, sets: Sequence[EvaluationSet], own: bool = True) -> dict[str, Any]:
    """Write a finding with its texts."""
    test = sets[leak.place]
    mine = {"query_id": row.query_id, "query": row.query} if own else {}
    theirs = {"test": test.name, "test_query_id": test.ids[leak.query], "test_query": test.queries[leak.query]}
    return {**mine, "level": leak.found, "score": leak.score, "via": leak.via, **theirs}


def _record(row: Row) -> dict[str, Any]:
    """Write a row in the tDRO/Tevatron layout."""

    def passages(role: tuple[Passage, ...]) -> list[dict[str, str]]:
        return [{"docid": p.id, **({"title": p.title} if p.title else {}), "text": p.text} for p in role]

    return {
        "query_id": row.query_id,
        "query": row.query,
        "positive_passages": passages(row.positives),
        "negative_passages": passages(row.negatives),
    }
