"""What the torture looks at sees what it should; and a short torture of a whole study."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from reliability import merge_result
from torture_outcome import differences, outcome, strays
from torture_starts import Moment, Tripwire, kill, kill_halfway

from tdro.files import atomic_folder, write_json

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "torture.py"


def step(number: int, loss: float, time: float) -> str:
    """A line of a journal."""
    return json.dumps({"event": "step", "stage": "robust", "time": time, "step": number, "loss": loss}) + "\n"


def write_run(folder: Path, *, time: float = 1.0, loss: float = 0.5, weights: str = "{}") -> Path:
    """Write a run folder as far as outcomes look at one."""
    (folder / "robust").mkdir(parents=True)
    (folder / "events.jsonl").write_text(step(0, loss, time) + step(1, 0.25, time + 1))
    (folder / "weights.json").write_text(weights)
    write_json(folder / "robust" / "done.json", {"fingerprint": "f", "seconds": time})
    return folder


def test_outcomes_are_alike_but_for_times(tmp_path):
    expected = outcome(write_run(tmp_path / "a"))
    assert differences(expected, outcome(write_run(tmp_path / "b", time=9.0))) == []
    assert differences(expected, outcome(write_run(tmp_path / "c", loss=0.5000001))) == ["differs in steps"]
    assert differences(expected, outcome(write_run(tmp_path / "d", weights="{ }"))) == ["differs in weights.json"]
    (tmp_path / "b" / "more").touch()
    (tmp_path / "b" / "weights.json").unlink()
    assert differences(expected, outcome(tmp_path / "b")) == ["has more", "lacks weights.json"]


def test_a_step_that_is_recorded_twice_is_a_difference(tmp_path):
    expected = outcome(write_run(tmp_path / "a"))
    with (write_run(tmp_path / "b") / "events.jsonl").open("a") as file:
        file.write(step(1, 0.25, 3.0))
    assert differences(expected, outcome(tmp_path / "b")) == ["differs in steps"]


def test_strays_are_hidden_or_temporary_names_but_no_locks(tmp_path):
    for name in ("kept.json", ".kept.lock", ".lock", ".lost.host-7.tmp", "lost.old", "in/.one.jsonl.mining-0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert strays(tmp_path) == [".lost.host-7.tmp", "in/.one.jsonl.mining-0", "lost.old"]


def in_a_fork(place: Path, moment: Moment | None, act, work, watch=None) -> int:
    """Do something behind a tripwire in a child process; return how it ended."""
    if (pid := os.fork()) == 0:
        sys.addaudithook(Tripwire(place, moment, act, watch))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def save(place: Path) -> None:
    """Write a folder as tdro does, in the place of another one."""
    for text in ("first", "second"):
        with atomic_folder(place / "run" / "model") as folder:
            (folder / "weights").write_text(text * 10)


def test_a_tripwire_kills_between_the_two_renames_of_a_folder(tmp_path):
    (tmp_path / "notes").touch()
    handle = os.open(tmp_path / "notes", os.O_WRONLY)
    assert in_a_fork(tmp_path, None, kill, lambda: save(tmp_path), lambda m: os.write(handle, f"{m}\n".encode())) == 0
    moments = (tmp_path / "notes").read_text().splitlines()
    assert moments.count("os.rename run/.model.PROCESS.tmp #0") == 1
    assert moments.count("os.rename run/model #0") == 1 and moments.count("os.rename run/.model.PROCESS.tmp #1") == 1
    place = tmp_path / "killed"
    moment = Moment("os.rename", "run/.model.PROCESS.tmp", 1)
    assert in_a_fork(place, moment, kill, lambda: save(place)) == -signal.SIGKILL
    assert not (place / "run" / "model").exists() and len(strays(place)) == 2
    save(place)
    assert (place / "run" / "model" / "weights").read_text() == "second" * 10 and strays(place) == []


def test_a_write_can_be_left_half_done(tmp_path):
    moment = Moment("sync", "run/.model.PROCESS.tmp/weights")
    assert in_a_fork(tmp_path, moment, kill_halfway, lambda: save(tmp_path)) == -signal.SIGKILL
    (half,) = tmp_path.rglob("weights")
    assert half.read_text() == ("first" * 10)[:25] and half.parent.name.endswith(".tmp")


def test_results_of_several_benchmarks_live_in_one_file(tmp_path):
    merge_result("torture", {"kills_survived": 3}, {"kills": 3}, {"faults": []}, tmp_path)
    path = merge_result("fuzz", {"fuzz_inputs": 7}, {"inputs": 7}, {}, tmp_path)
    merge_result("torture", {"kills_survived": 5}, {"kills": 5}, {"faults": []}, tmp_path)
    content = json.loads(path.read_text())
    assert content["figures"] == {"kills_survived": 5, "fuzz_inputs": 7}
    assert content["settings"] == {"torture": {"kills": 5}, "fuzz": {"inputs": 7}}


@pytest.mark.slow
def test_a_short_torture_loses_nothing(tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills", "5", "--quick", "--minutes", "10"]
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    done = subprocess.run(
        [*command, *folders], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "reliability.json").read_text())["figures"]
    assert figures["kills_survived"] == figures["kills_identical"] >= 5
