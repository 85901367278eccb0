"""Visual grounding: point at, or box, what is asked for in a table, a chart or a picture."""

from __future__ import annotations

import abc
import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from vrrl_jax.config import (
    BoxesData,
    BoxesEval,
    DemonstrationConfig,
    EvalConfig,
    GroundingData,
    GroundingEnv,
    GroundingReward,
)
from vrrl_jax.coordinates import Box, Size, convert_point
from vrrl_jax.data import (
    charts,
    grounding_demonstrations,
    loading,
    real_files,
    real_parts,
    real_tables,
    tables,
)
from vrrl_jax.data.demonstrations import DemonstrationReply, Piece
from vrrl_jax.data.grounding_demonstrations import number
from vrrl_jax.envs import grounding as envs
from vrrl_jax.envs.scenes import scene
from vrrl_jax.render import charts as chart_pictures
from vrrl_jax.render import tables as table_pictures
from vrrl_jax.rewards import grounding as rewards
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.tasks.base import Examples, Generated, given, sampled, tell, unseen
from vrrl_jax.types import Prompt

# As in navigation; an exact match is a right place.
METRICS = (
    "success",
    "final_em",
    "turn1_em",
    "wrong_to_right",
    "right_to_wrong",
    "lost_to_format",
    "progress",
    "clean_commit",
    "format_error",
    "budget_exhausted",
    "turns",
    "total",
)
PROBES = {"point": "<ANSWER>0 0</ANSWER>", "box": "<ANSWER>0 0 1 1</ANSWER>"}
READ = "Read"  # asks for a transcript
LONGEST = 8  # questions that shapes are planned for; letters tell of tokens only roughly


@dataclasses.dataclass(frozen=True)
class Grounding:
    """What tables, charts and boxes share; see `tasks.base.Task`.

    Attributes:
      resized: (width, height) of a picture -> of what the model sees of it.
    """

    data: GroundingData | BoxesData
    env: GroundingEnv = dataclasses.field(default_factory=GroundingEnv)
    reward: GroundingReward = dataclasses.field(default_factory=GroundingReward)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    demonstrations: DemonstrationConfig = dataclasses.field(default_factory=DemonstrationConfig)
    decision_bonus: float = 0.0
    resized: envs.Resized | None = None

    metrics = METRICS
    revision = envs.THINK

    @functools.cached_property
    def environment(self) -> envs.Environment:
        return envs.Environment(envs.Settings(**given(self.env)), self.resized)

    def probes(self, examples: Sequence[Any]) -> list[tuple[Any, str]]:
        """The pictures that no other exceeds in both directions, under the longest questions."""
        of_size: dict[tuple[int, int], Any] = {}
        questions = set()
        for i in sampled(examples):
            example = examples[i]
            about = scene(example)
            of_size.setdefault(self.resized(about.size) if self.resized else about.size, example)
            questions.add(about.question)
        longest = sorted(questions, key=lambda text: (-len(text), text))[:LONGEST]
        return [
            (dataclasses.replace(scene(example), question=question), PROBES[self.env.form])
            for size, example in of_size.items()
            if not any(o != size and o[0] >= size[0] and o[1] >= size[1] for o in of_size)
            for question in longest
        ]

    def score(self, texts: tuple[str, ...], example: Any, group: Group) -> Mapping[str, Any]:
        about = scene(example)
        return rewards.score(
            texts,
            about,
            form=self.env.form,
            coordinates=self.env.coordinates,
            resized=self.resized and self.resized(about.size),
            bare=self.env.bare,
            prefix_turns=len(group.prefix),
            prefix_right=group.prefix_right,
            decision_bonus=self.decision_bonus,
            single_turn=self.env.max_turns == 1,
            **dataclasses.asdict(self.reward),
        )

    def demonstrate(
        self, example: Any, rng: random.Random, single_turn: bool
    ) -> tuple[DemonstrationReply, ...]:
        about, wanted = scene(example), self.demonstrations
        options = grounding_demonstrations.Options(
            form=self.env.form,
            coordinates=self.env.coordinates,
            step=self.data.step,
            style=self.data.written,
            radius=self.reward.radius,
            threshold=self.reward.threshold,
        )
        return grounding_demonstrations.demonstrate(
            about,
            rng,
            options,
            resized=self.resized and self.resized(about.size),
            wrong_first=wanted.wrong_first,
            second_error=wanted.second_error,
            max_turns=1 if single_turn or self.env.max_turns == 1 else wanted.max_turns,
            soft_targets=wanted.soft_targets,
            decision_weight=wanted.decision_weight,
        )


class Drawn(Grounding, abc.ABC):
    """Grounding in drawn pictures, their contents generated or cut from real data."""

    @functools.cached_property
    def corpus(self) -> real_parts.Corpus | None:
        """The real data, parted into splits; None where contents are generated.

        What was left out is printed.

        Raises:
          FileNotFoundError: nothing is there.
          ValueError: nothing of use is there.
        """
        if self.data.real is None:
            return None
        loaded = real_files.load(self.data.real)
        corpus = real_parts.corpus(loaded.sources, self.data.held_out)
        tell((*loaded.notes, *corpus.notes))
        return corpus

    @abc.abstractmethod
    def marks(self, example: Any) -> list[tuple[str, Box]]:
        """The texts of a picture's marks and their boxes, in reading order."""

    def transcribe(self, example: Any) -> tuple[Prompt, DemonstrationReply]:
        """The marks' texts, each with the place of its centre."""
        about = scene(example)
        pieces = [Piece("<ANSWER>")]
        for text, box in self.marks(example):
            place = self._spoken(box, about.size)
            pieces += [Piece(f" {text}"), *(Piece(f" {number(value)}") for value in place)]
        reply = DemonstrationReply((*pieces, Piece("</ANSWER>")), 1.0)
        return Prompt(READ, (about.picture,)), reply

    def _spoken(self, box: Box, size: Size) -> Sequence[float]:
        """A box's centre as replies write it."""
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        resized = self.resized and self.resized(size)
        point = convert_point((x, y), "original", self.env.coordinates, size, resized)
        return [round(value / self.data.step) * self.data.step for value in point]

    @abc.abstractmethod
    def make(self, seed: int, split: str, index: int, settings: Any) -> Any:
        """The example at a place of a sequence."""

    @property
    @abc.abstractmethod
    def settings(self) -> Any:
        """What the generator draws."""

    def _examples(self, seed: int, split: str, count: int) -> Generated:
        return Generated(self.make, seed, split, self.settings, count)

    def training(self) -> Generated:
        return self._examples(self.data.seed, "train", self.data.count)

    def evaluation(self, training: Sequence[Any] = ()) -> Examples:
        """As many unseen contents in-domain as in held-out styles."""
        source = {} if self.data.real is None else {"source": self.data.real}
        return unseen(self.make, self.eval.seed, self.settings, self.eval.count, **source)

    def fresh(self, rng: random.Random, count: int) -> Generated:
        return self._examples(rng.getrandbits(40), "train", count)


class Tables(Drawn):
    """Cells of tables."""

    noun = "tables"

    def marks(self, example: tables.Example) -> list[tuple[str, Box]]:
        """What names the rows and the columns: a question speaks of nothing else."""
        table, boxes = example.table, table_pictures.render(*example).boxes
        header = [(text, boxes["header"][c]) for c, text in enumerate(table.header)]
        names = [(row[0], boxes["cell"][r, 0]) for r, row in enumerate(table.rows)]
        return sorted(header + names, key=lambda mark: (mark[1][1], mark[1][0]))

    def make(self, seed: int, split: str, index: int, settings: Any) -> tables.Example:
        if self.corpus is not None:
            return real_tables.table_example(self.corpus, seed, split, index, settings)
        return tables.example(seed, split, index, settings)

    @property
    def settings(self) -> tables.Settings:
        preset = tables.NANO if self.data.preset == "nano" else tables.Settings()
        return dataclasses.replace(preset, **given(self.data, "kinds", "rows", "columns"))


class Charts(Drawn):
    """Marks of charts."""

    noun = "charts"

    def marks(self, example: charts.Example) -> list[tuple[str, Box]]:
        """The marks of the first series by their categories."""
        chart = example.chart
        boxes = chart_pictures.render(*example).boxes["mark"]
        return [(name, boxes[0, c]) for c, name in enumerate(chart.categories) if (0, c) in boxes]

    def make(self, seed: int, split: str, index: int, settings: Any) -> charts.Example:
        if self.corpus is not None:
            return real_tables.chart_example(self.corpus, seed, split, index, settings)
        return charts.example(seed, split, index, settings)

    @property
    def settings(self) -> charts.Settings:
        preset = charts.NANO if self.data.preset == "nano" else charts.Settings()
        if self.data.kinds is None:
            return preset
        return dataclasses.replace(preset, asks=self.data.kinds)


@dataclasses.dataclass(frozen=True)
class Boxes(Grounding):
    """Objects in pictures read from files."""

    data: BoxesData = dataclasses.field(default_factory=BoxesData)
    eval: BoxesEval = dataclasses.field(default_factory=BoxesEval)

    noun = "pictures"

    def training(self) -> Sequence[Any]:
        """The records with boxes; what was skipped is printed.

        Raises:
          ValueError: data.path is empty.
          FileNotFoundError: nothing is there.
        """
        if not self.data.path:
            raise ValueError("data.path is empty: name the data set whose boxes are asked for")
        return self._read(self.data.path, self.data.split, self.data.limit)

    def evaluation(self, training: Sequence[Any] = ()) -> Examples:
        """The set of eval.path, at most eval.count of it.

        Raises:
          ValueError: eval.path is missing.
        """
        path = self.eval.path
        if path is None:
            raise ValueError("eval.path is missing: name the data set to evaluate on")
        records = self._read(path, self.eval.split, self.eval.count)
        name = self.eval.split or "all"
        return Examples(records, (name,) * len(records), frozenset({name}), path)

    def fresh(self, rng: random.Random, count: int) -> list[Any]:
        return [self._shown[rng.randrange(len(self._shown))] for _ in range(count)]

    @functools.cached_property
    def _shown(self) -> Sequence[Any]:
        """The training records, for demonstrations: read once, not at every step."""
        return self.training()

    def _read(self, path: str, split: str | None, limit: int | None) -> Sequence[Any]:
        loaded = loading.load(path, self.data.mapper, split=split, limit=limit)
        tell(loaded.skipped)
        return loaded.records
