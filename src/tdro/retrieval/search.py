"""Find the passages with the largest inner products, exactly, and always in the same order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from tdro.errors import ConfigError, DataError

Encode = Callable[[Sequence[str]], np.ndarray]
"""Turns n texts into a float32 array [n, D]; instructions and lengths are the function's own business."""

_LOW = 2**32 - 1


class Vectors(Protocol):
    """Vectors [N, D] that are read slice by slice: an array, or embeddings on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __len__(self) -> int:
        """Count the vectors."""
        ...

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Read vectors that follow each other."""
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
    query_block: int = 256,
    corpus_block: int = 65536,
    device: str = "cpu",
) -> Hits:
    """Rank the corpus for every query by inner product and keep the best k.

    Passages are ordered by score, largest first, and equal scores by id, smallest string first; the
    rule also decides who is kept when a tie crosses rank k. Every passage is compared, in float32.
    The blocks bound memory (`query_block * corpus_block` scores at a time) and never the order of
    equal scores, but a matrix product may round the same pair differently in another block shape.
    The corpus is read once, block by block, so it may be a memory map or `tdro.retrieval.shards.Embeddings`.

    Args:
        query_QD: Query vectors [Q, D]; unit length if cosine is meant.
        corpus_PD: Passage vectors [P, D], P < 2**32.
        ids: The P passage ids; or int64 [P], where each passage stands among equal scores, which spares sorting ids.
        k: Passages kept per query; K = min(k, P).
        query_block: Queries per matrix product.
        corpus_block: Passages per matrix product.
        device: Where the products run, as torch writes it.

    Returns:
        Hits with K columns.

    Raises:
        ConfigError: k or a block size is below 1.
        DataError: The corpus is empty, shapes disagree, or a vector holds NaN or infinity.

    Example:
        >>> corpus_PD = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> search(np.array([[2.0, 1.0]]), corpus_PD, ["d3", "d1", "d2"], k=2)
        Hits(indices_QK=array([[2, 0]]), scores_QK=array([[2., 2.]], dtype=float32))
    """
    _check(query_QD, corpus_PD, ids, k, query_block, corpus_block)
    depth = min(k, len(ids))
    by_id = _order(ids)
    place_P = np.empty_like(by_id)
    place_P[by_id] = np.arange(len(ids))
    blocks = _blocks(query_QD, query_block, "queries", device)
    best = [torch.empty((len(block_QD), 0), dtype=torch.int64, device=device) for block_QD in blocks]
    for start in range(0, len(ids), corpus_block):
        block_PD = _block(corpus_PD, start, corpus_block, "passages", device)
        places = torch.from_numpy(place_P[start : start + corpus_block]).to(device)
        for i, block_QD in enumerate(blocks):
            found = torch.cat([best[i], _best_keys(block_QD @ block_PD.T, places, depth)], dim=1)
            best[i] = found.topk(min(depth, found.shape[1])).values
    keys_QK = torch.cat(best).cpu() if best else torch.empty((0, depth), dtype=torch.int64)
    return Hits(indices_QK=by_id[(_LOW - (keys_QK & _LOW)).numpy()], scores_QK=_scores(keys_QK).numpy())


def _order(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the passages in the order in which equal scores are listed."""
    if isinstance(ids, np.ndarray):
        return np.argsort(ids, kind="stable")
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def _best_keys(scores_QP: torch.Tensor, places_P: torch.Tensor, k: int) -> torch.Tensor:
    """Give the keys of a block's k best passages; rows whose tie crosses rank k are sorted in full."""
    if scores_QP.shape[1] <= k:
        return _keys(scores_QP, places_P)
    values_QK, columns_QK = scores_QP.topk(k + 1)
    keys_QK = _keys(values_QK[:, :k], places_P[columns_QK[:, :k]])
    cut = values_QK[:, k - 1] == values_QK[:, k]
    if cut.any():
        keys_QK[cut] = _keys(scores_QP[cut], places_P).topk(k).values
    return keys_QK


def _keys(scores: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Join score and place in one int64 whose size is the ranking order: no two keys of a query are equal.

    A float32 is sign and magnitude; read as a signed number its bits order as the floats do (0 = -0).
    They become the upper half of the key, the lower half grows as the place in id order falls.
    """
    bits = scores.contiguous().view(torch.int32).long()
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return (order << 32) + (_LOW - places)


def _scores(keys: torch.Tensor) -> torch.Tensor:
    """Read the float32 scores back from keys."""
    order = keys >> 32
    magnitude = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -magnitude, magnitude)


def _blocks(vectors_ND: Vectors, size: int, what: str, device: str) -> list[torch.Tensor]:
    """Cut vectors into float32 tensors of at most `size` rows."""
    return [_block(vectors_ND, start, size, what, device) for start in range(0, len(vectors_ND), size)]


def _block(vectors_ND: Vectors, start: int, size: int, what: str, device: str) -> torch.Tensor:
    """Copy rows [start, start + size) to the device as float32, refusing NaN and infinity."""
    block_ND = torch.from_numpy(np.array(vectors_ND[start : start + size], dtype=np.float32))
    finite_N = block_ND.isfinite().all(dim=1)
    if not finite_N.all():
        row = start + int(finite_N.logical_not().nonzero()[0, 0])
        raise DataError(
            f"the vectors of the {what} contain NaN or infinity",
            where=f"row {row}",
            saw=block_ND[row - start, :4].tolist(),
            do="check the model's weights and the precision it was encoded with",
        )
    return block_ND.to(device)


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
