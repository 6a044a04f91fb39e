"""A study with an encoder of its own for queries: each side sees its own texts, and both are trained and kept."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from studies import tiny_study
from tiny_models import make_tiny_model

from tdro.data.mixture import MixedMixture
from tdro.errors import ConfigError
from tdro.models.encoder import embed, load_encoder
from tdro.models.lora import has_lora
from tdro.models.sides import side_of, sides_of
from tdro.retrieval.encoders import encoder_fingerprint
from tdro.training.encoders import Encoders
from tdro.training.own_similarities import similarities_of_all
from tdro.training.pipeline import run_study
from tdro.training.run import Run
from tdro.training.stages import sizes_of
from tdro.training.texts import TextSource


def other_base(folder) -> str:
    """Write the base of the queries' encoder."""
    return str(make_tiny_model("static", folder / "other", seed=1))


def test_similarities_are_between_the_two_sides(tmp_path):
    study = tiny_study(tmp_path, "static", model={"query_encoder": other_base(tmp_path)})
    run = Run(study)
    model, rows = run.load_base(), run.source_rows
    texts = TextSource(rows, study.data, model, 0).texts(MixedMixture(sizes_of(rows), 8, 0, "stratified").draw(0), 3)
    query_BD = embed(side_of(model, "queries"), texts.queries_B)
    passage_PD = embed(side_of(model, "passages"), texts.passages_P)
    owner_P = torch.repeat_interleave(torch.arange(8), texts.count_B)
    expected_P = (query_BD[owner_P] * passage_PD).sum(1)
    for max_tokens in (20, 10_000):
        found_BN = similarities_of_all(model, texts, run.device, max_tokens)
        assert torch.allclose(found_BN[found_BN.isfinite()], expected_P.detach(), atol=1e-6)


def test_texts_of_a_dataset_are_embedded_by_their_side(tmp_path):
    run = Run(tiny_study(tmp_path, "static", model={"query_encoder": other_base(tmp_path)}))
    model, rows = run.load_base(), run.source_rows["one"]
    alone = [load_encoder(name) for name in (run.study.model.query_encoder, run.study.fill_root("{root}/model"))]
    queries, passages = rows.queries_at(np.arange(3)), rows.passages_at(np.zeros(1, np.int64), np.zeros(1, np.int64))
    embedders = Encoders(run, model).of_dataset("one", rows, "")
    assert [embedder.about["side"] for embedder in embedders] == ["queries", "passages"]
    for embedder, encoder, texts in zip(embedders, alone, (queries, passages), strict=True):
        assert np.allclose(embedder.encode(texts), encoder.encode(texts), atol=1e-5)
    assert not np.allclose(alone[0].encode(queries), alone[1].encode(queries), atol=0.01)


def test_a_study_trains_both_encoders_and_a_projection(tmp_path):
    options = {"query_encoder": other_base(tmp_path), "projection": 8}
    steps = {"steps": 3}
    study = tiny_study(tmp_path, "static", model=options, reference=steps, weights=steps)
    run_study(Run(study))
    saved = tmp_path / "run" / "robust" / "model"
    plain = SentenceTransformer(str(saved), device="cpu")
    begun = Run(study).load_base()
    ended = load_encoder(str(saved))
    for before, after in zip(sides_of(begun), sides_of(ended), strict=True):
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            assert not torch.equal(old, new)
    assert plain.encode_query("bee").shape == plain.encode_document("bee").shape == (8,)
    assert not np.allclose(plain.encode_query("bee"), plain.encode_document("bee"), atol=0.01)
    summary = (tmp_path / "run" / "evaluation" / "summary.json").read_text()
    assert '"robust"' in summary and '"reference"' in summary


def test_proxies_of_other_seeds_begin_with_another_projection_and_the_same_network(tmp_path):
    run = Run(tiny_study(tmp_path, "static", model={"projection": 8}))
    first, again, other = (run.load_base(seed) for seed in (None, run.study.seed, 99))
    same = {name: torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items()}
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert {name: equal for name, equal in same.items() if not equal}.keys() == {"1.linear.weight", "1.linear.bias"}


def test_adapters_and_savings_reach_both_encoders(tmp_path):
    options = {"query_encoder": "copy", "projection": 8, "lora_rank": 2, "gradient_checkpointing": True}
    run = Run(tiny_study(tmp_path, "bert", model=options, reference={"steps": 2}))
    model = run.load_trainee()
    for side in sides_of(model):
        assert has_lora(side) and side[0].model.is_activation_checkpointing
        trained = [name for name, weight in side.named_parameters() if weight.requires_grad]
        assert trained and all(".lora_" in name or "linear" in name for name in trained)
        assert any(isinstance(module, Dense) for module in side)


def test_the_files_of_both_encoders_identify_the_base(tmp_path):
    def identity(**options: str) -> str:
        return Run(tiny_study(tmp_path, "static", model=options)).base_fingerprint

    plain = identity()
    assert plain == identity(query_encoder="copy") == encoder_fingerprint(str(tmp_path / "root" / "model"))
    other = other_base(tmp_path)
    before = identity(query_encoder=other)
    assert before != plain
    (tmp_path / "other" / "added.txt").write_text("x")
    assert identity(query_encoder=other) != before


def test_separate_encoders_cannot_be_sharded(tmp_path):
    with pytest.raises(ConfigError, match="separate encoders cannot be sharded"):
        Run(tiny_study(tmp_path, "static", model={"query_encoder": "copy", "sharding": "full"}))
