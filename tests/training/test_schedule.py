"""The learning rate against arithmetic written out here."""

import math

import pytest

from tdro.training.schedule import learning_rate_share


def test_warm_up_is_linear_and_ends_at_the_peak():
    assert [learning_rate_share(t, 100, 4, "cosine", 0.1) for t in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_decay_ends_at_the_floor_and_never_rises(schedule, warmup):
    shares = [learning_rate_share(t, 50, warmup, schedule, 0.1) for t in range(max(warmup - 1, 0), 50)]
    assert shares[0] == 1 and shares[-1] == pytest.approx(0.1)
    assert shares == sorted(shares, reverse=True)


def test_cosine_is_halfway_in_the_middle():
    assert learning_rate_share(50, 101, 0, "cosine", 0.0) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_constant_ignores_the_floor():
    assert learning_rate_share(49, 50, 10, "constant", 0.1) == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_one_step_and_warm_up_longer_than_the_run_are_fine(schedule):
    assert learning_rate_share(0, 1, 0, schedule, 0.1) == 1
    assert learning_rate_share(4, 5, 10, schedule, 0.1) == 0.5
