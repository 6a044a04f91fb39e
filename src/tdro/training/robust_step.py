"""Stage 1: the proxy descends on the weighted loss, then the weights move by what its losses show."""

from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.config import WeightsConfig
from tdro.core.groups import group_statistics
from tdro.core.histogram import loss_histogram
from tdro.core.losses import by_query
from tdro.core.objective import pooled_example_weights
from tdro.core.rule import StepLosses
from tdro.data.mixture import Draw
from tdro.devices import ALONE, Device, Ranks
from tdro.training.own_similarities import deal, similarities, similarities_of_all
from tdro.training.prefetch import Prefetch
from tdro.training.query_loss import query_loss
from tdro.training.reference_scores import Batches, ReferenceScores
from tdro.training.texts import StepTexts
from tdro.training.weight_learner import WeightLearner

ATTEMPTS = 3
"""How often a step is done again without the queries whose loss was not finite."""


class RobustStep:
    """One step of stage 1: gradients of the proxy, and losses for the learner, which is its state.

    The loss of a query needs only its own passages, so micro-batches are accumulated plainly; with distillation the
    divergence from the passages' scores is part of it, for proxy and reference alike. The weights are fixed
    within a step: the proxy descends on sum_g alpha_g * mean loss of g, then the weights are updated. One transfer per
    step brings the losses from the device. Where one of them is not finite, the step is done again without its query.

    Args:
        proxy: The model in training.
        batches: Data order and texts.
        reference: The frozen reference's similarities for these batches.
        config: Settings of the stage.
        learner: Turns losses into weights.
        device: Where and in which precision.
        max_tokens: Tokens of a micro-batch.
        held_out: Batches of held-out rows and the reference's similarities for them, to measure on every
            `config.held_out_every` steps.
        ranks: Who shares the work: each takes some micro-batches, and all know the losses of all.

    Source: paper, equations (1) to (5). Departure: in the released code the last micro-batch of a step already sees the
    new weights, and each rank normalises by its own examples.
    """

    def __init__(
        self,
        proxy: SentenceTransformer,
        batches: Batches,
        reference: ReferenceScores,
        config: WeightsConfig,
        learner: WeightLearner,
        device: Device,
        max_tokens: int,
        held_out: tuple[Batches, ReferenceScores] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._proxy, self._batches, self._reference = proxy, batches, reference
        self._config, self._device, self._max_tokens, self._held_out = config, device, max_tokens, held_out
        self._names, self._ranks, self._loss = list(batches.rows), ranks, query_loss(config)
        self._drawn = Prefetch(lambda step: batches.drawn(step, config.passages_per_query), config.steps)
        self.learner = learner

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the proxy's gradients and update the weights."""
        draw, texts = self._drawn(step)
        reference_B, misranked_B = self._look_at(self._reference.similarities(step, draw, texts), texts)
        proxy_B, factor_B = self._descend(texts, torch.from_numpy(draw.dataset_B), reference_B.isfinite(), step_seed)
        losses = self._losses(draw, proxy_B, reference_B)
        held_out: StepLosses | None = None
        if self._held_out is not None and step % self._config.held_out_every == 0:
            held_out = self._measure_held_out(step // self._config.held_out_every)
        moving: StepLosses | None = losses
        if self._config.signal == "held-out":
            self.learner.refuse_too_many_bad(step, losses.statistics)
            moving = held_out
        signal_G = self.learner.update(step, moving) if moving is not None else None
        misranked_G = np.bincount(draw.dataset_B, misranked_B.double().numpy(), len(self._names))
        used_B = factor_B > 0
        return {
            "loss": float((factor_B * proxy_B)[used_B].sum()),
            "losses": dict(zip(self._names, losses.statistics.proxy_mean_G.tolist(), strict=True)),
            "weights": self.learner.weights.weights_G.tolist(),
            "misranked": misranked_G.tolist(),
            "reference_histogram": loss_histogram(losses.reference_B, draw.dataset_B, len(self._names)).tolist(),
            **({} if signal_G is None else {"signal": signal_G.tolist()}),
            **self._record(losses),
            **({} if held_out is None else {"held_out": self._record(held_out)}),
        }

    def state(self) -> dict[str, Any]:
        """Return the weights, their averages and what their rule remembers."""
        return self.learner.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the weights."""
        self.learner.restore(state)

    def _descend(self, texts: StepTexts, group_B: Tensor, good_B: Tensor, step_seed: int) -> tuple[Tensor, Tensor]:
        """Accumulate gradients over the queries whose losses are finite; return [B] losses and the factors they had."""
        alpha_G = torch.from_numpy(self.learner.weights.weights_G)
        for _ in range(ATTEMPTS):
            count_G = torch.bincount(group_B[good_B], minlength=len(self._names))
            factor_B = pooled_example_weights(alpha_G, count_G, group_B).where(good_B, 0.0)
            proxy_B = self._accumulate(texts, good_B, factor_B, step_seed)
            bad_B = good_B & ~proxy_B.isfinite()
            if not bad_B.any():
                break
            self._proxy.zero_grad(set_to_none=True)
            good_B = good_B & ~bad_B
        return proxy_B, factor_B

    def _accumulate(self, texts: StepTexts, good_B: Tensor, factor_B: Tensor, step_seed: int) -> Tensor:
        """Do the forward and backward passes of the good queries; return [B] losses, NaN for the others."""
        queries, losses, score_BN = [], [], by_query(texts.score_P, texts.count_B)
        for number, query_m, passes in deal(self._proxy, texts, self._max_tokens, self._ranks, good_B):
            torch.manual_seed(step_seed + number)
            similarity_mN = similarities(self._proxy, texts, query_m, self._device, self._max_tokens, passes)
            score_mN = score_BN[query_m, : similarity_mN.shape[1]].to(similarity_mN.device)
            loss_m = self._loss.of_own(similarity_mN, score_mN)
            (loss_m * factor_B[query_m].to(loss_m)).sum().backward()
            queries.append(query_m)
            losses.append(loss_m.detach())
        proxy_B = torch.zeros(len(good_B), dtype=torch.float64)
        if queries:
            proxy_B[torch.cat(queries)] = torch.cat(losses).cpu().double()
        self._ranks.add([proxy_B])
        return proxy_B.where(good_B, torch.nan)

    def _measure_held_out(self, number: int) -> StepLosses:
        """Measure the losses on a batch of held-out rows, without gradient and without dropout."""
        assert self._held_out is not None
        batches, reference = self._held_out
        draw, texts = batches.drawn(number, self._config.passages_per_query)
        reference_B, _ = self._look_at(reference.similarities(number, draw, texts), texts)
        similarity_BN = similarities_of_all(self._proxy, texts, self._device, self._max_tokens, self._ranks)
        return self._losses(draw, self._look_at(similarity_BN, texts)[0], reference_B)

    def _look_at(self, similarity_BN: Tensor, texts: StepTexts) -> tuple[Tensor, Tensor]:
        """Return [B] losses in float64, and whether a negative is more similar to the query than the positive."""
        best_B = similarity_BN[:, 1:].amax(1) if similarity_BN.shape[1] > 1 else similarity_BN[:, 0]
        loss_B = self._loss.of_own(similarity_BN, by_query(texts.score_P, texts.count_B))
        return loss_B.double(), best_B > similarity_BN[:, 0]

    def _losses(self, draw: Draw, proxy_B: Tensor, reference_B: Tensor) -> StepLosses:
        """Put together what a batch has shown."""
        statistics = group_statistics(proxy_B, reference_B, torch.from_numpy(draw.dataset_B), len(self._names))
        return StepLosses(statistics, proxy_B.numpy(), reference_B.numpy(), draw.dataset_B)

    def _record(self, losses: StepLosses) -> dict[str, Any]:
        """What the journal keeps of the losses of a batch."""
        kept: dict[str, Any] = {"statistics": losses.statistics.sums_GC.tolist()}
        if self._config.keep_losses:
            kept["groups"] = losses.group_B.tolist()
            kept["proxy_losses"] = losses.proxy_B.tolist()
            kept["reference_losses"] = losses.reference_B.tolist()
        return kept
