"""A remedy: weigh a dataset by what training on it does for the others. PYTHONPATH=benchmarks python -m study.transfer.

The base is trained on each dataset alone for a few steps, and retrieves on rows of every dataset that were held out.
What a dataset gives the others, on average and in units of what anything gives them, is its weight's rank. Compared
with usefulness as the learned weights are. Writes benchmarks/results/study/SETTING-transfer.json.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from study.ablations import usefulness_of
from study.settings import SEEDS, SETTINGS, study_of
from study.writing import RESULTS
from tdro.config import Study, TaskConfig
from tdro.core.plan import Plan
from tdro.evaluation.regression import rank_agreement
from tdro.files import write_json, write_text
from tdro.training.run import Run
from tdro.training.trials import Trials

STEPS = 60
HELD_OUT = 150


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/study"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    options = parser.parse_args()
    for setting in options.settings:
        study = _with_held_out_tasks(study_of(setting, options.work))
        run = Run(study)
        trials, names = Trials(run, run.source_rows), list(study.data.datasets)
        found_SGG, seconds = [], 0.0
        for seed in SEEDS:
            done = [trials.run(Plan({name: 1.0}), seed) for name in names]
            found_SGG.append([[trial.scores[other].mean() for other in names] for trial in done])
            seconds += sum(trial.seconds for trial in done) / len(SEEDS)
            print(f"{setting}: seed {seed} done", flush=True)
        _write(setting, names, np.array(found_SGG), seconds)


def _write(setting: str, names: list[str], score_SGG: np.ndarray, seconds: float) -> None:
    """Say what every dataset gives, and how that agrees with usefulness."""
    usefulness = usefulness_of(setting)
    gifts = {
        "to others": [_gift(score_GG, own=False) for score_GG in score_SGG],
        "to all": [_gift(score_GG, own=True) for score_GG in score_SGG],
    }
    agreement: Mapping[str, object] = {
        kind: {
            goal: [round(rank_agreement(one, [slopes[name] for name in names]), 3) for one in by_seed]
            for goal, slopes in usefulness.items()
        }
        for kind, by_seed in gifts.items()
    }
    write_json(RESULTS / f"{setting}-transfer.json", {
        "steps": STEPS,
        "held_out": HELD_OUT,
        "seconds": round(seconds, 1),
        "agreement": agreement,
        "between_seeds": {kind: round(rank_agreement(*by_seed[:2]), 3) for kind, by_seed in gifts.items()},
        "gift": {
            kind: dict(zip(names, np.mean(by_seed, axis=0).round(3).tolist(), strict=True))
            for kind, by_seed in gifts.items()
        },
    })  # fmt: skip


def _gift(score_GG: np.ndarray, own: bool) -> np.ndarray:
    """What each dataset gives: mean over (other) held-out sets of the score, in deviations over what is trained on."""
    standard_GG = (score_GG - score_GG.mean(axis=0)) / score_GG.std(axis=0)
    counted_GG = np.ones_like(standard_GG) if own else 1 - np.eye(len(standard_GG))
    return np.average(standard_GG, axis=1, weights=counted_GG)


def _with_held_out_tasks(study: Study) -> Study:
    """The setting with a task of held-out rows for every dataset, which its models do not train on."""
    folder = study.run_folder / "transfer"
    for name in study.data.datasets:
        parts = {"train": folder / "train" / f"{name}.jsonl", "held": folder / "held" / f"{name}.jsonl"}
        if not parts["held"].exists():
            lines = (study.run_folder / "data" / "negatives" / f"{name}.jsonl").read_text("utf-8").splitlines(True)
            order = np.random.default_rng(0).permutation(len(lines))
            held = min(HELD_OUT, len(lines) // 4)
            write_text(parts["train"], "".join(lines[i] for i in sorted(order[held:])))
            write_text(parts["held"], "".join(lines[i] for i in sorted(order[:held])))
    datasets = {
        name: options.model_copy(update={"path": str((folder / "train" / f"{name}.jsonl").resolve())})
        for name, options in study.data.datasets.items()
    }
    tasks = {name: TaskConfig(path=str((folder / "held" / f"{name}.jsonl").resolve())) for name in datasets}
    return study.model_copy(
        update={
            "output": str(folder),
            "data": study.data.model_copy(update={"datasets": datasets}),
            "leakage": study.leakage.model_copy(update={"gate": "off"}),
            "reference": study.reference.model_copy(update={"steps": STEPS, "warmup_steps": 5}),
            "evaluation": study.evaluation.model_copy(update={"tasks": tasks}),
        }
    )


if __name__ == "__main__":
    main()
