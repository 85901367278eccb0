"""Rewards of visual grounding: is the place right, did revising bring it nearer, is the form kept.

Three styles: "released" is the total of VRRL's released recipe (arXiv 2607.02490) with a right
place for its exact match; "summary" pays for a right answer and for overlap; "distance" for how
near the answer comes. Each may be placed on the episode's end, or on its turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vrrl_jax import coordinates as geometry
from vrrl_jax.coordinates import Box, Size, System
from vrrl_jax.data.scenes import Scene
from vrrl_jax.processing.grounding import Bare, Form, Reply, parse
from vrrl_jax.rewards import reflection
from vrrl_jax.rewards.extraction import alike, number

STYLES = ("released", "summary", "distance")
PLACEMENTS = ("end", "turn")

Place = Sequence[float]  # (x, y) or (x1, y1, x2, y2), in pixels of the original; () for none


def distance(place: Place, targets: Sequence[Box]) -> float:
    """Pixels from a point, or from a box's centre, to the nearest target; 0 inside of one."""
    point = place if len(place) == 2 else geometry.centre(place)
    return min(geometry.distance(point, target) for target in targets)


def overlap(place: Place, targets: Sequence[Box]) -> float:
    """The best IoU of a box with a target."""
    return max(geometry.iou(place, target) for target in targets)


def right(
    place: Place, targets: Sequence[Box], *, radius: float = 0.0, threshold: float = 0.5
) -> bool:
    """Whether a place answers the question.

    Args:
      place: a point is right in a target, its right and lower edge left out, or within `radius`
        pixels of one; a box with an IoU of at least `threshold` with one. () is wrong.
      targets: boxes, in pixels.
      radius: 20 in the release, whose pictures are large.
      threshold: above 0.
    """
    if not place:
        return False
    if len(place) == 4:
        return overlap(place, targets) >= threshold
    if any(geometry.inside(place, target) for target in targets):
        return True
    return radius > 0 and distance(place, targets) <= radius


def progress(
    place: Place,
    targets: Sequence[Box],
    size: Size,
    *,
    radius: float = 0.0,
    reach: float = 0.5,
) -> float:
    """How far a place has come, in 0 .. 1.

    A point: 1 where it is right, else 1 - distance / (reach * diagonal), the distance at least a
    pixel, the whole at least 0. A box: its IoU. () is 0.

    Args:
      place, targets, radius: see `right`.
      size: (width, height) of the picture, whose diagonal is meant.
      reach: share of the diagonal at which nothing is left, above 0.
    """
    if not place:
        return 0.0
    if len(place) == 4:
        return overlap(place, targets)
    if right(place, targets, radius=radius):
        return 1.0
    # A wrong point on an edge is the neighbour's pixel: a pixel away, never none.
    away = max(1.0, distance(place, targets))
    return max(0.0, 1.0 - away / (reach * _diagonal(size)))


def score(
    texts: Sequence[str],
    scene: Scene,
    *,
    form: Form = "point",
    coordinates: System = "pixel",
    resized: Size | None = None,
    bare: Bare = "invalid",
    style: Literal["released", "summary", "distance"] = "released",
    placement: Literal["end", "turn"] = "end",
    radius: float = 0.0,
    threshold: float = 0.5,
    reach: float = 0.5,
    alpha: float = 0.5,
    per_turn: Literal["gain", "level"] = "gain",
    require_format: bool = False,
    correct_value: float = 1.0,
    lambda_deg: float = 0.5,
    reflect_weight: float = 0.9,
    reflect_lower_clip: float = 0.0,
    em_reflect_bonus_weight: float = 0.1,
    em_reflect_step_discount: float = 1.0,
    **released: Any,
) -> dict[str, Any]:
    """Scores an episode.

        released: see `reflection.score`, with `right` for em and `progress` for progress
        summary:  total = correct_value * correct + alpha * overlap(answer)
        distance: total = progress(answer)

    `overlap` is the IoU of a box; for points, which have none, it is the progress. `correct` is
    the answer's text against the scene's, where the reply gives one (JSON's "answer") and the
    scene has one; else whether the place is right. The decision bonus adds to every style.

    On turns the released total puts each revision's part of the reflection and its cost on that
    revision, the decision on the turn that decides, and the rest on the last turn; "distance" puts
    each proposal's gain in progress on it, and "summary" likewise alpha times the gain in overlap
    (`per_turn` "gain": the total stays), or alpha times its overlap (`per_turn` "level": the total
    is larger, and long episodes are paid for it). A commit earns what it adds to the last proposal.
    Rolled-in turns have their share like the episode's own.

    Args:
      texts: the assistant's texts in order, rolled-in ones included.
      scene: what was asked about.
      form, coordinates, bare: how the replies are read.
      resized: (width, height) of the picture as the model sees it; None where it isn't resized.
      style, placement, per_turn: see above.
      radius, threshold, reach: see `right` and `progress`.
      alpha: worth of a full overlap ("summary").
      require_format: "summary" and "distance" pay nothing where the format is broken.
      correct_value: worth of a right answer.
      lambda_deg, reflect_weight, reflect_lower_clip, em_reflect_bonus_weight,
        em_reflect_step_discount, released: options of `reflection.score`.

    Returns:
      What `reflection.score` returns, and `distance` (pixels of the original from the answer to
      the target, the picture's diagonal without an answer), `iou` for boxes, and `answer_right`
      (`correct` above). With `placement` "turn" also `turn_rewards`, a tuple of one float a reply
      that sums to the total.

    Raises:
      TypeError: one text in place of a list of them, or an unknown option.
      ValueError: an unknown style, placement or coordinate system.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a list of texts, one a reply; got one text")
    for name, value, known in (
        ("style", style, STYLES),
        ("placement", placement, PLACEMENTS),
        ("per_turn", per_turn, ("gain", "level")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r}: expected one of {known}")
    replies = [parse(text, form, bare=bare) for text in texts]
    turns = [reflection.Turn(reply.kind, reply.place, reply.has_think) for reply in replies]

    def located(place: Place) -> Place:
        return _located(place, scene.size, coordinates, resized)

    def level(place: Place) -> float:
        return progress(located(place), scene.targets, scene.size, radius=radius, reach=reach)

    def is_right(place: Place) -> bool:
        return right(located(place), scene.targets, radius=radius, threshold=threshold)

    reflecting = {"lambda_deg": lambda_deg, "lower_clip": reflect_lower_clip}
    parts: dict[str, Any] = reflection.score(
        turns,
        is_right,
        level,
        correct_value=correct_value,
        lambda_deg=lambda_deg,
        reflect_lower_clip=reflect_lower_clip,
        reflect_weight=reflect_weight,
        em_reflect_bonus_weight=em_reflect_bonus_weight,
        em_reflect_step_discount=em_reflect_step_discount,
        **released,
    )
    answer = located(reflection.answer(turns))
    parts["distance"] = distance(answer, scene.targets) if answer else _diagonal(scene.size)
    if form == "box":
        parts["iou"] = overlap(answer, scene.targets) if answer else 0.0
    correct = _correct(replies, scene, bool(parts["em"]))
    parts["answer_right"] = float(correct)
    asked = {name: released[name] for name in ("min_turns", "single_turn") if name in released}
    formed = reflection.well_formed(turns, **asked)
    levels = [level(turn.content) if turn.kind == "proposal" else None for turn in turns]
    if style == "released":
        shares = _released_shares(parts, levels, reflect_weight, reflecting)
        paid = formed
    else:
        # Neither knows the released recipe's parts.
        parts |= {"reflect_bonus": 0.0, "outcome": 0.0, "revision_cost": 0.0}
        worth, base = (alpha, correct_value * correct) if style == "summary" else (1.0, 0.0)
        by_level = style == "summary" and placement == "turn" and per_turn == "level"
        shares = _shares(levels, parts["progress"], worth, base, by_level)
        paid = formed or not require_format
        whole = sum(shares) if by_level else base + worth * parts["progress"]
        parts["total"] = whole + parts["decision"] if paid else 0.0
    if placement == "turn":
        if parts["decision"]:
            shares[released["prefix_turns"]] += parts["decision"]
        parts["turn_rewards"] = tuple(shares) if paid else (0.0,) * len(turns)
    return parts


def _located(place: Place, size: Size, coordinates: System, resized: Size | None) -> Place:
    """A reply's place in pixels of the original. A box is cut to the picture, as it is drawn."""
    if not place:
        return ()
    if len(place) == 2:
        return geometry.convert_point(place, coordinates, "original", size, resized)
    box = geometry.convert_box(place, coordinates, "original", size, resized)
    return geometry.clip_box(box, size)


def _diagonal(size: Size) -> float:
    return (size[0] ** 2 + size[1] ** 2) ** 0.5


def _correct(replies: Sequence[Reply], scene: Scene, place_right: bool) -> bool:
    """Whether the answer's text is right where it has one, else whether its place is."""
    last = [r for r in replies if r.kind == "commit"] or [r for r in replies if r.kind != "invalid"]
    if not last or not last[-1].answer or not scene.answer:
        return place_right
    a, b = number(last[-1].answer), number(scene.answer)
    return a == b if a is not None and b is not None else alike(last[-1].answer, scene.answer)


def _released_shares(
    parts: dict[str, float],
    levels: Sequence[float | None],
    reflect_weight: float,
    reflecting: dict[str, float],
) -> list[float]:
    """The released total of a well-formed episode by turns, but for the decision."""
    shares = [0.0] * len(levels)
    revisions = [i for i, level in enumerate(levels) if level is not None][1:]
    worth, cost = reflect_weight, 0.0
    if parts["em"]:
        worth = parts["reflect_bonus"] / parts["reflect"] if parts["reflect"] > 0 else 0.0
        cost = parts["revision_cost"] / max(1, len(revisions))
    steps = reflection.gains([level for level in levels if level is not None], **reflecting)
    for turn, step in zip(revisions, steps, strict=True):
        shares[turn] = worth * step - cost
    if shares:
        shares[-1] += parts["total"] - parts["decision"] - sum(shares)
    return shares


def _shares(
    levels: Sequence[float | None], final: float, worth: float, base: float, by_level: bool
) -> list[float]:
    """Gains, or levels, of the proposals, times `worth`; the last turn has the rest and `base`."""
    shares, before = [0.0] * len(levels), 0.0
    for i, level in enumerate(levels):
        if level is not None:
            shares[i] = worth * (level if by_level else level - before)
            before = level
    if shares:
        # What a commit says differently from the last proposal counts, in both ways of placing.
        shares[-1] += base + worth * (final - before)
    return shares
