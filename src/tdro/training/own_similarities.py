"""Similarities of the queries of a step to their own passages: all that stage 1 wants of a model."""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.core.losses import own_similarities
from tdro.devices import Device
from tdro.models.encoder import embed
from tdro.models.packing import pack
from tdro.training.texts import StepTexts


def micro_batches(texts: StepTexts, max_tokens: int) -> list[Tensor]:
    """Cut the queries of a step into groups of similar length whose texts hold at most `max_tokens` tokens."""
    passage_tokens = np.array([len(tokens) for tokens in texts.passages_P])
    ends = texts.count_B.cumsum(0).numpy()
    per_query = np.add.reduceat(passage_tokens, ends - texts.count_B.numpy())
    per_query += np.array([len(tokens) for tokens in texts.queries_B])
    return [torch.from_numpy(group) for group in pack(per_query, max_tokens)]


def similarities(
    model: SentenceTransformer, texts: StepTexts, query_m: Tensor, device: Device, max_tokens: int
) -> Tensor:
    """Compute [m, N] similarities of some queries of a step to their passages, with graph if gradients are on."""
    start_B = texts.positive_B.tolist()
    own = [p for q in query_m.tolist() for p in range(start_B[q], start_B[q] + int(texts.count_B[q]))]
    tokens = [texts.queries_B[q] for q in query_m] + [texts.passages_P[p] for p in own]
    embedding_nD = _embed_packed(model, tokens, device, max(max_tokens // 4, 1))
    return own_similarities(
        embedding_nD[: len(query_m)], embedding_nD[len(query_m) :], texts.count_B[query_m].to(embedding_nD.device)
    )


def similarities_of_all(model: SentenceTransformer, texts: StepTexts, device: Device, max_tokens: int) -> Tensor:
    """Compute [B, N] similarities of all queries of a step in evaluation mode; on the CPU, -inf where no passage is."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = [
                (query_m, similarities(model, texts, query_m, device, max_tokens))
                for query_m in micro_batches(texts, max_tokens)
            ]
    finally:
        model.train(training)
    padded_BN = parts[0][1].new_full((len(texts.queries_B), int(texts.count_B.max())), -torch.inf)
    for query_m, similarity_mN in parts:
        padded_BN[query_m.to(padded_BN.device), : similarity_mN.shape[1]] = similarity_mN
    return padded_BN.cpu()


def _embed_packed(model: SentenceTransformer, tokens: list[list[int]], device: Device, max_tokens: int) -> Tensor:
    """Embed texts in passes of similar length, with graph if gradients are on, in the order given."""
    groups = pack(np.array([len(t) for t in tokens]), max_tokens)
    with device.precision():
        embedding_nD = torch.cat([embed(model, [tokens[i] for i in group]) for group in groups])
    return embedding_nD[torch.from_numpy(np.argsort(np.concatenate(groups))).to(embedding_nD.device)]
