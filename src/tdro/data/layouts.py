"""Turn the records of a file into rows: which layout the file has, and what is wrong with a record.

| layout | query | positives | negatives |
|---|---|---|---|
| tevatron (tDRO) | `query` | `positive_passages` | `negative_passages` |
| flagembedding | `query` | `pos` | `neg` |
| sentence-transformers | `anchor` | `positive` | `negative`, `negative_1`, ... |
| pairs | first text of a list | second | further ones |
| sets | first text of `set`, or of a pair in `texts` | the others | none |

A passage is a plain string, or an object with `text` and, if there are any, `title`, `docid` (or `id`, `_id`), `score`,
`rank` and `model`. In the first two layouts positives and negatives are lists of passages. In the third every column
holds one text; `query`, `question` and `sentence1` stand for `anchor`, `answer` and `sentence2` for `positive`.
`query_id` is optional, and so are `prompt` in the first two layouts and `pos_scores`, `neg_scores` in the second.
Other columns are not read. In the layouts with columns a row may have ids in the place of texts (`tdro.data.lookup`).
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from tdro.data.fields import (
    PASSAGE_FIELDS,
    Fault,
    check_labels,
    identifier_of,
    optional_text,
    passage_of,
    query_of,
    scored,
    set_of,
    spread,
)
from tdro.data.lookup import Lookup
from tdro.data.records import Passage, Row
from tdro.errors import DataError

WrittenLayout = Literal["tevatron", "flagembedding", "sentence-transformers", "beir", "csv", "tsv"]
"""What rows can be written as (`tdro.data.writing`)."""

_LIST_COLUMNS = {"tevatron": ("positive_passages", "negative_passages"), "flagembedding": ("pos", "neg")}
_SCORE_COLUMNS = {"pos": "pos_scores", "neg": "neg_scores"}
_QUERY_COLUMNS = ("anchor", "query", "question", "sentence1")
_POSITIVE_COLUMNS = ("positive", "answer", "sentence2")
_SET_COLUMNS = ("set", "texts")
_LABEL_COLUMNS = ("label", "labels", "score", "scores")
_NEGATIVE = re.compile(r"negative(?:_(\d+))?")
_PASSAGE_LIKE = re.compile(r"(hard_)?(pos|neg|positives?|negatives?)(_\w+)?")
_ABOUT_PASSAGES = re.compile(r"\w+_(ids?|scores?|indices)")
_ACCEPTED = (
    "use the columns of one layout: tevatron (query, positive_passages, negative_passages), "
    "flagembedding (query, pos, neg) or sentence-transformers "
    f"({'|'.join(_QUERY_COLUMNS)}, {'|'.join(_POSITIVE_COLUMNS)}, negative, negative_1, ...)"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns of a record hold what.

    Args:
        name: As in the table above.
        query: Column of the query.
        positive: Column of the positive(s).
        negatives: Columns of the negatives, in order.
        labels: Columns that tell whether query and positive belong together.
        has_prompt: Whether there is a column `prompt`.
    """

    name: str
    query: str
    positive: str
    negatives: tuple[str, ...]
    labels: tuple[str, ...] = ()
    has_prompt: bool = False

    @property
    def known(self) -> set[str]:
        """Every column that is read."""
        scores = {_SCORE_COLUMNS[column] for column in (self.positive, *self.negatives) if column in _SCORE_COLUMNS}
        prompt = {"prompt"} if self.has_prompt else set()
        return {"query_id", self.query, self.positive, *self.negatives, *self.labels, *scores, *prompt}


_PAIRS = Layout("pairs", "[0]", "[1]", ())


def detect_layout(columns: Collection[str], place: str) -> Layout | None:
    """Find the layout of a record with these columns; None where it is none of them.

    Refuses columns that could be read in two ways, and columns that look like passages and would be left out.

    Args:
        columns: The record's columns, in any order.
        place: `file:line` of the record, for the error.

    Raises:
        DataError: The columns are ambiguous.

    Example:
        >>> detect_layout(["query", "pos", "neg"], "nq.jsonl:1").name
        'flagembedding'
        >>> detect_layout(["anchor", "positive", "negative_10", "negative_2"], "nq.jsonl:1").negatives
        ('negative_2', 'negative_10')
    """
    named = [name for name, pair in _LIST_COLUMNS.items() if any(column in columns for column in pair)]
    sets = [column for column in _SET_COLUMNS if column in columns]
    labels = tuple(column for column in _LABEL_COLUMNS if column in columns)
    if named:
        positive, negative = _LIST_COLUMNS[named[0]]
        layout = Layout(named[0], "query", positive, (negative,), has_prompt="prompt" in columns)
    else:
        queries = [column for column in _QUERY_COLUMNS if column in columns]
        positives = [column for column in _POSITIVE_COLUMNS if column in columns]
        if positives:
            for kind, found in (("query", queries), ("positive", positives)):
                if len(found) > 1:
                    do = "keep one of them, rename or remove the others"
                    raise DataError(f"two columns could be the {kind}", where=place, saw=found, do=do)
            numbered = sorted((int(match[1] or -1), match[0]) for c in columns if (match := _NEGATIVE.fullmatch(c)))
            negatives = tuple(column for _, column in numbered)
            layout = Layout("sentence-transformers", (queries or ["query"])[0], positives[0], negatives, labels)
        elif len(sets) == 1 and not queries:
            layout = Layout("sets", sets[0], sets[0], (), labels)
        else:
            return None
    known = {layout.positive, *layout.negatives}
    strays = [c for c in columns if c not in known and _PASSAGE_LIKE.fullmatch(c) and not _ABOUT_PASSAGES.fullmatch(c)]
    if strays:
        what = f"the {layout.name} layout does not read these columns, which seem to hold passages"
        raise DataError(what, where=place, saw=strays, do=f"rename or remove them; {_ACCEPTED}")
    return layout


class RowParser:
    """Check the records of one file or folder, one after the other, and turn them into rows.

    The first record decides the layout; a later record of another layout is an error. A missing query id becomes
    `name-number`; a missing passage id becomes a hash of the passage, so that the same passage has the same id
    wherever it comes from. Texts are kept as they are.

    Args:
        name: The dataset's name.
        lookup: Has the texts of rows that have ids only.

    Attributes:
        layout: The layout, once the first record was read.
        unread: Names of the columns, and of the fields of passages, that were there and were not read.

    Example:
        >>> row = RowParser("nq").parse({"query": "who dances", "pos": ["bees"], "neg": []}, "nq.jsonl:1", 1)
        >>> row.query_id, row.positives[0].id, row.positives[0].text
        ('nq-1', '8debaa289b33d946', 'bees')
    """

    def __init__(self, name: str, lookup: Lookup | None = None) -> None:
        self.name = name
        self._lookup = lookup or Lookup()
        self.layout: Layout | None = None
        self.unread: set[str] = set()
        self._columns: tuple[str, ...] | None = None
        self._current = _PAIRS

    def parse(self, record: Any, place: str, number: int) -> Row:
        """Check one record and return its row.

        Args:
            record: What the file holds there; an object or a list of texts, if the file is right.
            place: `file:line`, for errors.
            number: The row's number in the dataset, from 1.

        Raises:
            DataError: The record cannot be trained on; the message names the field, the value and what to do.
        """
        try:
            if isinstance(record, dict):
                if (columns := tuple(record)) != self._columns:
                    self._current = self._layout_of(columns, place)
                    self._columns = columns
                return self._row(record, self._current, number)
            if isinstance(record, list) and any(isinstance(text, str) for text in record):
                self._check_same(_PAIRS, place, record)
                query, (positive, *negatives) = spread(record)
                return Row(f"{self.name}-{number}", query, (positive,), tuple(negatives))
        except Fault as fault:
            raise DataError(fault.what, where=f"{place}{fault.field}", saw=fault.saw, do=fault.do) from None
        do = "write one JSON object per line, or one list around all rows in the whole file"
        raise DataError("not a JSON object", where=place, saw=record, do=do)

    def _row(self, record: dict[str, Any], layout: Layout, number: int) -> Row:
        """Turn a record with columns into a row."""
        query_id = identifier_of(record.get("query_id"), ":query_id") or f"{self.name}-{number}"
        if layout.name == "sets":
            check_labels(record, layout.labels)
            query, positives = set_of(record, layout.query)
            return Row(query_id, query, tuple(positives), ())
        query = query_of(self._lookup.query(record, layout.query), layout.query)
        check_labels(record, layout.labels)
        positives = self._passages(record, layout, (layout.positive,), "positive")
        if not positives:
            do = f"give at least one passage in `{layout.positive}`, or remove the row"
            raise Fault("row without positive", f":{layout.positive}", record, do)
        negatives = self._passages(record, layout, layout.negatives, "negative")
        prompt = optional_text(record.get("prompt"), "prompt", ":prompt") if layout.has_prompt else ""
        return Row(query_id, query, tuple(positives), tuple(negatives), prompt)

    def _passages(self, record: dict[str, Any], layout: Layout, columns: tuple[str, ...], role: str) -> list[Passage]:
        """Return the passages of these columns, in order; an absent or null column has none."""
        passages: list[Passage] = []
        for column in columns:
            value = record.get(column)
            if value is None:
                continue
            single = layout.name == "sentence-transformers"
            if not single and not isinstance(value, list):
                what, do = f"{role}s are not a list of passages", "put the passages in a list: [...]"
                raise Fault(what, f":{column}", value, do)
            for i, item in enumerate((value,) if single else value):
                try:
                    passages.append(passage_of(self._lookup.passage(item), role))
                except Fault as fault:
                    fault.field = f":{column}{'' if single else f'[{i}]'}{fault.field}"
                    raise
                if isinstance(item, dict) and not item.keys() <= PASSAGE_FIELDS:
                    self.unread |= item.keys() - PASSAGE_FIELDS
            scores = record.get(_SCORE_COLUMNS[column]) if column in _SCORE_COLUMNS else None
            if scores is not None:
                passages = scored(passages, scores, f":{_SCORE_COLUMNS[column]}")
        return passages

    def _layout_of(self, columns: tuple[str, ...], place: str) -> Layout:
        """Find the layout of a record whose columns differ from those of the record before."""
        found = detect_layout(columns, place)
        if found is None:
            if self.layout is None:
                raise DataError("layout not recognised", where=place, saw=list(columns), do=_ACCEPTED)
            if self.layout is not _PAIRS:
                self.unread.update(set(columns) - self.layout.known)
                return self.layout
            found = Layout("", "", "", ())
        first = self._check_same(found, place, columns)
        found = replace(found, query=first.query)
        self.unread.update(set(columns) - found.known)
        return found

    def _check_same(self, found: Layout, place: str, saw: Collection[Any]) -> Layout:
        """Refuse a record of another layout than the first one; return the first one's."""
        if self.layout is None:
            self.layout = found
        if (found.name, found.positive) != (self.layout.name, self.layout.positive):
            columns = "lists of texts" if self.layout is _PAIRS else f"`{self.layout.positive}`"
            what = f"the dataset starts in the {self.layout.name} layout, with {columns}; this row differs"
            do = "write every row in the same layout, or split the rows into two files"
            raise DataError(what, where=place, saw=list(saw), do=do)
        return self.layout
