"""What of a study is finished, as its run folder tells: for estimates of what is left."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tdro.config import Study
from tdro.errors import TdroError
from tdro.files import read_json
from tdro.study_file import load_study
from tdro.training.run import MARKER

_DEPENDS = {
    "negatives": ("seed", "data", "leakage", "mining"),
    "reference": ("reference",),
    "similarities": ("weights",),
    "weights": ("weights",),
    "robust": ("robust",),
    "evaluation": ("evaluation",),
}
"""Stage -> sections of the study that it depends on, besides those of the stages before it."""


def progress_of(study: Study, stages: Iterable[str]) -> dict[str, tuple[float, float | None]]:
    """Return, for each stage, which share of it is done, and the seconds it took where it is finished.

    What the run folder holds counts as long as resolved.yaml there says the same as the study about everything that
    the stage depends on.

    Args:
        study: The study.
        stages: Stages of an estimate.
    """
    nothing: dict[str, tuple[float, float | None]] = dict.fromkeys(stages, (0.0, None))
    try:
        ran = load_study(study.run_folder / "resolved.yaml")
    except TdroError:
        return nothing
    found = dict(nothing)
    if ran.model.influential != study.model.influential:
        return found
    for stage, sections in _DEPENDS.items():
        if any(getattr(ran, section) != getattr(study, section) for section in sections):
            break
        if stage in found:
            found[stage] = _progress(study, stage)
    return found


def _progress(study: Study, stage: str) -> tuple[float, float | None]:
    """Return which share of a stage is done, and the seconds it took where it is finished."""
    folder = study.run_folder
    if stage == "negatives":
        return _share([_seconds_of(folder / "data" / stage / f"{name}.json") for name in study.data.datasets])
    if stage == "evaluation":
        markers = list((folder / stage).rglob(MARKER))
        parts = max(len(study.evaluation.models) * len(study.evaluation.tasks), len(markers))
        return _share([_seconds_of(path) for path in markers] + [None] * (parts - len(markers)))
    if stage == "similarities":
        begun = (folder / "weights" / MARKER).exists() or (folder / "weights" / "checkpoints").exists()
        return float(begun), None
    if (seconds := _seconds_of(folder / stage / MARKER)) is not None:
        return 1.0, seconds
    steps = (study.weights if stage == "weights" else study.reference).steps
    saved = [int(path.name.rpartition("-")[2]) for path in (folder / stage / "checkpoints").glob("step-" + "[0-9]" * 8)]
    return min(max(saved, default=0) / steps, 1.0), None


def _share(seconds: list[float | None]) -> tuple[float, float | None]:
    """Return which share of some parts is done, and the seconds of all where all are."""
    known = [value for value in seconds if value is not None]
    if not seconds or len(known) < len(seconds):
        return len(known) / max(len(seconds), 1), None
    return 1.0, round(sum(known), 2)


def _seconds_of(path: Path) -> float | None:
    """Read how long something took; None where it is not finished."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(read_json(path)["seconds"])
    return None
