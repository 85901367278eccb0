"""Data sets of TFDS, written and read without TensorFlow: what comes back is what went in."""

import io
import json
import pickle
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrrl_jax.data import loading, tabular, tfds, tfds_rows
from vrrl_jax.data.records import At, Id, Record, build
from vrrl_jax.processing.images import open_image

kinds = tensorflow_datasets.features


def png(mode="RGB", colour=(255, 0, 0), size=(4, 3)):
    picture, file = Image.new("RGB", size, colour), io.BytesIO()
    if mode == "P":
        picture = picture.quantize(2)
    elif mode == "RGBA":
        picture = Image.new("RGBA", size, (*colour, 0))
    picture.save(file, "png")
    return file.getvalue()


def record(row, answer="a", **more):
    return Record(Id("s", row), f"Q{row}", (), answer, "text", **more)


RECORDS = [
    record(7, category="é"),
    record(3, answer="", extra={"n": None, "list": [1, 2.5, "x"], "raw": b"\0\xff\0", "nan": 0.1}),
    record(5, accepted=("", "b\0"), boxes=((0.1, 1 / 3, 2e9, 2e9 + 0.5),)),
    Record(
        Id("other", 2**40, 3),
        "<image>which <image>?",
        (png("P") + b"\0", png("RGBA")),
        "B",
        "choice",
        options=("", "x\ny"),
        boxes=((0.0, 0.0, 0.0, 0.0), (-1.5, 0.0, 1.0, 2.0)),
    ),
]


def test_records_come_back_as_they_were_and_in_order(tmp_path):
    written = tfds.write({"train": RECORDS, "test": RECORDS[::-1]}, tmp_path, "mine")
    assert written == (tmp_path / "mine/1.0.0", {"train": 4, "test": 4}, [])
    train, test = (tfds.read(written.folder, split) for split in ("train", "test"))
    assert list(train) == RECORDS and list(test) == RECORDS[::-1]
    assert train[-1] == RECORDS[3] and list(train[1:3]) == RECORDS[1:3]
    assert list(pickle.loads(pickle.dumps(test))) == RECORDS[::-1]
    assert list(tfds.read(tmp_path / "mine", "train[:50%]+test[:1]")) == [*RECORDS[:2], RECORDS[3]]
    # All rows looked at, by the mapper of stored records.
    loaded = loading.load(tmp_path / "mine", "records", split="train")
    assert list(loaded.records) == RECORDS and loaded.skipped == []
    assert "tensorflow" not in sys.modules


def test_tfds_itself_reads_what_is_written(tmp_path):
    tfds.write(RECORDS, tmp_path, "mine", split="test", description="four")
    source = tensorflow_datasets.data_source(
        "mine", data_dir=tmp_path, split="test", download=False
    )
    assert len(source) == 4 and source[3]["pictures"] == list(RECORDS[3].pictures)
    assert source[0]["category"] == "é".encode() and source[0]["options"] == []
    assert source.dataset_info.description == "four"
    # And writes the same files by its own means.
    made = tfds.builder("mine", {"test": lambda: RECORDS}, description="four")
    tensorflow_datasets.disable_progress_bar()
    made(data_dir=tmp_path / "b").download_and_prepare()
    assert list(tfds.read(tmp_path / "b/mine")) == RECORDS
    a, b = (tmp_path / part / "mine/1.0.0/features.json" for part in ("", "b"))
    assert json.loads(a.read_text()) == json.loads(b.read_text())


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
values = st.recursive(
    leaves | texts | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=20, deadline=None)
@given(
    question=texts.filter(str.strip),
    pictures=st.lists(st.binary(min_size=1, max_size=9), max_size=3),
    accepted=st.lists(texts, max_size=3),
    boxes=st.lists(st.tuples(*[st.floats(-9e9, 9e9)] * 2), max_size=3),
    extra=st.dictionaries(texts, values, max_size=3),
)
def test_any_record_survives(tmp_path_factory, question, pictures, accepted, boxes, extra):
    folder = tmp_path_factory.mktemp("any")
    boxes = [(x, y, x + 1, abs(y) + 0.1) for x, y in boxes]
    made = build(
        At("s", 1, folder),
        question=question.replace("<", "("),
        pictures=pictures,
        answer="a",
        kind="text",
        accepted=accepted,
        boxes=boxes,
        extra=extra,
    )
    assert list(tfds.read(tfds.write([made], folder, "any").folder)) == [made]


# --- classification, and other data sets of TFDS -----------------------------------------------


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A classification set as TFDS's own builders make them; (its folder, its pictures)."""
    pictures = [png("P"), png("RGBA"), png(), png("P", (0, 0, 255))]

    class Discs(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "discs", tensorflow_datasets.core.Version("2.10.0")
        pkg_dir_path = "."

        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                disable_shuffling=True,
                features=kinds.FeaturesDict(
                    {
                        "image": kinds.Image(),
                        "label": kinds.ClassLabel(names=["red_disc", "ring"]),
                        "views": kinds.Sequence(kinds.Image()),
                        "note": kinds.Text(),
                        "parts": kinds.Sequence({"name": kinds.Text(), "at": kinds.BBoxFeature()}),
                        "weight": kinds.Scalar(np.float32),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            at = kinds.BBox(ymin=0.0, xmin=0.5, ymax=1.0, xmax=1.0)
            for i, picture in enumerate(pictures):
                row = {"image": picture, "label": (0, 1, -1, 0)[i], "views": [picture] * i}
                row |= {"parts": [{"name": f"p{k}", "at": at} for k in range(i)]}
                yield i, row | {"note": "é" * i, "weight": float("nan")}

    folder = tmp_path_factory.mktemp("classes")
    tensorflow_datasets.disable_progress_bar()
    Discs(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "discs", pictures


def test_rows_of_any_set_are_plain_values(classes):
    folder, pictures = classes
    rows = tabular.open_rows(folder)
    assert len(rows) == 4 and rows.labels == {"label": ("red_disc", "ring")}
    assert [row["image"] for row in rows.scan()] == pictures
    row = rows[2]
    assert row["views"] == [pictures[2]] * 2 and row["note"] == "éé"
    assert row["parts"] == {"name": ["p0", "p1"], "at": [[0.0, 0.5, 1.0, 1.0]] * 2}
    assert rows[0]["views"] == [] and rows[0]["parts"]["name"] == [] and rows[0]["note"] == ""
    assert type(row["label"]) is int and type(row["weight"]) is float
    assert rows.place(3)[1] == 3 and tabular.split_of(rows.place(3)[0]) == "test"
    for i in (-1, 4):
        with pytest.raises(IndexError, match=f"row {i} of 4"):
            rows[i]


def test_a_classification_set_becomes_questions_for_the_title(classes):
    loaded = loading.load(classes[0], "classification")
    assert [record.answer for record in loaded.records] == ["red disc", "ring", "red disc"]
    assert loaded.bad == 1 and "row 2: label -1 has no name; there are 2" in loaded.skipped[0]
    assert loaded.records[0].question.startswith("<image>What is the title")
    # A palette keeps its colours, what is transparent shows white.
    seen = [open_image(record.pictures[0])[1, 2].tolist() for record in loaded.records]
    assert seen == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_a_set_that_holds_no_records_is_named(classes):
    with pytest.raises(ValueError, match=r"holds no records, but \['image', 'label'"):
        tfds.read(classes[0])


# --- finding -----------------------------------------------------------------------------------


def test_the_latest_version_is_found_by_folder_or_name(tmp_path, monkeypatch):
    for version in ("9.0.0", "10.0.0"):
        tfds.write([record(int(version[0]))], tmp_path, "mine", version=version)
    (tmp_path / "mine/11.0.0").mkdir()  # of nothing
    (tmp_path / "mine/.12.0.0.unfinished-1").mkdir()
    assert tfds.read(tmp_path / "mine")[0].id.row == 1
    assert tfds.read(tmp_path / "mine/9.0.0")[0].id.row == 9
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert tfds.read("mine")[0].id.row == 1
    for path in ("theirs", tmp_path / "mine/11.0.0", "../mine"):
        with pytest.raises(FileNotFoundError, match="expected a prepared data set"):
            tfds.read(path)


def test_what_hugging_face_saved_is_not_taken_for_a_set_of_tfds(tmp_path):
    """`save_to_disk` writes a dataset_info.json too."""
    (tmp_path / "dataset_info.json").write_text('{"features": {}}')
    with pa.ipc.new_stream(tmp_path / "data.arrow", pa.schema([("a", pa.int64())])) as out:
        out.write_table(pa.table({"a": [1, 2]}))
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    assert list(tabular.open_rows(tmp_path).scan()) == [{"a": 1}, {"a": 2}]


def test_splits_are_chosen_by_name(tmp_path):
    folder = tfds.write({"a": RECORDS[:1], "b": RECORDS[:2]}, tmp_path, "mine").folder
    for read in (tfds.read, tabular.open_rows):
        assert len(read(folder, "b")) == 2
        with pytest.raises(ValueError, match=r"2 splits: choose one of \['a', 'b'\]"):
            read(folder)
        with pytest.raises(FileNotFoundError, match="no split 'c'"):
            read(folder, "a+c")
        with pytest.raises(ValueError, match="Error parsing split"):
            read(folder, "a[")


# --- writing: all or nothing -------------------------------------------------------------------


def test_a_failure_leaves_nothing(tmp_path):
    def failing():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tfds.write({"train": RECORDS, "test": failing()}, tmp_path, "mine")
    with pytest.raises(ValueError, match="mine, test: there are no records"):
        tfds.write({"train": RECORDS, "test": []}, tmp_path, "mine")
    assert list(tmp_path.rglob("*")) == []
    folder = tfds.write(RECORDS, tmp_path, "mine").folder
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(FileExistsError, match="remove it, or give another version"):
        tfds.write(RECORDS[:1], tmp_path, "mine")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(before) == ["dataset_info.json", "features.json"] + [
        "mine-train.array_record-00000-of-00001"
    ]
    for name, more in (("A b", {}), ("../x", {}), ("x", {"split": "a-b"}), ("x", {"version": "1"})):
        with pytest.raises(ValueError, match="is no name of TFDS"):
            tfds.write(RECORDS, tmp_path, name, **more)


def test_pictures_that_cannot_be_stored_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("vrrl_jax.data.stored.MAX_FILE", 100)
    (tmp_path / "a.png").write_bytes(b"x" * 100)
    (tmp_path / "b.png").write_bytes(b"x" * 101)
    made = [
        Record(Id("s", i), "<image>Q", (tmp_path / name,), "a", "text")
        for i, name in enumerate(["a.png", "b.png", "gone.png", "a.png"])
    ]
    written = tfds.write(made, tmp_path, "mine")
    assert written.counts == {"train": 2}
    assert written.skipped[0].startswith("s/1: ") and "has 101 bytes" in written.skipped[0]
    assert written.skipped[1].startswith("s/2: [Errno 2]")
    back = tfds.read(written.folder)
    assert [r.id.row for r in back] == [0, 3] and back[1].pictures == (b"x" * 100,)
    with pytest.raises(ValueError, match="2 of 4 records can't be stored:\n  s/1: "):
        tfds.write(made, tmp_path, "other", max_bad=1)
    assert not (tmp_path / "other").exists()


def test_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "SHARD_BYTES", 500)
    made, told = [record(i, answer="x" * 100) for i in range(20)], []
    folder = tfds.write(made, tmp_path, "mine", progress=told.append).folder
    shards = sorted(file.name for file in folder.glob("*array_record*"))
    assert len(shards) > 3 and shards[1].endswith(f"-00001-of-{len(shards):05}")
    rows = tabular.open_rows(folder)
    assert list(tfds.read(folder)) == made and told == list(range(1, 21))
    places = [rows.place(i) for i in range(20)]
    assert sorted({file.name for file, _ in places}) == shards and places[0][1] == 0
    assert all(row == 0 or places[i - 1] == (file, row - 1) for i, (file, row) in enumerate(places))


# --- files that nobody vouches for -------------------------------------------------------------


def test_a_format_that_takes_tensorflow_is_refused(tmp_path):
    with pytest.raises(ValueError, match="file_format 'tfrecord' takes TensorFlow: use one of"):
        tfds.builder("mine", {"train": lambda: RECORDS})(data_dir=tmp_path, file_format="tfrecord")
    folder = tfds.write(RECORDS, tmp_path, "mine").folder
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="stored as tfrecord, which can't be read row by row"):
        tfds.read(folder)


@pytest.mark.parametrize("name", ["importlib_resources", "tensorflow_datasets"])
def test_missing_packages_are_named(tmp_path, monkeypatch, name):
    for file in ("dataset_info.json", "features.json"):
        (tmp_path / file).write_text("{}")
    monkeypatch.setitem(sys.modules, name, None)
    message = rf"{name}.*pip install tensorflow-datasets importlib_resources"
    with pytest.raises(ModuleNotFoundError, match=message):
        tfds.read(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=message):
        tfds.write(RECORDS, tmp_path, "mine")


def test_classes_of_others_are_not_imported(tmp_path):
    folder = tfds.write(RECORDS, tmp_path, "mine").folder
    file = folder / "features.json"
    own = "tensorflow_datasets.core.features.scalar.Scalar"
    file.write_text(file.read_text().replace(own, "antigravity.Scalar", 1))
    with pytest.raises(ValueError, match=r"names 'antigravity\.Scalar', which is none of TFDS's"):
        tfds.read(folder)
    assert "antigravity" not in sys.modules
    for text in ("", "[" * 99_999, "{}", "[3]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"no description of features|no data set of TFDS"):
            tfds.read(folder)


def test_broken_files_are_named_or_cost_their_rows(tmp_path):
    made = [record(i, answer=np.random.default_rng(i).bytes(3000).hex()) for i in range(40)]
    folder = tfds.write(made, tmp_path, "mine").folder
    (file,) = folder.glob("*array_record*")
    data = file.read_bytes()
    middle = len(data) // 2
    file.write_bytes(data[:middle] + b"\xff" * 64 + data[middle + 64 :])
    loaded = loading.load(folder, "records")
    assert 1 <= loaded.bad <= 2 and len(loaded.records) == 40 - loaded.bad
    assert f"{file}, row " in loaded.skipped[0] and "not readable" in loaded.skipped[0]
    file.write_bytes(data[:middle])
    with pytest.raises(ValueError, match="not readable"):
        loading.load(folder, "records")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file 'mine-train"):
        tfds.read(folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("{DATASET}", "../../x"))
    with pytest.raises((ValueError, FileNotFoundError)):
        tfds.read(folder)


def test_an_unfinished_write_of_tfds_is_no_data_set(tmp_path):
    (tmp_path / "mine/incomplete.AB12_1.0.0").mkdir(parents=True)
    (tmp_path / "mine/incomplete.AB12_1.0.0/dataset_info.json").write_text("{}")
    assert not tfds_rows.is_prepared(tmp_path / "mine")
