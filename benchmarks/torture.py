"""Kill a small study again and again, at random times and in the middle of writing, and see whether anything is lost.

    python benchmarks/torture.py [--kills 100] [--minutes 20] [--seed 0] [--quick] [--work FOLDER] [--results FOLDER]

A cycle starts the study, kills it, starts it again, and so on until it ends by itself. Then the run folder must hold
the very bytes of a run that nobody disturbed (but for times), and neither it nor the cache a temporary file. Cycles
kill: at calls on the file system drawn from those of the undisturbed run, with the write half done or not; at random
times; real command lines; two ranks, both or one of them. Some only ask it to stop, with SIGTERM and SIGINT. Then come
disks that are full or read-only (torture_disk.py). Writes `kills_survived` and `kills_identical` into
benchmarks/results/reliability.json. Ends with 1 if anything was lost.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliability import merge_result
from report import RESULTS
from torture_disk import disk_cases
from torture_outcome import differences, outcome, strays
from torture_starts import TESTS, Moment, Start, all_ended, kill, kill_halfway

KILLS, QUICK_KILLS = 6, 2
"""Kills of a cycle, after which the study is left alone."""

SHARE = 0.7
"""Of the time is for the cycles; the rest is for the disks."""

STUDY: dict[str, dict[str, Any]] = {
    "mining": {"when": "always", "ranks": [1, 8], "negatives": 4},
    "leakage": {"gate": "remove"},
    "weights": {"keep_losses": True, "held_out_share": 0.1, "held_out_every": 2, "seeds": 2, "checkpoint_every": 2},
    "evaluation": {"watch": {"other": "eval/other"}, "watch_every": 2, "keep": "best", "baselines": ["bm25"]},
}
"""What tiny_study is changed to, so that every kind of file is written."""


@dataclass
class Undisturbed:
    """The run that nobody disturbed.

    Attributes:
        seconds: How long it took, from the fork.
        outcome: What came out.
        moments: Its calls on the file system, in order.
    """

    seconds: float
    outcome: dict[str, object]
    moments: list[Moment] = field(default_factory=list)


@dataclass
class Cycle:
    """What became of one cycle.

    Attributes:
        kind: How it killed.
        kills: Where or when, one text per kill.
        stops: The same for signals that may be answered.
        survived: Whether the study came to its end.
        faults: What was lost or left, or how a start ended that should not have.
    """

    kind: str
    kills: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    survived: bool = False
    faults: list[str] = field(default_factory=list)


def main() -> int:
    """Torture, write the result, and say what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--minutes", type=float, default=20, help="about so long at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="short cycles and few disks; for trying the script")
    parser.add_argument("--work", type=Path, help="where the runs go, and stay; otherwise a temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of reliability.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended, too
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + 60 * SHARE * arguments.minutes
        torture = Torture(work, random.Random(arguments.seed), until, QUICK_KILLS if arguments.quick else KILLS)
        cycles = torture.cycles(arguments.kills)
        cases = disk_cases(work / "disk", torture.alone.outcome, torture.alone.moments, arguments.quick)
    figures = {
        "kills_survived": sum(len(cycle.kills) for cycle in cycles if cycle.survived),
        "kills_identical": sum(len(cycle.kills) for cycle in cycles if not cycle.faults),
    }
    faults = [
        f"{cycle.kind}: {'; '.join(cycle.faults)} after {cycle.kills + cycle.stops}" for cycle in cycles if cycle.faults
    ]
    faults += [f"{name}: {said}" for name, said in cases.items() if said not in ("ok", "skipped")]
    details = {
        "kills": dict(Counter(cycle.kind for cycle in cycles for _ in cycle.kills)),
        "where": [f"{cycle.kind}: {where}" for cycle in cycles for where in cycle.kills + cycle.stops],
        "disk": cases,
        "faults": faults,
        "undisturbed_s": {"alone": round(torture.alone.seconds, 1), "two_ranks": round(torture.two.seconds, 1)},
    }
    settings = {"kills": arguments.kills, "minutes": arguments.minutes, "seed": arguments.seed}
    path = merge_result("torture", figures, settings, details, arguments.results)
    print(figures, dict(Counter(cases.values())), f"-> {path}", *faults, sep="\n")
    return 1 if faults else 0


class Torture:
    """Everything that a torture needs: the study, its undisturbed runs, chance and the time that is left.

    Args:
        work: Folder of the places.
        chance: Draws times and moments.
        until: Monotonic time after which no cycle begins.
        kills: Kills of a cycle.
    """

    def __init__(self, work: Path, chance: random.Random, until: float, kills: int) -> None:
        self._work, self._chance, self._until, self._kills = work, chance, until, kills
        _import_all()
        _make_study(work)
        self.alone = self._undisturbed("undisturbed", 1)
        self.two = self._undisturbed("undisturbed-two", 2)
        print(f"undisturbed: {self.alone.seconds:.1f} s, two ranks {self.two.seconds:.1f} s", flush=True)

    def cycles(self, kills: int) -> list[Cycle]:
        """Run cycles of all kinds, in turn, until there were so many kills and every kind had its turn."""
        kinds: dict[str, Callable[[Path, Cycle], None]] = {
            "moment": self._at_moments,
            "time": self._at_times,
            "command": self._commands,
            "both ranks": self._two_ranks,
            "one rank": self._one_rank,
            "signal": self._signals,
        }
        turns = [*kinds, "moment", "time", "moment", "time"]
        found: list[Cycle] = []
        while sum(len(cycle.kills) for cycle in found) < kills or len(found) < len(kinds):
            if time.monotonic() > self._until:
                break
            cycle = Cycle(turns[len(found) % len(turns)])
            place = self._work / f"cycle-{len(found):03d}"
            expected = self.two if "rank" in cycle.kind else self.alone
            try:
                kinds[cycle.kind](place, cycle)
                cycle.survived = True
                cycle.faults += differences(expected.outcome, outcome(place / "run"))
                cycle.faults += [f"left {name}" for name in strays(place)]
            except (OSError, ValueError) as problem:  # no end, or nothing to compare
                cycle.faults.append(repr(problem))
            count = f"{len(cycle.kills)} kills" if cycle.kills else f"{len(cycle.stops)} stops"
            print(f"{place.name} {cycle.kind}: {count}, {cycle.faults or 'identical'}", flush=True)
            if not cycle.faults:
                shutil.rmtree(place)
            found.append(cycle)
        return found

    def _undisturbed(self, name: str, ranks: int) -> Undisturbed:
        """Run the study without a kill, once for its outcome and once (alone) for its moments."""
        began = time.monotonic()
        self._finish(Start(self._work / name, ranks=ranks))
        found = Undisturbed(time.monotonic() - began, outcome(self._work / name / "run"))
        if ranks == 1:
            found.moments = _moments(self._work / "moments")
        return found

    def _at_moments(self, place: Path, cycle: Cycle) -> None:
        """Kill at calls on the file system; those of a cycle are drawn in the order in which they first come."""
        counts = Counter((moment.call, moment.path) for moment in self.alone.moments)
        order = {kind: number for number, kind in enumerate(counts)}
        for kind in sorted(self._chance.sample(list(counts), self._kills), key=order.__getitem__):
            moment = Moment(*kind, before=self._chance.randrange(min(counts[kind], 3)))
            halfway = moment.call == "sync" or moment.path.endswith("events.jsonl")
            act = kill_halfway if halfway and self._chance.random() < 0.7 else kill
            codes, printed = self._wait(Start(place, moment=moment, act=act))
            if codes != [-signal.SIGKILL]:  # it was done before
                return self._must_be_done(codes, printed)
            cycle.kills.append(f"{act.__name__} at {moment}")
        return self._finish(Start(place))

    def _at_times(self, place: Path, cycle: Cycle) -> None:
        """Kill at random times."""
        self._kill_after(place, cycle, self.alone.seconds, lambda: Start(place))
        self._finish(Start(place))

    def _commands(self, place: Path, cycle: Cycle) -> None:
        """Kill real command lines."""
        began = time.monotonic()
        whole = Start(self._work / f"{place.name}-whole", real=True)
        self._finish(whole)
        self._kill_after(place, cycle, time.monotonic() - began, lambda: Start(place, real=True))
        self._finish(Start(place, real=True))

    def _two_ranks(self, place: Path, cycle: Cycle) -> None:
        """Kill two ranks at once."""
        self._kill_after(place, cycle, self.two.seconds, lambda: Start(place, ranks=2))
        self._finish(Start(place, ranks=2))

    def _one_rank(self, place: Path, cycle: Cycle) -> None:
        """Kill one of two ranks: the other must end by itself, and say so."""
        for number in (0, 1):
            began = time.time()
            with all_ended(Start(place, ranks=2)) as start:
                delay = self._chance.uniform(0, 0.6) * self.two.seconds
                while not _has_met(place, began) and not start.wait(0.05, first=True):
                    pass  # before they have met, none can know that the other is gone
                if start.wait(delay, first=True):
                    continue
                start.signal(signal.SIGKILL, [start.pids[number]])
                codes, printed = start.end()
            cycle.kills.append(f"rank {number} after {delay:.2f} s")
            if codes[1 - number] not in (0, 3) or "Traceback" in printed:
                cycle.faults.append(f"the other rank ended with {codes[1 - number]} and printed {printed[-800:]!r}")
        self._finish(Start(place, ranks=2))

    def _signals(self, place: Path, cycle: Cycle) -> None:
        """Ask to stop: the exit code is 130, and nothing was lost."""
        for number in (signal.SIGTERM, signal.SIGINT) * (self._kills // 2):
            with all_ended(Start(place)) as start:
                delay = self._chance.uniform(0.05, 0.6) * self.alone.seconds
                if start.wait(delay):
                    continue
                start.signal(number)
                codes, printed = start.end()
            if codes not in ([130], [0]) or "Traceback" in printed:
                cycle.faults.append(f"{number.name} after {delay:.2f} s ended with {codes[0]}: {printed[-800:]!r}")
            if codes != [0]:
                cycle.stops.append(f"{number.name} after {delay:.2f} s")
        self._finish(Start(place))

    def _kill_after(self, place: Path, cycle: Cycle, seconds: float, begin: Callable[[], Start]) -> None:
        """Kill all processes of starts at random times, until one is done before its time."""
        for _ in range(self._kills):
            with all_ended(begin()) as start:
                delay = self._chance.uniform(0.02, 0.6) * seconds
                if start.wait(delay):
                    return self._must_be_done(*start.end())
                start.signal(signal.SIGKILL)
                start.end()
            cycle.kills.append(f"after {delay:.2f} s, {_last_event(place)}")
        return None

    def _wait(self, start: Start) -> tuple[list[int], str]:
        """Wait for a start."""
        with all_ended(start):
            return start.end()

    def _finish(self, start: Start) -> None:
        """Let a start come to its end."""
        self._must_be_done(*self._wait(start))

    def _must_be_done(self, codes: list[int], printed: str) -> None:
        """Refuse a start that has not ended well."""
        if any(codes):
            raise ValueError(f"ended with {codes}: {printed[-800:]}")


def _import_all() -> None:
    """Import what a study needs, so that a fork begins at once; nothing of it may run here, or start a thread."""
    import bm25s  # noqa: F401
    import torch

    import tdro.cli.banner
    import tdro.cli.display
    import tdro.cli.live
    import tdro.cli.study
    import tdro.integrations
    import tdro.report.page
    import tdro.training.estimate
    import tdro.training.pipeline  # noqa: F401

    torch.set_num_threads(1)


def _in_a_fork(work: Callable[[], None]) -> None:
    """Do something in a child, whose threads and caches do not come into later forks."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise OSError("a fork has failed")


def _make_study(work: Path) -> None:
    """Write data, model and study.yaml."""

    def make() -> None:
        sys.path.insert(0, str(TESTS))
        from studies import tiny_study

        from tdro.study_file import save_study

        study = tiny_study(work, "bert", reference={"checkpoint_every": 2}, **STUDY)
        shutil.copytree(work / "root" / "eval" / "words", work / "root" / "eval" / "other", dirs_exist_ok=True)
        text = save_study(study.model_copy(update={"output": "run"}))
        (work / "study.yaml").write_text(text, encoding="utf-8")

    _in_a_fork(make)


def _moments(place: Path) -> list[Moment]:
    """Run the study and note its calls on the file system."""
    notes = place.with_name("moments.txt")
    handle = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def note(moment: Moment) -> None:
        os.write(handle, f"{moment.call}\t{moment.path}\t{moment.before}\n".encode())

    with all_ended(Start(place, watch=note)) as start:
        start.end()
    os.close(handle)
    lines = (line.split("\t") for line in notes.read_text("utf-8").splitlines())
    return [Moment(call, path, int(before)) for call, path, before in lines]


def _has_met(place: Path, began: float) -> bool:
    """Tell whether the ranks that were started at a time have met: then the first writes to the run folder."""
    status = place / "run" / "status.json"
    return status.exists() and status.stat().st_mtime > began


def _last_event(place: Path) -> str:
    """Say how far a run has come."""
    try:
        last = (place / "run" / "events.jsonl").read_text("utf-8").splitlines()[-1]
    except (OSError, IndexError):
        return "nothing written"
    return last[:80]


if __name__ == "__main__":
    sys.exit(main())
