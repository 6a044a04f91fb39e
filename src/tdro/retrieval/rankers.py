"""Who ranks documents for queries: an encoder, exactly or with faiss, or BM25; all are asked in one way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tdro.devices import ALONE, Ranks
from tdro.retrieval.approximate import FaissIndex, Method
from tdro.retrieval.arrays import content_of
from tdro.retrieval.bm25 import Bm25Index, about_bm25, best_numbers, index_texts
from tdro.retrieval.documents import Documents
from tdro.retrieval.search import Hits, search
from tdro.retrieval.shards import Embedder, Progress


class Ranker(Protocol):
    """Ranks documents for queries."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def about(self) -> Mapping[str, object]:
        """What identifies it, by content: model files, settings. Plain values, as JSON has them."""
        ...

    def rank(self, queries: Sequence[str], documents: Documents, depth: int, *, scratch: Path) -> Hits:
        """Find the best documents of every query.

        Args:
            queries: Q queries.
            documents: D documents.
            depth: Documents per query; K = min(depth, D).
            scratch: Folder for what is not kept; with several processes the same one for all.

        Returns:
            Hits with K columns, equal scores by id, smallest string first. A document is there at most once. Where a
            ranker has fewer than K, the rest is number -1 with score -inf.
        """
        ...


@dataclass(frozen=True, slots=True)
class DenseRanker:
    """An encoder: documents are ranked by inner product, exactly.

    Args:
        query: How queries are embedded.
        document: How documents are embedded.
        name: What the ranker is called.
        device: Where the search runs.
        ranks: The processes that share the search.
    """

    query: Embedder
    document: Embedder
    name: str
    device: str = "cpu"
    ranks: Ranks = ALONE

    @property
    def about(self) -> Mapping[str, object]:
        """What identifies it: both embedders, with the precision in which their embeddings are stored."""
        sides = {"query": self.query, "document": self.document}
        return {side: {**embedder.about, "precision": embedder.precision} for side, embedder in sides.items()}

    def rank(self, queries: Sequence[str], documents: Documents, depth: int, *, scratch: Path) -> Hits:
        """Embed what is not embedded yet, and search; see `Ranker`."""
        document_DE = self.document.embed(documents, documents.content, scratch)
        query_QE = self.query.embed(queries, content_of(queries), scratch)
        return search(query_QE, document_DE, documents.place_P, depth, device=self.device, ranks=self.ranks)


@dataclass(frozen=True, slots=True)
class ApproximateRanking(Hits):
    """The hits of an approximate search, and how much of the exact ranking they hold.

    Args:
        kind: How it was searched.
        recall: Share of the K best documents that were found, mean over the queries it was measured on.
        measured_on: How many queries that were.
    """

    kind: Method
    recall: float
    measured_on: int


class FaissRanker:
    """An encoder whose documents are searched with faiss, in one process; its recall is measured at every ranking.

    The index is held in memory (`FaissIndex`), and the last one is kept, so that several sets of queries on the same
    documents need it once. Needs the extra `faiss`.

    Args:
        encoder: What embeds; its `device` and `ranks` are not used.
        kind: How to search.
    """

    def __init__(self, encoder: DenseRanker, kind: Method) -> None:
        self.name = encoder.name
        self.about: Mapping[str, object] = {**encoder.about, "search": kind}
        self._encoder, self._kind = encoder, kind
        self._kept: tuple[str, FaissIndex] | None = None

    def rank(self, queries: Sequence[str], documents: Documents, depth: int, *, scratch: Path) -> ApproximateRanking:
        """Index the documents unless that was done last, search, and measure the recall; see `Ranker`."""
        index = self._index(documents, scratch)
        query_QE = self._encoder.query.embed(queries, content_of(queries), scratch)[:]
        found = index.search(query_QE, depth)
        return ApproximateRanking(
            found.hits.indices_QK, found.hits.scores_QK, self._kind, found.recall, found.measured_on
        )

    def _index(self, documents: Documents, scratch: Path) -> FaissIndex:
        """Return the index of some documents."""
        if self._kept is None or self._kept[0] != documents.content:
            self._kept = None  # one index at a time
            embedder = self._encoder.document
            document_DE = embedder.embed(documents, documents.content, scratch)
            index = FaissIndex(document_DE, documents.place_P, self._kind, progress=embedder.progress)
            self._kept = documents.content, index
        return self._kept[1]


class Bm25Ranker:
    """BM25 (Lucene's form, k1 = 1.5, b = 0.75). Documents that share no word with a query are not ranked.

    The index is held in memory (`tdro.retrieval.bm25.index_texts`), and the last one is kept, so that several sets of
    queries on the same documents need it once. Needs the extra `mine`.

    Args:
        progress: Called with (texts done, texts) while documents are indexed and queries answered.

    Raises:
        EnvironmentProblem: The package is not installed.
    """

    name = "bm25"

    def __init__(self, progress: Progress | None = None) -> None:
        self.about: Mapping[str, object] = about_bm25()
        self._progress = progress
        self._kept: tuple[str, Bm25Index] | None = None

    def rank(self, queries: Sequence[str], documents: Documents, depth: int, *, scratch: Path) -> Hits:
        """Index the documents unless that was done last, and score all of them for each query; see `Ranker`."""
        index = self._index(documents)
        shape = (len(queries), min(depth, len(documents)))
        hits = Hits(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))
        for row, query in enumerate(queries):
            score_D = index.scores(query)
            best = best_numbers(score_D, documents.place_P, depth)
            hits.indices_QK[row, : len(best)] = best
            hits.scores_QK[row, : len(best)] = score_D[best]
            if self._progress is not None:
                self._progress(row + 1, len(queries))
        return hits

    def _index(self, documents: Documents) -> Bm25Index:
        """Return the index of some documents."""
        if self._kept is None or self._kept[0] != documents.content:
            self._kept = None  # one index at a time
            self._kept = documents.content, index_texts(documents, progress=self._progress)
        return self._kept[1]
