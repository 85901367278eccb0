"""A suite of benchmarks, from its configuration to its results: `vrrl eval CONFIG`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from vrrl_jax.answer import Question
from vrrl_jax.benchmarks import questions as asking
from vrrl_jax.benchmarks import results, run, scoring
from vrrl_jax.benchmarks.config import SuiteConfig, load, to_yaml
from vrrl_jax.benchmarks.model import Answer, model_answer
from vrrl_jax.benchmarks.questions import Questions
from vrrl_jax.log import write_atomically


def output_of(config: SuiteConfig, config_path: str | pathlib.Path) -> pathlib.Path:
    """The suite's folder: as configured, or named after the configuration."""
    return pathlib.Path(config.output or f"runs/{pathlib.Path(config_path).stem}")


def load_questions(config: SuiteConfig) -> list[Questions]:
    """The questions of every entry; what was skipped is printed.

    Raises:
      FileNotFoundError, ValueError: as `questions.load`; names the entry.
    """
    loaded = []
    for entry in config.benchmarks:
        asked = asking.load(config, entry)
        omitted = sum(asked.omitted.values())
        told = [f"{entry.label}: {len(asked)} questions"]
        told += [f"{len(asked.skipped)} rows skipped"] if asked.skipped else []
        told += [f"{omitted} not covered"] if omitted else []
        print(", ".join(told))
        loaded.append(asked)
    return loaded


def questions(
    config_path: str | pathlib.Path, overrides: Sequence[str] = ()
) -> Iterator[tuple[str, str, Question]]:
    """(benchmark, id, chat) of every question of a suite as its first mode opens it.

    For other models: ask them, and score what they say with `vrrl eval --predictions`. A question
    whose picture can't be read is left out.
    """
    config = load(config_path, list(overrides), SuiteConfig)
    for entry in config.benchmarks:
        asked = asking.load(config, entry)
        single = dataclasses.replace(config.sampling, samples=1)
        for number in range(len(asked)):
            opened = run.open_question(
                asked, entry.modes[0], dataclasses.replace(config, sampling=single), number
            )
            if opened.chat is not None:
                yield entry.label, str(opened.record.id), opened.chat


def main(
    config_path: str | pathlib.Path,
    overrides: Sequence[str] = (),
    predictions: Sequence[str] | None = None,
    resume: bool = False,
    *,
    answer: Answer | None = None,
) -> pathlib.Path:
    """`vrrl eval CONFIG`: asks, scores, and writes results.json and results.md.

    Args:
      config_path: a configuration whose top key is `benchmarks`.
      overrides: dotted, as elsewhere.
      predictions: files of other models' replies, FILE or NAME=FILE each. Nothing is asked then:
        they are scored beside the replies that the output folder already holds.
      resume: go on where a run was stopped.
      answer: replies in place of the configured model's.

    Returns:
      The path of results.json.

    Raises:
      FileExistsError: the output folder holds replies, and no `resume`.
      FileNotFoundError, ValueError: for configurations, data, models and files that can't be used.
    """
    config = load(config_path, list(overrides), SuiteConfig)
    output = output_of(config, config_path)
    wanted = [(entry, mode) for entry in config.benchmarks for mode in entry.modes]
    own = [run.target(output, entry, mode) for entry, mode in wanted]
    if not predictions and not resume:
        there = next((path for path in own if path.exists()), None)
        if there is not None:
            raise FileExistsError(f"{there} exists; --resume goes on after its replies")
    loaded = load_questions(config)
    output.mkdir(parents=True, exist_ok=True)
    if not predictions:
        write_atomically(output / "config.yaml", to_yaml(config))
        reply, native = (answer, config.coordinates or "pixel") if answer else model_answer(config)
        for asked in loaded:
            for mode in asked.entry.modes:
                path = run.target(output, asked.entry, mode)
                print(path)
                run.ask(asked, mode, config, reply, path, coordinates=native, resume=resume)
    files = [str(path) for path in own if path.exists()] + list(predictions or ())
    return results.write(output, config, scoring.score_predictions(files, config, loaded))
