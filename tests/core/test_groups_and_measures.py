"""Statistics are additive; measures are the formulas."""

import numpy as np
import pytest
import torch

from tdro.core.groups import GroupStatistics, group_statistics
from tdro.core.measures import relative, sample_measure


def random_losses(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Proxy losses, reference losses and groups (0..4, group 3 absent)."""
    generator = torch.Generator().manual_seed(seed)
    group_B = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (n,), generator=generator)]
    return torch.rand(n, generator=generator) * 5, torch.rand(n, generator=generator) * 3, group_B


def test_statistics_of_parts_add_up_to_the_whole_to_1e_12():
    proxy_B, reference_B, group_B = random_losses(200)
    whole = group_statistics(proxy_B, reference_B, group_B, 5)
    parts = GroupStatistics.zeros(5)
    for part in torch.arange(200).split([1, 60, 39, 100]):
        parts = parts + group_statistics(proxy_B[part], reference_B[part], group_B[part], 5)
    np.testing.assert_allclose(parts.sums_GC, whole.sums_GC, rtol=1e-12)


def test_statistics_are_the_sums_per_group():
    proxy_B, reference_B, group_B = random_losses(50)
    statistics = group_statistics(proxy_B, reference_B, group_B, 5)
    for g in range(5):
        l_B, r_B = proxy_B[group_B == g].double(), reference_B[group_B == g].double()
        expected = [len(l_B), l_B.sum(), r_B.sum(), (l_B**2).sum(), (r_B**2).sum(), (l_B * r_B).sum(), 0]
        np.testing.assert_allclose(statistics.sums_GC[g], expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_loss_is_dropped_and_counted_and_touches_no_other(bad):
    proxy_B, reference_B, group_B = random_losses(50)
    good = group_statistics(proxy_B[1:], reference_B[1:], group_B[1:], 5)
    proxy_B[0] = bad
    statistics = group_statistics(proxy_B, reference_B, group_B, 5)
    np.testing.assert_array_equal(statistics.sums_GC[:, :6], good.sums_GC[:, :6])
    assert statistics.bad_G.sum() == 1 and statistics.bad_G[group_B[0]] == 1


def test_statistics_leave_no_graph():
    proxy_B, reference_B, group_B = random_losses(10)
    proxy_B.requires_grad_()
    group_statistics(proxy_B, reference_B, group_B, 5)
    assert proxy_B.grad_fn is None and proxy_B.grad is None


def test_relative_is_the_ratio_of_means_and_0_where_absent():
    proxy_B, reference_B, group_B = random_losses(100)
    measure_G = relative(group_statistics(proxy_B, reference_B, group_B, 5), shrinkage=0.01)
    assert measure_G[3] == 0
    expected = (proxy_B[group_B == 1].double().mean() + 0.01) / (reference_B[group_B == 1].double().mean() + 0.01)
    assert measure_G[1] == pytest.approx(float(expected), rel=1e-12)


def test_relative_ignores_a_common_scale_of_proxy_and_reference():
    proxy_B, reference_B, group_B = random_losses(100)
    once = relative(group_statistics(proxy_B, reference_B, group_B, 5))
    scaled = relative(group_statistics(proxy_B.double() * 7, reference_B.double() * 7, group_B, 5))
    np.testing.assert_allclose(once, scaled, rtol=1e-12)


def test_relative_refuses_a_reference_without_any_loss():
    statistics = group_statistics(torch.ones(2), torch.zeros(2), torch.tensor([0, 0]), 1)
    with pytest.raises(ValueError, match="shrinkage"):
        relative(statistics)
    assert relative(statistics, shrinkage=0.5) == pytest.approx([3.0])


@pytest.mark.parametrize("p_norm", [0, 1, 2])
def test_sample_measure_is_the_released_loop(p_norm):
    proxy_B, reference_B, group_B = (x.numpy() for x in random_losses(64))
    reference_B = reference_B.astype(np.float64)
    reference_B[:8] = 1e-9  # under the threshold: the divisor becomes 1
    norm = {0: 1.0, 1: np.abs(reference_B).sum(), 2: np.sqrt((reference_B**2).sum())}[p_norm]
    ratios: dict[int, list[float]] = {}
    for proxy, reference, group in zip(proxy_B, reference_B, group_B, strict=True):
        share = reference / norm
        ratios.setdefault(int(group), []).append(max(0.0, proxy / (1.0 if share < 1e-4 else share)))
    expected = [np.mean(ratios[g]) if g in ratios else 0.0 for g in range(5)]
    measured = sample_measure(proxy_B, reference_B, group_B, 5, p_norm=p_norm)
    np.testing.assert_allclose(measured, expected, rtol=1e-12)


def test_sample_measure_survives_a_nan():
    proxy_B, reference_B, group_B = np.array([np.nan, 1.0]), np.ones(2), np.array([0, 1])
    assert sample_measure(proxy_B, reference_B, group_B, 2).tolist() == [0.0, 1.0]
