"""Where a step finds the tokens of a dataset's texts: in the cache, or made in the step; and when which is worth it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sentence_transformers import SentenceTransformer

from tdro.config import DataConfig, DatasetConfig, Study
from tdro.data.collate import tokenize
from tdro.data.examples import with_instruction
from tdro.data.store import Rows
from tdro.data.token_cache import Tokens
from tdro.data.unique import Kind
from tdro.training.run import Run
from tdro.training.token_caches import CachedTexts, TokenCaches, note_once, open_caches, wordings_of

LARGE_SHARE = 0.1
"""Where more of a dataset's texts than this are cut, the journal says so."""

KINDS: tuple[Kind, Kind] = ("queries", "passages")

Found = tuple[list[list[int]], np.ndarray]
"""Token lists, and an int64 key for each text: equal for equal texts of a dataset."""


class DatasetTokens(Protocol):
    """Token lists of the texts of a dataset, instruction included; rows are counted in `rows.source`."""

    def queries(self, row_B: np.ndarray, wording_B: np.ndarray) -> Found:
        """Return the token lists and the keys of the queries of some rows.

        Args:
            row_B: The rows.
            wording_B: Which of `wordings_of` each has in front.
        """

    def passages(self, row_N: np.ndarray, place_N: np.ndarray, wording_P: np.ndarray) -> Found:
        """Return the token lists of the first P of some passages, and the keys of all of them.

        Args:
            row_N: Row of each passage.
            place_N: Where it stands in its row, positives first, then negatives, counted from 0.
            wording_P: Which of `wordings_of` its row's query has in front, and it too where the dataset is symmetric.
        """


class CachedTokens:
    """Token lists from the cache; no text is read.

    Args:
        queries: The tokens of the queries with each of `wordings_of` in front.
        passages: Those of the passages.
    """

    def __init__(self, queries: Sequence[CachedTexts], passages: Sequence[CachedTexts]) -> None:
        self._queries, self._passages = queries, passages

    def queries(self, row_B: np.ndarray, wording_B: np.ndarray) -> Found:
        """Return token lists and keys of queries."""
        key_B = self._queries[0].texts.ids_n[row_B]
        return _take(self._queries, key_B, wording_B), key_B

    def passages(self, row_N: np.ndarray, place_N: np.ndarray, wording_P: np.ndarray) -> Found:
        """Return token lists of the first passages and the keys of all."""
        texts = self._passages[0].texts
        key_N = texts.ids_n[texts.starts_n[row_N] + place_N]
        return _take(self._passages, key_N[: len(wording_P)], wording_P), key_N


class FreshTokens:
    """Texts are read and tokenised in the step."""

    def __init__(self, rows: Rows, options: DatasetConfig, data: DataConfig, model: SentenceTransformer) -> None:
        self._rows, self._options, self._data, self._tokenizer = rows.source, options, data, model.tokenizer

    def queries(self, row_B: np.ndarray, wording_B: np.ndarray) -> Found:
        """Return token lists and keys of queries."""
        texts = self._rows.queries_at(row_B)
        written = self._written(texts, "queries", wording_B)
        return tokenize(self._tokenizer, written, self._data.query_max_length), _keys(texts)

    def passages(self, row_N: np.ndarray, place_N: np.ndarray, wording_P: np.ndarray) -> Found:
        """Return token lists of the first passages and the keys of all."""
        texts = self._rows.passages_at(row_N, place_N)
        written = self._written(texts[: len(wording_P)], "passages", wording_P)
        return tokenize(self._tokenizer, written, self._data.passage_max_length), _keys(texts)

    def _written(self, texts: list[str], kind: Kind, wording_B: np.ndarray) -> list[str]:
        """Put instructions in front of texts."""
        template = self._data.instruction_template
        wordings = wordings_of(self._options, kind, self._data.instruction_share)
        chosen = wording_B.tolist() if len(wordings) > 1 else [0] * len(texts)
        return [with_instruction(text, wordings[i], template) for text, i in zip(texts, chosen, strict=True)]


def study_tokens(
    run: Run, rows: dict[str, Rows], model: SentenceTransformer, many_models: bool = False
) -> dict[str, DatasetTokens]:
    """Decide for every dataset where its tokens come from, and make those that are to be kept and are not there yet.

    With data.tokens: auto they are kept where at most twice as many texts must be tokenised for it as all stages of the
    study will draw from the dataset. Token lists are the same either way.

    Args:
        run: The run.
        rows: Dataset -> rows.
        model: Whose tokenizer is used.
        many_models: Whether far more models will be trained than a study has stages: keeping tokens always pays then.
    """
    data, caches = run.study.data, open_caches(run, model)
    found: dict[str, DatasetTokens] = {}
    for name, dataset in rows.items():
        worth = many_models or data.tokens == "cached"
        if caches is not None and (worth or _pays(run.study, caches, name, dataset)):
            queries, passages = (
                [caches.of_dataset(name, dataset, kind, wording) for wording in _wordings(run.study, name, kind)]
                for kind in KINDS
            )
            _note_cut(run, name, {"query": queries[0].tokens, "passage": passages[0].tokens})
            found[name] = CachedTokens(queries, passages)
        else:
            found[name] = FreshTokens(dataset, data.datasets[name], data, model)
    return found


def _pays(study: Study, caches: TokenCaches, name: str, rows: Rows) -> bool:
    """Say whether keeping a dataset's tokens is worth its cost."""
    drawn = 2 * _texts_drawn(study, rows.source)
    if 2 * len(rows.source) > drawn:  # a query and a positive per row: looking for equal ones would take too long
        return False
    made = (len(caches.distinct(name, rows, kind)) * len(_wordings(study, name, kind)) for kind in KINDS)
    return sum(made) <= drawn


def _wordings(study: Study, name: str, kind: Kind) -> list[str]:
    """What may stand in front of a dataset's texts."""
    return wordings_of(study.data.datasets[name], kind, study.data.instruction_share)


def _texts_drawn(study: Study, source: Rows) -> int:
    """Estimate how many texts all stages of a study draw from a dataset; that stages may be left out is not seen."""
    reference, weights = study.reference, study.weights
    models = [
        (reference, 2),
        (weights, 2 * weights.seeds),
    ]  # reference and robust; the proxies, and what they move from
    texts = sum(count * c.steps * c.batch_size * (1 + c.passages_per_query) for c, count in models)
    drawn = texts // len(study.data.datasets)
    if weights.reference_similarities == "all":
        drawn += len(source) + int((source.positive_count_n + source.negative_count_n).sum())
    return drawn


def _note_cut(run: Run, name: str, kinds: dict[str, Tokens]) -> None:
    """Tell the journal where many texts are cut."""
    for kind, tokens in kinds.items():
        if tokens.truncated > LARGE_SHARE * len(tokens):
            option = f"data.{kind}_max_length"
            length = getattr(run.study.data, f"{kind}_max_length")
            share = f"{tokens.truncated / len(tokens):.0%} of the {kind} texts"
            note_once(run, f"{name}: {share} are longer than {option}, {length} tokens, and are cut")


def put(lists: list[list[int]], places: np.ndarray, found: Sequence[list[int]]) -> None:
    """Write token lists to their places in a list."""
    for place, tokens in zip(places.tolist(), found, strict=True):
        lists[place] = tokens


def _take(cached: Sequence[CachedTexts], key_B: np.ndarray, wording_B: np.ndarray) -> list[list[int]]:
    """Return the token lists of texts, each with its wording in front."""
    if len(cached) == 1:
        return cached[0].tokens.take(key_B)
    lists: list[list[int]] = [[]] * len(key_B)
    for wording, texts in enumerate(cached):
        mine_B = np.flatnonzero(wording_B == wording)
        put(lists, mine_B, texts.tokens.take(key_B[mine_B]))
    return lists


def _keys(texts: Sequence[str]) -> np.ndarray:
    """Number the distinct texts."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
