"""The verdict: what the run has shown, in plain words, and first whether it was large enough to show anything."""

from typing import TYPE_CHECKING

from tdro.report.cost import real_seconds
from tdro.report.document import Block, Bullets, Note, Section, Table, Text
from tdro.report.losses import ENOUGH_QUERIES
from tdro.report.reading import STAGES, RunFiles
from tdro.report.scores import LEVEL, Comparison, describe
from tdro.report.words import NONE, duration, listed, measure_name, noun, number, percent

if TYPE_CHECKING:
    from tdro.evaluation.compare import Contrast

TASKS = 3
"""Evaluation tasks from which on their mean says something about others."""
WIDE = 0.01
"""Half an interval, as a score, above which a gain of one point could have gone unseen."""
TOO_SMALL = "too small to tell"
"""When nothing is clear, and a gain of one point could have gone unseen or the tasks are few."""

_PUBLISHED = "published gains of this method are 0.4 to 3.2 points on average"


def headline(comparison: Comparison) -> str:
    """Say the verdict in a few words."""
    if not comparison.contrasts:
        why = (
            "the results of the models cannot be compared"
            if comparison.problem
            else "no model was compared with another"
        )
        return f"No verdict: {why}"
    found = {measure_name(contrast.measure): _outcome(contrast) for contrast in comparison.contrasts}
    first, second = comparison.contrasts[0].first.name, comparison.contrasts[0].second.name
    if len(set(found.values())) > 1:
        said = "; ".join(f"{outcome} in {measure}" for measure, outcome in found.items())
        return f"The {second} model against the {first} model: {said}"
    outcome = next(iter(found.values()))
    if outcome in ("better", "worse"):
        return f"The {second} model is {outcome} than the {first} model"
    if outcome == TOO_SMALL:
        return "Too small to tell"
    clear = [_clear_tasks(contrast) for contrast in comparison.contrasts]
    names = {word: [name for tasks in clear for name in tasks[word]] for word in ("better", "worse")}
    changed = [f"{word} on {listed(tasks)}" for word, tasks in names.items() if tasks]
    but = f", but clearly {' and '.join(changed)}" if changed else ""
    return f"No clear difference between the {first} and the {second} model{but}"


def _outcome(contrast: "Contrast") -> str:
    """Put what one measure shows into a word or two."""
    if _is_clear(contrast):
        return "better" if contrast.mean.test.difference.mean > 0 else "worse"
    return TOO_SMALL if is_too_small(contrast) else "no clear difference"


def _clear_tasks(contrast: "Contrast") -> dict[str, list[str]]:
    """Tasks that are clearly better and worse, after Holm's adjustment."""
    clear = [line for line in contrast.tasks if line.p_holm is not None and line.p_holm <= LEVEL]
    return {
        "better": [line.name for line in clear if line.test.difference.mean > 0],
        "worse": [line.name for line in clear if line.test.difference.mean < 0],
    }


def is_too_small(contrast: "Contrast") -> bool:
    """Whether nothing is clear, and a gain of one point could have gone unseen or the tasks are few."""
    found = contrast.mean.test.difference
    return not _is_clear(contrast) and (found.tasks < TASKS or found.high - found.low > 2 * WIDE)


def verdict_section(run: RunFiles, comparison: Comparison) -> Section:
    """Say what the run has shown, what limits that, and how far it got."""
    blocks: list[Block] = [_note(contrast) for contrast in comparison.contrasts]
    if not blocks:
        blocks.append(Note("note", "No verdict.", _why_none(run, comparison)))
    blocks += [Text(sentence) for sentence in _mixture(run)]
    limits = _limits(run, comparison)
    if limits:
        blocks += [Text("What to keep in mind:"), Bullets(tuple(limits))]
    blocks += _progress(run)
    if run.problems:
        blocks.append(Note("warning", "Files that could not be read:", " ".join(f"{p}." for p in run.problems)))
    return Section("verdict", "Verdict", tuple(blocks))


def _is_clear(contrast: "Contrast") -> bool:
    """Whether interval and test both say that there is a difference."""
    p = contrast.mean.p_holm
    return contrast.mean.test.difference.is_clear and p is not None and p <= LEVEL


def _note(contrast: "Contrast") -> Note:
    """Say what one measure shows."""
    found, said = contrast.mean.test.difference, describe(contrast)
    half = 50 * (found.high - found.low)
    if len(contrast.tasks) > 1:
        counts = (
            f"clearly {word} on {len(names)}" + (f" ({listed(names)})" if names else "")
            for word, names in _clear_tasks(contrast).items()
        )
        said += f" Of {len(contrast.tasks)} tasks, after Holm's adjustment, it is {' and '.join(counts)}."
    measure = measure_name(contrast.measure)
    if is_too_small(contrast):
        wide = f"A difference below about {half:.1f} points would not have shown here ({_PUBLISHED})."
        few = f"{noun(found.tasks, 'task')} cannot speak for others."
        why = [wide] * (half > 100 * WIDE) + [few] * (found.tasks < TASKS)
        return Note("warning", "This run was too small to tell.", " ".join([*why, said]))
    if not _is_clear(contrast):
        most = 100 * max(-found.low, found.high)
        return Note("note", f"No clear difference in mean {measure}: at most about {most:.1f} points either way.", said)
    if found.mean > 0:
        return Note("good", f"The {contrast.second.name} model is better in {measure}.", said)
    return Note("warning", f"The {contrast.second.name} model is worse in {measure}.", said)


def _why_none(run: RunFiles, comparison: Comparison) -> str:
    """Say why nothing is compared."""
    last = run.journal.events[-1] if run.journal.events else {}
    if last.get("event") == "failed":
        return f"The run stopped with an error: {' '.join(str(last.get('error', '')).split())}"
    if not run.setting("evaluation.tasks", {}):
        return "The study has no evaluation task, so the mixture was learned but not judged. Add evaluation.tasks."
    if comparison.problem:
        return f"The results of the evaluation cannot be compared: {comparison.problem}."
    return "The models have not been evaluated yet, or not both of them. The same tdro run command goes on from here."


def _mixture(run: RunFiles) -> list[str]:
    """Say which weights are large and small, and what the plan keeps."""
    weights = run.weights.get("domain_weights") or {}
    said = []
    if weights:
        ranked = sorted(weights, key=lambda name: (-weights[name], name))
        times = [f"{name} {number(weights[name] * len(weights), 2)}" for name in ranked]
        few = min(3, len(ranked) // 2)
        if few:
            ends = f"the largest are {listed(times[:few])}, the smallest {listed(times[-few:])}"
            said.append(f"Of the weights, as multiples of an even share, {ends}.")
    if run.plan:
        gone = [row.name for row in run.plan if row.probability == 0]
        kept = len(run.plan) - len(gone)
        left = f" It leaves out {listed(gone, 10)}." if gone else ""
        said.append(f"The plan samples {kept} of {noun(len(run.plan), 'dataset')}.{left}")
    return said


def _limits(run: RunFiles, comparison: Comparison) -> list[str]:
    """Say what limits the verdict."""
    said = []
    for contrast in comparison.contrasts[:1]:
        if contrast.mean.test.difference.tasks < TASKS and not is_too_small(contrast):
            said.append("So few tasks say little about others.")
        if len(contrast.first.seeds) == 1:
            said.append("One run of each model: what another training seed would change is not known.")
    learning, diagnostics = run.learning, run.diagnostics
    if learning is not None:
        late = max(1, len(learning.steps) // 4)  # the measures that count are those of the last quarter
        seen = learning.sums_TGC[-late:, :, 0].sum(axis=0)
        few = [name for name, count in zip(learning.names, seen.tolist(), strict=True) if count < ENOUGH_QUERIES]
        if few:
            whose = "every dataset" if len(few) == len(seen) else listed(few)
            said.append(
                f"The ratios of losses rest on few queries: fewer than {ENOUGH_QUERIES} of {whose} in the last quarter "
                f"of the weights stage (the fewest: {int(seen.min()):,}). More steps or larger batches would help."
            )
    verdicts = [dataset.get("verdict") for dataset in (diagnostics.get("datasets") or {}).values()]
    if diagnostics.get("selects", True) and verdicts.count("undecided") * 2 > len(verdicts):
        said.append("For most datasets another draw of the batches could change the advice (see Advice).")
    leaking = sum(run.json("data/leakage.json").get("leaking_rows", {}).values())
    if leaking and run.setting("leakage.gate") == "warn":
        said.append(f"{noun(leaking, 'training row')} ask what the evaluation asks; scores may be too high.")
    return said


def _progress(run: RunFiles) -> list[Block]:
    """Show how far every stage got."""
    rows, unfinished, seconds = [], [], real_seconds(run)
    for stage in STAGES:
        done, total = run.journal.reached.get(stage, (0, 0))
        state, share = _state(run, stage, stage in seconds), f"{done:,} of {total:,}" if total else NONE
        if state == "not finished":
            unfinished.append(f"{stage} ({percent(done / total)} of its steps)" if total else stage)
        peaks = [max(peak.values()) for peak in _peaks(run, stage) if peak]
        memory = f"{max(peaks):.1f} GB" if peaks else NONE
        rows.append((stage, state, share, duration(seconds[stage]) if stage in seconds else NONE, memory))
    table = Table(("stage", "state", "steps", "time", "peak memory"), tuple(rows), "How far this run got.", ("state",))
    if unfinished:
        text = f"Not finished: {listed(unfinished)}. What follows shows what is there so far."
        return [Note("note", "This run is not complete.", text), table]
    return [table]


def _state(run: RunFiles, stage: str, finished: bool) -> str:
    """Say how far a stage got."""
    if stage == "evaluation":
        begun = finished or (run.folder / stage).is_dir()
        if not begun and run.resolved and not run.setting("evaluation.tasks", {}):
            return "not needed"
        return "done" if (run.folder / stage / "summary.json").exists() else "not finished" if begun else "not begun"
    if finished or (run.folder / stage / "done.json").exists():
        return "done"
    if stage == "negatives":
        return "done" if run.journal.of("mined") else "not needed"
    if stage in run.journal.reached:
        return "not finished"
    return "not needed" if (run.folder / "robust" / "done.json").exists() else "not begun"


def _peaks(run: RunFiles, stage: str) -> list[dict[str, float]]:
    """Peak memory of a stage, as its markers have it."""
    markers = sorted((run.folder / stage).rglob("done.json")) if stage != "negatives" else []
    return [run.json(str(path.relative_to(run.folder))).get("peak_memory_gb") or {} for path in markers]
