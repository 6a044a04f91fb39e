"""What is known of the data: the check, leaks into the evaluation, and mined negatives."""

from typing import Any

from tdro.report.document import Block, Bullets, Fold, Note, Section, Table, Text
from tdro.report.reading import RunFiles
from tdro.report.words import listed, noun, number, percent, shorten

FINDINGS = 50
"""Findings of the check that are shown."""
LEAKS = 10
"""Leaking rows that are shown."""

_LEAK_LEVELS = ("exact", "near", "simhash-k2")


def data_section(run: RunFiles) -> Section:
    """Show what was found in the training data."""
    check = run.json("data/check.json")
    blocks = [*_check(check), *_of_other_data(run, check), *_leaks(run), *_negatives(run)]
    return Section("data", "Data: check and leaks", tuple(blocks))


def _check(check: dict[str, Any]) -> list[Block]:
    """Show the result of tdro check."""
    if not check:
        return [Note("note", "Not checked.", "tdro check STUDY looks at every row; its result is shown here.")]
    totals = check["totals"]
    said = ", ".join(noun(int(totals[level]), level) for level in ("error", "warning", "note"))
    level = "warning" if totals["error"] or totals["warning"] else "good"
    blocks: list[Block] = [
        Note("warning" if level == "warning" else "good", "tdro check:", f"{said} ({check['date']}).")
    ]
    counts = sorted(check["counts"], key=lambda one: ("error", "warning", "note").index(one["level"]))
    if counts:
        table = tuple((one["level"], one["dataset"], one["code"], f"{one['count']:,}") for one in counts[:FINDINGS])
        caption = (
            "Findings by kind."
            if len(counts) <= FINDINGS
            else f"The first {FINDINGS} of {len(counts)} kinds of findings."
        )
        blocks.append(Table(("level", "dataset", "finding", "count"), table, caption, ("dataset", "finding")))
    return blocks


def _of_other_data(run: RunFiles, check: dict[str, Any]) -> list[Block]:
    """Say so where the check was of other datasets than the run's."""
    ran, checked = run.setting("data.datasets"), [report["name"] for report in check.get("datasets", ())]
    if not ran or not checked or set(ran) == set(checked):
        return []
    gone, new = [name for name in checked if name not in ran], [name for name in ran if name not in checked]
    kinds = {"only the check has": gone, "only the run has": new}
    said = "; ".join(f"{what} {listed(names)}" for what, names in kinds.items() if names)
    return [Note("warning", "The check was of other data than the run.", f"{said[0].upper()}{said[1:]}.")]


def _leaks(run: RunFiles) -> list[Block]:
    """Show training rows that ask what the evaluation asks."""
    leakage = run.json("data/leakage.json")
    if not leakage:
        off = run.setting("leakage.gate") == "off"
        why = "leakage.gate is off." if off else "This run did not compare training with evaluation queries."
        return [Note("note", "No search for leaks.", why)]
    total = sum(leakage["leaking_rows"].values())
    gate = leakage["settings"]["gate"]
    what = {"remove": "They were left out.", "warn": "They were trained on all the same (leakage.gate: warn)."}
    if total:
        said = what.get(gate, f"leakage.gate: {gate}.")
        one = Note(
            "note" if gate == "remove" else "warning",
            f"{noun(total, 'training row')} ask what the evaluation asks.",
            said,
        )
    else:
        tests = noun(len(leakage["tests"]), "evaluation set")
        one = Note("good", "No leaks.", f"No training row asks what one of {tests} asks.")
    blocks: list[Block] = [one]
    table = [
        (line["train"], line["test"], *(f"{line[level]:,}" for level in _LEAK_LEVELS), percent(line["rate"], 2),
         f"{line['queries']:,}")
        for line in leakage["table"] if any(line[level] for level in _LEAK_LEVELS)
    ]  # fmt: skip
    if table:
        header = ("dataset", "evaluation set", "exact", "near", "simhash-k2", "share of the rows", "test queries")
        blocks.append(Table(header, tuple(table), "Leaking rows by their strongest finding.", ("evaluation set",)))
    return [*blocks, *_leak_examples(leakage)]


def _leak_examples(leakage: dict[str, Any]) -> list[Block]:
    """Show some leaking rows beside what they leak."""
    found = [one for one in leakage["examples"] if one["level"] in _LEAK_LEVELS]
    if not found:
        return []
    rows = tuple(
        (
            one["train"],
            shorten(one["query"], 160),
            one["test"],
            shorten(one["test_query"], 160),
            number(one["score"], 2),
        )
        for one in found[:LEAKS]
    )
    header = ("dataset", "training query", "evaluation set", "its query", "similarity")
    return [Fold("Examples of leaks", (Table(header, rows, "The least similar ones.", header[:-1]),))]


def _negatives(run: RunFiles) -> list[Block]:
    """Show how hard the mined negatives are."""
    mined = {event["dataset"]: event for event in run.journal.of("mined")}
    if not mined:
        return []
    rows = tuple(
        (name, f"{event['rows']:,}", f"{event['negatives']:,}", number(event.get("positive_similarity")),
         number(event.get("negative_similarity")), percent(event.get("inverted") or 0.0))
        for name, event in mined.items()
    )  # fmt: skip
    header = ("dataset", "rows", "negatives", "similarity of positives", "of negatives", "rows with a negative above")
    said = (
        "Where many rows have a negative above their positive, negatives may be right answers, or positives wrong ones."
    )
    notes = [str(e["text"]) for e in run.journal.of("note", "negatives") if e.get("text")]
    blocks: list[Block] = [Table(header, rows, "Mined negatives, as the model that mined them sees them."), Text(said)]
    return [Fold("Mined negatives", (*blocks, *([Bullets(tuple(notes))] if notes else [])))]
