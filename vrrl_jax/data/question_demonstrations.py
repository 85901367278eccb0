r"""Demonstrations for single questions: answers, steps before them, mistakes and their repair.

Generated questions bring their own true steps. What a first thought gets wrong on purpose is shown
and never trained on. Records from files bring their replies with them.
"""

from __future__ import annotations

import dataclasses
import random
import re
from typing import Literal

from vrrl_jax.data.demonstrations import DemonstrationReply, Piece
from vrrl_jax.data.records import LETTERS, Record
from vrrl_jax.data.shape_scenes import COLOURS, SHAPES, plural
from vrrl_jax.data.shape_words import conclude
from vrrl_jax.data.shapes import Question, misread

# --- words -------------------------------------------------------------------------------------

NUMBERS = tuple(str(number) for number in range(20))
SIGNS = ("?", ",", ".", ":", "=", "+", ">", "}")
# Every word that short questions, their options, steps, answers and short triggers are made of.
WORDS: tuple[str, ...] = (
    *SHAPES,
    *map(plural, SHAPES),
    *COLOURS,
    *("what", "is", "shown", "how", "many", "colour", "the", "shape", "there", "a", "an"),
    *("more", "or", "where", "largest", "of", "row", "column", "in", "none", "so", "yes", "no"),
    *("top", "bottom", "left", "right", "middle"),
    *("wait", "let", "me", "check", "again", "that", "wrong"),
    *("A", "B", "C", "D"),
)
BOX = "\\boxed{"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
STAGE_TAGS = tuple(f"<{slash}{stage}>" for stage in STAGES for slash in ("", "/"))
# Those of them that may open a text, a tag's content or a box, without the space that otherwise
# precedes a word.
OPENERS: tuple[str, ...] = (
    *SHAPES,
    *map(plural, SHAPES),
    *COLOURS,
    *("what", "how", "is", "where", "more", "largest", "colour", "row", "none", "so", "yes", "no"),
    *("A", "B", "C", "D"),
)
# What a small tokenizer should have as one token each.
TOKENS: tuple[str, ...] = (
    *TAGS,
    *STAGE_TAGS,
    *(BOX, f" {BOX}"),
    *("?", ",", ".", ":", "}", " ?", " =", " +", " >"),
    *NUMBERS[:10],
    *(f" {number}" for number in NUMBERS),
    *OPENERS,
    *(f" {word}" for word in WORDS),
)


@dataclasses.dataclass(frozen=True)
class Triggers:
    """What opens a second thought, by kind; each at least one text.

    Attributes:
      verification: checks, whether or not the first thought was right.
      correction: says that it was wrong.
      questioning: doubts it.
    """

    verification: tuple[str, ...]
    correction: tuple[str, ...]
    questioning: tuple[str, ...]


# As published with VL-Rethinker (arXiv 2504.08837).
TRIGGERS = Triggers(
    ("Let me double-check my answer...",),
    ("On second thought, I made a mistake...",),
    ("Wait, let me reconsider this problem...",),
)
SHORT_TRIGGERS = Triggers(
    ("wait, let me check again.",), ("wait, that is wrong.",), ("wait, is that right?",)
)


# --- generated questions -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    r"""What demonstrations are like. Chances in 0 .. 1.

    Attributes:
      style: "boxed": steps, then `\boxed{3}`; "r1": the same inside `<think>` and `<answer>`;
        "cot": the four stages of LLaVA-CoT; "direct": the answer alone, nothing else applies.
      steps: chance that steps precede the answer.
      wrong_first: chance of a wrong first thought, a trigger, and the right one.
      confirm: chance of a right first thought, a trigger, and the same again.
      triggers: see `Triggers`.
      trigger_weight: loss weight of a trigger.
      wrong_weight: loss weight of a wrong first thought.

    Raises:
      ValueError: an unknown style, or chances out of range.
    """

    style: Literal["boxed", "r1", "cot", "direct"] = "boxed"
    steps: float = 1.0
    wrong_first: float = 0.0
    confirm: float = 0.0
    triggers: Triggers = TRIGGERS
    trigger_weight: float = 1.0
    wrong_weight: float = 0.0

    def __post_init__(self):
        if self.style not in ("boxed", "r1", "cot", "direct"):
            raise ValueError(f"unknown style {self.style!r}")
        if min(self.steps, self.wrong_first, self.confirm) < 0 or self.steps > 1:
            raise ValueError(f"chances must be in 0 .. 1: {self}")
        if self.wrong_first + self.confirm > 1:
            raise ValueError("wrong_first and confirm exclude each other: their sum is at most 1")


def demonstrate(
    example: Question | Record, rng: random.Random, options: Options = Options()
) -> tuple[DemonstrationReply, ...]:
    """One episode's only reply.

    Of a record: its correction, its stages ("cot") or its worked reply where it has one (see
    `correction`, `staged`, `worked`), else its answer.

    Args:
      example: a generated question, or a record.
      rng: draws what `options` leaves to chance.
      options: what replies are like.
    """
    if isinstance(example, Record):
        if set(CORRECTION) <= set(example.extra) and any(_said(example, n) for n in CORRECTION):
            return correction(example)
        if options.style == "cot" and all(_said(example, name) for name in STAGED):
            return staged(example)
        if worked_text(example) is not None:
            return worked(example, options.style if options.style in ("boxed", "r1") else "as_is")
        return _reply([Piece(_wrap(options.style, "", _answer(options.style, example.answer)))])
    if options.style == "direct":
        return _reply([Piece(example.answer)])
    if rng.random() >= options.steps:
        return _reply([Piece(_wrap(options.style, "", _answer(options.style, example.answer)))])
    chance = rng.random()
    if chance < options.wrong_first:
        first, weight = _wrong_thought(example, rng), options.wrong_weight
        triggers = (
            *options.triggers.verification,
            *options.triggers.correction,
            *options.triggers.questioning,
        )
    elif chance < options.wrong_first + options.confirm:
        first, weight = (" ".join(example.steps), example.answer), 1.0
        triggers = options.triggers.verification + options.triggers.questioning
    else:
        return _reply(_thoughts(example, options.style, []))
    before = [Piece(_first_thought(options.style, *first), weight=weight)]
    before.append(Piece(f" {rng.choice(triggers)}", weight=options.trigger_weight))
    return _reply(_thoughts(example, options.style, before))


def _first_thought(style: str, thought: str, answer: str) -> str:
    """A thought that another one follows; without tags it closes with its box, as replies do."""
    return f"{thought} {BOX}{answer}}}" if style == "boxed" else thought


def _thoughts(question: Question, style: str, before: list[Piece]) -> list[Piece]:
    """A reply with earlier thoughts put in where its true steps begin."""
    steps = " ".join(question.steps)
    text = _wrap(style, steps, _answer(style, question.answer), question)
    if not before:
        return [Piece(text)]
    place = text.index(steps)
    opening = text[:place].rstrip(" ")
    # A space belongs to the word behind it.
    first = dataclasses.replace(before[0], text=text[len(opening) : place] + before[0].text)
    return [Piece(opening), first, *before[1:], Piece(" " + text[place:])]


def _wrong_thought(question: Question, rng: random.Random) -> tuple[str, str]:
    """(steps, answer) of a misreading; of a mere guess where no misreading comes to mind."""
    seen = misread(question, rng)
    if seen is not None:
        return " ".join(seen.steps), seen.answer
    if question.options:
        guesses = LETTERS[: len(question.options)]
    elif question.kind == "yesno":
        guesses = ("yes", "no")
    elif question.kind == "number":
        guesses = NUMBERS
    else:
        guesses = tuple(COLOURS) + SHAPES
    guess = rng.choice([guess for guess in guesses if guess != question.answer])
    return conclude(guess, question.wording), guess


def _answer(style: str, answer: str) -> str:
    return answer if style == "direct" else f"{BOX}{answer}}}"


def _wrap(style: str, thought: str, answer: str, question: Question | None = None) -> str:
    """A reply's text. Tags and words stand so that each word keeps the space before it."""
    if style == "r1":
        inner = f" {thought}" if thought else ""
        return f"<think>{inner}</think><answer>{answer}</answer>"
    if style == "cot" and question is not None:
        parts = (question.question, _caption(question), thought, answer)
        return "".join(f"<{s}>{part}</{s}>" for s, part in zip(STAGES, parts, strict=True))
    return f"{thought} {answer}" if thought else answer


def _caption(question: Question) -> str:
    """What the picture shows, in reading order."""
    short = question.wording == "short"
    if question.scene is None:
        return "none." if short else "There is no picture."
    names = ", ".join(item.name for item in question.scene.items)
    return f"{names}." if short else f"The picture shows in reading order: {names}."


def _reply(pieces: list[Piece]) -> tuple[DemonstrationReply, ...]:
    """One reply; neighbours of one weight are joined, so that they are tokenised as one text."""
    joined: list[Piece] = []
    for piece in filter(lambda piece: piece.text, pieces):
        if joined and joined[-1].weight == piece.weight:
            joined[-1] = dataclasses.replace(piece, text=joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return (DemonstrationReply(tuple(joined), 1.0),)


def after(reply: DemonstrationReply, opening: str) -> DemonstrationReply:
    """What is left to say of a reply whose opening is given.

    Raises:
      ValueError: the reply opens otherwise.
    """
    if not reply.text.startswith(opening):
        raise ValueError(
            f"a demonstration opens with {reply.text[:40]!r}, and replies are made to open with "
            f"{opening!r}"
        )
    pieces, left = [], len(opening)
    for piece in reply.pieces:
        text = piece.text[left:]
        left = max(0, left - len(piece.text))
        if text:
            pieces.append(piece if text == piece.text else dataclasses.replace(piece, text=text))
    return dataclasses.replace(reply, pieces=tuple(pieces))


# --- replies from files ------------------------------------------------------------------------

WORKED = ("conversations", "solution", "reasoning", "response")
CORRECTION = ("first_reply", "critique", "corrected_reply")
STAGED = ("summary", "caption", "reasoning")


def _said(record: Record, name: str) -> str:
    """The text of a field of a record's row, stripped; "" where there is none."""
    value = record.extra.get(name)
    return value.strip() if isinstance(value, str) else ""


def staged(record: Record) -> tuple[DemonstrationReply, ...]:
    """LLaVA-CoT's four stages out of a row's fields summary, caption, reasoning and conclusion.

    Without a conclusion the record's answer, in a box, is it.

    Raises:
      ValueError: one of the first three is missing.
    """
    parts = [_said(record, name) for name in STAGED]
    if not all(parts):
        raise ValueError(f"{record.id} has no text in one of {STAGED}")
    parts.append(_said(record, "conclusion") or _answer("cot", record.answer))
    text = "".join(f"<{s}>{part}</{s}>" for s, part in zip(STAGES, parts, strict=True))
    return _reply([Piece(text)])


def worked_text(record: Record, fields: tuple[str, ...] = WORKED) -> str | None:
    """The full reply that a record's row brings along.

    Args:
      record: whose `extra` is looked at.
      fields: tried in order: a text, or a conversation, a list of turns {"from", "value"} or
        {"role", "content"}, whose second turn is the reply.

    Returns:
      The text; None where no field holds one.
    """
    for name in fields:
        value = record.extra.get(name)
        if isinstance(value, list) and len(value) > 1 and isinstance(value[1], dict):
            value = value[1].get("value", value[1].get("content"))
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def worked(
    record: Record,
    style: Literal["as_is", "boxed", "r1"] = "as_is",
    fields: tuple[str, ...] = WORKED,
) -> tuple[DemonstrationReply, ...]:
    r"""A record's worked reply as a demonstration.

    Args:
      record: with a reply in `extra`.
      style: "as_is", or rewritten: "r1" puts what precedes the conclusion into `<think>` and the
        record's answer into `<answer>`; "boxed" puts the answer into a box at its end. The four
        stages of LLaVA-CoT lose their tags then, and what is boxed or tagged already stays.
      fields: see `worked_text`.

    Raises:
      ValueError: the record brings no reply.
    """
    text = worked_text(record, fields)
    if text is None:
        raise ValueError(f"{record.id} has no reply in {fields}")
    if style != "as_is" and BOX not in text and "</answer>" not in text:
        text = _wrap(style, _without_stages(text), _answer(style, record.answer))
    return _reply([Piece(text)])


def _without_stages(text: str) -> str:
    """The thoughts of a reply in LLaVA-CoT's stages, one a line; of another, all of it."""
    parts = [re.search(rf"<{stage}>(.*?)</{stage}>", text, re.DOTALL) for stage in STAGES[:-1]]
    thoughts = [part.group(1).strip() for part in parts if part]
    return "\n".join(thoughts) if thoughts else text


def correction(
    record: Record,
    fields: tuple[str, str, str] = CORRECTION,
    *,
    first_weight: float = 0.0,
    critique_weight: float = 1.0,
) -> tuple[DemonstrationReply, ...]:
    """Reflection: a first reply, what is wrong with it, and the corrected reply, as one reply.

    Args:
      record: with the three texts in `extra`, as `records.rest` leaves them there.
      fields: their names, in that order.
      first_weight: loss weight of the first reply; 0 shows it only.
      critique_weight: of the critique.

    Raises:
      ValueError: a text is missing or empty.
    """
    first, critique, corrected = texts = [_said(record, name) for name in fields]
    for name, text in zip(fields, texts, strict=True):
        if not text:
            raise ValueError(f"{record.id} has no text in {name!r}")
    pieces = [Piece(first, weight=first_weight), Piece(f"\n{critique}", weight=critique_weight)]
    return _reply([*pieces, Piece(f"\n{corrected}")])
