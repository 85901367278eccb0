"""Tables of real data, ready to be cut: what columns hold, and which split sees which rows."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from vrrl_jax.data.real_files import Source
from vrrl_jax.data.table_questions import read_number
from vrrl_jax.data.tables import SPLITS, split_of

# Rows of a chunk, and of each test split in it; the rest of a chunk is for training.
CHUNK = 60
TEST = 6
# A shorter table isn't parted: its training rows would be fewer than those of the test splits.
SHORTEST = 4 * TEST
FEWEST = 3  # rows of a window
LONGEST = 24  # characters of a name
_MISSING = {"", "-", "--", "?", ".", "na", "n/a", "#n/a", "nan", "null", "none"}
_DATE = re.compile(r"(\d{4})(?:[-/](\d\d?)(?:[-/](\d\d?))?)?(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?")
_DAY = re.compile(r"([A-Z][a-z]{2})[a-z]* (\d\d?),? (\d{4})")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


# --- what the columns are ------------------------------------------------------------------------


def moment(text: str) -> tuple[int, ...] | None:
    """A year, date or time of day as numbers that order it; None for anything else."""
    if found := _DATE.fullmatch(text):
        return tuple(int(part) for part in found.groups(default="0"))
    found = _DAY.fullmatch(text)
    if not found or found[1] not in _MONTHS:
        return None
    return int(found[3]), _MONTHS.index(found[1]) + 1, int(found[2])


def is_missing(cell: str) -> bool:
    return cell.lower() in _MISSING


class Columns(NamedTuple):
    """Columns by what they hold.

    Attributes:
      names: words, dates or years: what may name rows.
      moments: those of `names` that are dates or years.
      numbers: measures.
    """

    names: tuple[int, ...]
    moments: frozenset[int]
    numbers: tuple[int, ...]


def columns(source: Source) -> Columns:
    """The columns by a sample of their cells; those that are mostly empty or mixed are neither."""
    sample = source.rows[:: max(1, len(source.rows) // 500)]
    names, moments, numbers = [], [], []
    for c, title in enumerate(source.header):
        cells = [row[c] for row in sample if not is_missing(row[c])]
        if len(cells) * 2 < len(sample):
            continue
        share = sum(read_number(cell) is not None for cell in cells) / len(cells)
        if all(map(moment, cells)) and (share == 0 or _are_years(title, cells)):
            names.append(c)
            moments.append(c)
        elif share >= 0.9:
            if not _counts(source, c):
                numbers.append(c)
        elif share <= 0.1 and sum(len(cell) <= LONGEST for cell in cells) * 2 > len(cells):
            names.append(c)
    return Columns(tuple(names), frozenset(moments), tuple(numbers))


def _are_years(title: str, cells: Sequence[str]) -> bool:
    """Whether numbers of four digits are years: by their column's title, or as they count up."""
    years = [int(cell) if cell.isdigit() else 0 for cell in cells]
    if not all(1000 <= year <= 2200 for year in years):
        return False
    return "year" in title.lower() or all(a < b for a, b in itertools.pairwise(years))


def _counts(source: Source, column: int) -> bool:
    """Whether a column only numbers the rows."""
    first = [row[column] for row in source.rows[:100]]
    return len(first) > 1 and any(
        first == [str(start + i) for i in range(len(first))] for start in (0, 1)
    )


# --- which rows are whose ------------------------------------------------------------------------


class Parted(NamedTuple):
    """A table and the runs of rows that each split may show."""

    source: Source
    columns: Columns
    runs: Mapping[str, tuple[range, ...]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tables by the split that may show them.

    Attributes:
      of: split -> its tables, at least one.
      notes: tables that aren't used or not parted, in words.
    """

    of: Mapping[str, tuple[Parted, ...]]
    notes: tuple[str, ...] = ()


def corpus(sources: Iterable[Source], held_out: Collection[str] = ()) -> Corpus:
    """Parts tables into splits; the same tables give the same splits.

    Args:
      sources: the tables.
      held_out: names of those that "test_ood" shows, and no other split; () lets every split have
        rows of every table that is long enough.

    Raises:
      ValueError: an unknown name in `held_out`, no table with names and numbers, or none for a
        split.
    """
    sources = list(sources)
    unknown = sorted(set(held_out) - {source.name for source in sources})
    if unknown:
        raise ValueError(f"held out, but not there: {unknown}; known: {in_words(sources)}")
    made, notes = [], []
    for source in sources:
        found = columns(source)
        if found.names and found.numbers and len(source.rows) >= FEWEST:
            made.append(Parted(source, found, _runs(source, source.name in held_out)))
        else:
            notes.append(f"{source.name}: needs a column of names, one of numbers, {FEWEST} rows")
    if not made:
        raise ValueError(f"no table has names and numbers: {'; '.join(notes[:3])}")
    if held_out:
        made = [t if t.source.name in held_out else _without(t, "test_ood") for t in made]
    shown = lambda split: tuple(t for t in made if t.runs[split])
    if not all(map(shown, SPLITS)):
        # Too few tables to give every split one: the short ones are parted by windows alone.
        made = [t if t.source.name in held_out else _shared(t, bool(held_out)) for t in made]
        shared = [t.source for t in made if len(t.source.rows) < SHORTEST]
        if shared:
            notes.append(f"under {SHORTEST} rows, which splits share: {in_words(shared)}")
    for split in SPLITS:
        if not shown(split):
            raise ValueError(f"no table is left for {split}: {in_words(sources)}; add some")
    return Corpus({split: shown(split) for split in SPLITS}, tuple(notes))


def in_words(sources: Sequence[Source]) -> str:
    names = [source.name for source in sources]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _runs(source: Source, held_out: bool) -> dict[str, tuple[range, ...]]:
    """Split -> runs of rows: every chunk's last rows are for the test splits."""
    count = len(source.rows)
    chunks = max(1, count // CHUNK)
    cuts = [i * count // chunks for i in range(chunks + 1)]
    runs: dict[str, tuple[range, ...]] = dict.fromkeys(SPLITS, ())
    if held_out:
        return runs | {"test_ood": tuple(range(a, b) for a, b in itertools.pairwise(cuts))}
    if count < SHORTEST:
        text = json.dumps([source.header, source.rows])
        return runs | {split_of(hashlib.sha1(text.encode()).hexdigest()): (range(count),)}
    marks = [(a, b - 2 * TEST, b - TEST, b) for a, b in itertools.pairwise(cuts)]
    return {
        split: tuple(range(m[i], m[i + 1]) for m in marks)
        for i, split in enumerate(("train", "test_id", "test_ood"))
    }


def _without(table: Parted, split: str) -> Parted:
    return table._replace(runs={**table.runs, split: ()})


def _shared(table: Parted, held_out: bool) -> Parted:
    """A short table for all splits, but for the one that has tables of its own."""
    if len(table.source.rows) >= SHORTEST:
        return table
    table = table._replace(runs=dict.fromkeys(SPLITS, (range(len(table.source.rows)),)))
    return _without(table, "test_ood") if held_out else table
