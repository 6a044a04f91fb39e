"""What the tests of several ranks train with the options of the loss: run as each rank, and once in the test itself."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from rank_cases import EXACT
from studies import tiny_study
from tiny_models import make_tiny_model

from tdro.config import Study
from tdro.devices import ALONE, Ranks, end_rank, join_ranks
from tdro.training.pipeline import run_study
from tdro.training.run import Run

DISTILLED = {"distillation": 0.5, "loss_factor": 0.7}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "mixed": {"reference": {"batches": "mixed"}, "robust": {"plan": "reweight-loss"}},
    "guide": {"reference": {"guide": "{root}/guide", "guide_margin": 0.1}},
    "distilled": {"reference": DISTILLED, "weights": DISTILLED},
    "everything": {
        "data": {"instruction_share": 0.5, "positives": "first"},
        "reference": {
            **DISTILLED, "batches": "mixed", "guide": "{root}/guide", "guide_margin": 0.1, "matryoshka": (8,),
            "passages_per_query": 3,
        },
        "weights": {"distillation": 1.0, "loss_factor": 0.0, "reference_similarities": "live"},
    },
}  # fmt: skip
"""Case -> changes of the tiny study."""


def prepare(root: Path) -> None:
    """Make data whose passages have scores, a model and a guide."""
    tiny_study(root)
    make_tiny_model("qwen2", root / "root" / "guide", seed=5)
    for path in (root / "root" / "train").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for i, row in enumerate(rows):
            for j, passage in enumerate([*row["positive_passages"], *row["negative_passages"]]):
                passage["score"] = (5 * i + 3 * j) % 7 / 2
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def study_of(case: str, root: Path, output: Path) -> Study:
    """The study of a case, over the data under `root`; dataset `two` has no in-batch negatives."""
    changes = {section: dict(values) for section, values in CASES[case].items()}
    datasets: dict[str, dict[str, Any]] = {
        name: {"path": f"train/{name}.jsonl", "instruction": "sun moon"} for name in ("one", "two", "three")
    }
    datasets["two"] |= {"in_batch_negatives": False, "more_instructions": ["tide"], "symmetric": True}
    data = {**changes.pop("data", {}), "datasets": datasets}
    study = tiny_study(root, "bert", **changes, data=data, model=EXACT)
    return study.model_copy(update={"output": str(output / case)})


def train_cases(root: Path, output: Path, ranks: Ranks = ALONE) -> None:
    """Run the study of every case to its end."""
    for case in CASES:
        run_study(Run(study_of(case, root, output), ranks=ranks))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_cases(Path(sys.argv[1]), Path(sys.argv[2]), join_ranks())
    end_rank(0)
