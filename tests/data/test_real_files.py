"""Reading tables from files as people leave them."""

import csv
import importlib.util
import re

import pytest

from vrrl_jax.data import real_files
from vrrl_jax.data.real_files import Source


def write_csv(path, first, count):
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = [(f"Town {i}", "x", i, i * i, i % 3) for i in range(first, first + count)]
        csv.writer(file).writerows([("town", "county", "people", "area", "rain"), *rows])


def read(tmp_path, text, name="a.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return real_files.read(path)


def test_quoted_cells_hold_separators_quotes_and_lines(tmp_path):
    source, note = read(
        tmp_path, 'name,note,n\r\n"Smith, J.","says ""no""",1\r\n"two\r\nlines",x,"1,200"\r\n'
    )
    assert source == Source(
        "a.csv",
        ("name", "note", "n"),
        (("Smith, J.", 'says "no"', "1"), ("two lines", "x", "1,200")),
    )
    assert note == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings(tmp_path, encoding):
    source, _ = read(tmp_path, "navn,år\nBodø,3\n", encoding=encoding)
    assert source.header == ("navn", "år") and source.rows == (("Bodø", "3"),)


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_separators(tmp_path, name, mark):
    text = "\n\nname,x|n\n\na,b|2\n".replace("|", mark)
    if name == "a.csv":
        text = text.replace(",", "-")
    source, _ = read(tmp_path, text, name)
    assert len(source.header) == 2 and source.rows[0][1] == "2"


def test_ragged_overlong_and_equal_rows_are_left_out_and_counted(tmp_path):
    text = f"name,n\na,1\nb\nc,3,4\nd,4,,\na,1\n{'x' * 1001},5\ne,\n"
    source, note = read(tmp_path, text)
    assert source.rows == (("a", "1"), ("d", "4"), ("e", ""))
    assert re.match(r"a\.csv: 3 rows don't fit", note)


def test_columns_without_a_name_of_their_own_are_left_out(tmp_path):
    source, _ = read(tmp_path, ",name,n,n\n0,a,1,2\n1,b,3,4\n")
    assert source.header == ("name", "n") and source.rows == (("a", "1"), ("b", "3"))


def test_only_so_many_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(real_files, "MOST_ROWS", 3)
    source, note = read(tmp_path, "name,n\n" + "".join(f"r{i},{i}\n" for i in range(9)))
    assert source.rows == (("r0", "0"), ("r1", "1"), ("r2", "2")) and "first 3 rows" in note


BROKEN = {
    "header.csv": (b"name,n\n", "no rows"),
    "empty.csv": (b"", "empty"),
    "wide.csv": (b",".join(b"c%d" % i for i in range(10_000)) + b"\n1\n", "10,000 columns"),
    "bytes.csv": (b"\x89PNG\r\n\x1a\n\0\0", "no text"),
    "numbers.csv": (b"1,2\n3,4\n", "no names of columns"),
    "quote.csv": (b'name,n\n"a,1\n' + b"x,1\n" * 50_000, "no rows"),
}


def test_broken_files_are_skipped_and_named(tmp_path):
    for name, (data, _) in BROKEN.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "sub").mkdir()
    write_csv(tmp_path / "sub" / "good.csv", 0, 5)
    write_csv(tmp_path / "twin.csv", 0, 5)
    (tmp_path / "notes.txt").write_text("no table")
    loaded = real_files.load(tmp_path)
    assert [source.name for source in loaded.sources] == ["sub/good.csv"]
    told = dict(note.split(": ", 1) for note in loaded.notes)
    assert told.pop("twin.csv") == "the same as sub/good.csv"
    assert set(told) == set(BROKEN)
    for name, (_, why) in BROKEN.items():
        assert why in told[name], told[name]


def test_a_wide_line_among_others_is_a_ragged_row(tmp_path):
    source, note = read(tmp_path, "name,n\na,1\n" + "1," * 10_000 + "1\nb,2\n")
    assert source.rows == (("a", "1"), ("b", "2")) and "1 rows" in note


def test_large_files_and_many_cells_are_refused(tmp_path, monkeypatch):
    for name, first in (("a.csv", 0), ("b.csv", 500), ("c.csv", 900)):
        write_csv(tmp_path / name, first, 60)
    monkeypatch.setattr(real_files, "MOST_CELLS", 700)
    loaded = real_files.load(tmp_path)
    assert [source.name for source in loaded.sources] == ["a.csv", "b.csv"]
    assert "700 cells" in loaded.notes[-1]
    monkeypatch.setattr(real_files, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match=r"no table in 3 files; a\.csv: [0-9,]+ bytes, at most 10"):
        real_files.load(tmp_path)


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        real_files.load(tmp_path / "gone.csv")
    with pytest.raises(FileNotFoundError, match=r"no \.csv"):
        real_files.load(tmp_path)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vrrl-jax\[real\]'"):
        real_files.load("vega")
