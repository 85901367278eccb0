"""Finds the final answer in a reply. Nothing here raises; all is linear in the text's length."""

from __future__ import annotations

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

# A reply of 8,192 tokens has some 40,000 characters. What is longer by far was not written to be
# read, and no rule looks at it.
TEXT_LIMIT = 1_000_000
# What a rule takes for a short answer. Table cells, sets and edit distances are read up to here.
ANSWER_LIMIT = 10_000

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4})?")
_LETTER = re.compile(r"[\s({\[*$\"']*([A-Za-z])(?![A-Za-z0-9])")
_OPENS = re.compile(r"[\s({\[*]*[A-Za-z]\s*(?:\Z|[.):,\]*\n])")
_ANSWER_IS = re.compile(r"answer(?:\s+is\b|\s*:)\s*:?", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_CONCLUSION, _CONCLUDED = (
    re.compile(f"<{slash}conclusion>", re.IGNORECASE | re.ASCII) for slash in ("", "/")
)
_YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a scoring rule says about a reply.

    Attributes:
      correct: whether the rule counts it as right.
      parsed: the answer as the rule read it, None where it could read none.
      fallback: whether a rule of last resort found it: a guess, an option's text, a last number.
      reason: "" where it was judged; else "unreadable", "ambiguous", "too long", or why the check
        of equality failed: "refused", "timeout", "crash". All of these count as wrong.
      value: a graded score beside `correct`, an IoU for one; None where the rule has none.
    """

    correct: bool
    parsed: str | None
    fallback: bool = False
    reason: str = ""
    value: float | None = None


TOO_LONG = Verdict(False, None, reason="too long")
UNREADABLE = Verdict(False, None, reason="unreadable")


@dataclasses.dataclass(frozen=True)
class Found:
    """A final answer and where it stood: in tags, in a box, or all of the text."""

    text: str
    place: Literal["tag", "box", "bare"]


def tagged(text: str, *, closed: bool = True) -> str | None:
    """What stands in the first `<answer>` pair, stripped; tags match in any case.

    `closed=False` also takes what follows an opening tag that nothing closes.
    """
    # Two searches instead of one lazy pattern, which would be quadratic where nothing closes.
    opening = re.search("<answer>", text, re.IGNORECASE | re.ASCII)
    if opening is None:
        return None
    closing = re.compile("</answer>", re.IGNORECASE | re.ASCII).search(text, opening.end())
    if closing is None:
        return None if closed else text[opening.end() :].strip()
    return text[opening.end() : closing.start()].strip()


def concluded(text: str) -> str | None:
    """What stands in the last `<CONCLUSION>` pair, stripped: LLaVA-CoT's fourth stage."""
    found = collections.deque(_CONCLUSION.finditer(text), maxlen=1)
    closing = found and _CONCLUDED.search(text, found[0].end())
    return text[found[0].end() : closing.start()].strip() if closing else None


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{}` holds, braces matched by counting; None where it never closes."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for brace in re.compile("[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            return text[start : brace.start()].strip()
    return None


def extract(text: str) -> Found:
    """The answer tags' content, else the conclusion's, the last box's, the whole text stripped.

    A box inside the tags is opened too.
    """
    inside = tagged(text)
    inside = concluded(text) if inside is None else inside
    if inside is not None:
        content = boxed(inside)
        return Found(inside if content is None else content, "tag")
    content = boxed(text)
    if content is not None:
        return Found(content, "box")
    return Found(text.strip(), "bare")


def plain(text: str) -> str:
    r"""Without `\text{}` and its kin around words, nor `$`, nor `**`."""
    return _TEXT.sub(r"\1", text).replace("$", "").replace("**", "").strip()


def tail(text: str, markers: Sequence[str]) -> str | None:
    """What follows the last occurrence of any marker (as written), stripped; None without one."""
    end = max((text.rfind(m) + len(m) for m in markers if m in text), default=None)
    return None if end is None else text[end:].strip()


def answer_is(text: str) -> str | None:
    """The rest of the line after the last "answer is" or "answer:", in any case."""
    last = collections.deque(_ANSWER_IS.finditer(text), maxlen=1)
    if not last:
        return None
    rest = text[last[0].end() :].lstrip()
    return rest.split("\n", 1)[0].strip()


def number(text: str) -> float | None:
    """A text that is a number: thousands by comma, a leading $, a final % (divides by 100)."""
    word = text.strip().removeprefix("$").removesuffix(".").strip()
    percent = word.endswith("%")
    word = word.removesuffix("%").removesuffix("\\").strip()
    if len(word) > 400 or not _NUMBER.fullmatch(word):
        return None
    value = float(word.replace(",", ""))
    return value / 100 if percent else value


def last_number(text: str) -> str | None:
    """The last number in a text, as written."""
    last = collections.deque(_NUMBER.finditer(text), maxlen=1)
    return last[0].group().rstrip(",") if last else None


def leading_letter(text: str, letters: str) -> str | None:
    """The option letter a text starts with: `B`, `(B)`, `B. 5`, `**B**`; never a word's first."""
    match = _LETTER.match(text)
    if match is None:
        return None
    letter = match.group(1)
    alone = not text[match.end() :].strip(" \t\n)]}.*$:\"'")
    # In lower case "a" may be an article: it is an option only where nothing else stands.
    if letter.islower() and not alone:
        return None
    return letter.upper() if letter.upper() in letters else None


def choice(text: str, options: Sequence[str] = (), letters: str = "") -> tuple[str | None, bool]:
    """The option a reply settles on, and whether only a fallback found it.

    In order: the tags' or the box's content, which must start with a letter or be an option's
    text; the words after the last "answer is"; a reply that opens with a letter set apart; then,
    as a fallback, the one letter that stands in brackets. Where tags or box are there, nothing
    else is looked at.

    Args:
      text: the reply.
      options: the options' texts, where known.
      letters: the options' letters; those of `options` by default, A to K without.
    """
    letters = letters or (
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)] if options else "ABCDEFGHIJK"
    )
    found = extract(text)
    settled = found.text if found.place != "bare" else answer_is(text)
    content = plain(found.text if settled is None else settled)
    bracketed = set(re.findall(r"\(([A-Z])\)", text)) & set(letters)
    letter = leading_letter(content, letters)
    if letter is None:
        same = [x for x, option in zip(letters, options, strict=False) if alike(content, option)]
        letter = same[0] if len(same) == 1 else None
    elif settled is None and (bracketed - {letter} or not _OPENS.match(content)):
        return None, False  # "(A) or (B)" settles on nothing, and "A dog" is no letter
    if letter is not None or found.place != "bare":
        return letter, False
    return (bracketed.pop(), True) if len(bracketed) == 1 else (None, False)


def yes_no(text: str) -> str | None:
    """Which of "yes" and "no" alone stands among the words; true and false count as them."""
    words = {_YES_NO.get(word.strip(".,;:!?\"'*()[]{}`")) for word in text.lower().split()}
    words.discard(None)
    return words.pop() if len(words) == 1 else None


def normalized(text: str) -> str:
    """Case, width, runs of white space, quotes around it and a final full stop don't count."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip("\"'`*").removesuffix(".").strip()


def alike(a: str, b: str) -> bool:
    """Whether two short texts are the same answer."""
    if max(len(a), len(b)) > ANSWER_LIMIT:
        return False
    return bool(normalized(a)) and normalized(a) == normalized(b)
