"""SpatialEval's published score with its false positives, ChartMuseum's rule, number words."""

import pytest

from vrrl_jax.rewards import benchmarks, tables
from vrrl_jax.rewards.charts import chartmuseum
from vrrl_jax.rewards.mathematics import emma, word_number
from vrrl_jax.rewards.spatial import spatialeval_official


@pytest.mark.parametrize(
    ("reply", "question", "official", "strict"),
    [
        ("The answer is 2.", 0, True, False),
        ("There are two right turns.", 0, True, False),
        ("There are 12 right turns.", 0, True, False),  # 2 stands in 12
        ("The answer is C.", 0, True, True),
        ("The answer is B.", 0, False, False),
        ("Three turns, or two.", 0, False, False),
        ("I can't see it", 0, True, False),  # a c in "can't", and all of it is looked at
        ("no idea", 0, False, False),
    ],
)
def test_spatialeval(reply, question, official, strict):
    verdict = spatialeval_official(reply, "2", "C", question)
    assert verdict.correct is official
    assert benchmarks.spatialeval(reply, "C").correct is strict


def test_spatialeval_positions():
    assert spatialeval_official("Yes, it is to the north.", "Yes", "A", 2).correct
    assert not spatialeval_official("No. A wall.", "Yes", "A", 2).correct
    assert spatialeval_official("Perhaps", "No", "B", 2).fallback
    assert spatialeval_official("x" * 2_000_000, "No", "B", 2).reason == "too long"


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("<think>so</think>\n<answer>\n80\n</answer>", "$80 million", True),
        ("<answer>$80 million</answer>", "80", True),
        ("<answer>82", "$80 million", True),
        ("<answer>90</answer>", "80", False),
        ("<answer>80,000,000</answer>", "$80 million", True),
        ("<answer>0.9%</answer>", "0.75", False),
        ("<answer>2018</answer>", "2019", False),
        ("<answer>2019</answer>", "2019", True),
        ("<answer>Red.</answer>", "red", True),
        ("<answer>blue</answer>", "red", False),
        ("\\boxed{12}", "12 years", True),
        ("80", "80", True),
    ],
)
def test_chartmuseum(reply, gold, right):
    assert chartmuseum(reply, gold).correct is right


def test_chartmuseum_says_when_it_had_to_guess():
    assert (
        chartmuseum("80", "80").fallback and not chartmuseum("<answer>80</answer>", "80").fallback
    )
    assert chartmuseum("<answer></answer>", "80").reason == "unreadable"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("twenty-one", 21),
        ("Two hundred and five", 205),
        ("three thousand twelve", 3012),
        ("zero", 0),
        ("hundred", 100),
        ("two apples", None),
        ("21", None),
        ("", None),
    ],
)
def test_number_words(text, value):
    assert word_number(text) == value


def test_emma_reads_number_words():
    assert emma("\\boxed{twenty-one}", "21").correct
    assert emma("\\boxed{21}", "twenty one").correct
    assert not emma("\\boxed{twelve}", "21").correct


def test_lists_of_answers_in_either_form():
    for gold in ("Banana|Apple", "Banana||Apple"):
        assert tables.tablevqa_questions("Apple||Banana", gold).correct
        assert not tables.tablevqa_questions("Apple", gold).correct
