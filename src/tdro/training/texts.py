"""The texts of a step as token lists: rows are drawn, examples chosen, instructions added, tokens made."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer

from tdro.config import DataConfig
from tdro.data.collate import tokenize
from tdro.data.examples import choose, whole, with_instruction
from tdro.data.mixture import Draw
from tdro.data.reading import Rows
from tdro.data.records import Example


@dataclass(frozen=True)
class StepTexts:
    """Token lists of one step.

    Attributes:
        queries_B: Token lists of the queries.
        passages_P: Token lists of the passages, query by query, the positive first.
        count_B: int64 tensor, passages per query.
        query_key_B: int64 tensor, equal for equal query texts.
        passage_key_P: int64 tensor, equal for equal passage texts.
        known_K2: int64 tensor, pairs of a query and the key of a passage of the step that is another positive of it.
        place_P: int64 tensor, where each passage stands in its row, positives first, then negatives.
    """

    queries_B: list[list[int]]
    passages_P: list[list[int]]
    count_B: torch.Tensor
    query_key_B: torch.Tensor
    passage_key_P: torch.Tensor
    known_K2: torch.Tensor
    place_P: torch.Tensor

    @property
    def positive_B(self) -> torch.Tensor:
        """int64, where each query's positive is among the passages."""
        return self.count_B.cumsum(0) - self.count_B


class TextSource:
    """Turns a draw into token lists.

    Args:
        rows: Dataset -> rows, in the order of the mixture.
        data: Instructions and maximum lengths.
        model: Whose tokenizer is used.
        seed: Decides which positive and negatives a row shows.
    """

    def __init__(self, rows: Mapping[str, Rows], data: DataConfig, model: SentenceTransformer, seed: int) -> None:
        self._names, self._rows = list(rows), list(rows.values())
        self._data, self._tokenizer, self._seed = data, model.tokenizer, seed

    def over(self, rows: Mapping[str, Rows]) -> "TextSource":
        """Return a source of the same kind over other rows."""
        other = copy.copy(self)
        other._names, other._rows = list(rows), list(rows.values())
        return other

    def texts(self, draw: Draw, passages_per_query: int) -> StepTexts:
        """Read, choose and tokenise the texts of a draw."""
        chosen = []
        for dataset, row, visit in zip(
            draw.dataset_B.tolist(), draw.row_B.tolist(), draw.visit_B.tolist(), strict=True
        ):
            name, rows = self._names[dataset], self._rows[dataset]
            chosen.append((dataset, choose(rows[row], passages_per_query, self._seed, name, row, visit)))
        return self._tokenised(chosen)

    def whole_rows(self, dataset: int, numbers: Iterable[int]) -> StepTexts:
        """Read and tokenise rows with all their positives and negatives."""
        return self._tokenised([(dataset, whole(self._rows[dataset][number])) for number in numbers])

    def _tokenised(self, chosen: list[tuple[int, Example]]) -> StepTexts:
        """Add instructions to the texts of examples and tokenise them."""
        data = self._data
        queries: list[str] = []
        passages: list[str] = []
        others: list[tuple[int, str]] = []
        for query, (dataset, example) in enumerate(chosen):
            options = data.datasets[self._names[dataset]]
            instruction = options.instruction if options.symmetric else ""
            queries.append(with_instruction(example.query, options.instruction, data.instruction_template))
            passages += [with_instruction(p, instruction, data.instruction_template) for p in example.passages]
            others += [
                (query, with_instruction(p, instruction, data.instruction_template)) for p in example.other_positives
            ]
        passage_keys, query_keys = _keys(passages), _keys(queries)
        known = [(query, passage_keys[text]) for query, text in others if text in passage_keys]
        return StepTexts(
            tokenize(self._tokenizer, queries, data.query_max_length),
            tokenize(self._tokenizer, passages, data.passage_max_length),
            torch.tensor([len(example.passages) for _, example in chosen]),
            torch.tensor([query_keys[text] for text in queries]),
            torch.tensor([passage_keys[text] for text in passages]),
            torch.tensor(known, dtype=torch.long).reshape(-1, 2),
            torch.tensor([place for _, example in chosen for place in example.places]),
        )


def _keys(texts: list[str]) -> dict[str, int]:
    """Number the distinct texts."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}
