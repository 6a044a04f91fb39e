"""Losses of proxy and reference: what moved the weights."""

import math
from typing import TYPE_CHECKING

from tdro.report.charts import Axis, Drawing, Row, heat, rows
from tdro.report.document import Block, Figure, Note, Section, Table, Text
from tdro.report.reading import COLUMNS, Learning, RunFiles
from tdro.report.weights import left_out, picked
from tdro.report.words import NONE, noun, number

if TYPE_CHECKING:
    import numpy as np

BINS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0)
"""Edges of the histogram, in nats; below the first and above the last there is one more bin each."""

ENOUGH_QUERIES = 800
"""Queries from which on the interval of a ratio was measured to hold."""
_LEAST = 1e-6  # smallest loss on a logarithmic axis


def losses_section(run: RunFiles) -> Section:
    """Show the losses of the last quarter of the steps, and how the reference's losses are spread."""
    learning = run.learning
    if learning is None:
        text = "Losses are measured in the weights stage, which this run did not reach."
        return Section("losses", "Losses", (Note("note", "No losses.", text),))
    last = dict(zip(learning.names, learning.weights_TG[-1].tolist(), strict=True))
    ranked = sorted(learning.names, key=lambda name: (-last[name], name))
    return Section("losses", "Losses", (*_means(run, learning, ranked), *_histogram(run, ranked)))


def _means(run: RunFiles, learning: Learning, names: list[str]) -> list[Block]:
    """Show mean losses, their gap and their ratio; datasets in the order of `names`."""
    late = max(1, len(learning.steps) // 4)
    sums = dict(zip(learning.names, learning.sums_TGC[-late:].sum(axis=0).tolist(), strict=True))
    found = {name: _both(values) for name, values in sums.items() if values[0]}
    if not found:
        return [Note("note", "No losses.", "No query had a finite loss in the last quarter of the steps.")]
    ranked = [name for name in names if name in found]
    shown = picked(ranked)
    figure = Figure(
        "Mean loss per dataset, proxy and reference",
        f"Mean losses in nats over the last {noun(late, 'step')}, on a logarithmic axis, in the order of the weights. "
        + "; ".join(f"{n}: proxy {number(found[n][0])}, reference {number(found[n][1])}" for n in shown[:8])
        + ".",
        lambda width: _chart(found, shown, width),
    )
    table = Table(
        ("dataset", "queries", "proxy", "reference", "gap", "ratio", "95 % interval of the ratio"),
        tuple(
            (name, f"{sums[name][0]:,.0f}", number(found[name][0]), number(found[name][1]),
             number(found[name][0] - found[name][1]), _ratio(*found[name]), _interval(sums[name]))
            for name in ranked
        ),
        f"Mean losses in nats over the last quarter of the weights stage ({noun(late, 'step')}). The weights follow "
        f"the measure {run.setting('weights.measure', 'relative')}. Below {ENOUGH_QUERIES} queries no interval is "
        "shown: it would be too narrow.",
    )  # fmt: skip
    said = "A proxy whose loss is far above the reference's (a large ratio) has much left to learn there."
    return [figure, Text(said + left_out(len(ranked))), table]


def _both(sums: list[float]) -> tuple[float, float]:
    """Mean losses of proxy and reference."""
    named = dict(zip(COLUMNS, sums, strict=True))
    return named["sum_l"] / named["n"], named["sum_r"] / named["n"]


def _ratio(proxy: float, reference: float) -> str:
    """The ratio of two means."""
    return number(proxy / reference) if reference > 0 else NONE


def _interval(sums: list[float]) -> str:
    """The interval of the ratio by the delta method on paired losses; nothing where there are too few to trust it."""
    of = dict(zip(COLUMNS, sums, strict=True))
    n, proxy, reference = of["n"], *_both(sums)
    if n < ENOUGH_QUERIES or min(proxy, reference) <= 0:
        return NONE
    variance = (
        (of["sum_ll"] / n - proxy**2) / proxy**2
        + (of["sum_rr"] / n - reference**2) / reference**2
        - 2 * (of["sum_lr"] / n - proxy * reference) / (proxy * reference)
    )
    half, centre = 1.96 * math.sqrt(max(variance, 0.0) / (n - 1)), math.log(proxy / reference)
    return f"{number(math.exp(centre - half))} to {number(math.exp(centre + half))}"


def _chart(found: dict[str, tuple[float, float]], shown: list[str], width: int) -> Drawing:
    """Draw proxy and reference losses, joined by a line."""
    table = []
    for name in shown:
        proxy, reference = (max(value, _LEAST) for value in found[name])
        ends = (min(proxy, reference), max(proxy, reference))
        table.append(Row(name, {"proxy": proxy, "reference": reference}, ends))
    axis = Axis.around([value for row in table for value in row.marks.values()], log=True)
    small = any(min(found[name]) < _LEAST for name in shown)
    unit = f"nats; {_tick(_LEAST)} or less at the edge" if small else "nats"
    return rows(table, axis, ("proxy", "reference"), width, None, unit, "gap")


def _tick(loss: float) -> str:
    """Write a round loss."""
    return f"{loss:g}".replace("e-0", "e\u2212")


def _histogram(run: RunFiles, names: list[str]) -> list[Block]:
    """Show how the reference's losses are spread over the queries; datasets in the order of `names`."""
    losses = _reference_losses(run)
    if not losses:
        text = (
            "This run kept no losses of single queries; weights.keep_losses: true keeps them, and they are shown here."
        )
        return [Note("note", "No histogram of reference losses.", text)]
    shares = {name: _binned(losses[name]) for name in names if name in losses}
    shown = picked(list(shares))
    labels = ["0", *(_tick(edge) for edge in BINS)]
    figure = Figure(
        "Reference losses of single queries",
        "Share of each dataset's queries per range of the loss, the darkest range of a row being its most frequent. "
        + "; ".join(f"{name}: {100 * sum(shares[name][:4]):.0f} % below 0.001" for name in shown[:8])
        + ".",
        lambda width: heat({name: shares[name] for name in shown}, labels, width),
    )
    said = (
        "Each box begins at the loss (in nats) written below it. Much near 0: the reference has little left to learn "
        "there; much above 1: hard or noisy."
    )
    return [figure, Text(said)]


def _reference_losses(run: RunFiles) -> "dict[str, np.ndarray]":
    """Collect the reference's losses by dataset: from the table or, before the stage has ended, from the journal."""
    import numpy as np

    table = run.table("weights/losses.parquet")
    if table is not None:
        datasets, losses_N = table["dataset"].combine_chunks().dictionary_encode(), table["reference_loss"].to_numpy()
        names, group_N = datasets.dictionary.to_pylist(), datasets.indices.to_numpy()
    else:
        names, events = list(run.setting("data.datasets", {})), run.journal.learning_steps
        group_N = np.array([group for event in events for group in event.get("groups", ())], np.int64)
        losses_N = np.array([loss for event in events for loss in event.get("reference_losses", ())], np.float64)
    return {name: losses_N[group_N == g] for g, name in enumerate(names) if (group_N == g).any()}


def _binned(losses_N: "np.ndarray") -> list[float]:
    """Count shares per bin; losses that are not finite belong to none."""
    import numpy as np

    finite_N = losses_N[np.isfinite(losses_N)]
    counts = np.bincount(np.searchsorted(BINS, finite_N, side="right"), minlength=len(BINS) + 1)
    return [float(share) for share in counts / max(len(finite_N), 1)]
