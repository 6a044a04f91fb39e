"""Encoders are sentence-transformers models: load any base, run one forward pass, save so that plain loading works."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer
from torch.nn import Embedding
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tdro.errors import ConfigError, EnvironmentProblem
from tdro.files import atomic_folder
from tdro.models.bases import find_encoder
from tdro.models.features import features_of, pools_last
from tdro.models.frame import append_eos, frame
from tdro.models.lora import merged
from tdro.models.network import check_attention, network_of
from tdro.models.quiet import quiet
from tdro.models.trust import refuse_code

POOLING_MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
"""Our names -> those of sentence-transformers."""

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


def load_encoder(
    base: str,
    *,
    pooling: str = "auto",
    normalize: bool = True,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
) -> SentenceTransformer:
    """Load any base as a sentence-transformers model that is ready to train.

    A sentence-transformers folder keeps its modules; a plain Hugging Face folder gets a pooling. Texts reach the
    model as they are, so a chat template is not applied. Padding is on the right. The tokenizer of a decoder, and of
    any model asked for `pooling="last"`, appends its end-of-text token from then on, after saving too. Weights come
    from safetensors only, code from the base is never run, and a weight that is missing is an error.

    Args:
        base: A folder, `package:NAME/folder` inside an installed package, or a hub name.
        pooling: "mean", "cls", "last", or "auto": what the saved model has; last for decoders; mean for others.
        normalize: Whether embeddings have length 1. False also makes the dot product the saved model's similarity.
        device: Where the model goes, e.g. "cuda".
        dtype: Type of the parameters.
        attention: How attention is computed: "auto", "eager", "sdpa" or what else transformers knows. With flash
            attention (GPU, bfloat16) `embed` lays texts end to end instead of padding them.

    Returns:
        The model, in evaluation mode. The unused pooler of BERT-like models is frozen.

    Raises:
        ConfigError: The base is not found, is not a model, or cannot be used this way.
    """
    if pooling != "auto" and pooling not in POOLING_MODES:
        raise ConfigError("unknown pooling", where="model.pooling", saw=pooling, do="use auto, mean, cls or last")
    check_attention(attention, device)
    folder = find_encoder(base)
    kwargs = {"dtype": dtype, "use_safetensors": True}
    if attention != "auto":
        kwargs["attn_implementation"] = attention
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            refuse_code(folder)
            torch.default_generator.manual_seed(0)  # an unused pooler may be initialised while loading
            model = _load_saved(folder, kwargs) if (folder / "modules.json").is_file() else _load_plain(folder, kwargs)
            missing = _missing_weights(model, folder)
    except LOADING_ERRORS as error:
        do = "give a sentence-transformers or Hugging Face folder with config, tokenizer and safetensors weights"
        if attention != "auto":
            do = f"set model.attention: auto instead of {attention}, or {do}"
        raise ConfigError(f"{base} cannot be loaded as a model", where=folder, saw=str(error), do=do) from error
    if missing:
        do = "use a complete checkpoint of this architecture"
        raise ConfigError(f"{base} lacks weights that the model needs", where=folder, saw=missing, do=do)
    _refuse_what_texts_alone_cannot_reach(model, base)
    _set_pooling(model, pooling, base)
    _set_normalize(model, normalize)
    if attention != "auto":
        network_of(model, "model.attention")
    if isinstance(first := model[0], Transformer):
        may_append = pooling == "last" or not (folder / "modules.json").is_file()
        _prepare_tokenizer(first, base, pools_last(model), may_append)
        _freeze_pooler(first)
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
        model: What `load_encoder` returns.
        token_lists: n >= 1 token lists with special tokens, as `tdro.data.collate.tokenize` makes them.

    Returns:
        [n, D] float32 (float64 for a float64 model) on the model's device; gradients flow if they are enabled.

    Raises:
        DataError: A text has no tokens, or lacks the end-of-text token of a model with last-token pooling.
    """
    output = model(features_of(model, token_lists))["sentence_embedding"]
    embedding_nD = output[:, : model.truncate_dim].to(torch.promote_types(output.dtype, torch.float32))
    if output.dtype != embedding_nD.dtype and isinstance(model[-1], Normalize) and model.truncate_dim is None:
        embedding_nD = torch.nn.functional.normalize(embedding_nD, dim=-1)
    return embedding_nD


def longest_input(model: SentenceTransformer) -> int | None:
    """Return how many tokens the model's position embeddings allow; None if there is no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 0:
        return None
    # RoBERTa and its relatives number positions from padding_idx + 1, and only they keep both attributes in one module.
    tables = [m for m in model.modules() if isinstance(getattr(m, "position_embeddings", None), Embedding)]
    offsets = [vars(table)["padding_idx"] + 1 for table in tables if isinstance(vars(table).get("padding_idx"), int)]
    return int(positions) - max(offsets, default=0)


def set_max_length(model: SentenceTransformer, max_length: int) -> None:
    """Let the saved model cut texts at `max_length` tokens by itself, as training did."""
    if isinstance(model[0], StaticEmbedding):
        model.tokenizer.enable_truncation(max_length)
    else:
        model.max_seq_length = max_length


def _load_saved(folder: Path, model_kwargs: dict[str, Any]) -> SentenceTransformer:
    """Load a sentence-transformers folder with its own modules."""
    settings = folder / "config_sentence_transformers.json"
    kind = json.loads(settings.read_text(encoding="utf-8")).get("model_type") if settings.is_file() else None
    if kind not in (None, "SentenceTransformer"):
        raise ValueError(f"this is a {kind}, not a SentenceTransformer")
    model = SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        model_kwargs=model_kwargs,
        processor_kwargs={"padding_side": "right"},
    )
    if isinstance(model[0], StaticEmbedding):
        model.to(
            model_kwargs["dtype"]
        )  # a Transformer has taken dtype already, and keeps its rotary buffers in float32
    return model


def _load_plain(folder: Path, model_kwargs: dict[str, Any]) -> SentenceTransformer:
    """Load a Hugging Face folder and put a pooling on top."""
    local = {"local_files_only": True, "trust_remote_code": False}
    # Left to itself the library sends every text through the chat template where the tokenizer has one.
    transformer = Transformer(
        str(folder),
        model_kwargs={**local, **model_kwargs},
        processor_kwargs={**local, "padding_side": "right"},  # set later, it would not be saved
        config_kwargs=dict(local),
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    mode = "lasttoken" if _is_decoder(transformer.config) else "mean"
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), mode)]
    return SentenceTransformer(modules=modules, device="cpu")


def _is_decoder(config: PretrainedConfig) -> bool:
    """Tell whether each token sees only those before it."""
    if config.is_encoder_decoder or getattr(config, "use_bidirectional_attention", False):
        return False
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_causal", True)


def _missing_weights(model: SentenceTransformer, folder: Path) -> list[str]:
    """Name the weights that the folder does not hold and that loading therefore made up at random."""
    if not isinstance(model[0], Transformer) or (folder / "adapter_config.json").is_file():
        return []
    saved = folder / "modules.json"
    inside = json.loads(saved.read_text(encoding="utf-8"))[0]["path"] if saved.is_file() else ""
    network = model[0].model
    _, info = type(network).from_pretrained(
        folder / inside,
        config=copy.deepcopy(network.config),
        device_map="meta",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    return sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))


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


def _set_pooling(model: SentenceTransformer, pooling: str, base: str) -> None:
    """Give the model the pooling that was asked for; "auto" changes nothing."""
    if pooling == "auto" or (pooling == "mean" and isinstance(model[0], StaticEmbedding)):
        return
    found = [module for module in model if isinstance(module, Pooling)]
    if len(found) != 1 or not isinstance(found[0].pooling_mode, str):
        do = "use model.pooling: auto"
        raise ConfigError(f"{base} has no single pooling that could change", where="model.pooling", saw=pooling, do=do)
    found[0].pooling_mode = POOLING_MODES[pooling]


def _set_normalize(model: SentenceTransformer, normalize: bool) -> None:
    """Make the last module a Normalize, or make sure that it is none."""
    if normalize and not isinstance(model[-1], Normalize):
        model.append(Normalize())
    if not normalize:
        model.similarity_fn_name = "dot"
        while isinstance(model[-1], Normalize):
            model.pop(-1)


def _prepare_tokenizer(transformer: Transformer, base: str, pools_last: bool, may_append: bool) -> None:
    """See to the token to pad with, and to the end-of-text token of decoders and last-token models."""
    tokenizer = transformer.tokenizer
    assert tokenizer is not None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where a folder has none
        do = "copy tokenizer.json and tokenizer_config.json into the model's folder"
        raise ConfigError(f"{base} has no tokenizer", where="model.base", saw=f"{len(tokenizer)} tokens", do=do)
    rows = transformer.model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        do = "set pad_token in its tokenizer_config.json"
        raise ConfigError(f"the tokenizer of {base} has no token to pad with", where="model.base", do=do)
    if not pools_last and not (may_append and _is_decoder(transformer.config)):
        return
    if not tokenizer.is_fast:
        raise ConfigError(f"{base} has no fast tokenizer to append the end-of-text token", where="model.base")
    if frame(tokenizer)[1] is not None:
        return
    if not may_append:
        what = f"{base} pools the last token, but its tokenizer appends no end-of-text token"
        do = "set model.pooling: last to append it (other vectors than now), or use a base that does"
        raise ConfigError(what, where="model.pooling", do=do)
    append_eos(tokenizer, base)


def _freeze_pooler(transformer: Transformer) -> None:
    """Freeze the pooler of BERT-like models: embeddings do not use it, so it never gets a gradient."""
    if isinstance(pooler := getattr(transformer.model, "pooler", None), torch.nn.Module):
        pooler.requires_grad_(False)
