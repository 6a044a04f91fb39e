"""Hand the journal of a run to TensorBoard, Weights & Biases or trackio, also after the fact and while it goes on.

The journal (`events.jsonl`) is the only source, so that a tracker can be chosen after training, and none slows it.

    journal = JournalReader(folder)
    with open_tracker("tensorboard", folder) as tracker:
        send(journal, tracker, Sent(folder / "tracking" / "tensorboard.json"))

Every stage becomes a run of the tracker under the name of the stage, so that the curves of reference and robust lie on
top of each other; a model's evaluation becomes one run, too. What was sent is counted in `tracking/TO.json`, and is not
sent again, also where a stage repeats steps behind its checkpoint; a stage that was trained anew with other settings
becomes a new run, `robust-2`.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from tdro.config import fingerprint
from tdro.errors import DataError, EnvironmentProblem
from tdro.files import read_json, write_json
from tdro.integrations.journal_points import JOURNAL, JournalReader, Point

Name = Literal["tensorboard", "wandb", "trackio"]


class Tracker(Protocol):
    """Takes points; one run is written at a time."""

    def write(self, point: Point) -> None:
        """Take a point; its run is opened, or gone on with."""

    def flush(self) -> None:
        """Bring everything that was taken to where it stays."""

    def close(self) -> None:
        """End."""


class Sent:
    """Which points of a run folder a tracker has.

    A run of the journal that begins with other values than those that were sent was trained anew: it becomes another
    run of the tracker.

    Args:
        path: File in which this is kept.

    Raises:
        DataError: The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = read_json(path)["runs"]
            self._runs = {run: [(str(one["first"]), int(one["sent"])) for one in all_] for run, all_ in content.items()}
        except FileNotFoundError:
            self._runs = {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            do = "remove it, and what the tracker has of this run: everything is then sent again"
            raise DataError("the note of what was sent is damaged", where=path, saw=str(error), do=do) from None

    def new(self, number: int, point: Point) -> Point | None:
        """Return a point under the name of its run in the tracker; None where the tracker has it.

        Args:
            number: Of the point in its run, from 1; the first tells whether this is another training.
            point: The point.
        """
        trainings = self._runs.setdefault(point.run, [])
        if number == 1:
            first = fingerprint(point.values)
            if not trainings or trainings[-1][0] != first:
                trainings.append((first, 0))
        if number <= trainings[-1][1]:
            return None
        return point if len(trainings) == 1 else replace(point, run=f"{point.run}-{len(trainings)}")

    def note(self, number: int, point: Point) -> None:
        """Note that the tracker has a point, which is given as the journal has it."""
        self._runs[point.run][-1] = (self._runs[point.run][-1][0], number)

    def save(self) -> None:
        """Write it down."""
        runs = {run: [{"first": first, "sent": sent} for first, sent in all_] for run, all_ in self._runs.items()}
        write_json(self._path, {"runs": runs})


def send(journal: JournalReader, tracker: Tracker, sent: Sent) -> int:
    """Send the points of a journal that the tracker does not have, and note that it has them.

    What was sent when it is stopped, or when the tracker fails, is noted; a process that is killed sends the points of
    this call again, with the same run, step and value.

    Args:
        journal: Of the run.
        tracker: Takes them.
        sent: What it has.

    Returns:
        How many points were sent.

    Raises:
        DataError: The journal cannot be read.
    """
    fresh = 0
    try:
        for number, point in journal.read():
            if (new := sent.new(number, point)) is not None:
                tracker.write(new)
                sent.note(number, point)
                fresh += 1
    finally:
        if fresh:
            tracker.flush()
            sent.save()
    return fresh


def open_tracker(
    to: Name, folder: Path, *, project: str = "tdro", config: Mapping[str, Any] | None = None, offline: bool = False
) -> AbstractContextManager[Tracker]:
    """Open a tracker.

    Args:
        to: Which one.
        folder: Run folder; TensorBoard's files go to `tracking/tensorboard/` there, and W&B's own to `tracking/wandb/`.
        project: Of W&B and trackio.
        config: Options of the study, by dotted name, for the tracker's tables.
        offline: W&B writes to the folder only; `wandb sync` sends it later.

    Returns:
        A context: the tracker is closed at its end.

    Raises:
        EnvironmentProblem: Its package is not installed.
    """
    if to == "tensorboard":
        return closing(_TensorBoard(folder / "tracking" / to))
    module = _require(to, to)
    identity = fingerprint(str(_first_time(folder)), folder.resolve().name)
    extra: dict[str, Any] = {"config": dict(config or {})}
    if to == "wandb":
        (folder / "tracking").mkdir(parents=True, exist_ok=True)
        extra |= {"dir": str(folder / "tracking")}
        extra |= {"mode": "offline"} if offline else {}
    return closing(_Logged(module, to, project, folder.resolve().name, identity, extra))


class _TensorBoard:
    """Writes event files, one folder for each run; points carry the time of their event."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        _require("tensorboard", "tensorboard")
        self._make = import_module("torch.utils.tensorboard").SummaryWriter
        self._writers: dict[str, Any] = {}

    def write(self, point: Point) -> None:
        """Write a scalar for every value."""
        if point.run not in self._writers:
            self._writers[point.run] = self._make(str(self._folder / point.run))
        for name, value in point.values.items():
            self._writers[point.run].add_scalar(name, value, point.step, walltime=point.time)

    def flush(self) -> None:
        """Write everything to the disk."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class _Logged:
    """W&B or trackio, which share `init`, `log` and `finish`; one run is open at a time."""

    def __init__(
        self, module: Any, to: Name, project: str, group: str, identity: str, extra: Mapping[str, Any]
    ) -> None:
        self._module, self._to, self._project, self._group = module, to, project, group
        self._identity, self._extra = identity, extra
        self._run: str | None = None

    def write(self, point: Point) -> None:
        """Log the values at their step."""
        if point.run != self._run:
            self.close()
            self._open(point.run)
        self._module.log(dict(point.values), step=point.step)

    def flush(self) -> None:
        """Nothing to do: both write what is logged by themselves."""

    def close(self) -> None:
        """Finish the run that is open."""
        if self._run is not None:
            self._module.finish()
            self._run = None

    def _open(self, run: str) -> None:
        """Begin a run, or go on with it: its id, or name, follows from the run folder and the stage."""
        options = {"project": self._project, "group": self._group, "resume": "allow", **self._extra}
        if self._to == "wandb":
            options |= {"name": f"{self._group}/{run}", "id": fingerprint(self._identity, run)}
        else:
            options |= {"name": f"{self._group}-{self._identity[:6]}/{run}", "embed": False}
        try:
            self._module.init(**options)
        except (getattr(self._module, "Error", OSError), OSError) as error:
            do = "wandb login; or add --offline, and wandb sync later" if self._to == "wandb" else "look at its message"
            raise EnvironmentProblem(f"{self._to} does not begin", saw=str(error), do=do) from error
        self._run = run


def _require(package: str, extra: str) -> Any:
    """Import a tracker's package.

    Raises:
        EnvironmentProblem: It is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        do = f"pip install 'tdro[{extra}]'"
        raise EnvironmentProblem(f"{package} is not installed", saw=str(error), do=do) from None


def _first_time(folder: Path) -> float:
    """Return when the first event of a run happened, which tells it from other runs of the same name."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            return float(json.loads(file.readline())["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
