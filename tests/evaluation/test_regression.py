"""What random mixtures say about datasets, on scores whose makers are known."""

import numpy as np
import pytest

from tdro.evaluation.regression import fit_usefulness, headroom, random_mixtures, rank_agreement

NAMES = [f"d{i}" for i in range(8)]
WORTH_G = np.array([3.0, -2.0, 0.5, 0.0, 1.0, -1.0, 2.0, -0.5])


def scores(mixture_MG: np.ndarray, noise: float, seed: int = 1) -> np.ndarray:
    """A linear truth with noise."""
    return 40 + mixture_MG @ WORTH_G + noise * np.random.default_rng(seed).standard_normal(len(mixture_MG))


def test_a_linear_truth_is_found_with_its_slopes():
    mixture_MG = random_mixtures(8, 60, seed=0)
    found = fit_usefulness(NAMES, mixture_MG, scores(mixture_MG, 0.01))
    assert found.shape == "share"
    assert found.explained > 0.99
    assert found.reliability > 0.9
    np.testing.assert_allclose(found.slope_G, WORTH_G - WORTH_G.mean(), atol=0.1)
    assert found.uniform == pytest.approx(40 + WORTH_G.mean(), abs=0.05)
    assert found.expected > found.uniform
    assert int(found.best_G.argmax()) == 0
    assert found.best_G.sum() == pytest.approx(1)
    assert found.agreement(dict(zip(NAMES, WORTH_G.tolist(), strict=True))) > 0.95


def test_a_concave_truth_has_its_best_mixture_inside():
    mixture_MG = random_mixtures(8, 80, seed=0)
    found = fit_usefulness(NAMES, mixture_MG, np.sqrt(mixture_MG) @ np.ones(8))
    assert found.shape == "root of the share"
    assert found.expected == pytest.approx(found.uniform, abs=0.05)  # equal datasets: uniform is best
    assert found.best_G.max() < 0.3


def test_noise_alone_is_not_explained_and_has_no_reliable_ranks():
    mixture_MG = random_mixtures(8, 60, seed=0)
    found = fit_usefulness(NAMES, mixture_MG, np.random.default_rng(3).standard_normal(60))
    assert found.explained < 0.1
    assert abs(found.reliability) < 0.35
    assert 0 <= found.full_reliability <= found.ceiling < 0.75


def test_the_ceiling_is_what_the_truth_agrees_with_what_is_found():
    truths, ceilings = [], []
    for seed in range(30):
        mixture_MG = random_mixtures(8, 60, seed=seed)
        found = fit_usefulness(NAMES, mixture_MG, scores(mixture_MG, 0.8, seed), seed)
        truths.append(found.agreement(dict(zip(NAMES, WORTH_G.tolist(), strict=True))))
        ceilings.append(found.ceiling)
        assert found.reliability < found.ceiling
    assert np.mean(truths) == pytest.approx(np.mean(ceilings), abs=0.06)


def test_order_of_the_datasets_changes_nothing_else():
    mixture_MG, order_G = random_mixtures(8, 40, seed=0), np.random.default_rng(0).permutation(8)
    score_M = scores(mixture_MG, 0.1)
    one = fit_usefulness(NAMES, mixture_MG, score_M)
    other = fit_usefulness([NAMES[g] for g in order_G], mixture_MG[:, order_G], score_M)
    np.testing.assert_allclose(other.slope_G, one.slope_G[order_G], atol=1e-9)
    assert other.reliability == pytest.approx(one.reliability)


def test_more_mixtures_begin_with_the_same_ones():
    np.testing.assert_array_equal(random_mixtures(5, 30, seed=2)[:10], random_mixtures(5, 10, seed=2))
    assert not np.array_equal(random_mixtures(5, 10, seed=2), random_mixtures(5, 10, seed=3))
    sparse, even = random_mixtures(10, 200, 0, 0.1), random_mixtures(10, 200, 0, 50.0)
    assert sparse.max(axis=1).mean() > 0.5 > 0.2 > even.max(axis=1).mean()


def test_too_few_mixtures_and_equal_scores_are_refused():
    with pytest.raises(ValueError, match="too few"):
        fit_usefulness(NAMES, random_mixtures(8, 19, 0), np.arange(19.0))
    with pytest.raises(ValueError, match="same score"):
        fit_usefulness(NAMES, random_mixtures(8, 20, 0), np.ones(20))


def test_rank_agreement_ignores_scale_and_knows_no_order():
    assert rank_agreement([1, 2, 3], [0.1, 5, 1000]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_agreement([2, 2, 2], [3, 2, 1]) == 0


def test_headroom_is_what_two_halves_of_the_queries_share():
    random = np.random.default_rng(0)
    truth_M, (one_M, other_M) = random.normal(0, 2, 4000), random.normal(0, 1, (2, 4000))
    real = headroom(truth_M + (one_M + other_M) / 2, truth_M + one_M, truth_M + other_M)
    assert real.shared == pytest.approx(2, abs=0.1)
    assert real.agreement == pytest.approx(4 / 5, abs=0.03)
    luck = headroom((one_M + other_M) / 2, one_M, other_M)
    assert luck.shared < 0.3 < luck.deviation
