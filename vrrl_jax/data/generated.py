"""Generated tasks as records: pictures, questions, answers and boxes, ready to be stored.

Nothing has to be stored to be trained on: the tasks draw their examples as they are needed. Stored
ones are for other tools, for eyes, and to hold an evaluation fixed.
"""

from __future__ import annotations

import io
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from vrrl_jax.data.records import At, Id, Record, open_kind

SPLITS = ("train", "test_id", "test_ood")
_PATH = (
    "Which moves lead from the start to the goal by a shortest way? Answer with moves out of "
    "left, down, right and up, with commas between them."
)
_LAKE = "The picture shows a frozen lake with holes. The elf is the start, the gift the goal. "
_MAZE = "The picture shows a maze from above. "


def png(picture: np.ndarray) -> bytes:
    """uint8 [height, width, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def records(
    task: str, split: str, count: int, seed: int = 0, settings: Any = None
) -> Iterator[Record]:
    """The first `count` examples of a generated task.

    Args:
      task: a key of `TASKS`.
      split: of `SPLITS`; no two share contents.
      count: how many.
      seed: the same seed gives the same examples.
      settings: of the task's own kind; None: its defaults.

    Raises:
      ValueError: an unknown task or split, or settings that allow no example.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {SPLITS}")
    return itertools.islice(TASKS[task](split, count, seed, settings), count)


def _shortest(map: Any) -> str:
    """A shortest path of a map or maze, the first in the order of the moves."""
    cell, moves = map.start, []
    while cell != map.target:
        moves.append(map.optimal_actions(cell)[0])
        cell = map.move(cell, moves[-1])[0]
    return ", ".join(moves)


def _path_record(id: Id, question: str, map: Any, picture: np.ndarray) -> Record:
    extra = {"layout": list(map.layout), "shortest": map.shortest}
    return Record(
        id=id,
        question=f"<image>{question}{_PATH}",
        pictures=(png(picture),),
        answer=_shortest(map),
        kind="text",
        category=f"{map.size}x{map.size}",
        extra=extra | {"start_pos": map.start, "target_pos": map.target},
    )


def _frozenlake(split: str, count: int, seed: int, settings: Any) -> Iterator[Record]:
    """Maps of 3 to 5 cells a side, split by their contents; "test_ood" has 6 to 8.

    `settings` are further arguments of `frozenlake.generate`.
    """
    from vrrl_jax.data import frozenlake
    from vrrl_jax.render.frozenlake import render

    wanted = {"levels": (6, 7, 8) if split == "test_ood" else (3, 4, 5)} | dict(settings or {})
    maps: list[frozenlake.Map] = []
    tried = count
    while len(maps) < count:  # what is generated begins with what was generated before
        tried += tried // 2 + 8
        sides = frozenlake.split(frozenlake.generate(seed, tried, **wanted), 0.2)
        maps = sides[split != "train"]
    for row, map in enumerate(maps):
        yield _path_record(Id(f"frozenlake_{split}", row), _LAKE, map, render(map))


def _mazes(split: str, count: int, seed: int, settings: Any) -> Iterator[Record]:
    from vrrl_jax.data import mazes
    from vrrl_jax.render.mazes import render

    for row in itertools.count():
        maze, style = mazes.example(seed, split, row, settings or mazes.Settings())
        yield _path_record(Id(f"mazes_{split}", row), _MAZE, maze, render(maze, style))


def _maze_questions(split: str, count: int, seed: int, settings: Any) -> Iterator[Record]:
    """Turns and directions, three questions for each maze."""
    from vrrl_jax.data import maze_questions
    from vrrl_jax.data.mappers import spatial

    rows = maze_questions.questions(
        seed, -(-count // 3), split=split, settings=settings or maze_questions.SETTINGS
    )
    for number, row in enumerate(rows):
        at = At(f"maze_questions_{split}", number, pathlib.Path())
        yield spatial.spatialeval(at, row)


def _tables(split: str, count: int, seed: int, settings: Any) -> Iterator[Record]:
    from vrrl_jax.data import tables
    from vrrl_jax.render import tables as drawing

    yield from _marked("tables", tables, drawing, split, seed, settings)


def _charts(split: str, count: int, seed: int, settings: Any) -> Iterator[Record]:
    from vrrl_jax.data import charts
    from vrrl_jax.render import charts as drawing

    yield from _marked("charts", charts, drawing, split, seed, settings)


def _marked(task, module, drawing, split: str, seed: int, settings: Any) -> Iterator[Record]:
    """A task whose pictures come with boxes; those of what is asked for are the record's."""
    for row in itertools.count():
        shown, style = module.example(seed, split, row, settings or module.Settings())
        drawn = drawing.render(shown, style)
        boxes = drawing.target_boxes(shown, drawn)
        yield Record(
            id=Id(f"{task}_{split}", row),
            question=f"<image>{shown.question}",
            pictures=(png(drawn.image),),
            answer=shown.answer,
            kind=open_kind(shown.answer),
            boxes=tuple(tuple(map(float, box)) for box in boxes),
            category=shown.kind,
        )


def _shapes(split: str, count: int, seed: int, settings: Any) -> Iterator[Record]:
    """Questions about drawn shapes, some without a picture."""
    from vrrl_jax.data import shapes
    from vrrl_jax.render.shapes import render

    for row in itertools.count():
        asked = shapes.example(seed, split, row, settings or shapes.Settings())
        yield Record(
            id=Id(f"shapes_{split}", row),
            question=asked.question if asked.scene is None else f"<image>{asked.question}",
            pictures=() if asked.scene is None else (png(render(asked.scene)),),
            answer=asked.answer,
            kind=asked.kind,
            options=asked.options,
            category=asked.category,
        )


TASKS: dict[str, Callable[[str, int, int, Any], Iterator[Record]]] = {
    "frozenlake": _frozenlake,
    "mazes": _mazes,
    "maze_questions": _maze_questions,
    "tables": _tables,
    "charts": _charts,
    "shapes": _shapes,
}
