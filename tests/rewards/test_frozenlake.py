"""The released reward, rule by rule, with values worked out by hand."""

import inspect

import pytest

import vrrl_jax as vr
from vrrl_jax.config import NavigationReward
from vrrl_jax.data.frozenlake import Map
from vrrl_jax.processing.parsing import parse_reply
from vrrl_jax.rewards import frozenlake as rewards
from vrrl_jax.rewards.frozenlake import score

# Any two rights and two downs are a shortest path.
OPEN = Map(("SFF", "FFF", "FFG"), 0, 8)
# A hole right of the start: the way is down down right right, or down right down right.
HOLED = Map(("SHF", "FFH", "FFG"), 0, 8)

BEST, OTHER = "right right down down", "down down right right"
QUARTER, HALF, MOST = "right up", "right right", "right right down"  # of OPEN's four steps


def propose(actions):
    return f"<ANSWER>{actions}</ANSWER>"


def revise(actions):
    return f"<THINK>hm</THINK><ANSWER>{actions}</ANSWER>"


def commit(actions):
    return f"<FINAL>{actions}</FINAL>"


def episode(*proposals):
    """A well-formed episode of these proposals, the last one committed."""
    first, *later = proposals
    return [propose(first), *(revise(actions) for actions in later), commit(proposals[-1])]


def total(turns, map=OPEN, **options):
    return pytest.approx(score(turns, map, **options)["total"], abs=1e-12)


# --- em, progress, reflect ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "map", "expected"),
    [
        (BEST, OPEN, True),
        (OTHER, OPEN, True),
        ("right down right down", OPEN, True),
        (MOST, OPEN, False),  # too short
        (f"{BEST} down", OPEN, False),  # the goal isn't reached on the last move
        ("right left right right down down", OPEN, False),  # reaches it, too long
        ("right right up down", OPEN, False),  # the right length, off the grid
        ("right down left down", OPEN, False),  # the right length, elsewhere
        (OTHER, HOLED, True),
        ("down right down right", HOLED, True),
        (BEST, HOLED, False),  # the right length, through a hole
        ("down right right down", HOLED, False),
        ("", OPEN, False),
    ],
)
def test_em(actions, map, expected):
    assert rewards.em(actions.split(), map) is expected
    assert score(episode(actions), map)["em"] == expected


@pytest.mark.parametrize(
    ("actions", "map", "expected", "overshooting"),
    [
        ("", OPEN, 0.0, 0.0),
        ("right", OPEN, 0.25, 0.25),
        (QUARTER, OPEN, 0.25, 0.25),  # a wall ends the prefix
        (HALF, OPEN, 0.5, 0.5),
        (MOST, OPEN, 0.75, 0.75),
        (BEST, OPEN, 1.0, 1.0),
        ("up right right down down", OPEN, 0.0, 0.0),  # only a prefix counts
        ("right left right right down down", OPEN, 0.25, 0.25),  # a step back ends it
        ("right right down left down right", OPEN, 0.75, 0.75),
        ("right down", HOLED, 0.0, 0.0),  # a hole ends it
        ("down right right", HOLED, 0.5, 0.5),
        # Completing a shortest path and going on: 0, or 1 where that isn't punished.
        (f"{BEST} up", OPEN, 0.0, 1.0),
        (f"{BEST} right", OPEN, 0.0, 1.0),
        (f"{OTHER} left left", HOLED, 0.0, 1.0),
        # Long without having arrived is no overshoot.
        ("right right right right right right", OPEN, 0.5, 0.5),
    ],
)
def test_progress(actions, map, expected, overshooting):
    actions = actions.split()
    assert rewards.progress(actions, map) == expected
    assert rewards.progress(actions, map, overshoot_zero=True) == expected
    assert rewards.progress(actions, map, overshoot_zero=False) == overshooting


@pytest.mark.parametrize(
    ("proposals", "expected"),
    [
        ([], 0.0),
        ([BEST], 0.0),
        ([QUARTER, MOST], 0.5),
        ([MOST, QUARTER], 0.0),  # -0.25, clipped
        ([QUARTER, MOST, HALF], 0.5 - 0.5 * 0.25),
        ([HALF, QUARTER, MOST], -0.5 * 0.25 + 0.5),
        (["up", BEST, "left", OTHER], 1.0),  # 1 - 0.5 + 1, clipped
        ([QUARTER, "right"], 0.0),
        # An overshoot counts as nothing reached.
        ([f"{BEST} up", BEST], 1.0),
        ([MOST, f"{BEST} up"], 0.0),
    ],
)
def test_reflect(proposals, expected):
    split = [actions.split() for actions in proposals]
    assert rewards.reflect(split, OPEN) == pytest.approx(expected)
    if proposals:
        assert score(episode(*proposals), OPEN)["reflect"] == pytest.approx(expected)


def test_reflect_options():
    drop = [MOST.split(), QUARTER.split()]
    assert rewards.reflect(drop, OPEN, lower_clip=-1.0) == -0.25
    assert rewards.reflect(drop, OPEN, lower_clip=-0.1) == -0.1
    assert rewards.reflect(drop, OPEN, lower_clip=-1.0, lambda_deg=2.0) == -1.0
    assert rewards.reflect(drop, OPEN, lower_clip=-1.0, lambda_deg=0.0) == 0.0
    assert rewards.reflect(drop[:1], OPEN, lower_clip=0.5) == 0.0  # nothing was revised
    passing = [MOST.split(), f"{BEST} up".split()]
    assert rewards.reflect(passing, OPEN, overshoot_zero=False) == 0.25


# --- format ------------------------------------------------------------------------------------

WELL_FORMED = [episode(BEST), episode(HALF), episode(HALF, BEST), episode(QUARTER, MOST, HALF)]
ILL_FORMED = {
    "no turns": [],
    "no commit": [propose(HALF), revise(BEST)],
    "a lone proposal": [propose(BEST)],
    "a lone commit": [commit(BEST)],
    "two commits": [propose(BEST), commit(BEST), commit(BEST)],
    "a commit before the end": [propose(HALF), commit(HALF), revise(BEST)],
    "no proposal first": [commit(BEST), propose(BEST), commit(BEST)],
    "another commit than proposed": [propose(HALF), commit(BEST)],
    "a commit of an earlier proposal": [propose(BEST), revise(HALF), commit(BEST)],
    "a reordered commit": [propose(BEST), commit(OTHER)],
    "a proposal repeated at once": [propose(BEST), revise(BEST), commit(BEST)],
    "a proposal repeated later": [propose(BEST), revise(HALF), revise(BEST), commit(BEST)],
    "an empty proposal": [propose(""), revise(BEST), commit(BEST)],
    "an empty revision": [propose(HALF), revise(""), revise(BEST), commit(BEST)],
    "all empty": [propose(""), commit("")],
    "THINK first": [revise(BEST), commit(BEST)],
    "THINK in the commit": [propose(BEST), "<THINK>sure</THINK>" + commit(BEST)],
    "a revision without THINK": [propose(HALF), propose(BEST), commit(BEST)],
    "a later revision without THINK": [*episode(QUARTER, HALF)[:2], propose(BEST), commit(BEST)],
    "an unclosed THINK": [propose(HALF), f"<THINK>hm{propose(BEST)}", commit(BEST)],
    "an unknown action": [propose("right north"), revise(BEST), commit(BEST)],
    "an unreadable turn": [propose(HALF), "hm", commit(BEST)],
    "an unreadable commit": [propose(BEST), "<FINAL>right right down down"],
}


@pytest.mark.parametrize("turns", WELL_FORMED)
def test_well_formed(turns):
    assert score(turns, OPEN)["format"] == 0.1 and score(turns, OPEN)["total"] > 0
    assert rewards.well_formed([parse_reply(text) for text in turns])


@pytest.mark.parametrize("turns", ILL_FORMED.values(), ids=ILL_FORMED)
def test_ill_formed_episodes_earn_nothing(turns):
    for options in ({}, {"graded": True, "outcome_weight": 1.0}, {"format_value": 0.7}):
        parts = score(turns, OPEN, **options)
        assert parts["format"] == parts["total"] == 0.0
    given = score(turns, OPEN, prefix_turns=1, prefix_right=True, decision_bonus=0.3)
    assert given["total"] == 0.0


def test_where_the_actions_go_doesnt_matter_to_the_format():
    for actions in ("up", "left left left", "right right right"):
        assert score(episode(actions), HOLED)["format"] == 0.1


def test_separators_and_case_dont_make_proposals_differ():
    turns = [propose("Right,RIGHT  down\ndown"), commit(BEST)]
    assert score(turns, OPEN)["total"] == 1.0
    assert score([propose(BEST), revise("RIGHT,right,down,down"), commit(BEST)], OPEN)["total"] == 0


def test_min_turns():
    assert total(episode(BEST), min_turns=2) == 1.0
    assert total(episode(BEST), min_turns=3) == 0.0
    assert total(episode(HALF, BEST), min_turns=3) == 1.04
    assert total(episode(HALF, BEST), min_turns=4) == 0.0
    assert total([], min_turns=0) == 0.0


# --- total -------------------------------------------------------------------------------------


def test_right_at_once():
    assert score(episode(BEST), OPEN)["total"] == 1.0


def test_right_after_revisions():
    assert total(episode(HALF, BEST)) == 1 + 0.1 * 0.5 - 0.01
    # 0.25 -> 0.75 -> 0.5 -> 1: 0.5 - 0.125 + 0.5
    assert total(episode(QUARTER, MOST, HALF, BEST)) == 1 + 0.1 * 0.875 - 0.03
    # From one right answer to another: nothing gained, a turn paid.
    assert total(episode(BEST, OTHER)) == 1 - 0.01
    # Down and up again: -0.5 * 0.5 + 0.5
    assert total(episode(BEST, HALF, OTHER)) == 1 + 0.1 * 0.25 - 0.02


def test_wrong():
    assert total(episode(HALF)) == 0.1
    assert total(episode(MOST, QUARTER)) == 0.1
    assert total(episode(QUARTER, MOST)) == 0.1 + 0.9 * 0.5
    assert total(episode(QUARTER, MOST, HALF)) == 0.1 + 0.9 * 0.375
    # Through the right answer and away from it: 0.5 - 0.5 * 0.25.
    assert total(episode(HALF, BEST, MOST)) == 0.1 + 0.9 * 0.375
    # Overshooting pays like having reached nothing.
    assert total(episode(MOST, f"{BEST} up")) == 0.1


def test_options_of_a_right_answer():
    turns = episode(QUARTER, HALF, BEST)  # reflect 0.75, 2 revisions
    assert total(turns) == 1 + 0.1 * 0.75 - 0.02
    assert total(turns, correct_value=2.0) == 2 + 0.1 * 0.75 - 0.02
    assert total(turns, em_reflect_bonus_weight=0.0) == 1 - 0.02
    assert total(turns, em_reflect_bonus_weight=0.4) == 1 + 0.4 * 0.75 - 0.02
    assert total(turns, em_reflect_step_discount=0.5) == 1 + 0.1 * 0.75 * 0.25 - 0.02
    assert total(turns, em_reflect_step_discount=0.0) == 1 - 0.02
    assert total(turns, step_cost=0.0) == 1 + 0.1 * 0.75
    assert total(turns, step_cost=0.2) == 1 + 0.1 * 0.75 - 0.4
    # What belongs to wrong answers doesn't matter.
    same = {"reflect_weight": 0.0, "format_value": 0.0, "graded": True, "outcome_weight": 5.0}
    assert total(turns, **same) == 1 + 0.1 * 0.75 - 0.02
    assert total(turns, correct_value=0.0) == 0.1 * 0.75 - 0.02


def test_a_negative_reflect_takes_nothing_from_a_right_answer():
    turns = episode(BEST, HALF, OTHER)  # with lambda 2: -1 + 0.5
    options = {"lambda_deg": 2.0, "reflect_lower_clip": -1.0}
    assert score(turns, OPEN, **options)["reflect"] == -0.5
    assert total(turns, **options) == 1 - 0.02


def test_options_of_a_wrong_answer():
    turns = episode(QUARTER, MOST, HALF)  # 0.5 and -0.25
    assert total(turns, lambda_deg=1.0) == 0.1 + 0.9 * 0.25
    assert total(turns, lambda_deg=0.0) == 0.1 + 0.9 * 0.5
    assert total(turns, reflect_weight=0.0) == 0.1
    assert total(turns, reflect_weight=0.5) == 0.1 + 0.5 * 0.375
    assert total(turns, format_value=0.3) == 0.3 + 0.9 * 0.375
    assert total(turns, format_value=0.0) == 0.9 * 0.375  # well-formed still, worth nothing
    # Neither the cost nor the bonus of right answers applies, and nothing caps without `graded`.
    assert total(turns, step_cost=0.5, em_reflect_bonus_weight=9.0) == 0.1 + 0.9 * 0.375
    assert total(turns, reflect_weight=8.0) == 0.1 + 8 * 0.375
    assert total(turns, outcome_weight=5.0) == 0.1 + 0.9 * 0.375
    worse = episode(MOST, QUARTER)
    assert total(worse, reflect_lower_clip=-1.0) == 0.1 - 0.9 * 0.25
    assert total(worse, reflect_lower_clip=-0.1) == 0.1 - 0.9 * 0.1


def test_overshoot_zero_reaches_every_part():
    passing = f"{BEST} up"
    turns = episode(MOST, passing)
    assert score(turns, OPEN)["progress"] == 0.0
    parts = score(turns, OPEN, overshoot_zero=False)
    assert (parts["progress"], parts["reflect"]) == (1.0, 0.25)
    assert parts["total"] == pytest.approx(0.1 + 0.9 * 0.25)
    graded = {"graded": True, "outcome_weight": 0.5}
    assert total(episode(passing), **graded) == 0.1
    assert total(episode(passing), **graded, overshoot_zero=False) == 0.6


def test_graded():
    turns = episode(QUARTER, MOST)
    assert total(turns, graded=True, outcome_weight=0.2) == 0.1 + 0.45 + 0.2 * 0.75
    assert total(turns, graded=True, outcome_weight=1.0) == 1.0  # 1.3, capped
    assert total(turns, graded=True, outcome_weight=1.0, correct_value=0.8) == 0.8
    assert total(turns, graded=True, outcome_weight=0.0) == 0.55
    assert total(episode(HALF), graded=True, outcome_weight=0.9) == 0.1 + 0.45
    assert total(episode(BEST), graded=True, outcome_weight=0.9) == 1.0
    # The cap bounds from above only.
    worse = episode(MOST, QUARTER)
    options = {"graded": True, "outcome_weight": 0.2, "reflect_lower_clip": -1.0}
    assert total(worse, **options) == 0.1 - 0.9 * 0.25 + 0.2 * 0.25


def test_decision_bonus():
    right, wrong = {"prefix_right": True}, {"prefix_right": False}
    given = {"prefix_turns": 1, "decision_bonus": 0.25}
    # A wrong prefix: revising to the right answer pays, committing at once costs.
    assert total(episode(HALF, BEST), **given, **wrong) == 1.04 + 0.25
    assert total(episode(HALF), **given, **wrong) == 0.1 - 0.25
    assert total(episode(QUARTER, MOST), **given, **wrong) == 0.55  # revised, not to the end
    # The mirror image.
    assert total(episode(BEST), **given, **right) == 1.25
    assert total(episode(BEST, OTHER), **given, **right) == 0.99 - 0.25
    assert total(episode(BEST, HALF), **given, **right) == 0.1 - 0.25
    # The decision is the first own turn's, later ones don't matter.
    assert total(episode(HALF, MOST, BEST), **given, **wrong) == 1 + 0.05 - 0.02 + 0.25
    two = {"prefix_turns": 2, "decision_bonus": 0.25}
    assert total(episode(QUARTER, HALF, BEST), **two, **wrong) == 1 + 0.075 - 0.02 + 0.25
    assert total(episode(QUARTER, BEST), **two, **right) == 1 + 0.075 - 0.01 + 0.25
    # It rides on top of the cap of the graded mode.
    graded = {"graded": True, "outcome_weight": 9.0}
    assert total(episode(HALF), **given, **wrong, **graded) == 1 - 0.25


def test_no_decision_no_bonus():
    plain = total(episode(HALF, BEST))
    assert score(episode(HALF, BEST), OPEN, decision_bonus=0.5)["total"] == plain
    assert score(episode(HALF, BEST), OPEN, prefix_turns=1)["total"] == plain
    assert score(episode(HALF, BEST), OPEN, prefix_turns=3, decision_bonus=0.5)["total"] == plain


def test_defaults_are_the_released_values():
    released = {
        "lambda_deg": 0.5,
        "reflect_weight": 0.9,
        "reflect_lower_clip": 0.0,
        "em_reflect_bonus_weight": 0.1,
        "em_reflect_step_discount": 1.0,
        "step_cost": 0.01,
        "overshoot_zero": True,
        "min_turns": 1,
        "correct_value": 1.0,
        "decision_bonus": 0.0,
        "graded": False,
    }
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(score).parameters.items()
        if parameter.default is not parameter.empty
    }
    assert {name: defaults[name] for name in released} == released
    # A recipe's options are these options.
    configured = vars(NavigationReward())
    assert {name: defaults[name] for name in configured} == configured
    for turns in (*WELL_FORMED, *ILL_FORMED.values()):
        assert score(turns, OPEN) == score(turns, OPEN, **released)


# --- metrics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (episode(BEST), "success turn1_em final_em commit_em clean_commit strict lenient"),
        (
            episode(HALF, BEST),
            "success final_em commit_em clean_commit wrong_to_right strict lenient",
        ),
        (episode(BEST, HALF), "turn1_em clean_commit right_to_wrong"),
        (episode(HALF), "clean_commit"),
        (
            [propose(HALF), revise(BEST)],
            "final_em wrong_to_right budget_exhausted lost strict lenient",
        ),
        ([propose(BEST), "hm"], "turn1_em final_em format_error lost strict lenient"),
        ([propose(HALF), commit(BEST)], "final_em commit_em wrong_to_right lost strict lenient"),
        ([propose(BEST), commit(HALF)], "turn1_em right_to_wrong"),
        ([propose(HALF)], "budget_exhausted"),
        (["hm"], "format_error"),
        ([], "format_error"),
        # Past the goal: reached all the same, by both readings, though no exact match.
        (episode(f"{BEST} up up"), "clean_commit strict lenient"),
        # Into a wall on the way: only the lenient reading forgives.
        (episode(f"up {BEST}"), "clean_commit lenient"),
        (episode("right left right right down down"), "clean_commit strict lenient"),
    ],
)
def test_metrics(turns, expected):
    names = {"strict": "strict_success", "lenient": "lenient_success", "lost": "lost_to_format"}
    expected = {names.get(name, name) for name in expected.split()}
    flags = {
        "success", "turn1_em", "final_em", "commit_em", "clean_commit", "wrong_to_right",
        "right_to_wrong", "strict_success", "lenient_success", "format_error",
        "budget_exhausted", "lost_to_format",
    }  # fmt: skip
    parts = score(turns, OPEN)
    assert {name for name in flags if parts[name]} == expected
    assert all(parts[name] in (0.0, 1.0) for name in flags)
    assert parts["turns"] == len(turns)
    assert all(type(value) is float for value in parts.values())


def test_a_hole_ends_both_readings_of_success():
    parts = score(episode(BEST), HOLED)  # starts into a hole
    assert parts["strict_success"] == parts["lenient_success"] == 0.0


def test_the_answer_is_the_last_commit_else_the_last_proposal():
    assert score([propose(BEST), commit(HALF)], OPEN)["progress"] == 0.5
    assert score([commit(HALF), commit(MOST)], OPEN)["progress"] == 0.75
    assert score([commit(HALF), propose(MOST)], OPEN)["progress"] == 0.5
    assert score([propose(HALF), revise(MOST)], OPEN)["progress"] == 0.75
    assert score([propose(MOST), "<FINAL>north</FINAL>"], OPEN)["progress"] == 0.75


def test_misuse_is_an_error():
    with pytest.raises(TypeError, match="a list of texts"):
        score(propose(BEST), OPEN)
    with pytest.raises(ValueError, match="can't be reached"):
        score(episode(BEST), Map(("SH", "HG"), 0, 3))
    with pytest.raises(TypeError, match="lambda_degree"):
        score(episode(BEST), OPEN, lambda_degree=0.5)
    assert vr.rewards.frozenlake.score is score
