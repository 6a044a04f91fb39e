"""The queries that a study will be judged by, which its training data must not hold."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tdro.config import Study, TaskConfig
from tdro.evaluation.benchmarks import Benchmark
from tdro.evaluation.tasks import find_task
from tdro.files import cache_folder
from tdro.prepare.evaluation_queries import EvaluationSet, name_of, read_evaluation_sets


class QuerySource(NamedTuple):
    """Where evaluation queries come from: a name for reports, the file or folder, and what reads it.

    Reading gives a set for each part of a task, and raises DataError or ConfigError where that cannot be done.
    """

    name: str
    path: Path
    read: Callable[[], list[EvaluationSet]]


def query_sources(study: Study) -> list[QuerySource]:
    """Return the study's tasks, those it watches while it trains, and what `leakage.against` names."""
    evaluation = study.evaluation
    watched = {f"{name} (watched)": task for name, task in evaluation.watch.items()}
    tasks = evaluation.tasks | {n: task for n, task in watched.items() if task not in evaluation.tasks.values()}
    found = [
        QuerySource(name, study.locate(task.path), partial(_queries_of_task, study, name, task))
        for name, task in tasks.items()
    ]
    for path in map(study.locate, study.leakage.against):
        found.append(QuerySource(name_of(path), path, partial(read_evaluation_sets, path, name=name_of(path))))
    return found


def _queries_of_task(study: Study, name: str, options: TaskConfig) -> list[EvaluationSet]:
    """Read the queries of a task and the documents that are relevant to them, which are stored for the evaluation."""
    task = find_task(name, options, Path(study.data.root))
    return [_as_set(part.label, part.read(cache_folder(), None)) for part in task.parts]


def _as_set(name: str, benchmark: Benchmark) -> EvaluationSet:
    """Bring a benchmark into the form in which leaks are looked for."""
    relevant = [[d for d, grade in benchmark.qrels.get(q, {}).items() if grade > 0] for q in benchmark.query_ids]
    wanted = sorted({document for documents in relevant for document in documents})
    number_W = benchmark.documents.find(wanted)
    known = [document for document, number in zip(wanted, number_W.tolist(), strict=True) if number >= 0]
    place = {document: i for i, document in enumerate(known)}
    passages = benchmark.documents.take(np.asarray(number_W[number_W >= 0]))
    places = tuple(tuple(place[d] for d in documents if d in place) for documents in relevant)
    return EvaluationSet(name, benchmark.query_ids, benchmark.query_texts, places, tuple(passages))
