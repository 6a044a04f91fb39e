"""What a model is judged on: tasks, their parts, and in each documents, queries and what is relevant to them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tdro.config import fingerprint
from tdro.data.reading import content_hash
from tdro.errors import DataError
from tdro.evaluation.metrics import Qrels
from tdro.retrieval.documents import Documents
from tdro.retrieval.search import Hits
from tdro.retrieval.shards import Progress

SHOWN = 5
"""Ids that are listed for an oddity."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """How often something did not fit together, and the ids of the first cases."""

    count: int
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Oddity":
        """Count ids."""
        ids = tuple(ids)
        return cls(len(ids), ids[:SHOWN])


@dataclass(frozen=True, slots=True)
class AnswerJudge:
    """How rankings are judged where a document is relevant because of what it says.

    Args:
        judge: Hits -> measure -> float64 [Q].
        first: Hits -> int64 [Q], the place of the first relevant document, counted from 0; -1 without one.
        main: The one that stands for the task.
    """

    judge: Callable[[Hits], dict[str, np.ndarray]]
    first: Callable[[Hits], np.ndarray]
    main: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One evaluation task, or one part of a task.

    Args:
        name: In reports.
        documents: What is searched.
        query_ids: The Q queries.
        query_texts: Their texts, without instruction. An empty one is not asked: it has no results and scores 0.
        qrels: Judgements of every query, in the order of `query_ids`; empty where `answers` judge.
        oddities: What did not fit together, by the names in `tdro.evaluation.results.ODDITIES`; only what occurred.
            Unknown documents stay in the qrels, as in BEIR: nobody can find such a document, so a relevant one lowers
            the best score within reach.
        ignore_identical_ids: Drop the document that has the query's own id, as BEIR does for ArguAna and Quora, where
            the queries themselves are in the corpus. It leaves no gap in the ranking.
        answers: Judges in the place of qrels.
    """

    name: str
    documents: Documents
    query_ids: tuple[str, ...]
    query_texts: tuple[str, ...]
    qrels: Qrels
    oddities: Mapping[str, Oddity] = field(default_factory=dict)
    ignore_identical_ids: bool = False
    answers: AnswerJudge | None = None

    @property
    def main(self) -> str:
        """The measure that stands for the task."""
        return self.answers.main if self.answers else "ndcg@10"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a task, to be read when it is needed.

    Args:
        task: Name of the task.
        name: Of the part: a language or forum; empty where the task is its only part.
        files: Everything that it is read from.
        settings: What else decides it: kind, split, language, variant, ignore_identical_ids. Plain values.
        read: Cache folder, progress (done, total) of what takes long -> the benchmark.
        check: Raises what `read` would, as far as this can be told without reading texts.
    """

    task: str
    name: str
    files: tuple[Path, ...]
    settings: Mapping[str, object]
    read: Callable[[Path, Progress | None], Benchmark]
    check: Callable[[], object]

    @property
    def label(self) -> str:
        """Task and part: "scifact", "miracl/sw"."""
        return f"{self.task}/{self.name}" if self.name else self.task

    def content(self, cache: Path) -> str:
        """Identify the part by what it is read from; hashes of files are remembered under `cache`."""
        hashes = [[file.name, content_hash(file, cache / "datasets")] for file in self.files]
        return fingerprint(dict(self.settings), hashes)


@dataclass(frozen=True, slots=True)
class Task:
    """An evaluation task, whose score is the mean over its parts.

    Args:
        name: In reports.
        parts: At least one; a single one has no name.
        main: The measure that stands for the task.
        oddities: What did not fit together in the task as a whole.
    """

    name: str
    parts: tuple[Part, ...]
    main: str = "ndcg@10"
    oddities: Mapping[str, Oddity] = field(default_factory=dict)


def judged_queries(
    name: str,
    documents: Documents,
    queries: Mapping[str, str],
    judged: Mapping[str, Mapping[str, int]],
    *,
    where: Path,
    ignore_identical_ids: bool = False,
) -> Benchmark:
    """Join documents, queries and judgements; what does not fit together is counted, and its first cases are named.

    Args:
        name: Of the benchmark.
        documents: The corpus.
        queries: Id -> text. Those without judgement are left out.
        judged: Query id -> document id -> relevance. Those without a text are left out.
        where: The file of the judgements, for errors.
        ignore_identical_ids: See `Benchmark`.

    Raises:
        DataError: No judged query has a text.
    """
    qrels = {query_id: judged[query_id] for query_id in queries if query_id in judged}
    if not qrels:
        raise DataError(
            "no judged query has a text", where=where, saw=next(iter(judged)), do="check that the ids match"
        )
    named = [document for labels in qrels.values() for document in labels]
    known = documents.find(named) >= 0
    found = {
        "unknown_documents": Oddity.of(
            document for document, is_known in zip(named, known, strict=True) if not is_known
        ),
        "unjudged_queries": Oddity.of(query_id for query_id in queries if query_id not in judged),
        "missing_queries": Oddity.of(query_id for query_id in judged if query_id not in queries),
        "queries_without_relevant": Oddity.of(q for q, labels in qrels.items() if max(labels.values()) < 1),
        "empty_queries": Oddity.of(query_id for query_id in qrels if not queries[query_id].strip()),
    }
    return Benchmark(
        name=name,
        documents=documents,
        query_ids=tuple(qrels),
        query_texts=tuple(queries[query_id] for query_id in qrels),
        qrels=qrels,
        oddities={kind: oddity for kind, oddity in found.items() if oddity.count},
        ignore_identical_ids=ignore_identical_ids,
    )
