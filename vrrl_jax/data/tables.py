"""Tables with a question, its answer, and the cells that hold it; generated, or from real data.

A table counts its rows from 0, without the headers, and its columns from 0, the first being the
row headers. An example is a table and the style it is drawn in. Which split a table may be in
follows from a hash of its contents; held-out themes and layouts are drawn for "test_ood" alone.
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

from vrrl_jax.data.table_questions import KINDS, Group, ask, column_name
from vrrl_jax.data.table_topics import FORMATS, MISSING, PERIODS, Measure, Topic, topic
from vrrl_jax.render.table_styles import LAYOUTS, THEMES, Layout, Style

# Split -> its share of all tables.
SPLITS = {"train": 0.8, "test_id": 0.1, "test_ood": 0.1}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and a question about it.

    Attributes:
      header: column headers; the first stands over the row headers.
      rows: texts of the cells, each row as long as `header`, its own header first. "" is empty.
      groups: merged headers above column headers, from left to right.
      question: what is asked.
      kind: which of `KINDS`.
      targets: (row, column) of the cells that are asked for, at least one; column 0 is the row's
        header.
      answer: the target's text, or their number for "count".

    Raises:
      ValueError: no rows, fewer than two columns, ragged rows, two columns of one name, groups
        that overlap or leave the table, or targets outside of it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[Group, ...] = ()
    question: str = ""
    kind: str = "lookup"
    targets: tuple[tuple[int, int], ...] = ((0, 1),)
    answer: str = ""

    def __post_init__(self):
        width = len(self.header)
        if width < 2 or not self.rows:
            raise ValueError(f"need two columns and a row, got {width} and {len(self.rows)}")
        ragged = [r for r, row in enumerate(self.rows) if len(row) != width]
        if ragged:
            raise ValueError(f"rows {ragged[:5]} don't have the header's {width} cells")
        at = 1
        for group in self.groups:
            if not at <= group.start < group.stop <= width:
                raise ValueError(f"{group} overlaps its neighbour or leaves columns 1 .. {width}")
            at = group.stop
        names = [self.column_name(c) for c in range(width)]
        if len(set(names)) < width:
            raise ValueError(f"columns need names of their own, got {names}")
        for r, c in self.targets:
            if not (0 <= r < len(self.rows) and 0 <= c < width):
                raise ValueError(f"target ({r}, {c}) is outside of the table")
        if not self.targets:
            raise ValueError("a question needs at least one target")

    def column_name(self, column: int) -> str:
        """What a question calls a column: its merged header, if any, and its own."""
        return column_name(self.header, self.groups, column)

    @functools.cached_property
    def key(self) -> str:
        """SHA-1 of what the table shows; the question is no part of it."""
        return content_key(self.header, self.rows, self.groups)

    @property
    def split(self) -> str:
        """Which of `SPLITS` this table's contents belong to."""
        return split_of(self.key)


def content_key(header, rows, groups) -> str:
    """SHA-1, hex, of a table's texts and merged headers."""
    return hashlib.sha1(json.dumps([header, rows, groups]).encode()).hexdigest()


def split_of(key: str) -> str:
    """The split of a table with that key: equal tables stay together, whatever is asked."""
    share = int(key[:8], 16) / 16**8
    for split, part in SPLITS.items():
        if share < part:
            return split
        share -= part
    return split


# --- generation ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """What generated tables are like. Ranges are inclusive; chances in 0 .. 1.

    Attributes:
      rows: least and most rows.
      columns: least and most columns of values.
      topics: names out of `table_topics.TOPICS`.
      kinds: of questions, out of `KINDS`.
      wording: of questions, out of `WORDINGS`.
      grouped: chance of merged headers, where the columns are enough for them.
      sparse: chance that a table is sparse: 20 to 50% of its values are missing.
      sizes: type sizes to draw from, in pixels.
      layouts: names of the layouts that training draws; none for all that aren't held out.
      margin: see `Style`, as `multiple`, `smallest` and `pitch`.
    """

    rows: tuple[int, int] = (3, 8)
    columns: tuple[int, int] = (2, 5)
    topics: tuple[str, ...] = ("cities", "firms", "athletes", "products")
    kinds: tuple[str, ...] = KINDS
    wording: str = "full"
    grouped: float = 0.25
    sparse: float = 0.2
    sizes: tuple[int, ...] = (12, 13, 14, 16)
    layouts: tuple[str, ...] = ()
    margin: int = 8
    multiple: int = 1
    smallest: tuple[int, int] = (0, 0)
    pitch: tuple[int, int] = (1, 1)


# For policies of a million parameters, which find places long before they read: two or three rows,
# one or two columns, cells asked for by row and column. Every picture is 168 x 112, six by four
# squares of 28 pixels, and a row of a table is a row of squares.
NANO = Settings(
    rows=(2, 3),
    columns=(1, 2),
    topics=("lengths",),
    kinds=("place",),
    wording="short",
    grouped=0.0,
    sparse=0.0,
    sizes=(10,),
    layouts=("grid_left", "lines_airy", "bare_left"),
    margin=0,
    multiple=28,
    smallest=(168, 112),
    pitch=(14, 28),
)


class Example(NamedTuple):
    """A table and how it is drawn: `render.tables.render(*example)`."""

    table: Table
    style: Style


def example(seed: int, split: str, index: int, settings: Settings = Settings()) -> Example:
    """The example at a place of an endless, random-access sequence: the same at every call.

    Two places may hold the same table, which small settings make likely; two splits never do.

    Args:
      seed: of the sequence.
      split: "train", "test_id" (unseen contents) or "test_ood" (unseen contents, in a held-out
        theme and a held-out layout).
      index: from 0.
      settings: what the tables are like.

    Raises:
      ValueError: an unknown split, or settings that allow no question.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {tuple(SPLITS)}")
    rng = random.Random(f"table {seed} {split} {index}")
    for _ in range(1000):
        header, rows, groups = _contents(rng, settings)
        if split_of(content_key(header, rows, groups)) != split:
            continue
        asked = ask(header, rows, groups, rng, settings.kinds, settings.wording)
        if asked:
            return Example(Table(header, rows, groups, *asked), draw_style(rng, split, settings))
    raise ValueError(f"1,000 tables in a row gave no question of {settings.kinds}: {settings}")


def generate(seed: int, split: str, count: int, settings: Settings = Settings()) -> list[Example]:
    """The first `count` examples of a sequence; see `example`."""
    return [example(seed, split, i, settings) for i in range(count)]


def draw_style(rng: random.Random, split: str, settings: Settings = Settings()) -> Style:
    """A random style that a split may use: for real tables too."""
    held_out = split == "test_ood"
    return Style(
        theme=rng.choice([theme for theme in THEMES if theme.held_out == held_out]),
        layout=rng.choice([layout for layout in LAYOUTS if _may_draw(layout, held_out, settings)]),
        size=rng.choice(settings.sizes),
        margin=settings.margin,
        multiple=settings.multiple,
        smallest=settings.smallest,
        pitch=settings.pitch,
        place=(rng.random(), rng.random()),
    )


def _may_draw(layout: Layout, held_out: bool, settings: Settings) -> bool:
    if held_out or layout.held_out:
        return held_out == layout.held_out
    return not settings.layouts or layout.name in settings.layouts


def _contents(rng: random.Random, settings: Settings):
    """(header, rows, groups) of a random table."""
    about = topic(rng.choice(settings.topics))
    count = rng.randint(*settings.columns)
    if count >= 2 and rng.random() < settings.grouped:
        leaves, columns, groups = _grouped_columns(rng, about, count)
    else:
        columns, groups = rng.sample(about.columns, min(count, len(about.columns))), ()
        leaves = [column.name for column in columns]
    formats = {c: rng.choice(c.formats) for c in columns if isinstance(c, Measure)}
    names = rng.sample(about.rows, min(rng.randint(*settings.rows), len(about.rows)))
    missing, share = rng.choice(MISSING), 0.0
    if rng.random() < settings.sparse:
        share = rng.uniform(0.2, 0.5)

    def value(column) -> str:
        if share and rng.random() < share:
            return missing
        if isinstance(column, Measure):
            return FORMATS[formats[column]](rng.uniform(column.low, column.high))
        return rng.choice(column.words)

    rows = tuple((name, *(value(column) for column in columns)) for name in names)
    return (about.stub, *leaves), rows, groups


def _grouped_columns(rng: random.Random, about: Topic, count: int):
    """(leaf headers, their columns, groups): measures by period, and at times a column alone."""
    periods = rng.choice([p for p in PERIODS if len(p) <= count])
    measures = [column for column in about.columns if isinstance(column, Measure)]
    measures = rng.sample(measures, min(count // len(periods), len(measures)))
    alone = rng.sample([c for c in about.columns if c not in measures], count % len(periods))
    leaves, columns, groups = [c.name for c in alone], list(alone), []
    for measure in measures:
        start = 1 + len(columns)
        groups.append(Group(measure.name, start, start + len(periods)))
        leaves.extend(periods)
        columns.extend([measure] * len(periods))
    return leaves, columns, tuple(groups)


# --- real data -----------------------------------------------------------------------------------


def from_rows(
    header: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    seed: int = 0,
    groups: Sequence[tuple[str, int, int]] = (),
    *,
    most_rows: int | None = None,
    most_columns: int | None = None,
    longest: int = 24,
    kinds: Sequence[str] = KINDS,
    wording: str = "full",
) -> Table:
    """A table of given data, and a question about it.

    Its split follows from what it shows, as for any table. Excerpts of one big table overlap
    without being equal, so keep all that come from one source in one split.

    Args:
      header: column headers; the first column names the rows.
      rows: values; None and NaN are empty, numbers are written plainly, anything else by `str`.
      seed: of the excerpt and of the question.
      groups: merged headers, each (text, first column, last column + 1).
      most_rows: a larger table is cut to so many of its rows, drawn at random, in their order.
      most_columns: likewise for columns; the first always stays. Not with `groups`.
      longest: characters of a cell; the rest is cut away.
      kinds: of questions to draw from.
      wording: out of `table_questions.WORDINGS`.

    Raises:
      ValueError: data that make no `Table`, no question that has one right answer, or
        `most_columns` with `groups`.
    """
    rng = random.Random(f"rows {seed}")
    kept = list(range(len(header)))
    if most_columns is not None and len(header) > most_columns:
        if groups:
            raise ValueError("a table with merged headers can't be cut to fewer columns")
        if most_columns < 2:
            raise ValueError(f"a table has at least two columns, got most_columns {most_columns}")
        kept = [0, *sorted(rng.sample(kept[1:], most_columns - 1))]
    ragged = [r for r, row in enumerate(rows) if len(row) != len(header)]
    if ragged:
        raise ValueError(f"rows {ragged[:5]} don't have the header's {len(header)} cells")
    if most_rows is not None and len(rows) > most_rows:
        rows = [rows[r] for r in sorted(rng.sample(range(len(rows)), most_rows))]
    texts = tuple(tuple(_shown(row[c], longest) for c in kept) for row in rows)
    names = tuple(_shown(header[c], longest) for c in kept)
    merged = tuple(Group(_shown(text, longest), first, stop) for text, first, stop in groups)
    asked = ask(names, texts, merged, rng, kinds, wording)
    if asked is None:
        raise ValueError(f"no question of {tuple(kinds)} has one right answer in this table")
    return Table(names, texts, merged, *asked)


def _shown(value: Any, longest: int) -> str:
    """A value as it stands in a cell, on one line."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 3].rstrip() + "..."
