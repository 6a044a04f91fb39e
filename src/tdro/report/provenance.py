"""Where the run comes from: versions, machine, code, data, settings; and how to read the page."""

from typing import Any

from tdro.report.document import Block, Bullets, Code, Fold, Section, Table, Text
from tdro.report.reading import RunFiles
from tdro.report.words import NONE

NOTES = 100
"""Notes of the journal that are shown, the last ones."""

_GUIDE = (
    "Weight: how much a dataset matters to the robust objective; all weights sum to 1. Even is 1 divided by the number "
    "of datasets.",
    "Reference, proxy, robust: the three models. The reference is trained on all datasets evenly; the proxy learns the "
    "weights by being compared with it; the robust model is trained with the plan.",
    "Plan: what is made of the weights, a probability per step for each dataset. Sizes do not matter to it; small "
    "datasets repeat, and epochs say how often.",
    "95 % interval of a difference: where the mean difference would lie if other queries of the same kind had been "
    "drawn (bootstrap). It says nothing about other seeds.",
    "p (Holm): how often a difference of this size would come up if the two models were exchangeable (paired "
    "randomisation test), adjusted for the number of tasks. Below 0.05 counts as clear here.",
    "Effect d_z: the mean difference over the standard deviation of a query's difference; 0.2 is small, 0.8 large.",
    "Points: scores times 100.",
    "Loss: in nats, over a fixed set of hard negatives; 0 where the positive is far closer than every negative.",
    "Misranked: the reference finds a negative closer to the query than the positive.",
    "Effective number of datasets: as many equally weighted datasets would be as concentrated (exponential of the "
    "entropy).",
)


def provenance_section(run: RunFiles) -> Section:
    """Say what ran, on what, and how to run it again."""
    ran: dict[str, Any] = run.setting("ran", {})
    rows = [
        ("run folder", run.folder.resolve().name),
        ("study", str(run.setting("name", NONE))),
        ("seed", str(run.setting("seed", NONE))),
    ]
    rows.append(("base model", f"{run.setting('model.base', NONE)} (content {ran.get('base', NONE)})"))
    git = ran.get("git") or {}
    if git:
        rows.append(("code", f"commit {git.get('commit', NONE)}, {git.get('state', NONE)}"))
    rows += [(str(key), str(value)) for key, value in (ran.get("machine") or {}).items()]
    rows += [(str(name), str(version)) for name, version in (ran.get("versions") or {}).items()]
    blocks: list[Block] = [Table(("what", "value"), tuple(rows), "", ("value",)), *_machines(run)]
    again = (
        "tdro run study.yaml, with the study below and the same data, does it again; on a CPU with as many threads the "
        "same bits come out."
    )
    blocks.append(Text(again))
    if data := ran.get("data"):
        table = tuple((str(name), str(content)) for name, content in data.items())
        blocks.append(
            Fold("Fingerprints of the data", (Table(("dataset", "fingerprint"), table, "", ("fingerprint",)),))
        )
    if notes := [str(event.get("text", "")) for event in run.journal.of("note")]:
        blocks.append(Fold("Notes of the run", (Bullets(tuple(dict.fromkeys(notes))[-NOTES:]),)))
    if run.study_text:
        blocks.append(Fold("Study as it was written", (Code(run.study_text),)))
    return Section("provenance", "Provenance", tuple(blocks))


def guide_section() -> Section:
    """Explain the words of the page."""
    text = "From top to bottom: what came out, why, and what it rests on. Every figure has a table or words beside it."
    return Section("guide", "How to read this page", (Text(text), Bullets(_GUIDE)))


def _machines(run: RunFiles) -> list[Block]:
    """Say whether parts of the run were made on other machines or versions."""
    seen = []
    for event in run.journal.of("environment"):
        about = {key: value for key, value in event.items() if key not in ("event", "stage", "time")}
        if about not in seen:
            seen.append(about)
    if len(seen) < 2:
        return []
    rows = tuple(
        (str(number), str(one.get("system", NONE)), str(one.get("device", NONE)), str(one.get("ranks", NONE)),
         str(one.get("threads", NONE)), str((one.get("versions") or {}).get("torch", NONE)))
        for number, one in enumerate(seen, start=1)
    )  # fmt: skip
    header = ("start", "system", "device", "ranks", "threads", "torch")
    return [Table(header, rows, "This run was made in several environments.", ("system", "device", "torch"))]
