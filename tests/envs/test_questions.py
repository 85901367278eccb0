"""Single questions as prompts: their words, options, pictures, and that one reply ends them."""

import dataclasses
import io
import random

import numpy as np
import pytest
from PIL import Image

from vrrl_jax.data.mappers.general import Classification, FieldMap
from vrrl_jax.data.records import MARK, At, Id, Record
from vrrl_jax.data.shapes import NANO, Question, generate
from vrrl_jax.envs import questions as env
from vrrl_jax.render.shapes import render


def png(colour, size=(9, 7)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def decode(source):
    return np.asarray(Image.open(io.BytesIO(source)).convert("RGB"))


def record(**fields):
    made = {"question": "How many?", "pictures": (), "answer": "3", "kind": "number"} | fields
    return Record(id=Id("test", 0), **made)


def test_a_generated_question_is_drawn_and_asked():
    plain = env.Environment(env.Settings("r1", suffix="", joint=" "))
    for question in generate(0, "train", 60, NANO):
        prompt = plain.reset(question)
        if question.scene is None:
            assert prompt.pictures == ()
        else:
            np.testing.assert_array_equal(prompt.pictures[0], render(question.scene))
            assert prompt.pictures[0].shape == (84, 84, 3)
        assert prompt.text.startswith(question.question)
        rest = prompt.text.removeprefix(question.question)
        expected = "".join(f" {x}. {o}" for x, o in zip("ABCD", question.options, strict=False))
        assert rest == expected


@pytest.mark.parametrize("style", env.SUFFIXES)
def test_each_style_asks_for_its_form(style):
    text = env.reset(Question("sum", (3, 4)), env.Settings(style)).text
    assert text.startswith("What is 3 + 4?\n")
    wanted = {
        "boxed": ["\\boxed{}", "step by step"],
        "r1": ["<think>", "</think>", "<answer>", "</answer>"],
        "direct": ["alone"],
        "cot": ["<SUMMARY>", "<CAPTION>", "<REASONING>", "<CONCLUSION>", "\\boxed{}"],
    }
    for name, words in wanted.items():
        if name == style:
            assert all(word in text for word in words)
    assert text.endswith(env.SUFFIXES[style])


def test_a_suffix_replaces_the_style_s():
    settings = env.Settings("boxed", suffix=env.RETHINKING)
    assert env.reset(Question("sum", (3, 4)), settings).text == ("What is 3 + 4?" + env.RETHINKING)
    assert "self-verification" in env.RETHINKING
    with pytest.raises(ValueError, match="unknown style"):
        env.Settings("verbose")


def test_records_show_their_options_and_pictures_in_order():
    one, two = png("red"), png("blue", (4, 4))
    asked = record(
        question=f"Which is {MARK} and which {MARK}?",
        pictures=(one, two),
        answer="B",
        kind="choice",
        options=("blue, red", "red, blue"),
    )
    prompt = env.reset(asked, env.Settings(suffix=""), decode)
    assert prompt.text == f"Which is {MARK} and which {MARK}?\nA. blue, red\nB. red, blue"
    assert [picture.shape for picture in prompt.pictures] == [(7, 9, 3), (4, 4, 3)]
    assert prompt.pictures[0][0, 0].tolist() == [255, 0, 0]


def test_records_of_text_alone_need_no_decoder():
    assert env.Environment().reset(record()).pictures == ()
    with pytest.raises(ValueError, match="nothing to decode"):
        env.Environment().reset(record(pictures=(png("red"),)))


def test_what_decodes_sets_the_limits():
    def small(source):
        picture = Image.open(io.BytesIO(source))
        picture.thumbnail((3, 3))
        return np.asarray(picture.convert("RGB"))

    bound = env.Environment(decode=small)
    assert bound.reset(record(pictures=(png("red"),))).pictures[0].shape[1] == 3


def test_mapped_rows_become_prompts(tmp_path):
    at = At("test", 0, tmp_path)
    row = {"image": {"bytes": png("red"), "path": None}, "label": "red_star"}
    prompt = env.Environment(env.Settings(suffix=""), decode).reset(Classification()(at, row))
    assert prompt.text.endswith("What is the title of this picture?")
    assert len(prompt.pictures) == 1
    row = {"question": "Which?", "answer": "b", "options": ["a", "b"]}
    mapped = FieldMap(image=None, options="options")(at, row)
    assert env.reset(mapped, env.Settings(suffix="")).text == "Which?\nA. a\nB. b"


def test_too_many_options_are_refused():
    asked = record(kind="choice", answer="A", options=tuple(map(str, range(27))))
    with pytest.raises(ValueError, match="27 options"):
        env.reset(asked)
    asked = dataclasses.replace(asked, options=asked.options[:26])
    assert "\nZ. 25" in env.reset(asked).text


def test_any_reply_ends_the_episode():
    rng = random.Random(0)
    for text in ("", "<answer>3</answer>", "x" * 1000):
        outcome = env.Environment().step(record(), text, rng.randrange(3))
        assert outcome.done and outcome.prompt is None and outcome.reply == text
