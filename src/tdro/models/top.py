"""What stands on top of the network: pooling, projection, normalisation; all of them modules of the library."""

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)

from tdro.errors import ConfigError
from tdro.models.network import network_of

POOLING_MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken", "first-last": "mean", "top-two": "mean"}
"""Our names -> those of sentence-transformers."""

_LAYERS = {"first-last": (0, -1), "top-two": (-2, -1)}
"""Pooling -> the hidden states whose mean is pooled; 0 is what enters the first block."""


def set_pooling(model: SentenceTransformer, pooling: str, base: str) -> None:
    """Give an encoder the pooling that was asked for; "auto" changes nothing.

    "first-last" and "top-two" take the mean over the tokens of the mean of two hidden states. The first hidden state is
    what enters the first block, embeddings and positions together, as in SimCSE (Gao et al. 2021); BERT-whitening (Su
    et al. 2021) means the first block's output by "first". The last one comes after the final normalisation, if any.

    Raises:
        ConfigError: The encoder cannot have this pooling.
    """
    if pooling == "auto" or (pooling == "mean" and isinstance(model[0], StaticEmbedding)):
        return
    found = [module for module in model if isinstance(module, Pooling)]
    if len(found) != 1 or not isinstance(found[0].pooling_mode, str):
        do = "use model.pooling: auto"
        raise ConfigError(f"{base} has no single pooling that could change", where="model.pooling", saw=pooling, do=do)
    for place in reversed([i for i, module in enumerate(model) if isinstance(module, WeightedLayerPooling)]):
        model.pop(place)
    network = network_of(model, "model.pooling")
    network.config.output_hidden_states = pooling in _LAYERS
    if pooling in _LAYERS:
        layers = _mean_of_layers(network.config, pooling).to(next(model.parameters()).dtype)
        model.insert(list(model).index(found[0]), layers)
    found[0].pooling_mode = POOLING_MODES[pooling]


def freeze_layer_weights(model: SentenceTransformer) -> None:
    """Keep the share of each layer in a pooling over layers what it was saved as."""
    for module in model:
        if isinstance(module, WeightedLayerPooling):
            module.requires_grad_(False)


def refuse_lost_layers(model: SentenceTransformer, features: dict[str, Any]) -> None:
    """Refuse a network that does not give its hidden states: the library would pool the last one without a word.

    Raises:
        ConfigError: A pooling over layers has not got them.
    """
    if "all_layer_embeddings" not in features and any(isinstance(module, WeightedLayerPooling) for module in model):
        do = "use model.pooling: mean"
        raise ConfigError("this architecture does not give its hidden states", where="model.pooling", do=do)


def projection_of(model: SentenceTransformer) -> Dense | None:
    """Return the layer that ends an encoder, but for normalisation; None where it ends otherwise."""
    top = next((module for module in reversed(list(model)) if not isinstance(module, Normalize)), None)
    return top if isinstance(top, Dense) else None


def set_projection(model: SentenceTransformer, size: int | None, seed: int) -> None:
    """Put a linear layer on top of the pooling; an encoder that ends with one of this size keeps that.

    Args:
        model: One encoder.
        size: Dimensions of the embeddings; None changes nothing.
        seed: Decides the layer, whatever other random numbers were drawn before.
    """
    if size is None or ((top := projection_of(model)) is not None and top.out_features == size):
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = Dense(model.get_embedding_dimension() or 0, size, activation_function=None)
    ends = [not isinstance(module, Normalize) for module in model]
    model.insert(len(ends) - ends[::-1].index(True), layer.to(next(model.parameters()).dtype))


def set_normalize(model: SentenceTransformer, normalize: bool) -> None:
    """Make the last module a Normalize, or make sure that it is none."""
    if normalize and not isinstance(model[-1], Normalize):
        model.append(Normalize())
    if not normalize:
        model.similarity_fn_name = "dot"
        while isinstance(model[-1], Normalize):
            model.pop(-1)


def _mean_of_layers(config: Any, pooling: str) -> WeightedLayerPooling:
    """Build the library's weighted mean over layers with the weights 0 and 1."""
    blocks = getattr(config, "num_hidden_layers", None)
    if blocks is None:
        do = "use model.pooling: mean"
        raise ConfigError("this architecture does not say how many layers it has", where="model.pooling", do=do)
    weights = torch.zeros(blocks + 1)
    weights[list(_LAYERS[pooling])] = 1
    start = int(weights.nonzero()[0])
    frozen = torch.nn.Parameter(weights[start:].clone(), requires_grad=False)
    return WeightedLayerPooling(config.hidden_size, blocks, start, frozen)
