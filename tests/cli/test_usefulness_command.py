"""`tdro usefulness` as a person and a script meet it."""

import json

import pytest
from studies import tiny_study

from tdro.cli.main import main
from tdro.study_file import save_study
from tdro.training import trials
from tdro.training.loop import Stopped


@pytest.fixture
def file(tmp_path):
    """A study file, small enough for twenty trainings."""
    path = tmp_path / "study.yaml"
    short = {"steps": 6, "learning_rate": 1.0, "warmup_steps": 0}
    path.write_text(save_study(tiny_study(tmp_path, "static", reference=short)), encoding="utf-8")
    return str(path)


def test_it_prints_a_table_and_the_same_as_json(file, tmp_path, capsys):
    assert main(["usefulness", file, "--mixtures", "20", "--half", "all", "-q"]) == 0
    output = capsys.readouterr().out
    for part in ("20 mixtures: mean", "points for +1 %", "three", "most promising"):
        assert part in output
    assert main(["usefulness", file, "--mixtures", "20", "--half", "all", "--json"]) == 0
    *events, outcome = map(json.loads, capsys.readouterr().out.splitlines())
    assert all("event" in event for event in events)
    assert outcome["event"] == "outcome"
    assert set(outcome["usefulness"]) == {"one", "two", "three"}
    robust = {"plan": "reweight", "weights": str(tmp_path / "run" / "usefulness" / "all" / "best.json")}
    options = [word for name, value in robust.items() for word in (f"--robust.{name}", value)]
    assert main(["robust", file, *options, "-q"]) == 0
    assert (tmp_path / "run" / "robust" / "model" / "modules.json").exists()


def test_a_dry_run_says_what_it_takes_and_trains_nothing(file, tmp_path, capsys):
    assert main(["usefulness", file, "--dry-run"]) == 0
    assert "60 trainings of 6 steps, each scored on 1 tasks: about" in capsys.readouterr().out
    assert main(["usefulness", file, "--dry-run", "--json", "--evaluation.models"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainings"] == 60 and found["seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_stopped_says_how_to_go_on(file, capsys, monkeypatch):
    def stopped(*_):
        raise Stopped("stopped")

    monkeypatch.setattr(trials, "train", stopped)
    assert main(["usefulness", file]) == 130
    assert f"goes on with: tdro usefulness {file}" in capsys.readouterr().out.replace("\n", " ")


def test_bad_arguments_are_one_clear_error(file, capsys):
    wrong = {"--concentration 0": "above 0", "--mixtures 5": "too few", "--tasks nowhere": "nowhere"}
    for words, said in wrong.items():
        assert main(["usefulness", file, *words.split(), "-q"]) == 2
        assert said in capsys.readouterr().err
    assert main(["usefulness", "--mixtures", "5"]) == 2
    assert "study file comes first" in capsys.readouterr().err
