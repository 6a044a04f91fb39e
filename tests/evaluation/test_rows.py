"""A dev set of training rows as a task: which documents and judgements it has, and measures worked out by hand."""

import json
from math import log2
from pathlib import Path

import pytest
from evaluation_sets import Listed, write_lines
from studies import tiny_study, write_study_data
from tiny_models import make_tiny_model

from tdro.config import TaskConfig
from tdro.errors import ConfigError, DataError
from tdro.evaluation.benchmarks import Benchmark
from tdro.evaluation.evaluate import evaluate
from tdro.evaluation.tasks import find_task, find_tasks
from tdro.training.pipeline import run_study
from tdro.training.run import Run


def passages(*ids: str) -> list[dict[str, str]]:
    """Passages whose texts follow from their ids."""
    return [{"docid": name, "title": "", "text": f"text of {name}"} for name in ids]


ROWS = [
    {"query_id": "q1", "query": "one", "positive_passages": passages("a", "b"), "negative_passages": passages("c")},
    {"query_id": "q2", "query": "two", "positive_passages": passages("c"), "negative_passages": passages("a", "d")},
    {"query_id": "q1", "query": "one", "positive_passages": passages("e"), "negative_passages": []},
]


def read(folder: Path, rows: list[dict], **options: object) -> Benchmark:
    """Write rows and read them as a task."""
    write_lines(folder / "dev.jsonl", rows)
    task = find_task("dev", TaskConfig(path=str(folder / "dev.jsonl"), **options))
    assert (len(task.parts), task.main) == (1, "ndcg@10")
    return task.parts[0].read(folder / "cache", None)


def scores(folder: Path, found: dict[str, list[str]]) -> dict[str, list[float]]:
    """Score rankings of the documents of ROWS."""
    found_scores = evaluate(Listed(found), read(folder, ROWS), 100, scratch=folder).scores
    return {measure: score_Q.tolist() for measure, score_Q in found_scores.items()}


def test_documents_are_the_distinct_passages_and_positives_are_relevant(tmp_path):
    benchmark = read(tmp_path, ROWS)
    assert benchmark.documents.ids_at(benchmark.documents.find(["a", "b", "c", "d", "e"])) == ["a", "b", "c", "d", "e"]
    assert len(benchmark.documents) == 5 and not benchmark.oddities
    assert benchmark.qrels == {"q1": {"a": 1, "b": 1, "e": 1}, "q2": {"c": 1}}
    assert benchmark.query_texts == ("one", "two")


def test_a_perfect_ranking_scores_1_in_every_measure(tmp_path):
    # The released code gave it a recall of 0 and failed on the other measures.
    perfect = scores(tmp_path, {"one": ["b", "e", "a", "c"], "two": ["c", "a"]})
    assert perfect == {name: [pytest.approx(1.0)] * 2 for name in ("ndcg@10", "recall@100", "mrr@10")}


def test_measures_of_an_imperfect_ranking_are_those_worked_out_by_hand(tmp_path):
    found = scores(tmp_path, {"one": ["c", "b", "d", "a"], "two": ["d", "a"]})
    ideal = 1 + 1 / log2(3) + 1 / log2(4)
    assert found["ndcg@10"] == [pytest.approx((1 / log2(3) + 1 / log2(5)) / ideal), 0]
    assert found["recall@100"] == [pytest.approx(2 / 3), 0]
    assert found["mrr@10"] == [0.5, 0]


def test_rows_without_ids_are_one_query_if_they_ask_the_same_and_one_document_if_they_say_the_same(tmp_path):
    rows = [
        {"query": "one", "pos": ["x"], "neg": ["y"]},
        {"query": "one", "pos": ["z"], "neg": ["x"]},
        {"query": "two", "pos": [{"docid": "own", "text": "y"}], "neg": []},
    ]
    benchmark = read(tmp_path, rows)
    assert benchmark.query_ids == ("dev-1", "dev-3") and len(benchmark.documents) == 3
    assert [len(relevant) for relevant in benchmark.qrels.values()] == [2, 1]
    assert sorted(benchmark.documents[:]) == ["x", "y", "z"]


def test_with_a_corpus_that_is_searched_and_rows_may_have_ids_only(tmp_path):
    write_lines(tmp_path / "corpus.jsonl", passages(*"abcdef"))
    rows = [{"query_id": "q1", "query": "one", "positive_passages": ["a", "b"], "negative_passages": ["c"]}, ROWS[1]]
    benchmark = read(tmp_path, rows, corpus=str(tmp_path / "corpus.jsonl"))
    assert len(benchmark.documents) == 6 and benchmark.qrels == {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}
    rows[0]["positive_passages"] = ["nowhere"]
    with pytest.raises(DataError, match=r"(?s)no such id.*dev\.jsonl:1:positive_passages\[0\]"):
        read(tmp_path, rows, corpus=str(tmp_path / "corpus.jsonl"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], {**ROWS[1], "query_id": "q1"}], r"(?s)query_id stands for two queries.*row 2: query_id"),
        (
            [ROWS[0], {**ROWS[1], "positive_passages": [{"docid": "a", "text": "x"}]}],
            r"(?s)docid stands for two.*row 2",
        ),
        ([{**ROWS[0], "query_id": "q 1"}], r"(?s)white space.*row 1: query_id"),
        ([{**ROWS[0], "positive_passages": [{"docid": "a b", "text": "x"}]}], r"(?s)white space.*row 1: docid"),
        ([{**ROWS[0], "positive_passages": []}], r"dev\.jsonl:1:positive_passages"),
    ],
)
def test_what_nobody_could_judge_is_refused(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, rows)


def test_options_that_are_of_no_use_are_refused_and_a_folder_wants_its_kind(tmp_path):
    write_lines(tmp_path / "rows" / "part-1.jsonl", ROWS[:2])
    write_lines(tmp_path / "rows" / "part-2.jsonl", ROWS[2:])
    with pytest.raises(DataError, match="kind: rows"):
        find_task("dev", TaskConfig(path=str(tmp_path / "rows")))
    found = find_task("dev", TaskConfig(path=str(tmp_path / "rows"), kind="rows"))
    assert len(found.parts[0].read(tmp_path / "cache", None).documents) == 5
    for options in ({"split": "dev"}, {"languages": ("sw",)}):
        with pytest.raises(ConfigError, match="does not go with rows"):
            find_task("dev", TaskConfig(path=str(tmp_path / "rows"), kind="rows", **options))
    write_lines(tmp_path / "dev.jsonl", ROWS)
    assert [task.name for task in find_tasks(tmp_path / "dev.jsonl", TaskConfig(path=""))] == ["dev"]


def test_the_content_of_a_task_is_that_of_its_files(tmp_path):
    write_lines(tmp_path / "dev.jsonl", ROWS)
    (part,) = find_task("dev", TaskConfig(path=str(tmp_path / "dev.jsonl"))).parts
    before = part.content(tmp_path / "cache")
    assert part.content(tmp_path / "cache") == before
    write_lines(tmp_path / "dev.jsonl", ROWS[:2])
    assert part.content(tmp_path / "cache") != before


def test_one_file_and_a_dev_set_make_a_study_of_one_training(tmp_path):
    root = tmp_path / "root"
    write_study_data(root)
    make_tiny_model("static", root / "model")
    write_lines(root / "dev.jsonl", [json.loads(line) for line in (root / "train" / "two.jsonl").open()][:9])
    study = tiny_study(tmp_path, reference={"steps": 4}, evaluation={"tasks": {"dev": "dev.jsonl"}, "watch_every": 2})
    data = study.data.model_copy(update={"datasets": {"one": study.data.datasets["one"]}})
    watch = {"again": study.evaluation.tasks["dev"]}
    study = study.model_copy(update={"data": data, "evaluation": study.evaluation.model_copy(update={"watch": watch})})
    run = Run(study)
    scores = run_study(run)
    assert scores and set(scores["dev"]) == {"base", "robust"}
    assert not (run.folder / "weights").exists() and not (run.folder / "reference").exists()
    assert any("one dataset" in event["text"] for event in run.journal.read("note", "evaluate"))
    watched = list(run.journal.read("watched", "robust"))
    assert [event["step"] for event in watched] == [1, 3]
    assert watched[-1]["scores"]["again"] == pytest.approx(scores["dev"]["robust"])
