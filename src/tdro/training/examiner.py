"""Scores one model after another on the same tasks; every text is tokenised once."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from tdro.config import TaskConfig
from tdro.data.examples import with_instruction
from tdro.data.token_cache import Tokens
from tdro.data.unique import Kind
from tdro.evaluation.evaluate import evaluate
from tdro.evaluation.metrics import DEPTH
from tdro.evaluation.tasks import find_task
from tdro.files import cache_folder
from tdro.models.sides import side_of
from tdro.retrieval.documents import Documents
from tdro.retrieval.encode import encode
from tdro.retrieval.search import Hits, search
from tdro.training.run import Run
from tdro.training.token_caches import TokenCaches, open_caches


class Examiner:
    """Scores models that share a tokenizer on the tasks of a study.

    Embeddings are in memory while a task is scored: this is for corpora of up to some millions of documents.

    Args:
        run: The run.
        model: Whose tokenizer is used.

    Attributes:
        parts: Task, or task/part -> benchmark.

    Raises:
        DataError, ConfigError: A task cannot be read.
    """

    def __init__(self, run: Run, model: SentenceTransformer) -> None:
        self._run, self._caches = run, open_caches(run, model)
        self._options: dict[str, TaskConfig] = {}
        self.parts = {}
        for name, options in run.study.evaluation.tasks.items():
            for part in find_task(name, options, Path(run.study.data.root)).parts:
                self.parts[part.label] = part.read(cache_folder(), None)
                self._options[part.label] = options

    @property
    def query_ids(self) -> dict[str, tuple[str, ...]]:
        """Task, or task/part -> its queries, in the order of the scores."""
        return {label: part.query_ids for label, part in self.parts.items()}

    def scores(self, model: SentenceTransformer) -> dict[str, np.ndarray]:
        """Rank the documents of every task with a model.

        Returns:
            Task, or task/part -> float64 [Q], the task's main measure for every query, 0 to 1.

        Raises:
            DataError: An embedding is not finite.
        """
        found = {}
        with TemporaryDirectory() as scratch:
            for done, (label, benchmark) in enumerate(self.parts.items()):
                self._run.journal.progress("evaluation", done, len(self.parts))
                ranker = _Ranker(self._run, model, self._caches, self._options[label])
                scored = evaluate(ranker, benchmark, DEPTH, scratch=Path(scratch))
                found[label] = scored.scores[benchmark.main]
        return found


class _Ranker:
    """A model in memory; documents come as tokens from the cache."""

    def __init__(self, run: Run, model: SentenceTransformer, caches: TokenCaches | None, options: TaskConfig) -> None:
        self.name, self.about = "model", dict[str, object]()
        self._run, self._model, self._caches, self._options = run, model, caches, options

    def rank(self, queries: Sequence[str], documents: Documents, depth: int, *, scratch: Path) -> Hits:
        """Embed everything and search; see `tdro.retrieval.rankers.Ranker`."""
        data, run = self._run.study.data, self._run
        asked = [with_instruction(text, self._options.instruction, data.instruction_template) for text in queries]
        query_QD = self._encode("queries", asked, data.query_max_length)
        written: Any = documents  # slices are texts
        if self._caches is not None:
            written = self._caches.of_texts(written, documents.content, self._options.path, "passages")
        document_PD = self._encode("passages", written, data.passage_max_length)
        return search(query_QD, document_PD, documents.place_P, depth, device=run.device.name)

    def _encode(self, kind: Kind, texts: Sequence[str] | Tokens, length: int) -> np.ndarray:
        """Embed texts, or their tokens."""
        with self._run.device.precision():
            side = side_of(self._model, kind)
            return encode(side, texts, max_length=length, max_tokens=self._run.max_tokens)
