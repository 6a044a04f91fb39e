"""Weights stay weights, whatever the signals; the update is the formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tdro.core.updates import clip_l2, eg, initial_state

signals = arrays(np.float64, 6, elements=st.floats(-1e6, 1e6))


def test_eg_is_the_formula():
    state = initial_state(np.array([0.2, 0.3, 0.5]))
    signal_G = np.array([1.0, 0.0, -2.0])
    raised = np.array([0.2, 0.3, 0.5]) * np.exp(0.1 * signal_G)
    np.testing.assert_allclose(eg(state, signal_G, 0.1).weights_G, raised / raised.sum(), rtol=1e-14)


@given(st.lists(signals, min_size=1, max_size=20), st.floats(0, 10))
def test_weights_stay_on_the_simplex(many, step_size):
    state = initial_state(np.ones(6))
    for signal_G in many:
        state = eg(state, signal_G, step_size)
        assert abs(state.weights_G.sum() - 1) < 1e-12
        assert (state.weights_G >= 0).all()


def test_weights_stay_on_the_simplex_over_many_updates_with_huge_signals():
    random = np.random.default_rng(0)
    state = initial_state(np.ones(8))
    for _ in range(20_000):
        state = eg(state, random.normal(size=8) * 1e6, 0.02)
    assert abs(state.weights_G.sum() - 1) < 1e-12 and np.isfinite(state.mean_G).all()


@given(signals)
def test_step_size_zero_is_the_identity(signal_G):
    state = initial_state(np.arange(1.0, 7.0))
    np.testing.assert_allclose(eg(state, signal_G, 0.0).weights_G, state.weights_G, rtol=1e-12)


@given(signals, st.permutations(range(6)))
def test_reordering_the_datasets_reorders_the_weights(signal_G, order):
    order = np.array(order)
    state, permuted = initial_state(np.arange(1.0, 7.0)), initial_state(np.arange(1.0, 7.0)[order])
    signal_G = clip_l2(signal_G, 1.0)
    np.testing.assert_allclose(
        eg(state, signal_G, 0.5).weights_G[order], eg(permuted, signal_G[order], 0.5).weights_G, rtol=1e-9
    )


def test_raising_one_signal_raises_that_weight_and_lowers_all_others():
    state, base = initial_state(np.ones(4)), np.array([0.3, 0.1, 0.2, 0.4])
    before, after = eg(state, base, 0.5).weights_G, eg(state, base + np.array([0, 1.0, 0, 0]), 0.5).weights_G
    assert after[1] > before[1] and (np.delete(after, 1) < np.delete(before, 1)).all()


def test_absent_group_keeps_its_weight():
    state = initial_state(np.array([0.1, 0.2, 0.3, 0.4]))
    present_G = np.array([True, False, True, True])
    after = eg(state, np.array([5.0, 0.0, -1.0, 2.0]), 0.3, present_G).weights_G
    assert after[1] == pytest.approx(0.2, rel=1e-14)
    assert after.sum() == pytest.approx(1, abs=1e-14)
    counted_as_zero = eg(state, np.array([5.0, 0.0, -1.0, 2.0]), 0.3).weights_G
    assert counted_as_zero[1] < 0.2  # what the released code does to it


def test_weight_of_zero_stays_zero():
    state = eg(initial_state(np.array([0.0, 0.5, 0.5])), np.array([9.0, 1.0, 0.0]), 0.1)
    assert state.weights_G[0] == 0 and np.isfinite(state.weights_G).all()


def test_mean_is_the_mean_of_the_weights_after_each_update_and_ema_starts_from_the_initial_ones():
    state = initial_state(np.array([0.5, 0.5]))
    seen, ema = [], np.array([0.5, 0.5])
    for signal in ([1.0, 0.0], [0.0, 3.0], [2.0, 2.5]):
        state = eg(state, np.array(signal), 0.4, ema_decay=0.1)
        seen.append(state.weights_G)
        ema = 0.9 * ema + 0.1 * state.weights_G
    np.testing.assert_allclose(state.mean_G, np.mean(seen, axis=0), rtol=1e-12)
    np.testing.assert_allclose(state.ema_G, ema, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_signal_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        eg(initial_state(np.ones(2)), np.array([bad, 1.0]), 0.1)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0]])
def test_impossible_initial_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be"):
        initial_state(np.array(weights))


@given(signals, st.floats(1e-3, 1e3))
def test_clipped_signal_keeps_its_direction_and_is_no_longer_than_asked(signal_G, limit):
    clipped = clip_l2(signal_G, limit)
    assert np.linalg.norm(clipped) <= limit * (1 + 1e-9)
    np.testing.assert_allclose(
        clipped * np.linalg.norm(signal_G), signal_G * np.linalg.norm(clipped), rtol=1e-6, atol=1e-6
    )


def test_three_point_game_converges_to_its_known_answer():
    # min over theta, max over weights of sum_g a_g (theta - c_g)^2 / 2 with c = 0, 1, 4: theta 2, weights 1/2, 0, 1/2.
    points = np.array([0.0, 1.0, 4.0])
    state, theta, thetas = initial_state(np.ones(3)), 0.0, []
    for t in range(20_000):
        step = 0.5 / np.sqrt(t + 1)
        state = eg(state, (theta - points) ** 2 / 2, step)
        theta -= step * float(state.weights_G @ (theta - points))
        thetas.append(theta)
    assert np.mean(thetas) == pytest.approx(2, abs=0.02)
    np.testing.assert_allclose(state.mean_G, [0.5, 0, 0.5], atol=0.02)
