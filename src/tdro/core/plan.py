"""From learned weights to the mixture the robust model is trained on. numpy only."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np

from tdro.core.projection import Bounds


@dataclass(frozen=True)
class Plan:
    """Sampling probabilities per dataset, in descending order, with what they mean for the data.

    Attributes:
        probabilities: Dataset -> probability per step; sums to 1; datasets that are left out are absent.
        loss_factors: Dataset -> factor of its loss, where the weights act on the loss instead of the sampling.
    """

    probabilities: dict[str, float]
    loss_factors: dict[str, float] | None = None

    def epochs(self, sizes: Mapping[str, int], examples: int) -> dict[str, float]:
        """Compute how often each row is seen when `examples` queries are drawn.

        Example:
            >>> Plan({"a": 0.75, "b": 0.25}).epochs({"a": 30, "b": 100}, 80)
            {'a': 2.0, 'b': 0.2}
        """
        return {name: p * examples / sizes[name] for name, p in self.probabilities.items()}


def reweight(weights: Mapping[str, float]) -> Plan:
    """Sample every dataset with its learned weight; a dataset of weight 0 is left out.

    Raises:
        ValueError: A weight is negative or not finite, or all are 0.

    Example:
        >>> reweight({"a": 1.0, "b": 3.0}).probabilities
        {'b': 0.75, 'a': 0.25}

    Source: paper, sample ratio reweighting.
    """
    values = np.array(list(weights.values()), np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise ValueError(f"weights must be finite, not negative and not all 0; got {dict(weights)}")
    return Plan({name: weights[name] / float(values.sum()) for name in _by_weight(weights) if weights[name] > 0})


def top_share(weights: Mapping[str, float], share: float) -> Plan:
    """Keep the datasets with the largest weights and sample them uniformly.

    n = floor(G * share) datasets are kept, fewer where the others have weight 0. Among equal weights the name that
    sorts first wins.

    Raises:
        ValueError: The share keeps nothing.

    Example:
        >>> top_share({"a": 0.2, "b": 0.5, "c": 0.3}, 0.7).probabilities
        {'b': 0.5, 'c': 0.5}

    Source: paper, dataset selection (top 70 % keeps 17 of 25); the released code writes an empty file for n = 0.
    """
    names = [name for name in _by_weight(weights)[: kept_count(len(weights), share)] if weights[name] > 0]
    if not names:
        raise ValueError("all weights are 0")
    return Plan({name: 1.0 / len(names) for name in names})


def bottom_share(weights: Mapping[str, float], share: float) -> Plan:
    """Keep the datasets with the smallest weights and sample them uniformly: the ablation that should hurt.

    Raises:
        ValueError: The share keeps nothing.

    Example:
        >>> bottom_share({"a": 0.2, "b": 0.5, "c": 0.3}, 0.7).probabilities
        {'c': 0.5, 'a': 0.5}

    Source: paper, ablation "bottom-50 %"; absent from the released code.
    """
    kept = kept_count(len(weights), share)
    return Plan({name: 1.0 / kept for name in _by_weight(weights)[-kept:]})


def reweight_loss(weights: Mapping[str, float]) -> Plan:
    """Sample uniformly and multiply the loss of each dataset by G * weight.

    With AdamW and gradient clipping a factor on the loss of a whole batch acts less than its size suggests.

    Example:
        >>> plan = reweight_loss({"a": 1.0, "b": 3.0})
        >>> plan.probabilities, plan.loss_factors
        ({'b': 0.5, 'a': 0.5}, {'b': 1.5, 'a': 0.5})

    Source: paper, ablation "loss reweighting"; absent from the released code.
    """
    shares = reweight(weights).probabilities
    return Plan(dict.fromkeys(shares, 1 / len(shares)), {name: len(shares) * p for name, p in shares.items()})


def capped(plan: Plan, high: Mapping[str, float]) -> Plan:
    """Keep the probabilities of a plan below caps; what is cut off goes to the others in proportion.

    Args:
        plan: A plan that acts on the sampling.
        high: Dataset -> largest probability; for datasets of the plan they must sum to at least 1.

    Raises:
        ValueError: The caps leave no plan, or the plan acts on the loss.

    Example:
        >>> capped(Plan({"a": 0.8, "b": 0.1, "c": 0.1}), {"a": 0.5, "b": 1.0, "c": 1.0}).probabilities
        {'a': 0.5, 'b': 0.25, 'c': 0.25}
    """
    names = list(plan.probabilities)
    high_G = np.array([min(1.0, high[name]) for name in names])
    if (np.array(list(plan.probabilities.values())) <= high_G).all():
        return plan
    if plan.loss_factors is not None:
        raise ValueError("caps act on the sampling, and this plan samples uniformly and weighs the loss")
    if high_G.sum() < 1:
        raise ValueError(f"the caps of the {len(names)} datasets of the plan sum to {high_G.sum():.3f} only")
    found_G = Bounds(np.zeros(len(names)), high_G).project(np.array(list(plan.probabilities.values())))
    shares = dict(zip(names, found_G.tolist(), strict=True))
    return Plan({name: shares[name] for name in _by_weight(shares)})


def size_mixture(sizes: Mapping[str, int], temperature: float = 1.0) -> dict[str, float]:
    """Compute fixed weights from sizes: alpha_g ~ size_g^(1/t); t = 1 is proportional to size, large t uniform.

    Example:
        >>> size_mixture({"a": 100, "b": 900}), size_mixture({"a": 100, "b": 900}, 2.0)
        ({'a': 0.1, 'b': 0.9}, {'a': 0.25, 'b': 0.75})
    """
    scaled = np.array(list(sizes.values()), np.float64) ** (1 / temperature)
    return dict(zip(sizes, (scaled / scaled.sum()).tolist(), strict=True))


def kept_count(groups: int, share: float) -> int:
    """Compute how many datasets a share keeps: floor(groups * share), in exact arithmetic.

    Raises:
        ValueError: It keeps nothing, or more than all.

    Example: in binary, 0.58 * 50 is a little less than 29.
        >>> kept_count(50, 0.58), kept_count(25, 0.7)
        (29, 17)
    """
    kept = floor(groups * Fraction(str(share)))
    if not 0 < kept <= groups:
        raise ValueError(f"a share of {share} keeps {kept} of {groups} datasets")
    return kept


def _by_weight(weights: Mapping[str, float]) -> list[str]:
    """Names in descending order of weight, equal weights by name."""
    return sorted(weights, key=lambda name: (-weights[name], name))
