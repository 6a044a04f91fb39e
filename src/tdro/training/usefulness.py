"""The expensive answer: train with many random mixtures, and regress the scores on the shares."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdro.config import Study
from tdro.core.plan import reweight
from tdro.data.reading import Rows
from tdro.data.weights_file import released_format
from tdro.errors import ConfigError, DataError
from tdro.evaluation.halves import Half, half_means, other_half, queries_of
from tdro.evaluation.regression import CONCENTRATION, Headroom, Usefulness, fit_usefulness, headroom, random_mixtures
from tdro.evaluation.significance import mean_over_tasks
from tdro.files import write_json, write_text
from tdro.training.leakage_gate import leakage_gate
from tdro.training.negatives import negatives
from tdro.training.pipeline import refuse_missing_inputs
from tdro.training.run import Run
from tdro.training.stages import sizes_of
from tdro.training.trials import Trial, Trials

FOLDER = "usefulness"
LEAST = 20
"""Mixtures below which there is nothing to regress."""


@dataclass(frozen=True)
class MixtureScores:
    """Random mixtures and their trials.

    Attributes:
        names: Datasets, G of them.
        mixture_MG: Shares.
        trials: What came of each.
        query_ids: Task, or task/part -> its queries.
    """

    names: tuple[str, ...]
    mixture_MG: np.ndarray
    trials: tuple[Trial, ...]
    query_ids: Mapping[str, Sequence[str]]

    def means(self, half: Half) -> list[dict[str, float]]:
        """For every mixture: task, or task/part -> mean over the queries of a half, 0 to 1."""
        return self._means({label: queries_of(half, ids) for label, ids in self.query_ids.items()})

    def score_M(self, half: Half, tasks: Collection[str] = ()) -> np.ndarray:
        """Average over tasks, or over those named."""
        return _over_tasks(self.means(half), tasks)

    def headroom(self, half: Half, tasks: Collection[str] = ()) -> Headroom:
        """Say how much mixtures differ on the queries of a half, and on how much of that its own halves agree."""
        sides = []
        for wanted in (True, False):
            chosen = {
                label: queries_of(half, ids) & (other_half(ids) == wanted) for label, ids in self.query_ids.items()
            }
            sides.append(_over_tasks(self._means(chosen), tasks))
        return headroom(self.score_M(half, tasks), *sides)

    def _means(self, chosen: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
        """Average over the queries that are chosen."""
        return [half_means(trial.scores, chosen) for trial in self.trials]


def _over_tasks(means: Sequence[Mapping[str, float]], tasks: Collection[str]) -> np.ndarray:
    """Average over tasks, or over those named; of the same tasks for every mixture."""
    wanted = [label for label in means[0] if not tasks or label.partition("/")[0] in tasks]
    return np.array([mean_over_tasks({label: one[label] for label in wanted}) for one in means])


def usefulness(
    run: Run,
    count: int = 60,
    concentration: float = CONCENTRATION,
    half: Half = "choice",
    tasks: tuple[str, ...] = (),
) -> tuple[MixtureScores, Usefulness]:
    """Train and score random mixtures of a study's datasets, and say how useful each dataset is.

    Writes usefulness/mixtures.csv, usefulness/usefulness.json and usefulness/best.json, a weights file with the most
    promising mixture; of another half than `choice` in usefulness/HALF, and of `report` no best.json. Mixtures that
    were tried are not tried again; more of them add to the first ones. All rows are trained on, and models end with
    their last step, whatever the study says of held-out rows and best steps.

    Args:
        run: The run.
        count: Mixtures.
        concentration: Of the Dirichlet distribution they are drawn from.
        half: Which queries count: the half on which choices are made (see `tdro.evaluation.halves`), so that the other
            half stays for what is reported; or all.
        tasks: Tasks that count; all where none is named.

    Returns:
        The mixtures with their scores, and what they say.

    Raises:
        ConfigError: There are fewer than two datasets, no tasks, an unknown one, or too few mixtures; or the study
            could not run.
        DataError: Rows or tasks cannot be read, or a task has too few queries.
        Stopped: SIGINT or SIGTERM came; the same call goes on.
    """
    refuse_impossible(run.study, count, tasks)
    refuse_missing_inputs(run, "evaluate")
    run.write_resolved()
    rows = study_rows(run)
    trials = Trials(run, rows)
    _refuse_small_tasks(trials.query_ids, half, tasks)
    found = try_mixtures(run, trials, tuple(rows), count, concentration)
    score_M = found.score_M(half, tasks)
    try:
        fitted = fit_usefulness(found.names, found.mixture_MG, score_M, run.study.seed, concentration)
    except ValueError as error:
        raise ConfigError(str(error), where="usefulness", do="add a task, or raise --mixtures") from None
    if run.ranks.number == 0:
        _write(run, rows, found, fitted, half, tasks)
    return found, fitted


def study_rows(run: Run) -> dict[str, Rows]:
    """Return the rows that a study trains on: without leaks, with negatives."""
    return negatives(run, leakage_gate(run, run.source_rows))


def try_mixtures(
    run: Run, trials: Trials, names: tuple[str, ...], count: int, concentration: float = CONCENTRATION
) -> MixtureScores:
    """Do the trials of `usefulness`, all with the study's seed."""
    mixture_MG = random_mixtures(len(names), count, run.study.seed, concentration)
    done = []
    for number, mixture_G in enumerate(mixture_MG):
        run.journal.progress(FOLDER, number, count)
        done.append(trials.run(reweight(dict(zip(names, mixture_G.tolist(), strict=True))), run.study.seed))
    run.journal.progress(FOLDER, count, count)
    return MixtureScores(names, mixture_MG, tuple(done), trials.query_ids)


def refuse_impossible(study: Study, count: int, tasks: tuple[str, ...]) -> None:
    """Refuse what cannot be answered, before anything is read.

    Raises:
        ConfigError: As `usefulness`.
    """
    if len(study.data.datasets) < 2:
        raise ConfigError("one dataset has no mixtures", where="data.datasets", do="add a dataset")
    if not study.evaluation.tasks:
        raise ConfigError("there is nothing to score mixtures on", where="evaluation.tasks", do="name a task")
    if unknown := sorted(set(tasks) - set(study.evaluation.tasks)):
        do = f"the study has {', '.join(study.evaluation.tasks)}"
        raise ConfigError("unknown task", where="--tasks", saw=", ".join(unknown), do=do)
    if count < LEAST:
        do = f"ask for {LEAST} or more; 60 and more tell datasets apart"
        raise ConfigError("too few mixtures to tell anything", where="--mixtures", saw=count, do=do)


def _refuse_small_tasks(query_ids: Mapping[str, Sequence[str]], half: Half, tasks: tuple[str, ...]) -> None:
    """Refuse tasks of which a half of the half has no query, so that nothing could be compared."""
    for label, ids in query_ids.items():
        if tasks and label.partition("/")[0] not in tasks:
            continue
        sides = [int((queries_of(half, ids) & (other_half(ids) == side)).sum()) for side in (True, False)]
        if min(sides) == 0:
            do = "take another task, name others with --tasks, or use --half all"
            raise DataError("too few queries to tell luck from a better mixture", where=label, saw=len(ids), do=do)


def _write(
    run: Run, rows: dict[str, Rows], found: MixtureScores, fitted: Usefulness, half: Half, tasks: tuple[str, ...]
) -> None:
    """Write what was found."""
    folder = folder_of(run, half)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    means = found.means(half)
    table.writerow([*found.names, *(f"score of {label}" for label in means[0]), "seconds"])
    for mixture_G, one, trial in zip(found.mixture_MG.tolist(), means, found.trials, strict=True):
        table.writerow([*(f"{share:.6f}" for share in mixture_G), *(f"{m:.6f}" for m in one.values()), trial.seconds])
    write_text(folder / "mixtures.csv", text.getvalue())
    best = dict(zip(found.names, fitted.best_G.tolist(), strict=True))
    if half != "report":  # what is reported on is not chosen on
        write_json(folder / "best.json", released_format(best, sizes_of(rows)))
    write_json(folder / "usefulness.json", summary(found, fitted, half, tasks))


def folder_of(run: Run, half: Half) -> Path:
    """Where the answer of a half is."""
    return run.folder / FOLDER if half == "choice" else run.folder / FOLDER / half


def summary(found: MixtureScores, fitted: Usefulness, half: Half, tasks: tuple[str, ...]) -> Mapping[str, object]:
    """Say what was found, as JSON has it; scores from 0 to 1."""
    score_M, room = found.score_M(half, tasks), found.headroom(half, tasks)
    return {
        "mixtures": len(score_M),
        "queries": half,
        "tasks": sorted(tasks or {label.partition("/")[0] for label in found.query_ids}),
        "score": {
            "mean": float(score_M.mean()),
            "best": float(score_M.max()),
            "deviation": room.deviation,
            "shared_by_halves": room.shared,
            "agreement_of_halves": room.agreement,
        },
        "shape": fitted.shape,
        "explained": fitted.explained,
        "reliability": fitted.reliability,
        "full_reliability": fitted.full_reliability,
        "ceiling": fitted.ceiling,
        "expected": {"uniform": fitted.uniform, "best": fitted.expected},
        "usefulness": dict(zip(fitted.names, fitted.slope_G.tolist(), strict=True)),
        "best": dict(zip(fitted.names, fitted.best_G.tolist(), strict=True)),
        "seconds": sum(trial.seconds for trial in found.trials),
    }
