"""Rows of the sets about places: RefCOCO, VSR, SPACE, SpatialEval."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from vrrl_jax.data.mappers.cells import corner_box
from vrrl_jax.data.records import MARK, At, Record, Unsupported, build, is_empty, rest, text, texts


def refcoco(at: At, row: Mapping[str, Any]) -> list[Record]:
    """RefCOCO, RefCOCO+ and RefCOCOg: a record for each expression, its object's box the answer.

    The row's own question asks for a caption and is left aside; `bbox` is (x, y, width, height).
    """
    expressions, corner = texts(row, "answer"), row.get("bbox")
    if not expressions:
        raise ValueError("no referring expression")
    if not isinstance(corner, list) or len(corner) != 4:
        raise ValueError(f"field 'bbox' should be four numbers, it is {str(corner)[:60]}")
    box = corner_box(*corner)
    return [
        build(
            at,
            question=expression,
            pictures=[row.get("image")],
            answer=str(list(box)),
            kind="box",
            boxes=[box],
            category=at.split,
            extra=rest(row, "question", "answer", "image", "bbox"),
            part=part,
        )
        for part, expression in enumerate(expressions)
    ]


def vsr(at: At, row: Mapping[str, Any]) -> Record:
    """VSR: is a caption true (1) or false (0)? The pictures are COCO's, in one of its folders."""
    label = row.get("label")
    if label not in (0, 1):
        raise ValueError(f"field 'label' should be 0 or 1, it is {str(label)[:40]}")
    homes = ("", "images", "train2017", "val2017", "images/train2017", "images/val2017")
    return build(
        at,
        question=f'Is the following statement about the image true? "{text(row, "caption")}"',
        pictures=[row.get("image")],
        answer=("no", "yes")[int(label)],
        kind="yesno",
        category=text(row, "relation", default=""),
        extra=rest(row, "label", "relation"),
        folders=homes,
    )


def space(at: At, row: Mapping[str, Any]) -> Record:
    """SPACE's questions: a text or a list of parts, of which "IMAGE:path" are pictures.

    The task is the name of the folder that holds the file.
    """
    question, answer = row.get("question"), row.get("answer")
    parts = [question] if isinstance(question, str) else question
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError("field 'question' should be a text or a list of texts")
    if any(part.startswith("VIDEO:") for part in parts):
        raise Unsupported("the question shows a video")
    return build(
        at,
        question="\n".join(MARK if part.startswith("IMAGE:") else part for part in parts),
        pictures=[part.removeprefix("IMAGE:") for part in parts if part.startswith("IMAGE:")],
        answer=text(row, "answer"),
        kind="number" if isinstance(answer, int) else "text",
        category=pathlib.Path(at.file).parent.name,
        extra=rest(row, "question", "answer"),
    )


def spatialeval(at: At, row: Mapping[str, Any]) -> Record:
    """SpatialEval: options stand in the text; the mode "tqa" has no picture."""
    name = text(row, "id")
    parts = name.split(".")
    if len(parts) != 4 or parts[1] not in ("vqa", "tqa", "vtqa"):
        raise ValueError(f"the id should be task.mode.instance.question: {name[:60]!r}")
    return build(
        at,
        question=text(row, "text"),
        pictures=[] if parts[1] == "tqa" and is_empty(row.get("image")) else [row.get("image")],
        answer=text(row, "oracle_option").strip(),
        kind="choice",
        category=parts[0],
        extra=rest(row, "text", "image", "oracle_option"),
    )
