"""The maze task: what is held out stays out, evaluation tells it apart, walls are walls."""

import random

import numpy as np
import pytest

from vrrl_jax import testing
from vrrl_jax.config import MazeData, MazeEval, NavigationEnv, NavigationReward
from vrrl_jax.data import mazes
from vrrl_jax.data.maze_algorithms import ALGORITHMS
from vrrl_jax.envs import mazes as envs
from vrrl_jax.render import mazes as pictures
from vrrl_jax.rewards import frozenlake as rewards
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.tasks.mazes import Mazes

# . S .   from the start right, then down; a wall to the left of the start
CORRIDOR = mazes.Maze(("#######", "# #S  #", "# ### #", "#    E#", "# # # #", "# # # #", "#######"))
EXAMPLE = mazes.Example(CORRIDOR, pictures.SPATIALEVAL)


def proposal(*actions: str, tag: str = "ANSWER") -> str:
    return f"<{tag}>{' '.join(actions)}</{tag}>"


# --- examples ------------------------------------------------------------------------------------


def test_training_holds_nothing_that_is_held_out():
    task = Mazes(MazeData(seed=3, count=80, sizes=(3, 5)))
    examples = task.training()
    assert len(examples) == 80
    for maze, style in examples:
        assert maze.size in (3, 5) and maze.shortest >= 2
        assert not style.held_out and not ALGORITHMS[maze.algorithm].held_out
        assert mazes.bucket_of(maze.key) == "train"
    assert {maze.size for maze, _ in examples} == {3, 5}
    assert list(examples[:4]) == [examples[i] for i in range(4)]
    fresh = task.fresh(random.Random(0), 20)
    assert all(mazes.split_of(*example) == "train" for example in fresh)
    assert {e.maze.key for e in fresh} != {e.maze.key for e in examples[:20]}


def test_evaluation_tells_apart_what_is_held_out():
    task = Mazes(MazeData(count=5), eval=MazeEval(count=12, seed=5))
    found = task.evaluation()
    names = ["in-domain", "size", "algorithm", "style", "size+algorithm+style"]
    assert list(dict.fromkeys(found.labels)) == names
    assert len(found.examples) == 15 and found.in_domain == {"in-domain"}
    for (maze, style), label in zip(found.examples, found.labels, strict=True):
        wrong = set(() if label == "in-domain" else label.split("+"))
        assert (maze.size > 5) == ("size" in wrong)
        assert ALGORITHMS[maze.algorithm].held_out == ("algorithm" in wrong)
        assert style.held_out == ("style" in wrong)
        assert mazes.bucket_of(maze.key) == ("test_ood" if wrong else "test_id")
    again = task.evaluation()
    assert [e.maze.key for e in again.examples] == [e.maze.key for e in found.examples]


def test_looks_and_sizes_are_drawn_as_told():
    data = MazeData(count=30, styles=("lines", "dark"), min_steps=4)
    held_out = MazeEval(count=20, held_out_sizes=(7,), held_out_styles=("neon",))
    task = Mazes(data, eval=held_out)
    assert {style.name for _, style in task.training()} == {"lines", "dark"}
    found = task.evaluation()
    assert {e.style.name for e in found.examples} == {"lines", "dark", "neon"}
    assert {e.maze.size for e in found.examples if e.maze.size > 5} == {7}
    assert min(e.maze.shortest for e in found.examples) >= 4


@pytest.mark.parametrize(
    ("data", "held_out", "words"),
    [
        ({"styles": ("neon",)}, {}, "data.styles takes"),
        ({}, {"held_out_styles": ("lines",)}, "eval.held_out_styles those"),
        ({"styles": ("plush",)}, {}, "plush"),
        ({"sizes": (3, 6)}, {}, "2 .. 5"),
        ({}, {"held_out_sizes": (5,)}, "above 5"),
    ],
)
def test_what_is_held_out_is_never_asked_for_in_training(data, held_out, words):
    with pytest.raises(ValueError, match=words):
        Mazes(MazeData(**data), eval=MazeEval(**held_out)).training()


def test_the_largest_maze_is_the_probe():
    task = Mazes(MazeData(count=40))
    ((largest, reply),) = task.probes(task.training())
    assert largest.maze.size == 5
    assert not task.environment.step(largest, reply, 0).done
    ((largest, _),) = task.probes(task.evaluation().examples)
    assert largest.maze.size == 7


# --- environment, reward, demonstrations ---------------------------------------------------------


def test_the_words_are_about_walls_and_the_recipe_s_own_win():
    board = Mazes().environment
    asked = board.reset(EXAMPLE)
    assert asked.text == envs.QUESTION and "wall" in asked.text and "green" in asked.text
    assert "lake" not in asked.text + envs.VERIFY and "hole" not in asked.text + envs.VERIFY
    told = board.step(EXAMPLE, proposal("left"), 0).prompt
    assert told.text == envs.VERIFY and "short bar" in told.text
    own = Mazes(env=NavigationEnv(cell=20, question="Solve")).environment
    assert own.reset(EXAMPLE).text == "Solve" and own.reset(EXAMPLE).pictures[0].shape[0] == 60
    assert own.settings.verify == envs.VERIFY


def test_a_step_into_a_wall_is_drawn_and_the_walker_stays():
    board = Mazes(env=NavigationEnv(cell=28)).environment
    show = lambda *actions: board.step(EXAMPLE, proposal(*actions), 0).prompt.pictures[0]
    bare = board.reset(EXAMPLE).pictures[0]
    np.testing.assert_array_equal(bare, pictures.render(CORRIDOR, cell=28))
    bumped = show("left")
    np.testing.assert_array_equal(bumped, pictures.render(CORRIDOR, actions=("left",), cell=28))
    # The bar stays within the start's cell, the star on it.
    changed = np.argwhere((bumped != bare).any(-1))
    assert changed.min(0).tolist() >= [0, 28] and changed.max(0).tolist() <= [27, 55]
    assert (show("left", "right", "down") != show("right", "down")).any()


def test_the_reward_is_navigation_s_on_the_maze():
    texts = (proposal("left"), "<THINK>wall</THINK>" + proposal("right", "down"))
    texts += (proposal("right", "down", tag="FINAL"),)
    assert CORRIDOR.shortest == 2
    wrong = Group(0, EXAMPLE, "roll_in", (np.zeros(1, np.int32),))
    task = Mazes(reward=NavigationReward(step_cost=0.25), decision_bonus=0.5)
    found = task.score(texts, EXAMPLE, wrong)
    assert found == rewards.score(
        texts, CORRIDOR, step_cost=0.25, prefix_turns=1, decision_bonus=0.5
    )
    assert found["success"] == found["wrong_to_right"] == 1 and found["decision"] == 0.5
    assert set(task.metrics) <= set(found)


def test_demonstrations_name_walls_and_end_at_the_red_end(tiny_processor):
    task = Mazes(MazeData(count=40))
    rng, faults = random.Random(0), set()
    for example in task.training():
        replies = task.demonstrate(example, rng, False)
        scored = task.score(tuple(r.text for r in replies), example, Group(0, example))
        assert scored["success"] == 1, [r.text for r in replies]
        faults |= {word for r in replies[1:] for word in r.text.split("</THINK>")[0].split()}
    assert "wall" in faults and not faults & {"hole", "off"}
    (lone,) = task.demonstrate(EXAMPLE, rng, True)
    assert lone.text == proposal("right", "down")


def test_frozen_lakes_and_mazes_share_their_figures():
    assert testing.tiny_task().metrics == Mazes().metrics
