"""Rankings and scores of rankers whose results can be read off."""

from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import DOCUMENTS, QRELS, QUERIES, Listed, Vectors, letters, write_beir

from tdro.config import TaskConfig
from tdro.errors import ConfigError, DataError
from tdro.evaluation.benchmarks import Benchmark, Oddity
from tdro.evaluation.evaluate import Evaluation, evaluate, rankings
from tdro.evaluation.tasks import find_task
from tdro.retrieval.rankers import Ranker


def read(folder: Path, **options: object) -> Benchmark:
    """Read a task of one part."""
    (part,) = find_task(folder.name, TaskConfig(path=str(folder), **options)).parts
    return part.read(folder.parent / "cache", None)


def random_set(folder: Path, documents: int = 150, queries: int = 12, **names: str) -> Path:
    """Write a set of random words in which most scores of `letters` are tied."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc"), 3)) for _ in range(documents + queries)]
    ids = [f"d{i}" for i in rng.permutation(documents)]
    query_ids = [names.get("query", "q{}").format(i) for i in range(queries)]
    judged = [(q, d, rng.integers(0, 3)) for q in query_ids for d in rng.choice(ids, 8, replace=False)]
    return write_beir(
        folder,
        [{"_id": name, "text": word} for name, word in zip(ids, words[:documents], strict=True)],
        [{"_id": name, "text": word} for name, word in zip(query_ids, words[documents:], strict=True)],
        "".join(f"{q}\t{d}\t{label}\n" for q, d, label in judged),
    )


def run(ranker: Ranker, benchmark: Benchmark, tmp_path: Path, **options: int) -> Evaluation:
    """Evaluate."""
    return evaluate(ranker, benchmark, scratch=tmp_path, **options)


def ids(evaluation: Evaluation) -> list[list[str]]:
    """Rankings as ids."""
    return [found for found, _ in rankings(evaluation.benchmark.documents, evaluation.hits)]


def test_evaluation_ranks_and_scores(tmp_path: Path) -> None:
    table: dict[str, list[float]] = {
        "who dances": [1, 0],
        "who sleeps": [1, 0.5],
        "Bees dance": [1, 0],
        "sleep": [0, 1],
    }
    evaluation = run(Vectors(table.__getitem__), read(write_beir(tmp_path / "bees")), tmp_path)
    assert ids(evaluation) == [["d1", "d2"], ["d1", "d2"]]
    assert evaluation.hits.scores_QK.tolist() == [[1.0, 0.0], [1.0, 0.5]]
    assert evaluation.scores["mrr@10"].tolist() == [1.0, 0.5]
    assert (evaluation.means["mrr@10"], evaluation.means["recall@100"], evaluation.oddities) == (0.75, 1.0, {})


def test_query_without_results_scores_zero_stays_in_the_mean_and_is_counted(tmp_path: Path) -> None:
    evaluation = run(Listed({"who dances": ["d1"]}), read(write_beir(tmp_path / "bees")), tmp_path)
    assert ids(evaluation) == [["d1"], []]
    assert {name: values.tolist() for name, values in evaluation.scores.items()} == {
        name: [1.0, 0.0] for name in ("ndcg@10", "recall@100", "mrr@10")
    }
    assert evaluation.oddities == {"no_results": Oddity(1, ("q2",))}


def test_empty_query_is_not_asked_scores_zero_and_is_counted_once(tmp_path: Path) -> None:
    queries = [{"_id": "q0", "text": " \n"}, *QUERIES]
    benchmark = read(write_beir(tmp_path / "bees", queries=queries, qrels="q0\td1\t1\n" + QRELS[24:]))
    ranker = Vectors(letters(3))
    evaluation = run(ranker, benchmark, tmp_path)
    assert ranker.asked == ["who dances", "who sleeps"]
    assert ids(evaluation)[0] == [] and len(ids(evaluation)[1]) == 2
    assert evaluation.scores["recall@100"].tolist() == [0.0, 1.0, 1.0]
    assert evaluation.oddities == {"empty_queries": Oddity(1, ("q0",))}


def test_when_all_queries_are_empty_nobody_is_asked(tmp_path: Path) -> None:
    benchmark = read(write_beir(tmp_path / "bees", queries=[{"_id": "q1", "text": ""}], qrels="q1\td1\t1\n"))
    assert run(Vectors(letters(3)), benchmark, tmp_path).means["ndcg@10"] == 0.0


def test_identical_ids_are_dropped_only_on_request_and_leave_no_gap(tmp_path: Path) -> None:
    documents = [{"_id": i, "text": i} for i in ("a", "b", "c")]
    folder = write_beir(tmp_path / "same", documents, [{"_id": "a", "text": "query"}], "a\tc\t1\n")
    ranker = Vectors({"query": [1], "a": [2], "b": [3], "c": [1]}.__getitem__)
    kept, dropped = run(ranker, read(folder), tmp_path), run(ranker, read(folder, ignore_identical_ids=True), tmp_path)
    assert (ids(kept), kept.scores["mrr@10"].tolist()) == ([["b", "a", "c"]], [1 / 3])
    assert (ids(dropped), dropped.scores["mrr@10"].tolist()) == ([["b", "c"]], [1 / 2])
    assert dropped.hits.scores_QK[0, :2].tolist() == [3.0, 1.0]


def test_dropping_the_identical_id_still_fills_k_places(tmp_path: Path) -> None:
    benchmark = read(random_set(tmp_path / "words", query="d{}"), ignore_identical_ids=True)
    evaluation = run(Vectors(letters(3)), benchmark, tmp_path, k=100)
    for query_id, found in zip(benchmark.query_ids, ids(evaluation), strict=True):
        assert len(found) == 100 and query_id not in found


def test_query_whose_only_document_is_itself_counts_as_without_results(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "self", [{"_id": "a", "text": "a"}], [{"_id": "a", "text": "a"}], "a\ta\t1\n")
    evaluation = run(Vectors(letters(2)), read(folder, ignore_identical_ids=True), tmp_path)
    assert evaluation.oddities == {"no_results": Oddity(1, ("a",))}
    assert evaluation.means == {"ndcg@10": 0.0, "recall@100": 0.0, "mrr@10": 0.0}


def test_equal_scores_are_ranked_by_id_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    found = []
    for name, documents in (("a", DOCUMENTS), ("b", DOCUMENTS[::-1])):
        evaluation = run(Vectors(lambda _: [1.0]), read(write_beir(tmp_path / name, documents)), tmp_path)
        found.append((ids(evaluation), evaluation.means))
    assert found[0] == found[1] and found[0][0] == [["d1", "d2"]] * 2


def test_ranking_is_k_deep_and_fewer_than_one_hundred_are_refused(tmp_path: Path) -> None:
    benchmark = read(random_set(tmp_path / "words"))
    assert run(Vectors(letters(3)), benchmark, tmp_path, k=120).hits.indices_QK.shape == (12, 120)
    assert run(Vectors(letters(3)), benchmark, tmp_path).hits.indices_QK.shape == (12, 150)
    with pytest.raises(ConfigError, match="100 best"):
        run(Vectors(letters(3)), benchmark, tmp_path, k=99)


def test_vectors_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NaN"):
        run(Vectors(lambda _: [np.nan]), read(write_beir(tmp_path / "bees")), tmp_path)
