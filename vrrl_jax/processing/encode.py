"""The one encoder: chat turns to token records that travel unchanged to the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from vrrl_jax.processing import processor as processing
from vrrl_jax.processing.processor import Processor
from vrrl_jax.types import Picture, Prompt, Sequence

MARK = "<image>"  # stands for a picture in a prompt's text
ALTERNATIVES = 4  # soft targets a token: as many as a cell has neighbours


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What is appended to a chat at once: a user turn up to where the assistant speaks.

    Attributes:
      tokens: int32 [t].
      pictures: preprocessed, in the order of their placeholder runs.
      images: the same as they were given, uint8 [H, W, 3] each.
    """

    tokens: np.ndarray
    pictures: tuple[Picture, ...]
    images: tuple[np.ndarray, ...]


def first_chunk(processor: Processor, prompt: Prompt) -> Chunk:
    """The opening user turn, generation prompt and the reply's opening included.

    Raises:
      ValueError: the text has marks, and not one for each picture.
    """
    pictures = tuple(processing.picture(processor, image) for image in prompt.pictures)
    tokens = processing.chat_prompt(processor, [_message(prompt)], pictures)
    return Chunk(_opened(processor, tokens, prompt), pictures, prompt.pictures)


def next_chunk(processor: Processor, prompt: Prompt) -> Chunk:
    """A further user turn: everything between the assistant's end token and its next word.

    Raises:
      ValueError: as `first_chunk`.
    """
    pictures = tuple(processing.picture(processor, image) for image in prompt.pictures)
    tokens = processing.next_user(processor, _message(prompt), pictures)
    return Chunk(_opened(processor, tokens, prompt), pictures, prompt.pictures)


def _opened(processor: Processor, tokens: np.ndarray, prompt: Prompt) -> np.ndarray:
    """A user turn's tokens with those that its reply is made to open with: int32 [t]."""
    if not prompt.opening:
        return tokens
    return np.concatenate([tokens, np.int32(processing.encode(processor, prompt.opening))])


def _message(prompt: Prompt) -> dict[str, Any]:
    """A user message in Hugging Face form, its pictures where the text marks them."""
    texts = prompt.text.split(MARK)
    if len(texts) == 1:
        texts = [""] * len(prompt.pictures) + texts
    if len(texts) - 1 != len(prompt.pictures):
        raise ValueError(f"{len(prompt.pictures)} pictures, but {len(texts) - 1} {MARK} marks")
    content = []
    for i, text in enumerate(texts):
        content += [{"type": "image"}] if i else []
        content += [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": content}


def reply_targets(
    processor: Processor, pieces: Iterable[Any], end_weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A demonstrated reply as tokens and soft targets, its end token included.

    Args:
      pieces: each with `text`, `alternatives` (texts as good in its place) and `weight`.
      end_weight: loss weight of the end-of-turn token.

    Returns:
      (tokens int32 [t], target_ids int32 [t, A], target_weights float32 [t, A]). Alternatives
      count only where each is a single token; elsewhere the written tokens are the target.
    """
    tokens, ids, weights = [], [], []
    for piece in pieces:
        written = processing.encode(processor, piece.text)
        options = [processing.encode(processor, text) for text in piece.alternatives]
        if len(written) == 1 and options and all(len(o) == 1 for o in options):
            spread = [o[0] for o in options][:ALTERNATIVES]
            pad = ALTERNATIVES - len(spread)
            ids.append(spread + [0] * pad)
            weights.append([piece.weight / len(spread)] * len(spread) + [0.0] * pad)
        else:
            ids += [[token] + [0] * (ALTERNATIVES - 1) for token in written]
            weights += [[piece.weight] + [0.0] * (ALTERNATIVES - 1)] * len(written)
        tokens += written
    tokens.append(processor.ids.im_end)
    ids.append([processor.ids.im_end] + [0] * (ALTERNATIVES - 1))
    weights.append([end_weight] + [0.0] * (ALTERNATIVES - 1))
    return np.int32(tokens), np.int32(ids), np.float32(weights)


def demonstration(processor: Processor, chunks: list[Chunk], replies: list[Any]) -> Sequence:
    """Alternating user chunks and demonstrated replies as one training sequence.

    Raises:
      ValueError: the numbers of chunks and replies differ.
    """
    if len(chunks) != len(replies):
        raise ValueError(f"{len(chunks)} user turns and {len(replies)} replies")
    tokens, ids, weights = [], [], []
    for chunk, reply in zip(chunks, replies, strict=True):
        spoken, targets, loss = reply_targets(processor, reply.pieces, reply.end_weight)
        silent = np.zeros((chunk.tokens.size, ALTERNATIVES))
        tokens += [chunk.tokens, spoken]
        ids += [silent.astype(np.int32), targets]
        weights += [silent.astype(np.float32), loss]
    return Sequence(
        np.concatenate(tokens),
        tuple(picture for chunk in chunks for picture in chunk.pictures),
        {"target_ids": np.concatenate(ids), "target_weights": np.concatenate(weights)},
    )
