"""Folders of the paper's released code load with the vectors that transformers and peft give on their own."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tiny_models import SENTENCES, Family, make_tiny_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tdro.data.collate import tokenize
from tdro.devices import Device
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.models import lora as lora_module
from tdro.models.encoder import embed, load_encoder, save_encoder
from tdro.models.frame import append_eos
from tdro.models.lora import Lora, add_lora, save_adapter
from tdro.models.sides import UNTIED, sides_of
from tdro.retrieval.encoders import encoder_fingerprint, open_encoder

pytestmark = [  # peft's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
TEXTS = [*SENTENCES, "A bee"]
POOL: dict[str, Callable[[Any], torch.Tensor]] = {
    "lasttoken": lambda hidden: hidden[-1][0, -1],
    "cls": lambda hidden: hidden[-1][0, 0],
    "mean": lambda hidden: hidden[-1][0].mean(0),
    "first_last_avg": lambda hidden: (hidden[0][0] + hidden[-1][0]).mean(0) / 2,
}
"""Hidden states of one text -> its vector."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per family; tests only read them."""
    families: list[Family] = ["bert", "qwen2", "llama"]
    return {family: make_tiny_model(family, tmp_path_factory.mktemp(family)) for family in families}


def released(folder: Path, base: Path, *, appends: bool = True, **arguments: object) -> Path:
    """Write a full model as the released code does: network, tokenizer, its arguments, and a pickle nobody may read."""
    AutoModel.from_pretrained(base).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if appends and tokenizer.eos_token:
        append_eos(tokenizer, "")
    tokenizer.save_pretrained(folder)
    write_arguments(folder, **arguments)
    return folder


def write_arguments(folder: Path, **arguments: object) -> None:
    """Write model_args.yaml, and training_args.bin, which would fail if it were read."""
    known = {
        "model_name_or_path": "Qwen/Qwen2.5-0.5B", "model_type": "EncoderModel", "untie_encoder": False,
        "add_pooler": False, "projection_in_dim": None, "projection_out_dim": None,
        "pooling_strategy": "lasttoken", "score_function": "cos_sim", "normalize": None,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "model_args.yaml").write_text(yaml.safe_dump(known | arguments))
    (folder / "training_args.bin").write_bytes(b"not even a pickle")


def adapter(
    folder: Path,
    base: Path,
    *,
    seed: int = 0,
    whole: bool = False,
    more_tokens: int = 0,
    options: dict[str, Any] | None = None,
    **named: object,
) -> PeftModel:
    """Write a LoRA adapter with peft and return the adapted network; `named` changes what it says of itself."""
    torch.manual_seed(seed)
    network = (AutoModelForCausalLM if whole else AutoModel).from_pretrained(base)
    if more_tokens:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens([f"<{i}>" for i in range(more_tokens)])
        tokenizer.save_pretrained(folder)
        network.resize_token_embeddings(len(tokenizer))
    kind = TaskType.CAUSAL_LM if whole else TaskType.FEATURE_EXTRACTION
    wishes = {"target_modules": ["q_proj", "up_proj"], **(options or {})}
    config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, task_type=kind, **wishes)
    adapted = get_peft_model(network, config).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad and ".lora_" not in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    adapted.save_pretrained(str(folder))
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | named))
    return adapted


def expected(network: torch.nn.Module, token_lists: list[list[int]], pooling: str = "lasttoken") -> torch.Tensor:
    """Embed texts one by one; vectors of any length."""
    with torch.no_grad():
        return torch.stack(
            [
                POOL[pooling](network(torch.tensor([ids]), output_hidden_states=True).hidden_states)
                for ids in token_lists
            ]
        )


def unit(vector_nD: torch.Tensor) -> torch.Tensor:
    """Bring vectors to length 1."""
    return torch.nn.functional.normalize(vector_nD)


def vectors(model: SentenceTransformer) -> torch.Tensor:
    """Embed texts without a graph."""
    return embed(model, tokenize(model.tokenizer, TEXTS, 64)).detach()


def tokens(folder: Path) -> list[list[int]]:
    """What a tokenizer makes of the texts, with the end-of-text token whether it appends it or not."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = [] if tokenizer.eos_token is None else [tokenizer.eos_token_id]
    return [ids if ids[-1:] == end else [*ids, *end] for ids in tokenizer(TEXTS)["input_ids"]]


# --- full models ---


@pytest.mark.parametrize(("family", "appends"), [("qwen2", False), ("llama", True)])
def test_a_full_model_pools_its_last_token(
    family: Family, appends: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = released(tmp_path / "model", bases[family], appends=appends)
    model = load_encoder(str(folder))
    assert torch.allclose(vectors(model), unit(expected(AutoModel.from_pretrained(folder), tokens(folder))), atol=1e-5)
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.allclose(plain.encode(TEXTS), vectors(model), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first_last_avg"])
def test_a_full_model_has_the_pooling_of_its_arguments(pooling: str, bases: dict[str, Path], tmp_path: Path) -> None:
    folder = released(tmp_path / "model", bases["bert"], pooling_strategy=pooling)
    network, found = AutoModel.from_pretrained(folder), load_encoder(str(folder))
    assert torch.allclose(vectors(found), unit(expected(network, tokens(folder), pooling)), atol=1e-5)
    asked = load_encoder(str(folder), pooling="cls")
    assert torch.allclose(vectors(asked), unit(expected(network, tokens(folder), "cls")), atol=1e-5)


@pytest.mark.parametrize(
    ("score", "normalize", "long"), [("cos_sim", None, False), ("dot", None, True), ("dot", True, False)]
)
def test_the_score_function_decides_the_length_of_vectors(
    score: str, normalize: bool | None, long: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = released(
        tmp_path / "model", bases["bert"], pooling_strategy="cls", score_function=score, normalize=normalize
    )
    query, _ = open_encoder(str(folder), device=Device("cpu", torch.float32, False))
    vector_nD = torch.from_numpy(query.encode(TEXTS))
    by_hand = expected(AutoModel.from_pretrained(folder), tokens(folder), "cls")
    assert torch.allclose(vector_nD, by_hand if long else unit(by_hand), atol=1e-5)


# --- projections ---


def test_a_projection_is_read_once_it_is_no_pickle(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = released(tmp_path / "model", bases["bert"], pooling_strategy="mean", add_pooler=True)
    layer = torch.nn.Linear(32, 7)
    torch.save({f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}, folder / "pooler.pt")
    (folder / "pooler_config.json").write_text(json.dumps({"projection_in_dim": 32, "projection_out_dim": 7}))
    with pytest.raises(ConfigError, match="the projection is pickled") as error:
        load_encoder(str(folder))
    python, option, code = shlex.split(str(error.value.do))
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(folder)
    exec(code)  # what the error says
    found = load_encoder(str(folder))
    pooled = expected(AutoModel.from_pretrained(folder), tokens(folder), "mean")
    assert torch.allclose(vectors(found), unit(layer(pooled)).detach(), atol=1e-5)
    (folder / "pooler.pt").unlink()
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, folder / "pooler.safetensors")
    with pytest.raises(ConfigError, match="no single linear layer"):
        load_encoder(str(folder))
    (folder / "pooler.safetensors").unlink()
    with pytest.raises(ConfigError, match="projection of a released model is missing"):
        load_encoder(str(folder))


# --- adapters ---


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_merged_into_its_base(whole: bool, bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    adapted = adapter(folder, bases["qwen2"], whole=whole)
    AutoTokenizer.from_pretrained(bases["qwen2"]).save_pretrained(folder)
    write_arguments(folder)
    model = load_encoder(str(folder))
    by_hand = unit(expected(adapted, tokens(folder)))
    assert torch.allclose(vectors(model), by_hand, atol=1e-5)
    assert not torch.allclose(vectors(load_encoder(str(bases["qwen2"]))), by_hand, atol=0.05)
    assert all(weight.requires_grad for weight in model.parameters())
    save_encoder(model, tmp_path / "saved")
    assert np.allclose(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), by_hand, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "more_tokens", "whole"),
    [
        ({"modules_to_save": ["norm"]}, 0, False),
        ({"modules_to_save": ["embed_tokens"]}, 3, False),
        ({"trainable_token_indices": [5, 9, 40]}, 0, False),
        ({"target_modules": "all-linear"}, 0, True),
    ],
)
def test_what_an_adapter_trains_whole_is_loaded_too(
    options: dict[str, Any], more_tokens: int, whole: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapted = adapter(tmp_path, bases["qwen2"], whole=whole, more_tokens=more_tokens, options=options)
    model = load_encoder(str(tmp_path))
    by_hand = expected(adapted, tokens(tmp_path if more_tokens else bases["qwen2"]))
    assert torch.allclose(vectors(model), unit(by_hand), atol=1e-5)


def test_an_adapter_inside_a_saved_model_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    save_encoder(load_encoder(str(bases["qwen2"])), base)
    model = SentenceTransformer(str(base), device="cpu")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(str(saved), create_model_card=False)
    (base / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | {"use_kernels": 1}))
    with pytest.raises(ConfigError, match="an adapter inside a sentence-transformers folder"):
        load_encoder(str(saved))
    (saved / "modules.json").unlink()  # what the error says; then the base is looked through
    with pytest.raises(ConfigError, match="use_kernels"):
        load_encoder(str(saved))
    inside = tmp_path / "untied" / "query_model"
    shutil.copytree(saved, inside)
    shutil.copytree(saved, inside.with_name("passage_model"))
    (inside / "modules.json").write_text("[]")
    with pytest.raises(ConfigError, match="use_kernels"):
        load_encoder(str(inside.parent))


def test_an_adapter_has_the_length_of_vectors_of_its_base(bases: dict[str, Path], tmp_path: Path) -> None:
    base, alone = tmp_path / "base", tmp_path / "adapter"
    save_encoder(load_encoder(str(bases["qwen2"]), normalize=False), base)
    by_hand = expected(adapter(alone, base), tokens(bases["qwen2"]))

    def opened(folder: Path) -> torch.Tensor:
        query, _ = open_encoder(str(folder), device=Device("cpu", torch.float32, False))
        return torch.from_numpy(query.encode(TEXTS))

    assert torch.allclose(opened(alone), by_hand, atol=1e-5)
    for name in UNTIED:
        shutil.copytree(alone, tmp_path / "untied" / name)
    assert torch.allclose(opened(tmp_path / "untied"), by_hand, atol=1e-5)
    write_arguments(alone)
    assert torch.allclose(opened(alone), unit(by_hand), atol=1e-5)


@pytest.mark.parametrize("written", ["{", "[]", '"x"', '{"base_model_name_or_path": ["x"]}', "\xff"])
def test_damaged_settings_of_an_adapter_are_named(written: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(written.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot be read|base that is not there") as error:
        encoder_fingerprint(str(tmp_path))
    assert error.value.where == tmp_path / "adapter_config.json"


def test_adapters_of_their_own_folder_are_refused(tmp_path: Path) -> None:
    for name in UNTIED:
        (tmp_path / name).mkdir()
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
    for use in (load_encoder, encoder_fingerprint):
        with pytest.raises(ConfigError, match="belongs to separate encoders"):
            use(str(tmp_path))


def test_an_adapter_brings_its_tokenizer_or_takes_that_of_its_base(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "saved base"
    save_encoder(load_encoder(str(bases["qwen2"]), pooling="mean"), base)
    adapted = adapter(tmp_path / "bare", base)
    by_hand = unit(expected(adapted, tokens(base), "mean"))
    assert torch.allclose(vectors(load_encoder(str(tmp_path / "bare"))), by_hand, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "bare")
    model = load_encoder(str(tmp_path / "bare"))
    assert torch.allclose(vectors(model), by_hand, atol=1e-5)
    assert model[0].model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_an_adapter_is_known_by_its_base_too(bases: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(bases["qwen2"], tmp_path / "base"))
    adapter(tmp_path / "adapter", base)
    before = encoder_fingerprint(str(tmp_path / "adapter"))
    assert encoder_fingerprint(str(tmp_path / "adapter")) == before
    (base / "added.txt").write_text("x")
    assert encoder_fingerprint(str(tmp_path / "adapter")) != before


def test_adapters_that_cannot_be_merged_are_refused(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(match: str, **named: object) -> None:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        adapter(tmp_path / "model", bases["qwen2"], **named)
        with pytest.raises(ConfigError, match=match):
            load_encoder(str(tmp_path / "model"))

    fails("base that is not there", base_model_name_or_path="/no/such/base")
    fails("base that is not there", base_model_name_or_path=None)
    fails("belongs to another adapter", base_model_name_or_path=str(tmp_path / "model"))
    fails("does not fit its base", base_model_name_or_path=str(bases["llama"]), target_modules=["q_proj"])
    fails("only LoRA adapters are merged", peft_type="IA3")
    adapter(tmp_path / "model", bases["qwen2"])
    (tmp_path / "model" / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors"):
        load_encoder(str(tmp_path / "model"))
    (tmp_path / "model" / "adapter_model.bin").touch()
    with pytest.raises(ConfigError, match=r"adapter_model\.bin is pickled"):
        load_encoder(str(tmp_path / "model"))
    monkeypatch.setattr(lora_module, "find_spec", lambda name: None)
    (tmp_path / "model" / "adapter_model.bin").unlink()
    with pytest.raises(EnvironmentProblem, match=r"pip install 'tdro\[lora\]'"):
        load_encoder(str(tmp_path / "model"))


# --- separate encoders ---


@pytest.mark.parametrize(("family", "adapters"), [("llama", False), ("qwen2", True)])
def test_separate_encoders_become_two_sides(
    family: Family, adapters: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    AutoTokenizer.from_pretrained(bases[family]).save_pretrained(folder)
    write_arguments(folder, untie_encoder=True, pooling_strategy=None, pooling_strategy_qry="mean",
                    pooling_strategy_psg="lasttoken")  # fmt: skip
    networks = []
    for seed, name in enumerate(("query_model", "passage_model")):
        if adapters:
            networks.append(adapter(folder / name, bases[family], seed=seed))
        else:
            base = make_tiny_model(family, tmp_path / f"base {seed}", seed=seed)
            networks.append(AutoModel.from_pretrained(base))
            networks[-1].save_pretrained(folder / name)
    model = load_encoder(str(folder))
    poolings = ("mean", "lasttoken")
    by_hand = [unit(expected(net, tokens(folder), p)) for net, p in zip(networks, poolings, strict=True)]
    for side, vector_nD in zip(sides_of(model), by_hand, strict=True):
        assert torch.allclose(vectors(side), vector_nD, atol=1e-5)
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.allclose(plain.encode_query(TEXTS), by_hand[0], atol=1e-5)
    assert np.allclose(plain.encode_document(TEXTS), by_hand[1], atol=1e-5)


def test_adapters_on_separate_encoders_name_the_folders_of_these(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for seed, name in enumerate(UNTIED):
        shutil.copytree(make_tiny_model("qwen2", tmp_path / f"base {seed}", seed=seed), folder / name)
    model = load_encoder(str(folder))
    add_lora(model, Lora(rank=2), seed=0)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.2)
    save_adapter(model, tmp_path / "adapter", str(folder))
    again = load_encoder(str(tmp_path / "adapter"))
    for side, other in zip(sides_of(again), sides_of(model), strict=True):
        assert torch.allclose(vectors(side), vectors(other), atol=1e-5)


# --- settings ---


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"pooling_strategy": "max"}, "unknown pooling"),
        ({"pooling_strategy": ["mean"]}, "unknown pooling"),
        ({"score_function": "maxsim"}, "unknown score function"),
        ({"untie_encoder": True}, "separate encoders are not there"),
    ],
)
def test_settings_that_tdro_does_not_have_are_refused(
    arguments: dict[str, object], match: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = released(tmp_path / "model", bases["bert"], **arguments)
    with pytest.raises(ConfigError, match=match):
        load_encoder(str(folder))


def test_settings_run_no_code(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = released(tmp_path / "model", bases["bert"])
    for text in ("!!python/object/apply:os.mkdir [ran]", "[1, 2]"):
        (folder / "model_args.yaml").write_text(text)
        with pytest.raises(ConfigError, match="settings of a released model"):
            load_encoder(str(folder))
    assert not Path("ran").exists()
