"""events.jsonl and status.json: every number of a run, one line per event, the only source for reports and trackers."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tdro.errors import CheckpointError
from tdro.files import atomic_path, write_json

Event = dict[str, Any]


class Journal:
    """The journal of one run folder.

    Args:
        folder: Run folder.
        listener: Called with every event and every progress report, for example by a terminal display.
    """

    def __init__(self, folder: Path, listener: Callable[[Event], None] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "events.jsonl"
        self._status = folder / "status.json"
        self._status_written = 0.0
        self._listener = listener or (lambda event: None)
        self._drop_half_line()

    def write(self, event: str, stage: str, **numbers: Any) -> None:
        """Append one event."""
        record = {"event": event, "stage": stage, "time": round(time.time(), 3), **numbers}
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._tell(record, urgent=event != "step")

    def progress(self, stage: str, done: int, total: int, **numbers: Any) -> None:
        """Report how far a stage is, without keeping it."""
        self._tell({"event": "progress", "stage": stage, "done": done, "total": total, **numbers}, urgent=False)

    def read(self, event: str, stage: str) -> Iterator[Event]:
        """Yield the events of a kind and stage, oldest first."""
        for _, record in self._lines():
            if record["event"] == event and record["stage"] == stage:
                yield record

    def rewind(self, stage: str, step: int) -> None:
        """Forget the steps of a stage from `step` on: they are about to be done again."""
        kept = [line for line, r in self._lines() if not (r["stage"] == stage and r.get("step", -1) >= step)]
        with atomic_path(self._path) as path:
            path.write_bytes(b"".join(kept))

    def within(self, folder: Path) -> "Journal":
        """Return a journal of its own for a folder, whose events the same listener hears."""
        return Journal(folder, self._listener)

    def _drop_half_line(self) -> None:
        """Cut off a last line that a kill left unfinished, before anything is written behind it."""
        if self._path.exists():
            with self._path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def _lines(self) -> Iterator[tuple[bytes, Event]]:
        """Yield all lines, each with its event."""
        if self._path.exists():
            with self._path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    yield line, _event(line, f"{self._path}:{number}")

    def _tell(self, record: Event, urgent: bool) -> None:
        """Pass an event on, and keep status.json at most two seconds behind."""
        self._listener(record)
        if urgent or time.monotonic() - self._status_written > 2:
            shown = ("event", "stage", "step", "steps", "done", "total", "loss", "seconds_left", "error", "time")
            write_json(self._status, {key: record[key] for key in shown if key in record})
            self._status_written = time.monotonic()


def _event(line: bytes, where: str) -> Event:
    """Read a line.

    Raises:
        CheckpointError: It is no event.
    """
    try:
        record: Event = json.loads(line)
        if isinstance(record["event"], str) and isinstance(record["stage"], str) and type(record.get("step", 0)) is int:
            return record
        problem = "event and stage must be texts, step a whole number"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = str(error)
    do = "mend or remove the line; without the line of a step, remove the stage's checkpoints and done.json too"
    raise CheckpointError(f"journal is damaged: {problem}", where=where, saw=line.decode(errors="replace"), do=do)


class SilentJournal(Journal):
    """The journal as the ranks but the first see it: they read what rank 0 has written, and write nothing."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"

    def write(self, event: str, stage: str, **numbers: Any) -> None:
        """Leave it to rank 0."""

    def progress(self, stage: str, done: int, total: int, **numbers: Any) -> None:
        """Leave it to rank 0."""

    def rewind(self, stage: str, step: int) -> None:
        """Leave it to rank 0."""

    def within(self, folder: Path) -> "SilentJournal":
        """Return one that is as silent for another folder."""
        return SilentJournal(folder)
