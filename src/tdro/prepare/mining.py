"""Hard negatives for a dataset: passages that a retriever ranks high and that are not known to be right."""

import json
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from tdro.data.reading import write_rows
from tdro.data.records import Passage, Row
from tdro.errors import ConfigError, DataError
from tdro.retrieval.search import Encode, search

HITS = 4_000_000
"""Search results held at a time, about 50 MB; a query repeated in thousands of rows needs a deep ranking."""


class RowSource(Protocol):
    """Rows that can be counted and read from the start as often as needed: a `Rows` or a list."""

    def __len__(self) -> int:
        """Count the rows."""
        ...

    def __iter__(self) -> Iterator[Row]:
        """Read the rows in order."""
        ...


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What mining found.

    Args:
        rows: Rows written, which is all rows.
        corpus: Distinct passages that were ranked.
        shared_ids: Passages whose id also stands for another text; none of them is a negative of a query whose
            positive has that id.
        kept: Rows that were left as they were, because they had negatives and `only_missing` was set.
        mined: Rows that got at least one negative.
        short: Those of them with fewer negatives than asked.
        none: Rows written without negatives, because every passage is a positive or the query itself.
        fallback: Rows whose rank window was empty, so that better-ranked passages had to do.
        negatives: Negatives mined, over all rows.
        positive_similarity: Mean inner product of queries with their positives, over the rows not kept; None without
            any.
        negative_similarity: Mean inner product of queries with the negatives mined for them; None without any.
        inverted: Share of mined rows in which some negative is closer to the query than some positive. A high share
            means a weak miner or many unlabelled positives; None if no row was mined.
        seconds: Wall time.
    """

    rows: int
    corpus: int
    shared_ids: int
    kept: int
    mined: int
    short: int
    none: int
    fallback: int
    negatives: int
    positive_similarity: float | None
    negative_similarity: float | None
    inverted: float | None
    seconds: float

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the fields as they are written to JSON."""
        return asdict(self)


def mine(
    rows: RowSource,
    out_path: Path,
    *,
    dataset: str,
    encode_query: Encode,
    encode_corpus: Encode,
    seed: int,
    corpus: Iterable[Passage] | None = None,
    ranks: tuple[int, int] = (2, 100),
    negatives: int = 16,
    only_missing: bool = False,
    query_chunk: int = 16384,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
) -> MiningReport:
    """Write the dataset with negatives drawn from a window of each query's ranking.

    The whole corpus is ranked. Out of the ranking go the positives of every row with this query text (by id
    and by text) and passages that repeat the query; texts are compared after NFC, case folding and collapsing
    white space. What remains is numbered 0, 1, 2, ... and `ranks = (first, last)` keeps the numbers
    first <= r < last, as the slice [first:last] does: (2, 100) skips the two best, which are often unlabelled
    positives, and ends with the hundredth. From these, `negatives` are drawn without replacement and
    written by rank. Fewer are never filled up; if the window is empty any remaining passage is taken,
    and a row for which nothing remains is written without negatives. Negatives a row had are replaced,
    unless `only_missing` is set. The draw is a function of (seed, dataset, query id, position of the row).

    Args:
        rows: The dataset; read two or three times.
        out_path: File to write, `.jsonl` or `.jsonl.gz`.
        dataset: Name of the dataset.
        encode_query: Query texts -> vectors [B, D].
        encode_corpus: Passage texts -> vectors [P, D].
        seed: Any integer.
        corpus: Passages to draw from; by default the positives and negatives of the dataset itself. Of passages
            with the same text the first is kept.
        ranks: First rank used and first rank not used, counted from 0 among what may be a negative.
        negatives: Negatives per row.
        only_missing: Leave rows that have negatives as they are.
        query_chunk: Queries encoded and searched at a time.
        progress: Called with (rows done, rows) after every chunk.
        device: Where the search runs.

    Returns:
        The report.

    Raises:
        ConfigError: The window, the number of negatives or the name of the file is impossible.
        DataError: The dataset or the corpus is empty, or vectors contain NaN.

    Source: the paper's window and count (arXiv 2408.10613, hard negatives). Departure: the released code counts ranks
    before the positives are taken out, so that a positive on top uses up one of the two that are skipped.
    """
    started = time.perf_counter()
    if not 0 <= ranks[0] < ranks[1]:
        raise ConfigError("the rank window is empty", where="ranks", saw=ranks, do="choose 0 <= first < last")
    if negatives < 1:
        raise ConfigError("at least one negative is needed", where="negatives", saw=negatives)
    if len(rows) == 0:
        raise DataError("dataset has no rows", where=dataset)
    index = _PassageIndex(_passages_of(rows) if corpus is None else corpus)
    if not index.passages:
        raise DataError("the corpus to search is empty", where=dataset, do="give at least one passage")
    tally = _Tally()

    def mined_rows() -> Iterator[Row]:
        """Encode the corpus, then mine chunk by chunk; starts once the output file could be opened."""
        miner = _Miner(
            dataset=dataset,
            seed=seed,
            ranks=ranks,
            wanted=negatives,
            only_missing=only_missing,
            device=device,
            encode_query=encode_query,
            encode_corpus=encode_corpus,
            index=index,
            excluded=_excluded(rows, index),
            vectors_PD=encode_corpus([passage.full_text for passage in index.passages]),
            tally=tally,
        )
        stream = iter(rows)
        while chunk := list(islice(stream, query_chunk)):
            yield from miner.mine(chunk)
            if progress is not None:
                progress(tally.rows, len(rows))

    write_rows(mined_rows(), out_path)
    return tally.report(index, time.perf_counter() - started)


class _PassageIndex:
    """The corpus in id order, found by id and by text."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        by_text: dict[bytes, Passage] = {}
        for passage in passages:
            by_text.setdefault(_text_key(passage.full_text), passage)
        ordered = sorted(by_text.items(), key=lambda item: (item[1].id, item[0]))
        self.passages = [passage for _, passage in ordered]
        self.ids = [passage.id for passage in self.passages]
        self.by_text = {key: i for i, (key, _) in enumerate(ordered)}
        self.by_id: dict[str, list[int]] = {}
        for i, passage_id in enumerate(self.ids):
            self.by_id.setdefault(passage_id, []).append(i)
        self.shared_ids = len(self.ids) - len(self.by_id)


@dataclass(slots=True)
class _Tally:
    """The running sums behind a report."""

    rows: int = 0
    kept: int = 0
    short: int = 0
    none: int = 0
    fallback: int = 0
    negatives: int = 0
    inverted: int = 0
    positives: int = 0
    positive_sum: float = 0.0
    negative_sum: float = 0.0

    def add(self, positives: np.ndarray, negatives: np.ndarray, *, wanted: int, fallback: bool) -> None:
        """Count one row, given the similarities of its passages."""
        self.rows += 1
        self.none += len(negatives) == 0
        self.short += 0 < len(negatives) < wanted
        self.fallback += fallback
        self.positives += len(positives)
        self.negatives += len(negatives)
        self.positive_sum += float(positives.sum(dtype=np.float64))
        self.negative_sum += float(negatives.sum(dtype=np.float64))
        self.inverted += len(negatives) > 0 and bool(negatives.max() > positives.min())

    def report(self, index: _PassageIndex, seconds: float) -> MiningReport:
        """Turn sums into means."""
        mined = self.rows - self.kept - self.none
        return MiningReport(
            rows=self.rows,
            corpus=len(index.ids),
            shared_ids=index.shared_ids,
            kept=self.kept,
            mined=mined,
            short=self.short,
            none=self.none,
            fallback=self.fallback,
            negatives=self.negatives,
            positive_similarity=self.positive_sum / self.positives if self.positives else None,
            negative_similarity=self.negative_sum / self.negatives if self.negatives else None,
            inverted=self.inverted / mined if mined else None,
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True)
class _Miner:
    """What mining a row needs, and the tally of what was mined."""

    dataset: str
    seed: int
    ranks: tuple[int, int]
    wanted: int
    only_missing: bool
    device: str
    encode_query: Encode
    encode_corpus: Encode
    index: _PassageIndex
    excluded: dict[bytes, tuple[int, ...]]
    vectors_PD: np.ndarray
    tally: _Tally

    def mine(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Yield the next rows with their negatives, in order."""
        keeps = [self.only_missing and len(row.negatives) > 0 for row in rows]
        mined = self._mine([row for row, keep in zip(rows, keeps, strict=True) if not keep])
        for row, keep in zip(rows, keeps, strict=True):
            if keep:
                self.tally.rows += 1
                self.tally.kept += 1
            yield row if keep else next(mined)

    def _mine(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Yield rows with negatives found for them."""
        query_BD = self.encode_query([row.query for row in rows])
        excluded = [self.excluded[_text_key(row.query)] for row in rows]
        similarities = self._positive_similarities(rows, query_BD)
        for row, out, positives, (indices_K, scores_K) in zip(
            rows, excluded, similarities, self._rankings(query_BD, excluded), strict=True
        ):
            allowed = np.flatnonzero(~np.isin(indices_K, out))
            window = allowed[slice(*self.ranks)]
            fallback = len(window) == 0 < len(allowed)
            picks = self._draw(row, allowed if fallback else window)
            self.tally.add(positives, scores_K[picks], wanted=self.wanted, fallback=fallback)
            yield replace(row, negatives=tuple(self.index.passages[i] for i in indices_K[picks]))

    def _rankings(
        self, query_BD: np.ndarray, excluded: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield passages and scores of each query, best first, deep enough for the window behind what is excluded."""
        depth = min(self.ranks[1] + max(map(len, excluded), default=0), len(self.index.ids))
        together = max(1, HITS // depth)
        for start in range(0, len(query_BD), together):
            part_BD = query_BD[start : start + together]
            hits = search(part_BD, self.vectors_PD, self.index.ids, depth, device=self.device)
            yield from zip(hits.indices_QK, hits.scores_QK, strict=True)

    def _draw(self, row: Row, ranks: np.ndarray) -> np.ndarray:
        """Draw distinct ranks with a generator that belongs to the row, whatever was drawn before; sort them."""
        identity = json.dumps([self.seed, self.dataset, row.query_id, self.tally.rows])
        key = blake2b(identity.encode(), digest_size=16).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        return np.sort(rng.choice(ranks, size=min(self.wanted, len(ranks)), replace=False))

    def _positive_similarities(self, rows: Sequence[Row], query_BD: np.ndarray) -> list[np.ndarray]:
        """Give each row's inner products with its positives; those outside the corpus are encoded here."""
        texts = [positive.full_text for row in rows for positive in row.positives]
        places = np.array([self.index.by_text.get(_text_key(text), -1) for text in texts])
        vectors_ND = np.array(self.vectors_PD[places], dtype=np.float32)
        if (outside := places < 0).any():
            vectors_ND[outside] = self.encode_corpus([texts[i] for i in np.flatnonzero(outside)])
        counts = [len(row.positives) for row in rows]
        queries_ND = np.repeat(query_BD, counts, axis=0)
        return np.split(np.einsum("nd,nd->n", queries_ND, vectors_ND), np.cumsum(counts)[:-1])


def _passages_of(rows: RowSource) -> Iterator[Passage]:
    """Yield every passage of a dataset."""
    for row in rows:
        yield from row.positives
        yield from row.negatives


def _excluded(rows: RowSource, index: _PassageIndex) -> dict[bytes, tuple[int, ...]]:
    """Map each query text to the passages that cannot be its negatives.

    These are the positives of every row with this text, since a query often fills several rows, and the text itself.
    """
    excluded: dict[bytes, set[int]] = {}
    for row in rows:
        query_key = _text_key(row.query)
        found = excluded.setdefault(query_key, set())
        for key in (query_key, *(_text_key(positive.full_text) for positive in row.positives)):
            if key in index.by_text:
                found.add(index.by_text[key])
        for positive in row.positives:
            found.update(index.by_id.get(positive.id, ()))
    return {key: tuple(found) for key, found in excluded.items()}


def _text_key(text: str) -> bytes:
    """Hash a text so that case, white space and Unicode composition make no difference."""
    plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()
