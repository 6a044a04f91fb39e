"""Other plans from the same weights: what the page's script is given, and the same in Python for Markdown."""

import math
from typing import TYPE_CHECKING, Any

from tdro.report.document import Block, Note, Section, Table, Text, WhatIf
from tdro.report.reading import RunFiles
from tdro.report.weights import VERSIONS
from tdro.report.words import listed

if TYPE_CHECKING:
    from tdro.core.plan import Plan

SHARES = ("0.5", "0.6", "0.7", "0.8", "0.9")
"""Shares in the table that does without a script."""
GIVEN = "of this study"
"""Name of weights that were not learned here."""


def what_if_section(run: RunFiles) -> Section:
    """Let the reader try other plans."""
    data = what_if_data(run)
    if data is None:
        text = "Other plans can be tried when the weights are known."
        return Section("what-if", "What if?", (Note("note", "No weights yet.", text),))
    text = (
        "Other plans from the same weights, without training anything. Nothing here changes the run: "
        "tdro robust takes the settings, and weights as a file."
    )
    blocks: list[Block] = [Text(text), WhatIf(data), _shares(data)]
    return Section("what-if", "What if?", tuple(blocks))


def what_if_data(run: RunFiles) -> dict[str, Any] | None:
    """Put together what the script needs; None where there are no weights (or no numbers), or sizes are not known.

    Returns:
        `datasets` sorted by name, each with `name`, `size` and `weights` by version; `versions`; the study's settings
        `version`, `plan`, `share`, `cap`, `max_epochs` (texts, empty: none) and `examples`, its queries.
    """
    versions = {words: run.weights[key] for key, words in VERSIONS.items() if key in run.weights}
    learned = run.setting("robust.weights", "learned") == "learned"
    if run.plan and not learned:
        versions[GIVEN] = {row.name: row.weight for row in run.plan}
    names = sorted(next(iter(versions.values()), {}))
    if (
        not names
        or not all(run.sizes.get(name) for name in names)
        or any(sorted(v) != names for v in versions.values())
    ):
        return None
    if not all(math.isfinite(weight) for weights in versions.values() for weight in weights.values()):
        return None
    exported = VERSIONS[str(run.setting("weights.export", "last"))]
    mixture = str(run.setting("robust.weights", "learned"))
    fixed = mixture in ("uniform", "size") or mixture.startswith("temperature-")
    limit = run.setting("robust.max_epochs")
    return {
        "datasets": [
            {"name": n, "size": run.sizes[n], "weights": {version: float(w[n]) for version, w in versions.items()}}
            for n in names
        ],
        "versions": list(versions),
        "version": GIVEN if GIVEN in versions else exported,
        "plan": "reweight" if fixed else str(run.setting("robust.plan", "reweight")),
        "share": str(run.setting("robust.share", 0.7)),
        "cap": str(run.setting("robust.cap", 1.0)),
        "max_epochs": "" if limit is None else str(limit),
        "examples": int(run.setting("reference.steps", 1)) * int(run.setting("reference.batch_size", 1)),
    }


def plan_in_python(data: dict[str, Any], **changes: str) -> "Plan":
    """Make the plan that the script makes, by the functions that the robust run uses.

    Args:
        data: As `what_if_data` returns it.
        changes: Settings other than the study's.

    Returns:
        The plan.

    Raises:
        ValueError: There is none with these settings.
    """
    from tdro.core.plan import bottom_share, capped, reweight, reweight_loss, top_share
    from tdro.core.projection import caps_from_epochs

    settings = {**data, **changes}
    weights = {one["name"]: one["weights"][settings["version"]] for one in data["datasets"]}
    sizes = {one["name"]: one["size"] for one in data["datasets"]}
    if settings["plan"] == "reweight":
        plan = reweight(weights)
    elif settings["plan"] == "reweight-loss":
        plan = reweight_loss(weights)
    else:
        plan = (top_share if settings["plan"] == "top-share" else bottom_share)(weights, float(settings["share"]))
    high = dict.fromkeys(sizes, float(settings["cap"]))
    if settings["max_epochs"]:
        caps_G = caps_from_epochs(sizes, float(settings["max_epochs"]), data["examples"])
        high = {name: min(high[name], cap) for name, cap in zip(sizes, caps_G.tolist(), strict=True)}
    return capped(plan, high)


def _shares(data: dict[str, Any]) -> Table:
    """Show which datasets other shares would leave out."""
    names = [one["name"] for one in data["datasets"]]
    table = []
    for share in SHARES:
        try:
            kept = plan_in_python(data, plan="top-share", share=share, cap="1.0", max_epochs="").probabilities
        except ValueError:
            continue
        table.append((share, str(len(kept)), listed([n for n in names if n not in kept], 12) or "none"))
    return Table(
        ("share kept", "datasets kept", "left out"), tuple(table), "Plan top-share at other shares.", ("left out",)
    )
