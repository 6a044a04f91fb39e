"""The learned weights of a setting: one reference per seed, one proxy per way of learning and seed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tdro.config import Study, fingerprint
from tdro.files import write_json
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
    kept = study.run_folder / "learned" / f"{name}-{seed}.json"
    if not kept.exists():
        changed = _with_mined_rows(study, seed, changes)
        run_study(Run(changed), "weights")
        folder = changed.run_folder
        content = json.loads((folder / "weights" / "weights.json").read_text("utf-8"))
        seconds = {
            stage: json.loads((folder / stage / "done.json").read_text("utf-8"))["seconds"]
            for stage in ("reference", "weights")
        }
        write_json(kept, {
            "weights": content[changed.weights.export],
            "mean": content["mean"],
            "seconds": seconds["weights"],
            "reference_seconds": seconds["reference"],
            "diagnostics": content.get("diagnostics", {}),
        })  # fmt: skip
    found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    return found


def _with_mined_rows(study: Study, seed: int, changes: Changes) -> Study:
    """The study with the files that its mining has left, which have negatives and no leaks.

    Studies with the same seed and the same reference share a run folder, and so the reference.
    """
    mined = dict(_mined(study))
    datasets = {name: options.model_copy(update={"path": mined[name]}) for name, options in study.data.datasets.items()}
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


def _mined(study: Study) -> Iterator[tuple[str, str]]:
    """Yield where the mined rows of every dataset are."""
    for name in study.data.datasets:
        yield name, str((study.run_folder / "data" / "negatives" / f"{name}.jsonl").resolve())
