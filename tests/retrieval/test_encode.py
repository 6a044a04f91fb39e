"""Encoding: the vectors do not depend on how texts are grouped, and the model is left as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import SENTENCES, make_tiny_model

from tdro.data.token_cache import Tokens, cached_tokens
from tdro.errors import ConfigError, DataError
from tdro.models.encoder import load_encoder
from tdro.retrieval import encode as encode_module
from tdro.retrieval.encode import encode

TEXTS = [*SENTENCES, "", "A bee", " ".join(SENTENCES), "Iron rusts."]
FAMILIES = ["bert", "qwen2", "llama", "mistral", "static"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    """A loaded model of each family."""
    return load_encoder(str(make_tiny_model(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    """A loaded BERT, which has dropout."""
    return load_encoder(str(make_tiny_model("bert", tmp_path_factory.mktemp("bert"))))


def test_vectors_are_those_of_the_model_itself(model: SentenceTransformer) -> None:
    assert np.allclose(encode(model, TEXTS, max_length=512), model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_packing_does_not_change_vectors(model: SentenceTransformer, max_tokens: int) -> None:
    vectors = encode(model, TEXTS, max_length=30)
    assert np.allclose(encode(model, TEXTS, max_length=30, max_tokens=max_tokens), vectors, atol=1e-5)


def test_by_default_a_pass_on_a_cpu_has_at_most_4096_tokens(
    bert: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    embed = encode_module.embed
    monkeypatch.setattr(
        encode_module,
        "embed",
        lambda model, lists: passes.append(len(lists) * max(map(len, lists))) or embed(model, lists),
    )
    encode(bert, TEXTS * 30, max_length=512)
    assert len(passes) > 1 and 2048 < max(passes) <= 4096


def test_order_does_not_change_vectors(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = encode(model, TEXTS, max_length=30)
    monkeypatch.setattr(encode_module, "CHUNK", 3)
    assert np.allclose(encode(model, TEXTS[::-1], max_length=30)[::-1], vectors, atol=1e-5)


def tokens_of(model: SentenceTransformer, texts: list[str], cache: Path, max_length: int = 30) -> Tokens:
    """Texts as the token cache has them."""
    return cached_tokens(
        texts, content=str(texts), tokenizer=model.tokenizer, max_length=max_length, cache=cache / "cache"
    )


@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_tokens_give_the_vectors_of_their_texts_bit_for_bit(
    model: SentenceTransformer, max_tokens: int, tmp_path: Path
) -> None:
    tokens = tokens_of(model, TEXTS, tmp_path)
    settings = {"max_length": 30, "max_tokens": max_tokens}
    assert np.array_equal(encode(model, tokens, **settings), encode(model, TEXTS, **settings))
    chosen = np.array([3, 0, 3, 9])
    expected = encode(model, [TEXTS[i] for i in chosen], **settings)
    assert np.array_equal(encode(model, tokens.select(chosen), **settings), expected)
    assert encode(model, tokens_of(model, [], tmp_path), max_length=30).shape == (0, 32)


def test_tokens_are_sorted_all_together_and_read_pass_by_pass(
    bert: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(encode_module, "CHUNK", 3)
    tokens = tokens_of(bert, TEXTS, tmp_path)
    read: list[list[int]] = []
    take = Tokens.take
    monkeypatch.setattr(Tokens, "take", lambda self, i: read.append(self.lengths_n[i].tolist()) or take(self, i))
    vectors = encode(bert, tokens, max_length=30, max_tokens=60)
    assert sum(map(len, read)) == len(TEXTS) and len(read) > 2
    assert [max(lengths) for lengths in read] == sorted((max(lengths) for lengths in read), reverse=True)
    assert np.allclose(vectors, encode(bert, TEXTS, max_length=30), atol=1e-5)


def test_no_texts_give_an_empty_table_of_the_right_width(model: SentenceTransformer) -> None:
    vectors = encode(model, [], max_length=30)
    assert vectors.shape == (0, 32)
    assert vectors.dtype == np.float32


def test_every_module_gets_its_own_mode_back(bert: SentenceTransformer) -> None:
    bert.train()
    bert[0].eval()
    before = [module.training for module in bert.modules()]
    first, second = (encode(bert, TEXTS, max_length=30) for _ in range(2))
    assert [module.training for module in bert.modules()] == before
    assert np.array_equal(first, second)


def test_dropout_is_off_in_training_mode(bert: SentenceTransformer) -> None:
    expected = encode(bert.eval(), TEXTS, max_length=30)
    assert np.array_equal(encode(bert.train(), TEXTS, max_length=30), expected)
    assert bert.training


def test_a_float64_model_gives_float32_vectors(tmp_path: Path) -> None:
    model = load_encoder(str(make_tiny_model("llama", tmp_path)), dtype=torch.float64)
    assert encode(model, TEXTS, max_length=30).dtype == np.float32


def test_progress_counts_every_text_once(bert: SentenceTransformer) -> None:
    calls: list[tuple[int, int]] = []
    encode(bert, TEXTS, max_length=30, max_tokens=60, progress=lambda done, total: calls.append((done, total)))
    done = [count for count, _ in calls]
    assert len(calls) > 1
    assert done == sorted(set(done))
    assert calls[-1] == (len(TEXTS), len(TEXTS))


def test_more_tokens_than_positions_are_refused(bert: SentenceTransformer) -> None:
    with pytest.raises(ConfigError, match="use at most 512"):
        encode(bert, TEXTS, max_length=513)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = load_encoder(str(make_tiny_model("static", tmp_path)))
    (token,) = model.tokenizer.encode("bread", add_special_tokens=False).ids
    with torch.no_grad():
        model[0].embedding.weight[token] = torch.nan
    with pytest.raises(DataError, match="1 of 2 embeddings are not finite"):
        encode(model, ["A bee", "Bread"], max_length=30)
