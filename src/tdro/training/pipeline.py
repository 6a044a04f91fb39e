"""A whole study, stage after stage; and what it would do."""

from tdro.config import Study
from tdro.core.plan import Plan, reweight
from tdro.data.held_out import split_rows
from tdro.data.reading import read_study_dataset
from tdro.errors import CheckpointError, ConfigError
from tdro.models.bases import find_encoder
from tdro.training import stages
from tdro.training.leakage_gate import leakage_gate
from tdro.training.negatives import negatives
from tdro.training.optimizers import refuse_impossible_optimizers
from tdro.training.outcome import Scores, evaluate_models, refuse_missing_baselines, study_tasks
from tdro.training.planning import (
    LastStage,
    fixed_weights,
    plan_of,
    plan_weights,
    planned_stages,
    refuse_impossible_epochs,
    without_weighing,
)
from tdro.training.query_loss import refuse_impossible_fine_tuning, refuse_impossible_weights
from tdro.training.run import Run
from tdro.training.watch import watched_tasks
from tdro.training.weights_stage import weights


def run_study(run: Run, last: LastStage = "evaluate") -> Scores | None:
    """Run the stages of a study up to the last one asked for; finished ones are skipped.

    The reference and the weights are left out when nothing needs them: robust.weights names fixed weights and the
    models are not evaluated; or there is one dataset (see `without_weighing`).

    Args:
        run: The run. Of one dataset, its study becomes the one without weighing.
        last: Where to end.

    Returns:
        Scores of the evaluated models; None when the run ends before the evaluation or has no tasks.

    Raises:
        ConfigError: The weights of one dataset are asked for, or no plan can be made.
    """
    scores = _run_stages(run, last)
    run.journal.write("run_finished", last)
    return scores


def _run_stages(run: Run, last: LastStage) -> Scores | None:
    """Do what `run_study` says."""
    _settle(run, last)
    study = run.study
    refuse_missing_inputs(run, last)
    run.write_resolved()
    rows = negatives(run, leakage_gate(run, run.source_rows))
    if last == "mine":
        return None
    needed = planned_stages(study, last)
    if "weights" in needed:
        stages.refuse_rows_without_negatives(rows)
        refuse_impossible_weights(study, rows)
    if "reference" in needed:
        refuse_impossible_fine_tuning(study.reference, rows)
    held_out = None
    if study.weights.held_out_share:
        rows, held_out = split_rows(rows, study.weights.held_out_share, study.seed)
    if "weights" in needed:
        stages.rule_of(study, rows)
    refuse_impossible_epochs(study, stages.sizes_of(rows))
    if "reference" in needed:
        reference = stages.reference(run, rows)
        if "weights" in needed:
            weights(run, rows, held_out, reference)
    if last in ("reference", "weights"):
        return None
    stages.robust(run, rows, plan_weights(study, stages.sizes_of(rows)))
    return evaluate_models(run) if "evaluate" in needed else None


def evaluate_only(run: Run) -> Scores:
    """Evaluate models that earlier stages have left.

    Raises:
        CheckpointError: A model that the study wants evaluated is not there.
    """
    _settle(run, "evaluate")
    for name in run.study.evaluation.models:
        folder = run.folder / name / "model"
        if name != "base" and not folder.is_dir():
            do = "run the study first, or leave it out of evaluation.models"
            raise CheckpointError("model is not there yet", where=folder, do=do)
    _refuse_missing_tasks(run.study)
    return evaluate_models(run)


def planned(study: Study) -> dict[str, dict[str, float]]:
    """Compute what a study would sample, before anything runs; neither model nor data is read where sizes are named.

    Learned weights are not known yet: the robust columns are then left out.

    Returns:
        Dataset -> size, reference_epochs, weights_epochs and, for fixed weights, robust_probability and robust_epochs.

    Raises:
        DataError: A dataset that names no size cannot be read.
    """
    study = without_weighing(study)
    data, reference, weights = study.data, study.reference, study.weights
    sizes = {}
    for name, options in data.datasets.items():
        if options.size is not None:
            sizes[name] = min(options.size, options.max_rows or data.max_rows or options.size)
        else:
            sizes[name] = len(read_study_dataset(study, name))
    plan = _some_plan(study, sizes)
    uniform = reweight(dict.fromkeys(sizes, 1.0))
    examples = reference.steps * reference.batch_size
    epochs, proxy_epochs = uniform.epochs(sizes, examples), uniform.epochs(sizes, weights.steps * weights.batch_size)
    table: dict[str, dict[str, float]] = {
        name: {"size": sizes[name], "reference_epochs": epochs[name], "weights_epochs": proxy_epochs[name]}
        for name in sizes
    }
    if study.robust.weights != "learned":
        robust_epochs = plan.epochs(sizes, examples)
        for name, row in table.items():
            row |= {
                "robust_probability": plan.probabilities.get(name, 0.0),
                "robust_epochs": robust_epochs.get(name, 0.0),
            }
    return table


def _settle(run: Run, last: LastStage) -> None:
    """Take the weighing out of a run of one dataset, and say so.

    Raises:
        ConfigError: The weights are what is asked for.
    """
    if last == "weights" and len(run.study.data.datasets) == 1:
        do = "use tdro run or tdro robust, or add a dataset"
        raise ConfigError("one dataset has no weights to learn", where="data.datasets", do=do)
    settled = without_weighing(run.study)
    if settled == run.study:
        return
    run.study = settled
    if last in ("robust", "evaluate"):
        text = "one dataset, whose weight is 1: reference and proxy are left out, robust is the model trained on it"
        run.journal.write("note", last, text=text)


def refuse_missing_inputs(run: Run, last: LastStage) -> None:
    """Find now what would otherwise stop the run after hours.

    Raises:
        ConfigError, DataError: An encoder, task, baseline or plan is not there, or cannot be.
    """
    study = run.study
    refuse_impossible_optimizers(study)
    find_encoder(study.fill_root(study.model.base))
    if study.mining.encoder and study.mining.when != "never":
        find_encoder(study.fill_root(study.mining.encoder))
    if study.reference.guide:
        find_encoder(study.fill_root(study.reference.guide))
    uncapped = study.robust.model_copy(update={"max_epochs": None})  # the sizes are not known yet
    _some_plan(study.model_copy(update={"robust": uncapped}), dict.fromkeys(study.data.datasets, 1))
    for task in watched_tasks(study):
        for part in task.parts:
            part.check()
    if last == "evaluate":
        _refuse_missing_tasks(study)


def _refuse_missing_tasks(study: Study) -> None:
    """Look for the tasks and the baselines of the evaluation, and read judgements."""
    for task in study_tasks(study).values():
        for part in task.parts:
            part.check()
    refuse_missing_baselines(study)


def _some_plan(study: Study, sizes: dict[str, int]) -> Plan:
    """The plan of fixed weights, or of equal ones where the weights are still to be learned: as many datasets are kept.

    Raises:
        ConfigError: No plan can be made.
    """
    unknown = study.robust.weights == "learned"
    return plan_of(study, dict.fromkeys(sizes, 1.0) if unknown else fixed_weights(study, sizes), sizes)
