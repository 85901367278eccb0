"""Coordinate systems: every pair converts there and back, and the edges are where they belong."""

import itertools
import random

import pytest

from vrrl_jax import coordinates as c
from vrrl_jax.rewards import boxes

ORIGINAL, RESIZED = (640, 480), (644, 476)


def naive(x, y, source, target):
    """By way of shares of the picture."""
    ends = {"pixel": RESIZED, "original": ORIGINAL, "thousand": (1000, 1000), "unit": (1, 1)}
    return (
        x / ends[source][0] * ends[target][0],
        y / ends[source][1] * ends[target][1],
    )


@pytest.mark.parametrize("source, target", list(itertools.product(c.SYSTEMS, repeat=2)))
def test_points_and_boxes_convert_there_and_back(source, target):
    rng = random.Random(source + target)
    for _ in range(50):
        x1, y1, x2, y2 = (rng.uniform(-200, 1200) for _ in range(4))
        point = c.convert_point((x1, y1), source, target, ORIGINAL, RESIZED)
        assert point == pytest.approx(naive(x1, y1, source, target))
        box = c.convert_box((x1, y1, x2, y2), source, target, ORIGINAL, RESIZED)
        assert box == pytest.approx((*point, *naive(x2, y2, source, target)))
        back = c.convert_box(box, target, source, ORIGINAL, RESIZED)
        assert back == pytest.approx((x1, y1, x2, y2))


def test_a_picture_that_is_not_resized_has_one_kind_of_pixels():
    assert c.convert_point((3, 4), "pixel", "original", ORIGINAL) == (3, 4)
    assert c.extent("pixel", ORIGINAL) == ORIGINAL
    assert c.extent("pixel", ORIGINAL, RESIZED) == RESIZED


def test_known_conversions():
    """Half a picture is 500 thousandths, and pixels differ by the resizing."""
    assert c.convert_point((320, 240), "original", "thousand", ORIGINAL) == (500, 500)
    assert c.convert_box((0, 0, 322, 238), "pixel", "original", ORIGINAL, RESIZED) == pytest.approx(
        (0, 0, 320, 240)
    )
    assert c.convert_point((0.5, 1), "unit", "pixel", ORIGINAL, RESIZED) == (322, 476)


def test_clipping_sorts_corners_and_keeps_to_the_picture():
    assert c.clip_point((-3, 99), (10, 20)) == (0, 20)
    assert c.clip_box((12, 5, -4, 2), (10, 20)) == (0, 2, 10, 5)
    x1, y1, x2, y2 = c.clip_box((30, 30, 40, 40), (10, 20))
    assert (x2 - x1) * (y2 - y1) == 0


def test_rounding():
    assert c.rounded((0.5, 1.49, 2.5, -0.5), "pixel") == (1, 1, 3, 0)
    assert c.rounded((499.5, 500.4), "thousand") == (500, 500)
    assert c.rounded((0.12345, 0.9996), "unit") == (0.123, 1.0)


def test_a_box_holds_its_near_edges_alone():
    box = (10, 20, 30, 40)
    assert c.inside((10, 20), box) and c.inside((29.9, 39.9), box)
    assert not c.inside((30, 25), box) and not c.inside((15, 40), box)
    assert c.inside((30, 25), (30, 20, 50, 40))


@pytest.mark.parametrize(
    "point, expected",
    [((15, 25), 0), ((30, 40), 0), ((7, 25), 3), ((33, 44), 5), ((10, 12), 8), ((6, 17), 5)],
)
def test_distance_to_a_box(point, expected):
    assert c.distance(point, (10, 20, 30, 40)) == pytest.approx(expected)


def test_boxes_of_benchmarks_use_the_same_conversion():
    rng = random.Random(0)
    for system in ("pixel", "thousand", "unit"):
        for _ in range(50):
            box = tuple(rng.uniform(-0.2, 1.2) * {"unit": 1}.get(system, 900) for _ in range(4))
            size = (rng.randint(1, 900), rng.randint(1, 900))
            whole = {"pixel": size, "thousand": (1000, 1000), "unit": (1, 1)}[system]
            shares = [box[i] / whole[i % 2] for i in range(4)]
            inside = [min(max(share, 0), 1) for share in shares]
            corners = [f(inside[i], inside[i + 2]) * size[i] for f in (min, max) for i in (0, 1)]
            assert boxes.scaled(box, size, system) == pytest.approx(corners)


@pytest.mark.parametrize(
    "wrong", [lambda: c.extent("pixels", ORIGINAL), lambda: c.extent("pixel", (0, 3))]
)
def test_what_is_no_system_or_no_size(wrong):
    with pytest.raises(ValueError, match=r"unknown coordinates|above 0"):
        wrong()
