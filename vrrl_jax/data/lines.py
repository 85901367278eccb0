"""Rows of text files: JSON lines, JSON lists, and tables with tabs."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from vrrl_jax.data.rows import Rows

# A line's longest: room for pictures in base64, none for a file that never ends its line.
MAX_LINE = 256 * 2**20
# A picture in base64 is longer, the index of another row is shorter.
_INDEX_LENGTH = 64


def _as_row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


class JsonRows(Rows):
    """A JSON file that holds a list of objects; wholly in memory, as its format demands.

    Raises:
      ValueError: the file is no JSON, or no list.
    """

    def __init__(self, file: pathlib.Path):
        self.file = file
        try:
            self.values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: not valid JSON ({error})") from None
        if not isinstance(self.values, list):
            raise ValueError(f"{file}: expected a list, got {type(self.values).__name__}")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return _as_row(self.values[self.check(i)])

    def place(self, i: int) -> tuple[pathlib.Path, int]:
        return self.file, i


class JsonLines(Rows):
    """One JSON object a line; blank lines are no rows. Only the lines' places are in memory."""

    def __init__(self, file: pathlib.Path):
        self.file, self.starts = file, []
        with file.open("rb") as stream:
            for start, size, blank in _lines(stream):
                if not blank:
                    self.starts.append((start, size))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        start, size = self.starts[self.check(i)]
        if size > MAX_LINE:
            raise ValueError(f"a line of {size} bytes, at most {MAX_LINE} are read")
        with self.file.open("rb") as stream:
            stream.seek(start)
            line = stream.read(size)
        try:
            return _as_row(json.loads(line))
        except RecursionError:
            raise ValueError("not valid JSON (nested too deeply)") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"not valid JSON ({error})") from None

    def place(self, i: int) -> tuple[pathlib.Path, int]:
        return self.file, i


def _lines(stream) -> Iterator[tuple[int, int, bool]]:
    """(start, bytes, whether blank) of each line, in pieces, so that none has to fit in memory."""
    start = size = 0
    blank = True
    while piece := stream.readline(2**20):
        size += len(piece)
        blank = blank and not piece.strip()
        if piece.endswith(b"\n"):
            yield start, size, blank
            start, size, blank = start + size, 0, True
    if size:
        yield start, size, blank


class TsvRows(Rows):
    """A table with tabs, the first line naming its columns, pictures in base64.

    Cells may be quoted, and then hold line ends. A cell of the column "image" may hold the value
    of "index" of another row, to show that row's picture: such a cell is replaced by the other's.

    Raises:
      ValueError: no columns, or a quote that is never closed: what follows can't be told apart.
    """

    def __init__(self, file: pathlib.Path):
        self.file, self.starts, self.rows_of = file, [], {}
        # The limit is the module's own, for all readers: raised, and never lowered.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
        with file.open("rb") as stream:
            feed = _Feed(stream)
            reader = csv.reader(feed, delimiter="\t", strict=True)
            try:
                self.columns = next(reader, [])
            except csv.Error as error:
                raise ValueError(f"{file}: the line of column names is broken ({error})") from None
            if len(self.columns) < 2 or len(set(self.columns)) < len(self.columns):
                raise ValueError(f"{file}: expected columns with tabs, got {self.columns[:10]}")
            index = self.columns.index("index") if "index" in self.columns else None
            while True:
                start, line = feed.place, feed.line
                try:
                    cells = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    if "end of data" in str(error):
                        raise ValueError(
                            f"{file}: a quote opens in line {line + 1} and is never closed"
                        ) from None
                    cells = None
                if cells == []:  # a blank line
                    continue
                if index is not None and cells and len(cells) == len(self.columns):
                    self.rows_of.setdefault(cells[index], len(self.starts))
                self.starts.append(start)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self._cells(i)
        image = row.get("image", "")
        if 0 < len(image) <= _INDEX_LENGTH and not image.startswith("["):
            if image not in self.rows_of:
                raise ValueError(f"the picture is that of index {image!r}, which isn't there")
            row["image"] = self._cells(self.rows_of[image])["image"]
            if len(row["image"]) <= _INDEX_LENGTH:
                raise ValueError(f"the picture is that of index {image!r}, which has none itself")
        return row

    def _cells(self, i: int) -> dict[str, str]:
        """Row i as it stands."""
        with self.file.open("rb") as stream:
            stream.seek(self.starts[self.check(i)])
            try:
                cells = next(csv.reader(_Feed(stream), delimiter="\t", strict=True))
            except csv.Error as error:
                raise ValueError(str(error).replace("\t", "\\t")) from None
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells, but {len(self.columns)} columns")
        try:
            for cell in cells:
                cell.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("not valid UTF-8") from None
        return dict(zip(self.columns, cells, strict=True))

    def place(self, i: int) -> tuple[pathlib.Path, int]:
        return self.file, i


class _Feed:
    """Lines for the csv module, which takes no more of them than a row needs.

    Attributes:
      place: byte where the next line starts.
      line: lines handed out.
    """

    def __init__(self, stream):
        self.stream, self.place, self.line = stream, stream.tell(), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.stream.readline(MAX_LINE)
        if not piece:
            raise StopIteration
        if self.place == 0:
            piece = piece.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
        self.place, self.line = self.stream.tell(), self.line + 1
        # What is no UTF-8 must not stop the reader in the midst of a row: it is found later.
        return piece.decode("utf-8", "surrogateescape")
