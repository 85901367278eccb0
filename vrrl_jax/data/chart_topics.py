"""What generated charts speak of: kinds of charts, names of categories and series, and measures."""

from __future__ import annotations

import dataclasses

from vrrl_jax.data.chart_questions import PLAIN, Form
from vrrl_jax.data.table_topics import topic


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of chart.

    Attributes:
      name: unique among `KINDS`.
      several: whether it shows two series or more, rather than one.
      signed: whether it can show numbers below zero.
      parts: whether its marks are parts of a whole, which must not be too thin to see.
      ordered: whether its categories come in an order, as years do.
      held_out: whether only the out-of-distribution split may show it.
    """

    name: str
    several: bool = False
    signed: bool = False
    parts: bool = False
    ordered: bool = False
    held_out: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("bar", signed=True),
        Kind("grouped_bar", several=True, signed=True),
        Kind("stacked_bar", several=True, parts=True),
        Kind("line", signed=True, ordered=True),
        Kind("multi_line", several=True, signed=True, ordered=True),
        Kind("dot", signed=True),
        Kind("pie", parts=True),
        Kind("histogram"),
        Kind("barh", signed=True, held_out=True),
        Kind("area", ordered=True, held_out=True),
        Kind("scatter", signed=True, held_out=True),
        Kind("donut", parts=True, held_out=True),
        Kind("lollipop", signed=True, held_out=True),
    )
}
SEEN = tuple(name for name, kind in KINDS.items() if not kind.held_out)
HELD_OUT = tuple(name for name, kind in KINDS.items() if kind.held_out)


@dataclasses.dataclass(frozen=True)
class Measure:
    """Numbers in low .. high, and how they are written. What starts at zero has no low one."""

    name: str
    low: float
    high: float
    form: Form = PLAIN


MEASURES = (
    Measure("Sales", 0, 950),
    Measure("Visitors", 0, 9900, Form(commas=True)),
    Measure("Rainfall", 0, 240),
    Measure("Exports", 0, 95, Form(prefix="$")),
    Measure("Budget", 0, 780, Form(prefix="$")),
    Measure("Share", 0, 60, Form(suffix="%")),
    Measure("Approval", 0, 98, Form(suffix="%")),
    Measure("Rating", 0, 9.9, Form(decimals=1)),
    Measure("Output", 0, 48, Form(decimals=1)),
    Measure("Staff", 0, 480),
    Measure("Orders", 0, 64),
    Measure("Profit", -45, 90),
    Measure("Growth", -6, 9, Form(suffix="%", decimals=1)),
    Measure("Change", -30, 50),
)


_MONTHS = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


@dataclasses.dataclass(frozen=True)
class Names:
    """What categories may be called; ordered ones are taken as they follow each other."""

    stub: str
    words: tuple[str, ...]
    ordered: bool = False


NAMES = (
    *(Names(about.stub, about.rows) for about in map(topic, ("cities", "firms", "products"))),
    Names(
        "Country",
        ("Brazil", "Canada", "Egypt", "India", "Japan", "Kenya", "Norway", "Peru", "Spain"),
    ),
    Names("Year", tuple(str(year) for year in range(2008, 2026)), ordered=True),
    Names("Month", _MONTHS, ordered=True),
    Names("Day", ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"), ordered=True),
)
# The names of one chart's series; its categories are never of the same sort.
SERIES_NAMES = (
    ("Online", "Store", "Phone", "Mail"),
    ("North", "South", "East", "West"),
    ("Men", "Women"),
    ("Plan", "Actual"),
    ("Gold", "Silver", "Bronze"),
    ("Red team", "Blue team", "Green team"),
    ("Coal", "Gas", "Wind", "Solar"),
)
# What a histogram counts: the measure, and the widths that its bins may have.
COUNTED = (("Age", (5, 10)), ("Score", (10, 20)), ("Height", (5, 10)), ("Minutes", (10, 15, 30)))
