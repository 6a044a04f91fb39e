"""Stage 1: learn the weights with a proxy, and with proxies of other seeds where asked; say how sure they are."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

from tdro.config import WeightsConfig, fingerprint
from tdro.core.groups import COLUMNS
from tdro.core.histogram import EDGES
from tdro.data.mixture import MixedMixture
from tdro.data.reading import Rows
from tdro.data.weights_file import released_format
from tdro.files import atomic_path, write_json
from tdro.training.dataset_tokens import study_tokens
from tdro.training.diagnose import diagnose, subject_of
from tdro.training.journal import Event
from tdro.training.loop import Workplace, train
from tdro.training.query_loss import refuse_impossible_weights
from tdro.training.reference_scores import Batches, ReferenceScores, ScoreStore
from tdro.training.replay import signal_of
from tdro.training.robust_step import RobustStep
from tdro.training.run import Run
from tdro.training.stages import influential, place, rule_of, save_model, sizes_of, skip
from tdro.training.texts import TextSource
from tdro.training.weight_learner import WeightLearner

Prepared = tuple[Batches, ReferenceScores]
TABLES = ("trajectory", "statistics", "histogram", "held_out", "losses", "held_out_losses")
"""Tables that may be in weights/."""


def weights(run: Run, rows: dict[str, Rows], held_out: dict[str, Rows] | None, reference_fingerprint: str) -> str:
    """Stage 1: learn the weights with a proxy measured against the reference.

    Writes weights/weights.json (released format, with last, mean and ema, and diagnostics), weights/trajectory.parquet
    and weights/statistics.parquet (one row per step and dataset), weights/histogram.parquet (the reference's losses per
    dataset and bin), and proxy/model; for held-out rows weights/held_out.parquet. Further seeds leave their weights in
    weights/seed-N.

    Args:
        run: The run.
        rows: Dataset -> rows to train on.
        held_out: Dataset -> rows that only the losses are measured on.
        reference_fingerprint: Identifies the reference and everything it was made from.

    Returns:
        Fingerprint of the weights.
    """
    config = run.study.weights
    refuse_impossible_weights(run.study, rows)
    content = {name: dataset.info.fingerprint for name, dataset in (held_out or {}).items()}
    inputs = {"reference and all before it": reference_fingerprint, "weights": influential(config), "held out": content}
    identity = fingerprint(inputs)
    trainings = _trainings(run, identity)
    missing = [seed for seed, (_, _, done) in trainings.items() if not done]
    if missing:
        loaded = [run.load_trainee(missing[0])]
        prepared = _prepare(run, loaded[0], rows, held_out, {seed: trainings[seed][0] for seed in missing})
        for seed in missing:
            settings, stage_fingerprint, _ = trainings[seed]
            proxy = loaded.pop() if loaded else run.load_trainee(seed)  # each seed begins from the base
            here = place(run, _stage(run, seed), stage_fingerprint, seed, {**inputs, "steps": settings.steps})
            _train(run, proxy, settings, here, prepared[seed])
    if run.ranks.number == 0:
        _write_diagnostics(run, rows)
    run.ranks.barrier()
    return identity


def _trainings(run: Run, identity: str) -> dict[int, tuple[WeightsConfig, str, bool]]:
    """The proxies to train: seed -> settings, fingerprint, and whether it is finished."""
    config, first = run.study.weights, run.study.seed
    found = {
        first: (config, identity, skip(run, "weights", identity, "weights/weights.json", "proxy/model/modules.json"))
    }
    for seed in range(first + 1, first + config.seeds):
        settings = config.model_copy(update={"steps": config.seed_steps or config.steps, "keep_losses": False})
        stage_fingerprint = fingerprint(identity, influential(settings), seed)
        found[seed] = (settings, stage_fingerprint, skip(run, _stage(run, seed), stage_fingerprint))
    return found


def _stage(run: Run, seed: int) -> str:
    """Name of the stage, and folder, of a seed."""
    return "weights" if seed == run.study.seed else f"weights/seed-{seed}"


def _prepare(
    run: Run,
    model: SentenceTransformer,
    rows: dict[str, Rows],
    held_out: dict[str, Rows] | None,
    settings: dict[int, WeightsConfig],
) -> dict[int, list[Prepared]]:
    """Fix the batches of every seed and have the reference look at them: seed -> training and held-out batches."""
    batches: list[tuple[int, Batches]] = []
    with run.ranks.first():
        tokens = study_tokens(run, rows, model)
    for seed, config in settings.items():
        source = TextSource(rows, run.study.data, model, seed, tokens)
        mixture = MixedMixture(sizes_of(rows), config.batch_size, seed, config.sampling)
        batches.append((seed, Batches(rows, mixture, source, seed, config.steps)))
        if held_out is not None:
            looks = -(-config.steps // config.held_out_every)
            even = MixedMixture(sizes_of(held_out), config.batch_size, seed, "stratified")
            batches.append((seed, Batches(held_out, even, source.over(held_out), seed, looks)))
    scores = ScoreStore(run).prepare([batch for _, batch in batches])
    prepared: dict[int, list[Prepared]] = {seed: [] for seed in settings}
    for (seed, batch), score in zip(batches, scores, strict=True):
        prepared[seed].append((batch, score))
    return prepared


def _train(
    run: Run,
    proxy: SentenceTransformer,
    config: WeightsConfig,
    here: Workplace,
    prepared: list[Prepared],
) -> None:
    """Train one proxy and write what it has learned."""
    (batches, reference), held_out = prepared[0], prepared[1] if len(prepared) > 1 else None
    names, rule = list(batches.rows), rule_of(run.study, batches.rows)
    learner = WeightLearner(names, config, rule)
    with run.stage(here.stage, here.fingerprint) as result:
        step = RobustStep(
            proxy, batches, reference, config, learner, run.device, run.budget.graph_tokens, held_out, run.ranks
        )
        train(proxy, config, step, here)
        if here.seed == run.study.seed:
            save_model(run, proxy, "proxy")
            if run.ranks.number == 0:
                _write_weights(run, learner, sizes_of(batches.rows))
            result["signal_of"] = signal_of(config)
        else:
            result["weights"] = dict(zip(names, learner.weights.weights_G.tolist(), strict=True))


def _write_weights(run: Run, learner: WeightLearner, sizes: dict[str, int]) -> None:
    """Write the weights file, and the tables of what happened in every step."""
    names, learned = list(sizes), learner.weights
    columns_G = {"last": learned.weights_G, "mean": learned.mean_G, "ema": learned.ema_G}
    versions = {key: dict(zip(names, values.tolist(), strict=True)) for key, values in columns_G.items()}
    exported = versions[run.study.weights.export]
    write_json(run.folder / "weights" / "weights.json", {**released_format(exported, sizes), **versions})
    events = list(run.journal.read("step", "weights"))
    looks = [{"step": event["step"], **event["held_out"]} for event in events if "held_out" in event]
    tables = {"trajectory": _trajectory(events, names), "statistics": _statistics(events, names)}
    if all("reference_histogram" in event for event in events):  # not in steps of a version that did not count
        tables["histogram"] = _histogram(events, names)
    if looks:
        tables["held_out"] = _statistics(looks, names)
    if run.study.weights.keep_losses:
        tables["losses"] = _losses(events, names)
        if looks:
            tables["held_out_losses"] = _losses(looks, names)
    for name in TABLES:
        path = run.folder / "weights" / f"{name}.parquet"
        if name in tables:
            with atomic_path(path) as written:
                pq.write_table(pa.table(tables[name]), written)
        else:
            path.unlink(missing_ok=True)  # of an earlier training with other settings


def _write_diagnostics(run: Run, rows: dict[str, Rows]) -> None:
    """Say how sure the weights are; where plan, seeds or export have changed, say it again, of the weights exported."""
    study, sizes = run.study, sizes_of(rows)
    path = run.folder / "weights" / "weights.json"
    content = json.loads(path.read_text("utf-8"))
    if content.get("diagnostics", {}).get("of") != subject_of(study):
        events = list(run.journal.read("step", "weights"))
        fresh = WeightLearner(list(rows), study.weights, rule_of(study, rows))
        others = {seed: _weights_of_seed(run, seed) for seed in range(study.seed + 1, study.seed + study.weights.seeds)}
        exported = content[study.weights.export]
        found = diagnose(study, sizes, events, fresh, exported, others)
        write_json(path, {**content, **released_format(exported, sizes), "diagnostics": found})


def _weights_of_seed(run: Run, seed: int) -> dict[str, float]:
    """What a further proxy has learned."""
    marker = json.loads((run.folder / _stage(run, seed) / "done.json").read_text("utf-8"))
    found: dict[str, float] = marker["weights"]
    return found


def _trajectory(events: list[Event], names: list[str]) -> dict[str, Any]:
    """One row per step and dataset: weight after the step, and the signal that moved it (null where none did)."""
    signal = [event.get("signal", [None] * len(names)) for event in events]
    return {
        **_keys(events, names),
        "weight": np.concatenate([event["weights"] for event in events]),
        "signal": pa.array([value for values in signal for value in values], pa.float64()),
        "misranked": np.concatenate([event["misranked"] for event in events]).astype(np.int32),
    }


def _statistics(events: list[Event], names: list[str]) -> dict[str, Any]:
    """One row per step and dataset: sums of losses."""
    sums_C = np.concatenate([event["statistics"] for event in events]).T
    return {**_keys(events, names), **dict(zip(COLUMNS, sums_C, strict=True))}


def _histogram(events: list[Event], names: list[str]) -> dict[str, Any]:
    """One row per dataset and bin of the reference's losses: where the bin begins in nats, and its queries in all."""
    counts_GK = np.sum([event["reference_histogram"] for event in events], axis=0)
    low_K = (0.0, *EDGES)
    return {
        "dataset": np.repeat(names, len(low_K)),
        "low": np.tile(low_K, len(names)),
        "queries": counts_GK.ravel(),
    }


def _keys(events: list[Event], names: list[str]) -> dict[str, Any]:
    """Step and dataset of every row of a table."""
    steps = np.array([event["step"] for event in events], np.int32)
    return {"step": np.repeat(steps, len(names)), "dataset": names * len(events)}


def _losses(events: list[Event], names: list[str]) -> dict[str, Any]:
    """One row per step and query."""
    return {
        "step": np.repeat(np.array([e["step"] for e in events], np.int32), [len(e["groups"]) for e in events]),
        "dataset": [names[g] for event in events for g in event["groups"]],
        "proxy_loss": np.concatenate([event["proxy_losses"] for event in events]),
        "reference_loss": np.concatenate([event["reference_losses"] for event in events]),
    }
