"""Feed damaged files to everything that reads files: only a TdroError may come out, and soon.

    python benchmarks/fuzz.py [--inputs 100000] [--seed 0] [--only TARGET] [--results FOLDER]

Damages valid files (fuzz_mutations.py) and has tdro read them (fuzz_targets.py), each target in a process of its own,
with a limit on time and memory. Another exception, a crash or a hang is a failure; the
smallest input found for each place in the code is printed. Writes `fuzz_inputs` and `fuzz_other_exceptions` (places)
into benchmarks/results/reliability.json. Ends with 1 if there was a failure.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzz_mutations import damage
from fuzz_targets import File, Target, targets
from reliability import merge_result
from report import RESULTS

from tdro.errors import TdroError

SECONDS = 5
"""An input may take so long."""

_STUCK = 60  # seconds after which a process that does not even take signals is ended
_MEMORY = 4 * 2**30  # bytes that a target may take beyond what is taken when it starts
_SHOWN = 400  # bytes of a failing input that are shown
_SHRINKING = 15  # seconds in which a failing input is made smaller


class Hang(BaseException):
    """An input takes too long."""


@dataclass(frozen=True)
class Failure:
    """An exception that should not be.

    Attributes:
        target: What was reading.
        error: The exception.
        place: Where in tdro it came from: file:line function.
        file: The file that was damaged.
        content: The smallest content found that leads there, as Python shows bytes.
    """

    target: str
    error: str
    place: str
    file: str
    content: str


@dataclass(frozen=True)
class Found:
    """What came of a target: inputs read, how many of them without an error, and the distinct failures."""

    inputs: int
    good: int
    failures: tuple[Failure, ...]


def main() -> int:
    """Fuzz, write the result, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target; nothing is written then")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of reliability.json")
    arguments = parser.parse_args()
    chosen = [target for target in targets() if arguments.only in (None, target.name)]
    shares = sum(target.share for target in chosen)
    found: dict[str, Found] = {}
    for target in chosen:
        began = time.monotonic()
        count = -int(-arguments.inputs * target.share // shares)
        found[target.name] = one = fuzz_apart(target, count, arguments.seed)
        seconds = time.monotonic() - began
        print(
            f"{target.name}: {one.inputs} inputs in {seconds:.0f} s, {one.good} read, {len(one.failures)} failures",
            flush=True,
        )
    failures = [failure for one in found.values() for failure in one.failures]
    for failure in failures:
        print("", *(f"{name}: {value}" for name, value in asdict(failure).items()), sep="\n  ")
    if arguments.only is None:
        figures = {"fuzz_inputs": sum(one.inputs for one in found.values()), "fuzz_other_exceptions": len(failures)}
        details: dict[str, Any] = {
            "inputs": {name: one.inputs for name, one in found.items()},
            "read_without_error": {name: one.good for name, one in found.items()},
            "failures": [f"{failure.error} at {failure.place}" for failure in failures],
        }
        settings = {"inputs": arguments.inputs, "seed": arguments.seed, "seconds_per_input": SECONDS}
        print(figures, "->", merge_result("fuzz", figures, settings, details, arguments.results))
    return 1 if failures else 0


def fuzz_apart(target: Target, count: int, seed: int) -> Found:
    """Fuzz a target in a process of its own, which may crash."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory_folder()) as place:
        note = Path(place) / "found.json"
        if (pid := os.fork()) == 0:
            code = 1
            try:
                limit = _taken() + _MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
                note.write_text(json.dumps(asdict(fuzz(target, count, seed, Path(place)))), encoding="utf-8")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            damaged = [path for path in (Path(place) / "input").rglob("*") if path.is_file()]
            content = {str(path.name): repr(path.read_bytes()[:_SHOWN]) for path in damaged}
            return Found(
                count, 0, (Failure(target.name, f"ended with {status}", "?", str(list(content)), str(content)),)
            )
        told = json.loads(note.read_text("utf-8"))
        return Found(told["inputs"], told["good"], tuple(Failure(**failure) for failure in told["failures"]))


def fuzz(target: Target, count: int, seed: int, place: Path) -> Found:
    """Feed a target so many damaged inputs; its valid files must be readable.

    Args:
        target: The target.
        count: Inputs.
        seed: Decides what is damaged, and how.
        place: A folder to write to.

    Returns:
        What was found.
    """
    for variant in target.variants:
        if (failed := _attempt(target, variant, place)) is not None:
            raise AssertionError(f"{target.name} cannot read what is valid: {failed}")
    failures: dict[tuple[str, str], Failure] = {}
    good = 0
    chance = random.Random(f"{target.name} {seed}")
    for _ in range(count):
        variant = chance.choice(target.variants)
        at = chance.choice([number for number, file in enumerate(variant) if file.kind])
        content = damage(variant[at].content, variant[at].kind, chance)
        failed = _attempt(target, _with(variant, at, content), place)
        good += failed is None
        if failed is None or isinstance(failed, TdroError):
            continue
        key = (type(failed).__name__, _place_of(failed))
        if key not in failures:
            smallest = _shrink(target, variant, at, content, key, place)
            shown = f"{type(failed).__name__}: {str(failed)[:300]}"
            failures[key] = Failure(target.name, shown, key[1], variant[at].path, repr(smallest[:_SHOWN]))
    return Found(count, good, tuple(failures.values()))


def _attempt(target: Target, files: tuple[File, ...], place: Path) -> BaseException | None:
    """Have a target read files; return what it raises."""
    folder = place / "input"
    shutil.rmtree(folder, ignore_errors=True)
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    try:
        with _limited():
            target.read(folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # not Exception only: pyo3's panics are none
        return problem
    return None


@contextmanager
def _limited() -> Iterator[None]:
    """Raise Hang in what takes too long; end the process where even that is not heard."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(_STUCK, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _shrink(
    target: Target, variant: tuple[File, ...], at: int, content: bytes, key: tuple[str, str], place: Path
) -> bytes:
    """Cut away what is not needed to fail at the same place."""
    until, size = time.monotonic() + _SHRINKING, len(content) // 2
    while size:
        start = 0
        while start < len(content) and time.monotonic() < until:
            shorter = content[:start] + content[start + size :]
            failed = _attempt(target, _with(variant, at, shorter), place)
            if failed is not None and (type(failed).__name__, _place_of(failed)) == key:
                content = shorter
            else:
                start += size
        size //= 2
    return content


def _with(variant: tuple[File, ...], at: int, content: bytes) -> tuple[File, ...]:
    """Swap the content of one file."""
    file = variant[at]
    return (*variant[:at], File(file.path, file.kind, content), *variant[at + 1 :])


def _place_of(failed: BaseException) -> str:
    """Name the innermost place in tdro that an exception has passed."""
    frames = traceback.extract_tb(failed.__traceback__)
    ours = [frame for frame in frames if "/tdro/" in frame.filename] or frames
    file = ours[-1].filename
    return f"{file[file.rfind('/tdro/') + 1 :]}:{ours[-1].lineno} {ours[-1].name}"


def _taken() -> int:
    """Return the address space that this process takes, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _memory_folder() -> str | None:
    """Return a folder in memory, where there is one: files are written and forced to the disk all the time."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    sys.exit(main())
