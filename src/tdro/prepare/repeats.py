"""Find what occurs more than once, by hashes that wait in files instead of the texts.

A text counts as its 64-bit hash: among 11 million texts two different ones share a hash with probability 3e-6.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tdro.prepare.columns import Column, parts

_NUMBER = re.compile(r"\d+\Z")
_TOGETHER = 1 << 20  # hashes that are looked through at a time
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


def repeats(hash_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the positions whose hash occurred before, rising; and, for each, the first position that has it.

    Example:
        >>> later, first = repeats(np.array([7, 5, 7, 5, 7], np.uint64))
        >>> later.tolist(), first.tolist()
        ([2, 3, 4], [0, 1, 0])
    """
    found = [_repeats(hash_N[part_N], part_N) for part_N in parts(hash_N)]
    later, first = (np.concatenate(side) for side in zip(*found, strict=True))
    rising = np.argsort(later)
    return later[rising], first[rising]


def _repeats(hash_N: np.ndarray, position_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the repeats among some hashes, whose positions rise."""
    order_N = np.argsort(hash_N, kind="stable")
    sorted_N = hash_N[order_N]
    again_N = np.zeros(len(hash_N), bool)
    again_N[1:] = sorted_N[1:] == sorted_N[:-1]
    start_N = np.maximum.accumulate(np.where(again_N, 0, np.arange(len(hash_N))))
    return position_N[order_N[again_N]], position_N[order_N[start_N[again_N]]]


class Places:
    """Where every row stands (`file:line`), in 8 bytes per row.

    Args:
        file: Where they wait.
    """

    def __init__(self, file: Path) -> None:
        self._heads: list[str] = []
        self._starts: list[int] = []
        self._numbers = Column(file)

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, place: str) -> None:
        """Note the place of the next row."""
        found = _NUMBER.search(place)
        head = place[: found.start()] if found else place
        if not self._heads or self._heads[-1] != head:
            self._heads.append(head)
            self._starts.append(len(self._numbers))
        self._numbers.add((int(found[0]) + 1 if found else 0).to_bytes(8, "little"))

    def __getitem__(self, row: int) -> str:
        number = int(self._numbers.read()[row])
        head = self._heads[int(np.searchsorted(self._starts, row, side="right")) - 1]
        return f"{head}{number - 1}" if number else head


class Passages:
    """The passages of a dataset: hashes of id and text, and the place of each; 24 bytes per passage.

    Args:
        file: Where they wait.
    """

    def __init__(self, file: Path) -> None:
        self._table = Column(file, 3)

    def add(self, identifier: bytes, text: bytes, place: int) -> None:
        """Note a passage.

        Args:
            identifier: Hash of its id.
            text: Hash of its text.
            place: A whole number; rising from call to call.
        """
        self._table.add(identifier + text + place.to_bytes(8, "little"))

    def id_conflicts(self) -> list[tuple[int, int]]:
        """Return the later and the earlier place of two different texts with the same id, rising."""
        table_N3 = self._table.read()
        return sorted(pair for part_N in parts(table_N3[:, 0]) for pair in _conflicts(table_N3[part_N]))

    def texts(self) -> np.ndarray:
        """Return the hashes of the texts, memory-mapped."""
        return self._table.read()[:, 1]


def _conflicts(table_N3: np.ndarray) -> list[tuple[int, int]]:
    """Return the places of passages that have the same id and another text: neighbours once all are sorted."""
    table_N3 = table_N3[np.lexsort((table_N3[:, 1], table_N3[:, 0]))]
    new_N = np.ones(len(table_N3), bool)
    new_N[1:] = (table_N3[1:, :2] != table_N3[:-1, :2]).any(axis=1)
    id_N, _, place_N = table_N3[new_N].T
    same = np.flatnonzero(id_N[1:] == id_N[:-1])
    pairs = np.sort(np.stack([place_N[same], place_N[same + 1]], axis=1), axis=1)
    return [(int(later), int(earlier)) for earlier, later in pairs]


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
    found: dict[int, int] = {}
    left = np.unique(np.array(wanted, np.uint64))
    for part_N in (np.arange(start, min(start + _TOGETHER, len(hash_N))) for start in range(0, len(hash_N), _TOGETHER)):
        hits = part_N[np.isin(hash_N[part_N], left)]
        found |= {int(hash_N[position]): int(position) for position in hits[::-1]}
        left = left[~np.isin(left, hash_N[hits])]
    return found
