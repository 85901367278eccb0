"""Pies and donuts: how large they must be, and how they are drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vrrl_jax.render.chart_marks import Sheet, line_height, sectors, stamp, width_of, words, write
from vrrl_jax.render.chart_styles import Style
from vrrl_jax.render.tables import Box

if TYPE_CHECKING:
    from vrrl_jax.data.charts import Chart

# Radius of a donut's hole, as a share of the whole one.
HOLE = 0.55


def _label_width(chart: Chart, style: Style) -> int:
    """Pixels of the widest label beside a sector: its name, its number, or both."""
    gap = max(4, style.size // 3)
    names = [width_of(style, name) + gap for name in chart.categories] if style.direct else [0]
    numbers = [width_of(style, chart.text(0, c)) for c in range(len(chart.categories))]
    return max(names) + (max(numbers) if style.values else 0)


def size(chart: Chart, style: Style) -> tuple[int, int]:
    """Least (width, height) of a pie with its labels."""
    least, line = 3 * style.size, sum(line_height(style.size))
    # Labels of one side stand above each other.
    high = max(2 * least + 2 * (line + 4), (line + 1) * len(chart.categories))
    return 2 * (least + _label_width(chart, style) + 5), high


def draw(sheet: Sheet, chart: Chart, panel: Box) -> None:
    """Draws a pie into a box of the sheet; a sector's point is halfway along its middle."""
    style, values = sheet.style, chart.series[0].values
    x0, y0, x1, y1 = panel
    line = sum(line_height(style.size)) + 4 if style.direct or style.values else 0
    r = min((x1 - x0) // 2 - _label_width(chart, style) - 5, (y1 - y0) // 2 - line)
    hole = round(HOLE * r) if chart.kind == "donut" else 0
    left, top = (x0 + x1) // 2 - r, (y0 + y1) // 2 - r
    plot = (left, top, left + 2 * r, top + 2 * r)
    sheet.boxes["plot"] = {0: plot}
    colour = sheet.paint.pop(("plot", 0), None)
    if colour is not None:
        sheet.image[top : top + 2 * r, left : left + 2 * r] = colour
    where = sectors(r, hole, style.turn, values)
    turns, passed = [], 0.0
    for c, value in enumerate(values):
        stamp(sheet, "mark", (0, c), where == c, (left, top), style.theme.marks[c])
        turn = 2 * math.pi * (style.turn + (passed + value / 2) / sum(values))
        passed += value
        turns.append((math.sin(turn), -math.cos(turn)))
        far = (hole + r) / 2 if hole else 0.6 * r
        point = left + r + far * turns[-1][0], top + r + far * turns[-1][1]
        sheet.points.setdefault("mark", {})[0, c] = point
    if style.direct or style.values:
        _draw_labels(sheet, chart, panel, (left + r, top + r, r), turns)


def _draw_labels(sheet: Sheet, chart: Chart, panel: Box, disc, turns) -> None:
    """Names and numbers around the pie, pushed apart where they would overlap."""
    style, (cx, cy, r) = sheet.style, disc
    (up, down), gap = line_height(style.size), max(4, style.size // 3)
    line = up + down
    for side in (1, -1):
        mine = [c for c, (x, _) in enumerate(turns) if (x >= 0) == (side > 0)]
        mine.sort(key=lambda c: turns[c][1])
        tops = [round(cy + (r + 3 + line / 2) * turns[c][1] - line / 2) for c in mine]
        for i in range(len(mine)):
            least = tops[i - 1] + line + 1 if i else panel[1]
            tops[i] = max(tops[i], least)
        for i in reversed(range(len(mine))):
            most = tops[i + 1] - line - 1 if i + 1 < len(mine) else panel[3] - line
            tops[i] = min(tops[i], most)
        for c, top in zip(mine, tops, strict=True):
            apart = max(top - cy, cy - top - line, 0)
            out = math.sqrt(max(0, (r + 4) ** 2 - apart**2))
            out = math.ceil(max(out, (r + 4) * abs(turns[c][0])))
            parts = [("category_text", c, chart.categories[c])] * style.direct
            parts += [("value_text", (0, c), chart.text(0, c))] * style.values
            masks = [(kind, key, words(style, text)) for kind, key, text in parts]
            wide = sum(text.mask.shape[1] for _, _, text in masks) + gap * (len(masks) - 1)
            x = cx + out if side > 0 else cx - out - wide
            for kind, key, text in masks:
                write(sheet, kind, key, text, (x, top + up + text.top), style.theme.ink)
                x += text.mask.shape[1] + gap
