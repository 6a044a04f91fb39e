"""Passages on disk: the distinct ones of a collection, found by number, by text and by id, without holding them.

Two texts are the same if they are after NFC, case folding and collapsing white space.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tdro.config import fingerprint
from tdro.data.reading import content_hash
from tdro.data.records import Passage
from tdro.errors import DataError
from tdro.files import atomic_folder, write_json
from tdro.retrieval.arrays import map_array, save_array
from tdro.retrieval.passage_files import find_passages, passage_of
from tdro.retrieval.passage_table import (
    PassageTable,
    blocks,
    open_or_store,
    stored_ids,
    write_passages,
    write_places,
)

_FORM = 2  # part of the key of every kept corpus: raise it when the folder of the same passages would differ
_READ = 8192  # passages that are hashed together
_KEY = np.dtype("S16")


class Corpus(PassageTable):
    """P distinct passages on disk, numbered 0..P-1 in the order in which they first came; made by `store_corpus`.

    A slice gives the full texts, as encoders read them.

    Attributes:
        content: Fingerprint of the sequence of full texts.
        place_P: int64, where each passage stands when all are sorted by (id, text): decides between equal scores.
        shared_ids: Passages whose id also stands for another text.
        empty: Passages without a letter, left out.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.shared_ids: int = self.about["shared_ids"]
        self.empty: int = self.about["empty"]
        self._key_P, self._by_key_P = (map_array(folder / f"{name}.npy") for name in ("key_P", "by_key_P"))

    def find_texts(self, key_B: np.ndarray) -> np.ndarray:
        """Return the numbers of passages by what `text_keys` makes of their full texts; -1 where there is none."""
        if not len(self):
            return np.full(len(key_B), -1)
        place_B = np.searchsorted(self._key_P, key_B, sorter=self._by_key_P)
        number_B = self._by_key_P[np.minimum(place_B, len(self) - 1)]
        return np.where(self._key_P[number_B] == key_B, number_B, -1)


class PassageFile(Iterable[Passage]):
    """The passages of a `.jsonl`, `.jsonl.gz` or `.parquet` file, or of a folder of such files.

    A record is an object with `text`, and `title` and `_id` (or `docid`, `id`) if there are any, as in the
    `corpus.jsonl` of BEIR; without an id it gets the hash of its text. Iteration reads the file anew.

    Args:
        path: The file or folder, as for `tdro.retrieval.documents.store_documents`.

    Raises:
        DataError: Nothing is there that can be read. Iteration raises it for a record that is no passage.
    """

    def __init__(self, path: Path) -> None:
        self._source = find_passages(path)

    def __iter__(self) -> Iterator[Passage]:
        for _, place, record in self._source.records(repeat(True)):
            passage = passage_of(record, place)
            if not passage.id:
                digest = hashlib.blake2b(passage.full_text.encode(), digest_size=8).hexdigest()
                passage = replace(passage, id=digest)
            yield passage

    def fingerprint(self, cache: Path) -> str:
        """Identify the passages by the bytes of their files; hashes of files are remembered under `cache`."""
        hashes = [content_hash(file, cache / "datasets") for file in self._source.files]
        return fingerprint(_FORM, self._source.kind, hashes)

    def store(self, cache: Path) -> Corpus:
        """Store the passages in `cache/corpora/KEY`, or open what an earlier call has stored of the same bytes."""
        folder = cache / "corpora" / self.fingerprint(cache)
        return open_or_store(folder, Corpus, lambda: store_corpus(self, folder))


def store_corpus(passages: Iterable[Passage], folder: Path) -> Corpus:
    """Store the distinct passages of a collection; of passages with the same text the first is kept.

    Memory grows by some 80 bytes with every passage of the collection and with nothing else.

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
    keys = [text_keys([passage.full_text for passage in block]) for block in blocks(passages, _READ)]
    key_n = np.concatenate([np.empty(0, _KEY), *keys])
    blank_n = key_n == text_keys([""])
    _, first = np.unique(key_n, return_index=True)
    kept_n = np.zeros(len(key_n), bool)
    kept_n[first] = True
    kept_n &= ~blank_n
    with atomic_folder(folder) as temporary:
        content = write_passages(_kept(passages, kept_n), temporary)
        key_P = key_n[kept_n]
        by_key_P = np.argsort(key_P, kind="stable")
        shared = _write_places(stored_ids(temporary), by_key_P, temporary)
        for name, array in (("key_P", key_P), ("by_key_P", by_key_P)):
            save_array(temporary / f"{name}.npy", array)
        write_json(temporary / "about.json", {"content": content, "shared_ids": shared, "empty": int(blank_n.sum())})
    return Corpus(folder)


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """Hash texts to 16 bytes each so that case, white space and Unicode composition make no difference."""
    digests = (hashlib.blake2b(_plain(text), digest_size=_KEY.itemsize).digest() for text in texts)
    return np.frombuffer(b"".join(digests), _KEY)


def _plain(text: str) -> bytes:
    """Write a text so that two that count as the same give the same bytes."""
    composed = unicodedata.normalize("NFC", text).casefold()
    return " ".join(composed.split()).encode("utf-8", "surrogatepass")


def _kept(passages: Iterable[Passage], kept_n: np.ndarray) -> Iterator[Passage]:
    """Yield the passages that are kept, as long as they are as many as before."""
    number = -1
    for number, passage in enumerate(passages):
        if number < len(kept_n) and kept_n[number]:
            yield passage
    if number + 1 != len(kept_n):
        saw = f"{len(kept_n)} passages, then {number + 1}"
        raise DataError("the passages changed while they were read", saw=saw, do="run again when they are complete")


def _write_places(ids: pa.LargeStringArray, by_key_P: np.ndarray, folder: Path) -> int:
    """Write where each passage stands when all are sorted by id and then by the hash of the text.

    Returns:
        How many have an id that came before.
    """
    rank_P = np.empty_like(by_key_P)
    rank_P[by_key_P] = np.arange(len(rank_P))
    table = pa.table({"id": ids, "rank": rank_P})
    write_places(pc.sort_indices(table, sort_keys=[("id", "ascending"), ("rank", "ascending")]).to_numpy(), folder)
    return len(ids) - int(pc.count_distinct(ids).as_py())
