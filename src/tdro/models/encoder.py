"""Encoders are sentence-transformers models: load any base, run one forward pass, save so that plain loading works."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding, Transformer
from torch.nn import Embedding

from tdro.errors import ConfigError, EnvironmentProblem
from tdro.files import atomic_folder
from tdro.models.bases import find_encoder
from tdro.models.features import features_of, pools_last
from tdro.models.loading import Found, read_folder
from tdro.models.lora import merged
from tdro.models.network import check_attention, network_of
from tdro.models.quiet import quiet
from tdro.models.sides import join, sides_of
from tdro.models.top import POOLING_MODES, refuse_lost_layers, set_normalize, set_pooling, set_projection
from tdro.models.vocabulary import prepare_tokenizer

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


def load_encoder(
    base: str,
    *,
    pooling: str = "auto",
    projection: int | None = None,
    normalize: bool = True,
    query_encoder: str = "",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    seed: int = 0,
) -> SentenceTransformer:
    """Load any base as a sentence-transformers model that is ready to train.

    A sentence-transformers folder keeps its modules; a plain Hugging Face folder gets a pooling; an adapter is merged
    into its base; a folder of the paper's released code gets what its `model_args.yaml` says. Texts reach the
    model as they are, so a chat template is not applied. Padding is on the right. The tokenizer of a decoder, and of
    any model asked for `pooling="last"`, appends its end-of-text token from then on, after saving too. Weights come
    from safetensors only, code from the base is never run, and a weight that is missing is an error.

    Args:
        base: A folder, `package:NAME/folder` inside an installed package, or a hub name.
        pooling: "mean", "cls", "last", "first-last" or "top-two" (means of two layers, see `set_pooling`), or "auto":
            what the saved model has; last for decoders; mean for others.
        projection: Dimensions of a linear layer on top of the pooling; a base that ends with one of this size keeps it.
        normalize: Whether embeddings have length 1. False also makes the dot product the saved model's similarity.
        query_encoder: Gives queries an encoder of their own: "copy" of the base, or the name of another base.
        device: Where the model goes, e.g. "cuda".
        dtype: Type of the parameters.
        attention: How attention is computed: "auto", "eager", "sdpa" or what else transformers knows. With flash
            attention (GPU, bfloat16) `embed` lays texts end to end instead of padding them.
        seed: Decides a new projection.

    Returns:
        The model, in evaluation mode. The unused pooler of BERT-like models is frozen. Where queries have an encoder of
        their own, `tdro.models.sides.side_of` gives the one of queries and the one of passages.

    Raises:
        ConfigError: The base is not found, is not a model, or cannot be used this way.
        EnvironmentProblem: The base is an adapter, and there is no peft.
    """
    if pooling != "auto" and pooling not in POOLING_MODES:
        do = f"use auto, {', '.join(POOLING_MODES)}"
        raise ConfigError("unknown pooling", where="model.pooling", saw=pooling, do=do)
    check_attention(attention, device)
    wishes = _Wishes(pooling, projection, normalize, dtype, attention, seed)
    model = _load(base, wishes)
    if query_encoder:
        queries = copy.deepcopy(model) if query_encoder == "copy" else _load(query_encoder, wishes)
        if len(sides_of(model)) + len(sides_of(queries)) > 2:
            do = "leave it out, or give encoders that queries and passages share"
            what = "a base has separate encoders already"
            raise ConfigError(what, where="model.query_encoder", saw=query_encoder, do=do)
        model = join(queries, model)
    return model.eval().to(device)


def save_encoder(model: SentenceTransformer, folder: Path) -> None:
    """Save a model so that plain `SentenceTransformer(folder)` loads it and gives the same vectors.

    The folder is written under a temporary name and then takes the place of an older save. Adapters are merged into
    the weights. Call `set_max_length` before, so that plain loading cuts texts where training did.

    Raises:
        ConfigError: The folder holds something that is not a sentence-transformers model.
        EnvironmentProblem: The disk refuses the files.
    """
    if folder.exists() and not (folder / "modules.json").is_file() and any(folder.iterdir()):
        do = "choose another folder"
        raise ConfigError("the folder holds other files, which saving would delete", where=folder, do=do)
    try:
        with quiet(), merged(model), atomic_folder(folder) as fresh:
            model.save_pretrained(str(fresh), create_model_card=False, safe_serialization=True)
    except (OSError, SafetensorError) as error:
        do = "free some disk space or choose a folder you may write to"
        raise EnvironmentProblem("the model could not be saved", where=folder, saw=str(error), do=do) from error


def embed(model: SentenceTransformer, token_lists: Sequence[Sequence[int]]) -> torch.Tensor:
    """Compute the embeddings of tokenized texts in one forward pass.

    The pass runs through the model's own modules, padded on the right. bfloat16 and float16 results, also those of
    autocast, are raised to float32 and brought back to length 1 where the model normalizes: a length rounded to
    8 bits would be off by up to 0.4 %, which a small temperature turns into a visible error of the loss.

    Args:
        model: What `load_encoder` returns; of separate encoders one side (`tdro.models.sides.side_of`).
        token_lists: n >= 1 token lists with special tokens, as `tdro.data.collate.tokenize` makes them.

    Returns:
        [n, D] float32 (float64 for a float64 model) on the model's device; gradients flow if they are enabled.

    Raises:
        ConfigError: The model has separate encoders, or its network does not give the layers that are pooled.
        DataError: A text has no tokens, or lacks the end-of-text token of a model with last-token pooling.
    """
    features = model(features_of(model, token_lists))
    refuse_lost_layers(model, features)
    output = features["sentence_embedding"]
    embedding_nD = output[:, : model.truncate_dim].to(torch.promote_types(output.dtype, torch.float32))
    if output.dtype != embedding_nD.dtype and isinstance(model[-1], Normalize) and model.truncate_dim is None:
        embedding_nD = torch.nn.functional.normalize(embedding_nD, dim=-1)
    return embedding_nD


def longest_input(model: SentenceTransformer) -> int | None:
    """Return how many tokens the model's position embeddings allow, the fewer of two encoders; None: no limit."""
    limits = [limit for side in sides_of(model) if (limit := _positions(side)) is not None]
    return min(limits, default=None)


def set_max_length(model: SentenceTransformer, max_length: int) -> None:
    """Let the saved model cut texts at `max_length` tokens by itself, as training did."""
    for side in sides_of(model):
        if isinstance(side[0], StaticEmbedding):
            side.tokenizer.enable_truncation(max_length)
        else:
            side.max_seq_length = max_length


@dataclass(frozen=True)
class _Wishes:
    """How an encoder is to be; see `load_encoder`."""

    pooling: str
    projection: int | None
    normalize: bool
    dtype: torch.dtype
    attention: str
    seed: int


def _load(base: str, wishes: _Wishes) -> SentenceTransformer:
    """Load the encoder of a base, or both."""
    folder = find_encoder(base)
    kwargs: dict[str, Any] = {"dtype": wishes.dtype, "use_safetensors": True}
    if wishes.attention != "auto":
        kwargs["attn_implementation"] = wishes.attention
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # an unused pooler may be initialised while loading
            found = read_folder(folder, kwargs)
    except LOADING_ERRORS as error:
        do = "give a sentence-transformers or Hugging Face folder with config, tokenizer and safetensors weights"
        if wishes.attention != "auto":
            do = f"set model.attention: auto instead of {wishes.attention}, or {do}"
        raise ConfigError(f"{base} cannot be loaded as a model", where=folder, saw=str(error), do=do) from error
    for one in found:
        _finish(one, base, wishes)
    return found[0].model if len(found) == 1 else join(*(one.model for one in found))


def _finish(found: Found, base: str, wishes: _Wishes) -> None:
    """Make an encoder what was asked for."""
    model, pooling = found.model, wishes.pooling if wishes.pooling != "auto" else found.pooling
    _refuse_what_texts_alone_cannot_reach(model, base)
    set_pooling(model, pooling, base)
    set_projection(model, wishes.projection, wishes.seed)
    set_normalize(model, wishes.normalize)
    if wishes.attention != "auto":
        network_of(model, "model.attention")
    if isinstance(first := model[0], Transformer):
        prepare_tokenizer(first, base, pools_last(model), pooling == "last" or found.appends)
        _freeze_pooler(first)


def _positions(model: SentenceTransformer) -> int | None:
    """Return how many tokens the position embeddings of one encoder allow."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 0:
        return None
    # RoBERTa and its relatives number positions from padding_idx + 1, and only they keep both attributes in one module.
    tables = [m for m in model.modules() if isinstance(getattr(m, "position_embeddings", None), Embedding)]
    offsets = [vars(table)["padding_idx"] + 1 for table in tables if isinstance(vars(table).get("padding_idx"), int)]
    return int(positions) - max(offsets, default=0)


def _refuse_what_texts_alone_cannot_reach(model: SentenceTransformer, base: str) -> None:
    """Refuse models that do more to a text than tokenize it: training would not see what encoding does."""
    first = model[0]
    if not isinstance(first, Transformer | StaticEmbedding) or first.tokenizer is None:
        what = f"{base} starts with {type(first).__name__}, which does not take plain text tokens"
        raise ConfigError(what, where="model.base", do="use a text model made of Transformer or StaticEmbedding")
    if isinstance(first, Transformer) and "message" in first.modality_config:
        do = 'remove "message" from modality_config in its sentence_bert_config.json, or give its plain base'
        raise ConfigError(f"{base} puts every text into a chat template", where="model.base", do=do)
    if prompt := model.prompts.get(model.default_prompt_name or ""):
        do = "set default_prompt_name to null in config_sentence_transformers.json and give the text as an instruction"
        raise ConfigError(f"{base} puts a prompt before every text", where="model.base", saw=prompt, do=do)


def _freeze_pooler(transformer: Transformer) -> None:
    """Freeze the pooler of BERT-like models: embeddings do not use it, so it never gets a gradient."""
    if isinstance(pooler := getattr(transformer.model, "pooler", None), torch.nn.Module):
        pooler.requires_grad_(False)
