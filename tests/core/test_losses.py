"""Per-query losses against the formula written out, one query at a time."""

import math

import pytest
import torch

from tdro.core.losses import (
    QueryLoss,
    by_query,
    distillation_loss,
    false_negatives,
    guide_negatives,
    hard_negative_loss,
    in_batch_loss,
    own_similarities,
)


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


def softmax(values: list[float], temperature: float) -> list[float]:
    """exp(v/tau) / sum exp(v/tau) in plain Python."""
    top = max(values)
    exps = [math.exp((v - top) / temperature) for v in values]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(0.05, 1.0), (1.0, 0.3)])
def test_distillation_loss_is_the_formula_for_ragged_lists(batch, temperature, teacher_temperature):
    query_BD, passage_PD, count_B = batch
    score_P = torch.tensor([2.0, -1.0, 0.5, 3.0, 1.0, 1.5], dtype=torch.float64)
    similarity_BN = own_similarities(query_BD, passage_PD, count_B)
    losses = distillation_loss(similarity_BN, by_query(score_P, count_B), temperature, teacher_temperature)
    start = 0
    for query, count, loss in zip(query_BD, count_B.tolist(), losses, strict=True):
        own = range(start, start + count)
        student = softmax([float(query @ passage_PD[i]) for i in own], temperature)
        teacher = softmax([float(score_P[i]) for i in own], teacher_temperature)
        expected = sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
        assert float(loss) == pytest.approx(expected, abs=1e-12)
        start += count
    assert float(losses[0]) == 0  # one passage


def test_gradient_of_the_distillation_loss_is_student_minus_teacher_and_finite_beside_padding():
    similarity_BN = torch.tensor([[0.4, 0.1, 0.3], [0.2, -torch.inf, -torch.inf]], dtype=torch.float64)
    score_BN = torch.tensor([[1.0, 2.0, 0.0], [1.0, torch.nan, -torch.inf]], dtype=torch.float64)
    similarity_BN.requires_grad_()
    distillation_loss(similarity_BN, score_BN, 0.1, 1.0).sum().backward()
    assert similarity_BN.grad is not None
    expected = (torch.softmax(similarity_BN[0] / 0.1, 0) - torch.softmax(score_BN[0], 0)) / 0.1
    torch.testing.assert_close(similarity_BN.grad, torch.stack([expected.detach(), torch.zeros(3).double()]))


def test_a_passage_without_score_leaves_its_query_alone_without_a_loss():
    score_BN = torch.tensor([[1.0, torch.nan], [1.0, 0.0]])
    losses = distillation_loss(torch.tensor([[0.4, 0.1], [0.4, 0.1]]), score_BN, 0.1, 1.0)
    assert losses.isnan().tolist() == [True, False]


def test_scores_far_apart_give_a_finite_loss_in_float32():
    losses = distillation_loss(torch.tensor([[0.9, 0.1]]), torch.tensor([[-1e4, 1e4]]).double(), 0.002, 0.01)
    assert losses.dtype == torch.float32 and losses.item() == pytest.approx(400, rel=1e-6)


def test_query_loss_adds_its_parts_and_hides_passages_from_infonce_alone(batch):
    query_BD, passage_PD, count_B = batch
    similarity_BN = own_similarities(query_BD, passage_PD, count_B)
    score_BN = by_query(torch.arange(6.0), count_B)
    hidden_BN = torch.tensor([[False, False, False], [False, True, False], [False, False, False]])
    infonce_B = hard_negative_loss(similarity_BN.masked_fill(hidden_BN, -torch.inf), 0.05)
    divergence_B = distillation_loss(similarity_BN, score_BN, 0.05, 2.0)
    found_B = QueryLoss(0.05, 0.3, 0.7, 2.0).of_own(similarity_BN, score_BN, hidden_BN)
    torch.testing.assert_close(found_B, 0.3 * infonce_B + 0.7 * divergence_B)
    torch.testing.assert_close(QueryLoss(0.05).of_own(similarity_BN, score_BN), hard_negative_loss(similarity_BN, 0.05))
    alone_B = QueryLoss(0.05, 0.0, 1.0, 2.0).of_own(similarity_BN, score_BN, hidden_BN)
    torch.testing.assert_close(alone_B, divergence_B)


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.2])
@pytest.mark.parametrize("at_once", [1, 100])
def test_guide_negatives_equal_a_double_loop(margin, at_once):
    generator = torch.Generator().manual_seed(2)
    query_BD, passage_PD = torch.randn(5, 3, generator=generator), torch.randn(9, 3, generator=generator)
    positive_B = torch.tensor([0, 2, 4, 5, 8])
    found = guide_negatives(query_BD, passage_PD, positive_B, margin, at_once).tolist()
    expected = []
    for b, positive in enumerate(positive_B.tolist()):
        limit = float(query_BD[b] @ passage_PD[positive]) - margin
        expected += [[b, p] for p in range(9) if p != positive and float(query_BD[b] @ passage_PD[p]) > limit]
    assert found == expected and found
