"""What a run folder says about a model that was trained in it, for its card."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tdro.config import Study
from tdro.errors import CheckpointError, DataError
from tdro.evaluation.mteb_scores import Subset, mteb_result
from tdro.files import read_json
from tdro.prepare.check import CheckResult
from tdro.prepare.dataset_report import DatasetReport
from tdro.prepare.overlaps import Overlap
from tdro.prepare.profile import Lengths
from tdro.setup.options import open_study

Which = Literal["robust", "reference", "proxy"]
Scores = dict[str, dict[str, dict[str, float]]]
"""Task -> model -> measure -> mean, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A dataset in the plan of the robust model."""

    dataset: str
    size: int
    weight: float
    probability: float
    epochs: float


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run folder says.

    Args:
        folder: The run folder.
        study: What ran.
        ran: Versions, data, machine.
        which: The model.
        plan: Of the robust model; empty where it was not trained.
        scores: Of all models; empty where none was evaluated.
        mteb: Task -> scores of this model as mteb writes them.
        check: What `tdro check` has found; None where it was not run.
    """

    folder: Path
    study: Study
    ran: dict[str, Any]
    which: Which
    plan: tuple[Planned, ...]
    scores: Scores
    mteb: dict[str, dict[str, Any]]
    check: CheckResult | None

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.folder / self.which / "model"


def read_facts(folder: Path, which: Which) -> RunFacts:
    """Read a run folder.

    Raises:
        ConfigError: There is no run in the folder.
        CheckpointError: The model is not finished.
        DataError: A file of the run is damaged.
    """
    study, ran = open_study(folder)
    stage = "weights" if which == "proxy" else which
    if not (folder / which / "model" / "modules.json").is_file() or not (folder / stage / "done.json").is_file():
        do = f"finish it with tdro {stage} {folder / 'study.yaml'}, or choose another with --which"
        raise CheckpointError("the model is not finished", where=folder / which / "model", do=do)
    scores: Scores = _json(folder / "evaluation" / "summary.json") or {}
    mteb = {
        task: _mteb(folder / "evaluation" / which / task, task, scores[task][which])
        for task in scores
        if which in scores[task]
    }
    return RunFacts(folder, study, ran, which, _plan(folder), scores, mteb, _check(folder / "data" / "check.json"))


def _mteb(folder: Path, task: str, measures: dict[str, float]) -> dict[str, Any]:
    """Read the scores of a task as mteb writes them; an older run has not written them so."""
    found = _json(folder / "mteb.json")
    if found:
        return dict(found)
    main = "ndcg@10" if "ndcg@10" in measures else next(iter(measures))
    return mteb_result(task, {"split": "test"}, "", [Subset("", measures)], main)


def _plan(folder: Path) -> tuple[Planned, ...]:
    """Read data/plan.csv."""
    path = folder / "data" / "plan.csv"
    try:
        rows = csv.DictReader(path.read_text("utf-8").splitlines())
        return tuple(
            Planned(
                row["dataset"],
                int(row["size"]),
                float(row["weight"]),
                float(row["probability"]),
                float(row["expected_epochs"]),
            )
            for row in rows
        )
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("the plan cannot be read", where=path, saw=str(error), do="run tdro robust again") from None


def _check(path: Path) -> CheckResult | None:
    """Read what a check has found, as `CheckResult.as_dict` wrote it."""
    content = _json(path)
    if not content:
        return None
    try:
        reports = tuple(
            DatasetReport(
                **{
                    **one,
                    "paths": tuple(one["paths"]),
                    "lengths": {role: Lengths(**lengths) for role, lengths in one["lengths"].items()},
                    "samples": tuple(map(tuple, one["samples"])),
                    "counts": {},
                    "findings": (),
                }
            )
            for one in content["datasets"]
        )
        counts = {(one["dataset"], one["code"]): int(one["count"]) for one in content["counts"]}
        overlaps = tuple(Overlap(**one) for one in content["overlaps"])
        about = (content["study"], content["tdro"], content["date"], content["unit"])
        return CheckResult(*about, reports, overlaps, counts, ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("the check cannot be read", where=path, saw=repr(error), do="run tdro check again") from None


def _json(path: Path) -> Any:
    """Read a JSON file of the run; None where it is not there."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            "a file of the run cannot be read", where=path, saw=str(error), do="run the stage again"
        ) from None
