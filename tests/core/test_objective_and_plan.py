"""The proxy's loss is the weighted sum of group means; plans are the rules of the paper."""

import numpy as np
import pytest
import torch

from tdro.core.objective import pooled_example_weights, released_example_weights
from tdro.core.plan import reweight, top_share


def test_gradient_of_the_weighted_loss_is_the_weighted_sum_of_group_gradients():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1).double()
    inputs, group_B = torch.randn(20, 4).double(), torch.arange(20) % 3
    alpha_G, count_G = torch.tensor([0.5, 0.2, 0.3]).double(), torch.bincount(group_B)
    losses = layer(inputs).squeeze(1) ** 2
    (losses * pooled_example_weights(alpha_G, count_G, group_B)).sum().backward()
    together = layer.weight.grad.clone()
    layer.zero_grad()
    for g in range(3):
        (alpha_G[g] * (layer(inputs[group_B == g]).squeeze(1) ** 2).mean()).backward()
    torch.testing.assert_close(together, layer.weight.grad, rtol=1e-12, atol=1e-12)


def test_how_often_a_group_was_drawn_does_not_change_its_share():
    alpha_G, group_B = torch.tensor([0.5, 0.5]), torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    factor_B = pooled_example_weights(alpha_G, torch.tensor([7, 1]), group_B)
    assert factor_B[group_B == 0].sum() == pytest.approx(0.5) and factor_B[7] == pytest.approx(0.5)
    assert released_example_weights(alpha_G, group_B)[7] == pytest.approx(1 / 8)


def test_top_70_percent_of_25_keeps_the_17_largest_uniformly():
    weights = {f"d{i:02}": i + 1.0 for i in range(25)}
    plan = top_share(weights, 0.7).probabilities
    assert set(plan) == {f"d{i:02}" for i in range(8, 25)}
    assert set(plan.values()) == {1 / 17}
    assert next(iter(plan)) == "d24"


@pytest.mark.parametrize(("count", "percent"), [(50, 58), (20, 55), (25, 60), (10, 70), (3, 100)])
def test_number_kept_is_the_floor_of_exact_arithmetic(count, percent):
    kept = top_share({str(i): 1.0 for i in range(count)}, percent / 100).probabilities
    assert len(kept) == count * percent // 100


def test_a_share_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="keeps 0 of 4"):
        top_share({str(i): 1.0 for i in range(4)}, 0.2)


def test_a_dataset_of_weight_zero_is_never_kept():
    assert top_share({"a": 0.0, "b": 1.0, "c": 0.0}, 0.7).probabilities == {"b": 1.0}


def test_equal_weights_are_cut_by_name():
    assert list(top_share({"b": 1.0, "a": 1.0, "c": 1.0}, 0.67).probabilities) == ["a", "b"]


def test_reweighting_normalises_and_leaves_zero_weights_out():
    plan = reweight({"a": 2.0, "b": 0.0, "c": 6.0})
    assert plan.probabilities == {"c": 0.75, "a": 0.25}
    assert plan.epochs({"a": 50, "c": 300}, 400) == {"c": 1.0, "a": 2.0}
    np.testing.assert_allclose(sum(plan.probabilities.values()), 1)
