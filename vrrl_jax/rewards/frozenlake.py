"""The reward of VRRL's released FrozenLake recipe (arXiv 2607.02490), and its metrics.

It scores mazes (`data.mazes.Maze`) alike: they answer to the same calls as `Map`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vrrl_jax.data.frozenlake import Map
from vrrl_jax.processing.parsing import Reply, parse_reply
from vrrl_jax.rewards import reflection

Actions = Sequence[str]


def em(actions: Actions, map: Map) -> bool:
    """Exact match: legal steps alone, as many as a shortest path has, the last one on the goal."""
    return len(actions) == map.shortest and strict(actions, map)


def strict(actions: Actions, map: Map) -> bool:
    """Reaches the goal by legal steps alone; what follows the goal doesn't count, as published."""
    cell = map.start
    for action in actions:
        cell, legal = map.move(cell, action)
        if not legal:
            return False
        if cell == map.target:
            return True
    return False


def lenient(actions: Actions, map: Map) -> bool:
    """Reaches the goal at some step; a step that can't be made stays, one into a hole ends it."""
    cell = map.start
    for action in actions:
        after, legal = map.move(cell, action)
        if not legal and after != cell:
            return False
        cell = after
        if cell == map.target:
            return True
    return False


def progress(actions: Actions, map: Map, *, overshoot_zero: bool = True) -> float:
    """Share of a shortest path that the proposal gets right from its start, in 0 .. 1.

    The longest prefix whose every step is legal and lowers the distance to the goal, over the
    shortest length. With `overshoot_zero` a proposal that completes it and goes on scores 0.
    """
    cell, good = map.start, 0
    for action in actions:
        after, legal = map.move(cell, action)
        if not legal or map.distances[after] >= map.distances[cell]:
            break
        cell, good = after, good + 1
    if overshoot_zero and good == map.shortest and len(actions) > good:
        return 0.0
    return good / map.shortest


def reflect(
    proposals: Sequence[Actions],
    map: Map,
    *,
    lambda_deg: float = 0.5,
    lower_clip: float = 0.0,
    overshoot_zero: bool = True,
) -> float:
    """Sum of the progress differences between proposals, drops times `lambda_deg`.

    Clipped to lower_clip .. 1; 0 with fewer than two proposals.
    """
    levels = [progress(p, map, overshoot_zero=overshoot_zero) for p in proposals]
    return reflection.reflect(levels, lambda_deg=lambda_deg, lower_clip=lower_clip)


def well_formed(replies: Sequence[Reply], *, min_turns: int = 1) -> bool:
    """Whether an episode keeps the protocol in every respect.

    Every turn parses; the first is a proposal; exactly one commit, the last turn; no empty action
    list; the commit repeats the proposal before it; no proposal repeats an earlier one; at least
    `min_turns` turns; THINK in every revision, and in neither the first turn nor the commit.
    """
    return reflection.well_formed(_turns(replies), min_turns=min_turns)


def score(
    turns: Sequence[str],
    map: Map,
    *,
    correct_value: float = 1.0,
    format_value: float = 0.1,
    lambda_deg: float = 0.5,
    reflect_weight: float = 0.9,
    reflect_lower_clip: float = 0.0,
    em_reflect_bonus_weight: float = 0.1,
    em_reflect_step_discount: float = 1.0,
    step_cost: float = 0.01,
    overshoot_zero: bool = True,
    min_turns: int = 1,
    single_turn: bool = False,
    graded: bool = False,
    outcome_weight: float = 0.0,
    prefix_turns: int = 0,
    prefix_right: bool = False,
    decision_bonus: float = 0.0,
) -> dict[str, float]:
    """Scores an episode.

        total = 0                                        where the format is broken
              = correct + w_em reflect d^revisions - c revisions     where the answer is em
              = format + w_r reflect  [+ w_o progress, capped at correct]      elsewhere

    plus, where the format holds, the decision bonus. The answer is the last commit that can be
    read, else the last proposal. Rolled-in turns count like the episode's own.

    Args:
      turns: the assistant's texts in order, rolled-in ones included.
      map: what was asked about, solvable.
      correct_value, format_value: worth of an exact match, of mere form.
      lambda_deg, reflect_lower_clip, overshoot_zero: see `reflect` and `progress`.
      reflect_weight: w_r.  em_reflect_bonus_weight: w_em, where reflect > 0.
      em_reflect_step_discount: d.  step_cost: c.  min_turns: see `well_formed`.
      single_turn: an episode is one reply: a lone proposal has a form, and is the answer.
      graded, outcome_weight: switches the bracket on, and w_o.
      prefix_turns, prefix_right: of a rolled-in episode, how many turns were given, and whether
        the last of them is right.
      decision_bonus: b. After a wrong prefix +b for a revision that ends em, -b for committing
        at once; after a right prefix +b for committing at once, -b for a revision.

    Returns:
      `total`, its parts, and the metrics of an episode; all floats, flags 0 or 1.

    Raises:
      TypeError: one text in place of a list of them.
      ValueError: the map has no solution.
    """
    if isinstance(turns, str):
        raise TypeError("turns must be a list of texts, one a reply; got one text")
    if not map.solvable:
        raise ValueError(f"the goal of {list(map.layout)} can't be reached from its start")
    replies = [parse_reply(text) for text in turns]
    parts = reflection.score(
        _turns(replies),
        lambda actions: em(actions, map),
        lambda actions: progress(actions, map, overshoot_zero=overshoot_zero),
        correct_value=correct_value,
        format_value=format_value,
        lambda_deg=lambda_deg,
        reflect_weight=reflect_weight,
        reflect_lower_clip=reflect_lower_clip,
        em_reflect_bonus_weight=em_reflect_bonus_weight,
        em_reflect_step_discount=em_reflect_step_discount,
        step_cost=step_cost,
        min_turns=min_turns,
        single_turn=single_turn,
        graded=graded,
        outcome_weight=outcome_weight,
        prefix_turns=prefix_turns,
        prefix_right=prefix_right,
        decision_bonus=decision_bonus,
    )
    answer = reflection.answer(_turns(replies))
    return parts | {
        "strict_success": float(strict(answer, map)),
        "lenient_success": float(lenient(answer, map)),
    }


def _turns(replies: Sequence[Reply]) -> list[reflection.Turn]:
    return [reflection.Turn(reply.kind, reply.actions, reply.has_think) for reply in replies]
