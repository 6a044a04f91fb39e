"""Find the files of a dataset and yield their records, each with its place (`file:line` or `file:row N`)."""

import codecs
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tdro.errors import DataError

_KINDS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".parquet": "parquet",
}
_ACCEPTED = "give a .jsonl, .jsonl.gz or .parquet file, a folder of them, or a folder saved by datasets.save_to_disk"
_SPLIT = re.compile(r"(?<![a-z])(train|dev|valid|validation|val|test|eval)(?![a-z])")
_TABLE_ROWS = 1_000  # rows of a table that are turned into Python objects at a time


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one dataset, all of one kind, in the order they are read.

    Args:
        kind: "jsonl", "jsonl.gz", "parquet" or "arrow" (saved by `datasets.save_to_disk`).
        files: At least one file.
    """

    kind: str
    files: tuple[Path, ...]

    def count(self) -> int:
        """Count the rows without reading what is in them (a gzip file is unpacked for it)."""
        if self.kind in ("jsonl", "jsonl.gz"):
            return sum(1 for file in self.files for _ in _lines(file, self.kind))
        return sum(_count_table(file, self.kind) for file in self.files)

    def records(self, kept: Iterable[bool]) -> Iterator[tuple[int, str, Any]]:
        """Yield number (from 1), place and content of every row that is kept.

        Args:
            kept: One bool per row, in order; reading ends with it.

        Raises:
            DataError: A file cannot be read, or a kept line is not UTF-8 or not JSON.
        """
        units = (unit for file in self.files for unit in _units(file, self.kind))
        for number, ((place, unit), keep) in enumerate(zip(units, kept, strict=False), start=1):
            if keep:
                yield number, place, _decode(unit, place) if isinstance(unit, bytes) else unit


def find_source(path: Path) -> Source:
    """Find out what a path holds.

    Args:
        path: A data file, a folder of part files, or a folder saved by `datasets.save_to_disk`.

    Raises:
        DataError: Nothing is there, or nothing that can be read as one dataset.

    Example:
        >>> find_source(Path("no-such-folder"))
        Traceback (most recent call last):
        tdro.errors.DataError: no such file or folder
          where: no-such-folder
          do:    check the path
    """
    if not path.exists():
        raise _missing(path)
    if path.is_dir():
        return _folder(path)
    kind = _kind(path)
    if kind is None:
        raise DataError("unknown kind of file", where=path, saw="".join(path.suffixes), do=_ACCEPTED)
    return Source(kind, (path,))


def _kind(file: Path) -> str | None:
    """Tell the kind of a file by its name; None where it is no data file."""
    name = file.name.lower()
    return next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), None)


def _missing(path: Path) -> DataError:
    """Say what exists instead of a path: the closest names beside it, or the part of the path that is there."""
    do = "check the path"
    if path.parent.is_dir():
        names = sorted(other.name for other in path.parent.iterdir())
        close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
        if close:
            do = f"did you mean {' or '.join(str(path.parent / name) for name in close)}?"
    else:
        there = next((parent for parent in path.parents if parent.is_dir()), None)
        do = f"check the path; it exists as far as {there}"
    return DataError("no such file or folder", where=path, do=do)


def _folder(folder: Path) -> Source:
    """Find the data files of a folder."""
    if (folder / "state.json").is_file():
        return _saved_dataset(folder)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in folder.iterdir() if child.is_dir())
        do = f"give the folder of one split, for example {folder / (splits[0] if splits else 'train')}"
        raise DataError("the folder holds several splits", where=folder, saw=splits, do=do)
    names = sorted(child.name for child in folder.iterdir())
    files = [folder / name for name in names if not name.startswith((".", "_")) and (folder / name).is_file()]
    kinds = {file: kind for file in files if (kind := _kind(file)) is not None}
    if not kinds:
        raise DataError("folder without data files", where=folder, saw=names, do=_ACCEPTED)
    if len(set(kinds.values())) > 1:
        saw, do = [file.name for file in kinds], "give one file, or keep files of one kind in the folder"
        raise DataError("the folder holds data files of several kinds", where=folder, saw=saw, do=do)
    splits = sorted({match for file in kinds for match in _SPLIT.findall(file.name.lower())})
    if len(splits) > 1:
        raise DataError("the folder holds several splits", where=folder, saw=splits, do="give one file")
    return Source(next(iter(kinds.values())), tuple(kinds))


def _saved_dataset(folder: Path) -> Source:
    """Find the Arrow files of a folder written by `datasets.save_to_disk`."""
    state_file = folder / "state.json"
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
        files = tuple(folder / part["filename"] for part in state["_data_files"])
        selected = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        do = "save the dataset again with datasets.save_to_disk"
        raise DataError("not a saved dataset", where=state_file, saw=repr(problem), do=do) from None
    if selected:
        do = "load it, call flatten_indices() and save it again"
        raise DataError("the saved dataset is a selection of its rows", where=state_file, saw=selected, do=do)
    for file in files:
        if not file.exists():
            raise _missing(file)
    return Source("arrow", files)


def _units(file: Path, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of every row of a file: the bytes of a line, or a dict from a table."""
    if kind in ("jsonl", "jsonl.gz"):
        yield from _lines(file, kind)
        return
    number = 0
    for batch in _tables(file, kind):
        with _table_problems(file, number):
            records = batch.to_pylist()
        for record in records:
            number += 1
            yield f"{file}:row {number}", record


def _lines(file: Path, kind: str) -> Iterator[tuple[str, bytes]]:
    """Yield the place and the bytes of every line that is not blank, without a byte order mark, unpacked."""
    number = 0
    what, do = "file cannot be read", "check its rights and its disk"
    try:
        with file.open("rb") as raw:
            packed = kind == "jsonl.gz" or raw.peek(2).startswith(b"\x1f\x8b")
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                line = line.rstrip()
                if line:
                    yield f"{file}:{number}", line
        return
    except EOFError:
        what, do, saw = "gzip file ends too early", "the file is cut off: copy or write it again", None
    except (gzip.BadGzipFile, zlib.error) as problem:
        what, do = "not a gzip file, or a damaged one", "write it again, or name it .jsonl if it is not packed"
        saw = str(problem)
    except OSError as problem:
        saw = str(problem)
    raise DataError(what, where=f"{file}:{number + 1}" if number else file, saw=saw, do=do)


def _decode(line: bytes, place: str) -> Any:
    """Read one line of JSON."""
    try:
        text = line.decode()
    except UnicodeDecodeError as problem:
        near = line[max(0, problem.start - 30) : problem.start + 30]
        do = f"save the file as UTF-8; byte {problem.start + 1} of the line is not"
        raise DataError("not UTF-8", where=place, saw=near, do=do) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        what = f"not JSON: {problem.msg} at column {problem.pos + 1}"
        saw = text[max(0, problem.pos - 30) : problem.pos + 30]
    except (ValueError, RecursionError) as problem:
        what, saw = f"not JSON that can be read: {problem}", text
    raise DataError(what, where=place, saw=saw, do="write one JSON object per line")


def _tables(file: Path, kind: str) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file or an Arrow stream in batches of at most `_TABLE_ROWS` rows."""
    with _table_problems(file):
        if kind == "parquet":
            with pq.ParquetFile(file, memory_map=True, pre_buffer=False) as table:
                yield from table.iter_batches(_TABLE_ROWS)
            return
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, _TABLE_ROWS):
                    yield batch.slice(start, _TABLE_ROWS)


def _count_table(file: Path, kind: str) -> int:
    """Count the rows of a Parquet file or an Arrow stream."""
    with _table_problems(file):
        if kind == "parquet":
            return int(pq.read_metadata(file).num_rows)
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            return sum(batch.num_rows for batch in stream)


@contextmanager
def _table_problems(file: Path, number: int | None = None) -> Iterator[None]:
    """Report what pyarrow raises, with the file and, where known, the rows that come after row `number`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as problem:
        where = file if number is None else f"{file}:row {number + 1} or one of the next {_TABLE_ROWS}"
        raise DataError("file cannot be read", where=where, saw=str(problem), do="write the file again") from None
