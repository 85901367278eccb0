"""What every reader of raw rows offers."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Rows(Sequence):
    """Raw rows by global index. Immutable, and small to pickle for a loader's workers.

    Attributes:
      labels: names of class labels by column, where the files tell them.
    """

    labels: Mapping[str, tuple[str, ...]] = {}

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @abc.abstractmethod
    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i, 0 .. len - 1.

        Raises:
          IndexError: there is no such row.
          ValueError: it can't be read.
        """

    @abc.abstractmethod
    def place(self, i: int) -> tuple[pathlib.Path, int]:
        """(file, row in that file from 0), for messages."""

    def scan(self) -> Iterator[dict[str, Any] | ValueError]:
        """All rows in order; in the place of one that can't be read, the error."""
        for i in range(len(self)):
            try:
                yield self[i]
            except ValueError as error:
                yield error

    def check(self, i: int) -> int:
        """`i`, if there is such a row.

        Raises:
          IndexError: there is none.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return i
