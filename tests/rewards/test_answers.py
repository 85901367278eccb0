"""Rewards of single-turn answers, with values worked out by hand."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrrl_jax.rewards.answers import KINDS, judge, score, well_formed

GOLD = {
    "choice": "B",
    "number": 12,
    "math": r"\frac{1}{2}",
    "text": "New York",
    "yesno": "yes",
    "box": (0, 0, 10, 10),
}
RIGHT = {
    "choice": "B",
    "number": "12.0",
    "math": r"\frac{1}{2}",
    "text": "new  york.",
    "yesno": "Yes",
    "box": '{"bbox_2d": [0, 0, 10, 8]}',
}
WRONG = {
    "choice": "C",
    "number": "13",
    "math": "",
    "text": "York",
    "yesno": "no",
    "box": "[5, 5, 15, 15]",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "frame", ["<think>hm</think><answer>{}</answer>", r"hm \boxed{{{}}}", "{}"]
)
def test_every_kind_wherever_the_answer_stands(kind, frame):
    assert judge(frame.format(RIGHT[kind]), GOLD[kind], kind).correct
    assert not judge(frame.format(WRONG[kind]), GOLD[kind], kind).correct


@pytest.mark.parametrize(
    "text, formed",
    [
        ("<think>a</think><answer>b</answer>", True),
        ("\n<think>a</think>\n\n<answer>b\n</answer>\n", True),
        ("<think></think><answer></answer>", True),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think><answer>b</answer> so", False),
        ("<think>a</think> so <answer>b</answer>", False),
        ("<think>a<answer>b</answer></think>", False),
        ("<think>a</think><think>c</think><answer>b</answer>", False),
        ("<think>a</think><answer>b", False),
        ("b", False),
    ],
)
def test_r1s_form(text, formed):
    assert well_formed(text) is formed


@pytest.mark.parametrize(
    "text, options, total",
    [
        ("<think>a</think><answer>12</answer>", {}, 2.0),
        ("<think>a</think><answer>13</answer>", {}, 1.0),
        ("12", {}, 1.0),
        ("13", {}, 0.0),
        ("<think>a</think><answer>12</answer>", {"format_value": 0.1}, 1.1),
        ("12", {"correct_value": 0.9}, 0.9),
    ],
)
def test_r1s_total(text, options, total):
    assert score(text, 12, "number", **options)["total"] == pytest.approx(total)


CODE = {"wait_bonus": 0.1, "wait_cost": 0.2}


@pytest.mark.parametrize(
    "text, options, total",
    [
        (r"\boxed{12}", {}, 1.0),
        (r"\boxed{13}", {}, 0.0),
        ("12", {}, -0.1),
        (r"\boxed{12", {}, -0.1),
        (r"\boxed{12}", {"ended": False}, -0.1),
        (r"\boxed{12}" + " Wait," * 5, {}, 1.0),
        (r"\boxed{12}" + " Wait," * 6, {}, -0.1),
        (r"\boxed{12} waiting", CODE, 1.0),
        (r"\boxed{12} wait", CODE, 1.1),
        (r"\boxed{12}" + " wait" * 2, CODE, 1.1),
        (r"\boxed{12}" + " wait" * 4, CODE, 0.6),
        (r"\boxed{13} wait", CODE, 0.0),
    ],
)
def test_rethinkers_total(text, options, total):
    parts = score(text, 12, "number", style="rethinker", **options)
    assert parts["total"] == pytest.approx(total)
    assert parts["waits"] == text.lower().count("wait") - text.count("waiting")


def test_boxes_pay_by_threshold_or_by_their_iou():
    text = "[0, 0, 10, 8]"
    assert score(text, (0, 0, 10, 10), "box")["total"] == 1.0
    assert score(text, (0, 0, 10, 10), "box", threshold=0.9)["total"] == 0.0
    assert score(text, (0, 0, 10, 10), "box", graded=True)["total"] == pytest.approx(0.8)
    assert score("none", (0, 0, 10, 10), "box", graded=True)["read"] == 0.0


def test_numbers_have_a_tolerance_and_a_last_resort():
    assert not judge("12.1", 12, "number").correct
    assert judge("12.1", 12, "number", tolerance=0.05).correct
    assert judge("it has 3 of 1,200 parts.", 1200, "number").fallback
    assert not judge(r"\boxed{about 12}", 12, "number").correct


def test_choices_are_known_by_letter_or_text():
    options = ["red", "blue"]
    assert judge("<answer>blue</answer>", "B", "choice", options=options).correct
    assert judge("<answer>B</answer>", "blue", "choice", options=options).correct


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_megabytes_are_counted_as_refused(kind):
    text = "<answer>" + "{" * 100_000_000
    start = time.process_time()
    for style in ("r1", "rethinker"):
        parts = score(text, GOLD[kind], kind, style=style)
        assert (parts["refused"], parts["correct"], parts["valid"]) == (1.0, 0.0, 0.0)
        assert parts["total"] == (0.0 if style == "r1" else -0.1)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_answer_is_refused_and_not_compared(kind):
    parts = score(rf"\boxed{{{'x' * 500_000}}}", GOLD[kind], kind)
    assert parts["correct"] == 0.0
    assert parts["refused"] == float(kind in ("number", "math", "text"))


@settings(max_examples=40, deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["<answer>", "</answer>", r"\boxed{", "}", "[1,", "9", "B"])).map(
        "".join
    ),
    st.sampled_from([kind for kind in KINDS if kind != "math"]),
    st.sampled_from(["r1", "rethinker"]),
)
def test_any_text_scores(text, kind, style):
    parts = score(text, GOLD[kind], kind, style=style)
    assert all(type(value) is float for value in parts.values())
    assert -0.1 <= parts["total"] <= 2.0


@pytest.mark.parametrize(
    "answer, kind",
    [("Z", "choice"), ("", "text"), ("many", "number"), ("perhaps", "yesno"), ((5, 5, 1, 1), "box")]
    + [("", "math"), ("B", "letter")],
)
def test_a_bad_gold_answer_is_an_error(answer, kind):
    with pytest.raises(ValueError, match="kind"):
        judge("B", answer, kind)
