"""Multi-turn demonstrations for navigation: plausible mistakes, what was wrong, and the repair.

Maps are FrozenLake's or mazes (`mazes.Maze`): all that matters is how a map answers to steps.

A demonstration says in words what an ideal player would: propose a path, look at the drawn
path, name the first step that fails, propose again, commit. Proposals that are wrong on purpose
are shown and never trained on.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

from vrrl_jax.data.frozenlake import ACTIONS, Map


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of a reply.

    Attributes:
      text: what is written.
      alternatives: texts that would be as good in its place, itself among them; a soft target
        spreads its weight over them. Empty: the text alone.
      weight: of its loss; 0 for what is shown but not taught.
    """

    text: str
    alternatives: tuple[str, ...] = ()
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class DemonstrationReply:
    """One turn of the assistant; `end_weight` is the loss weight of the end-of-turn token."""

    pieces: tuple[Piece, ...]
    end_weight: float

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def demonstrate(
    map: Map,
    rng: random.Random,
    *,
    wrong_first: float = 0.6,
    second_error: float = 0.2,
    max_turns: int = 4,
    soft_targets: bool = True,
    decision_weight: float = 1.0,
) -> tuple[DemonstrationReply, ...]:
    """One episode's replies.

    Args:
      map: a solvable map or maze.
      rng: draws mistakes and ties between optimal paths.
      wrong_first: probability that the first proposal is wrong.
      second_error: probability that a revision is wrong again, where turns are left.
      max_turns: upper bound of replies, the commit included; at least 2, 1 for a lone proposal.
      soft_targets: give every action its equally good alternatives.
      decision_weight: loss weight of the tag that opens a revision or a commit.
    """
    if max_turns < 2:
        return (_proposal(map, optimal_path(map, rng), soft_targets),)
    replies, earlier = [], []
    wrong = rng.random() < wrong_first
    while True:
        # The last two turns are needed for the right proposal and the commit.
        if wrong and len(replies) < max_turns - 2:
            actions = mistake(map, rng, earlier)
        else:
            actions, wrong = optimal_path(map, rng), False
        fault = diagnose(map, earlier[-1]) if earlier else None
        replies.append(
            _proposal(map, actions, soft_targets, fault, decision_weight, trained=not wrong)
        )
        earlier.append(actions)
        if not wrong:
            break
        wrong = rng.random() < second_error
    pieces = [Piece("<FINAL>", weight=decision_weight)]
    pieces += [Piece(word) for word in _words(earlier[-1])]
    replies.append(DemonstrationReply((*pieces, Piece("</FINAL>")), 1.0))
    return tuple(replies)


def optimal_path(map: Map, rng: random.Random) -> tuple[str, ...]:
    """A shortest path, each tie drawn uniformly."""
    cell, path = map.start, []
    while cell != map.target:
        path.append(rng.choice(map.optimal_actions(cell)))
        cell, _ = map.move(cell, path[-1])
    return tuple(path)


def diagnose(map: Map, actions: tuple[str, ...]) -> tuple[int, str]:
    """The first step (counted from 1) at which a proposal fails, and how.

    hole: it enters a hole; off: it leaves the grid; wall: it runs into a wall of a maze; detour:
    it comes no nearer; over: the goal was reached before; short: every step is good, and the goal
    is not reached; good: nothing.
    """
    cell = map.start
    for i, action in enumerate(actions, 1):
        if cell == map.target:
            return i, "over"
        after, legal = map.move(cell, action)
        if after == cell:
            return i, map.blocked
        if not legal:
            return i, "hole"
        if map.distances[after] >= map.distances[cell]:
            return i, "detour"
        cell = after
    return len(actions), "good" if cell == map.target else "short"


def mistake(map: Map, rng: random.Random, earlier: list[tuple[str, ...]]) -> tuple[str, ...]:
    """A wrong proposal unlike the earlier ones: a slip, a miscount, a straight line, or noise."""
    for _ in range(100):
        path = list(optimal_path(map, rng))
        kind = rng.random()
        if kind < 0.30:
            path[rng.randrange(len(path))] = rng.choice(ACTIONS)
        elif kind < 0.42 and len(path) > 1:
            path = path[: rng.randrange(1, len(path))]
        elif kind < 0.54:
            path.insert(rng.randrange(len(path) + 1), rng.choice(ACTIONS))
        elif kind < 0.90:
            path = _straight(map, rng)
        else:
            path = [rng.choice(ACTIONS) for _ in range(rng.randint(1, map.shortest + 2))]
        path = tuple(path)
        if path and path not in earlier and diagnose(map, path)[1] != "good":
            return path
    # The smallest maps run out of them: a wrong first step, repeated until it is new.
    wrong = rng.choice([a for a in ACTIONS if a not in map.optimal_actions(map.start)])
    lengths = itertools.count(1)
    return next((wrong,) * n for n in lengths if (wrong,) * n not in earlier)


def _straight(map: Map, rng: random.Random) -> list[str]:
    """Toward the goal as if nothing were in the way, sometimes a step too few or too many."""
    (r0, c0), (r1, c1) = divmod(map.start, map.size), divmod(map.target, map.size)
    path = ["down" if r1 > r0 else "up"] * abs(r1 - r0)
    path += ["right" if c1 > c0 else "left"] * abs(c1 - c0)
    if rng.random() < 0.3:
        path.append(rng.choice(path))
    elif rng.random() < 0.3 and len(path) > 1:
        path.pop()
    rng.shuffle(path)
    return path


def _words(actions: tuple[str, ...]) -> list[str]:
    return [action if i == 0 else f" {action}" for i, action in enumerate(actions)]


def _proposal(
    map: Map,
    actions: tuple[str, ...],
    soft_targets: bool,
    fault: tuple[int, str] | None = None,
    decision_weight: float = 1.0,
    trained: bool = True,
) -> DemonstrationReply:
    pieces = []
    if fault is not None:
        step, kind = fault
        pieces.append(Piece("<THINK>", weight=decision_weight))
        pieces += [Piece(word) for word in (" step", f" {step}", f" {kind}", "</THINK>")]
    weight = 1.0 if trained else 0.0
    pieces.append(Piece("<ANSWER>", weight=1.0))
    cell = map.start
    for i, (word, action) in enumerate(zip(_words(actions), actions, strict=True)):
        good = map.optimal_actions(cell) if trained and soft_targets else ()
        lead = "" if i == 0 else " "
        pieces.append(Piece(word, tuple(lead + a for a in good), weight))
        cell, _ = map.move(cell, action)
    pieces.append(Piece("</ANSWER>", weight=weight))
    return DemonstrationReply(tuple(pieces), weight)
