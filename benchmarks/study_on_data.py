"""Studies over the real training datasets with a small static encoder, for the benchmarks of stage 1."""

import shutil
from pathlib import Path
from typing import Any

from tdro.config import Study
from tdro.data.reading import read_dataset
from tdro.demo.encoder import build_encoder
from tdro.files import cache_folder
from tdro.training.pipeline import run_study
from tdro.training.run import Run

MAX_ROWS = 1000
TRAINING = {
    "batch_size": 64, "passages_per_query": 5, "temperature": 0.02, "learning_rate": 0.01, "weight_decay": 0.0,
    "warmup_steps": 20, "checkpoint_every": 1000,
}  # fmt: skip
SYMMETRIC = ("afqmc", "altlex", "quora", "snli", "wikisplit")


def data_study(
    data: Path,
    work: Path,
    name: str,
    precision: str = "float32",
    tokens: int = 100_000,
    weights: dict[str, Any] | None = None,
    rows: int = MAX_ROWS,
    encoder: str | None = None,
    training: dict[str, Any] | None = None,
) -> Study:
    """A study over all datasets of a folder, with negatives that are mined once for all studies.

    Args:
        data: Folder with train/*.jsonl.gz.
        work: Folder for everything that is made.
        name: Names the run folder.
        precision: Of the model.
        tokens: Of one forward pass.
        weights: Changes of the weights section.
        rows: Rows per dataset at most.
        encoder: Base of the models in place of the static encoder, which still mines.
        training: Changes of the training of reference and proxy.
    """
    mined = _mined(data, work, rows)
    files = {path.stem: str(path.resolve()) for path in sorted(mined.glob("*.jsonl"))}
    both = {**TRAINING, **(training or {})}
    reference = {"steps": 340, **both, "passages_per_query": 2}
    sections = {"reference": reference, "weights": {**both, "steps": 200, "measure": "relative", **(weights or {})}}
    return _study(files, work, name, precision, tokens, sections, encoder)


def run_weights(study: Study, reference: Path) -> None:
    """Run a study up to its weights, with a reference that is trained once and copied."""
    if not (reference / "reference" / "done.json").exists():
        run_study(Run(study.model_copy(update={"output": str(reference)})), "reference")
    if not (study.run_folder / "reference").exists():
        shutil.copytree(reference / "reference", study.run_folder / "reference")
    run_study(Run(study), "weights")


def _study(
    files: dict[str, str],
    work: Path,
    name: str,
    precision: str,
    tokens: int,
    sections: dict[str, Any],
    encoder: str | None = None,
) -> Study:
    """A study of these files."""
    return Study.model_validate({
        "name": name,
        "output": str(work / name),
        "data": {
            "root": ".",
            "datasets": {dataset: {"path": path, "symmetric": dataset in SYMMETRIC} for dataset, path in files.items()},
            "query_max_length": 32,
            "passage_max_length": 64,
        },
        "model": {"base": encoder or str(work / "encoder"), "precision": precision, "micro_batch_tokens": tokens},
        "mining": {"ranks": [2, 100], "negatives": 16},
        **sections,
    })  # fmt: skip


def _mined(data: Path, work: Path, rows: int) -> Path:
    """Make the encoder and mine negatives with it, once."""
    folder = work / "mined" / "data" / "negatives"
    files = {path.name.removesuffix(".jsonl.gz"): str(path.resolve()) for path in sorted((data / "train").glob("*.gz"))}
    if not (work / "encoder").exists():
        texts = []
        for name, path in files.items():
            sample = read_dataset(name, path, cache=cache_folder() / "datasets", max_rows=1000, seed=0)
            texts += [text for row in sample for text in (row.query, row.positives[0].full_text)]
        build_encoder(work / "encoder", texts, seed=0)
    if len(list(folder.glob("*.jsonl"))) < len(files):
        study = _study(files, work, "mined", "float32", 100_000, {})
        study = study.model_copy(update={"data": study.data.model_copy(update={"max_rows": rows})})
        run_study(Run(study), "mine")
    return folder
