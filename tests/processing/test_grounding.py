"""Places in replies: every way of writing them, and texts that try to break the reader."""

import json
import random

import pytest

from vrrl_jax.processing.grounding import LONGEST, Reply, parse

POINT = (34.0, 58.0)
BOX = (1.0, 2.0, 30.0, 40.5)


@pytest.mark.parametrize(
    "body",
    [
        "34 58",
        " 34 58",
        "34, 58",
        "(34, 58)",
        "[34,58]",
        "\n 34\t,\n58 ",
        "34.0 +58.",
        '{"point_2d": [34, 58]}',
        '{"point_2d": [34, 58], "label": "the cell"}',
        '{"point_2d": ["34", "58"], "label": "quoted"}',
        '[{"point_2d": [34, 58], "label": "x"}]',
        '```json\n[\n\t{"point_2d": [34.0, 58.0], "label": "x"}\n]\n```',
        '```\n{"point": [34, 58]}\n```',
        'Here [it] is:\n```json\n{"point_2d": [34, 58]}\n```\n[done]',
    ],
)
def test_points(body):
    assert parse(f"<ANSWER>{body}</ANSWER>") == Reply("proposal", POINT, False)
    assert parse(f"so <final>{body}</FINAL>.") == Reply("commit", POINT, False)


@pytest.mark.parametrize(
    "body",
    [
        "1 2 30 40.5",
        "[1, 2, 30, 40.5]",
        "(1, 2, 30, 40.5)",
        '{"bbox_2d": [1, 2, 30, 40.5], "label": "cell"}',
        '```json\n[{"bbox_2d": [1, 2, 30, 40.5]}]\n```',
        '[{"bbox": [1, 2, 30, 40.5]}]',
    ],
)
def test_boxes(body):
    assert parse(f"<ANSWER>{body}</ANSWER>", "box") == Reply("proposal", BOX, False)


def test_a_box_keeps_its_corners_as_written():
    assert parse("<FINAL>30 40 1 -2</FINAL>", "box").place == (30, 40, 1, -2)


@pytest.mark.parametrize(
    "text, kind, place, think",
    [
        ("<THINK> left</THINK><ANSWER> 34 58</ANSWER>", "proposal", POINT, True),
        ("<ANSWER>1 2</ANSWER><FINAL>34 58</FINAL>", "commit", POINT, False),
        ("<ANSWER>34 58</ANSWER><ANSWER>1 2</ANSWER>", "proposal", POINT, False),
        ("<FINAL>34 58", "invalid", (), False),
        ("<ANSWER>34 58</ANSWER><FINAL>", "proposal", POINT, False),
        ("<THINK>x<ANSWER>34 58</ANSWER>", "proposal", POINT, False),
        ("<FINAL>up</FINAL><ANSWER>34 58</ANSWER>", "invalid", (), False),
    ],
)
def test_the_protocol(text, kind, place, think):
    reply = parse(text)
    assert (reply.kind, reply.place, reply.has_think) == (kind, place, think)
    assert bool(reply.reason) == (kind == "invalid")


@pytest.mark.parametrize(
    "body, reason",
    [
        ("", "0 numbers for a point in ANSWER"),
        ("34", "1 numbers for a point in ANSWER"),
        ("1 2 3 4", "4 numbers for a point in ANSWER"),
        ('{"point_2d": [1, 2, 3]}', "3 numbers for a point in ANSWER"),
        ('[{"point_2d": [1, 2]}, {"point_2d": [3, 4]}]', "2 places in ANSWER"),
        ("34 abc", "no place that can be read in ANSWER"),
        ("34 5e1", "no place that can be read in ANSWER"),
        ("nan inf", "no place that can be read in ANSWER"),
        ("３４ 58", "no place that can be read in ANSWER"),
        ("1_0 58", "no place that can be read in ANSWER"),
        ("34 " + "9" * 16, "no place that can be read in ANSWER"),
        ('{"point_2d": [true, false]}', "no place that can be read in ANSWER"),
        ('{"point_2d": [NaN, 1]}', "no place that can be read in ANSWER"),
        ('{"point_2d": [1e999, 1]}', "no place that can be read in ANSWER"),
        ('{"point_2d": [1' + "0" * 400 + ", 1]}", "no place that can be read in ANSWER"),
        ('{"point_2d": [1' + "0" * 5000 + ", 1]}", "no place that can be read in ANSWER"),
        ('{"point_2d": ["a", "b"]}', "no place that can be read in ANSWER"),
        ('{"point_2d": {"x": 1}}', "no place that can be read in ANSWER"),
        ('{"bbox_2d": [1, 2, 3, 4]}', "no place that can be read in ANSWER"),
        ('{"point_2d": [34, 58}', "no place that can be read in ANSWER"),
        ("{}", "no place that can be read in ANSWER"),
        ("1 " * LONGEST, "too long a text in ANSWER"),
    ],
)
def test_what_is_no_place(body, reason):
    assert parse(f"<ANSWER>{body}</ANSWER>") == Reply("invalid", (), False, reason)


def test_json_without_tags_is_what_the_setting_says():
    text = 'It is here: [{"point_2d": [34, 58], "label": "x"}]'
    assert parse(text).kind == "invalid"
    assert parse(text, bare="proposal") == Reply("proposal", POINT, False)
    assert parse(f"```json\n{text[12:]}\n```", bare="commit") == Reply("commit", POINT, False)
    thought = '<think>{"point_2d": [1, 1]}</think>' + text
    assert parse(thought, bare="commit") == Reply("commit", POINT, True)
    # Tags win, and numbers alone are no answer.
    assert parse("<ANSWER>1 2</ANSWER>" + text, bare="commit").kind == "proposal"
    assert parse("see [34, 58]", bare="commit").kind == "invalid"
    assert parse("I see nothing", bare="commit").reason == "neither ANSWER nor FINAL"


def test_an_answer_beside_the_place():
    body = json.dumps({"bbox_2d": [1, 2, 30, 40.5], "answer": "42"})
    assert parse(f"<FINAL>{body}</FINAL>", "box") == Reply("commit", BOX, False, answer="42")
    assert parse('<FINAL>{"point_2d": [1, 2], "answer": 7}</FINAL>').answer == "7"
    assert parse('<FINAL>{"point_2d": [1, 2], "answer": [7]}</FINAL>').answer == ""


@pytest.mark.parametrize(
    "text",
    [
        "<ANSWER>" * 60_000,
        "<ANSWER>" + "[" * 9_000 + "</ANSWER>",
        "<ANSWER>" + "{" * 9_000 + "}" * 900 + "</ANSWER>",
        "<ANSWER>" + '{"a":' * 1_900 + "</ANSWER>",
        "[" * 400_000,
        "```json" * 60_000,
        "{" + "</think>" * 60_000 + "}",
        "<ANSWER>" + ", " * 4_000 + "</ANSWER>",
        "İ" * 1000 + '</THINK>{"point_2d": [34, 58]}',
        "\0<ANSWER>\ud800 1</ANSWER>",
    ],
)
@pytest.mark.parametrize("form", ["point", "box"])
@pytest.mark.parametrize("bare", ["invalid", "commit"])
def test_texts_that_would_break_a_reader(text, form, bare):
    reply = parse(text, form, bare=bare)
    assert reply.kind in ("proposal", "commit", "invalid")
    assert len(reply.place) in (0, {"point": 2, "box": 4}[form])


def test_letters_that_grow_in_lower_case_shift_nothing():
    text = "İ" * 1000 + '</THINK>{"point_2d": [34, 58]}'
    assert parse(text, bare="commit").place == POINT


def test_random_texts_never_raise():
    rng = random.Random(0)
    words = [
        "<ANSWER>", "</ANSWER>", "<FINAL>", "</final>", "<THINK>", "</THINK>", "{", "}", "[", "]",
        '"point_2d"', '"bbox_2d"', ":", ",", " ", "34", "5.", "-", "e9", "```", "json", "null",
    ]  # fmt: skip
    kinds = set()
    for _ in range(5_000):
        text = "".join(rng.choice(words) for _ in range(rng.randrange(20)))
        for form, bare in (("point", "invalid"), ("box", "proposal")):
            reply = parse(text, form, bare=bare)
            kinds.add(reply.kind)
            assert (reply.kind == "invalid") == (not reply.place) == bool(reply.reason)
    assert "invalid" in kinds
