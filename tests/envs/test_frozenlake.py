"""The conversation: what is shown, when it goes on and when it ends."""

import dataclasses

import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax.data.frozenlake import Map, generate
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.render.frozenlake import render

MAP = Map(("SFF", "HFF", "FFG"), 0, 8)
SMALL = env.Settings(cell=28, max_turns=3, question="Solve", verify="Verify")


def test_the_public_names_are_one_thing():
    assert vr.envs.frozenlake.Map is vr.data.frozenlake.Map is Map
    assert vr.envs.frozenlake.render is render


def test_reset_asks_and_shows_the_bare_map():
    prompt = env.reset(MAP, SMALL)
    assert prompt.text == "Solve"
    np.testing.assert_array_equal(prompt.pictures[0], render(MAP, None, 28))
    assert env.reset(MAP).pictures[0].shape == (192, 192, 3)
    assert env.reset(MAP).text == env.QUESTION


def test_the_default_texts_teach_the_tags():
    assert "<ANSWER>" in env.QUESTION and "</ANSWER>" in env.QUESTION
    for tag in ("ANSWER", "FINAL", "THINK"):
        assert f"<{tag}></{tag}>" in env.VERIFY
    for action in ("left", "right", "up", "down"):
        assert action in env.QUESTION


def test_a_proposal_is_answered_with_its_picture():
    outcome = env.step(MAP, "<ANSWER>right, down left</ANSWER>", 0, SMALL)
    assert not outcome.done and outcome.reply.kind == "proposal"
    assert outcome.prompt.text == "Verify"
    expected = render(MAP, ["right", "down", "left"], 28)
    np.testing.assert_array_equal(outcome.prompt.pictures[0], expected)
    assert (expected != render(MAP, None, 28)).any()


def test_right_and_wrong_proposals_are_answered_alike():
    """The picture is the only feedback: nothing tells that the goal was reached."""
    good = env.step(MAP, "<ANSWER>right right down down</ANSWER>", 0, SMALL)
    bad = env.step(MAP, "<ANSWER>up</ANSWER>", 0, SMALL)
    assert good.prompt.text == bad.prompt.text and good.done == bad.done is False


def test_a_proposal_without_actions_goes_on():
    outcome = env.step(MAP, "<ANSWER></ANSWER>", 0, SMALL)
    assert not outcome.done
    np.testing.assert_array_equal(outcome.prompt.pictures[0], render(MAP, [], 28))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<FINAL>right</FINAL>", "commit"),
        ("<ANSWER>up</ANSWER><FINAL>down</FINAL>", "commit"),
        ("<ANSWER>north</ANSWER>", "invalid"),
        ("I don't know", "invalid"),
        ("", "invalid"),
    ],
)
@pytest.mark.parametrize("turn", [0, 1])
def test_commits_and_unreadable_replies_end_the_episode(text, kind, turn):
    outcome = env.step(MAP, text, turn, SMALL)
    assert outcome.done and outcome.prompt is None and outcome.reply.kind == kind


def test_the_budget_ends_the_episode():
    text = "<ANSWER>right</ANSWER>"
    assert [env.step(MAP, text, turn, SMALL).done for turn in range(4)] == [
        False,
        False,
        True,
        True,
    ]
    last = env.step(MAP, text, 2, SMALL)
    assert last.prompt is None and last.reply.kind == "proposal"
    single = dataclasses.replace(SMALL, max_turns=1)
    assert env.step(MAP, text, 0, single).done
    assert not env.step(MAP, text, 6).done and env.step(MAP, text, 7).done  # eight by default


def test_an_environment_is_its_settings():
    bound = env.Environment(SMALL)
    for map in generate(0, 5):
        ours, theirs = bound.reset(map), env.reset(map, SMALL)
        assert ours.text == theirs.text
        np.testing.assert_array_equal(ours.pictures[0], theirs.pictures[0])
        ours = bound.step(map, "<ANSWER>up up</ANSWER>", 1)
        theirs = env.step(map, "<ANSWER>up up</ANSWER>", 1, SMALL)
        assert (ours.reply, ours.done) == (theirs.reply, theirs.done)
        np.testing.assert_array_equal(ours.prompt.pictures[0], theirs.prompt.pictures[0])


def test_a_revision_opens_as_the_parser_expects():
    text = f"{env.THINK}a hole</THINK><ANSWER>right</ANSWER>"
    assert env.step(MAP, text, 1, SMALL).reply.has_think


def test_a_whole_episode():
    turns = (
        "<ANSWER>down down right right</ANSWER>",
        "<THINK>step 1 hole</THINK><ANSWER>right right down down</ANSWER>",
        "<FINAL>right right down down</FINAL>",
    )
    outcomes = [env.step(MAP, text, turn, SMALL) for turn, text in enumerate(turns)]
    assert [outcome.reply.kind for outcome in outcomes] == ["proposal", "proposal", "commit"]
    assert [outcome.done for outcome in outcomes] == [False, False, True]
    # Each picture shows its own proposal on the bare map, not on the picture before.
    np.testing.assert_array_equal(
        outcomes[1].prompt.pictures[0], render(MAP, outcomes[1].reply.actions, 28)
    )
