"""Room that charts with axes need, and the numbers at their axes.

The value axis runs up, for "barh" to the right; categories run along the other one. In this file
"along" counts pixels of the categories' axis, and "high" those of the values'.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from vrrl_jax.data.chart_questions import Form
from vrrl_jax.render.chart_marks import line_height, radius, width_of
from vrrl_jax.render.chart_styles import Style

if TYPE_CHECKING:
    from vrrl_jax.data.charts import Chart

BARS = ("bar", "barh", "grouped_bar", "stacked_bar", "histogram")
# Their axes needn't reach zero.
FLOATING = ("line", "multi_line", "scatter")


class Scale(NamedTuple):
    """Numbers at the lines of an axis, ascending, and how they are written."""

    ticks: tuple[float, ...]
    form: Form

    def pixel(self, value: float, first: int, last: int) -> int:
        """Where a value stands between the pixels of the lowest and the highest number."""
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return first + round(share * (last - first))

    @property
    def texts(self) -> list[str]:
        return [self.form.write(tick) for tick in self.ticks]


def scale(low: float, high: float, steps: int, form: Form) -> Scale:
    """Round numbers around low .. high, about so many steps apart."""
    high = high if high > low else low + (abs(low) or 1)
    rough = (high - low) / steps
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(part * unit for part in (1, 2, 5, 10) if part * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    form = form._replace(decimals=max(0, -math.floor(math.log10(step) + 1e-9)))
    return Scale(tuple(round(i * step, form.decimals) for i in range(first, last + 1)), form)


class Plan(NamedTuple):
    """Room that a chart with axes needs, in pixels.

    Attributes:
      values, across: the value axis, and the numbers across of a scatter.
      before, below: left of and under the plot: texts of ticks and categories, names of axes.
      above, after: from the highest (lowest) number's line to the plot's far (near) side.
      side: likewise, at the ends of the categories' axis.
      width, height: of everything, at least.
    """

    values: Scale
    across: Scale | None
    before: int
    below: int
    above: int
    after: int
    side: int
    width: int
    height: int


class _Sizes(NamedTuple):
    """Pixels of texts: `gap` around them, a `line` of them, and the widest of each kind."""

    gap: int
    line: int
    categories: int
    numbers: int  # 0 without ticks
    value: int  # 0 without values


def plan(chart: Chart, style: Style) -> Plan:
    """What a chart needs; the plot takes whatever more there is."""
    sideways, scattered = chart.kind == "barh", chart.across is not None
    values, across = _values(chart, style), _across(chart, style)
    sizes = _sizes(chart, style, values)
    above, after = _clearances(chart, style, values, sizes)
    side = radius(style) + 4 if scattered else 0
    along, high = _plot(chart, style, values, sizes)
    high, along = high + above + after, along + 2 * side
    numbers_below = sizes.line + sizes.gap if style.ticks else 0
    if sideways:
        before, below = sizes.categories + sizes.gap, numbers_below
        width, height = before + high + overhang(values, style), below + along
    else:
        before = sizes.numbers + sizes.gap if style.ticks else 0
        below = numbers_below if scattered else sizes.line + sizes.gap
        width, height = before + along, below + high
        width += overhang(across, style) if scattered else 0
    if style.names:
        flat, turned = (width_of(style, name) for name in axis_names(chart))
        named = sizes.line + sizes.gap
        width, height = max(width, before + flat) + named, max(height, below + turned) + named
        before, below = before + named, below + named
    return Plan(values, across, before, below, above, after, side, width, height)


def _sizes(chart: Chart, style: Style, values: Scale) -> _Sizes:
    marks = [(s, c) for s in range(len(chart.series)) for c in range(len(chart.categories))]
    return _Sizes(
        gap=max(4, style.size // 3),
        line=sum(line_height(style.size)),
        categories=max(width_of(style, name) for name in chart.categories),
        numbers=max(width_of(style, text) for text in values.texts) if style.ticks else 0,
        value=max(width_of(style, chart.text(*mark)) for mark in marks) if style.values else 0,
    )


def _clearances(chart: Chart, style: Style, values: Scale, sizes: _Sizes) -> tuple[int, int]:
    """Pixels (beyond the highest number, before the lowest): marks and their texts stick out."""
    sideways, outside = chart.kind == "barh", chart.kind != "stacked_bar" and sizes.value
    pad = 2 if chart.kind in BARS else radius(style) + 2
    beyond = (sizes.value if sideways else sizes.line + pad) + 4 if outside else pad
    above = beyond
    if style.ticks and not sideways:
        above = max(above, (sizes.line + 1) // 2)  # the highest number stands beside its line
    if chart.across is not None:
        return max(above, pad + 2), pad + 2
    if values.ticks[0] == 0:
        return above, 0
    return above, beyond if values.ticks[0] < 0 else pad


def _plot(chart: Chart, style: Style, values: Scale, sizes: _Sizes) -> tuple[int, int]:
    """Least pixels (along the categories, between the lowest and the highest number)."""
    sideways = chart.kind == "barh"
    high = 5 * style.size
    if chart.across is not None:
        return 8 * style.size, high
    if sideways:
        high = max(high, (sizes.numbers + 8) * (len(values.ticks) - 1))
    if chart.kind == "stacked_bar" and style.values:
        # Its number fits into the thinnest part.
        thinnest = min(value for series in chart.series for value in series.values)
        high = max(high, math.ceil((sizes.line + 1) * values.ticks[-1] / thinnest))
    thick = sizes.value + 3 if style.values and not sideways else 5
    beside = len(chart.series) if chart.kind == "grouped_bar" else 1
    bars = math.ceil((thick * beside + 1) / bar_share(chart, style))
    slot = max(bars, (sizes.line if sideways else sizes.categories) + sizes.gap)
    return len(chart.categories) * slot, high


def _across(chart: Chart, style: Style) -> Scale | None:
    """The axis of a scatter's numbers across."""
    if chart.across is None:
        return None
    numbers = chart.across.values
    return scale(min(numbers), max(numbers), max(2, style.smallest[0] // 80), Form())


def _values(chart: Chart, style: Style) -> Scale:
    """The value axis; side by side, numbers need more room than above each other."""
    room = style.smallest[0] // 6 if chart.kind == "barh" else style.smallest[1] // 4
    steps = max(2, min(5, room // style.size))
    numbers = [value for series in chart.series for value in series.values]
    if chart.kind == "stacked_bar":
        numbers = [sum(at) for at in zip(*(s.values for s in chart.series), strict=True)]
    low, high = min(numbers), max(numbers)
    floats = chart.kind in FLOATING and low > 0.4 * high
    return scale(low if floats else min(0, low), max(high, low if floats else 0), steps, chart.form)


def overhang(scaled: Scale, style: Style) -> int:
    """Pixels right of the plot that hold half of the last number under it."""
    return width_of(style, scaled.texts[-1]) // 2 + 1 if style.ticks else 0


def axis_names(chart: Chart) -> tuple[str, str]:
    """(name of the level axis, of the upright one)."""
    what = chart.measure or chart.series[0].name
    along = chart.across.name if chart.across else chart.stub
    return (what, along) if chart.kind == "barh" else (along, what)


def bar_share(chart: Chart, style: Style) -> float:
    """Share of a category's room that its bars fill."""
    if chart.kind not in BARS or chart.kind == "histogram":
        return 1.0
    return max(0.85, style.share) if chart.kind == "grouped_bar" else style.share


def needs_names(chart: Chart, style: Style) -> bool:
    """Whether scattered points are named by a legend."""
    few = len(chart.categories) <= len(style.theme.marks)
    return chart.kind == "scatter" and not style.direct and few
