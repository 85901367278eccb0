"""MEGA-Bench's rules: goldens of the reference's behaviour, its flaws among them."""

import itertools
import random

import pytest

from vrrl_jax.rewards import mega
from vrrl_jax.rewards.mega_metrics import METRICS, boxes_of, damerau, items, number


def info(parser="json", function="mean", weights=None, **metrics):
    return {
        "field_score_function": metrics,
        "aggregation": {"function": function, "field_weights": weights or {}},
        "response_parse_function": parser,
    }


@pytest.mark.parametrize(
    ("reply", "official", "strict"),
    [
        ("Answer: 5", "5", "5"),
        ("I think.\nAnswer: 4\nNo.\nAnswer: 5", "5", "5"),
        ("**Answer:** 5", "", "5"),  # the reference reads nothing here
        ("**Answer: 5**", "5", "5"),
        ("Answer: 5\n\nBecause of this.", "5", "5"),
        ("Answer:\n```python\n5\n```", "5", "5"),
        ('Answer: "a disc"', "a disc", "a disc"),
        ("5", "5", "5"),
        ("So <answer>5</answer>", "So <answer>5</answer>", "5"),
        ("so \\boxed{5}", "so \\boxed{5}", "5"),
        ("answer: 5", "answer: 5", "5"),
        ("", "", ""),
    ],
)
def test_answer_strings(reply, official, strict):
    assert mega.answer_string(reply) == official
    assert mega.answer_string(reply, mode="strict") == strict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('First {"a": 1}, then {"a": 2}.', {"a": 2}),
        ("```json\n{'a': 'it'}\n```", {"a": "it"}),
        ('{"a": {"b": [1, 2]}}', {"a": {"b": [1, 2]}}),
        ("{'a': (1, 2)}", {"a": (1, 2)}),
        ("{broken {'a': 1}", {"a": 1}),
        ("none", None),
        ("{" * 3000, None),
    ],
)
def test_last_json(text, value):
    assert mega.last_json(text) == value


METRIC_GOLDENS = [
    ("exact_str_match", "B", "B", 1),
    ("exact_str_match", "(B) blue", "B", 1),
    ("exact_str_match", "B. blue", "B", 1),
    ("exact_str_match", "Blue", "B", 1),  # a word's first letter: the reference's flaw
    ("exact_str_match", "b", "B", 0),
    ("exact_str_match", "blue ", "blue", 0),
    ("exact_str_match_case_insensitive", "BLUE", "blue", 1),
    ("simple_str_match", "well-known. Fact", "wellknown fact", 1),
    ("simple_str_match", "3,5", "3.5", 0),
    ("near_str_match", "the Müller house", "Muller house", 1),
    ("near_str_match", "abcdefghij", "abcdefghji", 0.9),  # a swap is one edit
    ("near_str_match", "abcdefghij", "abcdefgxyj", 0),
    ("multi_ref_phrase", "New York", "['NYC', 'new-york']", 1),
    ("multi_ref_phrase", "LA", "NYC，LA", 1),
    ("multi_ref_phrase", "SF", "NYC, LA", 0),
    ("general_single_numerical_match", "100", "101", 1),
    ("general_single_numerical_match", "100", "102", 0),
    ("general_single_numerical_match", "50%", "0.5", 1),
    ("general_single_numerical_match", "2\\pi", "6.28", 1),
    ("general_single_numerical_match", "x = \\frac{1}{2}", "0.5", 1),
    ("general_single_numerical_match", "$12", "12", 1),
    ("general_single_numerical_match", "30°", "30", 1),
    ("general_single_numerical_match", "[1, 2]", "[2, 1]", 1),
    ("general_single_numerical_match", "a few", "A few.", 1),
    ("general_single_numerical_match", "9**9**9", "1", 0),
    ("boxed_single_numerical_match", "so \\boxed{\\frac{1}{4}}", "0.25", 1),
    ("number_rel_diff_ratio", "8", "10", 0.8),
    ("number_rel_diff_ratio", "25", "10", 0),
    ("positive_int_match", "3", "3", 1),
    ("positive_int_match", "3.0", "3", 0),
    ("positive_int_match", "0", "0", -1),
    ("set_equality", "[1, 2]", "(2, 1)", 1),
    ("set_equality", "a, b", "['b', 'a']", 1),
    ("set_equality_case_insensitive", "A, b", "a, B", 1),
    ("set_equality_case_insensitive", "1, 2", "1, 2", 0),  # not texts
    ("str_set_equality_comma", "Red, blue", "blue, red", 1),
    ("str_set_equality_line_break", "a\nB", "b\\na", 1),
    ("jaccard_index", "a, b", "b, c", 1 / 3),
    ("jaccard_index", "", "b, c", 0),
    ("jaccard_index_case_insensitive", "A", "a", 1),
    ("set_precision", "a, x", "a, b, c", 0.5),
    ("sequence_equality", "[1, 2]", "[2, 1]", 0),
    ("sequence_equality", "(1, 2)", "[1, 2]", 1),
    ("sequence_equality_case_insensitive", "A, b", "a, B", 1),
    ("sequence_accuracy_case_insensitive", "A, x", "a, b", 0.5),
    ("sequence_accuracy_case_insensitive", "a", "a, b", 0),
    ("longest_common_list_prefix_ratio", "a, b, x, d", "a, b, c, d", 0.5),
    ("nbbox_iou_tuple", "[(0, 0, 1, 1)]", "[(0, 0, 1, 0.5), (0, 0, 0.1, 0.1)]", 0.5),
    ("nbbox_iou_tuple", "nothing", "(0, 0, 1, 1)", 0),
    ("nbbox_iou_single", "(0, 0, 1, 1)", "(0, 0, 0.5, 1)", 0.5),
    ("nbbox_iou_sequence", "[(0, 0, 1, 1)] * 2", "[(0, 0, 1, 1)]", 0),
    ("nbbox_iou_sequence", [(0, 0, 1, 1)], [(0, 0, 1, 1)], 1),
    ("dict_exact_str_match_agg_recall", {"a": "x", "b": "y", "c": "z"}, {"a": "x", "b": "n"}, 0.5),
    ("dict_set_equality_agg_jaccard", {"a": [1], "x": [1]}, {"a": [1]}, 0.5),
    ("dict_jaccard_agg_jaccard", {"a": ["x", "y"]}, {"a": ["x"], "b": ["z"]}, 0.25),
    ("dict_nbbox_iou_tuple_agg_jaccard", {"a": [[0, 0, 1, 1]]}, {"a": [[0, 0, 1, 0.5]]}, 0.5),
    ("dict_jaccard_agg_jaccard", "no mapping", {"a": ["x"]}, 0),
]


@pytest.mark.parametrize(("metric", "read", "gold", "value"), METRIC_GOLDENS)
def test_metrics(metric, read, gold, value):
    assert METRICS[metric](read, gold, "official") == pytest.approx(value)


def test_strict_takes_no_word_for_a_letter():
    exact = METRICS["exact_str_match"]
    assert [exact(t, "B", "strict") for t in ("Blue", "(B) blue", "B. blue", "B")] == [0, 1, 1, 1]


def test_latex():
    assert METRICS["latex_expr_equality"]("\\frac{1}{2}", "0.5", "official") == 1
    assert METRICS["latex_expr_equality"]("x + 1", "x + 2", "official") == 0


def restricted(a, b):
    """Distance by search over edits, for short texts: the reference of `damerau`."""
    if not a or not b:
        return len(a) + len(b)
    best = min(
        restricted(a[1:], b[1:]) + (a[0] != b[0]),
        restricted(a[1:], b) + 1,
        restricted(a, b[1:]) + 1,
    )
    # A swap of letters that stand apart: what lies between is deleted and inserted.
    for i, j in itertools.product(range(1, len(a)), range(1, len(b))):
        if a[i] == b[0] and b[j] == a[0]:
            best = min(best, restricted(a[i + 1 :], b[j + 1 :]) + (i - 1) + (j - 1) + 1)
    return best


def test_edit_distance_against_a_search():
    rng = random.Random(0)
    for _ in range(150):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(2))
        assert damerau(a, b) == restricted(a, b), (a, b)


def test_odd_cells():
    assert items("(1, 2") == [] and items(None) == [] and items("3") == [3]
    assert number("1/0") is None and number("__import__('os')") is None
    assert number("9" * 400) is None and number(True) is None
    assert boxes_of("[1, 2, 3]") == [] and boxes_of("nan") == []


def test_a_query_adds_up_its_fields():
    fields = {"a": "x", "b": "y", "## remark": "no"}
    metrics = {"a": "exact_str_match", "b": "exact_str_match"}
    reply = 'So {"a": "x", "b": "n"}'
    half = mega.score(reply, fields, info(**metrics))
    assert (half.value, half.correct, half.fallback) == (0.5, False, False)
    assert mega.score(reply, fields, info(weights={"a": 3, "b": 1}, **metrics)).value == 0.75
    assert mega.score(reply, fields, info(function="min", **metrics)).value == 0.0
    right = mega.score('{"a": "x", "b": "y"}', fields, info(**metrics))
    assert right.correct and right.value == 1.0
    # Without JSON the whole reply stands for each field.
    raw = mega.score("x", fields, info(**metrics))
    assert raw.value == 0.5 and raw.fallback
    # A field of -1 doesn't count.
    skipped = {"a": "exact_str_match", "b": "positive_int_match"}
    assert mega.score('{"a": "x", "b": "0"}', {"a": "x", "b": "0"}, info(**skipped)).value == 1.0


def test_what_is_not_covered_is_named_and_never_scored():
    fields = {"a": "x"}
    assert mega.uncovered(fields, info(a="exact_str_match")) == ""
    assert mega.uncovered(fields, info(a="gpt_4o_as_judge")) == "gpt_4o_as_judge"
    assert mega.uncovered(fields, info("ascii", a="exact_str_match")) == "ascii"
    assert mega.uncovered(fields, info()) == "no metric"
    aux = info(a="exact_str_match") | {"global_aux_metrics": {"b": "bleu"}}
    assert mega.uncovered(fields, aux) == "global_aux_metrics"
    assert mega.uncovered(fields, "text") == mega.uncovered("text", info()) == "no metric_info"
    two = info("answer_string", a="exact_str_match", b="exact_str_match")
    assert mega.uncovered({"a": "x", "b": "y"}, two) == "answer_string of several fields"
    with pytest.raises(ValueError, match="not covered: bleu"):
        mega.score("x", fields, info(a="bleu"))
