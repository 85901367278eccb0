"""Multi-turn demonstrations for visual grounding: a place, what is wrong with it, a better one.

Like those for FrozenLake: proposals that are wrong on purpose are plausible, shown, and never
trained on; the thought says where the target lies from the mark; the commit repeats the last
proposal.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Literal

from vrrl_jax.coordinates import (
    Box,
    Point,
    Size,
    System,
    centre,
    convert_box,
    convert_point,
    extent,
    inside,
    iou,
)
from vrrl_jax.data.demonstrations import DemonstrationReply, Piece
from vrrl_jax.data.scenes import Scene

# All that a thought may say.
WORDS = ("left", "right", "up", "down", "larger", "smaller")
STYLES = ("spaced", "plain", "json")
# Tries at each kind of mistake before every place of the grid is looked through.
TRIES = 60

Place = tuple[float, ...]  # (x, y) or (x1, y1, x2, y2)


@dataclasses.dataclass(frozen=True)
class Options:
    """How places are written, and which of them are right.

    Attributes:
      form: "point" or "box".
      coordinates: the system that is spoken.
      step: coordinates are multiples of it, in units of the system, wherever the target is large
        enough for that, or `radius` forgives it; elsewhere of the first of step / 2, step / 4, ...
        that fits.
      style: "spaced" writes " 34 58", "plain" "34, 58", "json" {"point_2d": [34, 58]}.
      radius: a point this near to a target is right too; pixels of the original picture.
      threshold: a box that overlaps a target this much (IoU) is right.
      inset: share of a target's width and height at each edge that a good point keeps clear of.

    Raises:
      ValueError: an unknown form, style or coordinate system, or a step that isn't above 0.
    """

    form: Literal["point", "box"] = "point"
    coordinates: System = "pixel"
    step: float = 1.0
    style: Literal["spaced", "plain", "json"] = "spaced"
    radius: float = 0.0
    threshold: float = 0.5
    inset: float = 0.2

    def __post_init__(self):
        if self.form not in ("point", "box"):
            raise ValueError(f"form {self.form!r}: expected point or box")
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}: expected one of {STYLES}")
        if not self.step > 0:
            raise ValueError(f"step must be above 0, got {self.step}")
        extent(self.coordinates, (1, 1))


def demonstrate(
    scene: Scene,
    rng: random.Random,
    options: Options = Options(),
    *,
    resized: Size | None = None,
    wrong_first: float = 0.6,
    second_error: float = 0.2,
    max_turns: int = 4,
    soft_targets: bool = True,
    decision_weight: float = 1.0,
) -> tuple[DemonstrationReply, ...]:
    """One episode's replies.

    Args:
      scene: what is asked.
      rng: draws the mistakes, and which target is meant where there are several.
      options: how places are written.
      resized: (width, height) of the picture as the model sees it; None where it isn't resized.
      wrong_first: probability that the first proposal is wrong.
      second_error: probability that a revision is wrong again, where turns are left.
      max_turns: upper bound of replies, the commit included; at least 2, 1 for a lone proposal.
      soft_targets: give every coordinate of a right point its equally good alternatives.
      decision_weight: loss weight of the tag that opens a revision or a commit.
    """
    view = _view(scene, options, resized)
    which = rng.randrange(len(view.targets))
    target = view.targets[which]
    right = _right_place(view, which, options)
    good = _alternatives(view, which, right, options) if soft_targets else ((),) * len(right)
    replies: list[DemonstrationReply] = []
    earlier: list[Place] = []
    wrong = max_turns >= 2 and rng.random() < wrong_first
    while True:
        # The last two turns are needed for the right proposal and the commit.
        slip = None
        if wrong and len(replies) < max_turns - 2:
            slip = _mistake(view, target, rng, earlier, options)
        pieces = [*_thought(earlier[-1], target, decision_weight)] if earlier else []
        weight = 1.0 if slip is None else 0.0
        place = right if slip is None else slip
        pieces.append(Piece("<ANSWER>"))
        pieces += _written(place, options, good if slip is None else None, weight)
        replies.append(DemonstrationReply((*pieces, Piece("</ANSWER>", weight=weight)), weight))
        earlier.append(place)
        if slip is None:
            break
        wrong = rng.random() < second_error
    if max_turns >= 2:
        pieces = [Piece("<FINAL>", weight=decision_weight), *_written(right, options)]
        replies.append(DemonstrationReply((*pieces, Piece("</FINAL>")), 1.0))
    return tuple(replies)


# --- what is right -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _View:
    """A scene's boxes in the system that is spoken."""

    size: Size
    targets: tuple[Box, ...]
    others: tuple[Box, ...]
    headers: tuple[Box, ...]
    points: tuple[Point, ...]  # the best one of each target
    radius: tuple[float, float]


def _view(scene: Scene, options: Options, resized: Size | None) -> _View:
    def spoken(boxes: Sequence[Box]) -> tuple[Box, ...]:
        return tuple(
            convert_box(box, "original", options.coordinates, scene.size, resized) for box in boxes
        )

    size = extent(options.coordinates, scene.size, resized)
    targets = spoken(scene.targets)
    points = tuple(
        convert_point(point, "original", options.coordinates, scene.size, resized)
        for point in scene.points
    )
    radius = tuple(options.radius * a / b for a, b in zip(size, scene.size, strict=True))
    points = points or tuple(centre(target) for target in targets)
    return _View(size, targets, spoken(scene.others), spoken(scene.headers), points, radius)


def _right_place(view: _View, which: int, options: Options) -> Place:
    """The target's best point, or the target, on the finest grid that it needs."""
    target, step = view.targets[which], options.step
    for _ in range(20):
        if options.form == "point":
            place = tuple(_nearest(value, step) for value in view.points[which])
            if _is_right(place, view, options):
                return place
        else:
            place = tuple(_nearest(value, step) for value in target)
            if iou(place, target) >= max(options.threshold, 0.5):
                return place
        step /= 2
    raise ValueError(f"no place of a grid of {options.step} lies in the target {target}")


def _alternatives(
    view: _View, which: int, right: Place, options: Options
) -> tuple[tuple[float, ...], ...]:
    """For each coordinate of a right point the values that are as good, itself among them.

    Any of them for x goes with any for y. Where the best point isn't the target's middle they stay
    near it: the target doesn't fill its box. A box has one best place, so its coordinates have
    none.
    """
    if options.form == "box":
        return ((),) * 4
    target, point = view.targets[which], view.points[which]
    found = []
    for i in (0, 1):
        wide, middle = target[i + 2] - target[i], (target[i] + target[i + 2]) / 2
        low, high = target[i] + options.inset * wide, target[i + 2] - options.inset * wide
        if abs(point[i] - middle) > 0.05 * wide:
            low, high = max(low, point[i] - 0.1 * wide), min(high, point[i] + 0.1 * wide)
        ks = range(math.ceil(low / options.step), math.floor(high / options.step) + 1)
        values = {_tidy(k * options.step) for k in ks}
        # The far edge is the neighbour's.
        values = {value for value in values if target[i] <= value < target[i + 2]}
        found.append(tuple(sorted(values | {right[i]})))
    return tuple(found)


def _is_right(place: Place, view: _View, options: Options) -> bool:
    if options.form == "box":
        return any(iou(place, target) >= options.threshold for target in view.targets)
    if any(inside(place, target) for target in view.targets):
        return True
    if not options.radius:
        return False
    return any(
        math.hypot(
            *(max(t[i] - place[i], 0.0, place[i] - t[i + 2]) / view.radius[i] for i in (0, 1))
        )
        <= 1
        for t in view.targets
    )


# --- mistakes ------------------------------------------------------------------------------------


def _mistake(
    view: _View, target: Box, rng: random.Random, earlier: list[Place], options: Options
) -> Place | None:
    """A wrong place unlike the earlier ones; None where every place is right.

    A neighbour in the target's row or column, a header, a near miss, or any other mark.
    """
    beside = [box for box in view.others if _in_line(box, target)]
    beside.sort(key=lambda box: math.dist(centre(box), centre(target)))
    # Headers over or beside the target are the likely ones.
    heads = [box for box in view.headers if _in_line(box, target)] or list(view.headers)
    for _ in range(TRIES):
        kind = rng.random()
        if kind < 0.45 and beside:
            box = rng.choice(beside[:4])
        elif kind < 0.60 and heads:
            box = rng.choice(heads)
        elif kind < 0.80 or not view.others:
            box = _near_miss(target, rng)
        else:
            box = rng.choice(view.others)
        place = _drawn_place(box, view, rng, options)
        if place is not None and place not in earlier and not _is_right(place, view, options):
            return place
    return _any_wrong(view, rng, earlier, options)


def _in_line(box: Box, target: Box) -> bool:
    """Whether a box stands in the target's row or in its column."""
    x, y = centre(box)
    return target[0] <= x < target[2] or target[1] <= y < target[3]


def _near_miss(target: Box, rng: random.Random) -> Box:
    """The target moved off itself to one side, by up to its own size more."""
    axis, sign = rng.randrange(2), rng.choice((-1, 1))
    moved = list(target)
    by = sign * rng.uniform(0.6, 1.5) * (target[axis + 2] - target[axis])
    moved[axis] += by
    moved[axis + 2] += by
    return tuple(moved)


def _drawn_place(box: Box, view: _View, rng: random.Random, options: Options) -> Place | None:
    """A place of the grid for a box: a point about its middle, or the box; None outside."""
    if options.form == "box":
        place = tuple(
            _nearest(min(max(value, 0.0), view.size[i % 2]), options.step)
            for i, value in enumerate(box)
        )
        return place if place[0] < place[2] and place[1] < place[3] else None
    place = tuple(
        _nearest(box[i] + rng.uniform(0.3, 0.7) * (box[i + 2] - box[i]), options.step)
        for i in (0, 1)
    )
    return place if inside(place, (0, 0, *view.size)) else None


def _any_wrong(
    view: _View, rng: random.Random, earlier: list[Place], options: Options
) -> Place | None:
    """A wrong place from a coarse sieve over the picture, in a random order."""
    width, height = view.size
    count = 24
    cells = [(i, j) for i in range(count) for j in range(count)]
    rng.shuffle(cells)
    for i, j in cells:
        box = (width * i / count, height * j / count, width * (i + 1) / count, 0.0)
        place = _drawn_place((*box[:3], height * (j + 1) / count), view, rng, options)
        if place is not None and place not in earlier and not _is_right(place, view, options):
            return place
    return None


# --- words ---------------------------------------------------------------------------------------


def direction(place: Place, target: Box) -> tuple[str, ...]:
    """Where a target lies from a place, in WORDS: up or down first, then left or right.

    From a point, or from a box's centre. A box that is centred in the target is to be "larger" or
    "smaller". Never empty.
    """
    x, y = place if len(place) == 2 else centre(place)
    words = []
    if not target[1] <= y < target[3]:
        words.append("down" if y < target[1] else "up")
    if not target[0] <= x < target[2]:
        words.append("right" if x < target[0] else "left")
    if words:
        return tuple(words)
    if len(place) == 4:
        return ("larger" if _area(place) < _area(target) else "smaller",)
    # A point within the target is wrong to nobody; asked anyway, its centre is the better place.
    return ("right" if x < centre(target)[0] else "left",)


def _thought(place: Place, target: Box, decision_weight: float) -> list[Piece]:
    words = [Piece(f" {word}") for word in direction(place, target)]
    return [Piece("<THINK>", weight=decision_weight), *words, Piece("</THINK>")]


def _written(
    place: Place,
    options: Options,
    good: Sequence[Sequence[float]] | None = None,
    weight: float = 1.0,
) -> list[Piece]:
    """A place in words, each coordinate a piece of its own.

    Only "spaced" pieces have their blank, so that a coordinate is one token at every place.
    """
    lead = " " if options.style == "spaced" else ""
    between = {"spaced": "", "plain": ", ", "json": ", "}[options.style]
    key = "point_2d" if options.form == "point" else "bbox_2d"
    pieces = [Piece(f'{{"{key}": [', weight=weight)] if options.style == "json" else []
    for i, value in enumerate(place):
        if i and between:
            pieces.append(Piece(between, weight=weight))
        others = tuple(lead + number(v) for v in good[i]) if good else ()
        pieces.append(Piece(lead + number(value), others, weight))
    if options.style == "json":
        pieces.append(Piece("]}", weight=weight))
    return pieces


def number(value: float) -> str:
    """A coordinate as it is written: without a point where it is whole."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


# --- geometry ------------------------------------------------------------------------------------


def _tidy(value: float) -> float:
    """Rid of the binary fraction's noise: what is written is what is compared."""
    return round(value, 6) + 0.0


def _nearest(value: float, step: float) -> float:
    return _tidy(math.floor(value / step + 0.5) * step)


def _area(box: Sequence[float]) -> float:
    return abs(box[2] - box[0]) * abs(box[3] - box[1])
