"""What is said about learned weights, against cases with a known answer."""

import numpy as np
import pytest
import torch

from tdro.core.diagnostics import (
    cut_verdict,
    duality_gap,
    effective_number,
    kept_shares,
    log_ratio_interval,
    replay_resampled,
)
from tdro.core.groups import group_statistics
from tdro.core.updates import eg, initial_state


def test_effective_number_runs_from_one_to_all():
    assert effective_number(np.full(25, 1 / 25)) == pytest.approx(25)
    assert effective_number(np.array([1.0, 0.0, 0.0])) == 1


def test_duality_gap_goes_to_zero_in_a_convex_game():
    points = np.array([0.0, 1.0, 4.0])
    state, theta, gaps = initial_state(np.ones(3)), 0.0, []
    mean_signal, mean_weights = np.zeros(3), np.zeros(3)
    for t in range(4000):
        loss_G = (theta - points) ** 2 / 2
        state = eg(state, loss_G, 0.5 / np.sqrt(t + 1))
        theta -= 0.5 / np.sqrt(t + 1) * float(state.weights_G @ (theta - points))
        mean_signal += (loss_G - mean_signal) / (t + 1)
        mean_weights += (state.weights_G - mean_weights) / (t + 1)
        gaps.append(duality_gap(mean_signal, mean_weights))
    assert gaps[100] > gaps[-1] and gaps[-1] < 0.05


@pytest.mark.parametrize("n", [800, 3200])
def test_interval_of_the_log_ratio_covers_the_truth_about_95_times_in_100(n):
    random, covered, trials = np.random.default_rng(n), 0, 1000
    for _ in range(trials):
        easy = random.gamma(0.7, 1.0, n)  # shared difficulty: proxy and reference losses go together
        proxy = easy * random.gamma(2.0, 0.5, n) + 0.1
        reference = easy * random.gamma(2.0, 0.25, n) + 0.05
        statistics = group_statistics(torch.from_numpy(proxy), torch.from_numpy(reference), torch.zeros(n).long(), 1)
        centre, half = log_ratio_interval(statistics)
        covered += abs(centre[0] - np.log(2.0)) <= half[0]
    assert 0.93 <= covered / trials <= 0.965


def test_pairing_makes_the_interval_shorter():
    random = np.random.default_rng(0)
    easy = random.gamma(1.0, 1.0, 500)
    group = torch.zeros(500).long()
    paired = group_statistics(torch.from_numpy(2 * easy), torch.from_numpy(easy + 0.01), group, 1)
    shuffled = group_statistics(torch.from_numpy(2 * easy), torch.from_numpy(random.permutation(easy) + 0.01), group, 1)
    assert log_ratio_interval(paired)[1][0] < log_ratio_interval(shuffled)[1][0] / 5


def test_groups_without_a_ratio_get_nan():
    statistics = group_statistics(
        torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 1, 1]), 3
    )
    centre, half = log_ratio_interval(statistics)
    assert np.isnan(half[0]) and np.isnan(centre[1:]).all()  # one example; a mean of 0; no example


def test_replay_of_the_steps_in_their_order_gives_the_weights_of_the_run():
    random = np.random.default_rng(0)
    signal_TG, present_TG = random.normal(size=(30, 4)), random.random((30, 4)) > 0.2
    start = state = initial_state(np.ones(4))
    for signal_G, present_G in zip(signal_TG, present_TG, strict=True):
        state = eg(state, signal_G, 0.1, present_G)
    order_ST = np.stack([np.arange(30), random.integers(30, size=30)])
    finals = replay_resampled(
        lambda s, x, step, p: eg(s, x, 0.1, p), start, signal_TG, present_TG, order_ST, range(len(signal_TG))
    )
    assert set(finals) == {"last", "mean", "ema"}
    for version, expected in (("last", state.weights_G), ("mean", state.mean_G), ("ema", state.ema_G)):
        np.testing.assert_array_equal(finals[version][0], expected)
        assert (finals[version][1] != expected).any()


def cut_verdicts(weights_SG: np.ndarray, kept: int) -> list[str]:
    return [cut_verdict(share) for share in kept_shares(weights_SG, kept)]


def test_ties_across_the_cut_are_undecided():
    assert cut_verdicts(np.full((10, 3), 1 / 3), kept=2) == ["undecided"] * 3
    assert cut_verdicts(np.tile([0.5, 0.25, 0.25], (10, 1)), kept=1) == ["keep", "drop", "drop"]


def test_what_is_always_on_one_side_of_the_cut_is_decided_and_the_rest_is_not():
    random = np.random.default_rng(0)
    weights_SG = np.array([0.5, 0.3, 0.1, 0.095]) + random.normal(0, 0.01, size=(200, 4))
    assert cut_verdicts(weights_SG, kept=3) == ["keep", "keep", "undecided", "undecided"]
    assert cut_verdicts(weights_SG, kept=2) == ["keep", "keep", "drop", "drop"]
