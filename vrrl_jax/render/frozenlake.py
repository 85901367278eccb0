"""Pictures of FrozenLake maps, composed from Gymnasium's own sprites.

A picture is a gather from a table of finished tiles (what lies on a cell x which half-segments of
a path cross it x whether the path ends there), so drawing costs microseconds and no window system.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vrrl_jax.data.frozenlake import ACTIONS, Map

SPRITE_CELL = 64  # Gymnasium's cell in rgb_array mode, up to 8 x 8 cells
BORDER = (180, 200, 230)
# Half-segments out of a cell's centre, as bits, in the order of ACTIONS.
DIRECTIONS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (x, y)
KINDS = "FHGS"
LINE_ALPHA = 0.6
RED, BLACK, YELLOW = (230, 30, 30), (0, 0, 0), (255, 215, 0)
SUPERSAMPLE = 8


def render(map: Map, actions: Sequence[str] | None = None, cell: int = SPRITE_CELL) -> np.ndarray:
    """Draws a map, with the elf on its start, and optionally a proposed path over it.

    The path is a red line with a black outline, half transparent, with a star where it ends. It
    follows every proposed step: through holes, and off the grid, where the elf stays and the line
    leaves the picture.

    Args:
      map: the map.
      actions: names out of `ACTIONS`; None draws no path, an empty one a star on the start.
      cell: pixels of a cell's side. At 64 the bare map equals what Gymnasium's FrozenLake-v1
        renders, pixel for pixel.

    Returns:
      uint8 [size * cell, size * cell, 3].

    Raises:
      ValueError: an unknown action, or a cell under 4 pixels.
    """
    n = map.size
    kinds = np.array([[KINDS.index(c) for c in row] for row in map.layout])
    segments, star = np.zeros(n * n, np.intp), np.zeros(n * n, np.intp)
    if actions is not None:
        at = map.start
        for action in actions:
            direction = _direction(action)
            segments[at] |= 1 << direction
            after, _ = map.move(at, action)
            if after != at:
                segments[after] |= 1 << (direction ^ 2)
            at = after
        star[at] = 1
    tiles = _table(cell)[kinds, segments.reshape(n, n), star.reshape(n, n)]
    return tiles.transpose(0, 2, 1, 3, 4).reshape(n * cell, n * cell, 3)


def _direction(action: str) -> int:
    try:
        return ACTIONS.index(action)
    except ValueError:
        raise ValueError(f"unknown action {action!r}: expected one of {ACTIONS}") from None


@functools.lru_cache(maxsize=8)
def _table(cell: int) -> np.ndarray:
    """uint8 [kinds, 16 segment sets, 2, cell, cell, 3]."""
    if cell < 4:
        raise ValueError(f"a cell of {cell} pixels shows nothing: use at least 4, better 14")
    tiles = [_tile(kind).resize((cell, cell), Image.LANCZOS) for kind in KINDS]
    bases = np.stack([np.asarray(tile, np.float32) for tile in tiles])
    table = np.empty((len(KINDS), 16, 2, cell, cell, 3), np.uint8)
    for segments in range(16):
        for star in range(2):
            overlay = path_overlay(cell, segments, bool(star))
            alpha = overlay[..., 3:] / 255.0
            table[:, segments, star] = np.rint(bases * (1 - alpha) + overlay[..., :3] * alpha)
    table.setflags(write=False)
    return table


def _tile(kind: str) -> Image.Image:
    """A finished cell at Gymnasium's size: ice, what lies on it, the border, the elf."""
    tile = _sprite("ice").convert("RGB")
    names = {"H": "hole", "G": "goal", "S": "stool"}
    if kind in names:
        tile = _blit(tile, _sprite(names[kind]))
    ImageDraw.Draw(tile).rectangle((0, 0, SPRITE_CELL - 1, SPRITE_CELL - 1), outline=BORDER)
    if kind == "S":
        tile = _blit(tile, _sprite("elf_down"))
    return tile


def _blit(below: Image.Image, sprite: Image.Image) -> Image.Image:
    """Alpha blending in SDL's integers: d + ((s - d) * a + s >> 8), opaque pixels copied."""
    d = np.asarray(below, np.int32)
    s, a = np.split(np.asarray(sprite, np.int32), [3], -1)
    mixed = d + ((s - d) * a + s >> 8)
    return Image.fromarray(np.where(a == 255, s, np.where(a == 0, d, mixed)).astype(np.uint8))


def _sprite(name: str) -> Image.Image:
    """A sprite of the installed Gymnasium, enlarged as pygame does it: nearest neighbour."""
    folder = importlib.resources.files("gymnasium") / "envs" / "toy_text" / "img"
    try:
        with (folder / f"{name}.png").open("rb") as file:
            image = Image.open(file).convert("RGBA")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no {name}.png: this Gymnasium draws FrozenLake with other art. "
            'Install one that has the elf: pip install "gymnasium<1.4"'
        ) from None
    return image.resize((SPRITE_CELL, SPRITE_CELL), Image.NEAREST)


def path_overlay(cell: int, segments: int, star: bool) -> np.ndarray:
    """float32 [cell, cell, 4]: the path's part on a cell, antialiased by supersampling."""
    if not segments and not star:
        return np.zeros((cell, cell, 4), np.float32)
    side = cell * SUPERSAMPLE
    centre, red, black = side / 2, side * 0.055, side * 0.095
    colour = Image.new("RGB", (side, side), BLACK)
    mask = Image.new("L", (side, side), 0)
    paint, cover = ImageDraw.Draw(colour), ImageDraw.Draw(mask)
    for half, ink in ((black, None), (red, RED)):
        for i, (dx, dy) in enumerate(DIRECTIONS):
            if segments >> i & 1:
                ends = sorted([(centre, centre), (centre + dx * side, centre + dy * side)])
                (x0, y0), (x1, y1) = ends
                box = (x0 - half, y0 - half, x1 + half, y1 + half)
                if ink is None:
                    cover.rectangle(box, fill=round(255 * LINE_ALPHA))
                else:
                    paint.rectangle(box, fill=ink)
    if star:
        for radius, ink in ((side * 0.28, BLACK), (side * 0.21, YELLOW)):
            points = [
                (
                    centre + r * math.sin(math.pi * i / 5),
                    centre - r * math.cos(math.pi * i / 5),
                )
                for i in range(10)
                for r in (radius if i % 2 == 0 else radius * 0.5,)
            ]
            paint.polygon(points, fill=ink)
            cover.polygon(points, fill=round(255 * 0.75))
    rgba = np.dstack([np.asarray(colour, np.float32), np.asarray(mask, np.float32)])
    weight = rgba[..., 3:]
    blocks = (cell, SUPERSAMPLE, cell, SUPERSAMPLE)
    total = weight.reshape(*blocks, 1).mean((1, 3))
    mean = (rgba[..., :3] * weight).reshape(*blocks, 3).mean((1, 3)) / np.maximum(total, 1e-6)
    return np.concatenate([mean, total], -1)
