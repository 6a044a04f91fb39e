"""The plan of the robust run, and the advice on every dataset."""

from typing import Any

from tdro.report import charts
from tdro.report.axes import Axis
from tdro.report.charts import Drawing, Row
from tdro.report.document import Block, Figure, Note, Section, Table, Text
from tdro.report.health import MANY_EPOCHS, noise_suspects
from tdro.report.reading import Planned, RunFiles
from tdro.report.weights import handed_on, interval_version, intervals_of, left_out, picked
from tdro.report.words import NONE, listed, noun, number, percent

ADVICE = ("keep", "drop", "undecided")
"""Verdicts of the bootstrap, in the order of the table."""


def plan_section(run: RunFiles) -> Section:
    """Show how often the robust run samples each dataset, before and after."""
    if not run.plan:
        text = "The plan is made when the weights are known and the robust run begins; this run did not get there."
        return Section("plan", "Plan", (Note("note", "No plan yet.", text),))
    even, shown = 1 / len(run.plan), picked(run.plan)
    figure = Figure(
        "Sampling probability per step, old and new",
        f"Before, every dataset was drawn with probability {number(even)}. After: "
        + "; ".join(f"{row.name} {number(row.probability)}" for row in shown[:12])
        + ("." if len(shown) <= 12 else "; the table has all."),
        lambda width: _chart(shown, even, width),
    )
    flags = _flags(run)
    header = ("dataset", "rows", "weight", "old probability", "new probability", "epochs", "flags")
    caption = "Epochs: how often the robust run sees each row."
    table = Table(header, tuple(_cells(row, even, flags[row.name]) for row in run.plan), caption, ("flags",))
    return Section("plan", "Plan", (Text(_described(run) + left_out(len(run.plan))), figure, table))


def advice_section(run: RunFiles) -> Section:
    """Say which datasets to keep, to drop, and where more steps are needed to tell."""
    datasets: dict[str, dict[str, Any]] = run.diagnostics.get("datasets") or {}
    if not datasets:
        text = "No bootstrap of the weights was recorded, so that luck cannot be told from what the data say."
        return Section("advice", "Advice", (Note("note", "No advice.", text),))
    remarks, weights, intervals = _remarks(run), handed_on(run), intervals_of(run)
    by_verdict = {verdict: [n for n, d in datasets.items() if d["verdict"] == verdict] for verdict in ADVICE}
    lists = [f"{verdict.capitalize()}: {listed(names, 12) or 'none'}." for verdict, names in by_verdict.items()]
    ranked = sorted(datasets, key=lambda name: (ADVICE.index(datasets[name]["verdict"]), -weights.get(name, 0), name))
    rows = []
    for name in ranked:
        verdict, interval = datasets[name]["verdict"], " to ".join(map(number, intervals.get(name, ()))) or NONE
        confidence = _confidence(verdict, datasets[name].get("confidence"))
        rows.append((name, verdict, confidence, number(weights.get(name)), interval, remarks.get(name, NONE)))
    header = ("dataset", "advice", "confidence", "weight", f"95 % interval ({interval_version(run)})", "remark")
    caption = (
        "Confidence: the share of the resamples with the dataset on the side of the cut where most of them have it. It "
        "holds for other draws of the batches, not for other seeds of the proxy or other data."
    )
    table = Table(header, tuple(rows), caption, ("advice", "remark"))
    blocks: list[Block] = [Text(_cut(run, len(datasets))), Text(" ".join(lists)), table]
    if len(by_verdict["undecided"]) * 2 > len(datasets):
        text = "More steps in the weights stage, or weights.seeds: 3, would show which of them matter."
        blocks.append(Note("note", "Mostly undecided.", text))
    return Section("advice", "Advice: keep, drop, undecided", tuple(blocks))


def _cut(run: RunFiles, groups: int) -> str:
    """Say where the cut is, on which side of it a dataset is kept, and what keep and drop mean."""
    largest = noun(int(run.diagnostics["cut"]), "largest weight")
    if not run.diagnostics.get("selects", True):
        where = (
            f"The plan drops no dataset. This is what a cut after the {largest} of {groups} would do (robust.plan: "
            "top-share)."
        )
    elif run.setting("robust.plan") == "bottom-share":
        where = f"The cut is after the {largest} of {groups}, and this plan keeps the datasets below it."
    else:
        where = f"The cut is after the {largest} of {groups}."
    return (
        f"{where} A dataset is to keep or to drop when it is on the same side of it in at least 95 % of the "
        "bootstrap's resamples of the steps; otherwise undecided."
    )


def _confidence(verdict: str, share: float | None) -> str:
    """Write in which share of the resamples a dataset is on one side; of runs that did not record it, the bound."""
    if share is not None:
        return percent(share)
    return "below 95 %" if verdict == "undecided" else "at least 95 %"


def _cells(row: Planned, even: float, flags: list[str]) -> tuple[str, ...]:
    """A row of the table of the plan."""
    new = number(row.probability) if row.probability else "left out"
    told = ", ".join(flags) or NONE
    return row.name, f"{row.size:,}", number(row.weight), number(even), new, f"{row.epochs:.2f}", told


def _remarks(run: RunFiles) -> dict[str, str]:
    """Say what else matters about datasets."""
    found: dict[str, list[str]] = {}
    suspects = noise_suspects(run.learning) if run.learning is not None else {}
    for name, share in suspects.items():
        found.setdefault(name, []).append(f"noise? {percent(share)} misranked: read some rows")
    for name in run.diagnostics.get("without_loss") or ():
        found.setdefault(name, []).append("every loss is 0: nothing to learn from")
    for name in (run.diagnostics.get("seeds") or {}).get("changing_sides") or ():
        found.setdefault(name, []).append("another seed puts it on the other side")
    return {name: "; ".join(said) for name, said in found.items()}


def _described(run: RunFiles) -> str:
    """Say which plan it is."""
    plan, source = str(run.setting("robust.plan", "reweight")), str(run.setting("robust.weights", "learned"))
    share = f"{run.setting('robust.share', 0.7)}"
    mixture = source in ("uniform", "size") or source.startswith("temperature-")
    kinds = {
        "top-share": f"the datasets with the largest weights (share {share}), sampled evenly",
        "bottom-share": f"the datasets with the smallest weights (share {share}), sampled evenly",
        "reweight": "every dataset, sampled by its weight",
        "reweight-loss": "every dataset, sampled evenly, its loss multiplied by its weight",
    }
    caps = [
        f"{name} {run.setting('robust.' + name)}"
        for name in ("cap", "max_epochs")
        if run.setting("robust." + name) not in (None, 1.0)
    ]
    capped = f", with {' and '.join(caps)}" if caps else ""
    if mixture:
        return f"Plan: every dataset, sampled by the {source} mixture{capped}."
    return f"Plan {plan} of {source} weights: {kinds.get(plan, plan)}{capped}."


def _flags(run: RunFiles) -> dict[str, list[str]]:
    """Say what is odd about datasets of the plan."""
    found: dict[str, list[str]] = {row.name: [] for row in run.plan}
    undecided = [n for n, d in (run.diagnostics.get("datasets") or {}).items() if d.get("verdict") == "undecided"]
    suspects = noise_suspects(run.learning) if run.learning is not None else {}
    for row in run.plan:
        tests = {
            f"repeated {row.epochs:.1f} times": row.epochs > MANY_EPOCHS,
            "noise?": row.name in suspects and row.probability > 0,
            "undecided": row.name in undecided and run.diagnostics.get("selects", True),
        }
        found[row.name] += [flag for flag, holds in tests.items() if holds]
    return found


def _chart(shown: list[Planned], even: float, width: int) -> Drawing:
    """Draw old and new probabilities."""
    table = [Row(row.name, {"old": even, "new": row.probability}, (even, row.probability)) for row in shown]
    axis = Axis(0.0, 1.06 * max(even, *(row.probability for row in shown)))
    return charts.rows(table, axis, ("old", "new"), width, None, "probability per step", "change")
