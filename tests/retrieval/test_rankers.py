"""Rankers: the order of results, what is there when there are too few, and what identifies a ranker."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from exact_bm25 import bm25

from tdro.errors import EnvironmentProblem
from tdro.retrieval import rankers
from tdro.retrieval.bm25 import best_numbers, index_texts, words
from tdro.retrieval.documents import Documents, store_documents
from tdro.retrieval.rankers import ApproximateRanking, Bm25Ranker, DenseRanker, FaissRanker, Ranker
from tdro.retrieval.shards import Embedder

TEXTS = ["bees dance in the hive", "bees and more bees", "the river carries sand", "sand, sand, sand", ""]
QUERIES = ["sand in the river", "bees", "clock", ""]


def stored(folder: Path, texts: list[str], ids: list[str] | None = None) -> Documents:
    """Documents with ids that go backwards, unless they are given."""
    ids = ids or [f"d{len(texts) - n:03d}" for n in range(len(texts))]
    lines = [json.dumps({"_id": name, "text": text}) for name, text in zip(ids, texts, strict=True)]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return store_documents(folder / "corpus.jsonl", folder / "cache")


def letters(texts: list[str]) -> np.ndarray:
    """A vector of few different numbers, so that many scores are equal."""
    return np.array([[text.count(letter) for letter in "aeb"] for text in texts], np.float32)


@pytest.mark.parametrize("depth", [1, 7, 40, 99])
def test_dense_results_are_ordered_by_score_and_then_by_id(tmp_path: Path, depth: int) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("aeb"), 3)) for _ in range(40)]
    ids = [f"d{n}" for n in rng.permutation(40)]
    embedder = Embedder(letters, {"model": "letters"}, tmp_path / "embeddings")
    ranker: Ranker = DenseRanker(embedder, embedder, "letters")
    queries = ["ab", "e", "b", ""]
    hits = ranker.rank(queries, stored(tmp_path, texts, ids), depth, scratch=tmp_path / "scratch")
    for row, query in enumerate(queries):
        scores = letters([query])[0] @ letters(texts).T
        expected = sorted(range(40), key=lambda i: (-scores[i], ids[i]))[:depth]
        assert hits.indices_QK[row].tolist() == expected and hits.scores_QK[row].tolist() == scores[expected].tolist()
    assert not (tmp_path / "scratch").exists()


def test_a_dense_ranker_is_identified_by_both_its_embedders() -> None:
    def about(query: str, document: str, precision: str = "float32") -> str:
        sides = [Embedder(letters, {"encoder": model}, None, precision) for model in (query, document)]
        return json.dumps(DenseRanker(*sides, name="any").about, sort_keys=True)

    assert len({about("a", "b"), about("b", "a"), about("a", "a"), about("a", "b", "float16")}) == 4
    assert about("a", "b") == about("a", "b")


def test_faiss_ranks_with_a_recall_and_indexes_the_same_documents_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    made: list[str] = []
    index = rankers.FaissIndex
    monkeypatch.setattr(rankers, "FaissIndex", lambda *all, **more: made.append(all[2]) or index(*all, **more))
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("aebx"), 12)) for _ in range(400)]
    documents = stored(tmp_path, texts)
    embedder = Embedder(letters, {"model": "letters"}, tmp_path / "embeddings")
    exact = DenseRanker(embedder, embedder, "letters")
    expected = exact.rank(["a", "eb"], documents, 20, scratch=tmp_path)
    ranker: Ranker = FaissRanker(exact, "ivf-pq")
    for queries in (["a", "eb"], ["eb"]):
        found = ranker.rank(queries, documents, 20, scratch=tmp_path)
        assert isinstance(found, ApproximateRanking) and found.kind == "ivf-pq" and found.measured_on == len(queries)
    common = len({*found.indices_QK[0].tolist()} & {*expected.indices_QK[1].tolist()})
    assert found.recall == common / 20
    assert made == ["ivf-pq"]
    other = stored(tmp_path, texts[:300])
    assert ranker.rank(["a"], other, 20, scratch=tmp_path).indices_QK.max() < 300 and len(made) == 2
    about = [FaissRanker(exact, "flat").about, ranker.about, exact.about]
    assert len({json.dumps(each, sort_keys=True) for each in about}) == 3


def test_bm25_scores_are_those_of_the_definition_and_absent_results_are_marked(tmp_path: Path) -> None:
    ranker: Ranker = Bm25Ranker()
    hits = ranker.rank(QUERIES, stored(tmp_path, TEXTS), 99, scratch=tmp_path)
    assert hits.indices_QK.shape == hits.scores_QK.shape == (4, 5)
    assert (hits.indices_QK.dtype, hits.scores_QK.dtype) == (np.int64, np.float32)
    for row, query in enumerate(QUERIES):
        scores = [bm25(query, text, TEXTS) for text in TEXTS]
        expected = [number for number in np.argsort(scores)[::-1].tolist() if scores[number] > 0]
        absent = len(TEXTS) - len(expected)
        assert hits.indices_QK[row].tolist() == expected + [-1] * absent
        assert hits.scores_QK[row].tolist() == pytest.approx([scores[i] for i in expected] + [-math.inf] * absent)
    assert (hits.indices_QK >= 0).sum(axis=1).tolist() == [3, 2, 0, 0]


@pytest.mark.parametrize("depth", [1, 4, 10, 12])
def test_equal_bm25_scores_are_ordered_by_id(tmp_path: Path, depth: int) -> None:
    documents = stored(tmp_path, [f"bees {letter}" for letter in "abcdefghij"] + ["bees bees", "none"])
    hits = Bm25Ranker().rank(["bees"], documents, depth, scratch=tmp_path)
    expected = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1]  # the ids go backwards
    assert hits.indices_QK[0].tolist() == expected[:depth]


def test_the_best_are_the_best_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        score_P, place_P = rng.integers(0, 5, 30).astype(np.float32), rng.permutation(30)
        full = [i for i in np.lexsort((place_P, -score_P)).tolist() if score_P[i] > 0]
        for depth in (1, 5, 29, 30):
            assert best_numbers(score_P, place_P, depth).tolist() == full[:depth]


def test_the_index_is_made_once_for_the_same_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = [], []
    monkeypatch.setattr(rankers, "index_texts", lambda texts, **more: made.append(1) or index_texts(texts, **more))
    ranker = Bm25Ranker(progress=lambda *done: seen.append(done))
    documents = stored(tmp_path, TEXTS)
    first = ranker.rank(["bees"], documents, 2, scratch=tmp_path)
    assert seen == [(5, 5), (1, 1)]
    renamed = stored(tmp_path, TEXTS, ["e", "d", "c", "b", "a"])
    assert ranker.rank(["bees"], renamed, 2, scratch=tmp_path).indices_QK.tolist() == first.indices_QK.tolist()
    assert len(made) == 1
    other = ranker.rank(["bees"], stored(tmp_path, [*TEXTS, "bees"]), 2, scratch=tmp_path)
    assert len(made) == 2 and 5 in other.indices_QK


def test_bm25_without_any_word_ranks_nothing(tmp_path: Path) -> None:
    hits = Bm25Ranker().rank(["bees"], stored(tmp_path, ["", "..."]), 2, scratch=tmp_path)
    assert hits.indices_QK.tolist() == [[-1, -1]]


def test_bm25_names_its_version_and_its_parameters() -> None:
    about = Bm25Ranker().about
    assert json.loads(json.dumps(about)) == about and {"bm25s", "k1", "b", "method", "words"} < about.keys()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'tdro\[mine\]'"):
        Bm25Ranker()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't STOP, 42!", "don t stop 42"),
        ("हिन्दी भाषा।", "हिन्दी भाषा"),
        ("ภาษิ", "ภา าษ ษิ"),
        ("カタカナとBM25", "カタ タカ カナ ナと bm25"),
        ("한국어 사전", "한국 국어 사전"),
        ("\uff21\uff22\uff23 caf\u00e9 cafe\u0301", "abc caf\u00e9 caf\u00e9"),
        ("中。国", "中 国"),
        ("... !?", ""),
    ],
)
def test_words_of_any_script(text: str, expected: str) -> None:
    assert words(text) == expected.split()
