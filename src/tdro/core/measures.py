"""How far the proxy is from the reference on each group: the signal that moves the weights."""

import numpy as np

from tdro.core.groups import GroupStatistics


def relative(statistics: GroupStatistics, shrinkage: float = 0.0) -> np.ndarray:
    """Compute the ratio of mean losses, equation (3).

    M_g = (E[l_g] + s) / (E[r_g] + s) with proxy losses l, reference losses r and a small shrinkage s that keeps the
    ratio bounded where the reference has almost no loss left. An absent group gets 0: leave it out of the update.

    Args:
        statistics: Sums per group.
        shrinkage: s >= 0 in nats; 0 is the paper's formula.

    Returns:
        [G] float64.

    Raises:
        ValueError: A present group has mean reference loss 0 and s is 0.

    Example: proxy losses 1 and 3, reference losses 1 and 1.
        >>> sums = np.array([[2, 4.0, 2.0, 10, 2, 4, 0]])
        >>> relative(GroupStatistics(sums)).tolist()
        [2.0]

    Source: paper, equation (3). The released code computes `relative_sample` instead.
    """
    present_G = statistics.present_G
    reference_G = np.where(present_G, statistics.reference_mean_G + shrinkage, 1.0)
    if (reference_G <= 0).any():
        raise ValueError(
            f"mean reference loss of group {int(np.argmax(reference_G <= 0))} is 0; use a shrinkage above 0"
        )
    return np.where(present_G, (statistics.proxy_mean_G + shrinkage) / reference_G, 0.0)


def relative_sample(
    proxy_B: np.ndarray,
    reference_B: np.ndarray,
    group_B: np.ndarray,
    n_groups: int,
    *,
    p_norm: int = 1,
    threshold: float = 1e-4,
) -> np.ndarray:
    """Compute the released code's measure: the group mean of per-example ratios.

    r^_i = r_i / ||r||_p over the batch (no norm for p = 0); r^_i below the threshold is *set to 1*;
    m_i = max(0, l_i / r^_i); M_g = mean of m_i over the examples of g, 0 for an absent group. The threshold is relative
    to the batch, so the result depends on its size: an example whose reference loss is tiny counts about B times less,
    not more. Examples with a non-finite loss are dropped before the norm is taken.

    Args:
        proxy_B: Proxy losses in nats of one batch over all devices.
        reference_B: Reference losses.
        group_B: int, group of each example.
        n_groups: G.
        p_norm: 0, 1 or 2.
        threshold: 1e-4 in the released code.

    Returns:
        [G] float64.

    Example: the reference losses become 1/4 and 3/4.
        >>> relative_sample(np.array([1.0, 3.0]), np.array([1.0, 3.0]), np.array([0, 1]), 2).tolist()
        [4.0, 4.0]

    Source: released code (`normalize_group_loss_scale_with_ref_loss`); the paper's text has `relative`.
    """
    proxy_B, reference_B = np.asarray(proxy_B, np.float64), np.asarray(reference_B, np.float64)
    finite_B = np.isfinite(proxy_B) & np.isfinite(reference_B)
    proxy_B, reference_B, group_B = proxy_B[finite_B], reference_B[finite_B], np.asarray(group_B)[finite_B]
    norm = np.linalg.norm(reference_B, p_norm) if p_norm > 0 else 1.0
    divisor_B = reference_B / max(float(norm), 1e-12)
    divisor_B = np.where(divisor_B < threshold, 1.0, divisor_B)
    return group_mean(np.maximum(proxy_B / divisor_B, 0.0), group_B, n_groups)


def group_mean(value_B: np.ndarray, group_B: np.ndarray, n_groups: int) -> np.ndarray:
    """Average a value per group; an absent group gets 0.

    Example:
        >>> group_mean(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3).tolist()
        [2.0, 0.0, 5.0]
    """
    total_G = np.bincount(group_B, weights=value_B, minlength=n_groups)
    return total_G / np.maximum(np.bincount(group_B, minlength=n_groups), 1)
