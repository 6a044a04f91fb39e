"""Tokenizer and embeddings fit each other: padding, the end-of-text token, and a row for every token."""

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tdro.errors import ConfigError
from tdro.models.frame import append_eos, frame


def prepare_tokenizer(transformer: Transformer, base: str, pools_last: bool, may_append: bool) -> None:
    """See to the token to pad with, to rows for all tokens, and to the end-of-text token of decoders.

    Args:
        transformer: Network and tokenizer; changed in place.
        base: Name of the encoder, for errors.
        pools_last: Whether the embedding is the last token's.
        may_append: Whether the tokenizer may be made to append the end-of-text token.

    Raises:
        ConfigError: There is no tokenizer, or none that can append the token where it must.
    """
    tokenizer = transformer.tokenizer
    assert tokenizer is not None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where a folder has none
        do = "copy tokenizer.json and tokenizer_config.json into the model's folder"
        raise ConfigError(f"{base} has no tokenizer", where="model.base", saw=f"{len(tokenizer)} tokens", do=do)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    grow_embeddings(transformer)
    if not pools_last and not (may_append and is_decoder(transformer.config)):
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


def grow_embeddings(transformer: Transformer) -> None:
    """Give every token of the tokenizer a row in the network's embeddings; new rows are the mean of the old ones."""
    network: Any = transformer.model
    tokenizer: Any = transformer.tokenizer
    rows = network.get_input_embeddings().num_embeddings
    size = max(tokenizer.get_vocab().values()) + 1
    if size <= rows:
        return
    with torch.random.fork_rng(devices=[]):  # the library draws new rows; its own mean_resizing adds noise to a mean
        network.resize_token_embeddings(size, mean_resizing=False)
    weight = network.get_input_embeddings().weight.data
    weight[rows:] = weight[:rows].mean(0, dtype=torch.promote_types(weight.dtype, torch.float32)).to(weight.dtype)


def is_decoder(config: PretrainedConfig) -> bool:
    """Tell whether each token sees only those before it."""
    if config.is_encoder_decoder or getattr(config, "use_bidirectional_attention", False):
        return False
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_causal", True)
