"""Which way of learning agrees with usefulness? PYTHONPATH=benchmarks python -m study.ablations [--work runs/study].

Weights are learned in many ways, three seeds each, and their ranks are compared with the usefulness of a setting that
the program has finished; nothing else is trained. Writes benchmarks/results/study/SETTING-ablations.csv.
"""

import argparse
import csv
import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from study.settings import CORE, FEWER_SEEDS, GOALS, MEASURES, RESULTS, study_of
from study.variations import AS_IN_THE_STUDY, OF_RATIOS, VARIATIONS, learned_in
from study.writing import write_table
from tdro.config import Study
from tdro.evaluation.regression import rank_agreement

BASES = ("relative", "relative-sample")
"""Measures of which every variation is tried."""


def main() -> None:
    """Learn and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/study"))
    parser.add_argument("--settings", nargs="+", choices=CORE, default=CORE)
    options = parser.parse_args()
    for setting in options.settings:
        study, usefulness, rows = study_of(setting, options.work), usefulness_of(setting), []
        for measure in (*BASES, *(measure for measure in (*MEASURES, "excess-relative") if measure not in BASES)):
            for variation in (*VARIATIONS, *(OF_RATIOS if measure == "relative" else ())):
                if measure in BASES or variation == AS_IN_THE_STUDY:
                    rows.append(_row(study, measure, variation, usefulness))
                    print(json.dumps({"setting": setting, **rows[-1]}), flush=True)
        write_table(RESULTS / f"{setting}-ablations.csv", rows)


def _row(study: Study, measure: str, variation: str, usefulness: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Learn weights in one way with several seeds, and compare their ranks."""
    learned = [learned_in(study, seed, measure, variation) for seed in FEWER_SEEDS]
    names = list(learned[0]["weights"])
    weights = [[one["weights"][dataset] for dataset in names] for one in learned]
    means = [[one["mean"][dataset] for dataset in names] for one in learned]
    row: dict[str, Any] = {"measure": measure, "variation": variation}
    for goal, slopes in usefulness.items():
        slope_G = [slopes[dataset] for dataset in names]
        row[f"agreement_{goal}"] = _mean(rank_agreement(one, slope_G) for one in weights)
        row[f"agreement_{goal}_of_mean"] = _mean(rank_agreement(one, slope_G) for one in means)
    row["between_seeds"] = _mean(rank_agreement(*pair) for pair in combinations(weights, 2))
    row["effective_datasets"] = _mean(1 / np.square(one).sum() for one in weights)
    row["seconds"] = _mean(one["seconds"] for one in learned)
    return row


def usefulness_of(setting: str) -> dict[str, dict[str, float]]:
    """Goal -> dataset -> usefulness, as the study has found it."""
    with (RESULTS / f"{setting}-datasets.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {goal: {row["dataset"]: float(row[f"usefulness_{goal}"]) for row in rows} for goal in GOALS}


def _mean(values: Any) -> float:
    """Mean, as the table has it."""
    return round(float(np.mean(list(values))), 3)


if __name__ == "__main__":
    main()
