"""What charts are drawn with: boxes, masks, texts, lines and sectors, and where free room is.

Shapes are drawn without half-covered pixels, so a mark's box is exactly the pixels it fills.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vrrl_jax.render.chart_styles import Style
from vrrl_jax.render.table_styles import Colour
from vrrl_jax.render.tables import Box, Text, text_mask

Point = tuple[float, float]


class Sheet(NamedTuple):
    """A picture in the making; all but `style` is written to.

    Attributes:
      style: how it is drawn.
      image: uint8 [height, width, 3].
      taken: bool [height, width]: pixels that a text or a mark covers.
      boxes: kind -> key -> half-open box.
      points: likewise, (x, y) where the picture's corner is (0, 0) and a pixel is 1 wide.
      paint: (kind, key) -> colour that replaces the theme's; what is used is taken out.
    """

    style: Style
    image: np.ndarray
    taken: np.ndarray
    boxes: dict[str, dict[Hashable, Box]]
    points: dict[str, dict[Hashable, Point]]
    paint: dict[tuple[str, Hashable], Colour]


def words(style: Style, text: str, bold: bool = False) -> Text:
    """A line of text in the style's size."""
    return text_mask(text, style.size, bold)


@functools.lru_cache(maxsize=64)
def line_height(size: int) -> tuple[int, int]:
    """(pixels above, below the baseline) of a line of letters and numbers."""
    text = text_mask("Hg$(", size, False)
    return -text.top, text.top + text.mask.shape[0]


def width_of(style: Style, text: str) -> int:
    return words(style, text).mask.shape[1]


# --- marks ---------------------------------------------------------------------------------------


def fill(sheet: Sheet, kind: str, key: Hashable, box: Box, colour: Colour, taken=True) -> None:
    """A filled rectangle; its box is noted."""
    x0, y0, x1, y1 = box
    sheet.image[y0:y1, x0:x1] = sheet.paint.pop((kind, key), colour)
    sheet.taken[y0:y1, x0:x1] |= taken
    sheet.boxes.setdefault(kind, {})[key] = box


def rule(sheet: Sheet, box: Box, colour: Colour) -> None:
    """A straight line of an axis or a grid, of which no box is noted."""
    x0, y0, x1, y1 = box
    sheet.image[y0:y1, x0:x1] = colour


def stamp(
    sheet: Sheet, kind: str, key: Hashable, mask: np.ndarray, at: tuple[int, int], colour: Colour
) -> None:
    """Fills where bool [h, w] is set, its corner at (x, y); the box of what is set is noted."""
    x, y = at
    ys, xs = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    box = x + int(xs[0]), y + int(ys[0]), x + int(xs[-1]) + 1, y + int(ys[-1]) + 1
    sheet.boxes.setdefault(kind, {})[key] = box
    shade(sheet, mask, at, sheet.paint.pop((kind, key), colour))


def shade(sheet: Sheet, mask: np.ndarray, at: tuple[int, int], colour: Colour, taken=True) -> None:
    """Fills where bool [h, w] is set, its corner at (x, y); nothing is noted."""
    part = slice(at[1], at[1] + mask.shape[0]), slice(at[0], at[0] + mask.shape[1])
    sheet.image[part][mask] = colour
    if taken:
        sheet.taken[part] |= mask


def write(
    sheet: Sheet, kind: str, key: Hashable, text: Text, at: tuple[int, int], ink: Colour
) -> None:
    """A text whose ink has its top left corner at (x, y), over whatever is there."""
    if not text.mask.size:
        return
    (x, y), (h, w) = at, text.mask.shape
    ink = sheet.paint.pop((kind, key), ink)
    share = text.mask[..., None] / np.float32(255)
    part = sheet.image[y : y + h, x : x + w]
    part[:] = np.rint(part * (1 - share) + np.array(ink, np.float32) * share)
    sheet.taken[y : y + h, x : x + w] = True
    sheet.boxes.setdefault(kind, {})[key] = (x, y, x + w, y + h)


def baseline(top: int, bottom: int, size: int) -> int:
    """The baseline of a line of text in the middle between two rows."""
    above, below = line_height(size)
    return (top + bottom - above - below + 1) // 2 + above


@functools.lru_cache(maxsize=64)
def marker(shape: str, radius: int) -> np.ndarray:
    """bool [2r + 1, 2r + 1]: a disc, square or diamond that reaches all four sides."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    inside = {
        "disc": x * x + y * y <= (radius + 0.4) ** 2,
        "square": (abs(x) < radius + 1) & (abs(y) < radius + 1),
        "diamond": abs(x) + abs(y) <= radius,
    }[shape]
    inside.setflags(write=False)
    return inside


def radius(style: Style) -> int:
    """Of a point's marker, in pixels beside its middle one."""
    return max(2, round(style.size * 0.27))


def spot(sheet: Sheet, kind: str, key: Hashable, x: int, y: int, colour: Colour) -> None:
    """A point's marker in the middle of pixel (x, y)."""
    r = radius(sheet.style)
    stamp(sheet, kind, key, marker(sheet.style.marker, r), (x - r, y - r), colour)
    sheet.points.setdefault(kind, {})[key] = (x + 0.5, y + 0.5)


def polyline(box: Box, points: Sequence[tuple[int, int]], width: int) -> np.ndarray:
    """bool [h, w] of a box: a line through pixels of the picture."""
    return _drawn(box, points, lambda draw, at: draw.line(at, fill=1, width=width))


def polygon(box: Box, points: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [h, w] of a box: the area within pixels of the picture."""
    return _drawn(box, points, lambda draw, at: draw.polygon(at, fill=1))


def _drawn(box: Box, points, draw) -> np.ndarray:
    x0, y0, x1, y1 = box
    canvas = Image.new("L", (x1 - x0, y1 - y0))
    draw(ImageDraw.Draw(canvas), [(x - x0, y - y0) for x, y in points])
    return np.asarray(canvas) > 0


def sectors(radius: int, hole: int, turn: float, shares: Iterable[float]) -> np.ndarray:
    """int [2r, 2r]: which share's sector each pixel is in, clockwise from `turn`; -1: none."""
    y, x = np.mgrid[0 : 2 * radius, 0 : 2 * radius] + 0.5 - radius
    turns = (np.arctan2(x, -y) / (2 * math.pi) - turn) % 1.0
    ends = np.cumsum(list(shares))
    where = np.searchsorted(ends / ends[-1], turns, side="right").clip(max=len(ends) - 1)
    distance = x * x + y * y
    where[(distance > radius**2) | (distance < hole**2)] = -1
    return where


# --- room ----------------------------------------------------------------------------------------


def room(sheet: Sheet, within: Box, at: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The corner (x, y) of a label of (width, height) near a marker, over as little as can be.

    Above, below, right and left are tried, close by and further off, then slantwise; the first
    free place inside of `within` is taken, else the one that covers the fewest pixels.
    """
    (x, y), (w, h), r = at, size, radius(sheet.style)
    best, least = None, math.inf
    for off in (r + 3, r + 6, r + 10, r + 15):
        for dx, dy in ((0, -1), (0, 1), (1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1)):
            left = x - w // 2 if dx == 0 else x + off if dx > 0 else x - off - w + 1
            top = y - h // 2 if dy == 0 else y + off if dy > 0 else y - off - h + 1
            # One that would stick out is moved in: over the marker it counts as covered.
            left = min(max(left, within[0] + 1), within[2] - 1 - w)
            top = min(max(top, within[1] + 1), within[3] - 1 - h)
            covered = int(sheet.taken[top - 1 : top + h + 1, left - 1 : left + w + 1].sum())
            if covered < least:
                best, least = (left, top), covered
            if not covered:
                return best
    return best
