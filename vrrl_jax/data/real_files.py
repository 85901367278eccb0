"""Tables of real data, read from local files: CSV, TSV, and what the package vega_datasets ships.

Nothing is fetched. Files are as people leave them: what can't be read is left out and named, and
everything has a limit. Cells stay texts, numbers as the file writes them.

vega_datasets (https://github.com/altair-viz/vega_datasets) is under the MIT licence; the data sets
in it come from many places and have terms of their own. Its dataset_info.json says where from.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

VEGA = "vega"
MOST_FILES = 10_000
MOST_BYTES = 64 * 2**20  # of a file
MOST_ROWS = 100_000
MOST_COLUMNS = 512
MOST_CELLS = 4_000_000  # of a file, and of all files of a folder together
LONGEST = 1000  # characters of a cell
ENDINGS = (".csv", ".tsv", ".tab")
# Names of people and how they died: not for a game of reading tables.
_LEFT_OUT = ("la-riots",)


class Source(NamedTuple):
    """A whole table: each row as long as the header, every text on one line, no two rows equal."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Loaded(NamedTuple):
    """Tables, and a line for each file that gave none or not all of its rows."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...]


def load(path: str | pathlib.Path) -> Loaded:
    """Every table of a file, of a folder and the folders in it, or of vega_datasets.

    Args:
      path: of .csv, .tsv or .tab files; "vega" for the package (a folder of that name: "./vega").

    Raises:
      FileNotFoundError: nothing is at `path`, or no file of the kind.
      ValueError: no file holds a table, or vega_datasets isn't installed.
    """
    files = vega_files() if str(path) == VEGA else _files(pathlib.Path(path).expanduser())
    sources, notes, cells = [], [], 0
    seen: dict[tuple, str] = {}
    for name, file in files:
        try:
            source, note = read(file, name)
            cells += len(source.header) * len(source.rows)
            if cells > MOST_CELLS and sources:
                raise ValueError(f"{MOST_CELLS:,} cells are read before it, and no more")
            first = seen.setdefault(source[1:], name)
            if first != name:
                raise ValueError(f"the same as {first}")
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            notes.append(f"{name}: {error}")
            continue
        sources.append(source)
        notes.extend([note] if note else [])
    if not sources:
        raise ValueError(f"{path}: no table in {len(files)} files; {'; '.join(notes[:3])}")
    return Loaded(tuple(sources), tuple(notes))


def vega_files() -> list[tuple[str, pathlib.Path]]:
    """(name, path) of the data files in vega_datasets, found without importing it and pandas.

    Raises:
      ValueError: it isn't installed.
    """
    found = importlib.util.find_spec("vega_datasets")
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "real data of vega need the package vega_datasets: pip install 'vrrl-jax[real]', or "
            "pip install vega_datasets"
        )
    folder = pathlib.Path(found.submodule_search_locations[0]) / "_data"
    files = sorted(f for f in folder.glob("*") if f.suffix in (".csv", ".json"))
    return [(file.stem, file) for file in files if file.stem not in _LEFT_OUT]


def _files(path: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder; expected {', '.join(ENDINGS)}")
    found = (f for f in path.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())
    # One more than allowed: a whole disk isn't listed before this is said.
    files = sorted(itertools.islice(found, MOST_FILES + 1))
    if not files:
        raise FileNotFoundError(f"{path}: no {', '.join(ENDINGS)} file in it")
    if len(files) > MOST_FILES:
        raise ValueError(f"{path}: over {MOST_FILES:,} files; name a smaller folder")
    return [(file.relative_to(path).as_posix(), file) for file in files]


def read(path: pathlib.Path, name: str | None = None) -> tuple[Source, str]:
    """A file's table, and what was left out of it, in words: "" for nothing.

    The first line that isn't blank is the header. Rows of another length are left out, as are rows
    with an overlong cell and repeated ones; columns without a name, or with an earlier one's, too.

    Args:
      path: .json is a list of flat objects; .tsv and .tab have tabs; anything else has commas,
        semicolons or tabs. UTF-8, UTF-16 with its mark, or Latin-1.
      name: of the table; None: the file's.

    Raises:
      ValueError, csv.Error: it holds no table, in words.
      OSError: it can't be read.
    """
    name = path.name if name is None else name
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, at most {MOST_BYTES:,} are read")
    text = _decoded(path.read_bytes())
    records = _objects(text) if path.suffix.lower() == ".json" else _lines(text, path.suffix)
    header = [_clean(cell) for cell in next(records, ())]
    if not header:
        raise ValueError("it is empty")
    if len(header) > MOST_COLUMNS:
        raise ValueError(f"{len(header):,} columns, at most {MOST_COLUMNS:,} are read")
    if all(_plain_number(cell) for cell in header if cell):
        raise ValueError("its first line holds no names of columns")
    kept = [c for c, title in enumerate(header) if title and header.index(title) == c]
    most = min(MOST_ROWS, MOST_CELLS // len(header))
    rows, broken, more = _rows(records, len(header), kept, most)
    if not rows:
        raise ValueError(f"no rows below its header ({broken} that don't fit it)")
    told = [f"{broken:,} rows don't fit the header, or have overlong cells"] if broken else []
    told += [f"only the first {most:,} rows are read"] if more else []
    title = tuple(header[c] for c in kept)
    return Source(name, title, rows), f"{name}: {'; '.join(told)}" if told else ""


def _rows(
    records: Iterable[Sequence[str]], width: int, kept: Sequence[int], most: int
) -> tuple[tuple[tuple[str, ...], ...], int, bool]:
    """(rows of the kept columns, how many didn't fit, whether there are more)."""
    rows: dict[tuple[str, ...], None] = {}
    broken = 0
    for number, record in enumerate(records):
        if number == most:
            return tuple(rows), broken, True
        # A separator at the end of every line, but not of the header's, is common and harmless.
        fits = len(record) >= width and not any(record[width:])
        if fits and all(len(cell) <= LONGEST for cell in record):
            rows[tuple(_clean(record[c]) for c in kept)] = None
        else:
            broken += 1
    return tuple(rows), broken, False


def _clean(cell: str) -> str:
    """A cell on one line."""
    return " ".join(cell.split())


def _plain_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _decoded(data: bytes) -> str:
    """The text of a file.

    Raises:
      ValueError: it is no text.
    """
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if "\0" in text:
        raise ValueError("it is no text")
    return text


def _lines(text: str, ending: str) -> Iterator[list[str]]:
    """The records of a CSV or TSV file that aren't blank."""
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    marks = "\t" if ending.lower() in (".tsv", ".tab") else ",;\t"
    mark = max(marks, key=lambda m: len(next(csv.reader([first.rstrip("\r\n")], delimiter=m), ())))
    # Python's limit on a field is one of the process, and readers of base64 raise it.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_BYTES))
    records = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    return (record for record in records if any(cell.strip() for cell in record))


def _objects(text: str) -> Iterator[list[str]]:
    """The fields of a JSON list of flat objects: the names first, numbers as they are written.

    Raises:
      ValueError: it is anything else.
    """
    objects = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
        raise ValueError("expected a list of objects")
    names = list(dict.fromkeys(name for o in objects[:100] for name in o))
    yield names
    for o in objects:
        values = [o.get(name) for name in names]
        if not any(isinstance(value, dict | list) for value in values):
            yield ["" if value is None else str(value) for value in values]
