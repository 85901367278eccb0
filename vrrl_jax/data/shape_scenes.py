"""Scenes of drawn shapes: what lies in which cell of a grid, on which ground.

Whole pixels, x to the right and y down from the top left corner; rows and columns from 0. An item
lies inside its own cell, so that no two of them touch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Iterable, Sequence

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
Pair = tuple[str, str]  # (shape, colour)

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS: dict[str, Colour] = {
    "red": (215, 25, 30),
    "orange": (255, 135, 0),
    "yellow": (225, 200, 0),
    "green": (20, 140, 45),
    "blue": (25, 70, 215),
    "purple": (135, 45, 165),
    "pink": (255, 95, 175),
    "black": (20, 20, 20),
}


@dataclasses.dataclass(frozen=True)
class Background:
    """What items lie on.

    Attributes:
      name: unique among `BACKGROUNDS`.
      colours: one for a plain ground, two for a pattern.
      pattern: "plain", "stripes" (level) or "checks".
      held_out: whether only "test_ood" may show it.
    """

    name: str
    colours: tuple[Colour, ...]
    pattern: str = "plain"
    held_out: bool = False


BACKGROUNDS: dict[str, Background] = {
    ground.name: ground
    for ground in (
        Background("white", ((252, 252, 252),)),
        Background("grey", ((205, 205, 205),)),
        Background("sky", ((208, 228, 246),)),
        Background("mint", ((212, 240, 218),)),
        Background("lines", ((250, 250, 250), (228, 228, 228)), "stripes"),
        Background("lilac", ((226, 214, 240),), held_out=True),
        Background("sand", ((240, 226, 204),), held_out=True),
        Background("tiles", ((246, 240, 232), (220, 226, 226)), "checks", held_out=True),
    )
}


# Only "test_ood" may show these shapes in these colours: one colour of each shape, in turn.
HELD_OUT: frozenset[Pair] = frozenset(zip(SHAPES, ("red", *reversed(COLOURS)), strict=False))


def plural(shape: str) -> str:
    """Several of a shape."""
    return shape + ("es" if shape.endswith("s") else "s")


@dataclasses.dataclass(frozen=True)
class Item:
    """A drawn shape.

    Attributes:
      shape: out of `SHAPES`.
      colour: out of `COLOURS`.
      row, column: its cell.
      size: sides of the square that it is drawn in, in pixels.
      at: (x, y) of that square's top left pixel.
    """

    shape: str
    colour: str
    row: int
    column: int
    size: int
    at: tuple[int, int]

    @property
    def pair(self) -> Pair:
        return self.shape, self.colour

    @property
    def name(self) -> str:
        """ "red star"."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
      side: of the picture, in pixels.
      grid: (rows, columns).
      background: a name of `BACKGROUNDS`.
      items: in reading order, at most one a cell.

    Raises:
      ValueError: two items in a cell, an item outside of its cell, or an unknown name.
    """

    side: int
    grid: tuple[int, int]
    background: str
    items: tuple[Item, ...]

    def __post_init__(self):
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background {self.background!r}")
        cells = [(item.row, item.column) for item in self.items]
        if cells != sorted(set(cells)):
            raise ValueError(f"items need cells of their own, in reading order, got {cells}")
        for item in self.items:
            if item.shape not in SHAPES or item.colour not in COLOURS:
                raise ValueError(f"there is no {item.name}")
            left, top, right, bottom = cell_box(self.side, self.grid, item.row, item.column)
            (x, y), size = item.at, item.size
            if not (left <= x and x + size <= right and top <= y and y + size <= bottom):
                raise ValueError(f"the {item.name} at {item.at} leaves its cell")

    @functools.cached_property
    def key(self) -> str:
        """SHA-1 of which shapes lie where, in which colours and sizes.

        The ground and the place inside of a cell don't count: scenes that differ by these alone
        stay in one split.
        """
        return content_key((self.grid, [(*i.pair, i.row, i.column, i.size) for i in self.items]))


def content_key(content) -> str:
    """SHA-1, hex, of what JSON can write."""
    return hashlib.sha1(json.dumps(content).encode()).hexdigest()


def cell_box(side: int, grid: tuple[int, int], row: int, column: int) -> Box:
    """Pixels of a cell, half-open.

    Raises:
      ValueError: there is no such cell.
    """
    rows, columns = grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"there is no cell ({row}, {column}) in {rows} x {columns}")
    return (
        column * side // columns,
        row * side // rows,
        (column + 1) * side // columns,
        (row + 1) * side // rows,
    )


def place(
    rng: random.Random,
    pairs: Sequence[Pair],
    side: int,
    grid: tuple[int, int],
    sizes: tuple[int, int],
    background: str,
) -> Scene:
    """Puts shapes into random cells, at random places of them.

    Args:
      pairs: (shape, colour) of each, at most as many as there are cells.
      side, grid, background: see `Scene`.
      sizes: least and most size; what is too large for a cell is as large as its cell.
    """
    cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    if len(pairs) > len(cells):
        raise ValueError(f"{len(pairs)} shapes don't fit into {len(cells)} cells")
    items = []
    for (row, column), (shape, colour) in zip(rng.sample(cells, len(pairs)), pairs, strict=True):
        left, top, right, bottom = cell_box(side, grid, row, column)
        # A pixel of ground stays around the square, so neighbours never touch.
        room = min(right - left, bottom - top) - 2
        size = min(rng.randint(*sizes), room)
        x = rng.randint(left + 1, right - 1 - size)
        y = rng.randint(top + 1, bottom - 1 - size)
        items.append(Item(shape, colour, row, column, size, (x, y)))
    return Scene(side, grid, background, reading_order(items))


def reading_order(items: Iterable[Item]) -> tuple[Item, ...]:
    """Row by row, from the left."""
    return tuple(sorted(items, key=lambda item: (item.row, item.column)))


# --- what is where -----------------------------------------------------------------------------


def region(grid: tuple[int, int], row: int, column: int) -> str:
    """Where a cell is, as "top left", "right" or "middle"; the middle is the odd row or column."""

    def third(place: int, count: int, names: tuple[str, str, str]) -> str:
        return names[0 if 2 * place + 1 < count else 1 if 2 * place + 1 == count else 2]

    words = (
        third(row, grid[0], ("top", "", "bottom")),
        third(column, grid[1], ("left", "", "right")),
    )
    return " ".join(filter(None, words)) or "middle"


def only(items: Sequence[Item]) -> Item:
    """The one item. ValueError: there are none or several."""
    if len(items) != 1:
        raise ValueError(f"{len(items)} items answer the question")
    return items[0]


def with_shape(scene: Scene, shape: str) -> list[Item]:
    """The items of a shape, in reading order."""
    return [item for item in scene.items if item.shape == shape]


def matches(item: Item, by: str, name: str) -> bool:
    """Whether an item has that shape (by "shape") or that colour (by "colour")."""
    return (item.shape if by == "shape" else item.colour) == name
