"""Mappers for many sets: users' own fields, classification, VLMEvalKit's tables, MEGA-Bench."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

from vrrl_jax.data.lines import MAX_LINE
from vrrl_jax.data.mappers.cells import json_list, letter_of, literal, literal_texts
from vrrl_jax.data.records import (
    KINDS,
    LETTERS,
    MAX_PICTURES,
    At,
    Record,
    Unsupported,
    build,
    is_empty,
    open_kind,
    rest,
    text,
    texts,
)

_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")


@dataclasses.dataclass(frozen=True)
class FieldMap:
    """A mapper for files of one's own: which field holds what.

    Attributes:
      question: field of the text.
      image: field of a picture or a list of them; None for text alone. A row without is text alone.
      answer: field of the answer, or of a list of equal ones.
      options: field of a list of texts; rows that have it are multiple choices, answered by a
        letter or by an option's text.
      category: field to group by.
      kind: one of KINDS but "box"; None: "choice" with options, else "number" or "text" by the
        answer.
    """

    question: str = "question"
    image: str | None = "image"
    answer: str = "answer"
    options: str | None = None
    category: str | None = None
    kind: str | None = None

    name = "fields"

    def __post_init__(self):
        if self.kind is not None and self.kind not in KINDS[:-1]:
            raise ValueError(f"unknown kind {self.kind!r}: expected one of {KINDS[:-1]}")

    def __call__(self, at: At, row: Mapping[str, Any]) -> Record:
        cell = row.get(self.image) if self.image else None
        pictures = cell if isinstance(cell, list) else [] if is_empty(cell) else [cell]
        if self.image and self.image not in row:
            raise ValueError(f"no field {self.image!r}")
        options = texts(row, self.options) if self.options else ()
        if isinstance(row.get(self.answer), list):
            answer, *accepted = texts(row, self.answer) or ("",)
        else:
            answer, accepted = text(row, self.answer), ()
        answer = answer.strip()
        kind = self.kind or ("choice" if options else open_kind(answer))
        if kind == "choice" and options:
            answer = letter_of(answer, options)
        if kind == "yesno":
            answer = answer.lower()
        used = (self.question, self.image, self.answer, self.options, self.category)
        return build(
            at,
            question=text(row, self.question),
            pictures=pictures,
            answer=answer,
            kind=kind,
            options=options,
            accepted=accepted,
            category=text(row, self.category, default="") if self.category else "",
            extra=rest(row, *filter(None, used)),
        )


@dataclasses.dataclass(frozen=True)
class Classification:
    """A mapper for any set of pictures and labels: what the picture shows is the title to answer.

    Attributes:
      image: field of the picture.
      label: field of the label: a name, or an index where names are known.
      names: of the labels by index; empty: what the files say.
      question: what is asked.
    """

    image: str = "image"
    label: str = "label"
    names: tuple[str, ...] = ()
    question: str = "What is the title of this picture?"

    name = "classification"

    def __call__(self, at: At, row: Mapping[str, Any]) -> Record:
        label = row.get(self.label)
        if isinstance(label, int) and not isinstance(label, bool):
            names = self.names or at.labels.get(self.label, ())
            if not 0 <= label < len(names):
                raise ValueError(f"label {label} has no name; there are {len(names)}")
            label = names[label]
        if not isinstance(label, str):
            raise ValueError(f"no label in field {self.label!r}")
        title = " ".join(label.replace("_", " ").split())
        return build(
            at,
            question=self.question,
            pictures=[row.get(self.image)],
            answer=title,
            kind="text",
            category=title,
            extra=rest(row, self.image) | {"title": title},
        )


def vlmevalkit(at: At, row: Mapping[str, Any]) -> Record:
    """A table of VLMEvalKit: pictures in base64 or by path, options in columns A, B, ..."""
    cells = (text(row, letter, default="") for letter in LETTERS)
    options = tuple(itertools.takewhile(bool, cells))
    answer = text(row, "answer").strip()
    kind = open_kind(answer)
    if options:
        answer, kind = letter_of(answer, options), "choice"
    elif answer.lower() in ("yes", "no"):
        answer, kind = answer.lower(), "yesno"
    category = text(row, "category", default="") or text(row, "split", default="")
    return build(
        at,
        question=text(row, "question"),
        pictures=_table_pictures(row),
        answer=answer,
        kind=kind,
        options=options,
        category=category,
        extra=rest(row, "question", "image", "image_path", "answer", *LETTERS),
    )


def _table_pictures(row: Mapping[str, Any]) -> list[Any]:
    """Pictures of a table's row: base64, a JSON list of them, a path, or a list of paths."""
    if cell := text(row, "image", default="", longest=MAX_LINE):
        pictures = json_list(cell)
        pictures = [cell] if pictures is None else pictures
        if len(pictures) > MAX_PICTURES:
            raise ValueError(f"{len(pictures)} pictures, at most {MAX_PICTURES} are taken")
        try:
            return [base64.b64decode(picture, validate=True) for picture in pictures]
        except (binascii.Error, ValueError, TypeError) as error:
            raise ValueError(f"a picture is no base64 ({error})") from None
    path = text(row, "image_path", default="")
    if path.startswith("["):
        return list(literal_texts(path, "image_path"))
    return [path] if path else []


def mega_bench(at: At, row: Mapping[str, Any]) -> Record:
    """MEGA-Bench: texts and media of the task, of its example and of the query, in this order.

    The answer stays a text, a value in JSON where it isn't one; `extra["fields"]` holds it with
    its structure, and what scores it, `metric_info` and `eval_context`, is read from its literals.
    """
    names = ("task_description", "example_text", "query_text")
    parts = [part for name in names if (part := text(row, name, default=""))]
    media: list[str] = []
    for name in ("global_media", "example_media", "query_media"):
        cell = row.get(name)
        # A path that stands alone is a literal of a text, or no literal at all.
        if isinstance(cell, str) and cell.strip() and not cell.lstrip().startswith(("[", "(")):
            cell = [cell.strip().strip("'\"")]
        media.extend(literal_texts(cell, name))
    question = "\n".join(parts)
    if "<video>" in question or any(item.lower().endswith(_VIDEOS) for item in media):
        raise Unsupported("the question shows a video")
    fields = _literal_or_text(text(row, "answer"))
    answer = fields
    if isinstance(fields, Mapping) and len(fields) == 1:
        answer = next(iter(fields.values()))
    if not isinstance(answer, str):
        answer = json.dumps(answer, ensure_ascii=False, default=str)
    extra = rest(row, *names, "global_media", "example_media", "query_media", "answer")
    for name in ("metric_info", "eval_context"):
        if isinstance(extra.get(name), str) and extra[name].strip():
            extra[name] = _literal_or_text(extra[name])
    return build(
        at,
        question=question,
        pictures=media,
        answer=answer,
        kind="text",
        category=text(row, "task_name"),
        extra=extra | {"fields": fields},
    )


def _literal_or_text(cell: str) -> Any:
    """The value of a literal; what is none is a plain text."""
    try:
        return literal(cell)
    except ValueError:
        return cell
