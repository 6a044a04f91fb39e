"""`tdro track`: sends a run to TensorBoard, once, and follows it to its end."""

import threading
import time
from pathlib import Path

import pytest
from studies import tiny_study

from tdro.cli.track import command
from tdro.errors import ConfigError
from tdro.study_file import save_study
from tdro.training.journal import Journal


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with three steps."""
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    journal = Journal(folder)
    (folder / "resolved.yaml").write_text(save_study(tiny_study(tmp_path)))
    for step in range(3):
        journal.write("step", "reference", step=step, steps=4, loss=1.0, losses={"one": 1.0})
    return folder


def test_a_run_is_sent_once(run, capsys):
    for count in (3, 0):
        assert command([str(run), "--to", "tensorboard"]) == 0
        assert capsys.readouterr().out == f"{count} points of {run} -> tensorboard\n"
    assert len(list((run / "tracking" / "tensorboard" / "reference").iterdir())) == 1


def test_a_run_is_followed_until_it_ends(run, capsys):
    def go_on() -> None:
        time.sleep(0.3)
        journal = Journal(run)
        journal.write("step", "reference", step=3, steps=4, loss=0.5, losses={"one": 0.5})
        journal.write("run_finished", "evaluate")

    thread = threading.Thread(target=go_on)
    thread.start()
    assert command([str(run), "--to", "tensorboard", "--follow", "--every", "0.05"]) == 0
    thread.join()
    assert capsys.readouterr().out == f"4 points of {run} -> tensorboard\n"


def test_an_interruption_keeps_what_was_sent(run, capsys, monkeypatch):
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    assert command([str(run), "--to", "tensorboard", "--follow"]) == 130
    monkeypatch.undo()
    assert command([str(run), "--to", "tensorboard"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 points")


def test_mistakes_are_explained(run, tmp_path):
    for arguments, expected in (
        ([str(run), "--to", "tensorboard", "--offline"], "only wandb"),
        ([str(run), "--to", "tensorboard", "--every", "0"], "above 0"),
        ([str(run), "--to", "tensorbord"], "no such choice"),
        ([str(tmp_path), "--to", "tensorboard"], "no run in this folder"),
    ):
        with pytest.raises(ConfigError, match=expected):
            command(arguments)


def test_help_has_two_examples_first(capsys):
    assert command([]) == 0
    said = capsys.readouterr().out
    assert said.index("examples:") < said.index("--follow   ") and said.count("\n  tdro track") == 2
