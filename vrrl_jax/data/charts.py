"""Charts with a question, its answer, and the marks that hold it; generated, or from real data.

An example is a chart and the style it is drawn in. Which split a chart may be in follows from a
hash of its names and numbers, whatever its kind: the same numbers never come as bars in one split
and as a line in another. Held-out kinds and themes are drawn for "test_ood" alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from vrrl_jax.data import chart_questions, chart_rows
from vrrl_jax.data.chart_contents import contents
from vrrl_jax.data.chart_questions import NEED_VALUES, PLAIN, Form, Series, ask, full_name
from vrrl_jax.data.chart_topics import KINDS, Kind
from vrrl_jax.data.tables import SPLITS, split_of
from vrrl_jax.render.chart_styles import COLOURS, THEMES, Style

# A part of a whole is at least this share of it: a thinner one couldn't be seen or labelled.
THINNEST = 0.04


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart and a question about it.

    Attributes:
      kind: a key of `chart_topics.KINDS`.
      categories: their names, at least two.
      series: one, or several where the kind has several; each has a number for every category.
      title: above the chart; "" draws none.
      stub: what a category is: "City".
      measure: what the numbers are, where the series' names don't say it.
      form: how numbers are written.
      across: where the points of a "scatter" stand from left to right; None for other kinds.
      question: what is asked.
      asks: which of `chart_questions.KINDS`.
      targets: (series, category) of the marks that are asked for, at least one.
      answer: a number's text, or the name of a category or a series.

    Raises:
      ValueError: an unknown kind, names that are empty or not of their own, numbers that are
        missing, not finite, or that the kind can't show, or targets outside of the chart.
    """

    kind: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]
    title: str = ""
    stub: str = "category"
    measure: str = ""
    form: Form = PLAIN
    across: Series | None = None
    question: str = ""
    asks: str = "value"
    targets: tuple[tuple[int, int], ...] = ((0, 0),)
    answer: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}: expected one of {tuple(KINDS)}")
        told = _misfit(self, KINDS[self.kind])
        if told:
            raise ValueError(f"{self.kind}: {told}")
        for s, c in self.targets:
            if not (0 <= s < len(self.series) and 0 <= c < len(self.categories)):
                raise ValueError(f"target ({s}, {c}) is outside of the chart")
        if not self.targets:
            raise ValueError("a question needs at least one target")

    def text(self, s: int, c: int) -> str:
        """The number of a mark, as the chart writes it."""
        return self.form.write(self.series[s].values[c])

    def series_name(self, s: int) -> str:
        """What a question calls a series: the measure, if any, and its own name."""
        return full_name(self.series, self.measure, s)

    @functools.cached_property
    def key(self) -> str:
        """SHA-1 of names and heights; kind, title, `across` and question are no part of it."""
        shown = [self.stub, self.measure, self.categories, self.series]
        return hashlib.sha1(json.dumps(shown).encode()).hexdigest()

    @property
    def split(self) -> str:
        """Which of `SPLITS` this chart's contents belong to."""
        return split_of(self.key)


def _misfit(chart: Chart, kind: Kind) -> str:
    """What keeps a chart from being drawn as its kind; "" if nothing."""
    names, series = chart.categories, chart.series
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        return f"needs two categories or more with names of their own, got {names}"
    if not series or (len(series) > 1) != kind.several or len(series) > COLOURS:
        wanted = f"2 .. {COLOURS}" if kind.several else "one"
        return f"needs {wanted} series, got {len(series)}"
    if len({s.name for s in series}) < len(series):
        return f"series need names of their own, got {[s.name for s in series]}"
    if (chart.across is None) != (chart.kind != "scatter"):
        return "a scatter, and no other kind, has numbers across"
    for s in (*series, chart.across or series[0]):
        if len(s.values) != len(names) or not all(math.isfinite(value) for value in s.values):
            return f"needs {len(names)} finite numbers a series, got {s}"
    if not kind.signed and any(value < 0 for s in series for value in s.values):
        return "can't show numbers below zero"
    if kind.parts:
        if len(names) > COLOURS and not kind.several:
            return f"has {COLOURS} colours, got {len(names)} categories"
        thinnest = min(value for s in series for value in s.values)
        if thinnest < THINNEST * _whole(chart) or thinnest <= 0:
            return f"a part of {thinnest} is under {THINNEST:.0%} of the whole"
    return ""


def _whole(chart: Chart) -> float:
    """What the marks are parts of: the pie, or the tallest stack."""
    if KINDS[chart.kind].several:
        return max(sum(values) for values in zip(*(s.values for s in chart.series), strict=True))
    return sum(chart.series[0].values)


# --- generation ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """What generated charts are like. Ranges are inclusive; chances in 0 .. 1.

    Attributes:
      kinds: of charts, keys of `chart_topics.KINDS`; a split draws from those it may show.
      categories: least and most categories.
      series: least and most series, where the kind has several.
      letters: names for categories instead of the topics'; then series have none, numbers are
        whole, from 10 to 99.
      asks: kinds of questions, out of `chart_questions.KINDS`.
      wording: of questions, out of `chart_questions.WORDINGS`.
      titled: chance of a title.
      values: chance of numbers beside the marks, where the question doesn't need them.
      bare: chance of a value axis without numbers, where they stand beside the marks.
      sizes: type sizes to draw from, in pixels.
      pictures: least (width, height) of the picture, to draw from.
      margin: see `Style`, as `multiple`.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    categories: tuple[int, int] = (3, 7)
    series: tuple[int, int] = (2, 3)
    letters: tuple[str, ...] = ()
    asks: tuple[str, ...] = chart_questions.KINDS
    wording: str = "full"
    titled: float = 0.7
    values: float = 0.4
    bare: float = 0.2
    sizes: tuple[int, ...] = (12, 13, 14)
    pictures: tuple[tuple[int, int], ...] = ((320, 240), (360, 300), (420, 300), (400, 240))
    margin: int = 8
    multiple: int = 1


_LETTERS = ("A", "B", "C", "D", "E", "F")
# Three or four letters with a number of two digits each, for policies of a million parameters:
# every picture is 140 x 112, five by four squares of 28 pixels.
NANO = Settings(
    kinds=("bar", "line", "dot", "pie", "barh", "area", "scatter", "donut", "lollipop"),
    categories=(3, 4),
    letters=_LETTERS,
    asks=("value", "highest", "lowest"),
    wording="short",
    values=0.5,
    bare=0.5,
    sizes=(10,),
    pictures=((140, 112),),
    titled=0.0,
    margin=2,
    multiple=28,
)
# All words of `NANO`'s questions. Answers are the letters, and whole numbers from 10 to 99.
NANO_WORDS = (*_LETTERS, "highest", "lowest")


class Example(NamedTuple):
    """A chart and how it is drawn: `render.charts.render(*example)`."""

    chart: Chart
    style: Style


def kinds_of(split: str, kinds: tuple[str, ...] = tuple(KINDS)) -> tuple[str, ...]:
    """Those kinds of charts that a split may show: for real data too.

    Raises:
      ValueError: an unknown split, or none of the kinds.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {tuple(SPLITS)}")
    found = tuple(kind for kind in kinds if KINDS[kind].held_out == (split == "test_ood"))
    if not found:
        raise ValueError(f"none of the kinds {kinds} may be in {split}")
    return found


def example(seed: int, split: str, index: int, settings: Settings = Settings()) -> Example:
    """The example at a place of an endless, random-access sequence: the same at every call.

    Two places may hold the same chart, which small settings make likely; two splits never do.

    Args:
      seed: of the sequence.
      split: "train", "test_id" (unseen contents) or "test_ood" (unseen contents, as a held-out
        kind of chart in a held-out theme).
      index: from 0.
      settings: what the charts are like.

    Raises:
      ValueError: an unknown split, or settings that allow no chart or no question.
    """
    kinds = kinds_of(split, settings.kinds)
    rng = random.Random(f"chart {seed} {split} {index}")
    for _ in range(1000):
        kind = KINDS[rng.choice(kinds)]
        chart = Chart(kind.name, **contents(rng, kind, settings))
        if chart.split != split:
            continue
        asked = _asked(chart, rng, settings.asks, settings.wording)
        if asked:
            title = heading(chart) if rng.random() < settings.titled else ""
            asked = dataclasses.replace(asked, title=title)
            return Example(asked, draw_style(rng, split, settings, asked))
    raise ValueError(f"1,000 charts in a row gave no question of {settings.asks}: {settings}")


def generate(seed: int, split: str, count: int, settings: Settings = Settings()) -> list[Example]:
    """The first `count` examples of a sequence; see `example`."""
    return [example(seed, split, i, settings) for i in range(count)]


def draw_style(
    rng: random.Random, split: str, settings: Settings = Settings(), chart: Chart | None = None
) -> Style:
    """A random style that a split may use: for real data too.

    Args:
      rng: draws it.
      split: a key of `SPLITS`.
      settings: sizes, pictures and chances.
      chart: what will be drawn; where its question asks for numbers, the style shows them. None
        shows them always.
    """
    held_out = split == "test_ood"
    needed = chart is None or chart.asks in NEED_VALUES
    values = rng.random() < settings.values or needed
    return Style(
        theme=rng.choice([theme for theme in THEMES if theme.held_out == held_out]),
        size=rng.choice(settings.sizes),
        smallest=rng.choice(settings.pictures),
        multiple=settings.multiple,
        margin=settings.margin,
        legend=rng.choice(("right", "top", "bottom")),
        direct=bool(settings.letters) or rng.random() < 0.6,
        values=values,
        ticks=not (values and rng.random() < settings.bare),
        grid=rng.random() < 0.5,
        frame=rng.choice(("axes", "box", "base")),
        names=not settings.letters and rng.random() < 0.5,
        varied=rng.random() < 0.3,
        share=rng.uniform(0.55, 0.9),
        marker=rng.choice(("disc", "square", "diamond")),
        turn=rng.random(),
    )


def heading(chart: Chart) -> str:
    """A title that says what a chart shows."""
    what = chart.measure or chart.series[0].name
    return f"{what} {f'against {chart.across.name}' if chart.across else f'by {chart.stub}'}"


def _asked(chart: Chart, rng: random.Random, asks: Sequence[str], wording: str) -> Chart | None:
    """The chart with a question; None where it has none that has one right answer."""
    asked = ask(
        chart.categories,
        chart.series,
        rng,
        stub=chart.stub,
        measure=chart.measure,
        form=chart.form,
        kinds=asks,
        wording=wording,
    )
    return dataclasses.replace(chart, **asked._asdict()) if asked else None


# --- real data -----------------------------------------------------------------------------------


def from_rows(
    header: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    seed: int = 0,
    *,
    title: str | None = None,
    ordered: bool = False,
    kinds: Sequence[str] = tuple(KINDS),
    asks: Sequence[str] = chart_questions.KINDS,
    wording: str = "full",
    most_rows: int = 7,
    most_series: int = 3,
    longest: int = 14,
) -> Chart:
    """A chart of given data, and a question about it.

    Its split follows from what it shows, as for any chart; `kinds_of` names the kinds that the
    split allows. Excerpts of one big table overlap without being equal, so keep all that come
    from one source in one split. `draw_style` gives it a style.

    Args:
      header: names of the columns; the first column names the rows.
      rows: values; None, NaN, "", "-" and "n/a" are missing. Numbers may be texts: "$1,200".
      seed: of kind, excerpt and question.
      title: above the chart; None says what it shows.
      ordered: whether the rows come in an order, as years do: else there are no lines and areas.
      kinds: of charts to draw from.
      asks: kinds of questions to draw from.
      wording: out of `chart_questions.WORDINGS`.
      most_rows: rows are cut to so many; a "histogram" counts all rows in so many bins.
      most_series: likewise for series.
      longest: characters of a name; the rest is cut away.

    Raises:
      ValueError: ragged rows, or data that none of the kinds can show with a question that has
        one right answer.
    """
    rng = random.Random(f"chart rows {seed}")
    ragged = [r for r, row in enumerate(rows) if len(row) != len(header)]
    if ragged:
        raise ValueError(f"rows {ragged[:5]} don't have the header's {len(header)} cells")
    names = [chart_rows.shown(row[0], longest) for row in rows]
    numbers = chart_rows.columns(header, rows, longest)
    for kind in (KINDS[name] for name in rng.sample(list(kinds), len(kinds))):
        if kind.ordered and not ordered:
            continue
        fields = chart_rows.fields(rng, kind, names, numbers, most_rows, most_series)
        if fields is None:
            continue
        try:
            chart = Chart(kind.name, **{"stub": chart_rows.shown(header[0], longest)} | fields)
        except ValueError:  # the kind can't show these numbers
            continue
        asked = _asked(chart, rng, asks, wording)
        if asked:
            return dataclasses.replace(asked, title=heading(chart) if title is None else title)
    raise ValueError(f"none of {tuple(kinds)} shows these rows with one right answer")
