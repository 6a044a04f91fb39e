"""Passages on disk: the distinct ones of a collection, found by number, by text and by id, without holding them.

A folder has the passages as an Arrow file, and what is looked up often as arrays: 40 bytes per passage, memory-mapped
like the passages. Two texts are the same if they are after NFC, case folding and collapsing white space.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tdro.config import fingerprint
from tdro.data.reading import content_hash
from tdro.data.records import Passage
from tdro.data.sources import find_source
from tdro.errors import DataError
from tdro.files import atomic_folder, write_json
from tdro.retrieval.shards import add_content, map_array, save_array

_FORM = 1  # part of the key of every kept corpus: raise it when the folder of the same passages would differ
_BATCH = 1024  # passages in an Arrow batch
_READ = 8192  # passages that are hashed together
_KEY = np.dtype("S16")
_SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "title", "text")])
_ARRAYS = ("key_P", "by_key_P", "id_key_P", "by_id_P", "place_P")
_ID_FIELDS = ("docid", "id", "_id")


class Corpus:
    """P distinct passages on disk, numbered 0..P-1 in the order in which they first came; made by `store_corpus`.

    A slice gives the full texts, as encoders read them.

    Attributes:
        content: Fingerprint of the sequence of full texts.
        place_P: int64, where each passage stands when all are sorted by (id, text): decides between equal scores.
        shared_ids: Passages whose id also stands for another text.
        empty: Passages without a letter, left out.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "corpus.json").read_bytes())
        self.content: str = about["content"]
        self.shared_ids: int = about["shared_ids"]
        self.empty: int = about["empty"]
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "passages.arrow")))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        arrays = (map_array(folder / f"{name}.npy") for name in _ARRAYS)
        self._key_P, self._by_key_P, self._id_key_P, self._by_id_P, self.place_P = arrays

    def __len__(self) -> int:
        return len(self.place_P)

    def __getitem__(self, part: slice) -> list[str]:
        start, stop, step = part.indices(len(self))
        return self.texts_at(np.arange(start, stop, step))

    def take(self, numbers_B: np.ndarray) -> list[Passage]:
        """Read some passages, in the order given."""
        return [Passage(name, title, text) for name, title, text in self._read(numbers_B, _SCHEMA.names)]

    def texts_at(self, numbers_B: np.ndarray) -> list[str]:
        """Read the full texts of some passages, in the order given."""
        return [f"{title} {text}" if title else text for title, text in self._read(numbers_B, ["title", "text"])]

    def find_texts(self, key_B: np.ndarray) -> np.ndarray:
        """Return the numbers of passages by what `text_keys` makes of their full texts; -1 where there is none."""
        if not len(self):
            return np.full(len(key_B), -1)
        place_B = np.searchsorted(self._key_P, key_B, sorter=self._by_key_P)
        number_B = self._by_key_P[np.minimum(place_B, len(self) - 1)]
        return np.where(self._key_P[number_B] == key_B, number_B, -1)

    def find_ids(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Find all passages that have one of n ids.

        Returns:
            Two arrays of one length: positions in `ids`, and numbers of passages with that id.
        """
        key_n = _id_keys(ids)
        first_n, end_n = (np.searchsorted(self._id_key_P, key_n, side, self._by_id_P) for side in ("left", "right"))
        count_n = end_n - first_n
        which = np.repeat(np.arange(len(ids)), count_n)
        within = np.arange(len(which)) - np.repeat(np.cumsum(count_n) - count_n, count_n)
        return which, self._by_id_P[first_n[which] + within]

    def _read(self, numbers_B: np.ndarray, columns: list[str]) -> list[tuple[str, ...]]:
        """Read some columns of some passages, in the order given."""
        found: list[tuple[str, ...]] = [()] * len(numbers_B)
        batch_B, at_B = np.divmod(numbers_B, _BATCH)
        order = np.argsort(batch_B, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(batch_B[order])) + 1) if len(order) else ():
            batch = self._batches[int(batch_B[group[0]])]
            taken = [batch.column(name).take(pa.array(at_B[group])).to_pylist() for name in columns]
            for place, fields in zip(group.tolist(), zip(*taken, strict=True), strict=True):
                found[place] = fields
        return found


class PassageFile(Iterable[Passage]):
    """The passages of a `.jsonl`, `.jsonl.gz` or `.parquet` file, or of a folder of such files.

    A record is an object with `text`, and `title` and `docid` (or `id`, `_id`) if there are any, as in the
    `corpus.jsonl` of BEIR; without an id it gets the hash of its text. Iteration reads the file anew.

    Args:
        path: The file or folder.

    Raises:
        DataError: Nothing is there that can be read. Iteration raises it for a record that is no passage.
    """

    def __init__(self, path: Path) -> None:
        self._source = find_source(path)

    def __iter__(self) -> Iterator[Passage]:
        return (_passage(record, place) for _, place, record in self._source.records(repeat(True)))

    def fingerprint(self, cache: Path) -> str:
        """Identify the passages by the bytes of their files; hashes of files are remembered under `cache`."""
        hashes = [content_hash(file, cache / "datasets") for file in self._source.files]
        return fingerprint(_FORM, self._source.kind, hashes)

    def store(self, cache: Path) -> Corpus:
        """Store the passages in `cache/corpora/KEY`, or open what an earlier call has stored of the same bytes."""
        folder = cache / "corpora" / self.fingerprint(cache)
        with suppress(OSError, ValueError, KeyError, pa.ArrowException):
            return Corpus(folder)
        return store_corpus(self, folder)


def store_corpus(passages: Iterable[Passage], folder: Path) -> Corpus:
    """Store the distinct passages of a collection; of passages with the same text the first is kept.

    Memory grows by some 60 bytes with every passage of the collection and with nothing else.

    Args:
        passages: The collection; read twice, so no iterator.
        folder: Folder to write; it appears complete or not at all, in the place of an older one.

    Returns:
        The corpus; it may be empty.

    Raises:
        DataError: The second reading gave other passages than the first.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> bees = [Passage("d1", "", "bees"), Passage("d2", "", "Bees"), Passage("d3", "Trees", "grow")]
        >>> with TemporaryDirectory() as place:
        ...     corpus = store_corpus(bees, Path(place, "corpus"))
        ...     corpus[0:2], corpus.find_texts(text_keys(["BEES", "wasps"])).tolist()
        (['bees', 'Trees grow'], [0, -1])
    """
    key_n = np.concatenate([np.empty(0, _KEY), *(text_keys([p.full_text for p in some]) for some in _blocks(passages))])
    blank_n = key_n == text_keys([""])
    _, first = np.unique(key_n, return_index=True)
    kept_n = np.zeros(len(key_n), bool)
    kept_n[first] = True
    kept_n &= ~blank_n
    with atomic_folder(folder) as temporary:
        content, id_key_P = _write_passages(passages, kept_n, temporary / "passages.arrow")
        key_P = key_n[kept_n]
        by_key_P, by_id_P = np.argsort(key_P, kind="stable"), np.argsort(id_key_P, kind="stable")
        place_P = _places(temporary / "passages.arrow", by_key_P)
        for name, array in zip(_ARRAYS, (key_P, by_key_P, id_key_P, by_id_P, place_P), strict=True):
            save_array(temporary / f"{name}.npy", array)
        shared = len(id_key_P) - len(np.unique(id_key_P))
        write_json(temporary / "corpus.json", {"content": content, "shared_ids": shared, "empty": int(blank_n.sum())})
    return Corpus(folder)


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """Hash texts to 16 bytes each so that case, white space and Unicode composition make no difference."""
    digests = (hashlib.blake2b(_plain(text), digest_size=_KEY.itemsize).digest() for text in texts)
    return np.frombuffer(b"".join(digests), _KEY)


def _plain(text: str) -> bytes:
    """Write a text so that two that count as the same give the same bytes."""
    composed = unicodedata.normalize("NFC", text).casefold()
    return " ".join(composed.split()).encode("utf-8", "surrogatepass")


def _id_keys(ids: Sequence[str]) -> np.ndarray:
    """Hash ids to 64 bits each; should two of a billion pairs meet, one more passage counts as the positive."""
    digests = (hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids)
    return np.frombuffer(b"".join(digests), np.uint64)


def _blocks(passages: Iterable[Passage], size: int = _READ) -> Iterator[list[Passage]]:
    """Yield passages in lists of at most `size`."""
    stream = iter(passages)
    while block := list(islice(stream, size)):
        yield block


def _write_passages(passages: Iterable[Passage], kept_n: np.ndarray, file: Path) -> tuple[str, np.ndarray]:
    """Write the passages that are kept; return the fingerprint of their texts and the keys of their ids."""
    digest = hashlib.blake2b(digest_size=16)
    id_keys = [np.empty(0, np.uint64)]
    with file.open("wb") as raw, pa.ipc.new_file(raw, _SCHEMA) as writer:
        for block in _blocks(_kept(passages, kept_n), _BATCH):
            add_content(digest, [passage.full_text for passage in block])
            id_keys.append(_id_keys([passage.id for passage in block]))
            fields = ([p.id for p in block], [p.title for p in block], [p.text for p in block])
            arrays = [pa.array(field, pa.large_string()) for field in fields]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
    return digest.hexdigest(), np.concatenate(id_keys)


def _kept(passages: Iterable[Passage], kept_n: np.ndarray) -> Iterator[Passage]:
    """Yield the passages that are kept, as long as they are as many as before."""
    number = -1
    for number, passage in enumerate(passages):
        if number < len(kept_n) and kept_n[number]:
            yield passage
    if number + 1 != len(kept_n):
        saw = f"{len(kept_n)} passages, then {number + 1}"
        raise DataError("the passages changed while they were read", saw=saw, do="run again when they are complete")


def _places(file: Path, by_key_P: np.ndarray) -> np.ndarray:
    """Say where each passage stands when all are sorted by id and then by the hash of the text."""
    rank_P = np.empty_like(by_key_P)
    rank_P[by_key_P] = np.arange(len(rank_P))
    with pa.memory_map(str(file)) as mapped:
        ids = pa.ipc.open_file(mapped).read_all()["id"]
        table = pa.table({"id": ids, "rank": rank_P})
        order = pc.sort_indices(table, sort_keys=[("id", "ascending"), ("rank", "ascending")]).to_numpy()
    place_P = np.empty(len(order), np.int64)
    place_P[order] = np.arange(len(order))
    return place_P


def _passage(record: Any, place: str) -> Passage:
    """Check one record of a file of passages."""
    if not isinstance(record, dict):
        do = 'write an object per line: {"id": ..., "title": ..., "text": ...}'
        raise DataError("passage is not an object", where=place, saw=record, do=do)
    text, title = record.get("text"), record.get("title")
    if not isinstance(text, str):
        do = "write the text of the passage, or remove the record"
        raise DataError("passage without text", where=f"{place}:text", saw=text, do=do)
    if title is not None and not isinstance(title, str):
        do = "write the title as text, or leave it out"
        raise DataError("title is not a string", where=f"{place}:title", saw=title, do=do)
    name = next((name for name in _ID_FIELDS if record.get(name) not in (None, "")), "id")
    identifier = record.get(name)
    if identifier is not None and (isinstance(identifier, bool) or not isinstance(identifier, str | int)):
        do = "write the id as text"
        raise DataError("id is neither text nor a whole number", where=f"{place}:{name}", saw=identifier, do=do)
    passage = Passage("" if identifier is None else str(identifier), title or "", text)
    if not passage.id:
        digest = hashlib.blake2b(passage.full_text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        passage = Passage(digest, passage.title, passage.text)
    for name, value in (("text", passage.text), ("title", passage.title)):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                do = "remove or repair half an emoji"
                raise DataError("text is not valid Unicode", where=f"{place}:{name}", saw=value, do=do) from None
    return passage
