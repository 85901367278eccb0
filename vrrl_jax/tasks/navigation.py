"""What the tasks of navigation share: reward, demonstrations, figures."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Mapping
from typing import Any, ClassVar

from vrrl_jax.config import DemonstrationConfig, EvalConfig, NavigationEnv, NavigationReward
from vrrl_jax.data import demonstrations
from vrrl_jax.data.demonstrations import DemonstrationReply
from vrrl_jax.envs import frozenlake as envs
from vrrl_jax.rewards import frozenlake as rewards
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.tasks.base import given

# `success` asks for an exact match in a well-formed episode; it is
# turn1_em + wrong_to_right - right_to_wrong - lost_to_format.
METRICS = (
    "success",
    "final_em",
    "turn1_em",
    "wrong_to_right",
    "right_to_wrong",
    "lost_to_format",
    "strict_success",
    "lenient_success",
    "clean_commit",
    "format_error",
    "budget_exhausted",
    "turns",
    "total",
)


@dataclasses.dataclass(frozen=True)
class Navigation:
    """A task of navigation as a recipe configures it; see `tasks.base.Task`.

    Attributes:
      settings: the kind of the environment's settings, which holds its own texts.
    """

    data: Any
    env: NavigationEnv = dataclasses.field(default_factory=NavigationEnv)
    reward: NavigationReward = dataclasses.field(default_factory=NavigationReward)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    demonstrations: DemonstrationConfig = dataclasses.field(default_factory=DemonstrationConfig)
    decision_bonus: float = 0.0

    settings: ClassVar[type[envs.Settings]] = envs.Settings
    metrics = METRICS
    revision = envs.THINK

    @functools.cached_property
    def environment(self) -> envs.Environment:
        return envs.Environment(self.settings(**given(self.env)))

    def walked(self, example: Any) -> Any:
        """What answers to steps: the example itself, or a part of it."""
        return example

    def score(self, texts: tuple[str, ...], example: Any, group: Group) -> Mapping[str, Any]:
        return rewards.score(
            texts,
            self.walked(example),
            prefix_turns=len(group.prefix),
            prefix_right=group.prefix_right,
            decision_bonus=self.decision_bonus,
            single_turn=self.env.max_turns == 1,
            **dataclasses.asdict(self.reward),
        )

    def demonstrate(
        self, example: Any, rng: random.Random, single_turn: bool
    ) -> tuple[DemonstrationReply, ...]:
        wanted = self.demonstrations
        return demonstrations.demonstrate(
            self.walked(example),
            rng,
            wrong_first=wanted.wrong_first,
            second_error=wanted.second_error,
            max_turns=1 if single_turn or self.env.max_turns == 1 else wanted.max_turns,
            soft_targets=wanted.soft_targets,
            decision_weight=wanted.decision_weight,
        )
