"""Evaluation sets small enough for tests, and rankers whose scores can be read off."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tdro.retrieval.documents import Documents
from tdro.retrieval.search import Hits, search

DOCUMENTS = [{"_id": "d1", "title": "Bees", "text": "dance"}, {"_id": "d2", "text": "sleep"}]
QUERIES = [{"_id": "q1", "text": "who dances"}, {"_id": "q2", "text": "who sleeps"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\n"


def write_lines(file: Path, records: Sequence[object]) -> None:
    """Write records as jsonl."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_beir(
    folder: Path,
    documents: Sequence[object] = DOCUMENTS,
    queries: Sequence[object] = QUERIES,
    qrels: str = QRELS,
    split: str = "test",
) -> Path:
    """Write an evaluation set in BEIR layout."""
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / f"{split}.tsv").write_text(qrels, encoding="utf-8")
    return folder


class Vectors:
    """A ranker that compares vectors made by a function of each text."""

    name = "vectors"

    def __init__(self, vector: Callable[[str], Sequence[float]]) -> None:
        self._vector = vector
        self.about: Mapping[str, object] = {"vectors": "of the test"}
        self.asked: list[str] = []

    def rank(self, queries: Sequence[str], documents: Documents, depth: int, *, scratch: Path) -> Hits:
        """Search exactly."""
        self.asked += queries
        query_QD, document_PD = (np.array([self._vector(t) for t in ts], np.float32) for ts in (queries, documents[:]))
        return search(query_QD, document_PD, documents.place_P, depth)


class Listed:
    """A ranker that is told what to find: query -> ids, best first."""

    name = "listed"

    def __init__(self, found: Mapping[str, Sequence[str]]) -> None:
        self._found = found
        self.about: Mapping[str, object] = {"found": {query: list(ids) for query, ids in found.items()}}

    def rank(self, queries: Sequence[str], documents: Documents, depth: int, *, scratch: Path) -> Hits:
        """Return what was listed, with -1 behind it."""
        shape = len(queries), min(depth, len(documents))
        hits = Hits(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))
        for row, query in enumerate(queries):
            numbers = documents.find(self._found.get(query, ()))[:depth]
            hits.indices_QK[row, : len(numbers)] = numbers
            hits.scores_QK[row, : len(numbers)] = -np.arange(len(numbers))
        return hits


def letters(size: int) -> Callable[[str], Sequence[float]]:
    """Count the characters of a text modulo `size`: small integers, so that many scores tie."""
    return lambda text: np.bincount([ord(c) % size for c in text], minlength=size).tolist()
