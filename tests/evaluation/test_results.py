"""What an evaluation leaves on disk, and what reads it."""

import gzip
import json
from pathlib import Path
from typing import ClassVar

import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_sets import DOCUMENTS, Listed, Vectors, letters, write_beir
from ir_measures import RR, R, nDCG
from test_evaluate import ids, random_set

from tdro.config import TaskConfig
from tdro.errors import DataError
from tdro.evaluation.benchmarks import Task
from tdro.evaluation.evaluate import Evaluation
from tdro.evaluation.results import FILES, find_results, finished, read_result
from tdro.evaluation.tasks import find_task
from tdro.evaluation.writing import evaluate_part, join_parts
from tdro.retrieval.rankers import ApproximateRanking, Ranker

MEASURES = {nDCG @ 10: "ndcg@10", R @ 100: "recall@100", RR @ 10: "mrr@10"}


def task_in(folder: Path, **options: object) -> Task:
    """Find a task."""
    return find_task(folder.name, TaskConfig(path=str(folder), **options))


def write(task: Task, ranker: Ranker, out: Path, model: str = "model", inputs: str = "same") -> list[Evaluation]:
    """Evaluate all parts of a task."""
    done = [
        evaluate_part(part, ranker, out / part.label, model=model, inputs=inputs, cache=out.parent / "cache")
        for part in task.parts
    ]
    join_parts(task, out / task.name)
    return [evaluation for evaluation in done if evaluation]


def test_run_file_gives_the_same_ranking_and_scores_to_every_reader(tmp_path: Path) -> None:
    (evaluation,) = write(task_in(random_set(tmp_path / "words")), Vectors(letters(3)), tmp_path / "out")
    file = tmp_path / "out" / "words" / "run.trec.gz"
    assert all(len(set(scores)) < 20 for scores in evaluation.hits.scores_QK.tolist())  # most are tied
    run: dict[str, dict[str, float]] = {}
    for query_id, document, score in ir_measures.read_trec_run(str(file)):
        run.setdefault(query_id, {})[document] = float(np.float32(score))
    for row, (query_id, found) in enumerate(zip(evaluation.benchmark.query_ids, ids(evaluation), strict=True)):
        read = run[query_id]
        assert len(set(read.values())) == len(read) == 150
        assert sorted(read, key=lambda document: -read[document]) == found
        assert np.allclose(list(read.values()), evaluation.hits.scores_QK[row], rtol=1e-4, atol=1e-30)
    qrels = {q: dict(labels) for q, labels in evaluation.benchmark.qrels.items()}
    result = read_result(file.parent)
    compared = 0
    for value in ir_measures.iter_calc(MEASURES, qrels, run):
        place = result.query_ids.index(value.query_id)
        assert abs(result.scores[MEASURES[value.measure]][place] - value.value) < 1e-6
        compared += 1
    assert compared == 3 * 12


def test_run_file_has_six_columns_and_ranks_from_one(tmp_path: Path) -> None:
    table: dict[str, list[float]] = {"who dances": [1], "who sleeps": [3], "Bees dance": [0.1], "sleep": [0.1]}
    write(task_in(write_beir(tmp_path / "bees")), Vectors(table.__getitem__), tmp_path / "out")
    lines = gzip.decompress((tmp_path / "out" / "bees" / "run.trec.gz").read_bytes()).decode().splitlines()
    assert lines[0] == "q1 Q0 d1 1 0.100000001 tdro"
    assert lines[1] == "q1 Q0 d2 2 0.099999994 tdro"  # tied with d1, so one float32 lower
    assert len(lines) == 4


def test_result_holds_the_evaluation(tmp_path: Path) -> None:
    task = task_in(random_set(tmp_path / "words"))
    (evaluation,) = write(task, Vectors(letters(3)), tmp_path / "out")
    result = read_result(tmp_path / "out" / "words")
    assert (result.task, result.model, result.main) == ("words", "model", "ndcg@10")
    assert result.query_ids == evaluation.benchmark.query_ids
    assert {name: scores.tolist() for name, scores in result.scores.items()} == {
        name: scores.tolist() for name, scores in evaluation.scores.items()
    }
    summary = result.summary
    assert (summary["queries"], summary["documents"], summary["depth"], summary["split"]) == (12, 150, 1000, "test")
    assert summary["measures"] == evaluation.means
    assert summary["content"] == task.parts[0].content(tmp_path / "cache")
    assert summary["corpus"] == evaluation.benchmark.documents.content
    assert summary["ranker"] == {"vectors": "of the test"}
    table = pq.read_table(tmp_path / "out" / "words" / "scores.parquet")
    assert table.column_names == ["query_id", "ndcg@10", "recall@100", "mrr@10"]


def test_top_documents_are_the_best_three_and_the_best_relevant_one(tmp_path: Path) -> None:
    documents = [{"_id": f"d{i}", "title": f"T{i}", "text": "long " * 200} for i in range(6)]
    queries = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(4)]
    qrels = "q0\td5\t1\nq0\td1\t0\nq1\td0\t1\nq2\td4\t1\nq2\td5\t2\nq3\tgone\t1\n"
    found = {"query 0": ["d1", "d2", "d3", "d4", "d5"], "query 1": ["d0", "d1"], "query 2": ["d0"], "query 3": []}
    write(task_in(write_beir(tmp_path / "set", documents, queries, qrels)), Listed(found), tmp_path / "out")
    rows = read_result(tmp_path / "out" / "set").top().to_pylist()
    seen = [(row["query_id"], row["rank"], row["document_id"], row["score"], row["relevance"]) for row in rows]
    assert seen == [
        ("q0", 1, "d1", 0.0, 0),
        ("q0", 2, "d2", -1.0, None),
        ("q0", 3, "d3", -2.0, None),
        ("q0", 5, "d5", -4.0, 1),
        ("q1", 1, "d0", 0.0, 1),
        ("q1", 2, "d1", -1.0, None),
        ("q2", 1, "d0", 0.0, None),
        ("q2", None, "d5", None, 2),  # never found
    ]
    assert (rows[0]["title"], len(rows[0]["text"]), rows[0]["query"]) == ("T1", 300, "query 0")


def test_writing_twice_gives_the_same_bytes_and_no_other_files(tmp_path: Path) -> None:
    task, contents = task_in(random_set(tmp_path / "words")), []
    for _ in range(2):
        write(task, Vectors(letters(3)), tmp_path / "out")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out" / "words").iterdir()})
    assert contents[0] == contents[1] and sorted(contents[0]) == sorted(FILES)


def test_only_a_complete_result_of_the_same_inputs_is_finished(tmp_path: Path) -> None:
    write(task_in(write_beir(tmp_path / "bees")), Vectors(letters(3)), tmp_path / "out")
    folder = tmp_path / "out" / "bees"
    assert finished(folder, "same") and not finished(folder, "others")
    for file in FILES:
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        assert not finished(folder, "same")
        (folder / file).write_bytes(content)
    (folder / "summary.json").write_text('{"task": ')
    assert not finished(folder, "same")


def test_kill_while_files_are_replaced_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, folder = task_in(write_beir(tmp_path / "bees")), tmp_path / "out" / "bees"
    write(task, Vectors(letters(3)), tmp_path / "out")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tdro.evaluation.writing.write_top", stop)
    with pytest.raises(KeyboardInterrupt):
        write(task, Vectors(letters(2)), tmp_path / "out")
    assert not finished(folder, "same")
    with pytest.raises(DataError, match="no results"):
        find_results(tmp_path / "out")


def test_score_of_a_task_is_the_mean_over_its_parts_each_counting_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "cqadupstack"
    write_beir(folder / "android")
    write_beir(folder / "english", DOCUMENTS, [{"_id": "q1", "text": "who dances"}], "q1\td1\t1\n")
    task = task_in(folder)
    write(task, Listed({"who dances": ["d1"]}), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "cqadupstack" / "summary.json").read_text())
    assert {name: means["mrr@10"] for name, means in summary["parts"].items()} == {"android": 0.5, "english": 1.0}
    assert (summary["measures"]["mrr@10"], summary["queries"]) == (0.75, 3)
    assert summary["oddities"]["no_results"] == {"count": 1, "first": ["android: q2"]}
    assert summary["oddities"]["missing_parts"]["count"] == 10
    found = find_results(tmp_path / "out")
    assert list(found) == ["cqadupstack/android", "cqadupstack/english"]
    assert find_results(tmp_path / "out" / "cqadupstack") == found
    assert find_results(tmp_path / "out" / "cqadupstack" / "english") == {
        "cqadupstack/english": found["cqadupstack/english"]
    }
    assert read_result(found["cqadupstack/english"]).task == "cqadupstack/english"


class Approximate(Vectors):
    """Says of its hits that they are approximate, with a recall of 0.5, then 1.0."""

    recalls: ClassVar = (0.5, 1.0)
    ranked = 0

    def rank(self, queries, documents, depth, *, scratch):
        """Rank exactly."""
        hits = super().rank(queries, documents, depth, scratch=scratch)
        self.ranked += 1
        return ApproximateRanking(hits.indices_QK, hits.scores_QK, "flat", self.recalls[self.ranked - 1], len(queries))


def test_summary_has_the_kind_of_search_and_the_recall_of_an_approximate_one(tmp_path: Path) -> None:
    table = {"who dances": [1], "who sleeps": [3], "Bees dance": [0.1], "sleep": [0.1]}
    folder = tmp_path / "cqadupstack"
    for forum, query in (("android", "who dances"), ("english", "  ")):  # a query without a text changes the hits
        queries = [{"_id": "q1", "text": "who dances"}, {"_id": "q2", "text": query}]
        write_beir(folder / forum, queries=queries)
    for name, ranker in (("exact", Vectors(table.__getitem__)), ("flat", Approximate(table.__getitem__))):
        write(task_in(folder, ignore_identical_ids=True), ranker, tmp_path / name)
    summaries = {
        path.parent.relative_to(tmp_path).as_posix(): json.loads(path.read_text())["search"]
        for path in tmp_path.rglob("summary.json")
    }
    flat = {"kind": "flat", "recall": 0.5, "measured_on": 2}
    assert summaries == {
        **{f"exact/cqadupstack{part}": {"kind": "exact"} for part in ("", "/android", "/english")},
        "flat/cqadupstack/android": flat,
        "flat/cqadupstack/english": {**flat, "recall": 1.0, "measured_on": 1},
        "flat/cqadupstack": {**flat, "recall": 0.75, "measured_on": 3},
    }


def test_parts_of_different_models_have_no_mean(tmp_path: Path) -> None:
    for forum in ("android", "english"):
        write_beir(tmp_path / "cqadupstack" / forum)
    task, cache = task_in(tmp_path / "cqadupstack"), tmp_path / "cache"
    rankers: list[Ranker] = [Listed({}), Vectors(letters(3))]
    for part, ranker in zip(task.parts, rankers, strict=True):
        evaluate_part(part, ranker, tmp_path / "out" / part.label, model="model", inputs="", cache=cache)
    with pytest.raises(DataError, match="ranker differs between the parts"):
        join_parts(task, tmp_path / "out" / "cqadupstack")


def test_results_of_several_models_are_not_taken_for_those_of_one(tmp_path: Path) -> None:
    task = task_in(write_beir(tmp_path / "bees"))
    for model in ("a", "b"):
        write(task, Vectors(letters(3)), tmp_path / "out" / model, model)
    assert list(find_results(tmp_path / "out" / "a")) == ["bees"]
    with pytest.raises(DataError, match="several results for bees"):
        find_results(tmp_path / "out")
    with pytest.raises(DataError, match=r"(?s)no results.*nothing"):
        find_results(tmp_path / "nowhere")


def test_damaged_result_is_refused(tmp_path: Path) -> None:
    write(task_in(write_beir(tmp_path / "bees")), Vectors(letters(3)), tmp_path / "out")
    (tmp_path / "out" / "bees" / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_result(tmp_path / "out" / "bees")


def test_mteb_reads_the_scores(tmp_path: Path) -> None:
    task_result = pytest.importorskip("mteb.results.task_result")
    for name in ("scifact", "own"):
        (evaluation,) = write(task_in(write_beir(tmp_path / name)), Listed({"who dances": ["d1"]}), tmp_path / "out")
        read = task_result.TaskResult.from_disk(tmp_path / "out" / name / "mteb.json")
        assert read.task_name == {"scifact": "SciFact"}.get(name, name)
        assert read.get_score() == evaluation.means["ndcg@10"] == 0.5
        assert read.scores["test"][0]["recall_at_100"] == 0.5
