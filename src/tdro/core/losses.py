"""Per-query losses, InfoNCE and distillation, one number per query and no reduction.

Similarities and losses are computed in float32, or in float64 when the embeddings are float64:
in bfloat16 a cosine near 0.9 at temperature 0.002 would be quantised to steps of two nats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def own_similarities(query_BD: Tensor, passage_PD: Tensor, count_B: Tensor) -> Tensor:
    """Compute the similarity of each query to its own passages, padded with -inf.

    Args:
        query_BD: Query embeddings.
        passage_PD: Passage embeddings; the first `count_B[0]` rows belong to query 0 with its
            positive first, and so on.
        count_B: int64, passages per query, at least 1. Lists may differ in length.

    Returns:
        [B, N] similarities, N = longest list, column 0 the positive.

    Example:
        >>> q, p = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        >>> own_similarities(q, p, torch.tensor([1, 2]))
        tensor([[1.0000,   -inf],
                [1.0000, 0.5000]])
    """
    query_BD, passage_PD = _at_least_float32(query_BD), _at_least_float32(passage_PD)
    return by_query((query_BD[owners(count_B)] * passage_PD).sum(-1), count_B)


def owners(count_B: Tensor) -> Tensor:
    """Return the row of the query that each passage belongs to, int64, where passages are laid query by query."""
    return torch.repeat_interleave(torch.arange(len(count_B), device=count_B.device), count_B)


def by_query(value_P: Tensor, count_B: Tensor, padding: float = -torch.inf) -> Tensor:
    """Lay the numbers of passages out by query.

    Args:
        value_P: One number for each passage, query by query.
        count_B: int64, passages per query, at least 1.
        padding: Stands where a query has no passage.

    Returns:
        [B, N], N = longest list.

    Example:
        >>> by_query(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2]))
        tensor([[1., -inf],
                [2., 3.]])
    """
    owner_P = owners(count_B)
    column_P = torch.arange(len(owner_P), device=owner_P.device) - (count_B.cumsum(0) - count_B)[owner_P]
    padded_BN = value_P.new_full((len(count_B), int(count_B.max())), padding)
    return padded_BN.index_put((owner_P, column_P), value_P)


def hard_negative_loss(similarity_BN: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE over a query's own passages, equation (1).

    L = -log( exp(s_0/tau) / sum_j exp(s_j/tau) ). A query without negatives has loss 0.

    Args:
        similarity_BN: Similarities, the positive in column 0, -inf where there is no passage.
        temperature: tau > 0, sensible from 0.002 to 1.

    Returns:
        [B] losses in nats, at least float32.

    Example:
        >>> hard_negative_loss(torch.tensor([[1.0, 1.0], [1.0, -torch.inf]]), 0.1)
        tensor([0.6931, -0.0000])

    Source: paper, equation (1); released code with `dro_only_hn`.
    """
    logit_BN = _at_least_float32(similarity_BN) / temperature
    return functional.cross_entropy(logit_BN, logit_BN.new_zeros(len(logit_BN), dtype=torch.long), reduction="none")


def distillation_loss(
    similarity_BN: Tensor, score_BN: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """Compute the divergence of a teacher's opinion of a query's own passages from the model's.

    L = sum_j t_j (log t_j - log s_j), with t = softmax(score / teacher_temperature), s = softmax(similarity / tau). A
    query with one passage has loss 0.

    Args:
        similarity_BN: Similarities, -inf where there is no passage.
        score_BN: What the teacher gave the same passages, in any unit; not read where there is no passage.
        temperature: tau > 0.
        teacher_temperature: In the unit of the scores, > 0.

    Returns:
        [B] losses in nats, at least float32; NaN for a query that lacks a score.

    Example: a teacher that is of the model's opinion, and one that is not.
        >>> similarity_BN = torch.tensor([[0.1, 0.0], [0.1, 0.0]])
        >>> loss_B = distillation_loss(similarity_BN, torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.1, 1.0)
        >>> [round(loss, 4) for loss in loss_B.abs().tolist()]
        [0.0, 0.4621]

    Source: Hinton et al., Distilling the knowledge in a neural network (2015), without the factor temperature^2.
    """
    similarity_BN = _at_least_float32(similarity_BN)
    absent_BN = similarity_BN == -torch.inf
    score_BN = score_BN.double().masked_fill(absent_BN, -torch.inf)
    student_BN = torch.log_softmax(similarity_BN / temperature, dim=1).masked_fill(absent_BN, 0.0)
    teacher_BN = torch.log_softmax(score_BN / teacher_temperature, dim=1)
    share_BN = teacher_BN.exp().to(student_BN.dtype)
    return (share_BN * (teacher_BN.masked_fill(absent_BN, 0.0).to(student_BN.dtype) - student_BN)).sum(1)


@dataclass(frozen=True)
class QueryLoss:
    """What a query's loss is made of: factor * InfoNCE + distillation * KL(teacher || student).

    A part whose factor is 0 is not computed.

    Args:
        temperature: tau > 0.
        factor: Of InfoNCE.
        distillation: Factor of the divergence from a teacher's scores; see `distillation_loss`.
        teacher_temperature: In the unit of the scores, > 0.
    """

    temperature: float
    factor: float = 1.0
    distillation: float = 0.0
    teacher_temperature: float = 1.0

    def of_own(self, similarity_BN: Tensor, score_BN: Tensor, hidden_BN: Tensor | None = None) -> Tensor:
        """Compute the loss over a query's own passages.

        Args:
            similarity_BN: Similarities, the positive in column 0, -inf where there is no passage.
            score_BN: The teacher's scores, laid out alike; read if there is distillation.
            hidden_BN: bool, passages that must not count as negatives; the divergence sees them.

        Returns:
            [B] losses in nats.
        """
        loss_B = similarity_BN.new_zeros(len(similarity_BN))
        if self.factor:
            seen_BN = similarity_BN if hidden_BN is None else similarity_BN.masked_fill(hidden_BN, -torch.inf)
            loss_B = self.factor * hard_negative_loss(seen_BN, self.temperature)
        if self.distillation:
            divergence_B = distillation_loss(similarity_BN, score_BN, self.temperature, self.teacher_temperature)
            loss_B = loss_B + self.distillation * divergence_B
        return loss_B


def in_batch_loss(
    query_BD: Tensor,
    passage_PD: Tensor,
    positive_B: Tensor,
    temperature: float,
    excluded_E2: Tensor | None = None,
) -> Tensor:
    """Compute InfoNCE over all passages handed in: own hard negatives and everybody else's passages.

    The loss of a query does not depend on the other queries, so a large batch can be computed in slices of queries.

    Args:
        query_BD: Query embeddings.
        passage_PD: Passages of the batch, of other devices too when they are handed in.
        positive_B: int64, row of `passage_PD` that is the query's positive.
        temperature: tau > 0.
        excluded_E2: int64, pairs of a query's row and a passage's row that must not count as negatives; see
            `false_negatives`.

    Returns:
        [B] losses in nats, at least float32.

    Source: paper, equation (6). The released code has no exclusion; None gives its numbers.
    """
    logit_BP = _at_least_float32(query_BD) @ _at_least_float32(passage_PD).T / temperature
    if excluded_E2 is not None and len(excluded_E2):
        logit_BP = logit_BP.index_put((excluded_E2[:, 0], excluded_E2[:, 1]), logit_BP.new_tensor(-torch.inf))
    return functional.cross_entropy(logit_BP, positive_B, reduction="none")


def false_negatives(
    query_key_B: Tensor, passage_key_P: Tensor, positive_B: Tensor, known_K2: Tensor | None = None
) -> Tensor:
    """Find passages that would be counted as negatives though they are known positives.

    A passage is excluded for a query when it is the same passage as the query's positive, the positive of another row
    that asks the same query, or one that `known_K2` names for such a row. The positive itself is never excluded. Memory
    grows with the pairs found, not with B x P.

    Args:
        query_key_B: int64, equal for equal queries.
        passage_key_P: int64, equal for equal passages.
        positive_B: int64, row of each query's positive among the P passages.
        known_K2: int64, pairs of a query's row and the key of a passage that is a positive of it too.

    Returns:
        [E, 2] int64, pairs of a query's row and a passage's row, by query and then by passage.

    Example: queries 0 and 1 are the same question, with positives 0 and 2.
        >>> false_negatives(torch.tensor([7, 7]), torch.tensor([1, 2, 3, 1]), torch.tensor([0, 2])).tolist()
        [[0, 2], [0, 3], [1, 0], [1, 3]]

    Departure: the released code counts these passages as negatives.
    """
    rows_B = torch.arange(len(query_key_B))
    known_K2 = torch.empty(0, 2, dtype=torch.long) if known_K2 is None else known_K2
    named_by = torch.cat([query_key_B, query_key_B[known_K2[:, 0]]])  # this question ...
    names = torch.cat([passage_key_P[positive_B], known_K2[:, 1]])  # ... has this positive
    asker_I, which_I = _matches(query_key_B, named_by)
    owner_J, passage_J = _matches(names[which_I], passage_key_P)
    pairs_E2: Tensor = torch.unique(torch.stack([rows_B[asker_I][owner_J], passage_J], dim=1), dim=0)
    return pairs_E2[positive_B[pairs_E2[:, 0]] != pairs_E2[:, 1]]


def guide_negatives(
    query_BD: Tensor, passage_PD: Tensor, positive_B: Tensor, margin: float, at_once: int = 1 << 22
) -> Tensor:
    """Find passages that a guide takes for right answers though they are not known positives.

    A passage is excluded for a query when its similarity to the query is above that of the query's positive minus the
    margin, both by the guide's embeddings; the positive itself never is.

    Args:
        query_BD: The guide's embeddings of the queries.
        passage_PD: The guide's embeddings of the passages.
        positive_B: int64, row of each query's positive among the P passages.
        margin: In the unit of the similarities; below 0 more passages stay.
        at_once: Similarities that are in memory at once.

    Returns:
        [E, 2] int64, pairs of a query's row and a passage's row, by query and then by passage.

    Example: the second passage is closer to the query than its positive, the first.
        >>> guide_negatives(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([0]), 0.0)
        tensor([[0, 1]])

    Source: Solatorio, GISTEmbed (2024), for queries against passages only.
    """
    found: list[Tensor] = [positive_B.new_empty(0, 2)]
    for start in range(0, len(query_BD), rows := max(1, at_once // len(passage_PD))):
        positive_b = positive_B[start : start + rows, None]
        similarity_bP = _at_least_float32(query_BD[start : start + rows]) @ _at_least_float32(passage_PD).T
        above_bP = similarity_bP > similarity_bP.gather(1, positive_b) - margin
        found.append(above_bP.scatter(1, positive_b, False).nonzero() + positive_B.new_tensor([start, 0]))
    return torch.cat(found)


def _matches(keys_n: Tensor, among_m: Tensor) -> tuple[Tensor, Tensor]:
    """Find all pairs (i, j) with keys_n[i] == among_m[j]; returns the i and the j."""
    order_m = among_m.argsort(stable=True)
    sorted_m = among_m[order_m]
    first_n = torch.searchsorted(sorted_m, keys_n)
    count_n = torch.searchsorted(sorted_m, keys_n, right=True) - first_n
    i = torch.arange(len(keys_n)).repeat_interleave(count_n)
    within = torch.arange(len(i)) - (count_n.cumsum(0) - count_n)[i]
    return i, order_m[first_n[i] + within]


def _at_least_float32(x: Tensor) -> Tensor:
    """Raise half precision to float32 and leave float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()
