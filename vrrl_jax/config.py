"""What a run can be told: typed, validated sections. Defaults are the released recipe's.

A recipe is a YAML file whose keys are the fields below, those of `vrrl_jax/sections.py`, for the
sections that a task brings, those of `vrrl_jax/task_sections.py` and `question_sections.py`, and
those of one kind of training, in `vrrl_jax/training_sections.py`; `load` reads it, applies dotted
overrides and refuses what it doesn't know. `TrainConfig` is for `vrrl train`, `SftConfig` for
`vrrl sft`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

from vrrl_jax.question_sections import QuestionsData, QuestionsEnv, QuestionsEval, QuestionsReward
from vrrl_jax.sections import (
    CheckpointConfig,
    EvalConfig,
    GuardConfig,
    LogConfig,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
    PolicyConfig,
    RolloutConfig,
    at_least,
    require,
    section,
)
from vrrl_jax.strict_yaml import ConfigError, dotted_keys, peek, to_yaml
from vrrl_jax.strict_yaml import load as load_strictly
from vrrl_jax.task_sections import (
    BoxesData,
    BoxesEval,
    Empty,
    FrozenLakeData,
    GroundingData,
    GroundingEnv,
    GroundingReward,
    MazeData,
    MazeEval,
    NavigationEnv,
    NavigationEval,
    NavigationReward,
    TurnsEnv,
)
from vrrl_jax.training_sections import (
    AlgorithmConfig,
    BatchConfig,
    DemonstrationConfig,
    FilterConfig,
    ModesConfig,
    PrefixMaskConfig,
    ReplayConfig,
    RethinkingConfig,
    RollInConfig,
    RtmConfig,
    UpdateConfig,
)

__all__ = [
    "TASKS",
    "AlgorithmConfig",
    "BatchConfig",
    "CheckpointConfig",
    "ConfigError",
    "DemonstrationConfig",
    "EvalConfig",
    "FilterConfig",
    "FrozenLakeData",
    "GuardConfig",
    "LogConfig",
    "LoraConfig",
    "MazeData",
    "MazeEval",
    "MeshConfig",
    "ModesConfig",
    "NavigationEnv",
    "NavigationEval",
    "NavigationReward",
    "OptimizerConfig",
    "PolicyConfig",
    "PrefixMaskConfig",
    "ReplayConfig",
    "RethinkingConfig",
    "RollInConfig",
    "RolloutConfig",
    "RtmConfig",
    "SftConfig",
    "TrainConfig",
    "UpdateConfig",
    "dotted_keys",
    "load",
    "of_task",
    "to_yaml",
]


def _of(cls: type, **defaults) -> dataclasses.Field:
    return dataclasses.field(default_factory=lambda: cls(**defaults))


@section
class TrainConfig:
    """Reinforcement learning. `run_dir` None is runs/<name of the recipe>-<time>.

    The sections data, env, reward and eval are the task's own: `of_task` makes the class that has
    them; what stands here is navigation on frozen lakes.

    Attributes:
      task: one of `TASKS`, or a task of yours as "module:function", which gets the configuration
        and the processor and returns a `tasks.base.Task`.
      options: for a task of yours, as it likes.
      scorer: a reward of yours as "module:function"; see `tasks.base.scored_by`.
    """

    run_dir: str | None = None
    seed: int = 0
    task: str = "frozenlake"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    scorer: str | None = None
    steps: int = 281  # three epochs of 3,000 maps, 32 a step
    policy: PolicyConfig = _of(PolicyConfig)
    data: FrozenLakeData = _of(FrozenLakeData)
    env: NavigationEnv = _of(NavigationEnv)
    rollout: RolloutConfig = _of(RolloutConfig)
    reward: NavigationReward = _of(NavigationReward)
    algorithm: AlgorithmConfig = _of(AlgorithmConfig)
    modes: ModesConfig = _of(ModesConfig)
    rtm: RtmConfig = _of(RtmConfig)
    roll_in: RollInConfig = _of(RollInConfig)
    prefix_mask: PrefixMaskConfig = _of(PrefixMaskConfig)
    rethinking: RethinkingConfig = _of(RethinkingConfig)
    replay: ReplayConfig = _of(ReplayConfig)
    filter: FilterConfig = _of(FilterConfig)
    optimizer: OptimizerConfig = _of(OptimizerConfig)
    mesh: MeshConfig = _of(MeshConfig)
    update: UpdateConfig = _of(UpdateConfig)
    checkpoint: CheckpointConfig = _of(CheckpointConfig)
    eval: NavigationEval = _of(NavigationEval)
    guard: GuardConfig = _of(GuardConfig)
    log: LogConfig = _of(LogConfig)

    def __post_init__(self):
        at_least(self, 1, "steps")
        algorithm, rollout, turns = self.algorithm, self.rollout, self.env.max_turns
        require(
            self.policy.init == "pretrained", "policy.init", "must be pretrained: RL needs a base"
        )
        require(
            algorithm.name != "ppo" or self.policy.value_head,
            "policy.value_head",
            "must be true: PPO has a critic",
        )
        require(
            algorithm.name == "ppo" or rollout.samples >= 2 or algorithm.advantage == "returns",
            "rollout.samples",
            "must be at least 2: a group of one has no advantage",
        )
        self._check_mechanisms()
        require(
            rollout.questions % algorithm.minibatches == 0,
            "algorithm.minibatches",
            f"must divide rollout.questions, {rollout.questions}",
        )
        rows = max(1, self.mesh.data) * max(1, self.mesh.fsdp)
        for key, number in (
            ("rollout.questions", rollout.questions * rollout.samples),
            ("update.rows_per_microbatch", self.update.rows_per_microbatch),
            ("roll_in.capacity", self.roll_in.capacity if self.modes.roll_in else rows),
        ):
            what = "times rollout.samples " if key == "rollout.questions" else ""
            require(
                number % rows == 0,
                key,
                f"{what}must divide by mesh.data times mesh.fsdp, {rows}; it is {number}",
            )
        if self.modes.rtm or self.modes.roll_in:  # roll-in falls back to RTM
            require(self.rtm.k_min < turns, "rtm.k_min", f"must be under env.max_turns, {turns}")
        if self.modes.roll_in:
            # The turn budget counts the prefix's turns, and one must be left to play.
            require(
                self.roll_in.max_prefix_turns < turns,
                "roll_in.max_prefix_turns",
                f"must be under env.max_turns, {turns}",
            )

    def _check_mechanisms(self):
        """Settings of different sections that exclude each other."""
        algorithm, replay, turns = self.algorithm, self.replay, self.env.max_turns
        require(
            algorithm.critic_warmup == 0 or algorithm.name == "ppo",
            "algorithm.critic_warmup",
            "needs algorithm.name=ppo: nothing else has a critic",
        )
        updates = self.steps * algorithm.epochs * algorithm.minibatches
        require(
            algorithm.critic_warmup < updates,
            "algorithm.critic_warmup",
            f"must be under the run's {updates} optimizer steps",
        )
        require(
            algorithm.kl_in == "loss" or algorithm.kl_coefficient > 0,
            "algorithm.kl_in",
            "needs a kl_coefficient above 0",
        )
        require(
            replay.method != "ssr" or algorithm.name == "grpo",
            "replay.method",
            "must be none or mix with ppo: ssr draws by the advantage of whole replies",
        )
        require(
            replay.labels == "stored" or (replay.method == "mix" and algorithm.name == "ppo"),
            "replay.labels",
            "can only be recomputed for method mix with a critic",
        )
        require(
            self.rethinking.preset == "off" or self.rollout.in_flight is None,
            "rollout.in_flight",
            "must be left out with rethinking: second thoughts need a row for every episode",
        )
        require(
            self.rethinking.preset == "off" or turns == 1,
            "rethinking.preset",
            f"must be off: episodes of {turns} turns are rethought by their environment",
        )
        require(
            not self.prefix_mask.regenerates or self.modes.roll_in == 0,
            "prefix_mask.continuation",
            "can't be regenerate with modes.roll_in: a prefix is either rolled in or masked",
        )


@section
class SftConfig:
    """Supervised fine-tuning; task, options and scorer are as in `TrainConfig`.

    `ema_decay` averages the weights that are saved; None for none. `rollout` and `reward` are
    evaluation's.
    """

    run_dir: str | None = None
    seed: int = 0
    task: str = "frozenlake"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    scorer: str | None = None
    steps: int = 1000
    policy: PolicyConfig = _of(PolicyConfig)
    data: FrozenLakeData = _of(FrozenLakeData)
    demonstrations: DemonstrationConfig = _of(DemonstrationConfig)
    env: NavigationEnv = _of(NavigationEnv)
    reward: NavigationReward = _of(NavigationReward)
    rollout: RolloutConfig = _of(RolloutConfig)
    batch: BatchConfig = _of(BatchConfig)
    optimizer: OptimizerConfig = _of(
        OptimizerConfig, learning_rate=1e-5, schedule="cosine", warmup_steps=20
    )
    ema_decay: float | None = None
    mesh: MeshConfig = _of(MeshConfig)
    checkpoint: CheckpointConfig = _of(CheckpointConfig)
    eval: NavigationEval = _of(NavigationEval)
    guard: GuardConfig = _of(GuardConfig)
    log: LogConfig = _of(LogConfig)

    def __post_init__(self):
        at_least(self, 1, "steps")
        if self.ema_decay is not None:
            require(0 < self.ema_decay < 1, "ema_decay", f"must lie in 0 .. 1: {self.ema_decay}")
        require(
            self.env.max_turns == 1 or self.demonstrations.max_turns <= self.env.max_turns,
            "demonstrations.max_turns",
            f"exceeds env.max_turns, {self.env.max_turns}: raise that or shorten these",
        )
        rows = max(1, self.mesh.data) * max(1, self.mesh.fsdp)
        require(
            self.batch.rows % rows == 0,
            "batch.rows",
            f"must divide by mesh.data times mesh.fsdp, {rows}; it is {self.batch.rows}",
        )


# --- tasks --------------------------------------------------------------------------------------

GROUNDING = {
    "data": GroundingData,
    "env": GroundingEnv,
    "reward": GroundingReward,
    "eval": EvalConfig,
}
# Task -> the classes of the sections that it brings.
TASKS: dict[str, dict[str, type]] = {
    "frozenlake": {
        "data": FrozenLakeData,
        "env": NavigationEnv,
        "reward": NavigationReward,
        "eval": NavigationEval,
    },
    "maze": {
        "data": MazeData,
        "env": NavigationEnv,
        "reward": NavigationReward,
        "eval": MazeEval,
    },
    "tables": GROUNDING,
    "charts": GROUNDING,
    "boxes": GROUNDING | {"data": BoxesData, "eval": BoxesEval},
    "questions": {
        "data": QuestionsData,
        "env": QuestionsEnv,
        "reward": QuestionsReward,
        "eval": QuestionsEval,
    },
}
# For a task of a user's own, whose settings are `options`.
_OWN = {"data": Empty, "env": TurnsEnv, "reward": Empty, "eval": EvalConfig}

C = TypeVar("C", TrainConfig, SftConfig)


@functools.cache
def of_task(cls: type[C], task: str) -> type[C]:
    """`cls` with the sections of a task.

    Raises:
      ConfigError: no such task.
    """
    if task not in TASKS and ":" not in task:
        near = difflib.get_close_matches(task, TASKS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"task must be one of {', '.join(TASKS)}, or a function of yours as module:function; "
            f"got '{task}'{hint}",
            "task",
        )
    if task == "frozenlake":
        return cls
    sections = TASKS.get(task, _OWN)
    return dataclasses.make_dataclass(
        cls.__name__,
        [("task", str, task), *((name, kind, _of(kind)) for name, kind in sections.items())],
        bases=(cls,),
        namespace={"__doc__": cls.__doc__, "__module__": cls.__module__},
        frozen=True,
        kw_only=True,
    )


def load(path: str | pathlib.Path, overrides: Sequence[str], cls: type[C]) -> C:
    """Reads a recipe into `cls`, with the sections of the task that it names.

    Raises: as `strict_yaml.load`, and ConfigError for an unknown task.
    """
    task = peek(path, overrides, "task")
    return load_strictly(path, overrides, of_task(cls, task or "frozenlake"))
