"""After training: every model on every task, and what the difference between reference and robust amounts to."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tdro.config import TaskConfig, fingerprint
from tdro.data.reading import content_hash
from tdro.evaluation.benchmarks import evaluate, read_beir, write_evaluation
from tdro.evaluation.significance import Difference, paired_difference
from tdro.files import cache_folder, write_json
from tdro.training.encoders import Encoders
from tdro.training.run import Run, encoder_fingerprint

Scores = dict[str, dict[str, dict[str, float]]]
"""Task -> model -> measure -> mean over queries, 0 to 1."""


def evaluate_models(run: Run) -> Scores:
    """Evaluate the study's models on the study's tasks.

    Writes evaluation/MODEL/TASK/ (per-query scores, run file, summary) and evaluation/summary.json. A model is
    evaluated again on a task only when the model, the task or the settings changed.
    """
    study = run.study
    scores: Scores = {task: {} for task in study.evaluation.tasks}
    for model_name in study.evaluation.models:
        folder = run.folder / model_name / "model"
        base = study.fill_root(study.model.base) if model_name == "base" else str(folder)
        identity = encoder_fingerprint(base)
        encoders: Encoders | None = None
        for task, options in study.evaluation.tasks.items():
            stage = f"evaluation/{model_name}/{task}"
            data = study.data
            texts = (data.instruction_template, data.query_max_length, data.passage_max_length)
            content = _task_fingerprint(run, options)
            inputs = fingerprint(identity, content, options, *texts, study.model.influential)
            marker = run.finished(stage, inputs, f"{stage}/scores.parquet")
            if marker is None:
                encoders = encoders or Encoders(run, run.load(base))
                with run.stage(stage, inputs) as marker:
                    marker["scores"] = _evaluate(run, encoders, stage, task, options, content)
            scores[task][model_name] = marker["scores"]
    write_json(run.folder / "evaluation" / "summary.json", scores)
    return scores


def robust_gain(run: Run) -> Difference | None:
    """Compare robust with reference in nDCG@10 over all tasks; None when they were not both evaluated."""
    evaluation = run.study.evaluation
    if not evaluation.tasks or not {"reference", "robust"} <= set(evaluation.models):
        return None
    return paired_difference(
        {
            task: _per_query(run.folder / "evaluation" / "robust" / task)
            - _per_query(run.folder / "evaluation" / "reference" / task)
            for task in evaluation.tasks
        },
        seed=run.study.seed,
    )


def _evaluate(
    run: Run, encoders: Encoders, stage: str, task: str, options: TaskConfig, content: str
) -> dict[str, float]:
    """Evaluate one model on one task and write what was found."""
    benchmark = read_beir(task, run.study.locate(options.path), options.split)
    total = len(benchmark.document_texts)

    def progress(done: int, of: int) -> None:
        run.journal.progress(stage, done, of)

    run.journal.progress(stage, 0, total)
    encode_query, encode_corpus = encoders.of_task(task, options, content, progress)
    evaluation = evaluate(
        encode_query,
        encode_corpus,
        benchmark,
        ignore_identical_ids=options.ignore_identical_ids,
        device=run.device.name,
    )
    write_evaluation(evaluation, run.folder / stage)
    return evaluation.means


def _task_fingerprint(run: Run, options: TaskConfig) -> str:
    """Identify a task by the content of its files."""
    folder = run.study.locate(options.path)
    files = [*folder.glob("corpus.jsonl*"), *folder.glob("queries.jsonl*"), *folder.glob(f"qrels/{options.split}.tsv*")]
    return fingerprint([[file.name, content_hash(file, cache_folder() / "datasets")] for file in sorted(files)])


def _per_query(folder: Path) -> np.ndarray:
    """nDCG@10 per query, in the order of the query ids."""
    table = pq.read_table(folder / "scores.parquet").sort_by("query_id")
    return table["ndcg@10"].to_numpy()
