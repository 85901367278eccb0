"""Where a reply is cut so that another thought may follow: by its text, between two tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vrrl_jax.processing.processor import Processor
from vrrl_jax.processing.processor import decode as decode_text

_WAIT = re.compile(r"\bwait\b", re.IGNORECASE)
_THOUGHT = "</think>"
_ANSWERS = ("<answer>", "<CONCLUSION>")
_BOX = "\\boxed{"


def cut_place(text: str, back: bool) -> int:
    """The character of y1 before which it is cut; its length where it stays whole.

    Args:
      text: y1.
      back: whether it is cut back before its last "wait" or its final answer.
    """
    thought = text.rfind(_THOUGHT)
    end = len(text) if thought < 0 else thought
    if not back:
        return end
    waits = [match.start() for match in _WAIT.finditer(text, 0, end)]
    if waits:
        return waits[-1]
    if thought >= 0:
        return thought
    tag = max(text.rfind(mark) for mark in _ANSWERS)
    answer = tag if tag >= 0 else text.rfind(_BOX)
    return answer if answer >= 0 else end


def tokens_before(processor: Processor, tokens: Sequence[int], place: int) -> int:
    """How many of a text's tokens end at or before its character `place`."""
    text = decode_text(processor, tokens)[:place]
    low, high = 0, len(tokens)
    # The decoded text grows with its tokens, but for a character of which bytes are missing: it
    # is up to 3 replacement characters until it is whole.
    while low < high:
        middle = (low + high + 1) // 2
        if len(decode_text(processor, tokens[:middle])) <= place + 3:
            low = middle
        else:
            high = middle - 1
    while low and not text.startswith(decode_text(processor, tokens[:low])):
        low -= 1
    return low


def kept_tokens(processor: Processor, spoken: np.ndarray, back: bool) -> int:
    """Tokens of y1 that stay. White space before a cut goes too, and a cut that would leave
    nothing isn't made."""
    text = decode_text(processor, spoken)
    place = cut_place(text, back)
    if place == len(text):
        return spoken.size
    kept = tokens_before(processor, spoken, place)
    while kept and not decode_text(processor, spoken[kept - 1 : kept]).strip():
        kept -= 1
    return kept or spoken.size
