"""Counting losses per bin against counting them one by one."""

import numpy as np

from tdro.core.histogram import EDGES, loss_histogram


def test_counts_are_those_of_counting_one_by_one():
    random = np.random.default_rng(0)
    loss_B = np.concatenate([10 ** random.uniform(-8, 2, 300), EDGES, [0.0, np.nan, np.inf, -np.inf]])
    group_B = random.integers(0, 3, len(loss_B))
    expected = np.zeros((4, len(EDGES) + 1), int)
    for loss, group in zip(loss_B, group_B, strict=True):
        if np.isfinite(loss):
            expected[group, sum(loss >= edge for edge in EDGES)] += 1
    np.testing.assert_array_equal(loss_histogram(loss_B, group_B, 4), expected)  # the last group has no query


def test_counts_of_parts_add_up_to_those_of_the_whole():
    random = np.random.default_rng(1)
    loss_B, group_B = random.gamma(0.3, 1, 100), random.integers(0, 2, 100)
    parts = [loss_histogram(loss_B[k::5], group_B[k::5], 2) for k in range(5)]
    np.testing.assert_array_equal(sum(parts), loss_histogram(loss_B, group_B, 2))
