"""Read the queries and the judgements of evaluation sets; every error names file, line and field."""

from itertools import repeat
from pathlib import Path

from tdro.data.beir import whole_score
from tdro.data.records import Passage
from tdro.data.sources import find_source
from tdro.errors import DataError


def read_queries(path: Path) -> dict[str, str]:
    """Read `queries.jsonl`, gzipped or not, as id -> text, in file order.

    Ids are called `_id` or `id` and are strings or integers; a title, which some have, comes before the text.

    Raises:
        DataError: The file is damaged or empty; an id is repeated, empty or contains white space; a text is missing.
    """
    texts: dict[str, str] = {}
    for _, where, record in find_source(path).records(repeat(True)):
        if not isinstance(record, dict):
            raise DataError("line is not a JSON object", where=where, saw=record)
        field = "_id" if "_id" in record else "id"
        identifier = read_id(record.get(field), f"{where}:{field}")
        title = "" if record.get("title") is None else _string(record, "title", where)
        _add(
            texts, identifier, Passage(identifier, title, _string(record, "text", where)).full_text, f"{where}:{field}"
        )
    if not texts:
        raise DataError("file is empty", where=path, do="give at least one line")
    return texts


def read_topics(path: Path) -> dict[str, str]:
    """Read the queries of MIRACL, an id, a tab and a text per line, as id -> text, in file order.

    Raises:
        DataError: The file cannot be read or is empty; a line lacks its tab; an id is repeated or empty.
    """
    texts: dict[str, str] = {}
    for where, line in _lines(path):
        identifier, tab, text = line.partition("\t")
        if not tab:
            raise DataError("line without a tab", where=where, saw=line, do="write id, tab, query")
        _add(texts, read_id(identifier, f"{where}:id"), text.strip(), f"{where}:id")
    if not texts:
        raise DataError("file is empty", where=path, do="give at least one line")
    return texts


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements as query id -> document id -> relevance.

    Three columns (query, document, score) as in BEIR or four (query, ignored, document, score) as in TREC, separated
    by tabs or else by white space, with or without a header.

    Raises:
        DataError: The file cannot be read or is empty; a line has other columns, an id that is none, or a score that is
            no whole number; a document is judged twice, differently.
    """
    qrels: dict[str, dict[str, int]] = {}
    for where, line in _lines(path):
        fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
        if len(fields) not in (3, 4):
            do = "write query-id, corpus-id and score, separated by tabs"
            raise DataError("judgement needs three or four columns", where=where, saw=line, do=do)
        if where.endswith(":1") and fields[-1].lower() in {"score", "relevance", "rel", "label"}:
            continue
        query_id = read_id(fields[0], f"{where}:query-id")
        document = read_id(fields[-2], f"{where}:corpus-id")
        relevance = whole_score(fields[-1], f"{where}:score")
        if qrels.setdefault(query_id, {}).setdefault(document, relevance) != relevance:
            raise DataError("document is judged twice, differently", where=where, saw=line, do="keep one judgement")
    if not qrels:
        raise DataError("qrels are empty", where=path, do="give at least one judgement")
    return qrels


def read_id(value: object, where: str) -> str:
    """Return an id as a string that a run file can hold.

    Raises:
        DataError: It is neither string nor integer, is empty, or contains white space.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError("id is missing, or neither string nor integer", where=where, saw=value)
    identifier = str(value)
    if len(identifier.split()) != 1 or identifier != identifier.strip():
        raise DataError("id is empty or contains white space", where=where, saw=value, do="rename it, in the qrels too")
    return identifier


def _add(texts: dict[str, str], identifier: str, text: str, where: str) -> None:
    """Add a query."""
    if identifier in texts:
        raise DataError("id occurs twice", where=where, saw=identifier, do="keep one of the two")
    texts[identifier] = text


def _string(record: dict[str, object], field: str, where: str) -> str:
    """Return a field that must be a string."""
    value = record.get(field)
    if not isinstance(value, str):
        raise DataError(f"{field} is missing or not a string", where=f"{where}:{field}", saw=value)
    return value


def _lines(path: Path) -> list[tuple[str, str]]:
    """Read the lines that are not blank, each with its place."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError("file cannot be read", where=path, saw=str(problem), do="save it as UTF-8") from problem
    return [(f"{path}:{number}", line.rstrip("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
