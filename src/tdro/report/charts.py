"""Pictures as SVG: a few kinds of chart, drawn for the width at which they are shown.

Colours, strokes and fonts come from the page's style sheet by class, so that dark mode and print need no other picture.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from unicodedata import east_asian_width

from tdro.report.axes import Axis
from tdro.report.words import MINUS

WIDE, NARROW = 880, 340
"""Widths in pixels for which every chart is drawn: a screen or paper, and a telephone."""
COLOURS = 7
"""How many series the style sheet tells apart, by colour and dashes."""

_ROW, _TOP, _BOTTOM, _APART = 24, 8, 26, 10
_LETTER, _WIDE_LETTER = 7.4, 13.0  # pixels; wide ones are Han characters, kana, Hangul and the like
_LONGEST = 240  # pixels of the longest label


@dataclass(frozen=True, slots=True)
class Drawing:
    """The inside of an <svg> element and its size in pixels."""

    width: int
    height: int
    body: str


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled line of a row chart: marks by their kind, and one interval, or one per kind."""

    label: str
    marks: Mapping[str, float]
    interval: tuple[float, float] | None = None
    bold: bool = False
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def lines(
    series: Mapping[str, Sequence[float]], steps: Sequence[int], axis: Axis, shown: Sequence[str],
    line: tuple[float, str], width: int,
) -> Drawing:  # fmt: skip
    """Draw how values move over steps; the shown series are coloured and named at their ends, the others grey.

    Args:
        series: Name -> value at each step.
        steps: In ascending order.
        axis: Of the values.
        shown: At most `COLOURS` of the names.
        line: A value to compare with, and its name.
        width: In pixels.
    """
    narrow = width < 500
    height, left, most = (310, 44, 108) if narrow else (370, 56, 190)
    right = min(max(int(max(sum(map(_pixels, name)) for name in shown)) + 26, 60), most)
    inner, bottom = width - left - right, height - _BOTTOM - 16
    across = Axis(steps[0], max(steps[-1], steps[0] + 1))

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * axis.at(value)

    def path(name: str) -> str:
        every = max(1, -(-len(steps) // (40 if name not in shown and len(series) > 30 else 120)))
        chosen = sorted({*range(0, len(steps), every), len(steps) - 1})
        return "M" + "L".join(f"{left + inner * across.at(steps[t]):.1f} {y(series[name][t]):.1f}" for t in chosen)

    body = [_grid_across(axis, left, left + inner, y)]
    body += [_tick_label(left + inner * across.at(tick), height - 16, _label(tick)) for tick in across.ticks(5)]
    body += [f'<path class="other" d="{path(name)}"/>' for name in series if name not in shown]
    body.append(f'<path class="uniform" d="M{left} {y(line[0]):.1f}h{inner}"/>')
    body.append(
        f'<text class="tick" x="{left + inner}" y="{height - 2}" text-anchor="end">step · {escape(line[1])}</text>'
    )
    places = _spread({name: y(series[name][-1]) for name in shown}, 15, _TOP + 4, bottom)
    for k, name in enumerate(shown):
        end, place = y(series[name][-1]), places[name]
        body.append(f'<path class="series s{k % COLOURS}" d="{path(name)}"/>')
        body.append(f'<path class="leader" d="M{left + inner + 2} {end:.1f}L{left + inner + 12} {place:.1f}"/>')
        text = escape(_fit(name, right - 18))
        body.append(f'<text class="end s{k % COLOURS}" x="{left + inner + 15}" y="{place + 4:.1f}">{text}</text>')
    return Drawing(width, height, "".join(body))


def rows(
    table: Sequence[Row], axis: Axis, kinds: Sequence[str], width: int,
    line: tuple[float, str] | None = None, unit: str = "", interval: str = "95 % interval",
) -> Drawing:  # fmt: skip
    """Draw a labelled row of marks, and of their interval, for each entry of a table.

    Where each kind has its own interval, the marks of a row stand one below the other.

    Args:
        table: From top to bottom.
        axis: Of the values.
        kinds: Kinds of marks, as the legend names them; the first three have different shapes.
        width: In pixels.
        line: A value to compare with, and its name.
        unit: Of the values.
        interval: What the intervals are.
    """
    apart = _APART if any(row.intervals for row in table) else 0
    lift = apart * (len(kinds) - 1) // 2
    frame = _Frame.of([row.label for row in table], width, 2 * lift)
    legend = _legend(kinds, interval if any(row.interval or row.intervals for row in table) else "", width)
    top, height = legend.height, legend.height + frame.row * len(table) + _BOTTOM + (14 if unit or line else 0)
    bottom = top + frame.row * len(table)
    body = [legend.body, _grid_down(axis, frame, top, bottom)]
    if line is not None:
        x = frame.x(axis.at(line[0]))
        body.append(f'<path class="uniform" d="M{x:.1f} {top}V{bottom}"/>')
    said = " · ".join(filter(None, [unit, f"dashed: {line[1]}" if line else ""]))
    if said:
        body.append(f'<text class="tick" x="{width - 8}" y="{height - 4}" text-anchor="end">{escape(said)}</text>')
    for number, row in enumerate(table):
        first = top + frame.row * number + (frame.row - 11 - 2 * lift if frame.above else frame.row / 2 - lift)
        body.append(frame.name(row.label, first + (0 if frame.above else lift), row.bold))
        for ends, place in [
            (row.interval, first),
            *((row.intervals.get(k), first + apart * i) for i, k in enumerate(kinds)),
        ]:
            if ends is not None:
                low, high = (frame.x(axis.at(end)) for end in ends)
                body.append(f'<path class="interval" d="M{low:.1f} {place:.1f}H{high:.1f}"/>')
        for kind, value in reversed(list(row.marks.items())):
            if math.isfinite(value):
                k = kinds.index(kind)
                body.append(_mark(k, frame.x(axis.at(value)), first + apart * k))
    return Drawing(width, height, "".join(body))


def heat(table: Mapping[str, Sequence[float]], labels: Sequence[str], width: int) -> Drawing:
    """Draw shares as shades: a row per name, a column per bin, the darkest being the largest share of its row.

    Args:
        table: Name -> share per bin.
        labels: Of the bins.
        width: In pixels.
    """
    frame = _Frame.of(list(table), width)
    size, height = frame.inner / len(labels), _TOP + frame.row * len(table) + _BOTTOM
    body = []
    for number, (name, shares) in enumerate(table.items()):
        top, most = _TOP + frame.row * number, max(shares) or 1.0
        tall = 14 if frame.above else frame.row - 4
        y = top + frame.row - tall - 3
        body.append(frame.name(name, y + tall / 2, False))
        for k, share in enumerate(shares):
            box = f'x="{frame.left + k * size:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{tall}"'
            title = f"<title>{escape(labels[k])}: {100 * share:.1f} %</title>"
            body.append(f'<rect class="heat" {box} fill-opacity="{0.04 + 0.96 * share / most:.2f}">{title}</rect>')
    every = 2 if frame.above else 1
    for k in range(0, len(labels), every):
        body.append(_tick_label(frame.left + k * size, height, labels[k]))
    return Drawing(width, height, "".join(body))


def strips(table: Mapping[str, Sequence[float]], axis: Axis, width: int, most: int = 300) -> Drawing:
    """Draw every value of every row as a stroke: up for a gain, down for a loss; where there are many, evenly thinned.

    Args:
        table: Name -> values.
        axis: Of the values.
        width: In pixels.
        most: Strokes per row.
    """
    frame = _Frame.of(list(table), width)
    bottom = _TOP + frame.row * len(table)
    body = [_grid_down(axis, frame, _TOP, bottom)]
    zero = frame.x(axis.at(0))
    body.append(f'<path class="uniform" d="M{zero:.1f} {_TOP}V{bottom}"/>')
    for number, (name, values) in enumerate(table.items()):
        y = _TOP + frame.row * number + (frame.row - 11 if frame.above else frame.row / 2)
        body.append(frame.name(name, y, False))
        chosen = sorted(value for value in values if value)
        if len(chosen) > most:
            chosen = [chosen[round(k * (len(chosen) - 1) / (most - 1))] for k in range(most)]
        for kind, stroke in (("gain", -8), ("loss", 8)):
            here = [frame.x(axis.at(value)) for value in chosen if (value > 0) == (kind == "gain")]
            body.append(f'<path class="{kind}" d="{"".join(f"M{x:.1f} {y:.1f}v{stroke}" for x in here)}"/>')
    return Drawing(width, bottom + _BOTTOM, "".join(body))


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the labels and the values of a chart of rows go; on a narrow one labels stand above their rows."""

    left: int
    right: int
    row: int
    above: bool

    @classmethod
    def of(cls, labels: Sequence[str], width: int, more: int = 0) -> "_Frame":
        """Make room for labels; rows may be some pixels higher."""
        if width < 500:
            return cls(10, width - 14, 38 + more, True)
        longest = max((sum(map(_pixels, label)) for label in labels), default=0.0)
        return cls(int(min(longest, _LONGEST)) + 20, width - 24, _ROW + more, False)

    @property
    def inner(self) -> int:
        """Pixels for the values."""
        return self.right - self.left

    def x(self, place: float) -> float:
        """Where a place between 0 and 1 is."""
        return self.left + self.inner * place

    def name(self, label: str, y: float, bold: bool) -> str:
        """Write the label of the row whose marks are at `y`."""
        text, style = escape(_fit(label, self.right if self.above else _LONGEST)), " bold" if bold else ""
        x, anchor = (0, "start") if self.above else (self.left - 10, "end")
        place = f'x="{x}" y="{y + (-12 if self.above else 4):.1f}" text-anchor="{anchor}"'
        return f'<text class="label{style}" {place}>{text}</text>'


def _legend(kinds: Sequence[str], interval: str, width: int) -> Drawing:
    """Explain the marks; nothing where there is a single kind."""
    entries = [*kinds, *([interval] if interval else [])]
    if len(kinds) < 2:
        return Drawing(width, _TOP, "")
    x, y, body = 8.0, 12.0, []
    for k, name in enumerate(entries):
        wide = 36 + _LETTER * len(name)
        if x > 8 and x + wide > width:
            x, y = 8.0, y + 20
        is_mark = k < len(kinds)
        body.append(_mark(k, x + 4, y) if is_mark else f'<path class="interval" d="M{x - 2:.0f} {y:.0f}h12"/>')
        body.append(f'<text class="small" x="{x + 15:.0f}" y="{y + 4:.0f}">{escape(name)}</text>')
        x += wide
    return Drawing(width, int(y) + 16, "".join(body))


def _mark(kind: int, x: float, y: float) -> str:
    """Draw a mark; kinds differ in shape as well as in colour."""
    shape = (
        f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
        f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z",
        f"M{x:.1f} {y - 5.5:.1f}l5.5 10h-11Z",
    )[kind % 3]
    return f'<path class="mark m{kind % 3}" d="{shape}"/>'


def _grid_down(axis: Axis, frame: _Frame, top: int, bottom: int) -> str:
    """Draw vertical lines at the ticks, with labels below."""
    parts = []
    for tick in axis.ticks(5 if frame.above else 8):
        x = frame.x(axis.at(tick))
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(_tick_label(x, bottom + _BOTTOM, _label(tick)))
    return "".join(parts)


def _grid_across(axis: Axis, left: int, right: int, y: Callable[[float], float]) -> str:
    """Draw horizontal lines at the ticks, with labels to the left."""
    parts = []
    for tick in axis.ticks():
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{right}"/>')
        label = f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_label(tick)}</text>'
        parts.append(label)
    return "".join(parts)


def _tick_label(x: float, bottom: float, text: str) -> str:
    """Write the label of a tick below a chart that ends at `bottom`."""
    return f'<text class="tick" x="{x:.1f}" y="{bottom - 10:.1f}" text-anchor="middle">{escape(text)}</text>'


def _label(tick: float) -> str:
    """Write a tick."""
    text = f"{tick:.3g}" if 1e-3 <= abs(tick) < 1e5 or not tick else f"{tick:.0e}"
    return text.replace("e-0", "e-").replace("-", MINUS)


def _pixels(letter: str) -> float:
    """Estimate the width of a letter."""
    return _WIDE_LETTER if east_asian_width(letter) in "WF" else _LETTER


def _fit(text: str, pixels: float) -> str:
    """Shorten a label to about so many pixels; names that begin alike often differ at the end, so the middle goes."""
    line = " ".join(text.split())
    if sum(map(_pixels, line)) <= pixels:
        return line
    room = (pixels - _WIDE_LETTER) / 2
    head, tail = (sum(width <= room for width in accumulate(map(_pixels, part))) for part in (line, line[::-1]))
    return f"{line[:head]}…{line[len(line) - tail :]}"


def _spread(places: Mapping[str, float], apart: float, low: float, high: float) -> dict[str, float]:
    """Move labels so that neighbours are at least so far apart, in the same order and within bounds."""
    names = sorted(places, key=lambda name: places[name])
    found: list[float] = []
    for name in names:
        found.append(max(places[name], found[-1] + apart if found else low))
    limit = high
    for k in range(len(found) - 1, -1, -1):
        found[k] = min(found[k], limit)
        limit = found[k] - apart
    return dict(zip(names, found, strict=True))
