"""From weights to the plan that the robust model is sampled with."""

import csv
import io
import math
import re
from typing import Literal, get_args

from tdro.config import Study, TrainingConfig
from tdro.core.plan import Plan, bottom_share, capped, kept_count, reweight, reweight_loss, size_mixture, top_share
from tdro.core.projection import caps_from_epochs
from tdro.data.weights_file import match_weights, read_weights
from tdro.errors import ConfigError

LastStage = Literal["mine", "reference", "weights", "robust", "evaluate"]
"""Where a run may end; the stages in their order."""


def without_weighing(study: Study) -> Study:
    """Return a study of one dataset as what it amounts to: one training, of the robust model.

    The dataset's weight is 1 whatever is learned, and the reference would be trained as the robust model is; so the
    latter stands for reference and proxy in the evaluation, and the run leaves these out. Other studies are returned
    as they are.
    """
    if len(study.data.datasets) > 1:
        return study
    learned = study.robust.weights == "learned"
    robust = study.robust.model_copy(update={"weights": "uniform"}) if learned else study.robust
    models = dict.fromkeys("base" if name == "base" else "robust" for name in study.evaluation.models)
    evaluation = study.evaluation.model_copy(update={"models": tuple(models)})
    return study.model_copy(update={"robust": robust, "evaluation": evaluation})


def planned_stages(study: Study, last: LastStage = "evaluate") -> list[str]:
    """Name the stages that lead to a stage: neither the reference nor the weights where nothing needs them.

    Example:
        >>> content = {"name": "x", "data": {"datasets": {"a": "a", "b": "b"}}, "model": {"base": "m"}}
        >>> planned_stages(Study.model_validate(content), "robust")
        ['mine', 'reference', 'weights', 'robust']
        >>> planned_stages(Study.model_validate({**content, "robust": {"weights": "uniform"}}))
        ['mine', 'robust']
    """
    study = without_weighing(study)
    evaluated = study.evaluation.models if last == "evaluate" and study.evaluation.tasks else ()
    learned = study.robust.weights == "learned" or "proxy" in evaluated or last == "weights"
    wanted = {
        "reference": learned or "reference" in evaluated or last == "reference",
        "weights": learned,
        "evaluate": bool(study.evaluation.tasks),
    }
    stages = get_args(LastStage)
    return [stage for stage in stages[: stages.index(last) + 1] if wanted.get(stage, True)]


def plan_weights(study: Study, sizes: dict[str, int]) -> dict[str, float]:
    """Return the weights that robust.weights asks for, one per dataset of the study."""
    if study.robust.weights != "learned":
        return fixed_weights(study, sizes)
    path = study.run_folder / "weights" / "weights.json"
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


def plan_of(study: Study, weights: dict[str, float], sizes: dict[str, int]) -> Plan:
    """Turn weights into the plan that the study asks for; a fixed mixture, or one dataset, is sampled as it is.

    Raises:
        ConfigError: robust.share keeps no dataset, no weight is above 0, or the caps leave no plan.
    """
    config = study.robust
    try:
        if config.plan == "reweight" or _is_mixture(config.weights) or len(weights) == 1:
            plan = reweight(weights)
        elif config.plan == "reweight-loss":
            plan = reweight_loss(weights)
        else:
            plan = (top_share if config.plan == "top-share" else bottom_share)(weights, config.share)
    except ValueError as error:
        raise ConfigError(str(error), where="robust", do="raise robust.share or use robust.plan: reweight") from None
    high = dict.fromkeys(sizes, config.cap)
    try:
        if config.max_epochs is not None:
            caps_G = caps_from_epochs(sizes, config.max_epochs, planned_examples(study))
            high = {name: min(config.cap, cap) for name, cap in zip(sizes, caps_G.tolist(), strict=True)}
        return capped(plan, high)
    except ValueError as error:
        do = "raise robust.cap, robust.max_epochs or robust.share"
        raise ConfigError(str(error), where="robust", do=do) from None


def refuse_impossible_epochs(study: Study, sizes: dict[str, int]) -> None:
    """Refuse a limit on epochs that no weights can keep, before anything is trained.

    Raises:
        ConfigError: All rows together are too few.
    """
    try:
        if study.robust.max_epochs is not None:
            caps_from_epochs(sizes, study.robust.max_epochs, planned_examples(study))
    except ValueError as error:
        raise ConfigError(str(error), where="robust.max_epochs", do="raise it, or lower reference.steps") from None


def planned_examples(study: Study) -> int:
    """Count the queries that the robust run draws."""
    return study.reference.steps * study.reference.batch_size


def rank_of_the_cut(study: Study) -> int:
    """Count the weights above the plan's cut; a change of the plan moves it without a new training."""
    groups = len(study.data.datasets)
    try:
        kept = kept_count(groups, study.robust.share)
    except ValueError:  # a plan that ignores the share may leave it too small
        kept = 1
    return groups - kept if study.robust.plan == "bottom-share" else kept


def plan_csv(plan: Plan, weights: dict[str, float], sizes: dict[str, int], config: TrainingConfig) -> str:
    """Write a plan as a table: dataset, size, weight, probability, expected epochs."""
    epochs = plan.epochs(sizes, config.steps * config.batch_size)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["dataset", "size", "weight", "probability", "expected_epochs"])
    for name in sorted(weights, key=lambda n: (-weights[n], n)):
        table.writerow([name, sizes[name], weights[name], plan.probabilities.get(name, 0.0), epochs.get(name, 0.0)])
    return text.getvalue()


def _is_mixture(weights: str) -> bool:
    """Whether robust.weights names a mixture that follows from the sizes alone."""
    return re.fullmatch(r"uniform|size|temperature-(?!0+(\.0+)?$)\d+(\.\d+)?", weights) is not None
