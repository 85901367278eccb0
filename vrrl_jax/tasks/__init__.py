"""Tasks: what a recipe's `task` names."""

from __future__ import annotations

import functools

from vrrl_jax.config import DemonstrationConfig, SftConfig, TrainConfig
from vrrl_jax.processing import images
from vrrl_jax.processing.processor import Processor
from vrrl_jax.tasks.base import Examples, Score, Task, named, own, scored_by
from vrrl_jax.tasks.custom import Custom
from vrrl_jax.tasks.frozenlake import FrozenLake
from vrrl_jax.tasks.grounding import Boxes, Charts, Tables
from vrrl_jax.tasks.mazes import Mazes
from vrrl_jax.tasks.questions import Questions

NAVIGATION = {"frozenlake": FrozenLake, "maze": Mazes}
GROUNDING = {"tables": Tables, "charts": Charts, "boxes": Boxes}
NONE = Examples((), (), frozenset())  # where nothing is evaluated
__all__ = ["NONE", "Custom", "Examples", "Score", "Task", "make", "score_of"]


def make(config: TrainConfig | SftConfig, processor: Processor) -> Task:
    """The task of a recipe.

    Args:
      config: the recipe.
      processor: says what size a picture is shown at.

    Raises:
      ValueError: a task of a user's own that can't be found, or isn't one.
    """
    if ":" in config.task:
        return own(config, processor)
    shared = {
        "data": config.data,
        "env": config.env,
        "reward": config.reward,
        "eval": config.eval,
        "demonstrations": getattr(config, "demonstrations", DemonstrationConfig()),
        "decision_bonus": config.roll_in.decision_bonus if isinstance(config, TrainConfig) else 0.0,
    }
    if config.task in NAVIGATION:
        return NAVIGATION[config.task](**shared)
    resized = functools.partial(images.resized, settings=processor.images)
    if config.task == "questions":
        return Questions(**shared, open_image=images.open_image, resized=resized)
    return GROUNDING[config.task](**shared, resized=resized)


def score_of(config: TrainConfig | SftConfig, task: Task) -> Score:
    """The task's reward, or the recipe's own in its place.

    Raises:
      ValueError: a scorer that can't be found.
    """
    return task.score if config.scorer is None else scored_by(task, named(config.scorer))
