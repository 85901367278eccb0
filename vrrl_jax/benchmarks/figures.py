"""From verdicts to figures, and how sure they are: questions are the unit, not replies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vrrl_jax.benchmarks.benchmark import Benchmark
from vrrl_jax.rewards.extraction import Verdict

_REFUSED = ("refused", "timeout", "crash", "too long")
_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A reply and what the rules say about it.

    Attributes:
      id, category, cluster: of the question.
      sample: which of its replies.
      official, strict: verdicts; None where there is no such rule.
      first: the strict one of the first reply, in reflect.
      rethinks: whether the reply goes back on itself unasked.
      state: "", "missing" or "failed".
      cut: whether a reply was cut at its longest.
    """

    id: str
    category: str
    cluster: str
    sample: int
    official: Verdict | None
    strict: Verdict
    first: Verdict | None = None
    rethinks: bool = False
    state: str = ""
    cut: bool = False


def worth(verdict: Verdict, graded: bool) -> float:
    """What a verdict counts: 1 or 0, or its value."""
    return float(verdict.value or 0.0) if graded else float(verdict.correct)


@dataclasses.dataclass(frozen=True)
class Scores:
    """A question each.

    Attributes:
      values: float64 [questions], means over replies, 0 .. 1.
      categories: of the questions.
      clusters: of the questions; those of one name are resampled together.
    """

    values: np.ndarray
    categories: tuple[str, ...]
    clusters: tuple[str, ...]


def by_question(judged: Sequence[Judged], values: Sequence[float]) -> Scores:
    """Means over the replies to each question, in the questions' order."""
    sums: dict[str, list[float]] = {}
    place: dict[str, tuple[str, str]] = {}
    for one, value in zip(judged, values, strict=True):
        sums.setdefault(one.id, []).append(value)
        place[one.id] = (one.category, one.cluster)
    means = np.array([sum(v) / len(v) for v in sums.values()])
    return Scores(means, tuple(c for c, _ in place.values()), tuple(c for _, c in place.values()))


def headline(scores: Scores, macro: bool) -> float:
    """Mean over questions, or over categories of their questions' mean; NaN without questions."""
    if not len(scores.values):
        return math.nan
    if not macro:
        return float(scores.values.mean())
    names = np.array(scores.categories)
    return float(np.mean([scores.values[names == name].mean() for name in sorted(set(names))]))


def bootstrap(
    scores: Scores, macro: bool, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95% percentile interval of `headline` over resampled clusters of questions.

    None for less than two clusters, for no resamples, and where all values are alike: then
    resampling shows no spread, which doesn't mean that there is none. In a macro mean a category
    that a resample misses is left out of that resample.
    """
    clusters, which = np.unique(scores.clusters, return_inverse=True)
    if len(clusters) < 2 or not resamples or np.ptp(scores.values) == 0:
        return None
    names = scores.categories if macro else ("",) * len(scores.values)
    categories, column = np.unique(names, return_inverse=True)
    sums, counts = np.zeros((2, len(clusters), len(categories)))
    np.add.at(sums, (which, column), scores.values)
    np.add.at(counts, (which, column), 1.0)
    rng, found = np.random.default_rng(seed), []
    share = np.full(len(clusters), 1 / len(clusters))
    for start in range(0, resamples, 100):
        drawn = rng.multinomial(len(clusters), share, min(100, resamples - start)).astype(float)
        total = drawn @ counts
        means = np.divide(drawn @ sums, total, np.full(total.shape, np.nan), where=total > 0)
        found.append(np.nanmean(means, axis=1))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    return float(low), float(high)


def _percent(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(100 * value, 2)


def _share(flags: Sequence[bool]) -> float | None:
    return _percent(sum(flags) / len(flags)) if len(flags) else None


def figures(
    benchmark: Benchmark, judged: Sequence[Judged], resamples: int = 2000
) -> dict[str, Any]:
    """All figures of one benchmark in one mode; shares in percent."""
    strict = [worth(one.strict, benchmark.graded) for one in judged]
    scores = by_question(judged, strict)
    has_official = all(one.official is not None for one in judged)
    row: dict[str, Any] = {"n": len(scores.values), "replies": len(judged)}
    official = None
    if has_official:
        values = [worth(one.official, benchmark.graded) for one in judged]
        official = by_question(judged, values)
    for name, these in (("official", official), ("strict", scores)):
        row[name] = None if these is None else _percent(headline(these, benchmark.macro))
        spread = None if these is None else bootstrap(these, benchmark.macro, resamples)
        row[f"{name} interval"] = None if spread is None else [_percent(v) for v in spread]
    replied = [one for one in judged if not one.state]
    row |= {
        "unparsed": _share([one.strict.parsed is None for one in replied]),
        "fallback": _share([(one.official or one.strict).fallback for one in replied]),
        "refused": _share([one.strict.reason in _REFUSED for one in replied]),
        "cut": _share([one.cut for one in replied]),
        "missing": sum(one.state == "missing" for one in judged),
        "failed": sum(one.state == "failed" for one in judged),
    }
    row |= _rethinking(benchmark, replied) | _reflection(benchmark, replied)
    if benchmark.metric == "ACC@0.5":
        overlaps = np.array([one.strict.value or 0.0 for one in judged])
        row["mean IoU"] = _percent(float(overlaps.mean()))
        row |= {f"ACC@{t}": _percent(float((overlaps >= t).mean())) for t in _THRESHOLDS}
    row["categories"] = _categories(scores, official)
    row["categories missing"] = sorted(set(benchmark.expected) - set(scores.categories))
    return row


def _rethinking(benchmark: Benchmark, replied: Sequence[Judged]) -> dict[str, Any]:
    """How often replies go back on themselves unasked, and the mean of those with and without."""
    sides: dict[bool, list[float]] = {True: [], False: []}
    for one in replied:
        verdict = one.first or one.strict
        sides[one.rethinks].append(worth(verdict, benchmark.graded))
    mean = lambda values: _percent(sum(values) / len(values)) if values else None
    return {
        "rethinking": _share([one.rethinks for one in replied]),
        "strict with rethinking": mean(sides[True]),
        "strict without": mean(sides[False]),
    }


def _reflection(benchmark: Benchmark, replied: Sequence[Judged]) -> dict[str, Any]:
    """Of reflect: the first reply's share, and how the second changes it, over replies."""
    both = [one for one in replied if one.first is not None]
    if not both:
        return {}
    return {
        "first": _share([one.first.correct for one in both]),
        "final": _share([one.strict.correct for one in both]),
        "wrong to right": _share([one.strict.correct and not one.first.correct for one in both]),
        "right to wrong": _share([one.first.correct and not one.strict.correct for one in both]),
    }


def _categories(scores: Scores, official: Scores | None) -> dict[str, dict[str, Any]]:
    names, found = np.array(scores.categories), {}
    for name in sorted(set(scores.categories) - {""}):
        which = names == name
        found[name] = {
            "n": int(which.sum()),
            "official": official and _percent(float(official.values[which].mean())),
            "strict": _percent(float(scores.values[which].mean())),
        }
    return found
