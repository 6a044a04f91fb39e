"""Find texts that are nearly the same: one typo, words moved, one word more or less.

Candidates share a bucket of MinHash signatures over character n-grams. Every candidate is then verified with the
texts themselves, so the signatures decide what may be missed, never what is found. datasketch 2.0 offers the same
signatures and buckets, text by text: per second of CPU 19,000 signatures of 200 values and 20,000 look-ups among 20,000
texts. Whole batches in numpy make 120,000 signatures, and 22,000 look-ups with everything, verification included: that
is what lets every run of a study look for leaks first.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz import fuzz, process
from rapidfuzz.distance import OSA

from tdro.prepare.buckets import Buckets, scramble
from tdro.prepare.normalise import code_points, is_unspaced, units

_BANDS, _DEPTH = 50, 4
"""A pair whose n-gram sets have Jaccard J shares a bucket with probability 1 - (1 - J^4)^50: .96 at J = .5."""
_SLACK = 0.5
"""Candidates whose estimated Jaccard is below `similarity - _SLACK` are not looked at: edits cost more n-grams."""
_CLEAR_WORD = 5
"""Letters of a word that may have another letter when other words came or went too: not "aids" and "ards"."""
_PAIRS = 16_384  # signatures compared at a time, so that they stay in the processor's cache
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of nearly equal texts, M of them.

    Args:
        row_M: Which of the texts that were looked up, int64.
        text_M: Which of the texts of the index, int64.
        score_M: Their similarity, float32.
        template_M: Whether another word or number stands in the place of one, bool: mostly the same pattern with
            another subject, rarely the same question.
    """

    row_M: np.ndarray
    text_M: np.ndarray
    score_M: np.ndarray
    template_M: np.ndarray


class NearIndex:
    """Texts in which nearly equal ones can be looked up.

    The similarity of two texts is the largest of three: 2 L / (a + b), where L is the length of their longest common
    subsequence of characters and a, b their lengths (one typo in 30 characters: .97); the same with the words of each
    text sorted (words swapped: 1); the Jaccard of their sets of words (one of ten words dropped: .9). In scripts
    without spaces a character counts as a word.

    A pair that is similar enough is a template when on both sides words remain that the other lacks and that are no
    typo of one another. A typo is one letter more, less, other or moved by one; another number is none, nor another
    letter in a short word where other words came or went as well.

    Args:
        texts: Normalised texts, none of them empty.
        similarity: Smallest similarity of a match, above 0, at most 1.

    Example:
        >>> index = NearIndex(["who won the world cup in 2018"], 0.8)
        >>> found = index.find(["who won teh world cup in 2018", "who won the world cup in 2014", "who are we"])
        >>> found.row_M.tolist(), found.template_M.tolist()
        ([0, 1], [False, True])
    """

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        self.similarity = similarity
        self._texts = _Forms(texts)
        signature_KT = signatures(texts)
        self._byte_TK = _low_bytes(signature_KT)
        self._buckets = Buckets(_band_keys(signature_KT))

    def find(self, texts: Sequence[str]) -> Matches:
        """Find all matches of some texts.

        Args:
            texts: Normalised texts, none of them empty.
        """
        if not texts or not len(self._byte_TK):
            return _no_matches()
        signature_Kn = signatures(texts)
        byte_nK, forms = _low_bytes(signature_Kn), _Forms(texts)
        found = []
        for row_p, text_p in self._buckets.pairs(_band_keys(signature_Kn)):
            jaccard_p = _estimate(byte_nK, row_p, self._byte_TK, text_p)
            likely_p = jaccard_p >= self.similarity - _SLACK
            found.append(self._verify(forms, row_p[likely_p], text_p[likely_p]))
        return _together(found)

    def compare(self, texts: Sequence[str], text_n: Sequence[int]) -> Matches:
        """Verify given pairs: each text with the text of the index that is named for it."""
        return self._verify(_Forms(texts), np.arange(len(texts)), np.asarray(text_n, np.int64))

    def _verify(self, forms: "_Forms", row_p: np.ndarray, text_p: np.ndarray) -> Matches:
        """Compute the similarity of pairs and keep those that are similar enough."""
        sorted_a, sorted_b = forms.sorted_of(row_p), self._texts.sorted_of(text_p)
        score_p = np.maximum(
            _ratios(forms.texts, self._texts.texts, row_p, text_p, self.similarity),
            _ratios(sorted_a, sorted_b, row_p, text_p, self.similarity),
        )
        pairs = [(forms.units(i), self._texts.units(j)) for i, j in zip(row_p.tolist(), text_p.tolist(), strict=True)]
        score_p = np.maximum(score_p, np.array([_word_jaccard(a, b) for a, b in pairs], np.float32))
        kept = np.flatnonzero(score_p >= np.float32(self.similarity))
        template_M = [is_template(*pairs[p]) for p in kept.tolist()]
        return Matches(row_p[kept], text_p[kept], score_p[kept], np.array(template_M, bool))


def is_template(units_a: Sequence[str], units_b: Sequence[str]) -> bool:
    """Say whether two similar texts differ by another word or number in the place of one.

    Args:
        units_a: Words of one text, see `tdro.prepare.normalise.units`.
        units_b: Words of the other.

    Example:
        >>> is_template("symptoms of flu".split(), "symptoms of gout".split())
        True
        >>> is_template("symptoms of gout".split(), "symptom of gout".split())
        False
    """
    set_a, set_b = set(units_a), set(units_b)
    only_a, only_b = [u for u in units_a if u not in set_b], [u for u in units_b if u not in set_a]
    if not only_a or not only_b:
        return False
    if _is_slip("".join(only_a), "".join(only_b)):
        return False
    few, many = sorted((only_a, only_b), key=len)
    least = 0 if len(few) == len(many) else _CLEAR_WORD
    if all(any((len(a) != len(b) or len(a) >= least) and _is_slip(a, b) for b in many) for a in few):
        return False
    return not (len(many) == 1 and _is_character(few[0]) and _is_character(many[0]))


def character_grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash the character n-grams of texts: three characters, or two where they touch a script without spaces.

    A space is put around every text, so that its first and last characters count as much as the others.

    Args:
        texts: Normalised texts, none of them empty.

    Returns:
        Hashes of all n-grams laid end to end, uint32; and where each text begins, int64.
    """
    length_n = np.fromiter(map(len, texts), np.int64, len(texts)) + 2
    end_n = np.cumsum(length_n)
    code_C = code_points(f" {'  '.join(texts)} ")
    unspaced_C = is_unspaced(code_C)
    next_C = np.append(code_C[1:], np.uint32(0))
    short_C = unspaced_C | np.append(unspaced_C[1:], False)
    third_C = np.where(short_C, np.uint32(0), np.append(next_C[1:], np.uint32(0)))
    hash_C = scramble(code_C.astype(np.uint64) | (next_C.astype(np.uint64) << np.uint64(32)))
    hash_C = scramble(hash_C ^ third_C)
    kept_C = np.ones(len(code_C), bool)
    kept_C[end_n - 1] = False
    kept_C[end_n - 2] = short_C[end_n - 2]
    start_n = (np.cumsum(kept_C) - kept_C)[end_n - length_n]
    return (hash_C[kept_C] >> np.uint64(32)).astype(np.uint32), start_n


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Compute the MinHash signatures of texts, uint32 [K values, n texts].

    Two texts agree in a value with the probability that is the Jaccard of their sets of character n-grams.

    Args:
        texts: Normalised texts, none of them empty.
    """
    signature_Kn = np.empty((_BANDS * _DEPTH, len(texts)), np.uint32)
    if texts:
        gram_G, start_n = character_grams(texts)
        generator = np.random.Generator(np.random.Philox(key=20240813))
        factors = generator.integers(0, 2**31, (2, len(signature_Kn)), np.uint32) * np.uint32(2) + np.uint32(1)
        for value_n, factor, shift in zip(signature_Kn, *factors, strict=True):
            np.minimum.reduceat((gram_G ^ shift) * factor, start_n, out=value_n)
    return signature_Kn


class _Forms:
    """Texts, and what is derived from them when it is needed."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts: Sequence[str] = texts
        self._units: dict[int, list[str]] = {}
        self._sorted: dict[int, str] = {}

    def units(self, i: int) -> list[str]:
        """Return the words of a text."""
        if i not in self._units:
            self._units[i] = units(self.texts[i])
        return self._units[i]

    def sorted_of(self, place_p: np.ndarray) -> dict[int, str]:
        """Return some of the texts with their words sorted."""
        for i in np.unique(place_p).tolist():
            if i not in self._sorted:
                self._sorted[i] = " ".join(sorted(self.units(i)))
        return self._sorted


def _ratios(
    texts_a: Sequence[str] | dict[int, str],
    texts_b: Sequence[str] | dict[int, str],
    a_p: np.ndarray,
    b_p: np.ndarray,
    least: float,
) -> np.ndarray:
    """Compute 2 L / (a + b) of pairs of texts, float32; 0 where it is below `least`."""
    if not len(a_p):
        return np.zeros(0, np.float32)
    left, right = [texts_a[i] for i in a_p.tolist()], [texts_b[i] for i in b_p.tolist()]
    percent_p = process.cpdist(left, right, scorer=fuzz.ratio, score_cutoff=100 * least - 1e-4, dtype=np.float32)
    return np.asarray(percent_p) / np.float32(100)


def _word_jaccard(units_a: Iterable[str], units_b: Iterable[str]) -> float:
    """Compute the Jaccard of two sets of words."""
    set_a, set_b = set(units_a), set(units_b)
    common = len(set_a & set_b)
    return common / (len(set_a) + len(set_b) - common)


def _is_slip(a: str, b: str) -> bool:
    """Say whether two words are the same but for one slip of the keyboard."""
    if a == b:
        return True
    if max(len(a), len(b)) < 2 or OSA.distance(a, b, score_cutoff=1) > 1:
        return False
    return not (_has_number(a) and _has_number(b) and _DIGITS.sub("", a) == _DIGITS.sub("", b))


def _has_number(word: str) -> bool:
    """Say whether a word has a digit."""
    return _DIGITS.search(word) is not None


def _is_character(unit: str) -> bool:
    """Say whether a unit is one character of a script without spaces, and no number."""
    return len(unit) == 1 and not unit.isnumeric() and bool(is_unspaced(code_points(unit))[0])


def _band_keys(signature_Kn: np.ndarray) -> np.ndarray:
    """Join the values of each band into one key, uint64 [bands, n]."""
    key_Bn = np.zeros((_BANDS, signature_Kn.shape[1]), np.uint64)
    for value_Bn in signature_Kn.reshape(_BANDS, _DEPTH, -1).transpose(1, 0, 2):
        key_Bn = scramble(key_Bn ^ value_Bn)
    return key_Bn


def _low_bytes(signature_Kn: np.ndarray) -> np.ndarray:
    """Keep one byte of every value, uint8 [n, K]."""
    return np.ascontiguousarray((signature_Kn & np.uint32(0xFF)).astype(np.uint8).T)


def _estimate(byte_nK: np.ndarray, row_p: np.ndarray, byte_TK: np.ndarray, text_p: np.ndarray) -> np.ndarray:
    """Estimate the Jaccard of pairs from the share of bytes that agree, float64."""
    share_p = np.empty(len(row_p))
    for start in range(0, len(row_p), _PAIRS):
        part = slice(start, start + _PAIRS)
        share_p[part] = (byte_nK[row_p[part]] == byte_TK[text_p[part]]).mean(axis=1)
    return (share_p - 1 / 256) / (1 - 1 / 256)


def _no_matches() -> Matches:
    """Return no match."""
    nothing = np.zeros(0, np.int64)
    return Matches(nothing, nothing, np.zeros(0, np.float32), np.zeros(0, bool))


def _together(parts: Sequence[Matches]) -> Matches:
    """Join matches end to end."""
    if not parts:
        return _no_matches()
    fields = zip(*((part.row_M, part.text_M, part.score_M, part.template_M) for part in parts), strict=True)
    return Matches(*(np.concatenate(field) for field in fields))
