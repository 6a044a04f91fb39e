"""BM25: words in common instead of an encoder. Needs the extra `mine`."""

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from tdro.errors import EnvironmentProblem
from tdro.retrieval.shards import Progress, Texts

_FORM = {"k1": 1.5, "b": 0.75, "method": "lucene"}
_WORDS = 1  # raise it when `words` gives other words
_READ = 8192  # texts that are read together
_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana, Han; and Hangul, whose words carry endings."""


@dataclass(frozen=True, slots=True)
class Bm25Index:
    """What BM25 (Lucene's form, k1 = 1.5, b = 0.75) knows of N texts; made by `index_texts`.

    Args:
        model: The index of bm25s.
        vocabulary: Word -> number.
        size: N.
    """

    model: Any
    vocabulary: dict[str, int]
    size: int

    def scores(self, query: str) -> np.ndarray:
        """Score all texts, float32 [N]; 0 where a text shares no word with the query."""
        ids = [self.vocabulary[word] for word in words(query) if word in self.vocabulary]
        if not ids:
            return np.zeros(self.size, np.float32)
        return np.asarray(self.model.get_scores_from_ids(ids), np.float32)


def index_texts(*collections: Texts, progress: Progress | None = None) -> Bm25Index:
    """Index texts for BM25; all collections together are one.

    The index is held in memory: 8 bytes for every distinct word of every text, three times that while it is made.

    Args:
        collections: Texts, numbered through.
        progress: Called with (texts read, texts).

    Raises:
        EnvironmentProblem: The package is not installed.

    Example:
        >>> [f"{score:.2f}" for score in index_texts(["bees dance", "rivers"], ["dance dance"]).scores("the dance")]
        ['0.17', '0.00', '0.25']
    """
    bm25s = require_bm25()
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    texts = _WordsOfTexts(collections, vocabulary, progress)
    model = bm25s.BM25(**_FORM)
    if vocabulary:
        model.scores = model.build_index_from_ids(range(len(vocabulary)), texts, show_progress=False)
    vocabulary.default_factory = None
    return Bm25Index(model, vocabulary, len(texts))


def best_numbers(score_P: np.ndarray, place_P: np.ndarray, depth: int) -> np.ndarray:
    """Return the `depth` best texts with a score above 0, equal scores in the order of their places.

    Example:
        >>> best_numbers(np.array([1.0, 3.0, 0.0, 1.0]), np.array([2, 1, 0, 3]), depth=2).tolist()
        [1, 0]
    """
    found = np.flatnonzero(score_P > 0)
    if len(found) > depth:
        least = np.partition(score_P[found], len(found) - depth)[len(found) - depth]
        found = found[score_P[found] >= least]
    return found[np.lexsort((place_P[found], -score_P[found]))][:depth]


def about_bm25() -> dict[str, object]:
    """Name what decides the scores of BM25 besides the texts.

    Raises:
        EnvironmentProblem: The package is not installed.
    """
    require_bm25()
    return {"ranker": "bm25", "bm25s": metadata.version("bm25s"), "words": _WORDS, **_FORM}


def require_bm25() -> Any:
    """Import the package behind BM25.

    Raises:
        EnvironmentProblem: It is not installed.
    """
    try:
        import bm25s
    except ImportError:
        do = "pip install 'tdro[mine]', or use an encoder"
        raise EnvironmentProblem("BM25 needs the package bm25s", where="bm25", do=do) from None
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


class _WordsOfTexts(Sequence[list[int]]):
    """The words of all texts as numbers, end to end in one array: lists would take ten times the memory."""

    def __init__(self, collections: Sequence[Texts], vocabulary: dict[str, int], progress: Progress | None) -> None:
        self._numbers, self._starts = array("i"), array("q", [0])
        total = sum(map(len, collections))
        for texts in collections:
            for start in range(0, len(texts), _READ):
                for text in texts[start : start + _READ]:
                    self._numbers.extend([vocabulary[word] for word in words(text)])
                    self._starts.append(len(self._numbers))
                if progress is not None:
                    progress(len(self), total)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: Any) -> Any:
        first, end = self._starts[number], self._starts[number + 1]
        return self._numbers[first:end].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))
