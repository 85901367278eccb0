"""Scenes of every kind of example that can be pointed at: tables, charts, records with boxes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from vrrl_jax.data import charts, tables
from vrrl_jax.data.records import MARK, PictureSource, Record
from vrrl_jax.data.scenes import Scene as Scene
from vrrl_jax.processing.images import open_image
from vrrl_jax.render import charts as chart_pictures
from vrrl_jax.render import tables as table_pictures

# A group's rollouts come one after the other and share one picture; a batch has many groups.
CACHED = 256


def scene(example: Any) -> Scene:
    """The scene of an example; a group's rollouts share it, drawn or decoded once.

    Args:
      example: a `data.tables.Example`, a `data.charts.Example`, a `data.records.Record` with one
        picture and boxes in its pixels, or a `Scene`, which is returned as it is.

    Raises:
      TypeError: anything else.
      ValueError: a record without boxes or with another number of pictures, or a picture that
        can't be decoded.
      FileNotFoundError: a record's picture that isn't there.
    """
    if isinstance(example, Scene):
        return example
    if isinstance(example, tables.Example):
        return _table(example)
    if isinstance(example, charts.Example):
        return _chart(example)
    if isinstance(example, Record):
        if len(example.pictures) != 1 or not example.boxes:
            raise ValueError(
                f"{example.id}: {len(example.pictures)} pictures and {len(example.boxes)} boxes, "
                "expected one picture and at least one box"
            )
        return of_record(example, _opened(example.pictures[0]))
    raise TypeError(f"no scene of a {type(example).__name__}")


def of_record(record: Record, picture: np.ndarray) -> Scene:
    """The scene of a record whose picture, uint8 [H, W, 3], was decoded elsewhere."""
    question = record.question.replace(MARK, "").strip()
    # A set's answer to "where is it?" is the box itself, which is no answer in words.
    answer = "" if record.kind == "box" else record.answer
    return Scene(picture, question, tuple(record.boxes), answer, noun="object")


@functools.lru_cache(maxsize=CACHED)
def _table(example: tables.Example) -> Scene:
    drawn = table_pictures.render(*example)
    drawn.image.setflags(write=False)
    asked = set(example.table.targets)
    return Scene(
        picture=drawn.image,
        question=example.table.question,
        targets=table_pictures.target_boxes(example.table, drawn),
        answer=example.table.answer,
        others=tuple(box for key, box in drawn.boxes["cell"].items() if key not in asked),
        headers=tuple(drawn.boxes["header"].values()),
    )


@functools.lru_cache(maxsize=CACHED)
def _chart(example: charts.Example) -> Scene:
    drawn = chart_pictures.render(*example)
    drawn.image.setflags(write=False)
    names = (drawn.boxes.get(kind, {}) for kind in ("category_text", "legend_text"))
    return Scene(
        picture=drawn.image,
        question=example.chart.question,
        targets=chart_pictures.target_boxes(example.chart, drawn),
        answer=example.chart.answer,
        others=chart_pictures.others(example.chart, drawn),
        headers=tuple(box for boxes in names for box in boxes.values()),
        points=chart_pictures.target_points(example.chart, drawn),
        noun="mark",
    )


@functools.lru_cache(maxsize=64)
def _opened(source: PictureSource) -> np.ndarray:
    return open_image(source)
