"""Rows of the training sets: ViRL39K, MMK12, Geometry3K, CLEVR counting, LLaVA-CoT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vrrl_jax.data.mappers.cells import is_letter, tagged, unbox
from vrrl_jax.data.records import MARK, At, Record, build, is_empty, open_kind, rest, text, texts

_CHOICES = "ABCDEFGHIJK"


def virl39k(at: At, row: Mapping[str, Any]) -> Record:
    r"""ViRL39K: `<image>` marks or none, an answer in `\boxed{}`, picture paths.

    An answer that is a letter is a choice whose options stand in the question. Rates of -1 are
    missing ones. The pictures' archive unpacks into `images`, for some into `images/images`.
    """
    answer = unbox(text(row, "answer"))
    extra = rest(row, "question", "answer", "category", "image")
    for name in ("PassRate_32BTrained", "PassRate_7BBase"):
        if extra.get(name) == -1:
            extra[name] = None
    return build(
        at,
        question=text(row, "question"),
        pictures=texts(row, "image"),
        answer=answer,
        kind="choice" if is_letter(answer, _CHOICES) else "math",
        category=text(row, "category", default=""),
        extra=extra,
        folders=("", "images"),
    )


def mmk12(at: At, row: Mapping[str, Any]) -> Record:
    """MMK12: one picture; free answers (train), or a letter for "A. ..." lines (test)."""
    question, answer = text(row, "question"), text(row, "answer").strip()
    choice = is_letter(answer) and re.search(rf"^\s*{answer}\.", question, re.MULTILINE)
    return build(
        at,
        question=question,
        pictures=[row.get("image")],
        answer=answer,
        kind="choice" if choice else "math",
        category=text(row, "subject", default=""),
        extra=rest(row, "question", "answer", "subject", "image"),
    )


def geometry3k(at: At, row: Mapping[str, Any]) -> Record:
    """Geometry3K: the answer is a value; choices, where the revision has them, aren't asked."""
    return build(
        at,
        question=text(row, "problem"),
        pictures=row.get("images") or [],
        answer=text(row, "answer").strip(),
        kind="math",
        extra=rest(row, "problem", "images", "answer"),
    )


def clevr(at: At, row: Mapping[str, Any]) -> Record:
    """CLEVR counting and its complex and out-of-domain kin: `<answer> 3 </answer>`."""
    solution = text(row, "solution")
    answer = tagged(solution, "answer")
    if answer is None:
        raise ValueError(f"the solution has no <answer>: {solution[:80]!r}")
    yes_no = answer.lower() in ("yes", "no")
    return build(
        at,
        question=text(row, "problem"),
        pictures=[row.get("image")],
        answer=answer.lower() if yes_no else answer,
        kind="yesno" if yes_no else open_kind(answer),
        extra=rest(row, "problem", "solution", "image"),
    )


def llava_cot(at: At, row: Mapping[str, Any]) -> Record:
    """LLaVA-CoT: the first exchange of a conversation; its conclusion is the answer.

    The whole conversation stays in `extra["conversations"]`, its marks as they are.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
        raise ValueError("conversations should list pairs of turns, human and gpt")
    for number, turn in enumerate(turns):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(turn, Mapping) or turn.get("from") != speaker:
            raise ValueError(f"turn {number} of the conversation isn't one of {speaker}")
        if number and MARK in text(turn, "value"):
            raise ValueError(f"turn {number} of the conversation marks a picture")
    answer = tagged(text(turns[1], "value"), "CONCLUSION")
    if answer is None:
        raise ValueError("the first reply has no <CONCLUSION>")
    return build(
        at,
        question=text(turns[0], "value"),
        pictures=[] if is_empty(row.get("image")) else [row["image"]],
        answer=answer,
        kind="text",
        extra=rest(row, "image"),
    )
