"""The weights as a state that updates map to a new state. float64, in log space."""

from typing import NamedTuple

import numpy as np


class WeightState(NamedTuple):
    """Weights on the simplex and their averages over the updates.

    Attributes:
        log_weights_G: log alpha, float64, normalised; -inf for a weight of 0, which stays 0.
        mean_G: Mean of the weights after each update; the initial weights before the first.
        ema_G: Exponential moving average that starts from the initial weights.
        updates: Updates made.
    """

    log_weights_G: np.ndarray
    mean_G: np.ndarray
    ema_G: np.ndarray
    updates: int

    @property
    def weights_G(self) -> np.ndarray:
        """alpha, sums to 1."""
        weights_G: np.ndarray = np.exp(self.log_weights_G)
        return weights_G


def initial_state(weights_G: np.ndarray) -> WeightState:
    """Start from given weights, normalised to sum 1.

    Raises:
        ValueError: A weight is negative or not finite, or all are 0.

    Example:
        >>> initial_state(np.array([1.0, 3.0])).weights_G.round(12).tolist()
        [0.25, 0.75]
    """
    weights_G = np.asarray(weights_G, np.float64)
    if not np.isfinite(weights_G).all() or (weights_G < 0).any() or weights_G.sum() <= 0:
        raise ValueError(f"weights must be finite, not negative and not all 0; got {weights_G.tolist()}")
    weights_G = weights_G / weights_G.sum()
    with np.errstate(divide="ignore"):
        return WeightState(np.log(weights_G), weights_G, weights_G, 0)


def clip_l2(signal_G: np.ndarray, max_norm: float) -> np.ndarray:
    """Scale a signal down to L2 norm `max_norm` where it is longer, keeping its direction.

    Example:
        >>> clip_l2(np.array([3.0, 4.0]), 1.0).tolist()
        [0.6000000000000001, 0.8]

    Source: paper, below equation (4): the gradient vector is clipped to norm 1.
    """
    norm = float(np.linalg.norm(signal_G))
    return signal_G * min(1.0, max_norm / norm) if norm > 0 else signal_G


def eg(
    state: WeightState,
    signal_G: np.ndarray,
    step_size: float,
    present_G: np.ndarray | None = None,
    ema_decay: float = 0.1,
) -> WeightState:
    """Make one exponentiated-gradient ascent step, equation (4).

    alpha_g <- alpha_g * exp(eta * M_g), renormalised. Groups that are not present keep their weight exactly and the
    present ones share what they had together.

    Args:
        state: State before the step.
        signal_G: M_g, after clipping.
        step_size: eta >= 0; 0 is the identity. The paper has 0.02.
        present_G: bool, groups that had examples. None: all of them, as in the released code.
        ema_decay: Share of the new weights in the moving average; 0.1 in the released code.

    Returns:
        State after the step.

    Raises:
        ValueError: A signal is not finite.

    Example: a signal that all groups share changes nothing.
        >>> eg(initial_state(np.ones(4)), np.full(4, 9.0), 0.02).weights_G.round(12).tolist()
        [0.25, 0.25, 0.25, 0.25]

    Source: paper, equation (4); averages as in the released code. Departure: absent groups are carried, the released
    code counts them as M_g = 0, which pushes them down.
    """
    if not np.isfinite(signal_G).all():
        raise ValueError(f"signal is not finite: {np.asarray(signal_G).tolist()}")
    moved_G = np.ones(len(signal_G), bool) if present_G is None else present_G
    log_G = state.log_weights_G.copy()
    if moved_G.any():
        raised_G = log_G[moved_G] + step_size * signal_G[moved_G]
        log_mass = np.logaddexp.reduce(log_G[moved_G]) if present_G is not None else 0.0
        if np.isfinite(log_mass):
            log_G[moved_G] = raised_G - np.logaddexp.reduce(raised_G) + log_mass
    log_G -= np.logaddexp.reduce(log_G)
    weights_G, updates = np.exp(log_G), state.updates + 1
    mean_G = weights_G if updates == 1 else state.mean_G + (weights_G - state.mean_G) / updates
    return WeightState(log_G, mean_G, (1 - ema_decay) * state.ema_G + ema_decay * weights_G, updates)
