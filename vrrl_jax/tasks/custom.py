"""A task of your own out of plain parts; docs/your_own.md shows how.

# mine.py, named by a recipe as `task: mine:task`
def task(config, processor):
    return Custom(MyEnvironment(), reward, train=..., test={"unseen": ...}, probe="...")
"""

from __future__ import annotations

import dataclasses
import difflib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vrrl_jax.data.demonstrations import DemonstrationReply, Piece
from vrrl_jax.rollout.episodes import Environment, Group, answered
from vrrl_jax.tasks.base import Examples
from vrrl_jax.types import Outcome, Prompt

ALWAYS = ("success", "total")  # what tables are made of
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Custom:
    """A `tasks.base.Task`.

    Attributes:
      environment: see `rollout.episodes.Environment`.
      reward: (texts, example) -> the episode's total, or a mapping of named figures with "total"
        among them. "success" and "turns" are added where they lack: whether the total is at least
        1, and the number of replies.
      train: examples to train on.
      test: examples to evaluate on, by the row of the table that they count in; none of them in
        `train`, which nobody checks.
      probe: a reply that the environment answers with feedback, or a function of the example that
        gives one; any text where episodes have one turn. With it a run plans its shapes, and tries
        the parts before anything is trained.
      in_domain: rows that count as in-domain; None for all.
      noun: what the examples are, in the plural.
      metrics: figures that tables show, in order.
      revision: how a reply opens that revises; roll-in forces it after a wrong prefix.
      demonstration: (example, rng) -> the replies of an ideal policy, texts or
        `DemonstrationReply`; for `vrrl sft`.
      planned: examples that shapes are planned for, evenly spread; None for all. Name few where
        reading one takes long and all are of one size.

    Raises:
      ValueError: parts that can't be a task.
    """

    environment: Environment
    reward: Callable[[tuple[str, ...], Any], float | Mapping[str, Any]]
    train: Sequence[Any]
    test: Mapping[str, Sequence[Any]]
    probe: str | Callable[[Any], str]
    in_domain: tuple[str, ...] | None = None
    noun: str = "examples"
    metrics: tuple[str, ...] = ("success", "total", "turns")
    revision: str = ""
    demonstration: Callable[[Any, random.Random], Sequence[str | DemonstrationReply]] | None = None
    planned: int | None = 256

    def __post_init__(self):
        if not len(self.train):
            raise ValueError(f"there are no {self.noun} to train on: give `train` some")
        if not any(len(examples) for examples in self.test.values()):
            raise ValueError(
                f"there are no {self.noun} to evaluate on: give `test` some, as in "
                '{"unseen": [...]}'
            )
        unknown = set(self.in_domain or ()) - set(self.test)
        if unknown:
            raise ValueError(f"in_domain names {sorted(unknown)}; test has {sorted(self.test)}")
        missing = [name for name in ALWAYS if name not in self.metrics]
        if missing:
            raise ValueError(f"metrics {list(self.metrics)} lack {' and '.join(missing)}")

    def training(self) -> Sequence[Any]:
        return self.train

    def evaluation(self, training: Sequence[Any] = ()) -> Examples:
        """The test examples. Every run asks for them at its start: it tries the parts first."""
        examples = [example for rows in self.test.values() for example in rows]
        labels = tuple(label for label, rows in self.test.items() for _ in rows)
        self._try(examples[0])
        inside = frozenset(self.test if self.in_domain is None else self.in_domain)
        return Examples(examples, labels, inside, "the task")

    def probes(self, examples: Sequence[Any]) -> list[tuple[Any, str]]:
        every = max(1, len(examples) // (self.planned or len(examples)))
        chosen = [examples[i] for i in range(0, len(examples), every)]
        return [(example, self._probe(example)) for example in chosen]

    def score(self, texts: tuple[str, ...], example: Any, group: Group) -> Mapping[str, Any]:
        """The reward's figures.

        Raises:
          ValueError: the reward returns something else, or not what `metrics` names.
        """
        given = self.reward(tuple(texts), example)
        parts = dict(given) if isinstance(given, Mapping) else {"total": given}
        shares = parts.pop("turn_rewards", None)
        figures = {name: _number(name, value) for name, value in parts.items()}
        if "total" not in figures:
            raise ValueError(
                "a reward returns a number, or a mapping with 'total' among its names; got "
                f"{sorted(figures)}"
            )
        figures.setdefault("success", float(figures["total"] >= 1))
        figures.setdefault("turns", float(len(texts)))
        missing = [name for name in self.metrics if name not in figures]
        if missing:
            raise ValueError(
                f"metrics names {', '.join(missing)}, which the reward doesn't return; it returns "
                f"{', '.join(figures)}"
            )
        if shares is None:
            return figures
        if len(shares) != len(texts):
            raise ValueError(f"turn_rewards has {len(shares)} shares for {len(texts)} replies")
        return figures | {"turn_rewards": tuple(_number("turn_rewards", s) for s in shares)}

    def fresh(self, rng: random.Random, count: int) -> list[Any]:
        return [self.train[rng.randrange(len(self.train))] for _ in range(count)]

    def demonstrate(
        self, example: Any, rng: random.Random, single_turn: bool
    ) -> tuple[DemonstrationReply, ...]:
        """The demonstration's replies; texts become replies that are learnt whole.

        Raises:
          ValueError: there is no demonstration, or it isn't one reply where that is asked for.
        """
        if self.demonstration is None:
            raise ValueError(
                "this task has no demonstrations: give Custom a `demonstration`, a function of "
                "(example, rng) that returns the replies of an ideal policy, a text a turn"
            )
        replies = tuple(_reply(reply) for reply in self.demonstration(example, rng))
        if not replies:
            raise ValueError("the demonstration has no reply")
        if single_turn and len(replies) > 1:
            raise ValueError(
                "demonstrations.single_turn_fraction and single_turn_steps ask for lone replies, "
                f"and the demonstration has {len(replies)}: set both to 0"
            )
        return replies

    def _probe(self, example: Any) -> str:
        return self.probe(example) if callable(self.probe) else self.probe

    def _try(self, example: Any) -> None:
        """Plays one reply and, where there is one, a demonstration.

        Raises:
          ValueError: a part doesn't keep to its protocol.
        """
        opening, probe = self.environment.reset(example), self._probe(example)
        if not isinstance(opening, Prompt):
            raise ValueError(f"reset returns a types.Prompt; got {type(opening).__name__}")
        self._outcome(example, (probe,))
        self.score((probe,), example, Group(0, example))
        if self.demonstration is None:
            return
        texts = tuple(r.text for r in self.demonstrate(example, random.Random(0), False))
        for n in range(1, len(texts)):
            if self._outcome(example, texts[:n]).done:
                raise ValueError(
                    f"the environment ends a demonstration at {texts[n - 1]!r}, its reply {n} of "
                    f"{len(texts)}"
                )

    def _outcome(self, example: Any, texts: tuple[str, ...]) -> Outcome:
        outcome = answered(self.environment, example, texts)
        if not isinstance(outcome, Outcome):
            raise ValueError(f"step returns a types.Outcome; got {type(outcome).__name__}")
        if not outcome.done and not isinstance(outcome.prompt, Prompt):
            raise ValueError(f"step at {texts[-1]!r}: the episode goes on, but without a Prompt")
        return outcome


def options(given: Mapping[str, Any], cls: type[T]) -> T:
    """A recipe's `options` as a dataclass of yours; lists become tuples.

    Args:
      given: `config.options`.
      cls: a dataclass all of whose fields have defaults.

    Raises:
      ValueError: an option that the class doesn't have; names the nearest one.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
            raise ValueError(f"unknown option 'options.{name}'; {hint}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the reward's {name} must be a number, got {value!r}") from error


def _reply(reply: str | DemonstrationReply) -> DemonstrationReply:
    return DemonstrationReply((Piece(reply),), 1.0) if isinstance(reply, str) else reply
