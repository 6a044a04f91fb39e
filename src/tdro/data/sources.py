"""Find the files of a dataset and yield their records, each with its place (`file:line` or `file:row N`)."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tdro.data.beir import beir_records, count_beir, find_beir, is_beir
from tdro.data.delimited import DELIMITERS, delimited_records
from tdro.data.lines import decode, json_records
from tdro.errors import DataError
from tdro.files import read_json

_KINDS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_ACCEPTED = (
    "give a .jsonl, .json, .csv, .tsv (each also .gz) or .parquet file, a folder of them, "
    "a folder saved by datasets.save_to_disk, or a BEIR folder"
)
_SPLIT = re.compile(r"(?<![a-z])(train|dev|valid|validation|val|test|eval)(?![a-z])")
_TABLE_ROWS = 1_000  # rows of a table that are turned into Python objects at a time


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one dataset, all of one kind, in the order they are read.

    Args:
        kind: "jsonl", "csv", "tsv" (each also with ".gz"), "parquet", "arrow" (saved by `datasets.save_to_disk`) or
            "beir".
        files: At least one file; of a BEIR folder, corpus, queries and qrels.
    """

    kind: str
    files: tuple[Path, ...]

    def count(self) -> int:
        """Count the records without checking what is in them (a gzip file is unpacked for it)."""
        if self.kind == "beir":
            return count_beir(self.files[2])
        if self.kind in ("parquet", "arrow"):
            return sum(_count_table(file, self.kind) for file in self.files)
        return sum(1 for stream in self.streams() for _ in stream)

    def records(self, kept: Iterable[bool], numbers: Iterator[int] | None = None) -> Iterator[tuple[int, str, Any]]:
        """Yield number, place and content of every row that is kept.

        Args:
            kept: One bool per row, in order; reading ends with it.
            numbers: Where the rows' numbers are taken from; None counts from 1.

        Raises:
            DataError: A file cannot be read, or a kept line is not UTF-8 or not JSON.
        """
        units = (unit for stream in self.streams() for unit in stream)
        for (place, unit), number, keep in zip(units, numbers or count(1), kept, strict=False):
            if keep:
                yield number, place, decode(unit, place)

    def streams(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield, for each file, the places of its records and what `decode` turns into their contents.

        A stream that raises a DataError cannot be read any further; the next one can.
        """
        if self.kind == "beir":
            yield beir_records(*self.files)
        else:
            yield from (_units(file, self.kind) for file in self.files)


def find_source(path: Path) -> Source:
    """Find out what a path holds.

    Args:
        path: A data file, a folder of part files, a folder saved by `datasets.save_to_disk`, or a BEIR folder. The
            latter two may be followed by `#SPLIT`; the split of a BEIR folder is `train` where none is given.

    Raises:
        DataError: Nothing is there, or nothing that can be read as one dataset.

    Example:
        >>> find_source(Path("no-such-folder"))
        Traceback (most recent call last):
        tdro.errors.DataError: no such file or folder
          where: no-such-folder
          do:    check the path
    """
    try:
        if not path.exists() and "#" in path.name:
            folder, _, split = path.name.rpartition("#")
            return _split(path.with_name(folder), split)
        if not path.exists():
            raise _missing(path)
        if path.is_dir():
            return _folder(path)
    except (OSError, ValueError) as problem:  # rights, a name that is too long, a NUL character
        raise DataError("path cannot be looked at", where=path, saw=str(problem), do="check name and rights") from None
    kind = _kind(path)
    if kind is None:
        raise DataError("unknown kind of file", where=path, saw="".join(path.suffixes), do=_ACCEPTED)
    return Source(kind, (path,))


def _kind(file: Path) -> str | None:
    """Tell the kind of a file by its name; None where it is no data file."""
    name = file.name.lower()
    packed = ".gz" if name.endswith(".gz") else ""
    kind = next((kind for suffix, kind in _KINDS.items() if name.removesuffix(".gz").endswith(suffix)), None)
    return None if kind is None or (packed and kind == "parquet") else kind + packed


def _split(folder: Path, split: str) -> Source:
    """Find a split of a BEIR folder, or of several saved datasets."""
    if folder.is_dir() and is_beir(folder):
        return Source("beir", find_beir(folder, split))
    if (folder / "dataset_dict.json").is_file() and split and (folder / split).is_dir():
        return _folder(folder / split)
    if not folder.is_dir():
        raise _missing(folder)
    do = "leave #SPLIT out, or give a BEIR folder or a folder saved by datasets.save_to_disk"
    raise DataError("the folder has no such split", where=folder, saw=split, do=do)


def _missing(path: Path) -> DataError:
    """Say what exists instead of a path: the closest names beside it, or the part of the path that is there."""
    if path.is_symlink():
        do = "make the link again, or give the file itself"
        return DataError("symbolic link to nothing", where=path, saw=str(path.readlink()), do=do)
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
    if is_beir(folder):
        return Source("beir", find_beir(folder, "train"))
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in folder.iterdir() if child.is_dir())
        do = f"give the folder of one split, for example {folder / (splits[0] if splits else 'train')}"
        raise DataError("the folder holds several splits", where=folder, saw=splits, do=do)
    names = sorted(child.name for child in folder.iterdir())
    files = [folder / name for name in names if not name.startswith((".", "_")) and not (folder / name).is_dir()]
    kinds = {file: kind for file in files if (kind := _kind(file)) is not None}
    for file in kinds:
        if not file.exists():
            raise _missing(file)
    if not kinds:
        raise DataError("folder without data files", where=folder, saw=names, do=_ACCEPTED)
    if len(set(kinds.values())) > 1:
        saw, do = [file.name for file in kinds], "give one file, or keep files of one kind in the folder"
        raise DataError("the folder holds data files of several kinds", where=folder, saw=saw, do=do)
    splits = sorted({match for file in kinds for match in _SPLIT.findall(file.name.lower())})
    if len(splits) > 1:
        raise DataError("the folder holds several splits", where=folder, saw=splits, do="give one file, or several")
    return Source(next(iter(kinds.values())), tuple(kinds))


def _saved_dataset(folder: Path) -> Source:
    """Find the Arrow files of a folder written by `datasets.save_to_disk`."""
    state_file = folder / "state.json"
    try:
        state = read_json(state_file)
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
    """Yield the place and the content of every row of a file, for `decode`."""
    form, packed = kind.removesuffix(".gz"), kind.endswith(".gz")
    if form == "jsonl":
        yield from json_records(file, packed)
    elif form in DELIMITERS:
        yield from delimited_records(file, form, packed)
    else:
        yield from _table_records(file, kind)


def _table_records(file: Path, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of every row of a Parquet file or an Arrow stream."""
    number = 0
    for batch in _tables(file, kind):
        with _table_problems(file, number):
            records = batch.to_pylist()
        for record in records:
            number += 1
            yield f"{file}:row {number}", record


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
