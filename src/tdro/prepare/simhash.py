"""The paper's leakage filter: 64-bit SimHash of queries, at most two bits apart.

What the released code computes, with its weaknesses: marks of Hindi or Thai are lost, blanks do not count ("now here"
equals "nowhere"), and one typo in ten changes more than two bits nearly always. Its word segmentation of Chinese has no
effect on the result and is not done. One departure: texts without any letter or digit, which all share one hash there,
match nothing.
"""

import re
from collections.abc import Sequence
from hashlib import md5

import numpy as np

from tdro.prepare.buckets import Buckets, scramble
from tdro.prepare.normalise import code_points

DISTANCE = 2
"""Bits in which two queries that count as the same may differ."""
_SHINGLE = 4
_NOT_CONTENT = re.compile(r"[^\w一-鿌]+|_+")
_BLOCKS = ((0, 21), (21, 21), (42, 22))
"""First bit and number of bits: of three blocks, two differing bits leave one alone."""
_KNOWN_SHINGLES = 1_000_000  # hashes kept of shingles seen before, about 200 MB


def content(text: str) -> str:
    """Return what SimHash looks at: letters and digits, lower-cased, without anything between them.

    Example:
        >>> content("Now here, 1_2!")
        'nowhere12'
    """
    return _NOT_CONTENT.sub("", text.lower())


class SimhashIndex:
    """Queries in which others with nearly the same SimHash can be looked up.

    Args:
        texts: Contents of the queries, none of them empty.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._known: dict[str, bytes] = {}
        self._hash_T = self.hashes(texts)
        self._buckets = Buckets(_blocks(self._hash_T))

    def hashes(self, texts: Sequence[str]) -> np.ndarray:
        """Compute the SimHash of texts, uint64.

        Every bit is set where more than half of the text's shingles of four characters have it in the last eight bytes
        of their MD5.
        """
        hash_n = np.zeros(len(texts), np.uint64)
        if texts:
            code_G4, start_n = _shingles(texts)
            _, first_U, number_G = np.unique(_keys(code_G4), return_index=True, return_inverse=True)
            bit_U64 = self._bits(code_G4[first_U])
            count_n = np.diff(np.append(start_n, len(number_G)))
            set_n64 = np.add.reduceat(bit_U64[number_G], start_n, axis=0, dtype=np.int32)
            hash_n = np.packbits(2 * set_n64 > count_n[:, None], axis=1).view(">u8").ravel().astype(np.uint64)
        return hash_n

    def find(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the queries at most `DISTANCE` bits away.

        Args:
            texts: Contents, none of them empty.

        Returns:
            Which text, which query of the index, and in how many bits they differ.
        """
        hash_n, found = self.hashes(texts), []
        if len(hash_n) and len(self._hash_T):
            for row_p, text_p in self._buckets.pairs(_blocks(hash_n)):
                bits_p = np.bitwise_count(hash_n[row_p] ^ self._hash_T[text_p])
                close = bits_p <= DISTANCE
                found.append((row_p[close], text_p[close], bits_p[close]))
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
        row_M, text_M, bits_M = (np.concatenate(part) for part in zip(*found, strict=True))
        return row_M, text_M, bits_M

    def _bits(self, code_U4: np.ndarray) -> np.ndarray:
        """Return the bits of the hash of every shingle, uint8 [U, 64]."""
        known = self._known  # another thread may begin a new one
        if len(known) > _KNOWN_SHINGLES:
            known = self._known = {}
        joined = code_U4.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        width = code_U4.shape[1]
        shingles = [joined[i : i + width].rstrip("\x00") for i in range(0, len(joined), width)]
        for shingle in shingles:
            if shingle not in known:
                digest = md5(shingle.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
                known[shingle] = digest[-8:]
        hash_U8 = np.frombuffer(b"".join([known[shingle] for shingle in shingles]), np.uint8).reshape(-1, 8)
        return np.unpackbits(hash_U8, axis=1)


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the shingles of texts laid end to end as code points [G, 4], and where each text begins.

    A text of fewer characters is one shingle, filled up with 0.
    """
    padded = [text + "\x00" * (_SHINGLE - len(text)) for text in texts]
    length_n = np.fromiter(map(len, padded), np.int64, len(padded))
    code_C = code_points("".join(padded))
    end_n = np.cumsum(length_n)
    kept_C = np.ones(len(code_C), bool)
    for back in range(1, _SHINGLE):
        kept_C[end_n - back] = False
    windows = np.lib.stride_tricks.sliding_window_view(code_C, _SHINGLE)
    count_n = length_n - _SHINGLE + 1
    return windows[kept_C[: len(windows)]], np.cumsum(count_n) - count_n


def _keys(code_G4: np.ndarray) -> np.ndarray:
    """Turn each shingle into one number, uint64; two shingles share one with a probability of 5e-20."""
    low_G2 = code_G4[:, :2].astype(np.uint64) << np.array([0, 32], np.uint64)
    high_G2 = code_G4[:, 2:].astype(np.uint64) << np.array([0, 32], np.uint64)
    return scramble(scramble(low_G2[:, 0] | low_G2[:, 1]) ^ high_G2[:, 0] ^ high_G2[:, 1])


def _blocks(hash_n: np.ndarray) -> np.ndarray:
    """Cut hashes into blocks, uint64 [blocks, n]."""
    return np.stack([(hash_n >> np.uint64(first)) & np.uint64(2**bits - 1) for first, bits in _BLOCKS])
