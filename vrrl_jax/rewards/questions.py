"""Scores of single questions: `answers.score` bound to an example, under all tasks' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vrrl_jax.data.records import Record
from vrrl_jax.data.shapes import Question
from vrrl_jax.rewards import answers

# Of "rethinker": the values of the paper, and those of its released code, which also pays for one
# or two rethinkings and charges for more.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "paper": {"wait_bonus": 0.0, "wait_cost": 0.0},
    "code": {"wait_bonus": 0.1, "wait_cost": 0.2},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a reply is paid; see `answers.score` for what each part counts.

    Attributes:
      style: "r1", "cot", "rethinker", or "plain": the answer alone, however it is written.
      preset: out of `PRESETS`; gives `wait_bonus` and `wait_cost` where they are None.
      correct_value: worth of a right answer.
      format_value: worth of the form ("r1", "cot").
      invalid_value: reward of an invalid reply ("rethinker").
      max_waits: how many "wait" a valid reply may have ("rethinker").
      wait_bonus, wait_cost: for one or two "wait" in a right reply, for each further one.
      tolerance: relative, of numbers.
      threshold: least IoU of a right box.
      graded: pays a box by its IoU.
      seconds: of processor time for a mathematical comparison.

    Raises:
      ValueError: an unknown style or preset.
    """

    style: Literal["r1", "cot", "rethinker", "plain"] = "rethinker"
    preset: Literal["paper", "code"] = "paper"
    correct_value: float = 1.0
    format_value: float = 1.0
    invalid_value: float = -0.1
    max_waits: int = 5
    wait_bonus: float | None = None
    wait_cost: float | None = None
    tolerance: float = 0.0
    threshold: float = 0.5
    graded: bool = False
    seconds: float = 3.0

    def __post_init__(self):
        if self.style not in ("r1", "cot", "rethinker", "plain"):
            raise ValueError(f"style must be r1, cot, rethinker or plain; got {self.style!r}")
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {tuple(PRESETS)}; got {self.preset!r}")


def score(
    texts: Sequence[str],
    example: Question | Record,
    group: Any = None,
    settings: Settings = Settings(),
    ended: bool = True,
) -> dict[str, float]:
    """Scores an episode of one reply.

    Args:
      texts: the replies; the last one counts, and none at all is an empty one.
      example: what was asked.
      group: of rollouts; nothing here depends on it.
      settings: see above.
      ended: whether the reply came to its end token. One that was cut is invalid ("rethinker").

    Returns:
      `total`, the reward; `success`, whether the answer is right; `format`, whether the reply has
      the style's form, and `format_error`, whether not; `lost_to_format`: right, yet not in form;
      `format_reward` and `rethinking`, parts of the total; `turns`; `waits`, and `rethought`,
      whether there are any; `truncated`; and `read`, `fallback`, `iou`, `refused`, `timeout`,
      `crash` of `answers.score`. All floats, flags 0 or 1.

    Raises:
      ValueError: the example's answer is withheld, or can't be one of its kind.
      ImportError: kind "math" without math-verify.
    """
    text = texts[-1] if texts else ""
    plain = settings.style == "plain"
    preset = PRESETS[settings.preset]
    bonus, cost = settings.wait_bonus, settings.wait_cost
    parts = answers.score(
        text,
        right_answer(example),
        example.kind,
        style="r1" if plain else settings.style,
        correct_value=settings.correct_value,
        format_value=0.0 if plain else settings.format_value,
        invalid_value=settings.invalid_value,
        max_waits=settings.max_waits,
        wait_bonus=preset["wait_bonus"] if bonus is None else bonus,
        wait_cost=preset["wait_cost"] if cost is None else cost,
        ended=ended,
        options=example.options,
        tolerance=settings.tolerance,
        threshold=settings.threshold,
        graded=settings.graded,
        seconds=settings.seconds,
    )
    if plain:
        formed = parts["read"]
    elif settings.style != "rethinker":
        form = answers.in_stages if settings.style == "cot" else answers.well_formed
        formed = float(bool(parts["valid"]) and form(text))
    else:
        formed = parts["valid"]
    kept = ("read", "fallback", "iou", "refused", "timeout", "crash", "waits", "rethinking")
    return {
        "total": parts["total"],
        "success": parts["correct"],
        "format": formed,
        "format_error": 1.0 - formed,
        "lost_to_format": parts["correct"] * (1.0 - formed),
        "format_reward": parts["format"],
        "turns": float(len(texts)),
        "rethought": float(parts["waits"] > 0),
        "truncated": float(not ended),
        **{name: parts[name] for name in kept},
    }


def right_answer(example: Question | Record) -> Any:
    """What `answers.score` compares with: the answer, all that are as good, or the first box.

    Raises:
      ValueError: the answer is withheld.
    """
    if not example.answer:
        raise ValueError(f"the answer of {example.question[:60]!r} is withheld")
    if example.kind == "box":
        return example.boxes[0]
    if example.kind == "text":
        return (example.answer, *example.accepted)
    return example.answer
