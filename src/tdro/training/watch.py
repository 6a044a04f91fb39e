"""Evaluation during training: scores after every so many steps, and the parameters of the best step.

Each look leaves an event `watched` in the journal: step (counted from 0, as in `step` events), steps, scores
(task -> measure -> mean over queries), mean (of the tasks' main measures), best (whether no earlier step was as good)
and seconds. RUN/STAGE/watch.json has the same by the number of steps done:

    {"main": {"scifact": "ndcg@10"}, "best": 200, "kept": 300,
     "steps": {"100": {"mean": 0.61, "scores": {"scifact": {"ndcg@10": 0.61, ...}}}, ...}}

A look changes nothing of the training: dropout is off and back on, random numbers are put back, and embeddings are
thrown away. A stage that is resumed forgets what it saw after its checkpoint and sees it again. Of several ranks the
first looks, and tells the others what it saw.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tdro.config import Study
from tdro.devices import ALONE
from tdro.evaluation.benchmarks import Benchmark, Task
from tdro.evaluation.evaluate import evaluate
from tdro.evaluation.metrics import DEPTH
from tdro.evaluation.tasks import find_task
from tdro.files import cache_folder, write_json
from tdro.training.checkpoint import forget_best, load_best, require_best, save_best
from tdro.training.encoders import Encoders
from tdro.training.loop import Observer, Workplace
from tdro.training.run import Run

Scores = dict[str, dict[str, float]]
"""Task -> measure -> mean over queries, 0 to 1."""


class Watch(Observer):
    """Scores a model every few steps and at the last one.

    The best step is the one with the highest mean over the tasks of their main measures, the earliest among equals.

    Args:
        model: The model in training.
        place: Where its stage trains.
        look: Scores the model as it is.
        main: Task -> its main measure.
        every: Steps between looks.
        steps: Steps of the stage.
        keep_best: End with the parameters of the best step instead of the last.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        place: Workplace,
        look: Callable[[], Scores],
        main: Mapping[str, str],
        *,
        every: int,
        steps: int,
        keep_best: bool,
    ) -> None:
        self._model, self._place, self._look, self._main = model, place, look, dict(main)
        self._every, self._steps, self._keep_best = every, steps, keep_best
        self._checkpoints = place.folder / "checkpoints"
        self._seen: dict[int, dict[str, Any]] = {}

    @property
    def best(self) -> int:
        """Steps done at the best look."""
        return max(self._seen, key=lambda done: (self._seen[done]["mean"], -done))

    @property
    def kept(self) -> int:
        """Steps done by the model that the training ends with."""
        return self.best if self._keep_best else self._steps

    def start(self, done: int) -> None:
        """Take up what the journal knows of the steps up to the checkpoint."""
        self._place.ranks.barrier()  # rank 0 has rewound the journal
        events = self._place.journal.read("watched", self._place.stage)
        self._seen = {event["step"] + 1: {key: event[key] for key in ("mean", "scores")} for event in events}
        self._place.ranks.barrier()
        self._write()
        self.saved()
        if self._keep_best and self._seen:
            require_best(self._checkpoints, self.best)

    def looks(self, done: int) -> bool:
        """Tell whether it is time to."""
        return done % self._every == 0 or done == self._steps

    def after(self, done: int) -> None:
        """Score the model if it is time to."""
        if not self.looks(done):
            return
        began = time.monotonic()
        ranks = self._place.ranks
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            scores = ranks.agree(self._look() if ranks.number == 0 else {})
        mean = float(np.mean([scores[task][measure] for task, measure in self._main.items()]))
        self._seen[done] = {"mean": mean, "scores": scores}
        if ranks.number:
            return
        if self._keep_best and self.best == done:
            save_best(self._checkpoints, done, self._model)
        self._place.journal.write(
            "watched", self._place.stage, step=done - 1, steps=self._steps, scores=scores, mean=mean,
            best=self.best == done, seconds=round(time.monotonic() - began, 2),
        )  # fmt: skip
        self._write()

    def saved(self) -> None:
        """Give up parameters of steps that cannot become the best any more.

        Until a checkpoint is saved they stay: if training goes on from the one before, they may be the best again.
        """
        if self._place.ranks.number == 0:
            forget_best(self._checkpoints, self.best if self._seen else None)

    def end(self) -> None:
        """Go back to the best step."""
        self._place.ranks.barrier()
        if self._keep_best and self.best != self._steps:
            load_best(self._checkpoints, self.best, self._model)
            text = f"ends with the model of step {self.best}, the best of {self._steps} on the watched tasks"
            self._place.journal.write("note", self._place.stage, text=text)

    def _write(self) -> None:
        """Write watch.json."""
        if self._place.ranks.number:
            return
        path = self._place.folder / "watch.json"
        if not self._seen:
            path.unlink(missing_ok=True)
            return
        steps = {str(done): seen for done, seen in sorted(self._seen.items())}
        write_json(path, {"main": self._main, "best": self.best, "kept": self.kept, "steps": steps})


def watch_of(run: Run, model: SentenceTransformer, place: Workplace) -> Watch | None:
    """Watch the training of a model as the study says; None where it names no tasks to watch.

    Raises:
        DataError: A task cannot be read.
    """
    options = run.study.evaluation
    if not options.watch:
        return None
    tasks = watched_tasks(run.study)
    look = _Look(run, model, place, tasks)
    return Watch(
        model,
        place,
        look,
        {task.name: task.main for task in tasks},
        every=options.watch_every,
        steps=run.study.reference.steps,
        keep_best=options.keep == "best",
    )


def choice_of(study: Study) -> list[object]:
    """Identify what decides which step's model a stage ends with; empty where that is always the last.

    Raises:
        DataError: A task is not there.
    """
    options, cache = study.evaluation, cache_folder()
    if options.keep == "last":
        return []
    contents = [[part.content(cache) for part in task.parts] for task in watched_tasks(study)]
    return [options.watch_every, contents, [task.instruction for task in options.watch.values()]]


def watched_tasks(study: Study) -> list[Task]:
    """Find the tasks that a study watches.

    Raises:
        DataError, ConfigError: See `find_task`.
    """
    return [find_task(name, options, Path(study.data.root)) for name, options in study.evaluation.watch.items()]


class _Look:
    """Evaluates the model as it is on the watched tasks."""

    def __init__(self, run: Run, model: SentenceTransformer, place: Workplace, tasks: list[Task]) -> None:
        self._run, self._place, self._encoders = run, place, Encoders(run, model)
        self._parts: dict[str, list[Benchmark]] = {
            task.name: [part.read(cache_folder(), None) for part in task.parts] for task in tasks
        }

    def __call__(self) -> Scores:
        """Return the scores of every task, which are the means over its parts."""
        return {task: self._score(task, parts) for task, parts in self._parts.items()}

    def _score(self, task: str, parts: list[Benchmark]) -> dict[str, float]:
        """Evaluate one task; embeddings last as long as that takes."""
        options, scratch = self._run.study.evaluation.watch[task], self._place.folder / "checkpoints" / "watch"
        ranker = self._encoders.of_task(self._place.stage, options, "", self._progress)
        query, document = (replace(side, folder=None, ranks=ALONE) for side in (ranker.query, ranker.document))
        here = replace(ranker, query=query, document=document, ranks=ALONE)
        try:
            means = [evaluate(here, part, DEPTH, scratch=scratch).means for part in parts]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {measure: float(np.mean([scores[measure] for scores in means])) for measure in means[0]}

    def _progress(self, done: int, of: int) -> None:
        """Tell how far the encoding is."""
        self._run.journal.progress(f"{self._place.stage}/watch", done, of)
