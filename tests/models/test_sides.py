"""Separate encoders for queries and passages: one model, one folder, and each side does what it did alone."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Router
from tiny_models import SENTENCES, Family, make_tiny_model

from tdro.data.collate import tokenize
from tdro.errors import ConfigError
from tdro.models.encoder import embed, load_encoder, longest_input, save_encoder, set_max_length
from tdro.models.lora import Lora, add_lora, has_lora, save_adapter
from tdro.models.network import checkpoint_gradients
from tdro.models.sides import Kind, join, pack_sides, side_of, sides_of

TEXTS = [*SENTENCES, "A bee"]
KINDS: tuple[Kind, Kind] = ("queries", "passages")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two bases per family that differ in their weights alone; tests only read them."""
    families: list[Family] = ["bert", "qwen2", "static"]
    made = {f"{f} {n}": make_tiny_model(f, tmp_path_factory.mktemp(f), seed=n) for f in families for n in (0, 1)}
    return made | {"llama": make_tiny_model("llama", tmp_path_factory.mktemp("llama"))}


def vectors(model: SentenceTransformer, max_length: int = 64) -> torch.Tensor:
    """Embed texts without a graph."""
    return embed(model, tokenize(model.tokenizer, TEXTS, max_length)).detach()


def pair(bases: dict[str, Path], family: str, **options: object) -> SentenceTransformer:
    """Load two bases of a family as one model."""
    return load_encoder(str(bases[f"{family} 0"]), query_encoder=str(bases[f"{family} 1"]), **options)


@pytest.mark.parametrize("family", [pytest.param("bert", marks=pytest.mark.slow), "qwen2", "static"])
def test_each_side_is_the_encoder_it_came_from(family: Family, bases: dict[str, Path], tmp_path: Path) -> None:
    model = pair(bases, family)
    alone = [load_encoder(str(bases[f"{family} {n}"])) for n in (1, 0)]
    expected = [vectors(encoder) for encoder in alone]
    for kind, vector_nD in zip(KINDS, expected, strict=True):
        assert torch.equal(vectors(side_of(model, kind)), vector_nD)
    assert not torch.allclose(*expected, atol=0.1)
    set_max_length(model, 9)
    save_encoder(model, tmp_path)
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    found = plain.encode_query(TEXTS), plain.encode_document(TEXTS)
    again = load_encoder(str(tmp_path))
    for kind, encoder, vector_nD in zip(KINDS, alone, found, strict=True):
        assert np.allclose(vector_nD, vectors(encoder, 9), atol=1e-5)
        assert torch.equal(vectors(side_of(again, kind)), vectors(encoder))


def test_a_model_without_sides_is_both_of_them(bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases["bert 0"]))
    assert side_of(model, "queries") is side_of(model, "passages") is model
    assert sides_of(model) == (model,)


def test_a_copy_begins_alike_and_trains_apart(bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases["bert 0"]), query_encoder="copy", projection=5, pooling="first-last")
    queries, passages = sides_of(model)
    assert torch.equal(vectors(queries), vectors(passages))
    embed(queries, tokenize(queries.tokenizer, TEXTS, 64))[:, 0].sum().backward()
    grown = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert grown and all(".query." in name for name in grown)
    with torch.no_grad():
        for weight in queries.parameters():
            weight.mul_(0.5)
    assert not torch.allclose(vectors(queries), vectors(passages), atol=0.01)
    assert torch.equal(vectors(side_of(model, "queries")), vectors(queries))


def test_options_reach_both_sides(bases: dict[str, Path]) -> None:
    model = pair(bases, "bert", pooling="cls", normalize=False, attention="eager", dtype=torch.float64)
    checkpoint_gradients(model)
    for side in sides_of(model):
        assert side[1].pooling_mode == "cls" and not isinstance(side[-1], Normalize)
        assert side[0].model.config._attn_implementation == "eager"
        assert side[0].model.is_activation_checkpointing
        assert {weight.dtype for weight in side.parameters()} == {torch.float64}
    assert model.similarity_fn_name == "dot"
    assert longest_input(model) == 512
    model.train()
    assert all(module.training for side in sides_of(model) for module in side[0].modules())


def test_a_saved_pair_takes_another_pooling_on_both_sides(bases: dict[str, Path], tmp_path: Path) -> None:
    save_encoder(pair(bases, "bert"), tmp_path)
    found, expected = load_encoder(str(tmp_path), pooling="top-two"), pair(bases, "bert", pooling="top-two")
    for kind in KINDS:
        assert torch.equal(vectors(side_of(found, kind)), vectors(side_of(expected, kind)))


def test_adapters_of_both_sides_are_merged_on_saving_and_saved_apart(bases: dict[str, Path], tmp_path: Path) -> None:
    names = [str(bases["bert 1"]), str(bases["bert 0"])]
    model = pair(bases, "bert")
    add_lora(model, Lora(rank=2), seed=0)
    assert has_lora(model) and all(has_lora(side) for side in sides_of(model))
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        assert weight.requires_grad == (".lora_" in name)
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    expected = [vectors(side) for side in sides_of(model)]
    save_encoder(model, tmp_path / "model")
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert not [path for path in (tmp_path / "model").rglob("*adapter*")]
    for found, vector_nD in zip((plain.encode_query(TEXTS), plain.encode_document(TEXTS)), expected, strict=True):
        assert np.allclose(found, vector_nD, atol=1e-5)
    assert all(torch.equal(vectors(side), vector_nD) for side, vector_nD in zip(sides_of(model), expected, strict=True))
    save_adapter(model, tmp_path / "adapter", names[1], names[0])
    assert set(load_file(tmp_path / "adapter" / "query_model" / "adapter_model.safetensors"))
    again = load_encoder(str(tmp_path / "adapter"))
    for side, vector_nD in zip(sides_of(again), expected, strict=True):
        assert torch.allclose(vectors(side), vector_nD, atol=1e-5)


def test_passes_hold_texts_of_one_side_only(bases: dict[str, Path]) -> None:
    length_n = np.array([2, 5, 2, 5, 2])
    one = pack_sides(load_encoder(str(bases["static 0"])), length_n, 2, 10)
    assert [group.tolist() for _, group in one] == [[0, 2, 4], [1, 3]]
    model = pair(bases, "static")
    found = pack_sides(model, length_n, 2, 10)
    assert [group.tolist() for _, group in found] == [[0, 1], [2, 4], [3]]
    assert [encoder is side_of(model, "queries") for encoder, _ in found] == [True, False, False]


def test_modules_behind_a_router_belong_to_both_sides(bases: dict[str, Path], tmp_path: Path) -> None:
    queries, passages = (load_encoder(str(bases[f"bert {n}"]), normalize=False) for n in (1, 0))
    routed = SentenceTransformer(
        modules=[Router.for_query_document(list(queries), list(passages)), Normalize()], device="cpu"
    )
    routed.save_pretrained(str(tmp_path))
    found = load_encoder(str(tmp_path))
    assert [type(module) for module in found] == [Router]
    assert np.allclose(vectors(side_of(found, "queries")), routed.encode_query(TEXTS), atol=1e-5)
    assert np.allclose(vectors(side_of(found, "passages")), routed.encode_document(TEXTS), atol=1e-5)


def test_a_copy_of_a_model_has_sides_of_its_own(bases: dict[str, Path]) -> None:
    model = pair(bases, "static")
    before = vectors(side_of(model, "queries"))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in side_of(twin, "queries").parameters():
            weight.zero_()
    assert torch.equal(vectors(side_of(model, "queries")), before)
    assert all(weight.eq(0).all() for name, weight in twin.named_parameters() if ".query." in name)


def test_what_cannot_be_a_pair_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different tokenizers"):
        load_encoder(str(bases["qwen2 0"]), query_encoder=str(bases["llama"]))
    with pytest.raises(ConfigError, match="different tokenizers"):
        load_encoder(str(bases["bert 0"]), query_encoder=str(bases["static 0"]))
    with pytest.raises(ConfigError, match="different lengths"):
        join(load_encoder(str(bases["bert 0"]), projection=5), load_encoder(str(bases["bert 0"])))
    model = pair(bases, "static")
    with pytest.raises(ConfigError, match="separate encoders for queries and passages"):
        vectors(model)
    save_encoder(model, tmp_path)
    for base, other in ((tmp_path, "copy"), (bases["static 0"], str(tmp_path))):
        with pytest.raises(ConfigError, match="separate encoders already"):
            load_encoder(str(base), query_encoder=other)
    odd = SentenceTransformer(modules=[Router({"text": list(load_encoder(str(bases["static 0"])))})], device="cpu")
    with pytest.raises(ConfigError, match="in another way"):
        side_of(odd, "queries")
