"""Writes the results of a setting to benchmarks/results/study/."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.arms import weights_of
from study.results import Halves, Outcome, agreement, arms_table, headroom_of, ranks
from study.settings import GOALS, MEASURES, RESULTS, SEEDS
from tdro.config import Study
from tdro.evaluation.halves import Half
from tdro.evaluation.regression import Usefulness, fit_usefulness
from tdro.files import write_json
from tdro.training.usefulness import MixtureScores

ODD = ("noise30", "noise100", "medquad", "medquad_copy", "easy")


def write_setting(
    setting: str, study: Study, found: MixtureScores, halves: Halves, outcomes: Sequence[Outcome]
) -> None:
    """Write everything that a setting has shown: NAME.json, NAME-arms.csv, NAME-datasets.csv, NAME-mixtures.csv."""
    learned = {
        measure: {seed: weights_of(study, seed, measure) for seed in SEEDS} for measure in (*MEASURES, "transfer")
    }
    weights = {measure: {seed: one["weights"] for seed, one in by_seed.items()} for measure, by_seed in learned.items()}
    fitted = {
        goal: fit_usefulness(found.names, found.mixture_MG, found.score_M("choice", tasks))
        for goal, tasks in GOALS.items()
    }
    arms = arms_table(outcomes, halves)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{setting}.json", {
        "headroom": {goal: headroom_of(found, fitted[goal], outcomes, halves, GOALS[goal]) for goal in GOALS},
        "agreement": {goal: agreement(weights, fitted[goal]) for goal in GOALS},
        "odd": ranks(weights, ODD),
        "seconds": {
            "trial": [round(float(np.mean([trial.seconds for trial in found.trials])), 1)],
            **{measure: [one["seconds"] for one in by_seed.values()] for measure, by_seed in learned.items()},
        },
    })  # fmt: skip
    write_table(RESULTS / f"{setting}-arms.csv", arms)
    write_table(RESULTS / f"{setting}-datasets.csv", _datasets(fitted, weights))
    write_table(RESULTS / f"{setting}-mixtures.csv", _mixtures(found))


def _datasets(
    fitted: Mapping[str, Usefulness], weights: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> list[dict[str, Any]]:
    """A row per dataset: usefulness in points for one percent more of the sample; weights by measure and seed."""
    return [
        {
            "dataset": name,
            **{f"usefulness_{goal}": round(float(one.slope_G[g]), 4) for goal, one in fitted.items()},
            "optimised": round(float(fitted["large"].best_G[g]), 4),
            **{
                f"{measure}_{seed}": round(one[name], 5)
                for measure, by_seed in weights.items()
                for seed, one in by_seed.items()
            },
        }
        for g, name in enumerate(fitted["large"].names)
    ]


def _mixtures(found: MixtureScores) -> list[dict[str, Any]]:
    """A row per random mixture: shares, and nDCG@10 x 100 of every set on both halves."""
    halves: tuple[Half, Half] = ("choice", "report")
    means = zip(*(found.means(half) for half in halves), strict=True)
    return [
        {
            **{name: round(share, 5) for name, share in zip(found.names, mixture_G, strict=True)},
            **{
                f"{half} {task}": round(100 * mean, 3)
                for half, side in zip(halves, sides, strict=True)
                for task, mean in side.items()
            },
        }
        for mixture_G, sides in zip(found.mixture_MG.tolist(), means, strict=True)
    ]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
