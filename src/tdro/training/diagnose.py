"""How sure the learned weights are, from what the journal recorded of every step."""

import math
from typing import Any

import numpy as np

from tdro.config import Study
from tdro.core.diagnostics import cut_verdicts, duality_gap, effective_number, log_ratio_interval, replay_resampled
from tdro.core.groups import GroupStatistics
from tdro.core.plan import kept_count
from tdro.data.mixture import seeded
from tdro.training.journal import Event
from tdro.training.weight_learner import WeightLearner

RESAMPLES = 100
MOVING = 0.05
"""Change of a log-weight over the last tenth of the steps from which on the weights count as still moving."""


def diagnose(study: Study, names: list[str], events: list[Event], learner: WeightLearner) -> dict[str, Any]:
    """Say how concentrated, how settled and how certain learned weights are.

    The intervals come from a block bootstrap over the steps: blocks of about T^(1/3) neighbouring steps are drawn with
    replacement and the recorded signals replayed. They hold for the luck of the batches, not for other seeds of the
    proxy or other data.

    Args:
        study: The study.
        names: Datasets, in the order of the groups.
        events: The step events of the weights stage.
        learner: A learner as it was before the first step.

    Returns:
        For all datasets together: cut (how many of the largest weights are above it), without_loss (those whose every
        loss is 0), effective_datasets, duality_gap, change_in_last_tenth, still_moving. For each dataset: 95 % interval
        of its weight, verdict at the plan's cut, and the log of the ratio of proxy to reference loss over the last
        quarter with half its interval.
    """
    signal_TG = np.array([event["signal"] for event in events])
    weights_TG = np.array([event["weights"] for event in events])
    statistics_T = [GroupStatistics(np.array(event["statistics"])) for event in events]
    present_TG = np.array([statistics.present_G for statistics in statistics_T])
    late = slice(-max(1, len(events) // 4), None)
    finals_SG = replay_resampled(
        learner.moved, learner.weights, signal_TG, present_TG, _blocks(len(events), study.seed)
    )
    low_G, high_G = np.quantile(finals_SG, [0.025, 0.975], axis=0)
    kept = rank_of_the_cut(study)
    verdicts = cut_verdicts(finals_SG, kept)
    pooled = GroupStatistics(np.sum([statistics.sums_GC for statistics in statistics_T[late]], axis=0))
    ratio_G, half_G = log_ratio_interval(pooled)
    before_G = weights_TG[max(len(events) - 1 - max(1, len(events) // 10), 0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = float(np.nanmax(np.abs(np.log(weights_TG[-1] / before_G))))
    signal_G = signal_TG[late].sum(0) / np.maximum(present_TG[late].sum(0), 1)
    silent_G = (np.sum([statistics.sums_GC for statistics in statistics_T], axis=0)[:, [1, 2]] == 0).all(axis=1)
    return {
        "cut": kept,
        "without_loss": [name for name, silent in zip(names, silent_G, strict=True) if silent],
        "effective_datasets": effective_number(weights_TG[-1]),
        "duality_gap": duality_gap(signal_G, weights_TG[-1]),
        "change_in_last_tenth": moved,
        "still_moving": moved > MOVING,
        "datasets": {
            name: {
                "interval": [float(low_G[g]), float(high_G[g])],
                "verdict": verdicts[g],
                "log_loss_ratio": _number(ratio_G[g]),
                "log_loss_ratio_half_interval": _number(half_G[g]),
            }
            for g, name in enumerate(names)
        },
    }


def rank_of_the_cut(study: Study) -> int:
    """Count the weights above the plan's cut; a change of the plan moves it without a new training."""
    groups = len(study.data.datasets)
    try:
        kept = kept_count(groups, study.robust.share)
    except ValueError:  # a plan that ignores the share may leave it too small
        kept = 1
    return groups - kept if study.robust.plan == "bottom-share" else kept


def sentences(diagnostics: dict[str, Any]) -> list[str]:
    """Put diagnostics into plain words, one sentence each."""
    verdicts = [dataset["verdict"] for dataset in diagnostics["datasets"].values()]
    counts = {verdict: verdicts.count(verdict) for verdict in ("keep", "drop", "undecided")}
    change = 100 * math.expm1(diagnostics["change_in_last_tenth"])
    moving = (
        f"They are still moving: a weight changed by {change:.1f} % over the last tenth of the steps."
        if diagnostics["still_moving"]
        else f"They have settled: no weight changed by more than {change:.1f} % over the last tenth of the steps."
    )
    silent = diagnostics["without_loss"]
    warning = (
        f"WARNING: every loss of {', '.join(silent)} is 0, so there is nothing to learn from: "
        "raise weights.temperature or use harder negatives."
    )
    return [
        *([warning] if silent else []),
        f"The weights are as concentrated as {diagnostics['effective_datasets']:.1f} equal ones of {len(verdicts)}.",
        moving,
        f"At the plan's cut, {counts['keep']} datasets are kept and {counts['drop']} dropped whatever the luck of the "
        f"batches; {counts['undecided']} are undecided.",
    ]


def _blocks(steps: int, seed: int) -> np.ndarray:
    """Orders of steps for the bootstrap, [S, T]: blocks of neighbours, drawn with replacement."""
    length = max(1, round(steps ** (1 / 3)))
    count = math.ceil(steps / length)
    first_SK = seeded(seed, "bootstrap").integers(0, steps - length + 1, size=(RESAMPLES, count))
    return (first_SK[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :steps]


def _number(value: float) -> float | None:
    """A number as JSON has it: NaN becomes null."""
    return None if math.isnan(value) else float(value)
