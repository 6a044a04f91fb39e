"""Exact gradients of a contrastive loss over a batch that does not fit into memory (stages 0 and 2)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.devices import ALONE, Device, Ranks
from tdro.models.encoder import embed
from tdro.models.sides import pack_sides
from tdro.sharding import is_sharded


def cached_backward(
    model: SentenceTransformer,
    token_lists: Sequence[Sequence[int]],
    losses_of: Callable[[Tensor], Iterable[Tensor]],
    device: Device,
    max_tokens: int,
    step_seed: int,
    graph_tokens: int = 0,
    ranks: Ranks = ALONE,
    queries: int = 0,
) -> Tensor:
    """Accumulate the gradient of a loss over all embeddings, a few micro-batches in memory at a time.

    All texts are embedded without a graph, the loss gives the gradient of each embedding, and the micro-batches are
    embedded once more to carry it on to the parameters. Each micro-batch is seeded, so dropout repeats itself. The last
    ones, as many as `graph_tokens` holds and at least one, keep their graph from the first time; when everything fits,
    nothing is done twice.

    Several ranks deal the micro-batches out and gather the embeddings; each of them computes the whole loss, which is
    little work, so a text is a negative for the queries of all ranks and the sum of the ranks' gradients is that of one
    process, dropout included. With a sharded model each makes as many passes as the first: those that have fewer texts
    embed one once more and carry back nothing.

    Args:
        model: In training mode.
        token_lists: n token lists, of any lengths.
        losses_of: [n, D] embeddings, in the order given -> scalar losses whose sum is the loss. Each is sent backward
            before the next is asked for, so the scores of a large batch need not be in memory at once.
        device: Where and in which precision.
        max_tokens: Tokens of a micro-batch, padding included.
        step_seed: Seeds the micro-batches.
        graph_tokens: Tokens, padding included, whose graphs may be in memory at once.
        ranks: Who shares the work. The gradients are those of this rank's micro-batches; summed, if sharded.
        queries: How many token lists, the first ones, are queries; separate encoders need to know, others do not care.

    Returns:
        The loss of the whole batch, without graph.

    Source: Gao et al., Scaling deep contrastive learning batch size under memory limited setup (2021).
    """
    length_n = np.array([len(tokens) for tokens in token_lists])
    groups = pack_sides(model, length_n, queries, max_tokens)
    passes = [*groups, (model, np.array([length_n.argmin()]))]  # the last for ranks that only keep the others company
    cost = [len(texts) * int(length_n[texts].max()) for _, texts in passes]
    dealt = [list(range(rank, len(groups), ranks.count)) for rank in range(ranks.count)]
    mine, turns = dealt[ranks.number], dealt[ranks.number]
    first_kept = _first_kept([cost[turn] for turn in turns], graph_tokens)
    if is_sharded(model):
        all_turns = [rank + [len(groups)] * (len(dealt[0]) - len(rank)) for rank in dealt]
        turns = all_turns[ranks.number]
        first_kept = max(_first_kept([cost[turn] for turn in of_rank], graph_tokens) for of_rank in all_turns)

    def represent(turn: int) -> Tensor:
        torch.manual_seed(step_seed + turn)
        encoder, texts = passes[turn]
        with device.precision():
            return embed(encoder, [token_lists[i] for i in texts])

    with torch.no_grad():
        parts = [represent(turn) for turn in turns[:first_kept]]
    kept = {turn: represent(turn) for turn in turns[first_kept:]}
    parts += [part.detach() for part in kept.values()]
    own_mD = torch.cat(parts[: len(mine)]) if mine else _no_embeddings(model, device)
    order_n = torch.from_numpy(np.argsort(np.concatenate([groups[g][1] for rank in dealt for g in rank])))
    embedding_nD = torch.cat(ranks.gather(own_mD))[order_n.to(own_mD.device)].requires_grad_()
    del parts, own_mD
    total = embedding_nD.new_zeros((), dtype=torch.float64)
    for loss in losses_of(embedding_nD):
        loss.backward()
        total += loss.detach()
    gradient_nD = embedding_nD.grad
    assert gradient_nD is not None
    for turn in reversed(turns):  # what is in memory goes first
        part_mD = kept.pop(turn) if turn in kept else represent(turn)
        of_part_mD = gradient_nD[torch.from_numpy(passes[turn][1])]
        part_mD.backward(of_part_mD if turn < len(groups) else torch.zeros_like(of_part_mD))
        del part_mD
    return total


def _no_embeddings(model: SentenceTransformer, device: Device) -> Tensor:
    """What a rank contributes that has nothing to do."""
    dtype = torch.promote_types(device.dtype, torch.float32)
    return torch.empty((0, model.get_embedding_dimension() or 0), dtype=dtype, device=device.name)


def _first_kept(tokens: list[int], graph_tokens: int) -> int:
    """Find the first micro-batch from which on all fit into the memory for graphs together."""
    first = max(len(tokens) - 1, 0)
    while first > 0 and sum(tokens[first - 1 :]) <= graph_tokens:
        first -= 1
    return first
