"""Pictures of charts: every box is found again by its pixels, and marks stand where numbers say."""

import dataclasses
import hashlib
import itertools
import random
import re

import numpy as np
import pytest

from vrrl_jax.data import charts
from vrrl_jax.data.chart_questions import Form, Series
from vrrl_jax.data.chart_topics import KINDS
from vrrl_jax.data.charts import NANO, Chart, Settings, draw_style, generate
from vrrl_jax.render import chart_axes
from vrrl_jax.render.chart_styles import COLOURS, THEMES, Style, theme
from vrrl_jax.render.charts import others, render, target_boxes, target_points
from vrrl_jax.render.tables import clear_caches

MAGENTA = (255, 0, 255)
NAMES = ("Aston", "Quay", "Ilk", "Jug (b)")
HEIGHTS = (30.0, 95.0, 52.0, 71.0)
FORMS = (Form(), Form(prefix="$"), Form(suffix="%", decimals=1))


def chart_of(kind, form=FORMS[0], negative=False):
    """A chart of a kind, with numbers so far apart that no mark hides another."""
    heights = (-40.0, *HEIGHTS[1:]) if negative and KINDS[kind].signed else HEIGHTS
    series = [Series("Cost", heights)]
    if KINDS[kind].several:
        series = [Series("Mon", heights), Series("Tue", (62.0, 40.0, 81.0, 24.0))]
        series.append(Series("Wed", (93.0, 64.0, 25.0, 48.0)))
    across = Series("Height", (5.0, 40.0, 90.0, 66.0)) if kind == "scatter" else None
    return Chart(kind, NAMES, tuple(series), "A title", "Town", form=form, across=across)


def styles_of(number):
    """Two styles, together with every choice in them as the number goes on."""
    legend = ("right", "top", "bottom")[number % 3]
    frame = ("axes", "box", "base")[number // 2 % 3]
    look, size = THEMES[number % len(THEMES)], 10 + number % 5
    first = Style(look, size, smallest=(200, 160), legend=legend, frame=frame)
    other = THEMES[(number + 5) % len(THEMES)]
    marker = ("disc", "square", "diamond")[number % 3]
    return first, dataclasses.replace(
        first, theme=other, direct=False, grid=False, names=True, varied=True, marker=marker
    )


def bounds(changed):
    """The half-open box of what is set in bool [H, W]."""
    ys, xs = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def overlap(one, other):
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, wide) * max(0, high)


def marks_of(drawn):
    return [(kind, key) for kind, found in drawn.boxes.items() for key in found]


# --- exact boxes and points ----------------------------------------------------------------------


@pytest.mark.parametrize("negative", [False, True], ids=["", "below"])
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_where_repainting_a_mark_changes_pixels(kind, negative):
    number = list(KINDS).index(kind)
    chart = chart_of(kind, FORMS[number % 3], negative)
    for style in styles_of(number):
        plain = render(chart, style)
        for mark in marks_of(plain):
            other = render(chart, style, {mark: MAGENTA})
            assert other.boxes == plain.boxes and other.points == plain.points
            found = bounds((other.image != plain.image).any(-1))
            box = plain.boxes[mark[0]][mark[1]]
            assert np.abs(np.subtract(found, box)).max() <= 1, (mark, found, box)


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_on_their_marks(kind):
    chart = chart_of(kind)
    style = dataclasses.replace(styles_of(list(KINDS).index(kind))[0], values=False)
    plain = render(chart, style)
    assert set(plain.points["mark"]) == set(plain.boxes["mark"])
    for key, (x, y) in plain.points["mark"].items():
        painted = render(chart, style, {("mark", key): MAGENTA}).image
        assert tuple(painted[int(y), int(x)]) == MAGENTA
        x0, y0, x1, y1 = plain.boxes["mark"][key]
        assert x0 < x < x1 and y0 < y < y1
        if kind not in ("pie", "donut"):
            assert (x, y) == ((x0 + x1) / 2, (y0 + y1) / 2)


def test_all_that_a_style_shows_has_a_box():
    for kind, style in itertools.product(KINDS, styles_of(1)):
        chart = chart_of(kind)
        boxes = render(chart, style).boxes
        keys = {(s, c) for s in range(len(chart.series)) for c in range(len(NAMES))}
        assert set(boxes["mark"]) == set(boxes["value_text"]) == keys
        assert set(boxes["title"]) == set(boxes["plot"]) == {0}
        # Every category is named at the axis or the mark, or else by the legend.
        named = set(boxes.get("category_text", boxes.get("legend_text")))
        assert named == set(range(len(NAMES)))
        if KINDS[kind].several:
            assert set(boxes["legend"]) == set(boxes["legend_text"]) == {0, 1, 2}
        if kind in ("pie", "donut"):
            assert "tick_text" not in boxes
        else:
            assert ("axis_text" in boxes) == style.names and len(boxes["tick_text"]) >= 2
    bare = dataclasses.replace(styles_of(1)[0], values=False, ticks=False)
    boxes = render(dataclasses.replace(chart_of("bar"), title=""), bare).boxes
    assert set(boxes) == {"mark", "plot", "category_text"}


# --- marks tell the numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("negative", [False, True], ids=["", "below"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("pie", "donut")])
def test_ends_of_marks_are_level_with_their_numbers(kind, negative, monkeypatch):
    """Read off as people do: between the texts of the ticks, which are noted as they are drawn."""
    written = {}
    real = chart_axes.write

    def noting(sheet, what, key, text, at, ink):
        written[what, key] = text
        real(sheet, what, key, text, at, ink)

    monkeypatch.setattr(chart_axes, "write", noting)
    chart = chart_of(kind, negative=negative)
    drawn = render(chart, Style(theme("plain"), smallest=(420, 380)))
    texts = {id(chart_axes.words(Style(theme("plain")), str(n))): n for n in range(-500, 501)}
    axis, side = ("x", 0) if kind == "barh" else ("y", 1)
    ticks = [
        (texts[id(written["tick_text", key])], (box[side] + box[side + 2]) / 2)
        for key, box in drawn.boxes["tick_text"].items()
        if key[0] == axis
    ]
    (low, at_low), (high, at_high) = min(ticks), max(ticks)
    per_pixel = (high - low) / (at_high - at_low)
    for (s, c), box in drawn.boxes["mark"].items():
        value = chart.series[s].values[c]
        if kind == "stacked_bar":
            value = sum(chart.series[t].values[c] for t in range(s + 1))
        if kind == "barh":
            end = box[2] if value >= 0 else box[0]
        elif kind in ("bar", "grouped_bar", "histogram", "stacked_bar"):
            end = box[1] if value >= 0 else box[3]
        else:
            end = drawn.points["mark"][s, c][1]
        read = low + (end - at_low) * per_pixel
        assert abs(read - value) <= 2.5 * abs(per_pixel), (s, c, read, value)


@pytest.mark.parametrize("kind", ["pie", "donut"])
def test_sectors_are_as_large_as_their_numbers(kind):
    chart, style = chart_of(kind), Style(theme("plain"), values=False, turn=0.3)
    plain, sizes = render(chart, style), []
    for c in range(len(NAMES)):
        painted = render(chart, style, {("mark", (0, c)): MAGENTA})
        sizes.append((painted.image != plain.image).any(-1).sum())
    assert np.array(sizes) / sum(sizes) == pytest.approx(np.array(HEIGHTS) / sum(HEIGHTS), abs=3e-3)


def test_parts_of_stacks_and_sides_of_groups_line_up():
    stacked = render(chart_of("stacked_bar"), Style(theme("plain"))).boxes["mark"]
    grouped = render(chart_of("grouped_bar"), Style(theme("plain"))).boxes["mark"]
    for c in range(len(NAMES)):
        for s in (1, 2):
            assert stacked[s, c][3] == stacked[s - 1, c][1] and stacked[s, c][0] == stacked[0, c][0]
            assert grouped[s, c][0] == grouped[s - 1, c][2] and grouped[s, c][3] == grouped[0, c][3]


def test_a_scatter_s_points_stand_where_both_numbers_say():
    chart = chart_of("scatter")
    points = render(chart, Style(theme("plain"))).points["mark"]
    for side, numbers in ((0, chart.across.values), (1, HEIGHTS)):
        at = [points[0, c][side] for c in range(len(NAMES))]
        slope, start = np.polyfit(numbers, at, 1)
        assert np.abs(slope * np.array(numbers) + start - at).max() <= 1
        assert (slope > 0) == (side == 0)


def test_colours_tell_what_the_legend_says():
    style = Style(theme("plain"), values=False, direct=False)
    for kind in ("grouped_bar", "stacked_bar", "multi_line", "pie", "donut", "scatter"):
        drawn = render(chart_of(kind), style)
        for key, (x0, y0, x1, y1) in drawn.boxes["legend"].items():
            sample = drawn.image[(y0 + y1) // 2, (x0 + x1) // 2]
            for (s, c), (x, y) in drawn.points["mark"].items():
                same = (drawn.image[int(y), int(x)] == sample).all()
                assert same == (key == (s if KINDS[kind].several else c))


# --- the picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [Settings(), NANO], ids=["all", "nano"])
def test_texts_stay_inside_and_apart(options):
    for split in charts.SPLITS:
        for chart, style in generate(12, split, 60, options):
            drawn = render(chart, style)
            height, width, _ = drawn.image.shape
            for kind, found in drawn.boxes.items():
                for x0, y0, x1, y1 in found.values():
                    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height, kind
            kinds = ["category_text", "tick_text", "axis_text", "legend_text", "title"]
            # Beside lines and scattered points numbers find what room there is.
            if options is NANO or chart.kind not in ("multi_line", "scatter"):
                kinds.append("value_text")
            texts = [box for kind in kinds for box in drawn.boxes.get(kind, {}).values()]
            for one, other in itertools.combinations(texts, 2):
                if chart.kind == "scatter" and options is not NANO:
                    continue
                assert not overlap(one, other), (chart, style)


def test_nano_pictures_are_all_of_one_small_size():
    for split in charts.SPLITS:
        for found in generate(8, split, 200, NANO):
            assert render(*found).image.shape == (112, 140, 3)


def test_pictures_grow_by_multiples_and_only_where_they_must():
    chart = chart_of("bar")
    for smallest in ((300, 200), (20, 20)):
        style = Style(theme("plain"), smallest=smallest)
        height, width, _ = render(chart, style).image.shape
        rounded = render(chart, dataclasses.replace(style, multiple=28)).image.shape
        assert rounded == (-(-height // 28) * 28, -(-width // 28) * 28, 3)
        assert ((width, height) == smallest) == (smallest[0] == 300)


def test_targets_and_others_are_all_marks():
    for chart, style in generate(3, "train", 20):
        drawn = render(chart, style)
        assert target_boxes(chart, drawn) == tuple(drawn.boxes["mark"][t] for t in chart.targets)
        assert target_points(chart, drawn) == tuple(drawn.points["mark"][t] for t in chart.targets)
        boxes = sorted((*target_boxes(chart, drawn), *others(chart, drawn)))
        assert boxes == sorted(drawn.boxes["mark"].values())


def test_drawing_again_gives_the_same_bytes():
    def digest():
        digests = hashlib.sha256()
        for split, options in itertools.product(charts.SPLITS, (NANO, Settings())):
            for found in generate(4, split, 6, options):
                drawn = render(*found)
                digests.update(drawn.image.tobytes() + repr(drawn).encode())
        return digests.hexdigest()

    first = digest()
    assert digest() == first
    clear_caches()
    assert digest() == first


def test_real_data_are_drawn():
    rows = [(f"Long name {n}", n * n * 1000.5, n % 3, -n) for n in range(1, 30)]
    rng = random.Random(0)
    for seed in range(40):
        chart = charts.from_rows(
            ("Some name", "Squares", "Rest", "Below"), rows, seed, ordered=True
        )
        drawn = render(chart, draw_style(rng, "train", chart=chart))
        assert len(drawn.boxes["mark"]) == len(chart.series) * len(chart.categories)


def test_what_can_not_be_drawn_is_an_error():
    style = Style(theme("plain"))
    with pytest.raises(ValueError, match=re.escape("font has no '世' (U+4E16)")):
        render(dataclasses.replace(chart_of("bar"), title="世"), style)
    for mark in (("mark", (1, 0)), ("legend", 0), ("tick_text", ("y", 99))):
        with pytest.raises(ValueError, match="paint names marks"):
            render(chart_of("line"), style, {mark: MAGENTA})
    for wrong in ({"size": 7}, {"margin": -1}, {"multiple": 0}, {"share": 0}, {"turn": 1.5}):
        with pytest.raises(ValueError):
            dataclasses.replace(style, **wrong)
    with pytest.raises(ValueError, match=f"needs {COLOURS} colours"):
        dataclasses.replace(theme("plain"), marks=((0, 0, 0),) * COLOURS)
