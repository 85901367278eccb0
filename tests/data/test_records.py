"""Marks, and pictures named by rows that nobody vouches for."""

import os

import pytest

from vrrl_jax.data import records


@pytest.fixture
def at(tmp_path):
    """A data folder with a picture, beside a file that isn't for the data's eyes."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return records.At("set", 3, folder.resolve())


def build(at, question="Q", pictures=(), answer="1", kind="text", **more):
    return records.build(at, question=question, pictures=pictures, answer=answer, kind=kind, **more)


# --- marks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "pictures", "expected", "order"),
    [
        (("Q",), [], ("Q",), ()),
        (("Q",), ["a", "b"], ("<image><image>Q",), (1, 2)),
        (("Q <image>", "<image>"), ["a", "b"], ("Q <image>", "<image>"), (1, 2)),
        (("<image 2> <image_1>",), ["a", "b"], ("<image> <image>",), (2, 1)),
        (("<image1>", "<image1>"), ["a"], ("<image>", "<image>"), (1, 1)),
        (("<image 3>",), {3: "c"}, ("<image>",), (3,)),
        (("Q",), {3: "c", 5: "e"}, ("<image><image>Q",), (3, 5)),
        (("<image 1x> <images>",), [], ("<image 1x> <images>",), ()),
        (("<|vision_start|><|image_pad|><|vision_end|>Q",), ["a"], ("<image>Q",), (1,)),
    ],
)
def test_marks_of_every_style_become_one(parts, pictures, expected, order):
    assert records.match_marks(parts, pictures) == (expected, order)


@pytest.mark.parametrize(
    ("parts", "pictures", "message"),
    [
        (("<image>",), [], "0 pictures, but 1 <image> marks"),
        (("<image>",), ["a", "b"], "2 pictures, but 1 <image> marks"),
        (("<image>" * 10_000,), ["a"], "1 pictures, but 10000 <image> marks"),
        (("<image 1>" * 10_000,), ["a"], "10000 marks, at most 128"),
        (("<image 2>",), ["a"], r"marks \[2\] have no picture; there are \[1\]"),
        (("<image 1>",), ["a", "b"], r"pictures \[2\] have no mark"),
        (("<image 1> <image>",), ["a", "b"], "marks with numbers beside marks without"),
        (("Q",), ["a"] * 10_000, "10000 pictures, at most 128"),
        (("Q",), "a.png", "pictures should be a list, they are str"),
        (("<|vision_<|image_pad|>start|>Q",), ["a"], "vision tokens within vision tokens"),
    ],
)
def test_marks_that_do_not_match_are_refused(parts, pictures, message):
    with pytest.raises(ValueError, match=message):
        records.match_marks(parts, pictures)


def test_a_picture_that_only_the_explanation_shows_is_left_out():
    parts = ("<image 2>",)
    assert records.match_marks(parts, ["a", "b"], "see <image 1>") == (("<image>",), (2,))


def test_ten_thousand_pictures_are_refused_before_one_is_looked_for(at, monkeypatch):
    monkeypatch.setattr(records, "picture", lambda *a: pytest.fail("a picture was looked for"))
    with pytest.raises(ValueError, match="10000 pictures"):
        build(at, pictures=["images/a.png"] * 10_000)


# --- pictures ----------------------------------------------------------------------------------


def test_pictures_are_bytes_or_paths_and_stay_unread(at):
    inside = at.folder / "images/a.png"
    cells = [b"x", {"bytes": b"y", "path": "../secret.png"}, {"bytes": None, "path": "a.png"}]
    cells += ["images/a.png", "images/../images/a.png"[10:]]
    made = build(at, pictures=cells, folders=("", "images"))
    # Beside bytes a path is a mere name, whatever it says.
    assert made.pictures == (b"x", b"y", inside, inside, inside)
    assert made.question == "<image>" * 5 + "Q" and made.id == ("set", 3, 0)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "images/../../secret.png",
        "images/../images/a.png",
        "..\\secret.png",
        "/etc/passwd",
        "\\\\host\\share",
        "C:\\secret.png",
        "images/a.png\0.jpg",
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(at, name):
    for cell in (name, {"bytes": None, "path": name}):
        with pytest.raises(ValueError, match="leaves the data folder"):
            build(at, pictures=[cell], folders=("", "images"))


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(at):
    os.symlink(at.folder.parent / "secret.png", at.folder / "out.png")
    os.symlink(at.folder.parent, at.folder / "up")
    os.symlink("images/a.png", at.folder / "in.png")
    for name in ("out.png", "up/secret.png"):
        with pytest.raises(ValueError, match="leaves the data folder by a link"):
            build(at, pictures=[name])
    assert build(at, pictures=["in.png"]).pictures == (at.folder / "images/a.png",)
    # The folder itself may be one.
    os.symlink(at.folder, at.folder.parent / "linked")
    linked = records.At("set", 0, (at.folder.parent / "linked").resolve())
    assert build(linked, pictures=["images/a.png"]).pictures == (at.folder / "images/a.png",)


@pytest.mark.parametrize(
    "name", ["b.png", "images", ".", "x" * 5000, "a/" * 3000, "http://x/a.png"]
)
def test_what_is_no_file_is_named(at, name):
    with pytest.raises(ValueError, match="there is no picture"):
        build(at, pictures=[name])


def test_a_pipe_and_a_ring_of_links_do_not_hang(at):
    os.mkfifo(at.folder / "pipe.png")
    os.symlink("ring.png", at.folder / "ring.png")
    for name in ("pipe.png", "ring.png"):
        with pytest.raises(ValueError, match="there is no picture"):
            build(at, pictures=[name])


@pytest.mark.parametrize("cell", [None, "", b"", {}, {"bytes": None, "path": None}, {"bytes": b""}])
def test_an_empty_cell_is_a_missing_picture(at, cell):
    assert records.is_empty(cell)
    with pytest.raises(ValueError, match="a picture is missing"):
        build(at, pictures=[cell])


# --- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"question": " "}, "the question is empty"),
        ({"question": "<image> ", "pictures": [b"x"]}, "the question is empty"),
        ({"answer": " "}, "the answer is empty"),
        ({"kind": "number", "answer": "three"}, "is no number"),
        ({"kind": "number", "answer": "nan"}, "is no number"),
        ({"kind": "yesno", "answer": "Yes"}, "neither yes nor no"),
        ({"kind": "choice", "answer": "C", "options": ["a", "b"]}, "is no letter of AB"),
        ({"kind": "choice", "answer": "AB"}, "is no letter"),
        ({"kind": "choice", "answer": "A", "options": ["a"] * 27}, "27 options, at most 26"),
        ({"kind": "box"}, "no box"),
        ({"boxes": [(0, 0, 1)]}, "a box is four numbers"),
        ({"boxes": [(2, 0, 1, 1)]}, "no box: left 2"),
        ({"boxes": [(0, 0, float("inf"), 1)]}, "no box"),
        ({"kind": "essay"}, "unknown kind 'essay'"),
        ({"question": "\ud800"}, "not valid Unicode"),
    ],
)
def test_an_answer_is_of_its_kind(at, more, message):
    with pytest.raises(ValueError, match=message):
        build(at, **more)


def test_a_withheld_answer_and_a_question_in_the_picture(at):
    made = build(at, question="", pictures=[b"x"], answer=None, blank=True)
    assert (made.question, made.answer) == ("<image>", "")


@pytest.mark.parametrize(
    ("answer", "value"),
    [("3", 3.0), (" -2.5% ", -2.5), ("1e3", 1000.0), ("$3", None), ("inf", None)],
)
def test_numbers(answer, value):
    assert records.to_number(answer) == value
    assert records.open_kind(answer) == ("text" if value is None else "number")
