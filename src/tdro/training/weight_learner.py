"""The weights' side of stage 1: a rule, its state, and one update per step. Knows no model, so it also replays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tdro.config import WeightsConfig
from tdro.core.groups import GroupStatistics
from tdro.core.projection import Bounds, caps_from_epochs
from tdro.core.rule import Rule, StepLosses
from tdro.core.updates import WeightState, initial_state
from tdro.errors import ConfigError, TdroError
from tdro.training.schedule import learning_rate_share


def make_rule(config: WeightsConfig, sizes: Mapping[str, int], examples: int) -> Rule:
    """Turn a study's settings into a rule.

    Args:
        config: Settings.
        sizes: Dataset -> rows.
        examples: Queries that the robust run draws; for `max_epochs`.

    Raises:
        ConfigError: Floors and caps leave no weights, or an option has no effect.
    """
    _refuse_unread(config)
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
        reference_norm=config.reference_norm,
        mix=config.mix,
        pull=config.pull,
        momentum=config.momentum,
        decay=config.rule_decay,
        betas=config.rule_betas,
        alpha=config.rule_alpha,
        epsilon=config.rule_epsilon,
        ema=config.ema,
        bounds=bounds if config.floor > 0 or (high_G < 1).any() else None,
    )


def _refuse_unread(config: WeightsConfig) -> None:
    """Refuse momentum and weight decay where the update knows none."""
    if config.momentum and config.update != "sgd":
        do = "set weights.update: sgd, or leave it out"
        raise ConfigError(f"{config.update} has no momentum", where="weights.momentum", saw=config.momentum, do=do)
    if config.rule_decay and config.update in ("eg", "eg-mix", "anchored"):
        do = "set weights.update: sgd, which is eg with weight decay, or leave it out"
        what = f"{config.update} has no weight decay"
        raise ConfigError(what, where="weights.rule_decay", saw=config.rule_decay, do=do)


class WeightLearner:
    """Turns the losses of one step after the other into weights, from uniform ones on.

    Args:
        names: Datasets, in the order of the groups.
        config: Settings of the weights stage.
        rule: How losses become weights; see `make_rule`.

    Attributes:
        weights: Weights and their averages after the steps so far.
    """

    def __init__(self, names: list[str], config: WeightsConfig, rule: Rule) -> None:
        self._names, self._config, self._rule = names, config, rule
        uniform_G = np.full(len(names), 1 / len(names))
        self.weights: WeightState = initial_state(rule.bounds.project(uniform_G) if rule.bounds else uniform_G)
        self._initial_loss_G = np.full(len(names), np.nan)
        self._bad_G, self._seen_G = np.zeros(len(names)), np.zeros(len(names))

    def update(self, step: int, losses: StepLosses) -> np.ndarray:
        """Move the weights by what a step has seen.

        Args:
            step: From 0; decides the step size.
            losses: Of this step.

        Returns:
            [G] the signal before clipping.

        Raises:
            TdroError: Too many losses were not finite, or a ratio divides by 0; with step and datasets.
        """
        statistics = losses.statistics
        self.refuse_too_many_bad(step, statistics)
        unseen_G = np.isnan(self._initial_loss_G) & statistics.present_G
        self._initial_loss_G = np.where(unseen_G, statistics.proxy_mean_G, self._initial_loss_G)
        try:
            signal_G = self._rule.signal(losses, self._initial_loss_G)
        except ValueError as error:
            without = statistics.present_G & (statistics.reference_mean_G == 0)
            names = [name for name, zero in zip(self._names, without, strict=True) if zero]
            do = "set weights.shrinkage above 0"
            raise TdroError(str(error), where=f"weights, step {step}, {', '.join(names)}", do=do) from None
        try:
            self.weights = self.moved(self.weights, signal_G, step, statistics.present_G)
        except ValueError as error:
            raise TdroError(str(error), where=f"weights, step {step}", do="look at the losses of this step") from None
        return signal_G

    def refuse_too_many_bad(self, step: int, statistics: GroupStatistics) -> None:
        """Count the losses that were dropped as not finite.

        Raises:
            TdroError: A dataset has lost more than one, and more than `max_bad_share` of its losses so far.
        """
        self._bad_G = self._bad_G + statistics.bad_G
        self._seen_G = self._seen_G + statistics.bad_G + statistics.count_G
        bad = {
            name: f"{n:.0f} of {seen:.0f}"
            for name, n, seen in zip(self._names, self._bad_G, self._seen_G, strict=True)
            if n > self._config.max_bad_share * seen and n > 1
        }
        if bad:
            do = "look at their rows, lower weights.learning_rate, raise weights.temperature or weights.max_bad_share"
            raise TdroError("losses are not finite", where=f"weights, step {step}", saw=bad, do=do)

    def moved(self, weights: WeightState, signal_G: np.ndarray, step: int, present_G: np.ndarray) -> WeightState:
        """Return weights as a signal would move them in a step; changes nothing here."""
        return self._rule.move(weights, signal_G, self._step_size(step), present_G)

    def state(self) -> dict[str, Any]:
        """Return everything the next update depends on, as JSON."""
        weights = self.weights
        return {
            "log_weights": weights.log_weights_G.tolist(),
            "mean": weights.mean_G.tolist(),
            "ema": weights.ema_G.tolist(),
            "updates": weights.updates,
            "memory": {name: values.tolist() for name, values in weights.memory.items()},
            "initial_loss": self._initial_loss_G.tolist(),
            "bad": self._bad_G.tolist(),
            "seen": self._seen_G.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        log_G, mean_G, ema_G = (np.array(state[key]) for key in ("log_weights", "mean", "ema"))
        memory = {name: np.array(values) for name, values in state["memory"].items()}
        self.weights = WeightState(log_G, mean_G, ema_G, state["updates"], memory)
        self._initial_loss_G, self._bad_G, self._seen_G = (
            np.array(state[key]) for key in ("initial_loss", "bad", "seen")
        )

    def _step_size(self, step: int) -> float:
        """Step size of the weights at a step."""
        config = self._config
        share = learning_rate_share(
            step, config.steps, config.step_warmup, config.step_schedule, config.final_step_share
        )
        return config.step_size * share
