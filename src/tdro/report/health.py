"""Are the weights healthy? Collapse, drift, absent datasets, clipping, noise, in a sentence each."""

import math
from typing import Any, NamedTuple

from tdro.report.document import Bullets, Note, Section, Text
from tdro.report.reading import Learning, RunFiles
from tdro.report.weights import handed_on
from tdro.report.words import NONE, listed, noun, number, percent

SUSPECT = 0.5
"""Share of queries for which the reference prefers a negative, from which on a dataset is a suspect of noise."""
MOVING = 0.05
"""Change of a log-weight over the last tenth of the steps from which on the weights count as still moving."""
MANY_EPOCHS = 4.0
"""Planned epochs from which on repeats are mentioned."""
ABSENT = 0.05
"""Share of the steps without a dataset, on average, from which on it is a warning."""
FEW_STEPS = 50
"""Steps below which nothing is said about settling."""
TINY = 1e-3
"""Mean loss of the proxy, in nats, below which a dataset has almost nothing to learn from."""
COLLAPSED = 0.5
"""Weight of a single dataset, of three or more, that is called a collapse."""


class _Finding(NamedTuple):
    """A sentence, and whether it warns."""

    warns: bool
    text: str


def health_section(run: RunFiles) -> Section:
    """Say how the learning of the weights went: warnings first, then what is as it should be."""
    learning, title = run.learning, "Health of the weights"
    if learning is None:
        return Section("health", title, (Note("note", "Nothing to say.", "No weights were learned."),))
    clip, norm = str(run.setting("weights.clip", "l2")), float(run.setting("weights.clip_norm", 1.0))
    weights = handed_on(run) or dict(zip(learning.names, learning.weights_TG[-1].tolist(), strict=True))
    found = (
        _collapse(list(weights.values())), _settled(learning, run), _gap(run.diagnostics),
        _absent(learning), _clipped(learning, clip, norm), _silent(learning), _dropped(learning),
        _noise(learning, weights),
        _memory(run.diagnostics), _epochs(run),
    )  # fmt: skip
    warnings = tuple(one.text for one in found if one is not None and one.warns)
    fine = tuple(one.text for one in found if one is not None and not one.warns)
    if warnings:
        note = Note("warning", f"{noun(len(warnings), 'thing')} to look at.", "")
        return Section("health", title, (note, Bullets(warnings), Text("For the rest:"), Bullets(fine)))
    return Section("health", title, (Note("good", "Nothing to worry about.", ""), Bullets(fine)))


def effective_number(weights: list[float]) -> float:
    """Compute how many equally weighted datasets would be as concentrated: exp(entropy).

    Example:
        >>> round(effective_number([0.5, 0.5, 0.0]), 12)
        2.0
    """
    return math.exp(-sum(weight * math.log(weight) for weight in weights if weight > 0))


def noise_suspects(learning: Learning) -> dict[str, float]:
    """Return the datasets for most of whose queries the reference prefers a negative, with that share."""
    if learning.misranked_TG is None:
        return {}
    queries_G = learning.sums_TGC[:, :, [0, 6]].sum(axis=(0, 2))
    shares = (learning.misranked_TG.sum(axis=0) / queries_G.clip(1)).tolist()
    return {name: share for name, share in zip(learning.names, shares, strict=True) if share >= SUSPECT}


def _collapse(weights: list[float]) -> _Finding:
    """Say how concentrated the weights are."""
    effective = effective_number(weights)
    said = (
        f"he weights are as concentrated as {effective:.1f} equal ones of {len(weights)} (effective number of datasets)"
    )
    less = "Lower weights.step_size, use update: anchored, or set weights.cap."
    if len(weights) > 2 and max(weights) > COLLAPSED:
        return _Finding(True, f"Collapse: one dataset has {percent(max(weights))} of the weight. T{said}. {less}")
    if effective < len(weights) / 4:
        return _Finding(True, f"Close to a collapse: t{said}. {less}")
    return _Finding(False, f"No collapse: t{said}.")


def _settled(learning: Learning, run: RunFiles) -> _Finding:
    """Say whether the weights still move, and whether they drift at an even pace."""
    import numpy as np

    count = len(learning.steps)
    warmup = int(run.setting("weights.warmup_steps", 0))
    if count < FEW_STEPS or warmup >= count:
        never = f", and never left the warm-up of {warmup}" if warmup >= count else ""
        said = f"The weights made {noun(count, 'step')} only{never}: too few to tell whether they settle."
        return _Finding(True, said)
    log_TG = np.log(np.maximum(learning.weights_TG, 1e-300))
    last = float(np.abs(log_TG[-1] - log_TG[max(count - 1 - count // 10, 0)]).max())
    last = float(run.diagnostics.get("change_in_last_tenth", last))
    moved = f"changed by {percent(math.expm1(last), 1)} over the last tenth of the steps"
    if last <= MOVING:
        return _Finding(False, f"They have settled: the weight that moved most {moved}.")
    first, second = (float(np.abs(log_TG[b] - log_TG[a]).max()) for a, b in ((0, count // 2), (count // 2, count - 1)))
    if second < 0.8 * first:
        return _Finding(True, f"They are still moving, but slow down: a weight {moved}.")
    said = (
        f"They drift: a weight {moved}, and the second half of the steps moved them about as far as the first. More "
        "steps would go on moving them, so that their number acts as a temperature; update: anchored comes to rest."
    )
    return _Finding(True, said)


def _gap(diagnostics: dict[str, Any]) -> _Finding | None:
    """Say how far the weights are from having nothing left to gain."""
    if "duality_gap" not in diagnostics:
        return None
    gap = number(float(diagnostics["duality_gap"]))
    what = "(duality gap; 0 when nothing is left to gain)"
    return _Finding(False, f"The best single dataset is {gap} above the weighted mean of the measures {what}.")


def _absent(learning: Learning) -> _Finding:
    """Say how often datasets were missing from a step."""
    present_TG = learning.sums_TGC[:, :, 0] > 0
    share = 1 - float(present_TG.mean())
    never = [name for g, name in enumerate(learning.names) if not present_TG[:, g].any()]
    if never:
        return _Finding(True, f"Never drawn in the weights stage: {listed(never)}; their weights mean nothing.")
    if not share:
        return _Finding(False, "Every dataset was in every step.")
    said = f"Datasets were absent from {percent(share, 1)} of the steps on average"
    if share > ABSENT:
        return _Finding(True, f"{said}: weights.sampling: stratified, or larger batches, would show all of them.")
    return _Finding(False, f"{said}.")


def _clipped(learning: Learning, clip: str, norm: float) -> _Finding | None:
    """Say how often the clip of the measures acted."""
    import numpy as np

    signal_TG = learning.signal_TG[~np.isnan(learning.signal_TG).any(axis=1)]
    if clip == "none" or not len(signal_TG):
        return None
    size_T = np.linalg.norm(signal_TG, axis=1) if clip == "l2" else np.abs(signal_TG).max(axis=1)
    share = float((size_T > norm).mean())
    said = f"The clip of the measures ({clip}, {norm:g}) acted in {percent(share)} of the steps"
    often = ": their direction moves the weights, their size does not, as is usual with ratios" if share > 0.95 else ""
    return _Finding(False, f"{said}{often}.")


def _silent(learning: Learning) -> _Finding | None:
    """Say which datasets have nothing, or almost nothing, to learn from."""
    sums = dict(zip(learning.names, learning.sums_TGC.sum(axis=0).tolist(), strict=True))
    silent = [name for name, (n, proxy, reference, *_) in sums.items() if n and proxy == reference == 0]
    tiny = [name for name, (n, proxy, *_) in sums.items() if n and proxy < TINY * n and name not in silent]
    said = [f"Every loss of {listed(silent)} is 0, so there is nothing to learn from"] if silent else []
    if tiny:
        said.append(f"The proxy's mean loss is below {TINY:g} for {listed(tiny)}: almost nothing to learn from")
    if not said:
        return None
    return _Finding(True, f"{'; '.join(said)}: raise weights.temperature or use harder negatives.")


def _dropped(learning: Learning) -> _Finding:
    """Say which datasets lost queries because a loss was not finite."""
    counts = zip(learning.names, learning.sums_TGC[:, :, 6].sum(axis=0).tolist(), strict=True)
    dropped = [f"{name} {count:.0f}" for name, count in counts if count]
    if dropped:
        return _Finding(True, f"Losses that were not finite were dropped: {listed(dropped)}.")
    return _Finding(False, "Every loss was finite.")


def _noise(learning: Learning, weights: dict[str, float]) -> _Finding | None:
    """Say which datasets may be noisy, and what weight they have."""
    if learning.misranked_TG is None:
        return None
    times = {name: number(weight * len(weights), 2) for name, weight in weights.items()}
    named = listed([
        f"{name} ({percent(share)}, {times.get(name, NONE)} times an even weight)"
        for name, share in noise_suspects(learning).items()
    ])  # fmt: skip
    if not named:
        said = "No dataset looks noisy: the reference ranks the positive first for most queries of each."
        return _Finding(False, said)
    said = f"Suspects of noise or wrong labels: the reference prefers a negative for most queries of {named}."
    return _Finding(True, f"{said} The measures raw and excess give such datasets weight. Read some of their rows.")


def _memory(diagnostics: dict[str, Any]) -> _Finding | None:
    """Say for which datasets the losses of held-out rows tell another story."""
    datasets = diagnostics.get("datasets") or {}
    gaps = {name: float(d["memorisation"]) for name, d in datasets.items() if d.get("memorisation") is not None}
    most = listed([f"{name} ({gaps[name]:+.2f})" for name in sorted(gaps, key=lambda name: -abs(gaps[name]))[:3]])
    if not most:
        return None
    what = "log of the loss ratio on training rows less that on held-out rows"
    return _Finding(False, f"Memorisation ({what}) is largest for {most}.")


def _epochs(run: RunFiles) -> _Finding | None:
    """Say which datasets the plan repeats often."""
    often = listed([f"{row.name} ({row.epochs:.1f})" for row in run.plan if row.epochs > MANY_EPOCHS])
    if not often:
        return None
    do = "robust.max_epochs caps that"
    return _Finding(True, f"The plan shows rows more than {MANY_EPOCHS:g} times: {often} epochs; {do}.")
