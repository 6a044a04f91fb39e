"""What the loss of a query is made of in a stage, and the settings and data for which there is none."""

from collections.abc import Mapping
from pathlib import Path

from tdro.config import ReferenceConfig, Study, TrainingConfig
from tdro.core.losses import QueryLoss
from tdro.data.store import Rows
from tdro.errors import ConfigError, DataError
from tdro.training.token_caches import wordings_of


def query_loss(config: TrainingConfig) -> QueryLoss:
    """Return the loss that the settings of a stage ask for."""
    return QueryLoss(config.temperature, config.loss_factor, config.distillation, config.teacher_temperature)


def refuse_impossible_loss(config: TrainingConfig, section: str, rows: Mapping[str, Rows]) -> None:
    """Refuse settings of a stage that leave queries without a loss, and datasets that lack the scores it needs.

    Args:
        config: Settings of the stage.
        section: Their name.
        rows: Dataset -> rows that the stage draws from.

    Raises:
        ConfigError: There is no loss, or no passages to compare.
        DataError: A dataset has rows without scores, or without the negatives that the scores are compared on.
    """
    if config.loss_factor == 0 and config.distillation == 0:
        do = f"raise one of {section}.loss_factor and {section}.distillation"
        raise ConfigError("there is no loss to train on", where=section, saw="both are 0", do=do)
    if config.distillation == 0:
        return
    if config.passages_per_query < 2:
        what, where = "distillation compares a positive with negatives of its row", f"{section}.passages_per_query"
        raise ConfigError(what, where=where, saw=config.passages_per_query, do="set it to 2 or more")
    for name, dataset in rows.items():
        where = f"dataset {name}, {dataset.info.path}"
        if dataset.without_scores:
            what = f"{section}.distillation needs a score for every positive and negative, a row's all of one model"
            saw = f"{dataset.without_scores} of {len(dataset)} rows without"
            do = "give each passage a `score`, or each row pos_scores and neg_scores; or set the option to 0"
            if _was_mined(Path(dataset.info.path)):  # by a version that gave positives no scores
                do += f"; or remove {dataset.info.path}, so that it is mined again"
            raise DataError(what, where=where, saw=saw, do=do)
        if config.loss_factor == 0 and dataset.without_negatives:
            what = f"rows without negatives have no loss where {section}.loss_factor is 0"
            saw = f"{dataset.without_negatives} of {len(dataset)} rows"
            raise DataError(what, where=where, saw=saw, do="remove them, or raise the option")


def _was_mined(path: Path) -> bool:
    """Tell whether a file is one that a run has mined: it has the report of mining beside it."""
    return path.parent.parts[-2:] == ("data", "negatives") and path.with_suffix(".json").is_file()


def refuse_impossible_fine_tuning(config: ReferenceConfig, rows: Mapping[str, Rows]) -> None:
    """Refuse what stages 0 and 2 cannot do.

    Raises:
        ConfigError: A margin without a guide, or as `refuse_impossible_loss`.
        DataError: As `refuse_impossible_loss`.
    """
    refuse_impossible_loss(config, "reference", rows)
    if config.guide_margin and not config.guide:
        do = "name an encoder in reference.guide, or leave the margin out"
        raise ConfigError("a margin without a guide", where="reference.guide_margin", saw=config.guide_margin, do=do)


def refuse_impossible_weights(study: Study, rows: Mapping[str, Rows]) -> None:
    """Refuse what the weights stage cannot do, besides what `refuse_impossible_loss` refuses.

    Raises:
        ConfigError: It is to look at the first dimensions only, or to keep similarities that change with every visit.
        DataError: As `refuse_impossible_loss`.
    """
    config = study.weights
    refuse_impossible_loss(config, "weights", rows)
    if config.matryoshka:
        what = "the weights are learned on whole embeddings: the reference's similarities are kept for these alone"
        do = "leave it out; reference.matryoshka trains the reference and the robust model"
        raise ConfigError(what, where="weights.matryoshka", saw=list(config.matryoshka), do=do)
    if config.reference_similarities == "all" and (varied := varied_datasets(study)):
        what = "instructions are drawn anew at every visit, so there is no one similarity of a query to a passage"
        do = "set it to auto, drawn or live"
        raise ConfigError(what, where="weights.reference_similarities", saw=f"all, with {', '.join(varied)}", do=do)


def varied_datasets(study: Study) -> list[str]:
    """Name the datasets whose texts differ from visit to visit, because their instruction is drawn."""
    share = study.data.instruction_share
    return [name for name, options in study.data.datasets.items() if len(wordings_of(options, "queries", share)) > 1]
