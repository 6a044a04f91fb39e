"""Losses of proxy and reference: what moved the weights."""

import math

from tdro.report.axes import Axis
from tdro.report.charts import Drawing, Row, heat, rows
from tdro.report.document import Block, Figure, Note, Section, Table, Text
from tdro.report.reading import COLUMNS, Learning, RunFiles
from tdro.report.weights import left_out, picked
from tdro.report.words import NONE, noun, number

ENOUGH_QUERIES = 800
"""Queries from which on the interval of a ratio was measured to hold."""
_SMALL = 1e-3  # nats, below which the picture's words count queries
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
        f"the measure {run.setting('weights.measure', 'relative-sample')}. Below {ENOUGH_QUERIES} queries no interval "
        "is shown: it would be too narrow.",
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
    lows, counts = _reference_counts(run)
    shares = {
        name: [count / sum(counts[name]) for count in counts[name]] for name in names if any(counts.get(name, ()))
    }
    if not shares:
        text = "An earlier version of tdro made this run, which counted them only where weights.keep_losses was true."
        return [Note("note", "No histogram of reference losses.", text)]
    shown = picked(list(shares))
    small = sum(low < _SMALL for low in lows)
    figure = Figure(
        "Reference losses of single queries",
        "Share of each dataset's queries per range of the loss, the darkest range of a row being its most frequent. "
        + "; ".join(f"{name}: {100 * sum(shares[name][:small]):.0f} % below {_SMALL:g}" for name in shown[:8])
        + ".",
        lambda width: heat({name: shares[name] for name in shown}, [_tick(low) for low in lows], width),
    )
    said = (
        "Each box begins at the loss (in nats) written below it. Much near 0: the reference has little left to learn "
        "there; much above 1: hard or noisy."
    )
    return [figure, Text(said)]


def _reference_counts(run: RunFiles) -> tuple[list[float], dict[str, list[int]]]:
    """Return where the bins of the reference's losses begin, and how many queries of each dataset are in them.

    They are in a table or, before the stage has ended, in the steps of the journal; runs of an earlier version may have
    a table of single losses.
    """
    import numpy as np

    from tdro.core.histogram import EDGES, loss_histogram

    table = run.table("weights/histogram.parquet")
    if table is not None:
        found: dict[str, list[int]] = {}
        for row in table.to_pylist():
            found.setdefault(row["dataset"], []).append(row["queries"])
        return list(dict.fromkeys(table["low"].to_pylist())), found
    lows, names, losses = [0.0, *EDGES], list(run.setting("data.datasets", {})), run.table("weights/losses.parquet")
    if losses is not None:
        datasets = losses["dataset"].combine_chunks().dictionary_encode()
        names, group_N = datasets.dictionary.to_pylist(), datasets.indices.to_numpy()
        counts_GK = loss_histogram(losses["reference_loss"].to_numpy(), group_N, len(names))
    else:
        events = run.journal.learning_steps
        steps = [event["reference_histogram"] for event in events if "reference_histogram" in event]
        counts_GK = np.sum(steps, axis=0) if steps and len(steps) == len(events) else np.zeros((0, len(lows)))
    return lows, dict(zip(names, counts_GK.tolist(), strict=False))
