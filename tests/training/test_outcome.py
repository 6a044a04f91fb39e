"""What a study's evaluation compares: its models, baselines, tasks with parts; and what it does not do again."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import write_beir, write_lines
from studies import sentence, tiny_study
from tiny_models import make_tiny_model

from tdro.config import Study
from tdro.errors import ConfigError, DataError
from tdro.evaluation.results import find_results, read_result
from tdro.training.pipeline import evaluate_only, run_study
from tdro.training.run import Run


def forum(folder: Path, shift: int) -> None:
    """Write a forum whose queries ask for other documents than those of other forums."""
    documents = [{"_id": f"d{i}", "text": sentence(i, i + shift, i * 3)} for i in range(30)]
    queries = [{"_id": f"q{i}", "text": sentence(i, i + shift)} for i in range(4)]
    write_beir(folder, documents, queries, "".join(f"q{i}\td{i}\t1\n" for i in range(4)))


def study_with_parts(folder: Path, **evaluation: object) -> Study:
    """A study on a task of one part, one of two parts, and MKQA."""
    study = tiny_study(folder, "static")
    for number, name in enumerate(("android", "english")):
        forum(folder / "root" / "eval" / "cqadupstack" / name, number + 2)
    answers = {"en": [{"type": "entity", "text": sentence(2), "aliases": []}]}
    questions = [{"example_id": 1, "queries": {"de": sentence(2), "fr": sentence(5)}, "answers": answers}]
    write_lines(folder / "root" / "eval" / "mkqa.jsonl", questions)
    tasks = {
        "words": "eval/words",
        "forums": "eval/cqadupstack",
        "mkqa": {"path": "eval/mkqa.jsonl", "corpus": "eval/words"},
    }
    sections = study.model_dump(mode="json", exclude_unset=True)
    return Study.model_validate({**sections, "evaluation": {"tasks": tasks, **evaluation}})


def test_models_and_baselines_are_evaluated_on_tasks_with_parts(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    study_with_parts(tmp_path)
    make_tiny_model("static", tmp_path / "root" / "other")
    study = study_with_parts(tmp_path, models=["reference", "robust"], baselines=["bm25", "{root}/other"])
    run = Run(study)
    scores = run_study(run)
    assert scores == json.loads((run.folder / "evaluation" / "summary.json").read_text())
    assert list(scores) == ["words", "forums", "mkqa"]
    assert {tuple(of_models) for of_models in scores.values()} == {("reference", "robust", "bm25", "other")}
    for model in scores["words"]:
        found = {name: read_result(path) for name, path in find_results(run.folder / "evaluation" / model).items()}
        assert list(found) == ["forums/android", "forums/english", "mkqa/de", "mkqa/fr", "words"]
        assert {result.model for result in found.values()} == {model}
        parts = [found[f"forums/{name}"].scores["ndcg@10"].mean() for name in ("android", "english")]
        assert scores["forums"][model]["ndcg@10"] == pytest.approx(np.mean(parts))
        assert list(scores["mkqa"][model]) == [f"acc@{k}" for k in (1, 3, 5, 10, 20, 100)]


def test_only_what_has_changed_is_evaluated_again(tmp_path: Path) -> None:
    study = study_with_parts(tmp_path, models=["base"])
    evaluate_only(Run(study))
    events: list[dict[str, object]] = []
    evaluate_only(Run(study, events.append))
    assert not [event for event in events if event["event"] == "stage_finished"]
    with (tmp_path / "root/eval/cqadupstack/english/qrels/test.tsv").open("a") as file:
        file.write("q1\tgone\t1\n")
    evaluate_only(Run(study, events.append))
    (done,) = [event for event in events if event["event"] == "stage_finished"]
    assert (done["stage"], done["main"]) == ("evaluation/base/forums/english", "ndcg@10")
    assert done["oddities"] == {"unknown_documents": 1}


def test_instruction_of_a_task_goes_to_the_models_of_the_study_and_not_to_baselines(tmp_path: Path) -> None:
    def rankings(instruction: str) -> dict[str, bytes]:
        study = study_with_parts(tmp_path, models=["base"], baselines=["{root}/model"])
        task = {"words": {"path": "eval/words", "instruction": instruction}}
        evaluation = study.evaluation.model_validate({**study.evaluation.model_dump(), "tasks": task})
        run = Run(study.model_copy(update={"evaluation": evaluation}))
        evaluate_only(run)
        runs = run.folder.glob("evaluation/*/words/run.trec.gz")
        return {"base" if path.parts[-3] == "base" else "baseline": path.read_bytes() for path in runs}

    without, given = rankings(""), rankings(" ".join(["moon"] * 3))
    assert without["baseline"] == given["baseline"]
    assert without["base"] != given["base"]


def test_missing_baseline_or_task_stops_a_study_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        run_study(Run(study_with_parts(tmp_path, baselines=["nowhere/model"])))
    with pytest.raises(ConfigError, match="one name"):
        run_study(Run(study_with_parts(tmp_path, baselines=["bm25", "bm25"])))
    study = study_with_parts(tmp_path)
    (tmp_path / "root/eval/cqadupstack/english/corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"(?s)without corpus.*english"):
        run_study(Run(study))
    assert not (study.run_folder / "reference").exists()
