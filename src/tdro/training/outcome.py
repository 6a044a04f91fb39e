"""After training: every model on every task."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tdro.config import Study, TaskConfig, fingerprint
from tdro.errors import ConfigError
from tdro.evaluation.benchmarks import Task
from tdro.evaluation.results import FILES, model_folder
from tdro.evaluation.tasks import find_task, refuse_mixed_variants
from tdro.evaluation.writing import evaluate_part, join_parts
from tdro.files import cache_folder, write_json
from tdro.models.bases import find_encoder
from tdro.retrieval.encoders import encoder_fingerprint, open_encoder
from tdro.retrieval.rankers import Bm25Ranker, DenseRanker, Ranker
from tdro.retrieval.shards import Embedder
from tdro.training.encoders import Encoders
from tdro.training.run import Run

BM25 = "bm25"
"""The baseline that is no encoder."""

Scores = dict[str, dict[str, dict[str, float]]]
"""Task -> model -> measure -> mean over queries (and over the parts of a task), 0 to 1."""

_FORM = 2  # part of every fingerprint: raise it when the files of the same evaluation would differ


def evaluate_models(run: Run) -> Scores:
    """Evaluate the study's models and baselines on the study's tasks.

    Writes evaluation/MODEL/TASK/, or TASK/PART/ (see `tdro.evaluation.results`), and evaluation/summary.json. A model
    is evaluated again on a task, or on a part of one, only when the model, the task or the settings changed.

    Raises:
        DataError: A task cannot be read.
        ConfigError: A baseline is not found, or is called like another model.
    """
    tasks = study_tasks(run.study)
    scores: Scores = {name: {} for name in tasks}
    for model in _models(run):
        for name, task in tasks.items():
            scores[name][model.name] = _evaluate(run, model, task)["measures"]
    if run.ranks.number == 0:
        write_json(run.folder / "evaluation" / "summary.json", scores)
    return scores


def study_tasks(study: Study) -> dict[str, Task]:
    """Find the tasks of a study.

    Raises:
        DataError, ConfigError: See `find_task`.
    """
    root = Path(study.data.root)
    tasks = {name: find_task(name, options, root) for name, options in study.evaluation.tasks.items()}
    refuse_mixed_variants(list(tasks.values()))
    return tasks


def refuse_missing_baselines(study: Study) -> None:
    """Look for the baselines before anything runs.

    Raises:
        ConfigError: One is not found, or two models would have one name.
        EnvironmentProblem: The package for BM25 is not installed.
    """
    names = [*study.evaluation.models, *map(_baseline_name, study.evaluation.baselines)]
    if twins := [name for name in names if names.count(name) > 1]:
        do = "leave it out, or copy the encoder to a folder of another name"
        raise ConfigError("two models would have one name", where="evaluation.baselines", saw=twins[0], do=do)
    for baseline in study.evaluation.baselines:
        if baseline == BM25:
            Bm25Ranker()
        else:
            find_encoder(study.fill_root(baseline))


class _Model:
    """A model of the study; loaded when it is first asked to rank."""

    def __init__(self, run: Run, name: str) -> None:
        self.name = name
        self._run = run
        self._stage = ""
        study = run.study
        self._source = study.fill_root(study.model.base) if name == "base" else str(run.folder / name / "model")

    @cached_property
    def identity(self) -> str:
        """Identifies the model by its content."""
        return encoder_fingerprint(self._source)

    def settings(self, options: TaskConfig) -> list[Any]:
        """What else decides its rankings."""
        data = self._run.study.data
        lengths = data.query_max_length, data.passage_max_length
        return [options.instruction, data.instruction_template, *lengths, self._run.study.model.influential]

    def ranker(self, options: TaskConfig, stage: str) -> Ranker:
        """Return it as a ranker for a task."""
        self._stage = stage
        return self._encoders.of_task(self.name, options, self.identity, self._tell)

    @cached_property
    def _encoders(self) -> Encoders:
        """The model, loaded."""
        return Encoders(self._run, self._run.load(self._source))

    def _tell(self, done: int, total: int) -> None:
        """Report progress."""
        self._run.journal.progress(self._stage, done, total)


class _Baseline(_Model):
    """An encoder from elsewhere, used as it was saved.

    It has its own prompts and lengths; the instructions of the tasks are for the study's models.
    """

    def __init__(self, run: Run, given: str) -> None:
        super().__init__(run, _baseline_name(given))
        self._source = run.study.fill_root(given)

    def settings(self, options: TaskConfig) -> list[Any]:
        """What else decides its rankings."""
        return [str(self._run.device.dtype), self._run.device.autocast]

    def ranker(self, options: TaskConfig, stage: str) -> Ranker:
        """Return it as a ranker for a task."""
        self._stage = stage
        return DenseRanker(*self._embedders, self.name, self._run.device.name, self._run.ranks)

    @cached_property
    def _embedders(self) -> tuple[Embedder, Embedder]:
        """The encoder, loaded."""
        run = self._run
        return open_encoder(
            self._source, device=run.device, max_tokens=run.max_tokens, ranks=run.ranks, progress=self._tell
        )


class _Bm25(_Model):
    """BM25, for which the first rank works alone."""

    @cached_property
    def identity(self) -> str:
        """Identifies it by its settings."""
        return fingerprint(dict(self._ranker.about))

    def settings(self, options: TaskConfig) -> list[Any]:
        """What else decides its rankings."""
        return []

    def ranker(self, options: TaskConfig, stage: str) -> Ranker:
        """Return it as a ranker for a task."""
        self._stage = stage
        return self._ranker

    @cached_property
    def _ranker(self) -> Bm25Ranker:
        """The ranker, which keeps its last index."""
        return Bm25Ranker(self._tell)


def _baseline_name(given: str) -> str:
    """Name the folder of a baseline's results, wherever data.root is."""
    return model_folder(given.replace("{root}", ""))


def _models(run: Run) -> Sequence[_Model]:
    """Return everything that is evaluated."""
    evaluation = run.study.evaluation
    baselines = [_Bm25(run, BM25) if name == BM25 else _Baseline(run, name) for name in evaluation.baselines]
    return [*(_Model(run, name) for name in evaluation.models), *baselines]


def _evaluate(run: Run, model: _Model, task: Task) -> dict[str, Any]:
    """Evaluate a model on the parts of a task that are not finished; return the summary of the task."""
    options, cache, leads = run.study.evaluation.tasks[task.name], cache_folder(), run.ranks.number == 0
    for part in task.parts:
        stage = f"evaluation/{model.name}/{part.label}"
        inputs = fingerprint(_FORM, model.identity, part.content(cache), model.settings(options))
        if run.finished(stage, inputs, *(f"{stage}/{name}" for name in FILES)):
            continue
        with run.stage(stage, inputs) as marker:
            if not leads and isinstance(model, _Bm25):
                continue
            evaluation = evaluate_part(
                part,
                model.ranker(options, stage),
                run.folder / stage,
                model=model.name,
                inputs=inputs,
                cache=cache,
                leads=leads,
                progress=partial(run.journal.progress, stage),
            )
            if evaluation:
                oddities = {kind: oddity.count for kind, oddity in evaluation.oddities.items()}
                marker |= {"scores": evaluation.means, "main": evaluation.benchmark.main, "oddities": oddities}
    return run.ranks.agree(join_parts(task, run.folder / "evaluation" / model.name / task.name) if leads else {})
