"""Train the base with one mixture after another, everything else the same, and score each model."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from sentence_transformers import SentenceTransformer

from tdro.config import fingerprint
from tdro.core.plan import Plan
from tdro.data.reading import Rows
from tdro.files import atomic_path, cache_folder
from tdro.sharding import whole
from tdro.training.dataset_tokens import DatasetTokens, study_tokens
from tdro.training.examiner import Examiner
from tdro.training.loop import Workplace, train
from tdro.training.outcome import study_tasks
from tdro.training.run import Run
from tdro.training.stages import fine_tuning_inputs, fine_tuning_step, refuse_impossible_plan, training_inputs

FOLDER = "trials"
SCORES = "scores.npz"


@dataclass(frozen=True)
class Trial:
    """What came of a mixture.

    Attributes:
        scores: Task, or task/part -> float64 [Q], the task's main measure for every query, 0 to 1.
        seconds: What training and scoring took.
    """

    scores: Mapping[str, np.ndarray]
    seconds: float


class Trials:
    """Trains and scores models that differ in their mixture and seed only, with the settings of `reference`.

    A trial is kept in RUN/trials/KEY, where KEY follows from everything that decides it: it is never done twice, also
    under another name, and what was stopped goes on. Models are not kept.

    Args:
        run: The run; its study names tasks.
        rows: Dataset -> rows.
    """

    def __init__(self, run: Run, rows: dict[str, Rows]) -> None:
        self._run, self._rows = run, rows

    def key(self, plan: Plan, seed: int) -> str:
        """Identify a trial."""
        return fingerprint(
            {**self._inputs, "mixture": dict(plan.probabilities), "factor": plan.loss_factors, "by": seed}
        )

    def find(self, plan: Plan, seed: int) -> Trial | None:
        """Return a trial that is finished, else None."""
        key = self.key(plan, seed)
        marker = self._run.finished(f"{FOLDER}/{key}", key, f"{FOLDER}/{key}/{SCORES}")
        if marker is None:
            return None
        with np.load(self._run.folder / FOLDER / key / SCORES) as kept:
            return Trial({label: kept[label] for label in kept.files}, marker["seconds"])

    def run(self, plan: Plan, seed: int) -> Trial:
        """Return a trial, doing it unless it is finished.

        Args:
            plan: The mixture.
            seed: Of the data order, negatives and dropout, and of adapters.

        Raises:
            ConfigError, DataError: The rows of a dataset do not go with the loss, or a task cannot be read.
            TdroError: A loss is not finite.
            Stopped: SIGINT or SIGTERM came; the same call goes on.
        """
        if found := self.find(plan, seed):
            return found
        run, key = self._run, self.key(plan, seed)
        refuse_impossible_plan(run.study, self._rows, plan)
        stage = f"{FOLDER}/{key}"
        with run.stage(stage, key) as result:
            result |= {"mixture": dict(plan.probabilities), "trained_with": seed}
            run.budget  # noqa: B018 - found before models fill the memory
            model = run.load_trainee(seed)
            _, step = fine_tuning_step(run, model, self._rows, plan, seed, self._tokens)
            folder = run.folder / stage
            place = Workplace("robust", folder, run.journal.within(folder), key, seed, run.ranks)
            train(model, run.study.reference, step, place)
            with whole(model):
                self._write(stage, self._examiner.scores(model) if run.ranks.number == 0 else {})
        del model, step
        gc.collect()  # a model refers to itself
        found = self.find(plan, seed)
        assert found is not None
        return found

    @cached_property
    def query_ids(self) -> dict[str, tuple[str, ...]]:
        """Task, or task/part -> its queries, in the order of the scores."""
        return self._examiner.query_ids

    def _write(self, stage: str, scores: Mapping[str, np.ndarray]) -> None:
        """Keep scores."""
        if scores:
            with atomic_path(self._run.folder / stage / SCORES) as path, ZipFile(path, "w", ZIP_DEFLATED) as archive:
                for label, score_Q in scores.items():  # np.savez cannot write an array that is called "file"
                    with archive.open(f"{label}.npy", "w") as file:
                        np.lib.format.write_array(file, score_Q)

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        """What decides all trials."""
        study = self._run.study
        tasks = study_tasks(study).values()
        options = {name: task.instruction for name, task in study.evaluation.tasks.items()}
        return {
            **{name: value for name, value in training_inputs(self._run, self._rows).items() if name != "seed"},
            **fine_tuning_inputs(study),
            "tasks": [[part.label, part.content(cache_folder())] for task in tasks for part in task.parts],
            "instructions": options,
        }

    @cached_property
    def _tokens(self) -> dict[str, DatasetTokens] | None:
        """Where the tokens of all datasets come from; with a guide every model looks for its own."""
        run = self._run
        return None if run.study.reference.guide else study_tokens(run, self._rows, self._reader, many_models=True)

    @cached_property
    def _examiner(self) -> Examiner:
        """The examiner."""
        return Examiner(self._run, self._reader)

    @cached_property
    def _reader(self) -> SentenceTransformer:
        """The base, for its tokenizer."""
        return self._run.load_base(device="cpu")
