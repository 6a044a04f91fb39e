"""Texts to embeddings: the one encoder loop for mining, evaluation and users."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tdro.data.collate import tokenize
from tdro.data.token_cache import Tokens
from tdro.errors import ConfigError, DataError
from tdro.models.encoder import embed, longest_input
from tdro.models.packing import pack

CHUNK = 32768
"""Texts that are tokenized and sorted by length together; bounds the memory that token lists take."""

_PASS = {"cpu": 4096}  # tokens of a forward pass: on a CPU its activations should stay in the cache
_PASS_ELSEWHERE = 16384


def encode(
    model: SentenceTransformer,
    texts: Sequence[str] | Tokens,
    *,
    max_length: int,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Compute the embeddings of texts, without gradients and without dropout.

    Texts of similar length share a forward pass; the longest come first, so that a pass too large for the memory
    fails at once. Strings are sorted 32768 at a time, tokens all together. The order of the texts and `max_tokens`
    change an embedding by no more than rounding. No prompt is added: a query comes with its instruction.

    Args:
        model: What `load_encoder` returns. Its training or evaluation mode is the same afterwards.
        texts: n texts, or their tokens, which are read when they are needed.
        max_length: Most tokens of one text, special tokens included; longer strings are cut. Tokens were made with it.
        max_tokens: Tokens of one forward pass, padding included; None: 4096 on a CPU, 16384 elsewhere.
        progress: Called with (texts done, n) after each forward pass.

    Returns:
        [n, D] float32 in the order of `texts`; (0, D) without texts.

    Raises:
        ConfigError: `max_length` is more than the model's positions, or leaves no room for a text.
        DataError: An embedding is not finite.
    """
    limit = longest_input(model)
    if limit is not None and max_length > limit:
        what = f"max_length is more than the {limit} positions of the model"
        raise ConfigError(what, where="max_length", saw=max_length, do=f"use at most {limit}")
    if max_tokens is None:
        max_tokens = _PASS.get(model.device.type, _PASS_ELSEWHERE)
    vectors_nD = np.empty((len(texts), model.get_embedding_dimension() or 0), dtype=np.float32)
    done = 0
    with _inference(model):
        for group, token_lists in _passes(model, texts, max_length, max_tokens):
            vectors_nD[group] = embed(model, token_lists).float().cpu().numpy()
            done += len(group)
            if progress is not None:
                progress(done, len(texts))
    broken = np.flatnonzero(~np.isfinite(vectors_nD).all(axis=1))
    if len(broken):
        what = f"{len(broken)} of {len(texts)} embeddings are not finite numbers"
        do = "use a model whose training did not diverge, or float32"
        raise DataError(what, saw=texts[int(broken[0])], do=do)
    return vectors_nD


def _passes(
    model: SentenceTransformer, texts: Sequence[str] | Tokens, max_length: int, max_tokens: int
) -> Iterator[tuple[np.ndarray, list[list[int]]]]:
    """Yield which texts share a forward pass, and their token lists."""
    if isinstance(texts, Tokens):
        for group in reversed(pack(texts.lengths_n, max_tokens)):
            yield group, texts.take(group)
        return
    for start in range(0, len(texts), CHUNK):
        token_lists = tokenize(model.tokenizer, texts[start : start + CHUNK], max_length)
        lengths = np.array([len(ids) for ids in token_lists])
        for group in reversed(pack(lengths, max_tokens)):
            yield start + group, [token_lists[index] for index in group]


@contextmanager
def _inference(model: SentenceTransformer) -> Iterator[None]:
    """Evaluate without gradients inside the block; give each module its own mode back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training
