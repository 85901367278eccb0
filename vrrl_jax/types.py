"""The records that cross rooms, and the shape legend.

Shape letters, used in every docstring of the package:

    B   rows of a rollout: questions x samples        R   packed training rows
    U   turns of an episode                           T   tokens of a row
    S   slots of the key-value cache                  K   picture slots of a row
    P   patches of a picture slot                     F   features of a patch
    L   layers        N   query heads                 G   key-value heads
    H   head width    D   model width                 V   vocabulary
    A   alternatives of a soft target                 M   microbatches

Arrays that live on the device are NamedTuples of arrays, hence pytrees. What the host keeps
(texts, pictures, episodes) are frozen dataclasses.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

Array = Any  # jax.Array or np.ndarray: host code builds what device code consumes.


@dataclasses.dataclass(frozen=True)
class Picture:
    """One preprocessed picture.

    Attributes:
      patches: uint8 [n, C * p * p], rows in merge-block order (the order of a Hugging Face
        Qwen-VL processor), features (channel, row, column), one frame, not yet normalised. Or
        float32 [n, C * tp * p * p], the processor's own `pixel_values`.
      grid: (frames, rows, columns) in patches; n is their product.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]


class Pictures(NamedTuple):
    """The pictures of R token rows, K slots a row: nothing crosses rows.

    Attributes:
      patches: [R, K, P, F] uint8 (raw) or float (normalised), in the vision tower's window order.
      coords: int32 [R, K, P, 4], row and column of each patch in its picture, and the rows and
        columns of that picture.
      segments: int32 [R, K, P], the frame a patch belongs to, counted from 1; 0 is padding.
      source: int32 [R, T], which merged unit of its row (0 .. K * P / merge**2 - 1) a token
        shows; -1 where the token is no picture token.
    """

    patches: Array
    coords: Array
    segments: Array
    source: Array


class Shared(NamedTuple):
    """How sequences of a row share the tokens that they begin with, which stand there once.

    Attributes:
      parents: int32 [R, T], the segment that comes before a token's own in its sequence and is
        attended to as well; 0 for none.
      before: int32 [R, T], index in the row of the token that precedes a token in its sequence, 0
        for the first of a row.
    """

    parents: Array
    before: Array


class Rows(NamedTuple):
    """Token rows, packed: what every forward pass takes.

    Attributes:
      tokens: int32 [R, T].
      positions: int32 [3, R, T], M-RoPE ids (time, height, width).
      segments: int32 [R, T], the sequence of the row a token belongs to, counted from 1; 0 pads.
      pictures: the rows' pictures, or None for a text-only program.
      shared: where sequences share their beginnings, or None where none do: then a segment is a
        whole sequence.
    """

    tokens: Array
    positions: Array
    segments: Array
    pictures: Pictures | None
    shared: Shared | None = None


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One tokenised sequence on the host, before packing: a prompt, a demonstration, an episode.

    Attributes:
      tokens: int32 [t].
      pictures: in the order of their placeholder runs in `tokens`.
      fields: named per-token arrays [t, ...] that travel with the tokens through packing
        (loss_mask, logprobs, advantages, target_ids, ...). Value i belongs to token i.
    """

    tokens: np.ndarray
    pictures: tuple[Picture, ...] = ()
    fields: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A user turn: what an environment says.

    Attributes:
      text: its text. `<image>` marks in it stand for `pictures`, in order and one for one; without
        any mark the pictures come first.
      pictures: uint8 [H, W, 3] each; none for a turn of text alone.
      opening: text that the reply is made to open with. It belongs to what the policy is given: it
        carries no loss and isn't in the reply's text.
    """

    text: str
    pictures: tuple[np.ndarray, ...] = ()
    opening: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An environment's answer to a reply.

    Attributes:
      done: whether the episode is over.
      prompt: the next user turn; None when done.
      reply: what the environment read in the reply, for callers that want it.
    """

    done: bool
    prompt: Prompt | None = None
    reply: Any = None


@dataclasses.dataclass(frozen=True)
class Episode:
    """One finished multi-turn episode, tokenised once.

    Attributes:
      question: global id of the example (its row in the run's data source).
      sample: index within its group, 0 .. n - 1.
      group: index of its group within the step's rollout.
      tokens: int32 [t], prompt, replies and feedback turns in order.
      loss_mask: float32 [t], 1 on tokens that the policy generated.
      turn_index: int32 [t], the turn (0-based) a token belongs to, user turn included.
      logprobs: float32 [t], behaviour log-probability where sampled, else 0; NaN on a token that
        carries loss and whose log-probability the sampler can't tell (a forced one, or one drawn at
        another temperature): it is recomputed before the update.
      pictures: every picture of the chat, in order.
      texts: the assistant's replies as text, in order, forced openings and rolled-in turns
        included.
      spans: (start, end) of each reply in `tokens`, forced opening and end token included.
      rewards: named reward parts and metrics, "total" among them.
      turn_rewards: a share of the total for each reply, where the reward is placed on turns; empty
        where all of it belongs to the last.
      mode: "normal", "rtm" or "roll_in".
      prefix_turns: number of rolled-in turns, 0 if none.
      prefix_right: whether the rolled-in prefix ends in a right proposal.
      truncated: whether a turn was cut by its token budget or the episode by its turn budget.
      prompts: the user turns' texts in order.
      images: the uint8 pictures that each user turn showed, for people; empty where not kept.
      hidden: bool [t], tokens that the policy saw as zero embeddings (prefix masking of states), in
        sampling and in training; None for none.
      trigger: (start, end) in `tokens` of a text that forced a second thought, or None.
      second: (start, end) of the thought that followed it.
      trigger_kind: "verification", "correction" or "questioning"; "" without a trigger.
    """

    question: int
    sample: int
    group: int
    tokens: np.ndarray
    loss_mask: np.ndarray
    turn_index: np.ndarray
    logprobs: np.ndarray
    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    rewards: dict[str, float]
    mode: str = "normal"
    prefix_turns: int = 0
    prefix_right: bool = False
    truncated: bool = False
    prompts: tuple[str, ...] = ()
    images: tuple[tuple[np.ndarray, ...], ...] = ()
    turn_rewards: tuple[float, ...] = ()
    hidden: np.ndarray | None = None
    trigger: tuple[int, int] | None = None
    second: tuple[int, int] | None = None
    trigger_kind: str = ""
