"""A record as a row of plain values, and back: how the library's own data sets are stored.

Both ways lose nothing, but that tuples in `extra` come back as lists, and paths as what lay there.
"""

from __future__ import annotations

import base64
import binascii
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vrrl_jax.data.records import KINDS, At, Id, Record, build, text, texts

# The largest picture file that is stored; above what any camera writes.
MAX_FILE = 256 * 2**20
MAX_EXTRA = 512 * 2**20  # `extra` may hold such a picture, in base64
_BYTES = "$bytes"  # JSON holds no bytes: {"$bytes": base64} stands for them


def to_row(record: Record) -> dict[str, Any]:
    """The fields of a record, its pictures read but not decoded.

    Raises:
      ValueError: a picture file is too large.
      OSError: one can't be read.
    """
    return {
        "source": record.id.source,
        "row": record.id.row,
        "part": record.id.part,
        "question": record.question,
        "pictures": [_encoded(picture) for picture in record.pictures],
        "answer": record.answer,
        "kind": record.kind,
        "options": list(record.options),
        "accepted": list(record.accepted),
        "boxes": [list(box) for box in record.boxes],
        "category": record.category,
        "extra": json.dumps(dict(record.extra), default=_to_json),
    }


def from_row(at: At, row: Mapping[str, Any]) -> Record:
    """The record of a stored row, checked like any other; its id is the stored one.

    Raises:
      ValueError: what is wrong with the row.
    """
    kind, answer = text(row, "kind"), text(row, "answer")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind[:40]!r}: expected one of {KINDS}")
    numbers = [row.get(name) for name in ("row", "part")]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"row and part should count from 0, they are {str(numbers)[:60]}")
    boxes = row.get("boxes")
    if not isinstance(boxes, list | tuple | None):
        raise ValueError("field 'boxes' should be a list")
    made = build(
        at,
        question=text(row, "question"),
        pictures=row.get("pictures") or [],
        answer=answer or None,
        kind=kind,
        options=texts(row, "options"),
        accepted=texts(row, "accepted"),
        boxes=boxes or [],
        category=text(row, "category", default=""),
        extra=_extra(text(row, "extra", default="{}", longest=MAX_EXTRA)),
        blank=True,
    )
    source = text(row, "source", default=at.source)
    return Record(**{**vars(made), "id": Id(source, *numbers)})


def _encoded(picture: bytes | pathlib.Path) -> bytes:
    if isinstance(picture, bytes):
        return picture
    size = picture.stat().st_size
    if size > MAX_FILE:
        raise ValueError(f"{picture} has {size} bytes, at most {MAX_FILE} are stored")
    return picture.read_bytes()


def _to_json(value: Any) -> Any:
    """What stands in JSON for a value that it doesn't know; a plain text for what is left."""
    if isinstance(value, pathlib.Path) and value.is_file():
        value = _encoded(value)
    if isinstance(value, bytes | bytearray):
        return {_BYTES: base64.b64encode(value).decode()}
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _extra(cell: str) -> dict[str, Any]:
    try:
        value = json.loads(cell, object_hook=_from_json)
    except (ValueError, RecursionError):
        raise ValueError("field 'extra' is no JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"field 'extra' should be an object, it is {type(value).__name__}")
    return value


def _from_json(value: dict[str, Any]) -> Any:
    if list(value) == [_BYTES] and isinstance(value[_BYTES], str):
        try:
            return base64.b64decode(value[_BYTES], validate=True)
        except (binascii.Error, ValueError):
            return value
    return value
