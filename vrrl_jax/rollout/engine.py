"""The device side of a rollout: append a chunk, repeat rows, decode until every row has stopped.

A row's transcript is dense from slot 0 of its cache. The last token that was sampled isn't in
the cache yet: it opens the row's next chunk. Whoever forgets it, or feeds it twice, gets
log-probabilities of another text.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vrrl_jax.models import policy as models
from vrrl_jax.models.policy import Policy, View
from vrrl_jax.rollout import sampling as sample
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Array, Pictures


class State(NamedTuple):
    """Rows in flight.

    Attributes:
      cache: per layer (keys, values), each [B, S, G, H].
      lengths: int32 [B], filled slots; what lies beyond is never attended to.
      next_position: int32 [B], M-RoPE position of the next token.
      hidden: [B, D], the state that emits a row's next token.
    """

    cache: tuple[tuple[Array, Array], ...]
    lengths: Array
    next_position: Array
    hidden: Array


class Chunk(NamedTuple):
    """Tokens to append, right-padded.

    Attributes:
      tokens: int32 [B, N].
      count: int32 [B]; a row with 0 stays as it is.
      positions: int32 [3, B, N].
      next_position: int32 [B], the position after the chunk.
      pictures: of the chunk, or None.
      hidden: bool [B, N], tokens that are seen as zero embeddings, or None.
    """

    tokens: Array
    count: Array
    positions: Array
    next_position: Array
    pictures: Pictures | None
    hidden: Array | None = None


class Decoded(NamedTuple):
    """What a call of `decode` sampled.

    Attributes:
      tokens: int32 [B, capacity], 0 past a row's length. A stop token is included.
      logprobs, sampled_logprobs: float32 [B, capacity]; see `sampling.Draw`.
      lengths: int32 [B].
      stopped: bool [B], False where the limit cut a row.
    """

    tokens: Array
    logprobs: Array
    sampled_logprobs: Array
    lengths: Array
    stopped: Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init(policy: Policy, rows: int, slots: int) -> State:
    """Empty rows with room for `slots` tokens."""
    zero = lambda: jnp.zeros(rows, jnp.int32)
    hidden = jnp.zeros((rows, policy.config.text.width), policy.dtype)
    return _laid_out(policy, State(models.init_cache(policy, rows, slots), zero(), zero(), hidden))


def _laid_out(policy: Policy, state: State) -> State:
    """On a mesh every program returns a state in the layout in which the next one takes it."""
    cache = tuple(tuple(models.constrain_cache(policy, a) for a in pair) for pair in state.cache)
    return State(cache, *(models.constrain_rows(policy, a) for a in state[1:]))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def append(
    policy: Policy, view: View, state: State, chunk: Chunk, rows: Array | None = None
) -> State:
    """Writes each row's chunk at its own offset. The caller has checked that it fits.

    Args:
      policy, view, state: the state is donated.
      chunk: a row each, of all rows; or of those that `rows` names.
      rows: int32 [A], distinct rows of the state whose chunks these are; others aren't computed.
        Those past the last name none: their chunks, of 0 tokens, go nowhere. None for all.
    """
    part = state if rows is None else _take(state, rows)
    tokens, pictures, hidden = chunk.tokens, chunk.pictures, chunk.hidden
    x, cache = models.cached_forward(
        policy, view, part.cache, tokens, chunk.positions, part.lengths, pictures, hidden
    )
    last = jnp.maximum(chunk.count - 1, 0)[:, None, None]
    emits = jnp.take_along_axis(x, last, 1)[:, 0]
    touched = chunk.count > 0
    part = State(
        cache,
        part.lengths + chunk.count,
        jnp.where(touched, chunk.next_position, part.next_position),
        jnp.where(touched[:, None], emits, part.hidden),
    )
    return _laid_out(policy, part if rows is None else _put(state, rows, part))


def _take(state: State, rows: Array) -> State:
    return jax.tree.map(lambda a: a.at[rows].get(mode="clip"), state)


def _put(state: State, rows: Array, part: State) -> State:
    put = lambda whole, new: whole.at[rows].set(new, mode="drop", unique_indices=True)
    return jax.tree.map(put, state, part)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def place(policy: Policy, state: State, source: State, rows: Array, origins: Array) -> State:
    """Puts copies of rows `origins` [A] of another state, which has as many slots, in the place of
    `rows` [A], distinct; those past the last name none."""
    return _laid_out(policy, _put(state, rows, _take(source, origins)))


@functools.partial(jax.jit, static_argnums=(0, 2))
def repeat(policy: Policy, state: State, times: int) -> State:
    """Every row `times` times, neighbours: n samples share one prefill of their prompt."""
    return _laid_out(policy, jax.tree.map(lambda a: jnp.repeat(a, times, 0), state))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def rewind(policy: Policy, state: State, lengths: Array, next_position: Array) -> State:
    """Rows back at `lengths` filled slots [B], the next token at `next_position` [B].

    Where a row did go back, `hidden` means nothing until a chunk has been appended to it.
    """
    return _laid_out(policy, state._replace(lengths=lengths, next_position=next_position))


@functools.partial(jax.jit, static_argnums=(0, 8), donate_argnums=2)
def decode(
    policy: Policy,
    view: View,
    state: State,
    active: Array,
    keys: Array,
    sampling: Sampling,
    stop_ids: Array,
    limit: Array,
    capacity: int,
    first: Array | int = 0,
) -> tuple[State, Decoded]:
    """Samples until every active row has stopped or `limit` tokens are out.

    A reply may be sampled in pieces, as one call would: append each row's last token, then go on
    with `first` at the number of tokens that are out.

    Args:
      policy, view, state: the state is donated.
      active: bool [B]; other rows stay as they are.
      keys: [B]; token i of a reply draws with fold_in(key, i).
      sampling: how to draw.
      stop_ids: int32 [n].
      limit: int scalar, or [B] for a limit a row; from 1 to `capacity`.
      capacity: static width of the result.
      first: int scalar, index in the reply of the first token to sample.
    """
    emit = functools.partial(_emit, policy, view, keys, sampling, stop_ids, first, limit)

    def going(i, active):
        return active.any() if jnp.ndim(limit) else (i < limit) & active.any()

    state, _, _, out = _sample(policy, view, state, active, emit, going, capacity)
    return _laid_out(policy, state), out


class Replies(NamedTuple):
    """Replies under way, which `decode_chunk` goes on with.

    Attributes:
      active: bool [B].
      count: int32 [B], tokens that are out.
      keys: [B], as in `decode`.
    """

    active: Array
    count: Array
    keys: Array


@functools.partial(jax.jit, static_argnums=(0, 7), donate_argnums=2)
def decode_chunk(
    policy: Policy,
    view: View,
    state: State,
    replies: Replies,
    sampling: Sampling,
    stop_ids: Array,
    limit: Array,
    capacity: int,
) -> tuple[State, Replies, Decoded]:
    """Samples up to `capacity` tokens of each reply under way: what `decode` would, in pieces.

    Args:
      policy, view, state: the state is donated.
      replies: those that ended are inactive in what comes back.
      sampling, stop_ids: as in `decode`.
      limit: int scalar, tokens of a whole reply.
      capacity: static.

    Returns:
      (state, replies, what was sampled now). The last token of a reply that ended isn't in the
      cache; that of one that goes on is.
    """
    left = limit - replies.count
    emit = functools.partial(
        _emit, policy, view, replies.keys, sampling, stop_ids, replies.count, left
    )
    going = lambda i, active: (i < capacity) & active.any()
    state, token, active, out = _sample(policy, view, state, replies.active, emit, going, capacity)
    # Not under a condition, which might copy the cache.
    state = _feed(policy, view, state, token, active)
    replies = Replies(active, replies.count + out.lengths, replies.keys)
    return _laid_out(policy, state), replies, out


@jax.jit
def begin(replies: Replies, rows: Array, keys: Array) -> Replies:
    """Replies with new ones in `rows`: bool [B], keys [B]."""
    return Replies(
        replies.active | rows,
        jnp.where(rows, 0, replies.count),
        jnp.where(rows, keys, replies.keys),
    )


def _sample(policy, view, state, active, emit, going, capacity):
    """The loop of a call: (state, the tokens drawn last, which no cache holds, rows that go on,
    what is out)."""
    rows = active.shape[0]
    empty, none = jnp.zeros((rows, capacity), jnp.float32), jnp.zeros(rows, jnp.int32)
    out = Decoded(empty.astype(jnp.int32), empty, empty, none, none > 0)

    def step(carry):
        i, state, token, active, out = carry
        state = _feed(policy, view, state, token, active)
        return i + 1, state, *emit(i, state.hidden, active, out)

    carry = 1, state, *emit(0, state.hidden, active, out)
    return jax.lax.while_loop(lambda carry: going(carry[0], carry[3]), step, carry)[1:]


def _emit(policy, view, keys, sampling, stop_ids, first, limit, i, hidden, active, out):
    """Draws token i of a call: (token [B], rows that go on, what is out)."""
    raw = jnp.matmul(hidden, view.head, preferred_element_type=jnp.float32)
    index = jnp.broadcast_to(first + i, active.shape)
    drawn = sample.draw(policy, raw, jax.vmap(jax.random.fold_in)(keys, index), sampling)
    token = jnp.where(active, drawn.token, 0)
    stopped = active & (token[:, None] == stop_ids).any(-1)
    out = Decoded(
        out.tokens.at[:, i].set(token),
        out.logprobs.at[:, i].set(jnp.where(active, drawn.logprob, 0)),
        out.sampled_logprobs.at[:, i].set(jnp.where(active, drawn.sampled_logprob, 0)),
        out.lengths + active,
        out.stopped | stopped,
    )
    active = active & ~stopped
    if jnp.ndim(limit):
        active = active & (i + 1 < limit)
    return token, active, out


def _feed(policy: Policy, view: View, state: State, token: Array, active: Array) -> State:
    """Writes a token of each active row into the cache."""
    rows = active.shape[0]
    position = jnp.broadcast_to(state.next_position[None, :, None], (3, rows, 1))
    # Rows that are done write too, into a slot that nothing attends to.
    x, cache = models.cached_forward(
        policy, view, state.cache, token[:, None], position, state.lengths
    )
    return State(
        cache,
        state.lengths + active,
        state.next_position + active,
        jnp.where(active[:, None], x[:, 0], state.hidden),
    )


make_view = jax.jit(models.rollout_view, static_argnums=0)
make_keys = jax.jit(sample.row_keys)
