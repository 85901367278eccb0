r"""Rewards of single-turn answers: the answer's correctness by its kind, and the reply's form.

Three styles. "r1" (DeepSeek-R1, arXiv 2501.12948, as R1-V does it for pictures) adds a reward for
`<think>..</think><answer>..</answer>` to one for the right answer; "cot" does so for the stages
of LLaVA-CoT (arXiv 2411.10440). "rethinker" (VL-Rethinker, arXiv 2504.08837) pays 1 for right, 0
for wrong and -0.1 for an invalid reply, one without a box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from vrrl_jax.data.question_demonstrations import STAGES
from vrrl_jax.rewards.boxes import iou, parse_box
from vrrl_jax.rewards.equivalence import equivalent
from vrrl_jax.rewards.extraction import (
    ANSWER_LIMIT,
    TEXT_LIMIT,
    TOO_LONG,
    UNREADABLE,
    Verdict,
    alike,
    boxed,
    choice,
    extract,
    last_number,
    number,
    plain,
    yes_no,
)

Kind = Literal["choice", "number", "math", "text", "yesno", "box"]
KINDS: tuple[Kind, ...] = ("choice", "number", "math", "text", "yesno", "box")
_WAIT = re.compile(r"\bwait\b", re.IGNORECASE)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def well_formed(text: str) -> bool:
    """Whether a reply is `<think>..</think><answer>..</answer>`, each tag once, nothing outside.

    White space around and between the pairs doesn't count. An empty pair does: form is all this
    looks at.
    """
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    places = [text.index(tag) for tag in _TAGS]
    between = text[places[1] + len("</think>") : places[2]]
    outside = text[: places[0]] + between + text[places[3] + len("</answer>") :]
    return places == sorted(places) and not outside.strip()


def in_stages(text: str) -> bool:
    """Whether a reply is LLaVA-CoT's four stages in their order, each once, nothing outside."""
    tags = [f"<{slash}{stage}>" for stage in STAGES for slash in ("", "/")]
    if any(text.count(tag) != 1 for tag in tags):
        return False
    places = [text.index(tag) for tag in tags]
    ends = [place + len(tag) for place, tag in zip(places, tags, strict=True)]
    gaps = zip([0, *ends[1::2]], [*places[::2], None], strict=True)
    outside = [text[end:start] for end, start in gaps]
    return places == sorted(places) and not "".join(outside).strip()


def score(
    text: str,
    answer: Any,
    kind: Kind,
    *,
    style: Literal["r1", "cot", "rethinker"] = "r1",
    correct_value: float = 1.0,
    format_value: float = 1.0,
    invalid_value: float = -0.1,
    max_waits: int = 5,
    wait_bonus: float = 0.0,
    wait_cost: float = 0.0,
    ended: bool = True,
    options: Sequence[str] = (),
    tolerance: float = 0.0,
    threshold: float = 0.5,
    graded: bool = False,
    seconds: float = 3.0,
) -> dict[str, float]:
    """Scores a reply to a question with a known answer.

        r1, cot:    total = correct_value * correct + format_value * formed
        rethinker:  total = invalid_value                where the reply is invalid
                          = correct_value * correct      elsewhere,
                            + wait_bonus for one or two "wait" in a right reply,
                            - wait_cost for each further one

    A reply is invalid that hasn't ended, has no closed box, or more than `max_waits` "wait". The
    paper's values are the defaults; the released code has `wait_bonus=0.1, wait_cost=0.2`.

    Args:
      text: the reply.
      answer: the right answer. "choice": a letter, or an option's text; "number": a number or a
        text of one; "math": LaTeX, in a box or bare; "text": a text, or several that are right;
        "yesno": a text or a bool; "box": x1, y1, x2, y2 in the reply's own coordinates.
      kind: how to compare, see `judge`.
      style: see above.
      correct_value: worth of a right answer.
      format_value: worth of the form: `well_formed` ("r1"), `in_stages` ("cot").
      invalid_value, max_waits, wait_bonus, wait_cost: see above ("rethinker").
      ended: whether the reply came to its end token ("rethinker").
      options: the options' texts ("choice").
      tolerance: relative, of numbers.
      threshold: least IoU of a right box.
      graded: pays a box by its IoU instead of by the threshold.
      seconds: of processor time for a comparison ("math").

    Returns:
      `total`, its parts `correct`, `format`, `rethinking`, and counts: `waits`, `valid`, `read`
      (an answer was found), `fallback` (by a rule of last resort), `iou`, and `refused`, `timeout`,
      `crash`: what kept an answer from being judged. All floats, flags 0 or 1.

    Raises:
      ValueError: an unknown kind or style, or a right answer that its kind can't be.
      ImportError: "math" without math-verify.
    """
    if style not in ("r1", "cot", "rethinker"):
        raise ValueError(f"style must be r1, cot or rethinker; got {style!r}")
    verdict = judge(
        text,
        answer,
        kind,
        options=options,
        tolerance=tolerance,
        threshold=threshold,
        seconds=seconds,
    )
    right = verdict.value if graded and kind == "box" else float(verdict.correct)
    readable = len(text) <= TEXT_LIMIT
    waits = sum(1 for _ in _WAIT.finditer(text)) if readable else 0
    formed = readable and (in_stages(text) if style == "cot" else well_formed(text))
    extra = 0.0
    if style != "rethinker":
        valid, shape = readable, format_value * formed
        total = correct_value * right + shape
    else:
        valid = readable and ended and waits <= max_waits and boxed(text) is not None
        shape = 0.0 if valid else invalid_value
        if valid and right:
            extra = wait_bonus * (waits in (1, 2)) - wait_cost * max(0, waits - 2)
        total = correct_value * right + extra if valid else invalid_value
    return {
        "total": float(total),
        "correct": float(verdict.correct),
        "format": float(shape),
        "rethinking": extra,
        "waits": float(waits),
        "valid": float(valid),
        "read": float(verdict.parsed is not None),
        "fallback": float(verdict.fallback),
        "iou": float(verdict.value or 0.0),
        "refused": float(verdict.reason in ("too long", "refused")),
        "timeout": float(verdict.reason == "timeout"),
        "crash": float(verdict.reason == "crash"),
    }


def judge(
    text: str,
    answer: Any,
    kind: Kind,
    *,
    options: Sequence[str] = (),
    tolerance: float = 0.0,
    threshold: float = 0.5,
    seconds: float = 3.0,
) -> Verdict:
    """Whether a reply's answer is right: the tags' content (see `extract`), the last box's, or all.

    | kind   | right where                                                                  |
    |--------|------------------------------------------------------------------------------|
    | choice | the letter it settles on is the right one (see `extraction.choice`)          |
    | number | equal within `tolerance`; thousands by comma, $ and % are read               |
    | math   | math-verify finds both the same                                              |
    | text   | equal but for case, width, white space, quotes, a final full stop            |
    | yesno  | just the right one of yes (true) and no (false) is among the words           |
    | box    | the IoU is at least `threshold`; the verdict's value                         |

    Arguments and errors are those of `score`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    gold = _gold(answer, kind, options)
    if len(text) > TEXT_LIMIT:
        return TOO_LONG if kind != "box" else Verdict(False, None, reason="too long", value=0.0)
    if kind == "choice":
        letter, fallback = choice(text, options)
        return Verdict(letter == gold, letter, fallback, "" if letter else "unreadable")
    found = extract(text)
    content = plain(found.text)
    if kind == "box":
        corners = parse_box(content)
        if corners is None:
            return Verdict(False, None, reason="unreadable", value=0.0)
        overlap = iou(corners, gold)
        return Verdict(overlap >= threshold, repr(list(corners)), value=overlap)
    if kind == "yesno":
        word = yes_no(content)
        return Verdict(word == gold, word, reason="" if word else "unreadable")
    if len(content) > ANSWER_LIMIT and (kind != "number" or found.place != "bare"):
        return TOO_LONG
    if kind == "number":
        return _number(content, gold, tolerance, found.place == "bare")
    if not content:
        return UNREADABLE
    if kind == "text":
        return Verdict(any(alike(content, g) for g in gold), content)
    outcome = equivalent(content, gold, seconds=seconds)
    reason = "" if outcome in ("equal", "different") else outcome
    return Verdict(outcome == "equal", content, reason=reason)


def _number(content: str, gold: float, tolerance: float, bare: bool) -> Verdict:
    value = number(content)
    fallback = value is None and bare
    if fallback:
        last = last_number(content)
        value = None if last is None else number(last)
    if value is None:
        return UNREADABLE
    return Verdict(abs(value - gold) <= max(tolerance, 1e-9) * abs(gold), repr(value), fallback)


def _gold(answer: Any, kind: Kind, options: Sequence[str]) -> Any:
    """The right answer in the form that its kind compares with."""
    gold: Any = None
    if kind == "text":
        gold = [answer] if isinstance(answer, str) else list(answer)
        gold = gold if gold and all(isinstance(g, str) and g.strip() for g in gold) else None
    elif kind == "box":
        gold = tuple(map(float, answer))
        gold = gold if len(gold) == 4 and gold[0] < gold[2] and gold[1] < gold[3] else None
    elif kind == "yesno":
        gold = ("yes" if answer else "no") if isinstance(answer, bool) else yes_no(str(answer))
    elif kind == "number":
        text = str(answer)
        gold = number(extract(text).text)
    elif kind == "math":
        gold = extract(str(answer)).text or None
    else:
        text = plain(extract(str(answer)).text)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options) or 11]
        same = [x for x, o in zip(letters, options, strict=False) if alike(text, o)]
        gold = text if len(text) == 1 and text in letters else same[0] if len(same) == 1 else None
    if gold is None:
        raise ValueError(f"{str(answer)[:100]!r} can't be the right answer of kind {kind!r}")
    return gold
