"""Pictures of tables: every box is found again by its pixels, and nothing stands where it must not.

Boxes are checked against pictures that differ in one mark only, so the test needs no knowledge of
how a table is laid out.
"""

import dataclasses
import hashlib
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from vrrl_jax.data import tables
from vrrl_jax.data.table_questions import Group
from vrrl_jax.data.tables import NANO, Settings, Table, example, generate
from vrrl_jax.render.table_styles import LAYOUTS, THEMES, Style, layout, theme
from vrrl_jax.render.tables import clear_caches, has_glyph, render, target_boxes

TABLE = Table(
    header=("City", "Area", "2023", "2024", "Jug"),
    rows=(
        ("Aston", "1,234", "-3.5%", "", "(12)"),
        ("Quay", "7", "+0.1%", "n/a", "-"),
        ("Ilk", "$90", "12%", "3", "yes"),
    ),
    groups=(Group("A very long merged header", 2, 4),),
    targets=((1, 2), (2, 0)),
)
FLAT = dataclasses.replace(TABLE, groups=())
TEXTS = {"cell": "cell_text", "header": "header_text", "group": "group_text"}


def bounds(changed):
    """The half-open box of what is set in bool [H, W]."""
    ys, xs = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def opposite(colour):
    """The colour that differs most from it in every channel."""
    return tuple(0 if channel > 127 else 255 for channel in colour)


def within(inner, outer):
    return (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and inner[2] <= outer[2]
        and inner[3] <= outer[3]
    )


def text_of(table, kind, key):
    if kind == "cell":
        return table.rows[key[0]][key[1]]
    return table.header[key] if kind == "header" else table.groups[key].text


# --- exact boxes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=[part.name for part in LAYOUTS])
@pytest.mark.parametrize("table", [TABLE, FLAT], ids=["grouped", "flat"])
def test_boxes_are_where_repainting_a_mark_changes_pixels(table, number):
    look = THEMES[number % len(THEMES)]
    style = Style(look, LAYOUTS[number], size=11 + number % 5)
    plain = render(table, style)
    for kind, text_kind in TEXTS.items():
        for key, box in plain.boxes[kind].items():
            x0, y0, x1, y1 = box
            fill = tuple(plain.image[y0, x0].tolist())
            marks = {kind: opposite(fill)}
            if key in plain.boxes[text_kind]:
                role = "body" if kind == "cell" and key[1] else "stub" if kind == "cell" else ""
                ink = {"": look.header_ink, "stub": look.stub_ink, "body": look.ink}[role]
                marks[text_kind] = opposite(ink)
            else:
                assert text_of(table, kind, key) == ""
            for mark, colour in marks.items():
                other = render(table, style, {(mark, key): colour})
                assert other.boxes == plain.boxes, "paint moves nothing"
                found = bounds((other.image != plain.image).any(-1))
                apart = np.abs(np.subtract(found, plain.boxes[mark][key])).max()
                assert apart <= 1, (mark, key, found, plain.boxes[mark][key])
                # A fill shows in every pixel but those that ink covers in full.
                assert mark == text_kind or apart == 0


@pytest.mark.parametrize("size", [8, 10, 14, 23])
def test_text_boxes_are_the_ink_between_white(size):
    """Without repainting: black on white, no rules, so ink is all that isn't white."""
    drawn = render(TABLE, Style(theme("plain"), layout("bare"), size=size))
    dark = (drawn.image < 255).any(-1)
    for kind, text_kind in TEXTS.items():
        for key, (x0, y0, x1, y1) in drawn.boxes[kind].items():
            part = dark[y0:y1, x0:x1]
            box = drawn.boxes[text_kind].get(key)
            assert part.any() == (box is not None)
            if box:
                found = np.add(bounds(part), (x0, y0, x0, y0))
                assert np.abs(found - box).max() <= 1
            dark[y0:y1, x0:x1] = False
    assert not dark.any(), "no ink outside of the cells"


def test_a_digit_changes_its_own_cell_only():
    style = Style(theme("grey"), layout("grid"))
    rows = (TABLE.rows[0], ("Quay", "8", *TABLE.rows[1][2:]), TABLE.rows[2])
    one, other = render(TABLE, style), render(dataclasses.replace(TABLE, rows=rows), style)
    assert within(bounds((one.image != other.image).any(-1)), one.boxes["cell_text"][1, 1])


@pytest.mark.parametrize("part", LAYOUTS, ids=[part.name for part in LAYOUTS])
def test_what_no_cell_covers_is_rule_inside_the_table_and_page_outside(part):
    look = dataclasses.replace(theme("sand"), rule=(1, 2, 3), page=(9, 8, 7))
    drawn = render(TABLE, Style(look, part))
    free = np.ones(drawn.image.shape[:2], bool)
    for kind in TEXTS:
        for x0, y0, x1, y1 in drawn.boxes[kind].values():
            assert free[y0:y1, x0:x1].all(), "cells overlap"
            free[y0:y1, x0:x1] = False
    x0, y0, x1, y1 = drawn.boxes["table"][0]
    inside = np.zeros_like(free)
    inside[y0:y1, x0:x1] = True
    assert (drawn.image[free & inside] == look.rule).all()
    assert (drawn.image[free & ~inside] == look.page).all()
    lines = part.rows + part.columns + part.header + part.stub + part.ends + part.sides
    assert (free & inside).any() == (lines > 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(tables.SPLITS)), st.booleans())
def test_boxes_nest_and_never_overlap(seed, split, small):
    table, style = example(seed, split, 0, NANO if small else Settings(grouped=0.5, sparse=0.5))
    drawn = render(table, style)
    height, width, _ = drawn.image.shape
    assert within(drawn.boxes["table"][0], (0, 0, width, height))
    taken = np.zeros((height, width), np.int32)
    for kind, text_kind in TEXTS.items():
        for key, box in drawn.boxes[kind].items():
            assert within(box, drawn.boxes["table"][0])
            taken[box[1] : box[3], box[0] : box[2]] += 1
            if text_of(table, kind, key):
                inner = drawn.boxes[text_kind][key]
                # Strictly inside: a text that touches a rule can't be read.
                x0, y0, x1, y1 = inner
                assert within((x0 - 1, y0 - 1, x1 + 1, y1 + 1), box)
    assert taken.max() == 1
    wanted = {(r, c) for r in range(len(table.rows)) for c in range(len(table.header))}
    assert set(drawn.boxes["cell"]) == wanted
    assert set(drawn.boxes["header"]) == set(range(len(table.header)))
    assert len(drawn.boxes["group"]) == len(table.groups)
    assert target_boxes(table, drawn) == tuple(drawn.boxes["cell"][t] for t in table.targets)


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", LAYOUTS, ids=[part.name for part in LAYOUTS])
def test_rows_columns_and_headers_line_up(part):
    boxes = render(TABLE, Style(theme("plain"), part)).boxes
    down, across = (0, 1) if part.transposed else (1, 0)

    def span(box, axis):
        return box[axis], box[axis + 2]

    for r, c in boxes["cell"]:
        assert span(boxes["cell"][r, c], down) == span(boxes["cell"][r, 0], down)
        assert span(boxes["cell"][r, c], across) == span(boxes["header"][c], across)
    for r, after in itertools.pairwise(range(len(TABLE.rows))):
        assert span(boxes["cell"][r, 1], down)[1] <= span(boxes["cell"][after, 1], down)[0]
    for c, after in itertools.pairwise(range(1, len(TABLE.header))):
        assert span(boxes["header"][c], across)[1] <= span(boxes["header"][after], across)[0]
    # Headers stand before the body unless the layout turns them; row headers likewise.
    head, body = span(boxes["header"][2], down)[0], span(boxes["cell"][0, 2], down)[0]
    assert (head > body) == part.header_last
    stub, value = span(boxes["cell"][0, 0], across)[0], span(boxes["cell"][0, 1], across)[0]
    assert (stub > value) == part.stub_last
    group, leaves = boxes["group"][0], [boxes["header"][c] for c in (2, 3)]
    assert span(group, across) == (span(leaves[0], across)[0], span(leaves[1], across)[1])
    # The merged header is on the far side of its leaf headers; others span both lines.
    outer = span(group, down)[0] < span(leaves[0], down)[0]
    assert outer != part.header_last
    lines = (*span(group, down), *span(leaves[0], down))
    assert span(boxes["header"][1], down) == (min(lines), max(lines))


@pytest.mark.parametrize("align", ["left", "center", "right"])
def test_values_stand_where_the_layout_puts_them(align):
    drawn = render(FLAT, Style(theme("plain"), dataclasses.replace(layout("grid"), align=align)))
    for (r, c), (x0, _, x1, _) in drawn.boxes["cell_text"].items():
        left, _, right, _ = drawn.boxes["cell"][r, c]
        before, behind = x0 - left, right - x1
        if c == 0 or align == "left":
            assert before == 7
        elif align == "right":
            assert behind == 7
        else:
            assert abs(before - behind) <= 1


def test_equal_columns_are_as_wide_as_each_other():
    boxes = render(FLAT, Style(theme("plain"), layout("grid_center"))).boxes["header"]
    assert len({x1 - x0 for x0, _, x1, _ in boxes.values()}) == 1


def test_stripes_follow_the_rows():
    striped = dataclasses.replace(theme("plain"), zebra=(1, 2, 3))
    for part in LAYOUTS:
        drawn = render(FLAT, Style(striped, part))
        for (r, c), (x0, y0, _, _) in drawn.boxes["cell"].items():
            assert (tuple(drawn.image[y0, x0]) == (1, 2, 3)) == (r % 2 == 1 and c > 0)


# --- the picture ---------------------------------------------------------------------------------


def test_drawing_again_gives_the_same_bytes():
    def digest():
        digests = hashlib.sha256()
        for split in tables.SPLITS:
            for found in generate(4, split, 15):
                drawn = render(*found)
                digests.update(drawn.image.tobytes() + repr(drawn.boxes).encode())
        return digests.hexdigest()

    first = digest()
    # What was drawn before is warm; a fresh process would start cold, and must draw the same.
    assert digest() == first
    clear_caches()
    assert digest() == first


def test_nano_pictures_are_all_of_one_small_size():
    for split in ("train", "test_ood"):
        for found in generate(8, split, 400, NANO):
            assert render(*found).image.shape == (112, 168, 3)


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 0.5), (0.3, 1.0)])
def test_sides_and_place_are_the_style_s(place):
    tight = Style(theme("plain"), layout("grid"), margin=5)
    height, width, _ = render(TABLE, tight).image.shape
    style = dataclasses.replace(tight, multiple=28, smallest=(30, height + 1), place=place)
    drawn = render(TABLE, style)
    sides = drawn.image.shape[1::-1]
    least = (max(30, width), height + 1)
    assert sides == tuple(-(-side // 28) * 28 for side in least)
    x0, y0, x1, y1 = drawn.boxes["table"][0]
    assert (x1 - x0, y1 - y0) == (width - 10, height - 10)
    for start, side, used, share in (
        (x0, sides[0], width, place[0]),
        (y0, sides[1], height, place[1]),
    ):
        assert start == 5 + round(share * (side - used))


def test_the_font_is_an_outline_font_that_comes_with_pillow():
    font = ImageFont.load_default(14)
    assert isinstance(font, ImageFont.FreeTypeFont)
    # Raqm shapes text otherwise, and is not in every build.
    assert font.layout_engine == ImageFont.Layout.BASIC
    assert all(has_glyph(chr(code)) for code in range(33, 127))


def test_what_can_not_be_drawn_is_an_error():
    style = Style(theme("plain"), layout("grid"))
    with pytest.raises(ValueError, match=r"font has no '世' \(U\+4E16\)"):
        render(dataclasses.replace(FLAT, header=("世", *FLAT.header[1:])), style)
    with pytest.raises(ValueError, match="paint names marks"):
        render(TABLE, style, {("cell_text", (0, 3)): (0, 0, 0)})
    with pytest.raises(ValueError, match="paint names marks"):
        render(TABLE, style, {("group", 1): (0, 0, 0)})
    for wrong in ({"size": 7}, {"margin": -1}, {"multiple": 0}, {"place": (0.5, 1.5)}):
        with pytest.raises(ValueError):
            dataclasses.replace(style, **wrong)


def test_drawing_is_fast():
    """Over 300 small pictures a second on one core, with new texts in every one."""
    found = generate(9, "train", 300, NANO)
    begin = time.process_time()
    for table, style in found:
        render(table, style)
    assert time.process_time() - begin < 1.0
