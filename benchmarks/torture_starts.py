"""Starts of a study that may be killed: as forks of a process that has everything imported, or as real commands.

A start works in a folder of its own, its place: the run in `run`, the cache in `cache`, both named by relative paths,
so that what is written is the same in every place. A tripwire acts when the start is about to make a certain call on
the file system: it kills the process there, or lets the disk be full from there on.
"""

import contextlib
import fcntl
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
HANGS = 120.0
"""Seconds after which a process that should have ended by itself is said to hang."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CALLS = {
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 2,
    "shutil.rmtree": 1,
}  # where the folder's handle is
_ACCIDENTAL = [(r"\b[0-9a-f]{16,32}\b", "HASH"), (r"\.[A-Za-z0-9_]+-\d+\.(tmp|old)", r".PROCESS.\1")]


@dataclass(frozen=True)
class Moment:
    """A call on the file system, as it can be told from others in any start.

    Attributes:
        call: "write" (a file is opened to be written), "sync" (a temporary file was written and is about to be forced
            to the disk), or the name of the call.
        path: Below the place, without process numbers and hashes.
        before: How many calls of the same kind came before it.
    """

    call: str
    path: str
    before: int = 0

    def __str__(self) -> str:
        return f"{self.call} {self.path} #{self.before}"


Act = Callable[[str], None]
"""What a tripwire does; it is given the path of the call."""


def kill(_: str) -> None:
    """End the process here."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_halfway(path: str) -> None:
    """Leave a write half done: half of a temporary file that is complete, half a line more of a journal."""
    if path.endswith(".jsonl"):
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"event": "step", "stage": "ref')
    elif os.path.isfile(path):
        os.truncate(path, os.path.getsize(path) // 2)
    kill(path)


def no_room(_: str) -> None:
    """Let no file of this process grow from here on (EFBIG)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


class Start:
    """One start of a study: its processes, from a fork or a command to what they printed.

    Args:
        place: Folder of the start, with `study.yaml` above it.
        ranks: Processes that work together.
        real: Start `python -m tdro run` instead of a fork.
        moment: Where the tripwire of rank 0 is.
        act: What happens there.
        watch: Called in rank 0 with every moment; only for forks.
    """

    def __init__(
        self,
        place: Path,
        *,
        ranks: int = 1,
        real: bool = False,
        moment: Moment | None = None,
        act: Act = kill,
        watch: Callable[[Moment], None] | None = None,
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._place, self._codes = place, {}
        self._output, self._given = os.pipe()
        fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, 2**20)  # more than a run prints: nobody reads until it has ended
        port = _free_port() if ranks > 1 else 0
        tripwire = None if moment is None and watch is None else Tripwire(place, moment, act, watch)
        self.pids = [
            self._command(number, ranks, port) if real else self._fork(number, ranks, port, tripwire)
            for number in range(ranks)
        ]
        os.close(self._given)

    def wait(self, seconds: float, first: bool = False) -> bool:
        """Wait until all processes, or the first of them, have ended, but so long at most; tell whether they have."""
        until = time.monotonic() + seconds
        while True:
            for pid in self.pids:
                if pid not in self._codes:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        self._codes[pid] = os.waitstatus_to_exitcode(status)
            if len(self._codes) == len(self.pids) or (first and self._codes):
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(min(0.005, max(until - time.monotonic(), 0)))

    def signal(self, number: int, which: Sequence[int] | None = None) -> None:
        """Send a signal to the processes that have not ended, or to some of them."""
        for pid in self.pids if which is None else which:
            if pid not in self._codes:
                os.kill(pid, number)

    def end(self) -> tuple[list[int], str]:
        """Wait for all processes, and return their exit codes and what they printed.

        Raises:
            TimeoutError: They hang; they have been killed.
        """
        hangs = not self.wait(HANGS)
        if hangs:
            self.signal(signal.SIGKILL)
            self.wait(HANGS)
        with os.fdopen(self._output, encoding="utf-8", errors="replace") as printed:
            text = printed.read()
        if hangs:
            raise TimeoutError(f"processes {self.pids} hang in {self._place}\n{text}")
        return [self._codes[pid] for pid in self.pids], text

    def _environment(self, number: int, ranks: int, port: int) -> dict[str, str]:
        """The environment of a rank."""
        found = {"TDRO_CACHE": "cache", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        if ranks > 1:
            numbers = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            found |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in numbers.items()}
        return found

    def _command(self, number: int, ranks: int, port: int) -> int:
        """Start the command line."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tdro", "run", "../study.yaml"],
            cwd=self._place, env=os.environ | self._environment(number, ranks, port), stdout=self._given,
            stderr=self._given, stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        process.returncode = 0  # we wait for it
        return process.pid

    def _fork(self, number: int, ranks: int, port: int, tripwire: "Tripwire | None") -> int:
        """Fork, and have the child do what the command line does."""
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        code = 1
        try:
            os.setpgid(0, 0)
            os.close(self._output)
            os.dup2(self._given, 1)
            os.dup2(self._given, 2)
            os.chdir(self._place)
            os.environ.update(self._environment(number, ranks, port))
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have us ignore it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if tripwire is not None and number == 0:
                sys.addaudithook(tripwire)
            from tdro.cli.main import main

            code = main(["run", "../study.yaml"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(code)


class Tripwire:
    """Sees every call on the file system before it is made."""

    def __init__(self, place: Path, moment: Moment | None, act: Act, watch: Callable[[Moment], None] | None) -> None:
        self._place, self._moment, self._act, self._watch = str(place.resolve()), moment, act, watch
        self._seen: dict[tuple[str, str], int] = {}
        self._busy = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._busy or (event != "open" and event not in _CALLS):
            return
        self._busy = True
        try:
            self._look(event, arguments)
        finally:
            self._busy = False

    def _look(self, event: str, arguments: tuple[object, ...]) -> None:
        """Act where the moment has come."""
        path = self._absolute(event, arguments)
        call = event
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            call = "write" if flags & _WRITES else "sync" if ".tmp" in path else ""
        if not call or not path.startswith((f"{self._place}/run", f"{self._place}/cache")):
            return
        shown = path.removeprefix(f"{self._place}/")
        for pattern, instead in _ACCIDENTAL:
            shown = re.sub(pattern, instead, shown)
        before = self._seen.get((call, shown), 0)
        self._seen[call, shown] = before + 1
        moment = Moment(call, shown, before)
        if self._watch is not None:
            self._watch(moment)
        if moment == self._moment:
            self._act(path)

    def _absolute(self, event: str, arguments: tuple[object, ...]) -> str:
        """Return the path of a call; it may be relative to the handle of a folder."""
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        name = os.fsdecode(path)
        handle = arguments[_CALLS[event]] if event in _CALLS and len(arguments) > _CALLS[event] else None
        folder = os.readlink(f"/proc/self/fd/{handle}") if isinstance(handle, int) and handle >= 0 else os.getcwd()
        return os.path.normpath(os.path.join(folder, name))


@contextlib.contextmanager
def all_ended(started: Start) -> Iterator[Start]:
    """Kill what is left of a start when the block ends."""
    try:
        yield started
    finally:
        started.signal(signal.SIGKILL)
        started.wait(HANGS)


def _free_port() -> int:
    """Find a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
