"""Gradients in small memory equal the gradients of one plain forward and backward."""

import pytest
import torch
from tiny_models import make_tiny_model

from tdro.core.losses import in_batch_loss
from tdro.data.collate import tokenize
from tdro.devices import pick_device
from tdro.models.encoder import embed, load_encoder
from tdro.models.sides import sides_of
from tdro.training.cached_step import cached_backward

CPU = pick_device("float32")
TEXTS = [" ".join(["bee", "river", "light"][: 1 + i % 3] * (1 + i % 5)) + f" {i}" for i in range(24)]


def gradients(model, backward) -> dict[str, torch.Tensor]:
    """Run a backward function on a clean model and return the gradients."""
    model.zero_grad(set_to_none=True)
    backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["bert", "qwen2", "static"])
@pytest.mark.parametrize("temperature", [0.002, 1.0])
def test_gradients_equal_the_plain_step(tmp_path, family, temperature):
    model = load_encoder(str(make_tiny_model(family, tmp_path / "model"))).eval()
    tokens = tokenize(model.tokenizer, TEXTS, 32)

    def loss_of(embedding_nD: torch.Tensor) -> torch.Tensor:
        return in_batch_loss(embedding_nD[:8], embedding_nD[8:], torch.arange(8) * 2, temperature).mean()

    plain = gradients(model, lambda: loss_of(embed(model, tokens)).backward())
    for budgets in ((1, 0), (40, 0), (40, 80), (40, 10_000), (10_000, 0)):
        cached = gradients(
            model, lambda b=budgets: cached_backward(model, tokens, lambda e: [loss_of(e)], CPU, b[0], 0, b[1])
        )
        assert cached.keys() == plain.keys()
        # Some gradients are zero but for rounding (the bias of attention keys), so errors are measured on all together.
        difference = torch.cat([(cached[name] - plain[name]).flatten() for name in plain])
        assert difference.norm() <= 1e-5 * torch.cat([g.flatten() for g in plain.values()]).norm()


@pytest.mark.parametrize("family", ["bert", "static"])
def test_gradients_of_separate_encoders_equal_the_plain_step(tmp_path, family):
    bases = [str(make_tiny_model(family, tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    model = load_encoder(bases[0], query_encoder=bases[1], projection=6).eval()
    queries, passages = sides_of(model)
    tokens = tokenize(model.tokenizer, TEXTS, 32)

    def loss_of(embedding_nD: torch.Tensor) -> torch.Tensor:
        return in_batch_loss(embedding_nD[:8], embedding_nD[8:], torch.arange(8) * 2, 0.05).mean()

    plain = gradients(
        model, lambda: loss_of(torch.cat([embed(queries, tokens[:8]), embed(passages, tokens[8:])])).backward()
    )
    assert {name.split(".")[2] for name in plain} == {"query", "document"}
    for budget, graphs in ((40, 0), (40, 80), (10_000, 0)):
        cached = gradients(
            model,
            lambda b=budget, g=graphs: cached_backward(model, tokens, lambda e: [loss_of(e)], CPU, b, 0, g, queries=8),
        )
        assert cached.keys() == plain.keys()
        difference = torch.cat([(cached[name] - plain[name]).flatten() for name in plain])
        assert difference.norm() <= 1e-5 * torch.cat([g.flatten() for g in plain.values()]).norm()


def test_gradients_with_dropout_are_those_of_the_same_dropout(tmp_path):
    # Reference: embed the same micro-batches with the same seeds, all graphs kept, one backward.
    from tdro.models.packing import pack

    model = load_encoder(str(make_tiny_model("bert", tmp_path / "model")), dtype=torch.float64).train()
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    tokens = tokenize(model.tokenizer, TEXTS, 32)

    def loss_of(embedding_nD: torch.Tensor) -> torch.Tensor:
        return in_batch_loss(embedding_nD[:8], embedding_nD[8:], torch.arange(8) * 2, 0.05).mean()

    def kept() -> None:
        groups = pack(torch.tensor([len(t) for t in tokens]).numpy(), 60)
        rows = [torch.empty(0)] * len(tokens)
        for index, group in enumerate(groups):
            torch.manual_seed(5 + index)
            for i, vector in zip(group, embed(model, [tokens[i] for i in group]), strict=True):
                rows[i] = vector
        loss_of(torch.stack(rows)).backward()

    expected = gradients(model, kept)
    cached = gradients(model, lambda: cached_backward(model, tokens, lambda e: [loss_of(e)], CPU, 60, 5, 100))
    for name, gradient in expected.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-9, atol=1e-12)
