"""The buffer of Buffered Roll-In: prefixes of earlier episodes, to start new ones from.

A prefix is an episode without its last (commit) turn: `right` if the commit was right, else
wrong. The buffer is first in, first out, keeps a question's prefixes diverse in length, and hands
them out balanced by kind and number of turns, each once until `reset_used`. Source: VRRL
(arXiv 2607.02490), Buffered Roll-In.

Everything is jittable with fixed shapes. Jit `add` with the state donated, or every call copies
the payload. On a mesh, split `payload` over its rows and replicate the other fields: selection is
computed on those alone, identically on every device. Questions are global identities (the map, a
row of the data source), never positions in a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vrrl_jax.rl import replay
from vrrl_jax.types import Array

Tree = Any
_LAST = jnp.iinfo(jnp.int32).max


class State(NamedTuple):
    """The buffer: C slots, of which those marked valid hold a prefix.

    Attributes:
      payload: a tree of arrays [C, ...], the stored prefixes.
      question: int32 [C], global id of the prefix's question.
      turns: int32 [C], number of proposals in the prefix.
      right: bool [C], whether its episode's commit was right.
      step: int32 [C], the training step it was collected at.
      order: int32 [C], its place in the order of arrival: the oldest is the smallest.
      used: bool [C], whether it has been sampled since the last `reset_used`.
      valid: bool [C].
      added: int32 [], how many prefixes were ever added.
    """

    payload: Tree
    question: jax.Array
    turns: jax.Array
    right: jax.Array
    step: jax.Array
    order: jax.Array
    used: jax.Array
    valid: jax.Array
    added: jax.Array


def init(example_payload: Tree, capacity: int) -> State:
    """An empty buffer of `capacity` slots for prefixes like `example_payload` (no batch axis)."""
    ints = [jnp.zeros((capacity,), jnp.int32) for _ in range(4)]
    question, turns, step, order = ints
    right, used, valid = [jnp.zeros((capacity,), bool) for _ in range(3)]
    payload = replay.empty_rows(example_payload, capacity)
    added = jnp.zeros((), jnp.int32)
    return State(payload, question, turns, right, step, order, used, valid, added)


def add(
    state: State,
    payload: Tree,
    *,
    question: Array,
    turns: Array,
    right: Array,
    step: int | Array,
    mask: Array | None = None,
    max_per_question: int | Array | None = None,
) -> State:
    """Adds prefixes one after the other, each unused, by these rules.

    1. If its question already has `max_per_question` prefixes, one of them goes: the oldest of
       the same number of turns; if there is none of that number, the oldest of the most frequent
       number of turns (of several equally frequent ones, the one with the oldest prefix).
    2. Else, if the buffer is full, the oldest prefix of all goes.

    Args:
      state: the buffer; donate it.
      payload: a tree like the state's, [B, ...].
      question: int [B].
      turns: int [B].
      right: bool [B].
      step: int, or int [B].
      mask: [B], 0 skips a row.
      max_per_question: >= 1; may be traced. None for no limit (3 in the released recipe).

    Returns:
      The new buffer.

    Raises:
      ValueError: shapes don't fit.
    """
    rows = replay.check_rows(state.payload, payload)
    capacity = state.valid.shape[0]
    limit = capacity + 1 if max_per_question is None else max_per_question
    entries = (
        jnp.asarray(question, jnp.int32),
        jnp.asarray(turns, jnp.int32),
        jnp.asarray(right, bool),
        jnp.broadcast_to(jnp.asarray(step, jnp.int32), (rows,)),
        jnp.ones((rows,), bool) if mask is None else jnp.asarray(mask) != 0,
    )
    if any(x.shape != (rows,) for x in entries):
        raise ValueError(
            f"{rows} prefixes came with metadata of shapes {[x.shape for x in entries]}"
        )
    # The scan sees metadata only; the payload is written once, by what survived the whole batch.
    new, (slots, orders) = jax.lax.scan(
        lambda state, entry: _add_one(state, entry, limit), state._replace(payload=()), entries
    )
    survives = entries[-1] & (new.order[slots] == orders)
    slots = jnp.where(survives, slots, capacity)
    return new._replace(payload=replay.write_rows(state.payload, payload, slots))


def _add_one(state: State, entry: tuple[jax.Array, ...], limit: int | Array):
    """One step of `add` on the metadata; also the slot and the order given to the prefix."""
    question, turns, right, step, keep = entry
    same_question = state.valid & (state.question == question)
    same_turns = same_question & (state.turns == turns)
    crowded = jnp.sum(same_question) >= limit
    # Counting takes a sort, and is seldom needed.
    candidates = jax.lax.cond(
        crowded & ~jnp.any(same_turns),
        lambda: _frequent(state.turns, same_question),
        lambda: same_turns,
    )
    slot = jnp.where(
        crowded,
        jnp.argmin(jnp.where(candidates, state.order, _LAST)),
        # A free slot counts as older than any prefix.
        jnp.argmin(jnp.where(state.valid, state.order, -1)),
    )
    target = jnp.where(keep, slot, state.valid.shape[0])  # out of range: not written
    values = {
        "question": question,
        "turns": turns,
        "right": right,
        "step": step,
        "order": state.added,
        "used": False,
        "valid": True,
    }
    written = {
        name: getattr(state, name).at[target].set(value, mode="drop")
        for name, value in values.items()
    }
    new = state._replace(added=state.added + keep.astype(jnp.int32), **written)
    return new, (slot, state.added)


def _frequent(turns: jax.Array, among: jax.Array) -> jax.Array:
    """bool [C]: those of `among` whose number of turns is most frequent there, ties included."""
    ordered = jnp.sort(jnp.where(among, turns, _LAST))
    count = jnp.searchsorted(ordered, turns, side="right")
    count -= jnp.searchsorted(ordered, turns, side="left")
    count = jnp.where(among, count, 0)
    return among & (count == jnp.max(count))


def sample(
    state: State,
    key: jax.Array,
    n: int,
    *,
    step: int | Array,
    min_size: int | Array = 1,
    wrong_ratio: float | Array = 0.5,
    max_staleness: int | Array | None = None,
    count: int | Array | None = None,
) -> tuple[State, jax.Array, jax.Array]:
    """Draws up to n unused, fresh prefixes and marks them used.

    Of `count` prefixes `count * wrong_ratio` are wrong ones, rounded up or down at random so that
    the expectation is exact. Each kind is drawn round-robin over its numbers of turns, from a
    random one on, uniformly within each. What one kind lacks the other fills, drawn in the same
    way. Nothing is drawn from a buffer of fewer than `min_size` prefixes, used and stale ones
    counted.

    Args:
      state: the buffer.
      key: a random key.
      n: the shape of the result, static.
      step: the current training step.
      min_size: the smallest buffer that is sampled from.
      wrong_ratio: in [0, 1].
      max_staleness: prefixes collected more than so many steps ago are skipped; None for none.
      count: how many are wanted, at most n; None for n. Pass the number of roll-in questions
        here rather than throw prefixes away: those would count as used.

    Returns:
      (state, indices, ok): int32 [n] slots for `gather`, in random order, and bool [n], whether a
      prefix was drawn. Those with `ok` come first; the other indices are slots to be ignored.
    """
    rounding_key, wrong_key, right_key, fill_key, order_key = jax.random.split(key, 5)
    capacity = state.valid.shape[0]
    count = jnp.minimum(n if count is None else count, n)
    available = _available(state, min_size=min_size, step=step, max_staleness=max_staleness)

    expected = jnp.asarray(count * wrong_ratio, jnp.float32)
    wanted_wrong = jnp.floor(expected)
    # Not floor(expected + uniform): that would round a whole number up once in a million times.
    wanted_wrong += jax.random.uniform(rounding_key) < expected - wanted_wrong
    wanted_wrong = jnp.clip(wanted_wrong.astype(jnp.int32), 0, count)
    wrong = _round_robin(wrong_key, state.turns, available & ~state.right) < wanted_wrong
    right = _round_robin(right_key, state.turns, available & state.right) < count - wanted_wrong
    taken = wrong | right
    # Something is short only where one kind is exhausted: what is left is of the other.
    shortage = count - jnp.sum(taken)
    taken |= _round_robin(fill_key, state.turns, available & ~taken) < shortage

    shuffled = jax.random.permutation(order_key, capacity)
    indices = jnp.argsort(jnp.where(taken, shuffled, capacity))[:n].astype(jnp.int32)
    indices = jnp.pad(indices, (0, max(n - capacity, 0)))
    ok = jnp.arange(n) < jnp.sum(taken)
    return state._replace(used=state.used | taken), indices, ok


def gather(state: State, indices: Array) -> Tree:
    """The payloads [n, ...] in the slots int [n], as `sample` returns them."""
    return replay.read_rows(state.payload, indices)


def num_available(
    state: State,
    *,
    step: int | Array,
    min_size: int | Array = 1,
    max_staleness: int | Array | None = None,
) -> jax.Array:
    """How many prefixes `sample` could draw now, an int32 scalar; arguments as there."""
    available = _available(state, min_size=min_size, step=step, max_staleness=max_staleness)
    return jnp.sum(available, dtype=jnp.int32)


def can_sample(
    state: State,
    *,
    step: int | Array,
    min_size: int | Array = 1,
    max_staleness: int | Array | None = None,
) -> jax.Array:
    """Whether `sample` could draw any prefix now, a bool scalar; arguments as there."""
    return num_available(state, step=step, min_size=min_size, max_staleness=max_staleness) > 0


def reset_used(state: State) -> State:
    """Makes every prefix available again: a new round of sampling without replacement."""
    return state._replace(used=jnp.zeros_like(state.used))


def _available(state: State, *, min_size, step, max_staleness) -> jax.Array:
    """bool [C]: held, unused, fresh, in a buffer that is large enough."""
    available = state.valid & ~state.used & (jnp.sum(state.valid) >= min_size)
    if max_staleness is not None:
        available &= step - state.step <= max_staleness
    return available


def _round_robin(key: jax.Array, turns: jax.Array, available: jax.Array) -> jax.Array:
    """The place [C] of each available prefix in a stratified random order, _LAST if unavailable.

    One prefix of each number of turns in ascending, cyclic order from a random number on, then a
    second of each, and so on past those numbers that run out; within a number at random.
    """
    capacity = turns.shape[0]
    shuffle_key, start_key = jax.random.split(key)
    index = jnp.arange(capacity, dtype=jnp.int32)
    # Sorted by number of turns, shuffled within it, the unavailable ones at the end.
    strata = jnp.where(available, turns, _LAST)
    order = jnp.lexsort((jax.random.permutation(shuffle_key, capacity), strata))
    strata, present = strata[order], available[order]
    first = jnp.concatenate([jnp.ones((1,), bool), strata[1:] != strata[:-1]])
    depth = index - jax.lax.cummax(jnp.where(first, index, 0))
    num_strata = jnp.maximum(jnp.sum(first & present), 1)
    start = jax.random.randint(start_key, (), 0, num_strata)
    lane = (jnp.cumsum(first) - 1 - start) % num_strata
    served = order[jnp.lexsort((lane, depth, ~present))]
    place = jnp.zeros((capacity,), jnp.int32).at[served].set(index)
    return jnp.where(available, place, _LAST)
