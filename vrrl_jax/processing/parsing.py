"""What a FrozenLake reply says: a proposal, a commit, or nothing that can be read."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

ACTIONS = frozenset({"left", "down", "right", "up"})
_SEPARATORS = re.compile(r"[,\s]+")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A parsed reply.

    Attributes:
      kind: "proposal" (an ANSWER), "commit" (a FINAL) or "invalid".
      actions: lower-case action names; empty where invalid, or where the body was empty.
      has_think: whether a THINK pair stands anywhere in the text.
      reason: why it is invalid, "" otherwise.
    """

    kind: Literal["proposal", "commit", "invalid"]
    actions: tuple[str, ...]
    has_think: bool
    reason: str = ""


def parse_actions(text: str) -> tuple[str, ...] | None:
    """Actions separated by commas or white space, in any case; None at an unknown word."""
    words = tuple(word.lower() for word in _SEPARATORS.split(text) if word)
    return words if all(word in ACTIONS for word in words) else None


def parse_reply(text: str) -> Reply:
    """Reads a reply. Never raises; linear in the text's length.

    Tags match in any case, bodies are the shortest and may span lines, FINAL wins over ANSWER.
    """
    has_think = body(text, "think") is not None
    for tag, kind in (("final", "commit"), ("answer", "proposal")):
        inside = body(text, tag)
        if inside is None:
            continue
        actions = parse_actions(inside)
        if actions is None:
            return Reply("invalid", (), has_think, f"an unknown action in {tag.upper()}")
        return Reply(kind, actions, has_think)
    return Reply("invalid", (), has_think, "neither ANSWER nor FINAL")


def body(text: str, tag: str) -> str | None:
    """What stands between the first opening tag and the next closing one, in any case.

    None where either lacks. Linear in the text's length.
    """
    # Two searches instead of one lazy pattern: that would try every opening tag of a text that
    # never closes one, in quadratic time.
    opening = re.search(f"<{tag}>", text, re.IGNORECASE | re.ASCII)
    if opening is None:
        return None
    closing = re.compile(f"</{tag}>", re.IGNORECASE | re.ASCII).search(text, opening.end())
    return None if closing is None else text[opening.end() : closing.start()]
