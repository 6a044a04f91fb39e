"""What the rows of a dataset are like, as far as a quick look tells: how many, how long, in which language."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import median

from tdro.data.layouts import RowParser
from tdro.data.records import Row
from tdro.data.sources import Source, find_source
from tdro.errors import DataError
from tdro.evaluation.benchmarks import Task
from tdro.evaluation.judgements import read_qrels, read_queries, read_topics
from tdro.prepare.evaluation_queries import EvaluationSet
from tdro.prepare.normalise import normalise, units
from tdro.prepare.profile import languages

LOOKED_AT = 20_000
"""Rows of a dataset that are looked at, evenly spread over it."""
SAMPLE = 200
"""Rows whose texts are kept for lengths and languages."""

_ALIKE = 0.4  # share of words in common from which the two sides of a pair are wordings of the same
_AGAIN = 0.05  # share of the positives that are also queries from which a dataset is symmetric
_LONGEST = 4000  # characters of a text that is kept


@dataclass(frozen=True, slots=True)
class View:
    """What a quick look at a dataset shows.

    Args:
        rows: How many there are.
        looked_at: How many were looked at.
        problem: What is wrong with the first bad row; empty where all are good.
        bad: How many of those looked at are bad.
        layout: Of the rows.
        without_negatives: How many of those looked at have no negative.
        queries: Texts of a sample.
        passages: Positives of the same rows.
        languages: Language -> share of the sampled queries.
        symmetric: Why query and passage seem to be of one kind; empty where they do not.
        all_queries: Of all good rows that were looked at.
    """

    rows: int
    looked_at: int
    problem: str
    bad: int
    layout: str
    without_negatives: int
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    languages: dict[str, float]
    symmetric: str
    all_queries: tuple[str, ...]


def look(name: str, paths: Sequence[Path]) -> View:
    """Look at a dataset.

    Args:
        name: Of the dataset.
        paths: Its files or folders.

    Raises:
        DataError: Not one row can be used; says why.
    """
    sources = [find_source(path) for path in paths]
    counts = [source.count() for source in sources]
    total = sum(counts)
    rows: list[Row] = []
    problems: list[DataError] = []
    layouts: list[str] = []
    every = max(1, -(-total // LOOKED_AT))
    for source, count in zip(sources, counts, strict=True):
        parser = RowParser(name)
        _parse(source, parser, (number % every == 0 for number in range(count)), rows, problems)
        if parser.layout is not None:
            layouts.append("beir" if source.kind == "beir" else parser.layout.name)
    if not rows:
        raise problems[0] if problems else DataError("empty dataset", where=paths[0], do="give it at least one row")
    queries = normalise([row.query for row in rows])
    shown = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    texts = tuple(row.query[:_LONGEST] for row in shown)
    return View(
        rows=total,
        looked_at=len(rows) + len(problems),
        problem=str(problems[0].what) + f" ({problems[0].where})" if problems else "",
        bad=len(problems),
        layout=" + ".join(dict.fromkeys(layouts)),
        without_negatives=sum(not row.negatives for row in rows),
        queries=texts,
        passages=tuple(row.positives[0].full_text[:_LONGEST] for row in shown),
        languages=languages(texts),
        symmetric=_symmetric(rows, queries, layouts),
        all_queries=tuple(row.query for row in rows),
    )


@dataclass(frozen=True, slots=True)
class TaskView:
    """What a quick look at an evaluation set shows.

    Args:
        asked: Its queries; none of MKQA, which are not read.
        documents: How many there are; of a dev set how many rows, whose passages are the documents.
    """

    asked: EvaluationSet
    documents: int


def look_at_task(task: Task, path: Path) -> TaskView:
    """Look at an evaluation set.

    Args:
        task: What was found there.
        path: Its file or folder.

    Raises:
        DataError: It cannot be read.
    """
    asked: dict[str, str] = {}
    documents = 0
    for part in task.parts:
        kind, corpus = part.settings["kind"], part.files
        if kind == "rows":
            rows: list[Row] = []
            source, problems = find_source(path), list[DataError]()
            _parse(source, RowParser(task.name), repeat(True, LOOKED_AT), rows, problems)
            if problems:
                raise problems[0]
            asked |= {str(number): row.query for number, row in enumerate(rows)}
            documents += source.count()
            continue
        if kind in ("beir", "miracl"):
            *_, queries, qrels = part.files
            corpus = part.files[:1] if kind == "beir" else part.files[:-2]
            texts, judged = (read_topics if queries.suffix == ".tsv" else read_queries)(queries), read_qrels(qrels)
            asked |= {f"{part.name}/{query}": text for query, text in texts.items() if query in judged}
        documents += sum(find_source(file).count() for file in corpus)
    return TaskView(EvaluationSet(task.name, tuple(asked), tuple(asked.values()), ((),) * len(asked)), documents)


def _parse(source: Source, parser: RowParser, kept: Iterator[bool], rows: list[Row], problems: list[DataError]) -> None:
    """Parse the rows of a source that are kept; what cannot be read ends it."""
    try:
        for number, place, record in source.records(kept):
            try:
                rows.append(parser.parse(record, place, number))
            except DataError as problem:
                problems.append(problem)
    except DataError as problem:
        problems.append(problem)


def _symmetric(rows: Sequence[Row], queries: Sequence[str], layouts: Sequence[str]) -> str:
    """Say what shows that query and passage are of one kind; empty where nothing does."""
    if set(layouts) == {"sets"}:
        return "its rows are sets of texts that mean the same"
    positives = normalise([row.positives[0].full_text for row in rows])
    again = len(set(positives) & set(queries)) / len(set(positives))
    if again >= _AGAIN:
        return f"{again:.0%} of its positives are queries, too"
    pairs = [(set(units(q)), set(units(p))) for q, p in zip(queries, positives, strict=True) if q and p]
    alike = median(len(q & p) / len(q | p) for q, p in pairs) if pairs else 0.0
    return f"half of its pairs have {alike:.0%} of their words or more in common" if alike >= _ALIKE else ""
