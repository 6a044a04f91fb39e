"""The journal survives a kill in the middle of a line."""

import json

from tdro.training.journal import Journal


def test_events_come_back_in_order_and_progress_is_not_kept(tmp_path):
    journal = Journal(tmp_path)
    for step in range(3):
        journal.write("step", "weights", step=step, loss=step / 3)
    journal.progress("weights", 1, 3)
    assert [(e["step"], e["loss"]) for e in journal.read("step", "weights")] == [(0, 0.0), (1, 1 / 3), (2, 2 / 3)]


def test_half_a_line_that_a_kill_left_is_gone_when_the_journal_is_opened_again(tmp_path):
    Journal(tmp_path).write("step", "weights", step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "stage": "wei')
    Journal(tmp_path).write("step", "weights", step=1)
    assert [json.loads(line)["step"] for line in (tmp_path / "events.jsonl").read_text().splitlines()] == [0, 1]


def test_rewind_forgets_the_steps_that_are_done_again_and_nothing_else(tmp_path):
    journal = Journal(tmp_path)
    for stage in ("reference", "weights"):
        for step in range(4):
            journal.write("step", stage, step=step)
    journal.rewind("weights", 2)
    assert [e["step"] for e in journal.read("step", "weights")] == [0, 1]
    assert [e["step"] for e in journal.read("step", "reference")] == [0, 1, 2, 3]


def test_listener_hears_everything_and_status_is_written(tmp_path):
    heard = []
    journal = Journal(tmp_path, heard.append)
    journal.write("stage_started", "reference", from_step=0, steps=5)
    journal.progress("reference", 1, 5)
    assert [event["event"] for event in heard] == ["stage_started", "progress"]
    assert json.loads((tmp_path / "status.json").read_text())["stage"] == "reference"
