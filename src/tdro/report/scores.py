"""Before and after: the models' scores, their difference with its tests, and the queries that make it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tdro.errors import TdroError
from tdro.report.axes import Axis
from tdro.report.charts import Drawing, Row, rows, strips
from tdro.report.document import Block, Bullets, Figure, Fold, Note, Passage, Query, Section, Table, Text
from tdro.report.reading import RunFiles
from tdro.report.words import MINUS, NONE, listed, measure_name, noun, number, p_value, points, shorten

if TYPE_CHECKING:
    from tdro.evaluation.compare import Contrast, Example, Found, Line

LEVEL = 0.05
"""Of significance, after Holm's adjustment."""
MOST_TASKS = 40
"""Tasks in a picture."""
EXAMPLES = 5
"""Queries that are shown of each kind."""

_BEFORE_AFTER = (("reference", "robust"), ("base", "robust"), ("base", "reference"))
_PASSAGE = 240  # characters of a passage that are shown


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the evaluation shows.

    Attributes:
        contrasts: Before against after, one per main measure; empty where the two were not evaluated on any task.
        means: Task -> model -> main measure -> mean.
        problem: Why there are no contrasts, or which tasks are left out; empty where nothing is missing.
    """

    contrasts: "tuple[Contrast, ...]"
    means: dict[str, dict[str, tuple[str, float]]]
    problem: str


def compare_models(run: RunFiles) -> Comparison:
    """Compare the robust model with the reference; where one of them is missing, what there is with the base.

    The same tests as `tdro compare`, with its defaults, so the numbers are the same.
    """
    from tdro.evaluation.compare import compare
    from tdro.evaluation.results import find_results
    from tdro.evaluation.sides import read_side

    means, folder = _means(run), run.folder / "evaluation"
    there = [name for name in ("base", "reference", "robust") if (folder / name).is_dir()]
    pair = next((pair for pair in _BEFORE_AFTER if set(pair) <= set(there)), None)
    if pair is None:
        return Comparison((), means, "")
    try:
        found = [find_results(folder / name) for name in pair]
        wanted = run.setting("evaluation.tasks", {})
        both = [task for task in found[0] if task in found[1] and (not wanted or task.partition("/")[0] in wanted)]
        lacking = sorted({*found[0], *found[1]} - set(both))
        if not both:
            return Comparison((), means, f"{pair[0]} and {pair[1]} have no task in common")
        contrasts = compare([read_side(name, [folder / name], both) for name in pair])
    except TdroError as error:
        said = f"{error.what} ({error.where}); {error.do}" if error.do else f"{error.what} ({error.where})"
        return Comparison((), means, said)
    return Comparison(contrasts, means, f"not evaluated with both models: {listed(lacking)}" if lacking else "")


def scores_section(run: RunFiles, comparison: Comparison) -> Section:
    """Show what the training changed, task by task and query by query."""
    blocks: list[Block] = []
    if not comparison.means and not comparison.contrasts:
        tasks = run.setting("evaluation.tasks", {})
        why = "it ended before the evaluation" if tasks else "the study names no evaluation task"
        blocks.append(Note("note", "Not evaluated.", f"This run has no scores: {why}."))
    elif not comparison.contrasts:
        text = "There are means, but no comparison query by query, so nothing can be said of luck."
        blocks.append(Note("warning", "No test of the difference.", f"{text} {comparison.problem}".strip()))
    elif comparison.problem:
        blocks.append(Note("note", "Left out:", f"{comparison.problem}."))
    for contrast in comparison.contrasts:
        blocks += _contrast(contrast)
    blocks += _all_models(comparison)
    for contrast in comparison.contrasts:
        blocks += _queries(contrast)
    return Section("scores", "Before and after", tuple(blocks))


def _contrast(contrast: "Contrast") -> list[Block]:
    """Show one measure."""
    measure, first, second = measure_name(contrast.measure), contrast.first.name, contrast.second.name
    lines = [*contrast.tasks, *([contrast.mean] if len(contrast.tasks) > 1 else [])]
    shown = _most_changed(contrast.tasks)
    changes = _changes(contrast)
    header = (
        *("task", "queries", first, second, "difference", "95 % interval"),
        *("p (Holm)", "p (t)", "d_z", f"+ / = / {MINUS}"),
    )
    caption = (
        f"{measure}, times 100. p (Holm) is of a paired randomisation test; that of a task is adjusted for all tasks "
        f"of this measure, that of the mean is not; at most {LEVEL}, it is marked *. p (t) is of a paired t-test, not "
        "adjusted, for comparison. The last column counts queries that gain, stay and lose."
    )
    table = Table(header, tuple(map(_cells, lines)), caption, total=len(lines) > 1)
    forest = Figure(
        f"{second} minus {first}, in points of {measure}",
        "; ".join(f"{line.name} {_interval(line)}" for line in _with_mean(contrast, shown)),
        lambda width: _forest(contrast, shown, width),
    )
    strip = Figure(
        f"Every query: {second} minus {first}, in points of {measure}",
        "; ".join(
            f"{line.name}: {line.test.wins:,} better, {line.test.ties:,} the same, {line.test.losses:,} worse"
            for line in shown
        ),
        lambda width: strips({line.name: changes[line.name] for line in shown}, _strip_axis(changes), width),
    )
    strokes = (
        "Strokes upwards are queries that gain, downwards those that lose; queries that stay the same are not drawn."
    )
    return [forest, table, strip, Text(strokes)]


def _with_mean(contrast: "Contrast", shown: "Sequence[Line]") -> "list[Line]":
    """Put the mean behind the tasks."""
    return [*shown, *([contrast.mean] if len(contrast.tasks) > 1 else [])]


def _forest(contrast: "Contrast", shown: "Sequence[Line]", width: int) -> Drawing:
    """Draw the difference of every task with its interval."""
    table = []
    for line in _with_mean(contrast, shown):
        found = line.test.difference
        ends = (100 * found.low, 100 * found.high)
        label = f"mean of {len(contrast.tasks)} tasks" if line is contrast.mean else line.name
        table.append(Row(label, {"difference": 100 * found.mean}, ends, line is contrast.mean))
    values = [0.0, *(end for row in table if row.interval for end in row.interval)]
    return rows(table, Axis.around(values), ("difference",), width, (0.0, "no difference"), "points, 95 % interval")


def _strip_axis(changes: "dict[str, Sequence[float]]") -> Axis:
    """An axis that has room for every change, the same on both sides."""
    most = max((abs(value) for values in changes.values() for value in values), default=1.0) or 1.0
    return Axis(-1.05 * most, 1.05 * most)


def _changes(contrast: "Contrast") -> "dict[str, Sequence[float]]":
    """Task -> difference per query in points; a query of several parts occurs once per part."""
    from tdro.evaluation.sides import by_task, subtract

    names = [name for name in contrast.first.tasks if name.partition("/")[0] in {line.name for line in contrast.tasks}]
    every = subtract(contrast.first, contrast.second, contrast.measure, names)
    return {task: [100 * v for part in parts for v in every[part].tolist()] for task, parts in by_task(names).items()}


def _most_changed(tasks: "Sequence[Line]") -> "list[Line]":
    """Choose the tasks for a picture: those that changed most, in their order."""
    kept = sorted(tasks, key=lambda line: -abs(line.test.difference.mean))[:MOST_TASKS]
    return [line for line in tasks if line in kept]


def _interval(line: "Line") -> str:
    """Write a difference with its interval."""
    found = line.test.difference
    return f"{points(found.mean)} ({points(found.low)} to {points(found.high)})"


def _cells(line: "Line") -> tuple[str, ...]:
    """A row of the table of tests."""
    test, found = line.test, line.test.difference
    star = " *" if line.p_holm is not None and line.p_holm <= LEVEL else ""
    return (
        line.name,
        f"{found.queries:,}",
        f"{100 * line.first:.2f}",
        f"{100 * line.second:.2f}",
        points(found.mean),
        f"{points(found.low)} to {points(found.high)}",
        p_value(line.p_holm) + star,
        p_value(test.p_t),
        number(test.effect, 2),
        f"{test.wins:,} / {test.ties:,} / {test.losses:,}",
    )


def _means(run: RunFiles) -> dict[str, dict[str, tuple[str, float]]]:
    """Read evaluation/summary.json, which knows the means of all models."""
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for task, models in run.json("evaluation/summary.json").items():
        found[task] = {}
        for model, measures in models.items():
            main = "ndcg@10" if "ndcg@10" in measures else "acc@10" if "acc@10" in measures else next(iter(measures))
            found[task][model] = (main, float(measures[main]))
    return found


def _all_models(comparison: Comparison) -> list[Block]:
    """Show the means of every model and baseline."""
    models = list(dict.fromkeys(model for by_model in comparison.means.values() for model in by_model))
    if not models:
        return []
    table = []
    for task, by_model in comparison.means.items():
        main = next(iter(by_model.values()))[0] if by_model else ""
        cells = (f"{100 * by_model[model][1]:.2f}" if model in by_model else NONE for model in models)
        table.append((task, measure_name(main), *cells))
    mains = {row[1] for row in table}
    if len(table) > 1 and len(mains) == 1 and all(set(m) == set(models) for m in comparison.means.values()):
        sums = [100 * sum(m[model][1] for m in comparison.means.values()) / len(table) for model in models]
        table.append(("mean", mains.pop(), *(f"{mean:.2f}" for mean in sums)))
    caption = "Means over queries, times 100, of every model that was evaluated."
    return [Table(("task", "measure", *models), tuple(table), caption, ("measure",), table[-1][0] == "mean")]


def _queries(contrast: "Contrast") -> list[Block]:
    """Show the queries that gain and lose most, with what the models found."""
    from tdro.evaluation.compare import find_examples

    try:
        helped, hurt = find_examples(contrast, EXAMPLES)
    except (OSError, ValueError, KeyError, IndexError) as error:
        why = shorten(str(error), 160)
        return [Note("note", "No texts.", f"The passages that the models found cannot be read ({why}).")]
    measure, blocks = measure_name(contrast.measure), list[Block]()
    for title, examples in (("Queries helped most", helped), ("Queries hurt most", hurt)):
        if examples:
            shown = tuple(_query(contrast, example) for example in examples)
            blocks.append(Fold(f"{title} ({measure})", shown))
        else:
            blocks.append(Bullets((f"{title}: none.",)))
    return blocks


def _query(contrast: "Contrast", example: "Example") -> Query:
    """Show a query."""
    change = f"{100 * example.first:.1f} → {100 * example.second:.1f}"
    sides = ((contrast.first.name, example.first_found), (contrast.second.name, example.second_found))
    found = tuple((name, tuple(map(_passage, documents))) for name, documents in sides)
    return Query(f"{example.task}, query {example.query_id}", shorten(example.query, 400), change, found)


def _passage(document: "Found") -> Passage:
    """Show a passage."""
    rank = "not found" if document.rank is None else f"rank {document.rank}"
    text = f"{document.title.rstrip(' .')}. {document.text}" if document.title else document.text
    return Passage(rank, document.relevant, shorten(text, _PASSAGE))


def describe(contrast: "Contrast") -> str:
    """Say the mean difference with interval, p and what it rests on."""
    found = contrast.mean.test.difference
    basis = f"{noun(found.queries, 'query', 'queries')} of {noun(found.tasks, 'task')}"
    return (
        f"{contrast.second.name.capitalize()} minus {contrast.first.name} is {points(found.mean)} points of "
        f"{measure_name(contrast.measure)}, with a 95 % interval from {points(found.low)} to {points(found.high)} "
        f"(p {_equals(contrast.mean.p_holm)}, {basis})."
    )


def _equals(p: float | None) -> str:
    """A p-value in a sentence."""
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"
