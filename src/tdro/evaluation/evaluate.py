"""Rank the documents of a benchmark for its queries, and score the rankings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tdro.errors import ConfigError
from tdro.evaluation.benchmarks import Benchmark, Oddity
from tdro.evaluation.metrics import DEPTH, score_run
from tdro.retrieval.documents import Documents
from tdro.retrieval.rankers import ApproximateRanking, Ranker
from tdro.retrieval.search import Hits

_BLOCK = 256  # queries whose document ids are looked up together


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rankings and scores of one ranker on one benchmark.

    Attributes:
        benchmark: The task.
        hits: The K best documents of every query, best first; index -1 where there are no more.
        scores: Measure -> float64 [Q], 0 to 1, in the order of the benchmark's queries.
        depth: Documents asked for; K is less where the corpus has less.
    """

    benchmark: Benchmark
    hits: Hits
    scores: dict[str, np.ndarray]
    depth: int

    @property
    def means(self) -> dict[str, float]:
        """The mean of every measure over all queries."""
        return {name: float(score_Q.mean()) for name, score_Q in self.scores.items()}

    @property
    def search(self) -> dict[str, Any]:
        """How the documents were found: `kind`, and where that is not "exact", `recall` and `measured_on`."""
        if not isinstance(self.hits, ApproximateRanking):
            return {"kind": "exact"}
        return {"kind": self.hits.kind, "recall": self.hits.recall, "measured_on": self.hits.measured_on}

    @property
    def oddities(self) -> dict[str, Oddity]:
        """Those of the benchmark and, of the queries that are not empty, those without results."""
        benchmark = self.benchmark
        last_Q = self.hits.indices_QK.max(axis=1, initial=-1)
        asked = zip(benchmark.query_ids, benchmark.query_texts, last_Q.tolist(), strict=True)
        silent = Oddity.of(query_id for query_id, text, last in asked if text.strip() and last < 0)
        return {**benchmark.oddities, **({"no_results": silent} if silent.count else {})}


def evaluate(ranker: Ranker, benchmark: Benchmark, k: int = 1000, *, scratch: Path) -> Evaluation:
    """Rank the corpus for every query and score the rankings.

    A query without text is not asked, though a model could embed it: it has no results and scores 0. So does a query
    for which the ranker finds nothing. Both are counted among the oddities and stay in the mean.

    Args:
        ranker: Who ranks.
        benchmark: The task.
        k: Documents kept per query, at least 100; fewer where the corpus has fewer.
        scratch: Folder for what the ranker cannot keep beyond this call.

    Returns:
        The evaluation.

    Raises:
        ConfigError: k is below 100, the depth of recall@100.
        DataError: Vectors contain NaN, or are not one per text.
    """
    hits = rank_documents(ranker, benchmark, k, scratch=scratch)
    scores = benchmark.answers.judge(hits) if benchmark.answers else _score(benchmark, hits)
    return Evaluation(benchmark, hits, scores, k)


def rank_documents(ranker: Ranker, benchmark: Benchmark, k: int = 1000, *, scratch: Path) -> Hits:
    """Do the first half of `evaluate`, in which several processes take part."""
    if k < DEPTH:
        raise ConfigError(f"an evaluation needs the {DEPTH} best documents", where="k", saw=k)
    hits = _rank(ranker, benchmark, k + benchmark.ignore_identical_ids, scratch)
    if benchmark.ignore_identical_ids:
        hits = _without(hits, benchmark.documents.find(benchmark.query_ids))
    return replace(hits, indices_QK=hits.indices_QK[:, :k], scores_QK=hits.scores_QK[:, :k])


def rankings(documents: Documents, hits: Hits, depth: int | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield the document ids and the scores of each query, best first, `depth` deep at most."""
    for start in range(0, len(hits.indices_QK), _BLOCK):
        index_BK = hits.indices_QK[start : start + _BLOCK, :depth]
        ids = iter(documents.ids_at(index_BK[index_BK >= 0]))
        for index_K, score_K in zip(index_BK, hits.scores_QK[start : start + _BLOCK, :depth], strict=True):
            found_K = index_K >= 0
            yield [next(ids) for _ in range(int(found_K.sum()))], score_K[found_K]


def _rank(ranker: Ranker, benchmark: Benchmark, depth: int, scratch: Path) -> Hits:
    """Rank for the queries that have a text; the others have no results."""
    texts = benchmark.query_texts
    asked = np.flatnonzero([bool(text.strip()) for text in texts])
    if not len(asked):
        return Hits(np.empty((len(texts), 0), np.int64), np.empty((len(texts), 0), np.float32))
    hits = ranker.rank([texts[i] for i in asked], benchmark.documents, depth, scratch=scratch)
    if len(asked) == len(texts):
        return hits
    shape = (len(texts), hits.indices_QK.shape[1])
    index_QK, score_QK = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    index_QK[asked], score_QK[asked] = hits.indices_QK, hits.scores_QK
    return replace(hits, indices_QK=index_QK, scores_QK=score_QK)


def _without(hits: Hits, own_Q: np.ndarray) -> Hits:
    """Drop one document from the ranking of every query and close the gap; -1 drops none."""
    dropped_QK = hits.indices_QK == own_Q[:, None]
    order_QK = np.argsort(dropped_QK, axis=1, kind="stable")
    index_QK = np.where(dropped_QK, -1, hits.indices_QK)
    score_QK = np.where(dropped_QK, np.float32(-np.inf), hits.scores_QK)
    index_QK, score_QK = (np.take_along_axis(values, order_QK, axis=1) for values in (index_QK, score_QK))
    return replace(hits, indices_QK=index_QK, scores_QK=score_QK)


def _score(benchmark: Benchmark, hits: Hits) -> dict[str, np.ndarray]:
    """Score by judgements."""
    ids = (found for found, _ in rankings(benchmark.documents, hits, DEPTH))
    scores = score_run(benchmark.qrels, dict(zip(benchmark.query_ids, ids, strict=True)))
    return {name: np.array([by_query[q] for q in benchmark.query_ids]) for name, by_query in scores.items()}
