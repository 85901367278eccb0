"""Pictures of mazes in several looks, some of them held out, with proposed paths over them.

A maze is a grid of blocks (`Maze.layout`); a look says how wide the wall blocks are and what
colour each block has. A path is rectangles blended over the finished picture.

What is held out is drawn for the out-of-distribution split alone, so it must stay marked here: a
policy trained on it would make that split say nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrrl_jax.data.frozenlake import ACTIONS
from vrrl_jax.render.frozenlake import DIRECTIONS, RED, path_overlay

if TYPE_CHECKING:
    from vrrl_jax.data.mazes import Example, Maze

Colour = tuple[int, int, int]

SMALLEST = 6  # pixels of a cell's side
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
LINE_ALPHA = 0.8
_SUPERSAMPLE = 8


@dataclasses.dataclass(frozen=True)
class Style:
    """A look. Start is some green and end some red in every one, so one question fits all.

    Attributes:
      name: unique among `STYLES`.
      floor: colour of cells and of open sides.
      wall: colour of walls.
      thickness: of walls, as a share of a cell's pitch; None: as wide as the cells between them.
      marks: how start and end are marked: their cell filled, a disc and a ring, or S and E.
      start, end: colours of the marks.
      trail: colour of a path that belongs to the question.
      tint: colour of every second cell; None: `floor`.
      grid: colour of the sides between cells where no wall is; None: `floor`.
      held_out: whether only the out-of-distribution split may draw it.
    """

    name: str
    floor: Colour = WHITE
    wall: Colour = BLACK
    thickness: float | None = 0.08
    marks: Literal["block", "disc", "letter"] = "block"
    start: Colour = (0, 170, 60)
    end: Colour = (225, 25, 25)
    trail: Colour = (40, 90, 235)
    tint: Colour | None = None
    grid: Colour | None = None
    held_out: bool = False


SPATIALEVAL = Style("spatialeval", thickness=None, start=(0, 190, 0), end=(255, 0, 0))
STYLES: tuple[Style, ...] = (
    SPATIALEVAL,
    Style("lines", marks="letter"),
    Style("grid", wall=(20, 35, 110), thickness=0.1, grid=(205, 212, 228)),
    Style(
        "dark",
        floor=(26, 28, 36),
        wall=(205, 208, 216),
        thickness=0.1,
        marks="disc",
        start=(60, 215, 110),
        end=(255, 75, 75),
        trail=(80, 140, 255),
    ),
    Style("colour", floor=(255, 244, 214), wall=(20, 120, 130), thickness=0.2, marks="disc"),
    Style("wood", floor=(240, 224, 190), wall=(120, 72, 30), thickness=0.34, marks="letter"),
    Style(
        "stone",
        floor=(222, 220, 214),
        wall=(112, 110, 108),
        thickness=None,
        marks="disc",
        tint=(200, 197, 188),
        held_out=True,
    ),
    Style(
        "neon",
        floor=BLACK,
        wall=(0, 225, 235),
        thickness=0.06,
        marks="letter",
        start=(80, 255, 80),
        end=(255, 80, 80),
        trail=(110, 110, 255),
        held_out=True,
    ),
    Style(
        "blueprint",
        floor=(24, 70, 150),
        wall=WHITE,
        thickness=0.14,
        start=(50, 205, 90),
        end=(235, 50, 50),
        trail=(150, 200, 255),
        grid=(62, 104, 176),
        held_out=True,
    ),
)


def style(name: str) -> Style:
    """The style of that name; KeyError where there is none."""
    return {style.name: style for style in STYLES}[name]


def render(
    maze: Maze,
    style: Style = SPATIALEVAL,
    actions: Sequence[str] | None = None,
    cell: int = 28,
    trail: Sequence[str] = (),
) -> np.ndarray:
    """Draws a maze, and optionally a proposed path over it.

    The path is a red line with an outline that stands off the floor, with a star where it ends.
    A step into a wall runs up to that wall and ends in a short bar along it: the walker stays, and
    the next step starts where it was.

    Args:
      maze: the maze.
      style: how it looks.
      actions: names out of `ACTIONS`; None draws no path, an empty one a star on the start.
      cell: pixels of a cell's pitch, the outer walls' share included.
      trail: steps of a path that is part of the maze's picture: what it covers is filled.

    Returns:
      uint8 [size * cell, size * cell, 3].

    Raises:
      ValueError: an unknown action, a trail through a wall, or a cell under `SMALLEST` pixels.
    """
    if cell < SMALLEST:
        raise ValueError(f"a cell of {cell} pixels shows nothing: use {SMALLEST}, better 14")
    place = _place(maze.size, cell, style.thickness)
    blocks = _blocks(maze, style, trail)[place.block][:, place.block]
    picture = _palette(style).take(blocks, axis=0)
    if style.marks != "block":
        for at, colour, role in ((maze.start, style.start, "S"), (maze.target, style.end, "E")):
            (top, bottom), (left, right) = place.spans[at // maze.size], place.spans[at % maze.size]
            mark = _mark(style.marks, role, colour, bottom - top, right - left)
            _stamp(picture, mark, top, left)
    if actions is not None:
        _draw_path(picture, maze, style, actions, place)
    return picture


def render_example(
    example: Example, actions: Sequence[str] | None = None, cell: int = 28
) -> np.ndarray:
    """`render` of a maze in its own style, called as `render.frozenlake.render` is."""
    return render(example.maze, example.style, actions, cell)


# --- the bare maze -------------------------------------------------------------------------------

# What a block may be; the index of its colour.
_FLOOR, _WALL, _START, _END, _TRAIL, _TINT, _GRID = range(7)


@functools.lru_cache(maxsize=64)
def _palette(style: Style) -> np.ndarray:
    """uint8 [7, 3], in the order of the kinds of block."""
    filled = style.marks == "block"
    start, end = (style.start, style.end) if filled else (style.floor, style.floor)
    tint, grid = style.tint or style.floor, style.grid or style.floor
    return np.array([style.floor, style.wall, start, end, style.trail, tint, grid], np.uint8)


class _Place(NamedTuple):
    """Where things are, in pixels, across and down alike.

    Attributes:
      block: intp [side], the row or column of blocks that a pixel lies in.
      spans: of each row or column of cells, its first pixel and the one after its last.
      cell: pixels of a pitch.
    """

    block: np.ndarray
    spans: tuple[tuple[int, int], ...]
    cell: int


@functools.lru_cache(maxsize=64)
def _place(n: int, cell: int, thickness: float | None) -> _Place:
    """Walls of equal width, cells share the rest; bounds are rounded, so both vary by a pixel."""
    side = n * cell
    wall = side / (2 * n + 1) if thickness is None else max(1, round(thickness * cell))
    wide = (side - (n + 1) * wall) / n
    # Halves go up throughout: to the even neighbour, a wall of a pixel could lose it.
    bounds = np.floor(np.cumsum([0, *[wall, wide] * n, wall]) + 0.5 + 1e-6).astype(int)
    spans = tuple((int(bounds[i]), int(bounds[i + 1])) for i in range(1, 2 * n, 2))
    return _Place(np.repeat(np.arange(2 * n + 1), np.diff(bounds)), spans, cell)


@functools.lru_cache(maxsize=64)
def _open_blocks(n: int) -> np.ndarray:
    """uint8 [2n + 1, 2n + 1]: the kinds of block of a maze without walls."""
    blocks = np.full((2 * n + 1, 2 * n + 1), _GRID, np.uint8)
    blocks[1::2, 1::2] = np.where(np.add.outer(np.arange(n), np.arange(n)) % 2, _TINT, _FLOOR)
    return blocks


def _blocks(maze: Maze, style: Style, trail: Sequence[str]) -> np.ndarray:
    """uint8 [2n + 1, 2n + 1]: what each block is."""
    n = maze.size
    walls = np.frombuffer("".join(maze.layout).encode(), np.uint8) == ord("#")
    walls = walls.reshape(2 * n + 1, 2 * n + 1).copy()
    if style.thickness is not None:
        # Lines meet at corners; where none comes near, there is nothing to draw.
        sides = walls[1:-2:2, 2:-1:2] | walls[3::2, 2:-1:2]
        walls[2:-1:2, 2:-1:2] = sides | walls[2:-1:2, 1:-2:2] | walls[2:-1:2, 3::2]
    blocks = np.where(walls, np.uint8(_WALL), _open_blocks(n))
    for at in maze.trail(trail) if trail else ():
        blocks[at] = _TRAIL
    for at, kind in ((maze.start, _START), (maze.target, _END)):
        if style.marks == "block" or not trail:
            blocks[2 * (at // n) + 1, 2 * (at % n) + 1] = kind
    return blocks


@functools.lru_cache(maxsize=256)
def _mark(kind: str, role: str, colour: Colour, height: int, width: int) -> np.ndarray:
    """float32 [height, width, 4], alpha in 0 .. 1: a disc or ring, or the letter of `role`."""
    high, wide = height * _SUPERSAMPLE, width * _SUPERSAMPLE
    mask = Image.new("L", (wide, high), 0)
    pen, middle, unit = ImageDraw.Draw(mask), (wide / 2, high / 2), min(wide, high)
    if kind == "letter":
        pen.text(
            middle,
            role,
            255,
            ImageFont.load_default(0.9 * unit),
            anchor="mm",
            stroke_width=unit // 40,
        )
    else:
        radii = ((0.36, 255),) if role == "S" else ((0.42, 255), (0.26, 0), (0.13, 255))
        for share, ink in radii:
            pen.circle(middle, share * unit, fill=ink)
    alpha = np.asarray(mask, np.float32) / 255
    alpha = alpha.reshape(height, _SUPERSAMPLE, width, _SUPERSAMPLE).mean((1, 3))
    return np.dstack([np.broadcast_to(np.float32(colour), (height, width, 3)), alpha])


def _stamp(picture: np.ndarray, mark: np.ndarray, top: int, left: int) -> None:
    """Blends [h, w, 4] colours over a part of a picture, in place; what sticks out is cut off."""
    high, wide = picture.shape[0] - top, picture.shape[1] - left
    mark = mark[max(0, -top) : high, max(0, -left) : wide]
    top, left = max(0, top), max(0, left)
    part = picture[top : top + mark.shape[0], left : left + mark.shape[1]]
    part[...] = np.rint(part + (mark[..., :3] - part) * mark[..., 3:])


# --- a proposed path -----------------------------------------------------------------------------


def _draw_path(
    picture: np.ndarray, maze: Maze, style: Style, actions: Sequence[str], place: _Place
) -> None:
    """Blends a path and its star over a picture, in place."""
    width, edge = max(2, round(0.11 * place.cell)), max(1, round(0.04 * place.cell))
    lines, at = _lines(maze, actions, place, width)
    mask = np.zeros(picture.shape[:2], np.uint8)
    for grow, ink in ((edge, 1), (0, 2)):
        for y0, x0, y1, x1 in lines:
            mask[max(0, y0 - grow) : y1 + grow, max(0, x0 - grow) : x1 + grow] = ink
    flat, inks = picture.reshape(-1, 3), mask.reshape(-1)
    where = np.flatnonzero(inks)
    flat[where] = _blends(style.floor)[inks[where, None], flat[where], np.arange(3)]
    (top, bottom), (left, right) = place.spans[at // maze.size], place.spans[at % maze.size]
    # In a narrow corridor the star is smaller, so that it hides no side of its cell.
    unit = min(place.cell, round(1.7 * min(bottom - top, right - left)))
    _stamp(picture, _star(unit), (top + bottom - unit) // 2, (left + right - unit) // 2)


def _lines(
    maze: Maze, actions: Sequence[str], place: _Place, width: int
) -> tuple[list[tuple[int, int, int, int]], int]:
    """(rectangles (y0, x0, y1, x1) of a path's lines, half-open; the cell where it ends)."""
    n, spans, at = maze.size, place.spans, maze.start
    lines: dict[tuple[int, int, int, int], None] = {}  # what is walked again is drawn once

    def middle(track: int) -> int:
        return (spans[track][0] + spans[track][1] - width) // 2

    for action in actions:
        after, legal = maze.move(at, action)
        (y, x), (y2, x2) = ((middle(cell // n), middle(cell % n)) for cell in (at, after))
        if legal:
            lines[min(y, y2), min(x, x2), max(y, y2) + width, max(x, x2) + width] = None
        else:
            for line in _against_wall(action, y, x, spans[at // n], spans[at % n], width):
                lines[line] = None
        at = after
    return list(lines), at


def _against_wall(
    action: str, y: int, x: int, rows: tuple[int, int], columns: tuple[int, int], width: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """A line from the middle of a cell to its wall, and a bar along the wall."""
    dx, dy = DIRECTIONS[ACTIONS.index(action)]
    bar = width  # of bar on either side of the line
    if dx:
        edge = columns[0] if dx < 0 else columns[1] - width
        line = (y, min(x, edge), y + width, max(x, edge) + width)
        return line, (y - bar, edge, y + width + bar, edge + width)
    edge = rows[0] if dy < 0 else rows[1] - width
    line = (min(y, edge), x, max(y, edge) + width, x + width)
    return line, (edge, x - bar, edge + width, x + width + bar)


@functools.lru_cache(maxsize=64)
def _blends(floor: Colour) -> np.ndarray:
    """uint8 [3, 256, 3]: (ink, what lies beneath, channel) -> colour; ink 1 outline, 2 line."""
    outline = WHITE if sum(floor) < 3 * 128 else BLACK
    beneath = np.arange(256.0)[:, None]
    inks = [beneath + (np.array(ink) - beneath) * LINE_ALPHA for ink in (outline, RED)]
    return np.rint([np.broadcast_to(beneath, (256, 3)), *inks]).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _star(unit: int) -> np.ndarray:
    """float32 [unit, unit, 4], alpha in 0 .. 1: the star of a FrozenLake path."""
    star = path_overlay(unit, 0, True)
    star[..., 3] /= 255
    return star
