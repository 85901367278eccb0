"""Questions about shapes: answers worked out anew from their words, splits, steps, mistakes."""

import collections
import dataclasses
import random
import re

import pytest

from vrrl_jax.data import shapes
from vrrl_jax.data.shape_questions import NAMES, TEXT_ONLY
from vrrl_jax.data.shape_scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    Item,
    Scene,
    cell_box,
    region,
)
from vrrl_jax.data.shapes import NANO, Question, Settings, example, generate

SETTINGS = {"nano": NANO, "large": Settings()}
SPLITS = ("train", "test_id", "test_ood")


@pytest.fixture(scope="module", params=SETTINGS)
def questions(request):
    """Split -> 250 questions."""
    return {split: generate(5, split, 250, SETTINGS[request.param]) for split in SPLITS}


# --- an independent reading of the questions' words ----------------------------------------------


def one(word):
    """A shape's name without the ending of several."""
    return {"crosses": "cross"}.get(word, word.removesuffix("s") if word not in SHAPES else word)


def solve(question):
    """The answer by the question's text, its scene's items and its options, by counting alone."""
    text = question.question.lower().rstrip("?")
    if question.scene is None:
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        return str(max(numbers) if "largest" in text else sum(numbers))
    words = re.findall(r"[a-z]+", text)
    colours = [word for word in words if word in COLOURS]
    kinds = [one(word) for word in words if one(word) in SHAPES]
    items = question.scene.items
    here = [
        item
        for item in items
        if (not colours or item.colour in colours) and (not kinds or item.shape in kinds)
    ]
    if "shown" in words:
        return f"{items[0].colour} {items[0].shape}"
    if "many" in words:
        return str(len(here))
    if words[:2] == ["is", "there"]:
        return "yes" if here else "no"
    if "more" in words:
        counts = collections.Counter(item.shape for item in items)
        return "AB"[counts[kinds[0]] < counts[kinds[1]]]
    (item,) = here
    if words[:2] == ["what", "shape"]:
        return item.shape
    if words[:2] == ["what", "colour"]:
        found = item.colour
    else:
        middle = [
            (side * (place + 0.5)) / count
            for side, place, count in zip(
                (1, 1), (item.row, item.column), question.scene.grid, strict=True
            )
        ]
        names = (("top", "bottom"), ("left", "right"))
        parts = [n[at > 0.5] for n, at in zip(names, middle, strict=True) if abs(at - 0.5) > 1e-9]
        found = " ".join(parts) or "middle"
    return "ABCD"[question.options.index(found)] if question.options else found


def test_answers_follow_from_the_words_and_the_items(questions):
    seen = set()
    for split in SPLITS:
        for question in questions[split]:
            assert question.answer == solve(question), question
            seen.add(question.name)
    assert seen == set(NAMES)


def test_options_are_distinct_and_hold_the_answer(questions):
    letters = collections.Counter()
    for question in questions["train"]:
        assert (question.kind == "choice") == bool(question.options)
        if question.options:
            assert len(set(question.options)) == len(question.options)
            assert question.answer in "ABCD"[: len(question.options)]
            letters[question.answer] += len(question.options) == 4
    assert min(letters[letter] for letter in "ABCD") > 5


def test_answers_are_balanced():
    questions = generate(1, "train", 2500, dataclasses.replace(NANO, text_share=0.0))
    by_name = collections.defaultdict(collections.Counter)
    for question in questions:
        by_name[question.name][question.answer] += 1
    yes = by_name["yesno"]
    assert 0.4 < yes["yes"] / yes.total() < 0.6
    assert set(by_name["count"]) == set("012345")
    assert max(by_name["count"].values()) < 0.45 * by_name["count"].total()
    assert set(by_name["colour"]) == set(COLOURS) and set(by_name["shape"]) == set(SHAPES)
    assert 0.4 < by_name["compare"]["A"] / by_name["compare"].total() < 0.6
    titles = {f"{c} {s}" for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT}
    assert set(by_name["title"]) <= titles and len(by_name["title"]) > 0.9 * len(titles)


def test_an_item_alone_says_nothing_about_yes_or_no():
    """Neither the shape's presence nor the colour's gives the answer away."""
    settings = dataclasses.replace(NANO, text_share=0.0, questions=("yesno",), objects=(4, 5))
    nos = [q for q in generate(2, "train", 600, settings) if q.answer == "no"]
    for place in (0, 1):
        near = [any(item.pair[place] == q.args[place] for item in q.scene.items) for q in nos]
        assert 0.4 < sum(near) / len(near) < 0.95


# --- splits --------------------------------------------------------------------------------------


def test_splits_are_disjoint(questions):
    keys = {split: {question.key for question in questions[split]} for split in SPLITS}
    for a in SPLITS:
        assert all(question.split == a for question in questions[a])
        assert all(not keys[a] & keys[b] for b in SPLITS if b != a)


def test_a_key_is_what_lies_where():
    item = Item("star", "red", 0, 1, 20, (30, 3))
    scene = Scene(84, (3, 3), "white", (item,))
    moved = dataclasses.replace(item, at=(31, 4))
    assert Scene(84, (3, 3), "lilac", (moved,)).key == scene.key
    for change in ({"colour": "blue"}, {"shape": "ring"}, {"size": 21}):
        assert Scene(84, (3, 3), "white", (dataclasses.replace(item, **change),)).key != scene.key
    assert Question("sum", (3, 4)).key == Question("sum", (4, 3)).key
    assert Question("sum", (3, 4)).key != Question("largest", (3, 4)).key


def test_what_is_held_out_shows_in_one_split(questions):
    assert {pair[0] for pair in HELD_OUT} == set(SHAPES)
    assert {pair[1] for pair in HELD_OUT} == set(COLOURS)
    for split in SPLITS:
        scenes = [question.scene for question in questions[split] if question.scene]
        unseen = split == "test_ood"
        for scene in scenes:
            assert any(item.pair in HELD_OUT for item in scene.items) == unseen
            assert BACKGROUNDS[scene.background].held_out == unseen
        assert len({scene.background for scene in scenes}) == (3 if unseen else 5)
        texts = [" ".join(q.steps) + q.question for q in questions[split]]
        held_out = [f"{colour} {shape}" for shape, colour in HELD_OUT]
        assert unseen == any(name in text for text in texts for name in held_out)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_last_split_shows_more(settings):
    for split, (low, high) in (
        ("test_id", settings.objects),
        ("test_ood", settings.objects_ood),
    ):
        counts, terms = set(), set()
        for question in generate(3, split, 200, settings):
            if question.scene is None:
                terms.add(len(question.args))
            elif question.name != "title":
                counts.add(len(question.scene.items))
            if question.name == "count":
                assert int(question.answer) <= settings.objects[1]
        assert counts == set(range(low, high + 1))
        assert terms == {3 if split == "test_ood" else 2}


def test_examples_are_the_same_at_every_call():
    assert example(7, "train", 3, NANO) == example(7, "train", 3, NANO)
    assert example(7, "train", 3, NANO) == generate(7, "train", 4, NANO)[3]
    texts = {(q.question, q.key) for q in generate(7, "train", 50, NANO)}
    others = {(q.question, q.key) for q in generate(8, "train", 50, NANO)}
    assert len(texts) > 40 and len(texts & others) < 10


def test_text_and_pictures_mix():
    for share in (0.0, 0.3, 1.0):
        settings = dataclasses.replace(NANO, text_share=share)
        alone = [q.scene is None for q in generate(0, "train", 300, settings)]
        assert sum(alone) / 300 == pytest.approx(share, abs=0.1)


# --- steps and mistakes --------------------------------------------------------------------------


def test_steps_are_true_and_end_in_the_answer(questions):
    for split in SPLITS:
        for question in questions[split]:
            text = " ".join(question.steps)
            assert re.search(r"(?:so|So the answer is) ([^.]+)\.$", text).group(1) == (
                question.answer
            )
            for a, sign, b, result in re.findall(r"(\d+) ([+>]) (\d+)(?: = (\d+))?", text):
                assert int(a) > int(b) if sign == ">" else int(a) + int(b) == int(result)


def test_counting_steps_name_all_items_in_reading_order():
    settings = dataclasses.replace(NANO, text_share=0.0, questions=("count",))
    for question in generate(0, "train", 100, settings):
        rows = re.findall(r"row: ([^.]*)\.", " ".join(question.steps))
        assert len(rows) == 3
        by = 0 if question.args[0] == "shape" else 1
        count = 0
        for number, row in enumerate(rows):
            items = [item for item in question.scene.items if item.row == number]
            names = []
            for item in sorted(items, key=lambda item: item.at[0]):
                count += item.pair[by] == question.args[1]
                hit = item.pair[by] == question.args[1]
                names.append(f"{item.pair[by]} {count}" if hit else item.pair[by])
            assert row == (", ".join(names) or "none")


def test_a_misreading_changes_the_answer_and_nothing_that_is_asked(questions):
    missing = 0
    for split in ("train", "test_ood"):
        for i, question in enumerate(questions[split]):
            seen = shapes.misread(question, random.Random(i))
            if seen is None:
                missing += 1
                continue
            assert seen.answer != question.answer and seen.answer == solve(seen)
            assert seen.options == question.options
            if question.scene is not None:
                assert seen.question == question.question
            if question.scene is not None and split == "train":
                assert not any(item.pair in HELD_OUT for item in seen.scene.items)
    assert missing < 0.15 * 500


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"grid": (1, 3)},
        {"objects": (0, 3)},
        {"objects_ood": (6, 10)},
        {"wording": "long"},
        {"text_share": 1.5},
        {"questions": ("sum",)},
        {"questions": ()},
        {"text_questions": ("count",)},
        {"largest": 3},
        {"sizes": (4, 20)},
        {"title_sizes": (30, 90)},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(NANO, **change)


def test_unknown_splits_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match="unknown split"):
        example(0, "test", 0)


def test_a_question_needs_one_answer():
    star, ring = Item("star", "red", 0, 0, 20, (2, 2)), Item("ring", "red", 0, 1, 20, (30, 2))
    scene = Scene(84, (3, 3), "white", (star, ring))
    assert Question("colour", ("star",), scene).answer == "red"
    for name, args, options in (
        ("shape", ("red",), ()),  # two are red
        ("compare", ("star", "ring"), ("stars", "rings")),  # as many
        ("colour_choice", ("star",), ("blue", "green")),
        ("colour_choice", ("star",), ()),
        ("colour", ("heart",), ()),
        ("colours", ("star",), ()),
    ):
        with pytest.raises(ValueError):
            Question(name, args, scene, options)
    with pytest.raises(ValueError):
        Question("sum", (1, 2), scene)
    assert set(TEXT_ONLY) < set(NAMES)


def test_items_stay_in_cells_of_their_own():
    star = Item("star", "red", 0, 0, 20, (2, 2))
    Scene(84, (3, 3), "white", (star,))
    for items, ground in (
        ((star, star), "white"),
        ((dataclasses.replace(star, at=(9, 2)),), "white"),
        ((dataclasses.replace(star, row=3),), "white"),
        ((dataclasses.replace(star, shape="oval"),), "white"),
        ((star,), "void"),
    ):
        with pytest.raises(ValueError):
            Scene(84, (3, 3), ground, items)
    boxes = [cell_box(100, (3, 3), row, column) for row in range(3) for column in range(3)]
    assert sum((r - x) * (b - y) for x, y, r, b in boxes) == 100 * 100


def test_regions_of_odd_and_even_grids():
    assert [region((3, 3), 1, c) for c in range(3)] == ["left", "middle", "right"]
    assert [region((4, 4), r, 1) for r in range(4)] == ["top left"] * 2 + ["bottom left"] * 2
    assert region((3, 4), 1, 3) == "right" and region((3, 3), 2, 1) == "bottom"
