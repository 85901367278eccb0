"""Single questions: drawn shapes, or records of data sets, with pictures or without."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vrrl_jax.config import (
    DemonstrationConfig,
    QuestionsData,
    QuestionsEnv,
    QuestionsEval,
    QuestionsReward,
)
from vrrl_jax.data import loading, question_demonstrations, shapes
from vrrl_jax.data.demonstrations import DemonstrationReply
from vrrl_jax.data.mixture import Mixture, Numbered
from vrrl_jax.envs import questions as envs
from vrrl_jax.question_sections import SourceConfig
from vrrl_jax.rewards import questions as rewards
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.tasks.base import Examples, Generated, given, sampled, tell, unseen

METRICS = (
    "success",
    "format",
    "format_error",
    "lost_to_format",
    "rethought",
    "waits",
    "truncated",
    "read",
    "total",
)
HEAVIEST = 8  # examples by each weight that shapes are planned for


@dataclasses.dataclass(frozen=True)
class Questions:
    """The task as a recipe configures it; see `tasks.base.Task`.

    Attributes:
      open_image: decodes a record's picture, within limits of size.
      resized: (width, height) of a picture -> of what the model sees of it.
    """

    data: QuestionsData = dataclasses.field(default_factory=QuestionsData)
    env: QuestionsEnv = dataclasses.field(default_factory=QuestionsEnv)
    reward: QuestionsReward = dataclasses.field(default_factory=QuestionsReward)
    eval: QuestionsEval = dataclasses.field(default_factory=QuestionsEval)
    demonstrations: DemonstrationConfig = dataclasses.field(default_factory=DemonstrationConfig)
    decision_bonus: float = 0.0
    open_image: Callable[[Any], Any] | None = None
    resized: Callable[[tuple[int, int]], tuple[int, int]] | None = None

    noun = "questions"
    metrics = METRICS
    revision = ""

    @functools.cached_property
    def environment(self) -> envs.Environment:
        env = self.env
        settings = envs.Settings(env.style, env.suffix, env.joint, env.opening)
        return envs.Environment(settings, self.open_image)

    @functools.cached_property
    def settings(self) -> shapes.Settings:
        """What is drawn."""
        preset = shapes.NANO if self.data.preset == "nano" else shapes.Settings()
        return dataclasses.replace(preset, **given(self.data, "questions", "text_share"))

    def training(self) -> Sequence[Any]:
        """Drawn questions, or those of the sources in their mixture; what was skipped is printed.

        Raises:
          FileNotFoundError, ValueError: a source that can't be read, or one that is empty.
        """
        data = self.data
        if not data.sources:
            return Generated(shapes.example, data.seed, "train", self.settings, data.count)
        named = zip(source_names(data.sources), data.sources, strict=True)
        read = tuple((name, self._read(name, source)) for name, source in named)
        weights = tuple(s.weight for s in data.sources if s.weight is not None)
        return Numbered(Mixture(read, weights, data.seed))

    def evaluation(self, training: Sequence[Any] = ()) -> Examples:
        """Drawn questions, in-domain and not; or those of the sources, eval.count of each."""
        sources, count = self.eval.sources, self.eval.count
        if sources:
            named = zip(source_names(sources), sources, strict=True)
            read = {name: self._read(name, source)[:count] for name, source in named}
            examples = [record for records in read.values() for record in records]
            labels = tuple(name for name, records in read.items() for _ in records)
            return Examples(examples, labels, frozenset(self.eval.in_domain), ", ".join(read))
        return unseen(shapes.example, self.eval.seed, self.settings, count)

    def probes(self, examples: Sequence[Any]) -> list[tuple[Any, str]]:
        """Those of the longest texts, the most and the largest pictures, and the most in all."""
        places = sampled(examples)
        columns = zip(*(self._weights(examples[i]) for i in places), strict=True)
        heaviest = {
            k
            for column in columns
            for k in heapq.nlargest(HEAVIEST, range(len(places)), column.__getitem__)
        }
        return [(examples[places[k]], "") for k in sorted(heaviest)]

    def _weights(self, example: Any) -> tuple[float, ...]:
        """Letters, pictures, pixels of the largest as the model sees it, tokens as a guess."""
        prompt = self.environment.reset(example)
        sizes = [(image.shape[1], image.shape[0]) for image in prompt.pictures]
        seen = [math.prod(self.resized(size) if self.resized else size) for size in sizes]
        guess = len(prompt.text) / 3 + sum(seen) / 28**2
        return len(prompt.text), len(seen), max(seen, default=0), guess

    def score(self, texts: tuple[str, ...], example: Any, group: Group) -> Mapping[str, Any]:
        whole = [*texts[:-1], *(self.env.opening + text for text in texts[-1:])]
        return rewards.score(whole, example, group, self._paid, group.ended)

    @functools.cached_property
    def _paid(self) -> rewards.Settings:
        return rewards.Settings(**dataclasses.asdict(self.reward))

    def fresh(self, rng: random.Random, count: int) -> Sequence[Any]:
        if not self.data.sources:
            return Generated(shapes.example, rng.getrandbits(40), "train", self.settings, count)
        return [self._stream[rng.randrange(len(self._stream))] for _ in range(count)]

    @functools.cached_property
    def _stream(self) -> Sequence[Any]:
        return self.training()

    def demonstrate(
        self, example: Any, rng: random.Random, single_turn: bool
    ) -> tuple[DemonstrationReply, ...]:
        """The first steps of a run, its lone ones, reason without second thoughts."""
        wanted, demos = self.demonstrations, question_demonstrations
        short = self.data.preset == "nano" and not self.data.sources
        options = demos.Options(
            style=self.env.style,
            steps=wanted.reasoning,
            wrong_first=0.0 if single_turn else wanted.wrong_first,
            confirm=0.0 if single_turn else wanted.confirm,
            triggers=demos.SHORT_TRIGGERS if short else demos.TRIGGERS,
        )
        replies = demos.demonstrate(example, rng, options)
        return tuple(demos.after(reply, self.env.opening) for reply in replies)

    def _read(self, name: str, source: SourceConfig) -> Sequence[Any]:
        loaded = loading.load(
            source.path, source.mapper, split=source.split, source=name, limit=source.limit
        )
        tell(loaded.skipped)
        records = loaded.records
        wanted, categories = [], set()
        for i, record in enumerate(records):
            categories.add(record.category)
            if self._takes(record, source):
                wanted.append(i)
        named = {*(source.categories or ()), *source.leave_out}
        if wanted and source.limit is None and not named <= categories:
            raise ValueError(
                f"{source.path} has no questions of category {sorted(named - categories)}; its "
                f"categories are {sorted(categories)}"
            )
        if len(wanted) < len(records):
            print(f"{name}: {len(wanted)} of {len(records)} questions taken")
        if not wanted:
            raise ValueError(f"{source.path}: no question is left, of {len(records)}")
        return dataclasses.replace(records, index=records.index[wanted])

    def _takes(self, record: Any, source: SourceConfig) -> bool:
        """Whether a question has an answer, few enough pictures, and is of a wanted kind."""
        count = len(record.pictures)
        wanted = source.categories is None or record.category in source.categories
        wanted = wanted and record.category not in source.leave_out
        if source.pictures != "any":
            wanted = wanted and (count > 0) == (source.pictures == "with")
        return bool(record.answer) and count <= self.data.max_pictures and wanted


def source_names(sources: Sequence[SourceConfig]) -> list[str]:
    """What sources are called in tables: layout and split, and the path where two share both."""
    short = [s.mapper + (f"/{s.split}" if s.split else "") for s in sources]
    return [
        name if short.count(name) == 1 else f"{name} of {source.path}"
        for name, source in zip(short, sources, strict=True)
    ]
