"""Options of the weights section reach the rule, and one that an update would not read is refused."""

import numpy as np
import pytest

from tdro.config import WeightsConfig
from tdro.errors import ConfigError
from tdro.training.replay import learn_weights
from tdro.training.weight_learner import make_rule

RANDOM = np.random.default_rng(0)
LOSSES = {
    "step": np.repeat(np.arange(8), 30),
    "dataset": np.tile(["one", "two", "three"], 80),
    "proxy_loss": RANDOM.gamma(1, 2, 240),
    "reference_loss": RANDOM.gamma(1, 1, 240) + 0.05,
}
OPTIONS = [
    ({"measure": "relative-sample"}, {"reference_norm": 0}),
    ({"measure": "relative-sample"}, {"reference_norm": 2}),
    ({"update": "sgd"}, {"momentum": 0.8}),
    ({"update": "sgd"}, {"rule_decay": 0.5}),
    ({"update": "adamw"}, {"rule_decay": 0.5}),
    ({"update": "adamw"}, {"rule_betas": (0.2, 0.5)}),
    ({"update": "adamw"}, {"rule_epsilon": 0.1}),
    ({"update": "rmsprop"}, {"rule_alpha": 0.3}),
    ({"update": "rmsprop"}, {"rule_epsilon": 0.1}),
    ({"update": "adagrad"}, {"rule_epsilon": 0.1}),
    ({"update": "adafactor"}, {"rule_decay": 0.5}),
]


@pytest.mark.parametrize(("given", "change"), OPTIONS)
def test_every_option_of_the_rule_changes_the_weights(given, change):
    settings = {"measure": "relative", "step_size": 1e-3 if "measure" in given else 0.3, "clip": "none", **given}
    before, after = (learn_weights(LOSSES, **settings, **more).exported() for more in ({}, change))
    assert max(abs(after[name] - before[name]) for name in before) > 1e-4


def test_ema_changes_the_moving_average_alone():
    slow, fast = (learn_weights(LOSSES, step_size=0.5, ema=share) for share in (0.1, 0.9))
    assert slow.exported("last") == fast.exported("last") and slow.exported("mean") == fast.exported("mean")
    assert fast.exported("ema") != slow.exported("ema")
    assert learn_weights(LOSSES, step_size=0.5, ema=1.0).exported("ema") == pytest.approx(fast.exported("last"))


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.5},
        {"update": "adamw", "momentum": 0.5},
        {"update": "anchored", "rule_decay": 0.1},
        {"rule_decay": 0.1},
    ],
)
def test_what_an_update_does_not_read_is_refused(settings):
    with pytest.raises(ConfigError, match="has no"):
        make_rule(WeightsConfig(**settings), {"a": 1, "b": 1}, 1)
