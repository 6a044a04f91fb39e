"""From texts to token lists, exactly as the saved model will see them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tdro.errors import ConfigError, DataError


def tokenize(tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Turn texts into token lists of their own length, special tokens included.

    The text is cut before the post-processor adds its tokens, so a cut text still begins and ends with
    them; the end is checked on every call. A `tokenizers.Tokenizer`, which a static embedding model holds,
    adds no special tokens, as the model itself does. The tokenizer is left as it was; not for two threads at once.

    Args:
        tokenizer: `model.tokenizer` of a sentence-transformers model.
        texts: n texts.
        max_length: Most tokens of one text, special tokens included.

    Returns:
        n token lists, none longer than `max_length`.

    Raises:
        ConfigError: `max_length` leaves no room for a token of the text.
        DataError: A token list lost the end-of-text token that the tokenizer appends.
    """
    if isinstance(tokenizer, Tokenizer):
        _check_room(max_length, 0)
        return _encode(tokenizer, texts, max_length, "right", add_special_tokens=False)
    _check_room(max_length, tokenizer.num_special_tokens_to_add())
    if tokenizer.is_fast:
        backend, side = tokenizer.backend_tokenizer, tokenizer.truncation_side
        return _encode(backend, texts, max_length, side, add_special_tokens=True)
    codes = (
        tokenizer(list(texts), truncation=True, max_length=max_length, verbose=False) if texts else {"input_ids": []}
    )
    return [list(ids) for ids in codes["input_ids"]]


def _check_room(max_length: int, special: int) -> None:
    """Refuse lengths that special tokens alone take up: the library would then cut nothing at all."""
    if max_length <= special:
        do = f"allow at least {special + 1} tokens"
        raise ConfigError("max_length leaves no room for the text", where="max_length", saw=max_length, do=do)


def _encode(
    backend: Tokenizer, texts: Sequence[str], max_length: int, side: str, *, add_special_tokens: bool
) -> list[list[int]]:
    """Encode without the Python layer of transformers, in half its time, and check the ends."""
    with _truncation(backend, max_length, side):
        probe = backend.encode("a", add_special_tokens=add_special_tokens)
        codes = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
    token_lists = [code.ids for code in codes]
    if probe.special_tokens_mask[-1:] == [1]:
        _check_ends(token_lists, probe.ids[-1], texts)
    return token_lists


@contextmanager
def _truncation(backend: Tokenizer, max_length: int, side: str) -> Iterator[None]:
    """Cut at `max_length` without padding inside the block; restore the tokenizer's own setting after it."""
    truncation, padding = backend.truncation, backend.padding
    backend.enable_truncation(max_length, direction=side)
    backend.no_padding()
    try:
        yield
    finally:
        backend.no_truncation()
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def _check_ends(token_lists: list[list[int]], end: int, texts: Sequence[str]) -> None:
    """Refuse token lists that do not end with the token that the tokenizer appends."""
    for ids, text in zip(token_lists, texts, strict=True):
        if ids[-1] != end:
            what = f"the end-of-text token {end} is missing after tokenization"
            raise DataError(what, saw=text, do="use a model that load_encoder has loaded")
