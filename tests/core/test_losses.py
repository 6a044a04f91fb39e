"""Per-query losses against the formula written out, one query at a time."""

import math

import pytest
import torch

from tdro.core.losses import false_negatives, hard_negative_loss, in_batch_loss, own_similarities


def formula(positive: float, others: list[float], temperature: float) -> float:
    """-log( exp(s+/tau) / sum exp(s/tau) ) in plain Python."""
    top = max([positive, *others])
    total = sum(math.exp((s - top) / temperature) for s in [positive, *others])
    return -((positive - top) / temperature - math.log(total))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three queries with 1, 3 and 2 passages, unit length."""
    generator = torch.Generator().manual_seed(0)
    query_BD = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator, dtype=torch.float64), dim=-1)
    passage_PD = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator, dtype=torch.float64), dim=-1)
    return query_BD, passage_PD, torch.tensor([1, 3, 2])


@pytest.mark.parametrize("temperature", [0.002, 0.05, 1.0])
def test_hard_negative_loss_is_the_formula_for_ragged_lists(batch, temperature):
    query_BD, passage_PD, count_B = batch
    losses = hard_negative_loss(own_similarities(query_BD, passage_PD, count_B), temperature)
    start = 0
    for query, count, loss in zip(query_BD, count_B.tolist(), losses, strict=True):
        own = [float(query @ passage_PD[start + i]) for i in range(count)]
        assert float(loss) == pytest.approx(formula(own[0], own[1:], temperature), abs=1e-9)
        start += count


@pytest.mark.parametrize("temperature", [0.002, 0.05, 1.0])
def test_in_batch_loss_is_the_formula_with_excluded_passages_left_out(batch, temperature):
    query_BD, passage_PD, count_B = batch
    positive_B = count_B.cumsum(0) - count_B
    excluded_BP = torch.zeros(3, 6, dtype=torch.bool)
    excluded_BP[0, 5] = excluded_BP[2, 1] = True
    losses = in_batch_loss(query_BD, passage_PD, positive_B, temperature, excluded_BP.nonzero())
    for b in range(3):
        others = [float(query_BD[b] @ passage_PD[p]) for p in range(6) if p != positive_B[b] and not excluded_BP[b, p]]
        expected = formula(float(query_BD[b] @ passage_PD[positive_B[b]]), others, temperature)
        assert float(losses[b]) == pytest.approx(expected, abs=1e-9)


def test_half_precision_embeddings_get_a_float32_loss():
    query_BD, passage_PD = torch.eye(2, dtype=torch.bfloat16), torch.eye(2, dtype=torch.bfloat16)
    assert in_batch_loss(query_BD, passage_PD, torch.arange(2), 0.002).dtype == torch.float32
    assert own_similarities(query_BD, passage_PD, torch.ones(2, dtype=torch.long)).dtype == torch.float32


def test_query_without_negatives_has_loss_and_gradient_zero():
    query_BD = torch.randn(1, 4, requires_grad=True)
    loss = hard_negative_loss(own_similarities(query_BD, torch.randn(1, 4), torch.tensor([1])), 0.05)
    loss.sum().backward()
    assert loss.item() == 0
    assert query_BD.grad is not None and query_BD.grad.abs().max() == 0


def test_false_negatives_equal_a_double_loop():
    generator = torch.Generator().manual_seed(1)
    query_key_B = torch.randint(0, 6, (12,), generator=generator)
    passage_key_P = torch.randint(0, 15, (36,), generator=generator)
    positive_B = torch.arange(12) * 3
    known_K2 = torch.tensor([[3, 4], [3, 9], [7, 2]])
    excluded = {(b, p) for b, p in false_negatives(query_key_B, passage_key_P, positive_B, known_K2).tolist()}
    for b in range(12):
        same = [o for o in range(12) if query_key_B[o] == query_key_B[b]]
        known = {int(passage_key_P[positive_B[o]]) for o in same} | {int(k) for o, k in known_K2 if o in same}
        for p in range(36):
            assert ((b, p) in excluded) == (int(passage_key_P[p]) in known and p != positive_B[b])
