"""A collection as large as the paper's, generated: 11 million short rows in 25 datasets.

Each measurement is a fresh process, so that its peak of anonymous memory is its own.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import PeakMemory

ROWS, DATASETS = 11_000_000, 25
BATCH = 2048
WORDS = 4096


def full_size(work: Path, rows: int = ROWS) -> tuple[dict[str, float], dict[str, Any]]:
    """Generate the collection, read and check it, take a first step and draw batches.

    Args:
        work: Folder for everything, about 6 GB for 11 million rows; the collection is kept for the next time, the
            cache is made anew.
        rows: Rows of all datasets together.

    Returns:
        `full_size_peak_gb`, the highest peak of all; `full_size_first_step_s`, from the start of the process to the
        end of the first step, once cached; `draw_ms`, the median time to draw a batch of 2048. And the details.
    """
    study = collection(work, rows)
    shutil.rmtree(work / "cache", ignore_errors=True)
    found = {}
    for what in ("read", "check", "first_step", "first_step", "draw"):
        found[what] = _in_fresh_process(what, study, work)  # the second time everything is cached
        print(f"{what}: {found[what]}", flush=True)
    figures = {
        "full_size_peak_gb": max(part["peak_mb"] for part in found.values()) / 1000,
        "full_size_first_step_s": found["first_step"]["seconds"],
        "draw_ms": max(found["draw"]["homogeneous_ms"], found["draw"]["mixed_ms"]),
    }
    return figures, found


def collection(work: Path, rows: int) -> Path:
    """Write the datasets, a small encoder and a study file, unless they are there."""
    folder = work / f"collection-{rows}"
    study = folder / "study.yaml"
    if not study.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        random = np.random.default_rng(0)
        words = np.array(["".join(random.choice(list("abcdefghijklmnoprstuvwy"), 6)) for _ in range(WORDS)])
        names = [f"d{number:02}" for number in range(DATASETS)]
        for name, size in zip(names, sizes(rows), strict=True):
            _write_dataset(folder / f"{name}.jsonl", words, size, random)
        from tdro.demo.encoder import build_encoder

        build_encoder(folder / "encoder", [" ".join(words[i : i + 8]) for i in range(0, WORDS, 8)], seed=0)
        study.write_text(json.dumps(_study(folder, names)))  # JSON is YAML
    return study


def sizes(rows: int) -> list[int]:
    """Sizes as different as in a real collection: the largest dataset has a hundred times the rows of the smallest."""
    share = np.geomspace(100, 1, DATASETS)
    found = np.floor(share / share.sum() * rows).astype(int)
    found[0] += rows - found.sum()
    return [int(size) for size in found]


def _write_dataset(path: Path, words: np.ndarray, size: int, random: np.random.Generator) -> None:
    """Write rows of a query of six words, a positive and a negative of ten each."""
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, size, 100_000):
            texts = words[random.integers(len(words), size=(min(100_000, size - start), 26))].tolist()
            lines = (
                f'{{"query": "{" ".join(t[:6])}", "pos": ["{" ".join(t[6:16])}"], "neg": ["{" ".join(t[16:])}"]}}\n'
                for t in texts
            )
            file.writelines(lines)


def _study(folder: Path, names: list[str]) -> dict[str, Any]:
    """A study over the collection, one step long."""
    training = {"steps": 1, "batch_size": BATCH, "warmup_steps": 0, "learning_rate": 0.01}
    return {
        "name": "full-size",
        "output": str(folder / "run"),
        "data": {"root": str(folder), "datasets": {name: f"{name}.jsonl" for name in names}},
        "model": {"base": str(folder / "encoder"), "micro_batch_tokens": 20_000},
        "mining": {"when": "never"},
        "reference": training,
        "weights": {**training, "passages_per_query": 2, "reference_similarities": "live"},
    }


def _in_fresh_process(what: str, study: Path, work: Path) -> dict[str, float]:
    """Measure in a process of its own."""
    environment = {**os.environ, "TDRO_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, what, str(study), repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(what: str, study_file: Path, began: float) -> dict[str, float]:
    """Do one thing in this process; `began` is when it was started, in seconds since 1970."""
    from tdro.study_file import load_study

    study = load_study(study_file)
    with PeakMemory() as memory:
        found = {"read": _read, "check": _check, "first_step": _first_step, "draw": _draw}[what](study, study_file)
    return {**found, "seconds": time.time() - began, "peak_mb": memory.peak}


def _read(study: Any, _: Path) -> dict[str, float]:
    """Read all datasets for the first time."""
    from tdro.data.reading import read_study_dataset

    return {"rows": sum(len(read_study_dataset(study, name)) for name in study.data.datasets)}


def _check(study: Any, study_file: Path) -> dict[str, float]:
    """Check all datasets."""
    from tdro.cli.main import main

    return {"exit_code": main(["check", str(study_file), "--out", str(study_file.with_name("check.json"))])}


def _first_step(study: Any, _: Path) -> dict[str, float]:
    """Train the reference for one step."""
    from tdro.training.pipeline import run_study
    from tdro.training.run import Run

    shutil.rmtree(study.run_folder, ignore_errors=True)
    began = time.time()
    stepped: list[float] = []
    run_study(Run(study, lambda event: stepped.append(time.time()) if event["event"] == "step" else None), "reference")
    return {"seconds_within": stepped[0] - began}


def _draw(study: Any, _: Path) -> dict[str, float]:
    """Draw batches; the first draw of a dataset also shuffles it."""
    from tdro.data.mixture import HomogeneousMixture, MixedMixture
    from tdro.data.reading import read_study_dataset

    counts = {name: len(read_study_dataset(study, name)) for name in study.data.datasets}
    found = {}
    mixtures = {
        "homogeneous": HomogeneousMixture(counts, dict.fromkeys(counts, 1.0), BATCH, 42),
        "mixed": MixedMixture(counts, BATCH, 42),
    }
    for name, mixture in mixtures.items():
        milliseconds = []
        for step in range(200):
            began = time.perf_counter()
            mixture.draw(step)
            milliseconds.append(1000 * (time.perf_counter() - began))
        found |= {f"{name}_ms": statistics.median(milliseconds), f"{name}_largest_ms": max(milliseconds)}
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))))
