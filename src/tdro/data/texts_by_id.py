"""Find the records of a file of JSON lines by their ids: the texts stay on disk, in memory are 16 bytes per record."""

import codecs
import shutil
import tempfile
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np

from tdro.data.lines import LONGEST_LINE, decode, opened, reading, too_long
from tdro.errors import DataError

_ID_FIELDS = ("_id", "id")


class TextsById:
    """The records of a collection of texts, on disk, found by id. To be used in a `with` block.

    Args:
        file: The file; a line is an object with an id. A gzip file is unpacked into a temporary one.
        id_fields: Where a record may have its id; the first that is there counts.
        lines: Lines to read in the place of the file's own.
        place_of: Number of a line, from 1 -> its place, for errors; `file:line` where it is not given.

    Raises:
        DataError: On entering, where a record is no object, has no id, or has that of another.
    """

    def __init__(
        self,
        file: Path,
        id_fields: Sequence[str] = _ID_FIELDS,
        lines: IO[bytes] | None = None,
        place_of: Callable[[int], str] | None = None,
    ) -> None:
        self.file = file
        self._id_fields, self._lines = id_fields, lines
        self._place_of = place_of or (lambda number: f"{file}:{number}")

    def __enter__(self) -> "TextsById":
        with ExitStack() as stack:
            with reading(lambda: self.file):
                self._stream = stack.enter_context(self._lines or _plain(self.file))
            keys, starts = self._index()
            order = np.argsort(keys, kind="stable")
            self._keys, self._starts = keys[order], starts[order]
            twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
            if len(twice):
                start = int(self._starts[twice[0] + 1])
                record = self.read(start)
                where = f"{self._place_of(self._line_of(start))}:{self._id_field(record)}"
                raise DataError("id occurs twice", where=where, saw=self._id(record), do="keep one of the two")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return where the records of these keys begin, in bytes; -1 for those that are not there."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._starts[places], -1)

    def get(self, identifier: str) -> dict[str, Any] | None:
        """Return the record with an id; None where there is none."""
        start = int(self.find(np.array([key_of(identifier)], np.uint64))[0])
        record = self.read(start) if start >= 0 else None
        return record if record is not None and str(self._id(record)) == identifier else None

    def read(self, start: int) -> dict[str, Any]:
        """Return the record that begins at a byte."""
        self._stream.seek(start)
        record: dict[str, Any] = decode(self._stream.readline(), str(self.file))
        return record

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return key and first byte of every record, in file order."""
        keys, starts = array("Q"), array("q")
        start = 3 if self._stream.read(3) == codecs.BOM_UTF8 else 0
        self._stream.seek(start)
        for number, line in enumerate(iter(partial(self._stream.readline, LONGEST_LINE), b""), start=1):
            if len(line) == LONGEST_LINE:
                raise too_long(self._place_of(number), line)
            if not line.isspace():
                keys.append(key_of(self._checked_id(line, number)))
                starts.append(start)
            start += len(line)
        return np.frombuffer(keys, np.uint64), np.frombuffer(starts, np.int64)

    def _checked_id(self, line: bytes, number: int) -> str:
        """Return the id of a line."""
        record = decode(line.rstrip(), f"{self.file}:{number}")
        if not isinstance(record, dict):
            do = 'write one object per line, such as {"_id": "d1", "title": "", "text": "..."}'
            raise DataError("not a JSON object", where=self._place_of(number), saw=record, do=do)
        identifier = self._id(record)
        if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
            do = f"give every record an {self._id_fields[0]}, as text or as a whole number"
            what = "id is missing, or neither text nor a number"
            raise DataError(what, where=self._place_of(number), saw=record, do=do)
        return str(identifier)

    def _id(self, record: dict[str, Any]) -> Any:
        """Return the id of a record."""
        return record.get(self._id_field(record))

    def _id_field(self, record: dict[str, Any]) -> str:
        """Name the field that has the id of a record."""
        return next((field for field in self._id_fields if field in record), self._id_fields[0])

    def _line_of(self, start: int) -> int:
        """Return the number of the line that begins at a byte."""
        self._stream.seek(0)
        number = 1
        while self._stream.tell() < start and self._stream.readline():
            number += 1
        return number


def key_of(identifier: str) -> int:
    """Hash an id to 64 bits; among ten million ids two are taken for one with probability 3e-6."""
    return int.from_bytes(blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _plain(file: Path) -> IO[bytes]:
    """Open a file so that any byte of it can be sought: a packed one is unpacked to a temporary file."""
    with file.open("rb") as raw:
        packed = file.suffix == ".gz" or raw.read(2) == b"\x1f\x8b"
    if not packed:
        return file.open("rb")
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with opened(file, packed) as stream:
        shutil.copyfileobj(stream, plain, 1 << 20)
    plain.seek(0)
    return plain
