"""Find training rows that give away what an evaluation set asks for.

A row leaks when its query is a test query: equal after normalisation (`exact`), or nearly so (`near`, see
`tdro.prepare.near`; `simhash-k2`, see `tdro.prepare.simhash`). Where one of its positives is also a relevant document
of that test query, the whole pair leaked. A symmetric dataset can have the pair the other way round, with the test
query as the positive and a relevant document as the query: `reversed`.

Two things are reported and never count as leaks: queries of the same pattern with another subject (`template`), and
positives that are relevant documents of test queries which the row does not ask (a shared corpus).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain
from typing import Literal

import numpy as np

from tdro.data.store import Rows
from tdro.prepare import simhash
from tdro.prepare.evaluation_queries import EvaluationSet
from tdro.prepare.near import NearIndex
from tdro.prepare.normalise import normalise

Level = Literal["exact", "near", "simhash-k2"]
Found = Literal["exact", "near", "template", "simhash-k2"]
STRENGTH: dict[Found, int] = {"exact": 3, "simhash-k2": 2, "near": 2, "template": 0}
"""Which of two findings about a row says more; a template is no leak."""

_ROWS = 8192
"""Rows that are compared together."""
_DOCUMENT_ROWS = 512
"""Rows whose positives are read together."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A training row and the test query that it has in common with an evaluation set.

    Args:
        row: Number of the row in its dataset.
        place: Number of the evaluation set.
        query: Number of the query in the set.
        found: How they are alike.
        score: How much, 1 for equal texts.
        via: "query"; "pair" if a positive of the row is also relevant to the test query; "reversed" if the row has
            the test query as a positive and a relevant document as its query.
    """

    row: int
    place: int
    query: int
    found: Found
    score: float
    via: Literal["query", "pair", "reversed"] = "query"

    @property
    def counts(self) -> bool:
        """Whether it is a leak, not just the same pattern."""
        return self.found != "template"


@dataclass(frozen=True, slots=True)
class DatasetLeaks:
    """What was found in one dataset.

    Args:
        name: The dataset.
        rows: How many rows it has.
        leaks: All leaks, and of templates the best per row and evaluation set; by row.
        shared_rows: Evaluation set -> rows with a positive that is relevant to some test query, but do not leak.
        query_passages: Evaluation set -> rows with a positive that is a test query, but do not leak.
    """

    name: str
    rows: int
    leaks: tuple[Leak, ...]
    shared_rows: dict[int, int] = field(default_factory=dict)
    query_passages: dict[int, int] = field(default_factory=dict)

    def worst(self) -> dict[int, Leak]:
        """Return the strongest finding that counts as a leak of every leaking row, by row."""
        worst: dict[int, Leak] = {}
        for leak in self.leaks:
            if leak.counts and (leak.row not in worst or _weight(leak) > _weight(worst[leak.row])):
                worst[leak.row] = leak
        return dict(sorted(worst.items()))


class LeakIndex:
    """The test queries of some evaluation sets, ready for training queries to be looked up.

    Only this side is held in memory, about a kilobyte per test query.

    Args:
        sets: The evaluation sets.
        level: "exact"; "near", which includes exact; "simhash-k2".
        similarity: From which a pair is near.

    Example:
        >>> cup = EvaluationSet("cups", ("1",), ("Who won the world cup in 2018?",), ((),))
        >>> index = LeakIndex([cup], "near")
        >>> [(leak.row, leak.found) for leak in index.find(["who won the world cup in 2018", "who wins"])]
        [(0, 'exact')]
    """

    def __init__(self, sets: Sequence[EvaluationSet], level: Level = "near", similarity: float = 0.8) -> None:
        self.sets, self.level = tuple(sets), level
        self._places: dict[str, list[tuple[int, int]]] = {}
        forms = _content_forms if level == "simhash-k2" else normalise
        for number, one in enumerate(self.sets):
            for query, text in enumerate(forms(one.queries)):
                if text:
                    self._places.setdefault(text, []).append((number, query))
        self._texts = list(self._places)
        self._number = {text: number for number, text in enumerate(self._texts)}
        self._near = NearIndex(self._texts, similarity) if level == "near" else None
        self._simhash = simhash.SimhashIndex(self._texts) if level == "simhash-k2" else None
        self.equal = _Texts(self.sets)

    def find(self, queries: Sequence[str]) -> list[Leak]:
        """Look up queries.

        Args:
            queries: Training queries, as they are.

        Returns:
            Leaks and templates, by query; `row` is the number of the query here.
        """
        texts = (_content_forms if self._simhash else normalise)(queries)
        row_m = np.array([row for row, text in enumerate(texts) if text], np.int64)
        full = [text for text in texts if text]
        if self._simhash is not None:
            row_M, text_M, bits_M = self._simhash.find(full)
            found: Iterable[tuple[int, int, Found, float]] = (
                (row, text, "simhash-k2", 1 - bits / 64)
                for row, text, bits in zip(row_m[row_M].tolist(), text_M.tolist(), bits_M.tolist(), strict=True)
            )
        else:
            found = (
                (row, self._number[texts[row]], "exact", 1.0) for row in row_m.tolist() if texts[row] in self._number
            )
            if self._near is not None:
                found = chain(found, self._near_ones(full, row_m))
        return _without_weak_templates(self._spread(found))

    def compare(self, queries: Sequence[str], place: Sequence[int], query: Sequence[int]) -> list[Leak]:
        """Compare each query with one test query, without the chance of missing it; near level only.

        Args:
            queries: Training queries, as they are.
            place: For each, the number of an evaluation set.
            query: For each, the number of a query in it.
        """
        if self._near is None:
            return []
        theirs = normalise([self.sets[p].queries[q] for p, q in zip(place, query, strict=True)])
        mine = normalise(queries)
        rows = [row for row, text in enumerate(mine) if text and theirs[row] and text != theirs[row]]
        matches = self._near.compare([mine[row] for row in rows], [self._number[theirs[row]] for row in rows])
        return [
            Leak(rows[at], place[rows[at]], query[rows[at]], "template" if template else "near", round(score, 4))
            for at, score, template in zip(
                matches.row_M.tolist(), matches.score_M.tolist(), matches.template_M.tolist(), strict=True
            )
        ]

    def _near_ones(self, texts: Sequence[str], row_m: np.ndarray) -> Iterator[tuple[int, int, Found, float]]:
        """Yield row, text, finding and score of the texts that are nearly, but not quite, in the index."""
        assert self._near is not None
        matches = self._near.find(texts)
        for at, text, score, template in zip(
            matches.row_M.tolist(), matches.text_M.tolist(), matches.score_M.tolist(), matches.template_M.tolist(),
            strict=True,
        ):  # fmt: skip
            if texts[at] != self._texts[text]:
                yield int(row_m[at]), text, "template" if template else "near", round(score, 4)

    def _spread(self, found: Iterable[tuple[int, int, Found, float]]) -> Iterator[Leak]:
        """Name the test queries behind the texts."""
        for row, text, kind, score in found:
            for place, query in self._places[self._texts[text]]:
                yield Leak(row, place, query, kind, score)


class _Texts:
    """Test queries and their relevant documents, with and without title, by the hash of their normalised text."""

    def __init__(self, sets: Sequence[EvaluationSet]) -> None:
        self._queries: dict[bytes, list[tuple[int, int]]] = {}
        for place, one in enumerate(sets):
            for query, text in enumerate(normalise(one.queries)):
                if text:
                    self._queries.setdefault(_hash(text), []).append((place, query))
        self._found: dict[bytes, list[tuple[int, int]]] = {}
        for place, one in enumerate(sets):
            asked: dict[int, list[int]] = {}
            for query, documents in enumerate(one.relevant):
                for document in documents:
                    asked.setdefault(document, []).append(query)
            for texts in ([d.full_text for d in one.documents], [d.text for d in one.documents]):
                for document, text in enumerate(normalise(texts)):
                    queries = self._found.setdefault(_hash(text), []) if text else []
                    queries += [(place, q) for q in asked.get(document, ()) if (place, q) not in queries]

    def queries_of(self, text: str) -> list[tuple[int, int]]:
        """Return set and number of the test queries with this normalised text."""
        return self._queries.get(_hash(text), [])

    def asked_by(self, text: str) -> list[tuple[int, int]]:
        """Return set and number of the test queries to which a document with this normalised text is relevant."""
        return self._found.get(_hash(text), [])


def find_leaks(
    rows: Rows,
    index: LeakIndex,
    *,
    documents: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetLeaks:
    """Look for test queries in one dataset; its rows are read in parts and never held together.

    Args:
        rows: The dataset.
        index: The test queries.
        documents: Look at positives too: for leaked pairs, either way round, and for a shared corpus. Passages are
            equal after normalisation or not at all. It takes the time to read them.
        threads: Parts compared at the same time; by default one per core.
        progress: Called with (rows done, rows).
    """
    leaks: list[Leak] = []
    shared: Counter[int] = Counter()
    passages: Counter[int] = Counter()
    starts = range(0, len(rows), _ROWS)
    positives_n = rows.source.positive_count_n if documents else None

    def look(start: int) -> tuple[list[Leak], Counter[int], Counter[int]]:
        """Compare one part."""
        number_n = rows.numbers_n[start : start + _ROWS]
        queries = rows.queries_at(number_n)
        found, of_shared, of_passages = index.find(queries), Counter[int](), Counter[int]()
        if positives_n is not None:
            positives = _positives(rows, number_n, positives_n[number_n])
            found, of_shared, of_passages = _look_at_positives(queries, positives, index, found)
        return [replace(leak, row=leak.row + start) for leak in found], of_shared, of_passages

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for done, (found, of_shared, of_passages) in enumerate(pool.map(look, starts), start=1):
            leaks += found
            shared += of_shared
            passages += of_passages
            if progress is not None:
                progress(min(done * _ROWS, len(rows)), len(rows))
    return DatasetLeaks(rows.info.name, len(rows), tuple(leaks), dict(shared), dict(passages))


def _look_at_positives(
    queries: Sequence[str], positives: Iterable[tuple[int, str]], index: LeakIndex, found: list[Leak]
) -> tuple[list[Leak], Counter[int], Counter[int]]:
    """Add what the positives of some rows say to what their queries have said."""
    asked: dict[tuple[int, int, int], None] = {}  # row, set, query to which a positive of the row is relevant
    held: list[tuple[int, int, int]] = []  # row, set, query that is a positive of the row
    texts = normalise(queries)
    for row, positive in positives:
        asked |= {(row, place, query): None for place, query in index.equal.asked_by(positive)}
        held += [(row, place, query) for place, query in index.equal.queries_of(positive)]
    known = {(leak.row, leak.place, leak.query) for leak in found}
    new = [key for key in asked if key not in known]
    also = index.compare([queries[row] for row, _, _ in new], [p for _, p, _ in new], [q for _, _, q in new])
    found = [*found, *(replace(leak, row=new[leak.row][0]) for leak in also)]
    found = [replace(leak, via="pair") if (leak.row, leak.place, leak.query) in asked else leak for leak in found]
    for row, place, query in held:
        if texts[row] and (place, query) in index.equal.asked_by(texts[row]):
            found.append(Leak(row, place, query, "exact", 1.0, "reversed"))
    leaking = {(leak.row, leak.place) for leak in found if leak.counts}
    shared = Counter(place for _, place in {(row, place) for row, place, _ in asked} - leaking)
    passages = Counter(place for _, place in {(row, place) for row, place, _ in held} - leaking)
    return _without_weak_templates(found), shared, passages


def _positives(rows: Rows, number_n: np.ndarray, count_n: np.ndarray) -> Iterator[tuple[int, str]]:
    """Yield row and normalised text of the positives of some rows that have any letter or digit."""
    for start in range(0, len(number_n), _DOCUMENT_ROWS):
        count_m = count_n[start : start + _DOCUMENT_ROWS]
        place_P = np.arange(count_m.sum()) - np.repeat(np.cumsum(count_m) - count_m, count_m)
        row_P = np.repeat(np.arange(start, start + len(count_m)), count_m)
        texts = normalise(rows.passages_at(number_n[row_P], place_P))
        yield from ((row, text) for row, text in zip(row_P.tolist(), texts, strict=True) if text)


def _without_weak_templates(leaks: Iterable[Leak]) -> list[Leak]:
    """Keep all leaks, and of templates the best per row and evaluation set."""
    kept: list[Leak] = []
    best: dict[tuple[int, int], Leak] = {}
    for leak in leaks:
        if leak.counts:
            kept.append(leak)
        elif (leak.row, leak.place) not in best or leak.score > best[leak.row, leak.place].score:
            best[leak.row, leak.place] = leak
    return sorted([*kept, *best.values()], key=lambda leak: (leak.row, leak.place, -leak.score))


def _content_forms(texts: Sequence[str]) -> list[str]:
    """Return what SimHash looks at of each text."""
    return [simhash.content(text) for text in texts]


def _weight(leak: Leak) -> tuple[bool, int, float]:
    """Order leaks by what they say."""
    return leak.via != "query", STRENGTH[leak.found], leak.score


def _hash(text: str) -> bytes:
    """Hash a text into 16 bytes."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
