"""What a run must give again however often it was killed, and what may not be left lying about."""

import hashlib
import json
import re
from pathlib import Path

_TIMES = {"time", "seconds", "seconds_left", "seconds_of", "peak_memory_gb"}
_UNLIKE = {"events.jsonl", "status.json", ".lock", "estimate.json"}  # what happened, kills included, and who runs
_TIMED = re.compile(r"(^|/)done\.json$|^data/negatives/.*\.json$")


def outcome(run: Path) -> dict[str, object]:
    """Return everything that a run folder holds, but for times and memory.

    Args:
        run: Run folder of a finished run.

    Returns:
        Path of a file -> its hash, or its content without times; and "steps": what the journal says of every step.
    """
    found: dict[str, object] = {"steps": _steps(run / "events.jsonl")}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        if name in _UNLIKE or name.startswith("report/"):  # the report tells times
            continue
        content = path.read_bytes()
        found[name] = (
            _without_times(json.loads(content)) if _TIMED.search(name) else hashlib.blake2b(content).hexdigest()
        )
    return found


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """Name what differs between two outcomes: "lacks FILE", "has FILE", "differs in FILE"."""
    lacking = [f"lacks {name}" for name in expected.keys() - found.keys()]
    more = [f"has {name}" for name in found.keys() - expected.keys()]
    return sorted(
        lacking + more + [f"differs in {n}" for n in expected.keys() & found.keys() if expected[n] != found[n]]
    )


def strays(place: Path) -> list[str]:
    """Name the files and folders below a place whose names are temporary: hidden ones that are no locks, and *.tmp."""
    names = (path for path in place.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".old"))
    return sorted(str(path.relative_to(place)) for path in names if not path.name.endswith(".lock"))


def _steps(journal: Path) -> list[object]:
    """What the journal says of every step of every stage, without times."""
    records = map(json.loads, journal.read_text("utf-8").splitlines())
    return sorted(
        (_without_times(record) for record in records if "step" in record),
        key=lambda record: (record["stage"], record["event"], record["step"]),
    )


def _without_times(record: dict[str, object]) -> dict[str, object]:
    """Leave out what a clock or a memory meter says."""
    return {key: value for key, value in record.items() if key not in _TIMES}
