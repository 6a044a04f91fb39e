"""Who ranks the passages for a query, and which of them can never be its negatives."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tdro.data.records import Passage, Row
from tdro.prepare.mining_report import Clock
from tdro.retrieval.arrays import content_of
from tdro.retrieval.corpus import Corpus, store_corpus, text_keys
from tdro.retrieval.search import search
from tdro.retrieval.shards import Embedder, Embeddings

HITS = 4_000_000
"""Search results held at a time, about 50 MB; a query repeated in thousands of rows needs a deep ranking."""

_READ = 4096  # rows whose texts are looked up together
_TOGETHER = 256  # queries whose named passages are scored together


class RowSource(Protocol):
    """Rows that can be counted and read from the start as often as needed: a `Rows` or a list."""

    def __len__(self) -> int:
        """Count the rows."""
        ...

    def __iter__(self) -> Iterator[Row]:
        """Read the rows in order."""
        ...


@dataclass(frozen=True, slots=True)
class Passages:
    """The P passages of a corpus and, numbered from P on, the positives that it lacks; only the former are ranked."""

    corpus: Corpus
    outside: Corpus | None

    def texts(self, numbers_B: np.ndarray) -> list[str]:
        """Read full texts, in the order given."""
        texts = self.corpus.texts_at(np.where(numbers_B < len(self.corpus), numbers_B, 0))
        if self.outside is not None and (beyond := np.flatnonzero(numbers_B >= len(self.corpus))).size:
            found = self.outside.texts_at(numbers_B[beyond] - len(self.corpus))
            for place, text in zip(beyond.tolist(), found, strict=True):
                texts[place] = text
        return texts


class Answer(NamedTuple):
    """What a ranker says to one query.

    numbers_K: int64, passages of the corpus, best first, equal scores by id.
    scores_K: float32, their scores.
    positive_scores: float32, the scores of the passages that were asked for by number.
    """

    numbers_K: np.ndarray
    scores_K: np.ndarray
    positive_scores: np.ndarray


class Ranking(Protocol):
    """A ranker that has seen the passages."""

    def answer(self, queries: Sequence[str], positives: Sequence[np.ndarray], depth: int) -> Iterator[Answer]:
        """Rank the corpus for each query, `depth` passages deep, and score the passages named by `positives`."""
        ...


class Ranker(Protocol):
    """Something that ranks passages for a query. `name` is written beside every negative."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def open(self, passages: Passages, scratch: Path, clock: Clock) -> Ranking:
        """Look at all passages; `scratch` is a folder that is deleted when mining ends."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """An encoder as the ranker: passages are ranked by inner product, exactly.

    Args:
        query: How queries are encoded.
        passage: How passages are encoded.
        name: Written beside every negative.
        device: Where the search runs.
    """

    query: Embedder
    passage: Embedder
    name: str = "encoder"
    device: str = "cpu"

    at_once = True
    """As a judge: scoring all candidates of a query costs no more than scoring some."""

    def open(self, passages: Passages, scratch: Path, clock: Clock) -> "DenseRanking":
        """Encode all passages, or map what was encoded before."""
        with clock.span("encode"):
            corpus_PD = self.passage.embed(passages.corpus, passages.corpus.content, scratch)
            outside = passages.outside
            outside_OD = None if outside is None else self.passage.embed(outside, outside.content, scratch)
        return DenseRanking(self, passages.corpus.place_P, corpus_PD, outside_OD, scratch, clock)


@dataclass(frozen=True, slots=True)
class DenseRanking:
    """An encoder that has encoded the passages; made by `Dense.open`."""

    dense: Dense
    place_P: np.ndarray
    corpus_PD: Embeddings
    outside_OD: Embeddings | None
    scratch: Path
    clock: Clock

    def answer(self, queries: Sequence[str], positives: Sequence[np.ndarray], depth: int) -> Iterator[Answer]:
        """Rank by inner product; see `Ranking`."""
        query_BD = self._encode(queries)
        together = max(1, HITS // depth)
        for start in range(0, len(queries), together):
            part = slice(start, start + together)
            with self.clock.span("search"):
                named = self._inner_products(query_BD[part], positives[part])
                hits = search(
                    query_BD[part],
                    self.corpus_PD,
                    self.place_P,
                    depth,
                    device=self.dense.device,
                )
            yield from map(Answer, hits.indices_QK, hits.scores_QK, named)

    def scores(self, queries: Sequence[str], numbers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Score passages that are named by number, for each query its own."""
        query_BD = self._encode(queries)
        with self.clock.span("search"):
            return self._inner_products(query_BD, numbers)

    def _encode(self, queries: Sequence[str]) -> np.ndarray:
        """Encode queries."""
        with self.clock.span("encode"):
            return self.dense.query.embed(queries, content_of(queries), self.scratch)[:].astype(np.float32)

    def _inner_products(self, query_BD: np.ndarray, numbers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Multiply each query with the passages named for it."""
        found: list[np.ndarray] = []
        for start in range(0, len(query_BD), _TOGETHER):
            some = numbers[start : start + _TOGETHER]
            counts = [len(each) for each in some]
            query_ND = np.repeat(query_BD[start : start + _TOGETHER], counts, axis=0)
            score_N = np.einsum("nd,nd->n", query_ND, self._vectors(np.concatenate(some)))
            found += np.split(score_N, np.cumsum(counts)[:-1])
        return found

    def _vectors(self, number_N: np.ndarray) -> np.ndarray:
        """Look up the embeddings of passages."""
        beyond = number_N >= len(self.corpus_PD)
        vector_ND = self.corpus_PD[np.where(beyond, 0, number_N)].astype(np.float32, copy=False)
        if self.outside_OD is not None and beyond.any():
            vector_ND[beyond] = self.outside_OD[number_N[beyond] - len(self.corpus_PD)]
        return vector_ND


class RowIndex:
    """Where the positives of each row are among the passages, and what cannot be a negative of the row's query.

    The latter are the positives of every row with this query text, found by id and by text, since a query often fills
    several rows, and passages that repeat the query. Takes some 60 bytes per row and 20 per positive.

    Args:
        rows: The rows; read once, and once more where the corpus lacks positives.
        corpus: The passages that are ranked.
        folder: Where the positives that the corpus lacks are stored.
        only_missing: Only rows without negatives are mined, so only their positives are needed.

    Attributes:
        passages: The corpus and the positives that it lacks.
    """

    def __init__(self, rows: RowSource, corpus: Corpus, folder: Path, *, only_missing: bool) -> None:
        parts = [_look_up(block, corpus, only_missing) for block in _blocks(rows)]
        query_key_n = np.concatenate([part.query_keys for part in parts])
        _, self._query_n = np.unique(query_key_n, return_inverse=True)
        starts = np.cumsum([0, *(len(part.query_keys) for part in parts)])
        row = np.concatenate([part.excluded_row + start for part, start in zip(parts, starts, strict=False)])
        excluded = np.concatenate([part.excluded for part in parts])
        pairs = np.unique(self._query_n[row] * len(corpus) + excluded)
        self._excluded = pairs % len(corpus)
        self._excluded_starts = np.searchsorted(pairs // len(corpus), np.arange(self._query_n.max() + 2))
        counts = np.concatenate([part.positive_count for part in parts])
        self._positive_starts = np.concatenate([[0], np.cumsum(counts)])
        self._positives = np.concatenate([part.positives for part in parts])
        self.passages = Passages(corpus, self._store_outside(rows, parts, len(corpus), folder, only_missing))

    def excluded(self, row: int) -> np.ndarray:
        """Return the numbers of the passages that cannot be negatives of a row."""
        query = self._query_n[row]
        return self._excluded[self._excluded_starts[query] : self._excluded_starts[query + 1]]

    def positives(self, row: int) -> np.ndarray:
        """Return the numbers of a row's positives, in the row's order; none where the row is not mined."""
        return self._positives[self._positive_starts[row] : self._positive_starts[row + 1]]

    def _store_outside(
        self, rows: RowSource, parts: "list[_Part]", size: int, folder: Path, only_missing: bool
    ) -> Corpus | None:
        """Store the positives that the corpus lacks and number them behind it."""
        beyond = np.flatnonzero(self._positives < 0)
        if not len(beyond):
            return None
        outside = store_corpus(_Outside(rows, self._positives < 0, only_missing), folder)
        keys = np.concatenate([part.missing_keys for part in parts])
        self._positives[beyond] = size + outside.find_texts(keys)
        return outside


class _Part(NamedTuple):
    """What is known of some rows: keys of queries, pairs of row and excluded passage, numbers of positives."""

    query_keys: np.ndarray
    excluded_row: np.ndarray
    excluded: np.ndarray
    positive_count: np.ndarray
    positives: np.ndarray
    missing_keys: np.ndarray


class _Outside(Iterable[Passage]):
    """The positives that a corpus lacks, to be read from the rows as often as needed."""

    def __init__(self, rows: RowSource, missing: np.ndarray, only_missing: bool) -> None:
        self._rows, self._missing, self._only_missing = rows, missing, only_missing

    def __iter__(self) -> Iterator[Passage]:
        wanted = (p for row in self._rows if is_mined(row, self._only_missing) for p in row.positives)
        return (passage for passage, missing in zip(wanted, self._missing.tolist(), strict=True) if missing)


class OwnPassages(Iterable[Passage]):
    """Every passage of a dataset, row by row, positives first."""

    def __init__(self, rows: RowSource) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Passage]:
        for row in self._rows:
            yield from row.positives
            yield from row.negatives


def is_mined(row: Row, only_missing: bool) -> bool:
    """Tell whether a row gets new negatives."""
    return not (only_missing and row.negatives)


def _blocks(rows: RowSource) -> Iterator[list[Row]]:
    """Yield rows in lists."""
    stream = iter(rows)
    while block := list(islice(stream, _READ)):
        yield block


def _look_up(rows: list[Row], corpus: Corpus, only_missing: bool) -> _Part:
    """Find the passages of some rows in the corpus."""
    query_keys = text_keys([row.query for row in rows])
    counts = np.array([len(row.positives) for row in rows])
    flat = [positive for row in rows for positive in row.positives]
    keys = text_keys([positive.full_text for positive in flat])
    row_of = np.repeat(np.arange(len(rows)), counts)
    by_query, by_text = corpus.find_texts(query_keys), corpus.find_texts(keys)
    which, by_id = corpus.find_ids([positive.id for positive in flat])
    row = np.concatenate([np.arange(len(rows)), row_of, row_of[which]])
    passage = np.concatenate([by_query, by_text, by_id])
    found = passage >= 0
    mined = np.array([is_mined(each, only_missing) for each in rows])
    positives = by_text[mined[row_of]]
    missing_keys = keys[mined[row_of]][positives < 0]
    return _Part(query_keys, row[found], passage[found], counts * mined, positives, missing_keys)
