"""Tokenization: what the saved model would do, without leaving traces in the tokenizer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from tiny_models import SENTENCES, make_tiny_model
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedTokenizerBase

from tdro.data.collate import tokenize
from tdro.errors import ConfigError

TEXTS = [*SENTENCES, "", "  two spaces first", " ".join(SENTENCES)]


def tokenizer_of(family: str, folder: Path) -> PreTrainedTokenizerBase:
    """Make a model and load its tokenizer."""
    return AutoTokenizer.from_pretrained(make_tiny_model(family, folder))


@pytest.mark.parametrize("family", ["bert", "qwen2", "llama", "mistral"])
def test_tokens_are_those_of_a_plain_call(family: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family, tmp_path)
    expected = tokenizer(TEXTS, truncation=True, max_length=9)["input_ids"]
    assert tokenize(tokenizer, TEXTS, 9) == expected


def test_static_tokens_are_those_of_the_model_and_cut(tmp_path: Path) -> None:
    model = SentenceTransformer(str(make_tiny_model("static", tmp_path)), device="cpu")
    plain = [model.preprocess([text])["input_ids"].tolist() for text in TEXTS]
    assert tokenize(model.tokenizer, TEXTS, 1000) == plain
    assert tokenize(model.tokenizer, TEXTS, 5) == [ids[:5] for ids in plain]
    model.tokenizer.enable_truncation(3)  # what a saved model does by itself gives way to what was asked for
    assert tokenize(model.tokenizer, TEXTS, 5) == [ids[:5] for ids in plain]
    assert model.tokenizer.truncation["max_length"] == 3


def test_a_cut_text_keeps_its_first_and_last_special_token(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bert", tmp_path)
    cut, whole = tokenize(tokenizer, [SENTENCES[0], "A bee"], 5)
    assert [cut[0], cut[-1], len(cut)] == [tokenizer.cls_token_id, tokenizer.sep_token_id, 5]
    assert len(whole) == 4


@pytest.mark.parametrize("has_own_setting", [False, True])
def test_the_tokenizer_is_left_as_it_was(has_own_setting: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bert", tmp_path)
    if has_own_setting:  # as in the files of many sentence-transformers models
        tokenizer.backend_tokenizer.enable_truncation(128, stride=3)
        tokenizer.backend_tokenizer.enable_padding(length=128, pad_token="[PAD]")
    before = tokenizer.backend_tokenizer.to_str()
    lengths = [len(ids) for ids in tokenize(tokenizer, TEXTS, 9)]
    assert tokenizer.backend_tokenizer.to_str() == before
    assert max(lengths) == 9
    assert min(lengths) == 2  # not padded to 128


def test_texts_are_not_padded_and_none_is_lost(tmp_path: Path) -> None:
    token_lists = tokenize(tokenizer_of("llama", tmp_path), ["A bee", "", "A bee dances"], 50)
    assert len(token_lists) == 3
    assert len(token_lists[1]) == 1  # BOS alone
    assert tokenize(tokenizer_of("llama", tmp_path), [], 50) == []


@pytest.mark.parametrize(("family", "too_short"), [("bert", 2), ("llama", 1), ("qwen2", 0)])
def test_a_length_without_room_for_the_text_is_refused(family: str, too_short: int, tmp_path: Path) -> None:
    # The library would not cut at all where the special tokens alone are longer.
    with pytest.raises(ConfigError, match=f"allow at least {too_short + 1} tokens"):
        tokenize(tokenizer_of(family, tmp_path), ["A bee"], too_short)


def test_a_tokenizer_without_a_fast_backend_works_too() -> None:
    tokenizer = CanineTokenizer()  # one token per character, between CLS and SEP
    assert not tokenizer.is_fast
    inner = [ord(letter) for letter in "bee"]
    assert tokenize(tokenizer, ["bees", "be"], 5) == [
        [tokenizer.cls_token_id, *inner, tokenizer.sep_token_id],
        [tokenizer.cls_token_id, *inner[:2], tokenizer.sep_token_id],
    ]
    assert tokenize(tokenizer, [], 5) == []


def test_threads_with_different_lengths_do_not_disturb_each_other(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bert", tmp_path)
    expected = {length: tokenize(tokenizer, TEXTS, length) for length in (4, 9)}

    def many(length: int) -> list[list[list[int]]]:
        return [tokenize(tokenizer, TEXTS, length) for _ in range(60)]

    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(expected, threads.map(many, expected), strict=True))
    assert all(tokens == expected[length] for length, every in found.items() for tokens in every)
