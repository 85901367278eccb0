"""Scoring rules of the benchmarks, each as published, and without its flaws where it has some.

Every rule takes a reply and gives a `Verdict`. `mode="official"` is what published numbers were
made with, random guesses aside: those are drawn from a seed and the reply. `mode="strict"` never
guesses, and judges the answer that the reply settles on.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Sequence
from typing import Literal

from vrrl_jax.rewards.boxes import refcoco as refcoco
from vrrl_jax.rewards.extraction import (
    ANSWER_LIMIT,
    TEXT_LIMIT,
    TOO_LONG,
    UNREADABLE,
    Verdict,
    answer_is,
    choice,
    extract,
    last_number,
    plain,
    tail,
    yes_no,
)
from vrrl_jax.rewards.mathematics import emma as emma
from vrrl_jax.rewards.mathematics import mathverse as mathverse
from vrrl_jax.rewards.mathematics import mathvision as mathvision
from vrrl_jax.rewards.mathematics import rethinker as rethinker
from vrrl_jax.rewards.tables import tablevqa_fact as tablevqa_fact
from vrrl_jax.rewards.tables import tablevqa_finance as tablevqa_finance
from vrrl_jax.rewards.tables import tablevqa_questions as tablevqa_questions

Mode = Literal["official", "strict"]
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
# A number starts where digits start: without that, a long run of digits costs quadratic time.
_SCIENTIFIC = re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(
    r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d)(?![,\d])"
)  # 1,5 is neither
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def relaxed(prediction: str, gold: str, *, mode: Mode = "official") -> bool:
    """Relaxed accuracy (ChartQA, arXiv 2203.10244): numbers within 5%, else equal in any case.

    A final % divides by 100; commas, $ and words make a text of a number. "official" compares
    with a gold 0 as text, and lets years be 5% off. "strict" compares it as a number, and years
    (1500 to 2099) exactly.
    """
    p, g = _float(prediction), _float(gold)
    if mode == "strict" and p is not None and g is not None and (not g or _YEAR.fullmatch(gold)):
        return p == g
    if p is not None and g:
        return abs(p - g) / abs(g) <= 0.05
    return prediction.lower() == gold.lower()


def chartqa(
    reply: str, golds: str | Sequence[str], *, mode: Mode = "official", thinks: bool = True
) -> Verdict:
    """ChartQA: relaxed accuracy of the reply, the best of several gold answers.

    `thinks` takes the answer out of tags or a box first, where there are any. Without it the
    whole stripped reply is the answer, as VLMEvalKit has it.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    answer = plain(extract(reply).text) if thinks else reply.strip()
    if len(answer) > ANSWER_LIMIT:
        return TOO_LONG
    golds = [golds] if isinstance(golds, str) else golds
    right = any(relaxed(answer, gold, mode=mode) for gold in golds)
    return Verdict(right, answer or None, reason="" if answer else "unreadable")


def mmmu(
    reply: str, gold: str, options: Sequence[str], *, mode: Mode = "official", seed: int = 0
) -> Verdict:
    r"""MMMU's multiple choice (arXiv 2311.16502).

    "official" takes letters in brackets, else before a space, else before a full stop, else, of
    more than five words, options whose text occurs; of several the last. It finds nothing in
    `\boxed{B}` or `**B**`; then it guesses, here by `seed` and reply. "strict" reads those, and
    counts a reply without an answer as wrong. `fallback` marks the guess.

    Raises:
      ValueError: no options, or more than letters.
    """
    if not 1 <= len(options) <= 26:
        raise ValueError(f"a multiple choice has 1 to 26 options; got {len(options)}")
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    if mode == "strict":
        letter, fallback = choice(reply, options)
        return Verdict(letter == gold, letter, fallback, "" if letter else "unreadable")
    letter = mmmu_letter(reply, options)
    if letter is not None:
        return Verdict(letter == gold, letter)
    draw = random.Random(zlib.crc32(reply.encode("utf-8", "replace")) ^ seed)
    guess = draw.choice(_ALPHABET[: len(options)])
    return Verdict(guess == gold, None, True, "unreadable")


def mmmu_letter(reply: str, options: Sequence[str]) -> str | None:
    """The letter that MMMU's official parser reads, None where it would guess."""
    for character in ",.!?;:'":
        reply = reply.strip(character)
    reply = f" {reply} "
    letters = _ALPHABET[: len(options)]
    for before, after in (("(", ")"), ("", " "), ("", ".")):
        found = [x for x in letters if f"{before}{x}{after}" in reply]
        if found:
            # Letters before a full stop are looked up between spaces too, so the first wins there.
            form = "({})" if before else " {} "
            return max(found, key=lambda x: reply.rfind(form.format(x)))
    if len(reply.split()) <= 5:
        return None
    lower = reply.lower()
    at = {x: lower.rfind(o.lower()) for x, o in zip(letters, options, strict=True)}
    found = [x for x in letters if at[x] >= 0]
    return max(found, key=at.__getitem__, default=None)


def mmmu_pro(
    reply: str, gold: str, options: Sequence[str], *, mode: Mode = "official", seed: int = 0
) -> Verdict:
    """MMMU-Pro (arXiv 2409.02813): the one letter after the last "Answer:", else MMMU's rule."""
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    after = tail(reply, ["Answer:"]) if mode == "official" else None
    found = [x for x in _ALPHABET[: len(options)] if after and x in after]
    if len(found) == 1:
        return Verdict(found[0] == gold, found[0])
    return mmmu(reply, gold, options, mode=mode, seed=seed)


def mmmu_open(reply: str, golds: str | Sequence[str]) -> Verdict:
    """MMMU's open questions: a gold number among those read, or a gold text within one.

    Of every line the shortest tail after "is", "answer" and their like, and in the last one after
    "="; all numbers in these, rounded to two decimals. A gold single letter needs a space beside.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    lines = reply.strip().strip(".").lower().split("\n")
    tails = []
    keys = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "]
    for i, line in enumerate(lines):
        keys = [*keys, "="] if i == len(lines) - 1 else keys
        shortest = ""
        for key in keys:
            if key in line:
                end = line.rsplit(key, 1)[-1].strip()
                # An empty tail gives way to any other, as in the reference.
                if not shortest or len(end) < len(shortest):
                    shortest = end
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            tails.append(shortest)
    tails = tails or ["\n".join(lines)]
    numbers = [
        n for t in tails for rule in (_COMMAS, _SCIENTIFIC, _SIMPLE) for n in rule.findall(t)
    ]
    read = {value for text in (*tails, *numbers) for value in _mmmu_forms(text)}
    texts = [value for value in read if isinstance(value, str)]
    wanted = [
        w for gold in ([golds] if isinstance(golds, str) else golds) for w in _mmmu_forms(gold)
    ]
    right = any(
        any(w in text for text in texts) if isinstance(w, str) else w in read for w in wanted
    )
    return Verdict(right, tails[-1][:ANSWER_LIMIT] or None)


def infer_choice(reply: str, options: Sequence[str]) -> str | None:
    """VLMEvalKit's `can_infer`: a letter, "Z" for a refusal, None where it would ask a judge.

    The one letter among the words where its first place is among the last four; else the letter
    after "answer is"; else the one option whose text occurs in a reply of at most twice the
    options' length. Source: open-compass/VLMEvalKit, vlmeval/utils/matching_util.py.
    """
    if len(reply) > TEXT_LIMIT:
        return None
    if any(refusal in reply for refusal in _REFUSALS):
        return "Z"
    letters = _ALPHABET[: len(options)]
    words = reply.translate(str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))).split()
    found = [x for x in letters if x in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return found[0]
    match = re.search(r"answer\s{1,20}is\s{1,20}\**([ABCD])\**", reply, re.IGNORECASE)
    if match and match.group(1).upper() in letters:
        return match.group(1).upper()
    if len(reply) > 2 * sum(map(len, options)):
        return None
    held = [x for x, o in zip(letters, options, strict=True) if o.lower() in reply.lower()]
    return held[0] if len(held) == 1 else None


def mathvista(
    reply: str,
    gold: str,
    *,
    answer_type: Literal["text", "integer", "float", "list"] = "text",
    choices: Sequence[str] = (),
    precision: float | None = None,
    mode: Mode = "official",
) -> Verdict:
    """MathVista (arXiv 2310.02255): the normalised answer is equal as text to the gold one.

    The official score has a language model find the answer in the reply; here tags, a box, the
    words after "answer is", else the last number are it (`fallback` marks the number), unless
    the whole reply already is one. With choices the gold answer is a choice's text; "official"
    takes the choice of least edit distance for whatever is no letter, "strict" takes only a
    letter or a choice's text.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    if choices and mode == "strict":
        letter, fallback = choice(reply, choices)
        text = None if letter is None else choices[_ALPHABET.index(letter)]
        right = text is not None and text.strip() == gold.strip()
        return Verdict(right, text, fallback, "" if letter else "unreadable")
    answer, fallback = _mathvista_answer(reply, bool(choices) or answer_type == "text")
    if len(answer) > ANSWER_LIMIT:
        return Verdict(False, None, fallback, "too long")
    form = _mathvista_form(answer, answer_type, choices, precision)
    right = form is not None and form.strip() == gold.strip()
    return Verdict(right, form, fallback, "" if form is not None else "unreadable")


def spatialeval(reply: str, option: str, options: Sequence[str] = ()) -> Verdict:
    """SpatialEval (arXiv 2406.14852), strict: the letter that the reply settles on.

    The official score looks for the answer or the letter anywhere in what it extracts, which
    finds letters in words; it isn't offered.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    letter, fallback = choice(reply, options, letters="" if options else "ABCD")
    return Verdict(letter == option, letter, fallback, "" if letter else "unreadable")


def vsr(reply: str, label: int) -> Verdict:
    """VSR (arXiv 2205.00363): label 1 is yes or true, 0 no or false; both or neither is wrong."""
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    answer = yes_no(extract(reply).text)
    right = answer == ("yes" if label else "no")
    return Verdict(right, answer, reason="" if answer else "unreadable")


def space(reply: str, gold: int | str) -> Verdict:
    """SPACE (arXiv 2410.06468): the last `{..}` as JSON, its `answer` or only value, is equal.

    Compared as integers where the value can be one.
    """
    end = reply.rfind("}")
    start = reply.rfind("{", 0, max(end, 0))
    if len(reply) > TEXT_LIMIT or end - start > ANSWER_LIMIT:
        return TOO_LONG
    if start < 0 or end < 0:
        return UNREADABLE
    try:
        found = json.loads(reply[start : end + 1])
    except (ValueError, RecursionError):
        return UNREADABLE
    if "answer" in found:
        value = found["answer"]
    elif len(found) == 1:
        (value,) = found.values()
    else:
        return UNREADABLE
    return Verdict(_integer(value) == _integer(gold), str(value)[:ANSWER_LIMIT])


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _integer(value: object) -> object:
    try:
        return int(value) if isinstance(value, int | float | str) else value
    except (ValueError, OverflowError):
        return value


def _mmmu_forms(text: str) -> list[float | str]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text] if text else []


def _mathvista_answer(reply: str, textual: bool) -> tuple[str, bool]:
    found = extract(reply)
    answer = plain(found.text)
    if found.place != "bare" or _float(answer) is not None:
        return answer, False
    after = answer_is(reply)
    if after is not None:
        return plain(after).removesuffix(".").strip(), False
    number = None if textual else last_number(reply)
    return (answer, textual and len(answer.split()) > 5) if number is None else (number, True)


def _mathvista_form(
    answer: str, answer_type: str, choices: Sequence[str], precision: float | None
) -> str | None:
    if choices:
        bracketed = re.search(r"\(([a-zA-Z])\)", answer)
        letter = bracketed.group(1).upper() if bracketed else answer.strip()
        if len(letter) == 1 and letter in _ALPHABET[: len(choices)]:
            return choices[_ALPHABET.index(letter)]
        # An edit distance is quadratic, and an answer that long is near to no choice.
        return min(choices, key=lambda c: edits(letter, c)) if 0 < len(letter) <= 500 else None
    try:
        if answer_type == "integer":
            return str(int(float(answer)))
        if answer_type == "float":
            return str(round(float(answer), int(precision or 0)))
    except (ValueError, OverflowError):
        return None
    return answer or None


def edits(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions, substitutions."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
