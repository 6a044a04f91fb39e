"""From trials to the numbers of a setting: headroom, usefulness, arms, agreement, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from study.settings import IN_DOMAIN, LARGE, OUT_OF_DOMAIN
from tdro.evaluation.halves import Half, choice_half
from tdro.evaluation.regression import Usefulness, fit_usefulness, headroom, rank_agreement
from tdro.evaluation.significance import holm, mean_over_tasks, paired_difference, randomisation_p
from tdro.training.trials import Trial
from tdro.training.usefulness import MixtureScores

_HALVES: tuple[Half, Half] = ("choice", "report")
Scores = Mapping[str, np.ndarray]
"""Task -> score of every query of a half."""


@dataclass(frozen=True)
class Outcome:
    """The trials of an arm, by seed.

    Attributes:
        name: The arm.
        trials: Seed -> trial.
        mixtures: Seed -> dataset -> share.
    """

    name: str
    trials: dict[int, Trial]
    mixtures: dict[int, dict[str, float]]


class Halves:
    """Cuts the scores of a trial to one half of the queries.

    Args:
        query_ids: Task -> its queries.
    """

    def __init__(self, query_ids: Mapping[str, Sequence[str]]) -> None:
        self._choice = {task: choice_half(ids) for task, ids in query_ids.items()}

    def choice(self, trial: Trial) -> dict[str, np.ndarray]:
        """The half on which choices are made."""
        return {task: score_Q[self._choice[task]] for task, score_Q in trial.scores.items()}

    def report(self, trial: Trial) -> dict[str, np.ndarray]:
        """The half that is reported."""
        return {task: score_Q[~self._choice[task]] for task, score_Q in trial.scores.items()}


def points(scores: Scores, tasks: Sequence[str]) -> float:
    """Mean over those tasks that there are scores of, nDCG@10 x 100."""
    return float(100 * np.mean([scores[task].mean() for task in tasks if task in scores]))


def arms_table(outcomes: Sequence[Outcome], halves: Halves, against: str = "uniform") -> list[dict[str, Any]]:
    """Describe every arm on the report half, and test it against uniform with the same seeds.

    Returns:
        A row per arm: means over seeds out of and in domain with the deviation between seeds, the set that loses most,
        the difference out of domain with its 95 % interval over queries and p after Holm over all arms.
    """
    rule = next(outcome for outcome in outcomes if outcome.name == against)
    rows = [_arm(outcome, rule, halves) for outcome in outcomes]
    tested = [row for row in rows if row["arm"] != against]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = round(p, 5)
    return rows


def _arm(outcome: Outcome, rule: Outcome, halves: Halves) -> dict[str, Any]:
    """Describe one arm."""
    seeds = [seed for seed in outcome.trials if seed in rule.trials]
    mine = {seed: halves.report(outcome.trials[seed]) for seed in seeds}
    theirs = {seed: halves.report(rule.trials[seed]) for seed in seeds}
    out_S = [points(mine[seed], OUT_OF_DOMAIN) for seed in seeds]
    in_S = [points(mine[seed], IN_DOMAIN) for seed in seeds]
    gain = {task: np.mean([mine[s][task] - theirs[s][task] for s in seeds], axis=0) for task in mine[seeds[0]]}
    worst = min(gain, key=lambda task: gain[task].mean())
    outside, large, inside = (
        {task: gain[task] for task in tasks if task in gain} for tasks in (OUT_OF_DOMAIN, LARGE, IN_DOMAIN)
    )
    difference, within = paired_difference(outside), paired_difference(inside)
    return {
        "arm": outcome.name,
        "seeds": len(seeds),
        "out": round(float(np.mean(out_S)), 2),
        "out_deviation": _deviation(out_S),
        "in": round(float(np.mean(in_S)), 2),
        "in_deviation": _deviation(in_S),
        "gain": round(100 * difference.mean, 2),
        "low": round(100 * difference.low, 2),
        "high": round(100 * difference.high, 2),
        "p": randomisation_p(outside),
        "gain_large": round(100 * mean_over_tasks({task: gain[task].mean() for task in large}), 2),
        "gain_in": round(100 * within.mean, 2),
        "low_in": round(100 * within.low, 2),
        "high_in": round(100 * within.high, 2),
        "worst": worst,
        "worst_gain": round(float(100 * gain[worst].mean()), 2),
        "datasets": round(float(np.mean([len(mixture) for mixture in outcome.mixtures.values()])), 1),
    }


def headroom_of(
    found: MixtureScores, fitted: Usefulness, outcomes: Sequence[Outcome], halves: Halves, tasks: Sequence[str]
) -> dict[str, Any]:
    """Say what any mixture can gain: random ones, and the one that the regression expects most of.

    The regression is of the choice half; the optimised arm is that of the sets in LARGE, whatever the tasks here.
    `halves_agree` and `shared` say how much of the differences between mixtures
    on the choice half is there on the report half, and `ranks_of_halves` whether usefulness is.
    """
    by_name = {outcome.name: outcome for outcome in outcomes}
    sides = {"choice": halves.choice, "report": halves.report}
    arms = {
        f"{name}_{side}": [points(cut(trial), tasks) for trial in by_name[name].trials.values()]
        for side, cut in sides.items()
        for name in ("uniform", "optimised")
    }
    choice_M, report_M = (100 * found.score_M(half, tasks) for half in _HALVES)
    room = headroom(choice_M, choice_M, report_M)
    again = fit_usefulness(found.names, found.mixture_MG, report_M)
    numbers = {
        "mean": choice_M.mean(),
        "deviation": room.deviation,
        "best": choice_M.max(),
        "halves_agree": room.agreement,
        "shared": room.shared,
        "explained": fitted.explained,
        "reliability": fitted.reliability,
        "full_reliability": fitted.full_reliability,
        "ranks_of_halves": rank_agreement(fitted.slope_G, again.slope_G),
        "ceiling": fitted.ceiling,
        "seed_deviation": np.std(arms["uniform_report"], ddof=1),
        "gain_of_optimised": np.mean(arms["optimised_report"]) - np.mean(arms["uniform_report"]),
    }
    return {
        "mixtures": len(choice_M),
        "shape": fitted.shape,
        **{name: round(float(value), 3) for name, value in numbers.items()},
        **{name: [round(value, 2) for value in values] for name, values in arms.items()},
    }


def agreement(learned: Mapping[str, Mapping[int, Mapping[str, float]]], fitted: Usefulness) -> list[dict[str, Any]]:
    """Say how far learned weights agree with the usefulness, and between seeds.

    Args:
        learned: Measure -> seed -> dataset -> weight.
        fitted: The usefulness.
    """
    rows = []
    for measure, by_seed in learned.items():
        weights = [[one[name] for name in fitted.names] for one in by_seed.values()]
        rows.append({
            "measure": measure,
            "with_usefulness": [round(rank_agreement(one, fitted.slope_G), 3) for one in weights],
            "of_mean_over_seeds": round(rank_agreement(np.mean(np.log(weights), axis=0), fitted.slope_G), 3),
            "between_seeds": [round(rank_agreement(*pair), 3) for pair in combinations(weights, 2)],
        })  # fmt: skip
    return rows


def proxies(
    learned: Mapping[str, Mapping[int, Mapping[str, float]]], smaller: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> list[dict[str, Any]]:
    """Say how far the weights of a larger model's proxies agree with those of a smaller model's, and between seeds.

    Args:
        learned: Measure -> seed -> dataset -> weight, of the larger model.
        smaller: The same of the smaller one; measures and seeds that it has not are left out.
    """
    rows = []
    for measure, by_seed in learned.items():
        pairs = [(by_seed[seed], smaller[measure][seed]) for seed in by_seed if seed in smaller.get(measure, {})]
        vectors = [[one[name] for name in by_seed[seed]] for seed, one in by_seed.items()]
        rows.append({
            "measure": measure,
            "with_smaller": [
                round(rank_agreement([large[n] for n in large], [small[n] for n in large]), 3) for large, small in pairs
            ],
            "between_seeds": [round(rank_agreement(*pair), 3) for pair in combinations(vectors, 2)],
        })  # fmt: skip
    return rows


def ranks(learned: Mapping[str, Mapping[int, Mapping[str, float]]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Say where some datasets end among all by weight, 1 the highest, and their mean weight over seeds."""
    rows = []
    for measure, by_seed in learned.items():
        for name in names:
            if all(name in weights for weights in by_seed.values()):
                places = [sorted(w, key=lambda g, w=w: -w[g]).index(name) + 1 for w in by_seed.values()]
                weight = float(np.mean([weights[name] for weights in by_seed.values()]))
                of = len(next(iter(by_seed.values())))
                rows.append(
                    {"measure": measure, "dataset": name, "places": places, "of": of, "weight": round(weight, 4)}
                )
    return rows


def _deviation(values: Sequence[float]) -> float | None:
    """Deviation between seeds."""
    return round(float(np.std(values, ddof=1)), 2) if len(values) > 1 else None
