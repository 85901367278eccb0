"""Pictures of scenes of shapes, with the exact box of every item.

A shape of a size is rasterised once, as how much of each pixel it covers; a picture is its ground
with these blended over it.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from vrrl_jax.data.shape_scenes import BACKGROUNDS, COLOURS, SHAPES, Box, Scene

SUPERSAMPLE = 8
STRIPES = 12  # a patterned ground's, from top to bottom
# Coverage under this is no ink: specks that nobody sees must not widen a box.
FAINT = 32


def render(scene: Scene) -> np.ndarray:
    """Draws a scene: uint8 [side, side, 3]."""
    picture = _ground(scene.background, scene.side).copy()
    for item in scene.items:
        (x, y), size = item.at, item.size
        area = picture[y : y + size, x : x + size]
        cover = _sprite(item.shape, size)[..., None].astype(np.int32)
        ink = np.array(COLOURS[item.colour], np.int32)
        area[:] = (area * (255 - cover) + ink * cover + 127) // 255
    return picture


def boxes(scene: Scene) -> tuple[Box, ...]:
    """(left, top, right, bottom) of each item's ink in whole pixels, half-open."""
    found = []
    for item in scene.items:
        (x, y), (left, top, right, bottom) = item.at, _extent(item.shape, item.size)
        found.append((x + left, y + top, x + right, y + bottom))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _ground(name: str, side: int) -> np.ndarray:
    """uint8 [side, side, 3]."""
    background = BACKGROUNDS[name]
    down, across = np.indices((side, side)) * STRIPES // side
    steps = {"plain": down * 0, "stripes": down, "checks": down + across}[background.pattern]
    ground = np.uint8(background.colours)[steps % len(background.colours)]
    ground.setflags(write=False)
    return ground


@functools.lru_cache(maxsize=4096)
def _sprite(shape: str, size: int) -> np.ndarray:
    """uint8 [size, size]: how much of each pixel a shape covers, 255 being all."""
    if shape not in SHAPES or size < 6:
        raise ValueError(f"a {shape!r} of {size} pixels can't be drawn")
    side = size * SUPERSAMPLE
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            hole = side * 0.27
            draw.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)
    else:
        points = [(x * (side - 1), y * (side - 1)) for x, y in _outline(shape)]
        draw.polygon(points, fill=255)
    cover = np.asarray(mask, np.float32)
    cover = cover.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE).mean((1, 3))
    cover = np.where(cover < FAINT, 0, np.rint(cover)).astype(np.uint8)
    cover.setflags(write=False)
    return cover


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in 0 .. 1, (across, down)."""
    if shape == "square":
        return [(0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)]
    if shape == "triangle":
        return [(0.5, 0.04), (1.0, 0.94), (0.0, 0.94)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)]
    if shape == "cross":
        near, far = 0.33, 0.67
        quarter = [(near, 0.0), (far, 0.0), (far, near)]
        # The same three corners, turned about the centre by a right angle each time.
        points = []
        for _ in range(4):
            points += quarter
            quarter = [(1 - y, x) for x, y in quarter]
        return points
    if shape == "star":
        angles = [math.pi * i / 5 for i in range(10)]
        return [
            (0.5 + r * math.sin(a), 0.53 - r * math.cos(a))
            for i, a in enumerate(angles)
            for r in (0.52 if i % 2 == 0 else 0.22,)
        ]
    # The heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
    points = []
    for i in range(72):
        t = math.tau * i / 72
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + 16 * math.sin(t) ** 3 / 33, 0.44 - y / 31))
    return points


@functools.lru_cache(maxsize=4096)
def _extent(shape: str, size: int) -> Box:
    """Box of the ink in a shape's own square."""
    down, across = np.nonzero(_sprite(shape, size))
    return int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1
