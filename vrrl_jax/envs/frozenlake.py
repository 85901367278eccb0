"""Navigation as a conversation: propose a path, see it drawn, revise or commit.

Frozen lakes, or anything that is drawn with a path and that a path leads through, as mazes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vrrl_jax.data.frozenlake import Map as Map
from vrrl_jax.processing.parsing import parse_reply
from vrrl_jax.render.frozenlake import render as render
from vrrl_jax.types import Outcome, Prompt

QUESTION = (
    "The picture shows a frozen lake. Guide the elf to the gift without stepping into a hole in "
    "the ice and without leaving the grid, in as few steps as possible. Answer with the steps "
    "(left, right, up, down) inside tags, as in <ANSWER>right down</ANSWER>."
)
VERIFY = (
    "The picture shows your path as a red line with a star at its end. Check it step by step. If "
    "it is a shortest safe path to the gift, repeat it inside <FINAL></FINAL>. If it is not, say "
    "inside <THINK></THINK> what is wrong, then give a better path inside <ANSWER></ANSWER>."
)
THINK = "<THINK>"  # how a revision opens
PROBE = "<ANSWER>up</ANSWER>"  # a reply that is answered with a drawn path, whatever the map


@dataclasses.dataclass(frozen=True)
class Settings:
    """How episodes are shown.

    Attributes:
      cell: pixels of a cell's side.
      max_turns: replies an episode.
      question, verify: texts of the opening turn and of every later one.
      render: (example, actions or None, cell) -> uint8 [H, W, 3]: what a path is drawn on.
    """

    cell: int = 64
    max_turns: int = 8
    question: str = QUESTION
    verify: str = VERIFY
    render: Callable[[Any, Sequence[str] | None, int], np.ndarray] = render


def reset(map: Map, settings: Settings = Settings()) -> Prompt:
    """The opening turn: the bare map."""
    return Prompt(settings.question, (settings.render(map, None, settings.cell),))


def step(map: Map, text: str, turn: int, settings: Settings = Settings()) -> Outcome:
    """Answers reply `turn`, counted from 0, with its path drawn on the map.

    A commit, an unreadable reply and the last turn of the budget end the episode.
    """
    reply = parse_reply(text)
    if reply.kind != "proposal" or turn + 1 >= settings.max_turns:
        return Outcome(True, reply=reply)
    picture = settings.render(map, reply.actions, settings.cell)
    return Outcome(False, Prompt(settings.verify, (picture,)), reply)


@dataclasses.dataclass(frozen=True)
class Environment:
    """`reset` and `step` with the settings bound: what a rollout plays against."""

    settings: Settings = Settings()

    def reset(self, example: Map) -> Prompt:
        return reset(example, self.settings)

    def step(self, example: Map, text: str, turn: int) -> Outcome:
        return step(example, text, turn, self.settings)
