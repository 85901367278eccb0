"""Finding answers: by hand, and for whatever a model may write."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrrl_jax.rewards import boxes, extraction
from vrrl_jax.rewards.benchmarks import infer_choice, mathvision, mmmu, mmmu_open, relaxed, space
from vrrl_jax.rewards.extraction import boxed, choice, extract, number, tagged, yes_no
from vrrl_jax.rewards.tables import normalize

# Texts out of the pieces that the rules look for, so that they meet what they must survive.
PIECES = [*"{}[]()<>|.,:;*$%\"'\\ \n09-+ABa", r"\boxed{", "<answer>", "</answer>", "<ANSWER>"]
PIECES += ["Answer:", "answer is ", r"\text{", "(A)", "yes", "no", "1e9", "\ud800", "İ", "ﷺ", "²"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60)

RULES = [
    extract,
    tagged,
    boxed,
    choice,
    number,
    yes_no,
    extraction.answer_is,
    extraction.last_number,
    extraction.plain,
    boxes.parse_box,
    boxes.first_box,
    lambda text: infer_choice(text, ["red", "blue"]),
    lambda text: mmmu(text, "A", ["red", "blue"]),
    lambda text: mmmu_open(text, "3"),
    lambda text: relaxed(text, "5"),
    lambda text: space(text, 1),
    lambda text: normalize(text[:10_000]),
]


@settings(max_examples=40, deadline=None)
@given(TEXTS)
def test_no_text_makes_a_rule_raise(text):
    for rule in RULES:
        rule(text)


LONG = [
    "{",
    r"\boxed{",
    "<answer>",
    "1",
    "1,",
    "[1 ",
    "[",
    "(A",
    " ",
    "\n",
    "answer is ",
    r"\text{",
]
LONG += ["a [1] ", '"', "- ", ".1", "(A)", "[1, 2, 3", "A. ", "İ"]


@pytest.mark.parametrize(
    "piece, length", [*((piece, 100_000) for piece in LONG), ("{", 1_000_000), ("1", 1_000_000)]
)
def test_long_texts_take_linear_time(piece, length):
    """A quadratic rule takes minutes here; processor time, whatever else runs."""
    text = (piece * length)[:length]
    start = time.process_time()
    for rule in RULES[:-1]:
        rule(text)
    assert time.process_time() - start < 5e-6 * length + 1


@settings(max_examples=60, deadline=None)
@given(st.text("ab\\ {}", max_size=20))
def test_braces_are_matched_as_a_counter_does(inside):
    text = rf"so \boxed{{{inside}}} and"
    if r"\boxed{" in inside:
        return
    depth, end = 1, 0
    rest = inside + "} and"
    while depth and end < len(rest):
        depth += {"{": 1, "}": -1}.get(rest[end], 0)
        end += 1
    assert boxed(text) == (None if depth else rest[: end - 1].strip())


@pytest.mark.parametrize(
    "text, place, answer",
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", "box", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "box", "5"),
        (r"\boxed{1} then \boxed{2", "bare", r"\boxed{1} then \boxed{2"),
        ("<think>1</think>\n<answer> 3 </answer>", "tag", "3"),
        (r"<Answer>\boxed{4}</ANSWER>", "tag", "4"),
        ("<answer>3", "bare", "<answer>3"),
        ("<answer>1</answer><answer>2</answer>", "tag", "1"),
        (r"<REASONING>\boxed{1}</REASONING> <CONCLUSION> 2 </CONCLUSION>", "tag", "2"),
        (r"<conclusion>\boxed{3}</Conclusion>", "tag", "3"),
        ("<CONCLUSION>1</CONCLUSION><CONCLUSION>2</CONCLUSION>", "tag", "2"),
        ("<CONCLUSION>1</CONCLUSION><answer>2</answer>", "tag", "2"),
        ("</CONCLUSION>1<CONCLUSION>", "bare", "</CONCLUSION>1<CONCLUSION>"),
        ("İ<CONCLUSION>4</CONCLUSION>", "tag", "4"),
        (" 7 ", "bare", "7"),
        ("", "bare", ""),
    ],
)
def test_answers_stand_in_tags_a_box_or_alone(text, place, answer):
    assert extract(text) == extraction.Found(answer, place)


def test_a_missing_closing_tag_is_tolerated_where_asked():
    assert tagged("<answer> 3", closed=False) == "3"


@pytest.mark.parametrize(
    "text, letter, fallback",
    [
        ("B", "B", False),
        ("b", "B", False),
        ("(C)", "C", False),
        (r"\boxed{B}", "B", False),
        (r"\boxed{\text{B}}", "B", False),
        (r"\boxed{B. 5}", "B", False),
        (r"\boxed{ABOUT 5}", None, False),
        (r"\boxed{blue}", "B", False),
        ("**B**", "B", False),
        ("The answer is (C). (A) is wrong", "C", False),
        ("A dog. The answer is D ", "D", False),
        ("The answer is a dog", None, False),
        ("A dog runs", None, False),
        ("A. It runs", "A", False),
        ("Answer: B because A is wrong", "B", False),
        ("I would pick (B) here", "B", True),
        ("(A) or (B)?", None, False),
        ("<answer>(A) or (B)</answer>", "A", False),
        ("Everything is grey", None, False),
        (r"(A) is it: \boxed{7}", None, False),
        ("E", None, False),
    ],
)
def test_a_letter_is_read_where_the_reply_settles(text, letter, fallback):
    assert choice(text, ["red", "blue", "green", "dark blue"]) == (letter, fallback)


@pytest.mark.parametrize(
    "text, value",
    [("1,000", 1000), ("$5", 5), ("50%", 0.5), (r"50\%", 0.5), ("-.5", -0.5), ("3.", 3)]
    + [("1e3", 1000), ("5 cm", None), ("", None), ("nan", None), ("1_0", None), ("9" * 500, None)],
)
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text, answer",
    [("Yes.", "yes"), ("No, it isn't", "no"), ("yes and no", None), ("perhaps", None)]
    + [("True", "yes"), ("false", "no"), ("**Yes**", "yes"), ("yesterday", None)],
)
def test_yes_and_no(text, answer):
    assert yes_no(text) == answer


def test_a_hundred_megabytes_are_refused_at_once():
    text = "{" * 100_000_000
    start = time.process_time()
    for verdict in (mathvision(text, "5"), mmmu(text, "A", ["x", "y"]), mmmu_open(text, "5")):
        assert (verdict.correct, verdict.reason) == (False, "too long")
    assert time.process_time() - start < 1
