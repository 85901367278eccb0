"""What a grounding reply says: a proposed place, a commit to one, or nothing that can be read.

A place is a point (x, y) or a box (x1, y1, x2, y2), in whatever system the reply speaks; it stands
inside <ANSWER></ANSWER> or <FINAL></FINAL>, as plain numbers or as the JSON that Qwen-VL writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, Literal

from vrrl_jax.processing.parsing import body

Form = Literal["point", "box"]
FORMS = ("point", "box")
Bare = Literal["invalid", "proposal", "commit"]
# Far above what a place needs. It bounds the decoder's recursion, too.
LONGEST = 10_000

_COUNT = {"point": 2, "box": 4}
_KEYS = {"point": ("point_2d", "point"), "box": ("bbox_2d", "bbox", "box")}
_NUMBER = re.compile(r"[-+]?(?:\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})", re.ASCII)
_SEPARATORS = re.compile(r"[,\s]+")
_FENCE = re.compile("```(?:json)?", re.IGNORECASE | re.ASCII)
_THOUGHT = re.compile("</think>", re.IGNORECASE | re.ASCII)


@dataclasses.dataclass(frozen=True)
class Reply:
    """A parsed reply.

    Attributes:
      kind: "proposal" (an ANSWER), "commit" (a FINAL) or "invalid".
      place: (x, y) or (x1, y1, x2, y2), finite, corners as they were written; empty where invalid.
      has_think: whether a THINK pair stands anywhere in the text.
      reason: why it is invalid, "" otherwise.
      answer: the text under "answer" in JSON, for replies that answer as well as point; else "".
    """

    kind: Literal["proposal", "commit", "invalid"]
    place: tuple[float, ...]
    has_think: bool
    reason: str = ""
    answer: str = ""


def parse(text: str, form: Form = "point", *, bare: Bare = "invalid") -> Reply:
    """Reads a reply. Never raises on any text; linear in its length.

    Tags match in any case, bodies are the shortest and may span lines, FINAL wins over ANSWER.

    Args:
      text: of the assistant.
      form: "point" or "box".
      bare: what a reply without ANSWER and FINAL is that holds the families' JSON, fenced or not.
    """
    has_think = body(text, "think") is not None
    for tag, kind in (("final", "commit"), ("answer", "proposal")):
        inside = body(text, tag)
        if inside is not None:
            return _reply(kind, _place(inside, form), has_think, f" in {tag.upper()}")
    if bare != "invalid":
        thoughts = [match.end() for match in _THOUGHT.finditer(text)]
        found = _json(text[thoughts[-1] if thoughts else 0 :], form, keyed=True)
        if found is not None:
            return _reply(bare, found, has_think, " in JSON")
    return Reply("invalid", (), has_think, "neither ANSWER nor FINAL")


def _reply(kind, found: tuple[tuple[float, ...], str] | str, has_think: bool, where: str) -> Reply:
    if isinstance(found, str):
        return Reply("invalid", (), has_think, found + where)
    return Reply(kind, found[0], has_think, answer=found[1])


def _place(text: str, form: Form) -> tuple[tuple[float, ...], str] | str:
    """((coordinates), answer), or what is wrong."""
    if len(text) > LONGEST:
        return "too long a text"
    if "{" in text or "```" in text:
        return _json(text, form) or "no place that can be read"
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    words = [word for word in _SEPARATORS.split(text) if word]
    if len(words) != _COUNT[form]:
        return f"{len(words)} numbers for a {form}"
    values = _numbers(words)
    return "no place that can be read" if values is None else (values, "")


def _json(text: str, form: Form, keyed: bool = False) -> tuple[tuple[float, ...], str] | str | None:
    """The one place in a text's JSON; what is wrong with it; or None where there is no JSON.

    With `keyed` a list of numbers alone is no place: any text may hold one.
    """
    fences = list(_FENCE.finditer(text))
    if fences:  # words around a fence may hold brackets of their own
        text = text[fences[0].end() : fences[1].start() if len(fences) > 1 else len(text)]
    starts = [i for i in (text.find("{"), text.find("[")) if i >= 0]
    end = max(text.rfind("}"), text.rfind("]")) + 1
    if not starts or not min(starts) < end <= min(starts) + LONGEST:
        return None
    try:
        value = json.loads(text[min(starts) : end])
    except (ValueError, RecursionError):
        return None
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return f"{len(value)} places"
    answer = ""
    if isinstance(value, dict):
        answer = value.get("answer", "")
        answer = str(answer) if isinstance(answer, str | int | float) else ""
        value = next((value[key] for key in _KEYS[form] if key in value), None)
    elif keyed:
        return None
    if not isinstance(value, list):
        return None
    if len(value) != _COUNT[form]:
        return f"{len(value)} numbers for a {form}"
    values = _numbers(value)
    return None if values is None else (values, answer)


def _numbers(values: list[Any]) -> tuple[float, ...] | None:
    """Finite floats out of numbers or texts of numbers, as Qwen2.5-VL at times quotes them."""
    found = []
    for value in values:
        if isinstance(value, str):
            value = value.strip()
            if not _NUMBER.fullmatch(value):
                return None
        elif type(value) not in (int, float):  # JSON's true and false are ints to Python
            return None
        try:
            found.append(float(value))
        except OverflowError:  # an integer beyond any float
            return None
    return tuple(found) if all(math.isfinite(v) and abs(v) < 1e15 for v in found) else None
