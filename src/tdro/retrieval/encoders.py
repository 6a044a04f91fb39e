"""Encoders that belong to no study: any saved model, used the way its author meant it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from tdro.config import fingerprint
from tdro.data.examples import with_instruction
from tdro.data.reading import content_hash
from tdro.devices import ALONE, Device, Ranks
from tdro.errors import ConfigError
from tdro.files import cache_folder
from tdro.models.adapters import bases_of
from tdro.models.bases import find_encoder
from tdro.models.encoder import load_encoder, longest_input
from tdro.models.released import ARGUMENTS, read_arguments
from tdro.models.sides import Kind, side_of, sides_of
from tdro.retrieval.encode import encode
from tdro.retrieval.shards import Embedder, Gauge, Precision, Progress

LONGEST = 512
"""Tokens of a text where neither the user nor the model asks for fewer."""

_PROMPTS: dict[Kind, tuple[str, ...]] = {"queries": ("query",), "passages": ("document", "passage", "corpus")}
"""Names under which models save what stands before a text, the first that is not empty counts."""


def encoder_fingerprint(base: str) -> str:
    """Identify an encoder by the content of its files; of an adapter also by that of its base's."""
    folder = find_encoder(base)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    own = [[str(p.relative_to(folder)), content_hash(p, cache_folder() / "datasets")] for p in files]
    bases = [encoder_fingerprint(str(named)) for named in bases_of(folder)]
    return fingerprint(own, bases) if bases else fingerprint(own)


def open_encoder(
    name: str,
    *,
    device: Device,
    precision: Precision = "float32",
    query_instruction: str = "",
    instruction_template: str = "Instruct: {instruction}\nQuery: {query}",
    query_max_length: int | None = None,
    passage_max_length: int | None = None,
    max_tokens: int | None = None,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> tuple[Embedder, Embedder]:
    """Load a saved model; return how it embeds queries and documents, each text once on this machine.

    The model is used as it was saved: with its pooling, with its prompts for queries and for documents, and with
    vectors of length 1 unless it was made for the dot product. Embeddings are kept in the cache.

    Args:
        name: A folder, `package:NAME/folder` inside an installed package, or a hub name.
        device: Where and how precisely it computes.
        precision: How embeddings are stored.
        query_instruction: Put in front of queries, instead of the model's own prompt for them.
        instruction_template: How instruction and query are joined.
        query_max_length: Tokens of a query, the rest is cut; by default 512, or fewer if the model was saved so or
            cannot take more.
        passage_max_length: Tokens of a document; the same.
        max_tokens: Tokens of a forward pass, padding included; None: 4096 on a CPU, 16384 elsewhere.
        ranks: The processes that share the work.
        progress: Called with (texts done, texts) while the model works, for queries and for documents.

    Returns:
        The embedder of queries and that of documents.

    Raises:
        ConfigError: The model is not found, cannot be loaded, cannot be used like this, or has fewer positions than
            the lengths ask for.

    Departure: `SentenceTransformer.encode_document` (6.2) looks no further than a prompt called "document", which every
    model has, if only an empty one. A model that was saved with one called "passage" or "corpus" gets that here.
    """
    normalize = _compares_by_cosine(name)
    model = load_encoder(name, normalize=normalize, device=device.name, dtype=device.dtype)
    identity = encoder_fingerprint(name)

    def embedder(kind: Kind, instruction: str, max_length: int) -> Embedder:
        """Join the model with the settings of queries or of documents."""
        side = side_of(model, kind)
        prompt = "" if instruction else next(filter(None, map(model.prompts.get, _PROMPTS[kind])), "")
        _refuse_unpooled_prompt(side, prompt or instruction, name)
        gauge = Gauge(progress) if progress is not None else None

        def encode_texts(texts: Sequence[str]) -> np.ndarray:
            written = [prompt + with_instruction(text, instruction, instruction_template) for text in texts]
            passes = gauge.passes if gauge is not None else None
            with device.precision():
                vectors_nD = encode(side, written, max_length=max_length, max_tokens=max_tokens, progress=passes)
            return _unit_length(vectors_nD) if normalize and model.truncate_dim is not None else vectors_nD

        about = {
            "encoder": identity,
            "instruction": instruction,
            "template": instruction_template if instruction else "",
            "max_length": max_length,
            "pooling": "auto",
            "normalize": normalize,
            "dtype": str(device.dtype),
            "autocast": device.autocast,
            **({"prompt": prompt} if prompt else {}),
            **({"side": kind} if len(sides_of(model)) > 1 else {}),
        }
        shards = gauge.shards if gauge is not None else None
        return Embedder(encode_texts, about, cache_folder() / "embeddings", precision, progress=shards, ranks=ranks)

    return (
        embedder("queries", query_instruction, _length(model, query_max_length, name, "query_max_length")),
        embedder("passages", "", _length(model, passage_max_length, name, "passage_max_length")),
    )


def _compares_by_cosine(name: str) -> bool:
    """Tell whether a model's vectors are meant to have length 1, by what it has saved.

    A model saved for the dot product has vectors of any length, unless it ends with a module that normalizes. Of an
    adapter that says nothing its base decides.
    """
    folder = find_encoder(name)
    settings, modules = folder / "config_sentence_transformers.json", folder / "modules.json"
    if not modules.is_file():
        bases = [] if (folder / ARGUMENTS).is_file() else bases_of(folder)
        return all(_compares_by_cosine(str(base)) for base in bases) if bases else read_arguments(folder).unit_length
    try:
        saved = json.loads(settings.read_bytes()).get("similarity_fn_name") if settings.is_file() else None
        normalizes = _last_module(folder).endswith("Normalize")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        do = "save the model again with sentence-transformers"
        raise ConfigError(f"{name} cannot be read", where=folder, saw=repr(error), do=do) from None
    if saved not in (None, "cosine", "dot"):
        do = 'use a model with similarity "cosine" or "dot"'
        raise ConfigError(f"{name} is not searched by inner product", where=settings, saw=saved, do=do)
    return saved != "dot" or normalizes


def _last_module(folder: Path) -> str:
    """Return the class of the module that a saved model ends with; of separate encoders, that of the first."""
    last = json.loads((folder / "modules.json").read_bytes())[-1]
    if not last["type"].endswith(".Router"):
        return str(last["type"])
    routes = json.loads((folder / last["path"] / "router_config.json").read_bytes())
    return str(routes["types"][next(iter(routes["structure"].values()))[-1]])


def _refuse_unpooled_prompt(model: SentenceTransformer, prompt: str, name: str) -> None:
    """Refuse what stands before a text where the model's pooling would leave it out, as INSTRUCTOR models do."""
    if prompt and any(isinstance(module, Pooling) and not module.include_prompt for module in model):
        what = "the model leaves prompts out of its pooling, which is not supported"
        raise ConfigError(what, where=name, saw=prompt, do="use another model, or this one without a prompt")


def _length(model: SentenceTransformer, given: int | None, name: str, option: str) -> int:
    """Return how many tokens a text may have."""
    limit = longest_input(model)
    if given is None:
        return int(min(LONGEST, limit or LONGEST, *(side.max_seq_length or LONGEST for side in sides_of(model))))
    if given > (limit or given):
        do = f"use at most {limit}"
        raise ConfigError("texts may be longer than the model's positions", where=f"{name}: {option}", saw=given, do=do)
    return given


def _unit_length(vectors_nD: np.ndarray) -> np.ndarray:
    """Bring vectors that were cut to fewer dimensions back to length 1."""
    lengths_n1 = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    unit_nD: np.ndarray = vectors_nD / np.maximum(lengths_n1, np.finfo(np.float32).tiny)
    return unit_nD
