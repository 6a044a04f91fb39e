"""Studies of other forms on the command line: one that extends another, rows with ids only, one dataset."""

import json
from pathlib import Path

import pytest
from studies import tiny_study

from tdro.cli.main import main
from tdro.study_file import load_study, save_study


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the data of a tiny study, to work in."""
    tiny_study(tmp_path, "static")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_study(folder: Path, name: str = "study.yaml", **options: object) -> Path:
    """Write a study of one dataset, `one`."""
    study = tiny_study(folder, "static", reference={"steps": 2}).model_dump(mode="json")
    study["data"]["datasets"] = {"one": {"path": "train/one.jsonl", **options}}
    study["evaluation"]["tasks"] = {"dev": {"path": "train/two.jsonl"}}
    content = type(tiny_study(folder, "static")).model_validate(study)
    path = folder / name
    path.write_text(save_study(content), encoding="utf-8")
    return path


def split_texts(folder: Path) -> dict[str, str]:
    """Take the texts out of a dataset's rows."""
    file = folder / "root" / "train" / "one.jsonl"
    rows = [json.loads(line) for line in file.open()]
    sides = ("positive_passages", "negative_passages")
    passages = {p["docid"]: p for row in rows for side in sides for p in row[side]}
    queries = {row["query_id"]: row.pop("query") for row in rows}
    for row in rows:
        row |= {side: [passage["docid"] for passage in row[side]] for side in sides}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "root" / "queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in queries.items()))
    (folder / "root" / "passages.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages.values()))
    return {"queries": "queries.tsv", "passages": "passages.jsonl"}


def test_a_run_keeps_a_study_that_extends_another_so_that_it_can_be_run_again(folder, capsys):
    write_study(folder, "base.yaml")
    (folder / "rows").mkdir()
    leaf = folder / "rows" / "leaf.yaml"
    leaf.write_text("# a row\nextends: ../base.yaml\nname: leaf\noutput: runs/leaf\n")
    assert main(["robust", str(leaf), "--reference.steps", "3"]) == 0
    assert "learn the weights" not in capsys.readouterr().out
    assert load_study(folder / "runs" / "leaf" / "study.yaml") == load_study(leaf)
    assert load_study(folder / "runs" / "leaf" / "resolved.yaml").reference.steps == 3


def test_check_and_repair_read_rows_with_ids_only(folder, capsys):
    texts = split_texts(folder)
    study = write_study(folder, **texts)
    main(["check", str(study), "--out", "check.json", "--fix-copy", "fixed"])
    found = json.loads((folder / "check.json").read_text())
    assert "bad-row" not in json.dumps(found) and "unreadable" not in json.dumps(found)
    (copy,) = (folder / "fixed").glob("one*.jsonl")
    assert all(isinstance(json.loads(line)["query"], str) for line in copy.open())
    without = write_study(folder)
    assert main(["check", str(without), "--out", "check.json"]) == 1


def test_a_dry_run_of_one_dataset_says_that_nothing_is_weighed(folder, capsys):
    assert main(["run", str(write_study(folder)), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "one dataset has nothing to weigh" in said and "weights:" not in said


def test_evaluate_takes_a_dev_set(folder, capsys):
    arguments = ["--tasks", "root/train/two.jsonl", "--out", "results"]
    assert main(["evaluate", "root/model", *arguments, "--kind", "rows"]) == 0
    assert (folder / "results" / "root__model" / "two" / "summary.json").is_file()
