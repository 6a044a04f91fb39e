"""What the run has cost, against what was estimated."""

from typing import Any

from tdro.report.charts import Axis, Drawing, Row, rows
from tdro.report.document import Block, Figure, Note, Section, Table, Text
from tdro.report.reading import STAGES, RunFiles
from tdro.report.words import NONE, duration, listed, percent

_MINUTE = 60.0


def cost_section(run: RunFiles) -> Section:
    """Compare the time of every stage with the estimate."""
    real, foretold = real_seconds(run), run.json("estimate.json")
    estimate: dict[str, Any] = foretold.get("stages") or {}
    if not real and not estimate:
        return Section("cost", "Cost", (Note("note", "Not known.", "No stage of this run has ended yet."),))
    resumed = _resumed(run)
    names = [*(name for name in STAGES if name in real or name in estimate), *(n for n in estimate if n not in STAGES)]
    blocks: list[Block] = []
    if estimate:
        whole = {name: seconds for name, seconds in real.items() if name not in resumed}
        blocks.append(_figure(whole, estimate, names))
        rows = tuple(_cells(name, real, estimate, resumed) for name in names)
        header = ("stage", "estimated", "range", "real", "real against estimate")
        blocks.append(Table(header, rows, "Estimated before the run, from what was measured on the machine."))
        blocks += _bill(foretold)
    else:
        rows = tuple((name, duration(real[name])) for name in names)
        total = sum(real.values())
        blocks.append(
            Table(
                ("stage", "time"),
                (*rows, ("all", duration(total))),
                "No estimate was made before the run (tdro estimate STUDY).",
                total=True,
            )
        )
    if resumed:
        said = "Their time is that of the last start only, and is not set against the estimate."
        blocks.append(Text(f"Went on from a checkpoint: {listed(sorted(resumed))}. {said}"))
    return Section("cost", "Cost", tuple(blocks))


def _resumed(run: RunFiles) -> set[str]:
    """Return the stages of which a part went on from a checkpoint when it was last started."""
    last = {event["stage"]: event.get("from_step", 0) for event in run.journal.of("stage_started")}
    return {stage.partition("/")[0] for stage, step in last.items() if step > 0}


def _bill(foretold: dict[str, Any]) -> list[Block]:
    """Say what energy and money were estimated."""
    total = foretold.get("total") or {}
    if not {"kwh", "money"} <= set(total):
        return []
    said = f"{total['kwh']:.2g} kWh and {total['money']:.2f} {foretold.get('currency', '')}".rstrip()
    return [
        Text(f"Energy and money of what was left to do when the run was started: {said} (estimated, not measured).")
    ]


def real_seconds(run: RunFiles) -> dict[str, float]:
    """Stage -> seconds; parts of a stage are added, of a part that was done again the last counts."""
    parts: dict[tuple[str, str], float] = {}
    for event in run.journal.events:
        if event["event"] in ("stage_finished", "mined") and "seconds" in event:
            stage, _, part = event["stage"].partition("/")
            parts[stage, part or event.get("dataset", "")] = float(event["seconds"])
    return {
        stage: sum(s for (one, _), s in parts.items() if one == stage) for stage in dict.fromkeys(s for s, _ in parts)
    }


def _cells(name: str, real: dict[str, float], estimate: dict[str, Any], resumed: set[str]) -> tuple[str, ...]:
    """A row of the table; what is known of a part of a stage only is not compared."""
    guess, took = estimate.get(name), real.get(name)
    if guess is None:
        return name, NONE, NONE, duration(took or 0), NONE
    between = f"{duration(guess['low'])} to {duration(guess['high'])}" if {"low", "high"} <= set(guess) else NONE
    told = NONE if took is None or name in resumed or not guess["seconds"] else percent(took / guess["seconds"])
    missing = NONE if name in STAGES else "not recorded"
    took_text = missing if took is None else f"{duration(took)}{' (last start)' if name in resumed else ''}"
    return name, duration(guess["seconds"]), between, took_text, told


def _figure(real: dict[str, float], estimate: dict[str, Any], names: list[str]) -> Figure:
    """Draw estimated and real times."""

    def draw(width: int) -> Drawing:
        table = []
        for name in names:
            guess = estimate.get(name, {})
            marks = {"estimated": guess.get("seconds"), "real": real.get(name)}
            span = (guess["low"] / _MINUTE, guess["high"] / _MINUTE) if {"low", "high"} <= set(guess) else None
            table.append(Row(name, {kind: s / _MINUTE for kind, s in marks.items() if s is not None}, span))
        ends = [end for row in table for end in (*row.marks.values(), *(row.interval or ()))]
        return rows(table, Axis(0.0, 1.06 * max([*ends, 1e-9])), ("estimated", "real"), width, None, "minutes", "range")

    said = "; ".join(f"{name}: {' against '.join(_told(name, real, estimate))}" for name in names)
    return Figure("Time per stage, estimated and real", said + ".", draw)


def _told(name: str, real: dict[str, float], estimate: dict[str, Any]) -> list[str]:
    """Write the times of a stage."""
    found = [f"{duration(estimate[name]['seconds'])} estimated"] if name in estimate else []
    return [*found, *([f"{duration(real[name])} real"] if name in real else [])]
