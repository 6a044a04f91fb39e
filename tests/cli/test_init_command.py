"""`tdro init`: asks only for the base, refuses to overwrite, and says what it did."""

import shutil
from pathlib import Path

import pytest
import yaml
from evaluation_sets import write_lines
from studies import write_study_data
from tiny_models import make_tiny_model

from tdro.cli import init
from tdro.cli.init import command
from tdro.cli.main import main
from tdro.errors import ConfigError, DataError
from tdro.setup.choices import PACKAGED
from tdro.study_file import load_study


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with data, seen from beside it."""
    write_study_data(tmp_path / "my data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def terminal(monkeypatch) -> list[str]:
    """A terminal in which answers are typed; questions that were asked are kept."""
    monkeypatch.setattr(init, "_in_a_terminal", lambda: True)
    return []


def test_the_default_base_is_taken_and_said_where_nobody_can_be_asked(folder, capsys):
    assert command(["my data"]) == 0
    study = load_study(folder / "study.yaml")
    assert study.model.base == PACKAGED and study.name == "my-data" and study.data.root == "my data"
    said = capsys.readouterr().out
    assert f"base encoder: {PACKAGED} (the default" in said and "next: tdro check study.yaml" in said


def test_a_base_is_asked_for_until_it_is_one(folder, terminal, monkeypatch, capsys):
    model = make_tiny_model("static", folder / "model")
    answers = iter(["package:nothing/here", str(model)])

    def asked(question: str) -> str:
        terminal.append(question)
        return next(answers)

    monkeypatch.setattr("builtins.input", asked)
    assert command(["my data", "--output", "new/mine.yaml", "--name", "bees"]) == 0
    study = load_study(folder / "new" / "mine.yaml")
    assert (study.model.base, study.name) == (str(model), "bees")
    assert len(terminal) == 2 and PACKAGED in terminal[0] and "not installed" in capsys.readouterr().out


def test_yes_and_a_given_base_ask_nothing(folder, terminal, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("it asked"))
    assert command(["my data", "--yes"]) == 0
    assert command(["my data", "--base", PACKAGED, "--output", "two.yaml"]) == 0


def test_what_cannot_be_used_is_said_and_written_down(folder, capsys):
    write_lines(folder / "my data" / "documents.jsonl", [{"_id": "d", "text": "x"}])
    assert command(["my data"]) == 0
    assert "left out: documents.jsonl: layout not recognised, saw _id, text\n" in capsys.readouterr().out
    assert "# left out: documents.jsonl: layout not recognised" in (folder / "study.yaml").read_text()


def test_an_evaluation_set_that_is_broken_is_left_out(folder, capsys):
    (folder / "my data" / "eval" / "words" / "qrels" / "test.tsv").write_text("q1\tnothing\n")
    assert command(["my data"]) == 0
    assert "left out: eval/words: judgement needs three or four columns" in capsys.readouterr().out
    assert not load_study(folder / "study.yaml").evaluation.tasks


def test_without_evaluation_set_init_says_that_nothing_is_judged(folder, capsys):
    assert command(["my data", "--output", "judged.yaml"]) == 0
    assert "note:" not in capsys.readouterr().out
    shutil.rmtree(folder / "my data" / "eval")
    assert command(["my data"]) == 0
    said = capsys.readouterr().out
    assert "note: no evaluation set: weights will be learned but not judged; add evaluation.tasks" in said


def test_one_dataset_has_nothing_to_weigh(folder, capsys):
    write_lines(folder / "alone" / "bees.jsonl", [{"query": f"bee {i}", "pos": [f"place {i}"]} for i in range(30)])
    assert command(["alone", "--output", "my own.yaml"]) == 0
    text = (folder / "my own.yaml").read_text()
    assert "weights" not in yaml.safe_load(text) and "# One dataset has nothing to weigh" in text
    assert "# Next: tdro check 'my own.yaml'; tdro run 'my own.yaml' --dry-run" in text and "FILE" not in text
    assert "one dataset has nothing to weigh" in capsys.readouterr().out
    assert main(["run", "my own.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "nothing to weigh" in said and "weights:" not in said and "epochs weights" not in said


def test_what_is_no_folder_is_said_before_anything_else(folder):
    (folder / "study.yaml").write_text("mine")
    with pytest.raises(DataError, match="no such folder"):
        command(["missing"])
    file = next((folder / "my data").rglob("*.jsonl"))
    with pytest.raises(DataError, match="this is a file") as refused:
        command([str(file)])
    assert str(refused.value).endswith(f"give the folder that it is in: {file.parent}")


def test_a_study_file_is_never_overwritten(folder):
    (folder / "study.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        command(["my data", "--yes"])
    assert (folder / "study.yaml").read_text() == "mine"


def test_help_has_two_examples_first(capsys):
    assert command([]) == 0
    said = capsys.readouterr().out
    assert said.index("examples:") < said.index("--output FILE   ") and said.count("\n  tdro init") == 2
