"""Every task by its name: what a recipe brings, and what is held out of training in all of them."""

import dataclasses
import pathlib
import random
import re
import sys
import types

import pytest

from vrrl_jax import config as c
from vrrl_jax import tasks, testing
from vrrl_jax.data import mazes, shape_scenes
from vrrl_jax.tasks.frozenlake import FrozenLake
from vrrl_jax.tasks.grounding import Boxes, Charts, Tables
from vrrl_jax.tasks.mazes import Mazes
from vrrl_jax.tasks.questions import Questions

KINDS = {
    "frozenlake": FrozenLake,
    "maze": Mazes,
    "tables": Tables,
    "charts": Charts,
    "boxes": Boxes,
    "questions": Questions,
}
# Recipes of runs; what else lies there names a model and no policy.
RECIPES = [
    path
    for path in sorted(pathlib.Path(c.__file__).parents[1].glob("configs/*.yaml"))
    if re.search("^policy:", path.read_text(), re.MULTILINE)
]


@pytest.fixture
def recipe(tmp_path):
    def load(text, *overrides, cls=c.TrainConfig):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return c.load(path, overrides, cls)

    return load


# --- names ---------------------------------------------------------------------------------------


def test_the_table_of_tasks_is_complete():
    assert set(c.TASKS) == set(KINDS)


@pytest.mark.parametrize("cls", [c.TrainConfig, c.SftConfig])
@pytest.mark.parametrize("name", KINDS)
def test_a_name_makes_its_task_with_the_recipe_s_sections(recipe, tiny_processor, name, cls):
    config = recipe(f"task: {name}\nenv: {{max_turns: 1}}\neval: {{count: 7}}\n", cls=cls)
    sections = c.TASKS[name]
    assert {key: type(getattr(config, key)) for key in sections} == sections
    if cls is c.TrainConfig:
        config = dataclasses.replace(config, roll_in=c.RollInConfig(decision_bonus=0.25))
    task = tasks.make(config, tiny_processor)
    assert type(task) is KINDS[name]
    assert (task.data, task.env, task.eval) == (config.data, config.env, config.eval)
    assert task.reward == config.reward
    assert task.decision_bonus == (0.25 if cls is c.TrainConfig else 0)
    assert {"success", "total"} <= set(task.metrics) and task.metrics[0] == "success"
    if name in ("tables", "charts", "boxes"):
        # What the model sees of a picture: the processor's own size.
        assert task.resized((300, 200)) == (308, 196)


def test_a_task_of_one_s_own_is_imported(recipe, tiny_processor, monkeypatch):
    made = []

    def build(config, processor):
        made.append((config.options, processor))
        return testing.tiny_task()

    monkeypatch.setitem(sys.modules, "own_task", types.SimpleNamespace(build=build))
    config = recipe("task: own_task:build\noptions: {a: 1}\nenv: {max_turns: 3}\n")
    assert tasks.make(config, tiny_processor) == testing.tiny_task()
    assert made == [({"a": 1}, tiny_processor)] and config.env == c.TurnsEnv(max_turns=3)
    with pytest.raises(ValueError, match="own_task has no other"):
        tasks.make(recipe("task: own_task:other\n"), tiny_processor)
    with pytest.raises(ValueError, match="no_such_module"):
        tasks.make(recipe("task: no_such_module:build\n"), tiny_processor)


@pytest.mark.parametrize(
    ("name", "near"), [("mazes", "maze"), ("table", "tables"), ("frozen_lake", "frozenlake")]
)
def test_an_unknown_name_is_told_the_nearest(recipe, name, near):
    with pytest.raises(c.ConfigError) as caught:
        recipe(f"task: {name}\n")
    assert f"did you mean '{near}'" in str(caught.value) and "module:function" in str(caught.value)
    with pytest.raises(c.ConfigError) as caught:
        c.of_task(c.SftConfig, "xyzzy")
    assert "did you mean" not in str(caught.value) and "questions" in str(caught.value)


def test_a_scorer_replaces_the_total_and_leaves_the_figures(recipe, tiny_processor, monkeypatch):
    module = types.SimpleNamespace(
        length=lambda texts, example: len(texts[-1]),
        parts=lambda texts, example: {"total": 2.0, "success": 0.5},
        none=lambda texts, example: {"reward": 1.0},
    )
    monkeypatch.setitem(sys.modules, "own_scorers", module)

    def scored(name):
        config = recipe(
            "task: tables\ndata: {preset: nano, count: 1}\nreward: {placement: turn}\n",
            f"scorer=own_scorers:{name}",
        )
        task = tasks.make(config, tiny_processor)
        example = task.training()[0]
        group = tasks.base.Group(0, example)
        texts = ("<ANSWER>1 1</ANSWER>", "<FINAL>1 1</FINAL>")
        return tasks.score_of(config, task)(texts, example, group), task.score(
            texts, example, group
        )

    found, plain = scored("length")
    # Shares of the task's own total go with it.
    assert found == {k: v for k, v in plain.items() if k != "turn_rewards"} | {"total": 18.0}
    assert "turn_rewards" in plain
    assert (scored("parts")[0]["total"], scored("parts")[0]["success"]) == (2.0, 0.5)
    with pytest.raises(ValueError, match="'total'"):
        scored("none")


# --- recipes -------------------------------------------------------------------------------------


def kind_of(path):
    return c.SftConfig if "demonstrations:" in path.read_text() else c.TrainConfig


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_says_all_of_itself(path, tmp_path):
    config = c.load(path, [], kind_of(path))
    written = tmp_path / "again.yaml"
    written.write_text(c.to_yaml(config))
    assert c.load(written, [], kind_of(path)) == config


@pytest.mark.parametrize("cls", [c.TrainConfig, c.SftConfig])
@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_of_each_task_round_trips(recipe, name, cls):
    config = recipe(f"task: {name}\nseed: 5\neval: {{count: 9}}\n", cls=cls)
    assert (config.task, config.seed, config.eval.count) == (name, 5, 9)
    again = recipe(c.to_yaml(config), cls=cls)
    assert again == config and type(again) is type(config)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: maze\ndata: {levels: [3]}\n", "'data.levels'"),
        ("task: maze\neval: {in_domain: [3]}\n", "'eval.in_domain'"),
        ("task: tables\nenv: {cell: 28}\n", "'env.cell'"),
        ("task: boxes\ndata: {preset: nano}\n", "'data.preset'"),
        ("task: questions\nreward: {radius: 3}\n", "'reward.radius'"),
        ("data: {sizes: [3]}\n", "'data.sizes'"),
    ],
)
def test_another_task_s_key_is_named(recipe, text, words):
    with pytest.raises(c.ConfigError) as caught:
        recipe(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: maze\ndata: {sizes: []}\n", "sizes"),
        ("task: maze\ndata: {styles: []}\n", "styles"),
        ("task: maze\neval: {held_out_sizes: []}\n", "held_out_sizes"),
        ("task: questions\nenv: {max_turns: 2}\n", "one reply"),
        ("task: questions\ndata: {text_share: 1.5}\n", "text_share"),
        ("task: questions\ndata: {sources: [{path: x}]}\n", "mapper"),
        ("task: tables\nreward: {reach: 0}\n", "reach"),
    ],
)
def test_values_out_of_range_are_named(recipe, text, words):
    with pytest.raises(c.ConfigError, match=words):
        recipe(text)


# --- held-out things -----------------------------------------------------------------------------


def unseen_shapes(question) -> bool:
    """A held-out pair of shape and colour; without a picture, more numbers than two."""
    if question.scene is None:
        return len(question.args) > 2
    return any(item.pair in shape_scenes.HELD_OUT for item in question.scene.items)


# Of each generated task: a key of an example's contents, and whether it shows what is held out.
HELD_OUT = {
    "maze": (lambda e: e.maze.key, lambda e: bool(mazes.shifts(*e))),
    "tables": (lambda e: e.table.key, lambda e: e.style.theme.held_out),
    "charts": (lambda e: e.chart.key, lambda e: e.style.theme.held_out),
    "questions": (lambda e: e.key, unseen_shapes),
}


@pytest.mark.parametrize("name", HELD_OUT)
def test_training_and_demonstrations_never_show_what_evaluation_asks(recipe, tiny_processor, name):
    preset = "" if name == "maze" else "preset: nano, "
    config = recipe(f"task: {name}\ndata: {{{preset}count: 60}}\neval: {{count: 40}}\n")
    task = tasks.make(config, tiny_processor)
    key, held_out = HELD_OUT[name]
    shown = [*task.training(), *task.fresh(random.Random(0), 30)]
    asked = task.evaluation()
    assert not any(held_out(example) for example in shown)
    assert not {key(example) for example in shown} & {key(example) for example in asked.examples}
    outside = [
        example
        for example, label in zip(asked.examples, asked.labels, strict=True)
        if label not in asked.in_domain
    ]
    assert len(outside) >= 20 and all(held_out(example) for example in outside)
