"""What the run has cost, against what was estimated."""

from typing import Any

from tdro.report.axes import Axis
from tdro.report.charts import Drawing, Row, rows
from tdro.report.document import Block, Figure, Note, Section, Table, Text
from tdro.report.reading import STAGES, RunFiles
from tdro.report.words import NONE, duration, listed, percent

SIMILARITIES = "similarities"
"""What the reference computes before the weights stage, as estimate and journal call it."""
_ORDER = ("negatives", "reference", SIMILARITIES, "weights", "robust", "evaluation")
_MINUTE = 60.0


def cost_section(run: RunFiles) -> Section:
    """Compare the time of every stage with the estimate."""
    real, foretold = real_seconds(run), run.json("estimate.json")
    estimate: dict[str, Any] = foretold.get("stages") or {}
    if not real and not estimate:
        return Section("cost", "Cost", (Note("note", "Not known.", "No stage of this run has ended yet."),))
    part = _part_of_the_similarities(run)
    names = [name for name in dict.fromkeys([*_ORDER, *estimate]) if name in real or name in estimate]
    blocks: list[Block] = []
    if estimate:
        whole = {name: seconds for name, seconds in real.items() if not (part and name == SIMILARITIES)}
        blocks.append(_figure(whole, estimate, names))
        rows = tuple(_cells(name, real, estimate, whole) for name in names)
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
    if part:
        blocks.append(Text(part))
    if resumed := _resumed(run):
        said = "Their time is that of all starts together, without steps that were lost and done again."
        blocks.append(Text(f"Went on from a checkpoint: {listed(sorted(resumed))}. {said}"))
    return Section("cost", "Cost", tuple(blocks))


def real_seconds(run: RunFiles) -> dict[str, float]:
    """Stage -> seconds; parts of a stage are added, of a part that was done again the last counts.

    Of a part that went on from a checkpoint, the starts before are added, as far as their steps were kept.
    """
    parts: dict[tuple[str, str], float] = {}
    for event in run.journal.events:
        if event["event"] in ("stage_finished", "mined") and "seconds" in event:
            stage, _, part = event["stage"].partition("/")
            seconds = float(event["seconds"]) + float(event.get("earlier", 0.0))
            parts[stage, part or event.get("dataset", "")] = seconds
    found = {
        stage: sum(s for (one, _), s in parts.items() if one == stage) for stage in dict.fromkeys(s for s, _ in parts)
    }
    looked_up = _similarity_events(run)
    return found | ({SIMILARITIES: sum(float(e["seconds"]) for e in looked_up)} if looked_up else {})


def _similarity_events(run: RunFiles) -> list[dict[str, Any]]:
    """Return what was told of the similarities; where none was there yet, what was told of these seeds is void."""
    found: list[dict[str, Any]] = []
    for event in run.journal.of(SIMILARITIES):
        if not event["kept"]:
            found = [earlier for earlier in found if not set(earlier["seeds"]) & set(event["seeds"])]
        found.append(event)
    return found


def _part_of_the_similarities(run: RunFiles) -> str:
    """Say why the time of the similarities is that of a part only; empty where it is that of all."""
    events, computed = _similarity_events(run), 0
    for event in events:
        if event["kept"] > computed:
            return "Some of the similarities were in the cache before this run; their time is that of the rest."
        computed += event["computed"]
    return "The similarities are not finished." if events and not events[-1]["finished"] else ""


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


def _cells(name: str, real: dict[str, float], estimate: dict[str, Any], whole: dict[str, float]) -> tuple[str, ...]:
    """A row of the table; what is known of a part of a stage only is not compared."""
    guess, took = estimate.get(name), real.get(name)
    if guess is None:
        return name, NONE, NONE, duration(took or 0), NONE
    between = f"{duration(guess['low'])} to {duration(guess['high'])}" if {"low", "high"} <= set(guess) else NONE
    told = percent(whole[name] / guess["seconds"]) if name in whole and guess["seconds"] else NONE
    missing = NONE if name in STAGES else "not recorded"
    took_text = missing if took is None else f"{duration(took)}{'' if name in whole else ' (a part)'}"
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
