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
from tdro.training.token_caches import CachedTexts, TokenCaches, instruction_of, note_once, open_caches

LARGE_SHARE = 0.1
"""Where more of a dataset's texts than this are cut, the journal says so."""

Found = tuple[list[list[int]], np.ndarray]
"""Token lists, and an int64 key for each text: equal for equal texts of a dataset."""


class DatasetTokens(Protocol):
    """Token lists of the texts of a dataset, instruction included; rows are counted in `rows.source`."""

    def queries(self, row_B: np.ndarray) -> Found:
        """Return the token lists and the keys of the queries of some rows."""

    def passages(self, row_N: np.ndarray, place_N: np.ndarray, shown: int) -> Found:
        """Return the token lists of the first `shown` of some passages, and the keys of all of them.

        Args:
            row_N: Row of each passage.
            place_N: Where it stands in its row, positives first, then negatives, counted from 0.
            shown: How many of them need token lists.
        """


class CachedTokens:
    """Token lists from the cache; no text is read."""

    def __init__(self, queries: CachedTexts, passages: CachedTexts) -> None:
        self._queries, self._passages = queries, passages

    def queries(self, row_B: np.ndarray) -> Found:
        """Return token lists and keys of queries."""
        key_B = self._queries.texts.ids_n[row_B]
        return self._queries.tokens.take(key_B), key_B

    def passages(self, row_N: np.ndarray, place_N: np.ndarray, shown: int) -> Found:
        """Return token lists of the first passages and the keys of all."""
        key_N = self._passages.texts.ids_n[self._passages.texts.starts_n[row_N] + place_N]
        return self._passages.tokens.take(key_N[:shown]), key_N


class FreshTokens:
    """Texts are read and tokenised in the step."""

    def __init__(self, rows: Rows, options: DatasetConfig, data: DataConfig, model: SentenceTransformer) -> None:
        self._rows, self._options, self._data, self._tokenizer = rows.source, options, data, model.tokenizer

    def queries(self, row_B: np.ndarray) -> Found:
        """Return token lists and keys of queries."""
        texts = self._written(self._rows.queries_at(row_B), "queries")
        return tokenize(self._tokenizer, texts, self._data.query_max_length), _keys(texts)

    def passages(self, row_N: np.ndarray, place_N: np.ndarray, shown: int) -> Found:
        """Return token lists of the first passages and the keys of all."""
        texts = self._written(self._rows.passages_at(row_N, place_N), "passages")
        return tokenize(self._tokenizer, texts[:shown], self._data.passage_max_length), _keys(texts)

    def _written(self, texts: list[str], kind: Kind) -> list[str]:
        """Put the instruction in front of texts."""
        instruction = instruction_of(self._options, kind)
        return [with_instruction(text, instruction, self._data.instruction_template) for text in texts]


def study_tokens(run: Run, rows: dict[str, Rows], model: SentenceTransformer) -> dict[str, DatasetTokens]:
    """Decide for every dataset where its tokens come from, and make those that are to be kept and are not there yet.

    With data.tokens: auto they are kept where at most twice as many texts must be tokenised for it as all stages of the
    study will draw from the dataset. Token lists are the same either way.

    Args:
        run: The run.
        rows: Dataset -> rows.
        model: Whose tokenizer is used.
    """
    data, caches = run.study.data, open_caches(run, model)
    found: dict[str, DatasetTokens] = {}
    for name, dataset in rows.items():
        if caches is not None and (data.tokens == "cached" or _pays(run.study, caches, name, dataset)):
            queries, passages = (caches.of_dataset(name, dataset, kind) for kind in ("queries", "passages"))
            _note_cut(run, name, {"query": queries.tokens, "passage": passages.tokens})
            found[name] = CachedTokens(queries, passages)
        else:
            found[name] = FreshTokens(dataset, data.datasets[name], data, model)
    return found


def _pays(study: Study, caches: TokenCaches, name: str, rows: Rows) -> bool:
    """Say whether keeping a dataset's tokens is worth its cost."""
    drawn = 2 * _texts_drawn(study, rows.source)
    if 2 * len(rows.source) > drawn:  # a query and a positive per row: looking for equal ones would take too long
        return False
    return sum(len(caches.distinct(name, rows, kind)) for kind in ("queries", "passages")) <= drawn


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


def _keys(texts: Sequence[str]) -> np.ndarray:
    """Number the distinct texts."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
