"""Scoring rules of mathematical benchmarks: VL-Rethinker's, MathVision, EMMA, MathVerse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from vrrl_jax.rewards.equivalence import LENGTH_LIMIT, equivalent, failure, rounded, same_value
from vrrl_jax.rewards.extraction import (
    TEXT_LIMIT,
    TOO_LONG,
    Verdict,
    boxed,
    choice,
    extract,
    plain,
    tagged,
    tail,
)

Mode = Literal["official", "strict"]
_CHOICES = "ABCDEFGHIJK"
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: i for i, word in enumerate(_UNITS.split())}
_WORDS |= {word: 10 * i for i, word in enumerate(_TENS.split(), 2)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_FINAL = ("final answer is", "correct answer is", "answer should be", "answer is")


def rethinker(reply: str, gold: str, *, mode: Mode = "official", seconds: float = 3.0) -> Verdict:
    r"""VL-Rethinker's rule (arXiv 2504.08837; TIGER-AI-Lab/VL-Rethinker), for training and tests.

    Tried in order until one is right: the last box; the answer tags; what follows the last
    `Answer:`. A gold answer out of the letters A to K counts where the answer starts with it;
    any other is compared by math-verify, after `dfrac` is `frac`, `\varnothing` is `\emptyset`,
    and `\text`, "minutes" and "cm" are gone. The reference tries all of the text last; here a
    reply with none of the three is wrong, since math-verify picks any number out of a text.

    Args:
      reply: the model's text.
      gold: the right answer, in a box or bare.
      mode: "official" lets `\boxed{ABOUT 5}` answer A, takes `\boxed{\text{B}}` for wrong, and
        lets tags or a tail make good for a wrong box. "strict" judges one answer (tags, box, or
        tail), by a letter that stands alone, with `\text{}` removed around it.
      seconds: of processor time for a comparison.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    unboxed = boxed(gold)
    gold = (gold if unboxed is None else unboxed).strip()
    if mode == "strict":
        if len(gold) == 1 and gold in _CHOICES:
            letter, fallback = choice(reply, letters=_CHOICES)
            return Verdict(letter == gold, letter, fallback, "" if letter else "unreadable")
        found = extract(reply)
        settled = tail(reply, ["Answer:"]) if found.place == "bare" else found.text
        tried = [None if settled is None else plain(settled)]
    else:
        tried = [boxed(reply), tagged(reply), tail(reply, ["Answer:"])]
    reason, first = "unreadable", None
    for text in (_simplified(text) for text in tried if text is not None):
        first = text if first is None else first
        if gold and gold in _CHOICES:
            outcome = "equal" if text.startswith(gold) else "different"
        else:
            outcome = equivalent(text, _simplified(gold), seconds=seconds)
        if outcome == "equal":
            return Verdict(True, text[:LENGTH_LIMIT])
        # The first that could be judged says why.
        if reason == "unreadable":
            reason = "" if outcome == "different" else outcome
    return Verdict(False, None if first is None else first[:LENGTH_LIMIT], reason=reason)


def mathverse(
    reply: str, gold: str, question_type: Literal["multi-choice", "free-form"]
) -> Verdict:
    """MathVerse (arXiv 2403.14624) without its judges: letters, else VL-Rethinker's rule.

    The official score asks a language model to extract and another to compare; numbers by this
    rule aren't comparable with those.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    if question_type == "multi-choice":
        letter, fallback = choice(reply, letters=_CHOICES)
        return Verdict(letter == gold, letter, fallback, "" if letter else "unreadable")
    return rethinker(reply, gold, mode="strict")


def mathvision(reply: str, gold: str, options: Sequence[str] = ()) -> Verdict:
    r"""MathVision's rule (arXiv 2402.14804), as lmms-eval's `mathvision_test` has it.

    Equal as text, as tuples of values, or as values rounded to two decimals: 3.14 answers `\pi`.
    Compared with the letter, and with the option's text. LaTeX is evaluated by
    latex2sympy2_extended, where the reference has latex2sympy2.

    Raises:
      ValueError: options are given, and the gold answer is not one of their letters.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    text = ""
    if options:
        index = ord(gold) - ord("A") if len(gold) == 1 else -1
        if not 0 <= index < len(options):
            raise ValueError(f"{gold!r} is no letter of {len(options)} options")
        text = options[index]
    answer = mathvision_answer(reply)
    if len(answer) > LENGTH_LIMIT:
        return Verdict(False, answer[:LENGTH_LIMIT], reason="too long")
    right = _rounded_equal(gold, answer) or _rounded_equal(text, answer)
    if right:
        return Verdict(True, answer)
    return Verdict(False, answer or None, reason=failure(answer) if answer else "unreadable")


def mathvision_answer(reply: str) -> str:
    r"""The answer that MathVision's rule reads, in its normal form.

    A letter that opens or ends the reply; a number after "is "; the last box; the sentence after
    "the answer is". Lower case, after the last `=` and `\approx`, without spaces, units, degrees
    and percents, fractions of integers as `\frac{a}{b}`.
    """
    answer = reply.strip()
    for c in "ABCDE":
        ends, starts = (f" {c}.", f" ({c})."), (f"{c}\n", f"({c})\n", f"({c}) {c}\n")
        if answer.endswith(ends) or answer.startswith(starts):
            answer = c
    number = answer.rsplit("is ", 1)[-1].rstrip(".")
    if len(number) < 400 and _is_number(number):
        answer = number
    if "oxed{" not in answer:
        for flag in ("final answer is", "answer is", "correct answer is", "answer should be"):
            for article in ("the ", "The "):
                if article + flag in answer:
                    answer = answer.rsplit(article + flag, 1)[-1].strip()
                    answer = answer.split("\n")[0].split(". ")[0]
    elif answer.count("oxed{") > 1:
        answer = r"\boxed{" + answer.rsplit("oxed{", 1)[-1]
    answer = _mathvision_form(answer.lower())
    for c in "abcde":
        answer = answer.replace(f"({c})", c).replace(f"{{{c}}}", c)
    return answer.rstrip(".").lstrip(":").strip()


def emma(reply: str, gold: str, options: Sequence[str] = ()) -> Verdict:
    r"""EMMA's fast score (arXiv 2501.05444): a letter or a number alone, the last box, a sentence.

    A box's last `\text{}` is its answer. Equal as text in any case, as number words ("twenty one"
    for 21), as values rounded to two decimals, or where the difference simplifies to nothing.
    Compared with the gold answer and, where it is an option's letter, with that option's text.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    answer, fallback = _emma_answer(reply.strip())
    if len(answer) > LENGTH_LIMIT:
        return Verdict(False, None, fallback, "too long")
    index = ord(gold) - ord("A") if len(gold) == 1 else -1
    golds = [gold, *([options[index]] if 0 <= index < len(options) else [])]
    right = any(_emma_equal(answer, g) for g in golds)
    if right:
        return Verdict(True, answer, fallback)
    reason = failure(answer.lower()) if answer else "unreadable"
    return Verdict(False, answer or None, fallback, reason)


def word_number(text: str) -> int | None:
    """The number that a text spells in English words alone ("twenty-one", "two hundred and five").

    None for any other text.
    """
    words = [word for word in re.split(r"[\s-]+", text.lower().strip()) if word != "and"][:30]
    total = part = 0
    if not words or any(word not in _WORDS and word not in _SCALES for word in words):
        return None
    for word in words:
        if word == "hundred":
            part = max(part, 1) * 100
        elif word in _SCALES:
            total, part = total + max(part, 1) * _SCALES[word], 0
        else:
            part += _WORDS[word]
    return total + part


def _simplified(text: str) -> str:
    for old, new in (("dfrac", "frac"), (r"\text", ""), (r"\varnothing", r"\emptyset")):
        text = text.replace(old, new)
    return text.replace("minutes", "").replace("cm", "").strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _emma_answer(reply: str) -> tuple[str, bool]:
    for c in "ABCDEFGH":
        if reply.upper() == c or reply.startswith((f"{c}:", f"{c}.")):
            return c, False
    if len(reply) < 400 and _is_number(reply):
        return reply, False
    box = boxed(reply)
    if box is not None:
        inner = re.findall(r"\\text\{([^}]*)\}", box)
        return (inner[-1] if inner else box).strip(), False
    lower = reply.lower()
    for flag in (*_FINAL, "answer:"):
        if flag in lower:
            return lower.rsplit(flag, 1)[-1].strip().split("\n")[0].split(".")[0].strip(), False
    return reply, True


def _emma_equal(answer: str, gold: str) -> bool:
    answer, gold = answer.lower().strip(), gold.lower().strip()
    if answer == gold:
        return True
    numbers = word_number(answer), word_number(gold)
    answer, gold = (
        t if n is None else str(n) for t, n in zip((answer, gold), numbers, strict=True)
    )
    a, b = rounded(answer), rounded(gold)
    if a is not None and b is not None and round(a, 2) == round(b, 2):
        return True
    return same_value(answer, gold)


def _mathvision_form(text: str) -> str:
    text = text.replace("{}", "")
    start = text.find("oxed{")
    end = text.rfind("}")
    if 0 <= start < end:
        text = text[start + len("oxed{") : end]
    closing, opening = text.find("}"), text.find("{")
    if closing >= 0 and (opening < 0 or closing < opening):
        text = text[:closing]
    text = text.rsplit("=", 1)[-1].rsplit(r"\approx", 1)[-1]
    gone = (" ", r"\,", "\n", r"\text", r"\mbox", r"\left", r"\right", r"^{\circ}", r"^\circ")
    units = ("{m}^3", "m^3", "{units}", "units", "{km}", "km", r"\!", r"\$", "$", r"\%")
    for old, new in (("∞", r"\infty"), (r"+\infty", r"\infty"), ("\\\\", "\\")):
        text = text.replace(old, new)
    for old in gone + units:
        text = text.replace(old, "")
    text = text.replace("bmatrix", "pmatrix").replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    if r"\sqrt" in text:
        text = re.sub(r"\\sqrt([^{\[])", r"\\sqrt{\1}", text)
        text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    if text == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"\A(-?[1-9]\d{0,30}|0)/(-?[1-9]\d{0,30})\Z", r"\\frac{\1}{\2}", text)


def _rounded_equal(gold: str, answer: str) -> bool:
    gold, answer = gold.lower(), answer.lower()
    if not gold.replace(" ", "") or not answer.replace(" ", ""):
        return False
    if gold.strip() == answer.strip():
        return True
    gold, answer = _evaluated(gold), _evaluated(answer)
    if gold == answer:
        return True
    a, b = rounded(gold), rounded(answer)
    return a is not None and a == b


def _evaluated(text: str) -> str:
    """`(1/2, 3)` with its members' values; as it is where one has none, or it is no tuple."""
    parts = text[1:-1].split(",")
    if text[:1] + text[-1:] not in ("()", "[]") or not 1 < len(parts) <= 20:
        return text
    values = []
    for part in parts:
        value = part if "infty" in part or part in ("a", "-a") else rounded(part)
        if value is None:
            return text
        values.append(str(value))
    return text[0] + ",".join(values) + text[-1]
