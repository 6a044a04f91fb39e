"""What stands before a run: five entries that say what, where, on which data, how, and how long; and what is odd."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from tdro.cli.display import LONG_WARM_UP
from tdro.config import Section, Study
from tdro.files import cache_folder

if TYPE_CHECKING:
    from tdro.training.estimate import Estimate
    from tdro.training.planning import LastStage
    from tdro.training.run import Run

_SECTIONS = ("model", "mining", "reference", "weights", "robust")
_STAGES = {
    "mine": "mine negatives",
    "reference": "train the reference",
    "weights": "learn the weights",
    "robust": "train with them",
    "evaluate": "evaluate",
}
_LABEL = 10  # columns of the labels


def print_banner(console: Console, run: "Run", verb: str, estimate: "Estimate | None", do: str) -> None:
    """Print what a run will do.

    Args:
        console: Where to; nothing is printed by a quiet one.
        run: The run.
        verb: The command.
        estimate: What it will take, if that is known.
        do: What to do where it is not.
    """
    study = run.study
    changed = changed_options(study)
    options = _in_one_line(changed, console.width - _LABEL if console.is_terminal else 10_000)
    table = Table.grid(padding=(0, 0), pad_edge=False)
    table.add_column(width=_LABEL, style="bold")
    table.add_column(overflow="fold")
    table.add_row("what", f"{study.name}, seed {study.seed}: {_what(study, verb)}")
    table.add_row("where", f"{run.folder}, cache {cache_folder()}; {_machine(run)}")
    table.add_row("data", _data(study))
    table.add_row("options", options or "all as they are by default")
    table.add_row("estimate", str(estimate) if estimate else f"none yet for these texts on this machine; {do}")
    for label, text in _doubts(study, verb):
        table.add_row(label, text)
    if console.is_terminal:
        console.print(table, markup=False)
    else:  # lines of any length, for files and pipes
        for label, text in zip(*(column.cells for column in table.columns), strict=True):
            console.print(f"{label!s:{_LABEL}}{text}", markup=False)


def changed_options(study: Study) -> list[str]:
    """List the options that change results and are not as they are by default, as `section.option value`."""
    found = []
    for name in _SECTIONS:
        section: Section = getattr(study, name)
        default = {n: f.get_default(call_default_factory=True) for n, f in type(section).model_fields.items()}
        mine: dict[str, Any] = study.model.influential if name == "model" else section.model_dump(mode="json")
        for option in mine:
            value = getattr(section, option)
            if value != default[option] and not option.startswith("checkpoint"):
                found.append(f"{name}.{option} {_plain(value)}")
    return found


def _in_one_line(options: list[str], width: int) -> str:
    """Join as many options as one line holds, and count the others."""
    shown = len(options)
    while shown > 1:
        rest = f", {len(options) - shown} more" if shown < len(options) else ""
        line = ", ".join(options[:shown]) + rest
        if len(line) <= width:
            return line
        shown -= 1
    return ", ".join(options[:1]) + (f", {len(options) - 1} more" if len(options) > 1 else "")


def _what(study: Study, verb: str) -> str:
    """Name the stages up to a verb's."""
    if verb == "evaluate":
        return f"evaluate {', '.join(study.evaluation.models)}"
    names = _stages(study, verb)
    said = [_STAGES[name] for name in names]
    if "weights" not in names and "robust" in names:
        said[names.index("robust")] = "train the robust model"
    if names[-1] == "evaluate":
        said[-1] += f" on {_count(len(study.evaluation.tasks), 'task')}"
    return ", ".join(said)


def _stages(study: Study, verb: str) -> list[str]:
    """Name the stages up to a verb's."""
    from tdro.training.planning import planned_stages

    return planned_stages(study, cast("LastStage", "evaluate" if verb == "run" else verb))


def _doubts(study: Study, verb: str) -> Iterator[tuple[str, str]]:
    """Label and say what is odd about a run."""
    stages = [] if verb == "evaluate" else _stages(study, verb)
    trained = {"reference": study.reference, "weights": study.weights, "robust": study.reference}
    if long := [name for name in stages if name in trained and trained[name].warmup_steps >= trained[name].steps]:
        yield "WARNING", f"{' and '.join(long)}: {LONG_WARM_UP}"
    if verb == "run" and not study.evaluation.tasks:
        what = "weights will be learned" if "weights" in stages else "a model will be trained"
        yield "note", f"no evaluation set: {what} but not judged; add evaluation.tasks"


def _machine(run: "Run") -> str:
    """Say what it runs on."""
    from tdro.devices import describe_machine

    about, device = describe_machine(), run.device
    name = f"cpu, {_count(int(str(about['threads'])), 'thread')}" if device.name == "cpu" else str(about["device"])
    ranks = f", {run.ranks.count} ranks" if run.ranks.count > 1 else ""
    return f"{name}, {'bfloat16' if device.autocast else str(device.dtype).removeprefix('torch.')}{ranks}"


def _data(study: Study) -> str:
    """Say what is read."""
    data = study.data
    rows = f", at most {data.max_rows:,} rows each" if data.max_rows else ""
    lengths = f"queries up to {data.query_max_length} tokens, passages up to {data.passage_max_length}"
    return f"{_count(len(data.datasets), 'dataset')} under {data.root}{rows}; {lengths}"


def _count(number: int, what: str) -> str:
    """Count things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _plain(value: Any) -> str:
    """Write the value of an option."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
