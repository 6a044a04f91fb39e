"""Poolings over layers and projections: by their definition, and the same in plain sentence-transformers."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, WeightedLayerPooling
from test_network import lay_end_to_end
from tiny_models import SENTENCES, Family, make_tiny_model
from transformers import AutoModel

from tdro.data.collate import tokenize
from tdro.errors import ConfigError
from tdro.models.encoder import embed, load_encoder, save_encoder
from tdro.models.lora import Lora, add_lora
from tdro.models.network import checkpoint_gradients

TEXTS = [*SENTENCES, "A bee"]
LAYERS = {"first-last": (0, -1), "top-two": (-2, -1)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per family; tests only read them."""
    families: list[Family] = ["bert", "qwen2", "gpt_neox", "static"]
    return {family: make_tiny_model(family, tmp_path_factory.mktemp(family)) for family in families}


def vectors(model: SentenceTransformer) -> torch.Tensor:
    """Embed texts without a graph."""
    return embed(model, tokenize(model.tokenizer, TEXTS, 64)).detach()


# --- poolings over layers ---


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("bert", "first-last"), ("qwen2", "top-two"), pytest.param("gpt_neox", "first-last", marks=pytest.mark.slow)],
)
def test_the_mean_of_two_layers_is_pooled(family: Family, pooling: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_encoder(str(bases[family]), pooling=pooling, normalize=False)
    bare, (first, second) = AutoModel.from_pretrained(bases[family]), LAYERS[pooling]
    expected = []
    for ids in tokenize(model.tokenizer, TEXTS, 64):
        with torch.no_grad():
            hidden = bare(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected.append((hidden[first][0] + hidden[second][0]).mean(0) / 2)
    assert torch.allclose(vectors(model), torch.stack(expected), atol=1e-5)
    save_encoder(model, tmp_path)
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.allclose(plain.encode(TEXTS, convert_to_tensor=True), vectors(model), atol=1e-5)
    again = load_encoder(str(tmp_path), normalize=False)
    assert torch.equal(vectors(again), vectors(model))
    assert not any(weight.requires_grad for weight in again[1].parameters())


def test_another_pooling_takes_the_place_of_one_over_layers(bases: dict[str, Path], tmp_path: Path) -> None:
    save_encoder(load_encoder(str(bases["bert"]), pooling="top-two"), tmp_path)
    found = load_encoder(str(tmp_path), pooling="mean")
    assert [type(module) for module in list(found)[1:]] == [Pooling, Normalize]
    assert not found[0].model.config.output_hidden_states
    assert torch.equal(vectors(found), vectors(load_encoder(str(bases["bert"]))))
    other = load_encoder(str(tmp_path), pooling="first-last")
    assert torch.equal(vectors(other), vectors(load_encoder(str(bases["bert"]), pooling="first-last")))


def test_layers_without_padding_are_those_of_padded_texts(bases: dict[str, Path]) -> None:
    padded = load_encoder(str(bases["qwen2"]), pooling="first-last")
    flat = lay_end_to_end(load_encoder(str(bases["qwen2"]), pooling="first-last", attention="text_by_text"))
    assert torch.allclose(vectors(flat), vectors(padded), atol=1e-6)


def test_gradients_through_two_layers_are_the_same_with_checkpoints(bases: dict[str, Path]) -> None:
    found = []
    for checkpoint in (False, True):
        model = load_encoder(str(bases["bert"]), pooling="first-last", dtype=torch.float64).train()
        if checkpoint:
            checkpoint_gradients(model)
        torch.manual_seed(0)
        embed(model, tokenize(model.tokenizer, TEXTS, 64)).square().mul(torch.arange(32)).sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys() and len(plain) > 30
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_network_that_gives_no_layers_is_refused(bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases["bert"]), pooling="top-two")
    model[0].model.config.output_hidden_states = False
    with pytest.raises(ConfigError, match="does not give its hidden states"):
        vectors(model)
    with pytest.raises(ConfigError, match="no single pooling"):
        load_encoder(str(bases["static"]), pooling="top-two")


# --- projections ---


@pytest.mark.parametrize("family", ["bert", "static"])
def test_a_projection_is_a_linear_layer_below_the_normalisation(
    family: Family, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load_encoder(str(bases[family]), projection=5)
    assert [type(module) for module in list(model)[-2:]] == [Dense, Normalize]
    pooled = vectors(load_encoder(str(bases[family]), normalize=False))
    expected = torch.nn.functional.normalize(model[-2].linear(pooled).detach())
    assert torch.allclose(vectors(model), expected, atol=1e-6)
    save_encoder(model, tmp_path)
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.allclose(plain.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-5)


def test_the_seed_alone_decides_a_projection(bases: dict[str, Path]) -> None:
    found = []
    for seed, before in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        found.append(load_encoder(str(bases["static"]), projection=5, seed=seed)[-2].linear.weight)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_base_keeps_its_projection_of_the_same_size(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_encoder(str(bases["static"]), projection=5, seed=1)
    save_encoder(model, tmp_path)
    for size in (None, 5):
        assert torch.equal(vectors(load_encoder(str(tmp_path), projection=size, seed=2)), vectors(model))
    smaller = load_encoder(str(tmp_path), projection=3)
    assert [(m.in_features, m.out_features) for m in smaller if isinstance(m, Dense)] == [(32, 5), (5, 3)]


def test_a_projection_trains_beside_adapters_only_if_it_is_asked_for(bases: dict[str, Path]) -> None:
    for asked in (False, True):
        model = load_encoder(str(bases["bert"]), projection=5)
        add_lora(model, Lora(rank=2), seed=0, projection=asked)
        assert model[-2].linear.weight.requires_grad == model[-2].linear.bias.requires_grad == asked


def test_low_precision_reaches_layers_and_projection(bases: dict[str, Path]) -> None:
    exact = load_encoder(str(bases["bert"]), pooling="first-last", projection=5)
    low = load_encoder(str(bases["bert"]), pooling="first-last", projection=5, dtype=torch.bfloat16)
    assert {weight.dtype for weight in low.parameters()} == {torch.bfloat16}
    assert any(isinstance(module, WeightedLayerPooling) for module in low)
    assert torch.allclose(vectors(low).norm(dim=1), torch.ones(len(TEXTS)), atol=1e-6)
    assert torch.allclose(vectors(low), vectors(exact), atol=0.1)
