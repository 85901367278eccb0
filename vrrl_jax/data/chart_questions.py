"""Questions about charts: what a chart's numbers are, what is asked, and which marks answer it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Series(NamedTuple):
    """Numbers, one a category, and what they are called."""

    name: str
    values: tuple[float, ...]


class Form(NamedTuple):
    """How a chart writes its numbers: "$1,200", "3.5%"."""

    prefix: str = ""
    suffix: str = ""
    decimals: int = 0
    commas: bool = False

    def write(self, value: float) -> str:
        """The text of a number; what rounds to zero has no sign."""
        value = round(value, self.decimals)
        digits = f"{abs(value):{',' if self.commas else ''}.{self.decimals}f}"
        return f"{'-' if value < 0 else ''}{self.prefix}{digits}{self.suffix}"


PLAIN = Form()
KINDS = ("value", "highest", "lowest", "highest_series", "lowest_series", "difference")
# Only with the numbers written beside the marks can these be answered exactly.
NEED_VALUES = ("value", "difference")
# Wording -> form -> text; {most} is "highest" or "lowest", {what} the asked series' full name.
WORDINGS = {
    "full": {
        "value": "What is the {what} of {category}?",
        "most": "Which {stub} has the {most} {what}?",
        "series": "Which series has the {most} {measure} for {category}?",
        "difference": "What is the difference in {what} between {category} and {other}?",
    },
    "short": {
        "value": "{what} {category}?",
        "most": "{most} {what}?",
        "series": "{most} {category}?",
        "difference": "{what} {category} minus {other}?",
    },
}
# Share of a chart's largest number by which an extreme must lead, to be seen without its number.
GAP = 0.04


def full_name(series: Sequence[Series], measure: str, s: int) -> str:
    """What a question calls a series: the measure, if any, and its own name."""
    return " ".join(part for part in (measure, series[s].name) if part)


class Asked(NamedTuple):
    """A question; `targets` are (series, category) of the marks that it asks for."""

    question: str
    asks: str
    targets: tuple[tuple[int, int], ...]
    answer: str


class _Data(NamedTuple):
    """What a question may speak of."""

    categories: Sequence[str]
    series: Sequence[Series]
    stub: str
    measure: str
    form: Form


def ask(
    categories: Sequence[str],
    series: Sequence[Series],
    rng: random.Random,
    *,
    stub: str = "category",
    measure: str = "",
    form: Form = PLAIN,
    kinds: Sequence[str] = KINDS,
    wording: str = "full",
    gap: float = GAP,
) -> Asked | None:
    """A question with one right answer, its kind drawn evenly; None where the chart has none.

    Args:
      categories: their names.
      series: at least one, as long as `categories`.
      rng: draws what is asked.
      stub: what a category is.
      measure: what the numbers are, where the names of the series don't say it.
      form: how numbers are written.
      kinds: of questions, out of `KINDS`.
      wording: out of `WORDINGS`.
      gap: an extreme leads by more than this share of the largest number: 0 forbids ties only.
    """
    data = _Data(categories, series, stub, measure, form)
    for kind in rng.sample(list(kinds), len(kinds)):
        asked = _ASK[kind](data, rng, kind, WORDINGS[wording], gap)
        if asked:
            return asked
    return None


def _say(data: _Data, text: str, s: int, c: int, **others: str) -> str:
    words = text.format(
        what=full_name(data.series, data.measure, s),
        category=data.categories[c],
        stub=data.stub,
        measure=data.measure or "value",
        **others,
    )
    # A series without a name leaves its room: " A?", "highest ?".
    return " ".join(words.split()).replace(" ?", "?")


def _ask_value(data: _Data, rng, kind, words, gap) -> Asked:
    s, c = rng.randrange(len(data.series)), rng.randrange(len(data.categories))
    answer = data.form.write(data.series[s].values[c])
    return Asked(_say(data, words["value"], s, c), kind, ((s, c),), answer)


def _leader(values: Sequence[float], most: str, lead: float) -> int | None:
    """Where the highest or lowest value stands, if it leads by more than `lead`."""
    order = sorted(range(len(values)), key=values.__getitem__, reverse=most == "highest")
    if len(order) < 2 or abs(values[order[0]] - values[order[1]]) <= lead:
        return None
    return order[0]


def _largest(data: _Data) -> float:
    return max(abs(value) for series in data.series for value in series.values)


def _ask_most(data: _Data, rng, kind, words, gap) -> Asked | None:
    """The category with the highest or lowest number of a series."""
    lead, found = gap * _largest(data), []
    for s, series in enumerate(data.series):
        c = _leader(series.values, kind, lead)
        if c is not None:
            found.append((s, c))
    if not found:
        return None
    s, c = rng.choice(found)
    return Asked(_say(data, words["most"], s, c, most=kind), kind, ((s, c),), data.categories[c])


def _ask_series(data: _Data, rng, kind, words, gap) -> Asked | None:
    """The series with the highest or lowest number at a category."""
    most, lead, found = kind.removesuffix("_series"), gap * _largest(data), []
    for c in range(len(data.categories)):
        s = _leader([series.values[c] for series in data.series], most, lead)
        if s is not None:
            found.append((s, c))
    if not found:
        return None
    s, c = rng.choice(found)
    text = _say(data, words["series"], s, c, most=most)
    return Asked(text, kind, ((s, c),), data.series[s].name)


def _ask_difference(data: _Data, rng, kind, words, gap) -> Asked | None:
    """How much two numbers of a series are apart, the higher one named first."""
    s = rng.randrange(len(data.series))
    values = data.series[s].values
    pairs = [(a, b) for a, x in enumerate(values) for b, y in enumerate(values) if x > y]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    text = _say(data, words["difference"], s, a, other=data.categories[b])
    return Asked(text, kind, ((s, a), (s, b)), data.form.write(values[a] - values[b]))


_ASK: dict[str, Callable[..., Asked | None]] = {
    "value": _ask_value,
    "highest": _ask_most,
    "lowest": _ask_most,
    "highest_series": _ask_series,
    "lowest_series": _ask_series,
    "difference": _ask_difference,
}
