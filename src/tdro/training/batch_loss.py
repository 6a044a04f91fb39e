"""The loss of a batch of stage 0 or 2 as a function of its embeddings, in slices of queries."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from tdro.core.losses import QueryLoss, by_query, false_negatives, in_batch_loss, own_similarities, owners
from tdro.devices import Device
from tdro.training.texts import StepTexts

SCORES = 1 << 22
"""Similarities that are in memory at once."""


class BatchLoss:
    """The mean loss of a batch, each query's times its factor.

    Passages whose tokens are the same are embedded once.

    Args:
        texts: The batch.
        loss: What a query's loss is made of.
        factor_B: Factor of each query's loss.
        in_batch_B: bool, whether other queries' passages are negatives of a query. Its own are negatives of the others
            in any case.
        device: Where the embeddings are.
        dimensions: The loss is also computed on the first so many dimensions, and averaged.
        normalize: Whether those are brought to length 1.

    Attributes:
        token_lists: The texts to embed: the queries, then every different passage once.
        queries: How many are queries.
        loss_B: float64, the loss of each query without its factor, once all slices were computed.
    """

    def __init__(
        self,
        texts: StepTexts,
        loss: QueryLoss,
        factor_B: Tensor,
        in_batch_B: Tensor,
        device: Device,
        dimensions: Sequence[int] = (),
        normalize: bool = True,
    ) -> None:
        column_P, distinct = number_texts(texts.passages_P)
        self.token_lists, self.queries = texts.queries_B + distinct, len(texts.queries_B)
        excluded_E2 = false_negatives(texts.query_key_B, texts.passage_key_P, texts.positive_B, texts.known_K2)
        self._column_P, self._count_B, self._positive_B, self._excluded_E2, self._score_P, self._factor_B = (
            tensor.to(device.name)
            for tensor in (column_P, texts.count_B, texts.positive_B, excluded_E2, texts.score_P, factor_B)
        )
        self._owner_P = owners(texts.count_B).to(device.name)
        self._rows_of = [(in_batch, (in_batch_B == in_batch).nonzero().flatten()) for in_batch in (True, False)]
        self._loss, self._dimensions, self._normalize = loss, sorted(set(dimensions)), normalize
        self.loss_B = torch.zeros(len(self._count_B), dtype=torch.float64, device=device.name)

    def exclude(self, excluded_E2: Tensor) -> None:
        """Let further passages not count as negatives; pairs of a query's row and a passage's row."""
        self._excluded_E2 = torch.cat([self._excluded_E2, excluded_E2.to(self._excluded_E2.device)])

    def __call__(self, embedding_nD: Tensor) -> Iterator[Tensor]:
        """Yield losses whose sum is the mean loss."""
        queries, full = self.queries, embedding_nD.shape[1]
        widths = [full, *(width for width in self._dimensions if width != full)]
        self.loss_B.zero_()
        for width in widths:
            for in_batch, query_b in self._slices():
                seen_nD = self._cut(embedding_nD, width)
                loss_b = self._losses(seen_nD[:queries], seen_nD[queries:], query_b, in_batch)
                self.loss_B[query_b] += loss_b.detach() / len(widths)
                yield (loss_b * self._factor_B[query_b].to(loss_b)).sum() / (queries * len(widths))

    def _slices(self) -> Iterator[tuple[bool, Tensor]]:
        """Yield whether some queries have in-batch negatives, and their rows: few enough at once."""
        at_once = max(1, SCORES // len(self._column_P))
        for in_batch, query_b in self._rows_of:
            if len(query_b):
                for part_b in query_b.split(at_once if in_batch else len(query_b)):
                    yield in_batch, part_b.to(self._column_P.device)

    def _cut(self, embedding_nD: Tensor, width: int) -> Tensor:
        """Return the first dimensions of embeddings."""
        if width == embedding_nD.shape[1]:
            return embedding_nD
        cut_nD = embedding_nD[:, :width]
        return functional.normalize(cut_nD, dim=-1) if self._normalize else cut_nD

    def _losses(self, query_BD: Tensor, distinct_UD: Tensor, query_b: Tensor, in_batch: bool) -> Tensor:
        """Compute the losses of some queries, which are in rising order."""
        loss = self._loss
        row_B = torch.full_like(self._count_B, -1).index_put((query_b,), torch.arange(len(query_b)).to(query_b))
        excluded_E2 = self._excluded_E2[row_B[self._excluded_E2[:, 0]] >= 0]
        own_p = (row_B[self._owner_P] >= 0).nonzero().flatten()
        loss_b = query_BD.new_zeros(len(query_b), dtype=torch.promote_types(query_BD.dtype, torch.float32))
        if in_batch and loss.factor:
            pairs_E2 = torch.stack([row_B[excluded_E2[:, 0]], excluded_E2[:, 1]], dim=1)
            loss_b = loss.factor * in_batch_loss(
                query_BD[query_b], distinct_UD[self._column_P], self._positive_B[query_b], loss.temperature, pairs_E2
            )
            loss = replace(loss, factor=0.0)
        if loss.factor or loss.distillation:
            count_b, own_E = self._count_B[query_b], self._owner_P[excluded_E2[:, 1]] == excluded_E2[:, 0]
            hidden_P = torch.zeros_like(self._column_P, dtype=torch.bool)
            hidden_P[excluded_E2[own_E, 1]] = True
            similarity_bN = own_similarities(query_BD[query_b], distinct_UD[self._column_P[own_p]], count_b)
            score_bN, hidden_bN = by_query(self._score_P[own_p], count_b), by_query(hidden_P[own_p], count_b, False)
            loss_b = loss_b + loss.of_own(similarity_bN, score_bN, hidden_bN)
        return loss_b


def number_texts(token_lists: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
    """Return int64 numbers that are equal for equal token lists, and the different lists by number."""
    numbers: dict[tuple[int, ...], int] = {}
    number_n = torch.tensor([numbers.setdefault(tuple(tokens), len(numbers)) for tokens in token_lists])
    return number_n, [list(tokens) for tokens in numbers]


def merge_twins(texts: StepTexts) -> StepTexts:
    """Give queries with the same tokens the same key, and passages too, so that no known positive is a negative.

    Keys tell equal texts of one dataset; in a mixed batch two datasets may have the same question or passage.
    """
    query_K = _joined(texts.queries_B, texts.query_key_B)
    passage_K = _joined(texts.passages_P, texts.passage_key_P)
    known_K2 = torch.stack([texts.known_K2[:, 0], passage_K[texts.known_K2[:, 1]]], dim=1)
    return replace(
        texts,
        query_key_B=query_K[texts.query_key_B],
        passage_key_P=passage_K[texts.passage_key_P],
        known_K2=known_K2,
    )


def _joined(token_lists: Sequence[Sequence[int]], key_n: Tensor) -> Tensor:
    """Join keys whose texts share a token list, however many texts lie between: key -> the lowest key joined with it.

    One key may have several token lists, for instructions vary from row to row.
    """
    number_n, distinct = number_texts(token_lists)
    first_K = torch.arange(int(key_n.max()) + 1)
    while True:
        first_U = torch.full((len(distinct),), len(first_K)).scatter_reduce(0, number_n, first_K[key_n], "amin")
        lower_K = first_K.scatter_reduce(0, key_n, first_U[number_n], "amin")
        if torch.equal(lower_K, first_K):
            return first_K
        first_K = lower_K
