"""Keep rows on disk in Arrow files that are memory-mapped, and scores beside them; one folder per fingerprint."""

import copy
import hashlib
import operator
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import BinaryIO, SupportsIndex
from uuid import uuid4

import numpy as np
import pyarrow as pa

from tdro.data.records import DatasetInfo, Passage, Row
from tdro.data.scores import ScoreTable, ScoreWriter
from tdro.errors import EnvironmentProblem
from tdro.files import atomic_path, read_json, temporary_name, write_json

_BATCH_ROWS = 5_000
_ROWS_AT_ONCE = 100  # rows that iteration holds at a time
_BATCH_CHARACTERS = 16_000_000
_PASSAGES = pa.list_(pa.struct([(field, pa.string()) for field in ("id", "title", "text")]))
_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("query", pa.string()), ("positives", _PASSAGES), ("negatives", _PASSAGES)]
)


class Rows:
    """The rows of one dataset, on disk: random access and iteration in memory that does not grow with their number.

    `rows[i]` reads one row (a negative `i` counts from the end); iteration is in file order.

    Attributes:
        info: Name, path, layout, number of rows and fingerprint.
        source: The rows that these were selected from; the rows themselves where nothing was selected.
        numbers_n: int64, the number of each row in `source`.
        scores: What the passages of `source` were scored; None where none was.
    """

    def __init__(self, info: DatasetInfo, batches: list[pa.RecordBatch], scores: Path | None = None) -> None:
        self.info = info
        self._columns = [batch.columns for batch in batches]
        self._starts = list(accumulate((batch.num_rows for batch in batches), initial=0))
        self.source = self
        self.numbers_n = np.arange(self._starts[-1])
        self.scores = ScoreTable(scores, self.positive_count_n + self.negative_count_n) if scores else None

    def select(self, numbers_n: np.ndarray) -> "Rows":
        """Return some of the rows, in the order given; nothing is copied.

        Args:
            numbers_n: Row numbers, at least one.
        """
        chosen = copy.copy(self)
        chosen.numbers_n = self.numbers_n[numbers_n]
        digest = hashlib.blake2b(chosen.numbers_n.astype("<i8").tobytes(), digest_size=16).hexdigest()
        fingerprint = f"{self.source.info.fingerprint}:{digest}"
        chosen.info = replace(self.info, rows=len(chosen.numbers_n), fingerprint=fingerprint)
        return chosen

    def __len__(self) -> int:
        return self.info.rows

    def __getitem__(self, i: SupportsIndex) -> Row:
        number = operator.index(i)
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(f"row {operator.index(i)} of {self.info.name}, which has {len(self)} rows")
        number = int(self.numbers_n[number])
        found = bisect_right(self._starts, number) - 1
        query_id, query, positives, negatives = self._columns[found]
        at = number - self._starts[found]
        return Row(query_id[at].as_py(), query[at].as_py(), _unpack(positives[at]), _unpack(negatives[at]))

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            numbers = self.numbers_n[start : start + _ROWS_AT_ONCE]
            if (np.diff(numbers) == 1).all():  # neighbours are unpacked together, three times as fast as one by one
                for columns, part in self._parts(int(numbers[0]), int(numbers[-1]) + 1):
                    texts = [column[part].to_pylist() for column in columns[:2]]
                    yield from map(Row, *texts, *(_unpack_all(column[part]) for column in columns[2:]))
            else:
                yield from map(self.__getitem__, range(start, start + len(numbers)))

    @property
    def queries_n(self) -> np.ndarray:
        """The query texts, without reading the passages."""
        texts = np.concatenate([query.to_numpy(zero_copy_only=False) for _, query, _, _ in self._columns])
        return texts[self.numbers_n]

    def query_texts(self, start: int, end: int) -> list[str]:
        """Return the queries of rows `start` to `end` - 1 of `source`, reading nothing else."""
        return [text for columns, part in self._parts(start, end) for text in columns[1][part].to_pylist()]

    def passage_texts(self, start: int, end: int) -> list[str]:
        """Return the passages of rows `start` to `end` - 1 of `source` as `full_text`.

        They are laid end to end, row by row, positives before negatives. Ten times as fast as reading the rows.
        """
        texts: list[str] = []
        for (_, _, positives, negatives), part in self._parts(start, end):
            cells = positives[part], negatives[part]
            row_P = np.concatenate([np.repeat(np.arange(len(c)), np.diff(c.offsets.to_numpy())) for c in cells])
            by_column = _full_texts(cells[0].flatten()) + _full_texts(cells[1].flatten())
            texts += [by_column[place] for place in np.argsort(row_P, kind="stable").tolist()]
        return texts

    def queries_at(self, row_B: np.ndarray) -> list[str]:
        """Return the queries of some rows of `source`, in the order given; nothing else is read."""
        texts = [""] * len(row_B)
        for columns, here_B, at_B in self._found(row_B):
            _put(texts, here_B, columns[1].take(pa.array(at_B)).to_pylist())
        return texts

    def passages_at(self, row_P: np.ndarray, place_P: np.ndarray) -> list[str]:
        """Return some passages of `source` as `full_text`, in the order given; nothing else is read.

        Args:
            row_P: Row of each passage.
            place_P: Where it stands in its row, positives first, then negatives, counted from 0.
        """
        texts = [""] * len(row_P)
        for (_, _, *sides), here_P, at_P in self._found(row_P):
            left_P = place_P[here_P]
            for passages in sides:
                start_n = passages.offsets.to_numpy()
                first_P, count_P = start_n[at_P], start_n[at_P + 1] - start_n[at_P]
                mine_P = (left_P >= 0) & (left_P < count_P)
                found = passages.values.take(pa.array((first_P + left_P)[mine_P]))
                _put(texts, here_P[mine_P], _full_texts(found))
                left_P = left_P - count_P  # what is left are negatives; a positive's place falls below 0
        return texts

    def _found(self, row_B: np.ndarray) -> Iterator[tuple[list[pa.Array], np.ndarray, np.ndarray]]:
        """Yield the columns of each batch that holds some of the rows, which of the rows, and where they are in it."""
        batch_B = np.searchsorted(self._starts, row_B, side="right") - 1
        for batch in np.unique(batch_B).tolist():
            here_B = np.flatnonzero(batch_B == batch)
            yield self._columns[batch], here_B, row_B[here_B] - self._starts[batch]

    def _parts(self, start: int, end: int) -> Iterator[tuple[list[pa.Array], slice]]:
        """Yield the columns of each batch that rows `start` to `end` - 1 of `source` touch, and where they lie."""
        first = bisect_right(self._starts, start) - 1
        for columns, before in zip(self._columns[first:], self._starts[first:], strict=False):
            if before >= end:
                break
            yield columns, slice(max(start - before, 0), min(end - before, len(columns[0])))

    @property
    def without_negatives(self) -> int:
        """Number of rows that have no negative."""
        return int((self.negative_count_n == 0).sum())

    @property
    def without_scores(self) -> int:
        """Number of rows with a passage that has no score, or with scores of several models."""
        return len(self) if self.scores is None else int((~self.scores.complete_n[self.numbers_n]).sum())

    @property
    def positive_count_n(self) -> np.ndarray:
        """int64, positives of each row; read from the offsets alone."""
        return self._lengths(2)

    @property
    def negative_count_n(self) -> np.ndarray:
        """int64, negatives of each row; read from the offsets alone."""
        return self._lengths(3)

    def _lengths(self, column: int) -> np.ndarray:
        """How many passages each row has in a column."""
        lengths = [np.diff(columns[column].offsets.to_numpy()) for columns in self._columns]
        return np.concatenate(lengths).astype(np.int64)[self.numbers_n]


def open_entry(entry: Path, name: str, path: str | Path) -> Rows | None:
    """Map the rows of a cache entry.

    A file whose size or times are not those it was written with is read and compared with its hash, so that a copied
    entry is good and a damaged one is not. Entries of versions that kept no scores count as absent.

    Args:
        entry: The entry's folder.
        name: The dataset's name, for `info`.
        path: Where the dataset was read from, for `info`.

    Returns:
        The rows, or None where the entry is absent or damaged.
    """
    file, scores = entry / "rows.arrow", entry / "scores.bin"
    try:
        stored = read_json(entry / "info.json")
        scored = stored["scores"] is not None
        if not _is_whole(file, stored) or (scored and not _is_whole(scores, stored["scores"])):
            return None
        info = DatasetInfo(name, str(path), stored["layout"], stored["rows"], stored["fingerprint"])
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        if sum(batch.num_rows for batch in batches) != info.rows:
            return None
        return Rows(info, batches, scores if scored else None)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def write_entry(entry: Path, rows: Iterable[Row], describe: Callable[[int], DatasetInfo]) -> None:
    """Store rows in a new cache entry; the entry appears complete or not at all.

    Where another process has stored the same entry meanwhile, that one stays.

    Args:
        entry: The entry's folder; a damaged entry there is replaced.
        rows: The rows; read once. What they raise ends the call and leaves nothing behind.
        describe: Called with the number of rows when all are written, to return their `info` or to raise.

    Raises:
        EnvironmentProblem: The folder cannot be written.
    """
    try:
        temporary = temporary_name(entry.with_name(f"{entry.name}.{uuid4().hex}"))  # threads may write the same entry
        try:
            temporary.mkdir(parents=True)
            file, scores = temporary / "rows.arrow", temporary / "scores.bin"
            info = describe(_write_rows(rows, file, scores))
            about_scores = _identity(scores) if scores.exists() else None
            write_json(temporary / "info.json", asdict(info) | _identity(file) | {"scores": about_scores})
            _publish(temporary, entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as problem:
        do = "free some space, check the rights, or use another cache folder"
        raise EnvironmentProblem("cache cannot be written", where=entry.parent, saw=str(problem), do=do) from problem


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` when the block ends without an error."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def stamp(file: Path) -> list[int]:
    """Return size and times (ns) of a file: what changes when its bytes change."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def hash_file(file: Path) -> str:
    """Hash the bytes of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def _identity(file: Path) -> dict[str, object]:
    """What a file is recognised by."""
    return {"stamp": stamp(file), "hash": hash_file(file)}


def _is_whole(file: Path, written: dict[str, object]) -> bool:
    """Tell whether a file is the one that was written."""
    return written["stamp"] == stamp(file) or written["hash"] == hash_file(file)


def _publish(temporary: Path, entry: Path) -> None:
    """Move a finished entry to its place, unless another process has put a good one there."""
    with suppress(OSError):  # a folder that is not empty is not replaced
        temporary.rename(entry)
        return
    if open_entry(entry, "", entry) is None:
        shutil.rmtree(entry, ignore_errors=True)
        temporary.rename(entry)


def _write_rows(rows: Iterable[Row], file: Path, scores: Path) -> int:
    """Write rows to an Arrow file and their scores beside it, batch by batch; return how many."""
    count = 0
    with file.open("wb") as raw, ScoreWriter(scores) as score_writer:
        with pa.ipc.new_file(raw, _SCHEMA) as writer:
            for held in _batches(rows):
                writer.write_batch(_batch(held))
                score_writer.add(held)
                count += len(held)
        raw.flush()
        os.fsync(raw.fileno())
    return count


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Collect rows into batches that are limited in rows and in characters."""
    held: list[Row] = []
    characters = 0
    for row in rows:
        held.append(row)
        characters += len(row.query) + sum(len(passage.text) for passage in chain(row.positives, row.negatives))
        if len(held) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held


def _batch(rows: list[Row]) -> pa.RecordBatch:
    """Turn rows into one Arrow batch."""
    columns = [
        pa.array([row.query_id for row in rows], pa.string()),
        pa.array([row.query for row in rows], pa.string()),
        _pack([row.positives for row in rows]),
        _pack([row.negatives for row in rows]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _pack(cells: list[tuple[Passage, ...]]) -> pa.ListArray:
    """Turn the passages of some rows into one Arrow column."""
    flat = list(chain.from_iterable(cells))
    fields = [[p.id for p in flat], [p.title for p in flat], [p.text for p in flat]]
    passages = pa.StructArray.from_arrays([pa.array(field, pa.string()) for field in fields], ["id", "title", "text"])
    offsets = pa.array(list(accumulate(map(len, cells), initial=0)), pa.int32())
    return pa.ListArray.from_arrays(offsets, passages)


def _unpack(cell: pa.ListScalar) -> tuple[Passage, ...]:
    """Turn the passages of one row back into records."""
    return tuple(map(Passage, *(field.to_pylist() for field in cell.values.flatten())))


def _unpack_all(cells: pa.ListArray) -> list[tuple[Passage, ...]]:
    """Turn the passages of neighbouring rows back into records."""
    passages = list(map(Passage, *(field.to_pylist() for field in cells.flatten().flatten())))
    ends = np.cumsum(np.diff(cells.offsets.to_numpy())).tolist()
    return [tuple(passages[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _full_texts(passages: pa.StructArray) -> list[str]:
    """Return the `full_text` of every passage."""
    titles, texts = (passages.field(name).to_pylist() for name in ("title", "text"))
    return [f"{title} {text}" if title else text for title, text in zip(titles, texts, strict=True)]


def _put(texts: list[str], places: np.ndarray, found: list[str]) -> None:
    """Write texts to their places in a list."""
    for place, text in zip(places.tolist(), found, strict=True):
        texts[place] = text
