"""Write rows in any layout that is read, and tell what the layout has no room for."""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from tdro.data.delimited import DELIMITERS
from tdro.data.fields import is_made
from tdro.data.layouts import WrittenLayout
from tdro.data.records import Passage, Row
from tdro.data.store import replacing
from tdro.errors import ConfigError, DataError
from tdro.files import atomic_folder, atomic_path

_TABLE_ROWS = 2_000  # rows of a parquet file that are held at a time
_ENDINGS = {
    "tevatron": (".jsonl", ".jsonl.gz"),
    "flagembedding": (".jsonl", ".jsonl.gz"),
    "sentence-transformers": (".jsonl", ".jsonl.gz", ".parquet"),
    "csv": (".csv", ".csv.gz"),
    "tsv": (".tsv", ".tsv.gz"),
}


@dataclass(slots=True)
class Written:
    """What became of rows.

    Args:
        rows: Rows that came in.
        records: Records that were written: lines, rows of a table, queries of a BEIR folder.
        lost: What the layout has no room for -> how often it was there. Titles that stand before the text in one
            string are in this list, too: they are there, but no longer told apart.
    """

    rows: int = 0
    records: int = 0
    lost: Counter[str] = field(default_factory=Counter)


def write_rows(rows: Iterable[Row], path: str | Path) -> int:
    """Write rows as tDRO/Tevatron jsonl, packed where the name ends in `.gz`.

    The file appears under its name only when it is complete. The same rows give the same bytes. What a row or passage
    does not have (title, score, rank, model, prompt) is left out.

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
    path = check_target(path, "tevatron")
    return _write_json((_tevatron(row) for row in rows), path)


def write_dataset(
    rows: Iterable[Row], path: str | Path, layout: WrittenLayout, *, negatives: int | None = None
) -> Written:
    """Write rows in a layout; the file or folder appears under its name only when it is complete.

    | layout | written to | a row becomes |
    |---|---|---|
    | tevatron | .jsonl, .jsonl.gz | a line with everything |
    | flagembedding | .jsonl, .jsonl.gz | a line; scores where every positive (or negative) has one |
    | sentence-transformers | .jsonl, .jsonl.gz, .parquet | a record per positive: anchor, positive, negative(s) |
    | csv, tsv | .csv, .tsv, also .gz | the same, as a table with a first line that names the columns |
    | beir | a new folder | documents, a query, judgements of the split train: positives 1, negatives 0 |

    Rows are read once, one at a time. Of a BEIR folder, hashes of ids, texts and judgements are held.

    Args:
        rows: The rows.
        path: Where they are written to.
        layout: One of `WrittenLayout`.
        negatives: Keep the first so many negatives of each row. A table needs as many in every row: without this
            number as many as the first row has, and another row with more or fewer is refused.

    Returns:
        What was written and what was not.

    Raises:
        ConfigError: The name does not fit the layout, or the folder holds something already.
        DataError: There are no rows, or one of them cannot be written in this layout.
    """
    path = check_target(path, layout)
    written = Written()
    counted = _cut(rows, negatives, written)
    if layout == "tevatron":
        written.records = _write_json((_tevatron(row) for row in counted), path, _needed)
    elif layout == "flagembedding":
        written.records = _write_json((_flagembedding(row, written.lost) for row in counted), path, _needed)
    elif layout == "beir":
        written.records = _write_beir(counted, path, written.lost)
    else:
        table = _table(counted, negatives, written.lost)
        if layout in DELIMITERS:
            written.records = _write_delimited(table, path, DELIMITERS[layout])
        elif path.suffix == ".parquet":
            written.records = _write_parquet(table, path)
        else:
            written.records = _write_json(table, path, _needed)
    return written


def check_target(path: str | Path, layout: WrittenLayout) -> Path:
    """Refuse a name that the layout cannot be written to.

    Raises:
        ConfigError: The name ends in something else, or the folder of a BEIR dataset is not new.
    """
    path = Path(path)
    if layout not in get_args(WrittenLayout):
        do = f"choose one of {', '.join(get_args(WrittenLayout))}"
        raise ConfigError("unknown layout", saw=layout, do=do)
    if layout == "beir":
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ConfigError("there is something already", where=path, do="give the name of a new folder")
    elif not path.name.endswith(_ENDINGS[layout]) or path.is_dir():
        do = f"let its name end in {' or '.join(_ENDINGS[layout])}"
        raise ConfigError(f"cannot write {layout} to this name", where=path, do=do)
    return path


def _needed(count: int) -> None:
    """Refuse to write nothing."""
    if count == 0:
        raise DataError("there are no rows to write", do="give a dataset with at least one row")


def _cut(rows: Iterable[Row], negatives: int | None, written: Written) -> Iterator[Row]:
    """Count rows, and yield them with no more negatives than asked for."""
    for row in rows:
        written.rows += 1
        if negatives is not None and len(row.negatives) > negatives:
            written.lost["negatives"] += len(row.negatives) - negatives
            row = Row(row.query_id, row.query, row.positives, row.negatives[:negatives], row.prompt)
        yield row


@contextmanager
def _packing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears when it is complete, packed where its name ends in `.gz`."""
    with replacing(path) as file:
        packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix == ".gz" else nullcontext(file)
        with packed as out:
            yield out  # type: ignore[misc]


def _line(record: dict[str, Any]) -> bytes:
    """Return a record as a line of JSON."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _write_json(records: Iterable[dict[str, Any]], path: Path, check: Callable[[int], None] | None = None) -> int:
    """Write one record per line; return how many."""
    count = 0
    with _packing(path) as out:
        for record in records:
            out.write(_line(record))
            count += 1
        if check is not None:
            check(count)
    return count


def _tevatron(row: Row) -> dict[str, Any]:
    """Return a row as it is written in the tevatron layout."""
    record: dict[str, Any] = {"query_id": row.query_id, "query": row.query}
    if row.prompt:
        record["prompt"] = row.prompt
    record["positive_passages"] = [_passage(passage) for passage in row.positives]
    record["negative_passages"] = [_passage(passage) for passage in row.negatives]
    return record


def _passage(passage: Passage) -> dict[str, Any]:
    """Return a passage as it is written in the tevatron layout."""
    record: dict[str, Any] = {"docid": passage.id}
    if passage.title:
        record["title"] = passage.title
    record["text"] = passage.text
    if passage.score is not None:
        record["score"] = passage.score
    if passage.rank is not None:
        record["rank"] = passage.rank
    if passage.model:
        record["model"] = passage.model
    return record


def _flagembedding(row: Row, lost: Counter[str]) -> dict[str, Any]:
    """Return a row as it is written in the flagembedding layout."""
    record: dict[str, Any] = {"query_id": row.query_id, "query": row.query}
    sides = {"pos": row.positives, "neg": row.negatives}
    for column, passages in sides.items():
        record[column] = [passage.full_text for passage in passages]
    for column, passages in sides.items():
        scores = [passage.score for passage in passages]
        if scores and None not in scores:
            record[f"{column}_scores"] = scores
        else:
            lost["scores"] += sum(score is not None for score in scores)
    if row.prompt:
        record["prompt"] = row.prompt
    _note_lost(chain(row.positives, row.negatives), lost, scores=False)
    return record


def _note_lost(passages: Iterable[Passage], lost: Counter[str], *, scores: bool = True, ids: bool = True) -> None:
    """Count what a passage written as mere text loses, or with its id and title where `ids` is false."""
    for passage in passages:
        if ids:
            lost["passage ids"] += not is_made(passage)
            lost["titles (now part of the text)"] += bool(passage.title)
        if scores:
            lost["scores"] += passage.score is not None
        lost["ranks"] += passage.rank is not None
        lost["names of scoring models"] += bool(passage.model)


def _table(rows: Iterable[Row], negatives: int | None, lost: Counter[str]) -> Iterator[dict[str, str]]:
    """Yield the records of a table: for every positive of a row the query, it, and the row's negatives."""
    columns: list[str] = []
    for row in rows:
        count = len(row.negatives)
        if not columns:
            wanted = count if negatives is None else negatives
            numbered = ["negative"] if wanted == 1 else [f"negative_{i + 1}" for i in range(wanted)]
            columns = ["anchor", "positive", *numbered]
        if count != len(columns) - 2:
            what = f"this row has {count} negatives, not {len(columns) - 2}; a table needs as many in every row"
            do = "add --negatives N, at most the smallest number of any row; 0 writes pairs"
            raise DataError(what, where=f"query {row.query_id}", saw=row.query, do=do)
        lost["query ids"] += 1
        lost["prompts"] += bool(row.prompt)
        _note_lost(chain(row.positives, row.negatives), lost)
        texts = [passage.full_text for passage in row.negatives]
        for positive in row.positives:
            yield dict(zip(columns, (row.query, positive.full_text, *texts), strict=True))


def _write_parquet(records: Iterator[dict[str, str]], path: Path) -> int:
    """Write a table as parquet; return the number of its rows."""
    count = 0
    with atomic_path(path) as temporary, ExitStack() as stack:
        while batch := list(islice(records, _TABLE_ROWS)):
            if count == 0:
                schema = pa.schema([(column, pa.string()) for column in batch[0]])
                writer = stack.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd"))
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
        _needed(count)
        stack.close()  # the end of a parquet file is written before the file gets its name
    return count


class _Text:
    """Encodes the lines of a csv writer that ends them with CR LF, so that it quotes both; they end with LF."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write a line."""
        return self._out.write(text.removesuffix("\r\n").encode() + b"\n")


def _write_delimited(records: Iterator[dict[str, str]], path: Path, delimiter: str) -> int:
    """Write a table as text; return the number of its rows."""
    count = 0
    with _packing(path) as out:
        writer = csv.writer(_Text(out), delimiter=delimiter)
        for record in records:
            if count == 0:
                writer.writerow(record)
            for cell in record.values():
                if "\0" in cell:
                    raise DataError("a table of texts cannot hold a NUL character", saw=cell, do="remove the row")
            writer.writerow(record.values())
            count += 1
        _needed(count)
    return count


def _write_beir(rows: Iterable[Row], folder: Path, lost: Counter[str]) -> int:
    """Write rows as a BEIR folder; return the number of its queries."""
    with atomic_folder(folder) as temporary, ExitStack() as stack:
        (temporary / "qrels").mkdir()
        corpus, queries, qrels = (
            stack.enter_context((temporary / name).open("wb"))
            for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")
        )
        qrels.write(b"query-id\tcorpus-id\tscore\n")
        documents: dict[int, int] = {}
        asked: dict[int, int] = {}
        judged: dict[int, bool] = {}
        for row in rows:
            if _is_new(asked, row.query_id, row.query, f"query {row.query_id}"):
                queries.write(_line({"_id": row.query_id, "text": row.query}))
            for passage, relevant in chain(((p, True) for p in row.positives), ((p, False) for p in row.negatives)):
                where = f"query {row.query_id}, passage {passage.id}"
                if _is_new(documents, passage.id, f"{passage.title}\n{passage.text}", where):
                    corpus.write(_line({"_id": passage.id, "title": passage.title, "text": passage.text}))
                known = judged.get(key := _hash(f"{row.query_id}\n{passage.id}"))
                if known is None:
                    judged[key] = relevant
                    qrels.write(f"{row.query_id}\t{passage.id}\t{int(relevant)}\n".encode())
                elif known is not relevant:
                    do = "remove the passage from the negatives of this query"
                    raise DataError("a passage is a positive and a negative of one query", where=where, do=do)
            _note_lost(chain(row.positives, row.negatives), lost, ids=False)
            lost["prompts"] += bool(row.prompt)
        _needed(len(asked))
        stack.close()
    return len(asked)


def _is_new(known: dict[int, int], identifier: str, text: str, where: str) -> bool:
    """Note what an id stands for; tell whether it is met for the first time."""
    if identifier.split() != [identifier]:
        do = "rename it, or choose another layout"
        raise DataError("an id with white space cannot stand in qrels", where=where, saw=identifier, do=do)
    content = _hash(text)
    key = _hash(identifier)
    if key not in known:
        known[key] = content
        return True
    if known[key] != content:
        what, do = "one id stands for two texts", "give them different ids, or convert to another layout"
        raise DataError(what, where=where, saw=text, do=do)
    return False


def _hash(text: str) -> int:
    """Hash a text to 64 bits."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
