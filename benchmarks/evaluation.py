"""Figures of evaluation: encoding, exact search, matching of MKQA's answers.

    python benchmarks/evaluation.py --data FOLDER [--work FOLDER]

Writes benchmarks/results/evaluation.json. FOLDER has eval/scifact and eval/wikiqa. Ratios are other / ours.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import report  # notes the load before the run
from evaluation_speed import (
    encode_vs_sentence_transformers,
    encode_vs_unsorted,
    search_1m_peak_gb,
    search_vs_faiss_flat,
)
from mkqa_matching import mkqa_match_cpu_s


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-evaluation"))
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    for measure in (
        partial(encode_vs_unsorted, arguments.data),
        partial(encode_vs_sentence_transformers, arguments.data),
        search_vs_faiss_flat,
        partial(search_1m_peak_gb, arguments.work),
        _mkqa,
    ):
        found, more = measure()
        details |= dict.fromkeys(found, more)
        figures |= found
        print(found, flush=True)
    print(report.write_result("evaluation", figures, {}, details))


def _mkqa() -> tuple[dict[str, float], dict[str, Any]]:
    """Name the figure of MKQA."""
    seconds, details = mkqa_match_cpu_s()
    return {"mkqa_match_cpu_s": seconds}, details


if __name__ == "__main__":
    main()
