"""Two processes never use one run folder, and one that is killed leaves no lock behind."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdro.errors import EnvironmentProblem
from tdro.locks import hold, one_at_a_time

HOLD = """
import os, sys, time
from pathlib import Path
from tdro.locks import hold
lock = hold(Path(sys.argv[1]), "run folder", "run elsewhere")
{then}
os.write(1, b"held True\\n")
time.sleep(60)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python processes; those that still run are killed at the end."""
    begun: list[subprocess.Popen[str]] = []

    def begin(code: str, *arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", code, *map(str, arguments)]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def first_line(process: "subprocess.Popen[str]") -> str:
    """Wait for the first line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def take(path: Path) -> object:
    """Hold a lock as a run does."""
    return hold(path, "run folder", "choose another folder with --output")


def test_a_second_process_is_told_who_holds_it_where_and_since_when(tmp_path: Path, start: Start) -> None:
    lock = tmp_path / "run" / ".lock"
    other = start(HOLD.format(then=""), lock)
    assert first_line(other) == "held True"
    with pytest.raises(EnvironmentProblem) as refusal:
        take(lock)
    message = str(refusal.value)
    assert message.startswith(f"run folder is in use by process {other.pid} on {os.uname().nodename} since 20")
    assert f"where: {tmp_path / 'run'}\n" in message and "choose another folder with --output" in message


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_vanishes_with_its_process(how: signal.Signals, tmp_path: Path, start: Start) -> None:
    other = start(HOLD.format(then=""), tmp_path / ".lock")
    assert first_line(other) == "held True"
    other.send_signal(how)
    other.wait()
    assert take(tmp_path / ".lock")


def test_children_do_not_keep_it(tmp_path: Path, start: Start) -> None:
    children = """
import subprocess
for drops in (False, True):
    if os.fork() == 0:
        opened = os.open(os.devnull, os.O_RDONLY)  # gets the number that the lock's file had
        if drops:
            del lock
        os.write(1, f"{os.getpid()} {os.path.exists(f'/dev/fd/{opened}')}\\n".encode())
        time.sleep(60)
        os._exit(0)
program = subprocess.Popen(["sleep", "60"], close_fds=False)
os.write(1, f"{program.pid} True\\n".encode())
"""
    other = start(HOLD.format(then=children), tmp_path / ".lock")
    lines = [first_line(other).split() for _ in range(4)]
    processes = [int(process) for process, _ in lines if process != "held"]
    try:
        with pytest.raises(EnvironmentProblem):
            take(tmp_path / ".lock")
        other.kill()
        other.wait()
        assert take(tmp_path / ".lock")
    finally:
        for process in processes:
            os.kill(process, signal.SIGKILL)
    assert [good for _, good in lines] == ["True"] * 4


def test_a_process_may_hold_it_twice_and_the_last_lets_go(tmp_path: Path, start: Start) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = take(tmp_path / ".lock"), take(tmp_path / "link" / ".lock")
    attempt = "from pathlib import Path; import sys; from tdro.locks import hold; hold(Path(sys.argv[1]), 'it', 'x')"
    del first
    errors = start(attempt, tmp_path / ".lock").communicate()[1]
    assert f"it is in use by process {os.getpid()} on " in errors
    del second
    assert start(attempt, tmp_path / ".lock").wait() == 0


def test_a_holder_that_has_not_signed_is_another_process(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentProblem, match="in use by another process"):
            take(tmp_path / ".lock")


@pytest.mark.parametrize("kind", ["held", "block"])
def test_without_locks_nobody_is_kept_out_and_one_can_tell(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    if kind == "held":
        assert not hold(tmp_path / ".lock", "run folder", "x").guards
    else:
        with one_at_a_time(tmp_path / ".lock"):
            pass


def test_other_trouble_with_a_lock_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = set(os.listdir("/dev/fd"))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        take(tmp_path / ".lock")
    assert set(os.listdir("/dev/fd")) == before


def test_blocks_of_two_processes_take_turns(tmp_path: Path, start: Start) -> None:
    code = """
import sys, time
from pathlib import Path
from tdro.locks import one_at_a_time
folder = Path(sys.argv[1])
for _ in range(40):
    with one_at_a_time(folder / ".lock"):
        count = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(count + 1))
"""
    (tmp_path / "count").write_text("0")
    both = [start(code, tmp_path) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "80"
