"""SpatialEval's own score (arXiv 2406.14852), as published, with its false positives."""

from __future__ import annotations

import re

from vrrl_jax.rewards.extraction import TEXT_LIMIT, TOO_LONG, Verdict

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORD = re.compile(rf"\b({'|'.join(NUMBER_WORDS)})\b", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:answer(?:\s{1,9}is|\s{0,9}:)|there\s{1,9}(?:are|is)|is)\s{1,9}\**\(?([A-D]\b|-?\d{1,9})",
    re.IGNORECASE,
)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def spatialeval_official(reply: str, answer: str, option: str, question: int) -> Verdict:
    """Right where the answer or its letter is a *substring* of what is read in the reply.

    Of question 2 the first yes or no is read; of the others the first number word from zero to
    nine or the first "answer is N", whichever comes first, else the whole reply. Substrings find
    `1` in 12 and the letter A in any word that holds one: some wrong replies pass. Patterns beside
    "answer is N" were not published in words; those here are close, not proven the same.

    Args:
      reply: the model's text.
      answer: the right answer's text, `oracle_answer`.
      option: its letter, `oracle_option`.
      question: of the instance, 0, 1 or 2; the last part of a row's id.
    """
    if len(reply) > TEXT_LIMIT:
        return TOO_LONG
    read, fallback = _read(reply, question)
    golds = [gold.strip().lower() for gold in (answer, option) if gold.strip()]
    right = any(gold in read.lower() for gold in golds)
    return Verdict(right, None if fallback else read, fallback, "unreadable" if fallback else "")


def _read(reply: str, question: int) -> tuple[str, bool]:
    """What is read, and whether that is the whole reply for want of anything better."""
    if question == 2:
        found = _YES_NO.search(reply)
        return (found.group().lower(), False) if found else (reply, True)
    word, number = _WORD.search(reply), _NUMBER.search(reply)
    if word and (number is None or word.start() < number.start()):
        return str(NUMBER_WORDS.index(word.group().lower())), False
    return (number.group(1), False) if number else (reply, True)
