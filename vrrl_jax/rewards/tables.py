"""TableVQA-Bench (arXiv 2404.19205): rules of its four splits."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Literal

from vrrl_jax.rewards.extraction import ANSWER_LIMIT, TOO_LONG, UNREADABLE, Verdict

_QUOTES = str.maketrans({**dict.fromkeys("‘’´`", "'"), **dict.fromkeys("“”", '"')})
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))
_UNITS = re.compile(
    r"\b(?:dollar|gallons|square feet|shares|mbtu|mbpd|mbbls|mmbtu|unit|gwh|year|mmcf|mile|mboe)"
    r"s?\b",
    re.IGNORECASE,
)
_SCALES = (("thousand", "e3"), ("million", "e6"), ("billion", "e9"))
_CELLS = 200  # values an answer may list; a table's column has fewer


def tablevqa_fact(reply: str, gold: str) -> Verdict:
    """vtabfact: "true" for gold "1", "false" for "0", anywhere in the reply.

    Both in it is no answer: the reference leaves such a row without a score but counts it among
    all, so it is wrong.
    """
    text = _answer(reply)
    if text is None:
        return TOO_LONG
    words = [word for word in ("true", "false") if word in text.lower()]
    if len(words) != 1:
        return Verdict(False, None, reason="ambiguous" if words else "unreadable")
    return Verdict(words[0] == {"1": "true", "0": "false"}.get(gold.strip()), words[0])


def tablevqa_questions(reply: str, gold: str) -> Verdict:
    r"""vwtq and vwtq_syn: the denotation of WikiTableQuestions (arXiv 1508.00305).

    Values stand apart by `|` or `||`; both sides must have as many, and each gold one must have
    its like: equal as normalised text, as numbers within 1e-6, or as dates year-month-day with xx
    for what is open. `\n`, `\p`, `\\` stand for a line break, a bar and a backslash.
    """
    text = _answer(reply)
    if text is None:
        return TOO_LONG
    cells = text.replace("||", "|").split("|")
    if len(cells) > _CELLS:
        return Verdict(False, text, reason="too long")
    predicted = _values(cells)
    wanted = _values(gold.replace("||", "|").split("|"))
    right = len(wanted) == len(predicted) and all(
        any(_match(value, other) for other in predicted) for value in wanted
    )
    return Verdict(right, text) if text else UNREADABLE


def tablevqa_finance(
    reply: str, gold: str, *, measure: Literal["relieved", "exact"] = "relieved"
) -> Verdict:
    """fintabnetqa: amounts with their units, or, relieved, with or without them.

    "relieved", the main one, takes any of (amount, amount without its unit) that is equal on both
    sides, so `$3,852 million` answers `3852`; "exact" the amounts alone.
    """
    text = _answer(reply)
    if text is None:
        return TOO_LONG
    predicted, wanted = _amounts(text), _amounts(gold)
    right = predicted[0] == wanted[0]
    if measure == "relieved":
        right = any(p == w for p in predicted for w in wanted)
    return Verdict(right, text) if text else UNREADABLE


def normalize(text: str) -> str:
    """WikiTableQuestions' normal form of a cell.

    Without accents; quotes and dashes of one kind; without citations and bracketed details at the
    end, outer quotes and a final full stop; white space collapsed; lower case.
    """
    text = "".join(
        c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn"
    )
    text = text.translate(_QUOTES).translate(_DASHES)
    before = None
    while text != before:
        before = text
        text = _without_details(_without_citations(text.strip()).strip()).strip()
        inner = text[1:-1]
        if len(text) >= 2 and text[0] == text[-1] == '"' and '"' not in inner:
            text = inner
    return " ".join(text.removesuffix(".").split()).lower()


def _answer(reply: str) -> str | None:
    return None if len(reply) > ANSWER_LIMIT else reply.removeprefix("Answer: ").strip()


def _without_citations(text: str) -> str:
    """Without `[..]` and the marks • ♦ † ‡ * # + at the end; `[note]` alone is kept."""
    while text:
        if text[-1] in "•♦†‡*#+":
            text = text[:-1]
            continue
        if text[-1] != "]":
            return text
        start = text.find("[", text.rfind("]", 0, -1) + 1)
        if start == 0 and not text[1:-1].isdecimal():
            start = text.find("[", 1)  # a bracket that opens the cell is its content
        if start < 0:
            return text
        text = text[:start]
    return text


def _without_details(text: str) -> str:
    """Without ` (..)` at the end, as often as it comes, but never from the very start."""
    while text.endswith(")"):
        closed = text.rfind(")", 0, -1)  # details reach back to the first bracket after it
        start = text.find(" (", closed + 1)
        if start <= 0:
            return text
        text = text[:start]
    return text


Value = tuple[str, object, str]  # kind, key, normalised text


def _values(cells: list[str]) -> list[Value]:
    """Values of a list's cells, each kind and key once."""
    once: dict[tuple[str, object], Value] = {}
    for cell in cells:
        cell = cell.replace(r"\n", "\n").replace(r"\p", "|").replace("\\\\", "\\")
        value = _value(cell)
        once.setdefault(value[:2], value)
    return list(once.values())


def _value(cell: str) -> Value:
    form = normalize(cell)
    amount = _number(cell)
    if amount is not None:
        return ("number", amount, form)
    parts = cell.lower().split("-")
    if len(parts) == 3:
        try:
            year = -1 if parts[0] in ("xx", "xxxx") else int(parts[0])
            month, day = (-1 if p == "xx" else int(p) for p in parts[1:])
        except ValueError:
            return ("text", form, form)
        open_ended = year == month == day == -1
        if not open_ended and month in (-1, *range(1, 13)) and day in (-1, *range(1, 32)):
            if month == day == -1:
                return ("number", year, form)
            return ("date", (year, month, day), form)
    return ("text", form, form)


def _number(cell: str) -> float | None:
    try:
        amount = float(cell)
    except ValueError:
        return None
    if not math.isfinite(amount):
        return None
    return round(amount) if abs(amount - round(amount)) < 1e-6 else amount


def _match(a: Value, b: Value) -> bool:
    if a[2] == b[2]:
        return True
    if a[0] == b[0] == "number":
        return abs(a[1] - b[1]) < 1e-6
    return a[:2] == b[:2]


def _amounts(text: str) -> tuple[float | str, float | str]:
    """An amount, and the same without its unit; as numbers where both are."""
    text = _UNITS.sub("", re.sub(r"[$(),]", "", normalize(text)))
    bare = text
    for word, exponent in _SCALES:
        text = re.sub(rf" ?\b{word}\b", exponent, text)
        bare = re.sub(rf" ?\b{word}\b", "", bare)
    text = re.sub(" ?%", "e-2", text)
    bare = re.sub(" ?%", "", bare)
    try:
        return float(text), float(bare)
    except ValueError:
        return text, bare
