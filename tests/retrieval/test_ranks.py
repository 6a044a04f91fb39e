"""Two ranks give the bytes of one, in embeddings and in results; a rank that is lost is named, not waited for."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tdro.devices import ALONE, Ranks, end_rank, join_ranks
from tdro.errors import EnvironmentProblem
from tdro.retrieval import shards
from tdro.retrieval.search import Encode, search
from tdro.retrieval.shards import encode_shards

TEXTS = [f"Iron rusts {'when it meets water ' * (i % 7)}{i}" for i in range(30)]


def work(out: Path, ranks: Ranks, encode: Encode) -> None:
    """Encode and search; what one rank does."""
    out.mkdir(exist_ok=True)
    found = encode_shards(TEXTS, encode, out / "shards", {"model": "tiny"}, ranks=ranks)
    generator = np.random.default_rng(0)
    corpus_PD = np.concatenate([found[:], generator.integers(-1, 2, size=(300, found.shape[1]))]).astype(np.float32)
    ids = [f"d{i}" for i in generator.permutation(len(corpus_PD))]
    for k, block in ((1, 16), (7, 16), (50, 32), (400, 16), (20, None)):
        hits = search(corpus_PD[:50:3], corpus_PD, ids, k, query_block=5, corpus_block=block, ranks=ranks)
        np.save(out / f"indices-{k}-{ranks.number}.npy", hits.indices_QK)
        np.save(out / f"scores-{k}-{ranks.number}.npy", hits.scores_QK)


def letters(texts: Sequence[str]) -> np.ndarray:
    """Count the letters of texts."""
    counts = [[text.lower().count(letter) for letter in "abcdeirstw"] for text in texts]
    return np.array(counts, np.float32) / 7


def encoder_of(model: str) -> Encode:
    """Load a model; without one an embedding counts letters."""
    if not model:
        return letters
    from tdro.models.encoder import load_encoder
    from tdro.retrieval.encode import encode

    loaded = load_encoder(model)
    return lambda texts: encode(loaded, texts, max_length=40)


def work_as_rank() -> None:
    """Run in a process of its own."""
    torch.set_num_threads(1)
    shards.SHARD = 4
    ranks = join_ranks()
    work(Path(sys.argv[1]), ranks, encoder_of(sys.argv[2]))
    sizes = [len(each) for each in ranks.gather(torch.full((ranks.number, 3), float(ranks.number)))]
    assert sizes == list(range(ranks.count)), sizes
    assert [int(each[0]) for each in ranks.gather(torch.tensor([ranks.number]))] == list(range(ranks.count))
    assert join_ranks() == ranks
    end_rank(0)


LOST = """
import os, signal, sys, time
from datetime import timedelta
from tdro.devices import join_ranks
from tdro.errors import EnvironmentProblem

ranks = join_ranks(timedelta(seconds=float(sys.argv[2])))
ranks.barrier()
if ranks.number == 1:
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)
try:
    ranks.barrier()
except EnvironmentProblem as problem:
    print(problem, flush=True)
    os._exit(problem.exit_code)
"""


def start(command: list[str], count: int) -> list[subprocess.Popen[str]]:
    """Start ranks that find each other, as a launcher does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = []
    for number in range(count):
        launched = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in launched.items()} | alone()
        found.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    return found


def alone() -> dict[str, str]:
    """What every process of these tests has in its environment."""
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    return {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}


def assert_same(one: Path, two: Path) -> None:
    """Compare what one rank has written with what each of two has."""
    files = sorted(path.name for path in (one / "shards").glob("shard-*.npy"))
    assert len(files) == 8
    for name in files:
        assert (one / "shards" / name).read_bytes() == (two / "shards" / name).read_bytes()
    results = sorted(path.name for path in one.glob("*-0.npy"))
    assert len(results) == 10
    for name in results:
        for rank in "01":
            assert (one / name).read_bytes() == (two / name.replace("-0.npy", f"-{rank}.npy")).read_bytes()


def test_two_ranks_give_the_bytes_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import test_ranks; test_ranks.work_as_rank()", str(tmp_path / "two"), ""]
    ranks = start(command, 2)
    monkeypatch.setattr(shards, "SHARD", 4)
    work(tmp_path / "one", ALONE, letters)
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_ranks_of_torchrun_give_the_bytes_of_one_with_a_real_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_models import make_tiny_model

    model = str(make_tiny_model("bert", tmp_path / "model"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code = tmp_path / "work.py"
    code.write_text("import test_ranks; test_ranks.work_as_rank()", encoding="utf-8")
    subprocess.run([*torchrun, str(code), str(tmp_path / "two"), model], env=os.environ | alone(), check=True)
    monkeypatch.setattr(shards, "SHARD", 4)
    work(tmp_path / "one", ALONE, encoder_of(model))
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("how", "patience"), [("killed", 60), ("silent", 2)])
def test_a_lost_rank_is_named_and_not_waited_for(how: str, patience: int) -> None:
    first, second = start([sys.executable, "-c", LOST, how, str(patience)], 2)
    try:
        said, _ = first.communicate(timeout=50)
        assert first.returncode == EnvironmentProblem.exit_code
        assert "another rank has stopped" in said and "rank 0 of 2" in said
        if how == "killed":
            assert second.wait() == -signal.SIGKILL
    finally:
        second.kill()
        second.wait()


class Pretended:
    """One of two ranks; the other one does its part at the first barrier after the folder has been claimed."""

    count = 2

    def __init__(self, number: int, other: Callable[[], object] | None = None) -> None:
        self.number, self._other = number, other

    def barrier(self) -> None:
        """Let the other one work."""
        if self._other is not None:
            other, self._other = self._other, None
            other()


def lengths(texts: Sequence[str]) -> np.ndarray:
    """Encode a text as its length."""
    return np.array([[len(text)] for text in texts], np.float32)


def test_each_rank_makes_its_own_shards_and_the_rank_is_no_part_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 2)
    texts = [f"text {i}" for i in range(9)]
    seen: dict[int, list[int]] = {0: [], 1: []}

    def counted(rank: int) -> Encode:
        return lambda some: seen[rank].append(int(some[0].split()[1])) or lengths(some)

    def second() -> None:
        with pytest.raises(EnvironmentProblem, match="missing or damaged"):
            encode_shards(texts, counted(1), tmp_path / "two", {}, ranks=Pretended(1))  # it does not wait for rank 0

    told: list[tuple[int, int]] = []
    ranks = Pretended(0, second)
    found = encode_shards(
        texts, counted(0), tmp_path / "two", {}, ranks=ranks, progress=lambda *done: told.append(done)
    )
    assert seen == {0: [0, 4, 8], 1: [2, 6]}
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert np.array_equal(found[:], lengths(texts))
    encode_shards(texts, lengths, tmp_path / "one", {})
    for file in (tmp_path / "one").glob("shard-*"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    again = encode_shards(texts, counted(0), tmp_path / "two", {})
    assert np.array_equal(again[:], found[:]) and sum(map(len, seen.values())) == 5


def test_ranks_that_do_not_see_the_same_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 2)
    with pytest.raises(EnvironmentProblem, match=r"(?s)missing or damaged.*shard-000001.*every rank sees"):
        encode_shards(["a", "b", "c"], lengths, tmp_path, {}, ranks=Pretended(0))
