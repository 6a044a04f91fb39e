"""Tokens without a row, tokenizers without a token to pad with, padding on the left: the same vectors, saved too."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import SENTENCES, Family, make_tiny_model
from transformers import AutoModel, AutoTokenizer

from tdro.data.collate import tokenize
from tdro.models.encoder import embed, load_encoder, save_encoder

TEXTS = [*SENTENCES, "A bee"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A base without a token to pad with."""
    return make_tiny_model("llama", tmp_path / "llama")


def edit_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def vectors(model: SentenceTransformer, texts: list[str] = TEXTS) -> torch.Tensor:
    """Embed texts without a graph."""
    return embed(model, tokenize(model.tokenizer, texts, 64)).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_without_a_row_gets_the_mean_of_all_rows(llama: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    before = load_encoder(str(llama), dtype=dtype)
    rows = before[0].model.get_input_embeddings().weight.detach()
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(llama)
    state = torch.get_rng_state()
    model = load_encoder(str(llama), dtype=dtype)
    assert torch.equal(torch.get_rng_state(), state)
    grown = model[0].model.get_input_embeddings().weight.detach()
    assert model[0].model.config.vocab_size == len(grown) == len(tokenizer) == len(rows) + 2
    assert torch.equal(grown[:-2], rows)
    assert torch.equal(grown[-2:], rows.float().mean(0).to(dtype).expand(2, -1))
    assert torch.equal(vectors(model), vectors(before))
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    texts = ["A bee <one> dances", "<two>"]
    assert np.allclose(plain.encode(texts), vectors(model, texts), atol=1e-5 if dtype == torch.float32 else 0.05)


def test_a_tokenizer_gets_a_token_to_pad_with(llama: Path, tmp_path: Path) -> None:
    before = load_encoder(str(llama))  # pads with the end-of-text token
    before.tokenizer.save_pretrained(llama)
    nothing = {"pad_token": None, "eos_token": None, "unk_token": None}
    edit_json(llama / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **nothing)
    assert AutoTokenizer.from_pretrained(llama).pad_token is None
    model = load_encoder(str(llama))
    assert model.tokenizer.pad_token == "[PAD]"
    assert model.tokenizer.pad_token_id == model[0].model.get_input_embeddings().num_embeddings - 1
    assert torch.equal(vectors(model), vectors(before))
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert plain.tokenizer.pad_token == "[PAD]"
    assert np.allclose(plain.encode(TEXTS), vectors(model), atol=1e-5)


@pytest.mark.parametrize(("family", "pooling"), [("bert", "first-last"), ("qwen2", "last"), ("qwen2", "cls")])
def test_a_tokenizer_that_pads_on_the_left_gives_the_same_vectors(family: Family, pooling: str, tmp_path: Path) -> None:
    right = make_tiny_model(family, tmp_path / "right")
    left = Path(shutil.copytree(right, tmp_path / "left"))
    edit_json(left / "tokenizer_config.json", padding_side="left")
    assert AutoTokenizer.from_pretrained(left).padding_side == "left"
    model = load_encoder(str(left), pooling=pooling)
    assert torch.equal(vectors(model), vectors(load_encoder(str(right), pooling=pooling)))
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.allclose(plain.encode(TEXTS), vectors(model), atol=1e-5)


def test_a_saved_model_that_pads_on_the_left_gives_its_own_vectors(tmp_path: Path) -> None:
    save_encoder(load_encoder(str(make_tiny_model("qwen2", tmp_path / "base"))), tmp_path / "saved")
    edit_json(tmp_path / "saved" / "tokenizer_config.json", padding_side="left")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert plain.tokenizer.padding_side == "left"
    model = load_encoder(str(tmp_path / "saved"))
    assert np.allclose(plain.encode(TEXTS), vectors(model), atol=1e-5)
    bare = AutoModel.from_pretrained(tmp_path / "saved")
    (ids,) = tokenize(model.tokenizer, TEXTS[:1], 64)
    with torch.no_grad():
        last = bare(torch.tensor([ids])).last_hidden_state[0, -1]
    assert torch.allclose(vectors(model)[0], torch.nn.functional.normalize(last, dim=0), atol=1e-5)
