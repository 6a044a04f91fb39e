"""The arms of the study: every mixture that is compared, by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from study.settings import FEWER_SEEDS, FIXED, MEASURES, PLANS, SEEDS
from study.transfer import transfer_weights
from study.variations import learned_in
from tdro.config import Study
from tdro.core.plan import Plan, reweight
from tdro.evaluation.regression import Usefulness
from tdro.training.planning import fixed_weights, plan_of

Arm = tuple[str, int, Plan]
"""Name, seed, mixture."""
Weights = Mapping[str, float]
LEADING = "relative-sample"
"""The measure of which most is tried."""


def fixed_arms(
    study: Study, sizes: dict[str, int], names: Sequence[str] = FIXED, seeds: Sequence[int] = SEEDS
) -> Iterator[Arm]:
    """Yield the mixtures that follow from the sizes."""
    for name in names:
        weights = fixed_weights(_robust(study, weights=name), sizes)
        yield from ((name, seed, reweight(weights)) for seed in seeds)


def learned_arms(study: Study, sizes: dict[str, int]) -> Iterator[Arm]:
    """Yield the plans of every measure; weights are learned when they are needed."""
    for measure in (*MEASURES, "transfer"):
        for seed in SEEDS:
            weights = weights_of(study, seed, measure)["weights"]
            for name in PLANS:
                yield f"{measure} {name}", seed, _planned(study, weights, sizes, name)


def optimised_arms(fitted: Usefulness) -> Iterator[Arm]:
    """Yield the mixture that the regression expects most of."""
    plan = reweight(dict(zip(fitted.names, fitted.best_G.tolist(), strict=True)))
    yield from (("optimised", seed, plan) for seed in SEEDS)


def further_arms(study: Study, sizes: dict[str, int]) -> Iterator[Arm]:
    """Yield uniform, and what was thought of after the core: other ways of learning and planning, datasets left out."""
    yield from fixed_arms(study, sizes, ("uniform",), FEWER_SEEDS)
    for seed in FEWER_SEEDS:
        own, ratio = (weights_of(study, seed, measure)["weights"] for measure in (LEADING, "relative"))
        yield f"{LEADING} loss", seed, plan_of(_robust(study, plan="reweight-loss"), own, sizes)
        yield "relative loss", seed, plan_of(_robust(study, plan="reweight-loss"), ratio, sizes)
        for measure, variation in (
            (LEADING, "held-out rows"), (LEADING, "anchored"), (LEADING, "cheap"), ("relative", "shrinkage 1"),
        ):  # fmt: skip
            weights = learned_in(study, seed, measure, variation)["weights"]
            yield f"{measure} {variation}", seed, _planned(study, weights, sizes)
        capped = _robust(study, plan="reweight", cap=2 / len(sizes))
        yield "relative capped", seed, plan_of(capped, ratio, sizes)
        both = together(own, weights_of(study, seed, "transfer")["weights"])
        yield f"{LEADING} and transfer", seed, _planned(study, both, sizes)
    weight_of = _log_mean(study, LEADING)
    ranked = sorted(sizes, key=lambda name: -weight_of[name])
    for left_out in (*ranked[:2], *ranked[-2:]):
        plan = reweight({name: float(name != left_out) for name in sizes})
        yield from ((f"without {left_out}", seed, plan) for seed in FEWER_SEEDS)


def larger_arms(study: Study, sizes: dict[str, int], smaller: Study) -> Iterator[Arm]:
    """Yield the arms of a larger model, with weights of its own proxies and of a static model's."""
    for seed in FEWER_SEEDS:
        yield from fixed_arms(study, sizes, ("uniform", "size"), (seed,))
        for measure in (LEADING, "transfer"):
            weights = weights_of(smaller, seed, measure)["weights"]
            yield f"static {measure} reweight", seed, _planned(study, weights, sizes)
        weights = weights_of(study, seed, LEADING)["weights"]
        for name in ("reweight", "bottom50"):
            yield f"{LEADING} {name}", seed, _planned(study, weights, sizes, name)


def demonstration_arms(study: Study, sizes: dict[str, int], smaller: Study) -> Iterator[Arm]:
    """Yield two arms of a model that is too large for more: uniform, and the weights of a static model."""
    yield from fixed_arms(study, sizes, ("uniform",), SEEDS[:1])
    weights = weights_of(smaller, SEEDS[0], LEADING)["weights"]
    yield f"static {LEADING} reweight", SEEDS[0], _planned(study, weights, sizes)


def weights_of(study: Study, seed: int, measure: str) -> Mapping[str, Any]:
    """Learn weights by a measure as the study has it, unless that is done."""
    return transfer_weights(study, seed) if measure == "transfer" else learned_in(study, seed, measure)


def together(one: Weights, other: Weights) -> dict[str, float]:
    """Return the geometric mean of two weightings, its sum 1."""
    product = {name: float(np.sqrt(weight * other[name])) for name, weight in one.items()}
    return {name: value / sum(product.values()) for name, value in product.items()}


def _log_mean(study: Study, measure: str) -> dict[str, float]:
    """Mean over seeds of the logarithm of the weights."""
    found = [weights_of(study, seed, measure)["weights"] for seed in FEWER_SEEDS]
    return {name: float(np.mean([np.log(weights[name]) for weights in found])) for name in found[0]}


def _planned(study: Study, weights: Weights, sizes: dict[str, int], name: str = "reweight") -> Plan:
    """The plan of a name in PLANS."""
    plan, share = PLANS[name]
    return plan_of(_robust(study, plan=plan, share=share), dict(weights), sizes)


def _robust(study: Study, **changes: object) -> Study:
    """The study with another plan."""
    return study.model_copy(update={"robust": study.robust.model_copy(update=changes)})
