"""Columns of 64-bit numbers that wait in files, so that memory does not grow with what is counted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

_BUFFER = 1 << 20  # bytes that are gathered before they are written
_PART = 1 << 20  # numbers that are looked at together


class Column:
    """Numbers, or records of several, that are appended to a file and read memory-mapped.

    Args:
        file: Is made anew.
        width: Numbers of a record.
    """

    def __init__(self, file: Path, width: int = 1) -> None:
        self._file, self._width = file, width
        self._written, self._fresh = 0, bytearray()
        file.write_bytes(b"")

    def __len__(self) -> int:
        return (self._written + len(self._fresh)) // (8 * self._width)

    def __getstate__(self) -> dict[str, object]:
        self._flush()
        return self.__dict__

    def add(self, record: bytes) -> None:
        """Append a record: 8 bytes, little-endian, for each of its numbers."""
        self._fresh += record
        if len(self._fresh) >= _BUFFER:
            self._flush()

    def read(self) -> np.ndarray:
        """Map everything so far: uint64, [n], or [n, width] where a record has several numbers."""
        self._flush()
        if not self._written:
            return np.empty((0, self._width) if self._width > 1 else 0, np.uint64)
        shape = (-1, self._width) if self._width > 1 else (-1,)
        return np.memmap(self._file, "<u8", "r").reshape(shape)

    def _flush(self) -> None:
        """Write what was gathered."""
        with self._file.open("ab") as out:
            out.write(self._fresh)
        self._written += len(self._fresh)
        self._fresh = bytearray()


def parts(hash_N: np.ndarray) -> Iterator[np.ndarray]:
    """Cut hashes into ranges that fit into memory.

    Args:
        hash_N: uint64, evenly spread; memory-mapped ones are read block by block.

    Yields:
        The positions, rising, of the hashes of one range; the ranges rise, and equal hashes are in the same one.
    """
    bits = (len(hash_N) // _PART).bit_length()
    if not bits:
        yield np.arange(len(hash_N))
        return
    shift = np.uint64(64 - bits)
    for number in range(1 << bits):
        blocks = range(0, len(hash_N), _PART)
        yield np.concatenate([at + np.flatnonzero(hash_N[at : at + _PART] >> shift == number) for at in blocks])


def write_distinct(hash_N: np.ndarray, file: Path) -> None:
    """Write the distinct hashes, rising, as an .npy file."""
    column = Column(file.with_suffix(".column"))
    for part in parts(hash_N):
        column.add(np.unique(hash_N[part]).tobytes())
    np.save(file, column.read())
