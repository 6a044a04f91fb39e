"""On Ray workers make the very shards that one process makes; what is there is not made again."""

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SENTENCES, make_tiny_model

from tdro.devices import pick_device
from tdro.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from tdro.integrations import ray as bridge
from tdro.integrations.ray import Workers, embed_with_ray, index_with_ray, open_passages
from tdro.retrieval.documents import store_documents
from tdro.retrieval.retriever import IndexSettings, Retriever, build_index, open_settings
from tdro.retrieval.shards import Embedder, encode_shards

TWO = Workers(2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder."""
    return str(make_tiny_model("bert", tmp_path_factory.mktemp("ray") / "bert"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages for three shards."""
    rows = [{"_id": f"d{i}", "text": f"{SENTENCES[i % 8][: 5 + i % 40]} {i}"} for i in range(2 * 8192 + 100)]
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def shards(folder: Path) -> dict[str, bytes]:
    """Names and bytes of shards."""
    return {path.name: path.read_bytes() for path in folder.glob("shard-*.npy")}


def manifest(folder: Path) -> dict[str, object]:
    """The manifest without the times of files."""
    kept = json.loads((folder / "manifest.json").read_bytes())
    assert len(kept.pop("stamps")) == 3
    return dict(kept)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_shards_and_manifest_are_those_of_one_process_and_only_missing_ones_are_made(
    tmp_path: Path, corpus: Path, model: str
) -> None:
    open_texts = partial(store_documents, corpus, tmp_path / "cache")
    texts, settings = open_texts(), IndexSettings(model, precision="float32")
    _, passages = open_settings(settings, pick_device())
    about = {**passages.about, "content": texts.content}
    alone = encode_shards(texts, passages.encode, tmp_path / "alone", about)
    told: list[tuple[int, int]] = []

    def embed() -> None:
        told.clear()
        folder, loaded = tmp_path / "ray", partial(open_passages, settings)
        found = embed_with_ray(open_texts, loaded, folder, texts.content, TWO, progress=lambda *at: told.append(at))
        assert (found[:] == alone[:]).all()

    embed()
    assert shards(tmp_path / "ray") == shards(tmp_path / "alone") and len(shards(tmp_path / "ray")) == 3
    assert manifest(tmp_path / "ray") == manifest(tmp_path / "alone")
    assert told[0] == (0, 16484) and told[-1] == (16484, 16484) and len(told) == 4
    (tmp_path / "ray" / "shard-000001.npy").unlink()
    kept = (tmp_path / "ray" / "shard-000000.npy").stat().st_mtime_ns
    embed()
    assert told == [(8292, 16484), (16484, 16484)]
    assert shards(tmp_path / "ray") == shards(tmp_path / "alone")
    assert (tmp_path / "ray" / "shard-000000.npy").stat().st_mtime_ns == kept
    embed()
    assert told == []
    other = partial(open_passages, IndexSettings(model, precision="float32", passage_max_length=9))
    with pytest.raises(CheckpointError, match="embeddings of something else"):
        embed_with_ray(open_texts, other, tmp_path / "ray", texts.content, TWO)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_index_made_on_ray_is_that_of_tdro_index(
    tmp_path: Path, corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(model).parent)
    settings = IndexSettings(Path(model).name)
    index_with_ray(corpus, tmp_path / "ray", settings, TWO)
    build_index(corpus, tmp_path / "alone", settings)
    assert json.loads((tmp_path / "ray" / "index.json").read_bytes()) == json.loads(
        (tmp_path / "alone" / "index.json").read_bytes()
    )
    assert shards(tmp_path / "ray" / "embeddings") == shards(tmp_path / "alone" / "embeddings")
    assert Retriever(tmp_path / "ray").search(["bee 7"]) == Retriever(tmp_path / "alone").search(["bee 7"])


def broken() -> Embedder:
    """An encoder whose training diverged."""
    return Embedder(lambda texts: np.full((len(texts), 2), np.nan), {"model": "broken"})


def changing() -> Embedder:
    """An encoder that is another one in each process."""
    return Embedder(lambda texts: np.ones((len(texts), 2)), {"process": os.getpid()})


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_errors_of_workers_are_raised_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model folder of this name") as caught:
        index_with_ray(tmp_path / "corpus.jsonl", tmp_path / "index", IndexSettings("/nowhere/model"), TWO)
    assert "ray" not in str(caught.value).lower()
    assert not (tmp_path / "index").exists()
    with pytest.raises(DataError, match="1 of 1 embeddings are not finite") as caught:
        embed_with_ray(partial(list, ["bees"]), broken, tmp_path / "broken", "", TWO)
    assert "ray" not in str(caught.value).lower()
    with pytest.raises(EnvironmentProblem, match="workers compute in different ways"):
        embed_with_ray(partial(list, ["bees"]), changing, tmp_path / "changing", "", TWO)


def test_an_error_of_the_cluster_is_named() -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    with (
        pytest.raises(EnvironmentProblem, match=r"(?s)the Ray cluster failed.*'disk is full'"),
        bridge._own_errors(ray),
    ):
        raise ray.exceptions.RayError("many lines\ndisk is full\n")


def test_no_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one worker"):
        Workers(0)


def test_a_missing_ray_is_named(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentProblem, match=r"(?s)Ray Data is not installed.*tdro\[ray\]"):
        embed_with_ray(list, partial(open_passages, IndexSettings(model)), tmp_path, "", TWO)
