"""`tdro import-args`: what it writes, prints and refuses."""

import json

import pytest

from tdro.cli.main import main
from tdro.study_file import load_study


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A script and its domain config."""
    (tmp_path / "d.json").write_text(json.dumps({"domain_ids": {"a": 0, "b": 1}, "size": {"a": 50, "b": 70}}))
    (tmp_path / "run.sh").write_text(
        "torchrun --nproc_per_node 2 -m tdro.finetune.fit --model_name_or_path m --domain_config_path d.json \\\n"
        "  --max_steps 20 --output_dir out/$TRIAL --config_name c --pad_to_multiple_of 8\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_printed_text_is_the_study_file(folder, capsys):
    assert main(["import-args", "run.sh", "--set", "TRIAL=first"]) == 0
    printed = capsys.readouterr().out
    (folder / "printed.yaml").write_text(printed)
    assert main(["import-args", "run.sh", "--set", "TRIAL=first", "--output", "study.yaml"]) == 0
    assert load_study(folder / "printed.yaml") == load_study(folder / "study.yaml")
    assert load_study(folder / "study.yaml").name == "first"


def test_what_is_written_can_be_run_dry_and_what_is_lost_is_printed(folder, capsys):
    assert main(["import-args", "run.sh", "--output", "study.yaml", "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "not carried over: --config_name c" in printed and "2 datasets -> study.yaml" in printed
    text = (folder / "study.yaml").read_text()
    assert "# - --pad_to_multiple_of 8: dead" in text and "name: mine" in text
    assert main(["run", "study.yaml", "--dry-run"]) == 0
    assert "50" in capsys.readouterr().out


def test_a_study_file_is_not_overwritten_without_force(folder, capsys):
    (folder / "study.yaml").write_text("mine")
    assert main(["import-args", "run.sh", "--output", "study.yaml"]) == 2
    assert "--force" in capsys.readouterr().err and (folder / "study.yaml").read_text() == "mine"
    assert main(["import-args", "run.sh", "--output", "study.yaml", "--force"]) == 0
    assert load_study(folder / "study.yaml").reference.batch_size == 16


def test_options_reach_the_import(folder):
    more = ["--processes", "4", "--data-root", "elsewhere", "--output", "s.yaml"]
    assert main(["import-args", "run.sh", *more]) == 0
    study = load_study(folder / "s.yaml")
    assert (study.reference.batch_size, study.data.root) == (32, "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.sh"], "cannot be read"),
        (["run.sh", "--processes", "0"], "at least 1"),
        (["run.sh", "--set", "TRIAL"], "NAME=VALUE"),
        (["odd.sh"], "did you mean --max_steps"),
    ],
)
def test_mistakes_are_one_block_and_exit_2(folder, capsys, arguments, message):
    (folder / "odd.sh").write_text("python train.py --max_step 3\n")
    assert main(["import-args", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_arguments_can_be_left_out(folder):
    (folder / "odd.sh").write_text((folder / "run.sh").read_text().replace("--max_steps", "--frobnicate 1 --max_steps"))
    assert main(["import-args", "odd.sh"]) == 2
    assert main(["import-args", "odd.sh", "--ignore-unknown", "--output", "odd.yaml"]) == 0


def test_help_comes_without_arguments(capsys):
    assert (main(["import-args"]), main(["import-args", "--help"])) == (2, 0)
    assert "usage: tdro import-args" in capsys.readouterr().out
