"""The options of a rule do what their names say: torch's optimizers step by step, and formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tdro.core.groups import group_statistics
from tdro.core.measures import sample_measure
from tdro.core.rule import Rule, StepLosses
from tdro.core.updates import initial_state

GROUPS, STEPS = 5, 25
PLAIN = Rule("raw", "eg", np.full(GROUPS, 1 / GROUPS), np.zeros(GROUPS), clip="none")
SIGNALS = np.random.default_rng(0).normal(size=(STEPS, GROUPS))
START = np.array([0.1, 0.3, 0.2, 0.15, 0.25])
PRESENT = np.ones(GROUPS, bool)

TORCH = {
    "sgd": ({"momentum": 0.7, "decay": 0.3}, torch.optim.SGD, {"momentum": 0.7, "dampening": 0.7, "weight_decay": 0.3}),
    "adamw": (
        {"betas": (0.5, 0.8), "epsilon": 1e-2, "decay": 0.3},
        torch.optim.AdamW,
        {"betas": (0.5, 0.8), "eps": 1e-2, "weight_decay": 0.3},
    ),
    "rmsprop": (
        {"alpha": 0.6, "epsilon": 1e-2, "decay": 0.3},
        torch.optim.RMSprop,
        {"alpha": 0.6, "eps": 1e-2, "weight_decay": 0.3},
    ),
    "adagrad": ({"epsilon": 1e-2, "decay": 0.3}, torch.optim.Adagrad, {"eps": 1e-2, "weight_decay": 0.3}),
}


def learned(rule: Rule, signals=SIGNALS, start=START, step_size: float = 0.1) -> np.ndarray:
    """Weights after a rule has followed signals."""
    state = initial_state(start)
    for signal_G in signals:
        state = rule.move(state, signal_G, step_size, PRESENT)
    return state.weights_G


@pytest.mark.parametrize("update", TORCH)
def test_optimizers_with_settings_are_torchs(update):
    ours, optimizer, settings = TORCH[update]
    log_G = torch.from_numpy(np.log(START)).requires_grad_()
    rule = optimizer([log_G], lr=0.1, maximize=True, **settings)
    for signal_G in SIGNALS:
        log_G.grad = torch.from_numpy(signal_G.copy())
        rule.step()
        with torch.no_grad():
            log_G -= log_G.logsumexp(0)  # weight decay acts on normalised log-weights
    np.testing.assert_allclose(learned(replace(PLAIN, update=update, **ours)), log_G.detach().exp().numpy(), rtol=1e-9)


@pytest.mark.parametrize("update", ["sgd", "adamw", "rmsprop", "adagrad", "adafactor"])
def test_settings_of_0_are_the_plain_optimizer_and_each_setting_changes_the_weights(update):
    plain = replace(PLAIN, update=update)
    settings = {**TORCH.get(update, ({"decay": 0.3},))[0]}
    weights = learned(plain)
    for name, value in settings.items():
        assert abs(learned(replace(plain, **{name: value})) - weights).max() > 1e-6, name


@pytest.mark.parametrize("update", ["sgd", "adamw", "adafactor"])
def test_weight_decay_draws_to_uniform_weights(update):
    still = np.zeros((200, GROUPS))
    np.testing.assert_allclose(learned(replace(PLAIN, update=update, decay=0.5), still), 1 / GROUPS, rtol=1e-3)


@pytest.mark.parametrize("update", ["sgd", "adamw", "rmsprop", "adagrad", "adafactor"])
def test_a_weight_of_0_stays_0_under_weight_decay(update):
    weights_G = learned(replace(PLAIN, update=update, decay=0.5), start=np.array([0.0, 0.4, 0.3, 0.2, 0.1]))
    assert weights_G[0] == 0 and np.isfinite(weights_G).all() and abs(weights_G.sum() - 1) < 1e-12


def test_momentum_is_the_mean_of_earlier_signals():
    # d = m d + (1 - m) s from d = s on: a constant signal moves the weights as it does without momentum.
    constant = np.tile(SIGNALS[:1], (10, 1))
    with_it = replace(PLAIN, update="sgd", momentum=0.9)
    np.testing.assert_allclose(learned(with_it, constant), learned(replace(PLAIN, update="eg"), constant), rtol=1e-12)


def test_released_weight_ema_is_momentum_with_a_smaller_step():
    # The released code sets momentum = ema and dampening = 1 - ema: its buffer is ema / (1 - ema) times our direction,
    # but for the first signal, which it takes in full.
    ema, step_size = 0.1, 0.3
    log_G = torch.zeros(GROUPS, dtype=torch.float64, requires_grad=True)
    released = torch.optim.SGD([log_G], lr=step_size, momentum=ema, dampening=1 - ema, maximize=True)
    rule, state = replace(PLAIN, update="sgd", momentum=ema), initial_state(np.ones(GROUPS))
    for number, signal_G in enumerate(SIGNALS):
        before = log_G.detach().numpy().copy()
        log_G.grad = torch.from_numpy(signal_G.copy())
        released.step()
        moved = log_G.detach().numpy() - before
        after = rule.move(state, signal_G, step_size * ema / (1 - ema), PRESENT)
        apart_G = after.log_weights_G - state.log_weights_G - moved
        difference = np.ptp(apart_G)  # a constant is normalised away
        assert difference <= np.ptp(SIGNALS[0]) * step_size * ema**number + 1e-12, number
        state = after
    assert difference < 1e-12


def test_moving_average_has_its_share():
    state = PLAIN.move(initial_state(START), SIGNALS[0], 0.1, PRESENT)
    for share in (0.1, 0.4, 1.0):
        moved = replace(PLAIN, ema=share).move(initial_state(START), SIGNALS[0], 0.1, PRESENT)
        np.testing.assert_allclose(moved.ema_G, (1 - share) * START + share * state.weights_G, rtol=1e-12)


@pytest.mark.parametrize("norm", [0, 1, 2])
def test_reference_norm_is_the_norm_of_the_batch(norm):
    random = np.random.default_rng(1)
    proxy_B, reference_B, group_B = random.gamma(1, 2, 40), random.gamma(1, 1, 40) + 0.1, random.integers(0, GROUPS, 40)
    statistics = group_statistics(*(torch.from_numpy(x) for x in (proxy_B, reference_B, group_B)), GROUPS)
    rule = replace(PLAIN, measure="relative-sample", reference_norm=norm)
    signal_G = rule.signal(StepLosses(statistics, proxy_B, reference_B, group_B), np.zeros(GROUPS))
    size = {0: 1.0, 1: reference_B.sum(), 2: np.sqrt((reference_B**2).sum())}[norm]
    expected = [np.mean(proxy_B[group_B == g] / reference_B[group_B == g]) * size for g in range(GROUPS)]
    np.testing.assert_allclose(signal_G, expected, rtol=1e-12)
    np.testing.assert_array_equal(signal_G, sample_measure(proxy_B, reference_B, group_B, GROUPS, p_norm=norm))
