"""One record for every question: what the mappers make and the rest of the library reads.

Rows come from outside. Whatever is wrong with one is a ValueError that says so, and nothing that a
row names is read outside of its data folder.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

KINDS = ("choice", "number", "math", "text", "yesno", "box")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARK = "<image>"
# Far above what published sets hold, far below what would fill a host's memory.
MAX_PICTURES = 128
MAX_TEXT = 2**20  # characters

Box = tuple[float, float, float, float]
PictureSource = bytes | pathlib.Path  # What `processing.images.open_image` takes.

_MARK = re.compile(r"<image(?:[ _]?(\d{1,4}))?>")
# A chat template's own tokens: in a text they would pass for pictures that aren't there.
_VISION_TOKEN = re.compile(r"<\|(?:vision_\w{1,16}|image_pad|video_pad)\|>")


class Unsupported(ValueError):
    """A sound row of a kind that isn't taken (a video, say): skipped and named, yet no defect."""


class Id(NamedTuple):
    """What a record is called everywhere.

    Attributes:
      source: the set, as `load` was told.
      row: counted from 0 over all files of the source.
      part: counted from 0, where one row holds several questions; else 0.
    """

    source: str
    row: int
    part: int = 0

    def __str__(self) -> str:
        return f"{self.source}/{self.row}" + (f".{self.part}" if self.part else "")


@dataclasses.dataclass(frozen=True)
class At:
    """Where a row stands: what a mapper knows beside the row itself.

    Attributes:
      source: the set's name.
      row: global row.
      folder: the data folder, resolved; pictures lie inside.
      file: the row's file.
      split: of the row's file, "" where its name has none.
      labels: for columns of class labels, their names by index.
    """

    source: str
    row: int
    folder: pathlib.Path
    file: str = ""
    split: str = ""
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
      id: its name.
      question: its text. `<image>` marks in it and then in `options` stand for `pictures`, in
        order and one for one.
      pictures: bytes of an encoded file or the path of one; nothing is decoded here.
      answer: a letter for "choice", "yes" or "no" for "yesno", four numbers in brackets for "box",
        else text; "" where the set withholds it.
      kind: one of KINDS.
      options: texts of A, B, ...; empty for a "choice" whose options stand in the question or in
        the picture.
      accepted: further answers that are as good.
      boxes: (left, top, right, bottom) in pixels of the original picture, continuous.
      category: what results are grouped by.
      extra: the row's other fields, as they are.
    """

    id: Id
    question: str
    pictures: tuple[PictureSource, ...]
    answer: str
    kind: str
    options: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    category: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build(
    at: At,
    *,
    question: str,
    pictures: Sequence[Any] | Mapping[int, Any],
    answer: str | None,
    kind: str,
    options: Iterable[str] = (),
    accepted: Iterable[str] = (),
    boxes: Iterable[Box] = (),
    category: str = "",
    extra: Mapping[str, Any] | None = None,
    part: int = 0,
    folders: Sequence[str] = ("",),
    shown_elsewhere: str = "",
    blank: bool = False,
) -> Record:
    """Checks a row's parts and puts them together.

    Args:
      at: where the row stands.
      question: with marks of any style, or none: then the pictures come first.
      pictures: cells as `picture` takes them; numbered from 1, or by their own numbers.
      answer: None where the set withholds it.
      kind: one of KINDS.
      options: texts, without their letters.
      accepted: further answers.
      boxes: in pixels of the original picture.
      category: what results are grouped by.
      extra: kept as it is.
      part: which question of the row.
      folders: where below the data folder pictures may lie, tried in order.
      shown_elsewhere: a text that isn't asked (an explanation): pictures that only it marks are
        left out.
      blank: whether a question without words is sound, because the picture asks it.

    Raises:
      ValueError: what is wrong with the row.
    """
    options = tuple(options)
    for item in (question, answer or "", *options):
        _check_length(item, MAX_TEXT)
    texts, order = match_marks((question, *options), pictures, shown_elsewhere)
    cells = _numbered(pictures)
    found = {number: picture(at, cells[number], folders) for number in dict.fromkeys(order)}
    if not blank and not texts[0].replace(MARK, "").strip():
        raise ValueError("the question is empty")
    try:
        "".join((question, answer or "", *options)).encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        raise ValueError("the text is not valid Unicode") from None
    boxes = tuple(_checked_box(box) for box in boxes)
    if answer is not None:
        _check_answer(answer, kind, options, boxes)
    return Record(
        id=Id(at.source, at.row, part),
        question=texts[0],
        pictures=tuple(found[number] for number in order),
        answer=answer or "",
        kind=kind,
        options=texts[1:],
        accepted=tuple(accepted),
        boxes=boxes,
        category=category,
        extra=dict(extra or {}),
    )


def _check_answer(answer: str, kind: str, options: Sequence[str], boxes: Sequence[Box]) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {KINDS}")
    if not answer.strip():
        raise ValueError("the answer is empty")
    if kind == "choice":
        if len(options) > len(LETTERS):
            raise ValueError(f"{len(options)} options, at most {len(LETTERS)} have letters")
        letters = LETTERS[: len(options)] if options else LETTERS
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"the answer {answer[:40]!r} is no letter of {letters}")
    if kind == "number" and to_number(answer) is None:
        raise ValueError(f"the answer {answer[:40]!r} is no number")
    if kind == "yesno" and answer not in ("yes", "no"):
        raise ValueError(f"the answer {answer[:40]!r} is neither yes nor no")
    if kind == "box" and not boxes:
        raise ValueError("no box")


def _checked_box(box: Sequence[float]) -> Box:
    """Four finite numbers, corners in order; a box without area is sound."""
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError):
        raise ValueError(f"a box is four numbers, got {str(box)[:60]}") from None
    if not all(map(math.isfinite, (left, top, right, bottom))) or left > right or top > bottom:
        raise ValueError(f"no box: left {left}, top {top}, right {right}, bottom {bottom}")
    return left, top, right, bottom


# --- cells -------------------------------------------------------------------------------------


def _check_length(cell: str, longest: int) -> str:
    if len(cell) > longest:
        raise ValueError(f"a text of {len(cell)} characters, at most {longest} are read")
    return cell


def text(
    row: Mapping[str, Any], *names: str, default: str | None = None, longest: int = MAX_TEXT
) -> str:
    """The first of some fields that holds something, as text of at most `longest` characters.

    Raises:
      ValueError: none does, and there is no default; or it holds something else, or more.
    """
    for name in names:
        value = row.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, str):
            return _check_length(value, longest)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise ValueError(f"field {name!r} should be text, it is {type(value).__name__}")
    if default is None:
        raise ValueError(f"no field {' or '.join(map(repr, names))}")
    return default


def texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that lists texts; () where it is missing or null.

    Raises:
      ValueError: it holds something else.
    """
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"field {name!r} should be a list of texts")
    return tuple(_check_length(item, MAX_TEXT) for item in value)


def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The fields of a row that no other field of the record holds."""
    return {name: value for name, value in row.items() if name not in used}


def to_number(answer: str) -> float | None:
    """The number that an answer is, "50%" being 50; None for words, infinities and NaN."""
    try:
        value = float(answer.strip().removesuffix("%"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def open_kind(answer: str) -> str:
    """ "number" or "text"."""
    return "text" if to_number(answer) is None else "number"


# --- pictures ----------------------------------------------------------------------------------


def is_empty(cell: Any) -> bool:
    """Whether an image cell holds no picture: null, or a struct of nulls."""
    if isinstance(cell, Mapping):
        return not cell.get("bytes") and not cell.get("path")
    return cell is None or (isinstance(cell, str | bytes) and not cell)


def picture(at: At, cell: Any, folders: Sequence[str] = ("",)) -> PictureSource:
    """The picture in a cell, unread.

    Args:
      at: where the row stands.
      cell: encoded bytes; the struct of a Hugging Face `Image`, whose path is a mere name where
        there are bytes; or a path below the data folder.
      folders: below the data folder, tried in order.

    Raises:
      ValueError: the cell is empty or of another type, the path leaves the data folder, or there
        is no such file.
    """
    if is_empty(cell):
        raise ValueError("a picture is missing")
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray):
        return bytes(cell)
    if not isinstance(cell, str):
        raise ValueError(f"a picture should be bytes or a path, it is {type(cell).__name__}")
    for folder in folders:
        path = inside(at.folder, os.path.join(folder, cell) if _is_plain(cell) else cell)
        if path is not None:
            return path
    raise ValueError(f"there is no picture {cell[:200]!r} in {at.folder}")


def _is_plain(name: str) -> bool:
    """Whether a name, as it is spelled, stays below the folder it is joined to."""
    parts = name.replace("\\", "/").split("/")
    drive = len(parts[0]) == 2 and parts[0].endswith(":")
    return "\0" not in name and ".." not in parts and bool(parts[0]) and not drive


def inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file that a name from outside means; None where there is no such (regular) file.

    Args:
      folder: resolved.
      name: relative to it.

    Raises:
      ValueError: the name is absolute, climbs with "..", or follows a link out of the folder.
    """
    if not _is_plain(name):
        raise ValueError(f"the path {name[:200]!r} leaves the data folder")
    try:
        path = (folder / name).resolve()
        # A name too long and a ring of links are no files either.
        found = path.is_file()
    except (OSError, RuntimeError):
        return None
    if not path.is_relative_to(folder):
        raise ValueError(f"the path {name[:200]!r} leaves the data folder by a link: copy the file")
    return path if found else None


# --- marks -------------------------------------------------------------------------------------


def _numbered(pictures: Sequence[Any] | Mapping[int, Any]) -> Mapping[int, Any]:
    return pictures if isinstance(pictures, Mapping) else dict(enumerate(pictures, 1))


def match_marks(
    parts: Sequence[str], pictures: Sequence[Any] | Mapping[int, Any], shown_elsewhere: str = ""
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Makes all marks `<image>`, and says which picture each stands for.

    Styles: `<image>`, one for each picture in order; `<image 1>`, `<image_1>`, `<image1>`, where
    picture k belongs to mark k and a mark that is repeated shows its picture again; none at all,
    then the pictures come first.

    Args:
      parts: the question and its options, at least one.
      pictures: numbered from 1, or by their own numbers. Only their number counts here.
      shown_elsewhere: a text that isn't asked: pictures that only it marks are left out.

    Returns:
      (the parts, numbers of the pictures in the order of the marks).

    Raises:
      ValueError: no list, too many pictures, marks without pictures or pictures without marks.
    """
    if not isinstance(pictures, list | tuple | Mapping):
        raise ValueError(f"pictures should be a list, they are {type(pictures).__name__}")
    cells = _numbered(pictures)
    if len(cells) > MAX_PICTURES:
        raise ValueError(f"{len(cells)} pictures, at most {MAX_PICTURES} are taken")
    parts = [_VISION_TOKEN.sub("", part) for part in parts]
    if any(_VISION_TOKEN.search(part) for part in parts):
        raise ValueError("vision tokens within vision tokens")
    marks = [mark for part in parts for mark in _MARK.findall(part)]
    named = [int(mark) for mark in marks if mark]
    if not marks:
        parts[0] = MARK * len(cells) + parts[0]
        return tuple(parts), tuple(cells)
    if not named:
        if len(marks) != len(cells):
            raise ValueError(f"{len(cells)} pictures, but {len(marks)} {MARK} marks")
        return tuple(parts), tuple(cells)
    if len(named) < len(marks):
        raise ValueError("marks with numbers beside marks without")
    if len(named) > MAX_PICTURES:
        raise ValueError(f"{len(named)} marks, at most {MAX_PICTURES} are taken")
    absent = sorted(set(named) - set(cells))
    if absent:
        raise ValueError(f"marks {absent[:5]} have no picture; there are {sorted(cells)[:10]}")
    elsewhere = {int(mark) for mark in _MARK.findall(shown_elsewhere) if mark}
    unmarked = sorted(set(cells) - set(named) - elsewhere)
    if unmarked:
        raise ValueError(f"pictures {unmarked[:5]} have no mark; the marks are {named[:10]}")
    return tuple(_MARK.sub(MARK, part) for part in parts), tuple(named)
