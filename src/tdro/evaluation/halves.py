"""Two halves of every evaluation set: what is decided on one is reported on the other."""

import hashlib
from collections.abc import Sequence

import numpy as np


def choice_half(query_ids: Sequence[str]) -> np.ndarray:
    """Tell which queries belong to the half on which choices are made; the others are for what is reported.

    A query's half follows from the hash of its id alone, so it never changes, whatever else is in the set.

    Args:
        query_ids: Q ids.

    Returns:
        Bool [Q].

    Example:
        >>> choice_half(["q1", "q2", "q3", "q4"]).tolist()
        [True, False, True, False]
    """
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in query_ids)
    return np.array([digest[0] % 2 == 0 for digest in digests], bool)
