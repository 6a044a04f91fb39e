"""Exact gradients of a contrastive loss over a batch that does not fit into memory (stages 0 and 2)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.devices import Device
from tdro.models.encoder import embed
from tdro.models.packing import pack


def cached_backward(
    model: SentenceTransformer,
    token_lists: Sequence[Sequence[int]],
    losses_of: Callable[[Tensor], Iterable[Tensor]],
    device: Device,
    max_tokens: int,
    step_seed: int,
    graph_tokens: int = 0,
) -> Tensor:
    """Accumulate the gradient of a loss over all embeddings, a few micro-batches in memory at a time.

    All texts are embedded without a graph, the loss gives the gradient of each embedding, and the micro-batches are
    embedded once more to carry it on to the parameters. Each micro-batch is seeded, so dropout repeats itself. The last
    ones, as many as `graph_tokens` holds and at least one, keep their graph from the first time; when everything fits,
    nothing is done twice.

    Args:
        model: In training mode.
        token_lists: n token lists, of any lengths.
        losses_of: [n, D] embeddings, in the order given -> scalar losses whose sum is the loss. Each is sent backward
            before the next is asked for, so the scores of a large batch need not be in memory at once.
        device: Where and in which precision.
        max_tokens: Tokens of a micro-batch, padding included.
        step_seed: Seeds the micro-batches.
        graph_tokens: Tokens, padding included, whose graphs may be in memory at once.

    Returns:
        The loss, without graph.

    Source: Gao et al., Scaling deep contrastive learning batch size under memory limited setup (2021).
    """
    length_n = np.array([len(tokens) for tokens in token_lists])
    groups = pack(length_n, max_tokens)
    first_kept = _first_kept([len(group) * int(length_n[group].max()) for group in groups], graph_tokens)

    def represent(index: int) -> Tensor:
        torch.manual_seed(step_seed + index)
        with device.precision():
            return embed(model, [token_lists[i] for i in groups[index]])

    with torch.no_grad():
        parts = [represent(index) for index in range(first_kept)]
    kept = {index: represent(index) for index in range(first_kept, len(groups))}
    order_n = torch.from_numpy(np.argsort(np.concatenate(groups))).to(kept[first_kept].device)
    embedding_nD = torch.cat([*parts, *(part.detach() for part in kept.values())])[order_n].requires_grad_()
    del parts
    total = embedding_nD.new_zeros((), dtype=torch.float64)
    for loss in losses_of(embedding_nD):
        loss.backward()
        total += loss.detach()
    gradient_nD = embedding_nD.grad
    assert gradient_nD is not None
    for index in reversed(range(len(groups))):  # what is in memory goes first
        part_mD = kept.pop(index) if index in kept else represent(index)
        part_mD.backward(gradient_nD[torch.from_numpy(groups[index])])
        del part_mD
    return total


def _first_kept(tokens: list[int], graph_tokens: int) -> int:
    """Find the first micro-batch from which on all fit into the memory for graphs together."""
    first = len(tokens) - 1
    while first > 0 and sum(tokens[first - 1 :]) <= graph_tokens:
        first -= 1
    return first
