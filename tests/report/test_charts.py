"""Charts put values where they belong."""

import re
from itertools import pairwise

import pytest

from tdro.report.axes import Axis
from tdro.report.charts import NARROW, WIDE, Row, heat, lines, rows, strips


def test_axes_place_their_ends_at_0_and_1_and_equal_ratios_at_equal_distances():
    axis = Axis(1.0, 100.0, log=True)
    assert [axis.at(value) for value in (1, 10, 100, 0, 1000)] == pytest.approx([0, 0.5, 1, 0, 1])
    assert Axis(-1.0, 1.0).at(0.5) == 0.75


@pytest.mark.parametrize("values", [[0.044, 0.096], [1e-6, 3.0], [0.05, 0.05], [1.0], [1e-12, 1.0], []])
def test_ticks_lie_on_the_axis_and_are_few(values):
    for log in (False, True):
        axis = Axis.around(values, log)
        assert axis.low < axis.high
        ticks = axis.ticks(7)
        assert len(ticks) <= 8
        assert all(axis.low <= tick <= axis.high * (1 + 1e-12) for tick in ticks)
    if len(values) > 1 and values[0] < values[1]:
        assert len(Axis.around(values, True).ticks(7)) >= 3


def test_lines_name_the_shown_series_without_overlap():
    series = {f"s{k}": [0.1, 0.1 + k * 1e-6] for k in range(9)}
    shown = [f"s{k}" for k in range(7)]
    drawing = lines(series, [0, 1], Axis(0.05, 0.2, True), shown, (0.1, "even"), WIDE)
    places = sorted(float(y) for y in re.findall(r'class="end s\d" x="[\d.]+" y="([\d.]+)"', drawing.body))
    assert len(places) == 7
    assert min(b - a for a, b in pairwise(places)) >= 15 - 1e-6
    assert drawing.body.count('class="other"') == 2


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_rows_draw_marks_and_intervals_inside_the_picture(width):
    table = [
        Row("one & <two>", {"old": 1.0, "new": 2.0}, (0.5, 3.0)),
        Row("x" * 200, {"old": float("nan"), "new": 9.0}),
    ]
    drawing = rows(table, Axis(0.0, 4.0), ("old", "new"), width, (1.0, "even"), "unit")
    assert drawing.body.count('class="mark') == 2 + 3  # two in the legend; nan is not drawn
    assert "one &amp; &lt;two&gt;" in drawing.body
    across = [float(x) for x in re.findall(r'class="mark m\d" d="M([\d.]+)', drawing.body)]
    assert all(0 <= x <= width for x in across)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_marks_with_an_interval_each_stand_one_below_the_other_on_it(width):
    ends = {"last": (1.0, 3.0), "mean": (1.5, 2.5)}
    row = Row("one", {"last": 2.0, "mean": 2.0}, intervals=ends)
    drawing = rows(
        [row, Row("two", {"last": 1.0, "mean": 1.0}, intervals=ends)], Axis(0.0, 4.0), ("last", "mean"), width
    )
    lines_at = [float(y) for y in re.findall(r'class="interval" d="M[\d.]+ ([\d.]+)H', drawing.body)]
    marks_at = sorted(float(y) for y in re.findall(r'class="mark m0" d="M[\d.]+ ([\d.]+)a', drawing.body))[1:]
    assert len(lines_at) == 4 and lines_at[1] - lines_at[0] >= 8
    assert marks_at == lines_at[::2]
    assert lines_at[2] - lines_at[1] >= 12 and lines_at[-1] < drawing.height


def test_heat_has_a_box_per_bin_and_strips_a_stroke_per_changed_query():
    assert heat({"a": [0.5, 0.5], "b": [0.0, 0.0]}, ["0", "1"], WIDE).body.count("<rect") == 4
    drawing = strips({"a": [1.0, 0.0, -2.0, 3.0]}, Axis(-3.0, 3.0), WIDE)
    assert [drawing.body.count(stroke) for stroke in ("v-8", "v8")] == [2, 1]
    many = strips({"a": [k / 1000 for k in range(1, 1001)]}, Axis(-1.0, 1.0), WIDE, most=100)
    assert many.body.count("v-8") == 100
