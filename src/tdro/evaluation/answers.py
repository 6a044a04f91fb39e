"""Whether documents contain an answer: the matching of DPR, on a corpus that is tokenised once.

A token is a run of letters, digits and marks, or one other visible character, of the text in Unicode's decomposed form,
in lower case. A document contains an answer if the answer's tokens stand in it one after another.

A token is kept as 64 bits of its hash. So there is no vocabulary, which for millions of documents would take more
memory than all the rest, and blocks of documents are made independently of each other. That two of some 4 million
different tokens of a Wikipedia and 20,000 of answers share their bits has a chance of 1 in 200 million.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import regex

from tdro.config import fingerprint
from tdro.errors import EnvironmentProblem
from tdro.files import atomic_path
from tdro.retrieval.arrays import map_array, save_array
from tdro.retrieval.shards import Texts

_FORM = 1  # part of every key: raise it when the tokens of the same documents would differ
_BLOCK = 8192  # documents
_END = 0  # stands behind the tokens of every document, so that no answer matches across two of them
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")

Answers: TypeAlias = tuple[np.ndarray, ...]
"""The answers to one question, each as int64 array of at least one token."""


class NamedTexts(Texts, Protocol):
    """Texts with a fingerprint, such as `tdro.retrieval.documents.Documents`."""

    content: str


class _Hashes(dict[str, int]):
    """The hash of every token met so far."""

    def __missing__(self, token: str) -> int:
        digest = hashlib.blake2b(token.lower().encode(), digest_size=8).digest()
        number = self[token] = int.from_bytes(digest, "little", signed=True)
        return number


class DocumentTokens:
    """The tokens of D documents, memory-mapped; made by `tokenize_documents`. Of each document 16 bytes are in memory.

    Args:
        content: Fingerprint of the documents.
        blocks: For every 8192 documents an int64 array: how many numbers each of them has, then these numbers.
        counts: How many documents each block has.

    Attributes:
        content: As given.
    """

    def __init__(self, content: str, blocks: Sequence[np.ndarray], counts: Sequence[int]) -> None:
        self.content = content
        self._blocks, self._per_block = blocks, counts[0]
        lengths = [block[:count] for block, count in zip(blocks, counts, strict=True)]
        self._end_D = np.concatenate([count + np.cumsum(of) for count, of in zip(counts, lengths, strict=True)])
        self._start_D = self._end_D - np.concatenate(lengths)

    def __len__(self) -> int:
        return len(self._end_D)

    def take(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the tokens of some documents, end to end.

        Args:
            numbers_B: Numbers of one or more documents, each from 0 to D - 1.

        Returns:
            The tokens, a 0 behind those of each document, and int64 [B], where each document ends (behind its 0).
        """
        start_B, end_B = self._start_D[numbers_B], self._end_D[numbers_B]
        spans = zip((numbers_B // self._per_block).tolist(), start_B.tolist(), end_B.tolist(), strict=True)
        return np.concatenate([self._blocks[block][start:end] for block, start, end in spans]), np.cumsum(
            end_B - start_B
        )


def tokenize(text: str) -> list[str]:
    """Split a text as DPR does.

    Scripts without spaces are not split into words, so that a part of a run of Chinese characters does not match it.

    Example:
        >>> tokenize("The bee's 6,900 eyes!")
        ['the', 'bee', "'", 's', '6', ',', '900', 'eyes', '!']
    """
    return [token.lower() for token in _split(text)]


def answer_tokens(texts: Sequence[str]) -> Answers:
    """Tokenise the answers to one question; repeated ones, and those without any token, are left out.

    Example:
        >>> [len(answer) for answer in answer_tokens(["New York", "new  york", " "])]
        [2]
    """
    hashes = _Hashes()
    found = dict.fromkeys(tuple(hashes[token] for token in _split(text)) for text in texts)
    return tuple(np.array(tokens, np.int64) for tokens in found if tokens)


def tokenize_documents(
    documents: NamedTexts, cache: Path, progress: Callable[[int, int], None] | None = None
) -> DocumentTokens:
    """Tokenise documents, or map what earlier calls have kept of the same ones.

    A block of 8192 documents is read, tokenised and written at a time and appears complete or not at all, so a killed
    run goes on where it was. On disk a token takes 8 bytes.

    Args:
        documents: D documents, at least one; the full text is title, space, text.
        cache: The cache folder; tokens are kept in `cache/words/KEY`, which may be deleted between runs.
        progress: Called with (documents done, D) after every block that was missing.

    Returns:
        The tokens.

    Raises:
        EnvironmentProblem: The cache cannot be written.
    """
    folder = cache / "words" / fingerprint(_FORM, _BLOCK, documents.content, len(documents))
    blocks, counts = [], []
    for start in range(0, len(documents), _BLOCK):
        file, count = folder / f"words-{start // _BLOCK:06d}.npy", min(_BLOCK, len(documents) - start)
        block = _open(file, count)
        if block is None:
            _write(file, documents[start : start + count])
            block = _open(file, count)
            if progress is not None:
                progress(start + count, len(documents))
        if block is None:
            raise EnvironmentProblem("stored tokens cannot be read back", where=file, do="check the disk")
        blocks.append(block)
        counts.append(count)
    return DocumentTokens(documents.content, blocks, counts)


def first_hits(indices_QK: np.ndarray, answers_Q: Sequence[Answers], tokens: DocumentTokens) -> np.ndarray:
    """Find the best-ranked document of every query that contains an answer to it.

    Args:
        indices_QK: Numbers of documents, best first; -1 where there is none.
        answers_Q: The answers to every query.
        tokens: Tokens of the documents.

    Returns:
        int64 [Q], ranks counted from 0; -1 where no document contains an answer.
    """
    first_Q = np.full(len(indices_QK), -1)
    for query, (indices_K, answers) in enumerate(zip(indices_QK, answers_Q, strict=True)):
        rank_B = np.flatnonzero(indices_K >= 0)
        if len(rank_B):
            words, end_B = tokens.take(indices_K[rank_B])
            place = _first_place(words, answers)
            if place < len(words):
                first_Q[query] = rank_B[np.searchsorted(end_B, place, side="right")]
    return first_Q


def _first_place(words: np.ndarray, answers: Answers) -> int:
    """Say where the first answer begins; `len(words)` where there is none."""
    first = len(words)
    for answer in answers:
        places = np.flatnonzero(words[:first] == answer[0])  # only what is better than what other answers have found
        for offset, token in enumerate(answer[1:], start=1):
            places = places[words[places + offset] == token]  # inside: the last word is an end, which none has matched
        if len(places):
            first = int(places[0])
    return first


def _split(text: str) -> list[str]:
    """Find the tokens of a text, in the case that they have there."""
    found: list[str] = _TOKEN.findall(unicodedata.normalize("NFD", text))
    return found


def _write(file: Path, texts: Sequence[str]) -> None:
    """Tokenise a block of documents into a file."""
    lists = [_split(text) for text in texts]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists)) + 1
    ends = len(lists) + np.cumsum(lengths)
    block = np.full(ends[-1], _END, np.int64)
    block[: len(lists)] = lengths
    is_token = np.ones(len(block), bool)
    is_token[: len(lists)] = is_token[ends - 1] = False
    count = int(lengths.sum()) - len(lists)
    block[is_token] = np.fromiter(map(_Hashes().__getitem__, chain.from_iterable(lists)), np.int64, count)
    try:
        with atomic_path(file) as path:
            save_array(path, block)
    except OSError as problem:
        do = "free some space, check the rights, or use another cache folder (TDRO_CACHE)"
        raise EnvironmentProblem("tokens cannot be kept", where=file, saw=str(problem), do=do) from problem


def _open(file: Path, count: int) -> np.ndarray | None:
    """Map a block of `count` documents; None where it is absent or damaged."""
    try:
        block = map_array(file)
    except (OSError, ValueError, pa.ArrowException):
        return None
    if block.dtype != np.int64 or block.ndim != 1 or len(block) <= count:
        return None
    lengths = block[:count]
    return block if lengths.min() > 0 and count + lengths.sum() == len(block) else None
