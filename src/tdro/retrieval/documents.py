"""The documents of a benchmark or of a user, each of them under its own id, on disk.

Unlike a `tdro.retrieval.corpus.Corpus`, which mining draws negatives from, nothing is merged or left out: judgements
name documents by id, and two documents with the same text are two results.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tdro.config import fingerprint
from tdro.data.reading import content_hash
from tdro.data.records import Passage
from tdro.data.sources import Source
from tdro.errors import DataError
from tdro.files import atomic_folder, write_json
from tdro.retrieval.passage_files import find_passages, id_field, passage_of
from tdro.retrieval.passage_table import PassageTable, open_or_store, stored_ids, write_passages, write_places

_FORM = 1  # part of the key of all kept documents: raise it when the folder of the same documents would differ
_COMPARED = 1 << 20  # neighbours in the order of ids that are compared at a time


class Documents(PassageTable):
    """D documents on disk, numbered 0..D-1 in the order of their files; made by `store_documents`.

    A slice gives the full texts, as encoders read them.

    Attributes:
        content: Fingerprint of the sequence of full texts.
        place_P: int64, where each document stands when all are sorted by id: decides between equal scores.
        empty: Documents with neither title nor text. They are kept: a benchmark may count them.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.empty: int = self.about["empty"]

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Return the numbers of the documents with these ids, int64; -1 where there is none."""
        numbers = np.full(len(ids), -1)
        which, found = self.find_ids(ids)
        numbers[which] = found
        return numbers


def store_documents(path: Path, cache: Path) -> Documents:
    """Store documents in `cache/documents/KEY`, or open what an earlier call has stored of the same bytes.

    A record is an object with `text`, `_id` (or `docid`, `id`) and perhaps `title`, as in the `corpus.jsonl` of BEIR
    and the `docs-N.jsonl.gz` of MIRACL. Memory grows by some 80 bytes with every document and with nothing else.

    Args:
        path: A `.jsonl`, `.jsonl.gz` or `.parquet` file, or a folder of them, which together are one collection and
            are read in the order of the numbers in their names; or a BEIR folder, of which the corpus is read.
        cache: Folder of what can be rebuilt; shared by processes.

    Returns:
        The documents, memory-mapped.

    Raises:
        DataError: There is no document, one cannot be read, lacks its text, or lacks an id of its own that is free of
            white space; says where, the value seen and what to do.
        EnvironmentProblem: The cache cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     file = Path(place, "corpus.jsonl")
        ...     _ = file.write_text('{"_id": "d7", "title": "Bees", "text": "dance"}', encoding="utf-8")
        ...     documents = store_documents(file, Path(place, "cache"))
        ...     documents[0:1], documents.find(["d7", "d8"]).tolist()
        (['Bees dance'], [0, -1])
    """
    source = find_passages(path)
    key = _key(source, cache)
    folder = cache / "documents" / key

    def store() -> None:
        """Write the folder."""
        with atomic_folder(folder) as temporary:
            _write(source, path, temporary)
            if _key(source, cache) != key:
                do = "run again when they are complete"
                raise DataError("the documents changed while they were read", where=path, do=do)

    return open_or_store(folder, Documents, store)


def _key(source: Source, cache: Path) -> str:
    """Identify documents by the bytes of their files; hashes of files are remembered under `cache`."""
    return fingerprint(_FORM, source.kind, [content_hash(file, cache / "datasets") for file in source.files])


def _write(source: Source, path: Path, folder: Path) -> None:
    """Write all documents of a source."""
    empty = 0

    def documents() -> Iterator[Passage]:
        """Read the documents in order."""
        nonlocal empty
        for _, place, record in source.records(repeat(True)):
            document = _document(record, place)
            empty += not document.full_text.strip()
            yield document

    content = write_passages(documents(), folder)
    ids = stored_ids(folder)
    if not len(ids):
        raise DataError("there are no documents", where=path, do="give at least one")
    order_P = pc.sort_indices(ids).to_numpy().astype(np.int64)
    _refuse_repeated_ids(ids, order_P, source)
    write_places(order_P, folder)
    write_json(folder / "about.json", {"content": content, "empty": empty})


def _document(record: Any, place: str) -> Passage:
    """Check one record; its id must be one that a run file can hold."""
    document = passage_of(record, place)
    if document.id.split() != [document.id]:
        what = "id contains white space" if document.id.strip() else "document without id"
        do = "give every document an id of its own without white space, the one that judgements name"
        field = id_field(record)
        raise DataError(what, where=f"{place}:{field}", saw=record.get(field), do=do)
    return document


def _refuse_repeated_ids(ids: pa.LargeStringArray, order_P: np.ndarray, source: Source) -> None:
    """Refuse documents of one id; they are neighbours in the order of ids, the later one in the files second."""
    repeated = []
    for start in range(0, len(order_P), _COMPARED):
        number_B = order_P[start : start + _COMPARED + 1]
        sorted_ids = ids.take(pa.array(number_B))
        same = pc.equal(sorted_ids[1:], sorted_ids[:-1]).to_numpy(zero_copy_only=False)
        repeated += number_B[1:][same].tolist()
    if repeated:
        number, place, record = next(islice(source.records(repeat(True)), min(repeated), None))
        what = f"{len(repeated)} ids occur more than once" if len(repeated) > 1 else "id occurs twice"
        where, saw = f"{place}:{id_field(record)}", ids[number - 1].as_py()
        raise DataError(what, where=where, saw=saw, do="keep one document of each id")
