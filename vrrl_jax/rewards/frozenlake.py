"""The reward of VRRL's released FrozenLake recipe (arXiv 2607.02490), and its metrics."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from vrrl_jax.data.frozenlake import Map
from vrrl_jax.processing.parsing import Reply, parse_reply

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
    """Reaches the goal at some step; a step off the grid stays, a step into a hole ends it."""
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
    if len(proposals) < 2:
        return 0.0
    levels = [progress(p, map, overshoot_zero=overshoot_zero) for p in proposals]
    changes = [b - a for a, b in itertools.pairwise(levels)]
    total = sum(change if change >= 0 else lambda_deg * change for change in changes)
    return min(1.0, max(lower_clip, total))


def well_formed(replies: Sequence[Reply], *, min_turns: int = 1) -> bool:
    """Whether an episode keeps the protocol in every respect.

    Every turn parses; the first is a proposal; exactly one commit, the last turn; no empty action
    list; the commit repeats the proposal before it; no proposal repeats an earlier one; at least
    `min_turns` turns; THINK in every revision, and in neither the first turn nor the commit.
    """
    if len(replies) < max(2, min_turns) or any(not r.actions for r in replies):
        return False
    *proposals, commit = replies
    actions = [r.actions for r in proposals]
    return (
        commit.kind == "commit"
        and all(r.kind == "proposal" for r in proposals)
        and commit.actions == actions[-1]
        and len(set(actions)) == len(actions)
        and not commit.has_think
        and not proposals[0].has_think
        and all(r.has_think for r in proposals[1:])
    )


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
    proposals = [r.actions for r in replies if r.kind == "proposal"]
    commits = [r.actions for r in replies if r.kind == "commit"]
    answer = commits[-1] if commits else (proposals[-1] if proposals else ())
    first = replies[0].actions if replies else ()
    formed = well_formed(replies, min_turns=min_turns)
    right, began_right = em(answer, map), em(first, map)
    reflection = reflect(
        proposals,
        map,
        lambda_deg=lambda_deg,
        lower_clip=reflect_lower_clip,
        overshoot_zero=overshoot_zero,
    )
    advanced = progress(answer, map, overshoot_zero=overshoot_zero)
    revisions = max(0, len(proposals) - 1)
    bonus = outcome = 0.0
    if not formed:
        total = 0.0
    elif right:
        if reflection > 0:
            bonus = em_reflect_bonus_weight * reflection * em_reflect_step_discount**revisions
        total = correct_value + bonus - step_cost * revisions
    else:
        total = format_value + reflect_weight * reflection
        if graded:
            outcome = outcome_weight * advanced
            total = min(correct_value, total + outcome)
    decision = 0.0
    if formed:
        decision = _decision(replies, prefix_turns, prefix_right, right) * decision_bonus
    invalid = any(r.kind == "invalid" for r in replies)
    return {
        "total": total + decision,
        "format": format_value if formed else 0.0,
        "em": float(right),
        "reflect": reflection,
        "progress": advanced,
        "reflect_bonus": bonus,
        "outcome": outcome,
        "decision": decision,
        "revision_cost": step_cost * revisions if formed and right else 0.0,
        "success": float(formed and right),
        "lost_to_format": float(right and not formed),
        "turn1_em": float(began_right),
        "final_em": float(right),
        "commit_em": float(bool(commits) and right),
        "wrong_to_right": float(right and not began_right),
        "right_to_wrong": float(began_right and not right),
        "strict_success": float(strict(answer, map)),
        "lenient_success": float(lenient(answer, map)),
        "clean_commit": float(_clean_commit(replies)),
        "format_error": float(invalid or not replies),
        "budget_exhausted": float(bool(replies) and not commits and not invalid),
        "turns": float(len(replies)),
    }


def _clean_commit(replies: Sequence[Reply]) -> bool:
    """Whether the episode ends by repeating its last proposal, without further thought."""
    if len(replies) < 2 or replies[-1].kind != "commit" or replies[-2].kind != "proposal":
        return False
    commit = replies[-1]
    return bool(commit.actions) and commit.actions == replies[-2].actions and not commit.has_think


def _decision(replies: Sequence[Reply], given: int, prefix_right: bool, right: bool) -> int:
    """+1, 0 or -1 for what the first turn after a rolled-in prefix does.

    | prefix | first own turn | answer | value |
    |--------|----------------|--------|-------|
    | wrong  | revises        | em     | +1    |
    | wrong  | commits        | any    | -1    |
    | right  | commits        | em     | +1    |
    | right  | revises        | any    | -1    |
    """
    if not given or len(replies) <= given:
        return 0
    kind = replies[given].kind
    good, bad = ("commit", "proposal") if prefix_right else ("proposal", "commit")
    if kind == bad:
        return -1
    return int(kind == good and right)
