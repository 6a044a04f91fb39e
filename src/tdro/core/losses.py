"""Per-query InfoNCE losses, one number per query and no reduction.

Similarities and losses are computed in float32, or in float64 when the embeddings are float64:
in bfloat16 a cosine near 0.9 at temperature 0.002 would be quantised to steps of two nats.
"""

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
    owner_P = torch.repeat_interleave(torch.arange(len(count_B), device=count_B.device), count_B)
    column_P = torch.arange(len(owner_P), device=owner_P.device) - (count_B.cumsum(0) - count_B)[owner_P]
    similarity_P = (query_BD[owner_P] * passage_PD).sum(-1)
    padded_BN = similarity_P.new_full((len(count_B), int(count_B.max())), -torch.inf)
    return padded_BN.index_put((owner_P, column_P), similarity_P)


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


def in_batch_loss(
    query_BD: Tensor,
    passage_PD: Tensor,
    positive_B: Tensor,
    temperature: float,
    excluded_BP: Tensor | None = None,
) -> Tensor:
    """Compute InfoNCE over all passages handed in: own hard negatives and everybody else's passages.

    Args:
        query_BD: Query embeddings.
        passage_PD: Passages of the batch, of other devices too when they are handed in.
        positive_B: int64, row of `passage_PD` that is the query's positive.
        temperature: tau > 0.
        excluded_BP: bool, passages that must not count as negatives of a query; see `false_negatives`.

    Returns:
        [B] losses in nats, at least float32.

    Source: paper, equation (6). The released code has no exclusion; None gives its numbers.
    """
    logit_BP = _at_least_float32(query_BD) @ _at_least_float32(passage_PD).T / temperature
    if excluded_BP is not None:
        logit_BP = logit_BP.masked_fill(excluded_BP, -torch.inf)
    return functional.cross_entropy(logit_BP, positive_B, reduction="none")


def false_negatives(
    query_key_B: Tensor, passage_key_P: Tensor, positive_B: Tensor, known_K2: Tensor | None = None
) -> Tensor:
    """Find passages that would be counted as negatives though they are known positives.

    A passage is excluded for a query when it is the same passage as the query's positive, the positive of another row
    that asks the same query, or one that `known_K2` names. The positive itself is never excluded.

    Args:
        query_key_B: int64, equal for equal queries.
        passage_key_P: int64, equal for equal passages.
        positive_B: int64, row of each query's positive among the P passages.
        known_K2: int64, pairs of a query's row and the key of a passage that is a positive of it too.

    Returns:
        bool [B, P].

    Example: queries 0 and 1 are the same question, with positives 0 and 2.
        >>> false_negatives(torch.tensor([7, 7]), torch.tensor([1, 2, 3, 1]), torch.tensor([0, 2]))
        tensor([[False, False,  True,  True],
                [ True, False, False,  True]])

    Departure: the released code counts these passages as negatives.
    """
    same_query_BB = query_key_B[:, None] == query_key_B[None, :]
    excluded_BP = passage_key_P[positive_B][:, None] == passage_key_P[None, :]
    repeated_B = same_query_BB.sum(1) > 1
    if known_K2 is not None and len(known_K2):
        named_KP = known_K2[:, 1:] == passage_key_P[None, :]
        excluded_BP |= torch.zeros_like(excluded_BP, dtype=torch.long).index_add(0, known_K2[:, 0], named_KP.long()) > 0
    excluded_BP[repeated_B] = (same_query_BB[repeated_B].float() @ excluded_BP.float()) > 0
    return excluded_BP.scatter(1, positive_B[:, None], False)


def _at_least_float32(x: Tensor) -> Tensor:
    """Raise half precision to float32 and leave float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()
