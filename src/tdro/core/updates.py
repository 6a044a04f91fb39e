"""The weights as a state that updates map to a new state. float64, in log space.

Every rule has the same shape: state, signal, step size -> state. Groups that are absent from a step keep their weight
exactly, and the present ones share what they had together; bounds are kept exactly by a KL projection.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from tdro.core.projection import Bounds


class WeightState(NamedTuple):
    """Weights on the simplex and their averages over the updates.

    Attributes:
        log_weights_G: log alpha, float64, normalised; -inf for a weight of 0, which stays 0.
        mean_G: Mean of the weights after each update; the initial weights before the first.
        ema_G: Exponential moving average that starts from the initial weights.
        updates: Updates made.
        memory: What an optimizer remembers, [G] float64 each.
    """

    log_weights_G: np.ndarray
    mean_G: np.ndarray
    ema_G: np.ndarray
    updates: int
    memory: Mapping[str, np.ndarray] = {}

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


def clip_elements(signal_G: np.ndarray, limit: float) -> np.ndarray:
    """Clip every element of a signal to [-limit, limit].

    Example:
        >>> clip_elements(np.array([3.0, -0.1]), 0.5).tolist()
        [0.5, -0.1]

    Source: released code, `dro_apply_grad_clip`.
    """
    clipped_G: np.ndarray = np.clip(signal_G, -limit, limit)
    return clipped_G


def eg(
    state: WeightState,
    signal_G: np.ndarray,
    step_size: float,
    present_G: np.ndarray | None = None,
    *,
    bounds: Bounds | None = None,
    ema_decay: float = 0.1,
) -> WeightState:
    """Make one exponentiated-gradient ascent step, equation (4).

    alpha_g <- alpha_g * exp(eta * M_g), renormalised. There is no fixed point: under a constant signal the log-weights
    drift apart in a straight line, so step size times steps acts as a temperature.

    Args:
        state: State before the step.
        signal_G: M_g, after clipping.
        step_size: eta >= 0; 0 is the identity. The paper has 0.02.
        present_G: bool, groups that had examples. None: all of them, as in the released code.
        bounds: Floors and caps; None for none.
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
    raised_G = state.log_weights_G + step_size * _finite(signal_G)
    return _advance(state, raised_G, present_G, bounds, ema_decay)


def eg_mix(
    state: WeightState,
    signal_G: np.ndarray,
    step_size: float,
    present_G: np.ndarray | None = None,
    *,
    prior_G: np.ndarray,
    mix: float,
    bounds: Bounds | None = None,
    ema_decay: float = 0.1,
) -> WeightState:
    """Make an exponentiated-gradient step, then mix a prior in: alpha <- (1 - c) * alpha + c * prior.

    Every weight stays above c times its prior.

    Args:
        prior_G: On the simplex.
        mix: c, from 0 (plain `eg`) to 1.

    Raises:
        ValueError: A signal is not finite.

    Example:
        >>> state = eg_mix(initial_state(np.ones(2)), np.array([1e3, 0.0]), 1.0, prior_G=np.full(2, 0.5), mix=0.1)
        >>> state.weights_G.round(12).tolist()
        [0.95, 0.05]

    Source: DoReMi (arXiv 2305.10429) smooths its weights this way.
    """
    stepped_G = _share(state, state.log_weights_G + step_size * _finite(signal_G), present_G)
    mixed_G = _log((1 - mix) * np.exp(stepped_G) + mix * np.asarray(prior_G))
    return _advance(state, mixed_G, None, bounds, ema_decay)


def anchored(
    state: WeightState,
    signal_G: np.ndarray,
    step_size: float,
    present_G: np.ndarray | None = None,
    *,
    prior_G: np.ndarray,
    pull: float,
    bounds: Bounds | None = None,
    ema_decay: float = 0.1,
) -> WeightState:
    """Make an exponentiated-gradient step with a pull towards a prior.

    log alpha <- (log alpha + eta * s + eta * lambda * log prior) / (1 + eta * lambda) - const. Under a constant signal
    the weights end at softmax(log prior + s / lambda), whatever the step size and however many steps: lambda is the
    temperature that plain `eg` hides in step size times steps.

    Args:
        prior_G: On the simplex, no zeros.
        pull: lambda > 0.

    Raises:
        ValueError: A signal is not finite.

    Example: from anywhere to the fixed point.
        >>> state, s = initial_state(np.array([0.9, 0.1])), np.array([0.0, np.log(3.0)])
        >>> for _ in range(200):
        ...     state = anchored(state, s, 0.5, prior_G=np.full(2, 0.5), pull=1.0)
        >>> state.weights_G.round(6).tolist()
        [0.25, 0.75]
    """
    pulled_G = state.log_weights_G + step_size * _finite(signal_G) + step_size * pull * _log(prior_G)
    return _advance(state, pulled_G / (1 + step_size * pull), present_G, bounds, ema_decay)


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def optimizer_step(
    state: WeightState,
    signal_G: np.ndarray,
    step_size: float,
    present_G: np.ndarray | None = None,
    *,
    optimizer: str,
    bounds: Bounds | None = None,
    ema_decay: float = 0.1,
    **settings: Any,
) -> WeightState:
    """Make one ascent step of a torch optimizer, or of Adafactor, on the log-weights, then renormalise.

    With "sgd" and no settings this is `eg`. An absent group keeps its weight and its memory. Weight decay draws
    log-weights to 0, so the weights to uniform ones.

    Args:
        optimizer: "sgd", "adamw", "rmsprop", "adagrad" or "adafactor".
        settings: Of the optimizer, by torch's names: weight_decay, eps, momentum, dampening, alpha, betas; of
            "adafactor" weight_decay alone.

    Raises:
        ValueError: A signal is not finite.

    Example: the first step of AdamW moves every weight by the step size, in the direction of its signal.
        >>> state = optimizer_step(initial_state(np.ones(2)), np.array([5.0, -0.1]), 0.1, optimizer="adamw")
        >>> float(np.diff(state.log_weights_G)[0].round(6))
        -0.2

    Source: released code, `dro_optimizer`.
    """
    raised_G, memory = raise_log_weights(state, signal_G, step_size, optimizer, **settings)
    if present_G is not None:
        memory = {
            name: np.where(present_G, values, state.memory.get(name, np.zeros_like(values)))
            for name, values in memory.items()
        }
    return _advance(state, raised_G, present_G, bounds, ema_decay)._replace(memory=memory)


def raise_log_weights(
    state: WeightState, signal_G: np.ndarray, step_size: float, optimizer: str, **settings: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Let an optimizer move the log-weights, without normalising them; the -inf of a weight of 0 stays.

    Returns:
        The moved log-weights and the optimizer's memory.

    Raises:
        ValueError: A signal is not finite.

    Source: released code, which keeps log-weights like this where `normalize_weights_on_every_update` is off.
    """
    signal_G = _finite(signal_G)
    if optimizer == "adafactor":
        return _adafactor(state, signal_G, step_size, **settings)
    gone_G = np.isneginf(state.log_weights_G)
    log_G = torch.from_numpy(np.where(gone_G, 0.0, state.log_weights_G)).requires_grad_()  # weight decay of -inf is NaN
    log_G.grad = torch.from_numpy(signal_G.astype(np.float64))
    rule = OPTIMIZERS[optimizer]([log_G], lr=step_size, maximize=True, **settings)
    for name, values in state.memory.items():
        rule.state[log_G][name] = (
            torch.from_numpy(values.copy()) if name != "step" else torch.tensor(float(values.max()))
        )
    rule.step()
    memory = {
        name: np.broadcast_to(value.detach().double().numpy(), signal_G.shape).copy()
        for name, value in rule.state[log_G].items()
        if isinstance(value, torch.Tensor)
    }
    return np.where(gone_G, -np.inf, log_G.detach().numpy()), memory


def _adafactor(
    state: WeightState, signal_G: np.ndarray, step_size: float, weight_decay: float = 0.0
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Adafactor for one vector, without scaling by the parameter: transformers' form, which the released code uses."""
    step = state.updates + 1
    decay = 1 - step**-0.8
    square_G = decay * state.memory.get("exp_avg_sq", np.zeros_like(signal_G)) + (1 - decay) * (signal_G**2 + 1e-30)
    move_G = signal_G / np.sqrt(square_G)
    move_G = move_G / max(1.0, float(np.sqrt(np.mean(move_G**2))))
    return state.log_weights_G * (1 - step_size * weight_decay) + step_size * move_G, {"exp_avg_sq": square_G}


def _share(state: WeightState, raised_G: np.ndarray, present_G: np.ndarray | None) -> np.ndarray:
    """Normalise raised log-weights: present groups share the mass they had, absent ones keep theirs."""
    log_G = state.log_weights_G.copy()
    if present_G is None:
        log_G = raised_G - np.logaddexp.reduce(raised_G)
    elif present_G.any():
        log_mass = np.logaddexp.reduce(log_G[present_G])
        if np.isfinite(log_mass):
            log_G[present_G] = raised_G[present_G] - np.logaddexp.reduce(raised_G[present_G]) + log_mass
    normalised_G: np.ndarray = log_G - np.logaddexp.reduce(log_G)  # again: rounding after signals of 1e6
    return normalised_G


def _advance(
    state: WeightState,
    raised_G: np.ndarray,
    present_G: np.ndarray | None,
    bounds: Bounds | None,
    ema_decay: float,
) -> WeightState:
    """Normalise, keep the bounds, and take the new weights into the averages."""
    log_G = _share(state, raised_G, present_G)
    if bounds is not None:
        log_G = _log(bounds.project(np.exp(log_G)))
    weights_G, updates = np.exp(log_G), state.updates + 1
    mean_G = weights_G if updates == 1 else state.mean_G + (weights_G - state.mean_G) / updates
    return WeightState(log_G, mean_G, (1 - ema_decay) * state.ema_G + ema_decay * weights_G, updates, state.memory)


def _finite(signal_G: np.ndarray) -> np.ndarray:
    """Refuse a signal that would turn every weight into NaN."""
    signal_G = np.asarray(signal_G, np.float64)
    if not np.isfinite(signal_G).all():
        raise ValueError(f"signal is not finite: {signal_G.tolist()}")
    return signal_G


def _log(weights_G: np.ndarray) -> np.ndarray:
    """Logarithm with log 0 = -inf and no warning."""
    with np.errstate(divide="ignore"):
        log_G: np.ndarray = np.log(weights_G)
    return log_G
