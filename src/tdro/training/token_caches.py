"""The token caches of a study: every text is tokenised once for mining, all stages and evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

from sentence_transformers import SentenceTransformer

from tdro.config import DatasetConfig
from tdro.data.collate import identify
from tdro.data.store import Rows
from tdro.data.token_cache import Tokens, cached_tokens
from tdro.data.unique import Kind, UniqueTexts, unique_texts
from tdro.errors import ConfigError
from tdro.files import cache_folder
from tdro.training.run import Run

STAGE = "tokens"


class CachedTexts(NamedTuple):
    """The distinct queries or passages of a dataset, and their tokens."""

    texts: UniqueTexts
    tokens: Tokens

    def of(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of some of the texts, given without instruction."""
        return self.tokens.select(self.texts.find(texts))


class TokenCaches:
    """Finds tokens in the cache, and makes what is missing.

    Args:
        run: The run whose journal hears of it.
        model: Whose tokenizer is used.

    Raises:
        ConfigError: The tokenizer cannot be identified, or a maximum length leaves no room for a text.
    """

    def __init__(self, run: Run, model: SentenceTransformer) -> None:
        data = run.study.data
        self._run, self._tokenizer = run, model.tokenizer
        self._lengths: dict[Kind, int] = {"queries": data.query_max_length, "passages": data.passage_max_length}
        self._identities = {kind: identify(model.tokenizer, length) for kind, length in self._lengths.items()}

    def distinct(self, name: str, rows: Rows, kind: Kind, instruction: str | None = None) -> UniqueTexts:
        """Number the distinct texts of a dataset, instruction included; the numbers do not depend on it.

        Args:
            name: The dataset.
            rows: Its rows.
            kind: Queries or passages.
            instruction: What is put in front of the texts; None: the dataset's own.
        """
        study = self._run.study
        return unique_texts(
            rows,
            kind,
            cache=cache_folder(),
            instruction=instruction_of(study.data.datasets[name], kind) if instruction is None else instruction,
            template=study.data.instruction_template,
            progress=lambda done, of: self._run.journal.progress("texts", done, of, dataset=name),
        )

    def of_dataset(self, name: str, rows: Rows, kind: Kind, instruction: str | None = None) -> CachedTexts:
        """Return the tokens of a dataset's texts; the arguments are those of `distinct`."""
        texts = self.distinct(name, rows, kind, instruction)
        return CachedTexts(texts, self.of_texts(texts, texts.content, name, kind))

    def of_texts(self, texts: Sequence[str], content: str, name: str, kind: Kind) -> Tokens:
        """Return the tokens of texts.

        Args:
            texts: The texts, instruction included.
            content: Fingerprint of the texts.
            name: Dataset or task, for the journal.
            kind: Decides the maximum length.
        """
        return cached_tokens(
            texts,
            content=content,
            tokenizer=self._tokenizer,
            max_length=self._lengths[kind],
            cache=cache_folder(),
            identity=self._identities[kind],
            progress=lambda done, of: self._run.journal.progress(STAGE, done, of, dataset=name),
        )


def open_caches(run: Run, model: SentenceTransformer) -> TokenCaches | None:
    """Return the token caches of a run; None where the study wants none or the tokenizer's results cannot be kept."""
    if run.study.data.tokens == "fresh":
        return None
    try:
        return TokenCaches(run, model)
    except ConfigError as problem:
        note_once(run, f"made anew in every step: {problem.what}")
        return None


def instruction_of(options: DatasetConfig, kind: Kind) -> str:
    """Return what is put in front of a dataset's queries or passages."""
    return options.instruction if kind == "queries" or options.symmetric else ""


def wordings_of(options: DatasetConfig, kind: Kind, share: float) -> list[str]:
    """Return what may be put in front of a dataset's queries or passages in training; "" stands for nothing.

    Args:
        options: Settings of the dataset.
        kind: Queries or passages.
        share: Probability that a visit of a row has an instruction.

    Returns:
        Every instruction, then "" where a visit may have none; one entry where all visits are alike.
    """
    given = [wording for wording in (options.instruction, *options.more_instructions) if wording]
    if not given or (kind == "passages" and not options.symmetric):
        return [""]
    return given if share == 1 else [*given, ""]


def note_once(run: Run, text: str) -> None:
    """Tell the journal something about tokens that it has not heard before."""
    if all(event["text"] != text for event in run.journal.read("note", STAGE)):
        run.journal.write("note", STAGE, text=text)
