"""From texts to token lists, exactly as the saved model will see them."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import tokenizers
import transformers
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from tdro.errors import ConfigError, DataError

_ONE_THREAD = threading.Lock()


def tokenize(tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Turn texts into token lists of their own length, special tokens included.

    The text is cut before the post-processor adds its tokens, so a cut text still begins and ends with
    them; the end is checked on every call. A `tokenizers.Tokenizer`, which a static embedding model holds,
    adds no special tokens, as the model itself does. The tokenizer is left as it was; other threads wait meanwhile.

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
    return _tokenize(tokenizer, texts, max_length)[0]


def tokenize_and_mark(
    tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], list[bool]]:
    """Turn texts into the token lists of `tokenize`, and tell which texts were cut.

    A text is cut if `tokenize` without limit would give more tokens. Takes a few per cent longer than `tokenize`.

    Args:
        tokenizer: As in `tokenize`.
        texts: n texts.
        max_length: As in `tokenize`.

    Returns:
        n token lists; n times whether the text was cut.

    Raises:
        ConfigError, DataError: As `tokenize` does.
    """
    token_lists, codes = _tokenize(tokenizer, texts, max_length)
    was_cut = [False] * len(token_lists)
    full = [i for i, ids in enumerate(token_lists) if len(ids) == max_length]
    if codes is not None:
        for i in full:
            was_cut[i] = bool(codes[i].overflowing)
    elif full:
        for i, ids in zip(full, tokenize(tokenizer, [texts[i] for i in full], max_length + 1), strict=True):
            was_cut[i] = len(ids) > max_length
    return token_lists, was_cut


def identify(tokenizer: PreTrainedTokenizerBase | Tokenizer, max_length: int) -> str:
    """Hash everything that decides which token lists `tokenize` returns for a text.

    That is `max_length`, the parts of the tokenizer (vocabulary, merges, normalizer, special tokens, ...), the side
    that is cut, and the version of the library. The tokenizer's own truncation and padding do not count, because
    `tokenize` sets them aside.

    Returns:
        32 hex digits.

    Raises:
        ConfigError: `max_length` leaves no room for a token of the text; or the tokenizer draws its tokens by chance,
            or contains Python code, so that it cannot be identified.
    """
    _check_room(tokenizer, max_length)
    if isinstance(tokenizer, Tokenizer):
        parts = [_describe(tokenizer, max_length, "right"), b"text alone"]
    elif tokenizer.is_fast:
        parts = [_describe(tokenizer.backend_tokenizer, max_length, tokenizer.truncation_side), b"special tokens"]
    else:
        kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
        settings = f"{kind} {transformers.__version__} {tokenizer.truncation_side} {max_length}"
        parts = [settings.encode(), *_saved(tokenizer)]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(hashlib.blake2b(part).digest())
    return digest.hexdigest()


def _describe(backend: Tokenizer, max_length: int, side: str) -> bytes:
    """Write down a tokenizer as `_encode` would use it."""
    if getattr(backend.model, "dropout", None) or getattr(backend.model, "alpha", None) is not None:
        do = "set dropout to null in its tokenizer.json"
        raise ConfigError("the tokenizer draws its tokens by chance", where="model.base", do=do)
    with _truncation(backend, max_length, side):
        try:
            form = backend.to_str()
        except Exception as error:  # the library raises nothing narrower
            do = "use a tokenizer that can be saved as tokenizer.json"
            raise ConfigError("the tokenizer cannot be identified", where="model.base", saw=str(error), do=do) from None
    return f"{tokenizers.__version__} {backend.encode_special_tokens} {form}".encode()


def _saved(tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    """Yield the names and the bytes of the files that a tokenizer without a fast backend consists of."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            yield str(file.relative_to(folder)).encode()
            yield file.read_bytes()


def _tokenize(
    tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], list[Encoding] | None]:
    """Return token lists and, where there is a fast backend, what they were taken from."""
    _check_room(tokenizer, max_length)
    if isinstance(tokenizer, Tokenizer):
        return _encode(tokenizer, texts, max_length, "right", add_special_tokens=False)
    if tokenizer.is_fast:
        backend, side = tokenizer.backend_tokenizer, tokenizer.truncation_side
        return _encode(backend, texts, max_length, side, add_special_tokens=True)
    codes = (
        tokenizer(list(texts), truncation=True, max_length=max_length, verbose=False) if texts else {"input_ids": []}
    )
    return [list(ids) for ids in codes["input_ids"]], None


def _check_room(tokenizer: PreTrainedTokenizerBase | Tokenizer, max_length: int) -> None:
    """Refuse lengths that special tokens alone take up: the library would then cut nothing at all."""
    special = 0 if isinstance(tokenizer, Tokenizer) else tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        do = f"allow at least {special + 1} tokens"
        raise ConfigError("max_length leaves no room for the text", where="max_length", saw=max_length, do=do)


def _encode(
    backend: Tokenizer, texts: Sequence[str], max_length: int, side: str, *, add_special_tokens: bool
) -> tuple[list[list[int]], list[Encoding]]:
    """Encode without the Python layer of transformers, in half its time, and check the ends."""
    with _truncation(backend, max_length, side):
        probe = backend.encode("a", add_special_tokens=add_special_tokens)
        codes = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
    token_lists = [code.ids for code in codes]
    if probe.special_tokens_mask[-1:] == [1]:
        _check_ends(token_lists, probe.ids[-1], texts)
    return token_lists, codes


@contextmanager
def _truncation(backend: Tokenizer, max_length: int, side: str) -> Iterator[None]:
    """Cut at `max_length` without padding inside the block; restore the tokenizer's own setting after it.

    One thread at a time: while one measures held-out rows another may prepare the texts of the next step.
    """
    with _ONE_THREAD:
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
