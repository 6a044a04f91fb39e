"""The arms of the study: every mixture that is compared, by name."""

from collections.abc import Iterator
from typing import Any

from study.learning import learned_weights
from study.settings import FIXED, MEASURES, PLANS, SEEDS
from study.transfer import transfer_weights
from tdro.config import Study
from tdro.core.plan import Plan, reweight
from tdro.evaluation.regression import Usefulness
from tdro.training.planning import fixed_weights, plan_of

Arm = tuple[str, int, Plan]
"""Name, seed, mixture."""


def fixed_arms(study: Study, sizes: dict[str, int]) -> Iterator[Arm]:
    """Yield the mixtures that follow from the sizes."""
    for name in FIXED:
        weights = fixed_weights(_robust(study, weights=name), sizes)
        yield from ((name, seed, reweight(weights)) for seed in SEEDS)


def learned_arms(study: Study, sizes: dict[str, int]) -> Iterator[Arm]:
    """Yield the plans of every measure; weights are learned when they are needed."""
    for measure in (*MEASURES, "transfer"):
        for seed in SEEDS:
            weights = weights_of(study, seed, measure)["weights"]
            for name, (plan, share) in PLANS.items():
                yield f"{measure} {name}", seed, plan_of(_robust(study, plan=plan, share=share), weights, sizes)


def weights_of(study: Study, seed: int, measure: str) -> dict[str, Any]:
    """Learn weights by a measure as the study has it, unless that is done."""
    if measure == "transfer":
        return transfer_weights(study, seed)
    return learned_weights(study, seed, measure, {"weights": {"measure": measure}})


def optimised_arms(fitted: Usefulness) -> Iterator[Arm]:
    """Yield the mixture that the regression expects most of."""
    plan = reweight(dict(zip(fitted.names, fitted.best_G.tolist(), strict=True)))
    yield from (("optimised", seed, plan) for seed in SEEDS)


def _robust(study: Study, **changes: object) -> Study:
    """The study with another plan."""
    return study.model_copy(update={"robust": study.robust.model_copy(update=changes)})
