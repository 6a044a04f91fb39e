"""Approximate search: exact scores for what it finds, and a recall that tells what it does not."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.retrieval.approximate import FaissIndex, IvfPq, require_faiss
from tdro.retrieval.search import search
from tdro.retrieval.shards import encode_shards

faiss = pytest.importorskip("faiss")


def vectors(count: int, seed: int, dimension: int = 32) -> np.ndarray:
    """Draw vectors of length 1 around twenty centres."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, dimension))
    found = centres[generator.integers(20, size=count)] + generator.normal(size=(count, dimension))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


CORPUS_PD, QUERY_QD = vectors(3000, 0), vectors(40, 1)
IDS = [f"d{i}" for i in np.random.default_rng(2).permutation(3000)]


def test_flat_index_finds_what_the_exact_search_finds() -> None:
    exact = search(QUERY_QD, CORPUS_PD, IDS, 10)
    found = FaissIndex(CORPUS_PD, IDS, "flat").search(QUERY_QD, 10)
    assert np.array_equal(found.hits.indices_QK, exact.indices_QK)
    assert np.allclose(found.hits.scores_QK, exact.scores_QK, atol=1e-6)
    assert (found.recall, found.measured_on) == (1.0, 40)


def test_recall_is_the_share_of_the_exact_results_that_was_found() -> None:
    index = FaissIndex(CORPUS_PD, IDS, "ivf-pq", IvfPq(lists=50, probes=2, code_bytes=4))
    found = index.search(QUERY_QD, 10)
    exact = search(QUERY_QD, CORPUS_PD, IDS, 10)
    common = [len({*a} & {*b}) for a, b in zip(found.hits.indices_QK.tolist(), exact.indices_QK.tolist(), strict=True)]
    assert found.recall == pytest.approx(sum(common) / 400)
    assert 0.1 < found.recall < 1
    assert found.measured_on == 40 and f"{100 * found.recall:.1f} % of the exact top 10" in found.note


def test_of_passages_that_tie_at_the_cut_any_will_do() -> None:
    found = FaissIndex(np.repeat(CORPUS_PD[:300], 10, axis=0), IDS, "flat").search(QUERY_QD, 15)
    assert found.recall == 1.0


def test_recall_is_measured_on_a_sample_that_the_seed_decides() -> None:
    index = FaissIndex(CORPUS_PD, IDS, "ivf-pq", IvfPq(lists=50, probes=2, code_bytes=4))
    some = [index.search(QUERY_QD, 10, sample=7, seed=seed) for seed in (0, 0, 1)]
    assert [each.measured_on for each in some] == [7, 7, 7]
    assert some[0].recall == some[1].recall != some[2].recall


def test_scores_of_an_approximate_search_are_exact_and_ordered_with_ties_by_id() -> None:
    corpus_PD = np.repeat(CORPUS_PD[:1000], 3, axis=0)
    found = FaissIndex(corpus_PD, IDS, "ivf-pq").search(QUERY_QD, 20).hits
    for query_D, indices, scores in zip(QUERY_QD, found.indices_QK, found.scores_QK, strict=True):
        assert np.allclose(scores, corpus_PD[indices] @ query_D, atol=1e-6)
        assert sorted(zip((-scores).tolist(), [IDS[i] for i in indices], strict=True)) == [
            (-score, IDS[i]) for score, i in zip(scores.tolist(), indices, strict=True)
        ]
    assert np.array_equal(
        FaissIndex(corpus_PD, IDS, "flat").search(QUERY_QD, 3000).hits.indices_QK[:, 0] >= 0, [True] * 40
    )


def test_the_same_seed_gives_the_same_index_and_looking_everywhere_finds_nearly_all() -> None:
    settings = IvfPq(lists=20, probes=20, code_bytes=16, candidates=8)
    first, second = (FaissIndex(CORPUS_PD, IDS, "ivf-pq", settings).search(QUERY_QD, 10) for _ in range(2))
    assert np.array_equal(first.hits.indices_QK, second.hits.indices_QK)
    assert first.recall > 0.98


def test_where_the_index_finds_too_few_the_rest_is_marked() -> None:
    index = FaissIndex(CORPUS_PD, IDS, "ivf-pq", IvfPq(lists=300, probes=1))
    found = index.search(QUERY_QD, 500)
    missing = found.hits.indices_QK == -1
    assert missing.any() and np.all(np.isneginf(found.hits.scores_QK[missing]))
    assert np.all(np.diff(missing.astype(int), axis=1) >= 0)


def test_embeddings_on_disk_are_indexed_block_by_block(tmp_path: Path) -> None:
    texts = [str(i) for i in range(3000)]
    stored = encode_shards(texts, lambda some: CORPUS_PD[[int(t) for t in some]], tmp_path, {}, precision="float16")
    told: list[tuple[int, int]] = []
    index = FaissIndex(stored, np.arange(3000), "flat", progress=lambda *done: told.append(done))
    exact = search(QUERY_QD, stored, np.arange(3000), 5)
    assert np.array_equal(index.search(QUERY_QD, 5).hits.indices_QK, exact.indices_QK)
    assert told == [(3000, 3000)]


def test_no_queries_give_no_hits() -> None:
    found = FaissIndex(CORPUS_PD, IDS, "flat").search(np.empty((0, 32), np.float32), 5)
    assert found.hits.indices_QK.shape == (0, 5) and found.measured_on == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (IvfPq(lists=-1), "lists must be between 1 and 3000"),
        (IvfPq(lists=4000), "lists must be between 1 and 3000"),
        (IvfPq(lists=10, probes=11), "probes must be between 1 and 10"),
        (IvfPq(code_bytes=5), "divide the 32 dimensions"),
        (IvfPq(code_bytes=64), "code_bytes must be between 1 and 32"),
        (IvfPq(candidates=0), "candidates must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: IvfPq, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FaissIndex(CORPUS_PD, IDS, "ivf-pq", settings)


def test_too_few_passages_to_train_are_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)at least 256 passages.*saw:   255"):
        FaissIndex(CORPUS_PD[:255], IDS[:255], "ivf-pq")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EnvironmentProblem, match=r"(?s)needs faiss.*tdro\[faiss\]"):
        require_faiss()


def test_the_threads_of_torch_and_of_faiss_live_together() -> None:
    code = """
import torch, faiss
import numpy as np
torch.set_num_threads(2); faiss.omp_set_num_threads(2)
a = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
for _ in range(3):
    index = faiss.index_factory(16, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(a); index.add(a); index.search(a[:500], 50)
    torch.mm(torch.from_numpy(a), torch.from_numpy(a[:500]).T).topk(50)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
