"""Stages 0 and 2: InfoNCE over hard and in-batch negatives, on homogeneous or mixed batches."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tdro.config import TrainingConfig
from tdro.data.mixture import Draw, Mixture
from tdro.devices import ALONE, Device, Ranks
from tdro.errors import ConfigError
from tdro.models.sides import side_of
from tdro.training.batch_loss import BatchLoss, merge_twins
from tdro.training.cached_step import cached_backward
from tdro.training.guide import Guide
from tdro.training.prefetch import Prefetch
from tdro.training.query_loss import query_loss
from tdro.training.texts import StepTexts, TextSource


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
        normalize: Whether the model's embeddings have length 1; decides what their first dimensions are.
        guide: Tells which passages may be right answers; they do not count as negatives.

    Source: paper, equation (6). Departure: known positives are never counted as negatives, in mixed batches also where
    another dataset has the same question or passage.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        source: TextSource,
        mixture: Mixture,
        names: list[str],
        factor_G: list[float],
        config: TrainingConfig,
        device: Device,
        max_tokens: int,
        graph_tokens: int = 0,
        own_only: Collection[str] = (),
        ranks: Ranks = ALONE,
        normalize: bool = True,
        guide: Guide | None = None,
    ) -> None:
        self._model, self._names, self._guide = model, names, guide
        self._device, self._ranks = device, ranks
        self._max_tokens, self._graph_tokens = max_tokens, graph_tokens
        _refuse_wider(config.matryoshka, model)
        weight_G = torch.tensor(factor_G, dtype=torch.float64)
        in_batch_G = torch.tensor([name not in own_only for name in names])

        def prepare(step: int) -> tuple[Draw, BatchLoss, StepTexts | None]:
            draw = mixture.draw(step)
            dataset_B = torch.from_numpy(draw.dataset_B)
            texts = source.texts(draw, config.passages_per_query)
            if len(dataset_B.unique()) > 1:
                texts = merge_twins(texts)
            batch = BatchLoss(
                texts,
                query_loss(config),
                weight_G[dataset_B],
                in_batch_G[dataset_B],
                device,
                config.matryoshka,
                normalize,
            )
            return draw, batch, guide.texts(draw, config.passages_per_query) if guide is not None else None

        self._batch = Prefetch(prepare, config.steps)

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the model's gradients."""
        draw, batch, guide_texts = self._batch(step)
        if self._guide is not None and guide_texts is not None:
            batch.exclude(self._guide.excluded(guide_texts))
        loss = cached_backward(
            self._model,
            batch.token_lists,
            batch,
            self._device,
            self._max_tokens,
            step_seed,
            self._graph_tokens,
            self._ranks,
            batch.queries,
        )
        return {"loss": float(loss), "losses": self._means(draw.dataset_B, batch.loss_B.cpu().numpy())}

    def state(self) -> dict[str, Any]:
        """Return nothing: the data order is a function of the step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up nothing."""

    def _means(self, dataset_B: np.ndarray, loss_B: np.ndarray) -> dict[str, float]:
        """Return the mean loss of each dataset of a batch."""
        return {self._names[g]: float(loss_B[dataset_B == g].mean()) for g in np.unique(dataset_B).tolist()}


def _refuse_wider(dimensions: Collection[int], model: SentenceTransformer) -> None:
    """Refuse to compute a loss on more dimensions than the embeddings have."""
    width = side_of(model, "passages").get_embedding_dimension()
    if dimensions and width is not None and max(dimensions) > width:
        what, do = f"the embeddings have {width} dimensions", f"give at most {width}"
        raise ConfigError(what, where="reference.matryoshka", saw=max(dimensions), do=do)
