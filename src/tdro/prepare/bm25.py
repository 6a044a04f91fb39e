"""BM25 as the ranker of mining: words in common instead of an encoder. Needs the extra `mine`."""

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tdro.errors import EnvironmentProblem
from tdro.prepare.candidates import Answer, Passages
from tdro.prepare.mining_report import Clock

_READ = 8192  # passages that are read together
_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana, Han; and Hangul, whose words carry endings."""


@dataclass(frozen=True, slots=True)
class Bm25:
    """BM25 (Lucene's form, k1 = 1.5, b = 0.75) as the ranker.

    A passage that shares no word with the query is not ranked at all. The index is held in memory: 8 bytes for every
    distinct word of every passage, three times that while it is made.
    """

    name: str = "bm25"

    def open(self, passages: Passages, scratch: Path, clock: Clock) -> "Bm25Ranking":
        """Index all passages.

        Raises:
            EnvironmentProblem: The package is not installed.
        """
        bm25s = require_bm25()
        with clock.span("encode"):
            vocabulary: defaultdict[str, int] = defaultdict()
            vocabulary.default_factory = vocabulary.__len__
            documents = _Documents(passages, vocabulary)
            model = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
            if vocabulary:
                model.scores = model.build_index_from_ids(range(len(vocabulary)), documents, show_progress=False)
        vocabulary.default_factory = None
        return Bm25Ranking(model, vocabulary, passages.corpus.place_P, len(documents), clock)


@dataclass(frozen=True, slots=True)
class Bm25Ranking:
    """The index of BM25; made by `Bm25.open`."""

    model: Any
    vocabulary: dict[str, int]
    place_P: np.ndarray
    documents: int
    clock: Clock

    def answer(self, queries: Sequence[str], positives: Sequence[np.ndarray], depth: int) -> Iterator[Answer]:
        """Rank by BM25; see `tdro.prepare.candidates.Ranking`."""
        for query, named in zip(queries, positives, strict=True):
            with self.clock.span("search"):
                score_N = self._scores(query)
                best = _best(score_N[: len(self.place_P)], self.place_P, depth)
                answer = Answer(best, score_N[best], score_N[named])
            yield answer

    def _scores(self, query: str) -> np.ndarray:
        """Score all passages."""
        ids = [self.vocabulary[word] for word in words(query) if word in self.vocabulary]
        if not ids:
            return np.zeros(self.documents, np.float32)
        return np.asarray(self.model.get_scores_from_ids(ids), np.float32)


def require_bm25() -> Any:
    """Import the package behind BM25.

    Raises:
        EnvironmentProblem: It is not installed.
    """
    try:
        import bm25s
    except ImportError:
        do = "pip install 'tdro[mine]', or use mining.source: dense"
        raise EnvironmentProblem("BM25 needs the package bm25s", where="mining.source", saw="bm25", do=do) from None
    return bm25s


def words(text: str) -> list[str]:
    """Cut a text of any language into what BM25 counts.

    That is runs of letters, digits and the marks on them, in lower case and compatibility form. Where words are not
    set apart, as in Chinese, Japanese and Thai, it is every pair of neighbouring characters; also in Korean.

    Example:
        >>> words("The Bee's 2 HIVES"), words("蜜蜂跳舞 is 蜂")
        (['the', 'bee', 's', '2', 'hives'], ['蜜蜂', '蜂跳', '跳舞', 'is', '蜂'])
    """
    found: list[str] = []
    for run in _pattern().finditer(unicodedata.normalize("NFKC", text).casefold()):
        part = run.group()
        if run.lastgroup == "joined" and len(part) > 1:
            found += [part[i : i + 2] for i in range(len(part) - 1)]
        else:
            found.append(part)
    return found


@cache
def _pattern() -> re.Pattern[str]:
    """Make the pattern of runs; `re` has no name for marks, without which the vowels of Hindi would cut its words."""
    marks = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)).startswith("M"))
    joined = f"[{_WITHOUT_SPACES}](?<![\\W_])|[{_WITHOUT_SPACES}](?<=[{marks}])"
    return re.compile(f"(?P<joined>(?:{joined})+)|(?:[^\\W_{_WITHOUT_SPACES}]+|[{marks}]+)+")


class _Documents(Sequence[list[int]]):
    """The words of all passages as numbers, end to end in one array: lists would take ten times the memory."""

    def __init__(self, passages: Passages, vocabulary: dict[str, int]) -> None:
        self._numbers, self._starts = array("i"), array("q", [0])
        for corpus in (passages.corpus, passages.outside or ()):
            for start in range(0, len(corpus), _READ):
                for text in corpus[start : start + _READ]:
                    self._numbers.extend([vocabulary[word] for word in words(text)])
                    self._starts.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: Any) -> Any:
        first, end = self._starts[number], self._starts[number + 1]
        return self._numbers[first:end].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))


def _best(score_P: np.ndarray, place_P: np.ndarray, depth: int) -> np.ndarray:
    """Return the `depth` best passages with a score above 0, equal scores in the order of their places."""
    found = np.flatnonzero(score_P > 0)
    if len(found) > depth:
        least = np.partition(score_P[found], len(found) - depth)[len(found) - depth]
        found = found[score_P[found] >= least]
    return found[np.lexsort((place_P[found], -score_P[found]))][:depth]
