"""Which forward and backward passes a step makes, counted by the code that packs them in training."""

import numpy as np

from tdro.config import Study
from tdro.models.packing import pack
from tdro.training.budget import Budget
from tdro.training.estimate_speed import Speeds
from tdro.training.estimate_texts import StudyTexts


def contrastive_step(length_n: np.ndarray, speeds: Speeds, budget: Budget) -> dict[str, float]:
    """Return the seconds of the passes of a step of stage 0 or 2, by kind.

    What fits into the memory for graphs is passed once, forward and backward; the rest is passed forward once more.

    Args:
        length_n: Tokens of each text of the step.
        speeds: Of this machine.
        budget: Tokens of a pass.
    """
    padded_g, token_g, longest_g = _passes(length_n, budget.max_tokens, speeds.pads)
    room_g = np.cumsum(padded_g[::-1])[::-1]
    again_g = room_g > budget.graph_tokens
    again_g[-1] = False
    return {
        "forward and backward passes": speeds.backward.of(token_g, longest_g),
        "first passes of the gradient cache": speeds.forward.of(token_g[again_g], longest_g[again_g]),
    }


def own_step(length_BN: np.ndarray, max_tokens: int, pads: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and longest text of the passes of a step whose queries see their own passages only.

    Args:
        length_BN: Tokens of each query and its passages.
        max_tokens: Tokens of a micro-batch, which is passed in four parts.
        pads: Whether padding counts.
    """
    quarter = max(max_tokens // 4, 1)
    found = [_passes(length_BN[group].ravel(), quarter, pads) for group in pack(length_BN.sum(1), max_tokens)]
    return np.concatenate([tokens for _, tokens, _ in found]), np.concatenate([longest for *_, longest in found])


def step_tokens(study: Study, texts: StudyTexts) -> int:
    """Return about how many tokens a step of stages 0 and 2 has."""
    config, datasets = study.reference, texts.datasets.values()
    query, passage = (np.mean([np.mean(getattr(d, n)) for d in datasets]) for n in ("query_n", "positive_n"))
    return int(config.batch_size * (query + config.passages_per_query * passage))


def _passes(length_n: np.ndarray, max_tokens: int, pads: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens with padding, tokens that are computed, and the longest text of the passes of texts."""
    groups = pack(length_n, max_tokens)
    longest_g = np.array([length_n[group].max() for group in groups])
    padded_g = np.array([len(group) for group in groups]) * longest_g
    return padded_g, padded_g if pads else np.array([length_n[group].sum() for group in groups]), longest_g
