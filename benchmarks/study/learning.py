"""The learned weights of a setting: one reference per seed, one proxy per way of learning and seed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tdro.config import Study, fingerprint
from tdro.data.reading import content_hash
from tdro.files import cache_folder, read_json, write_json
from tdro.training.pipeline import run_study
from tdro.training.run import Run

Changes = Mapping[str, Mapping[str, Any]]
"""Section of a study -> option -> value."""


def learned_weights(study: Study, seed: int, name: str, changes: Changes) -> dict[str, Any]:
    """Learn weights with the mined rows of a setting, unless that is done.

    Args:
        study: The setting, of which the negatives are mined.
        seed: Of reference and proxy.
        name: Of the result.
        changes: Of the sections `reference` and `weights`.

    Returns:
        `weights`, their `mean` over the steps, `seconds` of stage 1, `reference_seconds` and `diagnostics`.
    """
    changed = _with_mined_rows(study, seed, changes)

    def learn() -> dict[str, Any]:
        run_study(Run(changed), "weights")
        folder = changed.run_folder
        content = json.loads((folder / "weights" / "weights.json").read_text("utf-8"))
        seconds = {
            stage: json.loads((folder / stage / "done.json").read_text("utf-8"))["seconds"]
            for stage in ("reference", "weights")
        }
        return {
            "weights": content[changed.weights.export],
            "mean": content["mean"],
            "seconds": seconds["weights"],
            "reference_seconds": seconds["reference"],
            "diagnostics": content.get("diagnostics", {}),
        }

    subject = fingerprint(seed, changed.reference, changed.weights, changed.model.influential, mined_content(study))
    return kept(study.run_folder / "learned" / f"{name}-{seed}.json", subject, learn)


def kept(path: Path, subject: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a file keeps of a subject; made where it is of another one, or not there."""
    if path.exists():
        found: dict[str, Any] = read_json(path)
        if found.get("subject") == subject:
            return found
    made = {"subject": subject, **make()}
    write_json(path, made)
    return made


def mined_files(study: Study) -> dict[str, Path]:
    """Where the rows that a setting trains on are, with negatives and without leaks."""
    folder = study.run_folder / "data" / "negatives"
    return {name: (folder / f"{name}.jsonl").resolve() for name in study.data.datasets}


def mined_content(study: Study) -> list[list[str]]:
    """Identify these rows."""
    return [[name, content_hash(path, cache_folder() / "datasets")] for name, path in mined_files(study).items()]


def _with_mined_rows(study: Study, seed: int, changes: Changes) -> Study:
    """The study with the files that its mining has left.

    Studies with the same seed and the same reference share a run folder, and so the reference.
    """
    mined = mined_files(study)
    datasets = {
        name: options.model_copy(update={"path": str(mined[name])}) for name, options in study.data.datasets.items()
    }
    sections = {
        section: type(getattr(study, section)).model_validate({**getattr(study, section).model_dump(), **values})
        for section, values in changes.items()
    }
    held_out = changes.get("weights", {}).get("held_out_share", 0)  # is taken from the reference's rows
    other = {**changes.get("reference", {}), **({"held_out_share": held_out} if held_out else {})}
    folder = f"seed-{seed}" + (f"-{fingerprint(other)}" if other else "")
    return study.model_copy(
        update={
            "output": str(study.run_folder / folder),
            "seed": seed,
            "data": study.data.model_copy(update={"datasets": datasets}),
            "leakage": study.leakage.model_copy(update={"gate": "off"}),
            **sections,
        }
    )
