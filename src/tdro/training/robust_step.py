"""Stage 1: the proxy descends on the weighted loss, then the weights move by what its losses show."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.config import WeightsConfig
from tdro.core.groups import GroupStatistics, group_statistics
from tdro.core.losses import hard_negative_loss, own_similarities
from tdro.core.objective import pooled_example_weights
from tdro.core.projection import Bounds, caps_from_epochs
from tdro.core.rule import Rule, StepLosses
from tdro.core.updates import WeightState, initial_state
from tdro.data.mixture import MixedMixture
from tdro.devices import Device
from tdro.errors import ConfigError, TdroError
from tdro.models.encoder import embed
from tdro.models.packing import pack
from tdro.training.schedule import learning_rate_share
from tdro.training.texts import StepTexts, TextSource


def make_rule(config: WeightsConfig, sizes: Mapping[str, int], examples: int) -> Rule:
    """Turn a study's settings into a rule.

    Args:
        config: Settings.
        sizes: Dataset -> rows.
        examples: Queries that the robust run draws; for `max_epochs`.

    Raises:
        ConfigError: Floors and caps leave no weights, or a target is for an unknown dataset.
    """
    names = list(sizes)
    for name in config.targets:
        if name not in sizes:
            raise ConfigError(
                "target for an unknown dataset", where="weights.targets", saw=name, do="see data.datasets"
            )
    try:
        high_G = np.full(len(names), config.cap)
        if config.max_epochs is not None:
            high_G = np.minimum(high_G, caps_from_epochs(sizes, config.max_epochs, examples))
        bounds = Bounds(np.full(len(names), config.floor), high_G)
    except ValueError as error:
        do = "lower weights.floor, or raise weights.cap or weights.max_epochs"
        raise ConfigError(str(error), where="weights", do=do) from None
    return Rule(
        config.measure,
        config.update,
        prior_G=np.full(len(names), 1 / len(names)),
        target_G=np.array([config.targets.get(name, 0.0) for name in names]),
        clip=config.clip,
        clip_norm=config.clip_norm,
        shrinkage=config.shrinkage,
        mix=config.mix,
        pull=config.pull,
        bounds=bounds if config.floor > 0 or (high_G < 1).any() else None,
    )


def start_state(rule: Rule, n_groups: int) -> WeightState:
    """Start from uniform weights, within the bounds."""
    uniform_G = np.full(n_groups, 1 / n_groups)
    return initial_state(rule.bounds.project(uniform_G) if rule.bounds else uniform_G)


class RobustStep:
    """One step of stage 1, and the weights as its state.

    The loss of a query needs only its own passages, so micro-batches are accumulated plainly. The weights are fixed
    within a step: the proxy descends on sum_g alpha_g * mean loss of g, then the weights are updated.

    Args:
        proxy: The model in training.
        reference: The frozen reference.
        source: Texts.
        mixture: Data order.
        names: Datasets, in the order of the mixture.
        config: Settings of the stage.
        rule: How losses become weights.
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
        rule: Rule,
        device: Device,
        max_tokens: int,
    ) -> None:
        self._proxy, self._reference = proxy, reference.eval().requires_grad_(False)
        self._source, self._mixture, self._names = source, mixture, names
        self._config, self._rule, self._device, self._max_tokens = config, rule, device, max_tokens
        self.weights: WeightState = start_state(rule, len(names))
        self._initial_loss_G = np.full(len(names), np.nan)

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the proxy's gradients and update the weights."""
        draw = self._mixture.draw(step)
        texts = self._source.texts(draw, self._config.passages_per_query)
        group_B = torch.from_numpy(draw.dataset_B)
        alpha_G, count_G = torch.from_numpy(self.weights.weights_G), torch.bincount(group_B, minlength=len(self._names))
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
        self._refuse_bad(statistics, step)
        unseen_G = np.isnan(self._initial_loss_G) & statistics.present_G
        self._initial_loss_G = np.where(unseen_G, statistics.proxy_mean_G, self._initial_loss_G)
        seen = StepLosses(statistics, proxy_B.numpy(), reference_B.numpy(), draw.dataset_B)
        try:
            signal_G = self._rule.signal(seen, self._initial_loss_G)
        except ValueError as error:
            without = statistics.present_G & (statistics.reference_mean_G == 0)
            names = [name for name, zero in zip(self._names, without, strict=True) if zero]
            do = "set weights.shrinkage above 0"
            raise TdroError(str(error), where=f"weights, step {step}, {', '.join(names)}", do=do) from None
        self.weights = self._rule.move(self.weights, signal_G, self._step_size(step), statistics.present_G)
        return {
            "loss": float((factor_B * proxy_B).sum()),
            "losses": dict(zip(self._names, statistics.proxy_mean_G.tolist(), strict=True)),
            "weights": self.weights.weights_G.tolist(),
            "signal": signal_G.tolist(),
            "statistics": statistics.sums_GC.tolist(),
        }

    def state(self) -> dict[str, Any]:
        """Return the weights and their averages."""
        weights = self.weights
        return {
            "log_weights": weights.log_weights_G.tolist(),
            "mean": weights.mean_G.tolist(),
            "ema": weights.ema_G.tolist(),
            "updates": weights.updates,
            "memory": {name: values.tolist() for name, values in weights.memory.items()},
            "initial_loss": self._initial_loss_G.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up weights and averages."""
        log_G, mean_G, ema_G = (np.array(state[key]) for key in ("log_weights", "mean", "ema"))
        memory = {name: np.array(values) for name, values in state["memory"].items()}
        self.weights = WeightState(log_G, mean_G, ema_G, state["updates"], memory)
        self._initial_loss_G = np.array(state["initial_loss"])

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

    def _step_size(self, step: int) -> float:
        """Step size of the weights at a step."""
        config = self._config
        share = learning_rate_share(
            step, config.steps, config.step_warmup, config.step_schedule, config.final_step_share
        )
        return config.step_size * share

    def _refuse_bad(self, statistics: GroupStatistics, step: int) -> None:
        """Stop on losses that are not finite, naming their datasets."""
        if statistics.bad_G.any():
            bad = {name: int(n) for name, n in zip(self._names, statistics.bad_G, strict=True) if n}
            do = "lower weights.learning_rate or raise weights.temperature"
            raise TdroError("losses are not finite", where=f"weights, step {step}", saw=bad, do=do)


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
