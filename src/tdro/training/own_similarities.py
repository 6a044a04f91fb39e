"""Similarities of the queries of a step to their own passages: all that stage 1 wants of a model."""

from collections.abc import Iterator

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.core.losses import own_similarities
from tdro.devices import ALONE, Device, Ranks
from tdro.models.encoder import embed
from tdro.models.packing import pack
from tdro.models.sides import pack_sides
from tdro.sharding import is_sharded
from tdro.training.texts import StepTexts


def micro_batches(texts: StepTexts, max_tokens: int) -> list[Tensor]:
    """Cut the queries of a step into groups of similar length whose texts hold at most `max_tokens` tokens."""
    passage_tokens = np.array([len(tokens) for tokens in texts.passages_P])
    ends = texts.count_B.cumsum(0).numpy()
    per_query = np.add.reduceat(passage_tokens, ends - texts.count_B.numpy())
    per_query += np.array([len(tokens) for tokens in texts.queries_B])
    return [torch.from_numpy(group) for group in pack(per_query, max_tokens)]


def deal(
    model: SentenceTransformer, texts: StepTexts, max_tokens: int, ranks: Ranks, good_B: Tensor | None = None
) -> Iterator[tuple[int, Tensor, int]]:
    """Deal the micro-batches of a step out.

    Args:
        model: Who will embed them.
        texts: The step.
        max_tokens: Tokens of a micro-batch.
        ranks: Who shares the work.
        good_B: Queries that count; by default all.

    Yields:
        Number and queries of a micro-batch of this rank, and how many forward passes it must have: with a sharded model
        as many as its neighbours on the other ranks, even if it has no queries.
    """
    micro = [q if good_B is None else q[good_B[q]] for q in micro_batches(texts, max_tokens)]
    together = is_sharded(model)
    for start in range(0, len(micro), ranks.count):
        neighbours = micro[start : start + ranks.count]
        passes = max(len(_passes(model, texts, q, max_tokens)[1]) for q in neighbours) if together else 0
        query_m = neighbours[ranks.number] if ranks.number < len(neighbours) else torch.empty(0, dtype=torch.long)
        if len(query_m) or passes:
            yield start + ranks.number, query_m, passes


def similarities(
    model: SentenceTransformer, texts: StepTexts, query_m: Tensor, device: Device, max_tokens: int, passes: int = 0
) -> Tensor:
    """Compute [m, N] similarities of some queries of a step to their passages, with graph if gradients are on.

    Makes at least `passes` forward passes; what is too many embeds one text for nothing and gets no gradient.
    """
    tokens, groups = _passes(model, texts, query_m, max_tokens)
    shortest = min(texts.queries_B, key=len)
    with device.precision():
        parts = [embed(encoder, [tokens[i] for i in group]) for encoder, group in groups]
        parts += [embed(model, [shortest]) for _ in range(passes - len(groups))]
    order_n = torch.from_numpy(np.argsort(np.concatenate([np.empty(0, np.int64), *(group for _, group in groups)])))
    embedding_nD = torch.cat(parts)[order_n.to(parts[0].device)]
    if len(query_m) == 0:
        return embedding_nD[:, :1]
    return own_similarities(
        embedding_nD[: len(query_m)], embedding_nD[len(query_m) :], texts.count_B[query_m].to(embedding_nD.device)
    )


def similarities_of_all(
    model: SentenceTransformer, texts: StepTexts, device: Device, max_tokens: int, ranks: Ranks = ALONE
) -> Tensor:
    """Compute [B, N] similarities of all queries of a step in evaluation mode; on the CPU, -inf where no passage is.

    Several ranks deal the micro-batches out; all of them get all similarities.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = [
                (query_m, similarities(model, texts, query_m, device, max_tokens, passes))
                for _, query_m, passes in deal(model, texts, max_tokens, ranks)
            ]
    finally:
        model.train(training)
    dtype = torch.promote_types(device.dtype, torch.float32)
    padded_BN = torch.zeros((len(texts.queries_B), int(texts.count_B.max())), dtype=dtype, device=device.name)
    for query_m, similarity_mN in parts:
        padded_BN[query_m.to(device.name)] = -torch.inf
        padded_BN[query_m.to(device.name), : similarity_mN.shape[1]] = similarity_mN
    found_BN = padded_BN.cpu()
    ranks.add([found_BN])
    return found_BN


def _passes(
    model: SentenceTransformer, texts: StepTexts, query_m: Tensor, max_tokens: int
) -> tuple[list[list[int]], list[tuple[SentenceTransformer, np.ndarray]]]:
    """Return the token lists of some queries, then those of their passages; and which share a pass, with its encoder.

    The passes hold texts of similar length, a quarter of the micro-batch's tokens each.
    """
    start_B = texts.positive_B.tolist()
    own = [p for q in query_m.tolist() for p in range(start_B[q], start_B[q] + int(texts.count_B[q]))]
    tokens = [texts.queries_B[q] for q in query_m] + [texts.passages_P[p] for p in own]
    length_n = np.array([len(t) for t in tokens], np.int64)
    return tokens, pack_sides(model, length_n, len(query_m), max(max_tokens // 4, 1))
