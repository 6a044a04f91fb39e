"""Run folders made without training, for tests of the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

COLUMNS = ("n", "sum_l", "sum_r", "sum_ll", "sum_rr", "sum_lr", "n_bad")


def write_run(
    folder: Path,
    names: Sequence[str] = ("nq", "quora", "xsum"),
    *,
    steps: int = 20,
    robust: dict[str, Any] | None = None,
    weights: Sequence[float] | None = None,
    tasks: Sequence[str] = ("scifact", "arguana", "fiqa"),
    gain: float = 0.0,
    text: str = "plain text",
) -> Path:
    """Write a complete run: weights that fall from dataset to dataset, models that differ by `gain`."""
    robust = {"plan": "top-share", "share": 0.7, "cap": 1.0, "max_epochs": None, "weights": "learned", **(robust or {})}
    settings = {
        "name": "made-up", "seed": 1, "data": {"datasets": {name: {"path": f"{name}.jsonl"} for name in names}},
        "model": {"base": "base"}, "leakage": {"gate": "warn"},
        "reference": {"steps": 10, "batch_size": 20},
        "weights": {"measure": "relative", "clip": "l2", "clip_norm": 1.0, "export": "last"},
        "robust": robust, "evaluation": {"tasks": {task: {"path": task} for task in tasks}},
        "ran": {"versions": {"torch": "2"}, "machine": {"device": "cpu"}, "data": dict.fromkeys(names, "abc")},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resolved.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    (folder / "study.yaml").write_text(f"name: made-up  # {text}\n", "utf-8")
    final = np.array(weights if weights is not None else 0.8 ** np.arange(len(names)))
    final = final / final.sum()
    _write_events(folder, steps)
    _write_learning(folder, names, steps, final)
    sizes = {name: 40 + 10 * k for k, name in enumerate(names)}
    _write_weights(folder, names, final, sizes, robust)
    for task in tasks:
        for model in ("reference", "robust"):
            write_result(folder / "evaluation" / model / task, task, model, gain * (model == "robust"), text)
    scores = {task: {m: {"ndcg@10": 0.5, "recall@100": 0.9} for m in ("reference", "robust")} for task in tasks}
    if tasks:
        _write_json(folder / "evaluation" / "summary.json", scores)
    return folder


def _write_events(folder: Path, steps: int) -> None:
    """A journal with the events that a run has."""
    mined = {"positive_similarity": 0.8, "negative_similarity": 0.3, "inverted": 0.1, "rows": 40, "negatives": 80}
    events: list[dict[str, Any]] = [
        {"event": "mined", "stage": "negatives", "dataset": "nq", "seconds": 3.0, **mined},
    ]
    for stage in ("reference", "weights", "robust"):
        events.append({"event": "stage_started", "stage": stage, "from_step": 0, "steps": steps})
        events += [
            {"event": "step", "stage": stage, "step": step, "steps": steps, "loss": 1.0} for step in range(steps)
        ]
        events.append({"event": "stage_finished", "stage": stage, "seconds": 60.0})
    events.append({"event": "run_finished", "stage": "evaluate"})
    lines = (json.dumps({**event, "time": 100.0 + k}) for k, event in enumerate(events))
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def _write_learning(folder: Path, names: Sequence[str], steps: int, final_G: np.ndarray) -> None:
    """Tables of steps in which log-weights move on a straight line to the final ones."""
    share_T = np.linspace(0, 1, steps)[:, None]
    log_TG = share_T * np.log(final_G) - (1 - share_T) * np.log(len(names))
    weight_TG = np.exp(log_TG) / np.exp(log_TG).sum(axis=1, keepdims=True)
    keys = {"step": np.repeat(np.arange(steps, dtype=np.int32), len(names)), "dataset": list(names) * steps}
    signal_TG = np.tile(1 + np.arange(len(names)) / len(names), (steps, 1))
    misranked_TG = np.zeros((steps, len(names)), np.int32)
    misranked_TG[:, 0] = 3  # of 4 queries
    sums_TGC = np.tile([4.0, 8.0, 4.0, 17.0, 4.5, 8.2, 0.0], (steps, len(names), 1))
    (folder / "weights").mkdir(exist_ok=True)
    trajectory = {**keys, "weight": weight_TG.ravel(), "signal": signal_TG.ravel(), "misranked": misranked_TG.ravel()}
    pq.write_table(pa.table(trajectory), folder / "weights" / "trajectory.parquet")
    sums = dict(zip(COLUMNS, sums_TGC.reshape(-1, len(COLUMNS)).T, strict=True))
    pq.write_table(pa.table({**keys, **sums}), folder / "weights" / "statistics.parquet")


def _write_weights(
    folder: Path, names: Sequence[str], final_G: np.ndarray, sizes: dict[str, int], robust: dict[str, Any]
) -> None:
    """weights.json with diagnostics, and the plan."""
    last = dict(zip(names, final_G.tolist(), strict=True))
    verdicts = ("keep", "undecided", "drop")
    datasets = {
        name: {"interval": [0.8 * w, 1.2 * w], "verdict": verdicts[min(3 * k // len(names), 2)], "misranked_share": 0.0}
        for k, (name, w) in enumerate(last.items())
    }
    diagnostics = {"cut": max(1, int(0.7 * len(names))), "duality_gap": 0.5, "change_in_last_tenth": 0.2, "seeds": None,
                   "datasets": datasets}  # fmt: skip
    content = {
        "domain_weights": last,
        "size": sizes,
        "last": last,
        "mean": last,
        "ema": last,
        "diagnostics": diagnostics,
    }
    _write_json(folder / "weights" / "weights.json", content)
    kept = sorted(names, key=lambda name: (-last[name], name))[: max(1, int(0.7 * len(names)))]
    lines = ["dataset,size,weight,probability,expected_epochs"]
    for name in names:
        p = 1 / len(kept) if name in kept else 0.0
        quoted = '"' + name.replace('"', '""') + '"'
        lines.append(f"{quoted},{sizes[name]},{last[name]},{p},{p * 200 / sizes[name]}")
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "plan.csv").write_text("\n".join(lines) + "\n", "utf-8")


def write_result(folder: Path, task: str, model: str, gain: float, text: str, main: str = "ndcg@10") -> None:
    """A result of 30 queries, scores between 0.3 and 0.6."""
    folder.mkdir(parents=True)
    ids = [f"q{k}" for k in range(30)]
    noise = np.random.default_rng(len(task)).normal(0, 0.002, 30) if gain else np.zeros(30)
    scores = np.linspace(0.3, 0.6, 30) + gain + noise
    pq.write_table(pa.table({"query_id": ids, main: scores}), folder / "scores.parquet")
    rows = [
        {"query_id": i, "query": f"{text}?", "rank": 1, "document_id": "d1", "relevance": 1, "title": "", "text": text}
        for i in ids
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "top.parquet")
    summary = {
        "task": task,
        "part": "",
        "model": model,
        "main": main,
        "corpus": "c",
        "content": "x",
        "oddities": {},
    }
    _write_json(folder / "summary.json", summary)


def _write_json(path: Path, content: object) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
