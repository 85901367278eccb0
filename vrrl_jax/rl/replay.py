"""A replay buffer of trajectories: a ring of rows as plain data, and pure functions over it.

Everything is jittable with fixed shapes. Jit `add` with the state donated, or every call copies
the ring. On a mesh, split `payload` over its rows and replicate the other fields: selection is
computed on those alone, identically on every device, so the law of sampling is that of one global
buffer. The capacity must then be a multiple of the devices its rows are split over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vrrl_jax.types import Array

Tree = Any


class State(NamedTuple):
    """The buffer. Rows are overwritten oldest first.

    Attributes:
      payload: a tree of arrays [C, ...], the stored rows.
      priority: float32 [C], what sampling weighs a row by, e.g. its |advantage|.
      cursor: int32 [], the slot the next row goes to.
      size: int32 [], the number of rows held, at most C.
    """

    payload: Tree
    priority: jax.Array
    cursor: jax.Array
    size: jax.Array


def init(example: Tree, capacity: int) -> State:
    """An empty buffer.

    Args:
      example: one row, without a batch axis: arrays or `jax.ShapeDtypeStruct`s.
      capacity: C, the number of rows.

    Raises:
      ValueError: the capacity isn't positive.
    """
    return State(
        payload=empty_rows(example, capacity),
        priority=jnp.zeros((capacity,), jnp.float32),
        cursor=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
    )


def add(
    state: State, batch: Tree, mask: Array | None = None, priority: Array | None = None
) -> State:
    """Adds rows in order, each in the place of the oldest once the ring is full.

    Args:
      state: the buffer; donate it.
      batch: a tree like the payload's, [B, ...]. Of more than C rows the last C stay.
      mask: [B], 0 skips a row (padding, a zero advantage); it then takes no slot.
      priority: [B]; None for 1.

    Returns:
      The new buffer.

    Raises:
      ValueError: `batch` doesn't fit the payload.
    """
    rows = check_rows(state.payload, batch)
    capacity = state.priority.shape[0]
    keep = jnp.ones((rows,), bool) if mask is None else jnp.asarray(mask) != 0
    count = jnp.sum(keep, dtype=jnp.int32)
    rank = jnp.cumsum(keep, dtype=jnp.int32) - 1
    # Rows that this very batch would overwrite are not written: scatters have no order.
    stays = keep & (rank >= count - capacity)
    slots = jnp.where(stays, (state.cursor + rank) % capacity, capacity)
    priority = jnp.ones((rows,)) if priority is None else jnp.asarray(priority)
    return State(
        payload=write_rows(state.payload, batch, slots),
        priority=state.priority.at[slots].set(priority.astype(jnp.float32), mode="drop"),
        cursor=(state.cursor + count) % capacity,
        size=jnp.minimum(state.size + count, capacity),
    )


def sample(
    state: State,
    key: jax.Array,
    n: int,
    *,
    replacement: bool = False,
    exponent: float | Array = 0.0,
    offset: float | Array = 0.0,
) -> tuple[Tree, jax.Array, jax.Array]:
    """Draws n rows with P(j) = w_j^exponent / sum_k w_k^exponent, w_j = |priority_j| + offset.

    Exponent 0 is uniform over all rows held, those of weight 0 included; with a positive exponent
    rows of weight 0 are never drawn. A row whose priority isn't finite is never drawn at all.
    Source: Selective Sample Replay, VL-Rethinker (arXiv 2504.08837), section 3.2, with |advantage|
    as the priority; its released code draws stored rows with exponent 1 and offset 1e-4. Without
    replacement the rows are drawn one after the other by that law.

    Args:
      state: the buffer.
      key: a random key.
      n: how many, static.
      replacement: whether a row may be drawn twice; static.
      exponent: alpha >= 0; may be traced.
      offset: >= 0; may be traced. A positive one makes rows of priority 0 drawable.

    Returns:
      (batch, indices, ok): a tree [n, ...], int32 [n] slots, bool [n]. Where `ok` is False there
      was nothing left to draw: the row is some row of the buffer, and is to be masked out. Rows
      with `ok` come first.
    """
    capacity = state.priority.shape[0]
    logits = _log_weights(state, exponent, offset)
    drawable = jnp.sum(logits > -jnp.inf, dtype=jnp.int32)
    if replacement:
        # Rows of an empty buffer all weigh 0: any logits will do, `ok` says so.
        safe = jnp.where(drawable > 0, logits, 0.0)
        indices = jax.random.categorical(key, safe, shape=(n,)).astype(jnp.int32)
        ok = jnp.broadcast_to(drawable > 0, (n,))
    else:
        # The largest of logit + Gumbel noise is a draw by the softmax, the next one a draw from
        # the rest, and so on (Kool et al. 2019, arXiv 1903.06059).
        noisy = logits + jax.random.gumbel(key, (capacity,))
        indices = jax.lax.top_k(noisy, min(n, capacity))[1].astype(jnp.int32)
        indices = jnp.pad(indices, (0, max(n - capacity, 0)))
        ok = jnp.arange(n) < drawable
    return read_rows(state.payload, indices), indices, ok


def can_sample(
    state: State, n: int | Array, *, exponent: float | Array = 0.0, offset: float | Array = 0.0
) -> jax.Array:
    """Whether n distinct rows can be drawn, a bool scalar; arguments as in `sample`."""
    return jnp.sum(_log_weights(state, exponent, offset) > -jnp.inf) >= n


def clear(state: State) -> State:
    """Forgets all rows. Their memory stays, to be overwritten."""
    return state._replace(cursor=jnp.zeros_like(state.cursor), size=jnp.zeros_like(state.size))


def _log_weights(state: State, exponent: float | Array, offset: float | Array) -> jax.Array:
    """exponent * log(|priority| + offset) [C], -inf for what may not be drawn."""
    size = jnp.abs(state.priority) + offset
    finite, positive = jnp.isfinite(size), size > 0
    logits = exponent * jnp.log(jnp.where(finite & positive, size, 1.0))
    drawable = finite & (positive | (jnp.asarray(exponent) == 0))
    drawable &= jnp.arange(size.shape[0]) < state.size
    return jnp.where(drawable, logits, -jnp.inf)


# Payload rows, for this buffer and the prefix buffer.


def empty_rows(example: Tree, capacity: int) -> Tree:
    """A tree of zeros [C, ...] whose rows are like `example`."""
    if capacity < 1:
        raise ValueError(f"a buffer needs a capacity of at least 1, not {capacity}")

    def _zeros(x):
        dtype = jax.dtypes.canonicalize_dtype(x.dtype if hasattr(x, "dtype") else type(x))
        return jnp.zeros((capacity, *jnp.shape(x)), dtype)

    return jax.tree.map(_zeros, example)


def check_rows(payload: Tree, batch: Tree) -> int:
    """The number of rows B of `batch`; ValueError where it doesn't fit `payload`."""
    have, want = jax.tree.structure(batch), jax.tree.structure(payload)
    if have != want:
        raise ValueError(f"the buffer holds {want}, not {have}")
    leaves = list(zip(jax.tree.leaves(payload), jax.tree.leaves(batch), strict=True))
    if not leaves:
        raise ValueError("a payload without arrays has no rows")
    rows = jnp.shape(leaves[0][1])[:1]
    for held, new in leaves:
        if jnp.shape(new) != (*rows, *held.shape[1:]) or not rows:
            raise ValueError(
                f"a row of the buffer is {held.shape[1:]}, a batch of {rows} can't be "
                f"{jnp.shape(new)}"
            )
        if jnp.issubdtype(jnp.result_type(new), jnp.inexact) and not jnp.issubdtype(
            held.dtype, jnp.inexact
        ):
            raise ValueError(f"a {held.dtype} payload would truncate {jnp.result_type(new)}")
    return rows[0]


def write_rows(payload: Tree, batch: Tree, slots: jax.Array) -> Tree:
    """`payload` with row i of `batch` in slot `slots[i]`; slots >= C are skipped.

    Slots must not repeat: which row would win is undefined.
    """
    # unique_indices stays off: the skipped rows share one slot out of range.
    return jax.tree.map(
        lambda held, new: held.at[slots].set(jnp.asarray(new).astype(held.dtype), mode="drop"),
        payload,
        batch,
    )


def read_rows(payload: Tree, indices: Array) -> Tree:
    """Rows [n, ...] of `payload` at int [n] slots in 0 .. C - 1."""
    return jax.tree.map(lambda held: jnp.take(held, indices, axis=0, mode="clip"), payload)
