"""Questions about tables: what is asked, which cells answer it, and how numbers are read."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vrrl_jax.data.table_topics import MISSING


class Group(NamedTuple):
    """A merged header over the columns start .. stop - 1."""

    text: str
    start: int
    stop: int


def column_name(header: Sequence[str], groups: Iterable[Group], column: int) -> str:
    """What a question calls a column: its merged header, if any, and its own."""
    above = [group.text for group in groups if group.start <= column < group.stop]
    return " ".join([*above, header[column]])


KINDS = (
    "lookup",
    "highest",
    "lowest",
    "which_highest",
    "which_lowest",
    "lookup_highest",
    "lookup_lowest",
    "count",
    "place",
)
# Wording -> form -> text; {most} is "highest" or "lowest".
WORDINGS = {
    "full": {
        "lookup": "What is the {column} of {row}?",
        "most": "What is the {most} value in {column}?",
        "which": "Which {stub} has the {most} {column}?",
        "lookup_most": "What is the {other} of the {stub} with the {most} {column}?",
        "count": "How many rows have a {column} above {value}?",
        "place": "What is in row {number} and column {count} of the values?",
    },
    "short": {
        "lookup": "{column} of {row}?",
        "most": "{most} {column}?",
        "which": "{most} {column}: {stub}?",
        "lookup_most": "{most} {column}: {other}?",
        "count": "rows with {column} above {value}?",
        "place": "row {number} column {count}?",
    },
}
_NUMBER = re.compile(
    r"(?P<open>\()?(?P<sign>[+-]?)(?P<unit>[$€£]?)"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?P<rest>(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"(?P<percent>%?)(?(open)\))"
)


def read_number(text: str) -> tuple[float, str] | None:
    """(value, unit) of a number as tables write it, or None: "(1,200)" is -1200, "5%" 5 in "%"."""
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    value = float(re.sub("[ ,]", "", found["whole"]) + found["rest"])
    negative = found["sign"] == "-" or found["open"]
    return (-value if negative else value), found["unit"] + found["percent"]


def numbers(rows: Sequence[Sequence[str]], column: int) -> dict[int, float]:
    """Row -> value of a column of numbers in one unit, empty cells left out; {} for any other.

    The shown texts count, not what they were rounded from: the answer is to be read off the
    picture.
    """
    read = {r: read_number(row[column]) for r, row in enumerate(rows) if row[column] not in MISSING}
    if None in read.values() or len({unit for _, unit in read.values()}) != 1:
        return {}
    return {r: value for r, (value, _) in read.items()}


class _Asked(NamedTuple):
    question: str
    kind: str
    targets: tuple[tuple[int, int], ...]
    answer: str


def ask(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    groups: Sequence[Group],
    rng: random.Random,
    kinds: Sequence[str] = KINDS,
    wording: str = "full",
) -> _Asked | None:
    """A question with one right answer, its kind drawn evenly; None where the table has none.

    Rows are named by their headers, so only rows with a header of their own are asked for; an
    extreme must be reached once; a threshold is a value of the column.
    """
    for kind in rng.sample(list(kinds), len(kinds)):
        asked = _ASK[kind](header, rows, groups, rng, kind, WORDINGS[wording])
        if asked:
            return asked
    return None


def _named(rows) -> list[int]:
    """Rows whose header is theirs alone."""
    names = [row[0] for row in rows]
    return [r for r, name in enumerate(names) if name not in MISSING and names.count(name) == 1]


def _ask_lookup(header, rows, groups, rng, kind, words) -> _Asked | None:
    filled = [
        (r, c) for r in _named(rows) for c in range(1, len(header)) if rows[r][c] not in MISSING
    ]
    if not filled:
        return None
    r, c = rng.choice(filled)
    text = words["lookup"].format(column=column_name(header, groups, c), row=rows[r][0])
    return _Asked(text, kind, ((r, c),), rows[r][c])


def _ask_extreme(header, rows, groups, rng, kind, words) -> _Asked | None:
    """The highest or lowest value itself, whose it is, or another value of that row."""
    form, _, most = kind.rpartition("_")
    best = max if most == "highest" else min
    found = []
    for c in range(1, len(header)):
        values = numbers(rows, c)
        extreme = best(values.values(), default=None)
        reached = [r for r, value in values.items() if value == extreme]
        if len(values) < 2 or len(reached) != 1:
            continue
        r = reached[0]
        if form == "":
            found.append((r, c, c))
        elif form == "which" and r in _named(rows):
            found.append((r, c, 0))
        elif form == "lookup":
            others = [o for o in range(1, len(header)) if o != c and rows[r][o] not in MISSING]
            found.extend((r, c, other) for other in others)
    if not found:
        return None
    r, c, target = rng.choice(found)
    text = words[{"": "most", "lookup": "lookup_most"}.get(form, form)].format(
        most=most,
        column=column_name(header, groups, c),
        stub=header[0],
        other=column_name(header, groups, target),
    )
    return _Asked(text, kind, ((r, target),), rows[r][target])


def _ask_count(header, rows, groups, rng, kind, words) -> _Asked | None:
    found = []
    for c in range(1, len(header)):
        values = numbers(rows, c)
        found.extend((r, c) for r in values if values[r] < max(values.values()))
    if not found:
        return None
    r, c = rng.choice(found)
    values = numbers(rows, c)
    targets = tuple((other, c) for other, value in values.items() if value > values[r])
    text = words["count"].format(column=column_name(header, groups, c), value=rows[r][c])
    return _Asked(text, kind, targets, str(len(targets)))


def _ask_place(header, rows, groups, rng, kind, words) -> _Asked | None:
    """By its place among the values, from 1: what is asked for can be found without reading."""
    filled = [
        (r, c) for r in range(len(rows)) for c in range(1, len(header)) if rows[r][c] not in MISSING
    ]
    if not filled:
        return None
    r, c = rng.choice(filled)
    return _Asked(words["place"].format(number=r + 1, count=c), kind, ((r, c),), rows[r][c])


_ASK: dict[str, Callable[..., _Asked | None]] = dict.fromkeys(KINDS, _ask_extreme) | {
    "lookup": _ask_lookup,
    "count": _ask_count,
    "place": _ask_place,
}
