"""Write the results of an evaluation; `tdro.evaluation.results` says what is in the files, and reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tdro.config import fingerprint
from tdro.errors import DataError
from tdro.evaluation.benchmarks import SHOWN, Oddity, Part, Task
from tdro.evaluation.evaluate import Evaluation, evaluate, rank_documents
from tdro.evaluation.mteb_scores import Subset, mteb_result
from tdro.evaluation.result_tables import write_run, write_top
from tdro.evaluation.results import MTEB, RUN, SCORES, SUMMARY, TOP, read_summary
from tdro.files import atomic_path, write_json
from tdro.retrieval.rankers import Ranker
from tdro.retrieval.shards import Progress


def evaluate_part(
    part: Part,
    ranker: Ranker,
    folder: Path,
    *,
    model: str,
    inputs: str,
    cache: Path,
    leads: bool = True,
    progress: Progress | None = None,
) -> Evaluation | None:
    """Read a task, or a part of one, evaluate a ranker on it, and write the result.

    Args:
        part: What to evaluate on.
        ranker: Who ranks.
        folder: Where the result goes.
        model: Name of the model.
        inputs: Identifies everything that the result depends on, for `tdro.evaluation.results.finished`.
        cache: Folder of what can be rebuilt.
        leads: Whether this process scores and writes; of several that share the ranking, one does.
        progress: Called with (done, total) while documents are prepared for judging.

    Returns:
        The evaluation; None unless this process leads.
    """
    benchmark = part.read(cache, progress)
    with TemporaryDirectory(prefix="tdro-") as scratch:
        if not leads:
            rank_documents(ranker, benchmark, scratch=Path(scratch))
            return None
        evaluation = evaluate(ranker, benchmark, scratch=Path(scratch))
    write_evaluation(evaluation, folder, part, part.content(cache), model=model, ranker=ranker.about, inputs=inputs)
    return evaluation


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    part: Part,
    content: str,
    *,
    model: str,
    ranker: Mapping[str, object],
    inputs: str = "",
) -> None:
    """Write the result of a task, or of a part of one; each file appears whole, the summary last.

    Args:
        evaluation: What was found.
        folder: Where it goes.
        part: What was evaluated.
        content: Its fingerprint.
        model: Name of the model.
        ranker: Identifies it by content.
        inputs: Identifies everything that the result depends on, for `finished`.
    """
    (folder / SUMMARY).unlink(missing_ok=True)  # it vouches for the files that are about to be replaced
    benchmark, means = evaluation.benchmark, evaluation.means
    with atomic_path(folder / SCORES) as path:
        pq.write_table(pa.table({"query_id": list(benchmark.query_ids), **evaluation.scores}), path)
    with atomic_path(folder / RUN) as path:
        write_run(evaluation, path)
    with atomic_path(folder / TOP) as path:
        write_top(evaluation, path)
    subset = Subset(str(part.settings.get("language", "")), means)
    write_json(folder / MTEB, mteb_result(part.label, part.settings, content, [subset], benchmark.main))
    summary = {
        "task": part.task,
        "part": part.name,
        "model": model,
        "ranker": dict(ranker),
        **part.settings,
        "content": content,
        "corpus": benchmark.documents.content,
        "inputs": inputs,
        "queries": len(benchmark.query_ids),
        "documents": len(benchmark.documents),
        "depth": evaluation.depth,
        "search": evaluation.search,
        "main": benchmark.main,
        "measures": means,
        "oddities": _plain(evaluation.oddities),
    }
    write_json(folder / SUMMARY, summary)


def join_parts(task: Task, folder: Path) -> dict[str, Any]:
    """Return the summary of a task; where it has several parts, write the mean over them.

    Args:
        task: The task, all of whose parts have results in `folder`.
        folder: Folder of the task.

    Returns:
        The summary: of the only part, or of all of them.

    Raises:
        DataError: A result is damaged, or the parts are of different models, variants or splits.
    """
    if not task.parts[0].name:
        return read_summary(folder)
    summaries = {part.name: read_summary(folder / part.name) for part in task.parts}
    first = next(iter(summaries.values()))
    shared = ("task", "model", "ranker", "kind", "split", "variant", "depth", "main")
    for name, summary in summaries.items():
        if differing := [field for field in shared if summary.get(field) != first.get(field)]:
            saw = {field: summary.get(field) for field in differing}
            what = f"{differing[0]} differs between the parts of a task, which have no mean then"
            raise DataError(what, where=folder / name, saw=saw, do="evaluate the model again in another folder")
    of_parts = {name: Subset(str(s.get("language", "")), s["measures"]) for name, s in summaries.items()}
    measures = {name: float(np.mean([part.measures[name] for part in of_parts.values()])) for name in first["measures"]}
    content = fingerprint([summary["content"] for summary in summaries.values()])
    subsets = list(of_parts.values()) if first.get("language") else [Subset("", measures)]
    write_json(folder / MTEB, mteb_result(task.name, first, content, subsets, first["main"]))
    joined = {
        **{field: first[field] for field in shared if field in first},
        "search": _mean_search([summary.get("search", {}) for summary in summaries.values()]),
        "content": content,
        "queries": sum(summary["queries"] for summary in summaries.values()),
        "measures": measures,
        "parts": {name: subset.measures for name, subset in of_parts.items()},
        "oddities": {**_plain(task.oddities), **_added(list(summaries.values()))},
    }
    write_json(folder / SUMMARY, joined)
    return joined


def _plain(oddities: Mapping[str, Oddity]) -> dict[str, Any]:
    """Write oddities as JSON has them."""
    return {kind: asdict(oddity) for kind, oddity in oddities.items()}


def _mean_search(of_parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Take the mean recall over parts; their ranker was the same, and only parts without a question lack a recall."""
    measured = [search for search in of_parts if "recall" in search]
    if not measured:
        return {"kind": "exact"}
    recall = float(np.mean([search["recall"] for search in measured]))
    return {"kind": measured[0]["kind"], "recall": recall, "measured_on": sum(s["measured_on"] for s in measured)}


def _added(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add the oddities of parts."""
    kinds = dict.fromkeys(kind for summary in summaries for kind in summary["oddities"])
    found = {}
    for kind in kinds:
        of_parts = [(s["part"], s["oddities"][kind]) for s in summaries if kind in s["oddities"]]
        first = [f"{part}: {name}" for part, oddity in of_parts for name in oddity["first"]]
        found[kind] = {"count": sum(oddity["count"] for _, oddity in of_parts), "first": first[:SHOWN]}
    return found
