"""Models outside a study: they give the vectors that their authors meant, and what they were is written down."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_models import SENTENCES, Family, make_tiny_model

from tdro.devices import Device
from tdro.errors import ConfigError
from tdro.models.encoder import load_encoder, save_encoder
from tdro.retrieval import encoders
from tdro.retrieval.encoders import encoder_fingerprint, open_encoder
from tdro.retrieval.shards import Embedder

CPU = Device("cpu", torch.float32, False)
TEXTS = [*SENTENCES, ""]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as sentence-transformers saves it."""
    root = tmp_path_factory.mktemp("models")
    save_encoder(load_encoder(str(make_tiny_model("bert", root / "base"))), root / "saved")
    return root / "saved"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    """Change some values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), encoding="utf-8")


def save_with(folder: Path, **values: Any) -> str:
    """Change what sentence-transformers has saved beside the modules."""
    change(folder / "config_sentence_transformers.json", **values)
    return str(folder)


def vectors(embedder: Embedder, scratch: Path, texts: list[str] = TEXTS) -> np.ndarray:
    """Embed texts."""
    return np.array(embedder.embed(texts, encoders.fingerprint(texts), scratch)[:])


def test_an_encoder_is_identified_by_its_files(folder: Path, tmp_path: Path) -> None:
    first = encoder_fingerprint(str(folder))
    assert encoder_fingerprint(str(shutil.copytree(folder, tmp_path / "copy"))) == first
    save_with(folder, prompts={"query": "ask "})
    assert encoder_fingerprint(str(folder)) != first


@pytest.mark.parametrize("prompts", [{}, {"query": "bees: "}, {"query": "water and air ", "document": "sky: "}])
def test_vectors_are_those_of_sentence_transformers(folder: Path, tmp_path: Path, prompts: dict[str, str]) -> None:
    name = save_with(folder, prompts=prompts)
    plain = SentenceTransformer(name, device="cpu")
    query, document = open_encoder(name, device=CPU)
    assert vectors(query, tmp_path) == pytest.approx(plain.encode_query(TEXTS), abs=1e-6)
    assert vectors(document, tmp_path) == pytest.approx(plain.encode_document(TEXTS), abs=1e-6)
    assert [e.about.get("prompt", "") for e in (query, document)] == [prompts.get(n, "") for n in ("query", "document")]


def test_a_prompt_called_passage_is_one_for_documents(folder: Path, tmp_path: Path) -> None:
    name = save_with(folder, prompts={"query": "query: ", "passage": "passage: ", "corpus": "no"})
    _, document = open_encoder(name, device=CPU)
    plain = SentenceTransformer(name, device="cpu")
    assert vectors(document, tmp_path) == pytest.approx(plain.encode(TEXTS, prompt_name="passage"), abs=1e-6)


def test_an_instruction_takes_the_place_of_the_prompt_for_queries(folder: Path, tmp_path: Path) -> None:
    name = save_with(folder, prompts={"query": "query: ", "document": "passage: "})
    query, document = open_encoder(
        name, device=CPU, query_instruction="bees", instruction_template="{instruction} {query}"
    )
    plain = SentenceTransformer(name, device="cpu")
    assert vectors(query, tmp_path) == pytest.approx(plain.encode(TEXTS, prompt="bees "), abs=1e-6)
    assert vectors(document, tmp_path) == pytest.approx(plain.encode_document(TEXTS), abs=1e-6)
    assert query.about["instruction"] == "bees" and "prompt" not in query.about


def test_whatever_decides_the_vectors_is_in_about(folder: Path) -> None:
    def about(**options: Any) -> str:
        return json.dumps([dict(e.about) for e in open_encoder(str(folder), device=CPU, **options)])

    seen = {about(), about(query_max_length=9), about(passage_max_length=9), about(query_instruction="a")}
    seen |= {about(query_instruction="a", instruction_template="{query} {instruction}")}
    save_with(folder, prompts={"query": "ask "})
    assert len(seen | {about()}) == 6


@pytest.mark.parametrize(
    ("similarity", "with_normalize", "unit"),
    [("cosine", False, True), (None, False, True), ("dot", False, False), ("dot", True, True)],
)
def test_vectors_have_length_one_unless_the_model_was_made_for_the_dot_product(
    saved: Path, tmp_path: Path, similarity: str | None, with_normalize: bool, unit: bool
) -> None:
    model = load_encoder(str(saved), normalize=with_normalize)
    save_encoder(model, tmp_path / "model")
    query, _ = open_encoder(save_with(tmp_path / "model", similarity_fn_name=similarity), device=CPU)
    lengths = np.linalg.norm(vectors(query, tmp_path), axis=1)
    assert np.allclose(lengths, 1, atol=1e-6) == unit == query.about["normalize"]


def test_vectors_cut_to_fewer_dimensions_have_length_one_again(folder: Path, tmp_path: Path) -> None:
    query, _ = open_encoder(save_with(folder, truncate_dim=8), device=CPU)
    plain = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert plain.shape[1] == 8 and vectors(query, tmp_path) == pytest.approx(plain, abs=1e-6)


def test_a_model_for_distances_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"not searched by inner product\n.*config_sentence.*\n.*euclidean"):
        open_encoder(save_with(folder, similarity_fn_name="euclidean"), device=CPU)


def test_lengths_are_those_the_model_was_saved_with_and_at_most_512(folder: Path) -> None:
    def lengths(**options: Any) -> list[object]:
        return [embedder.about["max_length"] for embedder in open_encoder(str(folder), device=CPU, **options)]

    change(folder / "tokenizer_config.json", model_max_length=int(1e30))
    assert lengths() == [512, 512]
    change(folder / "tokenizer_config.json", model_max_length=24)
    change(folder / "sentence_bert_config.json", max_seq_length=24)
    assert lengths() == [24, 24] and lengths(query_max_length=30, passage_max_length=512) == [30, 512]
    with pytest.raises(ConfigError, match=r"passage_max_length\n.*513\n.*512"):
        lengths(passage_max_length=513)


def test_a_static_model_has_no_length_of_its_own(tmp_path: Path) -> None:
    name = str(make_tiny_model("static", tmp_path / "static"))
    query, document = open_encoder(name, device=CPU)
    assert query.about["max_length"] == 512
    plain = SentenceTransformer(name, device="cpu").encode(list(SENTENCES), normalize_embeddings=True)
    assert vectors(document, tmp_path, list(SENTENCES)) == pytest.approx(plain, abs=1e-6)


def test_a_prompt_that_the_pooling_leaves_out_is_refused(saved: Path, tmp_path: Path) -> None:
    model = load_encoder(str(saved))
    for module in model:
        if isinstance(module, Pooling):
            module.include_prompt = False
    save_encoder(model, tmp_path / "model")
    open_encoder(str(tmp_path / "model"), device=CPU)
    with pytest.raises(ConfigError, match="leaves prompts out"):
        open_encoder(str(tmp_path / "model"), device=CPU, query_instruction="ask")
    with pytest.raises(ConfigError, match="leaves prompts out"):
        open_encoder(save_with(tmp_path / "model", prompts={"query": "ask "}), device=CPU)


@pytest.mark.parametrize("family", ["bert", "qwen2", "llama", "static"])
def test_a_folder_without_tokenizer_is_refused(family: Family, tmp_path: Path) -> None:
    folder = make_tiny_model(family, tmp_path / family)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        open_encoder(str(folder), device=CPU)


def test_a_saved_model_without_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match=f"{folder} has no tokenizer\n.*\n.*\n.*copy tokenizer.json"):
        open_encoder(str(folder), device=CPU)


@pytest.mark.parametrize("content", ["{", "[]", '{"similarity_fn_name": []}'])
def test_settings_that_cannot_be_read_are_named(folder: Path, content: str) -> None:
    (folder / "config_sentence_transformers.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=str(folder)):
        open_encoder(str(folder), device=CPU)


def test_texts_are_embedded_once_and_progress_reaches_the_end(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    query, document = open_encoder(
        str(saved), device=CPU, max_tokens=64, precision="float16", progress=lambda *done: seen.append(done)
    )
    first = vectors(document, tmp_path)
    assert first.dtype == np.float16 and seen == sorted(seen) and len(seen) > 3
    assert seen[0] == (0, len(TEXTS)) and seen[-1] == (len(TEXTS), len(TEXTS))
    monkeypatch.setattr(encoders, "encode", lambda *_, **__: pytest.fail("embedded again"))
    assert (vectors(query, tmp_path) == first).all()  # no prompts and the same lengths: the same embeddings


@pytest.mark.parametrize("normalize", [True, False])
def test_separate_encoders_embed_their_own_side(tmp_path: Path, normalize: bool) -> None:
    bases = [str(make_tiny_model("bert", tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    save_encoder(load_encoder(bases[0], query_encoder=bases[1], normalize=normalize), tmp_path / "saved")
    name = save_with(tmp_path / "saved", prompts={"query": "bees: "})
    plain = SentenceTransformer(name, device="cpu")
    query, document = open_encoder(name, device=CPU)
    assert vectors(query, tmp_path) == pytest.approx(plain.encode_query(TEXTS), abs=1e-5)
    assert vectors(document, tmp_path) == pytest.approx(plain.encode_document(TEXTS), abs=1e-5)
    assert [embedder.about["side"] for embedder in (query, document)] == ["queries", "passages"]
    assert np.allclose(np.linalg.norm(vectors(document, tmp_path), axis=1), 1, atol=1e-5) == normalize


def test_separate_encoders_that_end_with_a_normalisation_keep_it_for_the_dot_product(tmp_path: Path) -> None:
    base = str(make_tiny_model("bert", tmp_path / "base"))
    save_encoder(load_encoder(base, query_encoder="copy"), tmp_path / "saved")
    name = save_with(tmp_path / "saved", similarity_fn_name="dot")
    _, document = open_encoder(name, device=CPU)
    assert vectors(document, tmp_path) == pytest.approx(
        SentenceTransformer(name, device="cpu").encode_document(TEXTS), abs=1e-5
    )
