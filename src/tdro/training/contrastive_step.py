"""Stages 0 and 2: InfoNCE over hard and in-batch negatives on homogeneous batches."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.config import TrainingConfig
from tdro.core.losses import false_negatives, hard_negative_loss, in_batch_loss, own_similarities
from tdro.data.mixture import HomogeneousMixture
from tdro.devices import ALONE, Device, Ranks
from tdro.training.cached_step import cached_backward
from tdro.training.prefetch import Prefetch
from tdro.training.texts import StepTexts, TextSource

SCORES = 1 << 22
"""Similarities that are in memory at once."""


class ContrastiveStep:
    """One step of stage 0 or 2; it has no state but the model's.

    A passage that several queries of the batch share is embedded once.

    Args:
        model: The model in training.
        source: Texts.
        mixture: Data order.
        names: Datasets, in the order of the mixture.
        factor_G: Factor of each dataset's loss.
        config: Settings of the stage.
        device: Where and in which precision.
        max_tokens: Tokens of a micro-batch.
        graph_tokens: Tokens whose graphs may be in memory at once.
        own_only: Datasets whose queries have no negatives but their own.
        ranks: Who shares the work.

    Source: paper, equation (6). Departure: known positives are never counted as negatives.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        source: TextSource,
        mixture: HomogeneousMixture,
        names: list[str],
        factor_G: list[float],
        config: TrainingConfig,
        device: Device,
        max_tokens: int,
        graph_tokens: int = 0,
        own_only: Collection[str] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self._model, self._names = model, names
        self._factor_G, self._device, self._ranks = factor_G, device, ranks
        self._max_tokens, self._graph_tokens = max_tokens, graph_tokens

        def prepare(step: int) -> tuple[int, BatchLoss]:
            draw = mixture.draw(step)
            dataset = int(draw.dataset_B[0])
            texts = source.texts(draw, config.passages_per_query)
            in_batch = names[dataset] not in own_only
            return dataset, BatchLoss(texts, config.temperature, factor_G[dataset], device, in_batch)

        self._batch = Prefetch(prepare, config.steps)

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the model's gradients."""
        dataset, batch = self._batch(step)
        loss = cached_backward(
            self._model,
            batch.token_lists,
            batch,
            self._device,
            self._max_tokens,
            step_seed,
            self._graph_tokens,
            self._ranks,
        )
        return {"loss": float(loss), "losses": {self._names[dataset]: float(loss) / self._factor_G[dataset]}}

    def state(self) -> dict[str, Any]:
        """Return nothing: the data order is a function of the step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up nothing."""


class BatchLoss:
    """The mean loss of a batch as a function of its embeddings, in slices of queries.

    Args:
        texts: The batch.
        temperature: tau.
        factor: Factor of the loss.
        device: Where the embeddings are.
        in_batch: Whether other queries' passages are negatives.

    Attributes:
        token_lists: The texts to embed: the queries, then every different passage once.
    """

    def __init__(
        self, texts: StepTexts, temperature: float, factor: float, device: Device, in_batch: bool = True
    ) -> None:
        keys_U, column_P = texts.passage_key_P.unique(return_inverse=True)
        first_U = torch.full((len(keys_U),), len(column_P)).scatter_reduce(
            0, column_P, torch.arange(len(column_P)), "amin"
        )
        self.token_lists = texts.queries_B + [texts.passages_P[p] for p in first_U.tolist()]
        excluded_E2 = false_negatives(texts.query_key_B, texts.passage_key_P, texts.positive_B, texts.known_K2)
        self._column_P, self._count_B, self._positive_B, self._excluded_E2 = (
            tensor.to(device.name) for tensor in (column_P, texts.count_B, texts.positive_B, excluded_E2)
        )
        self._temperature, self._factor, self._in_batch = temperature, factor, in_batch

    def __call__(self, embedding_nD: Tensor) -> Iterator[Tensor]:
        """Yield losses whose sum is the mean loss times the factor."""
        queries, passages = len(self._positive_B), len(self._column_P)
        if not self._in_batch:
            similarity_BN = own_similarities(
                embedding_nD[:queries], embedding_nD[queries:][self._column_P], self._count_B
            )
            yield hard_negative_loss(similarity_BN, self._temperature).mean() * self._factor
            return
        rows = max(1, SCORES // passages)
        for start in range(0, queries, rows):
            end = min(start + rows, queries)
            mine_E = (self._excluded_E2[:, 0] >= start) & (self._excluded_E2[:, 0] < end)
            excluded_E2 = self._excluded_E2[mine_E] - self._excluded_E2.new_tensor([start, 0])
            passage_PD = embedding_nD[queries:][self._column_P]
            loss_b = in_batch_loss(
                embedding_nD[start:end], passage_PD, self._positive_B[start:end], self._temperature, excluded_E2
            )
            yield loss_b.sum() * (self._factor / queries)
