"""Hard negatives for a dataset: passages that a retriever ranks high and that are not known to be right."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tdro.data.reading import write_rows
from tdro.data.records import Passage, Row
from tdro.errors import DataError
from tdro.prepare.candidates import Answer, OwnPassages, Ranker, Ranking, RowIndex, RowSource, is_mined
from tdro.prepare.judges import Judge, Judging
from tdro.prepare.margins import Choice, Selection, choose
from tdro.prepare.mining_report import Clock, MiningReport, Tally
from tdro.retrieval.corpus import Corpus, store_corpus

__all__ = ["MiningReport", "Selection", "mine"]

_WRITTEN = 1024  # rows whose negatives are read from the corpus together


def mine(
    rows: RowSource,
    out_path: Path,
    *,
    dataset: str,
    ranker: Ranker,
    seed: int,
    corpus: Corpus | Iterable[Passage] | None = None,
    selection: Selection | None = None,
    judge: Judge | None = None,
    only_missing: bool = False,
    query_chunk: int = 16384,
    process: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> MiningReport:
    """Write the dataset with negatives selected from a window of each query's ranking.

    The whole corpus is ranked. Out of the ranking go the positives of every row with this query text (by id
    and by text) and passages that repeat the query; texts are compared after NFC, case folding and collapsing
    white space. What remains is numbered 0, 1, 2, ... and `ranks = (first, last)` keeps the numbers
    first <= r < last, as the slice [first:last] does: (2, 100) skips the two best, which are often unlabelled
    positives, and ends with the hundredth. From these, `negatives` are drawn without replacement and
    written by rank, as far as margins and limits let them pass. Fewer are never filled up; if the window is empty any
    remaining passage is a candidate, and a row for which nothing remains is written without negatives. Negatives a
    row had are replaced, unless `only_missing` is set. The draw is a function of (seed, dataset, query id, position
    of the row). Each negative is written with its score, its rank (the number above) and who gave them, each positive
    with its score, so that a model can be distilled from the file.

    Memory does not grow with texts or embeddings, which are on disk; what is known of every passage and row takes some
    60 bytes each, more for a moment while they are sorted. What is on disk beside `out_path` is deleted at the end.

    Args:
        rows: The dataset; read three times, or four where the corpus lacks positives.
        out_path: File to write, `.jsonl` or `.jsonl.gz`; it appears complete or not at all.
        dataset: Name of the dataset.
        ranker: `tdro.prepare.candidates.Dense` or `tdro.prepare.bm25.Bm25`.
        seed: Any integer.
        corpus: Passages to draw from, and only these; by default the positives and negatives of the dataset itself.
            An iterable is read twice. Of passages with the same text the first is kept.
        selection: Window, number, sampling, margins, limits.
        judge: Gives the scores that margins and limits look at; by default the ranker.
        only_missing: Leave rows that have negatives as they are.
        query_chunk: Queries encoded and searched at a time.
        process: Which of the processes that write this same file this one is.
        progress: Called with (rows done, rows) after every chunk.

    Returns:
        The report.

    Raises:
        ConfigError: The name of the file is impossible.
        DataError: The dataset or the corpus is empty, or vectors contain NaN.

    Source: the paper's window and count (arXiv 2408.10613, hard negatives). Departure: the released code counts ranks
    before the positives are taken out, so that a positive on top uses up one of the two that are skipped.
    """
    if len(rows) == 0:
        raise DataError("dataset has no rows", where=dataset)
    clock, found = Clock(), Tally((selection := selection or Selection()).negatives)
    known: list[Corpus] = []

    def mined_rows(scratch: Path) -> Iterator[Row]:
        """Look at the passages, then mine chunk by chunk; starts once the output file could be opened."""
        with clock.span("read"):
            stored = _stored(rows, corpus, scratch / "corpus")
            if not len(stored):
                raise DataError("the corpus to search is empty", where=dataset, do="give at least one passage")
            known.append(stored)
            index = RowIndex(rows, stored, scratch / "outside", only_missing=only_missing)
        ranking = ranker.open(index.passages, scratch, clock)
        judging = None if judge is None else judge.open(index.passages, scratch, clock)
        source = ranker.name if judge is None else f"{ranker.name} + {judge.name}"
        at_once = judge is None or judge.at_once
        key = (seed, dataset)
        miner = _Miner(selection, only_missing, key, stored, index, ranking, judging, at_once, source, found)
        stream = iter(rows)
        while chunk := list(islice(stream, query_chunk)):
            yield from miner.mine(chunk)
            if progress is not None:
                progress(found.rows, len(rows))

    with _scratch(out_path, process) as scratch:
        write_rows(mined_rows(scratch), out_path)
    return found.report(
        ranker=ranker.name,
        judge="" if judge is None else judge.name,
        corpus=len(known[0]),
        shared_ids=known[0].shared_ids,
        empty=known[0].empty,
        refuses=selection.refuses,
        clock=clock,
    )


class _Candidates(NamedTuple):
    """The candidates of a row.

    numbers_W: Their numbers in the corpus, best first.
    ranks_W: Their ranks among what may be a negative.
    scores_W: The ranker's scores.
    positive_scores: The ranker's scores of the positives.
    fallback: Whether the window was empty.
    """

    numbers_W: np.ndarray
    ranks_W: np.ndarray
    scores_W: np.ndarray
    positive_scores: np.ndarray
    fallback: bool


@dataclass(frozen=True, slots=True)
class _Miner:
    """What mining a row needs, and the tally of what was mined."""

    selection: Selection
    only_missing: bool
    key: tuple[int, str]
    corpus: Corpus
    index: RowIndex
    ranking: Ranking
    judging: Judging | None
    at_once: bool
    source: str
    tally: Tally

    def mine(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Yield the next rows with their negatives, in order."""
        first = self.tally.rows
        mined = [place for place, row in enumerate(rows) if is_mined(row, self.only_missing)]
        chosen = self._mine([rows[place] for place in mined], [first + place for place in mined])
        places = set(mined)
        for place, row in enumerate(rows):
            if place in places:
                yield next(chosen)
            else:
                self.tally.keep()
                yield row

    def _mine(self, rows: Sequence[Row], numbers: Sequence[int]) -> Iterator[Row]:
        """Yield rows with negatives found for them."""
        candidates = self._candidates(rows, numbers)
        choices, positive_scores = self._choose(rows, numbers, candidates)
        for start in range(0, len(rows), _WRITTEN):
            part = slice(start, start + _WRITTEN)
            taken = [found.numbers_W[c.places] for found, c in zip(candidates[part], choices[part], strict=True)]
            passages = self._read(taken)
            for row, found, choice, positives, picked in zip(
                rows[part], candidates[part], choices[part], positive_scores[part], taken, strict=True
            ):
                self.tally.add(positives, choice, candidates=len(found.numbers_W), fallback=found.fallback)
                ranks = found.ranks_W[choice.places].tolist()
                details = zip((passages[i] for i in picked.tolist()), choice.scores.tolist(), ranks, strict=True)
                negatives = [Passage(p.id, p.title, p.text, round(s, 6), rank, self.source) for p, s, rank in details]
                scored = [
                    replace(p, score=round(s, 6), rank=None, model=self.source)
                    for p, s in zip(row.positives, positives.tolist(), strict=True)
                ]
                yield replace(row, positives=tuple(scored), negatives=tuple(negatives))

    def _candidates(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[_Candidates]:
        """Rank the corpus for each row and cut out the window."""
        excluded = [self.index.excluded(number) for number in numbers]
        depth = min(self.selection.ranks[1] + max(map(len, excluded), default=0), len(self.corpus))
        positives = [self.index.positives(number) for number in numbers]
        answers = self.ranking.answer([row.query for row in rows], positives, depth) if rows else ()
        return [self._window(answer, out) for answer, out in zip(answers, excluded, strict=True)]

    def _window(self, answer: Answer, excluded: np.ndarray) -> _Candidates:
        """Cut the window out of a ranking, or take everything where it is empty."""
        allowed = np.flatnonzero(~np.isin(answer.numbers_K, excluded))
        ranks_W = np.arange(len(allowed))[slice(*self.selection.ranks)]
        if fallback := len(ranks_W) == 0 < len(allowed):
            ranks_W = np.arange(len(allowed))
        window = allowed[ranks_W]
        scores_W = answer.scores_K[window]
        return _Candidates(answer.numbers_K[window], ranks_W, scores_W, answer.positive_scores, fallback)

    def _choose(
        self, rows: Sequence[Row], numbers: Sequence[int], candidates: Sequence[_Candidates]
    ) -> tuple[list[Choice], list[np.ndarray]]:
        """Select negatives; return also the scores of the positives, in the unit that decides."""
        selection, judging = self.selection, self.judging
        orders = [
            selection.order(len(found.numbers_W), *self.key, row.query_id, number)
            for row, number, found in zip(rows, numbers, candidates, strict=True)
        ]
        queries = [row.query for row in rows]
        if judging is None or not rows:
            positive_scores = [found.positive_scores for found in candidates]
        else:
            positive_scores = judging.scores(queries, [self.index.positives(number) for number in numbers])

        def scores(places: list[np.ndarray]) -> list[np.ndarray]:
            """Score candidates of every row."""
            if judging is None:
                return [found.scores_W[part] for found, part in zip(candidates, places, strict=True)]
            asked = [found.numbers_W[part] for found, part in zip(candidates, places, strict=True)]
            return judging.scores(queries, asked)

        ceilings = [selection.ceiling(of_row) for of_row in positive_scores]
        return choose(selection, orders, ceilings, scores, at_once=self.at_once), positive_scores

    def _read(self, taken: Sequence[np.ndarray]) -> dict[int, Passage]:
        """Read the passages of some rows, each once."""
        numbers = np.unique(np.concatenate(taken))
        return dict(zip(numbers.tolist(), self.corpus.take(numbers), strict=True))


def _stored(rows: RowSource, corpus: Corpus | Iterable[Passage] | None, folder: Path) -> Corpus:
    """Put the passages to search on disk, unless they are there."""
    if isinstance(corpus, Corpus):
        return corpus
    return store_corpus(OwnPassages(rows) if corpus is None else corpus, folder)


@contextmanager
def _scratch(out_path: Path, process: int) -> Iterator[Path]:
    """Make a folder beside a file for the time of the block; what a killed process left in it is cleared away."""
    folder = out_path.with_name(f".{out_path.name}.mining-{process}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
