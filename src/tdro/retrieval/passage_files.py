"""Files of passages: which they are, in which order, and what a record must look like."""

import re
from pathlib import Path
from typing import Any

from tdro.data.beir import is_beir
from tdro.data.records import Passage
from tdro.data.sources import Source, find_source
from tdro.errors import DataError

_ID_FIELDS = ("_id", "docid", "id")


def find_passages(path: Path) -> Source:
    """Find the files of passages behind a path.

    Args:
        path: A `.jsonl`, `.jsonl.gz` or `.parquet` file; a folder of them, read in the order of the numbers in their
            names (`docs-2.jsonl.gz` before `docs-10.jsonl.gz`, as in MIRACL); or a BEIR folder, of which the corpus is
            read.

    Raises:
        DataError: Nothing is there that can be read.
    """
    if path.is_dir() and is_beir(path):
        packed, plain = path / "corpus.jsonl.gz", path / "corpus.jsonl"
        return find_source(packed if packed.is_file() and not plain.is_file() else plain)
    source = find_source(path)
    return Source(source.kind, tuple(sorted(source.files, key=_by_number))) if path.is_dir() else source


def passage_of(record: Any, place: str) -> Passage:
    """Check one record of a file of passages; the id is empty where the record has none.

    Raises:
        DataError: It is no passage.
    """
    if not isinstance(record, dict):
        do = 'write an object per line: {"id": ..., "title": ..., "text": ...}'
        raise DataError("passage is not an object", where=place, saw=record, do=do)
    text, title, name = record.get("text"), record.get("title"), id_field(record)
    if not isinstance(text, str):
        do = "write the text of the passage, or remove the record"
        raise DataError("passage without text", where=f"{place}:text", saw=text, do=do)
    if title is not None and not isinstance(title, str):
        do = "write the title as text, or leave it out"
        raise DataError("title is not a string", where=f"{place}:title", saw=title, do=do)
    identifier = record.get(name)
    if identifier is not None and (isinstance(identifier, bool) or not isinstance(identifier, str | int)):
        do = "write the id as text"
        raise DataError("id is neither text nor a whole number", where=f"{place}:{name}", saw=identifier, do=do)
    passage = Passage("" if identifier is None else str(identifier), title or "", text)
    for field, value in ((name, passage.id), ("text", text), ("title", passage.title)):
        if not value.isascii():
            _refuse_half_characters(value, f"{place}:{field}")
    return passage


def id_field(record: dict[str, Any]) -> str:
    """Name the field that has the id of a record."""
    return next((name for name in _ID_FIELDS if record.get(name) not in (None, "")), "id")


def _refuse_half_characters(value: str, where: str) -> None:
    """Refuse text that cannot be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        do = "remove or repair half an emoji"
        raise DataError("text is not valid Unicode", where=where, saw=value, do=do) from None


def _by_number(file: Path) -> list[tuple[int, str]]:
    """Order names so that the numbers in them count, not their digits."""
    parts = re.split(r"([0-9]+)", file.name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
