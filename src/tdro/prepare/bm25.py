"""BM25 as the ranker of mining: words in common instead of an encoder. Needs the extra `mine`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdro.prepare.candidates import Answer, Passages
from tdro.prepare.mining_report import Clock
from tdro.retrieval.bm25 import Bm25Index, best_numbers, index_texts


@dataclass(frozen=True, slots=True)
class Bm25:
    """BM25 as the ranker; a passage that shares no word with the query is not ranked at all.

    The index is held in memory, see `tdro.retrieval.bm25.index_texts`. Positives that the corpus lacks count in the
    statistics of words.
    """

    name: str = "bm25"

    def open(self, passages: Passages, scratch: Path, clock: Clock) -> "Bm25Ranking":
        """Index all passages.

        Raises:
            EnvironmentProblem: The package is not installed.
        """
        with clock.span("encode"):
            index = index_texts(passages.corpus, passages.outside or ())
        return Bm25Ranking(index, passages.corpus.place_P, clock)


@dataclass(frozen=True, slots=True)
class Bm25Ranking:
    """The index of BM25; made by `Bm25.open`."""

    index: Bm25Index
    place_P: np.ndarray
    clock: Clock

    def answer(self, queries: Sequence[str], positives: Sequence[np.ndarray], depth: int) -> Iterator[Answer]:
        """Rank by BM25; see `tdro.prepare.candidates.Ranking`."""
        for query, named in zip(queries, positives, strict=True):
            with self.clock.span("search"):
                score_N = self.index.scores(query)
                best = best_numbers(score_N[: len(self.place_P)], self.place_P, depth)
                answer = Answer(best, score_N[best], score_N[named])
            yield answer
