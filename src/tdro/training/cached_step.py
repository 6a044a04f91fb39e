"""Exact gradients of a contrastive loss over a batch that does not fit into memory (stages 0 and 2)."""

from collections.abc import Callable, Sequence

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
    loss_of: Callable[[Tensor], Tensor],
    device: Device,
    max_tokens: int,
    step_seed: int,
) -> Tensor:
    """Accumulate the gradient of a loss over all embeddings, one micro-batch in memory at a time.

    All texts are embedded without a graph, the loss gives the gradient of each embedding, and the micro-batches are
    embedded once more to carry it on to the parameters. Each micro-batch is seeded, so dropout repeats itself. The last
    one keeps its graph from the first time; when everything fits into one, nothing is done twice.

    Args:
        model: In training mode.
        token_lists: n token lists, of any lengths.
        loss_of: [n, D] embeddings, in the order given -> scalar loss.
        device: Where and in which precision.
        max_tokens: Tokens of a micro-batch, padding included.
        step_seed: Seeds the micro-batches.

    Returns:
        The loss, without graph.

    Source: Gao et al., Scaling deep contrastive learning batch size under memory limited setup (2021).
    """
    groups = pack(np.array([len(tokens) for tokens in token_lists]), max_tokens)

    def represent(index: int) -> Tensor:
        torch.manual_seed(step_seed + index)
        with device.precision():
            return embed(model, [token_lists[i] for i in groups[index]])

    last = len(groups) - 1
    with torch.no_grad():
        parts = [represent(index) for index in range(last)]
    kept = represent(last)
    order = torch.from_numpy(np.argsort(np.concatenate(groups))).to(kept.device)
    embedding_nD = torch.cat([*parts, kept.detach()])[order].requires_grad_()
    loss = loss_of(embedding_nD)
    loss.backward()
    gradient_nD = embedding_nD.grad
    assert gradient_nD is not None
    kept.backward(gradient_nD[torch.from_numpy(groups[last])])
    for index in range(last):
        represent(index).backward(gradient_nD[torch.from_numpy(groups[index])])
    return loss.detach()
