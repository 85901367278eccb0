"""Single questions: one prompt with its pictures, one reply, done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from vrrl_jax.data.records import LETTERS, PictureSource, Record
from vrrl_jax.data.shapes import Question
from vrrl_jax.render.shapes import render
from vrrl_jax.types import Outcome, Prompt

Style = Literal["boxed", "r1", "direct", "cot"]
# What follows a question. "boxed" is VL-Rethinker's (arXiv 2504.08837), "r1" R1-V's, "cot" asks for
# the four stages of LLaVA-CoT (arXiv 2411.10440).
SUFFIXES: dict[str, str] = {
    "boxed": "\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "r1": (
        "\nOutput the thinking process in <think> </think> and the final answer in "
        "<answer> </answer> tags."
    ),
    "direct": "\nAnswer with the final answer alone.",
    "cot": (
        "\n\nAnswer in four stages: inside <SUMMARY></SUMMARY> say how you will solve the "
        "problem, inside <CAPTION></CAPTION> describe what matters in the picture, inside "
        "<REASONING></REASONING> reason step by step, and inside <CONCLUSION></CONCLUSION> give "
        "the final answer within \\boxed{}."
    ),
}
# VL-Rethinker's own for the stage with forced rethinking, in place of "boxed".
RETHINKING = (
    "\n\nGuidelines: \nPlease think step by step, and **regularly perform self-questioning, "
    "self-verification, self-correction to check your ongoing reasoning**, using connectives such "
    'as "Wait a moment", "Wait, does it seem right?", etc. Remember to put your final answer '
    "within \\boxed{}."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How questions are put.

    Attributes:
      style: of the reply that is asked for, out of `SUFFIXES`.
      suffix: what follows the question and its options; None: the style's.
      joint: what stands before each option.
      opening: what every reply is made to open with.

    Raises:
      ValueError: an unknown style.
    """

    style: Style = "boxed"
    suffix: str | None = None
    joint: str = "\n"
    opening: str = ""

    def __post_init__(self):
        if self.style not in SUFFIXES:
            raise ValueError(f"unknown style {self.style!r}: expected one of {tuple(SUFFIXES)}")


def reset(
    example: Question | Record,
    settings: Settings = Settings(),
    decode: Callable[[PictureSource], np.ndarray] | None = None,
) -> Prompt:
    """The question, its options as "A. ..", and the suffix, with its pictures.

    Args:
      example: a generated question, or a record.
      settings: how it is put.
      decode: makes uint8 [H, W, 3] of a record's picture: bytes or a path. Limits of size are its
        business.

    Raises:
      ValueError: a record with pictures and no `decode`, or one whose options are too many.
    """
    if len(example.options) > len(LETTERS):
        raise ValueError(f"{len(example.options)} options, at most {len(LETTERS)} have letters")
    lines = [f"{x}. {option}" for x, option in zip(LETTERS, example.options, strict=False)]
    suffix = SUFFIXES[settings.style] if settings.suffix is None else settings.suffix
    text = settings.joint.join([example.question, *lines]) + suffix
    return Prompt(text, pictures(example, decode), settings.opening)


def pictures(
    example: Question | Record, decode: Callable[[PictureSource], np.ndarray] | None = None
) -> tuple[np.ndarray, ...]:
    """An example's pictures, uint8 [H, W, 3] each: drawn, or decoded."""
    if isinstance(example, Question):
        return () if example.scene is None else (render(example.scene),)
    if example.pictures and decode is None:
        raise ValueError(f"{example.id} has pictures, and there is nothing to decode them with")
    return tuple(decode(source) for source in example.pictures)


def step(example: Question | Record, text: str, turn: int) -> Outcome:
    """Any reply ends the episode."""
    return Outcome(True, reply=text)


@dataclasses.dataclass(frozen=True)
class Environment:
    """`reset` and `step` with settings and decoding bound: what a rollout plays against."""

    settings: Settings = Settings()
    decode: Callable[[PictureSource], np.ndarray] | None = None

    def reset(self, example: Question | Record) -> Prompt:
        return reset(example, self.settings, self.decode)

    def step(self, example: Question | Record, text: str, turn: int) -> Outcome:
        return step(example, text, turn)
