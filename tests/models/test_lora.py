"""Adapters: where they go, that nothing else trains, and that a saved model has them merged."""

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from tiny_models import SENTENCES, Family, make_tiny_model
from transformers import AutoModel

from tdro.data.collate import tokenize
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.models import lora as lora_module
from tdro.models.encoder import embed, load_encoder, save_encoder
from tdro.models.lora import Lora, add_lora, has_lora, save_adapter
from tdro.models.quiet import quiet

QWEN = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
GATED = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
LAYERS: dict[Family, set[str]] = {
    "bert": {
        "attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense", "intermediate.dense", "output.dense",
    },
    "qwen2": QWEN | GATED,
    "llama": QWEN | GATED,
    "mistral": QWEN | GATED,
    "gemma": QWEN | GATED,
    "phi": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"},
    "gpt_neox": {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
}  # fmt: skip
"""Family -> its linear layers inside a block."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per family; tests only read them."""
    return {family: make_tiny_model(family, tmp_path_factory.mktemp(family)) for family in (*LAYERS, "static")}


def vectors(model: SentenceTransformer) -> torch.Tensor:
    """Embed the sentences without a graph."""
    return embed(model, tokenize(model.tokenizer, SENTENCES, 64)).detach()


def trained(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """What an optimizer would see."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def move(model: SentenceTransformer, seed: int = 0) -> None:
    """Make the second matrices of the adapters something else than 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in trained(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)


@pytest.mark.parametrize("family", LAYERS)
def test_every_linear_layer_of_a_block_gets_an_adapter_and_nothing_else_trains(
    family: Family, bases: dict[str, Path]
) -> None:
    model = load_encoder(str(bases[family]))
    before = vectors(model)
    add_lora(model, Lora(rank=4), seed=0)
    assert torch.equal(vectors(model), before)  # an adapter begins with nothing to add
    found = {name.split(".lora_")[0] for name in trained(model)}
    assert all(".lora_" in name for name in trained(model))
    blocks = {name.removesuffix(f".{end}") for name in found for end in LAYERS[family] if name.endswith(f".{end}")}
    assert found == {f"{block}.{end}" for block in blocks if block[-1].isdigit() for end in LAYERS[family]}
    assert len(found) == 2 * len(LAYERS[family])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own, on loading
@pytest.mark.parametrize("family", LAYERS)
def test_the_saved_model_is_plain_and_gives_the_vectors_of_the_one_in_training(
    family: Family, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load_encoder(str(bases[family]))
    start = vectors(model)
    add_lora(model, Lora(rank=4, alpha=8), seed=0)
    move(model)
    expected, state = vectors(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert (expected - start).abs().max() > 0.01
    save_encoder(model, tmp_path / "model")
    save_adapter(model, tmp_path / "adapter", str(bases[family]))

    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert torch.allclose(plain.encode(list(SENTENCES), convert_to_tensor=True), expected, rtol=0, atol=1e-6)
    assert not [path for path in (tmp_path / "model").rglob("*adapter*")]
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert names == set(load_encoder(str(bases[family]))[0].model.state_dict())

    with quiet():
        network = PeftModel.from_pretrained(AutoModel.from_pretrained(bases[family]), tmp_path / "adapter")
    by_itself = load_encoder(str(bases[family]))
    by_itself[0].model = network.base_model.model.eval()
    assert torch.equal(vectors(by_itself), expected)

    assert has_lora(model) and isinstance(model[0], Transformer)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_base_that_is_an_adapter_is_merged_and_takes_another(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_encoder(str(bases["qwen2"]))
    add_lora(model, Lora(rank=4), seed=0)
    move(model)
    save_adapter(model, tmp_path, str(bases["qwen2"]))
    again = load_encoder(str(tmp_path))
    assert torch.allclose(vectors(again), vectors(model), atol=1e-6) and not has_lora(again)
    with pytest.raises(ConfigError, match="an adapter already"):
        add_lora(model, Lora(rank=4), seed=0)
    add_lora(again, Lora(rank=4), seed=0)
    assert has_lora(again) and torch.allclose(vectors(again), vectors(model), atol=1e-6)


def test_the_seed_alone_decides_the_initial_adapter(bases: dict[str, Path]) -> None:
    found = []
    for seed, before in ((3, 0), (3, 1), (4, 0)):
        model = load_encoder(str(bases["qwen2"]))
        torch.manual_seed(before)
        state = torch.get_rng_state()
        add_lora(model, Lora(rank=4), seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(torch.cat([parameter.detach().flatten() for parameter in trained(model).values()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("llama", ("q_proj", "v_proj"), {"self_attn.q_proj", "self_attn.v_proj"}),
        ("llama", ("mlp.up_proj",), {"mlp.up_proj"}),
        # BERT's pooler is a layer called dense too, but no part of a block: it never gets a gradient.
        ("bert", ("dense",), {"attention.output.dense", "intermediate.dense", "output.dense"}),
    ],
)
def test_targets_are_ends_of_names_inside_blocks(
    family: Family, targets: tuple[str, ...], expected: set[str], bases: dict[str, Path]
) -> None:
    model = load_encoder(str(bases[family]))
    add_lora(model, Lora(rank=2, targets=targets), seed=0)
    layers = {name.split(".lora_")[0] for name in trained(model)}
    assert {name.split(".1.")[-1] for name in layers if ".1." in name} == expected
    assert len(layers) == 2 * len(expected)


@pytest.mark.parametrize("targets", [("query",), ("q_proj", "proj"), ("embed_tokens",)])
def test_targets_that_are_not_there_are_refused_with_the_ones_that_are(
    targets: tuple[str, ...], bases: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError) as error:
        add_lora(load_encoder(str(bases["qwen2"])), Lora(rank=2, targets=targets), seed=0)
    for part in ("model.lora_targets", targets[-1], "mlp.down_proj, mlp.gate_proj"):
        assert part in str(error.value)


def test_lora_needs_a_transformer_and_peft(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora_rank needs a transformer"):
        add_lora(load_encoder(str(bases["static"])), Lora(rank=2), seed=0)
    real = importlib.util.find_spec
    monkeypatch.setattr(lora_module, "find_spec", lambda name: None if name == "peft" else real(name))
    with pytest.raises(EnvironmentProblem, match=r"pip install 'tdro\[lora\]'"):
        add_lora(load_encoder(str(bases["qwen2"])), Lora(rank=2), seed=0)


def test_frozen_matrices_in_bfloat16_change_no_bit(bases: dict[str, Path], tmp_path: Path) -> None:
    base = make_tiny_model("qwen2", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    exact = {name: tensor if "layers.1.mlp" in name else tensor.bfloat16().float() for name, tensor in weights.items()}
    save_file(exact, base / "model.safetensors", {"format": "pt"})
    found, saved = [], []
    for half in (False, True):
        model = load_encoder(str(base)).train()
        add_lora(model, Lora(rank=4, targets=("q_proj", "up_proj")), seed=0, half=half)
        move(model)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            embedding = embed(model, tokenize(model.tokenizer, SENTENCES, 64))
        embedding.square().mul(torch.arange(32)).sum().backward()
        found.append([embedding.detach(), *(parameter.grad for parameter in trained(model).values())])
        save_encoder(model, tmp_path / str(half))
        saved.append((tmp_path / str(half) / "model.safetensors").read_bytes())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and saved[0] == saved[1]
    kinds = {name: p.dtype for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name}
    for name, dtype in kinds.items():  # what bfloat16 would round, and what trains, stays as it is
        whole = "lora" in name or "layers.1.mlp" in name
        assert dtype == (torch.float32 if whole else torch.bfloat16), name
