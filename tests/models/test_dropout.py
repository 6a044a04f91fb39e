"""The faster dropout: the right share, the right scale, the right gradient, and no trace afterwards."""

import pytest
import torch
from tiny_models import make_tiny_model
from torch import nn

from tdro.models import dropout
from tdro.models.dropout import FastDropout, _Attention, drop, fast_dropout
from tdro.models.encoder import embed, load_encoder


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_with_probability_p_and_the_mean_stays(p):
    torch.manual_seed(0)
    found = drop(torch.ones(400, 500), p)
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / 200_000) ** 0.5)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-4)
    columns = (found == 0).float().mean(0)  # no column is treated otherwise than the others
    assert columns.std().item() == pytest.approx((p * (1 - p) / 400) ** 0.5, rel=0.15)


def test_the_gradient_is_the_mask_and_seeds_repeat_it():
    x = torch.randn(30, 40, requires_grad=True)
    torch.manual_seed(3)
    y = drop(x, 0.3)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, y.detach() / x.detach())
    torch.manual_seed(3)
    assert torch.equal(drop(x, 0.3), y)
    assert not torch.equal(drop(x, 0.3), y)


@pytest.mark.parametrize("slice_size", [1, 300, 1 << 17])
@pytest.mark.parametrize("kind", ["none", "bool", "additive", "shared"])
def test_attention_equals_the_formula_with_the_same_masks(monkeypatch, slice_size, kind):
    monkeypatch.setattr(dropout, "_SLICE", slice_size)
    torch.manual_seed(1)
    q, k, v = (torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    shown = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    mask = {
        "none": None, "bool": shown[:, None, None, :], "shared": shown[1:2, None, None, :],
        "additive": torch.zeros(3, 1, 1, 5, dtype=torch.float64).masked_fill(~shown[:, None, None], -torch.inf),
    }[kind]  # fmt: skip
    dropped, gradient = 20_000, torch.randn(3, 2, 5, 4, dtype=torch.float64)
    torch.manual_seed(7)
    found = _Attention.apply(q, k, v, mask, 0.5, dropped)
    found.backward(gradient)
    gradients = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    torch.manual_seed(7)
    masks, step = dropout._Masks(), max(1, slice_size // (2 * 5 * 5))
    keep = torch.cat([masks.next(torch.Size((min(step, 3 - i), 2, 5, 5)), dropped) for i in range(0, 3, step)])
    scores = q @ k.transpose(2, 3) * 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    expected = (scores.softmax(-1) * keep / (1 - dropped / 65536)) @ v
    expected.backward(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients, (q.grad, k.grad, v.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_model_runs_it_inside_the_block_only(tmp_path):
    model = load_encoder(str(make_tiny_model("bert", tmp_path / "model"))).train()
    tokens = [[2, 7, 8, 3], [2, 9, 3]]
    network = model[0].model
    before = {name: type(module) for name, module in model.named_modules()}
    with fast_dropout(model):
        assert network.config._attn_implementation == dropout.ATTENTION
        assert sum(isinstance(m, FastDropout) for m in model.modules()) > 2
        assert not any(type(m) is nn.Dropout and m.p > 0 for m in model.modules())
        torch.manual_seed(0)
        first = embed(model, tokens)
        torch.manual_seed(0)
        assert torch.equal(embed(model, tokens), first) and not torch.equal(embed(model, tokens), first)
    assert network.config._attn_implementation == "sdpa"
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_without_training_nothing_changes(tmp_path):
    for family in ("bert", "qwen2", "static"):
        model = load_encoder(str(make_tiny_model(family, tmp_path / family)))
        tokens = [[2, 7, 8, 3], [2, 9, 3]]
        expected = model.eval()
        with torch.no_grad():
            if family != "qwen2":
                plain = embed(expected, tokens)
                with fast_dropout(model):
                    assert torch.equal(embed(model, tokens), plain)


def test_the_mean_over_masks_is_what_torch_gives(tmp_path):
    model = load_encoder(str(make_tiny_model("bert", tmp_path / "model"))).train()
    tokens = [[2, 7, 8, 9, 10, 3]] * 4000
    with torch.no_grad():
        torch.manual_seed(0)
        theirs = embed(model, tokens)
        with fast_dropout(model):
            ours = embed(model, tokens)
    error = (theirs.std(0) ** 2 / 4000 + ours.std(0) ** 2 / 4000).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() / error).max() < 5
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.12, atol=0)
