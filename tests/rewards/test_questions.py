"""Scores of single questions: parts, presets, cut replies, titles, boxes."""

import pytest

from vrrl_jax.data.records import Id, Record
from vrrl_jax.data.shapes import Question
from vrrl_jax.rewards.questions import PRESETS, Settings, right_answer, score

SUM = Question("sum", (3, 4))
R1 = Settings("r1")


def record(**fields):
    made = {"question": "What?", "pictures": (), "answer": "red star", "kind": "text"} | fields
    return Record(id=Id("test", 0), **made)


@pytest.mark.parametrize(
    ("text", "total", "success", "format"),
    [
        ("<think>3 + 4</think><answer>7</answer>", 2.0, 1.0, 1.0),
        ("<think>3 + 4</think><answer>\\boxed{7}</answer>", 2.0, 1.0, 1.0),
        ("<think>3 + 4</think><answer>8</answer>", 1.0, 0.0, 1.0),
        ("<answer>7</answer>", 1.0, 1.0, 0.0),
        ("7", 1.0, 1.0, 0.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_r1_pays_the_answer_and_the_form(text, total, success, format):
    parts = score((text,), SUM, None, R1)
    assert (parts["total"], parts["success"], parts["format"]) == (total, success, format)
    assert parts["format_error"] == 1.0 - format
    assert parts["lost_to_format"] == success * (1.0 - format)
    assert parts["turns"] == 1.0


STAGED = (
    "<SUMMARY>add</SUMMARY> <CAPTION>none</CAPTION>\n<REASONING>3 + 4</REASONING>"
    "<CONCLUSION>{}</CONCLUSION>"
)


@pytest.mark.parametrize(
    ("text", "total", "format"),
    [
        (STAGED.format("7"), 1.5, 1.0),
        (STAGED.format("\\boxed{7}"), 1.5, 1.0),
        (STAGED.format("8"), 0.5, 1.0),
        (STAGED.format("7") + " 7", 1.0, 0.0),
        ("So: " + STAGED.format("7"), 1.0, 0.0),
        (STAGED.format("7").replace("SUMMARY", "CAPTION", 2), 1.0, 0.0),
        ("<CONCLUSION>7</CONCLUSION>", 1.0, 0.0),
        ("<think>3 + 4</think><answer>7</answer>", 1.0, 0.0),
    ],
)
def test_cot_pays_the_answer_and_the_four_stages(text, total, format):
    parts = score((text,), SUM, None, Settings("cot", format_value=0.5))
    assert (parts["total"], parts["format"]) == (total, format)
    assert parts["lost_to_format"] == parts["success"] * (1.0 - format)
    # What isn't in stages may still be in R1's form, which is another.
    assert score((text,), SUM, None, R1)["format"] == float("<think>" in text)


def test_weights_of_r1():
    settings = Settings("r1", correct_value=2.0, format_value=0.5)
    assert score(("<think></think><answer>7</answer>",), SUM, None, settings)["total"] == 2.5
    # Form is form, whatever it is worth.
    settings = Settings("r1", format_value=0.0)
    parts = score(("<think></think><answer>7</answer>",), SUM, None, settings)
    assert (parts["total"], parts["format"], parts["format_reward"]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("waits", "paper", "code"),
    [(0, 1.0, 1.0), (1, 1.0, 1.1), (2, 1.0, 1.1), (3, 1.0, 0.8), (5, 1.0, 0.4), (6, -0.1, -0.1)],
)
def test_rethinking_is_paid_by_the_code_alone(waits, paper, code):
    text = "Wait, " * waits + "\\boxed{7}"
    for preset, total in (("paper", paper), ("code", code)):
        parts = score((text,), SUM, None, Settings(preset=preset))
        assert parts["total"] == pytest.approx(total)
        assert parts["waits"] == waits and parts["rethought"] == (waits > 0)
        assert parts["success"] == 1.0
    assert set(PRESETS) == {"paper", "code"}


def test_own_values_win_over_the_preset():
    settings = Settings(preset="code", wait_bonus=0.5, max_waits=1, invalid_value=-1.0)
    assert score(("wait \\boxed{7}",), SUM, None, settings)["total"] == 1.5
    assert score(("wait wait \\boxed{7}",), SUM, None, settings)["total"] == -1.0


def test_a_cut_reply_is_invalid_and_counted():
    for ended in (True, False):
        parts = score(("\\boxed{7} and then",), SUM, None, Settings(), ended)
        assert parts["total"] == (1.0 if ended else -0.1)
        assert parts["truncated"] == float(not ended)
        assert parts["format_error"] == float(not ended)
    assert score(("no box",), SUM)["total"] == -0.1
    assert score((), SUM)["turns"] == 0.0


def test_plain_takes_an_answer_as_it_is():
    parts = score(("7",), SUM, None, Settings("plain"))
    assert (parts["total"], parts["format"]) == (1.0, 1.0)
    parts = score(("don't know",), SUM, None, Settings("plain"))
    assert (parts["total"], parts["format"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("reply", "right"),
    [("Red  Star.", 1.0), ('"red star"', 1.0), ("star", 0.0), ("red stars", 0.0)],
)
def test_titles_are_compared_as_words(reply, right):
    assert score((f"\\boxed{{{reply}}}",), record())["success"] == right
    titled = record(answer="crimson star", accepted=("red star",))
    assert score((f"\\boxed{{{reply}}}",), titled)["success"] == right


def test_choices_by_letter_and_by_text():
    asked = record(kind="choice", answer="B", options=("left", "right"))
    for reply, right in (("B", 1.0), ("right", 1.0), ("A", 0.0), ("left", 0.0)):
        assert score((f"\\boxed{{{reply}}}",), asked)["success"] == right


def test_boxes_are_those_of_the_record():
    asked = record(kind="box", answer="[0, 0, 10, 10]", boxes=((0.0, 0.0, 10.0, 10.0),))
    parts = score(("\\boxed{[0, 0, 10, 8]}",), asked, None, Settings(graded=True))
    assert parts["iou"] == pytest.approx(0.8) and parts["total"] == pytest.approx(0.8)
    assert right_answer(asked) == (0.0, 0.0, 10.0, 10.0)


def test_withheld_answers_and_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="withheld"):
        score(("x",), record(answer=""))
    for fields in ({"style": "r2"}, {"preset": "blog"}):
        with pytest.raises(ValueError):
            Settings(**fields)
