"""Rewards of places, against a re-computation that shares nothing with the package."""

import itertools
import json
import math
import random
import re

import numpy as np
import pytest

from vrrl_jax.data.scenes import Scene
from vrrl_jax.rewards import grounding as g
from vrrl_jax.rewards import reflection
from vrrl_jax.rewards.grounding import score

SIZE = (100, 60)
TARGET = (40.0, 20.0, 60.0, 30.0)
SCENE = Scene(np.zeros((60, 100, 3), np.uint8), "which?", (TARGET,), answer="42")
DIAGONAL = math.hypot(*SIZE)
CELLS = np.stack(np.meshgrid(np.arange(100) + 0.5, np.arange(60) + 0.5))
GOOD, NEAR, FAR = "50 25", "50 32", "5 55"


def propose(place):
    return f"<ANSWER>{place}</ANSWER>"


def revise(place):
    return f"<THINK>left</THINK><ANSWER>{place}</ANSWER>"


def commit(place):
    return f"<FINAL>{place}</FINAL>"


def episode(*places):
    return [propose(places[0]), *(revise(p) for p in places[1:]), commit(places[-1])]


# --- the naive re-computation --------------------------------------------------------------------


def naive_read(text):
    """(kind, place, has_think) of texts that this file writes."""
    for tag, kind in (("FINAL", "commit"), ("ANSWER", "proposal")):
        found = re.search(f"<{tag}>(.*?)</{tag}>", text)
        if found:
            numbers = [float(word) for word in found[1].split() if re.fullmatch(r"[\d.]+", word)]
            if len(numbers) not in (2, 4) or len(numbers) != len(found[1].split()):
                return "invalid", (), "<THINK>" in text
            return kind, tuple(numbers), "<THINK>" in text
    return "invalid", (), "<THINK>" in text


def naive_level(place):
    """(right, progress) at pixel coordinates."""
    if not place:
        return False, 0.0
    x1, y1, x2, y2 = TARGET
    if len(place) == 4:
        # Every box of this file has whole corners, so pixels can be counted.
        cells = CELLS

        def mask(box):
            a, b, c, d = box
            (a, c), (b, d) = sorted((a, c)), sorted((b, d))
            return (cells[0] > a) & (cells[0] < c) & (cells[1] > b) & (cells[1] < d)

        both = (mask(place) & mask(TARGET)).sum()
        union = (mask(place) | mask(TARGET)).sum()
        return both / union >= 0.5, both / union
    x, y = place
    if x1 <= x < x2 and y1 <= y < y2:
        return True, 1.0
    nearest = min(max(x, x1), x2), min(max(y, y1), y2)
    return False, max(0.0, 1 - max(1, math.dist(place, nearest)) / (0.5 * DIAGONAL))


def naive_score(texts):
    """The released total and its flags, spelt out."""
    read = [naive_read(text) for text in texts]
    proposals = [place for kind, place, _ in read if kind == "proposal"]
    commits = [place for kind, place, _ in read if kind == "commit"]
    answer = (commits or proposals or [()])[-1]
    right, level = naive_level(answer)
    began = naive_level(read[0][1])[0] if read else False
    formed = len(read) >= 2 and read[-1][0] == "commit" and not read[-1][2]
    for i, (kind, _, think) in enumerate(read[:-1]):
        formed = formed and kind == "proposal" and think == (i > 0)
    formed = formed and len(set(proposals)) == len(proposals) and proposals[-1] == answer
    levels = [naive_level(place)[1] for place in proposals]
    moved = sum(b - a if b >= a else 0.5 * (b - a) for a, b in itertools.pairwise(levels))
    moved = min(1.0, max(0.0, moved))
    revisions = len(proposals) - 1
    if not formed:
        total = 0.0
    elif right:
        total = 1.0 + 0.1 * moved - 0.01 * revisions
    else:
        total = 0.1 + 0.9 * moved
    return {
        "total": total,
        "em": right,
        "progress": level,
        "reflect": moved,
        "success": formed and right,
        "turn1_em": began,
        "final_em": right,
        "commit_em": right and bool(commits),
        "wrong_to_right": right and not began,
        "right_to_wrong": began and not right,
        "lost_to_format": right and not formed,
        "format_error": not read or any(kind == "invalid" for kind, _, _ in read),
        "turns": len(read),
    }


def random_place(rng, form):
    if form == "point":
        return rng.choice([GOOD, f"{rng.randrange(100)} {rng.randrange(60)}"])
    a, b = rng.randrange(36, 48), rng.randrange(15, 26)
    near = f"{a} {b} {a + rng.randrange(10, 25)} {b + rng.randrange(4, 14)}"
    return rng.choice([near, near, "40 20 60 30", "60 30 40 20", "0 0 10 10", "5 5 5 5"])


def random_texts(rng, form):
    texts = episode(*(random_place(rng, form) for _ in range(rng.randint(1, 4))))
    if rng.random() < 0.4:
        i = rng.randrange(len(texts))
        texts[i] = rng.choice(
            [
                "hm",
                propose("up"),
                propose("1 2 3"),
                commit(random_place(rng, form)),
                revise(random_place(rng, form)),
                "<THINK></THINK>" + texts[i],
                texts[0],
            ]
        )
    return texts[: rng.randint(0, len(texts))] if rng.random() < 0.1 else texts


@pytest.mark.parametrize("form", ["point", "box"])
def test_the_released_total_and_its_metrics(form):
    rng = random.Random(form)
    seen = set()
    for _ in range(600):
        texts = random_texts(rng, form)
        ours, naive = score(texts, SCENE, form=form), naive_score(texts)
        for name, value in naive.items():
            assert ours[name] == pytest.approx(float(value), abs=1e-9), (name, texts)
        seen |= {name for name, value in naive.items() if value}
        assert all(type(value) is float for value in ours.values())
    assert seen == set(naive)


# --- what is right -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place, radius, right",
    [
        ((40, 20), 0, True),
        ((60, 25), 0, False),
        ((60, 25), 1, True),
        ((63, 34), 5, True),
        ((63, 34), 4.9, False),
        ((39, 25), 0, False),
        ((), 20, False),
    ],
)
def test_a_right_point(place, radius, right):
    assert g.right(place, [TARGET], radius=radius) is right
    assert (g.progress(place, [TARGET], SIZE, radius=radius) == 1) is right
    assert g.right(place, [(0, 0, 1, 1), TARGET], radius=radius) is right


@pytest.mark.parametrize(
    "box, iou",
    [((40, 20, 60, 30), 1), ((40, 20, 50, 30), 0.5), ((50, 20, 70, 30), 1 / 3), ((0, 0, 9, 9), 0)],
)
def test_a_right_box(box, iou):
    assert g.overlap(box, [TARGET]) == g.progress(box, [TARGET], SIZE) == pytest.approx(iou)
    assert g.right(box, [TARGET]) is (iou >= 0.5)
    assert g.right(box, [TARGET], threshold=0.2) is (iou >= 0.2)
    assert g.overlap(box, [(0, 0, 9, 9), TARGET]) == max(iou, float(box == (0, 0, 9, 9)))


def test_progress_grows_as_a_point_comes_nearer():
    levels = [g.progress((x, 25), [TARGET], SIZE) for x in range(100, 50, -5)]
    assert levels == sorted(levels) and levels[-1] == 1 and levels[0] > 0
    assert g.progress((1e9, 0), [TARGET], SIZE) == 0
    assert g.progress((90, 25), [TARGET], SIZE, reach=0.1) == 0


@pytest.mark.parametrize(
    "coordinates, good",
    [("original", "50 25"), ("pixel", "112 50"), ("thousand", "500 416"), ("unit", "0.5 0.416")],
)
def test_every_coordinate_system(coordinates, good):
    options = {"coordinates": coordinates, "resized": (224, 120)}
    assert score(episode(good), SCENE, **options)["success"] == 1
    for other in {"original", "pixel", "thousand", "unit"} - {coordinates}:
        assert score(episode(good), SCENE, coordinates=other, resized=(224, 120))["em"] == 0


def test_distance_and_iou_are_of_the_original_picture():
    assert score(episode("120 50"), SCENE, resized=(200, 120))["distance"] == 0  # on the edge
    assert score(episode("140 50"), SCENE, resized=(200, 120))["distance"] == pytest.approx(10)
    assert score(["hm"], SCENE)["distance"] == pytest.approx(DIAGONAL)
    assert "iou" not in score(["hm"], SCENE)
    boxed = score(episode("400 333.333 500 500"), SCENE, form="box", coordinates="thousand")
    assert boxed["iou"] == pytest.approx(0.5, abs=1e-4) and boxed["distance"] == 0


def test_a_box_counts_as_it_is_drawn_cut_to_the_picture():
    scene = Scene(SCENE.picture, "", ((80.0, 40.0, 100.0, 60.0),))
    assert score(episode("80 40 900 900"), scene, form="box")["iou"] == 1


# --- format and decisions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts, formed",
    [
        (episode(GOOD), True),
        (episode(FAR, NEAR, GOOD), True),
        ([propose(GOOD)], False),
        ([commit(GOOD)], False),
        ([propose(FAR), propose(GOOD), commit(GOOD)], False),
        ([revise(GOOD), commit(GOOD)], False),
        ([propose(GOOD), "<THINK></THINK>" + commit(GOOD)], False),
        ([propose(FAR), commit(GOOD)], False),
        (episode(FAR, NEAR, FAR), False),
        ([propose(GOOD), commit(GOOD), commit(GOOD)], False),
        ([propose(GOOD), commit("50, 25.0")], True),
        ([], False),
    ],
)
def test_format(texts, formed):
    parts = score(texts, SCENE)
    assert parts["format"] == (0.1 if formed else 0)
    assert (parts["total"] > 0) is formed
    assert score(texts, SCENE, min_turns=9)["total"] == 0


@pytest.mark.parametrize(
    "texts, prefix_right, expected",
    [
        (episode(FAR, GOOD), False, 0.3),
        (episode(FAR), False, -0.3),
        (episode(FAR, NEAR), False, 0),
        (episode(GOOD), True, 0.3),
        (episode(GOOD, FAR), True, -0.3),
    ],
)
@pytest.mark.parametrize("style", g.STYLES)
def test_decision_bonus(texts, prefix_right, expected, style):
    options = {"style": style, "placement": "turn", "prefix_turns": 1, "prefix_right": prefix_right}
    plain = score(texts, SCENE, **options)
    parts = score(texts, SCENE, **options, decision_bonus=0.3)
    assert parts["total"] - plain["total"] == pytest.approx(expected)
    moved = np.subtract(parts["turn_rewards"], plain["turn_rewards"])
    assert moved == pytest.approx([0, expected, *[0] * (len(texts) - 2)])


# --- styles and placements -----------------------------------------------------------------------


def test_summary_pays_for_the_answer_and_the_overlap():
    def total(texts, **options):
        return score(texts, SCENE, form="box", style="summary", alpha=0.4, **options)["total"]

    half, whole = "40 20 50 30", "40 20 60 30"
    assert total(episode(whole)) == pytest.approx(1.4)
    assert total(episode(half)) == pytest.approx(1.2)
    assert total(episode("40 20 44 30")) == pytest.approx(0.4 * 0.2)
    assert total(["hm"]) == 0 and total([]) == 0
    # Form is no part of it, unless it is asked for.
    assert total([commit(whole)]) == pytest.approx(1.4)
    assert total([commit(whole)], require_format=True) == 0
    assert total(episode(whole), require_format=True) == pytest.approx(1.4)


@pytest.mark.parametrize(
    "answer, correct", [("42", 1), (42, 1), ("42.0", 1), ("43", 0), ("forty", 0)]
)
def test_summary_judges_the_answers_text_where_there_is_one(answer, correct):
    body = json.dumps({"bbox_2d": [0, 0, 5, 5], "answer": answer})
    parts = score(episode(body), SCENE, form="box", style="summary")
    assert parts["total"] == parts["answer_right"] == correct and parts["em"] == 0


def test_distance_pays_for_nearness():
    near, far = (score(episode(p), SCENE, style="distance")["total"] for p in (NEAR, FAR))
    assert 0 < far < near < 1
    assert score(episode(GOOD), SCENE, style="distance")["total"] == 1


@pytest.mark.parametrize("form", ["point", "box"])
@pytest.mark.parametrize("style", g.STYLES)
@pytest.mark.parametrize("require_format", [False, True])
@pytest.mark.parametrize("per_turn", ["gain", "level"])
def test_turns_sum_to_the_total(form, style, require_format, per_turn):
    rng = random.Random(0)
    for _ in range(60):
        texts = random_texts(rng, form)
        given = rng.randrange(3)
        options = {
            "form": form, "style": style, "require_format": require_format, "per_turn": per_turn,
            "graded": rng.random() < 0.5, "outcome_weight": rng.random(), "prefix_turns": given,
            "reflect_lower_clip": -rng.random(), "decision_bonus": 0.2,
            "em_reflect_step_discount": rng.uniform(0.5, 1),
        }  # fmt: skip
        parts = score(texts, SCENE, placement="turn", **options)
        assert len(parts["turn_rewards"]) == len(texts)
        assert sum(parts["turn_rewards"]) == pytest.approx(parts["total"], abs=1e-9)
        end = score(texts, SCENE, **options)
        assert "turn_rewards" not in end
        if per_turn == "gain" or style != "summary":
            assert end["total"] == pytest.approx(parts["total"], abs=1e-12)


def test_where_turns_have_their_rewards():
    def shares(texts, **options):
        return score(texts, SCENE, placement="turn", **options)["turn_rewards"]

    far = g.progress((5, 55), [TARGET], SIZE)
    texts = episode(FAR, GOOD)
    worth = 0.1 * (1 - far)
    assert shares(texts) == pytest.approx((0, worth - 0.01, 1))
    assert shares(texts, style="distance") == pytest.approx((far, 1 - far, 0))
    gained = shares(texts, style="summary", alpha=0.5)
    assert gained == pytest.approx((0.5 * far, 0.5 * (1 - far), 1))
    paid = shares(texts, style="summary", alpha=0.5, per_turn="level")
    assert paid == pytest.approx((0.5 * far, 0.5, 1))
    # Worse, then the commit as well: half of the drop is taken off.
    worse = episode(NEAR, FAR)
    drop = far - g.progress((50, 32), [TARGET], SIZE)
    expected = (0, 0.9 * 0.5 * drop, 0.1)
    assert shares(worse, reflect_lower_clip=-1.0) == pytest.approx(expected)
    assert shares([propose(GOOD), "hm"]) == (0, 0)


def test_gains_add_up_to_reflect():
    rng = random.Random(0)
    for _ in range(300):
        levels = [rng.random() for _ in range(rng.randrange(6))]
        options = {"lambda_deg": rng.random() * 2, "lower_clip": rng.uniform(-1, 0.2)}
        gained = reflection.gains(levels, **options)
        assert len(gained) == max(0, len(levels) - 1)
        assert sum(gained) == pytest.approx(reflection.reflect(levels, **options))


@pytest.mark.parametrize(
    "options, error",
    [
        ({"style": "best"}, ValueError),
        ({"placement": "token"}, ValueError),
        ({"per_turn": "sum"}, ValueError),
        ({"coordinates": "pixels"}, ValueError),
        ({"overshoot_zero": True}, TypeError),
    ],
)
def test_wrong_options(options, error):
    with pytest.raises(error):
        score(episode(GOOD), SCENE, **options)


def test_one_text_in_place_of_several():
    with pytest.raises(TypeError, match="list of texts"):
        score(propose(GOOD), SCENE)


def test_replies_that_mean_nothing_to_anybody():
    for texts in itertools.product(["", "<ANSWER>", commit("1e9 1"), propose("9" * 15 + " 1")]):
        parts = score(texts, SCENE)
        assert parts["em"] == 0 and math.isfinite(parts["total"] + parts["distance"])
