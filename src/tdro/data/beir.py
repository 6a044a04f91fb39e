"""Read a folder in BEIR layout as training rows: a query, what is relevant to it, what was judged and is not.

The texts stay on disk: in memory are 16 bytes per document and query, and about 40 per judgement.
"""

import re
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tdro.data.fields import id_of, passage_fields
from tdro.data.lines import as_text, numbered_lines
from tdro.data.texts_by_id import TextsById, key_of
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
    return len({key_of(query) for _, query, _, score in _judgements(qrels) if score > 0})


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
        texts, documents = (stack.enter_context(TextsById(file)) for file in (queries, corpus))
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
                positives, negatives = ([passage_fields(documents.read(at)) for at in side] for side in sides)
                record = {"query_id": id_of(query), "query": query.get("text")}
                yield place, record | {"positive_passages": positives, "negative_passages": negatives}


def _judged(qrels: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return line, query key, document key and relevance (a bool) of every judgement."""
    lines, queries, documents, relevant = array("q"), array("Q"), array("Q"), array("b")
    for number, query, document, score in _judgements(qrels):
        lines.append(number)
        queries.append(key_of(query))
        documents.append(key_of(document))
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


def _unknown(where: str, what: str, file: Path) -> DataError:
    """Say that an id of the judgements stands for nothing."""
    do = f"add the {what} to {file}, or remove its judgements"
    return DataError(f"{what} without text: {file.name} has no record of this id", where=where, do=do)


def _names(folder: Path) -> list[str]:
    """Return the names of what is in a folder; none where it is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
