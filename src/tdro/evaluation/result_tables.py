"""The tables of a result folder that go query by query: the rankings, and the documents worth reading."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tdro.evaluation.benchmarks import Benchmark
from tdro.evaluation.evaluate import Evaluation, rankings

BEST = 3
"""Documents per query in top.parquet, besides the best one that is relevant."""

_TEXT = 300  # characters of a document in top.parquet
_BLOCK = 1024  # queries whose documents are read together
_TOP = pa.schema(
    [
        ("query_id", pa.string()), ("query", pa.string()), ("rank", pa.int32()), ("document_id", pa.string()),
        ("score", pa.float32()), ("relevance", pa.int32()), ("title", pa.string()), ("text", pa.string()),
    ]
)  # fmt: skip


def write_run(evaluation: Evaluation, path: Path) -> None:
    """Write the rankings as a gzipped TREC run; the bytes depend on the rankings only.

    Where neighbours are tied the later score is lowered to the next smaller float32, because readers sort by score and
    break ties each in its own way: any of them that reads at least float32 gets this very ranking.
    """
    benchmark = evaluation.benchmark
    found = rankings(benchmark.documents, evaluation.hits)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        for query_id, (documents, score_K) in zip(benchmark.query_ids, found, strict=True):
            strict_K = strictly_falling(score_K)
            lines = (
                f"{query_id} Q0 {document} {rank} {score:.9g} tdro\n"
                for rank, (document, score) in enumerate(zip(documents, strict_K.tolist(), strict=True), start=1)
            )
            packed.write("".join(lines).encode())


def strictly_falling(score_K: np.ndarray) -> np.ndarray:
    """Lower scores that are not below the one before by the smallest step that float32 has.

    Args:
        score_K: float32, none above the one before.

    Example:
        >>> a, b, c = strictly_falling(np.array([2.0, 2.0, 1.0], np.float32)).tolist()
        >>> a > b > c, a - b < 1e-6, c
        (True, True, 1.0)
    """
    bits_K = score_K.view(np.int32).astype(np.int64)
    step_K = np.where(bits_K < 0, -(bits_K & 0x7FFFFFFF), bits_K)  # counts the numbers of float32 from 0 on
    place_K = np.arange(len(score_K))
    step_K = np.minimum.accumulate(step_K + place_K) - place_K
    falling_K = np.abs(step_K).astype(np.int32).view(np.float32)
    return np.where(step_K < 0, -falling_K, falling_K)


def write_top(evaluation: Evaluation, path: Path) -> None:
    """Write the best documents of every query and the best one that is relevant; see `Result.top`."""
    with pq.ParquetWriter(path, _TOP) as writer:
        for rows in _top_rows(evaluation):
            writer.write_table(pa.Table.from_pylist(rows, _TOP))


def _top_rows(evaluation: Evaluation) -> Iterator[list[dict[str, Any]]]:
    """Make the rows of top.parquet, for some queries at a time."""
    benchmark = evaluation.benchmark
    found = _best_relevant(evaluation)
    for start in range(0, len(benchmark.query_ids), _BLOCK):
        picked = [
            (query, rank, number)
            for query in range(start, min(start + _BLOCK, len(benchmark.query_ids)))
            for rank, number in _picked(evaluation.hits.indices_QK[query], *found[query])
        ]
        passages = benchmark.documents.take(np.array([number for _, _, number in picked], np.int64))
        yield [
            {
                "query_id": benchmark.query_ids[query],
                "query": benchmark.query_texts[query],
                "rank": None if rank is None else rank + 1,
                "document_id": passage.id,
                "score": None if rank is None else float(evaluation.hits.scores_QK[query, rank]),
                "relevance": _relevance(benchmark, query, passage.id, rank, found[query][0]),
                "title": passage.title,
                "text": passage.text[:_TEXT],
            }
            for (query, rank, _), passage in zip(picked, passages, strict=True)
        ]


def _best_relevant(evaluation: Evaluation) -> list[tuple[int, int]]:
    """Find for every query the place and the number of the best relevant document.

    The place is -1 where none was found; then it is the first one of the highest relevance that the corpus has, or -1.
    """
    benchmark, index_QK = evaluation.benchmark, evaluation.hits.indices_QK
    if benchmark.answers:
        first_Q = benchmark.answers.first(evaluation.hits)
        return [(int(at), int(index_K[at]) if at >= 0 else -1) for at, index_K in zip(first_Q, index_QK, strict=True)]
    found = []
    for query_id, index_K in zip(benchmark.query_ids, index_QK, strict=True):
        labels = benchmark.qrels[query_id]
        relevant = sorted((document for document in labels if labels[document] > 0), key=lambda d: -labels[d])
        number_R = benchmark.documents.find(relevant)
        number_R = number_R[number_R >= 0]
        places = np.flatnonzero(np.isin(index_K, number_R))
        if len(places):
            found.append((int(places[0]), int(index_K[places[0]])))
        else:
            found.append((-1, int(number_R[0]) if len(number_R) else -1))
    return found


def _picked(index_K: np.ndarray, place: int, number: int) -> list[tuple[int | None, int]]:
    """Choose the documents of a query for top.parquet, each with its place, None where it was not found."""
    best: list[tuple[int | None, int]] = [
        (k, int(index_K[k])) for k in range(min(BEST, len(index_K))) if index_K[k] >= 0
    ]
    if number >= 0 and not 0 <= place < BEST:
        best.append((place if place >= 0 else None, number))
    return best


def _relevance(benchmark: Benchmark, query: int, document: str, rank: int | None, first: int) -> int | None:
    """Tell the relevance of a document; None where nobody judged it."""
    if not benchmark.answers:
        return benchmark.qrels[benchmark.query_ids[query]].get(document)
    if rank is None or (0 <= first < rank):
        return None  # behind the first one with an answer nobody looks
    return int(rank == first)
