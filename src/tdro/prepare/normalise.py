"""Write texts so that only letters, marks, digits and the order of words count, in any script.

The work is done on the code points of many texts at once, laid end to end in one array.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

_SEPARATOR = "\x00"
_PLANES = 0x40000  # code points above are tags and variation selectors
_DROPPED, _BOUNDARY, _KEPT, _ALONE, _END = range(5)
_INVISIBLE = ((0x034F, 0x0350), (0x180B, 0x1810), (0xFE00, 0xFE10))  # marks that only choose how others are drawn
_UNSPACED = (
    (0x0E00, 0x1100),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x1800),  # Khmer
    (0x3005, 0x3008),  # iteration marks
    (0x3040, 0x3130),  # Hiragana, Katakana, Bopomofo
    (0x31F0, 0x3200),  # more Katakana
    (0x3400, 0x4DC0),  # Han
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, 0x33480),
)
"""Scripts written without spaces between words: [first, last) code points."""


def normalise(texts: Sequence[str]) -> list[str]:
    """Normalise texts for comparison.

    NFKC and case folding; letters, marks and digits stay (a combining vowel of Hindi or Thai is a mark), invisible
    format characters go, and everything else is a boundary between words, written as one space. Scripts that have no
    spaces between words get none: there a boundary is dropped, so that "東京 大学" equals "東京大学". A text of
    punctuation alone becomes empty.

    Args:
        texts: Any texts.

    Returns:
        One text per text.

    Example:
        >>> normalise(["Who's  “Ada”?", "東京 大学、2020年", "?!", "Straße"])
        ['who s ada', '東京大学2020年', '', 'strasse']
    """
    if not texts:
        return []
    joined = _SEPARATOR.join(map(_fold, texts))
    if joined.count(_SEPARATOR) != len(texts) - 1:
        joined = _SEPARATOR.join(_fold(text.replace(_SEPARATOR, " ")) for text in texts)
    code_C = code_points(joined)
    kind_C = _kinds()[np.minimum(code_C, _PLANES)]
    for useless in (_is_dropped, _is_second_boundary, _is_boundary_of_nothing):
        kept_C = ~useless(kind_C)
        code_C, kind_C = code_C[kept_C], kind_C[kept_C]
    code_C[kind_C == _BOUNDARY] = ord(" ")
    return code_C.tobytes().decode("utf-32-le", "surrogatepass").split(_SEPARATOR)


def units(text: str) -> list[str]:
    """Split a normalised text into words; in scripts without spaces, into characters.

    Example:
        >>> units("who s ada"), units("python 教程3")
        (['who', 's', 'ada'], ['python', '教', '程', '3'])
    """
    if text.isascii():
        return text.split()
    kind_C = _kinds()[np.minimum(code_points(text), _PLANES)]
    return "".join(
        f" {character} " if kind == _ALONE else character for character, kind in zip(text, kind_C, strict=True)
    ).split()


def code_points(text: str) -> np.ndarray:
    """Return the code points of a text, uint32; half surrogate pairs too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).copy()


def is_unspaced(code_C: np.ndarray) -> np.ndarray:
    """Say of each code point whether it belongs to a script without spaces between words; bool."""
    return _kinds()[np.minimum(code_C, _PLANES)] == _ALONE


def _fold(text: str) -> str:
    """Remove differences of case and of compatibility forms; Turkish has four letters for two capitals of others."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i").replace("\u0131", "i")
    return folded if unicodedata.is_normalized("NFKC", folded) else unicodedata.normalize("NFKC", folded)


@cache
def _kinds() -> np.ndarray:
    """What becomes of each code point, uint8; the last entry stands for all from `_PLANES` on."""
    kinds = np.full(_PLANES + 1, _BOUNDARY, np.uint8)
    categories = np.array([unicodedata.category(chr(code)) for code in range(_PLANES)])
    kinds[:-1][np.isin([category[0] for category in categories], ["L", "M", "N"])] = _KEPT
    for first, last in _UNSPACED:
        part = kinds[first:last]
        part[part == _KEPT] = _ALONE
    kinds[:-1][categories == "Cf"] = _DROPPED
    for first, last in _INVISIBLE:
        kinds[first:last] = _DROPPED
    kinds[-1] = _DROPPED
    kinds[ord(_SEPARATOR)] = _END
    return kinds


def _is_dropped(kind_C: np.ndarray) -> np.ndarray:
    """Find invisible characters."""
    return kind_C == _DROPPED


def _is_second_boundary(kind_C: np.ndarray) -> np.ndarray:
    """Find boundaries right behind a boundary."""
    boundary_C = kind_C == _BOUNDARY
    boundary_C[1:] &= boundary_C[:-1].copy()
    boundary_C[:1] = False
    return boundary_C


def _is_boundary_of_nothing(kind_C: np.ndarray) -> np.ndarray:
    """Find boundaries at the start or end of a text, and beside a character that needs none."""
    bare_C = np.ones(len(kind_C) + 2, bool)
    bare_C[1:-1] = kind_C >= _ALONE
    return (kind_C == _BOUNDARY) & (bare_C[:-2] | bare_C[2:])
