"""Pictures of shapes: what they show is found again in their pixels."""

import collections

import numpy as np
import pytest
from scipy import ndimage

from vrrl_jax.data.shape_scenes import BACKGROUNDS, COLOURS, SHAPES, Item, Scene
from vrrl_jax.data.shapes import NANO, Settings, generate
from vrrl_jax.render.shapes import boxes, render

# Share of its square that a shape of 24 pixels fills, by geometry: pi/4, 0.84^2, 0.9/2, ...
AREAS = {
    "circle": 0.785,
    "square": 0.706,
    "triangle": 0.45,
    "star": 0.336,
    "cross": 0.564,
    "ring": 0.619,
    "diamond": 0.38,
    "heart": 0.53,
}


def alone(shape, colour="blue", size=24, background="white", side=28):
    return Scene(side, (1, 1), background, (Item(shape, colour, 0, 0, size, (2, 1)),))


def ink(picture, name):
    """bool [H, W]: what no colour of the ground explains."""
    ground = np.array(BACKGROUNDS[name].colours)
    return (picture[:, :, None] != ground).any(-1).all(-1)


def read(picture):
    """(colour, slices) of each connected patch in a shape's colour; by the pixels alone."""
    values = picture.astype(int)
    found = []
    for name, colour in COLOURS.items():
        labels, count = ndimage.label(np.abs(values - colour).sum(-1) <= 6, np.ones((3, 3)))
        for number, place in enumerate(ndimage.find_objects(labels), 1):
            if (labels[place] == number).sum() >= 20:  # edges may meet another colour by chance
                found.append((name, place))
    return found


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize("settings", [NANO, Settings()], ids=["nano", "large"])
def test_pixels_say_how_many_and_in_which_colours(settings, split):
    for question in generate(4, split, 80 if settings is NANO else 8, settings):
        if question.scene is None:
            continue
        picture = render(question.scene)
        assert picture.shape == (settings.side,) * 2 + (3,) and picture.dtype == np.uint8
        colours = collections.Counter(name for name, _ in read(picture))
        assert colours == collections.Counter(item.colour for item in question.scene.items)
        if question.name == "count" and question.args[0] == "colour":
            assert colours[question.args[1]] == int(question.answer)
        if question.name == "title":
            assert question.answer.split()[0] in colours


def test_boxes_are_those_of_the_ink():
    for split in ("train", "test_ood"):
        for question in generate(6, split, 100, NANO):
            if question.scene is None:
                continue
            picture = render(question.scene)
            mask = ink(picture, question.scene.background)
            inside = np.zeros_like(mask)
            for item, (left, top, right, bottom) in zip(
                question.scene.items, boxes(question.scene), strict=True
            ):
                area = mask[top:bottom, left:right]
                inside[top:bottom, left:right] = True
                # Each side of the box touches ink, and its colour is in it.
                assert area[0].any() and area[-1].any() and area[:, 0].any() and area[:, -1].any()
                colours = picture[top:bottom, left:right].reshape(-1, 3)
                assert (colours == COLOURS[item.colour]).all(-1).sum() > 20
            assert not mask[~inside].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_areas(shape):
    picture = render(alone(shape)).astype(float)
    white, blue = 252.0, COLOURS["blue"][0]
    share = (white - picture[..., 0]).sum() / (white - blue) / 24**2
    assert share == pytest.approx(AREAS[shape], abs=0.02)


def test_shapes_differ_from_each_other_and_look_as_named():
    masks = {shape: render(alone(shape, size=18, side=24))[1:19, 2:20, 0] < 120 for shape in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            assert a == b or (masks[a] != masks[b]).sum() > 25, (a, b)
    for shape, mask in masks.items():
        assert (mask != mask[:, ::-1]).sum() <= 36, shape  # its own mirror image, but for edges
    assert not masks["ring"][7, 8] and masks["circle"][7, 8]
    widths = {shape: mask.sum(1) for shape, mask in masks.items()}
    assert widths["triangle"][-4] > 2 * widths["triangle"][3]
    assert widths["heart"][-4] < widths["heart"][5] / 2


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_grounds_stand_back_behind_every_colour(name):
    picture = render(Scene(84, (3, 3), name, ()))
    colours = {tuple(map(int, colour)) for colour in picture.reshape(-1, 3)}
    assert colours == set(BACKGROUNDS[name].colours)
    for ground in colours:
        for colour in COLOURS.values():
            assert np.abs(np.subtract(ground, colour)).sum() > 120


def test_pictures_are_the_caller_s_own():
    scene = alone("star")
    first = render(scene)
    first[:] = 0
    assert render(scene).any() and render(alone("ring")).any()


def test_small_shapes_are_refused():
    with pytest.raises(ValueError, match="can't be drawn"):
        render(alone("star", size=4))
