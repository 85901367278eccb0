"""Questions about pictures, and their replies as text: at once, or while they are sampled.

A reply that appears on a terminal piece by piece has the very tokens of `inference.generate`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from vrrl_jax import inference
from vrrl_jax.checkpoint import hf
from vrrl_jax.inference import Options
from vrrl_jax.models.policy import Params, Policy, View
from vrrl_jax.processing import chat
from vrrl_jax.processing import processor as processing
from vrrl_jax.processing.images import open_image
from vrrl_jax.processing.processor import Processor
from vrrl_jax.progress import bytes_bar
from vrrl_jax.rollout import engine
from vrrl_jax.types import Picture, Sequence

CHUNK = 8  # tokens between two looks of a terminal at a reply


# --- questions -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Question:
    """A chat that waits for the assistant.

    Attributes:
      messages: Hugging Face form.
      images: uint8 [H, W, 3] each, in the order of the messages' image parts.
    """

    messages: list[Mapping[str, Any]]
    images: list[np.ndarray]


def ask(prompt: str, paths: list[str | os.PathLike], system: str | None = None) -> Question:
    """One question about picture files, shown before the text.

    Raises:
      OSError, ValueError: a picture can't be read.
    """
    images = [open_image(path) for path in paths]
    return Question(_with_system([_user_turn(prompt, len(images))], system), images)


def _user_turn(prompt: str, images: int) -> dict[str, Any]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    return {"role": "user", "content": content}


def _with_system(messages: list, system: str | None) -> list:
    """Opens a chat with a system message, where it doesn't bring its own."""
    if system is None or any(message.get("role") == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def read_chat(path: str | os.PathLike, system: str | None = None) -> Question:
    """A chat from a JSON file: a list of messages, or {"messages": [...]}.

    Raises:
      OSError, ValueError: the file or one of its pictures can't be read, or has another form.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        messages = content.get("messages") if isinstance(content, dict) else content
        return read_messages(messages, path.parent, system)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_messages(messages: Any, directory: pathlib.Path, system: str | None) -> Question:
    """A chat and the pictures that its image parts name, paths relative to `directory`."""
    if not isinstance(messages, list) or not messages:
        raise ValueError('expected messages: [{"role": ..., "content": ...}, ...], at least one')
    images = []
    for message in messages:
        if not isinstance(message, dict):
            raise ValueError(f"a message must be an object, not {type(message).__name__}")
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if chat.is_image(part):
                images.append(open_image(directory / local_path(part)))
    return Question(_with_system(messages, system), images)


def local_path(part: Mapping[str, Any]) -> str:
    """Where the picture of an image part lies."""
    place = next((part[k] for k in ("image", "path", "image_url", "url") if part.get(k)), None)
    if isinstance(place, dict):  # {"image_url": {"url": ...}}
        place = place.get("url")
    if not isinstance(place, str):
        raise ValueError('an image part must name its file: {"type": "image", "image": "PATH"}')
    if place.startswith(("http://", "https://", "data:")):
        raise ValueError(f"only picture files are read, not {place[:60]}")
    if place.startswith("file://"):
        return urllib.parse.unquote(urllib.parse.urlsplit(place).path)
    return place


def tokenise(processor: Processor, question: Question, *, normalised: bool = False) -> Sequence:
    """A question as tokens and pictures.

    Args:
      normalised: whether pictures become a processor's float `pixel_values`, the input of
        `generate`; else they stay uint8, an eighth of the bytes.

    Raises:
      ValueError: a text holds a special token, or is no Unicode.
    """
    # A lone surrogate, which JSON can spell, is no text. UnicodeEncodeError is a ValueError.
    json.dumps(question.messages, ensure_ascii=False).encode()
    pictures = [processing.picture(processor, image) for image in question.images]
    tokens = processing.chat_prompt(processor, question.messages, pictures)
    if normalised:
        pictures = [Picture(processing.pixel_values(processor, p), p.grid) for p in pictures]
    return Sequence(tokens, tuple(pictures))


# --- one question --------------------------------------------------------------------------------


def answer(
    policy: Policy,
    params: Params,
    processor: Processor,
    prompt: str,
    images: list[np.ndarray],
    *,
    key: jax.Array | None = None,
    **options,
) -> str:
    """One reply to a prompt about pictures, as text.

    Args:
      images: uint8 [H, W, 3] each, put before the prompt.
      key, options: of `inference.generate`.
    """
    question = Question([_user_turn(prompt, len(images))], images)
    sequence = tokenise(processor, question, normalised=True)
    arrays = {}
    if images:
        arrays["pixel_values"] = np.concatenate([p.patches for p in sequence.pictures])
        arrays["image_grid_thw"] = np.array([p.grid for p in sequence.pictures])
    ids = sequence.tokens[None]
    out = inference.generate(policy, params, ids, **arrays, key=key, **options)
    return processing.decode(processor, out.tokens[0, : int(out.lengths[0])])


class Piece(NamedTuple):
    """What a chunk of decoding added to the n replies to a question.

    Attributes:
      tokens: int32 [CHUNK or fewer] a reply; none for one that had ended before.
      going: bool [n], the replies that go on.
    """

    tokens: list[np.ndarray]
    going: np.ndarray


def stream(
    policy: Policy, view: View, sequence: Sequence, options: Options, key: jax.Array
) -> Iterator[Piece]:
    """The replies that `generate` gives to this one prompt, while they are sampled.

    Args:
      view: from `engine.make_view`.
      sequence: from `tokenise`.
      key: of all draws; greedy needs none and takes any.
    """
    n, total = options.n, options.max_new_tokens
    state = inference.prefill(policy, view, [sequence], options)
    keys = engine.make_keys(key, 0, np.zeros(n, np.int32), np.arange(n, dtype=np.int32), 0)
    going, stops = np.ones(n, bool), options.stops(policy)
    for first in range(0, total, CHUNK):
        limit = min(CHUNK, total - first)
        numbers = options.sampling, stops, np.int32(limit)  # traced, like `first`: one program
        state, out = engine.decode(
            policy, view, state, going, keys, *numbers, CHUNK, np.int32(first)
        )
        out = jax.device_get(out)
        going = going & ~out.stopped & (first + limit < total)
        yield Piece([row[:k] for row, k in zip(out.tokens, out.lengths, strict=True)], going)
        if not going.any():
            return
        # The last token that was sampled isn't in the cache yet.
        at = np.asarray(state.next_position)
        positions = np.broadcast_to(at[None, :, None], (3, n, 1))
        pending = engine.Chunk(out.tokens[:, -1:], going.astype(np.int32), positions, at + 1, None)
        state = engine.append(policy, view, state, pending)


class Partial(NamedTuple):
    """The text of tokens that are still coming in: `shown` is out and stands."""

    ids: tuple[int, ...] = ()
    shown: str = ""


def advance(
    processor: Processor, partial: Partial, ids: np.ndarray, last: bool
) -> tuple[Partial, str]:
    """Adds tokens; returns what can be shown of them now.

    A character whose bytes aren't complete decodes to replacement characters at the end: they
    are held back until later tokens decide, or the `last` ones have come. All tokens are decoded
    each time, for a token's text may depend on those before it.
    """
    ids = (*partial.ids, *(int(i) for i in ids))
    text = processing.decode(processor, ids)
    shown = text if last else text.rstrip("\ufffd")
    return Partial(ids, shown), shown[len(partial.shown) :]


def texts(processor: Processor, pieces: Iterator[Piece], n: int = 1) -> Iterator[tuple[int, str]]:
    """(reply, text to add to it) of n streamed replies, one reply after the other."""
    partials, ready = [Partial()] * n, [""] * n
    going, current = np.ones(n, bool), 0
    for piece in pieces:
        for i in np.flatnonzero(going):
            last = not piece.going[i]
            partials[i], new = advance(processor, partials[i], piece.tokens[i], last)
            ready[i] += new
        going = piece.going
        while current < n:
            if ready[current]:
                yield current, ready[current]
                ready[current] = ""
            if going[current]:
                break
            current += 1


def load_view(checkpoint: str) -> tuple[Policy, View]:
    """A policy for sampling alone: the parameters themselves aren't kept."""
    with bytes_bar("read") as progress:
        policy, params = hf.load_pretrained(checkpoint, progress=progress)
    return policy, engine.make_view(policy, params)


def speak(
    checkpoint: str, question: Question, options: Options, seed: int, out: TextIO | None = None
) -> None:
    """Prints the replies to a question while they are sampled, a line end after each.

    Args:
      checkpoint: a Hugging Face directory, or "nano".
      out: None is stdout.
    """
    out = out or sys.stdout
    processor = processing.load_processor(hf.load_policy(checkpoint).directory)
    sequence = tokenise(processor, question, normalised=True)
    policy, view = load_view(checkpoint)
    pieces = stream(policy, view, sequence, options, jax.random.key(seed))
    at = 0
    for reply, text in texts(processor, pieces, options.n):
        out.write("\n" * (reply - at) + text)
        out.flush()
        at = reply
    out.write("\n" * (options.n - at))
    out.flush()
