"""The expensive answer: train with many random mixtures, and regress the scores on the shares."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tdro.core.plan import reweight
from tdro.data.reading import Rows
from tdro.data.weights_file import released_format
from tdro.errors import ConfigError
from tdro.evaluation.halves import choice_half
from tdro.evaluation.regression import CONCENTRATION, Usefulness, fit_usefulness, random_mixtures
from tdro.evaluation.significance import mean_over_tasks
from tdro.files import write_json, write_text
from tdro.training.examiner import half_means
from tdro.training.leakage_gate import leakage_gate
from tdro.training.negatives import negatives
from tdro.training.run import Run
from tdro.training.stages import sizes_of
from tdro.training.trials import Trials

FOLDER = "usefulness"
LEAST = 20
"""Mixtures below which there is nothing to regress."""
Half = Literal["choice", "all"]


@dataclass(frozen=True)
class MixtureScores:
    """Random mixtures and their scores.

    Attributes:
        names: Datasets, G of them.
        mixture_MG: Shares.
        means: One per mixture: task, or task/part -> mean over the queries that count, 0 to 1.
        seconds_M: What each took.
    """

    names: tuple[str, ...]
    mixture_MG: np.ndarray
    means: tuple[dict[str, float], ...]
    seconds_M: np.ndarray

    def score_M(self, tasks: tuple[str, ...] = ()) -> np.ndarray:
        """Average over tasks, or over those named."""
        wanted = [label for label in self.means[0] if not tasks or label.partition("/")[0] in tasks]
        return np.array([mean_over_tasks({label: means[label] for label in wanted}) for means in self.means])


def usefulness(
    run: Run,
    count: int = 60,
    concentration: float = CONCENTRATION,
    half: Half = "choice",
    tasks: tuple[str, ...] = (),
) -> tuple[MixtureScores, Usefulness]:
    """Train and score random mixtures of a study's datasets, and say how useful each dataset is.

    Writes usefulness/mixtures.csv, usefulness/usefulness.json and usefulness/best.json, a weights file with the most
    promising mixture. Mixtures that were tried are not tried again; more of them add to the first ones.

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
        ConfigError: There are fewer than two datasets, no tasks, an unknown one, or too few mixtures.
        DataError: Rows or tasks cannot be read.
        Stopped: SIGINT or SIGTERM came; the same call goes on.
    """
    _refuse(run, count, tasks)
    run.write_resolved()
    rows = study_rows(run)
    found = try_mixtures(run, Trials(run, rows), tuple(rows), count, concentration, half)
    try:
        fitted = fit_usefulness(found.names, found.mixture_MG, found.score_M(tasks), run.study.seed)
    except ValueError as error:
        raise ConfigError(str(error), where="usefulness", do="add a task, or raise --mixtures") from None
    if run.ranks.number == 0:
        _write(run, rows, found, fitted, half, tasks)
    return found, fitted


def study_rows(run: Run) -> dict[str, Rows]:
    """Return the rows that a study trains on: without leaks, with negatives."""
    return negatives(run, leakage_gate(run, run.source_rows))


def try_mixtures(
    run: Run, trials: Trials, names: tuple[str, ...], count: int, concentration: float, half: Half
) -> MixtureScores:
    """Do the trials of `usefulness`, all with the study's seed."""
    mixture_MG = random_mixtures(len(names), count, run.study.seed, concentration)
    done = []
    for number, mixture_G in enumerate(mixture_MG):
        run.journal.progress(FOLDER, number, count)
        done.append(trials.run(reweight(dict(zip(names, mixture_G.tolist(), strict=True))), run.study.seed))
    run.journal.progress(FOLDER, count, count)
    chosen = chosen_queries(trials, half)
    return MixtureScores(
        names,
        mixture_MG,
        tuple(half_means(trial.scores, chosen) for trial in done),
        np.array([trial.seconds for trial in done]),
    )


def chosen_queries(trials: Trials, half: Half) -> dict[str, np.ndarray]:
    """Say which queries of every task count."""
    return {
        label: choice_half(ids) if half == "choice" else np.ones(len(ids), bool)
        for label, ids in trials.query_ids.items()
    }


def _refuse(run: Run, count: int, tasks: tuple[str, ...]) -> None:
    """Refuse what cannot be answered, before anything is trained."""
    study = run.study
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


def _write(
    run: Run, rows: dict[str, Rows], found: MixtureScores, fitted: Usefulness, half: Half, tasks: tuple[str, ...]
) -> None:
    """Write what was found."""
    folder = run.folder / FOLDER
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*found.names, *(f"score of {label}" for label in found.means[0]), "seconds"])
    for mixture_G, means, seconds in zip(found.mixture_MG.tolist(), found.means, found.seconds_M.tolist(), strict=True):
        table.writerow([*(f"{share:.6f}" for share in mixture_G), *(f"{m:.6f}" for m in means.values()), seconds])
    write_text(folder / "mixtures.csv", text.getvalue())
    best = dict(zip(found.names, fitted.best_G.tolist(), strict=True))
    write_json(folder / "best.json", released_format(best, sizes_of(rows)))
    write_json(folder / "usefulness.json", summary(found, fitted, half, tasks))


def summary(found: MixtureScores, fitted: Usefulness, half: Half, tasks: tuple[str, ...]) -> Mapping[str, object]:
    """Say what was found, as JSON has it; scores from 0 to 1."""
    score_M = found.score_M(tasks)
    return {
        "mixtures": len(score_M),
        "queries": half,
        "tasks": list(tasks) or sorted(found.means[0]),
        "score": {
            "mean": float(score_M.mean()), "deviation": float(score_M.std(ddof=1)), "best": float(score_M.max()),
        },
        "shape": fitted.shape,
        "explained": fitted.explained,
        "reliability": fitted.reliability,
        "full_reliability": fitted.full_reliability,
        "expected": {"uniform": fitted.uniform, "best": fitted.expected},
        "usefulness": dict(zip(fitted.names, fitted.slope_G.tolist(), strict=True)),
        "best": dict(zip(fitted.names, fitted.best_G.tolist(), strict=True)),
        "seconds": float(found.seconds_M.sum()),
    }  # fmt: skip
