"""Stopped at any step, by a signal or a kill, and started again: the same run, bit for bit."""

import json
import os
import signal
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from studies import tiny_study

from tdro.core.rule import Update
from tdro.errors import CheckpointError
from tdro.training import loop
from tdro.training.loop import Stopped
from tdro.training.pipeline import run_study
from tdro.training.run import Run


def outcome(run: Run) -> dict[str, object]:
    """Everything a run must reproduce: parameters, weights, trajectory, losses of every step, scores."""
    steps = [
        {key: value for key, value in event.items() if key not in ("time", "seconds_left")}
        for stage in ("reference", "weights", "robust")
        for event in run.journal.read("step", stage)
    ]
    found: dict[str, object] = {"steps": steps}
    for name in ("reference", "proxy", "robust"):
        found[name] = {
            str(path.relative_to(run.folder)): {k: v.numpy().tobytes() for k, v in load_file(path).items()}
            for path in sorted((run.folder / name / "model").rglob("*.safetensors"))
        }
    found["weights"] = json.loads((run.folder / "weights" / "weights.json").read_text())
    for table in ("trajectory", "statistics", "histogram"):
        found[table] = pq.read_table(run.folder / "weights" / f"{table}.parquet").to_pydict()
    found["scores"] = json.loads((run.folder / "evaluation" / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run that nobody stopped, and what came out of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    os.environ["TDRO_CACHE"] = str(folder / "cache")
    run = Run(tiny_study(folder))
    run_study(run)
    return folder, outcome(run)


class Killed(BaseException):
    """Stands for kill -9: nothing gets a chance to be saved."""


def disturb(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, how: str) -> None:
    """Make the loop stop in a step of a stage: `kill` before its optimizer step, `signal` after it."""
    real = loop._refuse_non_finite

    def check(numbers, norm, at_stage, at_step):
        if (at_stage, at_step) == (stage, step):
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
        real(numbers, norm, at_stage, at_step)

    monkeypatch.setattr(loop, "_refuse_non_finite", check)


@pytest.mark.parametrize("how", ["kill", "signal"])
@pytest.mark.parametrize("stage", ["reference", "weights", "robust"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_resumed_run_equals_the_undisturbed_one(undisturbed, tmp_path, monkeypatch, stage, step, how):
    folder, expected = undisturbed
    study = tiny_study(folder).model_copy(update={"output": str(tmp_path / "run")})
    with monkeypatch.context() as patch:
        disturb(patch, stage, step, how)
        with pytest.raises((Killed, Stopped)):
            run_study(Run(study))
    if how == "signal":
        saved = sorted((tmp_path / "run" / stage / "checkpoints").iterdir())
        assert saved[-1].name == f"step-{step + 1:08d}"
    run = Run(study)
    run_study(run)
    found = outcome(run)
    for key, value in expected.items():
        assert found[key] == value, key
    assert not list((tmp_path / "run").rglob("*.tmp")) and not list((tmp_path / "run").rglob("checkpoints"))


@pytest.mark.parametrize("update", [name for name in get_args(Update) if name != "eg"])
def test_weights_resume_bit_for_bit_with_every_update_rule(tmp_path, monkeypatch, update):
    changes = {"update": update, "measure": "initial" if update == "anchored" else "relative"}
    expected = Run(tiny_study(tmp_path, "static", weights=changes))
    run_study(expected, "weights")
    study = expected.study.model_copy(update={"output": str(tmp_path / "disturbed")})
    with monkeypatch.context() as patch:
        disturb(patch, "weights", 2, "signal")
        with pytest.raises(Stopped):
            run_study(Run(study), "weights")
    run_study(Run(study), "weights")
    weights = [
        (folder / "weights" / "weights.json").read_bytes() for folder in (expected.folder, tmp_path / "disturbed")
    ]
    assert weights[0] == weights[1]


def test_finished_stages_are_skipped_and_nothing_is_written_again(undisturbed, tmp_path):
    folder, _ = undisturbed
    study = tiny_study(folder)
    before = {p: p.stat().st_mtime_ns for p in study.run_folder.rglob("*.safetensors")}
    events: list[dict[str, object]] = []
    run_study(Run(study, events.append))
    assert {e["stage"] for e in events if e["event"] == "stage_skipped"} == {"reference", "weights", "robust"}
    assert not [e for e in events if e["event"] == "step"]
    assert {p: p.stat().st_mtime_ns for p in study.run_folder.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": {"learning_rate": 0.02}}, "reference.learning_rate was 0.01, is 0.02"),
        ({"data": {"passage_max_length": 20}}, "data.passage_max_length was 24, is 20"),
        ({"data": {"max_rows": 20}}, r"rows of.one was \w{8}\.\.\., is \w{8}\.\.\.; .*; 1 more"),
        ({"data": {"datasets": {n: f"train/{n}.jsonl" for n in ("one", "two")}}}, "rows of.three was .*, is absent"),
        ({"model": {"lora_rank": 2}}, "model.lora_rank was (0|absent), is 2"),
    ],
)
def test_a_checkpoint_of_another_study_is_refused_and_the_difference_named(
    undisturbed, tmp_path, monkeypatch, changes, said
):
    folder, _ = undisturbed
    study = tiny_study(folder).model_copy(update={"output": str(tmp_path / "run")})
    with monkeypatch.context() as patch:
        disturb(patch, "reference", 1, "signal")
        with pytest.raises(Stopped):
            run_study(Run(study))
    other = tiny_study(folder, **changes).model_copy(update={"output": str(tmp_path / "run")})
    with pytest.raises(CheckpointError, match=f"(?s)another study, mixture or data.*{said}"):
        run_study(Run(other))


@pytest.mark.parametrize("stage", ["reference", "weights"])
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(undisturbed, tmp_path, monkeypatch, stage):
    folder, expected = undisturbed
    every = {"checkpoint_every": 2}
    study = tiny_study(folder, reference=every, weights=every).model_copy(update={"output": str(tmp_path / "run")})
    with monkeypatch.context() as patch:
        disturb(patch, stage, 4, "kill")
        with pytest.raises(Killed):
            run_study(Run(study))
    os.truncate(tmp_path / "run" / stage / "checkpoints" / "step-00000004" / "model.safetensors", 100)
    run = Run(study)
    run_study(run)
    (note,) = run.journal.read("note", stage)
    assert "step-00000004 is damaged" in note["text"]
    found = outcome(run)
    for key, value in expected.items():
        assert found[key] == value, key
