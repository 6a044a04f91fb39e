"""The stages of a study, in order: negatives, reference, weights, robust. Finished ones are skipped, like make."""

import csv
import io
import json
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

from tdro.config import Study, TrainingConfig, fingerprint
from tdro.core.groups import COLUMNS
from tdro.core.plan import Plan, bottom_share, reweight, reweight_loss, size_mixture, top_share
from tdro.core.rule import Rule
from tdro.data.mixture import HomogeneousMixture, MixedMixture
from tdro.data.reading import Rows
from tdro.data.weights_file import match_weights, read_weights, released_format
from tdro.errors import ConfigError, DataError
from tdro.files import atomic_path, write_json, write_text
from tdro.models.encoder import save_encoder, set_max_length
from tdro.training.contrastive_step import ContrastiveStep
from tdro.training.diagnose import diagnose, rank_of_the_cut
from tdro.training.loop import Workplace, train
from tdro.training.robust_step import RobustStep
from tdro.training.run import Run
from tdro.training.texts import TextSource
from tdro.training.weight_learner import WeightLearner, make_rule


def reference(run: Run, rows: dict[str, Rows]) -> str:
    """Stage 0: train the reference with uniform sampling.

    Returns:
        Fingerprint of the reference: everything that its parameters depend on.
    """
    plan = reweight(dict.fromkeys(rows, 1.0))
    return _fine_tune(run, rows, "reference", plan)


def robust(run: Run, rows: dict[str, Rows], weights: dict[str, float]) -> str:
    """Stage 2: train the robust model like the reference, with the mixture that the weights give.

    Writes data/plan.csv: dataset, size, weight, probability, expected epochs.
    """
    plan = plan_of(run.study, weights)
    if lacking := [name for name, weight in weights.items() if weight == 0]:
        run.journal.write("note", "robust", text=f"no weight for {', '.join(lacking)}: left out")
    sizes = {name: len(dataset) for name, dataset in rows.items()}
    write_text(run.folder / "data" / "plan.csv", plan_csv(plan, weights, sizes, run.study.reference))
    return _fine_tune(run, rows, "robust", plan)


def weights(run: Run, rows: dict[str, Rows], reference_fingerprint: str) -> str:
    """Stage 1: learn the weights with a proxy measured against the reference.

    Writes weights/weights.json (released format, with last, mean and ema), weights/trajectory.parquet and
    weights/statistics.parquet (one row per step and dataset), and proxy/model.

    Returns:
        Fingerprint of the weights.
    """
    study = run.study
    config = study.weights
    stage_fingerprint = fingerprint(reference_fingerprint, _influential(config), "weights")
    if _skip(run, "weights", stage_fingerprint, "weights/weights.json", "proxy/model/modules.json"):
        _move_the_cut(run, rows)
        return stage_fingerprint
    names, sizes = list(rows), {name: len(dataset) for name, dataset in rows.items()}
    with run.stage("weights", stage_fingerprint):
        proxy = run.load_base().train()
        step = RobustStep(
            proxy,
            run.load(str(run.folder / "reference" / "model")),
            TextSource(rows, study.data, proxy, study.seed),
            MixedMixture(sizes, config.batch_size, study.seed, config.sampling),
            names,
            config,
            WeightLearner(names, config, rule_of(study, rows)),
            run.device,
            run.max_tokens,
        )
        train(proxy, config, step, _place(run, "weights", stage_fingerprint))
        _save(run, proxy, "proxy")
        _write_weights(run, step, sizes, WeightLearner(names, config, rule_of(study, rows)))
    return stage_fingerprint


def rule_of(study: Study, rows: dict[str, Rows]) -> Rule:
    """Turn the settings of the weights stage into a rule; what cannot be is refused."""
    examples = study.reference.steps * study.reference.batch_size
    return make_rule(study.weights, {name: len(dataset) for name, dataset in rows.items()}, examples)


def refuse_rows_without_negatives(rows: dict[str, Rows]) -> None:
    """Refuse datasets that stage 1 cannot measure.

    Raises:
        DataError: A dataset has rows without negatives: the loss of stage 1 knows no others.
    """
    for name, dataset in rows.items():
        if dataset.without_negatives:
            saw = f"{dataset.without_negatives} of {len(dataset)} rows"
            do = "set mining.when to missing; where mining found none either, remove these rows or add passages"
            raise DataError("rows without negatives", where=f"dataset {name}, {dataset.info.path}", saw=saw, do=do)


def plan_weights(run: Run, sizes: dict[str, int]) -> dict[str, float]:
    """Return the weights that robust.weights asks for, one per dataset of the study."""
    if run.study.robust.weights != "learned":
        return fixed_weights(run.study, sizes)
    path = run.folder / "weights" / "weights.json"
    return match_weights(read_weights(path), sizes, str(path))


def fixed_weights(study: Study, sizes: dict[str, int]) -> dict[str, float]:
    """Return weights that need no training: of a fixed mixture, a preset or a file, one per dataset of the study.

    Raises:
        ConfigError: They cannot be read, or one is for a dataset that the study does not have.
    """
    source = study.robust.weights
    if _is_mixture(source):
        temperature = {"uniform": math.inf, "size": 1.0}.get(source) or float(source.removeprefix("temperature-"))
        return size_mixture(sizes, temperature)
    return match_weights(read_weights(source), sizes, source)


def plan_of(study: Study, weights: dict[str, float]) -> Plan:
    """Turn weights into the plan that the study asks for; a fixed mixture is sampled as it is.

    Raises:
        ConfigError: robust.share keeps no dataset, or no weight is above 0.
    """
    config = study.robust
    try:
        if config.plan == "reweight" or _is_mixture(config.weights):
            return reweight(weights)
        if config.plan == "reweight-loss":
            return reweight_loss(weights)
        return (top_share if config.plan == "top-share" else bottom_share)(weights, config.share)
    except ValueError as error:
        raise ConfigError(str(error), where="robust", do="raise robust.share or use robust.plan: reweight") from None


def _is_mixture(weights: str) -> bool:
    """Whether robust.weights names a mixture that follows from the sizes alone."""
    return re.fullmatch(r"uniform|size|temperature-(?!0+(\.0+)?$)\d+(\.\d+)?", weights) is not None


def plan_csv(plan: Plan, weights: dict[str, float], sizes: dict[str, int], config: TrainingConfig) -> str:
    """Write a plan as a table: dataset, size, weight, probability, expected epochs."""
    epochs = plan.epochs(sizes, config.steps * config.batch_size)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["dataset", "size", "weight", "probability", "expected_epochs"])
    for name in sorted(weights, key=lambda n: (-weights[n], n)):
        table.writerow([name, sizes[name], weights[name], plan.probabilities.get(name, 0.0), epochs.get(name, 0.0)])
    return text.getvalue()


def _fine_tune(run: Run, rows: dict[str, Rows], stage: str, plan: Plan) -> str:
    """Train the base on homogeneous batches with a plan; stages 0 and 2."""
    study, config = run.study, run.study.reference
    stage_fingerprint = fingerprint(_inputs(run, rows), _influential(config), plan.probabilities, plan.loss_factors)
    if _skip(run, stage, stage_fingerprint, f"{stage}/model/modules.json"):
        return stage_fingerprint
    with run.stage(stage, stage_fingerprint) as result:
        model = run.load_base().train()
        mixture = HomogeneousMixture(
            {name: len(dataset) for name, dataset in rows.items()}, plan.probabilities, config.batch_size, study.seed
        )
        source = TextSource(rows, study.data, model, study.seed)
        factor_G = [(plan.loss_factors or {}).get(name, 1.0) for name in rows]
        step = ContrastiveStep(model, source, mixture, list(rows), factor_G, config, run.device, run.max_tokens)
        train(model, config, step, _place(run, stage, stage_fingerprint))
        _save(run, model, stage)
        seen = mixture.examples_seen(config.steps)
        result["epochs"] = {name: round(count / len(rows[name]), 3) for name, count in seen.items()}
    return stage_fingerprint


def _save(run: Run, model: SentenceTransformer, name: str) -> None:
    """Save a trained model; by itself it cuts texts where passages were cut in training."""
    set_max_length(model, run.study.data.passage_max_length)
    save_encoder(model.eval(), run.folder / name / "model")


def _inputs(run: Run, rows: dict[str, Rows]) -> str:
    """Identify everything that all training stages depend on."""
    study = run.study
    data = study.data.model_dump(exclude={"root": True, "datasets": {"__all__": {"path", "size"}}})
    content = [(name, dataset.info.fingerprint) for name, dataset in rows.items()]  # the order decides ties
    return fingerprint(data, content, study.model, run.base_fingerprint, study.seed)


def _influential(config: TrainingConfig) -> dict[str, Any]:
    """The settings that change results."""
    return config.model_dump(mode="json", exclude={"checkpoint_every"})


def _skip(run: Run, stage: str, stage_fingerprint: str, *outputs: str) -> bool:
    """Say whether a stage is finished, and tell the journal."""
    done = run.finished(stage, stage_fingerprint, *outputs) is not None
    if done:
        run.journal.write("stage_skipped", stage)
    return done


def _place(run: Run, stage: str, stage_fingerprint: str) -> Workplace:
    """Say where a stage trains."""
    return Workplace(stage, run.folder / stage, run.journal, stage_fingerprint, run.study.seed)


def _move_the_cut(run: Run, rows: dict[str, Rows]) -> None:
    """Say again what is kept for sure, where the plan's share has changed since the weights were learned."""
    path = run.folder / "weights" / "weights.json"
    content = json.loads(path.read_text("utf-8"))
    if content["diagnostics"]["cut"] != rank_of_the_cut(run.study):
        names, events = list(rows), list(run.journal.read("step", "weights"))
        fresh = WeightLearner(names, run.study.weights, rule_of(run.study, rows))
        write_json(path, {**content, "diagnostics": diagnose(run.study, names, events, fresh)})


def _write_weights(run: Run, step: RobustStep, sizes: dict[str, int], fresh: WeightLearner) -> None:
    """Write the weights file with its diagnostics, and the tables of what happened in every step."""
    names, learned = list(sizes), step.learner.weights
    columns_G = {"last": learned.weights_G, "mean": learned.mean_G, "ema": learned.ema_G}
    versions = {key: dict(zip(names, values.tolist(), strict=True)) for key, values in columns_G.items()}
    exported = versions[run.study.weights.export]
    events = list(run.journal.read("step", "weights"))
    diagnostics = diagnose(run.study, names, events, fresh)
    content = {**released_format(exported, sizes), **versions, "diagnostics": diagnostics}
    write_json(run.folder / "weights" / "weights.json", content)
    keys = {
        "step": np.repeat(np.array([event["step"] for event in events], np.int32), len(names)),
        "dataset": names * len(events),
    }
    moves = {"weight": "weights", "signal": "signal"}
    trajectory = {column: np.concatenate([event[key] for event in events]) for column, key in moves.items()}
    sums_C = np.concatenate([event["statistics"] for event in events]).T
    statistics = dict(zip(COLUMNS, sums_C, strict=True))
    tables = {"trajectory": {**keys, **trajectory}, "statistics": {**keys, **statistics}}
    if run.study.weights.keep_losses:
        tables["losses"] = {
            "step": np.repeat(np.array([e["step"] for e in events], np.int32), [len(e["groups"]) for e in events]),
            "dataset": [names[g] for event in events for g in event["groups"]],
            "proxy_loss": np.concatenate([event["proxy_losses"] for event in events]),
            "reference_loss": np.concatenate([event["reference_losses"] for event in events]),
        }
    for name, columns in tables.items():
        with atomic_path(run.folder / "weights" / f"{name}.parquet") as path:
            pq.write_table(pa.table(columns), path)
