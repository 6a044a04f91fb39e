"""Two halves of every evaluation set: what is decided on one is reported on the other."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Half = Literal["choice", "report", "all"]
"""Queries on which choices are made, those that are reported, or both."""


def choice_half(query_ids: Sequence[str]) -> np.ndarray:
    """Tell which queries belong to the half on which choices are made; the others are for what is reported.

    A query's half follows from the hash of its id alone, so it never changes, whatever else is in the set.

    Args:
        query_ids: Q ids.

    Returns:
        Bool [Q].

    Example:
        >>> choice_half(["q1", "q2", "q3", "q4"]).tolist()
        [False, True, False, True]
    """
    return _coin(query_ids, 0)


def other_half(query_ids: Sequence[str]) -> np.ndarray:
    """Split queries in another way, which knows nothing of `choice_half`: to see whether both sides say the same.

    Args:
        query_ids: Q ids.

    Returns:
        Bool [Q].
    """
    return _coin(query_ids, 1)


def queries_of(half: Half, query_ids: Sequence[str]) -> np.ndarray:
    """Tell which queries belong to a half, bool [Q]."""
    return {
        "choice": choice_half(query_ids),
        "report": ~choice_half(query_ids),
        "all": np.ones(len(query_ids), bool),
    }[half]


def half_means(scores: Mapping[str, np.ndarray], chosen: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Average the scores of the chosen queries of every task.

    Args:
        scores: Task, or task/part -> score per query.
        chosen: The same -> bool, which queries count; a task without any is left out.
    """
    return {label: float(score_Q[chosen[label]].mean()) for label, score_Q in scores.items() if chosen[label].any()}


def _coin(query_ids: Sequence[str], byte: int) -> np.ndarray:
    """Toss a coin for every query: a byte of its id's hash."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in query_ids)
    return np.array([digest[byte] % 2 == 0 for digest in digests], bool)
