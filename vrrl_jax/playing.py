"""Playing the groups of a step: the rollout, and what a recipe does to it before it is scored."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vrrl_jax import label, tasks
from vrrl_jax.collect import PREFIX_MASK_KEY, SAMPLE_KEY, key_for
from vrrl_jax.config import RethinkingConfig, RolloutConfig, TrainConfig
from vrrl_jax.envs.questions import RETHINKING
from vrrl_jax.models.policy import Policy, View
from vrrl_jax.parallel import distributed
from vrrl_jax.parallel.mesh import row_parts
from vrrl_jax.processing.processor import Processor
from vrrl_jax.rollout import continuous, episodes, regenerate
from vrrl_jax.rollout.continuous import Continuous
from vrrl_jax.rollout.rethinking import PRESETS, Rethinking
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.tasks import Score, Task
from vrrl_jax.tasks.base import given
from vrrl_jax.types import Episode

_OWN = ("preset", "start", "suffix", "nll_coefficient", "nll_on")  # not the rollout's business


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is played from a step on.

    Attributes:
      start: the first step.
      environment: what answers the policy.
      rethink: makes replies think again, or None.
    """

    start: int
    environment: episodes.Environment
    rethink: Rethinking | None = None


@dataclasses.dataclass(frozen=True)
class Game:
    """All that a rollout needs beside the parameters.

    Attributes:
      stages: in order, the first from step 0.
      score: (texts, example, group) -> named rewards.
      key: the run's.
      in_flight: how many episodes are under way at a time; None for all.
    """

    policy: Policy
    processor: Processor
    config: TrainConfig
    settings: episodes.Settings
    shapes: episodes.Shapes
    stages: tuple[Stage, ...]
    score: Score
    key: jax.Array
    in_flight: Continuous | None = None

    def stage(self, step: int) -> Stage:
        """The one that a step belongs to."""
        return [stage for stage in self.stages if stage.start <= step][-1]


def in_flight_of(rollout: RolloutConfig, mesh: Mesh | None) -> Continuous | None:
    """How many episodes of a recipe are under way at a time, None for all of a rollout.

    Raises:
      ValueError: they don't divide over the mesh.
    """
    return continuous.sized(
        rollout.in_flight, rollout.prefills, rollout.chunk, rollout.overlap, row_parts(mesh)
    )


def settings_of(config: TrainConfig) -> episodes.Settings:
    """How the episodes of a recipe are rolled out."""
    rollout = config.rollout
    return episodes.Settings(
        samples=rollout.samples,
        max_turns=config.env.max_turns,
        max_new_tokens=rollout.max_new_tokens,
        sampling=Sampling(rollout.temperature, rollout.top_k, rollout.top_p),
        train_prefix=config.roll_in.train_prefix,
        train_end=rollout.train_end_token,
    )


def stages_of(config: TrainConfig, task: Task, processor: Processor) -> tuple[Stage, ...]:
    """Without rethinking one stage; with it, one before `rethinking.start` and one from there.

    Raises:
      ValueError: values of rethinking that exclude each other.
    """
    wanted = config.rethinking
    rethink = rethinking_of(wanted)
    if rethink is None:
        return (Stage(0, task.environment),)
    second = task.environment
    if wanted.suffix is not None:
        suffix = RETHINKING if wanted.suffix == "published" else wanted.suffix
        env = dataclasses.replace(config.env, suffix=suffix)
        second = tasks.make(dataclasses.replace(config, env=env), processor).environment
    later = Stage(wanted.start, second, rethink)
    return (later,) if wanted.start == 0 else (Stage(0, task.environment), later)


def rethinking_of(wanted: RethinkingConfig) -> Rethinking | None:
    """The preset with the values that a recipe replaces."""
    if wanted.preset == "off":
        return None
    names = [f.name for f in dataclasses.fields(wanted) if f.name not in _OWN]
    return dataclasses.replace(PRESETS[wanted.preset], **given(wanted, *names))


def plan_shapes(
    policy: Policy,
    processor: Processor,
    config: TrainConfig,
    stages: tuple[Stage, ...],
    probes: list[tuple[Any, str]],
) -> episodes.Shapes:
    """Shapes that hold the episodes of every stage; see `episodes.plan_shapes`."""
    planned = [
        episodes.plan_shapes(
            policy,
            processor,
            stage.environment,
            probes,
            settings_of(config),
            roll_in=config.modes.roll_in > 0 or config.prefix_mask.regenerates,
            rethink=stage.rethink,
        )
        for stage in stages
    ]
    largest = {
        name: max(values)
        for name, *values in zip(
            [f.name for f in dataclasses.fields(episodes.Shapes)],
            *(dataclasses.astuple(shapes) for shapes in planned),
            strict=True,
        )
    }
    return episodes.Shapes(**largest)


def play(
    game: Game,
    view: View,
    groups: list[episodes.Group],
    step: int,
    attempt: int,
    keep_images: bool,
) -> tuple[list[Episode], dict[str, float]]:
    """Plays the groups of a try; (episodes, figures).

    Raises:
      Disagreement: processes of a run don't play the same, or don't score it alike.
    """
    where = f"step {step + 1}, try {attempt + 1}"
    distributed.agree(where, groups=[(g.question, g.mode, g.prefix, g.opening) for g in groups])
    stage = game.stage(step)
    settings = dataclasses.replace(game.settings, keep_images=keep_images)
    key = key_for(game.key, SAMPLE_KEY, attempt)
    common = (game.policy, view, game.processor, stage.environment)
    played, figures = episodes.rollout(
        *common,
        groups,
        settings,
        game.shapes,
        key,
        step,
        game.score,
        stage.rethink,
        game.in_flight,
    )
    figures["count/replayed_commits"] = sum(group.commit is not None for group in groups)
    masked = game.config.prefix_mask
    if masked.regenerates:
        padded = label.pad(played, len(played), game.shapes.slots)
        drawn = label.prefix_masked(
            key_for(game.key, PREFIX_MASK_KEY, step, attempt), padded, masked
        )
        played, more = regenerate.regenerate(
            *common,
            played,
            np.asarray(drawn.length),
            groups,
            settings,
            game.shapes,
            key,
            step,
            game.score,
            hide_pictures=masked.pictures,
        )
        figures |= {
            "rollout_seconds": figures["rollout_seconds"] + more["regenerate_seconds"],
            "sampled_tokens": figures["sampled_tokens"] + more["regenerated_tokens"],
            "count/prefix_masked_episodes": more["regenerated_episodes"],
            "count/prefix_masked_tokens": more["hidden_tokens"],
        }
    distributed.agree(where, episodes=played)
    return played, figures
