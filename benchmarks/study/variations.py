"""Ways of learning weights that differ in one thing from that of the study."""

from collections.abc import Mapping
from typing import Any

from study.learning import Changes, learned_weights
from tdro.config import Study

AS_IN_THE_STUDY = "as in the study"
VARIATIONS: dict[str, Changes] = {
    AS_IN_THE_STUDY: {},
    "step size .02": {"weights": {"step_size": 0.02}},
    "step size .2": {"weights": {"step_size": 0.2}},
    "50 steps": {"weights": {"steps": 50, "warmup_steps": 5}},
    "800 steps": {"weights": {"steps": 800}},
    "one negative": {"weights": {"passages_per_query": 2}},
    "eight negatives": {"weights": {"passages_per_query": 9}},
    "temperature .02": {"weights": {"temperature": 0.02}},
    "temperature .2": {"weights": {"temperature": 0.2}},
    "stratified batches": {"weights": {"sampling": "stratified"}},
    "held-out rows": {"weights": {"held_out_share": 0.1, "signal": "held-out"}},
    "anchored": {"weights": {"update": "anchored"}},
    "no clip": {"weights": {"clip": "none"}},
    "reference of 50 steps": {"reference": {"steps": 50, "warmup_steps": 5}},
    "reference of 1500 steps": {"reference": {"steps": 1500}},
    "cheap": {
        "reference": {"steps": 50, "warmup_steps": 5},
        "weights": {"steps": 50, "warmup_steps": 5, "passages_per_query": 2},
    },
}
OF_RATIOS: dict[str, Changes] = {
    "shrinkage .1": {"weights": {"shrinkage": 0.1}},
    "shrinkage 1": {"weights": {"shrinkage": 1.0}},
}
"""Variations that only `relative` knows."""


def learned_in(study: Study, seed: int, measure: str, variation: str = AS_IN_THE_STUDY) -> Mapping[str, Any]:
    """Learn weights in one of these ways, unless that is done; returns what `learned_weights` does."""
    changes = {**VARIATIONS, **OF_RATIOS}[variation]
    full = {**changes, "weights": {**changes.get("weights", {}), "measure": measure}}
    return learned_weights(study, seed, measure if not changes else f"{measure} {variation}", full)
