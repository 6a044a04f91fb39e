"""An index: complete or refused, found again after a kill or a move, searched with the encoder that made it only."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import SENTENCES, make_tiny_model

from tdro.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from tdro.retrieval import retriever as retriever_module
from tdro.retrieval import shards
from tdro.retrieval.approximate import ApproximateHits
from tdro.retrieval.retriever import IndexSettings, Retriever, build_index
from tdro.retrieval.search import Hits

TITLES = ["Bees", "", "Bread", "Birds", "", "Clocks", "Iron", "Sky"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passages in a shard."""
    monkeypatch.setattr(shards, "SHARD", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder."""
    return make_tiny_model("bert", tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Eight passages and a twin of the first, whose id comes before it."""
    rows = [
        {"_id": f"d{i}", "title": title, "text": text}
        for i, (title, text) in enumerate(zip(TITLES, SENTENCES, strict=True))
    ]
    file = tmp_path / "corpus.jsonl"
    twin = {"_id": "a", "title": TITLES[0], "text": SENTENCES[0]}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, twin]), encoding="utf-8")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """The embeddings of an index, as bytes."""
    return {path.name: path.read_bytes() for path in (folder / "embeddings").glob("shard-*.npy")}


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_hits_are_the_inner_products_of_the_model_itself_and_ties_go_by_id(
    tmp_path: Path, corpus: Path, model: Path, precision: shards.Precision
) -> None:
    build_index(corpus, tmp_path / "index", IndexSettings(str(model), precision=precision))
    found = Retriever(tmp_path / "index")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(model))
    parts = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Normalize()]
    plain = SentenceTransformer(modules=parts, device="cpu")
    texts = [f"{title} {text}".strip() for title, text in zip(TITLES, SENTENCES, strict=True)] + [
        f"{TITLES[0]} {SENTENCES[0]}"
    ]
    ids = [*(f"d{i}" for i in range(8)), "a"]
    queries = ["bees dance in the hive", "why does iron rust?"]
    score_QP = np.asarray(plain.encode(queries)) @ np.asarray(plain.encode(texts)).T
    assert len(found) == 9
    for hits, score_P in zip(found.search(queries, k=50), score_QP, strict=True):
        assert {hit.id: hit.score for hit in hits} == pytest.approx(dict(zip(ids, score_P, strict=True)), abs=2e-3)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        place = [hit.id for hit in hits]
        assert place.index("d0") == place.index("a") + 1
        assert {(hit.title, hit.text) for hit in hits} == set(zip(TITLES, SENTENCES, strict=True))
    assert [hit.id for hit in found.search(queries, k=2)[0]] == [hit.id for hit in found.search(queries, k=9)[0]][:2]


def test_queries_get_the_instruction_of_the_index(tmp_path: Path, corpus: Path, model: Path) -> None:
    template = "{instruction}: {query}"
    build_index(corpus, tmp_path / "plain", IndexSettings(str(model)))
    build_index(corpus, tmp_path / "asked", IndexSettings(str(model), "find the river", template))
    plain, asked = Retriever(tmp_path / "plain"), Retriever(tmp_path / "asked")
    assert asked.search(["sand"]) == plain.search(["find the river: sand"]) != plain.search(["sand"])


@pytest.mark.slow
def test_a_killed_index_is_refused_then_finished_with_the_same_bytes(tmp_path: Path, corpus: Path, model: Path) -> None:
    build_index(corpus, tmp_path / "whole", IndexSettings(str(model)))
    code = f"""
import os, signal, sys
from pathlib import Path
from tdro.retrieval import shards
from tdro.retrieval.retriever import IndexSettings, build_index
shards.SHARD = 3
def killed(done, total):
    if done >= 3:
        os.kill(os.getpid(), signal.SIGKILL)
build_index(Path({str(corpus)!r}), Path(sys.argv[1]), IndexSettings({str(model)!r}), progress=killed)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut")], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert set(contents(tmp_path / "cut")) < set(contents(tmp_path / "whole"))
    with pytest.raises(CheckpointError, match=r"(?s)not complete.*run the tdro index command that began it again"):
        Retriever(tmp_path / "cut")
    build_index(corpus, tmp_path / "cut", IndexSettings(str(model)))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert Retriever(tmp_path / "cut").search(["bees"]) == Retriever(tmp_path / "whole").search(["bees"])


def test_a_finished_index_is_not_made_again(tmp_path: Path, corpus: Path, model: Path) -> None:
    build_index(corpus, tmp_path / "index", IndexSettings(str(model)))
    told: list[tuple[int, int]] = []
    build_index(corpus, tmp_path / "index", IndexSettings(str(model)), progress=lambda *done: told.append(done))
    assert told == []


def test_an_index_and_its_encoder_may_move_but_not_change(tmp_path: Path, corpus: Path, model: Path) -> None:
    here = shutil.copytree(model, tmp_path / "here")
    build_index(corpus, tmp_path / "index", IndexSettings(str(here)))
    before = Retriever(tmp_path / "index").search(["bees"])
    moved, there = shutil.move(tmp_path / "index", tmp_path / "moved"), shutil.move(here, tmp_path / "there")
    corpus.unlink()
    with pytest.raises(CheckpointError, match=r"(?s)encoder of the index is not there.*--encoder"):
        Retriever(moved)
    assert Retriever(moved, "cpu", encoder=str(there)).search(["bees"]) == before
    other = make_tiny_model("bert", tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="not the encoder that made the index"):
        Retriever(moved, encoder=str(other))
    (there / "config.json").write_text((there / "config.json").read_text() + " ", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not the encoder that made the index"):
        Retriever(moved, encoder=str(there))


def test_a_copied_index_that_may_only_be_read_is_searched(
    tmp_path: Path, corpus: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(corpus, tmp_path / "index", IndexSettings(str(model)))
    before = Retriever(tmp_path / "index").search(["bees"])
    shutil.copytree(tmp_path / "index", tmp_path / "copy")  # the shards have other times than the manifest remembers

    def refuse(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(shards, "write_json", refuse)
    assert Retriever(tmp_path / "copy").search(["bees"]) == before


def test_a_relative_encoder_is_found_from_elsewhere(
    tmp_path: Path, corpus: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    build_index(corpus, tmp_path / "index", IndexSettings(model.name))
    monkeypatch.chdir(tmp_path)
    assert Retriever("index").search(["bees"], k=1)


def test_another_corpus_encoder_or_setting_is_refused(tmp_path: Path, corpus: Path, model: Path) -> None:
    index = tmp_path / "index"
    build_index(corpus, index, IndexSettings(str(model)))
    other = make_tiny_model("bert", tmp_path / "other", seed=1)
    for settings, differs in (
        (IndexSettings(str(other)), "encoder_content, passages.encoder"),
        (IndexSettings(str(model), precision="float32"), "settings.precision"),
        (IndexSettings(str(model), instruction="look"), "settings.instruction"),
        (IndexSettings(str(model), passage_max_length=16), "settings.passage_max_length, passages.max_length"),
    ):
        with pytest.raises(CheckpointError, match=f"holds an index with another {differs}"):
            build_index(corpus, index, settings)
    with corpus.open("a", encoding="utf-8") as file:
        file.write('{"_id": "d99", "text": "one more"}\n')
    with pytest.raises(CheckpointError, match="an index with another corpus"):
        build_index(corpus, index, IndexSettings(str(model)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="other files than an index"):
        build_index(corpus, tmp_path / "full", IndexSettings(str(model)))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", ["shard", "documents", "json", "form"])
def test_a_damaged_index_is_refused(tmp_path: Path, corpus: Path, model: Path, damage: str) -> None:
    index = tmp_path / "index"
    build_index(corpus, index, IndexSettings(str(model)))
    if damage == "shard":
        (index / "embeddings" / "shard-000001.npy").write_bytes(b"")
    elif damage == "documents":
        shutil.rmtree(index / "documents")
    elif damage == "json":
        (index / "index.json").write_text("{", encoding="utf-8")
    else:
        (index / "index.json").write_text('{"form": 0}', encoding="utf-8")
    complaint = {"json": "cannot be read", "form": "another form"}.get(damage, "not complete, or damaged")
    with pytest.raises(CheckpointError, match=complaint):
        Retriever(index)


def test_what_cannot_be_searched_is_refused(tmp_path: Path, corpus: Path, model: Path) -> None:
    with pytest.raises(CheckpointError, match="no index in this folder"):
        Retriever(tmp_path)
    with pytest.raises(ConfigError, match=r"template lacks \{query\}"):
        IndexSettings(str(model), "find", "{instruction}")
    build_index(corpus, tmp_path / "index", IndexSettings(str(model)))
    found = Retriever(tmp_path / "index")
    assert found.search([]) == []
    assert found.search("bees") == found.search(["bees"])  # a string is one query, not its letters
    with pytest.raises(DataError, match=r"(?s)query is empty.*query 2 of 2"):
        found.search(["bees", " "])
    with pytest.raises(ConfigError, match="k must be at least 1"):
        found.search(["bees"], k=0)
    with pytest.raises(ConfigError, match="unknown device"):
        Retriever(tmp_path / "index", "tpu")


def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, corpus: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(corpus, tmp_path / "index", IndexSettings(str(model)))
    monkeypatch.setattr(retriever_module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match="no GPU"):
        Retriever(tmp_path / "index", "cuda")


def test_faiss_may_find_fewer_and_its_recall_says_so(tmp_path: Path, model: Path, corpus: Path) -> None:
    pytest.importorskip("faiss")
    build_index(corpus, tmp_path / "index", IndexSettings(str(model)))
    exact, flat = Retriever(tmp_path / "index"), Retriever(tmp_path / "index", search="flat")
    queries = ["bees", "why does iron rust?"]
    ids = [[[hit.id for hit in hits] for hits in each.search(queries, 4)] for each in (exact, flat)]
    assert ids[0] == ids[1]
    assert exact.measured is None
    assert flat.measured is not None and (flat.measured.recall, flat.measured.measured_on) == (1.0, 2)
    half = np.array([[0, 1, -1, -1]]), np.array([[0.5, 0.25, -np.inf, -np.inf]], np.float32)
    flat._faiss = SimpleNamespace(search=lambda *_: ApproximateHits(Hits(*half), 0.5, 1))
    assert [(hit.id, hit.score) for hit in flat.search(["bees"], 4)[0]] == [("d0", 0.5), ("d1", 0.25)]
    with pytest.raises(ConfigError, match="k must be at least 1"):
        flat.search(["bees"], 0)
    with pytest.raises(ConfigError, match="unknown search"):
        Retriever(tmp_path / "index", search="hnsw")
