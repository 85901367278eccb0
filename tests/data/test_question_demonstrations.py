"""Demonstrations of single questions: right, in form, closed in their words; files' replies."""

import dataclasses
import itertools
import json
import random
import re

import pytest

from vrrl_jax.data import loading
from vrrl_jax.data import question_demonstrations as demos
from vrrl_jax.data.demonstrations import DemonstrationReply, Piece
from vrrl_jax.data.mappers.general import FieldMap
from vrrl_jax.data.mappers.training import llava_cot
from vrrl_jax.data.question_demonstrations import Options
from vrrl_jax.data.records import At, Id, Record
from vrrl_jax.data.shapes import NANO, Settings, generate
from vrrl_jax.envs import questions as env
from vrrl_jax.rewards import answers
from vrrl_jax.rewards.questions import Settings as Rules
from vrrl_jax.rewards.questions import score

MIXED = {"steps": 0.8, "wrong_first": 0.4, "confirm": 0.2}
SHORT = demos.SHORT_TRIGGERS


def examples(count=150):
    for settings, triggers in ((NANO, SHORT), (Settings(), demos.TRIGGERS)):
        for split in ("train", "test_ood"):
            for i, question in enumerate(generate(9, split, count, settings)):
                yield i, question, triggers


def only(replies):
    (reply,) = replies
    return reply


@pytest.mark.parametrize("style", ["r1", "boxed", "cot"])
def test_every_demonstration_is_right_and_in_form(style):
    options = Options(style, **MIXED)
    for i, question, triggers in examples():
        options = dataclasses.replace(options, triggers=triggers)
        text = only(demos.demonstrate(question, random.Random(i), options)).text
        for rules in ("r1", "rethinker"):
            parts = score((text,), question, None, Rules(rules))
            assert parts["success"] == 1.0, text
            if rules == "rethinker" or style == "r1":
                assert parts["format"] == 1.0 and parts["format_error"] == 0.0, text
            if rules == "rethinker":
                assert parts["total"] == 1.0
        assert "  " not in text and text == text.strip()


def test_the_direct_style_is_the_answer_alone():
    for i, question, _ in examples(20):
        reply = only(demos.demonstrate(question, random.Random(i), Options("direct", **MIXED)))
        assert reply.text == question.answer
        assert score((reply.text,), question, None, Rules("plain"))["total"] == 1.0


def test_steps_come_as_often_as_asked():
    for chance in (0.0, 0.5, 1.0):
        texts = [
            only(demos.demonstrate(q, random.Random(i), Options("r1", steps=chance))).text
            for i, q in enumerate(generate(0, "train", 200, NANO))
        ]
        assert sum("so " in text for text in texts) / 200 == pytest.approx(chance, abs=0.12)
        assert all(answers.well_formed(text) for text in texts)


# --- second thoughts -----------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["r1", "boxed", "cot"])
def test_wrong_first_thoughts_are_shown_and_not_taught(style):
    options = Options(style, wrong_first=1.0, triggers=SHORT, trigger_weight=0.5)
    for i, question in enumerate(generate(1, "train", 150, NANO)):
        reply = only(demos.demonstrate(question, random.Random(i), options))
        (wrong,) = [piece for piece in reply.pieces if piece.weight == 0]
        (trigger,) = [piece for piece in reply.pieces if piece.weight == 0.5]
        assert trigger.text.strip() in (
            *SHORT.verification,
            *SHORT.correction,
            *SHORT.questioning,
        )
        concluded = re.search(r"so ([^.]+)\.", wrong.text).group(1)
        assert concluded != question.answer
        after = reply.text.split(trigger.text)[1]
        assert f"so {question.answer}." in after and " ".join(question.steps) in after
        if style == "boxed":
            assert answers.boxed(wrong.text) == concluded
        assert answers.boxed(reply.text) == question.answer
        assert reply.end_weight == 1.0


def test_a_right_first_thought_is_never_called_a_mistake():
    options = Options("r1", confirm=1.0, triggers=demos.TRIGGERS)
    seen = set()
    for i, question in enumerate(generate(1, "train", 60)):
        text = only(demos.demonstrate(question, random.Random(i), options)).text
        assert demos.TRIGGERS.correction[0] not in text
        assert text.count(" ".join(question.steps)) == 2
        seen |= {t for t in demos.TRIGGERS.verification + demos.TRIGGERS.questioning if t in text}
    assert len(seen) == 2


def test_triggers_of_all_kinds_follow_wrong_thoughts():
    options = Options("boxed", wrong_first=1.0)
    texts = [
        only(demos.demonstrate(q, random.Random(i), options)).text
        for i, q in enumerate(generate(1, "train", 60))
    ]
    for kind in ("verification", "correction", "questioning"):
        (trigger,) = getattr(demos.TRIGGERS, kind)
        assert any(f" {trigger} " in text for text in texts)


@pytest.mark.parametrize(
    "fields",
    [{"style": "long"}, {"steps": 1.5}, {"confirm": -0.1}, {"wrong_first": 0.6, "confirm": 0.6}],
)
def test_impossible_options_are_refused(fields):
    with pytest.raises(ValueError):
        Options(**fields)


# --- words ---------------------------------------------------------------------------------------


def test_words_are_closed_and_all_in_use():
    asked = env.Settings(suffix="", joint=" ")
    used = set()
    for split in ("train", "test_ood"):
        for i, question in enumerate(generate(2, split, 500, NANO)):
            texts = [env.reset(question, asked).text]
            for style in ("r1", "boxed", "cot"):
                options = Options(style, **MIXED, triggers=SHORT)
                reply = only(demos.demonstrate(question, random.Random(i), options))
                texts += [reply.text]
                # A piece begins where a word does, so that pieces make the tokens of the whole.
                assert all(not piece.text.endswith(" ") for piece in reply.pieces)
            for text in texts:
                used |= set(re.findall(r"</?\w+>|\\boxed\{|\w+|[^\w\s]", text))
    known = {*demos.WORDS, *demos.NUMBERS, *demos.TAGS, *demos.STAGE_TAGS, demos.BOX}
    known |= set(demos.SIGNS)
    assert used <= known
    assert known - used <= set(demos.NUMBERS[13:])  # rare sums
    assert all(word == word.lower() or len(word) == 1 for word in demos.WORDS)


def test_tokens_spell_every_text():
    """Greedy from the left, the longest token first, nothing is left over."""
    assert len(set(demos.TOKENS)) == len(demos.TOKENS)
    longest = "|".join(map(re.escape, sorted(demos.TOKENS, key=len, reverse=True)))
    asked = env.Settings(suffix="", joint=" ")
    for i, question in enumerate(generate(3, "train", 300, NANO)):
        for style in ("r1", "boxed", "cot"):
            options = Options(style, **MIXED, triggers=SHORT)
            reply = only(demos.demonstrate(question, random.Random(i), options))
            for text in (reply.text, env.reset(question, asked).text):
                words = re.findall(longest, text)
                assert "".join(words) == text
                # No word is spelled from parts.
                assert all(
                    a.endswith(tuple("}>{")) or not b.isalpha()
                    for a, b in itertools.pairwise(words)
                )


# --- records -------------------------------------------------------------------------------------


def record(**fields):
    made = {"question": "How many?", "pictures": (), "answer": "3", "kind": "number"} | fields
    return Record(id=Id("test", 0), **made)


def test_a_record_without_a_reply_is_answered_directly():
    texts = {
        style: only(demos.demonstrate(record(), random.Random(0), Options(style))).text
        for style in ("r1", "boxed", "cot", "direct")
    }
    assert texts["boxed"] == texts["cot"] == "\\boxed{3}" and texts["direct"] == "3"
    assert texts["r1"] == "<think></think><answer>\\boxed{3}</answer>"


LLAVA_COT = (
    "<SUMMARY> I will count. </SUMMARY>\n\n<CAPTION> Three dogs\nrun. </CAPTION>\n\n"
    "<REASONING> One, two, three. </REASONING>\n\n<CONCLUSION> 3 </CONCLUSION>"
)


def test_a_worked_reply_becomes_a_demonstration(tmp_path):
    row = {
        "image": "",
        "conversations": [
            {"from": "human", "value": "How many dogs?"},
            {"from": "gpt", "value": LLAVA_COT},
        ],
    }
    made = llava_cot(At("llava_cot", 0, tmp_path), row)
    assert only(demos.worked(made)).text == LLAVA_COT
    thoughts = "I will count.\nThree dogs\nrun.\nOne, two, three."
    assert only(demos.worked(made, "boxed")).text == f"{thoughts} \\boxed{{3}}"
    text = only(demos.demonstrate(made, random.Random(0), Options("r1"))).text
    assert text == f"<think> {thoughts}</think><answer>\\boxed{{3}}</answer>"
    assert answers.score(text, "3", "number")["total"] == 2.0
    assert only(demos.demonstrate(made, random.Random(0), Options("cot"))).text == LLAVA_COT


def test_worked_replies_by_other_names():
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "so 3"}]
    assert demos.worked_text(record(extra={"conversations": turns})) == "so 3"
    assert demos.worked_text(record(extra={"solution": " 1 + 2 = 3 "})) == "1 + 2 = 3"
    assert demos.worked_text(record(extra={"solution": ""})) is None
    assert demos.worked_text(record(extra={"proof": "x"}), ("proof",)) == "x"
    boxed = record(extra={"solution": "It is \\boxed{3}."})
    assert only(demos.worked(boxed, "boxed")).text == "It is \\boxed{3}."
    with pytest.raises(ValueError, match="no reply"):
        demos.worked(record())


def test_corrections_from_a_file(tmp_path):
    rows = [
        {
            "question": "3 + 4 = ?",
            "answer": "7",
            "first_reply": "\\boxed{8}",
            "critique": "Wait, 3 + 4 is less.",
            "corrected_reply": "3 + 4 = 7. \\boxed{7}",
        },
        {"question": "1 + 1 = ?", "answer": "2"},
        {"question": "2 + 1 = ?", "answer": "3", **dict.fromkeys(demos.CORRECTION)},
        {"question": "2 + 2 = ?", "answer": "4", **dict.fromkeys(demos.CORRECTION, "so 4.")},
    ]
    rows[3]["critique"] = None
    path = tmp_path / "corrections.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    records = loading.load(path, FieldMap(image=None)).records
    reply = only(demos.demonstrate(records[0], random.Random(0), Options("boxed")))
    assert [(piece.text, piece.weight) for piece in reply.pieces] == [
        ("\\boxed{8}", 0.0),
        ("\nWait, 3 + 4 is less.\n3 + 4 = 7. \\boxed{7}", 1.0),
    ]
    assert score((reply.text,), records[0])["total"] == 1.0
    weighted = only(demos.correction(records[0], first_weight=1.0, critique_weight=0.5))
    assert [piece.weight for piece in weighted.pieces] == [1.0, 0.5, 1.0]
    assert only(demos.demonstrate(records[1], random.Random(0))).text == "\\boxed{2}"
    with pytest.raises(ValueError, match="first_reply"):
        demos.correction(records[1])
    # Of a table's rows some may have none; one that has a part of it has a fault.
    assert only(demos.demonstrate(records[2], random.Random(0))).text == "\\boxed{3}"
    with pytest.raises(ValueError, match=r"fields/3.*critique"):
        demos.demonstrate(records[3], random.Random(0))


def test_stages_from_fields_of_their_own():
    fields = {"summary": " add ", "caption": "none", "reasoning": "1 + 2 = 3."}
    text = "<SUMMARY>add</SUMMARY><CAPTION>none</CAPTION><REASONING>1 + 2 = 3.</REASONING>"
    told = lambda **more: (
        only(demos.demonstrate(record(extra=fields | more), random.Random(0), Options("cot"))).text
    )
    assert told() == text + "<CONCLUSION>\\boxed{3}</CONCLUSION>"
    assert told(conclusion="three") == text + "<CONCLUSION>three</CONCLUSION>"
    assert answers.score(told(), "3", "number", style="cot")["total"] == 2.0
    assert told(caption="") == "1 + 2 = 3."  # a worked reply, as it is
    with pytest.raises(ValueError, match="caption"):
        demos.staged(record(extra=fields | {"caption": None}))


def test_what_is_left_to_say_after_an_opening():
    pieces = (Piece("<think>"), Piece(" one", weight=0.0), Piece(" two</think>"))
    reply = DemonstrationReply(pieces, 0.5)
    assert demos.after(reply, "") == reply
    assert demos.after(reply, "<think>") == DemonstrationReply(pieces[1:], 0.5)
    left = demos.after(reply, "<think> one tw")
    assert left == DemonstrationReply((Piece("o</think>"),), 0.5)
    assert demos.after(reply, "<think> o").pieces[0] == Piece("ne", weight=0.0)
    with pytest.raises(ValueError, match="opens with '<think> one two"):
        demos.after(reply, "<answer>")
