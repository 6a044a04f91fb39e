"""Attention, texts laid end to end, checkpointed and compiled blocks: other ways to the same numbers."""

import importlib.util
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import SENTENCES, Family, make_tiny_model
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DataCollatorWithFlattening,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tdro.data.collate import tokenize
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.models import network as network_module
from tdro.models.encoder import embed, load_encoder, longest_input
from tdro.models.features import features_of
from tdro.models.lora import Lora, add_lora
from tdro.models.network import check_attention, checkpoint_gradients, compile_network

FAMILIES: list[Family] = ["bert", "qwen2", "llama", "mistral", "phi", "gpt_neox", "gemma"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per family; tests only read them."""
    return {family: make_tiny_model(family, tmp_path_factory.mktemp(family)) for family in (*FAMILIES, "static")}


def attend_text_by_text(module, query, key, value, attention_mask, scaling=None, **options):
    """What flash attention's function for variable lengths computes, one text after the other."""
    assert attention_mask is None
    bounds = options["cu_seq_lens_q"].tolist()
    assert bounds == options["cu_seq_lens_k"].tolist() and bounds[-1] == query.shape[2]
    assert options["max_length_q"] == options["max_length_k"] == max(b - a for a, b in pairwise(bounds))
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=module.is_causal, scale=scaling
        )
        for a, b in pairwise(bounds)
    ]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("text_by_text", attend_text_by_text)
AttentionMaskInterface.register("text_by_text", lambda *args, **options: None)


def lay_end_to_end(model: SentenceTransformer) -> SentenceTransformer:
    """Do what sentence-transformers does on finding flash attention."""
    model[0].can_flatten_inputs = True
    if model[0].model_forward_params is not None:
        model[0].model_forward_params |= {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
    model[0]._flatten_position_offset = model[0]._infer_flatten_position_offset()
    return model


# --- attention ---


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_and_sdpa_agree(family: Family, bases: dict[str, Path]) -> None:
    found = []
    for attention in ("eager", "sdpa"):
        model = load_encoder(str(bases[family]), attention=attention)
        assert model[0].model.config._attn_implementation == attention
        found.append(embed(model, tokenize(model.tokenizer, SENTENCES, 64)))
    assert torch.allclose(*found, atol=1e-6)


def test_flash_attention_is_refused_where_it_cannot_run(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"needs a GPU(?s:.*)model\.attention(?s:.*)use auto or sdpa"):
        load_encoder(str(bases["qwen2"]), attention="flash_attention_2")
    real = importlib.util.find_spec
    monkeypatch.setattr(network_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="install flash_attn or kernels"):
        check_attention("flash_attention_2", "cuda")
    monkeypatch.setattr(network_module, "find_spec", lambda name: real("torch") if name == "flash_attn" else None)
    check_attention("flash_attention_2", "cuda")
    with pytest.raises(ConfigError, match="computes in bfloat16"):
        check_attention("flash_attention_2", "cuda", half=False)
    for attention in ("auto", "eager", "sdpa"):
        check_attention(attention, "cpu", half=False)


def test_attention_that_the_architecture_lacks_is_refused(bases: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"set model\.attention: auto instead of no_such_attention"):
        load_encoder(str(bases["qwen2"]), attention="no_such_attention")


def test_options_of_transformers_are_refused_for_static_embeddings(bases: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.attention needs a transformer"):
        load_encoder(str(bases["static"]), attention="eager")
    for apply, option in ((checkpoint_gradients, "gradient_checkpointing"), (compile_network, "compile")):
        with pytest.raises(ConfigError, match=rf"model\.{option} needs a transformer"):
            apply(load_encoder(str(bases["static"])))


# --- texts laid end to end ---


def test_features_without_padding_are_those_of_the_library(bases: dict[str, Path]) -> None:
    model = lay_end_to_end(load_encoder(str(bases["llama"])))
    token_lists = tokenize(model.tokenizer, SENTENCES, 64)
    collate = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True, return_position_ids=True)
    expected = collate([{"input_ids": list(tokens)} for tokens in token_lists])
    expected.pop("labels")
    found = features_of(model, token_lists)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        same = torch.equal(found[name], value) and found[name].dtype == value.dtype if torch.is_tensor(value) else None
        assert same or found[name] == value, name
    assert found["input_ids"].shape == (1, sum(len(tokens) for tokens in token_lists))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_without_padding_equal_the_padded_ones(family: Family, pooling: str, bases: dict[str, Path]) -> None:
    padded = load_encoder(str(bases[family]), pooling=pooling)
    token_lists = tokenize(padded.tokenizer, [*SENTENCES, "A bee"], 64)
    flat = lay_end_to_end(load_encoder(str(bases[family]), pooling=pooling, attention="text_by_text"))
    assert torch.allclose(embed(flat, token_lists), embed(padded, token_lists), atol=1e-6)


def test_positions_without_padding_begin_where_the_architecture_counts_from(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    padded = load_encoder(str(bases["bert"]))
    padded.tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = XLMRobertaConfig(vocab_size=len(padded.tokenizer), max_position_embeddings=66, pad_token_id=1, **sizes)
    torch.manual_seed(0)
    XLMRobertaModel(config).save_pretrained(tmp_path)
    padded = load_encoder(str(tmp_path))
    assert longest_input(padded) == 64
    token_lists = tokenize(padded.tokenizer, SENTENCES, 64)
    flat = lay_end_to_end(load_encoder(str(tmp_path), attention="text_by_text"))
    assert features_of(flat, token_lists)["position_ids"].min() == 2
    assert torch.allclose(embed(flat, token_lists), embed(padded, token_lists), atol=1e-6)


# --- compiled blocks ---


def compiled_and_plain(base: Path, backend: str, checkpoint: bool) -> None:
    """Compare gradients of adapters, with dropout, and the names of all tensors."""
    found, names = [], []
    for compiled in (False, True):
        model = load_encoder(str(base), dtype=torch.float64).train()
        add_lora(model, Lora(rank=2, dropout=0.2), seed=0)
        if checkpoint:
            checkpoint_gradients(model)
        if compiled:
            compile_network(model, backend)
        for texts in (SENTENCES[:3], SENTENCES):
            torch.manual_seed(0)
            with torch.no_grad():
                first = embed(model, tokenize(model.tokenizer, texts, 64))
            torch.manual_seed(0)
            embedding = embed(model, tokenize(model.tokenizer, texts, 64))
            assert torch.allclose(first, embedding, rtol=0, atol=1e-12)
            embedding.square().mul(torch.arange(32)).sum().backward()
        found.append([embedding.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        names.append(list(model.state_dict()))
    assert names[0] == names[1]
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)


def test_compiled_blocks_give_the_same_gradients_and_names(bases: dict[str, Path]) -> None:
    compiled_and_plain(bases["qwen2"], "eager", checkpoint=True)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("family", ["bert", "phi"])
def test_compiled_code_gives_the_same_gradients(family: Family, checkpoint: bool, bases: dict[str, Path]) -> None:
    compiled_and_plain(bases[family], "inductor", checkpoint)


def test_compiling_without_a_compiler_is_refused_at_once(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network_module.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="needs a C compiler"):
        compile_network(load_encoder(str(bases["qwen2"])))
