"""Per-query scores against arithmetic, and against ir-measures where nothing is tied."""

from math import log2

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, nDCG

from tdro.errors import DataError
from tdro.evaluation.metrics import score_run


def test_ndcg_divides_discounted_gains_by_those_of_the_ideal_order() -> None:
    qrels = {"q": {"d1": 2, "d2": 1, "d3": 0}}
    scores = score_run(qrels, {"q": ["d3", "d2", "d1"]})
    found = 0 / log2(2) + 1 / log2(3) + 2 / log2(4)
    ideal = 2 / log2(2) + 1 / log2(3)
    assert scores["ndcg@10"]["q"] == pytest.approx(found / ideal)


def test_reciprocal_rank_ends_at_rank_ten() -> None:
    ranking = [f"x{i}" for i in range(20)]
    qrels = {"tenth": {"x9": 1}, "eleventh": {"x10": 1}}
    assert score_run(qrels, dict.fromkeys(qrels, ranking))["mrr@10"] == {"tenth": 1 / 10, "eleventh": 0.0}


def test_recall_ends_at_rank_one_hundred() -> None:
    ranking = [f"x{i}" for i in range(200)]
    qrels = {"q": {"x0": 1, "x99": 3, "x100": 1, "not retrieved": 1}}
    assert score_run(qrels, {"q": ranking})["recall@100"]["q"] == 2 / 4


@pytest.mark.parametrize("ranking", [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]])
def test_order_of_the_ranking_decides_and_never_the_id(ranking: list[str]) -> None:
    rank = 1 + ranking.index("b")
    scores = score_run({"q": {"b": 1}}, {"q": ranking})
    assert scores["mrr@10"]["q"] == 1 / rank
    assert scores["ndcg@10"]["q"] == pytest.approx(1 / log2(rank + 1))


def test_judged_query_without_results_scores_zero_in_every_measure() -> None:
    scores = score_run({"q1": {"d": 1}, "q2": {"d": 1}, "q3": {"d": 1}}, {"q1": ["d"], "q2": []})
    assert scores == {name: {"q1": 1.0, "q2": 0.0, "q3": 0.0} for name in ("ndcg@10", "recall@100", "mrr@10")}


def test_query_without_relevant_documents_scores_zero() -> None:
    scores = score_run({"q": {"d": 0}}, {"q": ["d"]})
    assert scores == {name: {"q": 0.0} for name in ("ndcg@10", "recall@100", "mrr@10")}


def test_query_that_nobody_judged_is_left_out() -> None:
    assert list(score_run({"q1": {"d": 1}}, {"q1": ["d"], "q2": ["d"]})["mrr@10"]) == ["q1"]


def test_equals_ir_measures_on_runs_without_ties() -> None:
    rng = np.random.default_rng(0)
    documents = [f"d{i}" for i in range(300)]
    queries = [f"q{i}" for i in range(30)]
    qrels = {q: {d: int(rng.integers(0, 4)) for d in rng.choice(documents, 40, replace=False)} for q in queries}
    scored = {q: dict(zip(documents, rng.permutation(300).astype(float), strict=True)) for q in queries}
    scores = score_run(qrels, {q: sorted(scored[q], key=lambda d: -scored[q][d]) for q in queries})
    names = {nDCG @ 10: "ndcg@10", R @ 100: "recall@100", RR @ 10: "mrr@10"}
    compared = 0
    for result in ir_measures.iter_calc(names, qrels, scored):
        assert scores[names[result.measure]][result.query_id] == result.value
        compared += 1
    assert compared == 90


def test_empty_qrels_are_refused() -> None:
    with pytest.raises(DataError, match="no judgements"):
        score_run({}, {"q": ["d"]})


def test_document_named_twice_is_refused() -> None:
    with pytest.raises(DataError, match="names a document twice"):
        score_run({"q": {"d": 1}}, {"q": ["d", "d"]})
