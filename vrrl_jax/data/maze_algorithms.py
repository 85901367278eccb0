"""How mazes are carved: which sides between the cells of a grid are open.

Some algorithms are held out: only the out-of-distribution split draws them, so it must stay
marked here.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import NamedTuple

from vrrl_jax.data.frozenlake import neighbours

Side = tuple[int, int]  # two cells that share a side, the lower one first


@functools.lru_cache(maxsize=64)
def _beside(n: int) -> tuple[tuple[int, ...], ...]:
    """The neighbours of every cell of an n x n grid."""
    return tuple(tuple(near.values()) for near in neighbours(n))


@functools.lru_cache(maxsize=64)
def _sides(n: int) -> tuple[Side, ...]:
    """All pairs of cells of an n x n grid that share a side."""
    return tuple((cell, near) for cell in range(n * n) for near in _beside(n)[cell] if cell < near)


def _side(a: int, b: int) -> Side:
    return (a, b) if a < b else (b, a)


def _depth_first(n: int, rng: random.Random) -> set[Side]:
    """Backtracker: few branches, long winding corridors."""
    path = [rng.randrange(n * n)]
    seen, open_ = set(path), set()
    while path:
        new = [near for near in _beside(n)[path[-1]] if near not in seen]
        if not new:
            path.pop()
            continue
        near = rng.choice(new)
        open_.add(_side(path[-1], near))
        seen.add(near)
        path.append(near)
    return open_


def _wilson(n: int, rng: random.Random) -> set[Side]:
    """Random walks with their loops erased (Wilson 1996): every tree is as likely."""
    inside, open_ = {rng.randrange(n * n)}, set()
    for first in rng.sample(range(n * n), n * n):
        after, cell = {}, first
        while cell not in inside:
            after[cell] = rng.choice(_beside(n)[cell])
            cell = after[cell]
        cell = first  # the last exits alone are followed: loops are gone
        while cell not in inside:
            inside.add(cell)
            open_.add(_side(cell, after[cell]))
            cell = after[cell]
    return open_


def _braided(n: int, rng: random.Random) -> set[Side]:
    """A tree with walls taken out again: loops, and several shortest paths."""
    open_ = (_depth_first if rng.random() < 0.5 else _wilson)(n, rng)
    walls = [side for side in _sides(n) if side not in open_]
    return open_ | set(rng.sample(walls, round(len(walls) * rng.uniform(0.2, 0.6))))


def _prim(n: int, rng: random.Random) -> set[Side]:
    """Grows from a cell by random sides: many short dead ends."""
    first = rng.randrange(n * n)
    inside, open_ = {first}, set()
    frontier = [(first, near) for near in _beside(n)[first]]
    while frontier:
        cell, near = frontier.pop(rng.randrange(len(frontier)))
        if near not in inside:
            inside.add(near)
            open_.add(_side(cell, near))
            frontier += [(near, beyond) for beyond in _beside(n)[near] if beyond not in inside]
    return open_


def _division(n: int, rng: random.Random) -> set[Side]:
    """Halves rooms by walls with one gate each: long straight walls."""
    open_, rooms = set(_sides(n)), [(0, 0, n, n)]
    while rooms:
        top, left, height, width = rooms.pop()
        if height == 1 or width == 1:  # a corridor stays as it is
            continue
        if height > width or (height == width and rng.random() < 0.5):
            row = top + rng.randrange(1, height)
            wall = [((row - 1) * n + c, row * n + c) for c in range(left, left + width)]
            rooms += [(top, left, row - top, width), (row, left, top + height - row, width)]
        else:
            column = left + rng.randrange(1, width)
            wall = [(r * n + column - 1, r * n + column) for r in range(top, top + height)]
            rooms += [(top, left, height, column - left)]
            rooms += [(top, column, height, left + width - column)]
        wall.pop(rng.randrange(len(wall)))
        open_.difference_update(wall)
    return open_


def _scattered(n: int, rng: random.Random) -> set[Side]:
    """Every side is open by chance: open places, islands, cells that nothing reaches."""
    share = rng.uniform(0.5, 0.75)
    return {side for side in _sides(n) if rng.random() < share}


class Algorithm(NamedTuple):
    """How sides are opened: `carve(size, rng)` gives the open ones; and whether it is held out."""

    carve: Callable[[int, random.Random], set[Side]]
    held_out: bool = False


ALGORITHMS = {
    "depth_first": Algorithm(_depth_first),
    "wilson": Algorithm(_wilson),
    "braided": Algorithm(_braided),
    "prim": Algorithm(_prim, held_out=True),
    "division": Algorithm(_division, held_out=True),
    "scattered": Algorithm(_scattered, held_out=True),
}
IN_DOMAIN = tuple(name for name, algorithm in ALGORITHMS.items() if not algorithm.held_out)
