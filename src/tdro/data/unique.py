"""The distinct texts of a dataset: a mined negative stands in many rows, but its tokens need to be made only once.

A table numbers the distinct queries, or passages, of a dataset: by the order of their hashes, so that the numbers
depend on the set of texts alone. Two datasets with the same passages, such as one before and after mining, thus have
the same sequence of texts and share their tokens. The table is kept in the cache folder and memory-mapped.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
import pyarrow as pa

from tdro.config import fingerprint
from tdro.data.examples import with_instruction
from tdro.data.store import Rows, stamp
from tdro.errors import EnvironmentProblem
from tdro.files import atomic_path, read_json, write_json

_FORM = 1  # part of every key: raise it when the tables of the same rows would differ
_ROWS = 1024  # rows that are read together while a table is made
_HASH = np.dtype("S16")

Kind = Literal["queries", "passages"]


class _Table(NamedTuple):
    """Where each distinct text stands; U distinct texts of n.

    ids_n: int32 or int64, number of the text at each place.
    first_U: int64, the first place of each text.
    hash_U: 16 bytes, rising.
    """

    ids_n: np.ndarray
    first_U: np.ndarray
    hash_U: np.ndarray


class UniqueTexts(Sequence[str]):
    """The distinct queries or passages of a dataset; made by `unique_texts`.

    A slice reads the texts that it needs and no others; as neighbours in the order of hashes stand anywhere in the
    file, reading all of them is quick only while the file fits into memory.

    Attributes:
        content: Fingerprint of the sequence of texts, instruction included.
        ids_n: int32 or int64, memory-mapped: the number of the text at each place. The places are those of
            `rows.source`: of queries, the rows; of passages, see `starts_n`.
        starts_n: int64 [rows of the source + 1], where the texts of each row begin. A row's positives come first.
    """

    def __init__(self, rows: Rows, kind: Kind, table: _Table, texts: str, instruction: str, template: str) -> None:
        self._rows, self._kind, self._table = rows.source, kind, table
        self._instruction, self._template = instruction, template
        self.content = fingerprint(texts, [instruction, template] if instruction else [])
        self.ids_n = table.ids_n
        self.starts_n = _starts(rows, kind)

    def __len__(self) -> int:
        return len(self._table.first_U)

    @overload
    def __getitem__(self, part: int) -> str: ...
    @overload
    def __getitem__(self, part: slice) -> list[str]: ...
    def __getitem__(self, part: int | slice) -> str | list[str]:
        if not isinstance(part, slice):
            number = range(len(self))[part]
            return self[number : number + 1][0]
        place_B = self._table.first_U[part]
        row_B = np.searchsorted(self.starts_n, place_B, side="right") - 1
        if self._kind == "queries":
            texts = self._rows.queries_at(row_B)
        else:
            texts = self._rows.passages_at(row_B, place_B - self.starts_n[row_B])
        return [with_instruction(text, self._instruction, self._template) for text in texts]

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """Return the numbers of texts, given without instruction.

        Raises:
            KeyError: A text is none of the dataset's.
        """
        hash_B = np.frombuffer(_hashes(texts), _HASH)
        number_B = np.searchsorted(self._table.hash_U, hash_B)
        missing_B = self._table.hash_U[np.minimum(number_B, len(self) - 1)] != hash_B
        if missing_B.any():
            raise KeyError(texts[int(missing_B.argmax())])
        return number_B


def unique_texts(
    rows: Rows,
    kind: Kind,
    *,
    cache: Path,
    instruction: str = "",
    template: str = "{query}",
    progress: Callable[[int, int], None] | None = None,
) -> UniqueTexts:
    """Find the distinct queries or passages of a dataset, or recall them.

    The texts are those of `rows.source`, so that all selections of a dataset share one table. Passages are compared as
    `full_text`, by 128 bits of their hash. While a table is made it takes some 60 bytes of memory per passage.

    Args:
        rows: The dataset, or a selection from it.
        kind: "queries" or "passages".
        cache: The cache folder; the table is kept in `cache/unique/KEY`, which may be deleted between runs.
        instruction: Put in front of every text; empty leaves texts as they are.
        template: Where the instruction and the text go, see `with_instruction`.
        progress: Called with (texts done, texts) while a table is made.

    Returns:
        The distinct texts, to be read when they are asked for.

    Raises:
        EnvironmentProblem: The cache cannot be written.
    """
    folder = cache / "unique" / fingerprint(_FORM, kind, rows.source.info.fingerprint)
    found = _open(folder)
    if found is None:
        made = _make(rows.source, kind, progress)
        _write(folder, made, {"kind": kind, "dataset": rows.info.name, "path": rows.info.path})
        found = _open(folder) or (made, _content(made))
    return UniqueTexts(rows, kind, *found, instruction, template)


def _make(source: Rows, kind: Kind, progress: Callable[[int, int], None] | None) -> _Table:
    """Read all texts and number the distinct ones."""
    starts_n = _starts(source, kind)
    hash_n = np.empty(starts_n[-1], _HASH)
    read = source.query_texts if kind == "queries" else source.passage_texts
    for first in range(0, len(source), _ROWS):
        end = min(first + _ROWS, len(source))
        hash_n[starts_n[first] : starts_n[end]] = np.frombuffer(_hashes(read(first, end)), _HASH)
        if progress is not None:
            progress(int(starts_n[end]), len(hash_n))
    hash_U, first_U, ids_n = np.unique(hash_n, return_index=True, return_inverse=True)
    return _Table(ids_n.astype(np.int32 if len(hash_U) < 1 << 31 else np.int64), first_U, hash_U)


def _starts(rows: Rows, kind: Kind) -> np.ndarray:
    """Where the texts of each row of the source begin; [rows + 1]."""
    if kind == "queries":
        return np.arange(len(rows.source) + 1)
    return np.concatenate([[0], np.cumsum(rows.source.positive_count_n + rows.source.negative_count_n)])


def _hashes(texts: Sequence[str]) -> bytes:
    """Hash texts to 16 bytes each, end to end."""
    return b"".join([hashlib.blake2b(text.encode(), digest_size=_HASH.itemsize).digest() for text in texts])


def _content(table: _Table) -> str:
    """Identify the set of texts."""
    return hashlib.blake2b(table.hash_U.tobytes(), digest_size=16).hexdigest()


def _open(folder: Path) -> tuple[_Table, str] | None:
    """Map a table and recall what its set of texts is called; None where it is absent or not as it was written."""
    try:
        about = read_json(folder / "table.json")
        if about["stamps"] != _stamps(folder):
            return None
        return _Table(*(_map(file) for file in _files(folder))), str(about["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(file: Path) -> np.ndarray:
    """Map an .npy file without keeping it open: a study may have hundreds of datasets."""
    with file.open("rb") as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        offset = stream.tell()
    with pa.memory_map(str(file)) as mapped:
        return np.frombuffer(mapped.read_buffer(), dtype, shape[0], offset)


def _write(folder: Path, table: _Table, about: dict[str, object]) -> None:
    """Keep a table; the list of its files is written last, and only with it they count."""
    try:
        for file, array in zip(_files(folder), table, strict=True):
            with atomic_path(file) as path, path.open("wb") as stream:
                np.lib.format.write_array(stream, array, version=(1, 0))
        about = about | {"texts": len(table.hash_U), "content": _content(table), "stamps": _stamps(folder)}
        write_json(folder / "table.json", about)
    except OSError as problem:
        do = "free some space, check the rights, use another cache folder, or set data.tokens to fresh"
        raise EnvironmentProblem("table cannot be kept", where=folder, saw=str(problem), do=do) from problem


def _stamps(folder: Path) -> list[list[int]]:
    """Size and times of the files of a table."""
    return [stamp(file) for file in _files(folder)]


def _files(folder: Path) -> list[Path]:
    """Name the files of a table, in the order of its fields."""
    return [folder / f"{field}.npy" for field in _Table._fields]
