"""Read the queries of evaluation sets, and the documents that are relevant to them, from any form they come in.

| path | what is read |
|---|---|
| folder with `queries.jsonl` (BEIR) | queries judged in `qrels/SPLIT.tsv` (without qrels all), relevant documents |
| folder of such folders | all of them |
| `.jsonl`, `.parquet`, a saved dataset, gzipped or not | a query per record, from the column `query`, `question`, ... |
| the same with a column `queries` (MKQA) | the query in every language |
| `.tsv` without header (MIRACL topics) | id and query |
| `.tsv`, `.csv` with a header | the column `query`, `question`, ... |
| `.txt` | a query per line |
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from tdro.data.records import Passage
from tdro.data.sources import find_source
from tdro.errors import DataError

_QUERY_FIELDS = ("query", "question", "text", "anchor", "sentence1", "title")
_ID_FIELDS = ("_id", "id", "query_id", "query-id", "qid", "question_id", "example_id")
_TABLES = (".tsv", ".csv", ".txt")
_ENDINGS = re.compile(r"(\.(jsonl?|parquet|tsv|csv|txt))?(\.gz)?$", re.IGNORECASE)
_ACCEPTED = "give a BEIR folder, MIRACL topics (.tsv), MKQA (.jsonl.gz), or jsonl, csv, tsv or txt with a query per row"


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The queries of an evaluation set.

    Args:
        name: Its name in reports.
        ids: Id of each query.
        queries: Text of each query.
        relevant: For each query, which of the documents are relevant to it; empty tuples where this is not known.
        documents: The documents that are relevant to some query, as far as the corpus has them.
    """

    name: str
    ids: tuple[str, ...]
    queries: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]
    documents: tuple[Passage, ...] = ()


def read_evaluation_sets(path: Path, *, split: str = "test", name: str = "") -> list[EvaluationSet]:
    """Read the evaluation sets that a path holds.

    Args:
        path: A file or folder, see the table above.
        split: Of BEIR folders.
        name: Of the set; empty: that of the file or folder.

    Returns:
        At least one set.

    Raises:
        DataError: Nothing is there, or no query can be found in it; names file, line and field.
    """
    if path.is_dir() and not _is_beir(path):
        folders = [child for child in sorted(path.iterdir()) if _is_beir(child)]
        if folders:
            return [_read_beir(folder.name, folder, split) for folder in folders]
    name = name or name_of(path)
    if _is_beir(path):
        return [_read_beir(name, path, split)]
    is_table = path.is_file() and path.name.lower().removesuffix(".gz").endswith(_TABLES)
    pairs = list(_table_queries(path) if is_table else _record_queries(path))
    if not pairs:
        raise DataError("evaluation set without queries", where=path, do=_ACCEPTED)
    ids, queries = zip(*pairs, strict=True)
    return [EvaluationSet(name, ids, queries, ((),) * len(ids))]


def name_of(path: Path) -> str:
    """Return the name of a file without what tells its kind.

    Example:
        >>> name_of(Path("eval/topics.miracl-v1.0-sw-dev.tsv.gz")), name_of(Path("beir/scifact"))
        ('topics.miracl-v1.0-sw-dev', 'scifact')
    """
    return _ENDINGS.sub("", path.resolve().name)


def _is_beir(path: Path) -> bool:
    """Whether a path is a folder in BEIR layout."""
    return _packed_or_not(path, "queries.jsonl") is not None


def _packed_or_not(folder: Path, name: str) -> Path | None:
    """Return a file of a folder, gzipped or not; None where it is not there."""
    return next((folder / n for n in (name, f"{name}.gz") if (folder / n).is_file()), None)


def _read_beir(name: str, folder: Path, split: str) -> EvaluationSet:
    """Read the queries of a BEIR folder and their relevant documents."""
    relevant = _relevant(folder, split)
    queries_path, corpus_path = _packed_or_not(folder, "queries.jsonl"), _packed_or_not(folder, "corpus.jsonl")
    assert queries_path is not None  # a folder is in BEIR layout because of it
    queries = {
        query_id: text
        for query_id, text, _ in _records_with_id(queries_path)
        if relevant is None or query_id in relevant
    }
    if not queries:
        do = "check that the ids of qrels and queries match"
        raise DataError("no judged query has a text", where=queries_path, do=do)
    wanted = {document for query_id in queries for document in (relevant or {}).get(query_id, ())}
    documents: dict[str, Passage] = {}
    if wanted and corpus_path is not None:
        for identifier, text, title in _records_with_id(corpus_path):
            if identifier in wanted:
                documents[identifier] = Passage(identifier, title, text)
    place = {identifier: i for i, identifier in enumerate(documents)}
    known = tuple(tuple(place[d] for d in (relevant or {}).get(q, ()) if d in place) for q in queries)
    return EvaluationSet(name, tuple(queries), tuple(queries.values()), known, tuple(documents.values()))


def _relevant(folder: Path, split: str) -> dict[str, list[str]] | None:
    """Read the relevant documents of every judged query; None where the folder has no qrels at all."""
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = sorted(file.stem for file in folder.glob("qrels/*.tsv"))
        if not splits:
            return None
        do = f"choose one of: {', '.join(splits)}"
        raise DataError("evaluation set without qrels of this split", where=path, saw=splits, do=do)
    relevant: dict[str, list[str]] = {}
    for place, fields in _lines(path, "\t"):
        fields = fields if len(fields) > 1 else fields[0].split()
        if len(fields) not in (3, 4):
            do = "write query-id, corpus-id and score, separated by tabs"
            raise DataError("judgement needs three or four columns", where=place, saw=fields, do=do)
        try:
            score = float(fields[-1])
        except ValueError:
            if not relevant:  # the header
                continue
            raise DataError("score is not a number", where=f"{place}:score", saw=fields[-1], do="use 0, 1, 2") from None
        judged = relevant.setdefault(fields[0].strip(), [])
        if score > 0:
            judged.append(fields[-2].strip())
    return relevant


def _records_with_id(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield id, text and title of the records of a BEIR file."""
    for _, place, record in find_source(path).records(repeat(True)):
        if not isinstance(record, dict):
            raise DataError("line is not a JSON object", where=place, saw=record, do="write one JSON object per line")
        identifier = record.get("_id", record.get("id"))
        if identifier is None:
            raise DataError("id is missing", where=f"{place}:_id", saw=record, do="give every record an `_id`")
        yield str(identifier), _text(record.get("text"), f"{place}:text"), str(record.get("title") or "")


def _record_queries(path: Path) -> Iterator[tuple[str, str]]:
    """Yield id and query of every record of a jsonl or parquet file."""
    for number, place, record in find_source(path).records(repeat(True)):
        if not isinstance(record, dict):
            raise DataError("line is not a JSON object", where=place, saw=record, do="write one JSON object per line")
        identifier = str(next((record[field] for field in _ID_FIELDS if record.get(field) is not None), number))
        if isinstance(record.get("queries"), dict):
            for language, text in record["queries"].items():
                if text:
                    yield f"{identifier}:{language}", _text(text, f"{place}:queries.{language}")
            continue
        field = next((field for field in _QUERY_FIELDS if field in record), None)
        if field is None:
            do = f"name the column of the query one of: {', '.join(_QUERY_FIELDS)}"
            raise DataError("record without query", where=place, saw=list(record), do=do)
        yield identifier, _text(record[field], f"{place}:{field}")


def _table_queries(path: Path) -> Iterator[tuple[str, str]]:
    """Yield id and query of every line of a txt, tsv or csv file."""
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    column: int | None = None
    id_column: int | None = None
    for number, (place, fields) in enumerate(_lines(path, {"tsv": "\t", "csv": ","}.get(kind)), start=1):
        if number == 1 and kind != "txt":
            names = [field.strip().lower() for field in fields]
            column = next((names.index(field) for field in _QUERY_FIELDS if field in names), None)
            id_column = next((names.index(field) for field in _ID_FIELDS if field in names), None)
            if column is not None:
                continue
            if kind == "csv" and len(fields) > 1:
                do = f"begin with a line of column names, one of them: {', '.join(_QUERY_FIELDS)}"
                raise DataError("table without a query column", where=place, saw=fields, do=do)
            column, id_column = (1, 0) if len(fields) > 1 else (0, None)
        at = column or 0
        if at >= len(fields):
            raise DataError("row with too few columns", where=place, saw=fields, do="give every row its query")
        identifier = fields[id_column].strip() if id_column is not None and id_column < len(fields) else str(number)
        yield identifier, fields[at]


def _lines(path: Path, delimiter: str | None) -> Iterator[tuple[str, list[str]]]:
    """Yield place and fields of every line that is not blank; one field where there is no delimiter."""
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2).startswith(b"\x1f\x8b")
            file = io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, "utf-8-sig", newline="")
            if delimiter == ",":
                table = csv.reader(file)
                for fields in table:
                    number = table.line_num
                    if any(field.strip() for field in fields):
                        yield f"{path}:{number}", fields
                return
            for number, line in enumerate(file, start=1):
                line = line.rstrip("\r\n")
                if line.strip():
                    yield f"{path}:{number}", line.split(delimiter) if delimiter else [line]
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, csv.Error) as problem:
        do = "save it as UTF-8 text, or write it again"
        raise DataError("file cannot be read", where=f"{path}:{number + 1}", saw=str(problem), do=do) from None


def _text(value: Any, where: str) -> str:
    """Return a text, checked."""
    if not isinstance(value, str):
        raise DataError("query or document is not a string", where=where, saw=value, do="write it as text")
    return value
