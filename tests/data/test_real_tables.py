"""Tables of real data: which rows are whose, and what is cut from them."""

import csv
import importlib.util
import itertools
import re
import sys

import pytest

from vrrl_jax.data import real_files, real_parts, real_tables, tables
from vrrl_jax.data.real_files import Source
from vrrl_jax.render import charts as chart_pictures
from vrrl_jax.render import tables as table_pictures

MAKERS = {"tables": real_tables.table_example, "charts": real_tables.chart_example}
PICTURES = {"tables": table_pictures, "charts": chart_pictures}


def towns(count=300, first=0):
    """Rows of a town, its county, people, area and rain; every number tells its row."""
    return [
        (f"Town {i}", f"County {i % 7}", str(1000 + 37 * i), f"{i / 4 + 1:.2f}", str(300 + i % 90))
        for i in range(first, first + count)
    ]


HEADER = ("town", "county", "people", "area_km2", "rain")


def write_csv(path, rows, header=HEADER):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def corpus(path, held_out=()):
    return real_parts.corpus(real_files.load(path).sources, held_out)


# --- columns -------------------------------------------------------------------------------------


def test_columns_are_told_apart_by_what_they_hold():
    header = ("id", "name", "year", "born", "share", "mixed", "empty", "sales")
    rows = tuple(
        (
            str(i),
            f"n{i}",
            str(2000 + i),
            f"19{50 - i}-0{i + 1}-11",
            f"{i}%",
            "ab1"[i % 3],
            "",
            f"${i}",
        )
        for i in range(9)
    )
    found = real_parts.columns(Source("x", header, rows))
    titles = lambda places: [header[c] for c in places]
    assert titles(found.names) == ["name", "year", "born"]
    assert titles(sorted(found.moments)) == ["year", "born"]
    assert titles(found.numbers) == ["share", "sales"]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("1999", "2000"),
        ("2001-09", "2001-10"),
        ("2010/01/01 09:00", "2010/01/01 10:00:30"),
        ("Dec 1 2000", "January 2, 2001"),
    ],
)
def test_moments_follow_each_other(earlier, later):
    assert real_parts.moment(earlier) < real_parts.moment(later)


def test_other_texts_are_no_moments():
    assert [real_parts.moment(text) for text in ("", "12", "Foo 1 2000", "2000s", "1.5")] == [
        None
    ] * 5


# --- windows and examples ------------------------------------------------------------------------


def number(text):
    return float(text.strip("$%").replace(",", ""))


def answers_of(table):
    """Every answer that the question may mean, by trying all cells."""
    names, found = table.header, set()
    for (r, row), (c, title) in itertools.product(enumerate(table.rows, 1), enumerate(names)):
        if table.question == f"What is the {title} of {row[0]}?":
            found.add(row[c])
        if table.question == f"What is in row {r} and column {c} of the values?":
            found.add(row[c])
    for (c, title), (most, best) in itertools.product(
        enumerate(names), (("highest", max), ("lowest", min))
    ):
        try:
            top = best((row for row in table.rows if row[c]), key=lambda row: number(row[c]))
        except ValueError:
            continue
        forms = {f"Which {names[0]} has the {most} {title}?": 0}
        forms[f"What is the {most} value in {title}?"] = c
        for o, other in enumerate(names):
            forms[f"What is the {other} of the {names[0]} with the {most} {title}?"] = o
        found |= {top[o] for question, o in forms.items() if question == table.question}
        told = re.fullmatch(
            rf"How many rows have a {re.escape(title)} above (.+)\?", table.question
        )
        if told:
            values = [number(row[c]) for row in table.rows if row[c]]
            found.add(str(sum(value > number(told[1]) for value in values)))
    return found


def test_tables_show_the_file_s_cells_and_ask_what_they_answer(tmp_path):
    rows = [list(row) for row in towns()]
    for i in range(0, 300, 5):
        rows[i][4] = "NA"
    path = write_csv(tmp_path / "towns.csv", rows)
    made = corpus(path)
    titles = [title.replace("_", " ") for title in HEADER]
    by_name = {row[0]: dict(zip(titles, row, strict=True)) for row in rows}
    widths, missing = set(), 0
    for split, i in itertools.product(tables.SPLITS, range(30)):
        table = real_tables.table_example(made, 0, split, i).table
        assert table.header[0] == "town" and 3 <= len(table.rows) <= 8
        for row in table.rows:
            for title, cell in zip(table.header, row, strict=True):
                assert cell == by_name[row[0]][title].replace("NA", "")
                missing += cell == ""
        assert answers_of(table) == {table.answer}, table
        assert titles.index(table.header[1]) == min(titles.index(t) for t in table.header[1:])
        widths.add(len(table.header))
    assert widths == {3, 4, 5}
    assert missing > 10


def test_charts_show_the_file_s_numbers(tmp_path):
    rows = towns()
    made = corpus(write_csv(tmp_path / "towns.csv", rows))
    titles = [title.replace("_", " ") for title in HEADER]
    by_name = {row[0]: dict(zip(titles, row, strict=True)) for row in rows}
    kinds = set()
    for split, i in itertools.product(tables.SPLITS, range(30)):
        chart = real_tables.chart_example(made, 0, split, i).chart
        kinds.add(chart.kind)
        if chart.kind == "histogram":
            continue
        assert 3 <= len(chart.categories) <= 7
        for series in chart.series:
            for name, value in zip(chart.categories, series.values, strict=True):
                exact = float(by_name[name][series.name])
                assert abs(value - exact) <= 0.5 * 10**-chart.form.decimals
        if chart.asks == "value":
            ((s, c),) = chart.targets
            assert number(chart.answer) == chart.series[s].values[c]
    assert {"bar", "barh", "scatter", "histogram"} <= kinds and not kinds & {"line", "area"}


@pytest.mark.parametrize("task", MAKERS)
def test_a_place_in_the_sequence_always_holds_the_same(tmp_path, task):
    path, make = write_csv(tmp_path / "towns.csv", towns()), MAKERS[task]
    made = make(corpus(path), 1, "train", 7)
    assert made == make(corpus(path), 1, "train", 7)
    others = [(2, "train", 7), (1, "train", 8), (1, "test_id", 7)]
    assert made not in [make(corpus(path), *place) for place in others]


def names_shown(example):
    shown = example[0]
    if hasattr(shown, "rows"):
        return {row[0] for row in shown.rows}
    return set() if shown.kind == "histogram" else set(shown.categories)


@pytest.mark.parametrize("task", MAKERS)
def test_splits_share_no_row_and_no_window(tmp_path, task):
    made = corpus(write_csv(tmp_path / "towns.csv", towns()))
    names, keys = {}, {}
    for split in tables.SPLITS:
        examples = [MAKERS[task](made, 0, split, i) for i in range(50)]
        assert all(shown.split == split for shown, _ in examples)
        assert all(style.theme.held_out == (split == "test_ood") for _, style in examples)
        names[split] = set().union(*map(names_shown, examples))
        keys[split] = {shown.key for shown, _ in examples}
    for a, b in itertools.combinations(tables.SPLITS, 2):
        assert not names[a] & names[b] and not keys[a] & keys[b]
    assert len(names["train"]) > 2 * len(names["test_id"]) > 40


def test_short_files_go_to_one_split_each_or_are_shared(tmp_path):
    for i in range(40):
        write_csv(tmp_path / f"f{i:02}.csv", towns(8, 100 * i))
    made = corpus(tmp_path)
    sources = {split: {table.source.name for table in made.of[split]} for split in tables.SPLITS}
    assert sum(map(len, sources.values())) == len(set().union(*sources.values())) == 40
    assert not made.notes
    alone = corpus(tmp_path / "f00.csv")
    assert "which splits share: f00.csv" in alone.notes[-1]
    keys = {
        split: {real_tables.table_example(alone, 0, split, i).table.key for i in range(40)}
        for split in tables.SPLITS
    }
    assert not any(keys[a] & keys[b] for a, b in itertools.combinations(keys, 2))


def test_whole_files_can_be_held_out(tmp_path):
    write_csv(tmp_path / "a.csv", towns())
    write_csv(tmp_path / "b.csv", towns(30, 1000))
    made = corpus(tmp_path, ["b.csv"])
    for split, i in itertools.product(tables.SPLITS, range(30)):
        shown = names_shown(real_tables.table_example(made, 0, split, i))
        assert all((int(name.split()[1]) >= 1000) == (split == "test_ood") for name in shown)
    with pytest.raises(ValueError, match=r"not there: \['c.csv'\]; known: a.csv, b.csv"):
        corpus(tmp_path, ["c.csv"])
    with pytest.raises(ValueError, match="no table is left for train"):
        corpus(tmp_path, ["a.csv", "b.csv"])


def test_names_that_come_back_are_told_apart_by_holding_the_rest(tmp_path):
    rows = [
        (f"{year}", plant, site, f"{10 * p + s + (year - 1900) / 100:.2f}")
        for year in range(1931, 1961)
        for p, plant in enumerate(("Oats", "Rye", "Wheat", "Barley"))
        for s, site in enumerate(("Hill", "Dale", "Fen"))
    ]
    made = corpus(write_csv(tmp_path / "long.csv", rows, ("year", "plant", "site", "yield")))
    stubs, told = set(), 0
    for i in range(40):
        table = real_tables.table_example(made, 0, "train", i).table
        stubs.add(table.header[0])
        c = table.header.index("yield")
        place = {"year": 0, "plant": 1, "site": 2}[table.header[0]]
        found = [
            {r[:3] for r in rows if r[place] == row[0] and r[3] == row[c]} for row in table.rows
        ]
        assert all(len(f) == 1 for f in found), "every yield is of one row"
        others = [{next(iter(f))[o] for f in found} for o in range(3) if o != place]
        assert all(len(values) == 1 for values in others)
        chart, _ = real_tables.chart_example(made, 0, "train", i)
        told += (
            chart.kind != "histogram"
            and re.fullmatch(r"yield by \w+, \w+, \w+", chart.title) is not None
        )
    assert {"plant", "site"} <= stubs
    assert told > 5


def test_dates_stay_together_and_may_be_lines(tmp_path):
    rows = [(f"2020-{1 + i // 28:02}-{1 + i % 28:02}", str(50 + i * i % 31)) for i in range(300)]
    made = corpus(write_csv(tmp_path / "days.csv", rows, ("day", "sales")))
    days = [row[0] for row in rows]
    kinds = set()
    for split, i in itertools.product(tables.SPLITS, range(25)):
        places = [
            days.index(row[0]) for row in real_tables.table_example(made, 0, split, i).table.rows
        ]
        assert places == list(range(places[0], places[0] + len(places)))
        chart = real_tables.chart_example(made, 0, split, i).chart
        kinds.add(chart.kind)
        if chart.kind in ("line", "area"):
            places = [days.index(name) for name in chart.categories]
            assert places == list(range(places[0], places[0] + len(places)))
    assert {"line", "area", "bar"} <= kinds


def test_what_the_font_lacks_and_what_is_too_long_is_left_out(tmp_path):
    rows = [list(row) for row in towns(200)]
    for row in rows[::2]:
        row[0] = row[0] + (" 中" if len(row[0]) % 2 else " " + "long" * 6)
    made = corpus(write_csv(tmp_path / "towns.csv", rows))
    kept = {row[0] for row in rows[1::2]}
    for i in range(30):
        for task, make in MAKERS.items():
            example = make(made, 0, "train", i)
            assert names_shown(example) <= kept
            PICTURES[task].render(*example)


def test_tables_that_give_nothing_are_an_error(tmp_path):
    words = Source("words", ("a", "b"), tuple((f"x{i}", f"y{i}") for i in range(9)))
    with pytest.raises(ValueError, match="no table has names and numbers: words"):
        real_parts.corpus([words])
    again = Source("again", ("a", "n"), tuple(("xy"[i % 2], str(i * i)) for i in range(40)))
    with pytest.raises(ValueError, match=r"1,000 windows in a row gave no example of train: again"):
        real_tables.table_example(real_parts.corpus([again]), 0, "train", 0)
    towns_ = Source("towns", HEADER, tuple(towns(50)))
    with pytest.raises(ValueError, match="unknown split 'val'"):
        real_tables.table_example(real_parts.corpus([towns_]), 0, "val", 0)


# --- the package ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vega():
    if importlib.util.find_spec("vega_datasets") is None:
        pytest.skip("vega_datasets isn't installed")
    before = set(sys.modules)
    loaded = real_files.load("vega")
    assert not {"vega_datasets", "pandas"} & (set(sys.modules) - before)
    return real_parts.corpus(loaded.sources)


@pytest.mark.parametrize("task", MAKERS)
def test_public_tables_give_examples_of_every_split(vega, task):
    shown = set()
    for split, i in itertools.product(tables.SPLITS, range(12)):
        example = MAKERS[task](vega, 0, split, i)
        assert example[0].split == split
        drawn = PICTURES[task].render(*example)
        assert PICTURES[task].target_boxes(example[0], drawn)
        assert drawn.image.shape[1] < 1400
        if task == "tables":
            assert answers_of(example.table) == {example.table.answer}
            shown.add(example.table.header[0])
    if task == "tables":
        assert len(shown) >= 4, shown


def test_json_numbers_stand_as_the_file_writes_them(vega):
    cars = next(t.source for t in vega.of["train"] if t.source.name == "cars")
    assert "17.5" in {row[cars.header.index("Acceleration")] for row in cars.rows}
    assert "la-riots" not in {t.source.name for split in vega.of for t in vega.of[split]}
