"""The texts of a step as token lists: rows are drawn, examples chosen, tokens looked up or made."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tdro.config import DataConfig
from tdro.data.examples import Places, choose, draw_wording, whole
from tdro.data.mixture import Draw
from tdro.data.reading import Rows
from tdro.training.dataset_tokens import DatasetTokens, FreshTokens, put
from tdro.training.token_caches import wordings_of


@dataclass(frozen=True)
class StepTexts:
    """Token lists of one step.

    Keys tell which texts of a dataset are equal; they are numbered as they first appear in the step. Texts of different
    datasets have different keys.

    Attributes:
        queries_B: Token lists of the queries.
        passages_P: Token lists of the passages, query by query, the positive first.
        count_B: int64 tensor, passages per query.
        query_key_B: int64 tensor, equal for equal query texts.
        passage_key_P: int64 tensor, equal for equal passage texts.
        known_K2: int64 tensor, pairs of a query and the key of a passage of the step that is another positive of it.
        place_P: int64 tensor, where each passage stands in its row, positives first, then negatives.
        score_P: float64 tensor, the score that each passage carries; NaN where there is none.
    """

    queries_B: list[list[int]]
    passages_P: list[list[int]]
    count_B: torch.Tensor
    query_key_B: torch.Tensor
    passage_key_P: torch.Tensor
    known_K2: torch.Tensor
    place_P: torch.Tensor
    score_P: torch.Tensor

    @property
    def positive_B(self) -> torch.Tensor:
        """int64, where each query's positive is among the passages."""
        return self.count_B.cumsum(0) - self.count_B


class TextSource:
    """Turns a draw into token lists; from several threads if need be, for it never changes.

    Args:
        rows: Dataset -> rows, in the order of the mixture.
        data: Instructions and maximum lengths.
        model: Whose tokenizer is used.
        seed: Decides which positive and negatives a row shows.
        tokens: Dataset -> where its tokens come from; by default they are made in the step.
    """

    def __init__(
        self,
        rows: Mapping[str, Rows],
        data: DataConfig,
        model: SentenceTransformer,
        seed: int,
        tokens: Mapping[str, DatasetTokens] | None = None,
    ) -> None:
        self._tokens = tokens or {n: FreshTokens(r, data.datasets[n], data, model) for n, r in rows.items()}
        self._data, self._seed = data, seed
        self._first = {"first_positive": data.positives == "first", "first_negatives": data.negatives == "first"}
        self._set_rows(rows)

    def over(self, rows: Mapping[str, Rows]) -> "TextSource":
        """Return a source of the same kind over other rows of the same datasets."""
        other = copy.copy(self)
        other._set_rows(rows)
        return other

    def texts(self, draw: Draw, passages_per_query: int) -> StepTexts:
        """Choose the texts of a draw and return their tokens."""
        counts_B2 = np.empty((len(draw.row_B), 2), np.int64)
        for dataset in np.unique(draw.dataset_B).tolist():
            mine_B = draw.dataset_B == dataset
            counts_B2[mine_B] = self._counts[dataset][draw.row_B[mine_B]]
        rows = zip(*(part.tolist() for part in (*counts_B2.T, draw.dataset_B, draw.row_B, draw.visit_B)), strict=True)
        chosen = [
            choose(
                positives, negatives, passages_per_query, self._seed, self._names[dataset], row, visit, **self._first
            )
            for positives, negatives, dataset, row, visit in rows
        ]
        return self._look_up(draw.dataset_B, draw.row_B, chosen, self._draw_wordings(draw))

    def whole_rows(self, dataset: int, numbers: Iterable[int]) -> StepTexts:
        """Return the tokens of rows with all their positives and negatives, and with their dataset's first wording."""
        row_B = np.fromiter(numbers, np.int64)
        chosen = [whole(*counts) for counts in self._counts[dataset][row_B].tolist()]
        return self._look_up(np.full(len(row_B), dataset), row_B, chosen, np.zeros_like(row_B))

    def _draw_wordings(self, draw: Draw) -> np.ndarray:
        """Draw which of its dataset's wordings each query has in front; the first where there is no choice."""
        wording_B, share = np.zeros_like(draw.row_B), self._data.instruction_share
        for dataset in np.unique(draw.dataset_B).tolist():
            name = self._names[dataset]
            wordings = wordings_of(self._data.datasets[name], "queries", share)
            if len(wordings) > 1:
                mine_B = np.flatnonzero(draw.dataset_B == dataset)
                visits = zip(draw.row_B[mine_B].tolist(), draw.visit_B[mine_B].tolist(), strict=True)
                given = len(wordings) - (share < 1)
                wording_B[mine_B] = [draw_wording(given, share, self._seed, name, *visit) for visit in visits]
        return wording_B

    def _set_rows(self, rows: Mapping[str, Rows]) -> None:
        """Take up rows."""
        self._names, self._numbers = list(rows), [dataset.numbers_n for dataset in rows.values()]
        self._scores = [dataset.scores for dataset in rows.values()]
        self._counts = [np.stack([r.positive_count_n, r.negative_count_n], axis=1) for r in rows.values()]

    def _look_up(
        self, dataset_B: np.ndarray, row_B: np.ndarray, chosen: Sequence[Places], wording_B: np.ndarray
    ) -> StepTexts:
        """Find the tokens and keys of passages that were chosen from rows; the other positives have keys alone."""
        count_B, place_P = _laid_out([places for places, _ in chosen])
        others_B, place_K = _laid_out([others for _, others in chosen])
        place_N, n_passages = np.concatenate([place_P, place_K]), len(place_P)
        query_N = np.repeat(np.tile(np.arange(len(chosen)), 2), np.concatenate([count_B, others_B]))
        queries_B: list[list[int]] = [[]] * len(chosen)
        passages_P: list[list[int]] = [[]] * n_passages
        query_key_B, key_N, dataset_N = np.empty_like(row_B), np.empty_like(place_N), dataset_B[query_N]
        score_P = np.full(n_passages, np.nan)
        for dataset in np.unique(dataset_B).tolist():
            tokens, numbers = self._tokens[self._names[dataset]], self._numbers[dataset]
            mine_B, mine_N = np.flatnonzero(dataset_B == dataset), np.flatnonzero(dataset_N == dataset)
            mine_P = mine_N[mine_N < n_passages]
            found, query_key_B[mine_B] = tokens.queries(numbers[row_B[mine_B]], wording_B[mine_B])
            put(queries_B, mine_B, found)
            number_N = numbers[row_B[query_N[mine_N]]]
            found, key_N[mine_N] = tokens.passages(number_N, place_N[mine_N], wording_B[query_N[mine_P]])
            put(passages_P, mine_P, found)
            if (scores := self._scores[dataset]) is not None:
                score_P[mine_P] = scores.at(number_N[: len(mine_P)], place_P[mine_P])
        key_N = _numbered(key_N, dataset_N)
        known_N2 = np.stack([query_N, key_N], axis=1)[n_passages:]
        in_step_N = known_N2[:, 1] <= key_N[:n_passages].max()  # what is not among the passages has a later number
        return StepTexts(
            queries_B,
            passages_P,
            torch.from_numpy(count_B),
            torch.from_numpy(_numbered(query_key_B, dataset_B)),
            torch.from_numpy(key_N[:n_passages].copy()),
            torch.from_numpy(known_N2[in_step_N]),
            torch.from_numpy(place_P),
            torch.from_numpy(score_P),
        )


def _laid_out(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of lists, and all their numbers."""
    return np.array([len(numbers) for numbers in lists], np.int64), np.array([n for ns in lists for n in ns], np.int64)


def _numbered(key_n: np.ndarray, dataset_n: np.ndarray) -> np.ndarray:
    """Number the distinct keys of each dataset in the order in which they appear."""
    _, first_U, which_n = np.unique(dataset_n * (1 << 40) + key_n, return_index=True, return_inverse=True)
    number_U = np.empty_like(first_U)
    number_U[np.argsort(first_U)] = np.arange(len(first_U))
    numbers: np.ndarray = number_U[which_n]
    return numbers
