"""Shortest ways over a square grid, whatever stands in them: what maps and mazes share."""

from __future__ import annotations

import functools
import hashlib

import numpy as np


class Grid:
    """A square grid of cells, counted row by row from 0; a base class.

    Who derives from it has `layout` (rows of characters), `size` (cells a side), `start` and
    `target` (cells), and `passages`: for every cell, action -> the cell that a legal step leads to.
    Steps lead back the way they came.
    """

    layout: tuple[str, ...]
    size: int
    start: int
    target: int
    passages: tuple[dict[str, int], ...]

    @functools.cached_property
    def key(self) -> str:
        """SHA-1 of the layout: start and target are part of it."""
        return hashlib.sha1("/".join(self.layout).encode()).hexdigest()

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """int32 [size * size], steps to the target by the shortest way; -1 where there is none."""
        out = [-1] * self.size**2
        out[self.target] = 0
        frontier = [self.target]
        for cell in frontier:  # grows as it is read
            for near in self.passages[cell].values():
                if out[near] < 0:
                    out[near] = out[cell] + 1
                    frontier.append(near)
        distances = np.array(out, np.int32)
        distances.setflags(write=False)
        return distances

    @property
    def shortest(self) -> int:
        """Length of a shortest path; -1 where there is none."""
        return int(self.distances[self.start])

    @property
    def solvable(self) -> bool:
        return self.shortest > 0

    def optimal_actions(self, cell: int) -> tuple[str, ...]:
        """The actions that bring `cell` one step nearer to the target, in the order of ACTIONS."""
        distance = self.distances[cell]
        return tuple(
            action
            for action, near in self.passages[cell].items()
            if distance > 0 and self.distances[near] == distance - 1
        )
