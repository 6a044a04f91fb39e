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

    Source: paper, equation (3). The released code computes `sample_measure` instead.
    """
    present_G = statistics.present_G
    reference_G = np.where(present_G, statistics.reference_mean_G + shrinkage, 1.0)
    _refuse_zero(reference_G, "reference")
    return np.where(present_G, (statistics.proxy_mean_G + shrinkage) / reference_G, 0.0)


def excess(statistics: GroupStatistics) -> np.ndarray:
    """Compute how much more the proxy loses than the reference, per group: max(E[l_g] - E[r_g], 0).

    An absent group gets 0.

    Example: proxy losses 1 and 3, reference losses 1 and 1.
        >>> excess(GroupStatistics(np.array([[2, 4.0, 2.0, 10, 2, 4, 0]]))).tolist()
        [1.0]

    Source: paper, the ablated excess measure. The released code clamps each example; see `sample_measure`.
    """
    excess_G: np.ndarray = np.maximum(statistics.proxy_mean_G - statistics.reference_mean_G, 0.0)
    return excess_G


def excess_relative(statistics: GroupStatistics, shrinkage: float = 0.0) -> np.ndarray:
    """Compute the excess as a share of the reference loss: max(E[l_g] - E[r_g], 0) / (E[r_g] + s).

    Raises:
        ValueError: A present group has mean reference loss 0 and s is 0.

    Example:
        >>> excess_relative(GroupStatistics(np.array([[2, 4.0, 2.0, 10, 2, 4, 0]]))).tolist()
        [1.0]

    Source: released code with both flags set, as means per group instead of per example.
    """
    share_G: np.ndarray = np.maximum(relative(statistics, shrinkage) - 1.0, 0.0) * statistics.present_G
    return share_G


def raw(statistics: GroupStatistics) -> np.ndarray:
    """Compute the mean proxy loss; no reference is needed. An absent group gets 0.

    Source: paper, the ablated raw measure.
    """
    return statistics.proxy_mean_G


def initial(statistics: GroupStatistics, initial_loss_G: np.ndarray, shrinkage: float = 0.0) -> np.ndarray:
    """Compute the share of its own initial loss that a group still has: (E[l_g] + s) / (l0_g + s).

    Needs no reference: what a group has already learned is measured against where it began. An absent group gets 0.

    Args:
        statistics: Sums per group; reference losses are not looked at.
        initial_loss_G: Mean loss of each group before the first step, nats.
        shrinkage: s >= 0 in nats.

    Raises:
        ValueError: A present group began with loss 0 and s is 0.

    Example:
        >>> initial(GroupStatistics(np.array([[2, 4.0, 0.0, 10, 0, 0, 0]])), np.array([4.0])).tolist()
        [0.5]
    """
    present_G = statistics.present_G
    start_G = np.where(present_G, np.asarray(initial_loss_G, np.float64) + shrinkage, 1.0)
    _refuse_zero(start_G, "initial")
    return np.where(present_G, (statistics.proxy_mean_G + shrinkage) / start_G, 0.0)


def target(statistics: GroupStatistics, target_G: np.ndarray) -> np.ndarray:
    """Compute how far the proxy is above a loss that the user names: E[l_g] - T_g; may be negative.

    Example:
        >>> target(GroupStatistics(np.array([[2, 4.0, 0.0, 10, 0, 0, 0]])), np.array([0.5])).tolist()
        [1.5]
    """
    return np.where(statistics.present_G, statistics.proxy_mean_G - np.asarray(target_G, np.float64), 0.0)


def sample_measure(
    proxy_B: np.ndarray,
    reference_B: np.ndarray | None,
    group_B: np.ndarray,
    n_groups: int,
    *,
    subtract: bool = False,
    divide: bool = True,
    p_norm: float = 1,
    threshold: float = 1e-4,
) -> np.ndarray:
    """Compute the released code's measures: a group mean of one number per example.

    x_i = l_i, minus r_i if `subtract`, divided by r^_i if `divide`, then max(0, x_i). r^_i = r_i / ||r||_p over the
    batch (no norm for p <= 0), and r^_i below the threshold is *set to 1*. The threshold is relative to the batch, so
    the result depends on its size: an example whose reference loss is tiny counts about B times less, not more. Without
    a reference both flags are ignored. Examples with a non-finite loss are dropped before the norm is taken; an absent
    group gets 0.

    Args:
        proxy_B: Proxy losses in nats of one batch over all devices.
        reference_B: Reference losses, or None.
        group_B: int, group of each example.
        n_groups: G.
        subtract: The excess measure.
        divide: The relative measure; with `subtract` the excess divided by r^.
        p_norm: 0, 1 or 2.
        threshold: 1e-4 in the released code.

    Returns:
        [G] float64.

    Example: the reference losses become 1/4 and 3/4.
        >>> sample_measure(np.array([1.0, 3.0]), np.array([1.0, 3.0]), np.array([0, 1]), 2).tolist()
        [4.0, 4.0]

    Source: released code (`normalize_group_loss_scale_with_ref_loss`, `group_loss_minus_ref_loss`); the paper's text
    has `relative`.
    """
    proxy_B, group_B = np.asarray(proxy_B, np.float64), np.asarray(group_B)
    if reference_B is None:
        finite_B = np.isfinite(proxy_B)
        return group_mean(np.maximum(proxy_B[finite_B], 0.0), group_B[finite_B], n_groups)
    reference_B = np.asarray(reference_B, np.float64)
    finite_B = np.isfinite(proxy_B) & np.isfinite(reference_B)
    value_B, reference_B, group_B = proxy_B[finite_B], reference_B[finite_B], group_B[finite_B]
    if subtract:
        value_B = value_B - reference_B
    if divide:
        norm = float(np.linalg.norm(reference_B, p_norm)) if p_norm > 0 else 1.0
        divisor_B = reference_B / max(norm, 1e-12)
        value_B = value_B / np.where(divisor_B < threshold, 1.0, divisor_B)
    return group_mean(np.maximum(value_B, 0.0), group_B, n_groups)


def group_mean(value_B: np.ndarray, group_B: np.ndarray, n_groups: int) -> np.ndarray:
    """Average a value per group; an absent group gets 0.

    Example:
        >>> group_mean(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3).tolist()
        [2.0, 0.0, 5.0]
    """
    total_G = np.bincount(group_B, weights=value_B, minlength=n_groups)
    return total_G / np.maximum(np.bincount(group_B, minlength=n_groups), 1)


def _refuse_zero(divisor_G: np.ndarray, name: str) -> None:
    """Refuse to divide by a mean loss of 0."""
    if (divisor_G <= 0).any():
        group = int(np.argmax(divisor_G <= 0))
        raise ValueError(f"mean {name} loss of group {group} is 0; use a shrinkage above 0")
