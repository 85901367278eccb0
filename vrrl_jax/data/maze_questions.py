"""Questions about a maze and the path drawn in it, as rows of SpatialEval's shape.

Three are asked of every maze: how often the path turns right, how often it turns at all, and
whether E lies in a stated direction from S. The maze is shown as a picture, as text, or as both.
`loading.load` reads the rows with the mapper "spatialeval" (arXiv 2406.14852); the words are this
library's own.
"""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image

from vrrl_jax.data.demonstrations import optimal_path
from vrrl_jax.data.mazes import Maze, Settings, example
from vrrl_jax.render.mazes import SPATIALEVAL, render

MODES = ("vqa", "tqa", "vtqa")  # the picture, the text, both
LETTERS = "ABCD"
SETTINGS = Settings(min_steps=3)

_CLOCKWISE = ("up", "right", "down", "left")
# (rows down, columns to the right), by their signs.
DIRECTIONS = {
    (-1, -1): "above and to the left of",
    (-1, 0): "straight above",
    (-1, 1): "above and to the right of",
    (0, -1): "straight to the left of",
    (0, 1): "straight to the right of",
    (1, -1): "below and to the left of",
    (1, 0): "straight below",
    (1, 1): "below and to the right of",
}

_PICTURE = (
    "The picture shows a maze from above. Walls are black. The green square is the start S, the "
    "red square the end E, and a path from S to E is coloured blue."
)
_TEXT = (
    "The maze is written in characters, seen from above. # is wall, a space is open, S is the "
    "start, E is the end, and X marks a path from S to E."
)
_BOTH = "Here is the same maze in characters: # is wall, a space is open, X is the blue path."


class Question(NamedTuple):
    """What is asked.

    Attributes:
      text: the question.
      options: four texts, all different.
      answer: one of them.
    """

    text: str
    options: tuple[str, ...]
    answer: str


def turns(actions: Sequence[str]) -> list[str]:
    """Where the walker turns, in order: "left", "right" or "back", as the walker sees it."""
    names = {1: "right", 2: "back", 3: "left"}
    headings = [_CLOCKWISE.index(action) for action in actions]
    return [names[(b - a) % 4] for a, b in itertools.pairwise(headings) if a != b]


def characters(maze: Maze, actions: Sequence[str] = ()) -> str:
    """The maze as lines of text, a path from the start marked X between S and E.

    Raises:
      ValueError: a step into a wall.
    """
    rows = [list(row) for row in maze.layout]
    for row, column in maze.trail(actions):
        if rows[row][column] == " ":
            rows[row][column] = "X"
    return "\n".join("".join(row) for row in rows)


def direction(maze: Maze) -> str:
    """Where E lies as seen from S: one of `DIRECTIONS`."""
    (r0, c0), (r1, c1) = divmod(maze.start, maze.size), divmod(maze.target, maze.size)
    down, right = (r1 > r0) - (r1 < r0), (c1 > c0) - (c1 < c0)
    return DIRECTIONS[down, right]


def ask(maze: Maze, actions: Sequence[str], rng: random.Random) -> tuple[Question, ...]:
    """The three questions about a path from S to E, in the order of their numbers."""
    made = turns(actions)
    right = made.count("right")
    stated = there = direction(maze)
    if rng.random() < 0.5:
        stated = rng.choice([other for other in DIRECTIONS.values() if other != there])
    options = ["Yes", "No", "E can't be seen", "S and E are in one place"]
    rng.shuffle(options)
    return (
        Question(
            "Follow the path from S to E. How many times does it turn right?",
            _numbers(right, (made.count("left"), len(made)), rng),
            str(right),
        ),
        Question(
            "Follow the path from S to E. How many turns does it make in all?",
            _numbers(len(made), (right, len(actions)), rng),
            str(len(made)),
        ),
        Question(
            f"Whatever the path does, is E {stated} S?",
            tuple(options),
            "Yes" if stated == there else "No",
        ),
    )


def _numbers(answer: int, tempting: Sequence[int], rng: random.Random) -> tuple[str, ...]:
    """Four numbers in random order, the answer among them.

    How many of them are below it is drawn first: as far as small numbers allow, no rank is the
    better guess. The others are close by, or what a likely mistake gives.
    """
    pool = {*range(max(0, answer - 4), answer + 5), *tempting}
    below = rng.randint(0, min(3, answer))
    chosen = rng.sample(sorted(number for number in pool if number < answer), below)
    chosen += rng.sample(sorted(number for number in pool if number > answer), 3 - below)
    return tuple(map(str, rng.sample([answer, *chosen], len(LETTERS))))


def questions(
    seed: int,
    count: int,
    mode: str = "vqa",
    split: str = "train",
    settings: Settings = SETTINGS,
    cell: int = 28,
) -> Iterator[dict[str, Any]]:
    """Rows about random mazes, three for each, drawn in SpatialEval's look.

    Args:
      seed: the same seed gives the same mazes, paths and options in every mode.
      count: mazes.
      mode: one of `MODES`.
      split: as for `mazes.example`; the look is the same in all.
      settings: what the mazes are like; their styles don't count.
      cell: pixels of a cell's pitch.

    Yields:
      `id` "mazenav.{mode}.{maze}.{question}", `image` {"bytes": a PNG file, "path": None} or None,
      `text`, `oracle_answer`, `oracle_option` (its letter) and `oracle_full_answer` ("B. 4").

    Raises:
      ValueError: an unknown mode, or what `mazes.example` raises.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: expected one of {MODES}")
    for instance in range(count):
        maze = example(seed, split, instance, settings, SPATIALEVAL).maze
        rng = random.Random(f"maze question {seed} {split} {instance}")
        path = optimal_path(maze, rng)
        image = None if mode == "tqa" else {"bytes": _png(maze, path, cell), "path": None}
        for number, question in enumerate(ask(maze, path, rng)):
            letter = LETTERS[question.options.index(question.answer)]
            yield {
                "id": f"mazenav.{mode}.{instance}.{number}",
                "image": image,
                "text": _text(maze, path, mode, question),
                "oracle_answer": question.answer,
                "oracle_option": letter,
                "oracle_full_answer": f"{letter}. {question.answer}",
            }


def _png(maze: Maze, path: Sequence[str], cell: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(maze, SPATIALEVAL, cell=cell, trail=path)).save(file, "png")
    return file.getvalue()


def _text(maze: Maze, path: Sequence[str], mode: str, question: Question) -> str:
    shown = {"vqa": [_PICTURE], "tqa": [_TEXT], "vtqa": [_PICTURE, _BOTH]}[mode]
    if mode != "vqa":
        shown = [*shown, characters(maze, path)]
    options = [f"{a}. {text}" for a, text in zip(LETTERS, question.options, strict=True)]
    return "\n".join([*shown, question.text, "Available options:", *options])
