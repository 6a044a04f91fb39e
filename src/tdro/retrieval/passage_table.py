"""Passages in a folder: written once, in order; then read by number and found by id, memory-mapped.

The texts are in an Arrow file. The ids are in one piece, so that a thousand of them are looked up in a moment
wherever they stand. What is looked up often are arrays: 32 bytes per passage.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from tdro.data.records import Passage
from tdro.errors import EnvironmentProblem
from tdro.files import read_json
from tdro.locks import one_at_a_time
from tdro.retrieval.arrays import add_content, map_array, save_array

_BATCH = 1024  # passages in an Arrow batch
_SCHEMA = pa.schema([(name, pa.large_string()) for name in ("title", "text")])
_ARRAYS = ("id_key_P", "by_id_P", "place_P")

_Table = TypeVar("_Table", bound="PassageTable")


class PassageTable:
    """P passages on disk, numbered 0..P-1 in the order in which they were written.

    A slice gives the full texts, as encoders read them.

    Attributes:
        about: What else is known of them.
        content: Fingerprint of the sequence of full texts.
        place_P: int64, where each passage stands when all are sorted by id: decides between equal scores.
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = read_json(folder / "about.json")
        self.content: str = self.about["content"]
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "texts.arrow")))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ids = stored_ids(folder)
        self._id_key_P, self._by_id_P, self.place_P = (map_array(folder / f"{name}.npy") for name in _ARRAYS)
        if len({len(self._ids), len(self.place_P), sum(batch.num_rows for batch in self._batches)}) > 1:
            raise ValueError(f"{folder} is not complete")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, part: slice) -> list[str]:
        return self.texts_at(np.arange(*part.indices(len(self))))

    def ids_at(self, numbers_B: np.ndarray) -> list[str]:
        """Read the ids of some passages, in the order given."""
        ids: list[str] = self._ids.take(pa.array(numbers_B, pa.int64())).to_pylist()
        return ids

    def texts_at(self, numbers_B: np.ndarray) -> list[str]:
        """Read the full texts of some passages, in the order given."""
        return [f"{title} {text}" if title else text for title, text in self._read(numbers_B)]

    def take(self, numbers_B: np.ndarray) -> list[Passage]:
        """Read some passages, in the order given."""
        fields = zip(self.ids_at(numbers_B), self._read(numbers_B), strict=True)
        return [Passage(name, title, text) for name, (title, text) in fields]

    def find_ids(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Find all passages that have one of n ids.

        Returns:
            Two arrays of one length: positions in `ids`, and numbers of passages with that id.
        """
        key_n = _id_keys([name.encode("utf-8", "surrogatepass") for name in ids])
        first_n, end_n = (np.searchsorted(self._id_key_P, key_n, side, self._by_id_P) for side in ("left", "right"))
        count_n = end_n - first_n
        which = np.repeat(np.arange(len(ids)), count_n)
        within = np.arange(len(which)) - np.repeat(np.cumsum(count_n) - count_n, count_n)
        found = self._by_id_P[first_n[which] + within]
        same = [ids[i] == name for i, name in zip(which.tolist(), self.ids_at(found), strict=True)]
        return which[np.array(same, bool)], found[np.array(same, bool)]

    def _read(self, numbers_B: np.ndarray) -> list[tuple[str, str]]:
        """Read titles and texts of some passages, in the order given."""
        found: list[tuple[str, str]] = [("", "")] * len(numbers_B)
        batch_B, at_B = np.divmod(numbers_B, _BATCH)
        order = np.argsort(batch_B, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(batch_B[order])) + 1) if len(order) else ():
            batch = self._batches[int(batch_B[group[0]])]
            titles, texts = (column.take(pa.array(at_B[group])).to_pylist() for column in batch.columns)
            for place, title, text in zip(group.tolist(), titles, texts, strict=True):
                found[place] = title, text
        return found


def open_or_store(folder: Path, opened: Callable[[Path], _Table], store: Callable[[], object]) -> _Table:
    """Open the passages in a folder; where they are absent or damaged, store them before.

    Of several processes that want the same passages one stores them, and the others wait for it.

    Args:
        folder: The folder, in the cache.
        opened: The kind of table.
        store: Writes the folder.

    Raises:
        EnvironmentProblem: The folder cannot be written or read back.
    """
    try:
        if (found := _try(opened, folder)) is None:
            with one_at_a_time(folder.with_name(f".{folder.name}.lock")):
                if _try(opened, folder) is None:
                    store()
            found = _try(opened, folder)
    except OSError as problem:
        do = "free some space, check the rights, or use another cache folder (TDRO_CACHE)"
        raise EnvironmentProblem("passages cannot be kept", where=folder, saw=str(problem), do=do) from problem
    if found is None:
        raise EnvironmentProblem("stored passages cannot be read back", where=folder, do="check the disk")
    return found


def write_passages(passages: Iterable[Passage], folder: Path) -> str:
    """Write texts and ids into a folder that a `PassageTable` opens once `write_places` has added the places.

    Memory grows by some 40 bytes with every passage and with nothing else.

    Returns:
        The fingerprint of the sequence of full texts, for about.json.
    """
    digest = hashlib.blake2b(digest_size=16)
    lengths, keys = [np.ones(1, np.int64)], [np.empty(0, np.uint64)]
    texts, ids = folder / "texts.arrow", folder / "ids.bin"
    with texts.open("wb") as raw, ids.open("wb") as names, pa.ipc.new_file(raw, _SCHEMA) as writer:
        names.write(b"\n")  # an empty file cannot be mapped
        for block in blocks(passages, _BATCH):
            add_content(digest, [passage.full_text for passage in block])
            encoded = [passage.id.encode() for passage in block]
            names.write(b"".join(encoded))
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(block)))
            keys.append(_id_keys(encoded))
            columns = ([passage.title for passage in block], [passage.text for passage in block])
            arrays = [pa.array(column, pa.large_string()) for column in columns]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
    id_key_P = np.concatenate(keys)
    save_array(folder / "id_starts.npy", np.concatenate(lengths).cumsum())
    save_array(folder / "id_key_P.npy", id_key_P)
    save_array(folder / "by_id_P.npy", np.argsort(id_key_P, kind="stable"))
    return digest.hexdigest()


def write_places(order_P: np.ndarray, folder: Path) -> None:
    """Write where each passage stands, given the passages in their order."""
    place_P = np.empty(len(order_P), np.int64)
    place_P[order_P] = np.arange(len(order_P))
    save_array(folder / "place_P.npy", place_P)


def stored_ids(folder: Path) -> pa.LargeStringArray:
    """Map the ids that `write_passages` has written."""
    starts = map_array(folder / "id_starts.npy")
    with pa.memory_map(str(folder / "ids.bin")) as mapped:
        names = mapped.read_buffer()
    ids = pa.LargeStringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), names)
    ids.validate()
    return ids


def blocks(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    """Yield passages in lists of at most `size`."""
    stream = iter(passages)
    while block := list(islice(stream, size)):
        yield block


def _id_keys(ids: Sequence[bytes]) -> np.ndarray:
    """Hash ids to 64 bits each."""
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(digests), np.uint64)


def _try(opened: Callable[[Path], _Table], folder: Path) -> _Table | None:
    """Open a table; None where it is absent or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return opened(folder)
    return None
