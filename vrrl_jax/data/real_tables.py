"""Small tables and charts out of large tables of real data, with questions, as generated ones are.

A window is cut out of a table: rows with names of their own, from a column of words or dates, and
a few columns of numbers. Where a name comes back, as in a list by year and place, the other columns
of words are held to one value.

Three things keep splits apart. Runs of rows belong to a split each, so that no row shows up in two;
a table that is too short for that belongs to one split as a whole. A hash of what is shown decides
too, as for generated tables: `Table.split` and `Chart.split` are always the split asked for. And
whole tables can be held out for "test_ood", which besides draws held-out styles.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vrrl_jax.data import charts, tables
from vrrl_jax.data.real_parts import (
    FEWEST,
    LONGEST,
    Corpus,
    Parted,
    in_words,
    is_missing,
    moment,
)
from vrrl_jax.data.tables import SPLITS, split_of
from vrrl_jax.render.tables import has_glyph

NEAR = 2  # runs on each side of the drawn one that a window may take rows from
TRIES = 1000
COUNTED = 24  # rows at most that a chart draws from, and that a histogram counts
# Characters of the widest row of a table, as it is and turned on its side.
WIDEST, TALLEST = 60, 120
CHART_LONGEST = 16  # characters of a name in a chart; in a table it is `LONGEST`
_TABLES, _CHARTS = tables.Settings(), charts.Settings()


# --- windows -------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Rows of a table, each with its name first, in the table's order.

    Attributes:
      header: titles of the columns; underscores are blanks.
      rows: their cells; what is missing is "".
      ordered: whether the names are moments that follow each other.
      held: values of other columns that all rows share, and without which a name would come back.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ordered: bool
    held: tuple[str, ...]


def window(
    table: Parted, split: str, rng: random.Random, most: int, width: int, longest: int
) -> Window | None:
    """A window drawn at random; None where what was drawn makes none.

    Args:
      table: has rows of the split.
      split: whose rows.
      rng: draws everything.
      most: rows at most; at least `FEWEST`. Moments come as a run, others are drawn, in order.
      width: columns at most, beside the names; one or more of numbers, at times one of words.
      longest: characters of a cell; columns and rows with longer ones are left out.
    """
    source, (names, moments, numbers) = table.source, table.columns
    titles = [title.replace("_", " ").strip() for title in source.header]
    fits = lambda text: len(text) <= longest and all(map(has_glyph, text))
    c = rng.choice(names)
    if not fits(titles[c]):
        return None
    pool, held = _pool(table, table.runs[split], c, rng)
    words = [o for o in names if o != c and o not in moments and not held]
    used = rng.sample(numbers, min(len(numbers), width))
    if width > len(numbers) or (width > 1 and rng.random() < 0.3):
        used = [*rng.sample(words, min(len(words), 1)), *used][:width]
    used = [c, *sorted(o for o in used if fits(titles[o]))]
    if len({titles[o] for o in used}) < len(used) or not set(used) & set(numbers):
        return None
    rows = [
        tuple("" if is_missing(row[o]) else row[o] for o in used)
        for row in (source.rows[r] for r in pool)
    ]
    rows = [row for row in rows if row[0] and all(map(fits, row))]
    if len(rows) > most:
        start = rng.randint(0, len(rows) - most)
        kept = sorted(rng.sample(range(len(rows)), most))
        rows = rows[start : start + most] if c in moments else [rows[r] for r in kept]
    if len(rows) < FEWEST or not all(any(column) for column in zip(*rows, strict=True)):
        return None
    order = [moment(row[0]) for row in rows] if c in moments else []
    ordered = bool(order) and all(a < b for a, b in itertools.pairwise(order))
    return Window(tuple(titles[o] for o in used), tuple(rows), ordered, held)


def _pool(
    table: Parted, runs: Sequence[range], column: int, rng: random.Random
) -> tuple[list[int], tuple[str, ...]]:
    """(rows near each other whose names are theirs alone, what else they share for that)."""
    rows, places = table.source.rows, range(len(runs))
    (at,) = rng.choices(places, [len(run) for run in runs])
    # Runs of a split have gaps between them, which dates would show.
    near = 0 if column in table.columns.moments else NEAR
    pool = list(itertools.chain(*runs[max(0, at - near) : at + near + 1]))
    anchor, held = rows[rng.choice(runs[at])], []
    others = [c for c in table.columns.names if c != column]
    for other in rng.sample(others, len(others)):
        if len({rows[r][column] for r in pool}) > 0.7 * len(pool):
            break
        kept = [r for r in pool if rows[r][other] == anchor[other]]
        held.extend([anchor[other]] if len(kept) < len(pool) else [])
        pool = kept
    counts = collections.Counter(rows[r][column] for r in pool)
    return [r for r in pool if counts[rows[r][column]] == 1], tuple(held)


# --- examples ------------------------------------------------------------------------------------


def table_example(
    corpus: Corpus,
    seed: int,
    split: str,
    index: int,
    settings: tables.Settings = _TABLES,
) -> tables.Example:
    """The table at a place of an endless, random-access sequence: the same at every call.

    Args:
      corpus: the tables.
      seed: of the sequence.
      split: "train", "test_id" or "test_ood", which also wears held-out styles.
      index: from 0.
      settings: rows, columns, kinds, wording, and what pictures are like; the others are the
        generator's alone.

    Raises:
      ValueError: an unknown split, or tables that give no window with a question.
    """

    def draw(table: Parted, rng: random.Random) -> tables.Example | None:
        most = rng.randint(max(FEWEST, settings.rows[0]), max(FEWEST, settings.rows[1]))
        cut = window(table, split, rng, most, rng.randint(*settings.columns), LONGEST)
        if cut is None or not _fits(cut):
            return None
        if split_of(tables.content_key(cut.header, cut.rows, ())) != split:
            return None
        options = {"kinds": settings.kinds, "wording": settings.wording, "longest": LONGEST}
        made = tables.from_rows(cut.header, cut.rows, rng.getrandbits(32), **options)
        return tables.Example(made, tables.draw_style(rng, split, settings))

    return _first(draw, corpus, split, f"real table {seed} {split} {index}")


def chart_example(
    corpus: Corpus,
    seed: int,
    split: str,
    index: int,
    settings: charts.Settings = _CHARTS,
) -> charts.Example:
    """The chart at a place of an endless, random-access sequence; see `table_example`.

    Kinds, categories, series, asks, wording, titles and pictures are those of the settings. A title
    tells what the shown rows share.

    Raises:
      ValueError: as `table_example`.
    """
    kinds = charts.kinds_of(split, settings.kinds)
    least, most = settings.categories

    def draw(table: Parted, rng: random.Random) -> charts.Example | None:
        cut = window(table, split, rng, COUNTED, len(table.columns.numbers), CHART_LONGEST)
        if cut is None:
            return None
        made = charts.from_rows(
            cut.header,
            cut.rows,
            rng.getrandbits(32),
            title="",
            ordered=cut.ordered,
            kinds=kinds,
            asks=settings.asks,
            wording=settings.wording,
            most_rows=rng.randint(max(FEWEST, least), max(FEWEST, most)),
            most_series=settings.series[1],
            longest=CHART_LONGEST,
        )
        if made.split != split or len(made.categories) < max(FEWEST, least):
            return None
        if rng.random() < settings.titled:
            made = dataclasses.replace(made, title=_title(made, cut.held))
        style = charts.draw_style(rng, split, settings, made)
        # The axis would bear the first one's name, and there is no word for all of them.
        one = len(made.series) == 1
        return charts.Example(made, dataclasses.replace(style, names=style.names and one))

    return _first(draw, corpus, split, f"real chart {seed} {split} {index}")


def _title(chart: charts.Chart, held: Sequence[str]) -> str:
    """What a chart shows, and of what, as far as a line holds it; "" if it holds nothing."""
    what = charts.heading(chart)
    if len(chart.series) > 1:
        what = f"{' and '.join(s.name for s in chart.series)} by {chart.stub}"
    told = (", ".join((what, *held)), what, "")
    return next(t for t in told if len(t) <= 3 * CHART_LONGEST and all(map(has_glyph, t)))


def _fits(cut: Window) -> bool:
    """Whether a table's picture stays of a common size, in held-out layouts too."""
    lines = (cut.header, *cut.rows)
    wide = sum(max(map(len, column)) for column in zip(*lines, strict=True))
    return wide <= WIDEST and sum(max(map(len, row)) for row in lines) <= TALLEST


def _first(draw: Callable[..., Any], corpus: Corpus, split: str, seed: str) -> Any:
    """What the first draw that succeeds gives.

    Raises:
      ValueError: an unknown split, or none did.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {tuple(SPLITS)}")
    rng, why = random.Random(seed), "no rows with names of their own, or another split's"
    for _ in range(TRIES):
        try:
            made = draw(rng.choice(corpus.of[split]), rng)
        except ValueError as error:  # no question has one right answer here
            made, why = None, str(error)
        if made is not None:
            return made
    sources = in_words([table.source for table in corpus.of[split]])
    raise ValueError(f"{TRIES:,} windows in a row gave no example of {split}: {sources}; {why}")
