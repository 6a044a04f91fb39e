"""Result folders: what an evaluation leaves on disk, and how it is read again (`tdro.evaluation.writing` writes it).

TASK/, or TASK/PART/ where a task has several parts, holds

| file | what |
|---|---|
| `summary.json` | model, task, corpus, settings, means, oddities; written last: a folder that has it is complete |
| `scores.parquet` | `query_id` and a column per measure |
| `run.trec.gz` | the rankings, six columns |
| `top.parquet` | per query the three best documents and the best one that is relevant |
| `mteb.json` | the means as `mteb` writes them |

A task of several parts has TASK/summary.json and TASK/mteb.json beside its parts. The bytes depend on the models, the
tasks and the settings alone: neither on the time, nor on the number of processes, nor on kills in between.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tdro.errors import DataError
from tdro.files import read_json

SUMMARY = "summary.json"
SCORES = "scores.parquet"
RUN = "run.trec.gz"
TOP = "top.parquet"
MTEB = "mteb.json"
FILES = (SUMMARY, SCORES, RUN, TOP, MTEB)
"""What the folder of a task, or of a part of one, holds."""

ODDITIES = {
    "unknown_documents": "judged documents that the corpus lacks",
    "unjudged_queries": "queries without judgement, left out",
    "missing_queries": "judged queries without a text, left out",
    "queries_without_relevant": "queries without relevant document, score 0",
    "empty_queries": "empty queries, score 0",
    "no_results": "queries without results, score 0",
    "missing_parts": "parts of the benchmark that are not there, left out",
}
"""What may not fit together, in words; other names are words themselves."""


@dataclass(frozen=True, eq=False)
class Result:
    """What was found for one model on one task, or on one part of a task.

    Attributes:
        task: Name of the task; with its part where it has several: "scifact", "miracl/sw".
        model: Name of the model.
        folder: Where it was read from.
        summary: Content of summary.json.
        query_ids: The Q queries.
        scores: Measure -> float64 [Q], 0 to 1, in the order of `query_ids`.
    """

    task: str
    model: str
    folder: Path
    summary: Mapping[str, Any]
    query_ids: tuple[str, ...]
    scores: dict[str, np.ndarray]

    @property
    def main(self) -> str:
        """The measure that stands for the task: ndcg@10, or acc@10 for MKQA."""
        return str(self.summary["main"])

    def top(self) -> pa.Table:
        """Read the best documents of every query.

        Columns: query_id, query, rank (from 1; null for a relevant document that was not found), document_id, score,
        relevance (null where it was not judged), title, text (its first 300 characters).
        """
        return pq.read_table(self.folder / TOP)


def read_result(folder: Path) -> Result:
    """Read a result folder.

    Raises:
        DataError: Files are missing or damaged.
    """
    summary = read_summary(folder)
    try:
        table = pq.read_table(folder / SCORES)
        measures = [name for name in table.column_names if name != "query_id"]
        scores = {name: table[name].to_numpy().astype(np.float64) for name in measures}
        query_ids = tuple(table["query_id"].to_pylist())
        task, model, main = _name_of(summary), str(summary["model"]), str(summary["main"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as problem:
        do = "evaluate the model again"
        raise DataError("result cannot be read", where=folder, saw=str(problem), do=do) from problem
    if main not in scores:
        raise DataError("result lacks its main measure", where=folder / SCORES, saw=measures, do="evaluate again")
    return Result(task, model, folder, summary, query_ids, scores)


def find_results(folder: Path) -> dict[str, Path]:
    """Find the results of one model: the folder of one task, or a folder of tasks.

    Returns:
        Task, with its part where it has several -> its folder, sorted by name. Only complete ones.

    Raises:
        DataError: There is none, or a task is there several times (results of several models).
    """
    found: dict[str, Path] = {}
    for depth in ("", "*/", "*/*/"):
        for path in sorted(folder.glob(f"{depth}{SUMMARY}")):
            if not (path.parent / SCORES).is_file():
                continue  # of a task with several parts, which are found one by one
            task = _name_of(read_summary(path.parent))
            if task in found:
                saw = f"{found[task]} and {path.parent}"
                do = "give the folder of one model"
                raise DataError(f"there are several results for {task}", where=folder, saw=saw, do=do)
            found[task] = path.parent
    if not found:
        present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        do = "give a folder in which tdro evaluate, or a study under evaluation/MODEL, has left results"
        raise DataError("no results in this folder", where=folder, saw=", ".join(present) or "nothing", do=do)
    return dict(sorted(found.items()))


def finished(folder: Path, inputs: str) -> dict[str, Any] | None:
    """Return the summary of a result that was made from the same inputs and is complete, else None."""
    if not all((folder / name).is_file() for name in FILES):
        return None
    try:
        summary = read_summary(folder)
    except DataError:
        return None
    return summary if summary.get("inputs") == inputs else None


def model_folder(name: str) -> str:
    """Name the folder of a model's results after the model.

    Example:
        >>> model_folder("BAAI/bge-base-en-v1.5"), model_folder("../models/robust/")
        ('BAAI__bge-base-en-v1.5', 'models__robust')
    """
    return re.sub(r"[^\w.-]", "-", name.strip("./").replace("/", "__"))


def describe_oddities(oddities: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the oddities of a summary as one line; empty where there are none.

    Example:
        >>> describe_oddities({"unknown_documents": {"count": 7, "first": ["d1", "d2"]}})
        '7 judged documents that the corpus lacks (d1, d2, ...)'
    """
    said = []
    for kind, oddity in oddities.items():
        named = [*oddity["first"], *(["..."] if oddity["count"] > len(oddity["first"]) else [])]
        ids = f" ({', '.join(named)})" if oddity["first"] else ""
        said.append(f"{oddity['count']} {ODDITIES.get(kind, kind)}{ids}")
    return "; ".join(said)


def read_summary(folder: Path) -> dict[str, Any]:
    """Read summary.json."""
    try:
        summary = read_json(folder / SUMMARY)
    except (OSError, ValueError) as problem:
        do = "evaluate the model again"
        raise DataError("result cannot be read", where=folder / SUMMARY, saw=str(problem), do=do) from problem
    if not isinstance(summary, dict) or not isinstance(summary.get("task"), str):
        raise DataError("this is no summary of a result", where=folder / SUMMARY, do="evaluate the model again")
    return summary


def _name_of(summary: Mapping[str, Any]) -> str:
    """Name the task, with its part where it has several."""
    return f"{summary['task']}/{summary['part']}" if summary.get("part") else str(summary["task"])
