"""Read datasets of any accepted form into memory-mapped rows, once; write rows.

files -> records (`sources`) -> rows (`layouts`) -> Arrow on disk (`store`). The first call checks every row and
stores the dataset in `cache/FINGERPRINT/`; later calls map what is there. The fingerprint covers the bytes of the
files, the dataset's name, the sample and the version of the stored form.
"""

import gzip
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from tdro.data.layouts import RowParser
from tdro.data.records import DatasetInfo, Passage, Row
from tdro.data.sources import Source, find_source
from tdro.data.store import Rows, hash_file, open_entry, replacing, stamp, write_entry
from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.files import write_json

__all__ = ["Rows", "content_hash", "read_dataset", "write_rows"]

_STORED_FORM = 1  # part of every fingerprint: raise it when the rows stored of the same files would differ
_SETTLED_NS = 2_000_000_000  # a file changed more recently than this could change again under the same time stamp


def read_dataset(name: str, path: str | Path, *, cache: str | Path, max_rows: int | None = None, seed: int = 0) -> Rows:
    """Read a dataset, or map what an earlier call has read.

    The source is a `.jsonl`, `.jsonl.gz` or `.parquet` file, a folder of such files (of one kind, read in the order
    of their names) or a folder saved by `datasets.save_to_disk`. The first row tells the layout (`tdro.data.layouts`).
    Every row that is kept is checked; the first bad one ends the call and leaves nothing in the cache. Memory grows
    neither with the rows nor with the files.

    Args:
        name: The dataset's name; it starts the query ids that are made where the source has none.
        path: The file or folder.
        cache: Folder of the stored rows; made if absent, shared by processes, safe to delete between runs.
        max_rows: Keep a uniform random sample of this many rows, in file order; None keeps all. Rows outside the
            sample are not checked.
        seed: Seed of the sample.

    Returns:
        The rows, memory-mapped.

    Raises:
        DataError: The source or one of its rows cannot be used; says where, the value seen and what to do.
        ConfigError: `max_rows` is below 1 or `seed` below 0.
        EnvironmentProblem: The cache cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "bees.jsonl")
        ...     _ = file.write_text('{"query": "who dances", "pos": ["bees"], "neg": ["trees"]}', encoding="utf-8")
        ...     rows = read_dataset("bees", file, cache=Path(folder, "cache"))
        ...     len(rows), rows.info.layout, rows[0].negatives[0].text
        (1, 'flagembedding', 'trees')
    """
    path, cache = Path(path), Path(cache)
    if max_rows is not None and max_rows < 1:
        raise ConfigError("max_rows must be at least 1", where=name, saw=max_rows, do="leave it out to keep all rows")
    if seed < 0:
        raise ConfigError("seed must not be negative", where=name, saw=seed, do="give 0 or a positive whole number")
    source = find_source(path)
    stamps, content = _content(source, cache)
    sample = None if max_rows is None else (max_rows, seed)
    fingerprint = _hash_text(json.dumps([_STORED_FORM, name, source.kind, content, sample]))
    parser = RowParser(name)

    def describe(count: int) -> DatasetInfo:
        """Return what is known once every row was read."""
        if parser.layout is None:
            raise DataError("empty dataset", where=path, do="give a file with at least one row")
        if stamps != [stamp(file) for file in source.files]:
            raise DataError("the dataset changed while it was read", where=path, do="run again when it is complete")
        return DatasetInfo(name, str(path), parser.layout.name, count, fingerprint)

    for _ in range(3):  # a damaged entry can be replaced by another process between writing and opening
        if (rows := open_entry(cache / fingerprint, name, path)) is not None:
            return rows
        kept = repeat(True) if sample is None else _sample(source.count(), *sample)
        records = source.records(kept)
        write_entry(cache / fingerprint, (parser.parse(r, place, n) for n, place, r in records), describe)
    raise EnvironmentProblem("stored rows cannot be read back", where=cache / fingerprint, do="check the disk")


def write_rows(rows: Iterable[Row], path: str | Path) -> int:
    """Write rows as tDRO/Tevatron jsonl, packed where the name ends in `.gz`.

    The file appears under its name only when it is complete. The same rows give the same bytes. An empty title is
    left out.

    Args:
        rows: The rows; read once, one at a time.
        path: A name that ends in `.jsonl` or `.jsonl.gz`; its folder is made if absent.

    Returns:
        How many rows were written.

    Raises:
        ConfigError: The name ends in something else.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> row = Row("q1", "who dances", (Passage("d1", "", "bees"),), ())
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "bees.jsonl")
        ...     write_rows([row], file), file.read_text(encoding="utf-8")[:44]
        (1, '{"query_id": "q1", "query": "who dances", "p')
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError("cannot write this kind of file", where=path, do="let its name end in .jsonl or .jsonl.gz")
    count = 0
    with (
        replacing(path) as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix == ".gz" else nullcontext(file) as out,
    ):
        for row in rows:
            out.write(json.dumps(_tevatron(row), ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def _content(source: Source, cache: Path) -> tuple[list[list[int]], list[str]]:
    """Return the stamps of the source's files, taken first, and the hashes of their bytes."""
    try:
        return [stamp(file) for file in source.files], [content_hash(file, cache) for file in source.files]
    except OSError as problem:
        where = problem.filename
        raise DataError("file cannot be read", where=where, saw=problem.strerror, do="check its rights") from None


def content_hash(file: Path, cache: Path) -> str:
    """Hash the bytes of a file, or recall their hash while its size and times are what they were.

    Args:
        file: The file.
        cache: Folder in which hashes are remembered.

    Returns:
        Hexadecimal digits.
    """
    seen = stamp(file)
    memo = cache / "sources" / f"{_hash_text(str(file.resolve()))}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_bytes())
        if known["stamp"] == seen:
            return str(known["hash"])
    content = hash_file(file)
    if time.time_ns() - max(seen[1:]) > _SETTLED_NS:
        with suppress(OSError):  # it costs time only; a cache that cannot be written is reported when rows are stored
            write_json(memo, {"file": str(file), "stamp": seen, "hash": content})
    return content


def _hash_text(text: str) -> str:
    """Hash text into 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _sample(total: int, wanted: int, seed: int) -> Iterator[bool]:
    """Yield for each of `total` rows whether it is one of a uniform sample of `wanted` rows.

    A row is taken with probability wanted/left, so the sample is full at the end. Source: Knuth, The Art of Computer
    Programming vol. 2, 3.4.2, algorithm S.
    """
    random = np.random.Generator(np.random.Philox(seed))
    for left in range(total, 0, -1):
        taken = random.random() * left < wanted
        wanted -= taken
        yield taken


def _tevatron(row: Row) -> dict[str, Any]:
    """Return a row as it is written."""
    return {
        "query_id": row.query_id,
        "query": row.query,
        "positive_passages": [_written(passage) for passage in row.positives],
        "negative_passages": [_written(passage) for passage in row.negatives],
    }


def _written(passage: Passage) -> dict[str, str]:
    """Return a passage as it is written."""
    title = {"title": passage.title} if passage.title else {}
    return {"docid": passage.id, **title, "text": passage.text}
