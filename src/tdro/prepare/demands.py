"""What the stages of a study ask of its datasets."""

from tdro.config import Study, TrainingConfig


def training_sections(study: Study) -> dict[str, TrainingConfig]:
    """Return the sections whose settings a dataset is trained with: a run of one dataset learns no weights.

    Example:
        >>> study = Study.model_validate({"name": "x", "data": {"datasets": {"a": "a"}}, "model": {"base": "m"}})
        >>> list(training_sections(study))
        ['reference']
    """
    alone = len(study.data.datasets) == 1
    return {"reference": study.reference} if alone else {"reference": study.reference, "weights": study.weights}


def needs_negatives(study: Study, name: str) -> bool:
    """Whether every row of a dataset must bring a negative: none is mined, and a stage has no others."""
    own_only = not study.data.datasets[name].in_batch_negatives
    return study.mining.when == "never" and (own_only or "weights" in training_sections(study))


def wanted_negatives(study: Study) -> int:
    """Count the negatives that the stages show of a row; 0 where mining replaces what is there."""
    if study.mining.when == "always":
        return 0
    return max(config.passages_per_query for config in training_sections(study).values()) - 1
