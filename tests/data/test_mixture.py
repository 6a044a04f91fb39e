"""The data order: pure, balanced at every moment, every row once per pass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdro.data.mixture import Apportionment, HomogeneousMixture, MixedMixture

SIZES = {"tiny": 3, "small": 50, "large": 1000}


def largest_deviation(weights: np.ndarray, turns: int, seed: int = 0) -> float:
    """max over t and g of |count_g - t * weight_g|."""
    weights = weights / weights.sum()
    chosen = Apportionment(weights, seed).turns(0, turns)
    counts = np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0)
    return float(np.abs(counts - np.arange(1, turns + 1)[:, None] * weights).max())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-3), st.integers(0, 9))
def test_every_prefix_is_within_one_turn_of_the_weights(weights, seed):
    assert largest_deviation(np.array(weights), 400, seed) < 1


def test_deviation_stays_below_one_for_a_thousand_skewed_datasets():
    assert largest_deviation(np.random.default_rng(0).dirichlet(np.full(1000, 0.1)), 3000) < 1


def test_largest_deficit_first_breaks_the_bound_that_deadlines_hold():
    weights = np.array([0.3, 0.3, 0.3, *[0.1 / 50] * 50])
    counts, worst = np.zeros(53), 0.0
    for t in range(1, 600):
        counts[np.argmax(t * weights - counts)] += 1
        worst = max(worst, float(np.abs(counts - t * weights).max()))
    assert worst > 1.4
    assert largest_deviation(weights, 600) < 1


def test_uniform_weights_give_a_new_permutation_in_each_round():
    rounds = Apportionment(np.ones(8), seed=3).turns(0, 80).reshape(10, 8)
    assert all(sorted(r) == list(range(8)) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 5


def test_dataset_of_weight_zero_never_gets_a_turn():
    assert 1 not in Apportionment([0.4, 0.0, 0.6], 0).turns(0, 500)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: HomogeneousMixture(SIZES, {"tiny": 0.2, "small": 0.3, "large": 0.5}, 16, seed),
        lambda seed: MixedMixture(SIZES, 16, seed),
        lambda seed: MixedMixture(SIZES, 16, seed, "stratified"),
        lambda seed: MixedMixture(SIZES, 16, seed, probabilities={"tiny": 0.2, "small": 0.3, "large": 0.5}),
    ],
    ids=["homogeneous", "uniform", "stratified", "probabilities"],
)
class TestEveryMixture:
    def test_any_step_can_be_asked_for_in_any_order(self, make):
        forward, jumping = make(7), make(7)
        expected = [forward.draw(step) for step in range(30)]
        for step in (29, 3, 17, 0):
            drawn = jumping.draw(step)
            for field in ("dataset_B", "row_B", "visit_B"):
                np.testing.assert_array_equal(getattr(drawn, field), getattr(expected[step], field))

    def test_every_row_comes_once_per_pass(self, make):
        mixture = make(7)
        seen: dict[tuple[int, int], list[int]] = {}
        for step in range(60):
            drawn = mixture.draw(step)
            for dataset, row, visit in zip(drawn.dataset_B, drawn.row_B, drawn.visit_B, strict=True):
                seen.setdefault((int(dataset), int(visit)), []).append(int(row))
        for (dataset, visit), rows in seen.items():
            assert len(rows) == len(set(rows)) <= list(SIZES.values())[dataset]
            if (dataset, visit + 1) in seen:
                assert len(rows) == list(SIZES.values())[dataset]

    def test_passes_are_reshuffled(self, make):
        mixture = make(7)
        order: dict[int, list[int]] = {}
        for step in range(60):
            drawn = mixture.draw(step)
            for dataset, row, visit in zip(drawn.dataset_B, drawn.row_B, drawn.visit_B, strict=True):
                if dataset == 1:
                    order.setdefault(int(visit), []).append(int(row))
        assert len(order[0]) == len(order[1]) == 50 and order[0] != order[1]

    def test_another_seed_gives_another_order(self, make):
        assert any((make(7).draw(step).row_B != make(8).draw(step).row_B).any() for step in range(5))

    def test_examples_seen_counts_what_was_drawn(self, make):
        mixture = make(7)
        counts = sum(np.bincount(mixture.draw(step).dataset_B, minlength=3) for step in range(25))
        assert mixture.examples_seen(25) == dict(zip(SIZES, counts.tolist(), strict=True))


def test_homogeneous_batches_hold_one_dataset_each():
    mixture = HomogeneousMixture(SIZES, {"small": 0.5, "large": 0.5}, 16, 0)
    assert all(len(set(mixture.draw(step).dataset_B)) == 1 for step in range(20))


def test_stratified_batches_hold_equal_shares_give_or_take_one():
    mixture = MixedMixture(SIZES, 16, 0, "stratified")
    for step in range(20):
        counts = np.bincount(mixture.draw(step).dataset_B, minlength=3)
        assert counts.min() >= 4 and counts.max() <= 7


def test_queries_of_a_mixed_batch_draw_their_dataset_by_probability():
    mixture = MixedMixture(SIZES, 1000, 0, probabilities={"large": 3.0, "tiny": 1.0})
    for step in range(5):
        counts = np.bincount(mixture.draw(step).dataset_B, minlength=3)
        shares = dict(zip(SIZES, counts / 1000, strict=True))
        assert shares["small"] == 0 and 0.7 < shares["large"] < 0.8 and 0.2 < shares["tiny"] < 0.3
    with pytest.raises(ValueError, match="no probabilities"):
        MixedMixture(SIZES, 16, 0, "stratified", {"large": 1.0})


def test_the_order_within_a_dataset_does_not_depend_on_the_others():
    alone = HomogeneousMixture({"small": 50}, {"small": 1.0}, 16, 0).draw(0)
    among = HomogeneousMixture(SIZES, {"small": 1.0}, 16, 0).draw(0)
    np.testing.assert_array_equal(alone.row_B, among.row_B)
