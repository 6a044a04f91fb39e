"""Scores that the passages of stored rows carry, in a table beside the rows: float64, memory-mapped.

The table has a number for every passage of every row, laid end to end, positives before negatives; NaN stands for a
passage without score. A row whose passages were scored by several models, in units that need not be the same, counts
as one without scores. A dataset without any score has no table.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa

from tdro.data.records import Row

_BLOCK = 1 << 20


class ScoreTable:
    """The scores of stored rows.

    Args:
        file: What a `ScoreWriter` has left.
        passages_n: int64, passages of each row.

    Raises:
        ValueError: The file does not hold a number for every passage.
    """

    def __init__(self, file: Path, passages_n: np.ndarray) -> None:
        with pa.memory_map(str(file)) as mapped:  # stays mapped without an open file: there may be many datasets
            self._values = np.frombuffer(mapped.read_buffer(), "<f8")
        self._starts_n = np.concatenate([[0], np.cumsum(passages_n)])
        if len(self._values) != self._starts_n[-1]:
            raise ValueError("scores and rows do not belong together")

    def at(self, row_P: np.ndarray, place_P: np.ndarray) -> np.ndarray:
        """Return the scores of some passages, float64, NaN where there is none.

        Args:
            row_P: Row of each passage.
            place_P: Where it stands in its row, positives first, then negatives, counted from 0.
        """
        return self._values[self._starts_n[row_P] + place_P]

    @property
    def complete_n(self) -> np.ndarray:
        """Bool, whether all passages of a row have a score; the table is read for it."""
        lacking_n: np.ndarray = np.logical_or.reduceat(np.isnan(self._values), self._starts_n[:-1])
        return ~lacking_n


class ScoreWriter:
    """Writes the scores of rows that come in one after the other; makes no file before the first score.

    Args:
        file: Where they go.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._skipped = file, 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            with self._stream:
                self._stream.flush()
                os.fsync(self._stream.fileno())

    def add(self, rows: Sequence[Row]) -> None:
        """Append the scores of the next rows."""
        values = np.array([score for row in rows for score in _scores_of(row)], "<f8")
        if self._stream is None:
            if np.isnan(values).all():
                self._skipped += len(values)
                return
            self._stream = self._file.open("wb")
            for start in range(0, self._skipped, _BLOCK):
                self._stream.write(np.full(min(_BLOCK, self._skipped - start), np.nan, "<f8").tobytes())
        self._stream.write(values.tobytes())


def _scores_of(row: Row) -> list[float]:
    """Return the scores of a row's passages, NaN for those that do not count."""
    passages = (*row.positives, *row.negatives)
    models = {passage.model for passage in passages if passage.score is not None}
    usable = len(models) == 1
    return [passage.score if usable and passage.score is not None else np.nan for passage in passages]
