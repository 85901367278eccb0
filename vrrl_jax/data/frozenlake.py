"""FrozenLake maps: their shortest paths, generation, and the published files."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from vrrl_jax.data.grids import Grid

ACTIONS = ("left", "down", "right", "up")  # Gymnasium's order, 0 to 3
_MOVES = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}


@dataclasses.dataclass(frozen=True)
class Map(Grid):
    """A square map. Cells are counted row by row from 0.

    Attributes:
      layout: rows of "S" start, "F" frozen, "H" hole, "G" goal; lists of characters are accepted.
      start: the cell of S.
      target: the cell of G.
      blocked: what a step that stays is called: it leaves the grid.

    Raises:
      ValueError: rows that are no square, unknown characters, or a start or goal that is missing,
        repeated or elsewhere than stated.
    """

    layout: tuple[str, ...]
    start: int
    target: int
    blocked: ClassVar[str] = "off"

    def __post_init__(self):
        try:
            layout = tuple("".join(row) for row in self.layout)
        except TypeError:
            raise ValueError(f"layout must be rows of characters, got {self.layout!r}") from None
        object.__setattr__(self, "layout", layout)
        cells = "".join(layout)
        if not layout or any(len(row) != len(layout) for row in layout):
            raise ValueError(f"a map must be square, got rows {list(layout)}")
        if set(cells) - set("SFHG"):
            raise ValueError(f"unknown cells {sorted(set(cells) - set('SFHG'))}; use S, F, H, G")
        for letter, cell, name in (("S", self.start, "start"), ("G", self.target, "target")):
            if cells.count(letter) != 1:
                raise ValueError(f"need exactly one {letter}, got {cells.count(letter)}")
            if cells.index(letter) != cell:
                raise ValueError(f"{letter} is at {cells.index(letter)}, {name} says {cell}")

    @property
    def size(self) -> int:
        """Cells a side."""
        return len(self.layout)

    @functools.cached_property
    def cells(self) -> str:
        """All cells in one string, row by row."""
        return "".join(self.layout)

    @functools.cached_property
    def passages(self) -> tuple[dict[str, int], ...]:
        """For every cell: action -> the cell it leads to; off the grid and into holes left out."""
        cells = self.cells
        return tuple(
            {action: near for action, near in beside.items() if cells[near] != "H"}
            for beside in neighbours(self.size)
        )

    def move(self, cell: int, action: str) -> tuple[int, bool]:
        """(the cell after a step, whether it was legal).

        Off the grid: stays, illegal. Into a hole: moves, illegal.
        """
        after = neighbours(self.size)[cell].get(action)
        if after is None:
            if action not in _MOVES:
                raise ValueError(f"unknown action {action!r}: expected one of {ACTIONS}")
            return cell, False
        return after, self.cells[after] != "H"


@functools.lru_cache(maxsize=64)
def neighbours(n: int) -> tuple[dict[str, int], ...]:
    """For every cell of an n x n grid: action -> cell, steps off the grid left out."""
    return tuple(
        {
            action: (r + dr) * n + c + dc
            for action, (dr, dc) in _MOVES.items()
            if 0 <= r + dr < n and 0 <= c + dc < n
        }
        for r in range(n)
        for c in range(n)
    )


# --- generation --------------------------------------------------------------------------------


def generate(
    seed: int,
    count: int,
    levels: Sequence[int] = (3, 4, 5),
    weights: Sequence[float] | None = None,
    hole_probability: tuple[float, float] = (0.05, 0.45),
    exclude: frozenset[str] = frozenset(),
    min_steps: int = 1,
) -> list[Map]:
    """Random solvable maps, no two alike, none out of `exclude`.

    Each map draws its size, its own density of holes, start and goal.

    Args:
      seed: the same seed gives the same maps.
      count: how many.
      levels: sizes to draw from.
      weights: of the levels; None draws in proportion to the number of cells, as small sizes have
        few maps to offer.
      hole_probability: range of the density.
      exclude: keys that must not appear.
      min_steps: shortest path's least length.

    Raises:
      ValueError: a level under 2, `min_steps` under 1, or, after 1,000 misses in a row, the
        wanted maps seem not to exist.
    """
    if min(levels) < 2:
        raise ValueError(f"levels are at least 2, to hold a start and a goal; got {list(levels)}")
    if min_steps < 1:
        raise ValueError(f"min_steps must be at least 1, got {min_steps}")
    rng = random.Random(seed)
    weights = [n * n for n in levels] if weights is None else weights
    maps: list[Map] = []
    seen, misses = set(exclude), 0
    while len(maps) < count:
        n = rng.choices(levels, weights)[0]
        density = rng.uniform(*hole_probability)
        cells = ["H" if rng.random() < density else "F" for _ in range(n * n)]
        start, target = rng.sample(range(n * n), 2)
        cells[start], cells[target] = "S", "G"
        layout = tuple("".join(cells[i : i + n]) for i in range(0, n * n, n))
        map = Map(layout, start, target)
        if map.shortest < min_steps or map.key in seen:
            misses += 1
            if misses > 1000:
                raise ValueError(
                    f"only {len(maps)} of {count} maps found at levels {list(levels)} with "
                    f"hole_probability {hole_probability}: ask for fewer, or for larger sizes"
                )
            continue
        misses = 0
        seen.add(map.key)
        maps.append(map)
    return maps


def split(maps: Iterable[Map], fraction: float) -> tuple[list[Map], list[Map]]:
    """(training, validation): a map's side depends on its key alone, so equal maps stay together.

    Args:
      fraction: expected share of validation, in 0 .. 1.
    """
    training, validation = [], []
    for map in maps:
        share = int(map.key[:8], 16) / 16**8
        (validation if share < fraction else training).append(map)
    return training, validation


# --- published files ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Maps read from files, and what was skipped: one line each, file and place named."""

    maps: list[Map]
    skipped: list[str]


def load(path: str | pathlib.Path, limit: int | None = None, max_bad: int | None = None) -> Loaded:
    """Reads published maps.

    Args:
      path: `maps.json`, `eval_data.json`, a directory that Hugging Face's `save_to_disk` wrote, or
        a folder that holds one of these.
      limit: read at most so many maps, at least 1.
      max_bad: unreadable records allowed; None: one in a hundred, at least 10.

    Raises:
      FileNotFoundError: nothing of the kind is at `path`.
      ValueError: a file that is no JSON, or too many unreadable records.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    file = _find(pathlib.Path(path).expanduser())
    maps, skipped, seen = [], [], 0
    for place, record in _records(file):
        if limit is not None and len(maps) >= limit:
            break
        seen += 1
        try:
            maps.append(_to_map(record))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            skipped.append(f"{file}, {place}: {reason}")
    allowed = max(10, seen // 100) if max_bad is None else max_bad
    if not seen:
        raise ValueError(f"{file} holds no maps")
    if len(skipped) > allowed or not maps:
        first = "\n  ".join(skipped[:5])
        raise ValueError(
            f"{file}: {len(skipped)} of {seen} records are unreadable, {allowed} are allowed:\n"
            f"  {first}"
        )
    return Loaded(maps, skipped)


def _find(path: pathlib.Path) -> pathlib.Path:
    """The file or saved data set that `path` means."""
    if path.is_file():
        return path
    for name in ("maps.json", "eval_data.json"):
        if (path / name).is_file():
            return path / name
    for folder in (path, path / "train", path / "hf_dataset", path / "hf_dataset" / "train"):
        if (folder / "state.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path}: expected maps.json, eval_data.json, a directory written by save_to_disk, or a "
        "folder that holds one of them"
    )


def _records(file: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Records with the place each stands at."""
    if file.is_dir():
        yield from _arrow_records(file)
        return
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(records, list):
        raise ValueError(f"{file}: expected a list of maps, got {type(records).__name__}")
    for i, record in enumerate(records):
        yield f"record {i}", record


def _arrow_records(folder: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Rows of a `save_to_disk` directory: the answer column holds the map as JSON."""
    import pyarrow

    row = 0
    # The folder may hold cached transforms too: only what the state names is the data.
    state = folder / "state.json"
    try:
        entries = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        names = [entry["filename"] for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{state}: not the state of a saved data set ({reason})") from None
    for name in names:
        try:
            with pyarrow.memory_map(str(folder / name)) as source:
                answers = pyarrow.ipc.open_stream(source).read_all().column("answer").to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{folder / name}: no Arrow stream ({error})") from None
        except KeyError:
            raise ValueError(f"{folder / name}: no column named answer") from None
        for answer in answers:
            yield f"row {row}", _json_or_text(answer)
            row += 1


def _json_or_text(answer: Any) -> Any:
    """The record in a cell; what can't be read stays as it is, to be skipped and named."""
    try:
        return json.loads(answer)
    except (json.JSONDecodeError, TypeError, RecursionError):
        return answer


def _to_map(record: Any) -> Map:
    """A published record: the fields themselves, or below `metadata` or `map`."""
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {type(record).__name__}")
    for key in ("metadata", "map"):
        if isinstance(record.get(key), dict) and "layout" not in record:
            record = record[key]
    layout = tuple(record["layout"])
    places = [record[name] for name in ("start_pos", "target_pos")]
    if any(int(place) != float(place) for place in places):
        raise ValueError(f"start_pos and target_pos count cells, got {places}")
    map = Map(layout, *(int(place) for place in places))
    if not map.solvable:
        raise ValueError("the goal can't be reached from the start")
    return map
