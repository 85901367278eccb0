"""What all tasks of proposing, looking and revising are scored by, whatever a proposal is.

An episode is a sequence of turns, each a proposal, a commit or invalid, with a content that can be
compared (a path, a place). A task says which contents are right and how far each has come, in
0 .. 1. The totals are those of VRRL's released recipe (arXiv 2607.02490).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple


class Turn(NamedTuple):
    """A reply, read.

    Attributes:
      kind: what it is.
      content: what is proposed or committed to; empty where it is invalid, or names nothing.
      has_think: whether a thought stands in it.
    """

    kind: Literal["proposal", "commit", "invalid"]
    content: tuple[Any, ...]
    has_think: bool


def well_formed(turns: Sequence[Turn], *, min_turns: int = 1, single_turn: bool = False) -> bool:
    """Whether an episode keeps the protocol in every respect.

    Every turn parses; the first is a proposal; exactly one commit, the last turn; nothing empty;
    the commit repeats the proposal before it; no proposal repeats an earlier one; at least
    `min_turns` turns; THINK in every revision, and in neither the first turn nor the commit.

    With `single_turn`: one turn that says something, a proposal or a commit, with THINK or without.
    """
    if single_turn:
        return len(turns) == 1 and turns[0].kind != "invalid" and bool(turns[0].content)
    if len(turns) < max(2, min_turns) or any(not turn.content for turn in turns):
        return False
    *proposals, commit = turns
    contents = [turn.content for turn in proposals]
    return (
        commit.kind == "commit"
        and all(turn.kind == "proposal" for turn in proposals)
        and commit.content == contents[-1]
        and len(set(contents)) == len(contents)
        and not commit.has_think
        and not proposals[0].has_think
        and all(turn.has_think for turn in proposals[1:])
    )


def clean_commit(turns: Sequence[Turn]) -> bool:
    """Whether the episode ends by repeating its last proposal, without further thought."""
    if len(turns) < 2 or turns[-1].kind != "commit" or turns[-2].kind != "proposal":
        return False
    commit = turns[-1]
    return bool(commit.content) and commit.content == turns[-2].content and not commit.has_think


def answer(turns: Sequence[Turn]) -> tuple[Any, ...]:
    """The content that counts: of the last commit, else of the last proposal; () without any."""
    for kind in ("commit", "proposal"):
        contents = [turn.content for turn in turns if turn.kind == kind]
        if contents:
            return contents[-1]
    return ()


def reflect(levels: Sequence[float], *, lambda_deg: float = 0.5, lower_clip: float = 0.0) -> float:
    """Sum of the differences between the proposals' levels, drops times `lambda_deg`.

    Clipped to lower_clip .. 1; 0 with fewer than two levels.
    """
    if len(levels) < 2:
        return 0.0
    return min(1.0, max(lower_clip, sum(_changes(levels, lambda_deg))))


def gains(levels: Sequence[float], *, lambda_deg: float = 0.5, lower_clip: float = 0.0):
    """What each revision adds to `reflect`, in order: a list of floats, one less than levels."""
    sums = itertools.accumulate(_changes(levels, lambda_deg))
    clipped = [0.0, *(min(1.0, max(lower_clip, value)) for value in sums)]
    return [after - before for before, after in itertools.pairwise(clipped)]


def _changes(levels: Sequence[float], lambda_deg: float) -> list[float]:
    changes = [b - a for a, b in itertools.pairwise(levels)]
    return [change if change >= 0 else lambda_deg * change for change in changes]


def score(
    turns: Sequence[Turn],
    right: Callable[[tuple[Any, ...]], bool],
    progress: Callable[[tuple[Any, ...]], float],
    *,
    correct_value: float = 1.0,
    format_value: float = 0.1,
    lambda_deg: float = 0.5,
    reflect_weight: float = 0.9,
    reflect_lower_clip: float = 0.0,
    em_reflect_bonus_weight: float = 0.1,
    em_reflect_step_discount: float = 1.0,
    step_cost: float = 0.01,
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
              = correct + w_em reflect d^revisions - c revisions     where the answer is right
              = format + w_r reflect  [+ w_o progress, capped at correct]      elsewhere

    plus, where the format holds, the decision bonus. The answer is the last commit that can be
    read, else the last proposal. Rolled-in turns count like the episode's own.

    Args:
      turns: in order, rolled-in ones included.
      right, progress: of a content, () among them: whether it is right ("em"), and 0 .. 1.
      correct_value, format_value: worth of a right answer, of mere form.
      lambda_deg, reflect_lower_clip: see `reflect`.
      reflect_weight: w_r.  em_reflect_bonus_weight: w_em, where reflect > 0.
      em_reflect_step_discount: d.  step_cost: c.
      min_turns, single_turn: see `well_formed`. Without a further turn there is nothing to commit
        to: a lone proposal has a form, and is the answer.
      graded, outcome_weight: switches the bracket on, and w_o.
      prefix_turns, prefix_right: of a rolled-in episode, how many turns were given, and whether
        the last of them is right.
      decision_bonus: b. After a wrong prefix +b for a revision that ends right, -b for committing
        at once; after a right prefix +b for committing at once, -b for a revision.

    Returns:
      `total`, its parts, and the metrics of an episode; all floats, flags 0 or 1.
    """
    proposals = [turn.content for turn in turns if turn.kind == "proposal"]
    committed = any(turn.kind == "commit" for turn in turns)
    last, first = answer(turns), turns[0].content if turns else ()
    formed = well_formed(turns, min_turns=min_turns, single_turn=single_turn)
    is_right, began_right = right(last), right(first)
    levels = [progress(proposal) for proposal in proposals]
    reflection = reflect(levels, lambda_deg=lambda_deg, lower_clip=reflect_lower_clip)
    advanced = progress(last)
    revisions = max(0, len(proposals) - 1)
    bonus = outcome = 0.0
    if not formed:
        total = 0.0
    elif is_right:
        if reflection > 0:
            bonus = em_reflect_bonus_weight * reflection * em_reflect_step_discount**revisions
        total = correct_value + bonus - step_cost * revisions
    else:
        total = format_value + reflect_weight * reflection
        if graded:
            outcome = outcome_weight * advanced
            total = min(correct_value, total + outcome)
    decided = 0.0
    if formed:
        decided = decision(turns, prefix_turns, prefix_right, is_right) * decision_bonus
    invalid = any(turn.kind == "invalid" for turn in turns)
    return {
        "total": total + decided,
        "format": format_value if formed else 0.0,
        "em": float(is_right),
        "reflect": reflection,
        "progress": advanced,
        "reflect_bonus": bonus,
        "outcome": outcome,
        "decision": decided,
        "revision_cost": step_cost * revisions if formed and is_right else 0.0,
        "success": float(formed and is_right),
        "lost_to_format": float(is_right and not formed),
        "turn1_em": float(began_right),
        "final_em": float(is_right),
        "commit_em": float(committed and is_right),
        "wrong_to_right": float(is_right and not began_right),
        "right_to_wrong": float(began_right and not is_right),
        "clean_commit": float(clean_commit(turns)),
        "format_error": float(invalid or not turns),
        "budget_exhausted": float(
            bool(turns) and not committed and not invalid and not single_turn
        ),
        "turns": float(len(turns)),
    }


def decision(turns: Sequence[Turn], given: int, prefix_right: bool, right: bool) -> int:
    """+1, 0 or -1 for what the first turn after a rolled-in prefix does.

    | prefix | first own turn | answer | value |
    |--------|----------------|--------|-------|
    | wrong  | revises        | right  | +1    |
    | wrong  | commits        | any    | -1    |
    | right  | commits        | right  | +1    |
    | right  | revises        | any    | -1    |
    """
    if not given or len(turns) <= given:
        return 0
    kind = turns[given].kind
    good, bad = ("commit", "proposal") if prefix_right else ("proposal", "commit")
    if kind == bad:
        return -1
    return int(kind == good and right)
