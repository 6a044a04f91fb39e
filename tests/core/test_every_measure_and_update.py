"""One exam for all measures and one for all update rules."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tdro.core.groups import GroupStatistics, group_statistics
from tdro.core.measures import excess, excess_relative, initial, raw, relative, sample_measure, target
from tdro.core.projection import Bounds, caps_from_epochs
from tdro.core.updates import WeightState, anchored, clip_elements, eg, eg_mix, initial_state, optimizer_step

GROUPS = 6
UNIFORM = np.full(GROUPS, 1 / GROUPS)

Losses = tuple[np.ndarray, np.ndarray, np.ndarray]


def of_statistics(measure: Callable[[GroupStatistics], np.ndarray]) -> Callable[[Losses], np.ndarray]:
    """Let a measure of statistics take losses."""
    return lambda losses: measure(group_statistics(*(torch.from_numpy(x) for x in losses), GROUPS))


MEASURES: dict[str, Callable[[Losses], np.ndarray]] = {
    "relative": of_statistics(partial(relative, shrinkage=0.01)),
    "excess": of_statistics(excess),
    "excess-relative": of_statistics(partial(excess_relative, shrinkage=0.01)),
    "raw": of_statistics(raw),
    "initial": of_statistics(partial(initial, initial_loss_G=np.arange(1.0, GROUPS + 1), shrinkage=0.01)),
    "target": of_statistics(partial(target, target_G=np.arange(GROUPS) / 10)),
    "relative-sample": lambda losses: sample_measure(*losses, GROUPS),
    "excess-sample": lambda losses: sample_measure(*losses, GROUPS, subtract=True, divide=False),
    "excess-relative-sample": lambda losses: sample_measure(*losses, GROUPS, subtract=True),
}
PER_GROUP = [name for name in MEASURES if not name.endswith("sample")]

UPDATES: dict[str, Callable[..., WeightState]] = {
    "eg": eg,
    "eg-mix": partial(eg_mix, prior_G=UNIFORM, mix=0.1),
    "anchored": partial(anchored, prior_G=UNIFORM, pull=0.5),
    "sgd": partial(optimizer_step, optimizer="sgd"),
    "sgd-momentum": partial(optimizer_step, optimizer="sgd", momentum=0.1, dampening=0.9),
    "adamw": partial(optimizer_step, optimizer="adamw"),
    "rmsprop": partial(optimizer_step, optimizer="rmsprop"),
    "adagrad": partial(optimizer_step, optimizer="adagrad"),
    "adafactor": partial(optimizer_step, optimizer="adafactor"),
}
MONOTONE = ["eg", "eg-mix", "anchored", "sgd", "sgd-momentum"]


def losses(seed: int = 0, n: int = 60, absent: int | None = 4) -> Losses:
    """Losses of a batch; one group may be absent."""
    random = np.random.default_rng(seed)
    present = [g for g in range(GROUPS) if g != absent]
    group_B = np.concatenate([present, random.choice(present, n - len(present))])
    return random.gamma(1.0, 2.0, n), random.gamma(1.0, 1.0, n) + 0.05, group_B


@pytest.mark.parametrize("name", MEASURES)
class TestEveryMeasure:
    def test_absent_group_gets_zero_and_all_are_finite(self, name):
        signal_G = MEASURES[name](losses())
        assert signal_G.shape == (GROUPS,) and signal_G.dtype == np.float64
        assert signal_G[4] == 0 and np.isfinite(signal_G).all()

    def test_higher_proxy_loss_of_a_group_never_lowers_its_measure_nor_moves_another(self, name):
        proxy_B, reference_B, group_B = losses()
        raised_B = proxy_B + 3.0 * (group_B == 2)
        before, after = (
            MEASURES[name]((proxy_B, reference_B, group_B)),
            MEASURES[name]((raised_B, reference_B, group_B)),
        )
        assert after[2] > before[2]
        np.testing.assert_array_equal(np.delete(after, 2), np.delete(before, 2))

    def test_order_of_the_examples_does_not_matter(self, name):
        one = losses()
        order = np.random.default_rng(1).permutation(len(one[0]))
        np.testing.assert_allclose(MEASURES[name](one), MEASURES[name](tuple(x[order] for x in one)), rtol=1e-12)

    def test_one_bad_loss_changes_its_group_only_by_being_dropped(self, name):
        proxy_B, reference_B, group_B = losses()
        bad = tuple(np.append(x, y) for x, y in zip(losses(), (np.nan, 1.0, 1), strict=True))
        np.testing.assert_allclose(
            MEASURES[name]((bad[0], bad[1], bad[2].astype(np.int64))),
            MEASURES[name]((proxy_B, reference_B, group_B)),
            rtol=1e-12,
        )


@pytest.mark.parametrize("name", PER_GROUP)
def test_measures_of_statistics_do_not_depend_on_how_a_batch_is_split(name):
    proxy_B, reference_B, group_B = (torch.from_numpy(x) for x in losses(n=90))
    parts = GroupStatistics.zeros(GROUPS)
    for part in torch.arange(90).split([7, 50, 33]):
        parts = parts + group_statistics(proxy_B[part], reference_B[part], group_B[part], GROUPS)
    rebuilt = (parts.proxy_mean_G, parts.reference_mean_G)
    whole = group_statistics(proxy_B, reference_B, group_B, GROUPS)
    np.testing.assert_allclose(rebuilt, (whole.proxy_mean_G, whole.reference_mean_G), rtol=1e-12)


def test_measures_are_their_formulas():
    statistics = group_statistics(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), 1)
    mean_l, mean_r = 2.0, 0.5
    assert relative(statistics, 0.1)[0] == pytest.approx((mean_l + 0.1) / (mean_r + 0.1))
    assert excess(statistics)[0] == mean_l - mean_r
    assert excess_relative(statistics, 0.1)[0] == pytest.approx((mean_l - mean_r) / (mean_r + 0.1))
    assert raw(statistics)[0] == mean_l
    assert initial(statistics, np.array([4.0]))[0] == mean_l / 4
    assert target(statistics, np.array([2.5]))[0] == mean_l - 2.5
    batch = (np.array([1.0, 3.0]), np.array([1.5, 0.0]), np.array([0, 0]))
    assert sample_measure(*batch, 1, subtract=True, divide=False)[0] == (0.0 + 3.0) / 2  # clamped per example


@pytest.mark.parametrize("name", UPDATES)
class TestEveryUpdate:
    def test_weights_stay_on_the_simplex_under_huge_signals(self, name):
        random, state = np.random.default_rng(0), initial_state(np.arange(1.0, GROUPS + 1))
        for _ in range(300):
            state = UPDATES[name](state, random.normal(size=GROUPS) * 10.0 ** random.integers(0, 7), 0.05)
            assert abs(state.weights_G.sum() - 1) < 1e-12 and (state.weights_G >= 0).all()

    def test_reordering_the_datasets_reorders_the_weights(self, name):
        order, start = np.array([3, 0, 5, 1, 4, 2]), np.arange(1.0, GROUPS + 1)
        state, permuted = initial_state(start), initial_state(start[order])
        for seed in range(5):
            signal_G = np.random.default_rng(seed).normal(size=GROUPS)
            state, permuted = UPDATES[name](state, signal_G, 0.2), UPDATES[name](permuted, signal_G[order], 0.2)
        np.testing.assert_allclose(state.weights_G[order], permuted.weights_G, rtol=1e-10)

    def test_absent_groups_keep_their_weight(self, name):
        mix = 0.1 if name == "eg-mix" else 0.0  # mixing the prior in moves every weight, by design
        state = initial_state(np.arange(1.0, GROUPS + 1))
        present_G = np.array([True, True, False, True, False, True])
        for seed in range(5):
            signal_G = np.random.default_rng(seed).normal(size=GROUPS) * present_G
            after = UPDATES[name](state, signal_G, 0.3, present_G)
            expected_G = (1 - mix) * state.weights_G + mix * UNIFORM
            np.testing.assert_allclose(after.weights_G[~present_G], expected_G[~present_G], rtol=1e-12)
            assert (after.weights_G[present_G] != state.weights_G[present_G]).any()
            state = after

    def test_floors_and_caps_hold_exactly(self, name):
        bounds = Bounds(np.full(GROUPS, 0.05), np.array([0.3, 1, 1, 0.2, 1, 0.4]))
        state, random = initial_state(np.ones(GROUPS)), np.random.default_rng(0)
        for _ in range(50):
            state = UPDATES[name](state, random.normal(size=GROUPS) * 5, 0.5, bounds=bounds)
            assert (state.weights_G >= bounds.low_G - 1e-15).all() and (state.weights_G <= bounds.high_G + 1e-15).all()
            assert abs(state.weights_G.sum() - 1) < 1e-12

    def test_state_survives_json_in_the_middle(self, name):
        whole = halfway = initial_state(np.ones(GROUPS))
        for seed in range(6):
            signal_G = np.random.default_rng(seed).normal(size=GROUPS)
            whole = UPDATES[name](whole, signal_G, 0.1)
            stored = json.loads(
                json.dumps([x.tolist() for x in halfway[:3]] + [{k: v.tolist() for k, v in halfway.memory.items()}])
            )
            arrays = [np.array(x) for x in stored[:3]]
            halfway = WeightState(*arrays, halfway.updates, {k: np.array(v) for k, v in stored[3].items()})
            halfway = UPDATES[name](halfway, signal_G, 0.1)
        np.testing.assert_array_equal(whole.log_weights_G, halfway.log_weights_G)

    def test_a_signal_that_is_not_finite_is_refused(self, name):
        with pytest.raises(ValueError, match="not finite"):
            UPDATES[name](initial_state(np.ones(GROUPS)), np.array([np.nan, 0, 0, 0, 0, 0]), 0.1)

    def test_equal_signals_change_nothing_from_uniform_weights(self, name):
        state = UPDATES[name](initial_state(np.ones(GROUPS)), np.full(GROUPS, 2.0), 0.1)
        np.testing.assert_allclose(state.weights_G, UNIFORM, rtol=1e-12)


@pytest.mark.parametrize("name", MONOTONE)
def test_raising_one_signal_raises_that_weight_and_lowers_all_others(name):
    state, signal_G = initial_state(np.ones(GROUPS)), np.linspace(0.1, 0.4, GROUPS)
    before = UPDATES[name](state, signal_G, 0.5).weights_G
    after = UPDATES[name](state, signal_G + np.eye(GROUPS)[2], 0.5).weights_G
    assert after[2] > before[2] and (np.delete(after, 2) < np.delete(before, 2)).all()


def test_sgd_is_eg():
    state, signal_G = initial_state(np.arange(1.0, GROUPS + 1)), np.linspace(-1, 1, GROUPS)
    np.testing.assert_allclose(
        optimizer_step(state, signal_G, 0.3, optimizer="sgd").weights_G, eg(state, signal_G, 0.3).weights_G, rtol=1e-14
    )


@pytest.mark.parametrize("step_size", [0.01, 0.3, 5.0])
def test_anchored_ends_at_its_fixed_point_whatever_the_step_size(step_size):
    prior_G, signal_G = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.5, 0.2])
    state = initial_state(np.array([0.1, 0.1, 0.8]))
    for _ in range(20_000 if step_size < 0.1 else 2_000):
        state = anchored(state, signal_G, step_size, prior_G=prior_G, pull=0.3)
    expected = prior_G * np.exp(signal_G / 0.3)
    np.testing.assert_allclose(state.weights_G, expected / expected.sum(), rtol=1e-9)


def test_projection_is_idempotent_and_leaves_what_already_fits():
    bounds = Bounds(np.full(4, 0.05), np.full(4, 0.5))
    once = bounds.project(np.array([0.9, 0.06, 0.03, 0.01]))
    np.testing.assert_array_equal(bounds.project(once), once)
    fits = np.array([0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(bounds.project(fits), fits, rtol=1e-15)


def test_projection_is_the_closest_point_in_kl_divergence():
    weights_G, bounds = np.array([0.7, 0.2, 0.1]), Bounds(np.array([0.0, 0.0, 0.15]), np.array([0.5, 1.0, 1.0]))
    best = bounds.project(weights_G)

    def divergence(point: np.ndarray) -> float:
        return float(np.sum(point * np.log(point / weights_G)))

    grid = [np.array([a, b, 1 - a - b]) for a in np.linspace(0.01, 0.5, 99) for b in np.linspace(0.01, 0.84, 168)]
    feasible = [point for point in grid if point[2] >= 0.15]
    assert divergence(best) <= min(map(divergence, feasible)) + 1e-12


@pytest.mark.parametrize(
    ("low", "high"), [([0.6, 0.6], [1, 1]), ([0, 0], [0.4, 0.4]), ([0.5, 0], [0.4, 1]), ([-0.1, 0], [1, 1])]
)
def test_impossible_bounds_are_refused(low, high):
    with pytest.raises(ValueError, match="no weights keep"):
        Bounds(np.array(low, float), np.array(high, float))


def test_caps_follow_from_epochs_and_too_few_rows_are_refused():
    assert caps_from_epochs({"a": 100, "b": 1000}, 3.0, 1000).tolist() == [0.3, 1.0]
    with pytest.raises(ValueError, match="need more than"):
        caps_from_epochs({"a": 100, "b": 100}, 2.0, 1000)


def test_element_clip_is_by_element():
    assert clip_elements(np.array([-3.0, 0.2, 7.0]), 0.5).tolist() == [-0.5, 0.2, 0.5]


def test_regret_stays_below_its_bound():
    groups, steps = 25, 400
    for seed in range(20):
        gains = np.random.default_rng(seed).random((steps, groups)) ** np.random.default_rng(seed + 99).uniform(
            0.2, 5, groups
        )
        state, earned = initial_state(np.ones(groups)), 0.0
        for gain_G in gains:
            earned += float(state.weights_G @ gain_G)
            state = eg(state, gain_G, np.sqrt(8 * np.log(groups) / steps))
        assert gains.sum(0).max() - earned <= np.sqrt(steps * np.log(groups) / 2)


GAMES = Path(os.environ.get("TDRO_SHARED") or Path(__file__).parents[2].parent / "shared") / "golden" / "toy_games.json"


@pytest.mark.skipif(not GAMES.exists(), reason="the toy games are not here")
@pytest.mark.parametrize("measure", ["raw", "relative", "excess"])
def test_four_point_game_converges_to_its_known_answer(measure):
    game = json.loads(GAMES.read_text())["toy4"]
    curve, centre, reference = np.array(game["A"]), np.array(game["C"], float), np.array(game["R"])
    shift = np.array(game["excess_r"]) if measure == "excess" else np.zeros(4)
    scale = 1 / reference if measure == "relative" else np.ones(4)
    state, theta, thetas, alphas = initial_state(np.ones(4)), np.zeros(2), [], []
    for t in range(20_000):
        rate = 0.5 / np.sqrt(t + 1)
        loss_G = 0.5 * curve * ((theta - centre) ** 2).sum(1)
        state = eg(state, loss_G * scale - shift, rate)
        theta = theta - rate * 0.3 * ((state.weights_G * scale * curve)[:, None] * (theta - centre)).sum(0)
        if t > 4_000:
            thetas.append(theta)
            alphas.append(state.weights_G)
    np.testing.assert_allclose(np.mean(thetas, axis=0), game[measure]["theta"], atol=0.03)
    np.testing.assert_allclose(np.mean(alphas, axis=0), game[measure]["alpha"], atol=0.03)
