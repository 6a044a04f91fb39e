"""What the tests of several ranks train: run as each rank, and once in the test's own process."""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from studies import tiny_study

from tdro.config import Study
from tdro.devices import ALONE, Ranks, end_rank, join_ranks
from tdro.training.pipeline import run_study
from tdro.training.run import Run

EXACT = {"base": "{root}/model", "micro_batch_tokens": 120, "precision": "float64"}
CASES: dict[str, dict[str, dict[str, object]]] = {
    "plain": {},
    "own-only": {"data": {"own": True}},
    "lora": {"model": {"lora_rank": 4}},
    "held-out": {"weights": {"held_out_share": 0.4, "held_out_every": 2, "reference_similarities": "live"}},
    "mined": {"mining": {"when": "always", "ranks": (0, 8), "negatives": 4}},
    "float32": {"model": {"precision": "float32"}},
    "sides": {"model": {"query_encoder": "copy", "projection": 6}},
    "watched": {"evaluation": {"watch": {"eyes": "eval/words"}, "watch_every": 2}},
}
"""Case -> changes of the tiny study, whose model has dropout and whose batches do not divide evenly."""

SHARDED: dict[str, dict[str, dict[str, object]]] = {
    "bert": {},
    "bert-lora": {"model": {"lora_rank": 4}},
    "bert-recomputed": {"model": {"gradient_checkpointing": True}},
    "bert-watched": {
        "weights": {"held_out_share": 0.4, "held_out_every": 2},
        "evaluation": {"watch": {"eyes": "eval/words"}, "watch_every": 2, "tasks": {}, "keep": "best"},
    },
    "bert-layers": {"model": {"pooling": "first-last", "projection": 6}},
    "bert-idle": {"model": {"micro_batch_tokens": 100000}},  # one micro-batch for two ranks
    "qwen2": {},
    "qwen2-lora": {"model": {"lora_rank": 4}},
}
"""Case, which begins with the family of its model -> changes, as above; all with model.sharding: full."""


def study_of(case: str, root: Path, output: Path, sharding: str = "none") -> Study:
    """The study of a case, over the data under `root`."""
    changes = {section: dict(values) for section, values in (CASES | SHARDED)[case].items()}
    own = changes.get("data", {}).pop("own", False)
    family, where = ("qwen2", root / "qwen2") if case.startswith("qwen2") else ("bert", root)
    model = {**EXACT, "sharding": sharding, **changes.get("model", {})}
    study = tiny_study(where, family, **{**changes, "model": model})
    if own:
        datasets = dict(study.data.datasets)
        datasets["two"] = datasets["two"].model_copy(update={"in_batch_negatives": False})
        study = study.model_copy(update={"data": study.data.model_copy(update={"datasets": datasets})})
    return study.model_copy(update={"output": str(output / case)})


def train_cases(
    root: Path, output: Path, ranks: Ranks = ALONE, cases: Iterable[str] = CASES, sharding: str = "none"
) -> None:
    """Run the study of every case to its end."""
    for case in cases:
        run_study(Run(study_of(case, root, output, sharding), ranks=ranks))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folders, (kind, *only) = [Path(argument) for argument in sys.argv[1:3]], sys.argv[3:]
    train_cases(*folders, join_ranks(), only or (SHARDED if kind == "full" else CASES), kind)
    end_rank(0)
