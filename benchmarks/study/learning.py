"""The learned weights of a setting: one reference per seed, one proxy per measure and seed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tdro.config import Study
from tdro.files import write_json
from tdro.training.pipeline import run_study
from tdro.training.run import Run


def learned_weights(study: Study, seed: int, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Learn weights with the mined rows of a setting, unless that is done.

    Args:
        study: The setting, of which the negatives are mined.
        seed: Of reference and proxy.
        name: Of the result.
        changes: Of the weights section.

    Returns:
        `weights`, `seconds` of stage 1 with the similarities, `reference_seconds` and `diagnostics`.
    """
    kept = study.run_folder / "learned" / f"{name}-{seed}.json"
    if not kept.exists():
        folder = study.run_folder / f"seed-{seed}"
        run = Run(_with_mined_rows(study, folder, seed, changes))
        run_study(run, "weights")
        content = json.loads((folder / "weights" / "weights.json").read_text("utf-8"))
        seconds = {stage: json.loads((folder / stage / "done.json").read_text("utf-8"))["seconds"] for stage in _STAGES}
        write_json(kept, {
            "weights": content[run.study.weights.export],
            "mean": content["mean"],
            "seconds": seconds["weights"],
            "reference_seconds": seconds["reference"],
            "diagnostics": content.get("diagnostics", {}),
        })  # fmt: skip
    found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    return found


_STAGES = ("reference", "weights")


def _with_mined_rows(study: Study, folder: Path, seed: int, changes: Mapping[str, Any]) -> Study:
    """The study with the files that its mining has left, which have negatives and no leaks."""
    mined = dict(_mined(study))
    datasets = {name: options.model_copy(update={"path": mined[name]}) for name, options in study.data.datasets.items()}
    return study.model_copy(
        update={
            "output": str(folder),
            "seed": seed,
            "data": study.data.model_copy(update={"datasets": datasets}),
            "leakage": study.leakage.model_copy(update={"gate": "off"}),
            "weights": study.weights.model_validate({**study.weights.model_dump(), **changes}),
        }
    )


def _mined(study: Study) -> Iterator[tuple[str, str]]:
    """Yield where the mined rows of every dataset are."""
    for name in study.data.datasets:
        yield name, str((study.run_folder / "data" / "negatives" / f"{name}.jsonl").resolve())
