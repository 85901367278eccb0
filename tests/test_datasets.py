"""Inspecting, building and converting data sets; generated tasks as records."""

import io
import json

import pytest
from PIL import Image

from vrrl_jax import datasets
from vrrl_jax.data import frozenlake, generated, loading, mazes, tfds
from vrrl_jax.processing.images import open_image


@pytest.mark.parametrize("task", generated.TASKS)
def test_a_generated_task_is_stored_and_read_back(tmp_path, task):
    written = datasets.build(
        task, tmp_path, splits={"train": 4, "test_ood": 2}, seed=3, stream=io.StringIO()
    )
    assert written.counts == {"train": 4, "test_ood": 2} and not written.skipped
    made = {split: list(generated.records(task, split, 4, 3)) for split in ("train", "test_ood")}
    # The mapper checks them like any others; a shorter set is the beginning of a longer one.
    loaded = loading.load(written.folder, "records", split="train")
    assert loaded.skipped == [] and list(loaded.records) == made["train"]
    assert list(tfds.read(written.folder, "test_ood")) == made["test_ood"][:2]
    assert made["train"] != list(generated.records(task, "train", 4, 4))
    shown = [record for record in made["train"] + made["test_ood"] if record.pictures]
    assert shown
    for record in shown:
        height, width, _ = open_image(record.pictures[0]).shape
        for left, top, right, bottom in record.boxes:
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if task in ("tables", "charts"):
        assert all(record.boxes for record in shown)


@pytest.mark.parametrize("task", ["frozenlake", "mazes"])
def test_paths_are_shortest_and_splits_share_nothing(task):
    layouts = {}
    for split in generated.SPLITS:
        layouts[split] = set()
        for record in generated.records(task, split, 12):
            layout = tuple(record.extra["layout"])
            layouts[split].add(layout)
            places = record.extra["start_pos"], record.extra["target_pos"]
            map = frozenlake.Map(layout, *places) if task == "frozenlake" else mazes.Maze(layout)
            cell = map.start
            moves = record.answer.split(", ")
            for move in moves:
                cell, legal = map.move(cell, move)
                assert legal
            assert cell == map.target and len(moves) == map.shortest
    assert not layouts["train"] & layouts["test_id"] and not layouts["train"] & layouts["test_ood"]


def test_what_is_not_generated_is_refused(tmp_path):
    for more, message in [
        ({"task": "chess"}, "unknown task 'chess': expected one of frozenlake"),
        ({"splits": ("dev",)}, "unknown split 'dev'"),
        ({"count": 0}, "counts of at least 1"),
        ({"splits": ()}, "give splits"),
    ]:
        with pytest.raises(ValueError, match=message):
            datasets.build(**{"task": "tables", "out": tmp_path} | more)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def rows(tmp_path):
    """Four rows: a sound one, two without a good picture, one that is broken."""
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    Image.new("RGB", (10, 40)).save(tmp_path / "black.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    made = [
        {"question": f"Q{i}", "answer": str(i), "image": f"{name}.png"}
        for i, name in enumerate(["red", "black", "no", "gone"])
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, made)))
    return file


def test_inspect_says_what_is_there(rows):
    out = io.StringIO()
    datasets.inspect(rows, "fields", stream=out)
    lines = out.getvalue().splitlines()
    assert lines[:6] == [
        "3 records, 2 pictures",
        "kinds: number 3",
        "categories: (none) 3",
        "pictures: 10 to 30 pixels wide, 20 to 40 high, most often 30x20 1, 10x40 1",
        "skipped rows: 1",
        f"  {rows}, row 3: there is no picture 'gone.png' in {rows.parent}",
    ]
    assert lines[6:8] == ["broken pictures: 1", "  fields/2, picture 1: no picture"]
    assert [line for line in lines if "Q" in line] == [f"fields/{i}: <image>Q{i}" for i in range(3)]
    out = io.StringIO()
    datasets.inspect(rows, "fields", limit=1, stream=out)
    assert out.getvalue().startswith("1 records, 1 pictures")


def test_convert_writes_what_load_reads(rows, tmp_path):
    out = io.StringIO()
    written = datasets.convert(rows, tmp_path / "out", "fields", name="mine", stream=out)
    assert written.folder == tmp_path / "out/mine/1.0.0" and written.counts == {"train": 3}
    assert out.getvalue().startswith(f"skipped: {rows}, row 3: ")
    back = tfds.read(written.folder)
    assert [str(record.id) for record in back] == ["fields/0", "fields/1", "fields/2"]
    assert back[0].pictures == ((rows.parent / "red.png").read_bytes(),)
    # And again, a part of it.
    split = {"split": "train[1:]", "stream": out}
    written = datasets.convert(written.folder, tmp_path / "out", "records", **split)
    assert written.folder.parent.name == "records" and written.counts == {"train_1": 2}
    with pytest.raises(FileExistsError):
        datasets.convert(written.folder, tmp_path / "out", "records", stream=out)
