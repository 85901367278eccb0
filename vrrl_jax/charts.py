"""Line charts as inline SVG, for reports that need nothing but a browser.

Colours come from the page: series i is drawn in `var(--s<i>)`, lines and text in `currentColor`.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence

from vrrl_jax.progress import format_number

WIDTH, HEIGHT = 400, 200
LEFT, RIGHT, TOP, BOTTOM = 54, 8, 10, 26  # margins that hold the labels
COLOURS = 6
HUGE = 1e100
POINTS = 240  # more can't be told apart at this width

Points = Sequence[tuple[float, float | None]]


def line_chart(title: str, series: Mapping[str, Points]) -> str:
    """A figure of one or more curves over steps, with a legend.

    Args:
      title: above the figure.
      series: by name, (step, value) with steps ascending; a value of None is a gap. Long curves
        are thinned to means over equal stretches, noisy ones drawn faintly under their average.

    Returns:
      HTML; "" where there is nothing to draw. All texts are escaped.
    """
    curves = {name: thin(points) for name, points in series.items()}
    curves = {n: c for n, c in curves.items() if any(v is not None for _, v in c)}
    values = [v for curve in curves.values() for _, v in curve if v is not None]
    if not values:
        return ""
    logarithmic = wants_log(values)
    scale = (lambda v: math.log10(v)) if logarithmic else (lambda v: v)
    ticks = log_ticks(values) if logarithmic else nice_ticks(min(values), max(values))
    low, high = min(map(scale, (*ticks, *values))), max(map(scale, (*ticks, *values)))
    steps = [x for curve in curves.values() for x, _ in curve]
    first, last = min(steps), max(steps)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (scale(y) - low) / (high - low) if high > low else 0.5
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    labels = [f"{t:g}" for t in ticks] if logarithmic else tick_labels(ticks)
    parts = [_grid(dict(zip(ticks, labels, strict=True)), (first, last), place)]
    for i, curve in enumerate(curves.values()):
        parts.append(_curve(_drawn(curve, logarithmic), f"var(--s{i % COLOURS})", place))
    parts.append(_hover(curves, place))
    note = " <small>log scale</small>" if logarithmic else ""
    alone = [name.replace("_", " ").lower() for name in curves] == [title.lower()]
    legend = "".join(
        f'<span><i style="background:var(--s{i % COLOURS})"></i>'
        f"{'last' if alone else html.escape(name)} "
        f"<b>{format_number(_last(curve))}</b></span>"
        for i, (name, curve) in enumerate(curves.items())
    )
    svg = "".join(parts)
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}{note}</figcaption>'
        f'<div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{svg}</svg></figure>"
    )


def sparkline(points: Points, width: int = 120, height: int = 24) -> str:
    """A curve the size of a word, from 0 or its minimum to its maximum."""
    curve = [(x, v) for x, v in thin(points, width // 2) if v is not None]
    if not curve:
        return ""
    low, high = min(0.0, *(v for _, v in curve)), max(v for _, v in curve)
    first, last = curve[0][0], curve[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low) if high > low else 0.0
        return 1 + across * (width - 2), height - 2 - up * (height - 4)

    line = _curve([curve], "var(--s0)", place)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg class="spark" {size} aria-hidden="true">{line}</svg>'


def thin(points: Points, limit: int = POINTS) -> list[tuple[float, float | None]]:
    """At most `limit` points: means over equal stretches, gaps left out of the mean.

    A value past HUGE, which no float32 metric reaches, is a gap too.
    """
    points = [(x, v if v is not None and abs(v) < HUGE else None) for x, v in points]
    if len(points) <= limit:
        return points
    thinned = []
    for i in range(limit):
        part = points[i * len(points) // limit : (i + 1) * len(points) // limit]
        values = [v for _, v in part if v is not None]
        thinned.append((part[-1][0], sum(values) / len(values) if values else None))
    return thinned


def smooth(points: Points, logarithmic: bool = False) -> list[tuple[float, float | None]]:
    """A centred mean over about a twelfth of the curve (geometric on a log axis); no lag."""
    reach = max(1, len(points) // 24)
    averaged = []
    for i, (x, value) in enumerate(points):
        near = [v for _, v in points[max(0, i - reach) : i + reach + 1] if v is not None]
        if value is None:
            averaged.append((x, None))
        elif logarithmic:
            averaged.append((x, math.exp(sum(map(math.log, near)) / len(near))))
        else:
            averaged.append((x, sum(near) / len(near)))
    return averaged


def is_noisy(points: Points) -> bool:
    """Whether a long curve turns so often that an average says more than its points."""
    values = [v for _, v in points if v is not None]
    moves = [b - a for a, b in itertools.pairwise(values) if b != a]
    turns = sum(a * b < 0 for a, b in itertools.pairwise(moves))
    return len(values) >= 30 and turns > len(values) / 5


def wants_log(values: Sequence[float]) -> bool:
    """Whether a few values would flatten all others on a linear axis."""
    if min(values) <= 0:
        return False
    middle = sorted(values)[len(values) // 2]
    return max(values) > 100 * middle


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that enclose low .. high."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten, at most six of them, that enclose the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**e for e in range(low, high + 1, max(1, math.ceil((high - low) / 5)))]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """As many digits as tell ticks apart; where that is too wide, distances from the lowest."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(ticks[0]))
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0

    def label(tick: float) -> str:
        if tick == 0 or step >= 1:
            return f"{tick:,.0f}" if abs(tick) < 1e6 else f"{tick:.3g}"
        return f"{tick:.2g}" if abs(tick) < 1e-3 else f"{tick:.{digits}f}"

    labels = [label(tick) for tick in ticks]
    if len(ticks) == 1 or max(map(len, labels)) <= 7:
        return labels if len(ticks) > 1 else [f"{ticks[0]:.4g}"]
    return [f"{ticks[0]:.6g}", *(f"+{tick - ticks[0]:.2g}" for tick in ticks[1:])]


def _grid(labels: Mapping[float, str], steps: tuple[float, float], place) -> str:
    parts, any_tick = [], next(iter(labels))
    for tick, label in labels.items():
        _, y = place(steps[0], tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    edges = {steps[0]: "start", steps[1]: "end"} if steps[0] < steps[1] else {steps[0]: "middle"}
    if steps[1] - steps[0] >= 4:
        edges[round((steps[0] + steps[1]) / 2)] = "middle"
    for step, anchor in edges.items():
        x, _ = place(step, any_tick)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{step:,.0f}</text>'
        )
    return "".join(parts)


def _drawn(curve: Points, logarithmic: bool = False) -> list[Points]:
    """What is drawn of a curve: itself, under its average where it is noisy."""
    return [curve, smooth(curve, logarithmic)] if is_noisy(curve) else [curve]


def _curve(drawn: Sequence[Points], colour: str, place) -> str:
    """Paths with gaps; the last of them is the line, any before it is faint."""
    parts = []
    for points in drawn:
        path, pen_up = [], True
        for i, (x, value) in enumerate(points):
            if value is None:
                pen_up = True
                continue
            px, py = place(x, value)
            path.append(f"{'M' if pen_up else 'L'}{px:.1f} {py:.1f}")
            if pen_up and (i + 1 == len(points) or points[i + 1][1] is None):  # a point alone
                parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>')
            pen_up = False
        style = "line" if points is drawn[-1] else "raw"
        parts.append(f'<path class="{style}" stroke="{colour}" d="{"".join(path)}"/>')
    return "".join(parts)


def _hover(curves: Mapping[str, Points], place) -> str:
    """Columns that tell their values when a pointer rests on them."""
    at: dict[float, list[str]] = {}
    for name, curve in curves.items():
        for x, value in curve:
            shown = "not finite" if value is None else format_number(value)
            at.setdefault(x, []).append(f"{name} {shown}")
    width = max(2.0, (WIDTH - LEFT - RIGHT) / max(1, len(at)))
    parts, anchor = [], next(v for c in curves.values() for _, v in c if v is not None)
    for x, lines in at.items():
        px, _ = place(x, anchor)
        text = html.escape("\n".join([f"step {x:,.0f}", *lines]))
        parts.append(
            f'<rect class="hit" x="{px - width / 2:.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{text}</title></rect>'
        )
    return "".join(parts)


def _last(curve: Points) -> float:
    return next(v for _, v in reversed(curve) if v is not None)
