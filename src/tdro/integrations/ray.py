"""Encode on a Ray cluster what is too much for one machine: the shards and the manifest are those of `encode_shards`.

The driver writes the manifest, Ray Data hands out the numbers of the shards that are missing, each worker loads the
encoder once and makes whole shards, and the driver finishes. No text and no embedding passes through Ray: the folder
lies on storage that all machines see under the same path. A cluster that went down leaves the finished shards.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from tdro.devices import pick_device
from tdro.errors import ConfigError, EnvironmentProblem, TdroError
from tdro.retrieval.documents import store_documents
from tdro.retrieval.retriever import IndexSettings, claim_index, lasting_name, open_documents, open_settings
from tdro.retrieval.shards import Embedder, Embeddings, Precision, Progress, ShardFolder, Texts

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Workers:
    """How many encoders run at a time, and what each of them gets of its machine.

    Args:
        count: Encoders at a time.
        cpus: CPUs of each.
        gpus: GPUs of each; 0.5 puts two on one.
    """

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(
                "at least one worker is needed", where="Workers.count", saw=self.count, do="use 1 or more"
            )


def embed_with_ray(
    open_texts: Callable[[], Texts],
    open_embedder: Callable[[], Embedder],
    folder: Path,
    content: str,
    workers: Workers,
    *,
    progress: Progress | None = None,
) -> Embeddings:
    """Encode texts into a folder of shards on a Ray cluster; needs the extra `ray`.

    Ray is used as it is (`ray.init(address="auto")` before), or started on this machine. The bytes are those that
    `encode_shards` gives on a machine of the same kind with as many threads.

    Args:
        open_texts: Opens the texts; called by the driver and by each worker.
        open_embedder: Loads the encoder; called by each worker. `Embedder.folder` and `Embedder.ranks` are not used.
        folder: Where the shards go, on shared storage.
        content: Fingerprint of the texts.
        workers: How many, and how large.
        progress: Called with (texts done, texts) before the first shard that is missing and after each.

    Returns:
        The embeddings, memory-mapped by the driver.

    Raises:
        CheckpointError: The folder holds embeddings of something else.
        DataError: An embedding is not finite.
        EnvironmentProblem: Ray is not installed or fails, the workers compute in different ways, or their shards are
            not to be seen here.

    Example:
        from functools import partial
        texts = partial(store_documents, Path("/shared/corpus.jsonl"), Path("/shared/cache"))
        passages = partial(open_passages, IndexSettings("/shared/model"))
        embed_with_ray(texts, passages, Path("/shared/embeddings"), texts().content, Workers(8, gpus=1))
    """
    about, precision = _on_a_worker(partial(_identify, open_embedder), workers)
    return _embed(open_texts, open_embedder, folder, {**about, "content": content}, precision, workers, progress)


def index_with_ray(
    corpus: Path,
    folder: Path,
    settings: IndexSettings,
    workers: Workers,
    *,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Make an index, or finish one, on a Ray cluster: what `tdro index` makes on one machine.

    Args:
        corpus: Documents, as `tdro.retrieval.documents.store_documents` reads them; read by the driver alone.
        folder: Where the index goes, on shared storage.
        settings: The encoder, which all machines find under its name, and how it is used.
        workers: How many, and how large.
        max_tokens: Tokens of one forward pass, padding included.
        progress: Called with (passages encoded, passages).

    Returns:
        The embeddings of the passages.

    Raises:
        CheckpointError, ConfigError, DataError, EnvironmentProblem: As `build_index` and `embed_with_ray`.
    """
    folder, settings = folder.resolve(), replace(settings, encoder=lasting_name(settings.encoder))
    open_embedder = partial(open_passages, settings, max_tokens)
    about, precision = _on_a_worker(partial(_identify, open_embedder), workers)
    claim_index(corpus, folder, settings, about)
    about = {**about, "content": store_documents(corpus, folder).content}
    open_texts = partial(open_documents, folder)
    return _embed(open_texts, open_embedder, folder / "embeddings", about, precision, workers, progress)


def open_passages(settings: IndexSettings, max_tokens: int | None = None) -> Embedder:
    """Load what embeds the passages of an index, on the GPU if the worker has one."""
    return open_settings(settings, pick_device(), max_tokens=max_tokens)[1]


class _ShardMaker:
    """Makes shards; lives in a worker, where it loads the encoder when the first shard comes."""

    def __init__(
        self,
        open_texts: Callable[[], Texts],
        open_embedder: Callable[[], Embedder],
        folder: Path,
        about: Mapping[str, object],
    ) -> None:
        self._open_texts, self._open_embedder, self._folder, self._about = open_texts, open_embedder, folder, about
        self._ready: Callable[[int], int] | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the shard whose number comes; an error of ours travels as a value, for Ray would rewrite its text."""
        texts, problem = 0, b""
        try:
            self._ready = self._ready or self._open()
            texts = self._ready(int(batch["shard"][0]))
        except TdroError as error:
            problem = pickle.dumps(error)
        return {"texts": np.array([texts]), "problem": np.array([problem], dtype=object)}

    def _open(self) -> Callable[[int], int]:
        """Return what makes a shard and counts its texts."""
        texts, embedder = self._open_texts(), self._open_embedder()
        about, own = self._about, {**embedder.about, "content": self._about["content"]}
        if own != about:
            saw = {name: (about.get(name), own.get(name)) for name in about if about.get(name) != own.get(name)}
            do = "let all workers have the same files, devices and versions"
            raise EnvironmentProblem("the workers compute in different ways", where=self._folder, saw=saw, do=do)
        place = ShardFolder(self._folder, about, len(texts), embedder.precision)

        def make(number: int) -> int:
            """Make a shard."""
            place.make(number, texts, embedder.encode)
            return place.texts_in(number)

        return make


def _embed(
    open_texts: Callable[[], Texts],
    open_embedder: Callable[[], Embedder],
    folder: Path,
    about: Mapping[str, object],
    precision: Precision,
    workers: Workers,
    progress: Progress | None,
) -> Embeddings:
    """Hand out the shards that are missing, and open all."""
    texts, folder = open_texts(), folder.resolve()
    place = ShardFolder(folder, about, len(texts), precision)
    place.claim(write=True)
    missing = [number for number in range(place.count) if place.open(number) is None]
    if missing:
        job = {"open_texts": open_texts, "open_embedder": open_embedder, "folder": folder, "about": dict(about)}
        done = len(texts) - sum(map(place.texts_in, missing))
        for made in chain([0], _make(missing, job, workers)):
            done += made
            if progress is not None:
                progress(done, len(texts))
    place.finish()
    return place.open_all()


def _make(missing: Sequence[int], job: Mapping[str, Any], workers: Workers) -> Iterator[int]:
    """Let workers make shards; yield the number of texts of each that is done."""
    ray = _ray()
    with _own_errors(ray):
        numbers = ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
        shards = numbers.map_batches(
            _ShardMaker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers.count, len(missing))),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            fn_constructor_kwargs=job,
        )
        for row in shards.iter_rows():
            if row["problem"]:
                raise pickle.loads(row["problem"])
            yield int(row["texts"])


def _on_a_worker(ask: Callable[[], _Result], workers: Workers) -> _Result:
    """Call a function where the workers run: their devices decide the embeddings."""
    ray = _ray()
    with _own_errors(ray):
        remote = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus)(lambda: ask())
        answer: _Result = ray.get(remote.remote())
    return answer


def _identify(open_embedder: Callable[[], Embedder]) -> tuple[dict[str, object], Precision]:
    """Return what identifies the embeddings of an embedder, and how they are stored."""
    embedder = open_embedder()
    return dict(embedder.about), embedder.precision


def _ray() -> ModuleType:
    """Import Ray."""
    try:
        import ray
        import ray.data
    except ImportError as problem:
        do = 'pip install "tdro[ray]"'
        raise EnvironmentProblem("Ray Data is not installed", where="extra ray", do=do) from problem
    return ray


@contextmanager
def _own_errors(ray: ModuleType) -> Iterator[None]:
    """Raise what a worker has raised, without the wrapping of Ray."""
    try:
        yield
    except ray.exceptions.RayError as problem:
        if isinstance(cause := getattr(problem, "cause", None), TdroError):
            raise cause from None
        saw = str(problem).strip().rpartition("\n")[2]
        raise EnvironmentProblem("the Ray cluster failed", saw=saw, do="look at Ray's log, and run again") from problem
