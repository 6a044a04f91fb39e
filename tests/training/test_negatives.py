"""Mining as a stage of a study: which options reach it, what is made again and what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from studies import tiny_study, write_study_data
from tiny_models import make_tiny_model

from tdro.config import DatasetConfig, Study
from tdro.data.reading import Rows
from tdro.errors import CheckpointError, ConfigError, DataError
from tdro.files import cache_folder
from tdro.retrieval import encode as encode_module
from tdro.training.negatives import negatives
from tdro.training.run import Run

MINING = {"ranks": [0, 9], "negatives": 4}


def make_study(folder: Path, **mining: Any) -> Study:
    """A study whose datasets have no negatives."""
    study = tiny_study(folder, "static", mining={**MINING, **mining}, data={"datasets": {"one": "train/one.jsonl"}})
    write_study_data(folder / "root", negatives=0)
    return study


def written(study: Study) -> list[dict[str, Any]]:
    """The mined rows as they stand in the file."""
    file = study.run_folder / "data" / "negatives" / "one.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def report(study: Study) -> dict[str, Any]:
    """What mining said about itself."""
    return json.loads((study.run_folder / "data" / "negatives" / "one.json").read_text(encoding="utf-8"))


def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many texts go through the model in each pass."""
    counts: list[int] = []
    real = encode_module.embed
    monkeypatch.setattr(encode_module, "embed", lambda model, lists: counts.append(len(lists)) or real(model, lists))
    return counts


def cross_encoder(folder: Path) -> str:
    """A cross-encoder of a few thousand weights."""
    base = make_tiny_model("bert", folder / "plain")
    torch.manual_seed(0)  # of the head
    CrossEncoder(str(base), num_labels=1).save_pretrained(str(folder / "cross"))
    return str(folder / "cross")


def test_negatives_carry_score_rank_and_the_name_of_the_encoder(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    negatives(Run(study))
    model = SentenceTransformer(str(tmp_path / "root" / "model"))
    for row in written(study)[:5]:
        found = row["negative_passages"]
        texts = [passage["text"] for passage in found]
        expected = model.similarity(model.encode([row["query"]]), model.encode(texts))[0].tolist()
        assert [passage["score"] for passage in found] == pytest.approx(expected, abs=1e-5)
        assert {passage["model"] for passage in found} == {"{root}/model"}
        assert [p["rank"] for p in found] == sorted(p["rank"] for p in found) and found[-1]["rank"] < 9


def test_mining_with_another_margin_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = encoded(monkeypatch)
    study = make_study(tmp_path)
    negatives(Run(study))
    assert sum(counts) == 24 + 24
    counts.clear()
    stricter = make_study(tmp_path, relative_margin=0.2, sampling="top")
    negatives(Run(stricter))
    assert counts == []
    scores = report(stricter)
    assert scores["looked_at"] > scores["above_margin"] > 0 and scores["skipped"] is not None


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": "top"}, {"relative_margin": 0.1}, {"absolute_margin": 0.1}, {"max_score": 0.5}, {"min_score": 0.1},
        {"negatives": 3}, {"ranks": [1, 9]}, {"source": "bm25"},
    ],
)  # fmt: skip
def test_every_option_makes_negatives_anew_and_the_same_options_do_not(tmp_path: Path, change: dict[str, Any]) -> None:
    study = make_study(tmp_path)
    negatives(Run(study))
    before = written(study), report(study)["inputs"]
    negatives(Run(study))
    assert (written(study), report(study)["inputs"]) == before
    changed = make_study(tmp_path, **change)
    negatives(Run(changed))
    assert report(changed)["inputs"] != before[1] and written(changed) != before[0]


def test_bm25_needs_no_encoder_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = encoded(monkeypatch)
    alone = make_study(tmp_path, source="bm25")
    negatives(Run(alone))
    assert counts == [] and written(alone)[0]["negative_passages"][0]["model"] == "bm25"
    scored = make_study(tmp_path, source="bm25", encoder="{root}/model", max_score=0.9)
    negatives(Run(scored))
    assert sum(counts) > 0
    found = [passage for row in written(scored) for passage in row["negative_passages"]]
    assert {passage["model"] for passage in found} == {"bm25 + {root}/model"}
    assert max(passage["score"] for passage in found) <= 0.9


def test_a_cross_encoder_scores_for_the_margins(tmp_path: Path) -> None:
    name = cross_encoder(tmp_path)
    negatives(Run(make_study(tmp_path, cross_encoder=name)))
    middle = report(make_study(tmp_path))["negative_percentiles"]["50"]
    study = make_study(tmp_path, cross_encoder=name, max_score=middle)
    negatives(Run(study))
    model = CrossEncoder(name)
    found = [(row["query"], p) for row in written(study) for p in row["negative_passages"]]
    expected = model.predict([(query, passage["text"]) for query, passage in found])
    assert [passage["score"] for _, passage in found] == pytest.approx(expected.tolist(), abs=1e-5)
    assert {passage["model"] for _, passage in found} == {f"{{root}}/model + {name}"}
    assert report(study)["judge"] == name and max(expected) <= middle + 1e-5 and report(study)["outside_limits"] > 0


def test_a_model_without_a_head_is_no_cross_encoder(tmp_path: Path) -> None:
    study = make_study(tmp_path, cross_encoder="{root}/model")
    with pytest.raises(ConfigError, match="is not a cross-encoder"):
        negatives(Run(study))


def test_two_scorers_of_what_bm25_has_found_are_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, source="bm25", encoder="{root}/model", cross_encoder="x")
    with pytest.raises(ConfigError, match="cannot both score"):
        negatives(Run(study))


def with_corpus(study: Study, path: str) -> Study:
    """The study with a corpus for its dataset."""
    datasets = {"one": DatasetConfig(path="train/one.jsonl", corpus=path)}
    return study.model_copy(update={"data": study.data.model_copy(update={"datasets": datasets})})


def test_a_corpus_file_is_searched_instead_of_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = encoded(monkeypatch)
    study = with_corpus(make_study(tmp_path), "eval/words/corpus.jsonl")
    rows: Rows = negatives(Run(study))["one"]
    ids = {passage.id for row in rows for passage in row.negatives}
    assert ids and all(i.startswith("d") for i in ids)
    assert report(study)["corpus"] == 20  # distinct texts of 30
    assert sum(counts) == 20 + 24 + 24  # with the positives, which the corpus lacks, and the queries
    first = report(study)["inputs"]
    file = tmp_path / "root" / "eval" / "words" / "corpus.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + '{"_id": "d99", "text": "one more"}\n', encoding="utf-8")
    negatives(Run(study))
    assert report(study)["inputs"] != first and report(study)["corpus"] == 21


def test_a_corpus_that_is_missing_is_named(tmp_path: Path) -> None:
    study = with_corpus(make_study(tmp_path), "eval/words/corpse.jsonl")
    with pytest.raises(DataError, match=r"(?s)no such file.*did you mean"):
        negatives(Run(study))


def test_embeddings_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path)
    with monkeypatch.context() as interrupted:
        interrupted.setattr("tdro.prepare.candidates.search", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            negatives(Run(study))
    assert list((study.run_folder / "data" / "negatives").iterdir()) == []
    counts = encoded(monkeypatch)
    negatives(Run(study))
    assert counts == [] and len(written(study)) == 24


def test_a_manifest_says_what_the_embeddings_are_made_from(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    negatives(Run(study))
    manifests = [json.loads(file.read_text()) for file in cache_folder().glob("embeddings/*/manifest.json")]
    assert sorted(manifest["max_length"] for manifest in manifests) == [16, 24]
    for manifest in manifests:
        assert {"encoder", "instruction", "pooling", "normalize", "dtype", "content", "texts"} <= manifest.keys()


def test_many_refused_candidates_are_noted(tmp_path: Path) -> None:
    study = make_study(tmp_path, max_score=-0.99)
    run = Run(study)
    negatives(run)
    notes = [event["text"] for event in run.journal.read("note", "negatives")]
    assert any("of the candidates were refused" in note for note in notes)
    assert any("24 of 24 rows have no negatives" in note for note in notes)


def test_a_foreign_folder_of_embeddings_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    negatives(Run(study))
    manifest = next(cache_folder().glob("embeddings/*/manifest.json"))
    manifest.write_text(manifest.read_text().replace('"texts": 24', '"texts": 23'))
    with pytest.raises(CheckpointError, match="embeddings of something else"):
        negatives(Run(make_study(tmp_path, sampling="top")))
