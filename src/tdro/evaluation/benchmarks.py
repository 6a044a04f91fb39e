"""Evaluation sets in BEIR layout: read, encode, search, score, write."""

import gzip
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tdro.data.beir import whole_score
from tdro.data.records import Passage
from tdro.data.sources import find_source
from tdro.errors import ConfigError, DataError
from tdro.evaluation.metrics import DEPTH, MEASURES, Qrels, score_run
from tdro.files import atomic_path, write_json
from tdro.retrieval.search import Encode, search


@dataclass(frozen=True, slots=True)
class Oddities:
    """What did not fit together in an evaluation set.

    Args:
        unknown_documents: Judgements of documents that the corpus lacks. They stay in the qrels, as in
            BEIR: nobody can find such a document, so a relevant one lowers the best score within reach.
        unjudged_queries: Queries without a judgement in this split, left out.
        missing_queries: Judged queries whose text is missing, left out.
        queries_without_relevant: Queries without any relevant document; they score 0 and stay in the mean.
    """

    unknown_documents: int
    unjudged_queries: int
    missing_queries: int
    queries_without_relevant: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One evaluation task: a corpus, the queries that are judged in the split, and the judgements."""

    name: str
    document_ids: tuple[str, ...]
    document_texts: tuple[str, ...]
    query_ids: tuple[str, ...]
    query_texts: tuple[str, ...]
    qrels: Qrels
    oddities: Oddities


@dataclass(frozen=True, slots=True)
class Ranking:
    """The results of one query, best first: document ids and float32 scores."""

    document_ids: tuple[str, ...]
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rankings and scores of one model on one benchmark.

    `scores` is measure -> query id -> score; `no_results` counts queries with an empty ranking, whose scores are 0.
    """

    benchmark: str
    documents: int
    depth: int
    ignore_identical_ids: bool
    oddities: Oddities
    rankings: dict[str, Ranking]
    scores: dict[str, dict[str, float]]

    @property
    def means(self) -> dict[str, float]:
        """The mean of every measure over all queries."""
        return {name: float(np.mean(list(values.values()))) for name, values in self.scores.items()}

    @property
    def no_results(self) -> int:
        """The number of queries whose ranking is empty."""
        return sum(not ranking.document_ids for ranking in self.rankings.values())


def read_beir(name: str, folder: Path, split: str = "test") -> Benchmark:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv` of a folder.

    The jsonl files may be gzipped, their ids be called `_id` or `id` and be strings or integers, and
    titles may be absent. The qrels are three columns (query, document, score) as in BEIR or four
    (query, ignored, document, score) as in TREC, with or without a header. Only queries with a
    judgement in the split are kept, in the order of `queries.jsonl`; what was left out is counted.

    Args:
        name: The benchmark's name in reports.
        folder: The folder.
        split: The qrels file to use, without its ending.

    Returns:
        The benchmark; document texts are `Passage.full_text`.

    Raises:
        DataError: A file is missing or damaged, an id is repeated, empty or contains white space (a
            run file could not hold it), or no query can be evaluated. Names file, line and field.
    """
    corpus_path, queries_path, qrels_path = _locate(name, Path(folder), split)
    documents, queries = _read_texts(corpus_path), _read_texts(queries_path)
    judged = _read_qrels(qrels_path)
    qrels = {query_id: judged[query_id] for query_id in queries if query_id in judged}
    if not qrels:
        raise DataError(
            "no judged query has a text", where=qrels_path, saw=next(iter(judged)), do="check that the ids match"
        )
    return Benchmark(
        name=name,
        document_ids=tuple(documents),
        document_texts=tuple(documents.values()),
        query_ids=tuple(qrels),
        query_texts=tuple(queries[query_id] for query_id in qrels),
        qrels=qrels,
        oddities=Oddities(
            unknown_documents=sum(document not in documents for labels in qrels.values() for document in labels),
            unjudged_queries=len(queries) - len(qrels),
            missing_queries=len(judged) - len(qrels),
            queries_without_relevant=sum(max(labels.values()) < 1 for labels in qrels.values()),
        ),
    )


def check_beir(name: str, folder: Path, split: str = "test") -> None:
    """Refuse an evaluation set whose files are missing or whose qrels are faulty, without reading its texts.

    Raises:
        DataError: As `read_beir` would, as far as this can be told.
    """
    _read_qrels(_locate(name, Path(folder), split)[2])


def evaluate(
    encode_query: Encode,
    encode_corpus: Encode,
    benchmark: Benchmark,
    k: int = 1000,
    *,
    ignore_identical_ids: bool = False,
    device: str = "cpu",
) -> Evaluation:
    """Encode a benchmark, search its corpus exactly and score the rankings.

    Args:
        encode_query: Query texts -> vectors [Q, D], with whatever instruction the task wants.
        encode_corpus: Document texts -> vectors [P, D].
        benchmark: The task.
        k: Documents kept per query, at least 100.
        ignore_identical_ids: Drop the document that has the query's own id, as BEIR does for ArguAna and Quora,
            where the queries themselves are in the corpus. A dropped document leaves no gap in the ranking.
        device: Where the search runs.

    Returns:
        The evaluation.

    Raises:
        ConfigError: k is below 100, the depth of recall@100.
        DataError: Vectors contain NaN, or are not one per text.
    """
    if k < DEPTH:
        raise ConfigError(f"an evaluation needs the {DEPTH} best documents", where="k", saw=k)
    query_QD = encode_query(benchmark.query_texts)
    if len(query_QD) != len(benchmark.query_texts):
        raise DataError("the encoder must return one vector per query", where=benchmark.name, saw=query_QD.shape)
    corpus_PD = encode_corpus(benchmark.document_texts)
    depth = k + 1 if ignore_identical_ids else k
    hits = search(query_QD, corpus_PD, benchmark.document_ids, depth, device=device)
    rankings = {}
    for query_id, indices_K, scores_K in zip(benchmark.query_ids, hits.indices_QK, hits.scores_QK, strict=True):
        ids = [benchmark.document_ids[i] for i in indices_K]
        if ignore_identical_ids and query_id in ids:
            scores_K = np.delete(scores_K, ids.index(query_id))
            ids.remove(query_id)
        rankings[query_id] = Ranking(tuple(ids[:k]), scores_K[:k])
    return Evaluation(
        benchmark=benchmark.name,
        documents=len(benchmark.document_ids),
        depth=k,
        ignore_identical_ids=ignore_identical_ids,
        oddities=benchmark.oddities,
        rankings=rankings,
        scores=score_run(benchmark.qrels, {query_id: ranking.document_ids for query_id, ranking in rankings.items()}),
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `scores.parquet`, `run.trec.gz` and `summary.json`, each whole or not at all.

    The parquet file has the columns query_id, ndcg@10, recall@100 and mrr@10. The run file has six columns; where
    neighbours are tied the later score is lowered to the next smaller float32, because readers sort by score
    and break ties each in its own way: any of them that reads at least float32 gets this very ranking.
    The summary comes last: a folder that has one is complete.
    """
    summary = {
        "benchmark": evaluation.benchmark,
        "queries": len(evaluation.rankings),
        "documents": evaluation.documents,
        "depth": evaluation.depth,
        "ignore_identical_ids": evaluation.ignore_identical_ids,
        "measures": evaluation.means,
        "no_results": evaluation.no_results,
        "oddities": asdict(evaluation.oddities),
    }
    with atomic_path(folder / "scores.parquet") as path:
        _dump_scores(evaluation, path)
    with atomic_path(folder / "run.trec.gz") as path:
        _dump_run(evaluation, path)
    write_json(folder / "summary.json", summary)


def _dump_scores(evaluation: Evaluation, path: Path) -> None:
    """Write the per-query scores as parquet."""
    columns: dict[str, list[Any]] = {"query_id": list(evaluation.rankings)}
    for name in MEASURES:
        columns[name] = [evaluation.scores[name][query_id] for query_id in evaluation.rankings]
    pq.write_table(pa.table(columns), path)


def _dump_run(evaluation: Evaluation, path: Path) -> None:
    """Write the rankings as a gzipped TREC run; the bytes depend on the rankings only."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        for query_id, ranking in evaluation.rankings.items():
            above = np.float32(np.inf)
            lines = []
            for rank, (document, score) in enumerate(zip(ranking.document_ids, ranking.scores, strict=True), start=1):
                above = score if score < above else np.nextafter(above, np.float32(-np.inf))
                lines.append(f"{query_id} Q0 {document} {rank} {float(above):.9g} tdro\n")
            packed.write("".join(lines).encode())


def _locate(name: str, folder: Path, split: str) -> tuple[Path, Path, Path]:
    """Find the corpus, the queries and the qrels of an evaluation set."""
    if not folder.is_dir():
        raise DataError("evaluation set not found", where=name, saw=str(folder), do="check the path")
    return (
        _find(folder, ("corpus.jsonl", "corpus.jsonl.gz"), "evaluation set without corpus"),
        _find(folder, ("queries.jsonl", "queries.jsonl.gz"), "evaluation set without queries"),
        _find(folder / "qrels", (f"{split}.tsv",), "evaluation set without qrels"),
    )


def _find(folder: Path, names: tuple[str, ...], missing: str) -> Path:
    """Return the first of these files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    do = "a task is a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (query-id, corpus-id, score)"
    raise DataError(missing, where=folder / names[0], saw=f"in this folder: {', '.join(present) or 'nothing'}", do=do)


def _read_texts(path: Path) -> dict[str, str]:
    """Read a corpus or queries file as id -> full text, in file order."""
    texts: dict[str, str] = {}
    for _, where, record in find_source(path).records(repeat(True)):
        if not isinstance(record, dict):
            raise DataError("line is not a JSON object", where=where, saw=record)
        field = "_id" if "_id" in record else "id"
        identifier = _identifier(record.get(field), f"{where}:{field}")
        if identifier in texts:
            raise DataError("id occurs twice", where=f"{where}:{field}", saw=identifier, do="keep one of the two")
        title = "" if record.get("title") is None else _string(record, "title", where)
        texts[identifier] = Passage(identifier, title, _string(record, "text", where)).full_text
    if not texts:
        raise DataError("file is empty", where=path, do="give at least one line")
    return texts


def _string(record: dict[str, object], field: str, where: str) -> str:
    """Return a field that must be a string."""
    value = record.get(field)
    if not isinstance(value, str):
        raise DataError(f"{field} is missing or not a string", where=f"{where}:{field}", saw=value)
    return value


def _identifier(value: object, where: str) -> str:
    """Return an id as a string that a run file can hold."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError("id is missing, or neither string nor integer", where=where, saw=value)
    identifier = str(value)
    if len(identifier.split()) != 1 or identifier != identifier.strip():
        raise DataError("id is empty or contains white space", where=where, saw=value, do="rename it, in the qrels too")
    return identifier


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements as query id -> document id -> relevance."""
    qrels: dict[str, dict[str, int]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError("file cannot be read", where=path, saw=str(problem), do="save it as UTF-8") from problem
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
        if len(fields) not in (3, 4):
            do = "write query-id, corpus-id and score, separated by tabs"
            raise DataError("judgement needs three or four columns", where=where, saw=line, do=do)
        if number == 1 and fields[-1].lower() in {"score", "relevance", "rel", "label"}:
            continue
        query_id = _identifier(fields[0], f"{where}:query-id")
        document = _identifier(fields[-2], f"{where}:corpus-id")
        relevance = whole_score(fields[-1], f"{where}:score")
        if qrels.setdefault(query_id, {}).setdefault(document, relevance) != relevance:
            raise DataError("document is judged twice, differently", where=where, saw=line, do="keep one judgement")
    if not qrels:
        raise DataError("qrels are empty", where=path, do="give at least one judgement")
    return qrels
