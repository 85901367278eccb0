"""Cells that hold more than one value: lists written as text, boxed answers, boxes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vrrl_jax.data.records import LETTERS, Box

# Python's parser takes memory in proportion to a literal's nesting, and its time to its length.
MAX_LITERAL = 2**20


def literal(cell: str) -> Any:
    """The value of a Python literal.

    Raises:
      ValueError: it is none, or too long.
    """
    if len(cell) > MAX_LITERAL:
        raise ValueError(f"a literal of {len(cell)} characters, at most {MAX_LITERAL} are read")
    try:
        return ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"no Python literal ({type(error).__name__}): {cell[:80]!r}") from None


def literal_texts(cell: Any, name: str) -> tuple[str, ...]:
    """The texts of a list written as a Python literal ("['a', 'b']"), or of a list.

    Null and "" are the empty list.

    Raises:
      ValueError: something else.
    """
    if isinstance(cell, str):
        cell = literal(cell) if cell.strip() else []
    if cell is None:
        return ()
    if not isinstance(cell, list | tuple) or isinstance(cell, str):
        raise ValueError(f"field {name!r} should be a list, it is {type(cell).__name__}")
    return tuple(map(str, cell))


def json_list(cell: str) -> list[Any] | None:
    """The list that a cell holds as JSON; None where it holds none."""
    if not cell.lstrip().startswith("["):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def unbox(answer: str) -> str:
    r"""What the last `\boxed{...}` of an answer holds, braces matched; without one, the answer.

    Raises:
      ValueError: its braces don't close.
    """
    start = answer.rfind(r"\boxed{")
    if start < 0:
        return answer.strip()
    depth, first = 1, start + len(r"\boxed{")
    for place in range(first, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[place], 0)
        if depth == 0:
            return answer[first:place].strip()
    raise ValueError(f"the braces of the boxed answer don't close: {answer[start : start + 80]!r}")


def tagged(text: str, tag: str) -> str | None:
    """What stands between <tag> and </tag>, the last time; None without such a pair."""
    found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.DOTALL)
    return found[-1].strip() if found else None


def is_letter(answer: str, letters: str = LETTERS) -> bool:
    return len(answer) == 1 and answer in letters


def letter_of(answer: str, options: Sequence[str]) -> str:
    """The letter of an answer that is one, or that is the text of one option.

    Raises:
      ValueError: neither, or several options read so.
    """
    answer = answer.strip()
    if is_letter(answer, LETTERS[: len(options)]):
        return answer
    found = [i for i, option in enumerate(options) if option.strip() == answer]
    if len(found) != 1 or found[0] >= len(LETTERS):
        raise ValueError(f"the answer {answer[:60]!r} is {len(found)} of the options")
    return LETTERS[found[0]]


def corner_box(left: float, top: float, width: float, height: float) -> Box:
    """(left, top, right, bottom) of a box given by its corner and size.

    Raises:
      ValueError: one of them is no number.
    """
    try:
        left, top = float(left), float(top)
        return left, top, left + float(width), top + float(height)
    except (TypeError, ValueError):
        raise ValueError("a box that isn't four numbers") from None


def box_fields(cell: Any, name: str, fields: Sequence[str]) -> list[tuple[Any, ...]]:
    """The fields of each box of a list of structs, or of the struct of lists it may become.

    Raises:
      ValueError: something else, or a field is missing.
    """
    if cell is None:
        return []
    try:
        if isinstance(cell, Mapping):
            return list(zip(*(cell[field] for field in fields), strict=True))
        return [tuple(box[field] for field in fields) for box in cell]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"field {name!r} should list boxes of {', '.join(fields)}") from None
