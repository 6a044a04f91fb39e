"""The stages that fine-tune, reference and robust; and what all stages share."""

import shutil
from collections.abc import Mapping
from typing import Any

from sentence_transformers import SentenceTransformer

from tdro.config import ReferenceConfig, Study, TrainingConfig, WeightsConfig, fingerprint
from tdro.core.plan import Plan, reweight
from tdro.core.rule import Rule
from tdro.data.mixture import HomogeneousMixture, MixedMixture, Mixture
from tdro.data.reading import Rows
from tdro.errors import ConfigError, DataError
from tdro.files import write_text
from tdro.models.encoder import save_encoder, set_max_length
from tdro.models.lora import has_lora, save_adapter
from tdro.retrieval.encoders import encoder_fingerprint
from tdro.sharding import is_sharded
from tdro.training.checkpoint import fill_tensors, trained_tensors
from tdro.training.contrastive_step import ContrastiveStep
from tdro.training.dataset_tokens import DatasetTokens, study_tokens
from tdro.training.guide import Guide, load_guide
from tdro.training.loop import Workplace, train
from tdro.training.planning import plan_csv, plan_of, planned_examples
from tdro.training.query_loss import refuse_impossible_fine_tuning
from tdro.training.run import Run
from tdro.training.texts import TextSource
from tdro.training.watch import choice_of, watch_of
from tdro.training.weight_learner import make_rule


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
    sizes = sizes_of(rows)
    plan = plan_of(run.study, weights, sizes)
    if lacking := [name for name, weight in weights.items() if weight == 0]:
        run.journal.write("note", "robust", text=f"no weight for {', '.join(lacking)}: left out")
    if run.ranks.number == 0:
        write_text(run.folder / "data" / "plan.csv", plan_csv(plan, weights, sizes, run.study.reference))
    return _fine_tune(run, rows, "robust", plan)


def sizes_of(rows: dict[str, Rows]) -> dict[str, int]:
    """Count the rows of every dataset."""
    return {name: len(dataset) for name, dataset in rows.items()}


def rule_of(study: Study, rows: dict[str, Rows]) -> Rule:
    """Turn the settings of the weights stage into a rule; what cannot be is refused."""
    return make_rule(study.weights, sizes_of(rows), planned_examples(study))


def refuse_rows_without_negatives(rows: dict[str, Rows]) -> None:
    """Refuse datasets whose loss knows no negatives but a row's own: all in stage 1.

    Raises:
        DataError: A dataset has rows without negatives.
    """
    for name, dataset in rows.items():
        if dataset.without_negatives:
            saw = f"{dataset.without_negatives} of {len(dataset)} rows"
            do = "set mining.when to missing; where mining found none either, remove these rows or add passages"
            raise DataError("rows without negatives", where=f"dataset {name}, {dataset.info.path}", saw=saw, do=do)


def save_model(run: Run, model: SentenceTransformer, name: str) -> None:
    """Save a trained model, which cuts texts where passages were cut in training; keep its adapter beside it.

    Of a sharded model rank 0 gathers what was trained, and saves the base filled with it.
    """
    trained = trained_tensors(model, run.ranks.number == 0) if is_sharded(model) else None
    if run.ranks.number:
        return
    if trained is not None:
        model = run.load_base(device="cpu")
        fill_tensors(model, trained)
    set_max_length(model, run.study.data.passage_max_length)
    adapter = run.folder / name / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)  # of an earlier study with other settings
    if has_lora(model):
        options = run.study.model
        other = "" if options.query_encoder == "copy" else run.study.fill_root(options.query_encoder)
        save_adapter(model, adapter, run.study.fill_root(options.base), other)
    save_encoder(model.eval(), run.folder / name / "model")


def skip(run: Run, stage: str, stage_fingerprint: str, *outputs: str) -> bool:
    """Say whether a stage is finished, and tell the journal."""
    done = run.finished(stage, stage_fingerprint, *outputs) is not None
    if done:
        run.journal.write("stage_skipped", stage)
    return done


def place(
    run: Run, stage: str, stage_fingerprint: str, seed: int | None = None, inputs: Mapping[str, Any] | None = None
) -> Workplace:
    """Say where a stage trains."""
    seed = run.study.seed if seed is None else seed
    return Workplace(stage, run.folder / stage, run.journal, stage_fingerprint, seed, run.ranks, inputs or {})


def influential(config: TrainingConfig) -> dict[str, Any]:
    """The settings that change what a stage trains; any weights.export counts as its default, as all are learned."""
    unread = {"checkpoint_every", "checkpoints_kept", "seeds", "seed_steps"}
    if not config.distillation:
        unread.add("teacher_temperature")
    if isinstance(config, WeightsConfig):
        config = config.model_copy(update={"export": WeightsConfig().export})
    return config.model_dump(mode="json", exclude=unread)


def _fine_tune(run: Run, rows: dict[str, Rows], stage: str, plan: Plan) -> str:
    """Train the base with a plan; stages 0 and 2."""
    study, config = run.study, run.study.reference
    inputs = {
        **training_inputs(run, rows),
        **fine_tuning_inputs(study),
        "probability": plan.probabilities,
        "loss factor": plan.loss_factors or {},
        "choice": choice_of(study),
    }
    stage_fingerprint = fingerprint(inputs)
    if skip(run, stage, stage_fingerprint, f"{stage}/model/modules.json"):
        return stage_fingerprint
    refuse_impossible_plan(study, rows, plan)
    with run.stage(stage, stage_fingerprint) as result:
        run.budget  # noqa: B018 - found before models fill the memory
        model = run.load_trainee()
        mixture, step = fine_tuning_step(run, model, rows, plan, study.seed)
        here = place(run, stage, stage_fingerprint, inputs=inputs)
        watch = watch_of(run, model, here)
        train(model, config, step, here, watch)
        save_model(run, model, stage)
        if watch is not None:
            result["kept_after"] = watch.kept
        seen = mixture.examples_seen(config.steps)
        result["epochs"] = {name: round(count / len(rows[name]), 3) for name, count in seen.items()}
    return stage_fingerprint


def refuse_impossible_plan(study: Study, rows: dict[str, Rows], plan: Plan) -> None:
    """Refuse rows that the datasets of a plan cannot be trained on in stages 0 and 2.

    Raises:
        ConfigError: A dataset without in-batch negatives would have no negatives at all.
        DataError: Rows lack what the loss needs.
    """
    own_only = _own_only(study, plan)
    if own_only and study.reference.passages_per_query < 2:
        where, do = "reference.passages_per_query", "set it to 2 or more"
        saw = f"in_batch_negatives: false in {', '.join(sorted(own_only))}"
        raise ConfigError(
            "datasets without in-batch negatives need negatives of their own", where=where, saw=saw, do=do
        )
    refuse_rows_without_negatives({name: rows[name] for name in sorted(own_only)})
    refuse_impossible_fine_tuning(study.reference, {name: rows[name] for name in rows if plan.probabilities.get(name)})


def fine_tuning_step(
    run: Run,
    model: SentenceTransformer,
    rows: dict[str, Rows],
    plan: Plan,
    seed: int,
    tokens: Mapping[str, DatasetTokens] | None = None,
) -> tuple[Mixture, ContrastiveStep]:
    """Build what a training of stages 0 and 2 sees, and its step.

    Args:
        run: The run.
        model: The model in training.
        rows: Dataset -> rows.
        plan: How often each dataset is drawn.
        seed: Decides the order of the rows, and which texts of a row are shown.
        tokens: Dataset -> where its tokens come from, if that is known; for a study without a guide.

    Returns:
        The data order, and the step, with the guide where the study has one.
    """
    study, config = run.study, run.study.reference
    drawn = {name: dataset for name, dataset in rows.items() if plan.probabilities.get(name)}

    def source_for(reader: SentenceTransformer) -> TextSource:
        with run.ranks.first():
            found = tokens or study_tokens(run, drawn, reader)
        return TextSource(rows, study.data, reader, seed, found)

    guide: Guide | None = None
    if config.guide:
        guide_model = load_guide(run)
        source = source_for(guide_model)
        guide = Guide(guide_model, source, config.guide_margin, run.device, run.budget.max_tokens, run.ranks)
    mixture = _mixture(sizes_of(rows), plan, config, seed)
    step = ContrastiveStep(
        model,
        source_for(model),
        mixture,
        list(rows),
        [(plan.loss_factors or {}).get(name, 1.0) for name in rows],
        config,
        run.device,
        run.budget.max_tokens,
        run.budget.graph_tokens,
        _own_only(study, plan),
        run.ranks,
        study.model.normalize,
        guide,
    )
    return mixture, step


def _mixture(sizes: dict[str, int], plan: Plan, config: ReferenceConfig, seed: int) -> Mixture:
    """Say which rows each step sees."""
    if config.batches == "mixed":
        return MixedMixture(sizes, config.batch_size, seed, probabilities=plan.probabilities)
    return HomogeneousMixture(sizes, plan.probabilities, config.batch_size, seed)


def _own_only(study: Study, plan: Plan) -> set[str]:
    """Name the datasets of a plan whose queries have no negatives but their own."""
    return {name for name, p in plan.probabilities.items() if p and not study.data.datasets[name].in_batch_negatives}


def fine_tuning_inputs(study: Study) -> dict[str, Any]:
    """Name everything that stages 0 and 2 depend on besides `training_inputs` and the mixture."""
    guide = study.fill_root(study.reference.guide)
    return {
        "reference": influential(study.reference),
        **({"files of reference.guide": encoder_fingerprint(guide)} if guide else {}),
    }


def training_inputs(run: Run, rows: dict[str, Rows]) -> dict[str, Any]:
    """Name everything that all training stages depend on."""
    study = run.study
    # What these change shows in the rows.
    about = {"path", "size", "category", "license", "corpus", "queries", "passages", "max_rows"}
    data = study.data.model_dump(
        exclude={"root": True, "tokens": True, "instructions": True, "datasets": {"__all__": about}}
    )
    return {
        "seed": study.seed,
        "model": study.model.influential,
        "files of model.base": run.base_fingerprint,
        "rows of": {name: dataset.info.fingerprint for name, dataset in rows.items()},
        "order of the datasets": list(rows),  # decides ties
        "data": data,
    }
