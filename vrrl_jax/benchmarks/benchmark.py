"""What a benchmark is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from vrrl_jax.benchmarks import prompts
from vrrl_jax.benchmarks.scorers import Scorer
from vrrl_jax.data.records import Record

Prompt = Callable[[Record], str]


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of a benchmark's rows.

    Attributes:
      name: of the part; "" where there is but one.
      folder: below the benchmark's.
      split: as the files' names have it; None where they have none.
    """

    name: str = ""
    folder: str = ""
    split: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark.

    Attributes:
      title: what people call it.
      mapper: out of `data.mappers.MAPPERS`; "" where questions are generated.
      folder: its data, below the suite's `data`.
      parts: its rows; each with a name is a part of the result.
      split: what the table says was asked.
      prompts: id -> text with `<image>` marks; the first is the default.
      ask: the question alone, for modes with instructions of their own.
      form: a sentence on the answer's form, for those modes.
      official: the published rule; None where that needs a judge, or isn't offered.
      strict: judges the answer that a reply settles on.
      metric: what the figures are.
      category: what a record counts to; empty for none.
      macro: the headline is the mean over categories, else over questions.
      expected: categories that the headline should be the mean of; told where some are missing.
      cluster: questions of one name hang together, and are resampled together; None: each alone.
      graded: verdicts' values count, not whether they are right.
      native: prompts that ask for boxes in the model's own coordinates.
      omit: "" for a record that is asked, None for one that isn't part of the benchmark, else the
        reason why it can't be scored.
      notes: what a reader of the figures must know.
    """

    title: str
    mapper: str
    folder: str
    parts: tuple[Part, ...]
    split: str
    prompts: Mapping[str, Prompt]
    strict: Scorer
    official: Scorer | None = None
    ask: Prompt = prompts.bare
    form: Prompt = prompts.form
    metric: str = "accuracy"
    category: Callable[[Record], str] = lambda record: record.category
    macro: bool = False
    expected: tuple[str, ...] = ()
    cluster: Callable[[Record], str] | None = None
    graded: bool = False
    native: tuple[str, ...] = ()
    omit: Callable[[Record], str | None] = lambda record: ""
    notes: tuple[str, ...] = ()
