"""Questions about pictures of drawn shapes, and some without a picture; generated, never stored.

A question holds what it follows from: its scene or its numbers, and what is asked. Which split it
may be in follows from a hash of these contents; held-out pairs of shape and colour, held-out
grounds, more items and longer sums are drawn for "test_ood" alone.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

from vrrl_jax.data.shape_questions import ASKS, LETTERS, NAMES, TEXT_ONLY, Look
from vrrl_jax.data.shape_scenes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    Item,
    Scene,
    cell_box,
    content_key,
    reading_order,
)
from vrrl_jax.data.shape_words import WORDINGS, Args, conclude
from vrrl_jax.data.tables import SPLITS, split_of


@dataclasses.dataclass(frozen=True)
class Question:
    """One question; `question`, `answer`, `kind`, `options`, `accepted`, `category` as a Record's.

    Attributes:
      name: which of `NAMES`.
      args: what is asked after: names, or the numbers of a question without a picture.
      scene: what its picture shows; None without one.
      options: texts of A, B, ... ("choice").
      wording: out of `WORDINGS`.

    Raises:
      ValueError: an unknown name or wording, a question that has no single answer, or options
        that don't hold it.
    """

    name: str
    args: Args
    scene: Scene | None = None
    options: tuple[str, ...] = ()
    wording: str = "full"

    accepted = ()

    def __post_init__(self):
        if self.name not in ASKS or self.wording not in WORDINGS:
            raise ValueError(f"unknown question {self.name!r} or wording {self.wording!r}")
        if (self.scene is None) != (self.name in TEXT_ONLY):
            raise ValueError(f"a scene belongs to all questions but {TEXT_ONLY}")
        if (self.kind == "choice") != bool(self.options):
            raise ValueError(f"{self.name!r} is a {self.kind} with {len(self.options)} options")
        answer = self.answer_text  # raises where there is no single one
        if self.options and answer not in self.options:
            raise ValueError(f"the answer {answer!r} is none of {self.options}")

    @property
    def kind(self) -> str:
        return ASKS[self.name].kind

    @property
    def category(self) -> str:
        return self.name

    @property
    def question(self) -> str:
        """Its text, without the options."""
        return ASKS[self.name].words(self.args, self.wording)

    @functools.cached_property
    def answer_text(self) -> str:
        """The answer in words; of a choice, the right option's text."""
        return ASKS[self.name].answer(self.scene, self.args)

    @property
    def answer(self) -> str:
        """The answer; of a choice, its letter."""
        if self.options:
            return LETTERS[self.options.index(self.answer_text)]
        return self.answer_text

    @property
    def steps(self) -> tuple[str, ...]:
        """What leads to the answer, sentence by sentence, the conclusion last."""
        seen = ASKS[self.name].steps(self.scene, self.args, self.wording)
        return (*seen, conclude(self.answer, self.wording))

    @property
    def key(self) -> str:
        """SHA-1 of the contents: the scene, or the numbers, whatever their order."""
        return self.scene.key if self.scene else content_key((self.name, sorted(self.args)))

    @property
    def split(self) -> str:
        """Which of `SPLITS` these contents belong to."""
        return split_of(self.key)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What generated questions are like. Ranges are inclusive.

    Attributes:
      side: of a picture, in pixels.
      grid: (rows, columns) of cells that items are put into, at least 2 x 2.
      objects: least and most items; counts go up to the most in every split.
      objects_ood: likewise for "test_ood".
      sizes: of items, in pixels.
      title_sizes: of an item that is alone in its picture.
      questions: names out of `NAMES` without `TEXT_ONLY`, drawn alike; one listed twice, twice as
        often.
      text_questions: likewise out of `TEXT_ONLY`.
      text_share: chance of a question without a picture, in 0 .. 1.
      largest: the largest number that these hold.
      wording: out of `WORDINGS`.

    Raises:
      ValueError: settings that allow no question.
    """

    side: int = 336
    grid: tuple[int, int] = (4, 4)
    objects: tuple[int, int] = (2, 9)
    objects_ood: tuple[int, int] = (10, 14)
    sizes: tuple[int, int] = (40, 76)
    title_sizes: tuple[int, int] = (64, 300)
    questions: tuple[str, ...] = tuple(name for name in NAMES if name not in TEXT_ONLY)
    text_questions: tuple[str, ...] = TEXT_ONLY
    text_share: float = 0.15
    largest: int = 50
    wording: str = "full"

    def __post_init__(self):
        if min(self.grid) < 2:
            raise ValueError(f"the grid needs at least 2 rows and columns, got {self.grid}")
        for low, high in (self.objects, self.objects_ood):
            if not 1 <= low <= high <= self.grid[0] * self.grid[1]:
                raise ValueError(f"{low} to {high} objects in {self.grid} cells")
        if self.wording not in WORDINGS or not 0 <= self.text_share <= 1:
            raise ValueError(f"wording {self.wording!r}, text_share {self.text_share}")
        if set(self.questions) - set(NAMES) | set(self.questions) & set(TEXT_ONLY):
            raise ValueError(f"questions are {NAMES}, without {TEXT_ONLY}; got {self.questions}")
        if set(self.text_questions) - set(TEXT_ONLY):
            raise ValueError(f"text_questions are {TEXT_ONLY}; got {self.text_questions}")
        if not (self.questions or self.text_share == 1) or not (
            self.text_questions or self.text_share == 0
        ):
            raise ValueError("no questions to draw from")
        if self.largest < 4:
            raise ValueError(f"largest must be at least 4, got {self.largest}")
        if min(*self.sizes, *self.title_sizes) < 8 or max(self.title_sizes) > self.side - 2:
            raise ValueError(f"sizes {self.sizes} and {self.title_sizes} of {self.side} pixels")


# Three by three cells of 28 pixels, for policies of a million parameters; short words, all of them
# in `question_demonstrations.WORDS`.
NANO = Settings(
    side=84,
    grid=(3, 3),
    objects=(1, 5),
    objects_ood=(6, 8),
    sizes=(18, 25),
    title_sizes=(22, 72),
    largest=9,
    wording="short",
)


def look(settings: Settings, split: str) -> Look:
    """What the scenes of a split are drawn from."""
    unseen = split == "test_ood"
    return Look(
        side=settings.side,
        grid=settings.grid,
        objects=settings.objects_ood if unseen else settings.objects,
        most=settings.objects[1],
        sizes=settings.sizes,
        title_sizes=settings.title_sizes,
        largest=settings.largest,
        terms=3 if unseen else 2,
        unseen=unseen,
    )


def example(seed: int, split: str, index: int, settings: Settings = Settings()) -> Question:
    """The question at a place of an endless, random-access sequence: the same at every call.

    Two places may hold the same contents, which small settings make likely; two splits never do.

    Args:
      seed: of the sequence.
      split: "train", "test_id" (unseen contents) or "test_ood" (unseen contents, each with a
        held-out pair on a held-out ground among more items, or with more numbers).
      index: from 0.
      settings: what the questions are like.

    Raises:
      ValueError: an unknown split, or settings that leave a split without contents.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {tuple(SPLITS)}")
    rng = random.Random(f"shapes {seed} {split} {index}")
    text_only = rng.random() < settings.text_share
    name = rng.choice(settings.text_questions if text_only else settings.questions)
    drawn_from = look(settings, split)
    for _ in range(5000):
        asked = ASKS[name].draw(rng, drawn_from)
        scene = asked.scene
        if scene and drawn_from.unseen and not any(item.pair in HELD_OUT for item in scene.items):
            continue
        question = Question(name, asked.args, scene, asked.options, settings.wording)
        if question.split == split:
            return question
    raise ValueError(f"5,000 {name!r} questions in a row, none in {split}: {settings}")


def generate(seed: int, split: str, count: int, settings: Settings = Settings()) -> list[Question]:
    """The first `count` questions of a sequence; see `example`."""
    return [example(seed, split, i, settings) for i in range(count)]


# --- mistakes ----------------------------------------------------------------------------------

# What may be mistaken about an item so that the answer changes.
_MISTAKES = {
    "title": ("shape", "colour"),
    "count": ("shape", "colour", "overlooked"),
    "colour": ("colour",),
    "colour_choice": ("colour",),
    "shape": ("shape",),
    "yesno": ("shape", "colour", "overlooked"),
    "compare": ("shape", "overlooked"),
    "position": ("cell",),
}


def misread(question: Question, rng: random.Random, tries: int = 60) -> Question | None:
    """The question as one sees it who misreads the picture, or the numbers: its answer is wrong.

    One to three things are seen otherwise: an item overlooked, its shape, its colour or its cell
    mistaken, a number taken for its neighbour. What is asked stays.

    Returns:
      A question with the same words and options and another answer; None where none was found.
    """
    seen = question
    for attempt in range(tries):
        if attempt % 3 == 0:
            seen = question
        try:
            seen = _altered(seen, rng)
        except ValueError:  # no single answer, or none of the options
            continue
        if seen.answer != question.answer:
            return seen
    return None


def _altered(question: Question, rng: random.Random) -> Question:
    scene = question.scene
    if scene is None:
        numbers: list[Any] = list(question.args)
        place = rng.randrange(len(numbers))
        numbers[place] = max(0, numbers[place] + rng.choice((-1, 1)))
        return dataclasses.replace(question, args=tuple(numbers))
    items = list(scene.items)
    # Mostly one that the question is about.
    about = [item for item in items if {item.shape, item.colour} & set(question.args)]
    item = rng.choice(about if about and rng.random() < 0.8 else items)
    kind = rng.choice(_MISTAKES[question.name])
    items.remove(item)
    if kind == "cell":
        items.append(_elsewhere(item, items, scene, rng))
    elif kind != "overlooked" or not items:
        names = SHAPES if kind == "shape" else tuple(COLOURS)
        other = dataclasses.replace(
            item, **{"colour" if kind != "shape" else kind: rng.choice(names)}
        )
        # A held-out pair must not turn up in a text of another split either.
        items.append(other if other.pair not in HELD_OUT or item.pair in HELD_OUT else item)
    return dataclasses.replace(
        question, scene=dataclasses.replace(scene, items=reading_order(items))
    )


def _elsewhere(item: Item, others: list[Item], scene: Scene, rng: random.Random) -> Item:
    """An item in a free cell, its own among them."""
    taken = {(other.row, other.column) for other in others}
    rows, columns = scene.grid
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    row, column = rng.choice([cell for cell in cells if cell not in taken])
    left, top, _, _ = cell_box(scene.side, scene.grid, row, column)
    was_left, was_top, _, _ = cell_box(scene.side, scene.grid, item.row, item.column)
    at = (item.at[0] - was_left + left, item.at[1] - was_top + top)
    return dataclasses.replace(item, row=row, column=column, at=at)
