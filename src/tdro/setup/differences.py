"""How two studies differ, and which stages of a run would be done again because of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tdro.config import Study
from tdro.setup.options import flatten, write_value

STAGES = ("negatives", "reference", "weights", "robust", "evaluation")
"""In the order of a run; each depends on those before it, the weights and the robust model on the reference's rows."""

ROWS = "rows"
"""Of an option that acts through the rows: where they stay the same, nothing is done again."""

_FIRST: tuple[tuple[str, str], ...] = (  # pattern -> first stage that reads it; the first pattern that matches counts
    ("name", ""),
    ("output", ""),
    ("seed", "negatives"),
    ("data.root", ROWS),
    ("data.max_rows", ROWS),
    ("data.instructions", ""),  # what it fills in shows in the datasets
    ("data.tokens", ""),
    ("data.instruction_share", "reference"),
    ("data.positives", "reference"),
    ("data.negatives", "reference"),
    ("data.datasets.*.in_batch_negatives", "reference"),
    ("data.datasets.*.more_instructions", "reference"),
    ("data.datasets.*.size", ""),
    ("data.datasets.*.category", ""),
    ("data.datasets.*.license", ""),
    ("data.datasets.*.instruction", "negatives"),
    ("data.datasets.*.symmetric", "negatives"),
    ("data.datasets.*", ROWS),
    ("data.*", "negatives"),
    ("model.base", "negatives"),
    ("model.query_encoder", "negatives"),
    ("model.projection", "negatives"),
    ("model.pooling", "negatives"),
    ("model.normalize", "negatives"),
    ("model.micro_batch_tokens", ""),
    ("model.gradient_checkpointing", ""),
    ("model.attention", ""),
    ("model.compile", ""),
    ("model.sharding", ""),
    ("model.deterministic", ""),
    ("model.*", "reference"),
    ("mining.*", "negatives"),
    ("leakage.*", ROWS),
    ("*.checkpoint_every", ""),
    ("*.checkpoints_kept", ""),
    ("reference.*", "reference"),
    ("weights.held_out_share", "reference"),  # no model trains on the rows that are held out
    ("weights.seeds", ""),  # more proxies, beside those that are there
    ("weights.seed_steps", ""),
    ("weights.export", "robust"),  # all are learned; it chooses which ones the plan is made of
    ("weights.*", "weights"),
    ("robust.*", "robust"),
    ("evaluation.watch.*", "reference"),
    ("evaluation.watch_every", "reference"),
    ("evaluation.keep", "reference"),
    ("evaluation.*", "evaluation"),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One option, or one thing that a run has recorded, that differs.

    Args:
        name: Dotted name of the option, or what was recorded.
        before: Its value in the first study, as YAML; empty where the first one has no such thing.
        after: The same of the second.
        first: First stage that would be done again: one of `STAGES`; empty: none.
        condition: When, where this is not certain.
    """

    name: str
    before: str
    after: str
    first: str
    condition: str = ""


def first_stage(option: str) -> str:
    """Return the first stage that reads an option; `ROWS` where it acts through the rows; empty for none.

    Example:
        >>> first_stage("robust.share"), first_stage("data.datasets.quora.path"), first_stage("model.compile")
        ('robust', 'rows', '')
    """
    return next(stage for pattern, stage in _FIRST if fnmatchcase(option, pattern))


def differences(
    before: Study, after: Study, ran_before: Mapping[str, Any], ran_after: Mapping[str, Any]
) -> list[Difference]:
    """List what differs between two studies, in the order of their options, and between what two runs have recorded.

    Args:
        before: A study.
        after: Another one.
        ran_before: What the first one's run has recorded; empty where it has not run.
        ran_after: The same of the second.
    """
    values, others = flatten(before), flatten(after)
    found = []
    for name in dict.fromkeys([*values, *others]):
        if name in values and name in others and values[name] == others[name]:
            continue
        one, other = (write_value(of[name]) if name in of else "" for of in (values, others))
        found.append(_option(name, one, other, before, after))
    return [*found, *_recorded(ran_before, ran_after)]


def done_again(found: list[Difference], after: Study) -> list[str]:
    """Return the stages that a run of the first study would do again as the second one.

    Args:
        found: What `differences` has found.
        after: The second study.
    """
    firsts = {difference.first for difference in found} - {""}
    if not firsts:
        return []
    first = min(map(STAGES.index, firsts))
    again = list(STAGES[first:])
    if after.mining.when == "never" and "negatives" in again:
        again.remove("negatives")
    if after.robust.weights != "learned" and firsts <= {"weights", "evaluation"} and "robust" in again:
        again.remove("robust")
    return again


def _option(name: str, value: str, other: str, before: Study, after: Study) -> Difference:
    """Say what the change of an option leads to."""
    first = first_stage(name)
    if first == ROWS:
        return Difference(name, value, other, "negatives", "where the rows differ")
    if name.startswith("evaluation.") and first == "reference" and "best" not in (
        before.evaluation.keep, after.evaluation.keep,
    ):  # fmt: skip
        first = ""  # a look changes nothing unless it chooses the model
    if name == "weights.export" and after.robust.weights != "learned":
        first = ""  # nothing reads the weights
    return Difference(name, value, other, first)


def _recorded(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    """Compare what two runs have recorded."""
    if not before or not after:
        return
    first = {**{f"rows of {name}": "negatives" for name in before.get("data", {})}, "files of model.base": "negatives"}
    values, others = _contents(before), _contents(after)
    for name in dict.fromkeys([*values, *others]):
        if values.get(name) != others.get(name):
            yield Difference(name, values.get(name, ""), others.get(name, ""), first.get(name, ""))


def _contents(ran: Mapping[str, Any]) -> dict[str, str]:
    """Name what a run has recorded and results depend on."""
    rows = {f"rows of {name}": str(content) for name, content in ran.get("data", {}).items()}
    versions = {f"version of {name}": str(version) for name, version in ran.get("versions", {}).items()}
    return {**rows, "files of model.base": str(ran.get("base", "")), **versions}
