"""Texts of similar length share a forward pass, so that little of it is padding."""

import numpy as np

from tdro.errors import ConfigError


def pack(lengths_n: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Split texts into groups whose padded size stays within a budget of tokens.

    The texts are sorted by length (ties by index) and cut greedily: a group grows while its size times
    its longest text is at most `max_tokens`. A text longer than the budget runs alone rather than being
    refused or cut. A text without tokens counts as one token.

    Args:
        lengths_n: Tokens of each text, [n] integers.
        max_tokens: Tokens of one forward pass, padding included; at least 1.

    Returns:
        Index arrays (int64) that together hold 0..n-1 exactly once, shortest texts first.

    Raises:
        ConfigError: `max_tokens` is below 1.

    Example:
        >>> [group.tolist() for group in pack(np.array([5, 2, 9, 2]), max_tokens=10)]
        [[1, 3], [0], [2]]
    """
    if max_tokens < 1:
        raise ConfigError("a forward pass needs room for at least one token", where="max_tokens", saw=max_tokens)
    order_n = np.argsort(lengths_n, kind="stable")
    starts = []
    size = 0
    for position, length in enumerate(np.maximum(lengths_n[order_n], 1).tolist()):
        if size == 0 or (size + 1) * length > max_tokens:
            starts.append(position)
            size = 0
        size += 1
    return np.split(order_n, starts[1:]) if starts else []
