"""Tests of a difference between two models, against scipy, enumeration and simulated data."""

import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import stats

from tdro.evaluation.significance import (
    effect_size,
    holm,
    mean_over_tasks,
    paired_difference,
    paired_test,
    randomisation_p,
    t_test_p,
)


def normal(seed, mean, spread, count):
    """Differences of a simulated task."""
    return np.random.default_rng(seed).normal(mean, spread, count)


# mean and interval


def test_mean_weighs_tasks_equally_whatever_their_number_of_queries():
    difference = paired_difference({"large": np.full(100, 0.1), "small": np.full(4, 0.3)})
    assert difference.mean == pytest.approx(0.2)
    assert (difference.queries, difference.tasks) == (104, 2)


def test_parts_of_a_task_share_what_the_task_weighs():
    differences = {"one": np.full(9, 0.6), "two/de": np.full(3, 0.1), "two/fr": np.full(50, 0.5)}
    difference = paired_difference(differences)
    assert difference.mean == pytest.approx((0.6 + (0.1 + 0.5) / 2) / 2)
    assert (difference.queries, difference.tasks) == (62, 2)
    assert mean_over_tasks({"one": 0.6, "two/de": 0.1, "two/fr": 0.5}) == pytest.approx(0.45)


def test_interval_of_one_task_is_close_to_the_normal_one():
    values = normal(0, 0.05, 0.2, 400)
    difference = paired_difference({"task": values})
    half = 1.96 * values.std() / np.sqrt(400)
    assert difference.low == pytest.approx(values.mean() - half, abs=0.003)
    assert difference.high == pytest.approx(values.mean() + half, abs=0.003)


def test_interval_of_several_parts_is_close_to_the_normal_one():
    parts = {"t/a": normal(0, 0.1, 0.5, 300), "t/b": normal(1, 0.0, 0.1, 50), "u": normal(2, 0.0, 0.3, 200)}
    share = {"t/a": 1 / 4, "t/b": 1 / 4, "u": 1 / 2}
    half = 1.96 * np.sqrt(sum(share[name] ** 2 * values.var() / len(values) for name, values in parts.items()))
    difference = paired_difference(parts, resamples=10_000)
    assert (difference.high - difference.low) / 2 == pytest.approx(half, rel=0.04)


def test_interval_agrees_with_scipy_bootstrap():
    values = np.random.default_rng(3).exponential(0.2, 60) - 0.15
    ours = paired_difference({"task": values}, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_interval_covers_the_truth_about_95_times_in_100():
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        difference = paired_difference(
            {"a": random.normal(0.1, 0.3, 80), "b": random.normal(0.3, 0.1, 40)}, resamples=400
        )
        covered += difference.low <= 0.2 <= difference.high
    assert 180 <= covered <= 199


def test_interval_does_not_depend_on_how_many_draws_are_held_at_a_time(monkeypatch):
    values = {"task": normal(0, 0, 1, 50)}
    once = paired_difference(values, resamples=501), randomisation_p(values, resamples=501)
    monkeypatch.setattr("tdro.evaluation.significance._BLOCK", 1000)
    low, high = once[0].low, once[0].high
    again = paired_difference(values, resamples=501)
    assert (again.low, again.high) == pytest.approx((low, high), abs=0.05)
    assert randomisation_p(values, resamples=501) == pytest.approx(once[1], abs=0.1)


def test_same_seed_same_numbers():
    values = {"a": normal(0, 0.01, 0.2, 300), "b": normal(1, 0.01, 0.2, 30)}
    assert paired_test(values, resamples=500, seed=7) == paired_test(values, resamples=500, seed=7)
    assert paired_test(values, resamples=500, seed=7) != paired_test(values, resamples=500, seed=8)


def test_clear_means_that_zero_is_outside():
    assert paired_difference({"a": np.full(9, 0.1)}).is_clear
    assert not paired_difference({"a": np.array([0.5, -0.5] * 20)}).is_clear


@pytest.mark.parametrize("function", [paired_difference, randomisation_p, t_test_p, effect_size, paired_test])
@pytest.mark.parametrize("differences", [{}, {"a": np.array([])}])
def test_nothing_to_compare_is_refused(differences, function):
    with pytest.raises(ValueError, match="at least one query"):
        function(differences)


# randomisation test


def enumerated(differences):
    """Count all flips of all signs, one by one."""
    share = {"t/a": 1 / 4, "t/b": 1 / 4, "u": 1 / 2} if "u" in differences else dict.fromkeys(differences, 1.0)
    effects = np.concatenate([share[name] * values / len(values) for name, values in differences.items()])
    sums = [abs(np.dot(signs, effects)) for signs in itertools.product([1, -1], repeat=len(effects))]
    return np.mean([total >= abs(effects.sum()) - 1e-12 for total in sums])


@pytest.mark.parametrize("seed", range(5))
def test_few_queries_are_enumerated(seed):
    values = normal(seed, 0.3, 1, 9)
    assert randomisation_p({"task": values}) == enumerated({"task": values})
    exact = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert randomisation_p({"task": values}) == pytest.approx(exact.pvalue)


def test_parts_and_tasks_are_enumerated_with_their_shares():
    differences = {"t/a": normal(0, 0.5, 1, 3), "t/b": normal(1, 0.5, 1, 4), "u": normal(2, 0.5, 1, 4)}
    assert randomisation_p(differences) == enumerated(differences)


def test_ties_among_sums_are_counted_as_extreme_whatever_the_rounding():
    values = np.array([0.1, 0.2, 0.3, -0.1, 0.6])
    assert randomisation_p({"task": values}) == enumerated({"task": values})
    assert randomisation_p({"task": values / 3}) == enumerated({"task": values})


def test_queries_without_a_difference_change_nothing():
    values = normal(0, 0.4, 1, 10)
    padded = np.concatenate([values, np.zeros(500)])
    assert randomisation_p({"task": padded}) == randomisation_p({"task": values})


def test_many_queries_agree_with_scipy():
    values = normal(4, 0.03, 0.2, 120)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True, rng=0
    )
    assert randomisation_p({"task": values}) == pytest.approx(theirs.pvalue, abs=0.015)


def test_no_p_is_zero():
    assert randomisation_p({"task": np.full(100, 0.1)}, resamples=999) == 1 / 1000
    assert randomisation_p({"task": np.full(4, 0.1)}) == 2 / 16


def test_size_is_the_level_and_power_is_that_of_the_t_test():
    refused = {0.0: 0, 0.35: 0}
    for mean in refused:
        for seed in range(400):
            refused[mean] += randomisation_p({"task": normal(seed, mean, 1, 60)}, resamples=999, seed=seed) <= 0.05
    assert 0.025 <= refused[0.0] / 400 <= 0.08  # 0.05 within 2.5 standard errors
    expected = 1 - stats.nct(59, 0.35 * np.sqrt(60)).cdf(stats.t(59).ppf(0.975))
    assert refused[0.35] / 400 == pytest.approx(expected, abs=0.06)


# t-test and effect size


def test_t_test_is_the_paired_one_of_scipy():
    first, second = np.random.default_rng(0).random((2, 50))
    assert t_test_p({"task": second - first}) == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-10)


def test_t_test_over_two_equal_shares_is_welchs():
    a, b = normal(0, 0.2, 1, 30), normal(1, 0.1, 0.3, 12)
    welch = stats.ttest_ind(a, -b, equal_var=False)
    assert t_test_p({"t/a": a, "t/b": b}) == pytest.approx(welch.pvalue, rel=1e-10)


def test_effect_size_is_the_mean_over_the_deviation():
    a, b = normal(0, 0.2, 1, 30), normal(1, 0.1, 0.3, 12)
    assert effect_size({"a": a}) == pytest.approx(a.mean() / a.std(ddof=1))
    deviation = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert effect_size({"a": a, "b": b}) == pytest.approx((a.mean() + b.mean()) / 2 / deviation)


# Holm


def test_holm_by_hand():
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.03, 0.005, 0.5, 0.012]) == pytest.approx([0.06, 0.02, 0.5, 0.036])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.2]) == [0.2] and holm([]) == []


def test_holm_is_never_below_p_and_never_above_bonferroni():
    p = np.random.default_rng(0).random(20) ** 3
    adjusted = np.array(holm(list(p)))
    assert (adjusted >= p).all() and (adjusted <= np.minimum(20 * p, 1) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


# corners


def test_equal_models_have_p_one_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = paired_test({"a": np.zeros(30), "b/de": np.zeros(1)})
    assert (test.p_randomisation, test.p_t, test.effect) == (1.0, 1.0, 0.0)
    assert (test.difference.mean, test.difference.low, test.difference.high) == (0, 0, 0)
    assert (test.wins, test.ties, test.losses) == (0, 31, 0)


@pytest.mark.parametrize("values", [np.array([0.3]), np.full(40, 0.1), np.full(40, 1 / 3)])
def test_noise_that_cannot_be_estimated_is_not_made_up(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = paired_test({"task": values})
    assert test.p_t is None and test.effect is None
    assert test.p_randomisation == (1.0 if len(values) == 1 else 1 / 10_001)


def test_wins_ties_and_losses_are_counted_over_all_queries():
    test = paired_test({"a": np.array([0.1, 0.0, -0.2]), "b": np.array([0.5, 0.5])})
    assert (test.wins, test.ties, test.losses) == (3, 1, 1)


def test_reports_can_use_it_without_torch():
    code = (
        "import sys, tdro.evaluation.significance; assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
