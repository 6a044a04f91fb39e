"""How the losses of single queries are spread: counts in fixed bins, which add up over steps."""

import numpy as np

EDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0)
"""Where bins begin, in nats; one more bin lies below the first edge."""


def loss_histogram(loss_B: np.ndarray, group_B: np.ndarray, groups: int) -> np.ndarray:
    """Count the losses of each group per bin; a loss on an edge belongs to the bin that begins there.

    Args:
        loss_B: Losses in nats; those that are not finite belong to no bin.
        group_B: Group of each loss, 0 to groups - 1.
        groups: Their number.

    Returns:
        [G, len(EDGES) + 1] counts, the smallest losses first.

    Example: a loss of 0, one of 1 nat and one that is not finite.
        >>> loss_histogram(np.array([0.0, 1.0, np.nan]), np.array([0, 1, 1]), 2).tolist()
        [[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]]
    """
    bins, finite_B = len(EDGES) + 1, np.isfinite(loss_B)
    bin_F = np.searchsorted(EDGES, loss_B[finite_B], side="right")
    counts: np.ndarray = np.bincount(group_B[finite_B] * bins + bin_F, minlength=groups * bins)
    return counts.reshape(groups, bins)
