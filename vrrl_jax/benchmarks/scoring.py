"""From predictions to verdicts on every reply, and a table of figures.

A question's score is the mean over its replies. Whatever was asked for and isn't there, or failed,
counts as wrong, and is counted beside.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vrrl_jax.benchmarks import prompting
from vrrl_jax.benchmarks.benchmark import Benchmark
from vrrl_jax.benchmarks.config import SuiteConfig
from vrrl_jax.benchmarks.figures import Judged, figures
from vrrl_jax.benchmarks.predictions import Prediction, read_predictions
from vrrl_jax.benchmarks.questions import Questions
from vrrl_jax.benchmarks.scorers import Scorer
from vrrl_jax.data.records import Record
from vrrl_jax.rewards.extraction import TEXT_LIMIT, Verdict

_CHUNK = 64  # questions judged at a time: their pictures must not pile up
_FAILED = Verdict(False, None, reason="no reply")


def judge(asked: Questions, given: Mapping[str, Sequence[Prediction]]) -> Iterator[Judged]:
    """Verdicts on all replies to all questions, in the questions' order.

    Args:
      asked: the questions.
      given: question's id -> its predictions.
    """
    samples = max((len(made) for made in given.values()), default=1)
    # Comparisons of mathematics wait for worker processes, of which four run side by side.
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(asked), _CHUNK):
            records = [asked[i] for i in range(start, min(start + _CHUNK, len(asked)))]
            rows = [
                (record, prediction)
                for record in records
                for prediction in _padded(given.get(str(record.id), ()), samples)
            ]
            yield from pool.map(lambda row: _judged(asked.benchmark, *row), rows)


def _padded(made: Sequence[Prediction], samples: int) -> list[Prediction | None]:
    ordered = sorted(made, key=lambda prediction: prediction.sample)
    return [*ordered, *[None] * (samples - len(ordered))]


def _judged(benchmark: Benchmark, record: Record, made: Prediction | None) -> Judged:
    cluster = str(record.id) if benchmark.cluster is None else benchmark.cluster(record)
    place = (str(record.id), benchmark.category(record), cluster)
    offered = benchmark.official is not None
    if made is None or not made.replies:
        state = "missing" if made is None else "failed"
        sample = 0 if made is None else made.sample
        return Judged(*place, sample, _FAILED if offered else None, _FAILED, state=state)
    # The published rule for boxes reads shares of the picture, whatever was asked for.
    native = benchmark.native and made.fields.get("coordinates") not in (None, "unit")
    text = prompting.final(made.mode, made.replies)
    score = lambda rule, text: _scored(rule, record, text, made.fields)
    official = score(benchmark.official, text) if offered and not native else None
    strict = score(benchmark.strict, text)
    first = score(benchmark.strict, made.replies[0]) if made.mode == "reflect" else None
    short = all(len(reply) <= TEXT_LIMIT for reply in made.replies)
    return Judged(
        *place,
        made.sample,
        official,
        strict,
        first,
        rethinks=short and prompting.rethinks(made.mode, made.replies),
        cut=made.fields.get("finish") == "length",
    )


def _scored(rule: Scorer, record: Record, text: str, fields: Mapping[str, Any]) -> Verdict:
    """A verdict; a record or a prediction that the rule can't take is wrong, and says why."""
    try:
        return rule(record, text, fields)
    except (ValueError, ArithmeticError, LookupError, TypeError, OSError) as error:
        return Verdict(False, None, reason=f"not scored: {error}")


@dataclasses.dataclass(frozen=True)
class Scored:
    """What there is to tell.

    Attributes:
      rows: figures, one a model, benchmark and mode, in the suite's order.
      verdicts: the judged replies of each row.
      broken: lines of predictions that couldn't be used.
      skipped: label -> rows of the data that couldn't be used.
    """

    rows: list[dict[str, Any]]
    verdicts: list[list[Judged]]
    broken: list[str]
    skipped: dict[str, list[str]]


def score_predictions(
    files: Sequence[str], config: SuiteConfig, loaded: Sequence[Questions]
) -> Scored:
    """Scores files of predictions, the suite's own or other models', into rows of one table.

    Args:
      files: FILE or NAME=FILE each; see `read_predictions`.
      config: of the suite.
      loaded: the questions of its entries.

    Raises:
      FileNotFoundError, ValueError: as `read_predictions`.
    """
    read = read_predictions(files, _labels(loaded))
    by_label = collections.defaultdict(list)
    for (model, label, mode, prompt), given in read.groups.items():
        by_label[label].append((model, mode, prompt, given))
    rows, verdicts = [], []
    for asked in loaded:
        benchmark = asked.benchmark
        for model, mode, prompt, given in by_label[asked.entry.label]:
            judged = list(judge(asked, given))
            head = {
                "model": model,
                "benchmark": asked.entry.label,
                "title": benchmark.title,
                "split": asked.entry.split or benchmark.split,
                "mode": mode,
                "prompt": prompt,
                "metric": benchmark.metric,
                "mean over": "categories" if benchmark.macro else "questions",
            }
            notes = list(benchmark.notes)
            if asked.entry.limit is not None:
                notes.append(f"only the first {asked.entry.limit} questions of each split")
            tail = {"not covered": dict(asked.omitted), "notes": notes}
            settings = next(iter(given.values()))[0].fields.get("sampling")
            rows.append(head | figures(benchmark, judged, config.resamples) | tail)
            rows[-1]["sampling"] = settings
            verdicts.append(judged)
    skipped = {asked.entry.label: list(asked.skipped) for asked in loaded if asked.skipped}
    return Scored(rows, verdicts, read.broken, skipped)


def _labels(loaded: Sequence[Questions]) -> dict[str, str]:
    """Question's id -> label."""
    return {asked.id(i): asked.entry.label for asked in loaded for i in range(len(asked))}
