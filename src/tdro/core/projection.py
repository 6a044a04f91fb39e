"""Floors and caps of the weights, kept exactly."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bounds:
    """Limits of the weights: low_g <= alpha_g <= high_g.

    Args:
        low_G: Floors, at least 0, with sum at most 1.
        high_G: Caps, with sum at least 1.

    Raises:
        ValueError: No point of the simplex keeps the bounds.
    """

    low_G: np.ndarray
    high_G: np.ndarray

    def __post_init__(self) -> None:
        low_G, high_G = self.low_G, self.high_G
        if (low_G < 0).any() or (low_G > high_G).any() or low_G.sum() > 1 + 1e-12 or high_G.sum() < 1 - 1e-12:
            raise ValueError(f"no weights keep these bounds: floors {low_G.tolist()}, caps {high_G.tolist()}")

    def project(self, weights_G: np.ndarray) -> np.ndarray:
        """Find the weights within the bounds that are closest in KL divergence.

        alpha = clip(a * exp(m), low, high) with m such that the sum is 1. Weights that keep the bounds come back as
        they are. Clipping and then renormalising would break the bounds again.

        Example:
            >>> Bounds(np.full(3, 0.1), np.full(3, 0.6)).project(np.array([0.9, 0.08, 0.02])).round(12).tolist()
            [0.6, 0.3, 0.1]
        """
        weights_G = weights_G / weights_G.sum()
        if (weights_G >= self.low_G).all() and (weights_G <= self.high_G).all():
            return weights_G
        positive_G = np.maximum(weights_G, np.finfo(np.float64).tiny)
        lowest, highest = -800.0, 800.0
        for _ in range(200):
            middle = (lowest + highest) / 2
            total = np.clip(positive_G * np.exp(middle), self.low_G, self.high_G).sum()
            lowest, highest = (middle, highest) if total < 1 else (lowest, middle)
        found_G = np.clip(positive_G * np.exp(highest), self.low_G, self.high_G)
        free_G = (found_G > self.low_G) & (found_G < self.high_G)
        if free_G.any():  # the last rounding error goes to the groups that may still move
            found_G[free_G] *= (1 - found_G[~free_G].sum()) / found_G[free_G].sum()
        projected_G: np.ndarray = np.clip(found_G, self.low_G, self.high_G)
        return projected_G


def caps_from_epochs(sizes: Mapping[str, int], max_epochs: float, examples: int) -> np.ndarray:
    """Turn a limit on epochs into caps of the weights: high_g = min(1, max_epochs * size_g / examples).

    Args:
        sizes: Dataset -> rows.
        max_epochs: How often a row may be seen in the final run.
        examples: Queries that the final run draws.

    Returns:
        [G] caps, in the order of `sizes`.

    Raises:
        ValueError: The datasets together do not have enough rows.

    Example:
        >>> caps_from_epochs({"small": 10, "large": 1000}, 2, 100).tolist()
        [0.2, 1.0]
    """
    cap_G = np.minimum(1.0, max_epochs * np.array(list(sizes.values()), np.float64) / examples)
    if cap_G.sum() < 1:
        raise ValueError(f"{examples} queries need more than {max_epochs} epochs of {sum(sizes.values())} rows")
    return cap_G
