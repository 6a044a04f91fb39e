"""Evaluate an encoder with mteb as tdro itself would: same texts, same embeddings, same order of the results."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tdro.config import fingerprint
from tdro.data.records import Passage
from tdro.devices import pick_device
from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.files import cache_folder
from tdro.retrieval.arrays import add_content
from tdro.retrieval.encoders import encoder_fingerprint, open_encoder
from tdro.retrieval.search import search
from tdro.retrieval.shards import Embedder, Embeddings, Precision, Progress

if TYPE_CHECKING:
    from datasets import Dataset  # type: ignore[import-untyped]
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta

_READ = 8192  # documents that are read together


class SearchModel:
    """An encoder as `mteb.evaluate` takes it, for retrieval and reranking tasks; needs the extra `mteb`.

    Documents are title and text, embedded in shards that are kept in the cache: evaluating again, or after a kill,
    encodes nothing twice, and a corpus that `tdro evaluate` has encoded is not encoded at all. mteb keeps results by
    name, revision and settings, and none of them is a path: a model that was trained on is another model.

    Args:
        encoder: A folder, `package:NAME/folder` inside an installed package, or a hub name.
        instructions: Task name -> what is put in front of its queries.
        task_prompts: Whether a task without an instruction of yours gets mteb's prompt for it, where it has one.
        instruction_template: How instruction and query are joined.
        query_max_length: Tokens of a query, the rest is cut; None: 512, or as many as the encoder takes.
        passage_max_length: Tokens of a document; the same.
        precision: How embeddings are stored.
        max_tokens: Tokens of one forward pass, padding included. mteb's `batch_size` is not used.
        name: What mteb calls the model, "organisation/model"; empty: "tdro/" and the hash of its content.
        progress: Called with (texts done, texts) while texts are encoded.

    Attributes:
        mteb_model_meta: What mteb writes into its results.

    Raises:
        ConfigError: The encoder is not found, or the name has no slash.
        EnvironmentProblem: mteb is not installed.

    Example:
        model = SearchModel("runs/mine/robust/model", instructions={"SciFact": "Find abstracts that settle the claim"})
        results = mteb.evaluate(model, mteb.get_tasks(["SciFact", "NFCorpus"]))
    """

    def __init__(
        self,
        encoder: str,
        *,
        instructions: Mapping[str, str] | None = None,
        task_prompts: bool = False,
        instruction_template: str = "Instruct: {instruction}\nQuery: {query}",
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        precision: Precision = "float32",
        max_tokens: int | None = None,
        name: str = "",
        progress: Progress | None = None,
    ) -> None:
        self._encoder, self._instructions, self._task_prompts = encoder, dict(instructions or {}), task_prompts
        self._device = pick_device()
        self._options: dict[str, Any] = {
            "instruction_template": instruction_template,
            "query_max_length": query_max_length,
            "passage_max_length": passage_max_length,
            "precision": precision,
        }
        self._how: dict[str, Any] = {"max_tokens": max_tokens, "progress": progress}
        self._opened: tuple[str, Embedder, Embedder] | None = None
        self._indexed: tuple[Dataset, Embeddings] | None = None
        self.mteb_model_meta = self._describe(name)

    def index(self, corpus: "Dataset", *, task_metadata: "TaskMetadata", **unused: Any) -> None:
        """Embed the documents of a task.

        Args:
            corpus: Columns `id`, `text` and perhaps `title`.
            task_metadata: The task.

        Raises:
            DataError: The documents are no texts, or there are none.
        """
        where = f"mteb task {task_metadata.name}"
        if "text" not in corpus.column_names:
            do = "evaluate tasks on texts"
            raise DataError("the documents have no text", where=where, saw=corpus.column_names, do=do)
        if not len(corpus):
            raise DataError("there are no documents", where=where, do="check the task's data")
        documents = _Texts(corpus)
        passages = self._open(self._instruction(task_metadata))[1]
        self._indexed = corpus, passages.embed(documents, documents.content(), cache_folder())

    def search(
        self,
        queries: "Dataset",
        *,
        task_metadata: "TaskMetadata",
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **unused: Any,
    ) -> dict[str, dict[str, float]]:
        """Rank the documents that were indexed last.

        A query's own instruction (instruction retrieval) follows the query, as mteb has it.

        Args:
            queries: Columns `id`, `text` and perhaps `instruction`.
            task_metadata: The task.
            top_k: Documents per query.
            top_ranked: Query id -> ids of the only documents to rank (reranking tasks).

        Returns:
            Query id -> document id -> score, best first. Equal scores are ordered by id, smallest first; since mteb
            would order them the other way round, later ones are lowered by the least that float32 can express.

        Raises:
            DataError: A query is no text.
        """
        if self._indexed is None:
            raise ValueError("search needs an indexed corpus: mteb calls index first")
        corpus, embeddings = self._indexed
        encoder = self._open(self._instruction(task_metadata))[0]
        vectors_QD = encoder.encode(_written(queries, task_metadata.name))
        ids = corpus.with_format("arrow").select_columns(["id"])[:]["id"].combine_chunks().cast(pa.large_string())
        if top_ranked is not None:
            return _rerank(queries["id"], vectors_QD, embeddings, ids, top_ranked, top_k, self._device.name)
        hits = search(vectors_QD, embeddings, _places(ids), top_k, device=self._device.name)
        rows = zip(queries["id"], hits.indices_QK, hits.scores_QK, strict=True)
        return {query: _ranking(ids.take(pa.array(numbers)).to_pylist(), scores) for query, numbers, scores in rows}

    def _instruction(self, task: "TaskMetadata") -> str:
        """Return what stands in front of a task's queries: the user's instruction, else mteb's if it was asked for."""
        if task.name in self._instructions or not self._task_prompts:
            return self._instructions.get(task.name, "")
        prompt = task.prompt.get("query") if isinstance(task.prompt, dict) else task.prompt
        return prompt or ""

    def _open(self, instruction: str) -> tuple[Embedder, Embedder]:
        """Load the encoder for an instruction, unless it was the last one; one model is held at a time."""
        if self._opened is None or self._opened[0] != instruction:
            self._opened = None
            opened = open_encoder(
                self._encoder, device=self._device, query_instruction=instruction, **self._options, **self._how
            )
            self._opened = instruction, *opened
        return self._opened[1:]

    def _describe(self, name: str) -> "ModelMeta":
        """Say what the model is, by content."""
        try:
            from mteb.models import ModelMeta
        except ImportError as problem:
            do = 'pip install "tdro[mteb]"'
            raise EnvironmentProblem("mteb is not installed", where="extra mteb", do=do) from problem
        if name and "/" not in name:
            raise ConfigError("mteb wants organisation/model", where="name", saw=name, do="put a slash into it")
        content = encoder_fingerprint(self._encoder)
        instructions = {**self._instructions, "task_prompts": self._task_prompts}
        settings = [self._options, instructions, str(self._device.dtype), self._device.autocast]
        about = {
            "name": name or f"tdro/{content}",
            "revision": content,
            "framework": ["Sentence Transformers", "PyTorch"],
            "use_instructions": bool(self._instructions) or self._task_prompts,
            "experiment_kwargs": {"settings": fingerprint(settings)},
        }
        return ModelMeta.create_empty(about)


class _Texts:
    """The full texts of a corpus of mteb, read slice by slice."""

    def __init__(self, corpus: "Dataset") -> None:
        self._rows = corpus.select_columns([name for name in ("title", "text") if name in corpus.column_names])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, part: slice, /) -> list[str]:
        columns = self._rows[part]
        titles = columns.get("title") or [""] * len(columns["text"])
        return [Passage("", title or "", text).full_text for title, text in zip(titles, columns["text"], strict=True)]

    def content(self) -> str:
        """Hash the texts, as documents that tdro has stored are hashed."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self), _READ):
            add_content(digest, self[start : start + _READ])
        return digest.hexdigest()


def _written(queries: "Dataset", task: str) -> list[str]:
    """Return the texts of queries, each followed by its own instruction where the task gives one."""
    texts = list(queries["text"])
    if odd := next((text for text in texts if not isinstance(text, str)), None):
        raise DataError("a query is no text", where=f"mteb task {task}", saw=odd, do="evaluate tasks on texts")
    if "instruction" not in queries.column_names:
        return texts
    return [f"{text} {own}" if own else text for text, own in zip(texts, queries["instruction"], strict=True)]


def _places(ids: pa.LargeStringArray) -> np.ndarray:
    """Say where each document stands when all are sorted by id."""
    place_P = np.empty(len(ids), np.int64)
    place_P[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return place_P


def _rerank(
    queries: Sequence[str],
    vectors_QD: np.ndarray,
    embeddings: Embeddings,
    ids: pa.LargeStringArray,
    top_ranked: Mapping[str, Sequence[str]],
    top_k: int,
    device: str,
) -> dict[str, dict[str, float]]:
    """Rank for each query the documents that the task gives it."""
    number = {name: place for place, name in enumerate(ids.to_pylist())}
    rankings: dict[str, dict[str, float]] = {}
    for query, vector_D in zip(queries, vectors_QD, strict=True):
        names = list(dict.fromkeys(top_ranked.get(query, ())))
        if unknown := [name for name in names if name not in number]:
            do = "check the task's data"
            raise DataError("a document to rerank is not in the corpus", where=f"query {query}", saw=unknown[0], do=do)
        rankings[query] = {}
        if names:
            vectors_ND = embeddings[np.array([number[name] for name in names])]
            hits = search(vector_D[None], vectors_ND, names, top_k, device=device)
            rankings[query] = _ranking([names[i] for i in hits.indices_QK[0].tolist()], hits.scores_QK[0])
    return rankings


def _ranking(names: Sequence[str], scores_K: np.ndarray) -> dict[str, float]:
    """Pair ids with scores that fall from each to the next, so that no reader of them has ties to break."""
    falling_K = scores_K.copy()
    if not (np.diff(scores_K) < 0).all():
        for rank in range(1, len(falling_K)):
            below = np.nextafter(falling_K[rank - 1], np.float32(-np.inf))
            falling_K[rank] = min(falling_K[rank], below)
    ranking: dict[str, float] = {}
    for name, score in zip(names, falling_K.tolist(), strict=True):
        ranking.setdefault(name, score)  # a task may repeat an id; its best place counts
    return ranking
