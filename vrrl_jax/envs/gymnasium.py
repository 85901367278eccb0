"""Any Gymnasium environment with discrete actions, as a conversation about its pictures.

A reply names actions, `<ANSWER>left down</ANSWER>`; the answer is the picture after them. In mode
"plan" each reply is played from the start, so that it can be looked at and revised, and the
episode ends with a `<FINAL>`. In mode "act" each goes on where the last one ended, and the episode
ends when the game does, or with a `<FINAL>`, whose actions are still played. A reply that can't be
read ends either.

Nothing is kept between replies: the game is reset with the example's seed and played anew. Its
dynamics must be a function of that seed and the actions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from vrrl_jax.processing.parsing import body
from vrrl_jax.types import Outcome, Prompt

QUESTION = (
    "The picture shows the game {id}. Your actions are {actions}. Answer with the actions you take "
    "inside tags, as in <ANSWER>{example}</ANSWER>."
)
VERIFY = {
    "plan": (
        "The picture shows the game after your actions. If they solve it, repeat them inside "
        "<FINAL></FINAL>. If they don't, give better ones, from the start, inside "
        "<ANSWER></ANSWER>."
    ),
    "act": "The picture shows the game after your actions. Go on inside <ANSWER></ANSWER>.",
}
GAMES = 8  # kept open; an example with arguments of its own is a game of its own
_SEPARATORS = re.compile(r"[,\s]+")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a game is shown.

    Attributes:
      id: of the environment, as registered; "module:Name-v0" imports a module first.
      actions: a word each, action 0 first.
      kwargs: for `gymnasium.make`, beside render_mode.
      mode: "plan" or "act".
      size: (width, height) that pictures are resized to; None leaves them.
      question, verify: texts of the opening turn and of every later one; None for the above.
      max_turns: replies an episode.
    """

    id: str
    actions: tuple[str, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mode: Literal["plan", "act"] = "plan"
    size: tuple[int, int] | None = None
    question: str | None = None
    verify: str | None = None
    max_turns: int = 8

    def __post_init__(self):
        if self.mode not in VERIFY:
            raise ValueError(f"mode must be plan or act, got {self.mode!r}")
        if not all(isinstance(word, str) for word in self.actions):
            raise ValueError(
                f"actions must be words, got {list(self.actions)}; YAML reads on, off, yes and no "
                "as true and false unless they stand in quotes"
            )
        words = [word.lower() for word in self.actions]
        if len(set(words)) < len(words) or any(not w or _SEPARATORS.search(w) for w in words):
            raise ValueError(f"actions must be different single words, got {list(self.actions)}")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply as read: a "proposal", a "commit", or "invalid"; `actions` are numbers."""

    kind: Literal["proposal", "commit", "invalid"]
    actions: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Played:
    """What became of some actions.

    Attributes:
      picture: uint8 [H, W, 3], after them.
      total: sum of the game's rewards.
      last: the reward of the last action; 0 without any.
      terminated, truncated: whether the game came to its end, or to its limit of steps.
    """

    picture: np.ndarray
    total: float
    last: float
    terminated: bool
    truncated: bool


def read(text: str, actions: Sequence[str]) -> Reply:
    """Reads a reply; FINAL wins over ANSWER, words match in any case."""
    numbers = {word.lower(): i for i, word in enumerate(actions)}
    for tag, kind in (("final", "commit"), ("answer", "proposal")):
        inside = body(text, tag)
        if inside is None:
            continue
        words = [word.lower() for word in _SEPARATORS.split(inside) if word]
        if all(word in numbers for word in words):
            return Reply(kind, tuple(numbers[word] for word in words))
        break
    return Reply("invalid")


def played(settings: Settings, example: int | Mapping[str, Any], actions: Sequence[int]) -> Played:
    """Plays actions from the start, up to the game's end.

    Args:
      example: a seed, or {"seed": ..., and arguments of `gymnasium.make` for this example alone}.

    Raises:
      ValueError: the environment can't be made, draws no picture, or has other actions.
    """
    given = dict(example) if isinstance(example, Mapping) else {"seed": int(example)}
    seed = given.pop("seed", 0)
    game, lock = _game(settings.id, json.dumps(dict(settings.kwargs) | given), settings.actions)
    total = last = 0.0
    terminated = truncated = False
    with lock:
        game.reset(seed=seed)
        for action in actions:
            _, last, terminated, truncated, _ = game.step(action)
            total += float(last)
            if terminated or truncated:
                break
        picture = game.render()
    if not (isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3):
        raise ValueError(f"{settings.id} renders no picture [H, W, 3] in mode rgb_array")
    picture = np.array(picture, np.uint8)  # a copy: some games draw into one buffer
    if settings.size is not None and picture.shape[1::-1] != tuple(settings.size):
        resized = Image.fromarray(picture).resize(settings.size, Image.Resampling.BILINEAR)
        picture = np.asarray(resized)
    return Played(picture, total, float(last), bool(terminated), bool(truncated))


@functools.lru_cache(maxsize=GAMES)
def _game(id: str, kwargs: str, actions: tuple[str, ...]) -> tuple[Any, threading.Lock]:
    """A game and who may use it: supervised training plays in a thread of its own."""
    # A picture needs neither screen nor loudspeaker; pygame looks for both.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    import gymnasium

    try:
        # What checks every call warns of spaces, which nobody reads here.
        game = gymnasium.make(
            id, render_mode="rgb_array", disable_env_checker=True, **json.loads(kwargs)
        )
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"gymnasium can't make {id} with {kwargs}: {error}") from error
    space = game.action_space
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise ValueError(f"{id} has actions of {space}; only Discrete ones can be named by words")
    if len(actions) != space.n:
        raise ValueError(f"{id} has {space.n} actions, and {len(actions)} words are given for them")
    return game, threading.Lock()


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a rollout plays against; an example is as in `played`."""

    settings: Settings

    def reset(self, example: int | Mapping[str, Any]) -> Prompt:
        settings = self.settings
        text = settings.question or QUESTION.format(
            id=settings.id,
            actions=", ".join(settings.actions),
            example=" ".join(settings.actions[:2]),
        )
        return Prompt(text, (played(settings, example, ()).picture,))

    def answer(self, example: int | Mapping[str, Any], texts: tuple[str, ...]) -> Outcome:
        """The picture after the last reply's actions, or the end."""
        settings = self.settings
        replies = [read(text, settings.actions) for text in texts]
        if replies[-1].kind != "proposal" or len(texts) >= settings.max_turns:
            return Outcome(True, reply=replies[-1])
        now = played(settings, example, counted(replies, settings.mode))
        if settings.mode == "act" and (now.terminated or now.truncated):
            return Outcome(True, reply=replies[-1])
        verify = settings.verify or VERIFY[settings.mode]
        return Outcome(False, Prompt(verify, (now.picture,)), replies[-1])


def counted(replies: Sequence[Reply], mode: str) -> tuple[int, ...]:
    """The actions that an episode comes down to: its last readable reply's, or all in a row."""
    if mode == "act":
        return tuple(action for reply in replies for action in reply.actions)
    readable = [reply.actions for reply in replies if reply.kind != "invalid"]
    return readable[-1] if readable else ()
