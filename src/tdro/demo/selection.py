"""Choose the rows: clean texts, no duplicates, no dataset from one package, no evaluation of what was trained on."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

from tdro.demo.pairs import MAX_CHARACTERS, MAX_QUERY_CHARACTERS, Kind, Pair
from tdro.demo.sources import stable_hash

MIN_CHARACTERS = 40
MOST_PER_PACKAGE = 0.2
_WINDOW = 8


@dataclass(frozen=True, order=True)
class Candidate:
    """A pair and the name of the package it comes from."""

    package: str
    pair: Pair


def clean(pair: Pair, kind: Kind) -> Pair | None:
    """Squeeze and cut the texts of a pair; None where the text is no use, an empty query where only the query is not.

    Example:
        >>> kind = Kind("t", make=lambda package, modules: iter(()), most=1)
        >>> clean(Pair("what  it does", "", "word " * 300), kind).query
        'what it does'
        >>> clean(Pair("what it does", "", "too short"), kind) is None
        True
    """
    text = cut(re.sub(r"[ \t]+$", "", pair.text.replace("\t", "    "), flags=re.MULTILINE).strip("\n "), MAX_CHARACTERS)
    if len(text) < MIN_CHARACTERS or _letters(text) < 0.4:
        return None
    query = " ".join(pair.query.split())
    usable = len(query) <= MAX_QUERY_CHARACTERS and len(query.split()) >= kind.words and _letters(query) >= 0.4
    return replace(pair, query=query if usable and key(query) != key(text) else "", text=text)


def cut(text: str, most: int) -> str:
    """Shorten a text to at most `most` characters, at the end of a line or, failing that, of a word.

    Example:
        >>> cut("one two three", 9)
        'one two'
    """
    if len(text) <= most:
        return text
    head = text[: most + 1]
    for separator in "\n", " ":
        end = head.rfind(separator)
        if end > most // 2:
            return head[:end].rstrip()
    return head[:most].rstrip()


def key(text: str) -> str:
    """Reduce a text to its letters and digits in lower case, to tell equal texts apart from different ones."""
    return "".join(re.findall(r"[^\W_]+", text.lower()))


def shuffled(candidates: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Order candidates by a hash of seed and texts: the same order whatever order they come in."""

    def rank(candidate: Candidate) -> tuple[int, Candidate]:
        return stable_hash(f"{seed}\0{candidate.pair.query}\0{candidate.pair.text}"), candidate

    return sorted(candidates, key=rank)


def choose(candidates: Iterable[Candidate], most: int, *, seed: int) -> list[Candidate]:
    """Pick up to `most` candidates with a query: each query and text once, at most a fifth of `most` from a package."""
    chosen: list[Candidate] = []
    queries, texts, packages = {""}, set[str](), Counter[str]()
    for candidate in shuffled(candidates, seed):
        query, text = key(candidate.pair.query), key(candidate.pair.text)
        if query in queries or text in texts or packages[candidate.package] >= most * MOST_PER_PACKAGE:
            continue
        queries.add(query)
        texts.add(text)
        packages[candidate.package] += 1
        chosen.append(candidate)
    return chosen[:most]


def surround(asked: Sequence[Candidate], candidates: Iterable[Candidate], most: int, *, seed: int) -> list[Candidate]:
    """Add other candidates to those that are asked for, up to `most` different texts in all, and shuffle them."""
    corpus = {key(candidate.pair.text): candidate for candidate in asked}
    for candidate in shuffled(candidates, seed):
        if len(corpus) >= most:
            break
        corpus.setdefault(key(candidate.pair.text), candidate)
    return shuffled(corpus.values(), seed)


class SeenInTraining:
    """Recognise texts that occur in the training rows, whole or for the most part.

    Texts are compared by their words in runs of eight: a text counts as seen when it is equal to a training text up to
    case and punctuation, or when runs of a training text cover more than half of it. This catches the copies that
    packages keep of each other's code.
    """

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._runs: set[int] = set()

    def add(self, text: str) -> None:
        """Remember a training text."""
        self._keys.add(key(text))
        self._runs.update(list(_runs(_words(text)))[::_WINDOW])

    def __contains__(self, text: str) -> bool:
        words = _words(text)
        covered = sum(run in self._runs for run in _runs(words)) * _WINDOW
        return key(text) in self._keys or covered > len(words) / 2


def _words(text: str) -> Sequence[str]:
    """Split a text into lower-case words."""
    return re.findall(r"[^\W_]+", text.lower())


def _runs(words: Sequence[str]) -> Iterator[int]:
    """Yield a hash of every run of eight words."""
    return (crc32(" ".join(words[at : at + _WINDOW]).encode()) for at in range(len(words) - _WINDOW + 1))


def _letters(text: str) -> float:
    """Return the share of letters among the characters that are not white space."""
    shown = "".join(text.split())
    return sum(map(str.isalpha, shown)) / max(len(shown), 1)
