"""Pictures of charts, with the exact box and point of every mark.

All boxes are whole pixels of the drawn picture, x to the right and y down from the top left
corner; a box (x0, y0, x1, y1) is half-open: it holds the pixels x0 .. x1 - 1 and y0 .. y1 - 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vrrl_jax.render import chart_axes, chart_pies, chart_plan
from vrrl_jax.render.chart_marks import (
    Point,
    Sheet,
    baseline,
    fill,
    line_height,
    marker,
    radius,
    stamp,
    width_of,
    words,
    write,
)
from vrrl_jax.render.chart_styles import Style
from vrrl_jax.render.table_styles import Colour
from vrrl_jax.render.tables import Box

if TYPE_CHECKING:
    from vrrl_jax.data.charts import Chart

PIES = ("pie", "donut")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture and where things are in it.

    Attributes:
      image: uint8 [height, width, 3].
      boxes: kind -> key -> box in pixels of `image`, half-open. Kinds: "mark", keyed
        (series, category): a bar, a part of one, a sector, or the marker of a point;
        "category_text", keyed by category, its name at the axis, beside a sector or a point;
        "value_text", keyed as marks, the number beside one; "legend" and "legend_text", keyed by
        series, or by category where it names those: the sample of colour, and its name;
        "tick_text", keyed (axis, place) with axis "x" or "y" and places from the lowest number
        up; "axis_text", keyed "x" or "y"; "title" and "plot", key 0. Texts have the box of their
        ink. Kinds and keys that a chart lacks are missing.
      points: kind -> key -> (x, y) inside of the mark, where a pixel (column, row) spans
        column .. column + 1. Kind "mark": the middle of a bar's box; of a line's, area's, dot's,
        lollipop's or scatter's marker, the data point; of a pie's sector, 0.6 of the radius along
        its middle; of a donut's, the middle of the ring there.
    """

    image: np.ndarray
    boxes: dict[str, dict[Hashable, Box]]
    points: dict[str, dict[Hashable, Point]]


def render(
    chart: Chart, style: Style, paint: Mapping[tuple[str, Hashable], Colour] | None = None
) -> Drawn:
    """Draws a chart.

    Args:
      chart: what to draw.
      style: how.
      paint: (kind, key) of a mark, text or "plot" -> colour that replaces the theme's. Nothing
        moves by it.

    Raises:
      ValueError: a character that the font lacks, or `paint` for a mark that isn't there.
    """
    legend = _legend(chart, style)
    gap = max(4, style.size // 2)
    title = words(style, chart.title, style.theme.bold)
    above, below = line_height(style.size)
    head = above + below + gap if chart.title else 0
    planned = None if chart.kind in PIES else chart_plan.plan(chart, style)
    wide, high = planned[-2:] if planned else chart_pies.size(chart, style)
    right = style.legend == "right" and bool(legend.entries)
    wide = max(wide + (legend.width + 2 * gap if right else 0), title.mask.shape[1])
    wide = max(wide, legend.width)
    stacked = legend.height + gap if legend.entries and not right else 0
    high = head + (max(high, legend.height) if right else high + stacked)
    width, height = (
        -(-max(need + 2 * style.margin, least) // style.multiple) * style.multiple
        for need, least in zip((wide, high), style.smallest, strict=True)
    )

    image = np.empty((height, width, 3), np.uint8)
    image[:] = style.theme.page
    sheet = Sheet(style, image, np.zeros((height, width), bool), {}, {}, dict(paint or {}))
    x0, y0, x1, y1 = style.margin, style.margin, width - style.margin, height - style.margin
    if chart.title:
        at = (x0 + x1 - title.mask.shape[1]) // 2, y0 + above + title.top
        write(sheet, "title", 0, title, at, style.theme.ink)
        y0 += head
    if right:
        x1 -= legend.width + 2 * gap
        _draw_legend(sheet, chart, legend, x1 + 2 * gap, (y0 + y1 - legend.height) // 2)
    elif legend.entries:
        top = y0 if style.legend == "top" else y1 - legend.height
        _draw_legend(sheet, chart, legend, (x0 + x1 - legend.width) // 2, top)
        y0, y1 = (y0 + stacked, y1) if style.legend == "top" else (y0, y1 - stacked)
    if planned:
        chart_axes.draw(sheet, chart, planned, (x0, y0, x1, y1))
    else:
        chart_pies.draw(sheet, chart, (x0, y0, x1, y1))
    if sheet.paint:
        names = sorted(sheet.paint, key=repr)
        raise ValueError(f"paint names marks that this chart lacks: {names}")
    return Drawn(image, sheet.boxes, sheet.points)


def target_boxes(chart: Chart, drawn: Drawn) -> tuple[Box, ...]:
    """Boxes of the marks that the chart's question asks for, in the order of its targets."""
    return tuple(drawn.boxes["mark"][target] for target in chart.targets)


def target_points(chart: Chart, drawn: Drawn) -> tuple[Point, ...]:
    """Points of the marks that the chart's question asks for, in the order of its targets."""
    return tuple(drawn.points["mark"][target] for target in chart.targets)


def others(chart: Chart, drawn: Drawn) -> tuple[Box, ...]:
    """Boxes of the marks that the question doesn't ask for, by series and category."""
    marks = sorted(drawn.boxes["mark"].items())
    return tuple(box for key, box in marks if key not in chart.targets)


# --- legends -------------------------------------------------------------------------------------


class _Legend(NamedTuple):
    """Entries (key, name, x, y) from the legend's corner, and its size; none: no legend."""

    entries: list[tuple[int, str, int, int]]
    width: int
    height: int


def _legend(chart: Chart, style: Style) -> _Legend:
    """The names that colours need: one below the other on the right, else in rows."""
    if len(chart.series) > 1:
        names = [series.name for series in chart.series]
    elif chart_plan.needs_names(chart, style) or (chart.kind in PIES and not style.direct):
        names = list(chart.categories)
    else:
        return _Legend([], 0, 0)
    gap = max(4, style.size // 2)
    line = sum(line_height(style.size)) + gap // 2
    most = style.smallest[0] - 2 * style.margin
    entries, x, y, width = [], 0, 0, 0
    for key, name in enumerate(names):
        wide = _sample(style) + gap + width_of(style, name)
        if x and (style.legend == "right" or x + wide > most):
            x, y = 0, y + line
        entries.append((key, name, x, y))
        width = max(width, x + wide)
        x += wide + 2 * gap
    return _Legend(entries, width, y + line)


def _sample(style: Style) -> int:
    """Side of a legend's sample of colour: as wide as a point's marker at least."""
    return max(2 * radius(style) + 1, round(0.7 * style.size))


def _draw_legend(sheet: Sheet, chart: Chart, legend: _Legend, left: int, top: int) -> None:
    """Draws the entries; points are shown as their marker, all else as squares."""
    style, side = sheet.style, _sample(sheet.style)
    line, pointed = sum(line_height(style.size)), chart.kind in ("multi_line", "scatter")
    for key, name, x, y in legend.entries:
        x, y, colour = left + x, top + y, style.theme.marks[key]
        if pointed:
            r = radius(style)
            at = x + side // 2 - r, y + line // 2 - r
            stamp(sheet, "legend", key, marker(style.marker, r), at, colour)
        else:
            begin = y + (line - side) // 2
            fill(sheet, "legend", key, (x, begin, x + side, begin + side), colour)
        text = words(style, name)
        at = x + side + max(4, style.size // 2), baseline(y, y + line, style.size) + text.top
        write(sheet, "legend_text", key, text, at, style.theme.ink)
