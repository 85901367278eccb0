"""A picture with a question whose answer lies at a place in it."""

from __future__ import annotations

import dataclasses

import numpy as np

from vrrl_jax.coordinates import Box, Point


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What a grounding episode is about, whatever its picture shows.

    All boxes are (x1, y1, x2, y2) in pixels of `picture`, half-open: the right and the lower edge
    belong to the neighbour.

    Attributes:
      picture: uint8 [H, W, 3], read-only.
      question: what is asked.
      targets: at least one box; a point in any of them is right, and so is a box that overlaps
        enough with any of them.
      answer: the question's answer in words; "" where there is none.
      others: boxes of marks of the targets' kind that aren't asked for.
      headers: boxes of what names the marks: headers of columns, legends and the like.
      points: for each target the (x, y) that shows it best, inside of its box; empty where that is
        every box's middle. The middle of a sector's box may lie in another sector.
      noun: what a mark is called: "cell", "bar", "object".

    Raises:
      ValueError: no target, one without an area, or another number of points.
    """

    picture: np.ndarray
    question: str
    targets: tuple[Box, ...]
    answer: str = ""
    others: tuple[Box, ...] = ()
    headers: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    noun: str = "cell"

    def __post_init__(self):
        if not self.targets:
            raise ValueError("a scene needs at least one target")
        if len(self.points) not in (0, len(self.targets)):
            raise ValueError(f"{len(self.points)} points for {len(self.targets)} targets")
        for x1, y1, x2, y2 in self.targets:
            if not (x1 < x2 and y1 < y2):
                raise ValueError(f"a target without an area: {(x1, y1, x2, y2)}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture in pixels."""
        return self.picture.shape[1], self.picture.shape[0]
