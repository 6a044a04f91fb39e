"""Index folders: a corpus with its embeddings on disk, and the retriever that answers queries from one.

`index.json` says which encoder made the index and how, `documents/` holds the passages, `embeddings/` their shards.
Only the encoder stays outside. It is known by the content of its files, not by its name: it may move, but an index is
never searched with an encoder that did not make it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import torch

from tdro.config import fingerprint
from tdro.data.reading import content_hash
from tdro.devices import ALONE, Device, Ranks, pick_device
from tdro.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from tdro.files import read_json, write_json
from tdro.retrieval.approximate import ApproximateHits, FaissIndex
from tdro.retrieval.documents import Documents, store_documents
from tdro.retrieval.encoders import encoder_fingerprint, open_encoder
from tdro.retrieval.passage_files import find_passages
from tdro.retrieval.search import search
from tdro.retrieval.shards import Embedder, Embeddings, Precision, Progress, encode_shards

Kind: TypeAlias = Literal["exact", "flat", "ivf-pq"]
_FORM = 1  # part of every index: raise it when an older one could not be read


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How the passages and queries of an index become embeddings.

    Args:
        encoder: A folder, `package:NAME/folder` inside an installed package, or a hub name.
        instruction: Put in front of queries; empty: the prompts that the encoder was saved with, if any.
        instruction_template: How instruction and query are joined.
        query_max_length: Tokens of a query; the rest is cut. None: 512, or as many as the encoder can take.
        passage_max_length: Tokens of a passage, likewise.
        precision: How embeddings are stored; float16 halves the disk and costs up to 0.05 % of a component.
    """

    encoder: str
    instruction: str = ""
    instruction_template: str = "Instruct: {instruction}\nQuery: {query}"
    query_max_length: int | None = None
    passage_max_length: int | None = None
    precision: Precision = "float16"

    def __post_init__(self) -> None:
        for part in ("{instruction}", "{query}"):
            if self.instruction and part not in self.instruction_template:
                do = f"put {part} into it"
                raise ConfigError(f"the template lacks {part}", where="--instruction-template", do=do)


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a query: a passage and its score, the inner product of the embeddings."""

    id: str
    score: float
    title: str
    text: str


class Retriever:
    """Answers queries from an index folder; made by `build_index` or `tdro index`.

    The embeddings stay on disk, and every passage is compared with every query, unless faiss is to search. Then
    `measured` has what the last search overlooked: up to 100 of its queries are searched exactly too, for the recall.

    Args:
        folder: The index.
        device: "cpu" or "cuda"; None: the GPU if there is one. An index may be made on one and searched on the other.
        encoder: Where the encoder is now; empty: where it was when the index was made.
        search: "exact", or how faiss searches, in memory; needs the extra `faiss`.

    Attributes:
        measured: Recall of the last search; None where it was exact.

    Raises:
        CheckpointError: The folder holds no complete index, or the encoder is gone or not the one that made it.
        ConfigError: Device or search is none of these.
        DataError: The passages are too few for the search.
        EnvironmentProblem: There is no GPU or no faiss, but it was asked for.

    Example:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> from tdro.demo.encoder import build_encoder
        >>> texts = {"d1": "Bees dance to show where the flowers are.", "d2": "Yeast makes bread rise."}
        >>> with TemporaryDirectory() as place:
        ...     build_encoder(Path(place, "model"), [*texts.values()] * 2, seed=0)
        ...     rows = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
        ...     _ = Path(place, "corpus.jsonl").write_text("\\n".join(rows))
        ...     settings = IndexSettings(f"{place}/model")
        ...     _ = build_index(Path(place, "corpus.jsonl"), Path(place, "index"), settings)
        ...     retriever = Retriever(Path(place, "index"))
        ...     for hit in retriever.search(["why does bread rise"], k=2)[0]:
        ...         print(hit.id, hit.text)
        d2 Yeast makes bread rise.
        d1 Bees dance to show where the flowers are.
    """

    def __init__(
        self, folder: Path | str, device: str | None = None, *, encoder: str = "", search: Kind = "exact"
    ) -> None:
        if search not in get_args(Kind):
            raise ConfigError("unknown search", where="search", saw=search, do=f"use {', '.join(get_args(Kind))}")
        folder = Path(folder)
        about = _read(folder)
        if not about:
            do = "make one: tdro index CORPUS --encoder NAME --out FOLDER"
            raise CheckpointError("there is no index in this folder", where=folder, do=do)
        settings = IndexSettings(encoder or about["encoder"], **about["settings"])
        _check_encoder(settings.encoder, about["encoder_content"])
        self._documents = open_documents(folder)
        self._embeddings = encode_shards(
            self._documents,
            partial(_refuse_to_encode, folder),
            folder / "embeddings",
            {**about["passages"], "content": self._documents.content},
            precision=settings.precision,
        )
        self._device = _device(device)
        self._queries, _ = open_settings(settings, self._device)
        place_P = self._documents.place_P
        self._faiss = None if search == "exact" else FaissIndex(self._embeddings, place_P, search)
        self.measured: ApproximateHits | None = None

    def __len__(self) -> int:
        """Count the passages."""
        return len(self._documents)

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Find the best passages for each query.

        Args:
            queries: Queries without instruction: the index knows its own. Many at once are faster than one by one.
            k: Passages per query; no more than there are.

        Returns:
            For each query its hits, best first, equal scores in the order of ids; faiss may find fewer than k.

        Raises:
            ConfigError: k is below 1.
            DataError: A query is empty.
        """
        queries = [queries] if isinstance(queries, str) else list(queries)
        if empty := [number for number, query in enumerate(queries, 1) if not query.strip()]:
            raise DataError("the query is empty", where=f"query {empty[0]} of {len(queries)}", do="write what to find")
        if k < 1:
            raise ConfigError("k must be at least 1", where="k", saw=k)
        if not queries:
            return []
        vectors_QD = self._queries.encode(queries)
        if self._faiss is None:
            hits = search(vectors_QD, self._embeddings, self._documents.place_P, k, device=self._device.name)
        else:
            self.measured = self._faiss.search(vectors_QD, k)
            hits = self.measured.hits
        return [self._hits(*found) for found in zip(hits.indices_QK, hits.scores_QK, strict=True)]

    def _hits(self, index_K: np.ndarray, score_K: np.ndarray) -> list[Hit]:
        """Look up the passages that were found for a query."""
        found_K = index_K >= 0
        passages = self._documents.take(index_K[found_K])
        scores = score_K[found_K].tolist()
        return [Hit(p.id, score, p.title, p.text) for p, score in zip(passages, scores, strict=True)]


def build_index(
    corpus: Path,
    folder: Path,
    settings: IndexSettings,
    *,
    device: Device | None = None,
    max_tokens: int | None = None,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> Embeddings:
    """Make an index of a corpus, or finish one that was interrupted.

    Args:
        corpus: Documents, as `tdro.retrieval.documents.store_documents` reads them.
        folder: Where the index goes, or an index of the same corpus, encoder and settings.
        settings: The encoder, and how it is used.
        device: Where the encoder runs; None: the GPU if there is one.
        max_tokens: Tokens of one forward pass, padding included.
        ranks: Processes that share the work; each calls this function.
        progress: Called with (passages encoded, passages).

    Returns:
        The embeddings of the passages.

    Raises:
        CheckpointError: The folder holds an index of something else, or other files.
        ConfigError: The encoder cannot be loaded.
        DataError: The corpus is empty or damaged.
        EnvironmentProblem: The folder cannot be written.
    """
    _, passages = open_settings(settings, device or pick_device(), max_tokens=max_tokens, progress=progress)
    if ranks.number == 0:
        claim_index(corpus, folder, settings, passages.about)
    ranks.barrier()
    documents = store_documents(corpus, folder)
    return encode_shards(
        documents,
        passages.encode,
        folder / "embeddings",
        {**passages.about, "content": documents.content},
        precision=settings.precision,
        progress=passages.progress,
        ranks=ranks,
    )


def claim_index(corpus: Path, folder: Path, settings: IndexSettings, passages: Mapping[str, object]) -> None:
    """Make sure that a folder is new, or the unfinished or finished index of the same corpus, encoder and settings.

    Args:
        corpus: The documents.
        folder: The folder; made if it is absent.
        settings: The encoder, and how it is used.
        passages: What identifies the embeddings of passages: `Embedder.about`.

    Raises:
        CheckpointError: It is not.
        DataError: There are no files of documents.
    """
    kept = _read(folder)
    if not kept and folder.exists() and any(path.name != "datasets" for path in folder.iterdir()):
        do = "choose a new folder, or an empty one"
        raise CheckpointError("the folder holds other files than an index", where=folder, do=do)
    source = find_passages(corpus)
    about: dict[str, Any] = {
        "form": _FORM,
        "encoder": lasting_name(settings.encoder),
        "encoder_content": encoder_fingerprint(settings.encoder),
        "settings": {name: value for name, value in asdict(settings).items() if name != "encoder"},
        "passages": dict(passages),
        "corpus": fingerprint(source.kind, [content_hash(file, folder / "datasets") for file in source.files]),
    }
    before, now = _flat(kept), _flat(about)
    if saw := {name: before.get(name) for name in now if kept and name != "encoder" and before.get(name) != now[name]}:
        what = f"the folder holds an index with another {', '.join(saw)}"
        raise CheckpointError(what, where=folder, saw=saw, do="choose another folder, or delete this one")
    if kept != about:
        write_json(folder / "index.json", about)


def open_settings(
    settings: IndexSettings, device: Device, *, max_tokens: int | None = None, progress: Progress | None = None
) -> tuple[Embedder, Embedder]:
    """Load the encoder of an index; return what embeds its queries and what embeds its passages."""
    return open_encoder(
        settings.encoder,
        device=device,
        precision=settings.precision,
        query_instruction=settings.instruction,
        instruction_template=settings.instruction_template,
        query_max_length=settings.query_max_length,
        passage_max_length=settings.passage_max_length,
        max_tokens=max_tokens,
        progress=progress,
    )


def open_documents(folder: Path) -> Documents:
    """Open the passages of an index.

    Raises:
        CheckpointError: They are not there, or damaged.
    """
    for path in (folder / "documents").glob("[!.]*"):
        with suppress(OSError, ValueError, KeyError, pa.ArrowException):
            return Documents(path)
    raise _incomplete(folder)


def lasting_name(encoder: str) -> str:
    """Name an encoder so that the name holds in every working directory."""
    path = Path(encoder).expanduser()
    return str(path.resolve()) if path.is_dir() else encoder


def _device(name: str | None) -> Device:
    """Choose where to search."""
    if name == "cpu":
        return Device("cpu", torch.float32, autocast=False)
    if name not in (None, "cuda"):
        raise ConfigError("unknown device", where="device", saw=name, do="use cpu or cuda")
    found = pick_device()
    if name == "cuda" and found.name != name:
        raise EnvironmentProblem("this machine has no GPU that torch can use", where="device", do="use cpu")
    return found


def _read(folder: Path) -> dict[str, Any]:
    """Read what an index says of itself; empty where there is none."""
    file = folder / "index.json"
    try:
        about = read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        do = "delete the folder and index again"
        raise CheckpointError("the index cannot be read", where=file, saw=str(problem), do=do) from problem
    if not isinstance(about, dict) or about.get("form") != _FORM:
        do = "index again with this version of tdro"
        raise CheckpointError("the index has another form", where=file, saw=about, do=do)
    return about


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """Bring what an index says of itself to one level."""
    nested = {name: value for name, value in about.items() if isinstance(value, Mapping)}
    plain = {name: value for name, value in about.items() if name not in nested}
    return plain | {f"{name}.{part}": value for name, parts in nested.items() for part, value in parts.items()}


def _check_encoder(name: str, content: str) -> None:
    """Make sure that an encoder is the one that made an index."""
    do = "say with --encoder where the encoder that made the index is now, or index again"
    try:
        found = encoder_fingerprint(name)
    except ConfigError as problem:
        raise CheckpointError("the encoder of the index is not there", where=name, saw=problem.what, do=do) from problem
    if found != content:
        saw = f"content {found} instead of {content}"
        raise CheckpointError("this is not the encoder that made the index", where=name, saw=saw, do=do)


def _refuse_to_encode(folder: Path, _: Sequence[str]) -> NoReturn:
    """Say that embeddings are missing: a search does not encode a corpus."""
    raise _incomplete(folder)


def _incomplete(folder: Path) -> CheckpointError:
    """Describe an index whose making was interrupted, or that was damaged since."""
    do = "run the tdro index command that began it again: it makes only what is missing"
    return CheckpointError("the index is not complete, or damaged", where=folder, do=do)
