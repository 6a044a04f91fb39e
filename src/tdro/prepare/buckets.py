"""Which of many rows share a bucket with which of a few items: the join behind locality-sensitive hashing."""

from collections.abc import Iterator

import numpy as np

_MOST_PAIRS = 4_000_000
"""Pairs held at a time, before repeated ones are dropped; 8 bytes each."""


class Buckets:
    """Items sorted into buckets, once per band.

    Args:
        key_BT: Bucket of every item in every band, any unsigned integers [B bands, T items].

    Example:
        >>> buckets = Buckets(np.array([[7, 8, 7], [1, 2, 3]], np.uint64))
        >>> [(rows.tolist(), items.tolist()) for rows, items in buckets.pairs(np.array([[7, 9], [3, 2]], np.uint64))]
        [([0, 0, 1], [0, 2, 1])]
    """

    def __init__(self, key_BT: np.ndarray) -> None:
        self._order_BT = np.argsort(key_BT, axis=1, kind="stable")
        self._sorted_BT = np.take_along_axis(key_BT, self._order_BT, axis=1)

    def pairs(self, key_Bn: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Find all pairs of a row and an item that share a bucket in some band.

        Args:
            key_Bn: Bucket of every row in every band [B, n].

        Yields:
            Rows and items, int64, each pair once, by row and then by item; as many at a time as fit into memory.
        """
        ranges = [_range_of(key_n, sorted_T) for key_n, sorted_T in zip(key_Bn, self._sorted_BT, strict=True)]
        first_Bn, last_Bn = (np.stack(side) for side in zip(*ranges, strict=True))
        total_n = np.cumsum((last_Bn - first_Bn).sum(axis=0))
        start = 0
        while start < len(total_n):
            before = total_n[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(total_n, before + _MOST_PAIRS, "right")))
            if total_n[end - 1] > before:
                yield self._expand(first_Bn[:, start:end], last_Bn[:, start:end], start)
            start = end

    def _expand(self, first_Bn: np.ndarray, last_Bn: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Turn ranges of sorted items into distinct pairs; `start` is the number of the first row."""
        items = self._order_BT.shape[1]
        codes = []
        for order_T, first_n, last_n in zip(self._order_BT, first_Bn, last_Bn, strict=True):
            row_m = np.flatnonzero(last_n > first_n)
            count_m = last_n[row_m] - first_n[row_m]
            shift_m = first_n[row_m] - np.cumsum(count_m) + count_m
            item_p = order_T[np.arange(count_m.sum()) + np.repeat(shift_m, count_m)]
            codes.append(np.repeat(row_m, count_m) * items + item_p)
        row_p, item_p = np.divmod(np.unique(np.concatenate(codes)), items)
        return row_p + start, item_p


def _range_of(key_n: np.ndarray, sorted_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each key begins and ends among sorted keys; for most keys that is nowhere."""
    first_n = np.searchsorted(sorted_T, key_n, "left")
    last_n = first_n.copy()
    there_n = np.append(sorted_T, sorted_T[-1:])[first_n] == key_n
    last_n[there_n] = np.searchsorted(sorted_T, key_n[there_n], "right")
    return first_n, last_n


def scramble(value_n: np.ndarray) -> np.ndarray:
    """Scramble uint64 values, so that neighbours share nothing."""
    value_n = value_n * np.uint64(0x9E3779B97F4A7C15)
    value_n ^= value_n >> np.uint64(29)
    value_n *= np.uint64(0xBF58476D1CE4E5B9)
    value_n ^= value_n >> np.uint64(32)
    return value_n
