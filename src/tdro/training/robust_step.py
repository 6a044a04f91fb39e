"""Stage 1: the proxy descends on the weighted loss, then the weights move by what its losses show."""

from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.config import WeightsConfig
from tdro.core.groups import group_statistics
from tdro.core.losses import hard_negative_loss, own_similarities
from tdro.core.objective import pooled_example_weights
from tdro.core.rule import StepLosses
from tdro.data.mixture import Draw, MixedMixture
from tdro.devices import Device
from tdro.models.encoder import embed
from tdro.models.packing import pack
from tdro.training.texts import StepTexts, TextSource
from tdro.training.weight_learner import WeightLearner


class RobustStep:
    """One step of stage 1: gradients of the proxy, and losses for the learner, which is its state.

    The loss of a query needs only its own passages, so micro-batches are accumulated plainly. The weights are fixed
    within a step: the proxy descends on sum_g alpha_g * mean loss of g, then the weights are updated.

    Args:
        proxy: The model in training.
        reference: The frozen reference.
        source: Texts.
        mixture: Data order.
        names: Datasets, in the order of the mixture.
        config: Settings of the stage.
        learner: Turns losses into weights.
        device: Where and in which precision.
        max_tokens: Tokens of a micro-batch.

    Source: paper, equations (1) to (5). Departure: in the released code the last micro-batch of a step already sees the
    new weights, and each rank normalises by its own examples.
    """

    def __init__(
        self,
        proxy: SentenceTransformer,
        reference: SentenceTransformer,
        source: TextSource,
        mixture: MixedMixture,
        names: list[str],
        config: WeightsConfig,
        learner: WeightLearner,
        device: Device,
        max_tokens: int,
    ) -> None:
        self._proxy, self._reference = proxy, reference.eval().requires_grad_(False)
        self._source, self._mixture, self._names = source, mixture, names
        self._config, self._device, self._max_tokens = config, device, max_tokens
        self.learner = learner

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the proxy's gradients and update the weights."""
        draw = self._mixture.draw(step)
        texts = self._source.texts(draw, self._config.passages_per_query)
        group_B = torch.from_numpy(draw.dataset_B)
        alpha_G, count_G = (
            torch.from_numpy(self.learner.weights.weights_G),
            torch.bincount(group_B, minlength=len(self._names)),
        )
        factor_B = pooled_example_weights(alpha_G, count_G, group_B)
        proxy_B, reference_B = torch.empty(len(group_B)).double(), torch.empty(len(group_B)).double()
        for number, query_m in enumerate(_micro_batches(texts, self._max_tokens)):
            torch.manual_seed(step_seed + number)
            losses = self._losses(self._proxy, texts, query_m)
            (losses * factor_B[query_m].to(losses)).sum().backward()
            with torch.inference_mode():
                reference_B[query_m] = self._losses(self._reference, texts, query_m).double().cpu()
            proxy_B[query_m] = losses.detach().double().cpu()
        statistics = group_statistics(proxy_B, reference_B, group_B, len(self._names))
        signal_G = self.learner.update(
            step, StepLosses(statistics, proxy_B.numpy(), reference_B.numpy(), draw.dataset_B)
        )
        return {
            "loss": float((factor_B * proxy_B).sum()),
            "losses": dict(zip(self._names, statistics.proxy_mean_G.tolist(), strict=True)),
            "weights": self.learner.weights.weights_G.tolist(),
            "signal": signal_G.tolist(),
            "statistics": statistics.sums_GC.tolist(),
            **(self._example_losses(draw, proxy_B, reference_B) if self._config.keep_losses else {}),
        }

    @staticmethod
    def _example_losses(draw: Draw, proxy_B: Tensor, reference_B: Tensor) -> dict[str, list[float]]:
        """The losses of every query of a step, for the journal."""
        return {
            "groups": draw.dataset_B.tolist(),
            "proxy_losses": proxy_B.tolist(),
            "reference_losses": reference_B.tolist(),
        }

    def state(self) -> dict[str, Any]:
        """Return the weights, their averages and what their rule remembers."""
        return self.learner.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the weights."""
        self.learner.restore(state)

    def _losses(self, model: SentenceTransformer, texts: StepTexts, query_m: Tensor) -> Tensor:
        """Losses of some queries of the step under a model."""
        start_B = texts.positive_B.tolist()
        own = [p for q in query_m.tolist() for p in range(start_B[q], start_B[q] + int(texts.count_B[q]))]
        tokens = [texts.queries_B[q] for q in query_m] + [texts.passages_P[p] for p in own]
        embedding_nD = _embed_packed(model, tokens, self._device, max(self._max_tokens // 4, 1))
        similarity_BN = own_similarities(
            embedding_nD[: len(query_m)], embedding_nD[len(query_m) :], texts.count_B[query_m].to(embedding_nD.device)
        )
        return hard_negative_loss(similarity_BN, self._config.temperature)


def _micro_batches(texts: StepTexts, max_tokens: int) -> list[Tensor]:
    """Cut the queries of a step into groups of similar length whose texts hold at most `max_tokens` tokens."""
    passage_tokens = np.array([len(tokens) for tokens in texts.passages_P])
    ends = texts.count_B.cumsum(0).numpy()
    per_query = np.add.reduceat(passage_tokens, ends - texts.count_B.numpy())
    per_query += np.array([len(tokens) for tokens in texts.queries_B])
    return [torch.from_numpy(group) for group in pack(per_query, max_tokens)]


def _embed_packed(model: SentenceTransformer, tokens: list[list[int]], device: Device, max_tokens: int) -> Tensor:
    """Embed texts in passes of similar length, with graph if gradients are on, in the order given."""
    groups = pack(np.array([len(t) for t in tokens]), max_tokens)
    with device.precision():
        embedding_nD = torch.cat([embed(model, [tokens[i] for i in group]) for group in groups])
    return embedding_nD[torch.from_numpy(np.argsort(np.concatenate(groups))).to(embedding_nD.device)]
