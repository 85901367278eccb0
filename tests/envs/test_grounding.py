"""Grounding as a conversation: what is shown, how long it goes on, in which coordinates."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from vrrl_jax.data import charts, tables
from vrrl_jax.data.records import Id, Record
from vrrl_jax.envs import grounding as env
from vrrl_jax.envs.scenes import Scene, of_record, scene
from vrrl_jax.render.charts import render as render_chart
from vrrl_jax.render.feedback import draw
from vrrl_jax.render.tables import render, target_boxes

EXAMPLE = tables.example(0, "train", 3, tables.NANO)
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)


def png(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def record(**fields):
    given = {
        "id": Id("refcoco", 7),
        "question": "<image>the left dog",
        "pictures": (png(PICTURE),),
        "answer": "[10, 10, 40, 50]",
        "kind": "box",
        "boxes": ((10.0, 10.0, 40.0, 50.0),),
        "extra": {"unhashable": []},
    }
    return Record(**(given | fields))


def test_the_scene_of_a_table():
    found = scene(EXAMPLE)
    drawn = render(*EXAMPLE)
    np.testing.assert_array_equal(found.picture, drawn.image)
    assert found.size == drawn.image.shape[1::-1]
    assert found.targets == target_boxes(EXAMPLE.table, drawn)
    assert (found.question, found.answer) == (EXAMPLE.table.question, EXAMPLE.table.answer)
    assert len(found.targets) + len(found.others) == len(drawn.boxes["cell"])
    assert not set(found.targets) & set(found.others)
    assert set(found.headers) == set(drawn.boxes["header"].values())


def test_the_scene_of_a_chart():
    example = charts.example(0, "train", 3, charts.NANO)
    found, drawn = scene(example), render_chart(*example)
    np.testing.assert_array_equal(found.picture, drawn.image)
    assert found.targets == tuple(drawn.boxes["mark"][key] for key in example.chart.targets)
    assert len(found.targets) + len(found.others) == len(drawn.boxes["mark"])
    for (x, y), (x1, y1, x2, y2) in zip(found.points, found.targets, strict=True):
        assert x1 <= x < x2 and y1 <= y < y2
    assert found.headers and found.question == example.chart.question
    assert scene(charts.example(0, "train", 3, charts.NANO)) is found


def test_a_group_shares_one_picture():
    again = tables.example(0, "train", 3, tables.NANO)
    assert again is not EXAMPLE and scene(again) is scene(EXAMPLE)
    with pytest.raises(ValueError, match="read-only"):
        scene(EXAMPLE).picture[0, 0] = 0
    assert scene(record()).picture is scene(record()).picture


def test_the_scene_of_a_record():
    found = scene(record())
    np.testing.assert_array_equal(found.picture, PICTURE)
    assert found.question == "the left dog" and found.answer == "" and found.noun == "object"
    assert found.targets == ((10, 10, 40, 50),)
    asked = record(kind="text", answer="a dog")
    assert of_record(asked, PICTURE).answer == "a dog"
    assert scene(found) is found


@pytest.mark.parametrize(
    "example, error",
    [
        (record(boxes=()), ValueError),
        (record(pictures=()), ValueError),
        (record(pictures=(b"no picture",)), ValueError),
        (record(boxes=((5.0, 5.0, 5.0, 9.0),)), ValueError),
        ("a text", TypeError),
    ],
)
def test_what_has_no_scene(example, error):
    with pytest.raises(error):
        scene(example)


def test_reset_asks_and_shows_the_bare_picture():
    prompt = env.reset(EXAMPLE, env.NANO)
    assert prompt.text == EXAMPLE.table.question
    assert len(prompt.pictures) == 1 and prompt.pictures[0] is scene(EXAMPLE).picture


def test_a_proposal_is_drawn_and_a_commit_ends():
    play = env.Environment(env.NANO)
    outcome = play.step(EXAMPLE, "<ANSWER> 36 40</ANSWER>", 0)
    assert not outcome.done and outcome.reply.place == (36, 40)
    assert outcome.prompt.text == "Verify"
    expected = draw(scene(EXAMPLE).picture, (36, 40))
    np.testing.assert_array_equal(outcome.prompt.pictures[0], expected)
    for text, turn in (
        ("<FINAL> 36 40</FINAL>", 1),
        ("hm", 1),
        ("<ANSWER> 36 40</ANSWER>", env.NANO.max_turns - 1),
    ):
        outcome = play.step(EXAMPLE, text, turn)
        assert outcome.done and outcome.prompt is None


@pytest.mark.parametrize("feedback", ["marked", "crop", "overlay"])
@pytest.mark.parametrize(
    "coordinates, text",
    [
        ("original", "50, 15"),
        ("pixel", "112, 28"),
        ("thousand", "500, 250"),
        ("unit", "0.5, 0.25"),
    ],
)
def test_feedback_shows_one_place_in_every_system(coordinates, text, feedback):
    settings = env.Settings(coordinates=coordinates, feedback=feedback, crop_size=30)
    play = env.Environment(settings, lambda size: (224, 112))
    outcome = play.step(record(), f"<ANSWER>{text}</ANSWER>", 0)
    expected = draw(PICTURE, (50, 15), feedback, 30)
    np.testing.assert_array_equal(outcome.prompt.pictures[0], expected)


def test_boxes_are_drawn_where_they_are_meant():
    settings = env.Settings(form="box", coordinates="thousand")
    text = '<ANSWER>{"bbox_2d": [100, 500, 300, 1000], "label": "dog"}</ANSWER>'
    outcome = env.step(record(), text, 0, settings)
    np.testing.assert_array_equal(outcome.prompt.pictures[0], draw(PICTURE, (10, 30, 30, 60)))
    assert env.step(record(), "<ANSWER>1 2</ANSWER>", 0, settings).done


def test_json_alone_may_be_allowed():
    text = '[{"point_2d": [5, 6]}]'
    assert env.step(record(), text, 0).reply.kind == "invalid"
    outcome = env.step(record(), text, 0, env.Settings(bare="proposal"))
    assert not outcome.done and outcome.reply.place == (5, 6)


@pytest.mark.parametrize("form", ["point", "box"])
@pytest.mark.parametrize(
    "coordinates, corner",
    [("pixel", "224, 112"), ("original", "100, 60"), ("thousand", "1000, 1000"), ("unit", "1, 1")],
)
def test_the_default_texts_teach_tags_and_coordinates(form, coordinates, corner):
    play = env.Environment(env.Settings(form, coordinates), lambda size: (224, 112))
    opening = play.reset(record()).text
    assert "the left dog" in opening and f"to {corner} at its bottom right" in opening
    example = opening[opening.index("<ANSWER>") : opening.index("</ANSWER>") + 9]
    outcome = play.step(record(), example, 0)
    assert not outcome.done
    place = env.located(outcome.reply, (100, 60), coordinates, lambda size: (224, 112))
    assert place[:2] == pytest.approx((25, 30))
    for tag in ("ANSWER", "FINAL", "THINK"):
        assert f"<{tag}></{tag}>" in outcome.prompt.text


def test_braces_in_a_question_are_only_text():
    odd = Scene(PICTURE, "{noun} {0} {", ((1, 1, 5, 5),))
    assert env.reset(odd, env.NANO).text == "{noun} {0} {"


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": "points"},
        {"coordinates": "pixels"},
        {"feedback": "ring"},
        {"bare": "yes"},
        {"max_turns": 0},
        {"crop_size": 0},
        {"question": "{query}"},
        {"verify": "{"},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError):
        dataclasses.replace(env.NANO, **wrong)
