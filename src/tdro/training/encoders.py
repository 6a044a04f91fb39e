"""How a study encodes the texts of its datasets and tasks: with its lengths, and tokens from the cache."""

from collections.abc import Callable, Sequence

import numpy as np
from sentence_transformers import SentenceTransformer

from tdro.config import TaskConfig, fingerprint
from tdro.data.examples import with_instruction
from tdro.data.store import Rows
from tdro.data.token_cache import Tokens
from tdro.data.unique import Kind
from tdro.retrieval.encode import encode
from tdro.retrieval.search import Encode
from tdro.training.run import Run
from tdro.training.token_caches import instruction_of, open_caches

Progress = Callable[[int, int], None]


class Encoders:
    """Makes the functions with which a model encodes queries and passages in a study.

    Args:
        run: The run.
        model: The encoder.
    """

    def __init__(self, run: Run, model: SentenceTransformer) -> None:
        self._run, self._model = run, model
        self._caches = open_caches(run, model)

    def of_dataset(self, name: str, rows: Rows) -> tuple[Encode, Encode]:
        """Return the encoders of queries and of passages of a dataset; they take texts of these rows."""
        caches, options = self._caches, self._run.study.data.datasets[name]

        def tokens(texts: Sequence[str], kind: Kind) -> Sequence[str] | Tokens:
            if caches is not None:
                return caches.of_dataset(name, rows, kind).of(texts)
            return self._written(texts, instruction_of(options, kind))

        return self._pair(tokens)

    def of_task(self, name: str, options: TaskConfig, content: str, progress: Progress) -> tuple[Encode, Encode]:
        """Return the encoders of queries and of documents of a task.

        Args:
            name: The task.
            options: Its settings.
            content: Fingerprint of its files.
            progress: Called with (texts done, texts) while the model works.
        """
        caches, template = self._caches, self._run.study.data.instruction_template

        def tokens(texts: Sequence[str], kind: Kind) -> Sequence[str] | Tokens:
            instruction = options.instruction if kind == "queries" else ""
            written = self._written(texts, instruction)
            if caches is None:
                return written
            key = fingerprint(content, kind, [instruction, template] if instruction else [])
            return caches.of_texts(written, key, name, kind)

        return self._pair(tokens, progress)

    def _pair(
        self, tokens: Callable[[Sequence[str], Kind], Sequence[str] | Tokens], progress: Progress | None = None
    ) -> tuple[Encode, Encode]:
        """Join the making of tokens with the model."""
        data, run = self._run.study.data, self._run

        def encoder(kind: Kind, max_length: int) -> Encode:
            def encode_texts(texts: Sequence[str]) -> np.ndarray:
                found = tokens(texts, kind)
                with run.device.precision():
                    return encode(
                        self._model, found, max_length=max_length, max_tokens=run.max_tokens, progress=progress
                    )

            return encode_texts

        return encoder("queries", data.query_max_length), encoder("passages", data.passage_max_length)

    def _written(self, texts: Sequence[str], instruction: str) -> list[str]:
        """Put an instruction in front of texts."""
        return [with_instruction(text, instruction, self._run.study.data.instruction_template) for text in texts]
