"""events.jsonl and status.json: every number of a run, one line per event, the only source for reports and trackers."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._tell(record, urgent=event != "step")

    def progress(self, stage: str, done: int, total: int, **numbers: Any) -> None:
        """Report how far a stage is, without keeping it."""
        self._tell({"event": "progress", "stage": stage, "done": done, "total": total, **numbers}, urgent=False)

    def read(self, event: str, stage: str) -> Iterator[Event]:
        """Yield the events of a kind and stage, oldest first."""
        for record in self._records():
            if record["event"] == event and record["stage"] == stage:
                yield record

    def rewind(self, stage: str, step: int) -> None:
        """Forget the steps of a stage from `step` on: they are about to be done again."""
        kept = [r for r in self._records() if not (r["stage"] == stage and r.get("step", -1) >= step)]
        with atomic_path(self._path) as path:
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")

    def _drop_half_line(self) -> None:
        """Cut off a last line that a kill left unfinished, before anything is written behind it."""
        if self._path.exists():
            with self._path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def _records(self) -> Iterator[Event]:
        """Yield all events."""
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def _tell(self, record: Event, urgent: bool) -> None:
        """Pass an event on, and keep status.json at most two seconds behind."""
        self._listener(record)
        if urgent or time.monotonic() - self._status_written > 2:
            shown = ("event", "stage", "step", "steps", "done", "total", "loss", "seconds_left", "error", "time")
            write_json(self._status, {key: record[key] for key in shown if key in record})
            self._status_written = time.monotonic()


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
