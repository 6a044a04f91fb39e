"""How sure the learned weights are, from what the journal recorded of every step."""

import math
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from tdro.config import Study
from tdro.core.diagnostics import (
    cut_verdict,
    duality_gap,
    effective_number,
    kept_shares,
    log_ratio_interval,
    replay_resampled,
)
from tdro.core.groups import GroupStatistics
from tdro.data.mixture import seeded
from tdro.errors import ConfigError
from tdro.training.journal import Event
from tdro.training.planning import plan_of, planned_examples, rank_of_the_cut
from tdro.training.weight_learner import WeightLearner

RESAMPLES = 100
FEW_STEPS = 50
"""Steps below which nothing is said about settling."""
MOVING = 0.05
"""Change of a log-weight over the last tenth of the steps from which on the weights count as still moving."""
SUSPECT = 0.5
"""Share of queries for which the reference prefers a negative, from which on a dataset is called a suspect of noise."""
MANY_EPOCHS = 4.0
"""Planned epochs from which on repeats are mentioned: about where repeated text was seen to lose its value."""
_FORM = 2  # part of what diagnostics depend on: raise it when those of the same weights would differ


def subject_of(study: Study) -> dict[str, Any]:
    """Name what diagnostics depend on beside the weights; where it changed, they are made again."""
    return {
        "form": _FORM,
        "robust": study.robust.model_dump(mode="json"),
        "export": study.weights.export,
        "planned_examples": planned_examples(study),
        "seeds": study.weights.seeds,
        "seed_steps": study.weights.seed_steps,
    }


def diagnose(
    study: Study,
    sizes: dict[str, int],
    events: list[Event],
    learner: WeightLearner,
    weights: dict[str, float],
    others: dict[int, dict[str, float]],
) -> dict[str, Any]:
    """Say how concentrated, how settled and how certain learned weights are.

    The intervals come from a block bootstrap over the steps: blocks of about T^(1/3) neighbouring steps are drawn with
    replacement and the recorded signals replayed. They hold for the luck of the batches, not for other seeds of the
    proxy or other data; those are compared under `seeds`. Verdicts, concentration, duality gap and `interval` are of
    the weights that are handed on (weights.export); `intervals` are of the last, their mean and their moving average.

    Args:
        study: The study.
        sizes: Dataset -> rows to train on, in the order of the groups.
        events: The step events of the weights stage.
        learner: A learner as it was before the first step.
        weights: The weights that are handed on.
        others: Seed -> last weights of further proxies.

    Returns:
        For all datasets together: of (what it was made for), cut (how many of the largest weights are above it),
        selects (whether the plan drops the others), without_loss (those whose every loss is 0), effective_datasets,
        duality_gap, change_in_last_tenth, still_moving, few_steps (that are too few to tell: their number, else None),
        seeds. For each dataset: its weight with a 95 % interval, and the intervals of all versions of the weights;
        verdict at the plan's cut, and the share of the resamples that put the dataset on the side on which most of them
        do (confidence); the log of the ratio of proxy to reference loss over the last quarter with half its interval;
        share of queries for which the reference prefers a negative; losses dropped as not finite; probability and
        epochs in the robust run; held-out losses.
    """
    names = list(sizes)
    sources = _moving_sources(study, events)
    weights_TG = np.array([event["weights"] for event in events])
    signal_TG = np.array([event["signal"] for event in events if "signal" in event])
    sums_TGC = np.array([source["statistics"] for source in sources])
    present_TG, late = sums_TGC[:, :, 0] > 0, slice(-max(1, len(sources) // 4), None)
    order_ST = _blocks(len(sources), study.seed)
    steps = [event["step"] for event in events if "signal" in event]
    finals = replay_resampled(learner.moved, learner.weights, signal_TG, present_TG, order_ST, steps)
    intervals = {version: np.quantile(of_SG, [0.025, 0.975], axis=0).T for version, of_SG in finals.items()}
    version, cut = study.weights.export, rank_of_the_cut(study)
    above_G = kept_shares(finals[version], cut)
    kept_G = 1 - above_G if study.robust.plan == "bottom-share" else above_G
    weights_G = np.array([weights[name] for name in names])
    ratio_G, half_G = log_ratio_interval(GroupStatistics(sums_TGC[late].sum(0)))
    moved = _movement(weights_TG)
    signal_G = signal_TG[late].sum(0) / np.maximum(present_TG[late].sum(0), 1)
    silent_G = (sums_TGC.sum(0)[:, [1, 2]] == 0).all(axis=1)
    total_GC = np.sum([event["statistics"] for event in events], axis=0)
    misranked_G = np.sum([event["misranked"] for event in events], axis=0) / np.maximum(total_GC[:, [0, 6]].sum(1), 1)
    planned = _planned(study, weights, sizes)
    held_out = _memorisation(study, events, names)
    return {
        "of": subject_of(study),
        "cut": cut,
        "selects": study.robust.plan in ("top-share", "bottom-share"),
        "without_loss": [name for name, silent in zip(names, silent_G, strict=True) if silent],
        "effective_datasets": effective_number(weights_G),
        "duality_gap": duality_gap(signal_G, weights_G),
        "change_in_last_tenth": moved,
        "still_moving": moved > MOVING,
        "few_steps": len(events) if len(events) < max(FEW_STEPS, study.weights.warmup_steps + 1) else None,
        "seeds": _seeds(study, names, weights_TG, others, cut),
        "datasets": {
            name: {
                "weight": float(weights_G[g]),
                "interval": intervals[version][g].tolist(),
                "intervals": {which: ends_GE[g].tolist() for which, ends_GE in intervals.items()},
                "verdict": cut_verdict(kept_G[g]),
                "confidence": float(max(kept_G[g], 1 - kept_G[g])),
                "log_loss_ratio": _number(ratio_G[g]),
                "log_loss_ratio_half_interval": _number(half_G[g]),
                "misranked_share": float(misranked_G[g]),
                "dropped_losses": int(total_GC[g, 6]),
                **planned[name],
                **held_out.get(name, {}),
            }
            for g, name in enumerate(names)
        },
    }


def sentences(diagnostics: dict[str, Any]) -> list[str]:
    """Put diagnostics into plain words, one sentence each."""
    datasets = diagnostics["datasets"]
    verdicts = [dataset["verdict"] for dataset in datasets.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in ("keep", "drop", "undecided")}
    return [
        *_warnings(diagnostics),
        f"The weights are as concentrated as {diagnostics['effective_datasets']:.1f} equal ones of {len(verdicts)}.",
        _moving_sentence(diagnostics),
        f"The best single dataset is {diagnostics['duality_gap']:.3g} above the weighted mean of the measures "
        "(duality gap; 0 when nothing is left to gain).",
        _cut_sentence(diagnostics, counts),
        *_seed_sentence(diagnostics["seeds"]),
        *_memory_sentence(datasets),
    ]


def _moving_sentence(diagnostics: dict[str, Any]) -> str:
    """Whether the weights have settled, where there were enough steps to tell."""
    if diagnostics.get("few_steps"):
        return f"Whether they settle cannot be told from {_count(diagnostics['few_steps'], 'step')}."
    change = 100 * math.expm1(diagnostics["change_in_last_tenth"])
    if diagnostics["still_moving"]:
        return f"They are still moving: a weight changed by {change:.1f} % over the last tenth of the steps."
    return f"They have settled: no weight changed by more than {change:.1f} % over the last tenth of the steps."


def _cut_sentence(diagnostics: dict[str, Any], counts: dict[str, int]) -> str:
    """How sure it is which datasets are above the cut of a plan that selects, or would be if it did."""
    keep, open_ = counts["keep"], counts["undecided"]
    undecided = f"whatever the luck of the batches; {open_} {'is' if open_ == 1 else 'are'} undecided."
    if diagnostics.get("selects", True):
        kept = f"{_count(keep, 'dataset')} {'is' if keep == 1 else 'are'} kept"
        return f"At the plan's cut, {kept} and {counts['drop']} dropped {undecided}"
    cut, groups = diagnostics["cut"], len(diagnostics["datasets"])
    would = f"{keep} would be kept and {counts['drop']} dropped"
    return f"The plan keeps all datasets; cut at {cut} of {groups}, {would} {undecided}"


def _warnings(diagnostics: dict[str, Any]) -> list[str]:
    """What a person must know before using the weights."""
    datasets = diagnostics["datasets"]
    silent = diagnostics["without_loss"]
    even = {n: f", {d['weight'] * len(datasets):.2g} x an even weight" for n, d in datasets.items() if "weight" in d}
    suspects = {n: d["misranked_share"] for n, d in datasets.items() if d["misranked_share"] >= SUSPECT}
    noisy = [f"{name} ({share:.0%}{even.get(name, '')})" for name, share in suspects.items()]
    dropped = [f"{name} {d['dropped_losses']}" for name, d in datasets.items() if d["dropped_losses"]]
    epochs = {name: dataset.get("planned_epochs", 0.0) for name, dataset in datasets.items()}
    often = [f"{name} ({epochs[name]:.1f})" for name in datasets if epochs[name] > MANY_EPOCHS]
    found = {
        "WARNING: every loss of {} is 0, so there is nothing to learn from: raise weights.temperature or use harder "
        "negatives.": silent,
        "SUSPECTS of noise or wrong labels: the reference prefers a negative for most queries of {}. The measures raw "
        "and excess give such datasets weight.": noisy,
        "Losses that were not finite were dropped: {}.": dropped,
        "The plan shows rows more than four times: {} epochs; robust.max_epochs caps that.": often,
    }
    return [sentence.format(", ".join(names)) for sentence, names in found.items() if names]


def _seed_sentence(seeds: dict[str, Any] | None) -> list[str]:
    """How well proxies of other seeds agree."""
    if seeds is None:
        return []
    agreement = seeds["rank_agreement"]
    told = "nothing can be said of their ranks" if agreement is None else f"their ranks agree with rho {agreement:.2f}"
    unsure = seeds["changing_sides"]
    sides = f"{', '.join(unsure)} change sides at the cut" if unsure else "no dataset changes sides at the cut"
    return [f"Over {len(seeds['weights'])} seeds of the proxy {told} (Spearman); {sides}."]


def _memory_sentence(datasets: dict[str, Any]) -> list[str]:
    """Which reference losses were lifted most by memory."""
    gaps = {n: d["memorisation"] for n, d in datasets.items() if d.get("memorisation") is not None}
    if not gaps:
        return []
    most = sorted(gaps, key=lambda name: -abs(gaps[name]))[:3]
    shown = ", ".join(f"{name} {gaps[name]:+.2f}" for name in most)
    return [f"Memorisation (log ratio on training rows less that on held-out rows) is largest for {shown}."]


def _moving_sources(study: Study, events: list[Event]) -> list[dict[str, Any]]:
    """The records of the losses that moved the weights."""
    if study.weights.signal == "held-out":
        return [event["held_out"] for event in events if "held_out" in event]
    return list(events)


def _movement(weights_TG: np.ndarray) -> float:
    """Largest change of a log-weight over the last tenth of the steps."""
    before_G = weights_TG[max(len(weights_TG) - 1 - max(1, len(weights_TG) // 10), 0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nanmax(np.abs(np.log(weights_TG[-1] / before_G))))


def _planned(study: Study, weights: dict[str, float], sizes: dict[str, int]) -> dict[str, dict[str, float]]:
    """Probability and epochs of every dataset in the robust run that the weights are meant for."""
    learned = study.model_copy(update={"robust": study.robust.model_copy(update={"weights": "learned"})})
    try:
        plan = plan_of(learned, weights, sizes)
    except ConfigError:  # the study samples a fixed mixture, and its plan would suit no learned weights
        return {name: {} for name in sizes}
    epochs = plan.epochs(sizes, planned_examples(study))
    return {
        name: {"planned_probability": plan.probabilities.get(name, 0.0), "planned_epochs": epochs.get(name, 0.0)}
        for name in sizes
    }


def _seeds(
    study: Study, names: list[str], weights_TG: np.ndarray, others: dict[int, dict[str, float]], kept: int
) -> dict[str, Any] | None:
    """Compare the weights of all seeds after equally many steps; None where there is one seed."""
    if not others:
        return None
    own_G = weights_TG[(study.weights.seed_steps or len(weights_TG)) - 1]
    weights_SG = np.array([own_G, *([weights[name] for name in names] for weights in others.values())])
    rho = [_spearman(a, b) for a, b in combinations(weights_SG, 2)]
    above_SG = (-weights_SG).argsort(axis=1, kind="stable").argsort(axis=1) < kept
    return {
        "rank_agreement": None if any(r is None for r in rho) else float(np.mean([r for r in rho if r is not None])),
        "changing_sides": [name for g, name in enumerate(names) if 0 < above_SG[:, g].sum() < len(above_SG)],
        "weights": {
            str(seed): dict(zip(names, weights_G.tolist(), strict=True))
            for seed, weights_G in zip([study.seed, *others], weights_SG, strict=True)
        },
    }


def _spearman(first_G: np.ndarray, second_G: np.ndarray) -> float | None:
    """Rank correlation; None where one of the two is constant."""
    if np.ptp(first_G) == 0 or np.ptp(second_G) == 0:
        return None
    return float(stats.spearmanr(first_G, second_G).statistic)


def _memorisation(study: Study, events: list[Event], names: list[str]) -> dict[str, dict[str, Any]]:
    """Losses on training and held-out rows over the last quarter of the steps, and what the difference says."""
    first = events[-max(1, len(events) // 4)]["step"]
    last_look = max((event["step"] for event in events if "held_out" in event), default=None)
    if last_look is None:
        return {}
    first = min(first, last_look)
    late = [event for event in events if event["step"] >= first]
    training = GroupStatistics(np.sum([event["statistics"] for event in late], axis=0))
    looks = [event["held_out"]["statistics"] for event in late if "held_out" in event]
    held_out = GroupStatistics(np.sum(looks, axis=0))
    (seen_G, _), (unseen_G, half_G) = log_ratio_interval(training), log_ratio_interval(held_out)
    return {
        name: {
            "held_out_log_loss_ratio": _number(unseen_G[g]),
            "held_out_log_loss_ratio_half_interval": _number(half_G[g]),
            "reference_loss": float(training.reference_mean_G[g]),
            "held_out_reference_loss": float(held_out.reference_mean_G[g]),
            "memorisation": _number(seen_G[g] - unseen_G[g]),
        }
        for g, name in enumerate(names)
    }


def _blocks(steps: int, seed: int) -> np.ndarray:
    """Orders of steps for the bootstrap, [S, T]: blocks of neighbours, drawn with replacement."""
    length = max(1, round(steps ** (1 / 3)))
    count = math.ceil(steps / length)
    first_SK = seeded(seed, "bootstrap").integers(0, steps - length + 1, size=(RESAMPLES, count))
    return (first_SK[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :steps]


def _count(number: int, what: str) -> str:
    """Count things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _number(value: float) -> float | None:
    """A number as JSON has it: NaN becomes null."""
    return None if math.isnan(value) else float(value)
