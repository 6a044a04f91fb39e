"""The journal of a run as numbers to draw: which run of a tracker, which step, which values."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdro.errors import DataError

JOURNAL = "events.jsonl"
EVALUATION = "evaluation/"
_ENDS, _GOES_ON = ("run_finished", "failed"), ("environment", "stage_started", "step")
_MINED = (
    "rows",
    "mined",
    "none",
    "positive_similarity",
    "negative_similarity",
    "inverted",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class Point:
    """What a tracker gets of one event.

    Args:
        run: Stage, or `evaluation/MODEL`.
        step: Counted from 1 in training; 0 for the first evaluation, 1 where one was done again, and so on.
        values: Name -> number.
        time: When it happened, seconds since 1970.
    """

    run: str
    step: int
    values: dict[str, float]
    time: float


class JournalReader:
    """Reads the points of a journal, and goes on where it was; a journal that was cut back is read again.

    Args:
        folder: Run folder.

    Attributes:
        is_over: Whether the run has ended, and was not started again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._line = 0
        self._counts = _Counts()
        self.is_over = False

    def read(self) -> Iterator[tuple[int, Point]]:
        """Yield new points with their number in their run, from 1. A line that is still being written waits.

        Where the journal was cut back, because a stage goes on from a checkpoint, everything is yielded again.

        Raises:
            DataError: There is no journal, or it is damaged.
        """
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if self._identity != (about.st_dev, about.st_ino) or about.st_size < self._offset:
                    self._identity, self._offset, self._line = (about.st_dev, about.st_ino), 0, 0
                    self._counts = _Counts()
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._line += 1
                    yield from self._points(line)
        except FileNotFoundError:
            do = "give the folder of a run, runs/NAME"
            raise DataError("there is no journal in this folder", where=self._path, do=do) from None

    def _points(self, line: bytes) -> Iterator[tuple[int, Point]]:
        """Turn a line into points."""
        try:
            event = json.loads(line)
            if event["event"] in (*_ENDS, *_GOES_ON):
                self.is_over = event["event"] in _ENDS
            for point in self._counts.points(event):
                yield self._counts.number(point.run), point
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            where, do = f"{self._path}:{self._line}", "mend or remove the line"
            raise DataError(f"journal is damaged: {error!r}", where=where, do=do) from None


@dataclass
class _Counts:
    """How often evaluations have ended, and how many points each run has."""

    ended: dict[str, int] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    points_of: dict[str, int] = field(default_factory=dict)

    def number(self, run: str) -> int:
        """Count a point of a run."""
        self.points_of[run] = self.points_of.get(run, 0) + 1
        return self.points_of[run]

    def points(self, event: Mapping[str, Any]) -> Iterator[Point]:
        """Turn an event into points; most events have none."""
        kind, stage, time = event["event"], event["stage"], float(event["time"])
        if kind in ("step", "watched"):
            values = step_values(event) if kind == "step" else watched_values(event)
            yield Point(stage, event["step"] + 1, values, time)
        elif kind == "stage_finished" and stage.startswith(EVALUATION) and "scores" in event:
            model, _, task = stage.removeprefix(EVALUATION).partition("/")
            values = {f"{task}/{measure}": float(mean) for measure, mean in event["scores"].items()}
            yield Point(EVALUATION + model, self._round(EVALUATION + model, task), values, time)
        elif kind == "mined":
            numbers = {name: event[name] for name in _MINED if event.get(name) is not None}
            values = {f"{event['dataset']}/{name}": float(value) for name, value in numbers.items()}
            yield Point(stage, self._round(stage, event["dataset"]), values, time)

    def _round(self, run: str, part: str) -> int:
        """Count how often a part of a run was done before; never less than for a part that came earlier."""
        key = f"{run}/{part}"
        self.ended[key] = self.ended.get(key, -1) + 1
        self.rounds[run] = max(self.rounds.get(run, 0), self.ended[key])
        return self.rounds[run]


def step_values(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a training step; what is not there or not a number is left out.

    Example:
        >>> step_values({"loss": 0.5, "losses": {"nq": 0.4, "wiki": 0.6}, "weights": [0.3, 0.7]})
        {'loss': 0.5, 'loss/nq': 0.4, 'loss/wiki': 0.6, 'weight/nq': 0.3, 'weight/wiki': 0.7}
    """
    values = {name: float(event[name]) for name in ("loss", "gradient_norm", "learning_rate") if name in event}
    names = list(event.get("losses", {}))
    values |= {f"loss/{name}": float(loss) for name, loss in event.get("losses", {}).items() if loss is not None}
    for column, label in (("weights", "weight"), ("signal", "signal")):
        found = event.get(column) or []
        values |= {f"{label}/{name}": float(v) for name, v in zip(names, found, strict=False) if v is not None}
    return values


def watched_values(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores on the watched tasks.

    Example:
        >>> watched_values({"mean": 0.5, "scores": {"scifact": {"ndcg@10": 0.5}}})
        {'watched': 0.5, 'watched/scifact/ndcg@10': 0.5}
    """
    scores = {f"watched/{task}/{m}": float(v) for task, by_m in event["scores"].items() for m, v in by_m.items()}
    return {"watched": float(event["mean"]), **scores}
