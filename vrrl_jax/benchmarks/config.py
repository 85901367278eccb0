"""What an evaluation of benchmarks can be told: `vrrl eval configs/eval_charts_tables.yaml`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

from vrrl_jax.sections import at_least, require, section, share
from vrrl_jax.strict_yaml import ConfigError, load, to_yaml

__all__ = ["BenchmarkEntry", "ConfigError", "SuiteConfig", "SuiteSampling", "load", "to_yaml"]

Mode = Literal["direct", "cot", "chain", "reflect", "boxed"]


@section
class BenchmarkEntry:
    """A benchmark to run.

    Attributes:
      name: out of `vrrl_jax.benchmarks.registry`.
      path: of its data, below `data`; None is the name that the registry gives the folder.
      split: None takes the benchmark's own, all of them where it has several.
      limit: ask at most so many questions of each split, from the start; None asks all.
      modes: how each question is put; see `vrrl_jax.benchmarks.prompting`.
      prompt: id of one of the benchmark's prompts, for the modes direct and reflect; None is its
        first.
    """

    name: str = ""
    path: str | None = None
    split: str | None = None
    limit: int | None = None
    modes: tuple[Mode, ...] = ("direct",)
    prompt: str | None = None

    def __post_init__(self):
        from vrrl_jax.benchmarks import registry

        require(bool(self.name), "name", "is missing: name a benchmark")
        known = ", ".join(registry.BENCHMARKS)
        require(
            self.name in registry.BENCHMARKS, "name", f"is {self.name!r}, expected one of {known}"
        )
        benchmark = registry.BENCHMARKS[self.name]
        at_least(self, 1, "limit")
        require(bool(self.modes), "modes", "is empty: name one, such as direct")
        require(len(set(self.modes)) == len(self.modes), "modes", "holds one twice")
        prompts = ", ".join(benchmark.prompts)
        require(
            self.prompt is None or self.prompt in benchmark.prompts,
            "prompt",
            f"is {self.prompt!r}; {self.name} has {prompts}",
        )
        splits = [part.name for part in benchmark.parts]
        require(
            self.split is None or len(splits) == 1 or self.split in splits,
            "split",
            f"is {self.split!r}; {self.name} has {', '.join(splits)}",
        )

    @property
    def label(self) -> str:
        """What tables and files call it."""
        return self.name if self.split is None else f"{self.name}-{self.split}"


@section
class SuiteSampling:
    """How replies are sampled. Greedy by default.

    Attributes:
      temperature: 0 is greedy.
      top_k, top_p: 0 and 1 keep everything.
      samples: replies to a question; a question's score is their mean. 1 where greedy.
      max_new_tokens: of each reply.
      seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    max_new_tokens: int = 2048
    seed: int = 0

    def __post_init__(self):
        at_least(self, 0, "temperature", "top_k")
        at_least(self, 1, "samples", "max_new_tokens")
        share(self, "top_p")
        require(self.top_p > 0, "top_p", "must be above 0")
        several = self.samples > 1 and self.temperature == 0
        require(not several, "samples", "are all alike at temperature 0: ask for one")


@section
class SuiteConfig:
    """An evaluation of benchmarks.

    Attributes:
      model: a Hugging Face directory, or "nano".
      output: folder of predictions and results; None is runs/ and the configuration's name.
      data: folder that entries' paths are below.
      benchmarks: at least one.
      sampling: of replies.
      batch_size: questions at a time.
      min_pixels, max_pixels: bounds of a picture's area, in place of the model's.
      max_prompt_tokens: longer prompts aren't asked; they count as failed, and are named.
      system: text of a system message; None opens no chat with one.
      coordinates: of boxes in the model's own form. None takes them from the model's family:
        "pixel" of the resized picture for Qwen2.5-VL, "thousand" for Qwen3-VL.
      resamples: of the bootstrap; 0 gives no intervals.
    """

    model: str = "nano"
    output: str | None = None
    data: str = "DATA"
    benchmarks: tuple[BenchmarkEntry, ...] = ()
    sampling: SuiteSampling = dataclasses.field(default_factory=SuiteSampling)
    batch_size: int = 8
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_prompt_tokens: int | None = None
    system: str | None = None
    coordinates: Literal["pixel", "original", "thousand", "unit"] | None = None
    resamples: int = 2000

    def __post_init__(self):
        require(bool(self.model), "model", "is empty: name a Hugging Face directory, or nano")
        require(bool(self.benchmarks), "benchmarks", "is empty: list one, as in - name: chartqa")
        at_least(self, 1, "batch_size", "min_pixels", "max_pixels", "max_prompt_tokens")
        at_least(self, 0, "resamples")
        asked = [(entry.label, mode) for entry in self.benchmarks for mode in entry.modes]
        twice = sorted({name for name, mode in asked if asked.count((name, mode)) > 1})
        require(not twice, "benchmarks", f"asks twice in one mode: {twice}")
        whole = {entry.name for entry in self.benchmarks if entry.split is None}
        parts = {entry.name for entry in self.benchmarks if entry.split is not None}
        both = sorted(whole & parts)
        require(not both, "benchmarks", f"asks for a split beside the whole of {both}")

    def path(self, entry: BenchmarkEntry) -> pathlib.Path:
        """Where an entry's data lies."""
        from vrrl_jax.benchmarks import registry

        own = registry.BENCHMARKS[entry.name].folder
        return pathlib.Path(self.data).expanduser() / (own if entry.path is None else entry.path)
