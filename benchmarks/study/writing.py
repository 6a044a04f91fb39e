"""Writes the results of a setting to benchmarks/results/study/."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.arms import LEADING, together, weights_of
from study.results import Halves, Outcome, agreement, arms_table, headroom_of, proxies, ranks
from study.settings import GOALS, MEASURES, RESULTS, SEEDS
from tdro.config import Study
from tdro.evaluation.halves import Half
from tdro.evaluation.regression import Usefulness, fit_usefulness
from tdro.files import write_json
from tdro.training.trials import Trial
from tdro.training.usefulness import MixtureScores

Learned = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Measure -> seed -> what `learned_weights` returns."""
ODD = ("noise30", "noise100", "medquad", "medquad_copy", "easy")


def write_setting(
    setting: str, study: Study, found: MixtureScores, halves: Halves, outcomes: Sequence[Outcome]
) -> None:
    """Write everything that a setting has shown: NAME.json, NAME-arms.csv, NAME-datasets.csv, NAME-mixtures.csv."""
    learned = learned_by_seed(study, (*MEASURES, "transfer"), SEEDS)
    weights = weights_by_seed(learned)
    fitted = {
        goal: fit_usefulness(found.names, found.mixture_MG, found.score_M("choice", tasks))
        for goal, tasks in GOALS.items()
    }
    write_json(RESULTS / f"{setting}.json", {
        "headroom": {goal: headroom_of(found, fitted[goal], outcomes, halves, GOALS[goal]) for goal in GOALS},
        "agreement": {goal: agreement(weights | _both(weights), fitted[goal]) for goal in GOALS},
        "odd": ranks(weights, ODD),
        "seconds": {"trial": [_mean_seconds(found.trials)], **_seconds(learned)},
    })  # fmt: skip
    write_table(RESULTS / f"{setting}-arms.csv", arms_table(outcomes, halves))
    write_table(RESULTS / f"{setting}-datasets.csv", _datasets(fitted, weights))
    write_table(RESULTS / f"{setting}-mixtures.csv", _mixtures(found))


def write_further(setting: str, halves: Halves, outcomes: Sequence[Outcome]) -> None:
    """Write the arms that were thought of after the core, among them uniform: NAME-further.csv."""
    write_table(RESULTS / f"{setting}-further.csv", arms_table(outcomes, halves))


def write_larger(
    setting: str,
    halves: Halves,
    outcomes: Sequence[Outcome],
    learned: Learned,
    smaller: Mapping[str, Learned],
) -> None:
    """Write what a larger model has shown: NAME.json, NAME-arms.csv, and NAME-datasets.csv if it has weights.

    Args:
        setting: The larger model's.
        halves: Of the queries.
        outcomes: The arms.
        learned: What its own proxies have learned.
        smaller: Setting -> what its proxies have learned.
    """
    weights = weights_by_seed(learned)
    trials = [trial for outcome in outcomes for trial in outcome.trials.values()]
    write_json(RESULTS / f"{setting}.json", {
        "proxies": {name: proxies(weights, weights_by_seed(other)) for name, other in smaller.items()},
        "odd": ranks(weights, ODD),
        "seconds": {"trial": [_mean_seconds(trials)], **_seconds(learned)},
    })  # fmt: skip
    write_table(RESULTS / f"{setting}-arms.csv", arms_table(outcomes, halves))
    if weights:
        write_table(RESULTS / f"{setting}-datasets.csv", _weights(weights))


def learned_by_seed(study: Study, measures: Sequence[str], seeds: Sequence[int]) -> Learned:
    """Learn weights of a setting by several measures, unless that is done."""
    return {measure: {seed: weights_of(study, seed, measure) for seed in seeds} for measure in measures}


def weights_by_seed(learned: Learned) -> dict[str, dict[int, dict[str, float]]]:
    """Measure -> seed -> dataset -> weight."""
    return {measure: {seed: one["weights"] for seed, one in by_seed.items()} for measure, by_seed in learned.items()}


def _both(weights: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, dict[int, dict[str, float]]]:
    """The geometric mean of the leading measure and transfer, which is one of the further arms."""
    leading, transfer = weights[LEADING], weights["transfer"]
    return {f"{LEADING} and transfer": {seed: together(one, transfer[seed]) for seed, one in leading.items()}}


def _mean_seconds(trials: Sequence[Trial]) -> float:
    """Mean time of a trial."""
    return round(float(np.mean([trial.seconds for trial in trials])), 1)


def _seconds(learned: Learned) -> dict[str, list[float]]:
    """Measure -> seconds of learning, by seed."""
    return {measure: [one["seconds"] for one in by_seed.values()] for measure, by_seed in learned.items()}


def _weights(weights: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """A row per dataset: its weights by measure and seed."""
    names = next(iter(next(iter(weights.values())).values()))
    return [{"dataset": name, **_columns(weights, name)} for name in names]


def _columns(weights: Mapping[str, Mapping[int, Mapping[str, float]]], name: str) -> dict[str, float]:
    """The weights of a dataset, a column for every measure and seed."""
    return {
        f"{measure}_{seed}": round(one[name], 5)
        for measure, by_seed in weights.items()
        for seed, one in by_seed.items()
    }


def _datasets(
    fitted: Mapping[str, Usefulness], weights: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> list[dict[str, Any]]:
    """A row per dataset: usefulness in points for one percent more of the sample; weights by measure and seed."""
    return [
        {
            "dataset": name,
            **{f"usefulness_{goal}": round(float(one.slope_G[g]), 4) for goal, one in fitted.items()},
            "optimised": round(float(fitted["large"].best_G[g]), 4),
            **_columns(weights, name),
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
