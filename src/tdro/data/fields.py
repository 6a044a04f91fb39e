"""The fields of a record, each checked: query, passages, scores, ids. A fault names the field; the caller the place."""

import math
from collections.abc import Collection
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from tdro.data.records import Passage

_ID_FIELDS = ("docid", "id", "_id")
PASSAGE_FIELDS = frozenset((*_ID_FIELDS, "title", "text", "score", "rank", "model"))
"""What is read of a passage that is an object."""


class Fault(Exception):
    """What is wrong with a field of a record; the place of the record is added where it is known."""

    def __init__(self, what: str, field: str, saw: Any, do: str) -> None:
        super().__init__(what)
        self.what, self.field, self.saw, self.do = what, field, saw, do


def query_of(record: dict[str, Any], column: str) -> str:
    """Return the query, checked."""
    query = record.get(column)
    if query is None:
        raise Fault("row without query", f":{column}", record, f"give `{column}`, or remove the row")
    return _query_text(query, f":{column}")


def _query_text(query: Any, field: str) -> str:
    """Return the text of a query, checked."""
    if not isinstance(query, str):
        raise Fault("query is not a string", field, query, "write it as text, or remove the row")
    if not query or query.isspace():
        raise Fault("query is empty", field, query, "write the query, or remove the row")
    return _storable(query, field)


def check_labels(record: dict[str, Any], columns: Collection[str]) -> None:
    """Refuse rows whose label or score is not 1: such a pair may be a negative, or half a positive."""
    for column in columns:
        value = record.get(column)
        if value is not None and value != 1:
            what = f"`{column}` says that this may not be a positive pair; tdro trains on positives only"
            do = f"keep the rows whose texts belong together and remove the column `{column}`"
            raise Fault(what, f":{column}", value, do)


def set_of(record: dict[str, Any], column: str) -> tuple[str, list[Passage]]:
    """Return the first text of a set and the others, or the two texts of a pair."""
    texts = record.get(column)
    if not isinstance(texts, list):
        raise Fault("not a list of texts", f":{column}", texts, "write the texts in a list: [...]")
    if column == "texts" and len(texts) > 2:
        do = "rename `texts` to `set` if all belong together; use anchor, positive, negative if the last ones do not"
        raise Fault("`texts` of more than two could be a set or a triplet", ":texts", texts, do)
    return spread(texts, f":{column}", "positive")


def spread(texts: list[Any], field: str = ":", others: str = "negative") -> tuple[str, list[Passage]]:
    """Return the first text of a list, and the others as passages: a positive, then those of role `others`."""
    if len(texts) < 2:
        raise Fault("fewer than two texts", field.rstrip(":"), texts, "give a query and a text that answers it")
    passages: list[Passage] = []
    for i, text in enumerate(texts[1:], start=1):
        try:
            passages.append(passage_of(text, "positive" if i == 1 else others))
        except Fault as fault:
            fault.field = f"{field}[{i}]{fault.field}"
            raise
    return _query_text(texts[0], f"{field}[0]"), passages


def passage_of(value: Any, role: str) -> Passage:
    """Return one passage, checked."""
    if isinstance(value, str):
        text = _passage_text(value, value, role, "")
        return Passage(_content_id(text), "", text)
    if not isinstance(value, dict):
        do = 'write the passage as text or as {"docid": ..., "title": ..., "text": ...}, or remove it'
        raise Fault(f"{role} is neither text nor an object with text", "", value, do)
    identifier = None
    for given in _ID_FIELDS:
        if (found := value.get(given)) is not None:
            identifier = identifier_of(found, f".{given}")
            break
    title = optional_text(value.get("title"), "title", ".title")
    text = _passage_text(value.get("text"), value, role, ".text")
    score, rank = value.get("score"), value.get("rank")
    if score is not None:
        score = _score(score, ".score")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool)):
        raise Fault("rank is not a whole number", ".rank", rank, "count ranks from 0, or leave them out")
    model = optional_text(value.get("model"), "model", ".model")
    if not identifier:
        identifier = _content_id(f"{title} {text}" if title else text)
    return Passage(identifier, title, text, score, rank, model)


def _passage_text(text: Any, value: Any, role: str, field: str) -> str:
    """Return the text of a passage, checked."""
    if not isinstance(text, str):
        saw = value if text is None else text
        raise Fault(f"{role} without text", field, saw, "write the text, or remove the passage")
    if not text or text.isspace():
        raise Fault(f"text of a {role} is empty", field, text, "write the text, or remove the passage")
    return _storable(text, field)


def id_of(record: dict[str, Any]) -> Any:
    """Return the id of a document or query of BEIR."""
    return record.get("_id", record.get("id"))


def passage_fields(record: dict[str, Any]) -> dict[str, Any]:
    """Return a document as a passage in the tevatron layout; one that has a title only has it as its text."""
    title, text = record.get("title"), record.get("text")
    if text in ("", None) and isinstance(title, str) and title:
        title, text = None, title
    return {"docid": id_of(record), "title": title, "text": text}


def optional_text(value: Any, what: str, field: str) -> str:
    """Return a text that may be absent, checked; empty where there is none."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Fault(f"{what} is not a string", field, value, f"write the {what} as text, or leave it out")
    return _storable(value, field)


def _score(value: Any, field: str) -> float:
    """Return a score, checked."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond the range of float
        pass
    raise Fault("score is not a finite number", field, value, "write it as a number, or leave it out")


def scored(passages: list[Passage], scores: Any, field: str) -> list[Passage]:
    """Give passages the scores of a column beside them; null for none."""
    if not isinstance(scores, list) or len(scores) != len(passages):
        what = f"scores are not a list of as many as there are passages ({len(passages)})"
        raise Fault(what, field, scores, "give one number per passage, or leave the column out")
    return [
        passage if score is None else replace(passage, score=_score(score, f"{field}[{i}]"))
        for i, (passage, score) in enumerate(zip(passages, scores, strict=True))
    ]


def _content_id(full_text: str) -> str:
    """Hash the text that is encoded into 16 hexadecimal digits."""
    return blake2b(full_text.encode(), digest_size=8).hexdigest()


def is_made(passage: Passage) -> bool:
    """Tell whether the passage's id is the one that a passage without id gets."""
    return passage.id == _content_id(passage.full_text)


def identifier_of(value: Any, field: str) -> str | None:
    """Return an id as text; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _storable(value, field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Fault("id is neither text nor a whole number", field, value, "write the id as text")


def _storable(text: str, field: str) -> str:
    """Return the text, unless it holds half of a surrogate pair, which UTF-8 cannot store."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as problem:
            do = f"remove or repair character {problem.start + 1}, usually half of an emoji"
            raise Fault("text is not valid Unicode", field, text, do) from None
    return text
