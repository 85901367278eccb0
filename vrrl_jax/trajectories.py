"""The ring of trained samples: tokens and what the loss needs of them, kept for later steps.

It stores causes, not pixels. Of a sample's pictures it keeps a digest alone; they are drawn again
from its example and its replies, and compared with it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vrrl_jax.parallel.mesh import (
    buffer_mesh,
    buffer_shardings,
    constrain_buffer,
    fetch,
    replicated,
)
from vrrl_jax.processing import encode
from vrrl_jax.processing.processor import Processor
from vrrl_jax.processing.processor import decode as decode_text
from vrrl_jax.rl import replay
from vrrl_jax.rollout.episodes import Environment, answered
from vrrl_jax.types import Array, Episode, Picture, Prompt

Tree = dict[str, Any]


def empty(
    slots: int, turns: int, fields: Iterable[str], capacity: int, mesh: Mesh | None = None
) -> replay.State:
    """An empty ring of `capacity` samples.

    A row of its payload:

        tokens      int32 [S]      prompt, replies and feedback turns, zeros past `length`
        turn_index  int32 [S]      the turn (0-based) a token belongs to
        spans       int32 [U, 2]   (start, end) of each reply
        replies     int32 []       how many replies
        length      int32 []       how many tokens
        question    int32 []       global id of the example
        serial      int32 []       number of the sample in the run
        step        int32 []       the step it was collected at
        truncated   int32 []       1 where a budget cut it
        advantage   float32 []     of the sample as a whole
        digest      uint32 [2]     of its pictures, in order
        fields      {name: float32 [S]}   whatever else is known of each token

    Args:
      slots: S, tokens of the longest episode.
      turns: U, replies of the longest episode.
      fields: names of the per-token values.
      capacity: C, the number of samples.
      mesh: the payload is split over it by rows, the metadata replicated.

    Raises:
      ValueError: the capacity isn't positive, or doesn't divide over the mesh.
    """
    ints, floats = functools.partial(jnp.zeros, dtype=jnp.int32), jnp.zeros
    row = {
        "tokens": ints((slots,)),
        "turn_index": ints((slots,)),
        "spans": ints((turns, 2)),
        **{
            name: ints(())
            for name in ("replies", "length", "question", "serial", "step", "truncated")
        },
        "advantage": floats(()),
        "digest": jnp.zeros((2,), jnp.uint32),
        "fields": {name: floats((slots,)) for name in fields},
    }
    born = functools.partial(replay.init, row, capacity)
    if mesh is None:
        return born()
    return jax.jit(born, out_shardings=buffer_shardings(mesh, jax.eval_shape(born)))()


def rows(
    episodes: Sequence[Episode],
    fields: dict[str, np.ndarray],
    slots: int,
    turns: int,
    *,
    advantage: np.ndarray,
    serials: np.ndarray,
    step: int | np.ndarray,
    count: int,
) -> Tree:
    """Episodes as rows for `add`: numpy arrays [count, ...], all zero past the last episode.

    Args:
      episodes: at most `count`.
      fields: per-token values [B, S], one episode a row, B at least the number of episodes.
      slots, turns: S and U of the ring.
      advantage, serials: [B].
      step: int, or int [B].
      count: rows of the result, the same at every step so that one program serves the run.

    Raises:
      ValueError: more episodes than rows, an episode of more tokens or replies than the ring has
        room for, or arrays of other shapes.
    """
    n = len(episodes)
    if n > count:
        raise ValueError(f"{n} episodes in {count} rows")
    whole = lambda value: _column(value, n, count, np.int32)
    out = {
        "tokens": np.zeros((count, slots), np.int32),
        "turn_index": np.zeros((count, slots), np.int32),
        "spans": np.zeros((count, turns, 2), np.int32),
        "replies": np.zeros(count, np.int32),
        "length": np.zeros(count, np.int32),
        "question": whole([e.question for e in episodes]),
        "serial": whole(serials),
        "step": whole(np.broadcast_to(step, n) if np.ndim(step) == 0 else step),
        "truncated": whole([e.truncated for e in episodes]),
        "advantage": _column(advantage, n, count, np.float32),
        "digest": np.zeros((count, 2), np.uint32),
        "fields": {name: np.zeros((count, slots), np.float32) for name in fields},
    }
    known: dict[int, tuple[Picture, bytes]] = {}
    for b, episode in enumerate(episodes):
        size, replies = episode.tokens.size, len(episode.spans)
        if size > slots or replies > turns:
            raise ValueError(
                f"question {episode.question}: an episode of {size} tokens in {replies} replies, "
                f"the ring has room for {slots} in {turns}"
            )
        out["tokens"][b, :size] = episode.tokens
        out["turn_index"][b, :size] = episode.turn_index
        out["spans"][b, :replies] = np.reshape(episode.spans, (replies, 2))
        out["replies"][b], out["length"][b] = replies, size
        out["digest"][b] = digest(episode.pictures, known)
    for name, values in fields.items():
        values = np.asarray(values)
        if values.ndim != 2 or len(values) < n or values.shape[1] != slots:
            raise ValueError(f"{name}: {values.shape}, expected [{n} or more, {slots}]")
        out["fields"][name][:n] = values[:n]
    return out


def _column(values: Any, n: int, count: int, dtype: Any) -> np.ndarray:
    """The first n of `values`, zero-padded to [count]."""
    values = np.asarray(values)
    if values.ndim != 1 or len(values) < n:
        raise ValueError(f"values of shape {values.shape} for {n} episodes")
    return np.pad(values[:n].astype(dtype), (0, count - n))


def digest(
    pictures: Sequence[Picture], known: dict[int, tuple[Picture, bytes]] | None = None
) -> np.ndarray:
    """uint32 [2] that tells pictures apart: of their sizes, dtypes, values and order.

    Args:
      pictures: any number of them.
      known: parts of earlier digests, added to: the samples of a group share their first picture.
    """
    known = {} if known is None else known
    for picture in pictures:
        # The record itself is kept as well: the id of one that is gone may be another's.
        if id(picture) not in known:
            known[id(picture)] = picture, _digest(picture)
    whole = hashlib.sha256(b"".join(known[id(p)][1] for p in pictures))
    return np.frombuffer(whole.digest()[:8], "<u4").astype(np.uint32)


def _digest(picture: Picture) -> bytes:
    patches = np.ascontiguousarray(picture.patches)
    found = hashlib.sha256(f"{picture.grid} {patches.dtype} {patches.shape}".encode())
    found.update(patches.data)
    return found.digest()


def add(state: replay.State, batch: Tree, mask: Array, priority: Array) -> replay.State:
    """Adds rows in order, each in the place of the oldest once the ring is full.

    Args:
      state: the ring; donated, its layout on a mesh kept.
      batch: from `rows`.
      mask: [count], 0 skips a row: padding, or one that isn't worth keeping.
      priority: float [count], what `draw` weighs a row by, such as its |advantage|.

    Raises:
      ValueError: `batch` doesn't fit the ring.
    """
    mask, priority = np.asarray(mask) != 0, np.asarray(priority, np.float32)
    return _add(state, batch, mask, priority, buffer_mesh(state))


def draw(
    state: replay.State,
    key: jax.Array,
    n: int,
    *,
    replacement: bool,
    exponent: float,
    offset: float = 0.0,
) -> tuple[Tree, np.ndarray]:
    """Draws n samples with P(j) = (|priority_j| + offset)^exponent / sum_k of the same.

    Who wants fewer takes the first ones: they are a draw of their own by the same law.

    Args:
      state: the ring; stays as it is.
      key: a random key.
      n: how many; static, like `replacement`.
      replacement: whether a row may be drawn twice.
      exponent, offset: see `replay.sample`.

    Returns:
      (rows, ok): numpy arrays like those of `rows` with n for count, and bool [n]. Where `ok` is
      False nothing was left to draw and the row means nothing. Rows with `ok` come first.
    """
    exponent, offset = np.float32(exponent), np.float32(offset)
    return fetch(_draw(state, key, n, replacement, exponent, offset, buffer_mesh(state)))


@functools.partial(jax.jit, donate_argnums=0, static_argnums=4)
def _add(state, batch, mask, priority, mesh):
    return constrain_buffer(mesh, replay.add(state, batch, mask, priority))


@functools.partial(jax.jit, static_argnums=(2, 3, 6))
def _draw(state, key, n, replacement, exponent, offset, mesh):
    drawn, _, ok = replay.sample(
        state, key, n, replacement=replacement, exponent=exponent, offset=offset
    )
    if mesh is not None:
        # The host reads them, and of several hosts each sees its own devices only.
        drawn, ok = jax.lax.with_sharding_constraint((drawn, ok), replicated(mesh))
    return drawn, ok


# --- episodes again ------------------------------------------------------------------------------


def rebuild(row: Tree, example: Any, environment: Environment, processor: Processor) -> Episode:
    """The episode of a drawn row, its pictures drawn again.

    The stored replies are played against the environment once more; its turns must come out as
    they were, token by token, and its pictures byte by byte.

    Args:
      row: one row of what `draw` returns (`jax.tree.map(lambda a: a[i], rows)`).
      example: of `row["question"]`.
      environment, processor: those that the episode was played with.

    Returns:
      An episode with the tokens, turns, replies, pictures and user turns of the first one. Its
      loss mask, log-probabilities and hidden tokens are the fields `loss_mask`, `logprobs` and
      `hidden` where the ring has them, else zeros, zeros and None. Its rewards are empty and its
      mode is "normal": what they led to is stored.

    Raises:
      ValueError: naming the question: the example can't be shown, or it isn't the one that the
        sample was made from.
    """
    question, length = int(row["question"]), int(row["length"])
    tokens = np.array(row["tokens"][:length])
    spans = tuple((int(a), int(b)) for a, b in row["spans"][: int(row["replies"])])
    # As the rollout reads them: special tokens are no text.
    texts = tuple(decode_text(processor, tokens[a:b]) for a, b in spans)
    try:
        chunks = _replayed(tokens, spans, texts, example, environment, processor)
        pictures = tuple(picture for _, chunk in chunks for picture in chunk.pictures)
        if digest(pictures).tolist() != np.asarray(row["digest"]).tolist():
            raise ValueError("its pictures aren't those that the sample was made with")
    except (ValueError, OSError) as error:
        raise ValueError(f"question {question} can't be replayed: {error}") from error
    zeros = np.zeros(length, np.float32)
    field = lambda name: np.array(row["fields"][name][:length]) if name in row["fields"] else zeros
    hidden = field("hidden") > 0
    return Episode(
        question=question,
        sample=0,
        group=0,
        tokens=tokens,
        loss_mask=field("loss_mask"),
        turn_index=np.array(row["turn_index"][:length]),
        logprobs=field("logprobs"),
        pictures=pictures,
        texts=texts,
        spans=spans,
        rewards={},
        truncated=bool(row["truncated"]),
        prompts=tuple(prompt.text for prompt, _ in chunks),
        hidden=hidden if hidden.any() else None,
    )


def _replayed(
    tokens: np.ndarray,
    spans: Sequence[tuple[int, int]],
    texts: Sequence[str],
    example: Any,
    environment: Environment,
    processor: Processor,
) -> list[tuple[Prompt, encode.Chunk]]:
    """The user turns between the replies; ValueError where they differ from the stored tokens."""
    chunks, start = [], 0
    for turn, (opens, end) in enumerate(spans):
        if turn == 0:
            prompt = environment.reset(example)
            chunk = encode.first_chunk(processor, prompt)
        else:
            prompt = answered(environment, example, texts[:turn]).prompt
            if prompt is None:
                raise ValueError(
                    f"the environment ends the episode at reply {turn} of {len(spans)}"
                )
            chunk = encode.next_chunk(processor, prompt)
        if not np.array_equal(chunk.tokens, tokens[start:opens]):
            raise ValueError(f"user turn {turn} isn't the one that the sample was made with")
        chunks.append((prompt, chunk))
        start = end
    return chunks
