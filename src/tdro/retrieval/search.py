"""Find the passages with the largest inner products, exactly, and always in the same order."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from tdro.devices import ALONE, Ranks, full_float32, multiplies_bfloat16, one_thread
from tdro.errors import ConfigError, DataError
from tdro.retrieval.screen import (
    NO_KEY,
    Block,
    Screen,
    inner_products,
    kept_and_held,
    keys_of,
    largest,
    places_of,
    scores_of,
)

Encode = Callable[[Sequence[str]], np.ndarray]
"""Turns n texts into a float32 array [n, D]; instructions and lengths are the function's own business."""

_BLOCK = {"cpu": 1024, "cuda": 8192}  # a CPU keeps the scores of a block in its cache, a GPU needs larger products
_HELD = 2**25  # keys held for all queries together: 256 MB
_TAKEN = 2048  # passages whose exact scores are computed together


class Vectors(Protocol):
    """Vectors [N, D] that are read slice by slice or by their numbers: an array, or embeddings on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __len__(self) -> int:
        """Count the vectors."""
        ...

    def __getitem__(self, part: slice | np.ndarray, /) -> np.ndarray:
        """Read vectors that follow each other, or those of some numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Hits:
    """The K best passages of every query, best first.

    Args:
        indices_QK: Positions in the corpus, int64.
        scores_QK: Inner products, float32.
    """

    indices_QK: np.ndarray
    scores_QK: np.ndarray


def search(
    query_QD: Vectors,
    corpus_PD: Vectors,
    ids: Sequence[str] | np.ndarray,
    k: int,
    *,
    query_block: int = 1024,
    corpus_block: int | None = None,
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> Hits:
    """Rank the corpus for every query by inner product and keep the best k.

    Passages are ordered by score, largest first, and equal scores by id, smallest string first; the rule also decides
    who is kept when a tie crosses rank k. Every passage is compared: fast scores with known errors, in bfloat16 where
    the CPU has matrix units for it, choose those whose order they cannot tell (`tdro.retrieval.screen`), and these
    are scored in float32, each pair by itself. So blocks, shards, threads, ranks and devices do not change a bit of
    the result. A query too close to call in bfloat16 is screened again in float32; one that is still too close, such
    as a query whose scores are all equal, is scored exactly throughout. The corpus is read block by block, so it may
    be a memory map or `tdro.retrieval.shards.Embeddings`.

    Args:
        query_QD: Query vectors [Q, D]; unit length if cosine is meant.
        corpus_PD: Passage vectors [P, D], P < 2**32.
        ids: The P passage ids; or int64 [P], where each passage stands among equal scores, which spares sorting ids.
        k: Passages kept per query; K = min(k, P).
        query_block: Queries per matrix product.
        corpus_block: Passages per matrix product; None: what suits the device.
        device: Where the products run, as torch writes it.
        ranks: Processes that search together, each a part of the corpus; all call with the same arguments.

    Returns:
        Hits with K columns, on every rank.

    Raises:
        ConfigError: k or a block size is below 1.
        DataError: The corpus is empty, shapes disagree, or a vector holds NaN, infinity or numbers so large that
            inner products overflow.
        EnvironmentProblem: A rank has stopped.

    Example:
        >>> corpus_PD = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> search(np.array([[2.0, 1.0]]), corpus_PD, ["d3", "d1", "d2"], k=2)
        Hits(indices_QK=array([[2, 0]]), scores_QK=array([[2., 2.]], dtype=float32))
    """
    size = max(_BLOCK[torch.device(device).type], 4 * k) if corpus_block is None else corpus_block
    _check(query_QD, corpus_PD, ids, k, query_block, size)
    corpus = _Corpus(corpus_PD, _order(ids), min(size, len(ids)), device)
    queries, _ = _read(query_QD, 0, len(query_QD), "queries")
    depth, rows = min(k, len(ids)), torch.arange(len(queries))
    keys_QK = torch.full((len(queries), depth), NO_KEY, dtype=torch.int64)
    with full_float32(), one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        shares = corpus.shares(ranks, threads if torch.device(device).type == "cpu" else 1)
        together = _HELD // ((kept_and_held(depth)[1] + corpus.size) * len(shares)) // query_block * query_block
        for dtype in (torch.bfloat16, torch.float32, None) if multiplies_bfloat16(device) else (torch.float32, None):
            crowded = [rows[:0]]
            for some in rows.split(max(together, query_block)) if len(rows) else ():
                parts = queries[some].split(query_block)
                found = pool.map(partial(corpus.screen, parts, depth, dtype), shares)
                for part, (screen, *others) in zip(some.split(query_block), zip(*found, strict=True), strict=True):
                    screen.join(others)
                    keys_QK[part] = corpus.exact(queries[part], screen.candidates().cpu(), depth)
                    crowded.append(part[screen.crowded_Q.cpu()])
            rows = torch.cat(crowded)
    best = [largest(torch.cat(ranks.gather(part), dim=1), depth) for part in keys_QK.split(query_block)]
    keys_QK = torch.from_numpy(np.sort(torch.cat(best).numpy())[:, ::-1].copy())
    return Hits(corpus.by_place[places_of(keys_QK).numpy()], scores_of(keys_QK).numpy())


class _Corpus:
    """Reads passages block by block, and one by one.

    Args:
        corpus_PD: The passages.
        by_place: Their numbers, in the order in which equal scores are listed.
        size: C, the passages of a block.
        device: Where the blocks are screened.
    """

    def __init__(self, corpus_PD: Vectors, by_place: np.ndarray, size: int, device: str) -> None:
        self._corpus_PD, self.by_place, self.size, self._device = corpus_PD, by_place, size, device
        self._place_P = np.empty_like(by_place)
        self._place_P[by_place] = np.arange(len(by_place))

    def shares(self, ranks: Ranks, threads: int) -> list[range]:
        """Return where the blocks begin that each thread of a rank takes."""
        starts = range(0, len(self.by_place), self.size)
        parts = ranks.count * threads
        mine = range(ranks.number * threads, (ranks.number + 1) * threads)
        found = [starts[len(starts) * i // parts : len(starts) * (i + 1) // parts] for i in mine]
        return [share for share in found if share] or found[:1]

    def screen(
        self, queries: Sequence[torch.Tensor], depth: int, dtype: torch.dtype | None, share: range
    ) -> list[Screen]:
        """Screen a share of the corpus for some blocks of queries."""
        shape = (max(map(len, queries)), self.size)
        room_QC = torch.empty(shape, dtype=dtype or torch.float32, device=self._device)
        screens = [Screen(query_QD, depth, room_QC) for query_QD in queries]
        for block in self.blocks(share, dtype):
            for screen in screens:
                screen.add(block)
        return screens

    def blocks(self, starts: range, dtype: torch.dtype | None) -> Iterator[Block]:
        """Read blocks for a screen of some type, each good until the next one."""
        room_CD = torch.zeros((self.size, self._corpus_PD.shape[1]))
        for start in starts:
            places_N = torch.from_numpy(self._place_P[start : start + self.size]).to(self._device)
            rows_ND, length = _read(self._corpus_PD, start, self.size, "passages", room_CD)
            if dtype is None:
                yield Block(rows_ND, None, places_N, 0.0, 0.0)
                continue
            room_CD[len(rows_ND) :] = 0
            screened_CD = room_CD.to(self._device, dtype)
            lost = 0.0 if dtype == torch.float32 else float((room_CD - screened_CD.float()).norm(dim=1).max())
            yield Block(rows_ND, screened_CD, places_N, length, lost)

    def exact(self, query_QD: torch.Tensor, keys_QN: torch.Tensor, depth: int) -> torch.Tensor:
        """Score candidates exactly; return the keys of the best."""
        scores_QN = torch.full(keys_QN.shape, -torch.inf)
        places_QN = places_of(keys_QN)
        together = max(1, _TAKEN // keys_QN.shape[1])
        for start in range(0, len(keys_QN), together):
            there = (keys_QN[start : start + together] != NO_KEY).numpy()
            numbers = self.by_place[places_QN[start : start + together].numpy()[there]]
            vectors_ND = np.ascontiguousarray(self._corpus_PD[numbers], dtype=np.float32)
            stops = there.sum(axis=1).cumsum()
            for row, part in enumerate(np.split(vectors_ND, stops[:-1])):
                scores = inner_products(part, query_QD[start + row].numpy())
                scores_QN[start + row, torch.from_numpy(there[row])] = torch.from_numpy(scores)
        return largest(keys_of(scores_QN, places_QN), depth)


def _order(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the passages in the order in which equal scores are listed."""
    if isinstance(ids, np.ndarray):
        return np.argsort(ids, kind="stable")
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def _read(
    vectors_ND: Vectors, start: int, size: int, what: str, room_ND: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """Copy rows [start, start + size) into a tensor; also return the largest length, without which nothing is known."""
    rows = vectors_ND[start : start + size]
    block_ND = torch.empty(rows.shape) if room_ND is None else room_ND[: len(rows)]
    np.copyto(block_ND.numpy(), rows, casting="same_kind")
    length = float(block_ND.norm(dim=1).max()) if len(rows) else 0.0
    if math.isfinite(length):
        return block_ND, length
    finite_N = block_ND.isfinite().all(dim=1)
    row = int((block_ND.abs().amax(dim=1) if finite_N.all() else finite_N.logical_not().float()).argmax())
    raise DataError(
        f"the vectors of the {what} " + ("are too long" if finite_N.all() else "contain NaN or infinity"),
        where=f"row {start + row}",
        saw=block_ND[row, :4].tolist(),
        do="check the model's weights and the precision it was encoded with",
    )


def _check(
    query_QD: Vectors, corpus_PD: Vectors, ids: Sequence[str] | np.ndarray, k: int, query_block: int, corpus_block: int
) -> None:
    """Refuse sizes that cannot be searched."""
    for name, value in (("k", k), ("query_block", query_block), ("corpus_block", corpus_block)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1", where=name, saw=value)
    if len(ids) == 0:
        raise DataError("the corpus to search is empty", do="give at least one passage")
    if len(query_QD.shape) != 2 or len(corpus_PD.shape) != 2 or query_QD.shape[1] != corpus_PD.shape[1]:
        shapes = f"queries {query_QD.shape}, passages {corpus_PD.shape}"
        raise DataError("queries and passages need vectors of one dimension", saw=shapes)
    if len(ids) != len(corpus_PD):
        raise DataError("as many ids as passage vectors are needed", saw=f"{len(ids)} ids, {len(corpus_PD)} vectors")
