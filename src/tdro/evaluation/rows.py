"""A dev set in any layout of training rows as an evaluation task.

The documents are the distinct passages of its rows, positives and negatives; or those of `corpus`. A row's positives
are relevant to its query, everything else is not. Rows of one `query_id` are one query, and so are rows without a
`query_id` that ask the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from tdro.config import TaskConfig, fingerprint
from tdro.data.reading import Rows, read_dataset
from tdro.data.records import Passage, Row
from tdro.data.sources import find_source
from tdro.data.text_files import IN_THE_ROWS, Collections
from tdro.errors import ConfigError, DataError
from tdro.evaluation.benchmarks import Benchmark, Part, Task, judged_queries
from tdro.evaluation.judgements import read_id
from tdro.files import atomic_folder, write_json
from tdro.retrieval.documents import Documents, store_documents
from tdro.retrieval.passage_files import find_passages
from tdro.retrieval.passage_table import open_or_store, stored_ids, write_passages, write_places
from tdro.retrieval.shards import Progress

_FORM = 1  # part of the key of kept documents: raise it when the folder of the same rows would differ


def find_rows(name: str, path: Path, options: TaskConfig, corpus: Path | None) -> Task:
    """Find a dev set.

    Args:
        name: Of the task.
        path: A file or folder of rows, as for `tdro.data.reading.read_dataset`.
        options: Of the task.
        corpus: Documents to search in the place of the rows' own passages; the rows may then have ids only.

    Raises:
        DataError: There are no such files.
        ConfigError: An option does not go with rows.
    """
    for option, value in (("split", options.split), ("languages", options.languages)):
        if value:
            raise ConfigError(f"{option} does not go with rows", where=name, saw=value, do="leave it out")
    ignore = bool(options.ignore_identical_ids)
    files = (*find_source(path).files, *(find_passages(corpus).files if corpus else ()))

    def read(cache: Path, progress: Progress | None) -> Benchmark:
        texts = Collections(passages=corpus) if corpus else IN_THE_ROWS
        rows = read_dataset(name, path, cache=cache / "datasets", texts=texts)
        judged = _judge(rows, merge=corpus is None)
        documents = store_documents(corpus, cache) if corpus else _store(rows, judged.ids, cache)
        return judged_queries(name, documents, judged.queries, judged.qrels, where=path, ignore_identical_ids=ignore)

    settings: dict[str, object] = {
        "kind": "rows",
        "split": "dev",
        "ignore_identical_ids": ignore,
        "corpus": bool(corpus),
    }
    return Task(name, (Part(name, "", files, settings, read, lambda: None),))


@dataclass(frozen=True)
class _Judged:
    """Queries and judgements by id, and the ids of the distinct passages by `_key`."""

    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)
    ids: dict[bytes, str] = field(default_factory=dict)


def _judge(rows: Rows, merge: bool) -> _Judged:
    """Find queries, judgements and documents.

    Args:
        rows: The rows.
        merge: Passages of one text are one document, under the id of the first; otherwise each has its own id.

    Raises:
        DataError: An id stands for two texts, or contains white space.
    """
    judged = _Judged()
    by_text: dict[str, str] = {}
    key_of_id: dict[str, bytes] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{rows.info.path}: row {number}"
        is_made = row.query_id == f"{rows.info.name}-{number}"
        query_id = by_text.setdefault(row.query, row.query_id) if is_made else row.query_id
        read_id(query_id, f"{where}: query_id")
        if judged.queries.setdefault(query_id, row.query) != row.query:
            do = "give every query an id of its own, or none"
            raise DataError("query_id stands for two queries", where=f"{where}: query_id", saw=query_id, do=do)
        relevant = judged.qrels.setdefault(query_id, {})
        for passage in _passages(row):
            key = _key(passage)
            identifier = judged.ids.setdefault(key, passage.id) if merge else passage.id
            read_id(identifier, f"{where}: docid")
            if key_of_id.setdefault(identifier, key) != key:
                do = "give every passage an id of its own, or none"
                raise DataError("docid stands for two passages", where=f"{where}: docid", saw=identifier, do=do)
            if passage in row.positives:
                relevant[identifier] = 1
    return judged


def _store(rows: Rows, ids: dict[bytes, str], cache: Path) -> Documents:
    """Keep the distinct passages of rows in `cache/documents/KEY`, or open what an earlier call has kept."""
    folder = cache / "documents" / fingerprint("rows", _FORM, rows.info.fingerprint)

    def distinct() -> Iterator[Passage]:
        left = dict(ids)
        for passage in chain.from_iterable(map(_passages, rows)):
            if (identifier := left.pop(_key(passage), None)) is not None:
                yield replace(passage, id=identifier)

    def store() -> None:
        with atomic_folder(folder) as temporary:
            content = write_passages(distinct(), temporary)
            write_places(pc.sort_indices(stored_ids(temporary)).to_numpy().astype(np.int64), temporary)
            write_json(temporary / "about.json", {"content": content, "empty": 0})

    return open_or_store(folder, Documents, store)


def _passages(row: Row) -> tuple[Passage, ...]:
    """Return positives and negatives of a row."""
    return row.positives + row.negatives


def _key(passage: Passage) -> bytes:
    """Identify a passage by what is encoded of it."""
    return blake2b(passage.full_text.encode(), digest_size=16).digest()
