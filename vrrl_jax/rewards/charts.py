"""ChartMuseum (arXiv 2505.13444) by a rule, where the published score asks a language model."""

from __future__ import annotations

import re

from vrrl_jax.rewards.benchmarks import relaxed
from vrrl_jax.rewards.extraction import (
    ANSWER_LIMIT,
    TEXT_LIMIT,
    TOO_LONG,
    Verdict,
    boxed,
    number,
    plain,
    tagged,
)

_AMOUNT = re.compile(r"([$€£¥]?)\s{0,3}(-?\d[\d,]{0,30}(?:\.\d{1,30})?)\s{0,3}([^\d,.]{0,40})")
_SCALES = {"thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "billion": 1e9, "b": 1e9, "bn": 1e9}


def chartmuseum(reply: str, gold: str) -> Verdict:
    """Relaxed accuracy of the answer in tags, amounts without their units, years exactly.

    `$80`, `80 dollars` and `80` are equal; so are `3 million` and `3,000,000`, as well as
    `3 million` and `3`. An opening tag that nothing closes is taken to the end. Numbers by this
    rule aren't comparable with the published ones, which a language model judged.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    inside = tagged(reply, closed=False)
    found = boxed(reply) if inside is None else inside
    answer = plain(reply if found is None else found)
    if len(answer) > ANSWER_LIMIT:
        return TOO_LONG
    answer, fallback = answer.removesuffix(".").strip(), found is None
    right = relaxed(answer, gold, mode="strict") or any(
        _close(a, g) for a in _amounts(answer) for g in _amounts(gold)
    )
    return Verdict(right, answer or None, fallback, "" if answer else "unreadable")


def _amounts(text: str) -> list[float]:
    """A text that is one amount as a number, and again with its unit's scale; else nothing."""
    match = _AMOUNT.fullmatch(text.strip())
    value = number(match.group(2)) if match else None
    if value is None:
        return []
    unit = match.group(3).strip().lower().split()
    scale = _SCALES.get(unit[0], 1.0) if unit else 1.0
    return [value] if scale == 1.0 else [value, value * scale]


def _close(a: float, b: float) -> bool:
    """Within 5%, but years and zero exactly."""
    if not b or (b == int(b) and 1500 <= b <= 2099):
        return a == b
    return abs(a - b) <= 0.05 * abs(b)
