"""Sections of single questions: their data, how they are put, what replies are paid, evaluation."""

from __future__ import annotations

from typing import Literal

from vrrl_jax.sections import EvalConfig, at_least, positive, require, section, share
from vrrl_jax.task_sections import TurnsEnv


@section
class SourceConfig:
    """Questions read from files.

    Attributes:
      path: of the data set; what `data.loading.load` reads.
      mapper: its layout, a name of `data.mappers.MAPPERS`.
      split: of it, where there are several.
      limit: read at most so many.
      weight: share of the mixture; null for all sources: their lengths.
      categories: only questions of these; null for all.
      leave_out: no questions of these categories.
      pictures: "with": only questions about pictures; "without": only those of text alone.
    """

    path: str = ""
    mapper: str = ""
    split: str | None = None
    limit: int | None = None
    weight: float | None = None
    categories: tuple[str, ...] | None = None
    leave_out: tuple[str, ...] = ()
    pictures: Literal["any", "with", "without"] = "any"

    def __post_init__(self):
        require(bool(self.path), "path", "is empty: name a data set")
        require(self.categories != (), "categories", "is empty: null for all of them")
        require(bool(self.mapper), "mapper", "is empty: name the layout, such as virl39k")
        at_least(self, 1, "limit")
        positive(self, "weight")


@section
class QuestionsData:
    """Questions: drawn shapes, or sources of records, mixed.

    Attributes:
      seed: of the drawn ones and of the order.
      count: of drawn ones, where there is no source.
      preset: "nano": small pictures and few words, for policies of a million parameters.
      questions: kinds of drawn questions about a picture; null for all.
      text_share: share of drawn questions without a picture; null for the preset's.
      sources: data sets, in place of drawn questions.
      max_pictures: of a question; those with more are left out.
    """

    seed: int = 0
    count: int = 3000
    preset: Literal["full", "nano"] = "full"
    questions: tuple[str, ...] | None = None
    text_share: float | None = None
    sources: tuple[SourceConfig, ...] = ()
    max_pictures: int = 8

    def __post_init__(self):
        at_least(self, 1, "count")
        at_least(self, 0, "seed", "max_pictures")
        share(self, "text_share")
        weights = [source.weight for source in self.sources]
        require(
            all(w is None for w in weights) or None not in weights,
            "sources",
            "give all of them a weight, or none",
        )


@section
class QuestionsEnv(TurnsEnv):
    """How a question is put; `envs/questions.py` explains each."""

    max_turns: int = 1
    style: Literal["boxed", "r1", "direct", "cot"] = "boxed"
    suffix: str | None = None
    joint: str = "\n"
    opening: str = ""

    def __post_init__(self):
        require(self.max_turns == 1, "max_turns", "must be 1: a question has one reply")


@section
class QuestionsReward:
    """What a reply is paid; `rewards/questions.py` explains each."""

    style: Literal["r1", "cot", "rethinker", "plain"] = "rethinker"
    preset: Literal["paper", "code"] = "paper"
    correct_value: float = 1.0
    format_value: float = 1.0
    invalid_value: float = -0.1
    max_waits: int = 5
    wait_bonus: float | None = None
    wait_cost: float | None = None
    tolerance: float = 0.0
    threshold: float = 0.5
    graded: bool = False
    seconds: float = 3.0

    def __post_init__(self):
        positive(self, "correct_value", "seconds")
        at_least(self, 0, "format_value", "max_waits", "wait_bonus", "wait_cost", "tolerance")
        share(self, "threshold")


@section
class QuestionsEval(EvalConfig):
    """Evaluation on questions: `sources` in place of drawn ones, each a split of the table.

    `in_domain` names the sources that count as in-domain, by mapper and split ("mmk12/test").
    """

    sources: tuple[SourceConfig, ...] = ()
    in_domain: tuple[str, ...] = ()
