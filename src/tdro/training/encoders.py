"""How a study encodes the texts of its datasets and tasks: with its lengths, and tokens from the cache."""

from collections.abc import Callable, Sequence

import numpy as np
from sentence_transformers import SentenceTransformer

from tdro.config import Study, TaskConfig
from tdro.data.examples import with_instruction
from tdro.data.store import Rows
from tdro.data.token_cache import Tokens
from tdro.data.unique import Kind
from tdro.files import cache_folder
from tdro.models.sides import side_of, sides_of
from tdro.retrieval.encode import encode
from tdro.retrieval.rankers import DenseRanker
from tdro.retrieval.search import Encode
from tdro.retrieval.shards import Embedder, Gauge
from tdro.training.run import Run
from tdro.training.token_caches import CachedTexts, instruction_of, open_caches

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

    def of_dataset(self, name: str, rows: Rows, identity: str, *, foreign: bool = False) -> tuple[Embedder, Embedder]:
        """Return how queries and passages of a dataset are embedded, each text once on this machine.

        Args:
            name: The dataset.
            rows: Its rows.
            identity: Fingerprint of the model's files.
            foreign: Passages may come from elsewhere, so that the dataset's tokens in the cache do not serve.
        """
        caches, run, options = self._caches, self._run, self._run.study.data.datasets[name]
        cached: dict[Kind, CachedTexts] = {}

        def tokens(texts: Sequence[str], kind: Kind) -> Sequence[str] | Tokens:
            if caches is None or (foreign and kind == "passages"):
                return self._written(texts, instruction_of(options, kind))
            if kind not in cached:
                cached[kind] = caches.of_dataset(name, rows, kind)
            return cached[kind].of(texts)

        def embedder(kind: Kind) -> Embedder:
            gauge = Gauge(lambda done, of: run.journal.progress("encode", done, of, dataset=f"{name} {kind}"))
            encode_texts = self._pair(tokens, gauge.passes)[kind == "passages"]
            settings = text_settings(run.study, instruction_of(options, kind), kind)
            about = {"encoder": identity, **settings, **self._computed(kind)}
            folder, ranks = cache_folder() / "embeddings", run.ranks
            return Embedder(encode_texts, about, folder, progress=gauge.shards, ranks=ranks)

        return embedder("queries"), embedder("passages")

    def _computed(self, kind: Kind) -> dict[str, object]:
        """In which precision embeddings are computed; and by which encoder, where there are two."""
        side = {"side": kind} if len(sides_of(self._model)) > 1 else {}
        return {"dtype": str(self._run.device.dtype), "autocast": self._run.device.autocast, **side}

    def of_task(self, name: str, options: TaskConfig, identity: str, progress: Progress) -> DenseRanker:
        """Return the model as the ranker of a task's documents, each of which it embeds once on this machine.

        Args:
            name: What the model is called.
            options: Settings of the task.
            identity: Fingerprint of the model's files.
            progress: Called with (texts done, texts) while the model works.
        """

        def embedder(kind: Kind) -> Embedder:
            gauge = Gauge(progress)
            instruction = options.instruction if kind == "queries" else ""
            encode_texts = self._pair(lambda texts, _: self._written(texts, instruction), gauge.passes)
            settings = text_settings(self._run.study, instruction, kind)
            about = {"encoder": identity, **settings, **self._computed(kind)}
            folder, ranks = cache_folder() / "embeddings", self._run.ranks
            return Embedder(encode_texts[kind == "passages"], about, folder, progress=gauge.shards, ranks=ranks)

        return DenseRanker(embedder("queries"), embedder("passages"), name, self._run.device.name, self._run.ranks)

    def _pair(
        self, tokens: Callable[[Sequence[str], Kind], Sequence[str] | Tokens], progress: Progress | None = None
    ) -> tuple[Encode, Encode]:
        """Join the making of tokens with the model."""
        data, run = self._run.study.data, self._run

        def encoder(kind: Kind, max_length: int) -> Encode:
            side = side_of(self._model, kind)

            def encode_texts(texts: Sequence[str]) -> np.ndarray:
                found = tokens(texts, kind)
                with run.device.precision():
                    return encode(side, found, max_length=max_length, max_tokens=run.max_tokens, progress=progress)

            return encode_texts

        return encoder("queries", data.query_max_length), encoder("passages", data.passage_max_length)

    def _written(self, texts: Sequence[str], instruction: str) -> list[str]:
        """Put an instruction in front of texts."""
        return [with_instruction(text, instruction, self._run.study.data.instruction_template) for text in texts]


def text_settings(study: Study, instruction: str, kind: Kind) -> dict[str, object]:
    """Name what a study does to queries or passages on their way to an embedding, besides the model's own files."""
    data, model = study.data, study.model
    return {
        "instruction": instruction,
        "template": data.instruction_template if instruction else "",
        "max_length": data.query_max_length if kind == "queries" else data.passage_max_length,
        "pooling": model.pooling,
        "normalize": model.normalize,
    }
