"""What a task is: examples, an environment, a reward, demonstrations, put together for a run."""

from __future__ import annotations

import dataclasses
import importlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from vrrl_jax.config import SftConfig, TrainConfig
from vrrl_jax.data.demonstrations import DemonstrationReply
from vrrl_jax.rollout.episodes import Environment, Group
from vrrl_jax.types import Prompt

# What a task has, and the figures that roll-in reads.
PARTS = ("noun", "environment", "metrics", "revision", "training", "evaluation", "probes", "score")
PARTS += ("fresh", "demonstrate")
ROLL_IN = ("clean_commit", "commit_em")
Score = Callable[[tuple[str, ...], Any, Group], Mapping[str, Any]]
SAMPLED = 4096  # of more examples than these, shapes are planned for so many


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples to evaluate on.

    Attributes:
      examples: the examples.
      labels: the split that each belongs to, a row of the table.
      in_domain: the labels that count as in-domain; the others are out of distribution.
      source: where they come from, for people.
    """

    examples: Sequence[Any]
    labels: tuple[str, ...]
    in_domain: frozenset[str]
    source: str = "the generator"

    def __post_init__(self):
        if len(self.labels) != len(self.examples):
            raise ValueError(f"{len(self.labels)} labels for {len(self.examples)} examples")


@dataclasses.dataclass(frozen=True, eq=False)
class Generated(Sequence):
    """The first `count` examples of a generated sequence, each made when it is asked for.

    Attributes:
      make: (seed, split, index, settings) -> example.
      seed, split, settings: of the sequence.
      count: how many.
    """

    make: Callable[[int, str, int, Any], Any]
    seed: int
    split: str
    settings: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self.count))]
        i = range(self.count)[i]  # an IndexError where there is none
        return self.make(self.seed, self.split, i, self.settings)


# Label of a split in tables -> split of a generated sequence.
SPLITS = {"in-domain": "test_id", "OOD": "test_ood"}


def unseen(
    make: Callable[[int, str, int, Any], Any],
    seed: int,
    settings: Any,
    count: int,
    source: str = "the generator",
) -> Examples:
    """`count` examples of a generated sequence, as many in-domain as out of distribution."""
    each = -(-count // len(SPLITS))
    examples = [
        example
        for split in SPLITS.values()
        for example in Generated(make, seed, split, settings, each)
    ]
    labels = tuple(label for label in SPLITS for _ in range(each))
    return Examples(examples, labels, frozenset({"in-domain"}), source)


def given(section: Any, *names: str) -> dict[str, Any]:
    """Those fields of a section that aren't None, all or the named ones: what replaces defaults."""
    values = {name: getattr(section, name) for name in names} or dataclasses.asdict(section)
    return {name: value for name, value in values.items() if value is not None}


def tell(skipped: Iterable[str]) -> None:
    """Prints what was left out of a data set, a line each."""
    for line in skipped:
        print(f"skipped: {line}")


def sampled(examples: Sequence[Any]) -> range:
    """The places of all examples, or of `SAMPLED` of them at most, evenly spread."""
    return range(0, len(examples), max(1, -(-len(examples) // SAMPLED)))


class Task(Protocol):
    """What a run learns.

    Attributes:
      noun: what its examples are, in the plural.
      environment: what answers the policy.
      metrics: figures of `score` that tables show, in their order; "success" and "total" among
        them.
      revision: how a reply opens that revises; forced after a wrong prefix that is rolled in. ""
        where there is nothing to revise.
    """

    noun: str
    environment: Environment
    metrics: tuple[str, ...]
    revision: str

    def training(self) -> Sequence[Any]:
        """The examples to train on. An example's index is its global id."""

    def evaluation(self, training: Sequence[Any] = ()) -> Examples:
        """The examples to evaluate on, none of which is in `training`."""

    def probes(self, examples: Sequence[Any]) -> list[tuple[Any, str]]:
        """The largest of some examples, each with a reply that is answered with feedback."""

    def score(self, texts: tuple[str, ...], example: Any, group: Group) -> Mapping[str, Any]:
        """Named figures of an episode, floats, "total" among them.

        With "turn_rewards", one a reply, the total is placed on turns. Roll-in reads "clean_commit"
        and "commit_em", both 0 or 1.
        """

    def fresh(self, rng: random.Random, count: int) -> Sequence[Any]:
        """`count` examples to demonstrate on, drawn anew."""

    def demonstrate(
        self, example: Any, rng: random.Random, single_turn: bool
    ) -> tuple[DemonstrationReply, ...]:
        """What an ideal policy would reply, turn by turn; one reply where `single_turn`."""

    def transcribe(self, example: Any) -> tuple[Prompt, DemonstrationReply]:
        """A prompt that asks for all that an example's picture shows, and the reply to it.

        Only for supervised runs that have `demonstrations.reading_steps` or `reading_fraction`.
        """


def named(path: str) -> Any:
    """The object that "package.module:name" names.

    Raises:
      ValueError: there is no such module or no such name in it.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"{path}: {error}. Install it, put its file beside the recipe or into the working "
            "directory, or its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        place = getattr(importlib.import_module(module), "__file__", module)
        raise ValueError(f"{path}: {place} has no {name}") from error


def own(config: TrainConfig | SftConfig, processor: Any) -> Task:
    """The task of a user's own that a recipe names.

    Raises:
      ValueError: it can't be found, it is no task, or the recipe rolls in and it has no figures
        for that.
    """
    task = named(config.task)(config, processor)
    lacking = [name for name in PARTS if not hasattr(task, name)]
    if lacking:
        raise ValueError(
            f"{config.task} returns a {type(task).__name__} without {', '.join(lacking)}; a task "
            "is a tasks.custom.Custom, or has what tasks.base.Task lists"
        )
    missing = [name for name in ROLL_IN if name not in task.metrics]
    if isinstance(config, TrainConfig) and config.modes.roll_in > 0 and missing:
        raise ValueError(
            f"modes.roll_in reads {' and '.join(ROLL_IN)}, 0 or 1 each: the reward of "
            f"{config.task} must return them and its metrics name them; or set modes.roll_in to 0"
        )
    return task


def scored_by(task: Task, scorer: Callable[[tuple[str, ...], Any], Any]) -> Score:
    """The task's score with a total of the user's own.

    Args:
      scorer: (texts, example) -> a number, or named figures with "total" among them. They replace
        the task's of the same name; the others stay as metrics.
    """

    def score(texts: tuple[str, ...], example: Any, group: Group) -> Mapping[str, Any]:
        own = scorer(texts, example)
        own = dict(own) if isinstance(own, Mapping) else {"total": float(own)}
        if "total" not in own:
            raise ValueError(f"a scorer returns a number or a dict with 'total'; got {sorted(own)}")
        parts = dict(task.score(texts, example, group))
        # Shares of a total that is no longer there.
        parts.pop("turn_rewards", None)
        return parts | own

    return score
