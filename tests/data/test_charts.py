"""Charts: their answers recomputed from the record alone, their splits, and real data."""

import collections
import dataclasses
import itertools
import math
import random
import re

import pytest

from vrrl_jax.data import chart_questions, charts
from vrrl_jax.data.chart_questions import GAP, KINDS, NEED_VALUES, Form, Series
from vrrl_jax.data.chart_topics import HELD_OUT, MEASURES, NAMES, SEEN, SERIES_NAMES
from vrrl_jax.data.chart_topics import KINDS as CHARTS
from vrrl_jax.data.charts import NANO, NANO_WORDS, Chart, Settings, example, from_rows, generate
from vrrl_jax.render.chart_styles import THEMES

# Great lakes: area in km2, greatest depth in m, length in km, and a made-up share.
LAKES = (
    ("Lake", "Area", "Depth", "Length", "Share", "Water"),
    [
        ("Caspian Sea", "371,000", 1025, 1199, "34.6%", "salt"),
        ("Superior", "82,100", 406, 563, "7.7%", "fresh"),
        ("Victoria", "68,800", 84, 337, "6.4%", "fresh"),
        ("Huron", "59,600", 229, 331, "5.6%", "fresh"),
        ("Michigan", "58,000", 281, 494, "5.4%", "fresh"),
        ("Tanganyika", "32,900", 1470, 676, "3.1%", "fresh"),
        ("Baikal", "31,500", 1637, 636, "2.9%", "fresh"),
        ("Great Bear", "31,200", 446, 373, "2.9%", "fresh"),
        ("Malawi", "29,600", 706, 579, "2.8%", "fresh"),
        ("Great Slave", "27,200", 614, 480, None, "fresh"),
    ],
)


# --- an independent reading of a chart -----------------------------------------------------------


def written(form, value):
    """A number as text, with other means than the chart's."""
    whole, _, rest = f"{abs(value):.{form.decimals}f}".partition(".")
    if form.commas:
        groups = [whole[::-1][i : i + 3] for i in range(0, len(whole), 3)]
        whole = ",".join(groups)[::-1]
    text = form.prefix + whole + ("." + rest if rest else "") + form.suffix
    return "-" + text if value < 0 and re.search("[1-9]", whole + rest) else text


def right_answers(chart):
    """Every (targets, answer) that the question's text may mean, by trying all questions."""
    found, names = [], chart.categories
    whats = [f"{chart.measure} {s.name}".strip() for s in chart.series]
    for s, series in enumerate(chart.series):
        values = series.values
        for c, name in enumerate(names):
            if chart.question == f"What is the {whats[s]} of {name}?":
                found.append((((s, c),), written(chart.form, values[c])))
            at = [other.values[c] for other in chart.series]
            for most, best in (("highest", max), ("lowest", min)):
                text = f"Which {chart.stub} has the {most} {whats[s]}?"
                if chart.question == text and values[c] == best(values):
                    found.append((((s, c),), name))
                measure = chart.measure or "value"
                text = f"Which series has the {most} {measure} for {name}?"
                if chart.question == text and values[c] == best(at):
                    found.append((((s, c),), series.name))
            for d, other in enumerate(names):
                text = f"What is the difference in {whats[s]} between {name} and {other}?"
                if chart.question == text:
                    apart = abs(values[c] - values[d])
                    found.append((((s, c), (s, d)), written(chart.form, apart)))
    return found


@pytest.mark.parametrize("split", charts.SPLITS)
def test_every_question_has_one_answer_and_it_is_the_chart_s(split):
    kinds = collections.Counter()
    for chart, style in generate(5, split, 250):
        assert right_answers(chart) == [(chart.targets, chart.answer)], chart
        assert style.values or chart.asks not in NEED_VALUES
        kinds[chart.asks] += 1
    asked = KINDS if split != "test_ood" else [k for k in KINDS if not k.endswith("series")]
    assert min(kinds[kind] for kind in asked) >= 10, kinds


def test_what_is_asked_for_leads_by_more_than_the_eye_needs():
    for chart, _ in [*generate(6, "train", 300), *generate(6, "train", 300, NANO)]:
        ((s, c), *_) = chart.targets
        if chart.asks in ("highest", "lowest"):
            rivals = [v for d, v in enumerate(chart.series[s].values) if d != c]
        elif chart.asks.endswith("series"):
            rivals = [other.values[c] for r, other in enumerate(chart.series) if r != s]
        else:
            continue
        top = max(abs(v) for series in chart.series for v in series.values)
        lead = min(abs(chart.series[s].values[c] - rival) for rival in rivals)
        assert lead > GAP * top


def test_short_questions_say_the_same():
    asked = collections.Counter()
    for split in charts.SPLITS:
        for chart, _ in generate(6, split, 120, NANO):
            ((s, c),), values = chart.targets, chart.series[0].values
            assert s == 0 and set(re.findall(r"\w+", chart.question)) <= set(NANO_WORDS)
            if chart.asks == "value":
                assert chart.question == f"{chart.categories[c]}?"
                assert chart.answer == f"{values[c]:.0f}" and re.fullmatch(r"\d\d", chart.answer)
            else:
                best = {"highest?": max, "lowest?": min}[chart.question]
                assert values[c] == best(values) and chart.answer == chart.categories[c]
            asked[chart.asks] += 1
    assert min(asked.values()) > 60 and len(asked) == 3


def test_short_questions_about_several_series():
    options = dataclasses.replace(NANO, kinds=("grouped_bar",), asks=KINDS)
    questions = {kind: set() for kind in KINDS}
    for chart, _ in generate(1, "train", 200, options):
        questions[chart.asks].add(re.sub("[A-F]", "X", chart.question))
    assert questions["value"] == {"1 X?", "2 X?", "3 X?"}
    assert questions["highest"] == {"highest 1?", "highest 2?", "highest 3?"}
    assert questions["lowest_series"] == {"lowest X?"}
    assert "1 X minus X?" in questions["difference"]


def test_a_tie_has_no_extreme():
    rng, series = random.Random(0), (Series("a", (7.0, 7.0, 3.0)), Series("b", (7.0, 1.0, 9.0)))
    names = ("x", "y", "z")

    def ask(kind, gap=0.0, count=1):
        return chart_questions.ask(names, series[:count], rng, kinds=(kind,), gap=gap)

    assert ask("highest") is None
    assert ask("lowest").answer == "z"
    assert ask("lowest", gap=0.6) is None
    assert ask("highest_series") is None  # one series can't be compared with itself
    assert {ask("highest_series", count=2).question for _ in range(50)} == {
        "Which series has the highest value for y?",
        "Which series has the highest value for z?",
    }


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (Form(), 7.0, "7"),
        (Form(commas=True), 1234567.0, "1,234,567"),
        (Form(prefix="$", decimals=2), -0.5, "-$0.50"),
        (Form(suffix="%", decimals=1), -0.04, "0.0%"),
    ],
)
def test_numbers_are_written_in_their_form(form, value, text):
    assert form.write(value) == written(form, value) == text


# --- splits and determinism ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [Settings(), NANO], ids=["all", "nano"])
def test_a_place_in_the_sequence_always_holds_the_same(options):
    for split in charts.SPLITS:
        assert generate(1, split, 12, options)[7] == example(1, split, 7, options)
    others = [example(2, "train", 7), example(1, "train", 8), example(1, "test_id", 7)]
    assert example(1, "train", 7) not in others


@pytest.mark.parametrize(("options", "count"), [(Settings(), 200), (NANO, 500)])
def test_splits_share_no_chart(options, count):
    keys = {split: set() for split in charts.SPLITS}
    for split, seen in keys.items():
        for chart, _ in generate(3, split, count, options):
            assert chart.split == split
            # Whatever the kind, the same names never come with the same heights.
            seen.add((chart.categories, chart.series))
        assert len(seen) > 0.9 * count
    train, test_id, test_ood = keys.values()
    assert not train & test_id and not train & test_ood and not test_id & test_ood


def test_kind_title_and_question_do_not_move_a_chart_to_another_split():
    chart = next(c for c, _ in generate(0, "test_id", 50) if c.kind == "bar")
    across = Series("Far", tuple(range(len(chart.categories))))
    for other in ({"kind": "barh"}, {"title": "x", "question": "Another?"}):
        assert dataclasses.replace(chart, **other).split == "test_id"
    assert dataclasses.replace(chart, kind="scatter", across=across).key == chart.key
    assert dataclasses.replace(chart, stub="Other").key != chart.key


@pytest.mark.parametrize("options", [Settings(), NANO], ids=["all", "nano"])
def test_held_out_kinds_and_themes_come_in_their_split_only(options):
    for split, unseen in (("train", False), ("test_id", False), ("test_ood", True)):
        kinds, worn = set(), set()
        for chart, style in generate(11, split, 200, options):
            kinds.add(chart.kind)
            worn.add(style.theme.name)
        assert kinds == set(HELD_OUT if unseen else SEEN) & set(options.kinds)
        assert kinds == set(charts.kinds_of(split, options.kinds))
        assert worn == {theme.name for theme in THEMES if theme.held_out == unseen}
    assert {"barh", "area", "scatter", "donut", "lollipop"} == set(HELD_OUT)


def test_held_out_themes_differ_by_more_than_their_name():
    assert len({theme.name for theme in THEMES}) == len(THEMES)
    training = [theme for theme in THEMES if not theme.held_out]
    for theme in THEMES:
        if theme.held_out:
            assert theme.page not in {other.page for other in training}
            assert not set(theme.marks) & {mark for other in training for mark in other.marks}


def test_what_settings_say_is_what_comes():
    options = Settings(categories=(4, 5), series=(3, 3), titled=1.0, pictures=((500, 200),))
    for chart, style in generate(2, "train", 200, options):
        assert 4 <= len(chart.categories) <= 5
        assert len(chart.series) == (3 if CHARTS[chart.kind].several else 1)
        assert chart.title == f"{chart.measure or chart.series[0].name} by {chart.stub}"
        assert style.smallest == (500, 200) and style.size in options.sizes
    for chart, style in generate(2, "test_ood", 100, Settings(titled=0.0, values=0.0, bare=0.0)):
        assert chart.title == "" and style.ticks
        assert style.values == (chart.asks in NEED_VALUES)


def test_ordered_names_follow_each_other():
    runs = {names.stub: names.words for names in NAMES if names.ordered}
    seen = set()
    for chart, _ in generate(4, "train", 300):
        if chart.stub in runs:
            start = runs[chart.stub].index(chart.categories[0])
            assert runs[chart.stub][start : start + len(chart.categories)] == chart.categories
            seen.add(chart.kind)
        else:
            assert not CHARTS[chart.kind].ordered
    assert {"line", "multi_line", "bar"} <= seen


def test_topics_are_what_generation_needs():
    for words in [names.words for names in NAMES] + list(SERIES_NAMES):
        assert len(set(words)) == len(words)
    assert all(measure.low < measure.high for measure in MEASURES)


def test_unknown_splits_and_unanswerable_settings_are_errors():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        example(0, "val", 0)
    with pytest.raises(ValueError, match="may be in test_ood"):
        example(0, "test_ood", 0, Settings(kinds=("bar", "pie")))
    with pytest.raises(ValueError, match="no question"):
        example(0, "train", 0, Settings(kinds=("bar",), asks=("highest_series",)))


# --- the record and real data --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "radar"}, "unknown kind"),
        ({"categories": ("A",)}, "two categories"),
        ({"categories": ("A", "A", "B")}, "names of their own"),
        ({"categories": ("A", "", "B")}, "names of their own"),
        ({"series": ()}, "needs one series"),
        ({"series": (Series("s", (1.0, 2.0)),)}, "3 finite numbers"),
        ({"series": (Series("s", (1.0, 2.0, math.nan)),)}, "3 finite numbers"),
        ({"kind": "grouped_bar"}, r"needs 2 .. 8 series"),
        ({"kind": "grouped_bar", "series": (Series("s", (1.0, 2.0, 3.0)),) * 2}, "of their own"),
        ({"kind": "area", "series": (Series("s", (1.0, -2.0, 3.0)),)}, "below zero"),
        ({"kind": "pie", "series": (Series("s", (1.0, 50.0, 50.0)),)}, "under 4%"),
        ({"kind": "scatter"}, "across"),
        ({"across": Series("x", (1.0, 2.0, 3.0))}, "across"),
        ({"targets": ((1, 0),)}, "outside"),
        ({"targets": ()}, "at least one target"),
    ],
)
def test_a_malformed_chart_is_an_error(options, told):
    good = {"kind": "bar", "categories": ("A", "B", "C")}
    good["series"] = (Series("s", (1.0, 2.0, 3.0)),)
    Chart(**good)
    with pytest.raises(ValueError, match=told):
        Chart(**good | options)


def test_questions_about_real_data():
    seen, kinds = set(), set()
    header, rows = LAKES
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    for seed in range(150):
        chart = from_rows(*LAKES, seed=seed, ordered=True)
        assert right_answers(chart) == [(chart.targets, chart.answer)]
        seen.add(chart.asks)
        kinds.add(chart.kind)
        assert len(chart.categories) <= 7
        if chart.kind == "histogram":
            assert sum(chart.series[0].values) in (9, 10)
            continue
        for s, series in enumerate(chart.series):
            for c, name in enumerate(chart.categories):
                assert chart.text(s, c) == str(cells[name][series.name])
    assert seen == set(KINDS)
    # Only few excerpts have no part under 4% of the tallest stack.
    assert kinds >= set(CHARTS) - {"stacked_bar"}
    assert from_rows(*LAKES, seed=3) == from_rows(*LAKES, seed=3)


def test_excerpts_of_real_data_keep_their_order():
    names = [row[0] for row in LAKES[1]]
    for seed, kind in itertools.product(range(20), ("bar", "line")):
        chart = from_rows(*LAKES, seed=seed, kinds=(kind,), ordered=True, most_rows=4)
        places = [names.index(name) for name in chart.categories]
        assert len(places) == 4 and places == sorted(places)
        if kind == "line":
            assert places[-1] - places[0] == 3
    with pytest.raises(ValueError, match="shows these rows"):
        from_rows(*LAKES, kinds=("line",))


def test_a_histogram_counts_rows():
    rows = [(f"n{n}", value) for n, value in enumerate((3, 4, 9, 10, 11, 18, 19, 20, 39))]
    chart = from_rows(("Name", "Age"), rows, kinds=("histogram",), most_rows=4)
    assert chart.categories == ("0-10", "10-20", "20-30", "30-40") and chart.stub == "Age"
    assert chart.series == (Series("Count", (3.0, 4.0, 1.0, 1.0)),)


def test_odd_values_of_real_data():
    header = ("Name", "Much\nspace", "Long")
    rows = [
        ("a", 0.1 + 0.2, "x" * 40),
        ("a", 1.0, "y"),
        ("b", None, "y"),
        ("a rather long name", 0.25, "z"),
        ("c", 2 / 3, "z"),
        (" d ", "-", "z"),
        ("e", math.nan, "z"),
    ]
    chart = from_rows(header, rows, 0, longest=10, kinds=("bar",))
    assert chart.categories == ("a rathe...", "c"), "names of their own, and a number"
    assert chart.series == (Series("Much space", (0.25, 0.6667)),)
    with pytest.raises(ValueError, match="shows these rows"):
        from_rows(("A", "B"), [("x", "1"), ("y", "many")])
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        from_rows(("A", "B"), [("x", 1), ("y",)])


def test_columns_in_two_units_share_no_chart():
    header, rows = ("A", "Cost", "Share"), [("x", "$5", "4%"), ("y", "$7", "9%"), ("z", "$9", "1%")]
    for seed in range(20):
        assert len(from_rows(header, rows, seed).series) == 1
    chart = from_rows(header, rows, 1, kinds=("bar",), asks=("value",))
    assert chart.answer[0] == "$" or chart.answer[-1] == "%"
