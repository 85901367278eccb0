"""Readers of raw rows: every format gives the same rows, in any order, and broken ones by name."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vrrl_jax.data import lines, loading, mappers, tabular

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("question", pa.string()), ("image", IMAGE), ("answer", pa.string())],
    {"huggingface": json.dumps({"info": {"features": {"answer": {"_type": "Value"}}}})},
)


def rows(count, start=0, size=20):
    """Rows whose pictures don't compress."""
    noise = lambda i: bytes((i * 7919 + k * k * 31) % 251 for k in range(size))
    return [
        {"question": f"Q{i}", "image": {"bytes": noise(i), "path": None}, "answer": str(i)}
        for i in range(start, start + count)
    ]


def table(made):
    return pa.Table.from_pylist(made, SCHEMA)


def save_to_disk(folder, shards):
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, made in zip(names, shards, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as out:
            out.write_table(table(made), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def write(tmp_path, layout):
    """Seven rows in some layout; (what to open, the rows)."""
    made = rows(7)
    if layout == "parquet file":
        pq.write_table(table(made), tmp_path / "train.parquet", row_group_size=3)
        return tmp_path / "train.parquet", made
    if layout in ("parquet shards", "parquet glob"):
        for name, part in (("00000", made[:4]), ("00001", made[4:])):
            pq.write_table(
                table(part), tmp_path / f"train-{name}-of-00002.parquet", row_group_size=2
            )
        return tmp_path / "train-*.parquet" if "glob" in layout else tmp_path, made
    if layout == "save_to_disk":
        return save_to_disk(tmp_path / "saved", [made[:4], made[4:]]), made
    made = [{"question": row["question"], "answer": row["answer"]} for row in made]
    if layout == "jsonl":
        text = "\n\n".join(json.dumps(row) for row in made)  # blank lines are no rows
    elif layout == "json":
        text = json.dumps(made)
    else:
        made = [row | {"question": row["question"] + ' "x"\n\ty'} for row in made]
        cell = lambda text: '"' + text.replace('"', '""') + '"'
        text = "\ufeffquestion\tanswer\r\n" + "".join(
            f"{cell(row['question'])}\t{row['answer']}\r\n" for row in made
        )
    (tmp_path / f"rows.{layout}").write_text(text, encoding="utf-8", newline="")
    return tmp_path, made


LAYOUTS = ["parquet file", "parquet shards", "parquet glob", "save_to_disk", "jsonl", "json", "tsv"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_rows_in_order_and_at_random(tmp_path, layout):
    path, made = write(tmp_path, layout)
    opened = tabular.open_rows(path)
    assert len(opened) == 7 and list(opened.scan()) == made
    for i in (6, 0, 3, 4, 0, 2, 5, 1):
        assert opened[i] == made[i]
    for i in (7, -1):
        with pytest.raises(IndexError, match=f"row {i} of 7"):
            opened[i]
    assert pickle.loads(pickle.dumps(opened))[5] == made[5]
    place = opened.place(5)
    two_files = layout in ("parquet shards", "parquet glob", "save_to_disk")
    assert place[1] == (1 if two_files else 5) and place[0].is_file()


# --- memory ------------------------------------------------------------------------------------


def test_only_the_row_group_that_is_asked_for_is_read(tmp_path, monkeypatch):
    file = tmp_path / "train.parquet"
    pq.write_table(table(rows(40)), file, row_group_size=4)
    opened, read = tabular.open_rows(file), []
    original = pq.ParquetFile.read_row_group
    spy = lambda self, i, *a, **k: read.append(i) or original(self, i, *a, **k)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    assert read == [] and opened[13]["question"] == "Q13"
    assert opened[12]["question"] == "Q12" and read == [3]
    assert opened[39]["question"] == "Q39" and read == [3, 9]


def test_a_scan_holds_a_few_rows_at_a_time(tmp_path):
    """40 row groups of 1 MB: reading them all takes no more Arrow memory than a few."""
    file = tmp_path / "train.parquet"
    with pq.ParquetWriter(file, SCHEMA, compression="none", use_dictionary=False) as out:
        for group in range(40):
            made = rows(4, 4 * group)
            for row in made:
                row["image"]["bytes"] *= 12_500
            out.write_table(table(made))
    assert file.stat().st_size > 40e6
    opened, most, before = tabular.open_rows(file), 0, pa.total_allocated_bytes()
    for number, row in enumerate(opened.scan()):
        most = max(most, pa.total_allocated_bytes() - before)
        assert row["question"] == f"Q{number}"
    assert number == 159 and 0 < most < 8e6


# --- broken files ------------------------------------------------------------------------------


def test_a_broken_row_group_costs_its_own_rows(tmp_path):
    file = tmp_path / "train.parquet"
    pq.write_table(table(rows(30, size=400)), file, row_group_size=3, compression="zstd")
    group = pq.read_metadata(file).row_group(4)
    data = bytearray(file.read_bytes())
    for column in range(group.num_columns):
        chunk = group.column(column)
        first = chunk.dictionary_page_offset or chunk.data_page_offset
        data[first : first + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)
    loaded = loading.load(file, mappers.FieldMap())
    assert [record.answer for record in loaded.records] == [
        str(i) for i in range(30) if i not in (12, 13, 14)
    ]
    assert len(loaded.skipped) == loaded.bad == 3
    assert loaded.skipped[1].startswith(f"{file}, row 13: its row group is unreadable (")
    with pytest.raises(ValueError, match="its row group is unreadable"):
        tabular.open_rows(file)[12]
    assert tabular.open_rows(file)[15]["question"] == "Q15"


def test_a_text_that_is_no_utf8_costs_its_own_row(tmp_path):
    file = tmp_path / "train.parquet"
    pq.write_table(table(rows(9)), file, compression="none", use_dictionary=False)
    data = file.read_bytes()
    place = data.index(b"Q0\x02\0\0\0Q1") + 6  # lengths stand before the texts
    file.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    loaded = loading.load(file, "fields")
    assert [record.id.row for record in loaded.records] == [0, *range(2, 9)]
    assert loaded.skipped[0].startswith(f"{file}, row 1: not readable ('utf-8' codec")


def test_broken_lines_are_named_and_the_others_read(tmp_path):
    good = '{"question": "Q", "answer": "1", "image": null}'
    broken = ["{", '["Q"]', '{"question": "Q", "answer": 1', "[" * 100_000, "nonsense", "1" * 5000]
    file = tmp_path / "rows.jsonl"
    text = "\n".join([good, *broken, good]).encode() + b'\n{"question": "\xff"}\n' + good.encode()
    file.write_bytes(text)
    loaded = loading.load(file, "fields")
    assert [record.id.row for record in loaded.records] == [0, 7, 9]
    assert [line.split(": ")[0] for line in loaded.skipped] == [
        f"{file}, row {i}" for i in (1, 2, 3, 4, 5, 6, 8)
    ]
    assert "expected an object, got list" in loaded.skipped[1]
    assert "nested too deeply" in loaded.skipped[3]


def test_a_line_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    good = '{"question": "Q", "answer": "1", "image": null}'
    (tmp_path / "rows.jsonl").write_text(f"{good}\n" + "x" * 10_000 + f"\n{good}")
    loaded = loading.load(tmp_path / "rows.jsonl", "fields")
    assert len(loaded.records) == 2
    assert "a line of 10001 bytes, at most 100 are read" in loaded.skipped[0]


def test_a_table_names_its_broken_rows(tmp_path):
    file, long = tmp_path / "rows.tsv", "A" * 400_000  # beyond the csv module's own limit
    text = [f"index\timage\tquestion\tanswer\n0\t{long}\tQ\t1\n", "1\t\tQ\n", "2\t\tQ\t1\t2\n"]
    text += ['3\t\t"Q"x\t1\n', "4\t99\tQ\t1\n", "5\t6\tQ\t1\n", "6\t5\tQ\t1\n", "7\t0\tQ\t1\n"]
    text += ["8\tA===\tQ\t1\n" + "9\t" + "?" * 99 + "\tQ\t1\n"]
    file.write_bytes("".join(text).encode() + b"10\t\t\xff\t1\n")
    loaded = loading.load(file, "vlmevalkit")
    assert [record.id.row for record in loaded.records] == [0, 7]
    assert [line.split(": ", 1)[1].split(" (")[0] for line in loaded.skipped] == [
        "3 cells, but 4 columns",
        "5 cells, but 4 columns",
        "'\\t' expected after '\"'",
        "the picture is that of index '99', which isn't there",
        "the picture is that of index '6', which has none itself",
        "the picture is that of index '5', which has none itself",
        "the picture is that of index 'A===', which isn't there",
        "a picture is no base64",
        "not valid UTF-8",
    ]


def test_files_that_are_none_of_theirs_are_named(tmp_path):
    for name, text, message in [
        ("a.parquet", "PAR1 not", "no Parquet file"),
        ("b.arrow", "nothing", "no Arrow stream"),
        ("c.json", "{", "not valid JSON"),
        ("d.json", "{}", "expected a list, got dict"),
        ("e.json", "[" * 100_000, "not valid JSON"),
        ("f.tsv", "one column\nx\n", "expected columns with tabs"),
        ("g.tsv", 'a\tb\n1\t2\n3\t"4\n5\t6\n', "a quote opens in line 3 and is never closed"),
        ("h.docx", "", "unknown format"),
        ("i.jsonl", "\n", "holds no rows"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            loading.load(tmp_path / name, "fields")


def test_a_truncated_save_is_named_and_false_offsets_do_not_crash(tmp_path):
    folder = save_to_disk(tmp_path / "saved", [rows(6)])
    (file,) = folder.glob("*.arrow")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="no Arrow stream"):
        tabular.open_rows(folder)
    # Offsets of the last batch's answers, ["4", "5"], made to point far outside.
    offsets = b"".join(i.to_bytes(4, "little") for i in (0, 1, 2))
    assert data.count(offsets) >= 1
    place = data.rindex(offsets) + 8
    file.write_bytes(data[:place] + (2**30).to_bytes(4, "little") + data[place + 4 :])
    read = list(tabular.open_rows(folder).scan())
    assert [isinstance(row, ValueError) for row in read] == [False] * 4 + [True] * 2
    assert "its record batch is broken" in str(read[5])


def test_a_state_may_not_point_out_of_its_folder(tmp_path):
    folder = save_to_disk(tmp_path / "saved", [rows(2)])
    save_to_disk(tmp_path / "other", [rows(2)])
    for state, message in [
        ({"_data_files": [{"filename": "../other/data-00000-of-00001.arrow"}]}, "leaves the data"),
        ({"_data_files": [{"filename": "data-00009.arrow"}]}, "there is no file"),
        ({"_data_files": [{}]}, "no field 'filename'"),
        ([], "not the state"),
    ]:
        (folder / "state.json").write_text(json.dumps(state))
        with pytest.raises(ValueError, match=message):
            tabular.open_rows(folder)


# --- finding -----------------------------------------------------------------------------------


def test_a_split_is_chosen_by_name(tmp_path):
    for split, made in (("train", rows(2)), ("test", rows(1))):
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table(made), tmp_path / f"hub/data/{split}-00000-of-00001-0a1b.parquet")
        save_to_disk(tmp_path / "dict" / split, [made])
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for folder in (tmp_path / "hub", tmp_path / "dict", tmp_path / "hub/data/*.parquet"):
        assert len(tabular.open_rows(folder, "train")) == 2
        assert len(tabular.open_rows(folder, "test")) == 1
        with pytest.raises(ValueError, match=r"2 splits: choose one of \['test', 'train'\]"):
            tabular.open_rows(folder)
        with pytest.raises(FileNotFoundError, match="no split 'dev'"):
            tabular.open_rows(folder, "dev")


def test_numbered_shards_belong_to_their_folder(tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(2):
        pq.write_table(table(rows(2, 2 * i)), tmp_path / f"train/000{i}.parquet")
    opened = tabular.open_rows(tmp_path / "train")
    assert [row["question"] for row in opened.scan()] == ["Q0", "Q1", "Q2", "Q3"]
    assert tabular.split_of(opened.place(3)[0]) == "train"


def test_nothing_there_says_what_is_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("no.parquet", "no-*.parquet", "empty"):
        with pytest.raises(FileNotFoundError, match="save_to_disk"):
            tabular.open_rows(tmp_path / path)


# --- loading -----------------------------------------------------------------------------------


def test_records_are_made_when_asked_for(tmp_path):
    file = tmp_path / "train.parquet"
    pq.write_table(table(rows(9)), file, row_group_size=2)
    loaded = loading.load(file, "fields", source="ours", limit=7)
    records = pickle.loads(pickle.dumps(loaded.records))
    assert len(records) == 7 and loaded.skipped == []
    assert records[5].answer == "5" and records[5].id == ("ours", 5, 0)
    assert [record.answer for record in records[2:6:2]] == ["2", "4"]
    assert records[-1].answer == "6"
    with pytest.raises(IndexError):
        records[7]


def test_too_many_broken_rows_stop_the_reading(tmp_path):
    rows = [{"question": "Q", "answer": "1", "image": "no.png"}] * 40
    rows[5] = rows[5] | {"image": None}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="of the first 12 rows 11 are broken, 10 are allowed") as e:
        loading.load(file, "fields")
    assert f"{file}, row 0: there is no picture 'no.png'" in str(e.value)
    assert loading.load(file, "fields", max_bad=39).bad == 39
    with pytest.raises(ValueError, match="1 are broken, 0 are allowed"):
        loading.load(file, "fields", max_bad=0)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        loading.load(file, "fields", limit=0)


def test_what_a_users_mapper_stumbles_over_is_a_broken_row(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('[{"question": "Q", "answer": "1"}, {"answer": null}]')

    def mapper(at, row):
        return mappers.FieldMap(image=None)(at, row | {"answer": row["answer"].strip()})

    loaded = loading.load(file, mapper)
    assert len(loaded.records) == 1 and loaded.records[0].id.source == "data"
    assert loaded.skipped == [
        f"{file}, row 1: AttributeError: 'NoneType' object has no attribute 'strip'"
    ]


def test_pictures_lie_in_the_folder_that_is_said(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"x")
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/rows.json"
    file.write_text('[{"question": "Q", "answer": "1", "image": "a.png"}]')
    (record,) = loading.load(file, "fields", folder=tmp_path / "pictures").records
    assert record.pictures == ((tmp_path / "pictures/a.png").resolve(),)
    with pytest.raises(ValueError, match=r"there is no picture 'a\.png'"):
        loading.load(file, "fields")
