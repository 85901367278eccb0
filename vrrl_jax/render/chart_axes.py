"""Drawing of charts with axes, into the room that `chart_plan` found for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vrrl_jax.render.chart_marks import (
    Sheet,
    baseline,
    fill,
    line_height,
    polygon,
    polyline,
    room,
    rule,
    shade,
    spot,
    words,
    write,
)
from vrrl_jax.render.chart_plan import BARS, Plan, axis_names, bar_share, needs_names, overhang
from vrrl_jax.render.chart_styles import Style
from vrrl_jax.render.table_styles import BLACK, WHITE, Colour
from vrrl_jax.render.tables import Box, Text

if TYPE_CHECKING:
    from vrrl_jax.data.charts import Chart

# Whose marks may have colours of their own.
VARIED = ("bar", "barh", "dot", "lollipop", "scatter")


class _Frame(NamedTuple):
    """Where a planned chart stands.

    Attributes:
      plot: box of the ground.
      low, high: pixels of the lowest and highest number, of x for "barh" and of y else.
      zero: pixel of zero, or of the lowest number where the axis doesn't reach it.
      slots: first pixel of each category's room, and the end of the last one's.
    """

    chart: Chart
    plan: Plan
    plot: Box
    low: int
    high: int
    zero: int
    slots: list[int]

    def level(self, value: float) -> int:
        return self.plan.values.pixel(value, self.low, self.high)

    def middle(self, c: int) -> int:
        return (self.slots[c] + self.slots[c + 1]) // 2


def draw(sheet: Sheet, chart: Chart, planned: Plan, panel: Box) -> None:
    """Draws a chart with axes into a box of the sheet that is as large as planned, or larger."""
    frame = _framed(chart, planned, panel, sheet.style)
    _draw_ground(sheet, frame)
    _draw_ticks(sheet, frame, panel)
    if chart.kind in BARS:
        _draw_bars(sheet, frame)
    else:
        _draw_points(sheet, frame)


def _framed(chart: Chart, planned: Plan, panel: Box, style: Style) -> _Frame:
    x0, y0, x1, y1 = panel
    sideways = chart.kind == "barh"
    if sideways or chart.across is not None:
        x1 -= overhang(planned.across or planned.values, style)
    plot = (x0 + planned.before, y0, x1, y1 - planned.below)
    first, last = (plot[1], plot[3]) if sideways else (plot[0], plot[2])
    first, last = first + planned.side, last - planned.side
    count = len(chart.categories)
    slots = [first + round(c * (last - first) / count) for c in range(count + 1)]
    if sideways:
        low, high = plot[0] + planned.after, plot[2] - 1 - planned.above
    else:
        low, high = plot[3] - 1 - planned.after, plot[1] + planned.above
    ticks = planned.values.ticks
    zero = planned.values.pixel(max(0, ticks[0]), low, high)
    return _Frame(chart, planned, plot, low, high, zero, slots)


def _draw_ground(sheet: Sheet, frame: _Frame) -> None:
    style, (x0, y0, x1, y1) = sheet.style, frame.plot
    theme, sideways = style.theme, frame.chart.kind == "barh"
    fill(sheet, "plot", 0, frame.plot, theme.plot, taken=False)
    if style.grid:
        for at in map(frame.level, frame.plan.values.ticks):
            box = (at, y0, at + 1, y1) if sideways else (x0, at, x1, at + 1)
            rule(sheet, box, theme.grid)
        for at in _places_across(frame) if frame.chart.kind == "scatter" else ():
            rule(sheet, (at, y0, at + 1, y1), theme.grid)
    # Frames stand around the ground: what stands on the lowest number stands on the line below it.
    left, below = (x0 - 1, y0, x0, y1 + 1), (x0 - 1, y1, x1, y1 + 1)
    if style.frame != "base" or frame.chart.kind == "scatter":
        rule(sheet, left, theme.axis)
        rule(sheet, below, theme.axis)
    else:
        rule(sheet, left if sideways else below, theme.axis)
    if style.frame == "box":
        rule(sheet, (x1, y0 - 1, x1 + 1, y1 + 1), theme.axis)
        rule(sheet, (x0 - 1, y0 - 1, x1 + 1, y0), theme.axis)
    if frame.plan.values.ticks[0] < 0 <= frame.plan.values.ticks[-1]:
        at = frame.zero
        rule(sheet, (at, y0, at + 1, y1) if sideways else (x0, at, x1, at + 1), theme.axis)


def _places_across(frame: _Frame) -> list[int]:
    return [_across(frame, tick) for tick in frame.plan.across.ticks]


def _across(frame: _Frame, value: float) -> int:
    return frame.plan.across.pixel(value, frame.slots[0], frame.slots[-1] - 1)


def _draw_ticks(sheet: Sheet, frame: _Frame, panel: Box) -> None:
    """Numbers of the value axis, names or numbers of the other one, and names of both."""
    style, chart, (x0, y0, x1, y1) = sheet.style, frame.chart, frame.plot
    ink, size, sideways = style.theme.ink, style.size, chart.kind == "barh"
    (up, down), gap = line_height(size), max(4, size // 3)

    def below(kind, key, text, middle):
        mask = words(style, text)
        x = max(middle - mask.mask.shape[1] // 2, 0)
        write(sheet, kind, key, mask, (x, y1 + gap + up + mask.top), ink)

    def before(kind, key, text, middle):
        mask = words(style, text)
        y = baseline(middle, middle + 1, size) + mask.top
        write(sheet, kind, key, mask, (x0 - gap - mask.mask.shape[1], y), ink)

    if style.ticks:
        for i, (tick, text) in enumerate(
            zip(frame.plan.values.ticks, frame.plan.values.texts, strict=True)
        ):
            (below if sideways else before)(
                "tick_text", ("x" if sideways else "y", i), text, frame.level(tick)
            )
    if chart.kind == "scatter" and style.ticks:
        for i, (at, text) in enumerate(
            zip(_places_across(frame), frame.plan.across.texts, strict=True)
        ):
            below("tick_text", ("x", i), text, at)
    elif chart.kind != "scatter":
        for c, name in enumerate(chart.categories):
            (before if sideways else below)("category_text", c, name, frame.middle(c))
    if style.names:
        flat, turned = (words(style, name) for name in axis_names(chart))
        x = x0 + (x1 - x0 - flat.mask.shape[1]) // 2
        write(sheet, "axis_text", "x", flat, (x, panel[3] - down + flat.top), ink)
        turned = Text(np.rot90(turned.mask), 0)
        y = y0 + (y1 - y0 - turned.mask.shape[0]) // 2
        write(sheet, "axis_text", "y", turned, (panel[0], y), ink)


def _draw_bars(sheet: Sheet, frame: _Frame) -> None:
    """Bars in every arrangement; a mark's point is the middle of its box."""
    style, chart = sheet.style, frame.chart
    sideways, stacked = chart.kind == "barh", chart.kind == "stacked_bar"
    several, beside = len(chart.series), len(chart.series) if chart.kind == "grouped_bar" else 1
    # Where all numbers are above zero, bars cover its row too, and so stand on the frame.
    ground = frame.zero + (0 if frame.plan.values.ticks[0] < 0 else -1 if sideways else 1)
    for c in range(len(chart.categories)):
        first, last = frame.slots[c], frame.slots[c + 1]
        thick = max(1, int((last - first) * bar_share(chart, style) / beside) - (beside == 1))
        begin, piled = first + (last - first - thick * beside + 1) // 2, 0.0
        for s in range(several):
            value = chart.series[s].values[c]
            start = begin + thick * s * (beside > 1)
            if stacked:
                a = ground if s == 0 else frame.level(piled)
                piled += value
                b = min(frame.level(piled), a - 1)
                a, b = b, a
            elif value >= 0:
                a, b = sorted((frame.level(value), ground + (sideways and ground == frame.zero)))
                a, b = (a, max(b, a + 1)) if sideways else (min(a, b - 1), b)
            else:
                a, b = sorted((frame.level(value), frame.zero))
                a, b = (a, b) if sideways else (a + 1, b + 1)
                b = max(b, a + 1)
            box = (a, start, b, start + thick) if sideways else (start, a, start + thick, b)
            colour = _colour(chart, style, s, c)
            fill(sheet, "mark", (s, c), box, colour)
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            sheet.points.setdefault("mark", {})[s, c] = middle
            if style.values:
                ink = contrast(colour) if stacked else style.theme.ink
                at = _beside_bar(chart, style, box, chart.text(s, c), value < 0)
                write(sheet, "value_text", (s, c), words(style, chart.text(s, c)), at, ink)


def _beside_bar(chart: Chart, style: Style, box: Box, text: str, negative: bool):
    """Corner of a bar's number: inside of a stacked one, else beyond its end."""
    mask, (x0, y0, x1, y1) = words(style, text), box
    h, w = mask.mask.shape
    middle = (x0 + x1 - w + 1) // 2
    if chart.kind == "stacked_bar":
        return middle, (y0 + y1 - h + 1) // 2
    if chart.kind == "barh":
        return x0 - 3 - w if negative else x1 + 3, baseline(y0, y1, style.size) + mask.top
    return middle, y1 + 3 if negative else y0 - 2 - h


def contrast(ground: Colour) -> Colour:
    """Black or white, whichever reads better on a colour."""
    return BLACK if np.dot(ground, (0.3, 0.59, 0.11)) > 140 else WHITE


def _colour(chart: Chart, style: Style, s: int, c: int) -> Colour:
    varied = (style.varied and chart.kind in VARIED) or needs_names(chart, style)
    several = len(chart.series) > 1 or not varied
    return style.theme.marks[(s if several else c) % len(style.theme.marks)]


def _draw_points(sheet: Sheet, frame: _Frame) -> None:
    """Lines, areas, stems, then all markers over them, and texts where these leave room."""
    style, chart, theme = sheet.style, frame.chart, sheet.style.theme
    x0, y0, x1, y1 = frame.plot
    at, wide = {}, 1 + (style.size >= 12)
    for s, series in enumerate(chart.series):
        for c, value in enumerate(series.values):
            x = _across(frame, chart.across.values[c]) if chart.across else frame.middle(c)
            at[s, c] = x, frame.level(value)
    for s in range(len(chart.series)):
        line, colour = [at[s, c] for c in range(len(chart.categories))], theme.marks[s]
        if chart.kind == "area":
            pale = tuple((2 * g + m) // 3 for g, m in zip(theme.plot, colour, strict=True))
            area = [(line[0][0], y1 - 1), *line, (line[-1][0], y1 - 1)]
            shade(sheet, polygon(frame.plot, area), (x0, y0), pale, taken=False)
        if chart.kind in ("line", "multi_line", "area"):
            shade(sheet, polyline(frame.plot, line, wide), (x0, y0), colour)
    for (s, c), (x, y) in at.items():
        colour = _colour(chart, style, s, c)
        if chart.kind == "lollipop":
            top, bottom = sorted((y, frame.zero))
            rule(sheet, (x, top, x + wide, bottom + 1), colour)
            sheet.taken[top : bottom + 1, x : x + wide] = True
        spot(sheet, "mark", (s, c), x, y, colour)
    for (s, c), place in at.items():
        parts, ink = [], theme.ink
        if chart.kind == "multi_line":  # else nobody could say whose a number is
            ink = tuple((2 * m + i) // 3 for m, i in zip(theme.marks[s], theme.ink, strict=True))
        if chart.kind == "scatter" and not needs_names(chart, style):
            parts.append(("category_text", c, words(style, chart.categories[c])))
        if style.values:
            parts.append(("value_text", (s, c), words(style, chart.text(s, c))))
        _label(sheet, frame.plot, place, parts, ink)


def _label(sheet: Sheet, within: Box, at: tuple[int, int], parts: list, ink: Colour) -> None:
    """Texts beside each other, near a marker."""
    if not parts:
        return
    (up, down), gap = line_height(sheet.style.size), max(4, sheet.style.size // 3)
    wide = sum(text.mask.shape[1] for _, _, text in parts) + gap * (len(parts) - 1)
    x, y = room(sheet, within, at, (wide, up + down))
    for kind, key, text in parts:
        write(sheet, kind, key, text, (x, y + up + text.top), ink)
        x += text.mask.shape[1] + gap
