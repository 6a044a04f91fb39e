"""Measure how well leaks are found, with leaks made of the user's own test queries."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tdro.data.mixture import seeded
from tdro.prepare.leakage import LeakIndex
from tdro.prepare.normalise import code_points, is_unspaced, normalise

_LEAST_WORDS = 3
"""A query of fewer words is another query when one of them is dropped."""
_CHARACTERS_PER_WORD = 2
"""What counts as a word where words are not separated."""


@dataclass(frozen=True, slots=True)
class Recall:
    """How many planted leaks of one kind were found.

    Args:
        planted: Queries changed this way.
        found: Of these, the ones whose origin was found, as a leak.
        template: Of these, the ones whose origin was only reported as the same pattern.
    """

    planted: int
    found: int
    template: int

    @property
    def share(self) -> float:
        """Share that was found; 1 if nothing could be planted."""
        return self.found / self.planted if self.planted else 1.0


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What a check with planted leaks has shown.

    Args:
        recall: Kind -> recall: case (and punctuation), typo, swap (of two words), drop (of one).
        unrelated: Queries looked up that have nothing to do with any test query as a whole.
        false_hits: Of these, the ones that were taken for a leak.
    """

    recall: dict[str, Recall]
    unrelated: int
    false_hits: int


def plant(text: str, kind: str, generator: np.random.Generator) -> str:
    """Change a query a little.

    In scripts without spaces two neighbouring characters stand for a word.

    Args:
        text: A query.
        kind: "case": capitals, and other punctuation; "typo": one letter more, less, other, or two exchanged; "swap":
            two words exchanged; "drop": one word left out.
        generator: Decides what is changed.

    Returns:
        The changed query; as it was, where nothing can be changed.

    Example:
        >>> plant("who dances", "case", np.random.default_rng(0))
        '“WHO  DANCES”?'
    """
    return _KINDS[kind](text, generator)


def self_test(index: LeakIndex, *, seed: int = 0, sample: int = 1000, unrelated: int = 5000) -> SelfTest:
    """Plant changed test queries, and unrelated ones, and count which are found.

    Only test queries of three words and more are used. The unrelated queries are as long as test queries, and each of
    their words is from another one; all have four words and more.

    Args:
        index: The test queries, at the level and similarity to be checked.
        seed: Of the sample and the changes.
        sample: Test queries changed in each way.
        unrelated: Unrelated queries.
    """
    queries = [(place, query, text) for place, one in enumerate(index.sets) for query, text in enumerate(one.queries)]
    queries = [item for item in queries if len(_words(item[2])) >= _LEAST_WORDS]
    generator = seeded(seed, "planted-leaks")
    chosen = generator.permutation(len(queries))[:sample]
    recall = {kind: _recall(index, [queries[i] for i in chosen], kind, generator) for kind in _KINDS}
    salads = list(_salads([text for _, _, text in queries], unrelated, generator))
    hits = {leak.row for leak in index.find(salads) if leak.counts}
    return SelfTest(recall, len(salads), len(hits))


def _recall(
    index: LeakIndex, queries: Sequence[tuple[int, int, str]], kind: str, generator: np.random.Generator
) -> Recall:
    """Plant leaks of one kind."""
    changed = [(place, query, text, plant(text, kind, generator)) for place, query, text in queries]
    changed = [item for item in changed if item[3] != item[2]]
    leaks = index.find([text for *_, text in changed])
    origins = [(place, query) for place, query, *_ in changed]
    found = {leak.row for leak in leaks if leak.counts and origins[leak.row] == (leak.place, leak.query)}
    template = {leak.row for leak in leaks if not leak.counts and origins[leak.row] == (leak.place, leak.query)}
    return Recall(len(changed), len(found), len(template - found))


def _case(text: str, generator: np.random.Generator) -> str:
    """Write in capitals, with other punctuation."""
    return f"“{text.upper().strip(' ?!.').replace(' ', '  ')}”?"


def _typo(text: str, generator: np.random.Generator) -> str:
    """Mistype one letter, at a place where that changes the normalised text."""
    letters = sorted({character for character in text.lower() if character.isalpha()})
    places = [i for i, character in enumerate(text) if character.isalpha()]
    if len(letters) < 2:
        return text
    for _ in range(20):
        i, letter = int(generator.choice(places)), str(generator.choice(letters))
        variants = (text[:i] + letter + text[i:], text[:i] + text[i + 1 :], text[:i] + letter + text[i + 1 :],
                    text[:i] + text[i + 1 : i + 2] + text[i] + text[i + 2 :])  # fmt: skip
        variant = variants[int(generator.integers(len(variants)))]
        before, after = normalise([text, variant])
        if before != after:
            return variant
    return text


def _swap(text: str, generator: np.random.Generator) -> str:
    """Exchange two words."""
    words = _words(text)
    if len(words) < 2:
        return text
    i, j = generator.choice(len(words), 2, replace=False).tolist()
    words[i], words[j] = words[j], words[i]
    return _glue(text).join(words)


def _drop(text: str, generator: np.random.Generator) -> str:
    """Leave out one word."""
    words = _words(text)
    if len(words) < 2:
        return text
    del words[int(generator.integers(len(words)))]
    return _glue(text).join(words)


_KINDS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "case": _case,
    "typo": _typo,
    "swap": _swap,
    "drop": _drop,
}


def _salads(queries: Sequence[str], count: int, generator: np.random.Generator) -> Iterator[str]:
    """Yield queries whose words are each from another query."""
    texts = [words for words in map(_words, queries) if len(words) > _LEAST_WORDS]
    for _ in range(count if len(texts) > _LEAST_WORDS else 0):
        length = len(texts[int(generator.integers(len(texts)))])
        sources = generator.choice(len(texts), min(length, len(texts)), replace=False).tolist()
        first = texts[sources[0]]
        words = [texts[source][int(generator.integers(len(texts[source])))] for source in sources]
        yield _glue("".join(first)).join(words)


def _words(text: str) -> list[str]:
    """Split a query into what can be moved or left out."""
    if not _glue(text):
        return [text[i : i + _CHARACTERS_PER_WORD] for i in range(0, len(text), _CHARACTERS_PER_WORD)]
    return text.split()


def _glue(text: str) -> str:
    """Return what stands between the words of a query: nothing in scripts without spaces."""
    return "" if text and is_unspaced(code_points(text)).mean() > 0.5 else " "
