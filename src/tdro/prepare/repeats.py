"""Find what occurs more than once, with a few bytes per text instead of the texts.

A text counts as its 64-bit hash: among 11 million texts two different ones share a hash with probability 3e-6.
"""

import re
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

_PASSAGE_BYTES = 24
_LEAST_MERGED = 1_000_000  # passages gathered before the table is made distinct
_NUMBER = re.compile(r"\d+\Z")
_RANGES = 16  # parts in which the hashes of all datasets are compared, so that one part fits into memory


def hash_text(text: str) -> bytes:
    """Hash a text into 8 bytes so that case, white space and Unicode composition make no difference.

    Example:
        >>> hash_text("Who  dances?") == hash_text("who dances?\\n")
        True
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return hash_exactly(" ".join(text.casefold().split()))


def hash_exactly(text: str) -> bytes:
    """Hash a text into 8 bytes."""
    return blake2b(text.encode(), digest_size=8).digest()


def as_numbers(hashes: bytearray) -> np.ndarray:
    """View hashes that were put one after the other as uint64."""
    return np.frombuffer(hashes, np.uint64)


def repeats(hash_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the positions whose hash occurred before, rising; and, for each, the first position that has it.

    Example:
        >>> later, first = repeats(np.array([7, 5, 7, 5, 7], np.uint64))
        >>> later.tolist(), first.tolist()
        ([2, 3, 4], [0, 1, 0])
    """
    order_N = np.argsort(hash_N, kind="stable")
    sorted_N = hash_N[order_N]
    again_N = np.zeros(len(hash_N), bool)
    again_N[1:] = sorted_N[1:] == sorted_N[:-1]
    start_N = np.maximum.accumulate(np.where(again_N, 0, np.arange(len(hash_N))))
    later, first = order_N[again_N], order_N[start_N[again_N]]
    rising = np.argsort(later)
    return later[rising], first[rising]


class Places:
    """Where every row stands (`file:line`), in 8 bytes per row."""

    def __init__(self) -> None:
        self._heads: list[str] = []
        self._starts: list[int] = []
        self._numbers = array("q")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, place: str) -> None:
        """Note the place of the next row."""
        found = _NUMBER.search(place)
        head = place[: found.start()] if found else place
        if not self._heads or self._heads[-1] != head:
            self._heads.append(head)
            self._starts.append(len(self._numbers))
        self._numbers.append(int(found[0]) if found else -1)

    def __getitem__(self, row: int) -> str:
        number = self._numbers[row]
        head = self._heads[int(np.searchsorted(self._starts, row, side="right")) - 1]
        return f"{head}{number}" if number >= 0 else head


class Passages:
    """The distinct pairs of passage id and text, with the first place of each; 24 bytes per pair."""

    def __init__(self) -> None:
        self._fresh = bytearray()
        self._table_N3 = np.empty((0, 3), np.uint64)

    def add(self, identifier: bytes, text: bytes, place: int) -> None:
        """Note a passage.

        Args:
            identifier: Hash of its id.
            text: Hash of its text.
            place: A whole number; rising from call to call.
        """
        self._fresh += identifier + text + place.to_bytes(8, "little")
        if len(self._fresh) >= _PASSAGE_BYTES * max(_LEAST_MERGED, len(self._table_N3)):
            self._merge()

    def id_conflicts(self) -> list[tuple[int, int]]:
        """Return the later and the earlier place of two different texts with the same id, rising."""
        self._merge()
        id_N, place_N = self._table_N3[:, 0], self._table_N3[:, 2]
        same = np.flatnonzero(id_N[1:] == id_N[:-1])
        pairs = np.sort(np.stack([place_N[same], place_N[same + 1]], axis=1), axis=1)
        return sorted((int(later), int(earlier)) for earlier, later in pairs)

    def texts(self) -> np.ndarray:
        """Return the hashes of the distinct texts, rising."""
        self._merge()
        return np.unique(self._table_N3[:, 1])

    def _merge(self) -> None:
        """Make the table distinct again, with what came since the last time."""
        fresh_N3 = np.frombuffer(self._fresh, np.dtype("<u8")).reshape(-1, 3)
        table_N3 = np.concatenate([self._table_N3, fresh_N3])
        self._fresh, self._table_N3, fresh_N3 = bytearray(), table_N3[:0], table_N3[:0]  # frees them before the sort
        table_N3 = table_N3[np.lexsort((table_N3[:, 1], table_N3[:, 0]))]
        new_N = np.ones(len(table_N3), bool)
        new_N[1:] = (table_N3[1:, :2] != table_N3[:-1, :2]).any(axis=1)
        self._table_N3 = table_N3 if new_N.all() else table_N3[new_N]


class Shared(NamedTuple):
    """How many hashes two datasets have in common, and a few of them."""

    number: int
    examples: list[int]


def shared(tables: Mapping[str, np.ndarray], examples: int = 3) -> dict[tuple[str, str], Shared]:
    """Count what each pair of datasets has in common.

    Args:
        tables: Dataset -> distinct hashes, rising, uint64; memory-mapped ones are read in parts.
        examples: How many of the common hashes to return.

    Returns:
        (dataset, later dataset) -> what they share, for pairs that share something, in the order of `tables`.

    Example:
        >>> shared({"a": np.array([1, 2], np.uint64), "b": np.array([2, 3], np.uint64)})
        {('a', 'b'): Shared(number=1, examples=[2])}
    """
    names = list(tables)
    number: dict[int, int] = {}
    seen: dict[int, list[int]] = {}
    limits = [part << 60 for part in range(_RANGES)]
    cuts = [[*np.searchsorted(table, np.array(limits, np.uint64)), len(table)] for table in tables.values()]
    for part in range(_RANGES):
        slices = [table[cut[part] : cut[part + 1]] for table, cut in zip(tables.values(), cuts, strict=True)]
        for pair, values in _shared_of(slices):
            number[pair] = number.get(pair, 0) + len(values)
            seen.setdefault(pair, []).extend(values[: examples - len(seen.get(pair, ()))].tolist())
    return {
        (names[pair // len(names)], names[pair % len(names)]): Shared(number[pair], seen[pair])
        for pair in sorted(number)
    }


def _shared_of(slices: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """Return earlier * G + later of the G tables that share values, and those values."""
    groups = len(slices)
    value_N = np.concatenate(slices)
    owner_N = np.repeat(np.arange(groups), [len(part) for part in slices])
    order_N = np.argsort(value_N, kind="stable")  # of equal values the earlier owner comes first
    value_N, owner_N = value_N[order_N], owner_N[order_N]
    found = []
    for lag in range(1, groups):
        same = np.flatnonzero(value_N[lag:] == value_N[:-lag])
        if not len(same):
            break
        pair_S = owner_N[same] * groups + owner_N[same + lag]
        found += [(int(pair), value_N[same[pair_S == pair]]) for pair in np.unique(pair_S)]
    return found


def find_first(hash_N: np.ndarray, wanted: Sequence[int]) -> dict[int, int]:
    """Return the first position of each of some hashes that are there."""
    hits = np.flatnonzero(np.isin(hash_N, np.array(wanted, np.uint64)))
    return {int(hash_N[position]): int(position) for position in hits[::-1]}
