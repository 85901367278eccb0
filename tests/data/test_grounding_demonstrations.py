"""Demonstrations of grounding: right in the end, wrong in between as often as asked, teachable."""

import random
import re

import numpy as np
import pytest

from vrrl_jax.data import charts, tables
from vrrl_jax.data.grounding_demonstrations import (
    WORDS,
    Options,
    demonstrate,
    direction,
    number,
)
from vrrl_jax.data.scenes import Scene
from vrrl_jax.envs.scenes import scene
from vrrl_jax.processing.grounding import parse
from vrrl_jax.rewards.grounding import score

COUNT = 40
EXAMPLES = {
    "tables": [scene(e) for e in tables.generate(0, "train", COUNT, tables.NANO)],
    "charts": [scene(e) for e in charts.generate(0, "train", COUNT, charts.NANO)],
    "large": [scene(e) for e in tables.generate(1, "test_ood", COUNT)],
}


def texts(replies):
    return [reply.text for reply in replies]


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("form", ["point", "box"])
@pytest.mark.parametrize("style", ["spaced", "plain", "json"])
@pytest.mark.parametrize(
    "coordinates, step", [("pixel", 4), ("original", 1), ("thousand", 10), ("unit", 0.01)]
)
def test_every_demonstration_is_well_formed_and_right(kind, form, style, coordinates, step):
    rng = random.Random(0)
    options = Options(form, coordinates, step, style)
    for i, about in enumerate(EXAMPLES[kind]):
        resized = (about.size[0] * 2, about.size[1] + 28) if i % 2 else None
        replies = demonstrate(about, rng, options, resized=resized, wrong_first=0.8)
        parts = score(texts(replies), about, form=form, coordinates=coordinates, resized=resized)
        assert parts["success"] == 1, texts(replies)
        for reply in replies[:-2]:
            place = parse(reply.text, form)
            given = {"form": form, "coordinates": coordinates, "resized": resized}
            assert score([reply.text], about, **given)["em"] == 0, (place, about.targets)


def test_the_words_of_a_small_policy():
    """Tags, words of the list and coordinates, each with its blank, are all there is to say."""
    rng = random.Random(0)
    seen = set()
    known = {"<THINK>", "</THINK>", "<ANSWER>", "</ANSWER>", "<FINAL>", "</FINAL>"}
    for about in EXAMPLES["tables"] * 3:
        for reply in demonstrate(about, rng, Options(step=4), wrong_first=1.0):
            for piece in reply.pieces:
                assert piece.text in known or re.fullmatch(" [a-z]+| [0-9]+", piece.text)
                seen.add(piece.text.strip())
                if piece.text.strip().isdigit():
                    assert int(piece.text) % 4 == 0 and int(piece.text) < max(about.size)
                for other in piece.alternatives:
                    assert re.fullmatch(" [0-9]+", other) and int(other) % 4 == 0
    assert {word for word in seen if word.isalpha()} == set(WORDS) - {"larger", "smaller"}


def test_how_places_are_written():
    about = Scene(np.zeros((60, 100, 3), np.uint8), "", ((40.0, 20.0, 60.0, 30.0),))
    rng = random.Random(0)

    def first(**options):
        return demonstrate(about, rng, Options(**options), wrong_first=0.0)[0].text

    assert first() == "<ANSWER> 50 25</ANSWER>"
    assert first(step=4) == "<ANSWER> 52 24</ANSWER>"
    assert first(style="plain") == "<ANSWER>50, 25</ANSWER>"
    assert first(style="json") == '<ANSWER>{"point_2d": [50, 25]}</ANSWER>'
    assert first(style="json", form="box") == '<ANSWER>{"bbox_2d": [40, 20, 60, 30]}</ANSWER>'
    assert first(coordinates="thousand", step=1) == "<ANSWER> 500 417</ANSWER>"
    assert first(coordinates="unit", step=0.01) == "<ANSWER> 0.5 0.42</ANSWER>"
    assert [number(v) for v in (0.0, 100.0, 0.25, 1e6)] == ["0", "100", "0.25", "1000000"]


def test_the_share_of_wrong_first_proposals():
    rng = random.Random(0)
    for share in (0.0, 0.6, 1.0):
        wrong = [
            score(texts(demonstrate(about, rng, Options(step=4), wrong_first=share)), about)
            for about in EXAMPLES["tables"] * 10
        ]
        measured = 1 - np.mean([parts["turn1_em"] for parts in wrong])
        assert measured == pytest.approx(share, abs=0.06 if 0 < share < 1 else 0)


def test_the_share_of_second_errors():
    rng = random.Random(0)
    turns = [
        len(demonstrate(about, rng, Options(step=4), wrong_first=1.0, second_error=0.3))
        for about in EXAMPLES["tables"] * 10
    ]
    assert set(turns) == {3, 4}
    assert np.mean(np.array(turns) == 4) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 6])
def test_the_turn_budget(most):
    rng = random.Random(0)
    options = {"wrong_first": 1.0, "second_error": 1.0, "max_turns": most}
    for about in EXAMPLES["tables"]:
        replies = demonstrate(about, rng, Options(step=4), **options)
        assert len(replies) == most
        assert score(texts(replies), about)["em"] == 1


def test_only_what_is_right_is_taught():
    rng = random.Random(0)
    for about in EXAMPLES["tables"]:
        *wrong, right, commit = demonstrate(
            about, rng, Options(step=4), wrong_first=1.0, second_error=0.5, decision_weight=3.0
        )
        for reply in wrong:
            opening = [piece.text for piece in reply.pieces].index("<ANSWER>")
            assert all(piece.weight == 0 for piece in reply.pieces[opening + 1 :])
            assert all(not piece.alternatives for piece in reply.pieces[opening + 1 :])
            assert reply.end_weight == 0
        assert right.pieces[0].text == "<THINK>" and right.pieces[0].weight == 3
        assert all(piece.weight == 1 for piece in right.pieces[1:]) and right.end_weight == 1
        assert commit.pieces[0].weight == 3 and commit.end_weight == 1
        assert all(not piece.alternatives for piece in commit.pieces)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_alternatives_are_as_good_in_any_combination(kind):
    rng = random.Random(0)
    options, several = Options(step=2), 0
    for about in EXAMPLES[kind]:
        reply = demonstrate(about, rng, options, wrong_first=0.0)[0]
        x, y = (piece for piece in reply.pieces if piece.text.strip().isdigit())
        assert x.text in x.alternatives and y.text in y.alternatives
        several += len(x.alternatives) > 1
        for a in x.alternatives:
            for b in y.alternatives:
                assert score([f"<ANSWER>{a}{b}</ANSWER>"], about)["em"] == 1
    assert several > COUNT / 3
    hard = demonstrate(EXAMPLES[kind][0], rng, options, soft_targets=False)
    assert all(not piece.alternatives for reply in hard for piece in reply.pieces)


@pytest.mark.parametrize(
    "place, words",
    [
        ((5, 25), "right"),
        ((99, 25), "left"),
        ((60, 25), "left"),
        ((50, 5), "down"),
        ((50, 30), "up"),
        ((5, 5), "down right"),
        ((99, 55), "up left"),
        ((0, 0, 10, 10), "down right"),
        ((45, 22, 55, 28), "larger"),
        ((10, 5, 90, 45), "smaller"),
    ],
)
def test_directions(place, words):
    assert " ".join(direction(place, (40, 20, 60, 30))) == words


@pytest.mark.parametrize("form", ["point", "box"])
def test_thoughts_point_from_the_mark_to_the_target(form):
    rng = random.Random(0)
    for about in EXAMPLES["tables"]:
        replies = demonstrate(about, rng, Options(form, step=2), wrong_first=1.0, second_error=0.5)
        places = [parse(reply.text, form).place for reply in replies]
        for before, reply in zip(places, replies[1:-1], strict=False):
            said = re.search("<THINK>(.*)</THINK>", reply.text)[1].split()
            assert said and set(said) <= set(WORDS)
            x, y = before if form == "point" else (np.mean(before[::2]), np.mean(before[1::2]))
            fits = [
                (("left" in said) <= (x >= x2)) and (("right" in said) <= (x < x1))
                and (("up" in said) <= (y >= y2)) and (("down" in said) <= (y < y1))
                for x1, y1, x2, y2 in about.targets
            ]  # fmt: skip
            assert any(fits)


def test_mistakes_are_of_every_kind():
    """Neighbours, headers, near misses and other marks all come up."""
    rng = random.Random(0)
    counts = dict.fromkeys(("other", "header", "nothing"), 0)
    for about in EXAMPLES["tables"] * 5:
        first = demonstrate(about, rng, Options(step=4), wrong_first=1.0)[0]
        x, y = parse(first.text).place

        def hit(boxes, x=x, y=y):
            return any(a <= x < c and b <= y < d for a, b, c, d in boxes)

        kind = "other" if hit(about.others) else "header" if hit(about.headers) else "nothing"
        counts[kind] += 1
    assert min(counts.values()) > 0.02 * sum(counts.values())
    assert counts["other"] > 0.4 * sum(counts.values())


def test_a_target_without_a_grid_point_uses_a_finer_grid_or_the_radius():
    about = Scene(np.zeros((60, 100, 3), np.uint8), "", ((41.0, 21.0, 44.0, 24.0),))
    rng = random.Random(0)
    fine = demonstrate(about, rng, Options(step=8), wrong_first=0.0)
    assert fine[0].text == "<ANSWER> 42 22</ANSWER>"
    coarse = demonstrate(about, rng, Options(step=8, radius=4.0), wrong_first=0.0)
    assert coarse[0].text == "<ANSWER> 40 24</ANSWER>"
    assert score(texts(coarse), about, radius=4.0)["success"] == 1


def test_where_nothing_is_wrong_the_first_proposal_is_right():
    about = Scene(np.zeros((60, 100, 3), np.uint8), "", ((0.0, 0.0, 100.0, 60.0),))
    replies = demonstrate(about, random.Random(0), Options(step=4), wrong_first=1.0)
    assert len(replies) == 2 and score(texts(replies), about)["success"] == 1


def test_a_lone_target_has_mistakes_too():
    about = Scene(np.zeros((60, 100, 3), np.uint8), "", ((2.0, 2.0, 98.0, 58.0),))
    for form in ("point", "box"):
        replies = demonstrate(about, random.Random(0), Options(form), wrong_first=1.0)
        parts = score(texts(replies), about, form=form)
        assert parts["success"] == 1 and parts["turn1_em"] == 0


def test_a_seed_says_everything():
    about = EXAMPLES["tables"][0]
    one, two = (demonstrate(about, random.Random(5), Options(step=4)) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    "wrong", [{"form": "dot"}, {"style": "xml"}, {"step": 0}, {"coordinates": "cm"}]
)
def test_options_are_checked(wrong):
    with pytest.raises(ValueError):
        Options(**wrong)
