"""Fast scores with known errors choose the few passages whose inner products have to be computed exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_LOW = 2**32 - 1
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 0.0}  # relative, of a score when it is stored
_STEPS = 16  # roundings besides those of the two sums: half a unit each for the fast and for the exact score
_TINY = 1e-18  # lengths below it are lost when they are squared

NO_KEY = -0x7F800001 << 32
"""The key of no passage: below all others, its score is -inf."""


def keys_of(scores: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Join score and place in one int64 whose size is the ranking order: no two keys of a query are equal.

    The bits of a float32, read as a signed number, order as the floats do once those behind the sign of a negative one
    are flipped; adding 0 makes 0 of -0. They become the upper half of the key, the lower half grows as the place falls.

    Example:
        >>> keys = keys_of(torch.tensor([1.5, -2.0, 0.0, -0.0]), torch.arange(4))
        >>> keys.argsort(descending=True).tolist(), scores_of(keys).tolist(), places_of(keys).tolist()
        ([0, 2, 3, 1], [1.5, -2.0, 0.0, 0.0], [0, 1, 2, 3])
    """
    return (_flip((scores + 0.0).view(torch.int32)).long() << 32) + (_LOW - places)


def scores_of(keys: torch.Tensor) -> torch.Tensor:
    """Read the float32 scores back from keys."""
    return _flip((keys >> 32).int()).view(torch.float32)


def places_of(keys: torch.Tensor) -> torch.Tensor:
    """Read the places back from keys."""
    return _LOW - (keys & _LOW)


def _flip(bits: torch.Tensor) -> torch.Tensor:
    """Flip all bits of negative int32 numbers but the sign."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def largest(values_QN: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k largest values of each row, in any order."""
    if values_QN.device.type != "cpu":
        return values_QN.topk(k, sorted=False).values
    return torch.from_numpy(np.partition(values_QN.numpy(), -k, axis=1)[:, -k:])  # ten times as fast as topk


def inner_products(passages_ND: np.ndarray, query_D: np.ndarray) -> np.ndarray:
    """Multiply float32 passages with a query, each by itself: the bits do not depend on what is computed beside it."""
    scores_N: np.ndarray = np.einsum("nd,d->n", passages_ND, query_D)
    return scores_N


def kept_and_held(depth: int) -> tuple[int, int]:
    """Say how many keys of a query outlast a choice among them, and how many may wait for the next."""
    kept = depth + max(depth, 128)
    return kept, kept + max(depth, 256)


@dataclass(frozen=True, slots=True)
class Block:
    """Passages that are scored together.

    Args:
        rows_ND: float32.
        screened_CD: The same in the type of the screen, on its device, filled up with zeros; None without a screen.
        places_N: Where they stand among equal scores, on the device of the screen.
        length: Length of the longest.
        lost: Length of the longest difference between a passage and what the type has made of it.
    """

    rows_ND: torch.Tensor
    screened_CD: torch.Tensor | None
    places_N: torch.Tensor
    length: float
    lost: float


class Screen:
    """Finds candidates for the best passages of some queries: surely all of these, and a few more.

    The exact score lies within bounds around the fast one: by Cauchy-Schwarz, from the lengths of what the type has
    taken from query and passage, and from the rounding of sums. A passage is passed over if k others are better
    whatever the errors are. Most are, because the fast score is far below the k-th best. The others get a key of
    fast score and place; these are held until there are so many that it pays to choose among them.

    Args:
        query_QD: Q queries, float32 on the CPU.
        depth: k.
        room_QC: Takes the scores of a block, at least Q rows, on the device and in the type of the screen.

    Attributes:
        crowded_Q: Queries with more passages too close to call than are kept: some may be lost.
    """

    def __init__(self, query_QD: torch.Tensor, depth: int, room_QC: torch.Tensor) -> None:
        self._query_QD, self._depth, self._room_QC = query_QD, depth, room_QC[: len(query_QD)]
        self._kept, self._held = kept_and_held(depth)
        self._screened_QD = query_QD.to(room_QC)
        (queries, columns), device = self._room_QC.shape, room_QC.device
        self._length_Q = query_QD.norm(dim=1).to(device)
        self._lost_Q = (query_QD.to(device) - self._screened_QD.float()).norm(dim=1)
        self._slack_Q = torch.zeros(queries, device=device)  # of all blocks so far
        self._least_Q = torch.full((queries,), -torch.inf, device=device)  # the k-th best exact score is not below
        self._keys_QH = torch.full((queries, self._held + columns), NO_KEY, dtype=torch.int64, device=device)
        self._count_Q = torch.zeros(queries, dtype=torch.int64, device=device)
        self.crowded_Q = torch.zeros(queries, dtype=torch.bool, device=device)
        self._began = False

    def add(self, block: Block) -> None:
        """Score a block and hold the keys of what may be among the best."""
        scores_QN, slack_Q = self._scores(block)
        self._slack_Q = torch.maximum(self._slack_Q, slack_Q)
        if not self._began and self._depth <= scores_QN.shape[1]:
            self._raise(slice(None), largest(scores_QN.float(), self._depth).amin(dim=1))
        self._began = True
        at = _reaching(scores_QN, (self._least_Q - slack_Q).to(scores_QN.dtype))  # rounded as the scores are
        if len(at):
            row = at.div(scores_QN.shape[1], rounding_mode="floor")
            column = at - row * scores_QN.shape[1]
            self._hold(row, keys_of(scores_QN[row, column].float(), block.places_N.index_select(0, column)))

    def join(self, others: Sequence["Screen"]) -> None:
        """Take over what screens of the same queries have found elsewhere in the corpus."""
        for other in others:
            self._slack_Q = torch.maximum(self._slack_Q, other._slack_Q)
            self._least_Q = torch.maximum(self._least_Q, other._least_Q)
            self.crowded_Q |= other.crowded_Q
        self._keys_QH = torch.cat([screen._keys_QH for screen in (self, *others)], dim=1)
        self._count_Q.fill_(self._keys_QH.shape[1])

    def candidates(self) -> torch.Tensor:
        """Return keys of fast scores, [Q, kept], whose places are those of all candidates; the rest is `NO_KEY`."""
        self._choose(torch.arange(len(self._count_Q), device=self._count_Q.device))
        keys_QN = self._keys_QH[:, : self._kept]
        return keys_QN.where(self._highest(keys_QN, self._slack_Q[:, None]) >= self._least_Q[:, None], NO_KEY)

    def _scores(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """Score a block; also return how far from the exact score the fast one can be before it is stored."""
        if block.screened_CD is None:
            rows_ND = block.rows_ND.numpy()
            scores = [torch.from_numpy(inner_products(rows_ND, query_D)) for query_D in self._query_QD.numpy()]
            return torch.stack(scores).to(self._room_QC.device), torch.zeros_like(self._slack_Q)
        torch.mm(self._screened_QD, block.screened_CD.T, out=self._room_QC)
        sums = (self._query_QD.shape[1] + _STEPS) * torch.finfo(torch.float32).eps * block.length
        slack_Q = self._lost_Q * (block.length + block.lost) + self._length_Q * (block.lost + sums)
        slack_Q = 1.001 * slack_Q + _TINY * (self._length_Q + block.length)
        return self._room_QC[:, : len(block.places_N)], slack_Q

    def _hold(self, row: torch.Tensor, keys: torch.Tensor) -> None:
        """Append keys to those held for their queries, which are in order, and choose where there are many."""
        new_Q = torch.bincount(row, minlength=len(self._count_Q))
        start_Q = self._count_Q - (new_Q.cumsum(0) - new_Q)
        start_Q += torch.arange(len(start_Q), device=row.device) * self._keys_QH.shape[1]
        self._keys_QH.view(-1)[start_Q.index_select(0, row) + torch.arange(len(row), device=row.device)] = keys
        self._count_Q += new_Q
        many = (self._count_Q > self._held).nonzero()[:, 0]
        if len(many):
            self._choose(many)

    def _choose(self, rows: torch.Tensor) -> None:
        """Keep the best of what is held for some queries."""
        stop = max(int(self._count_Q[rows].max()), self._kept)
        keys = self._keys_QH[rows, :stop]
        best = largest(keys, self._kept)
        self._keys_QH[rows, : self._kept] = best
        self._keys_QH[rows, self._kept : stop] = NO_KEY
        self._raise(rows, scores_of(largest(best, self._depth).amin(dim=1)))
        close = self._highest(best.amin(dim=1), self._slack_Q[rows]) >= self._least_Q[rows]
        self.crowded_Q[rows] |= close & ((keys != NO_KEY).sum(dim=1) > self._kept)
        self._count_Q[rows] = self._count_Q[rows].clamp(max=self._kept)

    def _raise(self, rows: torch.Tensor | slice, best: torch.Tensor) -> None:
        """Raise the bound of the k-th best exact score, given the k-th best fast one."""
        lowest = best - _ROUNDING[self._room_QC.dtype] * best.abs().nan_to_num(posinf=0) - self._slack_Q[rows]
        self._least_Q[rows] = torch.maximum(self._least_Q[rows], lowest)

    def _highest(self, keys: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """Bound the exact scores from above, given keys of fast ones."""
        scores = scores_of(keys)
        return scores + _ROUNDING[self._room_QC.dtype] * scores.abs().nan_to_num(posinf=0) + slack


def _reaching(scores_QN: torch.Tensor, least_Q: torch.Tensor) -> torch.Tensor:
    """Number the scores that are not below what their query asks for, row by row."""
    if scores_QN.device.type != "cpu":
        return (scores_QN >= least_Q[:, None]).flatten().nonzero()[:, 0]
    if scores_QN.dtype == torch.bfloat16 and bool((least_Q > 0).all()):
        scores_QN, least_Q = scores_QN.view(torch.int16), least_Q.view(torch.int16)  # bits order as numbers above 0 do
    if scores_QN.dtype == torch.bfloat16:
        return torch.from_numpy(np.flatnonzero((scores_QN >= least_Q[:, None]).numpy()))
    return torch.from_numpy(np.flatnonzero(scores_QN.numpy() >= least_Q.numpy()[:, None]))
