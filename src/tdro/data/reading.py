"""Read datasets of any accepted form into memory-mapped rows, once.

files -> records (`sources`) -> rows (`layouts`) -> Arrow on disk (`store`). The first call checks every row and
stores the dataset in `cache/FINGERPRINT/`; later calls map what is there. The fingerprint covers the bytes of the
files, the dataset's name, the sample and the version of the stored form.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count, repeat
from pathlib import Path

import numpy as np

from tdro.config import Study
from tdro.data.hub import fetch, is_address
from tdro.data.layouts import RowParser
from tdro.data.lines import decode
from tdro.data.lookup import Lookup
from tdro.data.records import DatasetInfo, Row
from tdro.data.sources import Source, find_source
from tdro.data.store import Rows, hash_file, open_entry, stamp, write_entry
from tdro.data.text_files import IN_THE_ROWS, Collections, open_lookup
from tdro.data.writing import write_rows
from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.files import cache_folder, read_json, write_json

__all__ = [
    "Collections", "Rows", "Scan", "content_hash", "read_dataset", "read_study_dataset", "scan_rows", "texts_of",
    "write_rows",
]  # fmt: skip

_STORED_FORM = 1  # part of every fingerprint: raise it when the rows stored of the same files would differ
_SETTLED_NS = 2_000_000_000  # a file changed more recently than this could change again under the same time stamp


def read_dataset(
    name: str,
    path: str | Path | Sequence[str | Path],
    *,
    cache: str | Path,
    max_rows: int | None = None,
    seed: int = 0,
    texts: Collections = IN_THE_ROWS,
) -> Rows:
    """Read a dataset, or map what an earlier call has read.

    A source is a `.jsonl`, `.json`, `.csv`, `.tsv` (each also `.gz`) or `.parquet` file, a folder of such files (of
    one kind, read in the order of their names), a folder saved by `datasets.save_to_disk`, a BEIR folder
    (`FOLDER#SPLIT`, or `FOLDER` for the split `train`) or `hf://OWNER/NAME:SPLIT`. Several sources, of any kinds and
    layouts, become one dataset. The first row of a source tells its layout (`tdro.data.layouts`). Every row that is
    kept is checked; the first bad one ends the call and leaves nothing in the cache. Memory grows neither with the
    rows nor with the files; of a BEIR folder, an index of its texts and judgements is held while it is read.

    Args:
        name: The dataset's name; it starts the query ids that are made where the source has none.
        path: The source, or several.
        cache: Folder of the stored rows; made if absent, shared by processes, safe to delete between runs.
        max_rows: Keep a uniform random sample of this many rows, in file order; None keeps all. Rows outside the
            sample are not checked.
        seed: Seed of the sample.
        texts: Files with the texts of queries and passages, where the rows have ids only.

    Returns:
        The rows, memory-mapped. Ranks and prompts of the source are not kept; `Scan` reads them.

    Raises:
        DataError: The source or one of its rows cannot be used; says where, the value seen and what to do.
        ConfigError: `max_rows` is below 1 or `seed` below 0, or no path is given.
        EnvironmentProblem: The cache cannot be written, or the hub not be reached.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "bees.jsonl")
        ...     _ = file.write_text('{"query": "who dances", "pos": ["bees"], "neg": ["trees"]}', encoding="utf-8")
        ...     rows = read_dataset("bees", file, cache=Path(folder, "cache"))
        ...     len(rows), rows.info.layout, rows[0].negatives[0].text
        (1, 'flagembedding', 'trees')
    """
    paths, cache = [path] if isinstance(path, str | Path) else list(path), Path(cache)
    if not paths:
        raise ConfigError("a dataset needs a file", where=name, do="give at least one path")
    if seed < 0:
        raise ConfigError("seed must not be negative", where=name, saw=seed, do="give 0 or a positive whole number")
    sources, behind = [_locate(path, cache) for path in paths], texts.given
    files = [*sources, *behind.values()]
    stamps, contents = zip(*(_content(source, cache) for source in files), strict=True)
    sample = None if max_rows is None else (_checked(max_rows, name), seed)
    read = [[source.kind, content] for source, content in zip(sources, contents, strict=False)]
    parts = [_STORED_FORM, name, *(read[0] if len(read) == 1 else [read]), sample]
    parts += [dict(zip(behind, contents[len(sources) :], strict=True))] if behind else []
    fingerprint = _hash_text(json.dumps(parts))
    shown = ", ".join(map(str, paths))
    parsers: list[RowParser] = []

    def rows() -> Iterator[Row]:
        """Read the sources one after the other."""
        kept = repeat(True) if sample is None else _sample(_count(sources, paths), *sample)
        numbers = count(1)
        with open_lookup(texts) as lookup:
            parsers[:] = [RowParser(name, lookup) for _ in sources]
            for source, parser in zip(sources, parsers, strict=True):
                for number, place, record in source.records(kept, numbers):
                    yield parser.parse(record, place, number)

    def describe(rows: int) -> DatasetInfo:
        """Return what is known once every row was read."""
        layouts = [_layout(source, parser) for source, parser in zip(sources, parsers, strict=True)]
        for path, layout in zip(paths, layouts, strict=True):
            if layout is None and sample is None:
                raise _empty(path)
        if list(stamps) != [_stamps(source) for source in files]:
            raise DataError("the dataset changed while it was read", where=shown, do="run again when it is complete")
        return DatasetInfo(name, shown, " + ".join(dict.fromkeys(filter(None, layouts))), rows, fingerprint)

    for _ in range(3):  # a damaged entry can be replaced by another process between writing and opening
        if (stored := open_entry(cache / fingerprint, name, shown)) is not None:
            return stored
        write_entry(cache / fingerprint, rows(), describe)
    raise EnvironmentProblem("stored rows cannot be read back", where=cache / fingerprint, do="check the disk")


def read_study_dataset(study: Study, name: str) -> Rows:
    """Read a dataset of a study with the study's options, through the cache of this machine."""
    max_rows = study.data.datasets[name].max_rows or study.data.max_rows
    cache, texts = cache_folder() / "datasets", texts_of(study, name)
    return read_dataset(name, study.files_of(name), cache=cache, max_rows=max_rows, seed=study.seed, texts=texts)


def texts_of(study: Study, name: str) -> Collections:
    """Return where the texts of a study's dataset are, if its rows have ids only."""
    options = study.data.datasets[name]
    queries, passages = (study.locate(path) if path else None for path in (options.queries, options.passages))
    return Collections(queries, passages)


class Scan:
    """Every record of a dataset, one after the other: its place, and its row or what is wrong with it.

    A bad record does not end the scan. What cannot be read any further, such as a gzip file that is cut off, gives
    one last error, and the next file follows. Nothing is stored.

    Args:
        name: The dataset's name; it starts the query ids that are made where the source has none.
        paths: Files, folders and addresses, as for `read_dataset`.
        max_rows: Look at a uniform random sample of this many rows only, the one that `read_dataset` draws.
        seed: Seed of the sample.
        texts: Files with the texts of queries and passages, where the rows have ids only.

    Attributes:
        layouts: Path -> layout; filled while the rows are read.
        unread: Columns, and fields of passages, that were there and have no place in a row.
        cut_short: The errors after which something of a file was left unread.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str | Path],
        *,
        max_rows: int | None = None,
        seed: int = 0,
        texts: Collections = IN_THE_ROWS,
    ) -> None:
        self._name, self._paths, self._texts = name, paths, texts
        self._sample = None if max_rows is None else (_checked(max_rows, name), seed)
        self.layouts: dict[str, str] = {}
        self.unread: set[str] = set()
        self.cut_short: list[DataError] = []

    def __iter__(self) -> Iterator[tuple[str, Row | DataError]]:
        with ExitStack() as stack:
            try:
                lookup = stack.enter_context(open_lookup(self._texts))
            except DataError as problem:
                yield self._stop(problem)
            else:
                yield from self._found(lookup)

    def _found(self, lookup: Lookup) -> Iterator[tuple[str, Row | DataError]]:
        """Go through the rows."""
        cache = cache_folder() / "datasets"
        kept: Iterator[bool] = repeat(True)
        if self._sample is not None:
            sources = [_locate(path, cache) for path in self._paths]
            kept = _sample(_count(sources, self._paths), *self._sample)
        numbers = count(1)
        for path in self._paths:
            try:
                source = _locate(path, cache)
            except DataError as problem:
                yield self._stop(problem)
                continue
            parser = RowParser(self._name, lookup)
            for stream in source.streams():
                try:
                    for (place, unit), number, keep in zip(stream, numbers, kept, strict=False):
                        if keep:
                            try:
                                found: Row | DataError = parser.parse(decode(unit, place), place, number)
                            except DataError as problem:
                                found = problem
                            yield place, found
                except DataError as problem:
                    yield self._stop(problem)
            self.layouts[str(path)] = _layout(source, parser) or "none"
            self.unread |= parser.unread

    def _stop(self, problem: DataError) -> tuple[str, DataError]:
        """Note an error after which a file is left."""
        self.cut_short.append(problem)
        return str(problem.where), problem


def scan_rows(name: str, paths: Sequence[str | Path]) -> Iterator[tuple[str, Row | DataError]]:
    """Yield the place of every record of a dataset and its row, or what is wrong with it; go on after a bad record.

    What cannot be read any further, such as a gzip file that is cut off, gives one last error; the next file follows.

    Args:
        name: The dataset's name; it starts the query ids that are made where the source has none.
        paths: Files, folders and addresses, as for `read_dataset`.

    Yields:
        `file:line` (or `file:row N` of a table), and the row or a DataError.
    """
    return iter(Scan(name, paths))


def _locate(path: str | Path, cache: Path) -> Source:
    """Find the files of a path; a dataset of the hub is fetched."""
    return find_source(fetch(str(path), cache / "hub") if is_address(path) else Path(path))


def _layout(source: Source, parser: RowParser) -> str | None:
    """Return the layout of a source, once a row of it was read."""
    if parser.layout is None:
        return None
    return "beir" if source.kind == "beir" else parser.layout.name


def _empty(path: str | Path) -> DataError:
    """Say that a source has no rows."""
    return DataError("empty dataset", where=path, do="give a file with at least one row")


def _checked(max_rows: int, name: str) -> int:
    """Return the size of a sample, checked."""
    if max_rows < 1:
        raise ConfigError("max_rows must be at least 1", where=name, saw=max_rows, do="leave it out to keep all rows")
    return max_rows


def _count(sources: Sequence[Source], paths: Sequence[str | Path]) -> int:
    """Count the rows of all sources; each must have some."""
    counts = [source.count() for source in sources]
    for path, rows in zip(paths, counts, strict=True):
        if rows == 0:
            raise _empty(path)
    return sum(counts)


def _stamps(source: Source) -> list[list[int]]:
    """Return the stamps of the source's files."""
    return [stamp(file) for file in source.files]


def _content(source: Source, cache: Path) -> tuple[list[list[int]], list[str]]:
    """Return the stamps of the source's files, taken first, and the hashes of their bytes."""
    try:
        return _stamps(source), [content_hash(file, cache) for file in source.files]
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
        known = read_json(memo)
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
