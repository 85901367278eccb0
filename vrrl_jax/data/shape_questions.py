"""Questions about scenes of shapes, and about numbers: how each is drawn and answered."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vrrl_jax.data import shape_words as say
from vrrl_jax.data.shape_scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    Pair,
    Scene,
    matches,
    only,
    place,
    plural,
    region,
    with_shape,
)
from vrrl_jax.data.shape_words import Args

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Look:
    """What a scene is drawn from: the settings of a split.

    Attributes:
      side, grid: see `Scene`.
      objects: least and most items.
      most: the largest count that is asked for.
      sizes: of items among others.
      title_sizes: of an item alone.
      largest: the largest number of questions without a picture.
      terms: how many numbers these hold.
      unseen: whether held-out pairs and grounds are shown, and only such grounds.
    """

    side: int
    grid: tuple[int, int]
    objects: tuple[int, int]
    most: int
    sizes: tuple[int, int]
    title_sizes: tuple[int, int]
    largest: int
    terms: int
    unseen: bool


class Asked(NamedTuple):
    """A drawn question: its scene, or None, what it asks after, and its options."""

    scene: Scene | None
    args: Args
    options: tuple[str, ...] = ()


class Ask(NamedTuple):
    """A kind of question.

    Attributes:
      kind: of its answer, out of `records.KINDS`.
      draw: (rng, look) -> Asked.
      words: (args, wording) -> its text.
      answer: (scene, args) -> the answer, for a choice the right option's text. ValueError where
        there is no single one.
      steps: (scene, args, wording) -> what leads to the answer, sentence by sentence.
    """

    kind: str
    draw: Callable[[random.Random, Look], Asked]
    words: Callable[[Args, str], str]
    answer: Callable[[Scene | None, Args], str]
    steps: Callable[[Scene | None, Args, str], list[str]]


# --- drawing -----------------------------------------------------------------------------------


def _pair(
    rng: random.Random,
    look: Look,
    shapes: Sequence[str] = SHAPES,
    colours: Sequence[str] = tuple(COLOURS),
) -> Pair:
    """A shape and a colour; of unseen looks every second one is held out, where there is one."""
    if look.unseen and rng.random() < 0.5:
        unseen = [pair for pair in HELD_OUT if pair[0] in shapes and pair[1] in colours]
        if unseen:
            return rng.choice(sorted(unseen))
    while True:
        pair = rng.choice(shapes), rng.choice(colours)
        if look.unseen or pair not in HELD_OUT:
            return pair


def _scene(rng: random.Random, look: Look, pairs: Sequence[Pair]) -> Scene:
    return place(rng, pairs, look.side, look.grid, look.sizes, _background(rng, look))


def _background(rng: random.Random, look: Look) -> str:
    return rng.choice([g.name for g in BACKGROUNDS.values() if g.held_out == look.unseen])


def _others(items: Sequence[str], *left_out: str) -> list[str]:
    return [item for item in items if item not in left_out]


def _draw_title(rng: random.Random, look: Look) -> Asked:
    pair = rng.choice(sorted(HELD_OUT)) if look.unseen else _pair(rng, look)
    background = _background(rng, look)
    return Asked(place(rng, [pair], look.side, (1, 1), look.title_sizes, background), ())


def _draw_count(rng: random.Random, look: Look) -> Asked:
    total = rng.randint(*look.objects)
    wanted = rng.randint(0, min(total, look.most))
    by = rng.choice(("shape", "colour"))
    if by == "shape":
        name = rng.choice(SHAPES)
        those, rest = {"shapes": [name]}, {"shapes": _others(SHAPES, name)}
    else:
        name = rng.choice(tuple(COLOURS))
        those, rest = {"colours": [name]}, {"colours": _others(tuple(COLOURS), name)}
    pairs = [_pair(rng, look, **(those if i < wanted else rest)) for i in range(total)]
    return Asked(_scene(rng, look, pairs), (by, name))


def _draw_colour(rng: random.Random, look: Look, options: int = 0) -> Asked:
    shape, colour = _pair(rng, look)
    rest = _others(SHAPES, shape)
    total = rng.randint(*look.objects)
    pairs = [(shape, colour), *(_pair(rng, look, rest) for _ in range(total - 1))]
    return Asked(_scene(rng, look, pairs), (shape,), _options(rng, colour, COLOURS, options))


def _draw_shape(rng: random.Random, look: Look) -> Asked:
    shape, colour = _pair(rng, look)
    rest = _others(tuple(COLOURS), colour)
    total = rng.randint(*look.objects)
    pairs = [(shape, colour), *(_pair(rng, look, colours=rest) for _ in range(total - 1))]
    return Asked(_scene(rng, look, pairs), (colour,))


def _draw_yesno(rng: random.Random, look: Look) -> Asked:
    wanted = shape, colour = _pair(rng, look)
    total = rng.randint(*look.objects)
    pairs = [wanted] if rng.random() < 0.5 else []
    # Half of the others are like it in one respect, so that neither alone gives the answer.
    while len(pairs) < total:
        chance = rng.random()
        if chance < 0.25:
            pairs.append(_pair(rng, look, [shape], _others(tuple(COLOURS), colour)))
        elif chance < 0.5:
            pairs.append(_pair(rng, look, _others(SHAPES, shape), [colour]))
        else:
            pairs.append(_pair(rng, look, _others(SHAPES, shape)))
    return Asked(_scene(rng, look, pairs), wanted)


def _draw_compare(rng: random.Random, look: Look) -> Asked:
    shapes = tuple(rng.sample(SHAPES, 2))
    total, a, b = rng.randint(*look.objects), 0, 0
    while a == b or a + b > total:
        a, b = (rng.randint(0, min(total, look.most)) for _ in range(2))
    pairs = [_pair(rng, look, [shapes[0]]) for _ in range(a)]
    pairs += [_pair(rng, look, [shapes[1]]) for _ in range(b)]
    pairs += [_pair(rng, look, _others(SHAPES, *shapes)) for _ in range(total - a - b)]
    return Asked(_scene(rng, look, pairs), shapes, tuple(map(plural, shapes)))


def _draw_position(rng: random.Random, look: Look) -> Asked:
    wanted = _pair(rng, look)
    pairs, total = [wanted], rng.randint(*look.objects)
    while len(pairs) < total:
        other = _pair(rng, look)
        pairs += [other] if other != wanted else []
    scene = _scene(rng, look, pairs)
    rows, columns = look.grid
    names = [region(look.grid, row, column) for row in range(rows) for column in range(columns)]
    right = _answer_position(scene, wanted)
    return Asked(scene, wanted, _options(rng, right, dict.fromkeys(names), 4))


def _draw_numbers(rng: random.Random, look: Look) -> Asked:
    return Asked(None, tuple(rng.randint(0, look.largest) for _ in range(look.terms)))


def _draw_sum(rng: random.Random, look: Look) -> Asked:
    """Sums stay below twice the largest number, however many terms there are."""
    while True:
        asked = _draw_numbers(rng, look)
        if sum(asked.args) <= 2 * look.largest:
            return asked


def _draw_largest(rng: random.Random, look: Look) -> Asked:
    return Asked(None, tuple(rng.sample(range(look.largest + 1), look.terms)))


def _options(rng: random.Random, right: str, names, count: int) -> tuple[str, ...]:
    """The right name among others, shuffled; () for a count of 0."""
    if not count:
        return ()
    others = [name for name in names if name != right]
    options = [right, *rng.sample(others, min(count - 1, len(others)))]
    rng.shuffle(options)
    return tuple(options)


# --- answers -----------------------------------------------------------------------------------


def _answer_count(scene: Scene, args: Args) -> str:
    return str(sum(matches(item, *args) for item in scene.items))


def _answer_shape(scene: Scene, args: Args) -> str:
    return only([item for item in scene.items if item.colour == args[0]]).shape


def _answer_compare(scene: Scene, args: Args) -> str:
    a, b = (len(with_shape(scene, shape)) for shape in args)
    if a == b:
        raise ValueError("as many of both")
    return plural(args[0] if a > b else args[1])


def _answer_position(scene: Scene, args: Args) -> str:
    item = only([item for item in scene.items if item.pair == args])
    return region(scene.grid, item.row, item.column)


def _answer_largest(scene: None, args: Args) -> str:
    if len(set(args)) < len(args):
        raise ValueError("equal numbers")
    return str(max(args))


_COLOUR = say.words("what colour is the {}?", "What colour is the {} in the picture?")
ASKS: dict[str, Ask] = {
    "title": Ask(
        "text",
        _draw_title,
        say.words("what is shown?", "What is shown in the picture? Name its colour and its shape."),
        lambda scene, args: scene.items[0].name,
        say.steps_title,
    ),
    "count": Ask("number", _draw_count, say.words_count, _answer_count, say.steps_count),
    "colour": Ask(
        "text",
        _draw_colour,
        _COLOUR,
        lambda scene, args: only(with_shape(scene, args[0])).colour,
        say.steps_colour,
    ),
    "colour_choice": Ask(
        "choice",
        lambda rng, look: _draw_colour(rng, look, options=4),
        _COLOUR,
        lambda scene, args: only(with_shape(scene, args[0])).colour,
        say.steps_colour,
    ),
    "shape": Ask(
        "text",
        _draw_shape,
        say.words("what shape is {}?", "What shape is {} in the picture?"),
        _answer_shape,
        say.steps_shape,
    ),
    "yesno": Ask(
        "yesno",
        _draw_yesno,
        say.words_yesno,
        lambda scene, args: "yes" if any(item.pair == args for item in scene.items) else "no",
        say.steps_yesno,
    ),
    "compare": Ask("choice", _draw_compare, say.words_compare, _answer_compare, say.steps_compare),
    "position": Ask(
        "choice",
        _draw_position,
        say.words("where is the {1} {0}?", "Where in the picture is the {1} {0}?"),
        _answer_position,
        say.steps_position,
    ),
    "sum": Ask(
        "number", _draw_sum, say.words_sum, lambda scene, args: str(sum(args)), say.steps_sum
    ),
    "largest": Ask("number", _draw_largest, say.words_largest, _answer_largest, say.steps_largest),
}
NAMES = tuple(ASKS)
TEXT_ONLY = ("sum", "largest")
