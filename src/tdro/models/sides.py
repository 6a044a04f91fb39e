"""Two sides of a model: where queries have an encoder of their own, a router of sentence-transformers holds both.

A model without a router is both of its sides. Of one with a router, each side is a plain model over the same modules,
so whoever takes an encoder (`embed`, `encode`, `network_of`, ...) takes a side.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding
from tokenizers import Tokenizer

from tdro.errors import ConfigError
from tdro.models.packing import pack

Kind = Literal["queries", "passages"]

ROUTES: dict[Kind, str] = {"queries": "query", "passages": "document"}
"""Our names -> the routes that `encode_query` and `encode_document` of sentence-transformers take."""

UNTIED = ("query_model", "passage_model")
"""Folders of separate encoders where nothing but the folder joins them, queries first."""


def side_of(model: SentenceTransformer, kind: Kind) -> SentenceTransformer:
    """Return what embeds queries, or what embeds passages.

    Args:
        model: What `load_encoder` returns.
        kind: "queries" or "passages".

    Returns:
        The model itself, unless it has separate encoders. Then a model over the modules of one of them: what is
        trained, moved or replaced in one is so in the other. The same object each time.

    Raises:
        ConfigError: The model routes texts by something else than query and document.
    """
    if not isinstance(router := model[0], Router):
        return model
    kept: dict[Kind, SentenceTransformer] = vars(router).setdefault("_sides", {})  # no part of what is saved
    if kind not in kept:
        kept[kind] = _view(model, router, ROUTES[kind])
    return kept[kind]


def sides_of(model: SentenceTransformer) -> tuple[SentenceTransformer, ...]:
    """Return the model alone, or what embeds queries and what embeds passages, where these differ."""
    return (side_of(model, "queries"), side_of(model, "passages")) if isinstance(model[0], Router) else (model,)


def join(queries: SentenceTransformer, passages: SentenceTransformer) -> SentenceTransformer:
    """Make one model of two encoders; plain sentence-transformers has them as `encode_query` and `encode_document`.

    Raises:
        ConfigError: They do not cut texts into the same tokens, or their embeddings have different lengths.
    """
    _refuse_strangers(queries, passages)
    prompts = {**_prompts(passages), "query": _prompts(queries).get("query", "")}
    return SentenceTransformer(
        modules=[Router.for_query_document(_modules(queries), _modules(passages))],
        device="cpu",
        prompts=prompts,
        default_prompt_name=passages.default_prompt_name,
        similarity_fn_name=passages.similarity_fn_name,
        truncate_dim=passages.truncate_dim,
    )


def pack_sides(
    model: SentenceTransformer, lengths_n: np.ndarray, queries: int, max_tokens: int
) -> list[tuple[SentenceTransformer, np.ndarray]]:
    """Split texts into groups that share a forward pass, each with the encoder that makes it; see `pack`.

    Args:
        model: What `load_encoder` returns.
        lengths_n: Tokens of each text, [n] integers, those of queries first.
        queries: How many are queries. Where one encoder takes all, they share passes with passages.
        max_tokens: Tokens of one forward pass, padding included.
    """
    if not isinstance(model[0], Router):
        return [(model, group) for group in pack(lengths_n, max_tokens)]
    of_queries = [(side_of(model, "queries"), group) for group in pack(lengths_n[:queries], max_tokens)]
    passages = [(side_of(model, "passages"), queries + group) for group in pack(lengths_n[queries:], max_tokens)]
    return of_queries + passages


def refuse_sharded_sides(separate: bool) -> None:
    """Refuse to cut separate encoders into pieces.

    Raises:
        ConfigError: They are separate.
    """
    if separate:
        do = "set model.sharding: none, or leave model.query_encoder out"
        raise ConfigError("separate encoders cannot be sharded", where="model.sharding", saw="full", do=do)


def _view(model: SentenceTransformer, router: Router, route: str) -> SentenceTransformer:
    """Make a model over the modules of a route, and those behind the router."""
    if set(router.sub_modules) != set(ROUTES.values()) or router.route_mappings:
        do = "use a model with the routes query and document"
        raise ConfigError("the model routes texts in another way", saw=sorted(router.sub_modules), do=do)
    own: Any = router.sub_modules[route]
    return SentenceTransformer(
        modules=[*own, *_modules(model)[1:]],
        device=str(model.device),
        prompts=_prompts(model),
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
    )


def _modules(model: SentenceTransformer) -> list[Any]:
    """Return the modules of an encoder, which are those of sentence-transformers."""
    return list(model)


def _prompts(model: SentenceTransformer) -> dict[str, str]:
    """Return what a model puts before texts, by name."""
    return {name: prompt or "" for name, prompt in model.prompts.items()}


def _refuse_strangers(queries: SentenceTransformer, passages: SentenceTransformer) -> None:
    """Refuse encoders that cannot share token lists, or whose embeddings cannot be compared."""
    where = "model.query_encoder"
    kinds = [isinstance(side[0], StaticEmbedding) for side in (queries, passages)]
    if kinds[0] != kinds[1] or _cuts(queries.tokenizer) != _cuts(passages.tokenizer):
        what = "the encoders of queries and of passages have different tokenizers"
        raise ConfigError(what, where=where, do="use two encoders of one family, or model.query_encoder: copy")
    sizes = [side.get_embedding_dimension() for side in (queries, passages)]
    if sizes[0] != sizes[1]:
        what = "the embeddings of queries and of passages have different lengths"
        raise ConfigError(what, where=where, saw=sizes, do="set model.projection to one length for both")


def _cuts(tokenizer: Any) -> Sequence[object]:
    """Describe how a tokenizer turns a text into tokens; padding and the maximum length are not part of it."""
    if isinstance(tokenizer, Tokenizer):
        return _parts(tokenizer)
    side = tokenizer.truncation_side
    if tokenizer.is_fast:
        return [side, *_parts(tokenizer.backend_tokenizer)]
    return [side, type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map]


def _parts(tokenizer: Tokenizer) -> list[object]:
    """Return the parts of a tokenizer of the library `tokenizers`."""
    state = json.loads(tokenizer.to_str())
    return [value for key, value in state.items() if key not in ("truncation", "padding")]
