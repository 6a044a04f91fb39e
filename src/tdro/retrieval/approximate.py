"""Search with faiss (extra `faiss`), for corpora where comparing every passage takes too long; its recall is measured.

faiss only chooses candidates: their scores are computed from the embeddings themselves, and ordered as the exact
search orders them. So a hit has the score that the exact search gives it, but for rounding, and what the index
overlooks is what the recall tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.retrieval.search import Hits, search
from tdro.retrieval.shards import Embeddings

Vectors: TypeAlias = Embeddings | np.ndarray
Method = Literal["flat", "ivf-pq"]
Progress: TypeAlias = Callable[[int, int], None]

_BLOCK = 65536  # passages that are added together
_SAMPLE = 131072  # passages that an index is trained on
_BITS = 8  # of a code: 256 centroids per part of the vector
_LEAST = 256  # passages without which there is nothing to train
_ROUNDING = 1e-6  # by which two ways of computing a score may differ


@dataclass(frozen=True, slots=True)
class IvfPq:
    """How an IVF-PQ index is built and searched. A passage takes `code_bytes` + 8 bytes of memory.

    Args:
        lists: Cells that the passages are sorted into; 0: four times the square root of their number.
        probes: Cells that are looked into for a query; 0: 32, or all.
        code_bytes: Bytes of a compressed vector, a divisor of D; 0: a quarter of D, or the next smaller divisor.
        candidates: Passages that are scored exactly, for each one that is wanted.
        seed: Decides on which passages the index is trained.
    """

    lists: int = 0
    probes: int = 0
    code_bytes: int = 0
    candidates: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ApproximateHits:
    """What an index has found, and how much of what the exact search finds.

    Args:
        hits: Best first, equal scores by id; -1 and -inf where the index has found fewer than K.
        recall: Share of the K best passages that were found, mean over the queries it was measured on.
        measured_on: How many queries that were.
    """

    hits: Hits
    recall: float
    measured_on: int

    @property
    def note(self) -> str:
        """Say what has to stand beside every score that comes from these hits.

        Example:
            >>> ApproximateHits(Hits(np.zeros((9, 5)), np.zeros((9, 5))), 0.97, 8).note
            'approximate search: finds 97.0 % of the exact top 5 (measured on 8 queries)'
        """
        depth = self.hits.indices_QK.shape[1]
        found = f"finds {self.recall:.1%} of the exact top {depth}".replace("%", " %")
        return f"approximate search: {found} (measured on {self.measured_on} queries)"


class FaissIndex:
    """A corpus in an index of faiss.

    Args:
        corpus_PD: The passages' embeddings; they stay on disk, the index is in memory: for "flat" 4 * D bytes per
            passage, for "ivf-pq" see `IvfPq`.
        ids: The P passage ids; or int64 [P], where each passage stands among equal scores.
        method: "flat" compares every passage, "ivf-pq" compressed vectors in some of the cells.
        settings: For "ivf-pq".
        progress: Called with (passages added, P).

    Raises:
        ConfigError: A setting cannot be.
        DataError: Too few passages to train an index.
        EnvironmentProblem: faiss is not installed.
    """

    def __init__(
        self,
        corpus_PD: Vectors,
        ids: Sequence[str] | np.ndarray,
        method: Method,
        settings: IvfPq | None = None,
        progress: Progress | None = None,
    ) -> None:
        faiss = require_faiss()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._corpus_PD, self._ids, self._settings = corpus_PD, ids, settings or IvfPq()
        self._more = 1 if method == "flat" else self._settings.candidates
        self._index = faiss.IndexFlatIP(corpus_PD.shape[1]) if method == "flat" else self._trained(faiss)
        for start in range(0, len(corpus_PD), _BLOCK):
            self._index.add(np.ascontiguousarray(corpus_PD[start : start + _BLOCK], dtype=np.float32))
            if progress is not None:
                progress(min(start + _BLOCK, len(corpus_PD)), len(corpus_PD))

    def search(self, query_QD: np.ndarray, k: int, *, sample: int = 100, seed: int = 0) -> ApproximateHits:
        """Find the best passages of every query, and measure on some of them how much was overlooked.

        Args:
            query_QD: Query vectors.
            k: Passages per query; K = min(k, P).
            sample: Queries whose exact results are computed for the recall; at most Q.
            seed: Decides which.
        """
        depth = min(k, len(self._corpus_PD))
        query_QD = np.ascontiguousarray(query_QD, dtype=np.float32)
        _, found_QC = self._index.search(query_QD, min(depth * self._more, len(self._corpus_PD)))
        hits = _rescored(query_QD, self._corpus_PD, self._ids, found_QC, depth)
        chosen = np.random.default_rng(seed).permutation(len(query_QD))[:sample]
        exact = search(query_QD[chosen], self._corpus_PD, self._ids, depth)
        least_Q = exact.scores_QK[:, -1:] - _ROUNDING * np.abs(exact.scores_QK[:, -1:])
        share_Q = (hits.scores_QK[chosen] >= least_Q).mean(axis=1)  # of passages that tie at rank K any will do
        return ApproximateHits(hits, float(share_Q.mean()) if len(share_Q) else 1.0, len(share_Q))

    def _trained(self, faiss: Any) -> Any:
        """Make an IVF-PQ index and train it on a sample of the passages."""
        options, (count, dimension) = self._settings, self._corpus_PD.shape
        if count < _LEAST:
            do = "search exactly, or use method flat"
            raise DataError(f"an IVF-PQ index needs at least {_LEAST} passages", saw=count, do=do)
        lists = options.lists or min(int(4 * count**0.5), count // 39 or 1)
        parts = options.code_bytes or max(n for n in range(1, max(dimension // 4, 1) + 1) if dimension % n == 0)
        limits = {"lists": (lists, count), "probes": (options.probes or 1, lists), "code_bytes": (parts, dimension)}
        for name, (value, most) in limits.items():
            if not 1 <= value <= most:
                raise ConfigError(f"{name} must be between 1 and {most}", where=name, saw=value)
        if options.candidates < 1:
            raise ConfigError("candidates must be at least 1", where="candidates", saw=options.candidates)
        if dimension % parts:
            raise ConfigError(f"code_bytes must divide the {dimension} dimensions", where="code_bytes", saw=parts)
        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(dimension), dimension, lists, parts, _BITS, faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = options.probes or min(32, lists)
        index.cp.seed = index.pq.cp.seed = options.seed
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        sample = np.random.default_rng(options.seed).permutation(count)[:_SAMPLE]
        index.train(self._corpus_PD[np.sort(sample)].astype(np.float32))
        return index


def require_faiss() -> Any:
    """Return the module faiss.

    Raises:
        EnvironmentProblem: It is not installed.
    """
    try:
        import faiss
    except ImportError as problem:
        do = "pip install 'tdro[faiss]', or search exactly"
        raise EnvironmentProblem("approximate search needs faiss", saw=str(problem), do=do) from problem
    return faiss


def _rescored(
    query_QD: np.ndarray, corpus_PD: Vectors, ids: Sequence[str] | np.ndarray, found_QC: np.ndarray, depth: int
) -> Hits:
    """Score candidates (-1: none) exactly and order them as the exact search does."""
    indices_QK = np.full((len(query_QD), depth), -1, np.int64)
    scores_QK = np.full((len(query_QD), depth), -np.inf, np.float32)
    for row, (query_D, found_C) in enumerate(zip(query_QD, found_QC, strict=True)):
        found = found_C[found_C >= 0]
        scores = corpus_PD[found].astype(np.float32) @ query_D
        places = ids[found] if isinstance(ids, np.ndarray) else np.array([ids[i] for i in found.tolist()], object)
        best = np.lexsort((places, -scores))[:depth]
        indices_QK[row, : len(best)], scores_QK[row, : len(best)] = found[best], scores[best]
    return Hits(indices_QK, scores_QK)
