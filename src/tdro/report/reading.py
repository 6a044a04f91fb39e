"""What a run folder holds, as far as it can be read; what cannot is told, and nothing is changed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdro.errors import CheckpointError
from tdro.files import read_json

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

STAGES = ("negatives", "reference", "weights", "robust", "evaluation")
COLUMNS = ("n", "sum_l", "sum_r", "sum_ll", "sum_rr", "sum_lr", "n_bad")
"""Sums of losses in statistics.parquet: l of the proxy, r of the reference."""
PLAN = ("dataset", "size", "weight", "probability", "expected_epochs")
"""Columns of plan.csv."""

Event = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Learning:
    """How the weights came about: T steps, G datasets.

    Attributes:
        names: The datasets.
        steps: [T].
        weights_TG: After each step.
        signal_TG: What moved them; NaN where nothing did.
        sums_TGC: `COLUMNS` of each step.
        misranked_TG: Queries for which the reference prefers a negative; None where the run did not count them.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    weights_TG: "np.ndarray"
    signal_TG: "np.ndarray"
    sums_TGC: "np.ndarray"
    misranked_TG: "np.ndarray | None"


@dataclass(frozen=True, slots=True)
class Planned:
    """A line of plan.csv."""

    name: str
    size: int
    weight: float
    probability: float
    epochs: float


class RunFiles:
    """The files of a run folder.

    Args:
        folder: Run folder.

    Attributes:
        folder: Run folder.
        problems: Sentences on what could not be read; they grow as files are read.

    Raises:
        CheckpointError: It is no run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        signs = ("resolved.yaml", "study.yaml", "events.jsonl", "weights/weights.json", "evaluation")
        if not any((folder / sign).exists() for sign in signs):
            do = "give the folder that tdro run has written, for example runs/NAME"
            saw = "nothing" if not folder.is_dir() else "none of " + ", ".join(signs)
            raise CheckpointError("this is no run folder", where=folder, saw=saw, do=do)

    def tell(self, problem: str) -> None:
        """Note what could not be read, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """resolved.yaml: every option, and what ran; empty where it is missing."""
        import yaml

        path = self.folder / "resolved.yaml"
        try:
            content = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
            if isinstance(content, dict):
                return content
            problem = "it is no mapping"
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            problem = " ".join(str(error).split())
        self.tell(f"resolved.yaml cannot be read ({problem}): settings are not known")
        return {}

    def setting(self, name: str, default: Any = None) -> Any:
        """Return an option of the study by its dotted name; the default where it is not recorded."""
        value: Any = self.resolved
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    @cached_property
    def study_text(self) -> str:
        """study.yaml as it was written; empty where it is missing."""
        path = self.folder / "study.yaml"
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""

    @cached_property
    def weights(self) -> dict[str, Any]:
        """weights/weights.json; empty where no weights were learned."""
        return self.json("weights/weights.json")

    @property
    def diagnostics(self) -> dict[str, Any]:
        """What the run has found out about its weights; empty where it did not."""
        return dict(self.weights.get("diagnostics") or {})

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Dataset -> rows to train on, as far as they are recorded."""
        recorded = self.weights.get("size") or {row.name: row.size for row in self.plan}
        return {str(name): int(size) for name, size in recorded.items()}

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object; empty where the file is missing or damaged."""
        path = self.folder / name
        if not path.exists():
            return {}
        try:
            content = read_json(path)
            if isinstance(content, dict):
                return content
            problem = "it is no object"
        except (OSError, ValueError) as error:
            problem = str(error)
        self.tell(f"{name} cannot be read ({problem})")
        return {}

    def table(self, name: str) -> "pa.Table | None":
        """Read a parquet file; None where it is missing or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / name
        if not path.exists():
            return None
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            self.tell(f"{name} cannot be read ({' '.join(str(error).split())[:200]})")
            return None

    @cached_property
    def plan(self) -> tuple[Planned, ...]:
        """data/plan.csv; empty where no plan was made."""
        import csv

        path = self.folder / "data" / "plan.csv"
        if not path.exists():
            return ()
        try:
            with path.open(encoding="utf-8", newline="") as file:
                header, *lines = list(csv.reader(file))
            place = [header.index(column) for column in PLAN]
            cells = ([line[k] for k in place] for line in lines)
            return tuple(Planned(name, int(size), *map(float, rest)) for name, size, *rest in cells)
        except (OSError, ValueError, IndexError, csv.Error) as error:
            self.tell(f"data/plan.csv cannot be read ({error})")
            return ()

    @cached_property
    def journal(self) -> "Journal":
        """events.jsonl."""
        return Journal.read(self)

    @cached_property
    def learning(self) -> Learning | None:
        """How the weights came about: from the tables or, before the stage has ended, from the journal."""
        found = _from_tables(self) or _from_events(self)
        return found if found is not None and len(found.steps) else None


@dataclass(slots=True)
class _Starts:
    """How long a stage ran before it was started for the last time, from the times of its starts and steps."""

    began: float = 0.0
    seen: float = 0.0
    earlier: float = 0.0

    def begin(self, time: float, goes_on: bool) -> None:
        """Note a start: one that goes on keeps the time of those before it."""
        self.earlier = self.earlier + max(self.seen - self.began, 0.0) if goes_on and self.began else 0.0
        self.began = time


@dataclass(eq=False)
class Journal:
    """What happened in a run, without the numbers of the steps.

    Attributes:
        events: All but steps, oldest first; a `stage_finished` has, as `earlier`, the seconds of the starts before the
            last one that it went on from, up to the steps that were kept.
        reached: Stage -> (steps done, steps to do).
        learning_steps: Steps of the weights stage, kept only while its tables are not written.
        last: Time of the last event.
    """

    events: list[Event] = field(default_factory=list)
    reached: dict[str, tuple[int, int]] = field(default_factory=dict)
    learning_steps: list[Event] = field(default_factory=list)
    last: float = 0.0
    _starts: dict[str, "_Starts"] = field(default_factory=dict)

    @classmethod
    def read(cls, run: RunFiles) -> "Journal":
        """Read events.jsonl; damaged lines are counted and left out."""
        journal, damaged, path = cls(), 0, run.folder / "events.jsonl"
        keeps = not (run.folder / "weights" / "trajectory.parquet").exists()
        if path.is_file():
            with path.open("rb") as file:
                for line in file:
                    try:
                        journal._take(json.loads(line), keeps)
                    except (ValueError, KeyError, TypeError, RecursionError):
                        damaged += 1
        if damaged:
            run.tell(f"{damaged} of the lines of events.jsonl cannot be read and are left out")
        return journal

    def _take(self, event: Event, keeps: bool) -> None:
        """Take up one event."""
        stage, kind = str(event["stage"]), event["event"]
        self.last = max(self.last, float(event["time"]))
        starts = self._starts.setdefault(stage, _Starts())
        if kind == "stage_started":
            starts.begin(float(event["time"]), event.get("from_step", 0) > 0)
        elif kind == "stage_finished":
            event["earlier"] = starts.earlier
        if kind == "step":
            starts.seen = float(event["time"])
            self.reached[stage] = (int(event["step"]) + 1, int(event["steps"]))
            if keeps and stage == "weights":
                self.learning_steps.append(event)
        else:
            self.events.append(event)

    def of(self, kind: str, stage: str = "") -> list[Event]:
        """Return the events of a kind, and of a stage if one is given."""
        return [event for event in self.events if event["event"] == kind and event["stage"].startswith(stage)]


def _from_tables(run: RunFiles) -> Learning | None:
    """Read trajectory.parquet and statistics.parquet."""
    import numpy as np

    trajectory, statistics = run.table("weights/trajectory.parquet"), run.table("weights/statistics.parquet")
    if trajectory is None or statistics is None or trajectory.num_rows != statistics.num_rows:
        return None
    try:
        every = trajectory["dataset"].to_pylist()
        names = tuple(dict.fromkeys(every))
        shape = (len(every) // max(len(names), 1), len(names))
        signal = trajectory["signal"].to_numpy(zero_copy_only=False).astype(np.float64)
        sums = np.stack([statistics[column].to_numpy() for column in COLUMNS], axis=-1)
        misranked = trajectory["misranked"].to_numpy() if "misranked" in trajectory.column_names else None
        return Learning(
            names,
            tuple(trajectory["step"].to_numpy().reshape(shape)[:, 0].tolist()),
            trajectory["weight"].to_numpy().reshape(shape),
            signal.reshape(shape),
            sums.reshape(*shape, len(COLUMNS)),
            None if misranked is None else misranked.reshape(shape),
        )
    except (KeyError, ValueError, TypeError) as error:
        run.tell(f"the tables in weights/ do not fit together ({error})")
        return None


def _from_events(run: RunFiles) -> Learning | None:
    """Put the steps of an unfinished weights stage together."""
    import numpy as np

    events = run.journal.learning_steps
    names = tuple(map(str, run.setting("data.datasets", {})))
    nothing = [float("nan")] * len(names)
    try:
        return Learning(
            names,
            tuple(int(event["step"]) for event in events),
            np.array([event["weights"] for event in events], np.float64).reshape(-1, len(names)),
            np.array([event.get("signal", nothing) for event in events], np.float64).reshape(-1, len(names)),
            np.array([event["statistics"] for event in events], np.float64).reshape(-1, len(names), len(COLUMNS)),
            np.array([event["misranked"] for event in events]) if all("misranked" in e for e in events) else None,
        )
    except (KeyError, ValueError, TypeError) as error:
        run.tell(f"the steps of the weights stage do not fit together ({error})")
        return None
