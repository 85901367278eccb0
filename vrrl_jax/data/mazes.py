"""Mazes: walls between the cells of a square grid, their shortest paths, generation and splits.

A `Maze` answers to what the rewards, demonstrations and environments of `frozenlake.Map` ask of a
map. Which split a maze may be in follows from a hash of its contents, as for tables; sizes above
`LARGEST`, some algorithms and some styles are held out for "test_ood".
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence, Set
from typing import ClassVar, NamedTuple

from vrrl_jax.data.frozenlake import ACTIONS, neighbours
from vrrl_jax.data.grids import Grid
from vrrl_jax.data.maze_algorithms import ALGORITHMS, IN_DOMAIN, Side
from vrrl_jax.render.mazes import STYLES, Style

# Split -> its share of all mazes.
SPLITS = {"train": 0.8, "test_id": 0.1, "test_ood": 0.1}
LARGEST = 5  # the greatest size that is not held out


@dataclasses.dataclass(frozen=True)
class Maze(Grid):
    """A square maze. Cells are counted row by row from 0.

    Attributes:
      layout: 2 * size + 1 rows of as many blocks: "#" wall, " " open, "S" start, "E" end. The cell
        in row r and column c is the block (2r + 1, 2c + 1); the blocks between are its sides, the
        ones at its corners always wall.
      algorithm: of `ALGORITHMS`, where one drew it; no part of what the maze is.
      blocked: what a step that stays is called: it runs into a wall.

    Raises:
      ValueError: rows that are no square of odd side, unknown blocks, an open border or corner, a
        walled cell, or a start or end that is missing, repeated or on no cell.
    """

    layout: tuple[str, ...]
    algorithm: str = dataclasses.field(default="", compare=False)
    blocked: ClassVar[str] = "wall"

    def __post_init__(self):
        try:
            layout = tuple("".join(row) for row in self.layout)
        except TypeError:
            raise ValueError(f"layout must be rows of characters, got {self.layout!r}") from None
        object.__setattr__(self, "layout", layout)
        side, blocks = len(layout), "".join(layout)
        if side < 5 or side % 2 == 0 or any(len(row) != side for row in layout):
            raise ValueError(f"a maze must be square, of odd side from 5, got rows {list(layout)}")
        if set(blocks) - set("# SE"):
            raise ValueError(f"unknown blocks {sorted(set(blocks) - set('# SE'))}; use # SE")
        if set(layout[0] + layout[-1] + blocks[::side] + blocks[side - 1 :: side]) != {"#"}:
            raise ValueError("the border must be wall all around")
        if any(set(row[::2]) != {"#"} for row in layout[::2]):
            raise ValueError("blocks in even rows and columns are corners: they must be wall")
        if any("#" in row[1::2] for row in layout[1::2]):
            raise ValueError("blocks in odd rows and columns are cells: they can't be wall")
        for letter in "SE":
            if blocks.count(letter) != 1:
                raise ValueError(f"need exactly one {letter}, got {blocks.count(letter)}")
            if letter not in self.cells:
                raise ValueError(f"{letter} must be on a cell, not between two")

    @property
    def size(self) -> int:
        """Cells a side."""
        return len(self.layout) // 2

    @functools.cached_property
    def cells(self) -> str:
        """The blocks of all cells in one string, row by row."""
        return "".join(row[1::2] for row in self.layout[1::2])

    @functools.cached_property
    def start(self) -> int:
        """The cell of S."""
        return self.cells.index("S")

    @functools.cached_property
    def target(self) -> int:
        """The cell of E."""
        return self.cells.index("E")

    @functools.cached_property
    def passages(self) -> tuple[dict[str, int], ...]:
        """For every cell: action -> the cell it leads to, steps into walls left out."""
        rows, n = self.layout, self.size
        return tuple(
            {
                action: near
                for action, near in beside.items()
                # The side lies halfway between the blocks of both cells.
                if rows[cell // n + near // n + 1][cell % n + near % n + 1] != "#"
            }
            for cell, beside in enumerate(neighbours(n))
        )

    def move(self, cell: int, action: str) -> tuple[int, bool]:
        """(the cell after a step, whether it was legal). Into a wall: stays, illegal."""
        after = self.passages[cell].get(action)
        if after is None:
            if action not in ACTIONS:
                raise ValueError(f"unknown action {action!r}: expected one of {ACTIONS}")
            return cell, False
        return after, True

    def trail(self, actions: Sequence[str]) -> tuple[tuple[int, int], ...]:
        """(row, column) of the blocks that a path from the start covers, in order.

        Raises:
          ValueError: a step into a wall.
        """
        cell, n = self.start, self.size
        blocks = [(2 * (cell // n) + 1, 2 * (cell % n) + 1)]
        for number, action in enumerate(actions, 1):
            after, legal = self.move(cell, action)
            if not legal:
                raise ValueError(f"step {number}, {action}, runs into a wall")
            blocks.append((cell // n + after // n + 1, cell % n + after % n + 1))
            blocks.append((2 * (after // n) + 1, 2 * (after % n) + 1))
            cell = after
        return tuple(blocks)


# --- generation --------------------------------------------------------------------------------


def build(size: int, open_sides: Set[Side], start: int, target: int, algorithm: str = "") -> Maze:
    """A maze from the pairs of cells, lower one first, between which there is no wall."""
    side = 2 * size + 1
    blocks = ["#"] * side**2
    for cell in range(size * size):
        blocks[(2 * (cell // size) + 1) * side + 2 * (cell % size) + 1] = " "
    for a, b in open_sides:
        blocks[(a // size + b // size + 1) * side + a % size + b % size + 1] = " "
    for cell, letter in ((start, "S"), (target, "E")):
        blocks[(2 * (cell // size) + 1) * side + 2 * (cell % size) + 1] = letter
    text = "".join(blocks)
    return Maze(tuple(text[i : i + side] for i in range(0, side**2, side)), algorithm)


def draw(size: int, algorithm: str, rng: random.Random) -> Maze:
    """A random maze, its start and end drawn evenly; it may have no solution.

    Raises:
      ValueError: a size under 2, or an unknown algorithm.
    """
    if size < 2:
        raise ValueError(f"sizes are at least 2, to hold a start and an end; got {size}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}: expected one of {tuple(ALGORITHMS)}")
    open_sides = ALGORITHMS[algorithm].carve(size, rng)
    return build(size, open_sides, *rng.sample(range(size * size), 2), algorithm)


def generate(
    seed: int,
    count: int,
    sizes: Sequence[int] = (3, 4, 5),
    weights: Sequence[float] | None = None,
    algorithms: Sequence[str] = IN_DOMAIN,
    exclude: frozenset[str] = frozenset(),
    min_steps: int = 1,
) -> list[Maze]:
    """Random solvable mazes, no two alike, none out of `exclude`.

    Args:
      seed: the same seed gives the same mazes.
      count: how many.
      sizes: to draw from, in cells a side.
      weights: of the sizes; None draws in proportion to the number of cells.
      algorithms: to draw from, out of `ALGORITHMS`.
      exclude: keys that must not appear.
      min_steps: shortest path's least length.

    Raises:
      ValueError: a size under 2, `min_steps` under 1, an unknown algorithm, or, after 1,000
        misses in a row, the wanted mazes seem not to exist.
    """
    if min_steps < 1:
        raise ValueError(f"min_steps must be at least 1, got {min_steps}")
    rng = random.Random(seed)
    weights = [n * n for n in sizes] if weights is None else weights
    mazes: list[Maze] = []
    seen, misses = set(exclude), 0
    while len(mazes) < count:
        maze = draw(rng.choices(sizes, weights)[0], rng.choice(algorithms), rng)
        if maze.shortest < min_steps or maze.key in seen:
            misses += 1
            if misses > 1000:
                raise ValueError(
                    f"only {len(mazes)} of {count} mazes found at sizes {list(sizes)} with at "
                    f"least {min_steps} steps: ask for fewer, or for larger sizes"
                )
            continue
        misses = 0
        seen.add(maze.key)
        mazes.append(maze)
    return mazes


# --- splits --------------------------------------------------------------------------------------


def bucket_of(key: str) -> str:
    """The one of `SPLITS` to which contents of that key belong, however they are drawn."""
    share = int(key[:8], 16) / 16**8
    for split, part in SPLITS.items():
        if share < part:
            return split
        share -= part
    return split


def shifts(maze: Maze, style: Style) -> tuple[str, ...]:
    """What of a maze and its look is held out, of "size", "algorithm" and "style"."""
    algorithm = ALGORITHMS.get(maze.algorithm)
    held_out = {
        "size": maze.size > LARGEST,
        "algorithm": algorithm is not None and algorithm.held_out,
        "style": style.held_out,
    }
    return tuple(name for name, is_so in held_out.items() if is_so)


def split_of(maze: Maze, style: Style) -> str | None:
    """The split that a maze in that look may be in; None: no split.

    "train" and "test_id" hold nothing that is held out, "test_ood" something in every example.
    """
    bucket = bucket_of(maze.key)
    return bucket if bool(shifts(maze, style)) == (bucket == "test_ood") else None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What generated mazes are like.

    Attributes:
      sizes: to draw from, in 2 .. LARGEST.
      held_out_sizes: of "test_ood", above LARGEST.
      min_steps: shortest path's least length.
      styles: names of styles to draw from, held-out ones for "test_ood"; empty: all.

    Raises:
      ValueError: sizes on the wrong side of LARGEST, unknown styles, or none of either kind.
    """

    sizes: tuple[int, ...] = (3, 4, 5)
    held_out_sizes: tuple[int, ...] = (6, 7)
    min_steps: int = 2
    styles: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 2 or max(self.sizes) > LARGEST:
            raise ValueError(f"sizes must be in 2 .. {LARGEST}, got {self.sizes}")
        if not self.held_out_sizes or min(self.held_out_sizes) <= LARGEST:
            raise ValueError(f"held_out_sizes must be above {LARGEST}, got {self.held_out_sizes}")
        unknown = sorted(set(self.styles) - {style.name for style in STYLES})
        if unknown:
            raise ValueError(f"unknown styles {unknown}")
        if not self.styles_of(False) or not self.styles_of(True):
            raise ValueError(f"styles must name some of both kinds, got {self.styles}")

    def styles_of(self, held_out: bool) -> list[Style]:
        """The styles to draw from for what is held out, or is not."""
        wanted = self.styles or [style.name for style in STYLES]
        return [s for s in STYLES if s.name in wanted and s.held_out == held_out]


class Example(NamedTuple):
    """A maze and how it is drawn: `render.mazes.render(*example)`."""

    maze: Maze
    style: Style


# What an example of "test_ood" has held out: each thing alone, and all at once.
_SHIFTED = (("size",), ("algorithm",), ("style",), ("size", "algorithm", "style"))


def example(
    seed: int,
    split: str,
    index: int,
    settings: Settings = Settings(),
    style: Style | None = None,
) -> Example:
    """The example at a place of an endless, random-access sequence: the same at every call.

    Two places may hold the same maze, which small sizes make likely; two splits never do.

    Args:
      seed: of the sequence.
      split: "train", "test_id" (unseen mazes) or "test_ood" (unseen mazes with a held-out size,
        algorithm or style, or all three, as often each; `shifts` says which).
      index: from 0.
      settings: what the mazes are like.
      style: the look, in place of a drawn one; "test_ood" then holds out what is left to hold out.

    Raises:
      ValueError: an unknown split, a held-out style for another split than "test_ood", or settings
        that allow no maze.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {tuple(SPLITS)}")
    rng = random.Random(f"maze {seed} {split} {index}")
    choices = _SHIFTED if split == "test_ood" else [()]
    if style is not None:
        choices = [choice for choice in choices if ("style" in choice) == style.held_out]
    if not choices:
        raise ValueError(f"style {style.name!r} is held out: {split!r} can't be drawn in it")
    shifted = rng.choice(choices)
    sizes = settings.held_out_sizes if "size" in shifted else settings.sizes
    wanted = "algorithm" in shifted
    algorithms = [name for name, a in ALGORITHMS.items() if a.held_out == wanted]
    drawn = rng.choice(settings.styles_of("style" in shifted))
    for _ in range(10_000):
        size = rng.choices(sizes, [n * n for n in sizes])[0]
        maze = draw(size, rng.choice(algorithms), rng)
        if maze.shortest >= settings.min_steps and bucket_of(maze.key) == split:
            return Example(maze, style or drawn)
    raise ValueError(f"10,000 mazes in a row had no place in {split!r}: {settings}")
