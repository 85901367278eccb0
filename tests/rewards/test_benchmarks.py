"""The benchmarks' rules: cases whose outcome the published evaluators' code gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrrl_jax.rewards import benchmarks, boxes, tables
from vrrl_jax.rewards.benchmarks import mathvista, mmmu, mmmu_letter, relaxed


@pytest.mark.parametrize(
    "prediction, gold, right",
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("0.5", "50%", True),
        ("50%", "50", False),
        ("50 %", "50%", True),
        ("0", "0", True),
        ("0.0", "0", False),
        ("1,000", "1000", False),
        ("Yes", "yes", True),
        ("Yes.", "yes", False),
        ("2019", "2018", True),
        ("-5", "5", False),
        ("$5", "5", False),
        ("nan", "5", False),
    ],
)
def test_relaxed_accuracy(prediction, gold, right):
    assert relaxed(prediction, gold) is right


@pytest.mark.parametrize(
    "prediction, gold, right",
    [("2019", "2018", False), ("2018.0", "2018", True), ("0.0", "0", True), ("105", "100", True)],
)
def test_strict_relaxed_accuracy_knows_years_and_zero(prediction, gold, right):
    assert relaxed(prediction, gold, mode="strict") is right


def test_chartqa_takes_the_answer_out_of_a_box_and_the_best_gold_one():
    assert benchmarks.chartqa(r"2 + 3, so \boxed{5}", ["7", "5"]).correct
    assert not benchmarks.chartqa(r"so \boxed{5}", "5", thinks=False).correct
    assert benchmarks.chartqa(" 5 ", "5", thinks=False).correct


FOUR = ["red", "blue", "green", "dark blue"]


@pytest.mark.parametrize(
    "reply, letter",
    [
        (r"\boxed{B}", None),
        ("**B**", None),
        ("The answer is (C). (A) is wrong", "A"),
        ("A dog. The answer is D ", "D"),
        ("B.", "B"),
        ("(A) no, (B)", "B"),
        ("blue", None),  # five words or fewer: no option's text
        ("I think that it is surely green", "C"),
        ("It may be red, or rather it is blue", "B"),
    ],
)
def test_mmmus_parser(reply, letter):
    assert mmmu_letter(reply, FOUR) == letter


def test_mmmu_guesses_the_same_every_time_and_strict_never():
    guesses = {mmmu(r"\boxed{B}", "B", FOUR).correct for _ in range(5)}
    assert len(guesses) == 1
    replies = [f"hm {i}" for i in range(400)]
    share = np.mean([mmmu(reply, "B", FOUR).correct for reply in replies])
    assert 0.17 < share < 0.33
    assert all(mmmu(reply, "B", FOUR).fallback for reply in replies)
    assert mmmu(r"\boxed{B}", "B", FOUR, mode="strict").correct
    assert not any(mmmu(reply, "B", FOUR, mode="strict").correct for reply in replies)


def test_mmmu_pro_looks_after_the_last_answer_first():
    ten = [str(i) for i in range(10)]
    assert benchmarks.mmmu_pro("(B) was wrong. Answer: J", "J", ten).correct
    assert not mmmu("(B) was wrong. Answer: J", "J", ten).correct
    assert benchmarks.mmmu_pro("(B) was wrong. Answer: A or J", "B", ten).correct


@pytest.mark.parametrize(
    "reply, gold, right",
    [
        ("The total is 1,234 dollars.", "1234", True),
        ("x = 2\nso x = 3", "3", True),
        ("So the result is x = 2\nnothing more", "2", True),
        ("The answer is photosynthesis", "photosynthesis", True),
        ("The answer is osmosis", "photosynthesis", False),
        ("It is a b c", "b", True),
        ("It is abc", "b", False),
        ("1.5e3", "1500", True),
        ("7", ["six", "7"], True),
        ("", "5", False),
    ],
)
def test_mmmus_open_questions(reply, gold, right):
    assert benchmarks.mmmu_open(reply, gold).correct is right


@pytest.mark.parametrize(
    "reply, options, letter",
    [
        (r"\boxed{C}", FOUR, "C"),
        ("red", FOUR, "A"),
        ("it is dark blue", ["blue", "dark blue"], None),
        ("Answer: B because A is wrong", FOUR, None),
        ("The correct answer is **B**, by a wide margin of five", FOUR, "B"),
        ("B is what I'd say here", FOUR, None),
        ("I can't process this file.", FOUR, "Z"),
    ],
)
def test_vlmevalkits_choice(reply, options, letter):
    assert benchmarks.infer_choice(reply, options) == letter


@pytest.mark.parametrize(
    "reply, gold, options, right",
    [
        ("(B)", "145°", {"choices": ["135°", "145°"]}, True),
        ("b", "145°", {"choices": ["135°", "145°"]}, False),  # nearest by edits: the first
        ("B", "145°", {"choices": ["135°", "145°"]}, True),
        ("145", "145°", {"choices": ["135°", "145°"]}, True),
        ("145", "145°", {"choices": ["135°", "145°"], "mode": "strict"}, False),
        ("145°", "145°", {"choices": ["135°", "145°"], "mode": "strict"}, True),
        (r"so \boxed{3.0}", "3", {"answer_type": "integer"}, True),
        ("3.9", "3", {"answer_type": "integer"}, True),
        ("1.25", "1.2", {"answer_type": "float", "precision": 1.0}, True),
        ("it's 12 and then 1.33 cm", "1.33", {"answer_type": "float", "precision": 2.0}, True),
        ("The answer is [1, 2]", "[1, 2]", {"answer_type": "list"}, True),
        ("inf", "3", {"answer_type": "integer"}, False),
        ("none", "3", {"answer_type": "integer"}, False),
    ],
)
def test_mathvista(reply, gold, options, right):
    assert mathvista(reply, gold, **options).correct is right


@settings(max_examples=50, deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            swap = table[i, j] + (a[i] != b[j])
            table[i + 1, j + 1] = min(swap, table[i, j + 1] + 1, table[i + 1, j] + 1)
    assert benchmarks.edits(a, b) == table[-1, -1]


@pytest.mark.parametrize(
    "reply, gold, right",
    [
        ("2004.0", "2004", True),
        ("Answer: Freeman (AR)", "Freeman", True),
        ("1,000", "1000", False),
        ("Müller", "Muller", True),
        ("Apple", "Apple|Banana", False),
        ("banana || Apple", "Apple|Banana", True),
        ("Apple|Apple", "Apple", True),
        ("2001-xx-xx", "2001", True),
        ("2001-5-3", "2001-05-03", True),
        ("2001-13-3", "2001-1-3", False),
        ("“Rome”[1][note].", "Rome", False),  # the stop guards the citations
        ("“Rome”[1][note]", "rome", True),
        ("[1]", "[1]", True),
        ("x", "nan", False),
    ],
)
def test_tablevqas_questions(reply, gold, right):
    assert benchmarks.tablevqa_questions(reply, gold).correct is right


@pytest.mark.parametrize(
    "reply, gold, relieved, exact",
    [
        ("$3,852 million", "3852", True, False),
        ("$3,852 million", "$3,852 million", True, True),
        ("34.2%", "34.2", True, False),
        ("34.2 %", "0.342", True, True),
        ("5 years", "5", True, True),
        ("October 31", "october 31", True, True),
        ("4", "5", False, False),
    ],
)
def test_tablevqas_finance(reply, gold, relieved, exact):
    assert benchmarks.tablevqa_finance(reply, gold).correct is relieved
    assert benchmarks.tablevqa_finance(reply, gold, measure="exact").correct is exact


def test_tablevqas_facts():
    assert benchmarks.tablevqa_fact("Answer: True", "1").correct
    assert benchmarks.tablevqa_fact("it's false.", "0").correct
    assert not benchmarks.tablevqa_fact("True", "0").correct
    assert benchmarks.tablevqa_fact("true or false", "1").reason == "ambiguous"


@pytest.mark.parametrize(
    "cell, form",
    [("a [x] (b) [2]†", "a"), ("(b)", "(b)"), ("[note]", "[note]"), ("[12]", ""), ("a [b[c]", "a")]
    + [("a (b (c)", "a"), ("‘x’—y", "'x'-y"), ("  A   B. ", "a b"), ("[a[b]", "[a"), ('""', "")],
)
def test_cells_normal_form(cell, form):
    assert tables.normalize(cell) == form


@pytest.mark.parametrize(
    "text, first, loose, parsed",
    [
        ("[0.1, 0.2, 0.5, 0.6]", True, True, True),
        ("[.1, .2, .5, .6]", False, True, True),
        ("(0.1, 0.2, 0.5, 0.6)", False, True, True),
        ("[0.1 0.2 0.5 0.6]", False, True, True),
        ('```json\n[{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "label": "1"}]\n```', True, True, True),
        ('{"label": 7, "box": {"coord": [[0.1, 0.2, 0.5, 0.6]]}}', True, True, True),
        ("no box", False, False, False),
    ],
)
def test_box_parsers(text, first, loose, parsed):
    wanted = (0.1, 0.2, 0.5, 0.6)
    for parse, finds in (
        (boxes.first_box, first),
        (boxes.loose_box, loose),
        (boxes.parse_box, parsed),
    ):
        assert parse(text) == (wanted if finds else None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=8, max_size=8))
def test_iou_counts_cells(corners):
    a, b = corners[:4], corners[4:]
    a, b = ((*np.minimum(c[:2], c[2:]), *np.maximum(c[:2], c[2:])) for c in (a, b))
    grids = np.zeros((2, 8, 8), bool)
    for grid, (x1, y1, x2, y2) in zip(grids, (a, b), strict=True):
        grid[y1:y2, x1:x2] = True
    union = np.logical_or(*grids).sum()
    assert boxes.iou(a, b) == pytest.approx(np.logical_and(*grids).sum() / union if union else 0)


def test_refcoco_scales_as_its_mode_says():
    gold, size = [100, 50, 200, 100], (1000, 500)
    shares, mille, pixels = "[0.1, 0.1, 0.3, 0.3]", "[100, 100, 300, 300]", "[100, 50, 300, 150]"
    hit = lambda text, **options: benchmarks.refcoco(text, gold, size, **options).correct
    assert hit(shares) and not hit(mille) and not hit("(0.1, 0.1, 0.3, 0.3)")
    assert hit(shares, mode="vlmevalkit") and hit(mille, mode="vlmevalkit")
    assert not hit(pixels, mode="vlmevalkit")
    assert hit(pixels, mode="strict", coordinates="pixel")
    assert not hit(mille, mode="strict", coordinates="pixel")
    assert hit(mille, mode="strict", coordinates="thousand")
    assert hit("[300, 150, 100, 50]", mode="strict", coordinates="pixel")
    half = benchmarks.refcoco("[0.1, 0.1, 0.2, 0.3]", gold, size)
    assert half.value == pytest.approx(0.5) and half.correct
    with pytest.raises(ValueError, match="width, height"):
        benchmarks.refcoco(shares, [0, 0, 0, 5], size)


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1" + "0" * 400, "true"])
def test_a_box_of_no_finite_numbers_is_none(value):
    verdict = benchmarks.refcoco(f"[{value}, 1, 2, 3]", [1, 1, 5, 5], (10, 10), mode="strict")
    assert not verdict.correct


def test_space_and_vsr_and_spatialeval():
    assert benchmarks.space('{"answer": 1} so {"answer": "2"}', 2).correct
    assert benchmarks.space('{"choice": 2}', 2).correct
    assert not benchmarks.space('{"choice": 2, "b": 2}', 2).correct
    assert benchmarks.space("{2}", 2).reason == "unreadable"
    assert benchmarks.vsr("Yes, it is.", 1).correct and benchmarks.vsr("false", 0).correct
    assert benchmarks.vsr("yes or no", 1).reason == "unreadable"
    assert benchmarks.spatialeval("The answer is B. 8", "B", ["4", "8", "2", "7"]).correct
    assert not benchmarks.spatialeval("All Clear", "A", ["4", "8", "2", "7"]).correct
