"""A proposed place, drawn on its picture: what the model sees before it revises or commits.

Marks are red with a white edge, so that they show on any ground, and leave open what they stand on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vrrl_jax.coordinates import clip_box, clip_point

Feedback = Literal["marked", "crop", "overlay"]
FEEDBACK = ("marked", "crop", "overlay")
RED = (230, 20, 20)
WHITE = (255, 255, 255)
OVERLAY_ALPHA = 0.5
SUPERSAMPLE = 4


def draw(
    picture: np.ndarray,
    place: Sequence[float],
    feedback: Feedback = "marked",
    crop_size: int = 200,
) -> np.ndarray:
    """Draws a point or a box.

    Args:
      picture: uint8 [H, W, 3]; stays as it is.
      place: a point (x, y), or a box (x1, y1, x2, y2) with its corners in any order, in pixels of
        the picture. What lies outside is drawn at the nearest edge, so that a mark always shows.
      feedback: "marked": a ring around a cross at the point, an outline of the box. "overlay":
        a disc, or the box, filled half transparent. "crop": the mark, and of the picture only a
        square around its centre, moved inside where it would leave the picture.
      crop_size: the square's side in pixels.

    Returns:
      uint8 [H, W, 3]; for "crop" [min(H, crop_size), min(W, crop_size), 3].

    Raises:
      ValueError: another feedback, a crop below one pixel, or neither two nor four coordinates.
    """
    if feedback not in FEEDBACK:
        raise ValueError(f"unknown feedback {feedback!r}: expected one of {FEEDBACK}")
    if crop_size < 1:
        raise ValueError(f"a crop needs at least one pixel, got {crop_size}")
    if len(place) not in (2, 4):
        raise ValueError(f"a place has two or four coordinates, got {len(place)}")
    image = picture.copy()
    height, width = image.shape[:2]
    if len(place) == 2:
        x, y = clip_point(place, (width - 1, height - 1))
        centre = (math.floor(x), math.floor(y))
        _stamp(image, centre, mark_radius(width, height), feedback == "overlay")
    else:
        box = _pixels(place, width, height)
        centre = ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
        _box(image, box, line_width(width, height), feedback == "overlay")
    if feedback != "crop":
        return image
    x, y = (
        min(max(at - crop_size // 2, 0), max(0, side - crop_size))
        for at, side in zip(centre, (width, height), strict=True)
    )
    return np.ascontiguousarray(image[y : y + crop_size, x : x + crop_size])


def mark_radius(width: int, height: int) -> int:
    """Pixels from the centre of a point's mark to its edge."""
    return max(5, round(min(width, height) * 0.025))


def line_width(width: int, height: int) -> int:
    """Pixels of the red line of a box."""
    return max(2, round(min(width, height) * 0.006))


def _pixels(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels that a box touches, half-open, at least one."""
    x1, y1, x2, y2 = clip_box(box, (width, height))
    x1, y1 = min(math.floor(x1), width - 1), min(math.floor(y1), height - 1)
    return x1, y1, max(x1 + 1, math.ceil(x2)), max(y1 + 1, math.ceil(y2))


def _box(image: np.ndarray, box: tuple[int, int, int, int], line: int, filled: bool) -> None:
    x1, y1, x2, y2 = box
    if filled:
        inside = image[y1:y2, x1:x2]
        inside[:] = _mixed(inside, np.float32(OVERLAY_ALPHA))
    # The line stands inside of the box, its pale edge outside: both show where boxes touch.
    for grow, thick, colour in ((1, 1, WHITE), (0, line, RED)):
        a, b = max(0, x1 - grow), max(0, y1 - grow)
        part = image[b : y2 + grow, a : x2 + grow]
        # A side that lies beyond the picture's edge isn't drawn on the edge.
        if y1 >= grow:
            part[:thick] = colour
        if x1 >= grow:
            part[:, :thick] = colour
        if y2 + grow <= image.shape[0]:
            part[-thick:] = colour
        if x2 + grow <= image.shape[1]:
            part[:, -thick:] = colour


def _mixed(pixels: np.ndarray, alpha: np.ndarray | np.float32) -> np.ndarray:
    return np.rint(pixels * (1 - alpha) + np.float32(RED) * alpha)


def _stamp(image: np.ndarray, centre: tuple[int, int], radius: int, filled: bool) -> None:
    """Blends a point's mark into the picture, cut at its edges."""
    colour, alpha = _mark(radius, filled)
    side = len(alpha)
    x, y = centre[0] - side // 2, centre[1] - side // 2
    left, top = max(0, -x), max(0, -y)
    below = image[max(0, y) : y + side, max(0, x) : x + side]
    part = np.s_[top : top + below.shape[0], left : left + below.shape[1]]
    below[:] = np.rint(below * (1 - alpha[part]) + colour[part] * alpha[part])


@functools.lru_cache(maxsize=64)
def _mark(radius: int, filled: bool) -> tuple[np.ndarray, np.ndarray]:
    """(colour float32 [s, s, 3], alpha float32 [s, s, 1]), antialiased by supersampling.

    A ring and a cross within, each with a white edge; filled, a half-transparent disc with a ring.
    """
    line, edge = max(1.6, radius * 0.2), max(0.6, radius * 0.1)
    reach = math.ceil(radius + edge)
    side = 2 * reach + 1
    at = (np.arange(side * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - side / 2
    x, y = np.meshgrid(at, at)
    ring = np.abs(np.hypot(x, y) - (radius - line / 2)) - line / 2
    across = np.minimum(np.abs(x), np.abs(y)) - line / 2
    cross = np.maximum(across, np.maximum(np.abs(x), np.abs(y)) - radius * 0.45)
    distance = ring if filled else np.minimum(ring, cross)  # below 0 inside of the ink
    red, cover = distance <= 0, (distance <= edge).astype(np.float32)
    if filled:
        disc = np.hypot(x, y) <= radius
        red |= disc
        cover = np.maximum(cover, disc * np.float32(OVERLAY_ALPHA))
    ink = np.where(red[..., None], np.float32(RED), np.float32(WHITE))
    blocks = (side, SUPERSAMPLE, side, SUPERSAMPLE)
    alpha = cover.reshape(*blocks, 1).mean((1, 3))
    colour = (ink * cover[..., None]).reshape(*blocks, 3).mean((1, 3)) / np.maximum(alpha, 1e-6)
    colour, alpha = colour.astype(np.float32), alpha.astype(np.float32)
    colour.setflags(write=False)
    alpha.setflags(write=False)
    return colour, alpha
