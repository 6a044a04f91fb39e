"""From learned weights to the mixture the robust model is trained on. numpy only."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Sampling probabilities per dataset, in descending order, with what they mean for the data.

    Attributes:
        probabilities: Dataset -> probability per step; sums to 1; datasets that are left out are absent.
    """

    probabilities: dict[str, float]

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
    kept = floor(len(weights) * Fraction(str(share)))  # exact: 0.58 * 50 is 28.999... in binary
    if not 0 < kept <= len(weights):
        raise ValueError(f"a share of {share} keeps {kept} of {len(weights)} datasets")
    names = [name for name in _by_weight(weights)[:kept] if weights[name] > 0]
    if not names:
        raise ValueError("all weights are 0")
    return Plan({name: 1.0 / len(names) for name in names})


def _by_weight(weights: Mapping[str, float]) -> list[str]:
    """Names in descending order of weight, equal weights by name."""
    return sorted(weights, key=lambda name: (-weights[name], name))
