"""The interval of a difference between two models."""

import numpy as np
import pytest

from tdro.evaluation.significance import paired_difference


def test_mean_weighs_tasks_equally_whatever_their_number_of_queries():
    difference = paired_difference({"large": np.full(100, 0.1), "small": np.full(4, 0.3)})
    assert difference.mean == pytest.approx(0.2)
    assert (difference.queries, difference.tasks) == (104, 2)


def test_interval_of_one_task_is_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(0.05, 0.2, size=400)
    difference = paired_difference({"task": values})
    half = 1.96 * values.std() / np.sqrt(400)
    assert difference.low == pytest.approx(values.mean() - half, abs=0.003)
    assert difference.high == pytest.approx(values.mean() + half, abs=0.003)


def test_interval_covers_the_truth_about_95_times_in_100():
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        difference = paired_difference(
            {"a": random.normal(0.1, 0.3, 80), "b": random.normal(0.3, 0.1, 40)}, resamples=400
        )
        covered += difference.low <= 0.2 <= difference.high
    assert 180 <= covered <= 199


def test_clear_means_that_zero_is_outside():
    assert paired_difference({"a": np.full(9, 0.1)}).is_clear
    assert not paired_difference({"a": np.array([0.5, -0.5] * 20)}).is_clear


@pytest.mark.parametrize("differences", [{}, {"a": np.array([])}])
def test_nothing_to_compare_is_refused(differences):
    with pytest.raises(ValueError, match="at least one query"):
        paired_difference(differences)
