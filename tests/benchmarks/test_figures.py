"""Figures: means over questions and categories, and the bootstrap against closed forms."""

import math

import numpy as np
import pytest

from vrrl_jax.benchmarks import registry
from vrrl_jax.benchmarks.figures import Judged, Scores, bootstrap, by_question, figures, headline
from vrrl_jax.rewards.extraction import Verdict

RIGHT, WRONG = Verdict(True, "a"), Verdict(False, "b")


def scores(values, categories=None, clusters=None):
    n = len(values)
    return Scores(
        np.asarray(values, float),
        tuple(categories or [""] * n),
        tuple(clusters or map(str, range(n))),
    )


@pytest.mark.parametrize(("n", "right"), [(200, 60), (1000, 500), (400, 20)])
def test_the_interval_of_a_share_is_the_binomial_one(n, right):
    low, high = bootstrap(scores([1] * right + [0] * (n - right)), False, 4000)
    p = right / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert (high + low) / 2 == pytest.approx(p, abs=0.15 * half)


def test_questions_that_hang_together_widen_it():
    """100 clusters of 4 alike are worth 100 questions, not 400: twice the interval."""
    values = np.repeat(np.arange(100) % 2, 4)
    together = bootstrap(scores(values, clusters=[str(i // 4) for i in range(400)]), False, 4000)
    alone = bootstrap(scores(values), False, 4000)
    width = lambda pair: pair[1] - pair[0]
    assert width(together) / width(alone) == pytest.approx(2, rel=0.1)


def test_a_macro_mean_weighs_categories_alike():
    """Its variance is that of the mean of two shares, of 900 and of 100 questions."""
    values = [1] * 450 + [0] * 450 + [1] * 50 + [0] * 50
    mixed = scores(values, ["a"] * 900 + ["b"] * 100)
    low, high = bootstrap(mixed, True, 4000)
    half = 1.96 * 0.5 * math.sqrt(0.25 / 900 + 0.25 / 100)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert headline(scores([1, 1, 1, 0], ["a", "a", "a", "b"]), True) == 0.5
    assert headline(scores([1, 1, 1, 0], ["a", "a", "a", "b"]), False) == 0.75


def test_where_resampling_shows_nothing():
    assert bootstrap(scores([1, 1, 1]), False) is None
    assert bootstrap(scores([1]), False) is None
    assert bootstrap(scores([1, 0]), False, 0) is None
    # A category of one question is missed by many resamples, and left out of those.
    assert bootstrap(scores([1, 0, 1], ["a", "a", "b"]), True, 500) is not None
    assert math.isnan(headline(scores([]), False))
    assert bootstrap(scores([0, 1, 1]), False) == bootstrap(scores([0, 1, 1]), False)


def judged(name, strict, official=None, **more):
    return Judged(name, more.pop("category", ""), name, 0, official, strict, **more)


def test_samples_are_averaged_before_questions():
    replies = [judged("a", RIGHT), judged("a", WRONG), judged("b", RIGHT), judged("b", RIGHT)]
    means = by_question(replies, [1.0, 0.0, 1.0, 1.0])
    assert means.values.tolist() == [0.5, 1.0]
    row = figures(registry.get("geometry3k"), replies, 10)
    assert (row["n"], row["replies"], row["strict"]) == (2, 4, 75.0)


def test_what_is_counted_beside():
    lost = Verdict(False, None, reason="no reply")
    replies = [
        judged("a", RIGHT, RIGHT, rethinks=True),
        judged("b", Verdict(False, None, reason="unreadable"), Verdict(True, None, True), cut=True),
        judged("c", Verdict(False, "9^9", reason="timeout"), WRONG),
        judged("d", lost, lost, state="missing"),
        judged("e", lost, lost, state="failed"),
    ]
    row = figures(registry.get("mmmu"), replies, 10)
    assert (row["official"], row["strict"]) == (40.0, 20.0)
    assert (row["missing"], row["failed"]) == (1, 1)
    third = pytest.approx(33.33)
    assert row["unparsed"] == row["fallback"] == row["refused"] == row["cut"] == third
    assert row["rethinking"] == third and row["strict with rethinking"] == 100.0
    assert row["strict without"] == 0.0


def test_grades_and_boxes():
    half = Verdict(False, "x", value=0.5)
    row = figures(registry.get("mega_bench"), [judged("a", half, half, category="t")], 10)
    assert row["official"] == row["strict"] == 50.0
    assert row["categories"] == {"t": {"n": 1, "official": 50.0, "strict": 50.0}}
    boxes = [Verdict(v >= 0.5, "x", value=v) for v in (0.95, 0.6, 0.2)]
    replies = [judged(str(i), v, v, category="val") for i, v in enumerate(boxes)]
    row = figures(registry.get("refcoco"), replies, 10)
    assert row["strict"] == row["ACC@0.5"] == pytest.approx(66.67)
    assert (row["ACC@0.1"], row["ACC@0.9"], row["mean IoU"]) == (100.0, 33.33, 58.33)
    assert row["categories missing"] == ["testA", "testB"]
