"""`tdro check`: what it prints, what it writes, and how it ends."""

import json
from pathlib import Path

import pytest
import yaml
from studies import tiny_study

from tdro.cli.main import main
from tdro.study_file import save_study


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A study of three small datasets and a tiny model."""
    path = tmp_path / "study.yaml"
    path.write_text(save_study(tiny_study(tmp_path)), encoding="utf-8")
    return path


def result_of(study_file: Path) -> dict:
    """Read check.json from the run folder."""
    return json.loads((study_file.parent / "run" / "data" / "check.json").read_text())


def test_a_study_without_errors_ends_with_0(study_file, capsys):
    assert main(["check", str(study_file)]) == 0
    out = capsys.readouterr().out
    assert "124 rows: 0 errors" in out and "none, and none is known" in out
    result = result_of(study_file)
    assert result["unit"] == "tokens"
    assert [report["rows"] for report in result["datasets"]] == [24, 40, 60]
    assert all(report["lengths"]["query"]["cut"] is not None for report in result["datasets"])


def test_errors_end_with_1_and_the_repaired_copy_with_0(study_file, capsys, tmp_path):
    broken = tmp_path / "root" / "train" / "two.jsonl"
    broken.write_text(broken.read_text() + "{broken\n")
    assert main(["check", str(study_file), "--fix-copy", str(tmp_path / "clean")]) == 1
    out = capsys.readouterr().out
    assert "error bad-row" in out and "  two: 1\n" in out and f"{broken}:41  not JSON" in out
    assert "two: 40 rows in" in out

    content = yaml.safe_load(study_file.read_text())
    content["data"]["datasets"] = yaml.safe_load((tmp_path / "clean" / "datasets.yaml").read_text())["data"]["datasets"]
    study_file.write_text(yaml.safe_dump(content))
    assert main(["check", str(study_file)]) == 0


def test_out_card_and_changed_options(study_file, tmp_path, capsys):
    out, card = tmp_path / "somewhere" / "c.json", tmp_path / "card.md"
    arguments = ["--out", str(out), "--card", str(card), "--data.instructions", "auto", "--data.query-max-length", "4"]
    assert main(["check", str(study_file), *arguments]) == 0
    assert json.loads(out.read_text())["study"] == "tiny" and not (tmp_path / "run").exists()
    assert card.read_text().startswith("# Data card: tiny")
    assert "truncation" in capsys.readouterr().out


def test_a_copied_study_of_the_same_name_does_not_replace_what_a_run_was_checked_for(study_file, tmp_path, capsys):
    study = tiny_study(tmp_path)
    ran = study.run_folder / "resolved.yaml"
    ran.parent.mkdir()
    ran.write_text(save_study(study, {"versions": {}}))
    assert main(["check", str(study_file)]) == 0
    kept = result_of(study_file)
    assert "everything is in" in capsys.readouterr().out
    copy, content = tmp_path / "copy.yaml", yaml.safe_load(study_file.read_text())
    datasets = content["data"]["datasets"]
    datasets["four"] = datasets.pop("one")
    copy.write_text(yaml.safe_dump(content))
    assert main(["check", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "the result is not kept" in out and "(only there: one; only here: four)" in out
    assert result_of(study_file) == kept
    place = str(study.run_folder / "data" / "check.json")
    assert main(["check", str(copy), "--out", place]) == 0
    assert {report["name"] for report in result_of(study_file)["datasets"]} == {"two", "three", "four"}
    content["data"]["datasets"]["two"]["path"] = "train/three.jsonl"
    copy.write_text(yaml.safe_dump(content))
    assert main(["check", str(copy)]) == 0
    assert "other files: two" in capsys.readouterr().out


def test_where_nothing_ran_a_check_of_other_data_is_replaced_and_that_is_said(study_file, capsys):
    assert main(["check", str(study_file)]) == 0
    assert main(["check", str(study_file)]) == 0
    assert "takes the place" not in capsys.readouterr().out
    content = yaml.safe_load(study_file.read_text())
    del content["data"]["datasets"]["one"]
    study_file.write_text(yaml.safe_dump(content))
    assert main(["check", str(study_file)]) == 0
    assert "takes the place of a check of other data (only there: one)" in capsys.readouterr().out
    assert len(result_of(study_file)["datasets"]) == 2


def test_one_dataset_has_no_epochs_of_the_weights(study_file, capsys):
    assert main(["check", str(study_file)]) == 0
    assert "epochs weights" in capsys.readouterr().out.replace("\n", " ")
    content = yaml.safe_load(study_file.read_text())
    content["data"]["datasets"] = {"one": content["data"]["datasets"]["one"]}
    study_file.write_text(yaml.safe_dump(content))
    assert main(["check", str(study_file)]) == 0
    out = capsys.readouterr().out
    assert "epochs reference" in out and "weights" not in out


def test_without_the_base_lengths_are_words_and_it_says_so(study_file, capsys):
    assert main(["check", str(study_file), "--model.base", "./no-such-model"]) == 0
    assert "lengths are counted in words" in capsys.readouterr().out
    assert result_of(study_file)["unit"] == "words"


def test_the_table_of_instructions(capsys):
    assert main(["check", "--instructions"]) == 0
    out = capsys.readouterr().out
    assert "msmarco" in out and "duplicate questions" in out


def test_help_and_refusals(study_file, capsys):
    assert (main(["check"]), main(["check", "--help"])) == (2, 0)
    assert "--fix-copy" in capsys.readouterr().out
    assert main(["check", "--card", "x"]) == 2
    assert main(["check", str(study_file.with_name("none.yaml"))]) == 2
    study_file.write_text("name: [", encoding="utf-8")
    assert main(["check", str(study_file)]) == 2
