"""Figures of the data tools: checking, leak removal, mining, and a collection as large as the paper's.

    python benchmarks/data.py --data FOLDER [--work FOLDER] [--rows 11000000] [--full-size-only]

Writes benchmarks/results/data.json. FOLDER has train/*.jsonl.gz. The work folder takes about 8 GB. With
`--full-size-only` the other figures stay as they are in the result.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import report  # notes the load before the run
from check_speed import check_rows_per_s
from full_size import ROWS, full_size
from leakage import measure_leakage
from mining import mining_overhead

MINED = "wikisplit"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-data"))
    parser.add_argument("--rows", type=int, default=ROWS, help="of the generated collection")
    parser.add_argument("--full-size-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.full_size_only:
        before = json.loads((report.RESULTS / "data.json").read_text("utf-8"))
        figures, mining = before["figures"], before["details"]["mining"]
    else:
        figures, mining = _small_figures(arguments.data)
    large, details = full_size(arguments.work, arguments.rows)
    settings = {"rows": arguments.rows, "mined": MINED}
    path = report.write_result("data", {**figures, **large}, settings, {"full_size": details, "mining": mining})
    print(f"{path}: {figures | large}")


def _small_figures(data: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure everything but the collection of full size; also return the report of mining."""
    figures = {"check_rows_per_s": check_rows_per_s()}
    print(figures, flush=True)
    figures |= measure_leakage(data)
    print(figures, flush=True)
    figures["mining_overhead"], mined = mining_overhead(data, MINED)
    print(figures, flush=True)
    return figures, mined.as_dict()


if __name__ == "__main__":
    main()
