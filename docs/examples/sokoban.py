"""Sokoban: push the box onto its mark. A whole task of one's own: rooms, pictures, environment,
reward, demonstrations.

    vrrl train docs/examples/sokoban.yaml

A room is a small grid; what lies outside is wall. A reply plans moves from the start, as in
<ANSWER>right up up</ANSWER>, and is answered with the room as these moves leave it; <FINAL> in
place of <ANSWER> is the last word.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from typing import NamedTuple

import numpy as np

from vrrl_jax.processing.parsing import Reply, parse_reply
from vrrl_jax.tasks.custom import Custom, options
from vrrl_jax.types import Outcome, Prompt

MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
FLOOR, LINE, WALL = (236, 232, 220), (205, 200, 190), (74, 72, 80)
BOX, HOME, MARK, PLAYER = (176, 124, 62), (88, 158, 84), (214, 64, 52), (44, 96, 190)

# --- rooms ---------------------------------------------------------------------------------------


class Room(NamedTuple):
    """A room; cells are (row, column)."""

    size: int
    walls: frozenset
    mark: tuple[int, int]
    box: tuple[int, int]
    player: tuple[int, int]

    def free(self, cell) -> bool:
        inside = 0 <= cell[0] < self.size and 0 <= cell[1] < self.size
        return inside and cell not in self.walls


def move(room: Room, action: str) -> Room:
    """The room after a step or a push; the same one where neither can be made."""
    step = MOVES[action]
    ahead = room.player[0] + step[0], room.player[1] + step[1]
    beyond = ahead[0] + step[0], ahead[1] + step[1]
    if not room.free(ahead) or (ahead == room.box and not room.free(beyond)):
        return room
    box = beyond if ahead == room.box else room.box
    return room._replace(player=ahead, box=box)


def play(room: Room, actions) -> Room:
    for action in actions:
        room = move(room, action)
    return room


def solve(room: Room, longest: int = 100) -> tuple[str, ...] | None:
    """A shortest solution, breadth first; None where none has up to `longest` moves."""
    found, queue = {room: ()}, collections.deque([room])
    while queue:
        at = queue.popleft()
        if at.box == at.mark:
            return found[at]
        for action in MOVES if len(found[at]) < longest else ():
            after = move(at, action)
            if after not in found:
                found[after] = (*found[at], action)
                queue.append(after)
    return None


def rooms(seed: int, count: int, size: int, longest: int) -> list[Room]:
    """`count` different rooms that can be solved, in 2 to `longest` moves."""
    rng, found = random.Random(f"{seed}/{size}"), {}
    cells = [(row, column) for row in range(size) for column in range(size)]
    while len(found) < count:
        mark, box, player, *rest = rng.sample(cells, len(cells))
        room = Room(size, frozenset(rest[: rng.randrange(size)]), mark, box, player)
        if len(solve(room, longest) or ()) >= 2:
            found[room] = None
    return list(found)


def draw(room: Room, cell: int) -> np.ndarray:
    """uint8 [size * cell, size * cell, 3]."""
    picture = np.full((room.size * cell, room.size * cell, 3), LINE, np.uint8)

    def fill(at, colour, share):
        inset = round(cell * (1 - share) / 2)
        top, left = at[0] * cell, at[1] * cell
        picture[top + inset : top + cell - inset, left + inset : left + cell - inset] = colour

    for at in np.ndindex(room.size, room.size):
        fill(at, WALL if at in room.walls else FLOOR, 0.93)
    fill(room.box, HOME if room.box == room.mark else BOX, 0.8)
    fill(room.mark, MARK, 0.3)  # over the box: it shows in either case
    fill(room.player, PLAYER, 0.55)
    return picture


# --- the task ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """What `options:` in the recipe may set; `sizes` beside `size` are out of distribution."""

    size: int = 4
    sizes: tuple[int, ...] = (5,)
    longest: int = 8
    count: int = 500
    cell: int = 28
    question: str = (
        "Push the brown box onto the red mark; you are blue, dark cells are walls. Answer with "
        "your moves (left, right, up, down), as in <ANSWER>right up</ANSWER>."
    )
    verify: str = (
        "This is the room after your moves. If the box is on the mark, repeat them inside <FINAL>"
        "</FINAL>. If not, give better moves, from the start, inside <ANSWER></ANSWER>."
    )


@dataclasses.dataclass(frozen=True)
class Sokoban:
    """The environment."""

    options: Options = Options()

    def reset(self, room: Room) -> Prompt:
        return Prompt(self.options.question, (draw(room, self.options.cell),))

    def step(self, room: Room, text: str, turn: int) -> Outcome:
        reply = parse_reply(text)
        if reply.kind != "proposal":
            return Outcome(done=True, reply=reply)
        after = draw(play(room, reply.actions), self.options.cell)
        return Outcome(False, Prompt(self.options.verify, (after,)), reply)


def reward(texts: tuple[str, ...], room: Room) -> dict[str, float]:
    """1 for a solution, 0.1 for an episode that can be read to its end; pushing helps a little."""
    replies = [parse_reply(text) for text in texts]
    last = replies[-1]
    if last.kind == "invalid":
        return {"total": 0.0, "success": 0.0, "turn1": solved(replies[0], room), "readable": 0.0}
    success, pushed = solved(last, room), play(room, last.actions).box != room.box
    total = 1.0 if success else 0.1 + 0.1 * pushed
    first = solved(replies[0], room)
    return {"total": total, "success": success, "turn1": first, "readable": 1.0}


def solved(reply: Reply, room: Room) -> float:
    return float(play(room, reply.actions).box == room.mark)


def demonstrate(room: Room, rng: random.Random) -> list[str]:
    """A solution, looked at and committed; for `vrrl sft`."""
    moves = " ".join(solve(room))
    return [f"<ANSWER>{moves}</ANSWER>", f"<FINAL>{moves}</FINAL>"]


def task(config, processor) -> Custom:
    """What the recipe names."""
    given, test = options(config.options, Options), config.eval.count
    drawn = rooms(config.seed, given.count + test, given.size, given.longest)
    name = lambda size: f"{size}x{size}"
    others = {name(s): rooms(config.eval.seed, test, s, given.longest) for s in given.sizes}
    return Custom(
        environment=Sokoban(given),
        reward=reward,
        train=drawn[:-test],
        test={name(given.size): drawn[-test:], **others},
        in_domain=(name(given.size),),
        probe="<ANSWER>up</ANSWER>",
        noun="rooms",
        metrics=("success", "turn1", "readable", "turns", "total"),
        demonstration=demonstrate,
    )
