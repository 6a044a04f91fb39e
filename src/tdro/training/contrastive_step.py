"""Stages 0 and 2: InfoNCE over hard and in-batch negatives on homogeneous batches."""

from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.config import TrainingConfig
from tdro.core.losses import false_negatives, in_batch_loss
from tdro.data.mixture import HomogeneousMixture
from tdro.devices import Device
from tdro.training.cached_step import cached_backward
from tdro.training.texts import TextSource


class ContrastiveStep:
    """One step of stage 0 or 2; it has no state but the model's.

    Args:
        model: The model in training.
        source: Texts.
        mixture: Data order.
        names: Datasets, in the order of the mixture.
        factor_G: Factor of each dataset's loss.
        config: Settings of the stage.
        device: Where and in which precision.
        max_tokens: Tokens of a micro-batch.

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
    ) -> None:
        self._model, self._source, self._mixture, self._names = model, source, mixture, names
        self._factor_G, self._config, self._device, self._max_tokens = factor_G, config, device, max_tokens

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the model's gradients."""
        draw = self._mixture.draw(step)
        texts = self._source.texts(draw, self._config.passages_per_query)
        excluded_BP = false_negatives(texts.query_key_B, texts.passage_key_P, texts.positive_B, texts.known_K2)
        n_queries, factor = len(texts.queries_B), self._factor_G[int(draw.dataset_B[0])]

        def mean_loss(embedding_nD: Tensor) -> Tensor:
            query_BD, passage_PD = embedding_nD[:n_queries], embedding_nD[n_queries:]
            positive_B, excluded = texts.positive_B.to(query_BD.device), excluded_BP.to(query_BD.device)
            return factor * in_batch_loss(query_BD, passage_PD, positive_B, self._config.temperature, excluded).mean()

        tokens = texts.queries_B + texts.passages_P
        loss = float(cached_backward(self._model, tokens, mean_loss, self._device, self._max_tokens, step_seed))
        return {"loss": loss, "losses": {self._names[int(draw.dataset_B[0])]: loss / factor}}

    def state(self) -> dict[str, Any]:
        """Return nothing: the data order is a function of the step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up nothing."""
