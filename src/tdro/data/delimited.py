"""Read tables in text files: a first line that names the columns, then one row per record, cells apart by , or tab."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdro.data.layouts import detect_layout
from tdro.data.lines import LONGEST_LINE, as_text, numbered_lines
from tdro.errors import DataError

DELIMITERS = {"csv": ",", "tsv": "\t"}
_HEADER = "let the first line name the columns, for example query,positive,negative"


def delimited_records(file: Path, kind: str, packed: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield `file:line` and content of every record of a table in a text file.

    A record is a dict as from a sentence-transformers table. An empty cell is null. Cells that hold the delimiter,
    a quote or a line end stand in quotes, and a quote in them is doubled.

    Args:
        file: The file.
        kind: "csv" or "tsv".
        packed: Unpack it, even if it does not begin like a gzip file.

    Yields:
        The place where the record begins and the dict, or a DataError where the number of cells is wrong.

    Raises:
        DataError: The file cannot be read any further.
    """
    csv.field_size_limit(max(LONGEST_LINE, csv.field_size_limit()))
    reader = csv.reader(_texts(file, packed), delimiter=DELIMITERS[kind], strict=True)
    header: list[str] = []
    labels: tuple[str, ...] = ()
    while True:
        place = f"{file}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            do = "close every quote, and double the quotes inside a quoted cell"
            raise DataError(f"not a {kind} table: {problem}", where=place, do=do) from None
        if cells is None:
            return
        if not any(cells):
            continue
        if not header:
            header = [name.strip() for name in cells]
            labels = _labels(header, place)
        elif len(cells) != len(header):
            do = f"give every row the {len(header)} cells of the first line, in quotes where one holds a delimiter"
            yield place, DataError(f"row of {len(cells)} cells, not {len(header)}", where=place, saw=cells, do=do)
        else:
            record: dict[str, Any] = {name: cell or None for name, cell in zip(header, cells, strict=True)}
            for label in labels:
                record[label] = _number(record[label])
            yield place, record


def _texts(file: Path, packed: bool) -> Iterator[str]:
    """Yield the lines of a text file."""
    for number, line in numbered_lines(file, packed):
        place = f"{file}:{number}"
        if b"\0" in line:
            do = "save the file as UTF-8 text; a NUL byte means UTF-16, or no text at all"
            raise DataError("NUL byte in a text file", where=place, saw=line[:60], do=do)
        yield as_text(line, place)


def _labels(header: list[str], place: str) -> tuple[str, ...]:
    """Check the names of the columns; return those of labels."""
    if len(set(header)) < len(header):
        raise DataError("two columns have the same name", where=place, saw=header, do="rename one of them")
    layout = detect_layout(header, place)
    if layout is None:
        raise DataError("the first line does not name the columns", where=place, saw=header, do=_HEADER)
    if layout.name != "sentence-transformers":
        what = f"a table of texts cannot hold the lists of the {layout.name} layout"
        raise DataError(what, where=place, saw=header, do=_HEADER)
    return layout.labels


def _number(cell: str | None) -> float | str | None:
    """Return a cell as a number where it is one."""
    try:
        return None if cell is None else float(cell)
    except ValueError:
        return cell
