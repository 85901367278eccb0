"""Mazes as a conversation: navigation among walls, in words and pictures of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vrrl_jax.envs import frozenlake
from vrrl_jax.envs.frozenlake import PROBE as PROBE
from vrrl_jax.envs.frozenlake import THINK as THINK
from vrrl_jax.envs.frozenlake import Environment as Environment
from vrrl_jax.render.mazes import render_example

QUESTION = (
    "The picture shows a maze from above. Find the way from the green start to the red end "
    "without running into a wall, in as few steps as possible; a step leads from one cell to the "
    "next. Answer with the steps (left, right, up, down) inside tags, as in "
    "<ANSWER>right down</ANSWER>."
)
VERIFY = (
    "The picture shows your path as a red line with a star at its end. A step into a wall is drawn "
    "up to the wall with a short bar, and the walker stays. Check the path step by step. If it is "
    "a shortest way to the red end, repeat it inside <FINAL></FINAL>. If it is not, say inside "
    "<THINK></THINK> what is wrong, then give a better path inside <ANSWER></ANSWER>."
)


@dataclasses.dataclass(frozen=True)
class Settings(frozenlake.Settings):
    """`frozenlake.Settings` for examples of `data.mazes`."""

    question: str = QUESTION
    verify: str = VERIFY
    render: Callable[[Any, Sequence[str] | None, int], np.ndarray] = render_example
