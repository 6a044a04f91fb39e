"""A whole way to learn weights, as one value: measure, clip, update, bounds. Used in training and offline alike."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from tdro.core import measures, updates
from tdro.core.groups import GroupStatistics
from tdro.core.projection import Bounds
from tdro.core.updates import WeightState

Measure = Literal[
    "relative", "relative-sample", "excess", "excess-sample", "excess-relative", "raw", "initial", "target"
]
Update = Literal["eg", "eg-mix", "anchored", "sgd", "adamw", "rmsprop", "adagrad", "adafactor"]
Clip = Literal["l2", "element", "none"]
SAMPLE_MEASURES = ("relative-sample", "excess-sample")
"""Measures that need the losses of every example; the others need sums per group only."""


@dataclass(frozen=True)
class StepLosses:
    """What a step has seen: sums per group and, for the measures that need them, the losses of every example.

    Attributes:
        statistics: Sums per group.
        proxy_B: Proxy losses in nats.
        reference_B: Reference losses of the same examples.
        group_B: int, their groups.
    """

    statistics: GroupStatistics
    proxy_B: np.ndarray
    reference_B: np.ndarray
    group_B: np.ndarray


@dataclass(frozen=True)
class Rule:
    """How losses become weights.

    Attributes:
        measure: What is measured per group.
        update: How the weights follow.
        clip: "l2" scales the signal down to `clip_norm`, "element" clips every element, "none" does nothing.
        clip_norm: Limit of the clip.
        shrinkage: Nats added to both means of a ratio.
        reference_norm: Norm over the batch that "relative-sample" divides reference losses by; 0: none.
        mix: Share of the prior in every step of "eg-mix".
        pull: lambda of "anchored".
        momentum: Share of the earlier signals in the direction of "sgd".
        decay: Weight decay of the optimizers on log-weights.
        betas: Decay of the first and second moment of "adamw".
        alpha: Decay of the squares of "rmsprop".
        epsilon: Added to the root of the squares of "adamw", "rmsprop" and "adagrad".
        ema: Share of the new weights in their moving average.
        prior_G: The prior of "eg-mix" and "anchored".
        target_G: Losses that "target" measures against.
        bounds: Floors and caps; None for none.
    """

    measure: Measure
    update: Update
    prior_G: np.ndarray
    target_G: np.ndarray
    clip: Clip = "l2"
    clip_norm: float = 1.0
    shrinkage: float = 0.0
    reference_norm: int = 1
    mix: float = 0.1
    pull: float = 1.0
    momentum: float = 0.0
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    alpha: float = 0.99
    epsilon: float = 1e-8
    ema: float = 0.1
    bounds: Bounds | None = None

    def signal(self, losses: StepLosses, initial_loss_G: np.ndarray) -> np.ndarray:
        """Measure every group, before clipping.

        Args:
            losses: Of this step.
            initial_loss_G: Mean loss of each group when it was first seen; "initial" measures against it.

        Returns:
            [G] float64, 0 for absent groups.
        """
        statistics = losses.statistics
        examples = (losses.proxy_B, losses.reference_B, losses.group_B, len(statistics.count_G))
        match self.measure:
            case "relative":
                return measures.relative(statistics, self.shrinkage)
            case "relative-sample":
                return measures.sample_measure(*examples, p_norm=self.reference_norm)
            case "excess":
                return measures.excess(statistics)
            case "excess-sample":
                return measures.sample_measure(*examples, subtract=True, divide=False)
            case "excess-relative":
                return measures.excess_relative(statistics, self.shrinkage)
            case "raw":
                return measures.raw(statistics)
            case "initial":
                return measures.initial(statistics, initial_loss_G, self.shrinkage)
            case "target":
                return measures.target(statistics, self.target_G)

    def move(self, state: WeightState, signal_G: np.ndarray, step_size: float, present_G: np.ndarray) -> WeightState:
        """Clip a signal and let the weights follow it."""
        if self.clip == "l2":
            signal_G = updates.clip_l2(signal_G, self.clip_norm)
        elif self.clip == "element":
            signal_G = updates.clip_elements(signal_G, self.clip_norm)
        if self.update == "eg":
            follow = updates.eg
        elif self.update == "eg-mix":
            follow = partial(updates.eg_mix, prior_G=self.prior_G, mix=self.mix)
        elif self.update == "anchored":
            follow = partial(updates.anchored, prior_G=self.prior_G, pull=self.pull)
        else:
            follow = partial(updates.optimizer_step, optimizer=self.update, **self._optimizer_settings())
        return follow(state, signal_G, step_size, present_G, bounds=self.bounds, ema_decay=self.ema)

    def _optimizer_settings(self) -> dict[str, Any]:
        """Name the settings as the optimizer has them."""
        of_all = {"weight_decay": self.decay}
        match self.update:
            case "sgd":  # dampening makes the direction a mean: momentum alone sums up to 1 / (1 - momentum) signals
                return {**of_all, "momentum": self.momentum, "dampening": self.momentum}
            case "adamw":
                return {**of_all, "betas": self.betas, "eps": self.epsilon}
            case "rmsprop":
                return {**of_all, "alpha": self.alpha, "eps": self.epsilon}
            case "adagrad":
                return {**of_all, "eps": self.epsilon}
        return of_all
