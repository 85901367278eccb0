"""Rows of the sets about charts and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vrrl_jax.data.mappers.cells import box_fields, corner_box
from vrrl_jax.data.records import At, Record, build, is_empty, open_kind, picture, rest, text

_PEOPLE_OR_MACHINE = ("human", "machine")


def _answers(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """The answers of the first field that is there: one text, or a list of equals."""
    for name in names:
        if isinstance(row.get(name), list):
            answers = tuple(str(answer) for answer in row[name])
            if not answers:
                raise ValueError(f"field {name!r} lists no answer")
            return answers
        if row.get(name) is not None:
            return (text(row, name),)
    raise ValueError(f"no field {' or '.join(map(repr, names))}")


def chartqa(at: At, row: Mapping[str, Any]) -> Record:
    """ChartQA in its published layouts: (question, answer), or (query, label), maybe a list.

    The original archive's JSON files name pictures, which lie in `png` beside them.
    """
    answer, *accepted = _answers(row, "answer", "label")
    asked_by = row.get("human_or_machine")
    if isinstance(asked_by, int):
        if not 0 <= asked_by < 2:
            raise ValueError(f"human_or_machine should be 0 or 1, it is {asked_by}")
        asked_by = _PEOPLE_OR_MACHINE[asked_by]
    image = row["imgname"] if is_empty(row.get("image")) and "imgname" in row else row.get("image")
    return build(
        at,
        question=text(row, "question", "query"),
        pictures=[image],
        answer=answer,
        kind=open_kind(answer),
        accepted=accepted,
        category=asked_by if isinstance(asked_by, str) else text(row, "type", default=""),
        extra=rest(row, "question", "query", "answer", "label", "image"),
        folders=("", "png"),
    )


def tablevqa(at: At, row: Mapping[str, Any]) -> Record:
    """TableVQA-Bench: four splits; statements of "vtabfact" are true ('1') or false ('0').

    Several answers of "vwtq" are joined by `||` and stay one text: all of them are asked for.
    """
    split, answer = text(row, "split", default=at.split), text(row, "gt", "answer").strip()
    kind = open_kind(answer)
    if split.startswith("vtabfact"):
        if answer not in ("0", "1"):
            raise ValueError(f"the answer of a statement should be 0 or 1, it is {answer[:40]!r}")
        answer, kind = ("no", "yes")[int(answer)], "yesno"
    return build(
        at,
        question=text(row, "question"),
        pictures=[row.get("image")],
        answer=answer,
        kind=kind,
        category=split,
        extra=rest(row, "question", "gt", "answer", "image", "split"),
    )


def chartmuseum(at: At, row: Mapping[str, Any]) -> Record:
    """ChartMuseum: pictures by their paths."""
    answer = text(row, "answer").strip()
    return build(
        at,
        question=text(row, "question"),
        pictures=[row.get("image")],
        answer=answer,
        kind=open_kind(answer),
        category=text(row, "reasoning_type", default=""),
        extra=rest(row, "question", "answer", "image", "reasoning_type"),
    )


def refchartqa(at: At, row: Mapping[str, Any]) -> Record:
    """RefChartQA: an answer and the boxes it rests on, {x, y, w, h} in pixels."""
    answer, *accepted = _answers(row, "label")
    boxes = box_fields(row.get("grounding_bboxes"), "grounding_bboxes", ("x", "y", "w", "h"))
    return build(
        at,
        question=text(row, "query"),
        pictures=[row.get("image")],
        answer=answer,
        kind=open_kind(answer),
        accepted=accepted,
        boxes=[corner_box(*box) for box in boxes],
        category=text(row, "type", default=""),
        extra=rest(row, "query", "label", "image", "grounding_bboxes", "type"),
    )


def refocus(at: At, row: Mapping[str, Any]) -> Record:
    """ReFocus: an answer and the areas to look at; the edited picture stays in `extra`."""
    answer, *accepted = _answers(row, "answer")
    fields = ("x1", "y1", "x2", "y2")
    extra = rest(row, "question", "answer", "image", "focus_areas_bbox", "source")
    if not is_empty(extra.get("edited_image")):
        extra["edited_image"] = picture(at, extra["edited_image"])
    return build(
        at,
        question=text(row, "question"),
        pictures=[row.get("image")],
        answer=answer,
        kind=open_kind(answer),
        accepted=accepted,
        boxes=box_fields(row.get("focus_areas_bbox"), "focus_areas_bbox", fields),
        category=text(row, "source", default=""),
        extra=extra,
    )
