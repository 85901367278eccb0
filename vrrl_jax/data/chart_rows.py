"""Real data as the fields of a chart: which columns hold numbers, and which kinds they suit."""

from __future__ import annotations

import decimal
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from vrrl_jax.data.chart_questions import Form, Series
from vrrl_jax.data.chart_topics import Kind
from vrrl_jax.data.table_questions import read_number
from vrrl_jax.data.table_topics import MISSING

# Series of one chart reach heights within this factor: lower ones would lie flat on the axis.
FACTOR = 5
# Digits that the largest number of a column shows, where it isn't whole.
DIGITS = 4


class Column(NamedTuple):
    """A column of numbers in one unit; `values`: row -> number, missing ones left out."""

    name: str
    unit: str
    values: dict[int, float]


def shown(value: Any, longest: int) -> str:
    """A name on one line, cut to so many characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 3].rstrip() + "..."


def columns(header: Sequence[Any], rows: Sequence[Sequence[Any]], longest: int) -> list[Column]:
    """The columns of numbers, without the first, which names the rows."""
    found = []
    for c in range(1, len(header)):
        read = {r: _number(row[c]) for r, row in enumerate(rows) if not _missing(row[c])}
        units = {number[1] for number in read.values() if number}
        if None not in read.values() and len(units) == 1:
            values = {r: value for r, (value, _) in read.items()}
            found.append(Column(shown(header[c], longest), units.pop(), values))
    return found


def fields(
    rng: random.Random,
    kind: Kind,
    names: Sequence[str],
    numbers: Sequence[Column],
    most_rows: int,
    most_series: int,
) -> dict[str, Any] | None:
    """Fields of a `Chart` of a kind: an excerpt drawn at random; None where no columns suit it.

    Args:
      rng: draws columns and rows.
      kind: of chart.
      names: of the rows; rows that share a name, or have none, are left out.
      numbers: columns to draw from.
      most_rows: rows are cut to so many: a run of them for ordered kinds, any others, in order.
      most_series: series are cut to so many.
    """
    order = rng.sample(numbers, len(numbers))
    for first in order:
        if kind.name == "histogram":
            found = _counted(first, most_rows)
            if found:
                return found
            continue
        used = [first]
        if kind.several:
            used += [other for other in order if other is not first and _alike(first, other)]
            used = used[: max(2, rng.randint(2, max(2, most_series)))]
        if kind.name == "scatter":
            used += [other for other in order if other is not first][:1]
        if len(used) < 1 + (kind.several or kind.name == "scatter"):
            continue
        counts = Counter(names)
        kept = [
            r
            for r, name in enumerate(names)
            if name not in MISSING and counts[name] == 1 and all(r in c.values for c in used)
        ]
        if len(kept) > most_rows:
            start = rng.randint(0, len(kept) - most_rows)
            run = kept[start : start + most_rows]
            kept = run if kind.ordered else sorted(rng.sample(kept, most_rows))
        if len(kept) < 2:
            continue
        last = used.pop() if kind.name == "scatter" else None
        form = _form(used, kept)
        return {
            "categories": tuple(names[r] for r in kept),
            "series": tuple(_series(column, kept, form) for column in used),
            "form": form,
            "across": _series(last, kept, _form([last], kept)) if last else None,
        }
    return None


def _missing(value: Any) -> bool:
    """Whether a cell says nothing."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip() in MISSING)


def _number(value: Any) -> tuple[float, str] | None:
    """(value, unit), or None for anything but a finite number."""
    if isinstance(value, str):
        return read_number(value.strip())
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return (number, "") if math.isfinite(number) else None


def _alike(one: Column, other: Column) -> bool:
    """Whether two columns can share an axis and a legend."""
    tops = sorted(max(map(abs, column.values.values())) for column in (one, other))
    return one.unit == other.unit and one.name != other.name and tops[1] <= FACTOR * tops[0]


def _form(used: Sequence[Column], kept: Sequence[int]) -> Form:
    """How the numbers are written: with the decimals they have, or as many as `DIGITS` leaves."""
    values = [column.values[r] for column in used for r in kept]
    most = max(map(abs, values))
    exact = max(
        -decimal.Decimal(f"{value:.10g}").normalize().as_tuple().exponent for value in values
    )
    allowed = DIGITS - 1 - math.floor(math.log10(most)) if most else 0
    unit = used[0].unit
    return Form(
        prefix=unit.rstrip("%"),
        suffix="%" if unit.endswith("%") else "",
        decimals=max(0, min(exact, allowed)),
        commas=most >= 10_000,
    )


def _series(column: Column, kept: Sequence[int], form: Form) -> Series:
    return Series(column.name, tuple(round(column.values[r], form.decimals) for r in kept))


def _counted(column: Column, most: int) -> dict[str, Any] | None:
    """A histogram of a column's values in equal bins, the lower end of each belonging to it."""
    values = list(column.values.values())
    low, high = min(values), max(values)
    if len(values) < 6 or low < 0 or low == high:
        return None
    size = 10.0 ** math.floor(math.log10(high - low)) / 10
    widths = [size * part for part in (1, 2, 5, 10, 20, 50, 100)]
    width = next(w for w in widths if high // w - low // w + 1 <= max(3, most))
    first = round(low // width)
    places = [round(value // width) - first for value in values]
    if max(places) < 1:
        return None
    form = Form(column.unit.rstrip("%"), "%" if column.unit.endswith("%") else "")
    form = form._replace(decimals=max(0, -math.floor(math.log10(width))))
    edges = [form.write((first + place) * width) for place in range(max(places) + 2)]
    counts = tuple(float(places.count(place)) for place in range(max(places) + 1))
    return {
        "categories": tuple(f"{a}-{b}" for a, b in itertools.pairwise(edges)),
        "series": (Series("Count", counts),),
        "stub": column.name,
    }
