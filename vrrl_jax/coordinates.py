"""Coordinates and the systems they stand in: the one place where they are converted and measured.

x goes right and y down from the top left corner of a picture. Coordinates are continuous: a picture
w wide reaches from 0 to w, its pixel i from i to i + 1. A system says what the right and the lower
edge are called:

    pixel      pixels of the resized picture, which the model sees (Qwen2.5-VL)
    original   pixels of the picture as it came
    thousand   0 .. 1000 (Qwen3-VL)
    unit       0 .. 1

Conversion is linear, edge to edge, and neither rounds nor clips: `rounded`, `clip_point` and
`clip_box` do, where a caller asks for it. Sizes are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

System = Literal["pixel", "original", "thousand", "unit"]
SYSTEMS = ("pixel", "original", "thousand", "unit")
Size = tuple[float, float]
Point = tuple[float, float]  # x, y
Box = tuple[float, float, float, float]  # x1, y1, x2, y2


def extent(system: System, original: Size, resized: Size | None = None) -> Size:
    """What the right and the lower edge of a picture are called in a system.

    Args:
      system: one of SYSTEMS.
      original: (width, height) of the picture as it came, in pixels.
      resized: of the picture that the model sees; None where it isn't resized.

    Raises:
      ValueError: an unknown system, or a size that isn't above 0.
    """
    size = {
        "pixel": original if resized is None else resized,
        "original": original,
        "thousand": (1000.0, 1000.0),
        "unit": (1.0, 1.0),
    }.get(system)
    if size is None:
        raise ValueError(f"unknown coordinates {system!r}: expected one of {SYSTEMS}")
    if not (size[0] > 0 and size[1] > 0):
        raise ValueError(f"a picture's size must be above 0, got {size[0]} x {size[1]}")
    return size


def convert_point(
    point: Sequence[float],
    source: System,
    target: System,
    original: Size,
    resized: Size | None = None,
) -> Point:
    """A point (x, y) of system `source` in system `target`; sizes as `extent` takes them."""
    w, h = extent(source, original, resized)
    to_w, to_h = extent(target, original, resized)
    # In this order a share that has a finite fraction comes out exact.
    return point[0] * to_w / w, point[1] * to_h / h


def convert_box(
    box: Sequence[float],
    source: System,
    target: System,
    original: Size,
    resized: Size | None = None,
) -> Box:
    """A box (x1, y1, x2, y2) of system `source` in system `target`, its corners as they stand."""
    corners = (box[:2], box[2:])
    (x1, y1), (x2, y2) = (
        convert_point(corner, source, target, original, resized) for corner in corners
    )
    return x1, y1, x2, y2


def clip_point(point: Sequence[float], size: Size) -> Point:
    """The point of 0 .. width, 0 .. height that is nearest."""
    return _clip(point[0], size[0]), _clip(point[1], size[1])


def clip_box(box: Sequence[float], size: Size) -> Box:
    """The part of a box inside 0 .. width, 0 .. height, its corners sorted; may be empty."""
    x1, x2 = sorted(_clip(v, size[0]) for v in (box[0], box[2]))
    y1, y2 = sorted(_clip(v, size[1]) for v in (box[1], box[3]))
    return x1, y1, x2, y2


def rounded(values: Sequence[float], system: System) -> tuple[float, ...]:
    """Coordinates as they are written: whole numbers, halves up; "unit" to three decimals."""
    if system == "unit":
        return tuple(math.floor(v * 1000 + 0.5) / 1000 for v in values)
    return tuple(float(math.floor(v + 0.5)) for v in values)


def inside(point: Sequence[float], box: Sequence[float]) -> bool:
    """Whether a point lies in a box, half-open: its right and lower edge are the neighbour's."""
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def distance(point: Sequence[float], box: Sequence[float]) -> float:
    """How far a point is from a box's nearest point; 0 in the box and on its edges."""
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    down = max(box[1] - point[1], 0.0, point[1] - box[3])
    return math.hypot(across, down)


def centre(box: Sequence[float]) -> Point:
    """The middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 where the union is empty.

    Coordinates are continuous: a box from 0 to 1 is one wide, not two.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 and math.isfinite(union) else 0.0


def _clip(value: float, end: float) -> float:
    return min(max(value, 0.0), end)
