"""Files with the texts of queries and passages, for rows that have ids only."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import IO, Any

from tdro.data.beir import is_beir
from tdro.data.lines import as_text, is_list_of_rows, numbered_lines
from tdro.data.lookup import PASSAGE_IDS, QUERY_IDS, Lookup
from tdro.data.sources import Source, find_source
from tdro.data.texts_by_id import TextsById
from tdro.errors import DataError

_HEADERS = {*PASSAGE_IDS, *QUERY_IDS, "doc_id", "pid", "qid"}
_CELLS = {2: ("id", "text"), 3: ("id", "title", "text")}
_FORM = 'write objects such as {"docid": ..., "title": ..., "text": ...}, or lines of id, tab and text'


@dataclass(frozen=True)
class Collections:
    """Where the texts of queries and passages are; None where the rows have them.

    A collection is a `.jsonl`, `.json`, `.tsv` (each also `.gz`) or `.parquet` file, a folder of them, a folder saved
    by `datasets.save_to_disk`, or a BEIR folder, of which the queries or the corpus are read. A record has an id
    (`docid` or `query_id`, `_id`, `id`), a `text` (of a query also `query`) and perhaps a `title`. A line of a `.tsv`
    is id, tab, text, or id, tab, title, tab, text; or as a first line says that begins with the name of the id.
    """

    queries: str | Path | None = None
    passages: str | Path | None = None

    @property
    def given(self) -> dict[str, Source]:
        """The files: "queries", "passages" -> source.

        Raises:
            DataError: They are not there, or of another kind.
        """
        named = (("queries", self.queries, "queries"), ("passages", self.passages, "corpus"))
        return {name: _find(Path(path), part) for name, path, part in named if path is not None}


IN_THE_ROWS = Collections()
"""No collections: the rows have the texts."""


@contextmanager
def open_lookup(collections: Collections) -> Iterator[Lookup]:
    """Index collections, for as long as a `with` block lasts.

    In memory are 16 bytes per text, and twice as many while they are indexed. What is no file of JSON lines is written
    as such into a temporary file.

    Raises:
        DataError: A collection cannot be read, or an id occurs twice or is missing.
    """
    fields = {"queries": QUERY_IDS, "passages": PASSAGE_IDS}
    with ExitStack() as stack:
        given = collections.given.items()
        yield Lookup(**{name: stack.enter_context(_texts(source, fields[name])) for name, source in given})


def _find(path: Path, part: str) -> Source:
    """Find the files of a collection."""
    if path.is_dir() and is_beir(path):
        packed, plain = path / f"{part}.jsonl.gz", path / f"{part}.jsonl"
        return find_source(packed if packed.is_file() and not plain.is_file() else plain)
    source = find_source(path)
    if source.kind.startswith("csv") or source.kind == "beir":
        raise DataError("texts by id are not read from this kind of file", where=path, saw=source.kind, do=_FORM)
    return source


def _texts(source: Source, id_fields: Sequence[str]) -> TextsById:
    """Open a collection: plain or packed JSON lines as they are, all else through a temporary file."""
    file = source.files[0]
    if len(source.files) == 1 and source.kind.startswith("jsonl") and not is_list_of_rows(file):
        return TextsById(file, id_fields)
    where = file if len(source.files) == 1 else file.parent

    def place_of(number: int) -> str:
        return next(islice(_records(source), number - 1, None))[0]

    return TextsById(where, id_fields, _spooled(source), place_of)


def _spooled(source: Source) -> IO[bytes]:
    """Write the records of a collection as JSON lines into a temporary file."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        for place, record in _records(source):
            try:
                spool.write(json.dumps(record).encode() + b"\n")
            except TypeError:
                raise DataError("record is not text and numbers", where=place, saw=record, do=_FORM) from None
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool


def _records(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield place and content of every record of a collection."""
    if source.kind.startswith("tsv"):
        for file in source.files:
            yield from _tab_separated(file, source.kind.endswith(".gz"))
    else:
        yield from ((place, record) for _, place, record in source.records(repeat(True)))


def _tab_separated(file: Path, packed: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place and content of every line of a file without quotes: id, tab, text."""
    names: tuple[str, ...] = ()
    for number, line in numbered_lines(file, packed):
        place = f"{file}:{number}"
        cells = as_text(line, place).rstrip("\r\n").split("\t")
        if not any(cells):
            continue
        if not names:
            has_header = cells[0].strip().lower() in _HEADERS
            names = tuple(cell.strip().lower() for cell in cells) if has_header else _CELLS.get(len(cells), ())
            if not {"text", "query"} & set(names):
                raise DataError("line is not id, tab, text", where=place, saw=cells, do=_FORM)
            if has_header:
                continue
        if len(cells) != len(names):
            do = "write a tab between the cells and nowhere else"
            raise DataError(f"line of {len(cells)} cells, not {len(names)}", where=place, saw=cells, do=do)
        yield place, {**dict(zip(names[1:], cells[1:], strict=True)), "_id": cells[0]}
