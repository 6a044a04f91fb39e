"""Which weights each measure gives on real data, and how they depend on step size, steps, temperature and seed.

    python benchmarks/measures.py --data FOLDER [--work FOLDER]

Writes benchmarks/results/measures.json and prints the tables of docs/weights-on-data.md. One small static encoder, one
reference; every row is a real run of the weights stage, not a replay.
"""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from report import write_result
from scipy.stats import spearmanr
from study_on_data import data_study, run_weights

from tdro.core.diagnostics import effective_number
from tdro.core.rule import Measure
from tdro.data.weights_file import read_diagnostics, read_sizes, read_weights
from tdro.training.replay import replay_run

SENSITIVE = ("relative", "relative-sample", "excess")
CHANGES: dict[str, dict[str, Any]] = {
    "step size 0.005": {"step_size": 0.005},
    "step size 0.08": {"step_size": 0.08},
    "100 steps": {"steps": 100},
    "400 steps": {"steps": 400},
    "temperature 0.002": {"temperature": 0.002},
    "temperature 0.1": {"temperature": 0.1},
}


def main() -> None:
    """Run all studies and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-weights"))
    arguments = parser.parse_args()
    base = {measure: learned(arguments, f"measure-{measure}", measure, {"seeds": 2}) for measure in get_args(Measure)}
    held_out = learned(arguments, "measure-relative-held-out", "relative", {"held_out_share": 0.1, "held_out_every": 5})
    moved = learned(
        arguments, "measure-relative-by-held-out", "relative",
        {"held_out_share": 0.1, "held_out_every": 1, "signal": "held-out"},
    )  # fmt: skip
    changed = {
        measure: {
            change: learned(arguments, f"measure-{measure}-{change.replace(' ', '-')}", measure, options)
            for change, options in CHANGES.items()
        }
        for measure in SENSITIVE
    }
    print_weights(base, moved)
    print_sensitivity(base, changed)
    print_memory(held_out, moved)
    figures = {f"rank_agreement_of_seeds_{measure}": run["seeds"] for measure, run in base.items()}
    figures["replay_difference"] = replay_difference(arguments)
    settings = {"encoder": "static, 256 dimensions, random at the start", "steps": 200, "batch_size": 64,
                "passages_per_query": 5, "temperature": 0.02, "step_size": 0.02, "seed": 42}  # fmt: skip
    details = {"weights": base, "changed": changed, "held_out": held_out, "by_held_out": moved}
    write_result("measures", figures, settings, details)


def learned(arguments: argparse.Namespace, name: str, measure: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run the weights stage with a measure; return weights and what is said of them."""
    changes = {"measure": measure, "reference_similarities": "all", "keep_losses": True, **options}
    study = data_study(arguments.data, arguments.work, name, weights=changes)
    reference = "reference-held-out" if "held_out_share" in options else "reference-float32"
    run_weights(study, arguments.work / reference)
    path = study.run_folder / "weights" / "weights.json"
    weights, diagnostics = read_weights(path), read_diagnostics(path)
    return {
        "weights": weights,
        "effective": effective_number(np.array(list(weights.values()))),
        "seeds": (diagnostics["seeds"] or {}).get("rank_agreement"),
        "verdicts": {name: dataset["verdict"] for name, dataset in diagnostics["datasets"].items()},
        "memorisation": {name: dataset.get("memorisation") for name, dataset in diagnostics["datasets"].items()},
        "sizes": read_sizes(path),
    }


def replay_difference(arguments: argparse.Namespace) -> float:
    """Largest difference between a run's weights and their replay, over all measures."""
    worst = 0.0
    for measure in get_args(Measure):
        study = data_study(arguments.data, arguments.work, f"measure-{measure}", weights={"measure": measure})
        again = replay_run(
            study.run_folder, study.weights, study.reference.steps * study.reference.batch_size
        ).exported()
        weights = read_weights(study.run_folder / "weights" / "weights.json")
        worst = max(worst, *(abs(again[name] - weights[name]) for name in weights))
    return worst


def print_weights(base: dict[str, dict[str, Any]], moved: dict[str, Any]) -> None:
    """Print weights x 100 of every measure, datasets in the order of `relative`."""
    runs = {**{m: run for m, run in base.items() if m != "target"}, "relative, held-out": moved}
    print(f"| dataset | rows | {' | '.join(runs)} |\n|---|---|{'---|' * len(runs)}")
    order = sorted(base["relative"]["weights"], key=lambda n: -base["relative"]["weights"][n])
    for name in order:
        cells = " | ".join(f"{100 * run['weights'][name]:.1f}" for run in runs.values())
        print(f"| {name} | {base['relative']['sizes'][name]} | {cells} |")
    print("| **effective datasets** | | " + " | ".join(f"{run['effective']:.1f}" for run in runs.values()) + " |")
    agreement = [run["seeds"] for run in runs.values()]
    print("| **agreement of two seeds** | | " + " | ".join("" if a is None else f"{a:.2f}" for a in agreement) + " |")


def print_sensitivity(base: dict[str, dict[str, Any]], changed: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print how weights change with the settings: rank agreement with the base setting, and effective datasets."""
    print(f"\n| changed | {' | '.join(changed)} |\n|---|{'---|' * len(changed)}")
    print("| nothing | " + " | ".join(f"1.00, {base[measure]['effective']:.1f}" for measure in changed) + " |")
    for change in CHANGES:
        cells = []
        for measure, runs in changed.items():
            names = list(base[measure]["weights"])
            rho = spearmanr([base[measure]["weights"][n] for n in names], [runs[change]["weights"][n] for n in names])
            cells.append(f"{rho.statistic:.2f}, {runs[change]['effective']:.1f}")
        print(f"| {change} | {' | '.join(cells)} |")


def print_memory(held_out: dict[str, Any], moved: dict[str, Any]) -> None:
    """Print the memorisation of every dataset."""
    print("\nmemorisation:", json.dumps({name: round(v, 3) for name, v in held_out["memorisation"].items()}))
    names = list(held_out["weights"])
    rho = spearmanr([held_out["weights"][n] for n in names], [moved["weights"][n] for n in names]).statistic
    print(f"rank agreement of training and held-out signal: {rho:.2f}")


if __name__ == "__main__":
    main()
