"""What a study will take on this machine: time, memory, disk, energy and money, stage by stage, before it starts.

Some twenty seconds of the study's own work are timed: its model, its precision, its forward passes, its texts. All else
is arithmetic on samples of the texts. What was measured is kept in the cache, so that the next estimate for the same
model, texts and machine takes no time, also with other steps, batch sizes or plans.
"""

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tdro.config import Study, fingerprint
from tdro.data.store import stamp
from tdro.devices import describe_machine
from tdro.files import cache_folder, read_json, write_json
from tdro.models.sides import side_of
from tdro.training.budget import Budget
from tdro.training.estimate_passes import step_tokens
from tdro.training.estimate_progress import progress_of
from tdro.training.estimate_speed import Curve, Speeds, measure_speeds
from tdro.training.estimate_texts import DatasetTexts, StudyTexts, TaskTexts, sample_study
from tdro.training.estimate_work import Cost, checkpoints_gb, costs_of, range_of
from tdro.training.pipeline import without_weighing
from tdro.training.prices import Bill, Prices, bill, read_prices
from tdro.training.run import Run

EFFICIENCY = 0.85
"""Share of its speed that each of several machines or GPUs keeps: an assumption, not a measurement."""
HELD = {"cpu": 1.4, "cuda": 1.1}
"""Memory that the allocator of a long run holds, for what is in use at once: on a CPU 2.3 GB for 1.6 in the recipe of
MiniLM; on a GPU an assumption."""
QUICK = 3.0
"""Seconds in which a model is loaded that may be loaded again, to know how long that takes."""
FILE = "estimate.json"
_FORM = 1  # part of every key: raise it when other things are measured


@dataclass(frozen=True)
class Calibration:
    """What was measured for a model, its texts and a machine.

    Attributes:
        made: When.
        machine: What `describe_machine` says.
        max_tokens: Tokens of a forward pass.
        texts: Samples of the study's texts.
        speeds: Of the machine.
    """

    made: str
    machine: dict[str, Any]
    max_tokens: int
    texts: StudyTexts
    speeds: Speeds


@dataclass(frozen=True)
class StageEstimate:
    """What a stage will take.

    Attributes:
        seconds: From its beginning to its end.
        low: It will hardly be faster.
        high: It will hardly be slower.
        left: Of `seconds`, what is still to be done; 0 for a finished stage.
        real: What it took, where it is finished and that is known.
        memory_gb: Peak in GB; of the GPU where there is one.
        disk_gb: What it leaves, in GB.
        dominates: What takes most of its time.
    """

    seconds: float
    low: float
    high: float
    left: float
    real: float | None
    memory_gb: float
    disk_gb: float
    dominates: str


@dataclass(frozen=True)
class Estimate:
    """What a study will take.

    Attributes:
        stages: By name, in their order.
        seconds: Of what is left of all stages; `low` and `high` the same.
        memory_gb: Peak.
        disk_gb: With the checkpoints of the stage that has the most.
        bill: Energy and money of what is left.
        device: "cpu" or the name of the GPU.
        workers: GPUs, or machines without one, that share the work.
        calibration: What it rests on.
    """

    stages: dict[str, StageEstimate]
    seconds: float
    low: float
    high: float
    memory_gb: float
    disk_gb: float
    bill: Bill
    device: str
    workers: int
    calibration: Calibration

    @property
    def longest(self) -> str:
        """The stage with the most time left."""
        return max(self.stages, key=lambda name: self.stages[name].left)

    def of(self, names: Collection[str]) -> "Estimate":
        """Return the estimate of some of its stages, or itself where it has none of them."""
        stages = {name: stage for name, stage in self.stages.items() if name in names}
        if not stages:
            return self
        seconds, low, high = _total(stages)
        share = seconds / self.seconds if self.seconds else 0.0
        part = replace(self.bill, kwh=self.bill.kwh * share, money=self.bill.money * share)
        memory = max(stage.memory_gb for stage in stages.values())
        return replace(self, stages=stages, seconds=seconds, low=low, high=high, memory_gb=memory, bill=part)

    def __str__(self) -> str:
        """Say it in one line."""
        if not self.seconds:
            return "nothing is left to do"
        most = f", most of it {self.longest}" if len(self.stages) > 1 else ""
        return (
            f"about {duration(self.seconds)} ({duration(self.low)} to {duration(self.high)}){most}; "
            f"{self.memory_gb:.1f} GB memory, {self.disk_gb:.1f} GB disk, "
            f"{self.bill.kwh:.2g} kWh, {self.bill.money:.2f} {self.bill.currency}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        made = self.calibration
        return {
            "stages": {name: _rounded(asdict(stage)) for name, stage in self.stages.items()},
            "total": _rounded({
                "seconds": self.seconds, "low": self.low, "high": self.high, "memory_gb": self.memory_gb,
                "disk_gb": self.disk_gb, "kwh": self.bill.kwh, "money": self.bill.money,
            }),
            "currency": self.bill.currency,
            "prices": self.bill.assumed,
            "device": self.device, "workers": self.workers,
            "assumed_efficiency": EFFICIENCY if self.workers > 1 else None,
            "calibration": {"made": made.made, "seconds": made.speeds.seconds, "spread": round(made.speeds.spread, 3),
                            "cut_short": made.speeds.cut_short},
        }  # fmt: skip


def estimate(
    study: Study,
    *,
    workers: int = 1,
    prices: Prices | None = None,
    again: bool = False,
    listener: Callable[[str], None] = lambda text: None,
) -> Estimate:
    """Estimate a study, measuring this machine where that has not been done for the same model and texts.

    Nothing is written to the run folder.

    Args:
        study: The study.
        workers: GPUs, or machines without one, that will share the work.
        prices: Price file; by default the assumptions of the package.
        again: Measure also where that has been done.
        listener: Told what is being done.

    Raises:
        TdroError: The study could not run either: no such model, dataset or task.
    """
    with TemporaryDirectory(prefix="tdro-") as folder:
        run = Run(study.model_copy(update={"output": str(Path(folder, "run"))}))
        calibration = None if again else kept_calibration(run)
        if calibration is None:
            calibration = _calibrate(run, listener)
            with suppress(OSError):  # it will be measured again
                write_json(_place(run), asdict(calibration))
    return _estimated(study, calibration, workers, prices or read_prices())


def foretell(run: Run) -> Estimate | None:
    """Estimate a run from what was measured before, and keep that as RUN/estimate.json for the report.

    An estimate of the same study that is there already stays: it was made before anything was known.

    Returns:
        The estimate; None where nothing was measured for this model, these texts and this machine.
    """
    calibration = kept_calibration(run)
    if calibration is None:
        return None
    found = _estimated(run.study, calibration, workers_of(run), read_prices())
    subject = fingerprint(run.study)
    if run.ranks.number == 0 and _subject(run.folder / FILE) != subject:
        write_json(run.folder / FILE, {"for": subject, **found.as_dict()})
    return found


def workers_of(run: Run) -> int:
    """Count who really shares the work of a run: GPUs, or machines, for ranks on one CPU share its cores."""
    if run.device.name == "cuda":
        return run.ranks.count
    return max(1, run.ranks.count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def kept_calibration(run: Run) -> Calibration | None:
    """Return what was measured before for the model, the texts and the machine of a run."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _calibration(read_json(_place(run)))
    return None


def duration(seconds: float) -> str:
    """Write a time as people say it.

    Example:
        >>> duration(42.4), duration(1830), duration(40000), duration(400000)
        ('42 s', '30 min', '11 h 7 min', '4 days 15 h')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


def _calibrate(run: Run, listener: Callable[[str], None]) -> Calibration:
    """Measure this machine with the model and the texts of a run."""
    began = time.perf_counter()
    model = run.load_trainee()
    loaded = time.perf_counter() - began
    if loaded < QUICK:  # the first time libraries are loaded with it
        began = time.perf_counter()
        model = run.load_trainee()
        loaded = time.perf_counter() - began
    listener("reading samples of the datasets and tasks")
    texts = sample_study(run.study, side_of(model, "passages").tokenizer, loaded)
    listener("timing passes of the model")
    cache_folder().mkdir(parents=True, exist_ok=True)
    half = max(step_tokens(run.study, texts) // 2, 1)  # two passes are timed together, and a step may be small
    probed = replace(run.budget, max_tokens=min(run.budget.max_tokens, half))
    speeds = measure_speeds(model, run.device, probed, texts.tokens, cache_folder())
    made = datetime.now().astimezone().isoformat(timespec="seconds")
    return Calibration(made, describe_machine(), run.budget.max_tokens, replace(texts, tokens=[]), speeds)


def _estimated(study: Study, calibration: Calibration, workers: int, prices: Prices) -> Estimate:
    """Turn what was measured into an estimate."""
    study, speeds = without_weighing(study), calibration.speeds
    costs = costs_of(study, calibration.texts, speeds, Budget(calibration.max_tokens, {}))
    faster = workers * EFFICIENCY if workers > 1 else 1.0
    done = progress_of(study, list(costs))
    held = HELD["cpu" if calibration.machine["device"] == "cpu" else "cuda"]
    stages = {name: _stage(cost, faster, speeds.spread, held, *done[name]) for name, cost in costs.items()}
    seconds, low, high = _total(stages)
    device, cores = str(calibration.machine["device"]), int(calibration.machine["threads"])
    disk = sum(stage.disk_gb for stage in stages.values())
    return Estimate(
        stages=stages,
        seconds=seconds,
        low=low,
        high=high,
        memory_gb=max(stage.memory_gb for stage in stages.values()),
        disk_gb=disk + checkpoints_gb(speeds, (study.reference, study.weights)),
        bill=bill(prices, device, cores, seconds / 3600 * workers),
        device=device,
        workers=workers,
        calibration=calibration,
    )


def _total(stages: dict[str, StageEstimate]) -> tuple[float, float, float]:
    """Add up what is left of some stages: seconds, low and high."""
    left = [(stage, stage.left / stage.seconds if stage.seconds else 0.0) for stage in stages.values()]
    seconds, low, high = (
        sum(getattr(stage, bound) * share for stage, share in left) for bound in ("seconds", "low", "high")
    )
    return seconds, low, high


def _stage(cost: Cost, faster: float, spread: float, held: float, share: float, real: float | None) -> StageEstimate:
    """Estimate a stage of which a share is done."""
    seconds = cost.total / faster
    low, high = range_of(seconds, cost, spread)
    left = seconds * (1 - share)
    return StageEstimate(seconds, low, high, left, real, cost.memory_gb * held, cost.disk_gb, cost.dominates)


def _subject(path: Path) -> str | None:
    """Return what study an estimate in a run folder is of."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(path)["for"])
    return None


def _place(run: Run) -> Path:
    """Return where what was measured is kept."""
    study = run.study
    files = [path for name in study.data.datasets for path in study.files_of(name) if isinstance(path, Path)]
    key = fingerprint(
        _FORM,
        run.base_fingerprint,
        study.model,
        study.data,
        [study.mining.when, study.mining.source],
        study.evaluation.model_dump(mode="json", include={"tasks", "watch"}),
        [stamp(path) for path in files if path.is_file()],
        describe_machine(),
        metadata.version("torch"),
    )
    return cache_folder() / "estimates" / f"{key}.json"


def _calibration(content: dict[str, Any]) -> Calibration:
    """Read what was kept."""
    texts, speeds = content["texts"], content["speeds"]
    curves = {name: Curve(**speeds[name]) for name in ("forward", "backward", "encode")}
    return Calibration(
        content["made"],
        content["machine"],
        int(content["max_tokens"]),
        StudyTexts(
            {name: DatasetTexts(**dataset) for name, dataset in texts["datasets"].items()},
            {name: TaskTexts(**task) for name, task in texts["tasks"].items()},
            {name: TaskTexts(**task) for name, task in texts["watch"].items()},
            [],
            float(texts["tokenize_seconds"]),
            float(texts["load_seconds"]),
        ),
        Speeds(**{**speeds, **curves}),
    )


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Write numbers with four digits that count."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
