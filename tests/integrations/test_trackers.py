"""Trackers: what is sent of a journal, once, also after a stop, a second training and while it is being written."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tdro.errors import DataError, EnvironmentProblem
from tdro.integrations.journal_points import JournalReader, Point
from tdro.integrations.trackers import Sent, open_tracker, send
from tdro.training.journal import Journal


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def write(self, point: Point) -> None:
        """Keep it."""
        self.points.append(point)

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def train(journal: Journal, stage: str, steps: range, scale: float = 1.0) -> None:
    """Write the events of some steps of a stage, as the loop does."""
    journal.rewind(stage, steps.start)
    journal.write("stage_started", stage, from_step=steps.start, steps=steps.stop)
    for step in steps:
        losses = {"nq": scale / (step + 1), "wiki": None}
        journal.write("step", stage, step=step, steps=steps.stop, loss=losses["nq"], losses=losses, weights=[0.3, 0.7])


def evaluated(journal: Journal, model: str, task: str, score: float) -> None:
    """Write the end of an evaluation."""
    journal.write("stage_finished", f"evaluation/{model}/{task}", seconds=1, scores={"ndcg@10": score}, main="ndcg@10")


def sending(folder: Path, reader: JournalReader | None = None) -> list[Point]:
    """Send what is new, as a process that was just started does, and return it."""
    kept = Kept()
    count = send(reader or JournalReader(folder), kept, Sent(folder / "tracking" / "kept.json"))
    assert count == len(kept.points)
    return kept.points


def test_points_have_run_step_and_values_of_their_events(tmp_path):
    journal = Journal(tmp_path)
    journal.write("mined", "negatives", dataset="nq", rows=9, mined=8, none=1, inverted=None)
    train(journal, "weights", range(2))
    journal.write("watched", "weights", step=1, steps=2, mean=0.5, scores={"t": {"ndcg@10": 0.5}}, best=True, seconds=1)
    evaluated(journal, "robust", "miracl/sw", 0.25)
    journal.write("note", "weights", text="nothing to draw")
    points = sending(tmp_path)
    assert [(p.run, p.step) for p in points] == [
        ("negatives", 0), ("weights", 1), ("weights", 2), ("weights", 2), ("evaluation/robust", 0),
    ]  # fmt: skip
    assert points[0].values == {"nq/rows": 9, "nq/mined": 8, "nq/none": 1}
    assert points[2].values == {"loss": 0.5, "loss/nq": 0.5, "weight/nq": 0.3, "weight/wiki": 0.7}
    assert points[3].values == {"watched": 0.5, "watched/t/ndcg@10": 0.5}
    assert points[4].values == {"miracl/sw/ndcg@10": 0.25}


def test_a_second_call_sends_only_what_is_new(tmp_path):
    journal = Journal(tmp_path)
    train(journal, "reference", range(3))
    assert len(sending(tmp_path)) == 3 and sending(tmp_path) == []
    train(journal, "robust", range(2))
    assert [(p.run, p.step) for p in sending(tmp_path)] == [("robust", 1), ("robust", 2)]


def test_steps_that_are_done_again_behind_a_checkpoint_are_not_sent_again(tmp_path):
    journal = Journal(tmp_path)
    train(journal, "reference", range(5))
    assert len(sending(tmp_path)) == 5
    train(journal, "reference", range(2, 8))  # was stopped, and goes on from step 2: 2, 3 and 4 come again
    assert [p.step for p in sending(tmp_path)] == [6, 7, 8]
    train(journal, "reference", range(8))  # from the start, with the same settings
    assert sending(tmp_path) == []


def test_a_stage_that_is_trained_anew_is_another_run(tmp_path):
    journal = Journal(tmp_path)
    train(journal, "reference", range(3))
    sending(tmp_path)
    train(journal, "reference", range(2), scale=2.0)
    assert [(p.run, p.step) for p in sending(tmp_path)] == [("reference-2", 1), ("reference-2", 2)]
    train(journal, "reference", range(2, 4), scale=2.0)
    assert [(p.run, p.step) for p in sending(tmp_path)] == [("reference-2", 3), ("reference-2", 4)]


def test_what_was_sent_before_the_tracker_fails_is_not_sent_again(tmp_path):
    class Failing(Kept):
        """Takes two points."""

        def write(self, point: Point) -> None:
            """Fail at the third."""
            if len(self.points) == 2:
                raise KeyboardInterrupt
            super().write(point)

    train(Journal(tmp_path), "reference", range(4))
    with pytest.raises(KeyboardInterrupt):
        send(JournalReader(tmp_path), Failing(), Sent(tmp_path / "tracking" / "kept.json"))
    assert [p.step for p in sending(tmp_path)] == [3, 4]


def test_evaluations_that_are_done_again_come_behind_the_first(tmp_path):
    journal = Journal(tmp_path)
    for task, score in (("a", 0.1), ("b", 0.2), ("a", 0.3), ("c", 0.4)):
        evaluated(journal, "robust", task, score)
    assert [(p.step, p.values) for p in sending(tmp_path)] == [
        (0, {"a/ndcg@10": 0.1}), (0, {"b/ndcg@10": 0.2}), (1, {"a/ndcg@10": 0.3}), (1, {"c/ndcg@10": 0.4}),
    ]  # fmt: skip


def test_a_journal_is_followed_while_it_is_written_and_cut_back(tmp_path):
    journal, reader = Journal(tmp_path), JournalReader(tmp_path)
    train(journal, "reference", range(4))
    whole = (tmp_path / "events.jsonl").read_bytes()
    (tmp_path / "events.jsonl").write_bytes(whole[:-20])  # the last line is half written
    assert [p.step for p in sending(tmp_path, reader)] == [1, 2, 3]
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(whole[-20:])
    assert [p.step for p in sending(tmp_path, reader)] == [4] and sending(tmp_path, reader) == []
    train(journal, "reference", range(2, 6))  # cuts the journal back
    assert [p.step for p in sending(tmp_path, reader)] == [5, 6]
    assert not reader.is_over
    journal.write("run_finished", "evaluate")
    assert sending(tmp_path, reader) == [] and reader.is_over
    train(journal, "robust", range(1))
    assert len(sending(tmp_path, reader)) == 1 and not reader.is_over


def test_damaged_journals_and_notes_are_refused_with_their_place(tmp_path):
    with pytest.raises(DataError, match="no journal in this folder"):
        sending(tmp_path)
    train(Journal(tmp_path), "reference", range(1))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "stage": "reference", "time": 1}\n')
    with pytest.raises(DataError, match=r"journal is damaged") as damaged:
        sending(tmp_path)
    assert "events.jsonl:3" in str(damaged.value)
    (tmp_path / "tracking").mkdir(exist_ok=True)
    (tmp_path / "tracking" / "kept.json").write_text("[]")
    with pytest.raises(DataError, match="note of what was sent is damaged"):
        sending(tmp_path)


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(EnvironmentProblem, match=r"tdro\[trackio\]"):
        open_tracker("trackio", tmp_path)


def test_a_tracker_that_wants_a_login_says_so(tmp_path, monkeypatch):
    class UsageError(Exception):
        """As W&B raises where nobody is logged in."""

    def init(**_: object) -> None:
        raise UsageError("No API key configured.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=UsageError))
    train(Journal(tmp_path), "reference", range(1))
    with open_tracker("wandb", tmp_path) as tracker, pytest.raises(EnvironmentProblem, match="wandb login"):
        send(JournalReader(tmp_path), tracker, Sent(tmp_path / "tracking" / "wandb.json"))
    assert not (tmp_path / "tracking" / "wandb.json").exists()


@pytest.mark.parametrize("to", ["wandb", "trackio"])
def test_what_the_packages_are_called_with(to, tmp_path, monkeypatch):
    calls: list[tuple[object, ...]] = []
    fake = ModuleType(to)
    fake.init = lambda **options: calls.append(("init", options))
    fake.log = lambda values, step: calls.append(("log", step, values))
    fake.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, to, fake)
    folder = tmp_path / "mine"
    journal = Journal(folder)
    train(journal, "reference", range(2))
    train(journal, "robust", range(1))
    for _ in range(2):
        with open_tracker(to, folder, project="p", config={"seed": 42}, offline=to == "wandb") as tracker:
            send(JournalReader(folder), tracker, Sent(folder / "tracking" / f"{to}.json"))
    assert [call[0] for call in calls] == ["init", "log", "log", "finish", "init", "log", "finish"]
    assert [call[1] for call in calls if call[0] == "log"] == [1, 2, 1]
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first["project"] == "p" and first["group"] == "mine" and first["config"] == {"seed": 42}
    if to == "wandb":
        assert first["mode"] == "offline" and first["id"] != second["id"] and first["dir"] == str(folder / "tracking")
    assert first["resume"] == "allow" and first["name"].endswith("/reference") and second["name"].endswith("/robust")


def test_the_id_of_a_run_follows_from_its_folder_and_its_beginning(tmp_path, monkeypatch):
    ids = []
    fake = SimpleNamespace(
        init=lambda **options: ids.append(options["id"]), log=lambda *_, **__: None, finish=lambda: 0
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("a", "b"):
        train(Journal(tmp_path / name), "reference", range(1))
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "a")
    for folder in (tmp_path / "a", tmp_path / "elsewhere" / "a", tmp_path / "b"):
        with open_tracker("wandb", folder) as tracker:
            send(JournalReader(folder), tracker, Sent(folder / "tracking" / "wandb.json"))
    assert ids[0] == ids[1] != ids[2]


def test_tensorboard_reads_what_was_sent(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path)
    train(journal, "reference", range(3))
    times = [json.loads(line)["time"] for line in (tmp_path / "events.jsonl").read_text().splitlines()[1:]]
    for _ in range(2):
        with open_tracker("tensorboard", tmp_path) as tracker:
            send(JournalReader(tmp_path), tracker, Sent(tmp_path / "tracking" / "tensorboard.json"))
    read = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / "reference")).Reload()
    loss = read.Scalars("loss")
    assert [(one.step, one.value) for one in loss] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [one.wall_time for one in loss] == times
    assert set(read.Tags()["scalars"]) == {"loss", "loss/nq", "weight/nq", "weight/wiki"}


@pytest.mark.slow
def test_wandb_offline_keeps_one_run_per_stage(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    journal = Journal(tmp_path)
    train(journal, "reference", range(3))
    train(journal, "robust", range(3))
    for _ in range(2):
        with open_tracker("wandb", tmp_path, offline=True) as tracker:
            send(JournalReader(tmp_path), tracker, Sent(tmp_path / "tracking" / "wandb.json"))
    runs = list((tmp_path / "tracking" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and all(list(run.glob("*.wandb")) for run in runs)
