"""Tables: their answers recomputed from the record alone, their splits, and real data."""

import collections
import dataclasses
import decimal
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrrl_jax.data import table_questions, tables
from vrrl_jax.data.table_questions import KINDS, Group, read_number
from vrrl_jax.data.table_topics import FORMATS, MISSING, TOPICS, Measure
from vrrl_jax.data.tables import NANO, Settings, Table, example, from_rows, generate
from vrrl_jax.render.table_styles import LAYOUTS, THEMES

GROUPED = Settings(grouped=1.0, columns=(3, 5))
SPARSE = Settings(sparse=1.0)
# NASA's planetary fact sheet: diameter in km, density in kg/m3, mean temperature in C, moons.
PLANETS = (
    ("Planet", "Diameter", "Density", "Temp.", "Moons", "Rings"),
    [
        ("Mercury", 4879, 5429, 167, 0, "No"),
        ("Venus", 12104, 5243, 464, 0, "No"),
        ("Earth", 12756, 5514, 15, 1, "No"),
        ("Mars", 6792, 3934, -65, 2, "No"),
        ("Jupiter", 142984, 1326, -110, 95, "Yes"),
        ("Saturn", 120536, 687, -140, 146, "Yes"),
        ("Uranus", 51118, 1270, -195, 28, "Yes"),
        ("Neptune", 49528, 1638, -200, 16, "Yes"),
    ],
)


# --- an independent reading of a table -----------------------------------------------------------


def value_of(text):
    """A number by brute force: the sign, and all digits around the last point."""
    digits = re.sub(r"[^0-9.]", "", text)
    if text in MISSING or not digits or re.search("[A-Za-z]", text):
        return None
    return decimal.Decimal(digits) * (-1 if "(" in text or "-" in text else 1)


def names_of(table):
    """What each column may be called."""
    names = list(table.header)
    for text, start, stop in table.groups:
        for c in range(start, stop):
            names[c] = f"{text} {table.header[c]}"
    return names


def right_answers(table):
    """Every (targets, answer) that the question's text may mean, by trying all questions."""
    names, rows, found = names_of(table), table.rows, []
    columns = range(1, len(names))
    values = {c: {r: value_of(row[c]) for r, row in enumerate(rows)} for c in columns}
    for c in columns:
        for row, cells in enumerate(rows):
            if table.question == f"What is the {names[c]} of {cells[0]}?":
                found.append((((row, c),), cells[c]))
            if table.question == f"What is in row {row + 1} and column {c} of the values?":
                found.append((((row, c),), cells[c]))
        known = {r: value for r, value in values[c].items() if value is not None}
        for most, best in (("highest", max), ("lowest", min)):
            if not known:
                continue
            top = best(known.values())
            for r in [r for r in known if known[r] == top]:
                if table.question == f"What is the {most} value in {names[c]}?":
                    found.append((((r, c),), rows[r][c]))
                if table.question == f"Which {names[0]} has the {most} {names[c]}?":
                    found.append((((r, 0),), rows[r][0]))
                for o in columns:
                    told = f"What is the {names[o]} of the {names[0]} with the {most} {names[c]}?"
                    if table.question == told:
                        found.append((((r, o),), rows[r][o]))
        for text in {row[c] for row in rows}:
            if table.question == f"How many rows have a {names[c]} above {text}?":
                cells = tuple((r, c) for r in known if known[r] > value_of(text))
                found.append((cells, str(len(cells))))
    return found


@pytest.mark.parametrize("options", [Settings(), GROUPED, SPARSE], ids=["all", "grouped", "sparse"])
def test_every_question_has_one_answer_and_it_is_the_table_s(options):
    kinds = collections.Counter()
    for table, _ in generate(5, "train", 400, options):
        assert right_answers(table) == [(table.targets, table.answer)], table
        kinds[table.kind] += 1
        assert table.answer not in MISSING
    assert min(kinds[kind] for kind in KINDS) >= 10, kinds


def test_short_questions_say_the_same():
    kinds = ("lookup", "which_highest", "which_lowest", "place")
    for table, _ in generate(6, "train", 200, dataclasses.replace(NANO, kinds=kinds)):
        ((r, c),) = table.targets
        if table.kind == "place":
            assert table.question == f"row {r + 1} column {c}?"
            assert table.answer == table.rows[r][c]
        elif table.kind == "lookup":
            assert table.question == f"{table.header[c]} of {table.rows[r][0]}?"
            assert table.answer == table.rows[r][c]
        else:
            most, column, _ = re.fullmatch(r"(\w+) (\w+): (\w+)\?", table.question).groups()
            values = [int(row[table.header.index(column)]) for row in table.rows]
            best = max(values) if most == "highest" else min(values)
            assert values.count(best) == 1
            assert table.targets == ((values.index(best), 0),)
            assert table.answer == table.rows[values.index(best)][0]


def test_a_tie_has_no_extreme():
    rows = (("a", "7"), ("b", "7.0"), ("c", "3"))
    header = ("Name", "Age")
    rng = random.Random(0)
    for kind in ("highest", "which_highest"):
        assert table_questions.ask(header, rows, (), rng, (kind,)) is None
    assert table_questions.ask(header, rows, (), rng, ("which_lowest",)).answer == "c"
    assert table_questions.ask(header, rows, (), rng, ("count",)).answer == "2"


# --- splits and determinism ----------------------------------------------------------------------


def test_a_place_in_the_sequence_always_holds_the_same():
    assert generate(1, "train", 20)[7] == example(1, "train", 7)
    others = [example(2, "train", 7), example(1, "train", 8), example(1, "test_id", 7)]
    assert example(1, "train", 7) not in others


@pytest.mark.parametrize(("options", "count"), [(Settings(), 400), (NANO, 1000)])
def test_splits_share_no_table(options, count):
    keys = {split: set() for split in tables.SPLITS}
    for split, seen in keys.items():
        for table, _ in generate(3, split, count, options):
            assert table.split == split
            seen.add((table.header, table.rows, table.groups))
        assert len(seen) > 0.9 * count
    train, test_id, test_ood = keys.values()
    assert not train & test_id and not train & test_ood and not test_id & test_ood


def test_the_question_does_not_move_a_table_to_another_split():
    table = example(0, "test_id", 0).table
    other = Table(table.header, table.rows, table.groups, "Another?", "lookup", ((0, 0),), "x")
    assert other.key == table.key
    assert other.split == "test_id"


@pytest.mark.parametrize("settings", [NANO, dataclasses.replace(NANO, layouts=())])
def test_no_training_example_wears_a_held_out_theme_or_layout(settings):
    held_out = {True: set(), False: set()}
    for part in (*THEMES, *LAYOUTS):
        held_out[part.held_out].add(part.name)
    # Settings may name the layouts of training, never those that are held out.
    some = set(settings.layouts) or {part.name for part in LAYOUTS if not part.held_out}
    held_out[False] -= {part.name for part in LAYOUTS} - some
    for split, unseen in (("train", False), ("test_id", False), ("test_ood", True)):
        worn = collections.Counter()
        for _, style in generate(11, split, 2500 if split == "train" else 400, settings):
            worn.update([style.theme.name, style.layout.name])
            assert style.theme.held_out == style.layout.held_out == unseen
        assert set(worn) == held_out[unseen], "all of them are drawn, and no other"


def test_held_out_parts_differ_by_more_than_their_name():
    for parts in (THEMES, LAYOUTS):
        assert len({part.name for part in parts}) == len(parts)
    ways = ("transposed", "header_last", "stub_last")
    turned = {part.name for part in LAYOUTS if any(getattr(part, way) for way in ways)}
    assert turned and turned <= {part.name for part in LAYOUTS if part.held_out}
    training = [part for part in THEMES if not part.held_out]
    for theme in THEMES:
        if theme.held_out:
            pages = {part.page for part in training}
            inks = {(part.header, part.header_ink) for part in training}
            assert theme.page not in pages and (theme.header, theme.header_ink) not in inks


def test_what_settings_say_is_what_comes():
    for table, style in generate(2, "train", 200, GROUPED):
        assert table.groups and 3 <= len(table.header) - 1 <= 5 and 3 <= len(table.rows) <= 8
        assert style.size in GROUPED.sizes
    shares = []
    for table, _ in generate(2, "train", 200, SPARSE):
        cells = [text for row in table.rows for text in row[1:]]
        shares.append(sum(text in MISSING for text in cells) / len(cells))
        assert all(row[0] not in MISSING for row in table.rows)
    assert 0.2 < sum(shares) / len(shares) < 0.45


def test_unknown_splits_and_unanswerable_settings_are_errors():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        example(0, "val", 0)
    with pytest.raises(ValueError, match="no question"):
        # A row alone has no highest value.
        example(0, "train", 0, Settings(rows=(1, 1), kinds=("highest",)))


# --- numbers -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.floats(-99_999, 999_999))
def test_numbers_are_read_as_they_were_written(name, value):
    if name in ("plain", "commas", "spaces", "percent", "cents"):
        value = abs(value)
    number, unit = read_number(FORMATS[name](value))
    assert abs(number - value) <= 0.5
    assert unit == {"percent": "%", "percent_one": "%", "money": "$", "cents": "$"}.get(name, "")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1,234", (1234.0, "")),
        ("1 234 567", (1234567.0, "")),
        ("-$12", (-12.0, "$")),
        ("(1,200)", (-1200.0, "")),
        ("+3.5%", (3.5, "%")),
        ("1e-05", (1e-5, "")),
        ("2021", (2021.0, "")),
        ("12,34", None),
        ("(12", None),
        ("1 234,567", None),
        ("3 kg", None),
        ("2021-03", None),
        ("", None),
    ],
)
def test_read_number(text, read):
    assert read_number(text) == read


def test_a_column_in_two_units_is_not_compared():
    assert table_questions.numbers([("a", "$5"), ("b", "5%")], 1) == {}
    assert table_questions.numbers([("a", "$5"), ("b", "-"), ("c", "$6")], 1) == {0: 5.0, 2: 6.0}


def test_topics_are_what_generation_needs():
    for topic in TOPICS:
        names = [column.name for column in topic.columns]
        assert len(set(names)) == len(names) and len(set(topic.rows)) == len(topic.rows)
        for column in topic.columns:
            if isinstance(column, Measure):
                assert column.low < column.high and set(column.formats) <= set(FORMATS)
            else:
                assert not set(column.words) & set(MISSING)


# --- the record and real data --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rows": ()}, "a row"),
        ({"header": ("A",)}, "two columns"),
        ({"rows": (("x", "1"),)}, r"rows \[0\]"),
        ({"header": ("A", "B", "B")}, "names of their own"),
        ({"groups": (Group("g", 0, 2),)}, "overlaps"),
        ({"groups": (Group("g", 1, 3), Group("h", 2, 3))}, "overlaps"),
        ({"groups": (Group("g", 1, 4),)}, "leaves"),
        ({"targets": ((1, 0),)}, "outside"),
        ({"targets": ()}, "at least one target"),
    ],
)
def test_a_malformed_table_is_an_error(options, told):
    good = {"header": ("A", "B", "C"), "rows": (("x", "1", "2"),)}
    Table(**good)
    with pytest.raises(ValueError, match=told):
        Table(**good | options)


def test_equal_leaf_headers_are_told_apart_by_their_group():
    table = Table(("A", "Q1", "Q1"), (("x", "1", "2"),), (Group("Cost", 1, 2), Group("Gain", 2, 3)))
    assert [table.column_name(c) for c in range(3)] == ["A", "Cost Q1", "Gain Q1"]


def test_questions_about_real_data():
    seen = set()
    for seed in range(120):
        table = from_rows(*PLANETS, seed=seed)
        assert right_answers(table) == [(table.targets, table.answer)]
        assert table.rows[4][:2] == ("Jupiter", "142984")
        seen.add(table.kind)
    assert seen == set(KINDS)
    table = from_rows(*PLANETS, kinds=("which_lowest",), seed=1)
    assert table == from_rows(*PLANETS, kinds=("which_lowest",), seed=1)


def test_excerpts_of_real_data_keep_its_order():
    header, rows = PLANETS
    for seed in range(30):
        table = from_rows(header, rows, seed=seed, most_rows=3, most_columns=4)
        assert len(table.rows) == 3 and len(table.header) == 4
        assert right_answers(table) == [(table.targets, table.answer)]
        kept = [header.index(name) for name in table.header]
        names = [row[0] for row in rows]
        places = [names.index(row[0]) for row in table.rows]
        assert kept == sorted(kept) and kept[0] == 0 and places == sorted(places)
        for place, row in zip(places, table.rows, strict=True):
            assert row == tuple(str(rows[place][c]) for c in kept)


def test_odd_values_of_real_data():
    header = ("Name", "Much\nspace", "Long")
    rows = [("a", None, "x" * 40), ("a", math.nan, "y"), ("b", 0.1 + 0.2, "z")]
    for seed in range(20):
        table = from_rows(header, rows, seed, longest=10, kinds=("lookup",))
        assert table.header == ("Name", "Much space", "Long")
        assert table.rows == (("a", "", "xxxxxxx..."), ("a", "", "y"), ("b", "0.3", "z"))
        # Two rows are called "a": only b can be asked for.
        assert table.targets[0][0] == 2


def test_data_that_allow_no_question_are_an_error():
    with pytest.raises(ValueError, match="no question"):
        from_rows(("A", "B"), [("x", "")], kinds=("lookup",))
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        from_rows(("A", "B"), [("x", 1), ("y",)])
    with pytest.raises(ValueError, match="merged headers"):
        from_rows(*PLANETS, groups=[("Size", 1, 3)], most_columns=3)
    with pytest.raises(ValueError, match="two columns"):
        from_rows(*PLANETS, most_columns=1)
    table = from_rows(*PLANETS, groups=[("Body", 1, 4)])
    assert table.column_name(2) == "Body Density"
