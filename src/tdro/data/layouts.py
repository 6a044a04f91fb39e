"""Turn the records of a file into rows: which layout the file has, and what is wrong with a record.

| layout | query | positives | negatives |
|---|---|---|---|
| tevatron (tDRO) | `query` | `positive_passages` | `negative_passages` |
| flagembedding | `query` | `pos` | `neg` |
| sentence-transformers | `anchor` | `positive` | `negative`, `negative_1`, ... |

A passage is a plain string, or an object with `text` and, if there are any, `title` and `docid` (or `id`, `_id`).
In the first two layouts positives and negatives are lists of passages. In the third every column holds one text;
`query`, `question` and `sentence1` stand for `anchor`, `answer` and `sentence2` for `positive`.
`query_id` is optional. Other columns (FlagEmbedding's `pos_scores` and `prompt`, for example) are not read.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from tdro.data.records import Passage, Row
from tdro.errors import DataError

_LIST_COLUMNS = {"tevatron": ("positive_passages", "negative_passages"), "flagembedding": ("pos", "neg")}
_QUERY_COLUMNS = ("anchor", "query", "question", "sentence1")
_POSITIVE_COLUMNS = ("positive", "answer", "sentence2")
_LABEL_COLUMNS = ("label", "labels", "score", "scores")
_ID_FIELDS = ("docid", "id", "_id")
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
        name: "tevatron", "flagembedding" or "sentence-transformers".
        query: Column of the query.
        positive: Column of the positive(s).
        negatives: Columns of the negatives, in order.
        labels: Columns that tell whether query and positive belong together (sentence-transformers only).
    """

    name: str
    query: str
    positive: str
    negatives: tuple[str, ...]
    labels: tuple[str, ...] = ()


def detect_layout(columns: Collection[str], place: str) -> Layout | None:
    """Find the layout of a record with these columns; None where it is none of the three.

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
    if named:
        positive, negative = _LIST_COLUMNS[named[0]]
        layout = Layout(named[0], "query", positive, (negative,))
    else:
        queries = [column for column in _QUERY_COLUMNS if column in columns]
        positives = [column for column in _POSITIVE_COLUMNS if column in columns]
        if not positives:
            return None
        for kind, found in (("query", queries), ("positive", positives)):
            if len(found) > 1:
                do = "keep one of them, rename or remove the others"
                raise DataError(f"two columns could be the {kind}", where=place, saw=found, do=do)
        numbered = sorted((int(match[1] or -1), match[0]) for c in columns if (match := _NEGATIVE.fullmatch(c)))
        labels = tuple(column for column in _LABEL_COLUMNS if column in columns)
        query = queries[0] if queries else "query"
        layout = Layout("sentence-transformers", query, positives[0], tuple(c for _, c in numbered), labels)
    known = {layout.positive, *layout.negatives}
    strays = [c for c in columns if c not in known and _PASSAGE_LIKE.fullmatch(c) and not _ABOUT_PASSAGES.fullmatch(c)]
    if strays:
        what = f"the {layout.name} layout does not read these columns, which seem to hold passages"
        raise DataError(what, where=place, saw=strays, do=f"rename or remove them; {_ACCEPTED}")
    return layout


class RowParser:
    """Check the records of one dataset, one after the other, and turn them into rows.

    The first record decides the layout; a later record of another layout is an error. A missing query id becomes
    `name-number`; a missing passage id becomes a hash of the passage, so that the same passage has the same id
    wherever it comes from. Texts are kept as they are.

    Args:
        name: The dataset's name.

    Attributes:
        layout: The dataset's layout, once the first record was read.

    Example:
        >>> row = RowParser("nq").parse({"query": "who dances", "pos": ["bees"], "neg": []}, "nq.jsonl:1", 1)
        >>> row.query_id, row.positives[0].id, row.positives[0].text
        ('nq-1', '8debaa289b33d946', 'bees')
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.layout: Layout | None = None
        self._columns: tuple[str, ...] | None = None
        self._current = Layout("", "", "", ())

    def parse(self, record: Any, place: str, number: int) -> Row:
        """Check one record and return its row.

        Args:
            record: What the file holds there; an object, if the file is right.
            place: `file:line`, for errors.
            number: The row's number in the dataset, from 1.

        Raises:
            DataError: The record cannot be trained on; the message names the field, the value and what to do.
        """
        if not isinstance(record, dict):
            do = "write one JSON object per line (not one list around all rows)"
            raise DataError("not a JSON object", where=place, saw=record, do=do)
        if (columns := tuple(record)) != self._columns:
            self._current = self._layout_of(columns, place)
            self._columns = columns
        layout = self._current
        query = _query(record, layout.query, place)
        _check_labels(record, layout, place)
        positives = _passages(record, layout, (layout.positive,), place)
        if not positives:
            do = f"give at least one passage in `{layout.positive}`, or remove the row"
            raise DataError("row without positive", where=f"{place}:{layout.positive}", saw=record, do=do)
        negatives = _passages(record, layout, layout.negatives, place)
        query_id = _identifier(record.get("query_id"), f"{place}:query_id") or f"{self.name}-{number}"
        return Row(query_id, query, positives, negatives)

    def _layout_of(self, columns: tuple[str, ...], place: str) -> Layout:
        """Find the layout of a record whose columns differ from those of the record before."""
        found = detect_layout(columns, place)
        if self.layout is None:
            if found is None:
                raise DataError("layout not recognised", where=place, saw=list(columns), do=_ACCEPTED)
            self.layout = found
        if found is None:
            return self.layout
        if (found.name, found.positive) != (self.layout.name, self.layout.positive):
            what = f"the dataset starts in the {self.layout.name} layout, with `{self.layout.positive}`"
            do = "write every row in the same layout, or split the rows into two datasets"
            raise DataError(f"{what}; this row differs", where=place, saw=list(columns), do=do)
        return replace(found, query=self.layout.query)


def _query(record: dict[str, Any], column: str, place: str) -> str:
    """Return the query, checked."""
    where = f"{place}:{column}"
    query = record.get(column)
    if query is None:
        raise DataError("row without query", where=where, saw=record, do=f"give `{column}`, or remove the row")
    if not isinstance(query, str):
        raise DataError("query is not a string", where=where, saw=query, do="write it as text, or remove the row")
    if not query or query.isspace():
        raise DataError("query is empty", where=where, saw=query, do="write the query, or remove the row")
    return _storable(query, where)


def _check_labels(record: dict[str, Any], layout: Layout, place: str) -> None:
    """Refuse rows whose label or score is not 1: such a pair may be a negative, or half a positive."""
    for column in layout.labels:
        value = record.get(column)
        if value is not None and value != 1:
            what = f"`{column}` says that this may not be a positive pair; tdro trains on positives only"
            do = f"keep the rows whose texts belong together and remove the column `{column}`"
            raise DataError(what, where=f"{place}:{column}", saw=value, do=do)


def _passages(record: dict[str, Any], layout: Layout, columns: tuple[str, ...], place: str) -> tuple[Passage, ...]:
    """Return the passages of these columns, in order; an absent or null column has none."""
    role = "positive" if columns == (layout.positive,) else "negative"
    passages: list[Passage] = []
    for column in columns:
        value = record.get(column)
        if value is None:
            continue
        if layout.name == "sentence-transformers":
            passages.append(_passage(value, role, f"{place}:{column}"))
        elif isinstance(value, list):
            passages += [_passage(item, role, f"{place}:{column}[{i}]") for i, item in enumerate(value)]
        else:
            what = f"{role}s are not a list of passages"
            raise DataError(what, where=f"{place}:{column}", saw=value, do="put the passages in a list: [...]")
    return tuple(passages)


def _passage(value: Any, role: str, where: str) -> Passage:
    """Return one passage, checked."""
    identifier, title, text = None, "", value
    if isinstance(value, dict):
        given = next((field for field in _ID_FIELDS if value.get(field) is not None), "docid")
        identifier = _identifier(value.get(given), f"{where}.{given}")
        title = _title(value.get("title"), f"{where}.title")
        text, where = value.get("text"), f"{where}.text"
    elif not isinstance(value, str):
        do = 'write the passage as text or as {"docid": ..., "title": ..., "text": ...}, or remove it'
        raise DataError(f"{role} is neither text nor an object with text", where=where, saw=value, do=do)
    if not isinstance(text, str):
        saw = value if text is None else text
        raise DataError(f"{role} without text", where=where, saw=saw, do="write the text, or remove the passage")
    if not text or text.isspace():
        raise DataError(f"text of a {role} is empty", where=where, saw=text, do="write the text, or remove the passage")
    passage = Passage(identifier or "", title, _storable(text, where))
    return passage if identifier else Passage(_content_id(passage), title, text)


def _title(title: Any, where: str) -> str:
    """Return the title, checked; empty where there is none."""
    if title is None:
        return ""
    if not isinstance(title, str):
        raise DataError("title is not a string", where=where, saw=title, do="write the title as text, or leave it out")
    return _storable(title, where)


def _content_id(passage: Passage) -> str:
    """Hash the text that is encoded into 16 hexadecimal digits."""
    return blake2b(passage.full_text.encode(), digest_size=8).hexdigest()


def _identifier(value: Any, where: str) -> str | None:
    """Return an id as text; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _storable(value, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError("id is neither text nor a whole number", where=where, saw=value, do="write the id as text")


def _storable(text: str, where: str) -> str:
    """Return the text, unless it holds half of a surrogate pair, which UTF-8 cannot store."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as problem:
            do = f"remove or repair character {problem.start + 1}, usually half of an emoji"
            raise DataError("text is not valid Unicode", where=where, saw=text, do=do) from None
    return text
