"""Boxes in replies, and how well they fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from vrrl_jax.coordinates import Box as Box
from vrrl_jax.coordinates import clip_box, convert_box
from vrrl_jax.coordinates import iou as iou
from vrrl_jax.rewards.extraction import TEXT_LIMIT, TOO_LONG, Verdict

Coordinates = Literal["unit", "thousand", "pixel"]

_REAL = r"[-+]?(?:\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})"
# White space is bounded: two runs side by side that may share it cost quadratic time.
_S = r"\s{0,9}"
_COMMA = f"{_S},{_S}"
_POINT = r"(-?\d{1,15}(?:\.\d{1,30})?)"
_APART = rf"(?:{_COMMA}|\s{{1,9}})"
_COMMA_BOX = re.compile(rf"\[{_S}{_COMMA.join([_POINT] * 4)}{_S}\]")
_BRACKET_BOX = re.compile(rf"[\[(]{_S}{_APART.join([f'({_REAL})'] * 4)}{_S}[\])]")
_KEYS = ("bbox_2d", "bbox", "box", "coordinates", "coord", "location", "position")


def first_box(text: str) -> Box | None:
    """The first `[x1, y1, x2, y2]` with commas, and digits before any point, as lmms-eval reads."""
    match = _COMMA_BOX.search(text)
    return None if match is None else _box(match.groups())


def loose_box(text: str) -> Box | None:
    """The first four numbers in brackets, by commas or spaces; else the text's first four."""
    match = _BRACKET_BOX.search(text)
    if match is not None:
        return _box(match.groups())
    numbers = []
    for match in re.finditer(_REAL, text):
        numbers.append(match.group())
        if len(numbers) == 4:
            return _box(numbers)
    return None


def parse_box(text: str) -> Box | None:
    """The first box of JSON (`{"bbox_2d": [...]}`, fenced or bare), else as `loose_box` reads."""
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=None)
    # JSON beyond this isn't an answer, and a decoder's recursion is bounded by it.
    end = max(text.rfind("}"), text.rfind("]")) + 1
    if start is not None and start < end <= start + 10_000:
        try:
            found = next(_boxes(json.loads(text[start:end])), None)
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            return found
    return loose_box(text)


def scaled(box: Box, size: tuple[float, float], coordinates: Coordinates) -> Box:
    """A box in pixels of a picture (width, height), corners sorted, clipped to it.

    Args:
      box: x1, y1, x2, y2.
      size: of the picture that the coordinates are of; for "pixel" the resized one's.
      coordinates: "unit" 0 .. 1, "thousand" 0 .. 1000, or "pixel".
    """
    return clip_box(convert_box(box, coordinates, "pixel", size), size)


def refcoco(
    reply: str,
    box: Sequence[float],
    size: tuple[float, float],
    *,
    mode: Literal["official", "vlmevalkit", "strict"] = "official",
    coordinates: Coordinates = "unit",
    threshold: float = 0.5,
) -> Verdict:
    """RefCOCO, RefCOCO+, RefCOCOg: a hit where the IoU is at least 0.5 (ACC@0.5, Precision@1).

    Sources: Yu et al., arXiv 1608.00272; the `refcoco` REC tasks of lmms-eval; VLMEvalKit.

    Args:
      reply: the model's text.
      box: the gold box x, y, width, height in pixels, as the data sets have it.
      size: the picture's width and height in the pixels of `box`.
      mode: "official" takes the first `[a, b, c, d]` for shares of the picture, as asked for, and
        scores an empty box where there is none (lmms-eval). "vlmevalkit" guesses the scale: up to
        1.5 shares, up to 1000 thousandths, else pixels; wrong for models that answer in pixels.
        "strict" reads JSON too and takes the scale from `coordinates`. The reading that keeps
        the better of two scales against the truth isn't offered: it looks at the answer.
      coordinates: of the reply, in "strict" mode. For pixels of a resized picture bring `box` and
        `size` to it first.
      threshold: of the IoU.

    Returns:
      A verdict with the IoU as its value.

    Raises:
      ValueError: a gold box that isn't four numbers with a positive size.
    """
    gold = (box[0], box[1], box[0] + box[2], box[1] + box[3]) if len(box) == 4 else None
    if gold is None or not (box[2] > 0 and box[3] > 0):
        raise ValueError(f"a gold box must be x, y, width, height, both above 0; got {list(box)}")
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    if mode == "official":
        found = first_box(reply)
        # No clipping here: the reference compares shares as they are.
        pixels = None if found is None else tuple(v * size[i % 2] for i, v in enumerate(found))
    elif mode == "vlmevalkit":
        found = loose_box(reply)
        largest = 0.0 if found is None else max(abs(v) for v in found)
        guess = "unit" if largest <= 1.5 else "thousand" if largest <= 1000 else "pixel"
        pixels = None if found is None else scaled(found, size, guess)
    elif mode == "strict":
        found = parse_box(reply)
        pixels = None if found is None else scaled(found, size, coordinates)
    else:
        raise ValueError(f"mode must be official, vlmevalkit or strict; got {mode!r}")
    if found is None:
        return Verdict(False, None, reason="unreadable", value=0.0)
    overlap = iou(pixels, gold)
    return Verdict(overlap >= threshold, repr(list(found)), value=overlap)


def _box(numbers: Sequence[Any]) -> Box | None:
    values = tuple(float(n) for n in numbers)
    return values if all(math.isfinite(v) for v in values) else None


def _boxes(value: Any) -> Iterator[Box]:
    """Boxes in decoded JSON, in its order: under a known key, or four numbers in a list."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(reversed([item[key] for key in _KEYS if key in item]))
        elif isinstance(item, list):
            if len(item) == 4 and all(type(v) in (int, float) for v in item):
                try:
                    found = _box(item)
                except OverflowError:  # an integer beyond any float
                    found = None
                if found is not None:
                    yield found
            else:
                stack.extend(reversed(item))
