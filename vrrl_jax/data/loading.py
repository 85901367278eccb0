"""From files to records: every row is looked at; broken ones are skipped, counted and named."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from vrrl_jax.data import mappers, tabular
from vrrl_jax.data.records import At, Record, Unsupported
from vrrl_jax.data.rows import Rows


@dataclasses.dataclass(frozen=True, eq=False)
class Records(Sequence):
    """Records, each made from its row when it is asked for: no picture stays in memory.

    Attributes:
      rows: the raw rows.
      mapper: makes a row's records.
      source: the set's name.
      folder: the data folder, resolved.
      index: int64 [n, 2], (row, which of its records) of each record.
      split: of all rows; "" takes it from the names of their files.
    """

    rows: Rows
    mapper: mappers.Mapper
    source: str
    folder: pathlib.Path
    index: np.ndarray
    split: str = ""

    def __len__(self) -> int:
        return len(self.index)

    @overload
    def __getitem__(self, i: int) -> Record: ...

    @overload
    def __getitem__(self, i: slice) -> Records: ...

    def __getitem__(self, i):
        """Record i, or the records of a slice.

        Raises:
          IndexError: there is no such record.
          ValueError: its row, which was sound before, is no longer.
        """
        if isinstance(i, slice):
            return dataclasses.replace(self, index=self.index[i])
        row, part = map(int, self.index[i])
        return self._map(row, self.rows[row])[part]

    def _map(self, number: int, row: Mapping[str, Any]) -> tuple[Record, ...]:
        file = self.rows.place(number)[0]
        at = At(
            source=self.source,
            row=number,
            folder=self.folder,
            file=str(file),
            split=self.split or tabular.split_of(file),
            labels=self.rows.labels,
        )
        made = self.mapper(at, row)
        return (made,) if isinstance(made, Record) else tuple(made)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Records read from files, and what was skipped: one line each, file and place named.

    Attributes:
      records: the sound ones, in the order of the files.
      skipped: of broken rows first, then of unsupported ones.
      bad: how many of `skipped` are broken.
    """

    records: Records
    skipped: list[str]
    bad: int


def load(
    path: str | pathlib.Path,
    mapper: str | mappers.Mapper,
    *,
    split: str | None = None,
    source: str | None = None,
    folder: str | pathlib.Path | None = None,
    limit: int | None = None,
    max_bad: int | None = None,
) -> Loaded:
    """Reads a data set and checks every row, its pictures' presence among it, not their pixels.

    Args:
      path: what `tabular.open_rows` takes.
      mapper: a name of `mappers.MAPPERS`, or a function of that kind.
      split: which one, where `path` holds several.
      source: the first part of the records' ids; None: the mapper's name. To be given where one
        mapper reads several sets.
      folder: where picture paths start, and what none may leave; None: the folder of `path`.
      limit: read at most so many records, at least 1.
      max_bad: broken rows allowed; None: one in a hundred, at least 10. Rows that are sound, but of
        a kind that isn't taken (videos), are named too and don't count.

    Raises:
      FileNotFoundError: nothing of the kind is at `path`, or no such split.
      ValueError: an unknown mapper, files that can't be read at all, or too many broken rows.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if source is None:
        source = mapper if isinstance(mapper, str) else getattr(mapper, "name", "data")
    mapper = mappers.get(mapper) if isinstance(mapper, str) else mapper
    rows = tabular.open_rows(path, split)
    root = _folder_of(pathlib.Path(path)) if folder is None else pathlib.Path(folder)
    every = Records(
        rows, mapper, source, root.expanduser().resolve(), np.empty((0, 2), np.int64), split or ""
    )
    index, bad, unsupported, seen = [], [], [], 0
    most = allowed_bad(len(rows), max_bad)
    for number, row in enumerate(rows.scan()):
        if (limit is not None and len(index) >= limit) or len(bad) > most:
            break
        seen += 1
        try:
            if isinstance(row, ValueError):
                raise row
            index += [(number, part) for part in range(len(every._map(number, row)))]
        except Unsupported as error:
            unsupported.append(f"{_place(rows, number)}: {error}")
        except ValueError as error:
            bad.append(f"{_place(rows, number)}: {error}")
        except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            # What a mapper of a user's own may meet in a row of an odd shape.
            bad.append(f"{_place(rows, number)}: {type(error).__name__}: {error}")
    _check_count(path, seen, len(index), bad, unsupported, max_bad)
    index = np.asarray(index[:limit], np.int64)
    return Loaded(dataclasses.replace(every, index=index), bad + unsupported, len(bad))


def allowed_bad(count: int, max_bad: int | None = None) -> int:
    """Of so many rows, how many may be broken: `max_bad`; None: one in a hundred, at least 10."""
    return max(10, count // 100) if max_bad is None else max_bad


def _check_count(
    path: str | pathlib.Path,
    seen: int,
    good: int,
    bad: Sequence[str],
    unsupported: Sequence[str],
    max_bad: int | None,
) -> None:
    if not seen:
        raise ValueError(f"{path} holds no rows")
    allowed = allowed_bad(seen, max_bad)
    if len(bad) > allowed or not good:
        first = "\n  ".join([*bad, *unsupported][:5])
        raise ValueError(
            f"{path}: of the first {seen} rows {len(bad)} are broken, {allowed} are allowed, and "
            f"{len(unsupported)} are of a kind that isn't taken:\n  {first}"
        )


def _place(rows: Rows, number: int) -> str:
    file, row = rows.place(number)
    return f"{file}, row {row}"


def _folder_of(path: pathlib.Path) -> pathlib.Path:
    """The folder that holds all of `path`: of a glob, what stands before its first wildcard."""
    path = path.expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    plain = path
    while any(sign in str(plain) for sign in "*?["):
        plain = plain.parent
    return plain
