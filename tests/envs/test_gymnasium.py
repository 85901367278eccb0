"""Gymnasium games as conversations, on a corridor that draws itself in numpy."""

import random
from typing import ClassVar

import gymnasium
import numpy as np
import pytest

from vrrl_jax.config import TrainConfig, load
from vrrl_jax.envs import gymnasium as envs
from vrrl_jax.rollout.episodes import Group, answered
from vrrl_jax.tasks import gymnasium as tasks

LENGTH = 6
PROBE = "<ANSWER></ANSWER>"


class Corridor(gymnasium.Env):
    """Cells in a row; the seed says where the walker starts. Past the right end lies the goal,
    worth 1, past the left end a pit; a step costs 0.01."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Discrete(LENGTH)

    def __init__(self, render_mode=None, goal=1.0):
        self.render_mode, self.goal = render_mode, goal
        self.buffer = np.zeros((8, 8 * LENGTH, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(1, LENGTH - 1))
        return self.at, {}

    def step(self, action):
        self.at += 1 if action else -1
        out = not 0 <= self.at < LENGTH
        reward = (self.goal if self.at >= LENGTH else 0.0) - 0.01
        return self.at, reward, out, False, {}

    def render(self):
        self.buffer[:] = 0
        at = min(max(self.at, 0), LENGTH - 1)
        self.buffer[:, 8 * at : 8 * at + 8] = 255
        return self.buffer


@pytest.fixture(scope="module", autouse=True)
def corridor():
    gymnasium.register("vrrl/Corridor-v0", Corridor)
    gymnasium.register("vrrl/Short-v0", Corridor, max_episode_steps=2)
    yield
    for name in ("vrrl/Corridor-v0", "vrrl/Short-v0"):
        gymnasium.registry.pop(name)


def settings(**changes):
    return envs.Settings(**{"id": "vrrl/Corridor-v0", "actions": ("back", "on")} | changes)


def start(seed) -> int:
    """Where a seed starts, by the game itself."""
    return Corridor().reset(seed=seed)[0]


def shown(picture) -> int:
    """The cell that a picture shows the walker in."""
    (columns,) = np.nonzero(picture[0, :, 0])
    return int(columns[0]) // 8


def says(*words, tag="ANSWER"):
    return f"<{tag}>{' '.join(words)}</{tag}>"


# --- replies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "actions"),
    [
        ("<ANSWER>on back</ANSWER>", "proposal", (1, 0)),
        ("so <answer>ON,\n on</answer>.", "proposal", (1, 1)),
        ("<ANSWER></ANSWER>", "proposal", ()),
        ("<ANSWER>on</ANSWER><FINAL>back</FINAL>", "commit", (0,)),
        ("<ANSWER>jump</ANSWER>", "invalid", ()),
        ("<FINAL>jump</FINAL><ANSWER>on</ANSWER>", "invalid", ()),
        ("on", "invalid", ()),
    ],
)
def test_replies(text, kind, actions):
    assert envs.read(text, ("back", "on")) == envs.Reply(kind, actions)


@pytest.mark.parametrize("actions", [("on", "On"), ("on", "go back"), ("on", "")])
def test_actions_are_different_words(actions):
    with pytest.raises(ValueError, match="different single words"):
        settings(actions=actions)


# --- games ---------------------------------------------------------------------------------------


def test_a_plan_is_played_from_the_start_each_time():
    board = envs.Environment(settings())
    opening = board.reset(3)
    assert shown(opening.pictures[0]) == start(3) and "back, on" in opening.text
    far = answered(board, 3, [says("on")])
    assert not far.done and shown(far.prompt.pictures[0]) == start(3) + 1
    back = answered(board, 3, [says("on"), says("back")])
    assert shown(back.prompt.pictures[0]) == start(3) - 1
    # A game that came to its end is a picture like others: the plan may be given up.
    assert not answered(board, 3, [says(*["on"] * LENGTH)]).done
    assert answered(board, 3, [says("on"), says("on", tag="FINAL")]).done
    assert answered(board, 3, [says("on"), "what?"]).done
    # Pictures are copies: the game's own buffer has been drawn over since.
    assert shown(opening.pictures[0]) == start(3)


def test_acting_goes_on_until_the_game_ends():
    board = envs.Environment(settings(mode="act"))
    texts = []
    for n in range(1, LENGTH - start(3)):
        texts.append(says("on"))
        outcome = answered(board, 3, texts)
        assert not outcome.done and shown(outcome.prompt.pictures[0]) == start(3) + n
    assert answered(board, 3, [*texts, says("on")]).done
    assert answered(board, 3, [says("on"), says("on", tag="FINAL")]).done
    limited = envs.Environment(settings(mode="act", id="vrrl/Short-v0"))
    assert not answered(limited, 3, [says("on")]).done
    assert answered(limited, 3, [says("on"), says("back")]).done  # the game's own limit


def test_the_budget_of_replies_ends_an_episode():
    board = envs.Environment(settings(max_turns=2))
    assert not answered(board, 0, [PROBE]).done
    assert answered(board, 0, [PROBE, PROBE]).done


def test_seeds_decide_and_nothing_is_remembered():
    rng = random.Random(0)
    order = [rng.randrange(20) for _ in range(40)]
    board = envs.Environment(settings())
    found = [shown(board.reset(seed).pictures[0]) for seed in order]
    assert found == [start(seed) for seed in order] and len(set(found)) > 1


def test_an_example_may_bring_arguments_of_its_own():
    path = [1] * LENGTH
    worth = LENGTH - start(2)
    assert envs.played(settings(), 2, path).total == pytest.approx(1 - 0.01 * worth)
    richer = envs.played(settings(), {"seed": 2, "goal": 5.0}, path)
    assert richer.total == pytest.approx(5 - 0.01 * worth) and richer.terminated
    assert envs.played(settings(kwargs={"goal": 3.0}), 2, path).last == pytest.approx(2.99)


def test_pictures_are_resized():
    picture = envs.played(settings(size=(24, 16)), 0, ()).picture
    assert picture.shape == (16, 24, 3) and picture.dtype == np.uint8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "vrrl/Nothing-v0"}, "can't make vrrl/Nothing-v0"),
        ({"kwargs": {"colour": 1}}, "can't make vrrl/Corridor-v0 with"),
        ({"actions": ("on",)}, "has 2 actions, and 1 words"),
        ({"id": "Pendulum-v1"}, "only Discrete ones"),
    ],
)
def test_games_that_do_not_fit_are_named(changes, message):
    if "Pendulum" in changes.get("id", ""):
        pytest.importorskip("pygame")
    with pytest.raises(ValueError, match=message):
        envs.played(settings(**changes), 0, ())


def test_the_shipped_frozen_lake_is_a_game_too():
    pytest.importorskip("pygame")
    lake = envs.Settings("FrozenLake-v1", ("left", "down", "right", "up"), {"is_slippery": False})
    path = envs.read(says("down", "down", "right", "right", "down", "right"), lake.actions).actions
    end = envs.played(lake, 0, path)
    assert end.terminated and end.total == 1 and end.picture.shape == (256, 256, 3)


# --- the task ------------------------------------------------------------------------------------

RECIPE = """
task: vrrl_jax.tasks.gymnasium:gymnasium_task
options: {id: vrrl/Corridor-v0, actions: [back, "on"], seeds: 5}
env: {max_turns: 3}
eval: {count: 4}
"""


@pytest.fixture
def task(tmp_path):
    def make(*overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE)
        return tasks.gymnasium_task(load(path, overrides, TrainConfig), None)

    return make


def score(task, *texts, seed=3):
    return task.score(texts, seed, Group(0, seed))


def test_training_and_evaluation_seeds_differ(task):
    made = task()
    assert list(made.training()) == [0, 1, 2, 3, 4]
    assert list(made.evaluation().examples) == [5, 6, 7, 8]
    assert made.environment.settings.max_turns == 3
    given = task("options.examples=[1, {seed: 2, goal: 3.0}]", "options.test_examples=[9]")
    assert given.training() == (1, {"seed": 2, "goal": 3.0})
    assert list(given.evaluation().examples) == [9]


def test_a_plan_is_worth_its_last_proposal(task):
    steps = LENGTH - start(3)
    right, wrong = ["on"] * steps, ["back"] * LENGTH
    found = score(task(), says(*wrong), says(*right), says(*right, tag="FINAL"))
    assert found["total"] == pytest.approx(1 - 0.01 * steps)
    assert (found["success"], found["clean_commit"], found["commit_em"]) == (1, 1, 1)
    assert found["steps"] == steps and found["turns"] == 3
    found = score(task(), says(*right), says(*wrong, tag="FINAL"))
    assert (found["success"], found["clean_commit"], found["commit_em"]) == (0, 0, 0)
    assert found["total"] == pytest.approx(-0.01 * (start(3) + 1))
    # No commit, yet a solution.
    assert (score(task(), says(*right))["success"], score(task(), says("on"))["success"]) == (1, 0)


def test_acts_are_worth_all_of_them(task):
    steps = LENGTH - start(3)
    acting = task("options.mode=act")
    found = score(acting, *[says("on")] * steps)
    assert found["success"] == 1 and found["total"] == pytest.approx(1 - 0.01 * steps)
    assert score(acting, says("on"), says("back"))["total"] == pytest.approx(-0.02)


def test_an_unreadable_end_has_a_worth_of_its_own(task):
    steps = LENGTH - start(3)
    for given, worth in ((task(), 0.0), (task("options.unreadable=-2"), -2.0)):
        found = score(given, says(*["on"] * steps), "what?")
        assert (found["total"], found["success"], found["unreadable"]) == (worth, 0, 1)


def test_any_end_may_be_success(task):
    wrong = says(*["back"] * LENGTH)
    assert score(task(), wrong)["success"] == 0
    assert score(task("options.success=terminated"), wrong)["success"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("options.id=", "options.id is missing"),
        ("options.actions=[]", "options.actions is missing"),
        ("options.actions=[back, on]", "unless they stand in quotes"),
        ("options.seeds=0", "at least 1"),
        ("options.sead=1", "did you mean 'seeds'"),
        ("options.mode=dream", "plan or act"),
        ("options.success=maybe", "positive or terminated"),
        ("options.examples=[1]", "test_examples is missing"),
    ],
)
def test_options_that_do_not_fit_are_named(task, override, message):
    with pytest.raises(ValueError, match=message):
        task(override)
