"""Shards: made once, in order, complete or not at all; a killed run goes on and gives the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tdro.errors import CheckpointError, DataError, EnvironmentProblem
from tdro.retrieval import shards
from tdro.retrieval.arrays import content_of
from tdro.retrieval.search import search
from tdro.retrieval.shards import Embedder, Embeddings, encode_shards

TEXTS = [f"text {i}" * (i % 5 + 1) for i in range(10)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four texts in a shard."""
    monkeypatch.setattr(shards, "SHARD", 4)


class Encoder:
    """Counts what it encodes; an embedding is the length of the text and its last digit."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.seen.append(list(texts))
        return np.array([[len(text), int(text[-1])] for text in texts], np.float32)


EXPECTED = Encoder()(TEXTS)


def files(folder: Path) -> dict[str, bytes]:
    """Names and bytes of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_embeddings_are_in_the_order_given_and_read_like_an_array(tmp_path: Path) -> None:
    found = encode_shards(TEXTS, Encoder(), tmp_path, {})
    assert found.shape == (10, 2) and len(found) == 10
    for part in (slice(None), slice(0, 4), slice(3, 9), slice(5, 5), slice(8, 99), slice(0, 10, 3), slice(9, 2)):
        assert np.array_equal(found[part], EXPECTED[part])
    for numbers in ([9, 0, 4, 4], [], [3]):
        assert np.array_equal(found[np.array(numbers, int)], EXPECTED[np.array(numbers, int)])
    with pytest.raises(IndexError):
        found[np.array([10])]
    assert not found[0:4].flags.writeable


def test_plain_numpy_reads_a_shard(tmp_path: Path) -> None:
    encode_shards(TEXTS, Encoder(), tmp_path, {})
    assert np.array_equal(np.load(tmp_path / "shard-000002.npy", mmap_mode="r"), EXPECTED[8:])


def test_a_second_call_encodes_nothing(tmp_path: Path) -> None:
    encode_shards(TEXTS, Encoder(), tmp_path, {"model": "a"})
    encoder, told = Encoder(), []
    found = encode_shards(TEXTS, encoder, tmp_path, {"model": "a"}, progress=lambda *done: told.append(done))
    assert encoder.seen == [] and told == []
    assert np.array_equal(found[:], EXPECTED)


def test_an_error_leaves_the_finished_shards_and_the_next_call_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    encode_shards(TEXTS, Encoder(), whole, {})

    def breaks(texts: Sequence[str]) -> np.ndarray:
        if texts[0] == TEXTS[8]:
            raise KeyboardInterrupt
        return Encoder()(texts)

    with pytest.raises(KeyboardInterrupt):
        encode_shards(TEXTS, breaks, tmp_path / "cut", {})
    encoder, told = Encoder(), []
    encode_shards(TEXTS, encoder, tmp_path / "cut", {}, progress=lambda *done: told.append(done))
    assert encoder.seen == [TEXTS[8:]] and told == [(8, 10), (10, 10)]
    after, expected = files(tmp_path / "cut"), files(whole)
    assert {name: after[name] for name in after if name != "manifest.json"} == {
        name: expected[name] for name in expected if name != "manifest.json"
    }


def test_after_a_kill_the_finished_shards_count_and_the_bytes_are_those_of_a_run_without(tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    code = f"""
import os, signal, sys
import numpy as np
from pathlib import Path
from tdro.retrieval import shards
shards.SHARD = 4
def encode(texts):
    if texts[0] == {TEXTS[8]!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.array([[len(text), int(text[-1])] for text in texts], np.float32)
shards.encode_shards({TEXTS!r}, encode, Path(sys.argv[1]), {{}})
"""
    killed = subprocess.run([sys.executable, "-c", code, str(cut)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    encoder = Encoder()
    assert np.array_equal(encode_shards(TEXTS, encoder, cut, {})[:], EXPECTED)
    assert encoder.seen == [TEXTS[8:]]
    encode_shards(TEXTS, Encoder(), whole, {})
    after, expected = files(cut), files(whole)
    assert after.keys() == expected.keys()
    assert all(after[name] == expected[name] for name in after if name != "manifest.json")  # it has the files' times


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "moved"])
def test_a_damaged_shard_is_made_again_and_the_others_are_not(tmp_path: Path, damage: str) -> None:
    encode_shards(TEXTS, Encoder(), tmp_path, {})
    file = tmp_path / "shard-000001.npy"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-20])
    elif damage == "flip":
        content[-17] ^= 1  # the last byte before the hash
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes((tmp_path / "shard-000000.npy").read_bytes())
    encoder = Encoder()
    assert np.array_equal(encode_shards(TEXTS, encoder, tmp_path, {})[:], EXPECTED)
    assert encoder.seen == [TEXTS[4:8]]


def test_a_manifest_that_differs_is_refused(tmp_path: Path) -> None:
    encode_shards(TEXTS, Encoder(), tmp_path, {"model": "a", "max_length": 8})
    with pytest.raises(CheckpointError, match=r"(?s)embeddings of something else.*'model': 'a'"):
        encode_shards(TEXTS, Encoder(), tmp_path, {"model": "b", "max_length": 8})
    with pytest.raises(CheckpointError, match="texts"):
        encode_shards(TEXTS[:9], Encoder(), tmp_path, {"model": "a", "max_length": 8})


def test_a_damaged_manifest_is_written_again_and_shards_of_another_one_do_not_count(tmp_path: Path) -> None:
    encode_shards(TEXTS, Encoder(), tmp_path, {"model": "a"})
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    same, other = Encoder(), Encoder()
    encode_shards(TEXTS, same, tmp_path, {"model": "a"})
    assert same.seen == []
    (tmp_path / "manifest.json").unlink()
    encode_shards(TEXTS, other, tmp_path, {"model": "b"})
    assert len(other.seen) == 3
    assert json.loads((tmp_path / "manifest.json").read_text())["model"] == "b"


def test_copied_embeddings_are_read_once_and_may_be_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_shards(TEXTS, Encoder(), tmp_path / "first", {})
    shutil.copytree(tmp_path / "first", tmp_path / "copy")  # the shards have other times than the manifest remembers

    def refuse(*_: object) -> None:
        raise OSError("read-only file system")

    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(shards, "write_json", refuse)
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    encoder = Encoder()
    assert np.array_equal(encode_shards(TEXTS, encoder, tmp_path / "copy", {})[:], EXPECTED)
    assert encoder.seen == [] and [name for name in read if name.startswith("shard")] == [
        f"shard-{number:06d}.npy" for number in range(3)
    ]


def test_half_precision_takes_half_the_space_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    found = encode_shards(TEXTS, Encoder(), tmp_path / "half", {}, precision="float16")
    assert found[0:2].dtype == np.float16 and np.array_equal(found[:], EXPECTED.astype(np.float16))
    with pytest.raises(DataError, match="not finite numbers in float16"):
        encode_shards(TEXTS, lambda texts: Encoder()(texts) * 1e4, tmp_path / "big", {}, precision="float16")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_no_numbers_are_never_kept(tmp_path: Path, bad: float) -> None:
    with pytest.raises(DataError, match="1 of 1 embeddings are not finite"):
        encode_shards(["a"], lambda texts: np.array([[bad]]), tmp_path, {})
    assert list(tmp_path.glob("shard*")) == []
    with pytest.raises(DataError, match="one embedding per text"):
        encode_shards(["a", "b"], lambda texts: np.ones((1, 2)), tmp_path / "few", {})


def test_embedder_keeps_one_folder_for_each_texts_and_settings(tmp_path: Path) -> None:
    keep, scratch = tmp_path / "keep", tmp_path / "scratch"
    first, second = Encoder(), Encoder()
    for encoder, about in ((first, {"model": "a"}), (second, {"model": "a"}), (second, {"model": "b"})):
        Embedder(encoder, about, keep).embed(TEXTS, content_of(TEXTS), scratch)
    Embedder(second, {"model": "b"}, keep).embed(TEXTS[:4], content_of(TEXTS[:4]), scratch)
    assert (len(first.seen), len(second.seen)) == (3, 3 + 1)
    assert len(list(keep.iterdir())) == 3 and not scratch.exists()
    Embedder(first).embed(TEXTS, content_of(TEXTS), scratch)
    assert len(list(scratch.iterdir())) == 1


def test_many_embeddings_are_taken_by_number_in_any_order_from_any_shard(tmp_path: Path) -> None:
    texts = [f"{'x' * (i % 7)} {i % 10}" for i in range(90)]
    found, expected = encode_shards(texts, Encoder(), tmp_path, {}), Encoder()(texts)
    numbers = np.random.default_rng(0).integers(90, size=300)
    assert np.array_equal(found[numbers], expected[numbers])


def test_search_reads_embeddings_like_an_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corpus_PD, query_QD = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    found = encode_shards([str(i) for i in range(30)], lambda texts: corpus_PD[[int(t) for t in texts]], tmp_path, {})
    ids = [f"d{i}" for i in range(30)]
    for block in (1, 3, 7, 100):
        hits = search(query_QD, found, ids, 6, corpus_block=block)
        assert np.array_equal(hits.indices_QK, search(query_QD, corpus_PD, ids, 6).indices_QK)
    assert Embeddings([]).shape == (0, 0)


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="embeddings cannot be kept"):
        encode_shards(TEXTS, Encoder(), tmp_path / "file" / "folder", {})
