"""A remedy: weigh a dataset by what training on it does for the others; no target is needed.

The base is trained on each dataset alone for a few steps, and retrieves on rows of every dataset that were held out.
What a dataset gives is the mean of that over the other datasets' rows, each in deviations over what was trained on, so
that no dataset's rows count more because they are easy to move. Weights are the softmax of it.
"""

import json
from typing import Any

import numpy as np

from study.learning import kept, mined_content, mined_files
from tdro.config import Study, TaskConfig, fingerprint
from tdro.core.plan import Plan
from tdro.files import write_text
from tdro.training.run import Run
from tdro.training.trials import Trials

STEPS = 60
HELD_OUT = 150
_ROUNDING = 1e-9


def transfer_weights(study: Study, seed: int) -> dict[str, Any]:
    """Measure what every dataset gives the others, unless that is done.

    Args:
        study: The setting, of which the negatives are mined.
        seed: Of the trainings.

    Returns:
        `weights`, `gift` (what they are made from), `gift_with_own` (own rows counted too) and `seconds`.
    """
    changed = _with_held_out_tasks(study)

    def measure() -> dict[str, Any]:
        run, names = Run(changed), list(study.data.datasets)
        trials = Trials(run, run.source_rows)
        done = [trials.run(Plan({name: 1.0}), seed) for name in names]
        score_GG = np.array([[trial.scores[other].mean() for other in names] for trial in done])
        gifts = {"gift": gift(score_GG, own=False), "gift_with_own": gift(score_GG, own=True)}
        power_G = np.exp(gifts["gift"])
        return {
            "weights": dict(zip(names, (power_G / power_G.sum()).tolist(), strict=True)),
            "seconds": round(sum(trial.seconds for trial in done), 1),
            **{kind: dict(zip(names, gift_G.tolist(), strict=True)) for kind, gift_G in gifts.items()},
        }

    subject = fingerprint(seed, changed.reference, HELD_OUT, changed.model.influential, mined_content(study))
    return kept(study.run_folder / "learned" / f"transfer-{seed}.json", subject, measure)


def gift(score_GG: np.ndarray, own: bool) -> np.ndarray:
    """Say what each dataset gives: mean over (other) held-out sets, in deviations over what is trained on.

    A held-out set on which all score the same says nothing.

    Args:
        score_GG: Score on the rows of dataset j after training on dataset i, at [i, j].
        own: Count a dataset's own rows too.
    """
    deviation_G = score_GG.std(axis=0)
    standard_GG = (score_GG - score_GG.mean(axis=0)) / np.where(deviation_G > _ROUNDING, deviation_G, 1.0)
    counted_GG = np.ones_like(standard_GG) if own else 1 - np.eye(len(standard_GG))
    counted_GG[:, deviation_G <= _ROUNDING] = 0
    return np.average(standard_GG, axis=1, weights=counted_GG)


def _with_held_out_tasks(study: Study) -> Study:
    """The setting with a task of held-out rows for every dataset, which its models do not train on."""
    folder = study.run_folder / f"transfer-{fingerprint(HELD_OUT, mined_content(study))}"
    for name, mined in mined_files(study).items():
        parts = {"train": folder / "train" / f"{name}.jsonl", "held": folder / "held" / f"{name}.jsonl"}
        if not parts["held"].exists():
            lines = mined.read_text("utf-8").splitlines(True)
            order = np.random.default_rng(0).permutation(len(lines))
            held = min(HELD_OUT, len(lines) // 4)
            write_text(parts["train"], "".join(lines[i] for i in sorted(order[held:])))
            write_text(parts["held"], "".join(_without_ids(lines[i]) for i in sorted(order[:held])))
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


def _without_ids(line: str) -> str:
    """Drop the ids of passages: in two datasets one id stands for several."""
    row = json.loads(line)
    for kind in ("positive_passages", "negative_passages"):
        row[kind] = [{key: value for key, value in passage.items() if key != "docid"} for passage in row[kind]]
    return json.dumps(row, ensure_ascii=False) + "\n"
