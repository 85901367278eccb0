"""Names and numbers of generated charts."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vrrl_jax.data.chart_questions import Series
from vrrl_jax.data.chart_topics import COUNTED, MEASURES, NAMES, SERIES_NAMES, Kind, Measure
from vrrl_jax.render.chart_styles import COLOURS

if TYPE_CHECKING:
    from vrrl_jax.data.charts import Settings

# Two digits, the measure of charts whose categories are letters.
DIGITS = Measure("", 10, 99)
# Least share of the highest number that a part of a whole has: of 8 parts, 4.8% of the whole.
LEAST_PART = 0.35
# Two lines are apart by this share of the range at every category, or one would hide the other.
APART = 0.1


def contents(rng: random.Random, kind: Kind, settings: Settings) -> dict[str, Any]:
    """Fields of a random `Chart` of a kind, without title and question."""
    count = rng.randint(*settings.categories)
    several = rng.randint(*settings.series) if kind.several else 1
    if kind.parts and not kind.several:
        count = min(count, COLOURS)
    if settings.letters:
        return _letters(rng, kind, settings.letters, count, several)
    if kind.name == "histogram":
        return _histogram(rng, count)
    about = rng.choice([names for names in NAMES if names.ordered or not kind.ordered])
    categories = _taken(rng, about.words, count, about.ordered)
    # Percentages that don't add up to 100 are no parts of a whole.
    measures = [m for m in MEASURES if not (kind.parts and m.form.suffix == "%")]
    measure = rng.choice([m for m in measures if kind.signed or m.low >= 0])
    names = (measure.name,)
    if kind.several:
        fitting = [names for names in SERIES_NAMES if len(names) >= settings.series[0]]
        names = _taken(rng, rng.choice(fitting), several, False)
    drawn = _numbers(rng, kind, measure, len(names), len(categories))
    fields = {
        "categories": categories,
        "series": tuple(map(Series, names, drawn)),
        "stub": about.stub,
        "measure": measure.name if kind.several else "",
        "form": measure.form,
    }
    if kind.name == "scatter":
        fields["across"] = _across(rng, measure, len(categories))
    return fields


def _letters(rng, kind: Kind, letters: Sequence[str], count: int, several: int) -> dict[str, Any]:
    """A chart of two-digit numbers named by letters; several series are numbered from 1."""
    categories = tuple(rng.sample(letters, count))
    names = [str(s + 1) for s in range(several)] if several > 1 else [""]
    drawn = _numbers(rng, kind, DIGITS, several, count)
    fields = {"categories": categories, "series": tuple(map(Series, names, drawn))}
    fields["stub"] = "letter"
    if kind.name == "scatter":
        fields["across"] = _steps(rng, DIGITS, count)
    return fields


def _taken(rng, words: Sequence[str], count: int, ordered: bool) -> tuple[str, ...]:
    """So many of the words: a run of ordered ones, any others."""
    count = min(count, len(words))
    if not ordered:
        return tuple(rng.sample(words, count))
    start = rng.randint(0, len(words) - count)
    return tuple(words[start : start + count])


def _numbers(
    rng, kind: Kind, measure: Measure, series: int, categories: int
) -> list[tuple[float, ...]]:
    """One tuple a series, rounded as they are written."""
    low, high = measure.low, measure.high
    if kind.parts:
        low = LEAST_PART * high
    elif low == 0:
        low = 0.12 * high  # a bar of no height can't be pointed at
    apart = min(APART, 0.4 / series) * (high - low) if kind.name == "multi_line" else 0

    def drawn() -> list[float]:
        while True:
            found = [round(rng.uniform(low, high), measure.form.decimals) for _ in range(series)]
            order = sorted(found)
            if all(b - a >= apart for a, b in itertools.pairwise(order)):
                return found

    return list(zip(*(drawn() for _ in range(categories)), strict=True))


def _across(rng, measure: Measure, count: int) -> Series:
    """Another measure, for the way from left to right."""
    return _steps(rng, rng.choice([m for m in MEASURES if m.low >= 0 and m != measure]), count)


def _steps(rng, measure: Measure, count: int) -> Series:
    """Even steps, shaken, in random order: names beside the points need room."""
    steps = [
        measure.high * (0.1 + 0.9 * (step + rng.uniform(0, 0.5)) / count) for step in range(count)
    ]
    rng.shuffle(steps)
    return Series(measure.name, tuple(round(step, measure.form.decimals) for step in steps))


def _histogram(rng, count: int) -> dict[str, Any]:
    """Bins of equal width, most counts around one of them."""
    stub, widths = rng.choice(COUNTED)
    width = rng.choice(widths)
    start, middle = width * rng.randint(0, 4), rng.uniform(0, count - 1)
    most, spread = rng.randint(20, 90), rng.uniform(0.8, 2)
    counts = [
        max(1, round(most * math.exp(-(((c - middle) / spread) ** 2) / 2) * rng.uniform(0.7, 1)))
        for c in range(count)
    ]
    bins = [f"{start + c * width}-{start + (c + 1) * width}" for c in range(count)]
    return {
        "categories": tuple(bins),
        "series": (Series("Count", tuple(map(float, counts))),),
        "stub": stub,
    }
