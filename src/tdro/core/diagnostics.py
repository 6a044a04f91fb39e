"""How far learned weights can be trusted: concentration, convergence, intervals, and what is kept for sure."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tdro.core.groups import GroupStatistics
from tdro.core.updates import WeightState

Verdict = Literal["keep", "drop", "undecided"]
Version = Literal["last", "mean", "ema"]


def effective_number(weights_G: np.ndarray) -> float:
    """Compute how many equally weighted datasets would be as concentrated: exp(entropy), from 1 to G.

    Example:
        >>> round(effective_number(np.array([0.5, 0.5, 0.0])), 12)
        2.0
    """
    positive = weights_G[weights_G > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def duality_gap(signal_G: np.ndarray, weights_G: np.ndarray) -> float:
    """Compute what the best single dataset would gain over the weights: max_g s_g - sum_g alpha_g s_g, at least 0.

    Near 0 the weights have nothing left to gain; it goes to 0 in convex games.

    Example:
        >>> duality_gap(np.array([1.0, 3.0]), np.array([0.5, 0.5]))
        1.0
    """
    return float(signal_G.max() - weights_G @ signal_G)


def log_ratio_interval(statistics: GroupStatistics, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Estimate log(L / R) per group and half of its interval, by the delta method on paired losses.

    var = var(l)/(n L^2) + var(r)/(n R^2) - 2 cov(l, r)/(n L R); l and r of an example go together, so their covariance
    counts. A group with fewer than two examples, or a mean of 0, gets NaN.

    Args:
        statistics: Sums per group.
        z: Quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        [G] estimates and [G] half widths.

    Example: proxy losses are always twice the reference losses, so the ratio is certain.
        >>> sums = np.array([[2, 6.0, 3.0, 20.0, 5.0, 10.0, 0]])
        >>> centre, half = log_ratio_interval(GroupStatistics(sums))
        >>> float(np.exp(centre[0]).round(12)), float(half[0].round(12))
        (2.0, 0.0)
    """
    n, sum_l, sum_r, sum_ll, sum_rr, sum_lr, _ = statistics.sums_GC.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_l, mean_r = sum_l / n, sum_r / n
        variance_l, variance_r = sum_ll / n - mean_l**2, sum_rr / n - mean_r**2
        covariance = sum_lr / n - mean_l * mean_r
        variance = variance_l / mean_l**2 + variance_r / mean_r**2 - 2 * covariance / (mean_l * mean_r)
        centre_G = np.log(mean_l / mean_r)
        half_G = z * np.sqrt(np.maximum(variance, 0.0) / (n - 1))
    unknown_G = (n < 2) | ~np.isfinite(centre_G)
    return np.where(unknown_G, np.nan, centre_G), np.where(unknown_G, np.nan, half_G)


def replay_resampled(
    move: Callable[[WeightState, np.ndarray, int, np.ndarray], WeightState],
    start: WeightState,
    signal_TG: np.ndarray,
    present_TG: np.ndarray,
    order_ST: np.ndarray,
    step_T: Sequence[int],
) -> dict[Version, np.ndarray]:
    """Learn final weights again from resampled steps: a bootstrap of what the luck of the batches did.

    Args:
        move: (state, signal, step, present) -> state; the step decides the step size.
        start: State before the first step.
        signal_TG: Signals of the T steps.
        present_TG: bool, which groups had examples.
        order_ST: int, for each of S resamples which of the T signals to use, in order.
        step_T: The steps at which the weights move.

    Returns:
        [S, G] final weights of each version: the last ones, their mean over the steps, and their moving average.
    """
    finals = []
    for order_T in order_ST:
        state = start
        for step, source in zip(step_T, order_T, strict=True):
            state = move(state, signal_TG[source], step, present_TG[source])
        finals.append(state)
    return {
        "last": np.array([state.weights_G for state in finals]),
        "mean": np.array([state.mean_G for state in finals]),
        "ema": np.array([state.ema_G for state in finals]),
    }


def kept_shares(weights_SG: np.ndarray, kept: int) -> np.ndarray:
    """Compute in which share of the resamples each group is among the `kept` largest weights.

    Groups that are tied across the cut share what is left. Of negated weights, the smallest count.

    Example: group 0 always wins; 1 and 2 take turns.
        >>> weights_SG = np.array([[0.5, 0.3, 0.2], [0.5, 0.2, 0.3], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3]])
        >>> kept_shares(weights_SG, kept=2).tolist()
        [1.0, 0.5, 0.5]
    """
    above_SG = (weights_SG[:, None, :] > weights_SG[:, :, None]).sum(-1)
    tied_SG = (weights_SG[:, None, :] == weights_SG[:, :, None]).sum(-1)
    share_G: np.ndarray = np.clip((kept - above_SG) / tied_SG, 0, 1).mean(axis=0)
    return share_G


def cut_verdict(share: float, certainty: float = 0.95) -> Verdict:
    """Say of a group that is kept in a share of the resamples whether that is nearly all, nearly none, or else.

    Example:
        >>> cut_verdict(0.99), cut_verdict(0.05), cut_verdict(0.5)
        ('keep', 'drop', 'undecided')
    """
    return "keep" if share >= certainty else "drop" if share <= 1 - certainty else "undecided"
