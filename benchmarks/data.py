"""Figures of the data tools: checking, leak removal, mining, and a collection as large as the paper's.

    python benchmarks/data.py --data FOLDER [--work FOLDER] [--rows 11000000]

Writes benchmarks/results/data.json. FOLDER has train/*.jsonl.gz. The work folder takes about 8 GB.
"""

import argparse
from pathlib import Path

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
    arguments = parser.parse_args()
    figures = {"check_rows_per_s": check_rows_per_s()}
    print(figures, flush=True)
    figures |= measure_leakage(arguments.data)
    print(figures, flush=True)
    figures["mining_overhead"], mined = mining_overhead(arguments.data, MINED)
    print(figures, flush=True)
    large, details = full_size(arguments.work, arguments.rows)
    settings = {"rows": arguments.rows, "mined": MINED}
    path = report.write_result(
        "data", {**figures, **large}, settings, {"full_size": details, "mining": mined.as_dict()}
    )
    print(f"{path}: {figures | large}")


if __name__ == "__main__":
    main()
