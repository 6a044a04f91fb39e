"""Read a folder in BEIR layout as training rows: a query, what is relevant to it, what was judged and is not.

The texts stay on disk: in memory are 16 bytes per document and query, and about 40 per judgement.
"""

import codecs
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np

from tdro.data.lines import LONGEST_LINE, as_text, decode, numbered_lines, opened, reading, too_long
from tdro.errors import DataError

_QRELS = "write query-id, corpus-id and score, separated by tabs"
_SCORE_NAMES = ("score", "relevance", "rel", "label")
_FORM = "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (query-id, corpus-id, score)"


def is_beir(folder: Path) -> bool:
    """Tell whether a folder has at least two of the three parts of a BEIR folder."""
    texts = [any((folder / f"{part}.jsonl{end}").is_file() for end in ("", ".gz")) for part in ("corpus", "queries")]
    return sum((*texts, (folder / "qrels").is_dir())) > 1


def find_beir(folder: Path, split: str) -> tuple[Path, Path, Path]:
    """Find corpus, queries and qrels of a BEIR folder.

    Raises:
        DataError: One of them is absent.
    """
    found = []
    for part in ("corpus", "queries"):
        files = [folder / f"{part}.jsonl{end}" for end in ("", ".gz")]
        there = [file for file in files if file.is_file()]
        if not there:
            raise DataError(f"BEIR folder without {part}", where=files[0], saw=_names(folder), do=_FORM)
        found.append(there[0])
    qrels = folder / "qrels" / f"{split}.tsv"
    if not qrels.is_file():
        splits = [name.removesuffix(".tsv") for name in _names(folder / "qrels") if name.endswith(".tsv")]
        do = f"choose a split: {' or '.join(f'{folder}#{other}' for other in splits)}" if splits else _FORM
        raise DataError(f"BEIR folder without judgements of the split {split}", where=qrels, saw=splits, do=do)
    return found[0], found[1], qrels


def count_beir(qrels: Path) -> int:
    """Count the queries for which something is relevant."""
    return len({_key(query) for _, query, _, score in _judgements(qrels) if score > 0})


def beir_records(corpus: Path, queries: Path, qrels: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of a record for every query for which something is relevant.

    Documents with a score above 0 are positives, the others that were judged are negatives. Records are in the order
    in which the queries are judged first, passages in the order of their judgements. A document that has a title
    only has it as its text.

    Args:
        corpus: Documents: `_id`, `title`, `text`.
        queries: Queries: `_id`, `text`.
        qrels: Judgements: query, document, score.

    Yields:
        `qrels:line` of the query's first judgement, and a record in the tevatron layout; or a DataError where
        documents or the query are unknown, or a document is judged twice, differently.

    Raises:
        DataError: A file cannot be read any further.
    """
    line_J, query_J, document_J, relevant_J = _judged(qrels)
    if not len(line_J):
        return
    with ExitStack() as stack:
        texts, documents = (stack.enter_context(_Texts(file)) for file in (queries, corpus))
        query_at_J, document_at_J = texts.find(query_J), documents.find(document_J)
        _, first_Q, of_J = np.unique(query_J, return_index=True, return_inverse=True)
        first_J = first_Q[of_J]
        order_J = np.argsort(first_J, kind="stable")
        for part_J in np.split(order_J, np.flatnonzero(np.diff(first_J[order_J])) + 1):
            if not relevant_J[part_J].any():
                continue
            place = f"{qrels}:{line_J[part_J[0]]}"
            sides: tuple[dict[int, None], dict[int, None]] = ({}, {})
            for at, relevant in zip(document_at_J[part_J].tolist(), relevant_J[part_J].tolist(), strict=True):
                sides[0 if relevant else 1][at] = None
            unknown_J = part_J[document_at_J[part_J] < 0]
            if query_at_J[part_J[0]] < 0:
                yield place, _unknown(f"{place}:query-id", "query", queries)
            elif len(unknown_J):
                yield place, _unknown(f"{qrels}:{line_J[unknown_J[0]]}:corpus-id", "document", corpus)
            elif sides[0].keys() & sides[1].keys():
                what, do = "a document is judged twice for this query, differently", "keep one judgement"
                yield place, DataError(what, where=place, do=do)
            else:
                query = texts.read(int(query_at_J[part_J[0]]))
                positives, negatives = ([_passage(documents.read(at)) for at in side] for side in sides)
                record = {"query_id": _id(query), "query": query.get("text")}
                yield place, record | {"positive_passages": positives, "negative_passages": negatives}


class _Texts:
    """The records of a corpus or of queries, on disk, found by id."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> "_Texts":
        with ExitStack() as stack:
            with reading(lambda: self._file):
                self._stream = stack.enter_context(_plain(self._file))
            keys, starts = self._index()
            order = np.argsort(keys, kind="stable")
            self._keys, self._starts = keys[order], starts[order]
            twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
            if len(twice):
                start = int(self._starts[twice[0] + 1])
                where, saw = f"{self._file}:{self._line_of(start)}:_id", _id(self.read(start))
                raise DataError("id occurs twice", where=where, saw=saw, do="keep one of the two")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return where the records of these keys begin, in bytes; -1 for those that are not there."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._starts[places], -1)

    def read(self, start: int) -> dict[str, Any]:
        """Return the record that begins at a byte."""
        self._stream.seek(start)
        record: dict[str, Any] = decode(self._stream.readline(), str(self._file))
        return record

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return key and first byte of every record, in file order."""
        keys, starts = array("Q"), array("q")
        start = 3 if self._stream.read(3) == codecs.BOM_UTF8 else 0
        self._stream.seek(start)
        for number, line in enumerate(iter(partial(self._stream.readline, LONGEST_LINE), b""), start=1):
            place = f"{self._file}:{number}"
            if len(line) == LONGEST_LINE:
                raise too_long(place, line)
            if not line.isspace():
                record = decode(line.rstrip(), place)
                if not isinstance(record, dict):
                    raise DataError("not a JSON object", where=place, saw=record, do=_FORM)
                identifier = _id(record)
                if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
                    do = "give every record an _id, as text or as a whole number"
                    raise DataError("id is missing, or neither text nor a number", where=place, saw=record, do=do)
                keys.append(_key(str(identifier)))
                starts.append(start)
            start += len(line)
        return np.frombuffer(keys, np.uint64), np.frombuffer(starts, np.int64)

    def _line_of(self, start: int) -> int:
        """Return the number of the line that begins at a byte."""
        self._stream.seek(0)
        number = 1
        while self._stream.tell() < start and self._stream.readline():
            number += 1
        return number


def _plain(file: Path) -> IO[bytes]:
    """Open a file so that any byte of it can be sought: a packed one is unpacked to a temporary file."""
    with file.open("rb") as raw:
        packed = file.suffix == ".gz" or raw.read(2) == b"\x1f\x8b"
    if not packed:
        return file.open("rb")
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with opened(file, packed) as stream:
        shutil.copyfileobj(stream, plain, 1 << 20)
    plain.seek(0)
    return plain


def _judged(qrels: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return line, query key, document key and relevance (a bool) of every judgement."""
    lines, queries, documents, relevant = array("q"), array("Q"), array("Q"), array("b")
    for number, query, document, score in _judgements(qrels):
        lines.append(number)
        queries.append(_key(query))
        documents.append(_key(document))
        relevant.append(score > 0)
    line_J, query_J, document_J = (np.frombuffer(column, column.typecode) for column in (lines, queries, documents))
    return line_J, query_J, document_J, np.frombuffer(relevant, np.bool_)


def _judgements(qrels: Path) -> Iterator[tuple[int, str, str, int]]:
    """Yield line, query, document and score of every judgement: three columns, or the four of TREC."""
    for number, line in numbered_lines(qrels):
        place = f"{qrels}:{number}"
        text = as_text(line, place).strip()
        if not text:
            continue
        fields = [field.strip() for field in (text.split("\t") if "\t" in text else text.split())]
        if len(fields) not in (3, 4) or not all(fields):
            raise DataError("judgement without three or four columns", where=place, saw=text, do=_QRELS)
        if number == 1 and fields[-1].lower() in _SCORE_NAMES:
            if re.search("corpus|doc|pid|passage", fields[0].lower()):
                raise DataError("the first column is not the query", where=place, saw=fields, do=_QRELS)
            continue
        yield number, fields[0], fields[-2], whole_score(fields[-1], f"{place}:score")


def whole_score(text: str, where: str) -> int:
    """Read a whole number, also when it is written as 1.0."""
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise DataError("score is not a whole number", where=where, saw=text, do="use 0, 1, 2, ...")


def _passage(record: dict[str, Any]) -> dict[str, Any]:
    """Return a document as a passage in the tevatron layout."""
    title, text = record.get("title"), record.get("text")
    if text in ("", None) and isinstance(title, str) and title:
        title, text = None, title
    return {"docid": _id(record), "title": title, "text": text}


def _unknown(where: str, what: str, file: Path) -> DataError:
    """Say that an id of the judgements stands for nothing."""
    do = f"add the {what} to {file}, or remove its judgements"
    return DataError(f"{what} without text: {file.name} has no record of this id", where=where, do=do)


def _id(record: dict[str, Any]) -> Any:
    """Return the id of a document or query."""
    return record.get("_id", record.get("id"))


def _key(identifier: str) -> int:
    """Hash an id to 64 bits; among ten million ids two are taken for one with probability 3e-6."""
    return int.from_bytes(blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _names(folder: Path) -> list[str]:
    """Return the names of what is in a folder; none where it is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
