"""Marks on pictures: where they are, what they leave alone, what they cost."""

import time

import numpy as np
import pytest

from vrrl_jax.render.feedback import FEEDBACK, draw, line_width, mark_radius

GREY = np.full((84, 140, 3), 128, np.uint8)


def changed(picture, place, feedback="marked", **options):
    """(rows, columns) of the pixels that a mark touches."""
    return np.nonzero((draw(picture, place, feedback, **options) != picture).any(-1))


def reds(image):
    image = image.astype(int)
    return (image[..., 0] > 180) & (image[..., 1] < 110) & (image[..., 2] < 110)


@pytest.mark.parametrize("feedback", ["marked", "overlay"])
@pytest.mark.parametrize("place", [(30, 40), (100.7, 20.2)])
def test_a_point_is_marked_around_itself(feedback, place):
    rows, columns = changed(GREY, place, feedback)
    x, y = (int(v) for v in place)
    assert (columns.min() + columns.max()) / 2 == x
    assert (rows.min() + rows.max()) / 2 == y
    assert rows.max() - y <= mark_radius(140, 84) + 1
    assert reds(draw(GREY, place, feedback)).sum() >= 20


def test_a_mark_leaves_what_it_stands_on_open():
    rows, _ = changed(GREY, (30, 40))
    assert len(rows) < np.pi * (mark_radius(140, 84) + 1) ** 2


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 30), (40, 90, 200)])
def test_marks_show_on_any_ground(colour):
    ground = np.empty_like(GREY)
    ground[:] = colour
    for place in ((30, 40), (30, 40, 70, 60)):
        drawn = draw(ground, place).astype(int)
        contrast = np.abs(drawn - ground.astype(int)).sum(-1)
        assert (contrast > 150).sum() >= 20


def test_a_box_is_outlined():
    drawn = draw(GREY, (30, 20, 70, 50))
    red = reds(drawn)
    line = line_width(140, 84)
    expected = np.zeros_like(red)
    expected[20:50, 30:70] = True
    expected[20 + line : 50 - line, 30 + line : 70 - line] = False
    np.testing.assert_array_equal(red, expected)
    inside = drawn[20 + line : 50 - line, 30 + line : 70 - line]
    assert (inside == 128).all()
    # Corners in any order.
    np.testing.assert_array_equal(drawn, draw(GREY, (70, 50, 30, 20)))


def test_an_overlay_tints_the_box():
    ground = np.zeros_like(GREY)
    ground[:, ::2] = 255
    inside = draw(ground, (30, 20, 70, 50), "overlay")[24:46, 34:66]
    stripes = inside.reshape(22, 16, 2, 3).astype(int)
    assert (stripes[:, :, 0] > stripes[:, :, 1]).all()  # the picture shows through
    assert (inside[..., 0] > inside[..., 1]).all()


@pytest.mark.parametrize(
    "place, corner",
    [((100, 60), (80, 40)), ((3, 2), (0, 0)), ((199, 119), (160, 80)), ((190, 50), (160, 30))],
)
def test_a_crop_is_a_square_around_the_mark_inside_of_the_picture(place, corner):
    picture = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    x, y = corner
    cropped = draw(picture, place, "crop", 40)
    np.testing.assert_array_equal(cropped, draw(picture, place)[y : y + 40, x : x + 40])


def test_a_crop_is_never_larger_than_the_picture():
    assert draw(GREY, (30, 40), "crop").shape == GREY.shape
    assert draw(GREY, (30, 40), "crop", 100).shape == (84, 100, 3)
    assert draw(GREY, (30, 40, 60, 60), "crop", 20).shape == (20, 20, 3)


@pytest.mark.parametrize("feedback", FEEDBACK)
@pytest.mark.parametrize(
    "place",
    [
        (-50, 30), (1e14, -1e14), (139.99, 83.99), (140, 84), (0, 0),
        (-9, -9, 999, 999), (50, 50, 50, 50), (200, 200, 300, 300), (139, 83, 140, 84),
        (-1e14, 5, -1e13, 9), (10, 10, 10.2, 80),
    ],
)  # fmt: skip
def test_places_beyond_the_picture_still_show(feedback, place):
    before = GREY.copy()
    drawn = draw(GREY, place, feedback, 200)
    assert drawn.shape == GREY.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(GREY, before)
    if place != (-9, -9, 999, 999) or feedback == "overlay":
        assert (drawn != GREY).any()


@pytest.mark.parametrize("side", [1, 2, 5])
def test_the_smallest_pictures(side):
    tiny = np.zeros((side, side, 3), np.uint8)
    for place in ((0, 0), (side, side), (0, 0, 1, 1)):
        for feedback in FEEDBACK:
            assert draw(tiny, place, feedback).shape == tiny.shape


def test_it_is_fast():
    """Under 0.3 ms at 140 x 84; the bound is ten times that, for loaded machines."""
    for place in ((30, 40), (30, 40, 60, 60)):
        for feedback in FEEDBACK:
            draw(GREY, place, feedback, 56)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                draw(GREY, place, feedback, 56)
                times.append(time.perf_counter() - start)
            assert min(times) < 0.003


@pytest.mark.parametrize(
    "options", [{"feedback": "circle"}, {"crop_size": 0}, {"place": (1, 2, 3)}]
)
def test_what_is_refused(options):
    with pytest.raises(ValueError):
        draw(**({"picture": GREY, "place": (1, 2)} | options))
