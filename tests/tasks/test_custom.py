"""A task out of plain parts: what it makes of them, and what it says of parts that don't fit."""

import dataclasses
import random
import sys

import numpy as np
import pytest

from vrrl_jax import cli, sft, tasks, testing
from vrrl_jax.config import SftConfig, TrainConfig, load
from vrrl_jax.data.demonstrations import DemonstrationReply, Piece
from vrrl_jax.processing.processor import decode
from vrrl_jax.rollout import episodes
from vrrl_jax.tasks.custom import Custom, options
from vrrl_jax.types import Outcome, Prompt

WHITE = np.full((28, 28, 3), 255, np.uint8)


class Echo:
    """Goes on until "stop"; each answer counts the reply's letters."""

    def reset(self, example):
        return Prompt("Solve", (WHITE,))

    def step(self, example, text, turn):
        return Outcome(True) if text == "stop" else Outcome(False, Prompt(str(len(text))))


class Sum:
    """Answers with the sum of all replies so far."""

    def reset(self, example):
        return Prompt("Solve")

    def answer(self, example, texts):
        total = sum(int(text) for text in texts)
        return Outcome(True) if total >= example else Outcome(False, Prompt(f"sum {total}"))


def custom(**changes) -> Custom:
    parts = {
        "environment": Echo(),
        "reward": lambda texts, example: 0.5,
        "train": [1, 2, 3],
        "test": {"a": [4, 5], "b": [6]},
        "probe": "up",
    }
    return Custom(**parts | changes)


def scored(reward, texts=("x", "stop"), **changes):
    return custom(reward=reward, **changes).score(texts, 1, episodes.Group(0, 1))


# --- parts that fit ------------------------------------------------------------------------------


def test_examples_carry_the_row_they_count_in():
    found = custom().evaluation()
    assert list(found.examples) == [4, 5, 6] and found.labels == ("a", "a", "b")
    assert found.in_domain == {"a", "b"}
    assert custom(in_domain=("b",)).evaluation().in_domain == {"b"}
    assert custom().training() == [1, 2, 3]
    drawn = custom().fresh(random.Random(0), 50)
    assert len(drawn) == 50 and set(drawn) == {1, 2, 3}
    assert drawn == custom().fresh(random.Random(0), 50)


def test_a_number_is_the_total_and_success_from_1_on():
    assert scored(lambda texts, example: 0.5) == {"total": 0.5, "success": 0, "turns": 2}
    assert scored(lambda texts, example: np.float32(1)) == {"total": 1, "success": 1, "turns": 2}


def test_figures_of_the_reward_s_own_are_kept():
    figures = {"total": 3, "success": False, "turns": 7, "near": True}
    found = scored(lambda texts, example: figures, metrics=("success", "near", "total"))
    assert found == {"total": 3.0, "success": 0.0, "turns": 7.0, "near": 1.0}
    assert all(type(value) is float for value in found.values())
    shares = scored(lambda texts, example: {"total": 1, "turn_rewards": [0.25, 0.75]})
    assert shares["turn_rewards"] == (0.25, 0.75)


def test_a_probe_may_depend_on_the_example():
    task = custom(probe=lambda example: f"up {example}")
    assert task.probes([7, 8]) == [(7, "up 7"), (8, "up 8")]
    few = custom(planned=2).probes(range(10))
    assert few == [(0, "up"), (5, "up")]


def test_demonstrations_are_texts_or_replies():
    whole = DemonstrationReply((Piece("a", ("a", "b"), 0.5),), 0.0)
    task = custom(demonstration=lambda example, rng: ["x", whole])
    first, second = task.demonstrate(1, random.Random(0), False)
    assert first == DemonstrationReply((Piece("x"),), 1.0) and second is whole
    with pytest.raises(ValueError, match=r"single_turn_steps .* has 2: set both to 0"):
        task.demonstrate(1, random.Random(0), True)
    lone = custom(demonstration=lambda example, rng: ["x"])
    assert len(lone.demonstrate(1, random.Random(0), True)) == 1


def test_an_environment_may_see_all_replies(tiny_processor):
    """`answer` sees them, in demonstrations too; `step` sees the last one and its turn."""
    task = custom(environment=Sum(), demonstration=lambda e, rng: ["1", "2", "4"], probe="1")
    task = dataclasses.replace(task, train=[6], test={"a": [6]})
    assert list(task.evaluation().examples) == [6]
    sequence = sft.demonstration_sequence(task, 6, random.Random(0), tiny_processor, False)
    text = decode(tiny_processor, sequence.tokens)
    assert "sum 1" in text and "sum 3" in text and "sum 7" not in text
    asked = []

    class Both(Echo):
        def step(self, example, text, turn):
            asked.append((text, turn))
            return Outcome(False, Prompt("again"))

    assert episodes.answered(Both(), 1, ["x", "y"]).prompt.text == "again"
    assert asked == [("y", 1)]
    assert episodes.answered(Sum(), 6, ["2", "3"]).prompt.text == "sum 5"
    assert episodes.answered(Sum(), 6, ["2", "4"]).done


def test_options_are_a_dataclass_s():
    @dataclasses.dataclass(frozen=True)
    class Options:
        size: int = 4
        sizes: tuple[int, ...] = ()

    assert options({"sizes": [5, 6]}, Options) == Options(4, (5, 6))
    with pytest.raises(ValueError, match=r"'options\.sise'; did you mean 'size'"):
        options({"sise": 3}, Options)
    with pytest.raises(ValueError, match=r"'options\.x'; known here: size, sizes"):
        options({"x": 3}, Options)


# --- parts that don't ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "no examples to train on"),
        ({"test": {}}, "no examples to evaluate on"),
        ({"test": {"a": []}, "noun": "rooms"}, "no rooms to evaluate on"),
        ({"in_domain": ("c",)}, r"in_domain names \['c'\]; test has \['a', 'b'\]"),
        ({"metrics": ("near",)}, "lack success and total"),
    ],
)
def test_parts_that_are_no_task_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        custom(**changes)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"success": 1}, r"'total' among its names; got \['success'\]"),
        ("good", "total must be a number, got 'good'"),
        ({"total": 1, "near": None}, "near must be a number"),
        ({"total": 1, "turn_rewards": (1,)}, "1 shares for 2 replies"),
    ],
)
def test_what_a_reward_returns_is_checked(returned, message):
    with pytest.raises(ValueError, match=message):
        scored(lambda texts, example: returned)


class Text(Echo):
    def reset(self, example):
        return "a text"


class Tuple(Echo):
    def step(self, example, text, turn):
        return False, Prompt("x")


class Silent(Echo):
    def step(self, example, text, turn):
        return Outcome(False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": Text()}, r"reset returns a types\.Prompt; got str"),
        ({"environment": Tuple()}, r"step returns a types\.Outcome; got tuple"),
        ({"environment": Silent()}, "'up': the episode goes on, but without a Prompt"),
        (
            {"metrics": ("success", "near", "total")},
            "metrics names near, which the reward doesn't return; it returns total, success",
        ),
        (
            {"demonstration": lambda example, rng: ["x", "stop", "y"]},
            "ends a demonstration at 'stop', its reply 2 of 3",
        ),
        ({"demonstration": lambda example, rng: []}, "demonstration has no reply"),
    ],
)
def test_parts_are_tried_before_a_run(changes, message):
    with pytest.raises(ValueError, match=message):
        custom(**changes).evaluation()


def test_supervised_training_asks_for_demonstrations():
    with pytest.raises(ValueError, match=r"give Custom a `demonstration`, a function of \(example"):
        custom().demonstrate(1, random.Random(0), False)


# --- by a recipe ---------------------------------------------------------------------------------

MODULE = """
from vrrl_jax.tasks.custom import Custom
from vrrl_jax.types import Outcome, Prompt

class Environment:
    def reset(self, example): return Prompt("Solve")
    def step(self, example, text, turn): return Outcome(False, Prompt("Verify"))

def task(config, processor):
    return Custom(Environment(), reward, [1], {"a": [2]}, "up", **config.options)

def reward(texts, example): return 0.25
def environment(config, processor): return Environment()
def doubled(texts, example): return {"total": 2.0, "near": 1.0}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """recipe(text, cls): a configuration read from beside a module of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_recipe.py").write_text(MODULE)
    path = tmp_path / "recipe.yaml"

    def read(text, cls=TrainConfig):
        path.write_text(text)
        cli._importable(str(path))
        return load(path, [], cls)

    yield read
    sys.modules.pop("beside_the_recipe", None)


@pytest.mark.parametrize("cls", [TrainConfig, SftConfig])
def test_a_recipe_names_a_module_beside_it(recipe, cls):
    config = recipe(
        "task: beside_the_recipe:task\noptions: {noun: rooms}\nenv: {max_turns: 5}\n"
        "scorer: beside_the_recipe:doubled\n",
        cls,
    )
    task = tasks.make(config, testing.tiny_processor())
    assert task.noun == "rooms" and config.env.max_turns == 5
    assert task.score(("up",), 1, episodes.Group(0, 1))["total"] == 0.25
    found = tasks.score_of(config, task)(("up",), 1, episodes.Group(0, 1))
    assert found == {"total": 2.0, "success": 0.0, "turns": 1.0, "near": 1.0}


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "in_the_working_directory.py").write_text("thing = 3\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    cli._importable(None)
    assert tasks.base.named("in_the_working_directory:thing") == 3
    # What is installed comes first: a file named as one of its modules can't break the program.
    assert sys.path[: len(before)] == before
    sys.modules.pop("in_the_working_directory")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: beside_the_recipe:tusk", "beside_the_recipe.py has no tusk"),
        ("task: no_such_module:task", "beside the recipe or into the working directory"),
        ("task: beside_the_recipe:environment", "Environment without noun, environment, metrics"),
        (
            "task: beside_the_recipe:task\nmodes: {roll_in: 0.5}\nroll_in: {max_prefix_turns: 2}",
            "modes.roll_in reads clean_commit and commit_em",
        ),
    ],
)
def test_a_recipe_s_mistakes_are_named(recipe, text, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(recipe(text), testing.tiny_processor())


def test_rolling_in_is_open_to_a_task_with_its_figures(recipe):
    config = recipe(
        "task: beside_the_recipe:task\nmodes: {roll_in: 0.5}\nroll_in: {max_prefix_turns: 2}\n"
        "options: {metrics: [success, total, clean_commit, commit_em]}"
    )
    assert "commit_em" in tasks.make(config, testing.tiny_processor()).metrics
