"""Exact search: the order of equal scores, the cut at rank k, blocks, screens, refusals."""

import numpy as np
import pytest
import torch

from tdro.errors import ConfigError, DataError
from tdro.retrieval import search as search_module
from tdro.retrieval.screen import Screen
from tdro.retrieval.search import Hits, search


def plain_search(query_QD: np.ndarray, corpus_PD: np.ndarray, ids: list[str], k: int) -> list[list[int]]:
    """Rank by (score descending, id ascending) with a Python sort."""
    scores_QP = query_QD @ corpus_PD.T
    return [sorted(range(len(ids)), key=lambda i: (-scores_P[i], ids[i]))[:k] for scores_P in scores_QP]


def test_score_is_the_inner_product() -> None:
    hits = search(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, -1.0]]), ["a", "b"], k=2)
    assert hits.indices_QK.tolist() == [[0, 1]]
    assert hits.scores_QK.tolist() == [[3 + 8, 5 - 2]]
    assert (hits.indices_QK.dtype, hits.scores_QK.dtype) == (np.int64, np.float32)


def test_tie_goes_to_the_smaller_id_in_string_order() -> None:
    hits = search(np.ones((1, 1)), np.ones((3, 1)), ["9", "10", "1"], k=3)
    assert hits.indices_QK.tolist() == [[2, 1, 0]]


def test_places_among_equal_scores_can_be_given_instead_of_ids() -> None:
    rng = np.random.default_rng(0)
    query_QD, corpus_PD = rng.integers(-1, 2, size=(9, 3)), rng.integers(-1, 2, size=(60, 3))
    ids = [f"d{i}" for i in rng.permutation(60)]
    places = np.argsort(np.argsort(ids))
    expected = search(query_QD, corpus_PD, ids, 20)
    assert np.array_equal(search(query_QD, corpus_PD, places, 20, corpus_block=7).indices_QK, expected.indices_QK)


@pytest.mark.parametrize("corpus_block", [1, 2, 3, 4, 100])
def test_tie_across_the_cut_keeps_the_smaller_id(corpus_block: int) -> None:
    corpus_PD = np.array([[1.0], [1.0], [2.0], [1.0]])
    hits = search(np.ones((1, 1)), corpus_PD, ["d", "c", "b", "a"], k=2, corpus_block=corpus_block)
    assert hits.indices_QK.tolist() == [[2, 3]]


def test_minus_zero_ties_with_zero() -> None:
    corpus_PD = np.array([[0.0], [-0.0], [-1e-45], [1e-45]])
    hits = search(np.ones((1, 1)), corpus_PD, ["b", "a", "c", "d"], k=4)
    assert hits.indices_QK.tolist() == [[3, 1, 0, 2]]


@pytest.mark.parametrize(("query_block", "corpus_block"), [(1, 1), (3, 7), (4, 16), (256, 65536)])
@pytest.mark.parametrize("k", [1, 2, 10, 59, 60, 1000])
def test_equals_a_plain_sort_when_most_scores_are_tied(query_block: int, corpus_block: int, k: int) -> None:
    rng = np.random.default_rng(k)
    query_QD = rng.integers(-1, 2, size=(9, 3)).astype(np.float32)
    corpus_PD = rng.integers(-1, 2, size=(60, 3)).astype(np.float32)
    ids = [f"d{i}" for i in rng.permutation(60)]
    hits = search(query_QD, corpus_PD, ids, k, query_block=query_block, corpus_block=corpus_block)
    assert hits.indices_QK.tolist() == plain_search(query_QD, corpus_PD, ids, k)
    expected_QP = query_QD @ corpus_PD.T
    assert np.array_equal(hits.scores_QK, np.take_along_axis(expected_QP, hits.indices_QK, axis=1))


def test_equals_a_plain_sort_on_real_valued_vectors() -> None:
    rng = np.random.default_rng(0)
    query_QD, corpus_PD = rng.normal(size=(20, 8)).astype(np.float32), rng.normal(size=(500, 8)).astype(np.float32)
    ids = [str(i) for i in range(500)]
    hits = search(query_QD, corpus_PD, ids, 50, query_block=7, corpus_block=64)
    expected = np.array(plain_search(query_QD.astype(np.float64), corpus_PD.astype(np.float64), ids, 50))
    assert np.array_equal(hits.indices_QK, expected)
    assert np.all(np.diff(hits.scores_QK, axis=1) <= 0)


def test_corpus_shorter_than_k_gives_the_whole_corpus() -> None:
    hits = search(np.ones((2, 1)), np.array([[1.0], [2.0]]), ["a", "b"], k=100)
    assert hits.indices_QK.tolist() == [[1, 0], [1, 0]]


def test_no_queries_give_no_hits() -> None:
    hits = search(np.empty((0, 4)), np.ones((3, 4)), ["a", "b", "c"], k=2)
    assert hits.indices_QK.shape == hits.scores_QK.shape == (0, 2)


def test_half_precision_and_read_only_vectors_are_searched_in_float32() -> None:
    corpus_PD = np.full((2, 64), 40, dtype=np.float16)
    corpus_PD[1] = 41
    corpus_PD.setflags(write=False)
    hits = search(np.full((1, 64), 40, dtype=np.float16), corpus_PD, ["a", "b"], k=2)
    assert hits.scores_QK.tolist() == [[64 * 40 * 41, 64 * 40 * 40]]  # both beyond 65504, the largest float16


def pairwise_search(query_QD: np.ndarray, corpus_PD: np.ndarray, places_P: np.ndarray, k: int) -> Hits:
    """Score each pair by itself in float32, and sort."""
    scores_QP = np.stack([np.einsum("nd,d->n", corpus_PD, query_D) for query_D in query_QD])
    best_QK = np.stack([np.lexsort((places_P, -scores_P))[:k] for scores_P in scores_QP])
    return Hits(best_QK, np.take_along_axis(scores_QP, best_QK, axis=1))


def assert_same(found: Hits, expected: Hits) -> None:
    """Compare bit for bit."""
    assert np.array_equal(found.indices_QK, expected.indices_QK)
    assert found.scores_QK.tobytes() == expected.scores_QK.tobytes()


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def screens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Search with and without a screen in bfloat16, whatever this machine has; returns the types of screens used."""
    used: list[torch.dtype] = []

    class Noted(Screen):
        def __init__(self, query_QD: torch.Tensor, depth: int, room_QC: torch.Tensor) -> None:
            used.append(room_QC.dtype)
            super().__init__(query_QD, depth, room_QC)

    monkeypatch.setattr(search_module, "multiplies_bfloat16", lambda device: request.param)
    monkeypatch.setattr(search_module, "Screen", Noted)
    return used


KINDS = ["unit", "lengths", "below zero", "narrow", "repeated", "tiny", "zero query"]


def vectors_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw queries and passages of some kind."""
    generator = np.random.default_rng(KINDS.index(kind))
    query_QD, corpus_PD = generator.normal(size=(12, 24)), generator.normal(size=(1500, 24))
    if kind in ("unit", "below zero", "narrow"):
        query_QD, corpus_PD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query_QD, corpus_PD))
    if kind == "lengths":
        corpus_PD *= 10 ** generator.uniform(-3, 3, size=(1500, 1))
        query_QD *= 10 ** generator.uniform(-3, 3, size=(12, 1))
    elif kind == "below zero":
        query_QD, corpus_PD = np.abs(query_QD), -np.abs(corpus_PD)
    elif kind == "narrow":
        corpus_PD = corpus_PD[:1] + 1e-3 * corpus_PD
    elif kind == "repeated":
        corpus_PD = corpus_PD[generator.integers(3, size=1500)]
    elif kind == "tiny":
        corpus_PD *= 1e-12
    elif kind == "zero query":
        query_QD[::2] = 0
    return query_QD.astype(np.float32), corpus_PD.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 200, 1500])
def test_no_bit_depends_on_blocks_or_on_how_passages_are_screened(
    kind: str, k: int, screens: list[torch.dtype]
) -> None:
    query_QD, corpus_PD = vectors_of(kind)
    places_P = np.random.default_rng(9).permutation(len(corpus_PD))
    expected = pairwise_search(query_QD, corpus_PD, places_P, k)
    for query_block, corpus_block in ((12, None), (5, 97), (1, 512)):
        found = search(query_QD, corpus_PD, places_P, k, query_block=query_block, corpus_block=corpus_block)
        assert_same(found, expected)


def test_a_query_that_is_too_close_to_call_is_screened_again(screens: list[torch.dtype]) -> None:
    for kind, exactly in (("unit", False), ("narrow", False), ("repeated", True)):
        screens.clear()
        query_QD, corpus_PD = vectors_of(kind)
        search(query_QD, corpus_PD, np.arange(1500), 5, query_block=50)
        first = screens.pop(0)
        again = [torch.float32] * (kind != "unit" and first == torch.bfloat16) + [torch.float32] * exactly
        assert screens == again


@pytest.mark.parametrize("kind", ["unit", "narrow", "repeated"])
def test_threads_do_not_change_a_bit_and_are_as_many_as_before_afterwards(
    kind: str, screens: list[torch.dtype]
) -> None:
    query_QD, corpus_PD = vectors_of(kind)
    one = search(query_QD, corpus_PD, np.arange(1500), 50)
    torch.set_num_threads(3)
    try:
        assert_same(search(query_QD, corpus_PD, np.arange(1500), 50, corpus_block=97), one)
        found = search(query_QD, corpus_PD, np.arange(1500), 1500, corpus_block=1400, query_block=5)
        assert_same(found, pairwise_search(query_QD, corpus_PD, np.arange(1500), 1500))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_a_process_that_allows_rough_products_does_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "multiplies_bfloat16", lambda device: False)
    query_QD, corpus_PD = vectors_of("unit")
    expected = pairwise_search(query_QD, corpus_PD, np.arange(1500), 50)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_same(search(query_QD, corpus_PD, np.arange(1500), 50), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_queries_are_searched_in_turns_where_all_would_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    query_QD, corpus_PD = vectors_of("unit")
    expected = search(query_QD, corpus_PD, np.arange(1500), 7)
    monkeypatch.setattr(search_module, "_HELD", 20_000)
    assert_same(search(query_QD, corpus_PD, np.arange(1500), 7, query_block=2), expected)


def test_vectors_whose_inner_products_overflow_are_refused() -> None:
    corpus_PD = np.ones((3, 2), np.float32)
    corpus_PD[1] = 1e20
    with pytest.raises(DataError, match=r"(?s)passages are too long.*row 1"):
        search(np.ones((1, 2)), corpus_PD, list("abc"), k=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vector_that_is_not_finite_is_refused_with_its_row(bad: float) -> None:
    corpus_PD = np.ones((5, 2))
    corpus_PD[3, 1] = bad
    with pytest.raises(DataError, match=r"(?s)passages contain NaN.*row 3"):
        search(np.ones((1, 2)), corpus_PD, list("abcde"), k=1, corpus_block=2)
    with pytest.raises(DataError, match=r"(?s)queries contain NaN.*row 3"):
        search(corpus_PD, np.ones((1, 2)), ["a"], k=1, query_block=2)


def test_empty_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="corpus to search is empty"):
        search(np.ones((1, 2)), np.empty((0, 2)), [], k=1)


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(DataError, match="one dimension"):
        search(np.ones((1, 2)), np.ones((1, 3)), ["a"], k=1)
    with pytest.raises(DataError, match="2 ids, 1 vectors"):
        search(np.ones((1, 2)), np.ones((1, 2)), ["a", "b"], k=1)


@pytest.mark.parametrize("option", ["k", "query_block", "corpus_block"])
def test_size_below_one_is_refused(option: str) -> None:
    sizes = {"k": 1, option: 0}
    with pytest.raises(ConfigError, match=f"{option} must be at least 1"):
        search(np.ones((1, 1)), np.ones((1, 1)), ["a"], **sizes)
