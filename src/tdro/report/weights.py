"""The weights: how they moved, where they ended, and how sure that is."""

import math
from typing import TYPE_CHECKING, TypeVar

from tdro.report.axes import Axis
from tdro.report.charts import COLOURS, Drawing, Row, lines, rows
from tdro.report.document import Block, Figure, Note, Section, Table, Text
from tdro.report.reading import Learning, RunFiles
from tdro.report.words import NONE, listed, noun, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_T = TypeVar("_T")
_Ends = tuple[float, float]

MOST = 40
"""Datasets in a picture; where there are more, the largest and the smallest weights."""
VERSIONS = {"last": "last step", "mean": "mean", "ema": "moving average"}
"""Versions of the weights, as the page names them."""


def weights_section(run: RunFiles) -> Section:
    """Show the weights over the steps, and their last, mean and moving average with intervals."""
    blocks: list[Block] = []
    if run.learning is not None:
        blocks.append(_over_time(run.learning))
    if "last" in run.weights:
        blocks += _final(run)
    if not blocks:
        text = "This run has no weights: it ended before they were learned, or its robust.weights are given."
        blocks.append(Note("note", "No learned weights.", text))
    return Section("weights", "Weights", tuple(blocks))


def picked(ranked: "Sequence[_T]", most: int = MOST) -> "list[_T]":
    """Choose entries for a picture: all, or the first and the last half of as many as fit."""
    return list(ranked) if len(ranked) <= most else [*ranked[: most - most // 2], *ranked[-(most // 2) :]]


def left_out(total: int, most: int = MOST) -> str:
    """Say which datasets a picture has, where it has not all."""
    if total <= most:
        return ""
    return f" The picture has the {most - most // 2} largest and the {most // 2} smallest of {total}."


def _positive(weight: float) -> float:
    """A weight that a logarithmic axis can show; of what is 0 or no number, a very small one."""
    return weight if weight > 0 else 1e-12


def _over_time(learning: Learning) -> Figure:
    """Draw the weights over the steps."""
    names, even = learning.names, 1 / len(learning.names)
    series = {name: [_positive(w) for w in learning.weights_TG[:, g].tolist()] for g, name in enumerate(names)}
    ranked = sorted(names, key=lambda name: -series[name][-1])
    shown = picked(ranked, COLOURS)
    axis = Axis.around([even, *(value for values in series.values() for value in values)], log=True)
    first, last = ranked[0], ranked[-1]
    description = (
        f"Weights of {noun(len(names), 'dataset')} after each of {noun(len(learning.steps), 'step')}, on a logarithmic "
        f"axis, all starting near {number(even)} (even). At the end {first} has most, {number(series[first][-1])}, and "
        f"{last} least, {number(series[last][-1])}."
    )

    def draw(width: int) -> Drawing:
        return lines(series, learning.steps, axis, shown, (even, f"dashed: even, {number(even)}"), width)

    return Figure("Weights over the steps", description, draw)


def _final(run: RunFiles) -> list[Block]:
    """Show where the weights ended."""
    versions = {words: run.weights[key] for key, words in VERSIONS.items() if key in run.weights}
    last, handed = versions[VERSIONS["last"]], handed_on(run)
    intervals = {words: ends for words, ends in _all_intervals(run).items() if words in versions}
    ranked = sorted(last, key=lambda name: (-last[name], name))
    shown = picked(ranked)
    even = 1 / len(last)
    exported = VERSIONS.get(str(run.setting("weights.export", "last")), "last step")
    positive = [_positive(value) for values in versions.values() for value in values.values()]
    ends = [_positive(end) for of in intervals.values() for both in of.values() for end in both]
    axis = Axis.around([even, *positive, *ends], log=True)
    figure = Figure(
        "Learned weights",
        f"Last, mean and moving average of each weight, on a logarithmic axis; even would be {number(even)}. "
        + "; ".join(f"{name} {number(last[name])}" for name in shown[:10])
        + ("." if len(shown) <= 10 else "; the table has all."),
        lambda width: _final_chart(versions, shown, intervals, axis, even, width),
    )
    whose = "" if len(intervals) == len(versions) else f", of the {listed(intervals)}"
    heard = (
        f"Intervals: 95 %{whose}, from a bootstrap over the steps. They hold for the luck of the batches, not for "
        "other seeds."
    )
    if not intervals:
        heard = "This run recorded no intervals of the weights."
    columns = {}
    for words, values in versions.items():
        columns[words] = {name: number(values.get(name)) for name in ranked}
        if of := intervals.get(words):
            columns[f"95 % interval ({words})"] = {name: " to ".join(map(number, of[name])) for name in of}
    columns["times even"] = {name: number(handed.get(name, last[name]) / even) for name in ranked}
    table = Table(
        ("dataset", *columns),
        tuple((name, *(cells.get(name, NONE) for cells in columns.values())) for name in ranked),
        f"The weights that are handed on are those called {exported} (weights.export); times even is of them.",
    )
    return [figure, Text(heard + left_out(len(ranked)) + _seeds(run)), table]


def _final_chart(
    versions: "Mapping[str, Mapping[str, float]]", shown: "Sequence[str]",
    intervals: "Mapping[str, Mapping[str, _Ends]]", axis: Axis, even: float, width: int,
) -> Drawing:  # fmt: skip
    """Draw the versions of each weight."""
    table = [
        Row(
            name,
            {kind: values.get(name, math.nan) for kind, values in versions.items()},
            intervals={kind: ends[name] for kind, ends in intervals.items() if name in ends},
        )
        for name in shown
    ]
    return rows(table, axis, tuple(versions), width, (even, "even"), "weight")


def handed_on(run: RunFiles) -> dict[str, float]:
    """Return the weights that the plan is made of (weights.export); empty where none were learned."""
    return dict(run.weights.get("domain_weights") or run.weights.get("last") or {})


def interval_version(run: RunFiles) -> str:
    """Name the version of the weights that intervals and verdicts are of; runs that do not say it have the last."""
    return VERSIONS.get(str((run.diagnostics.get("of") or {}).get("export", "last")), VERSIONS["last"])


def intervals_of(run: RunFiles) -> "dict[str, _Ends]":
    """Return the interval of each weight that is handed on, where the run recorded one."""
    datasets = run.diagnostics.get("datasets") or {}
    return {name: (float(d["interval"][0]), float(d["interval"][1])) for name, d in datasets.items() if "interval" in d}


def _all_intervals(run: RunFiles) -> "dict[str, dict[str, _Ends]]":
    """Return version -> dataset -> interval; runs of an earlier version have those of the weights handed on."""
    datasets = run.diagnostics.get("datasets") or {}
    found: dict[str, dict[str, _Ends]] = {}
    for name, dataset in datasets.items():
        for version, (low, high) in (dataset.get("intervals") or {}).items():
            found.setdefault(VERSIONS.get(version, version), {})[name] = (float(low), float(high))
    handed = intervals_of(run)
    return found or ({interval_version(run): handed} if handed else {})


def _seeds(run: RunFiles) -> str:
    """Say how well proxies of other seeds agree."""
    seeds = run.diagnostics.get("seeds")
    if not seeds:
        return ""
    agreement, sides = seeds.get("rank_agreement"), seeds.get("changing_sides") or []
    told = "nothing can be said of their ranks" if agreement is None else f"their ranks agree with rho {agreement:.2f}"
    unsure = f"{listed(sides)} change sides at the cut" if sides else "no dataset changes sides at the cut"
    return f" Over {noun(len(seeds['weights']), 'seed')} of the proxy {told} (Spearman); {unsure}."
