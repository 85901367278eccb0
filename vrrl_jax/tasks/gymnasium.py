"""A task out of any Gymnasium environment: `task: vrrl_jax.tasks.gymnasium:gymnasium_task`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vrrl_jax.config import SftConfig, TrainConfig
from vrrl_jax.envs import gymnasium as envs
from vrrl_jax.tasks.custom import Custom, options

METRICS = ("success", "clean_commit", "commit_em", "steps", "unreadable", "turns", "total")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a recipe's `options` may set.

    Attributes:
      id, actions, kwargs, mode, size, question, verify: see `envs.gymnasium.Settings`.
      seeds: train on seeds 0 .. seeds - 1, evaluate on the eval.count that follow.
      examples, test_examples: in place of seeds; seeds, or mappings of a seed and arguments of
        `gymnasium.make`.
      success: "positive": the game came to its end, with a positive reward at it; "terminated":
        that it came to its end is enough.
      unreadable: total of an episode that ends in a reply that can't be read. Choose it under any
        return: where returns are negative, 0 would pay for babble.
    """

    id: str = ""
    actions: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mode: Literal["plan", "act"] = "plan"
    size: tuple[int, int] | None = None
    question: str | None = None
    verify: str | None = None
    seeds: int = 1000
    examples: tuple[Any, ...] = ()
    test_examples: tuple[Any, ...] = ()
    success: Literal["positive", "terminated"] = "positive"
    unreadable: float = 0.0

    def __post_init__(self):
        for name, example in (("id", "FrozenLake-v1"), ("actions", "[left, down, right, up]")):
            if not getattr(self, name):
                raise ValueError(f"options.{name} is missing, as in {name}: {example}")
        if self.success not in ("positive", "terminated"):
            raise ValueError(f"options.success is positive or terminated, not {self.success!r}")
        if self.seeds < 1:
            raise ValueError("options.seeds must be at least 1")
        if self.examples and not self.test_examples:
            raise ValueError("options.test_examples is missing: what options.examples leaves out")


def score(
    texts: Sequence[str], example: Any, settings: envs.Settings, given: Options
) -> dict[str, float]:
    """The return of the last proposal, or of all that was done where the policy acts.

    A commit is clean where it repeats the proposal before it; `commit_em` says that it solves the
    game. Only plans are committed.
    """
    replies = [envs.read(text, settings.actions) for text in texts]
    actions = envs.counted(replies, settings.mode)
    end = envs.played(settings, example, actions)
    unreadable = replies[-1].kind == "invalid"
    good = given.success == "terminated" or end.last > 0
    success = float(end.terminated and good and not unreadable)
    clean = (
        settings.mode == "plan"
        and replies[-1].kind == "commit"
        and len(replies) > 1
        and replies[-2].actions == replies[-1].actions
    )
    return {
        "total": given.unreadable if unreadable else end.total,
        "success": success,
        "clean_commit": float(clean),
        "commit_em": success * (replies[-1].kind == "commit"),
        "steps": float(len(actions)),
        "unreadable": float(unreadable),
    }


def gymnasium_task(config: TrainConfig | SftConfig, processor: Any) -> Custom:
    """The task of a recipe whose `options` are `Options`.

    Raises:
      ValueError: options that don't fit, or a game that can't be made.
    """
    given = options(config.options, Options)
    settings = envs.Settings(
        given.id,
        given.actions,
        given.kwargs,
        given.mode,
        given.size,
        given.question,
        given.verify,
        config.env.max_turns,
    )
    return Custom(
        environment=envs.Environment(settings),
        reward=lambda texts, example: score(texts, example, settings, given),
        train=given.examples or range(given.seeds),
        test={"unseen": given.test_examples or range(given.seeds, given.seeds + config.eval.count)},
        probe="<ANSWER></ANSWER>",  # no action: the game can't be over
        noun="games",
        metrics=METRICS,
        planned=16,  # pictures of one size
    )
