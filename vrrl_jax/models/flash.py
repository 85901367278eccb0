"""Attention in blocks of queries and keys with a running softmax, in plain XLA on any platform.

Scores of one block pair are all that exists of them, forward and backward (arXiv 2205.14135).
Blocks of keys before the first and after the last that a block of queries sees aren't read.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vrrl_jax.types import Array

# Float32 scores of one pair of blocks: 2**26 bytes are 64 MB.
PAIR_BYTES = 2**26
MOST, LEAST_QUERIES, LEAST_KEYS = 512, 64, 128
UNSEEN = float(jnp.finfo(jnp.float32).min)


class Ids(NamedTuple):
    """Which keys a query sees: those that every field that is given allows.

    Attributes:
      last: int32 [B, T], the last key slot.
      segments: int32 [B, T] of queries and keys both: those of its own segment. 0 sees nothing.
      parents: int32 [B, T], with `segments`: keys of this segment too, 0 for none.
    """

    last: Array | None = None
    segments: Array | None = None
    parents: Array | None = None


def blocks(rows: int, heads: int, queries: int, keys: int) -> tuple[int, int]:
    """(queries, keys) of a pair of blocks."""
    q, k = min(MOST, queries), min(MOST, keys)
    while rows * heads * q * k * 4 > PAIR_BYTES and (q > LEAST_QUERIES or k > LEAST_KEYS):
        if q > LEAST_QUERIES:
            q = max(LEAST_QUERIES, q // 2)
        else:
            k = max(LEAST_KEYS, k // 2)
    return q, k


@jax.custom_vjp
def chunked(q: Array, k: Array, v: Array, ids: Ids) -> Array:
    """Grouped-query attention that never holds its scores.

    Args:
      q: [B, T, N, H].  k, v: [B, S, G, H]; S = T where `ids` has segments.
      ids: a query that sees no key gives zero.

    Returns:
      [B, T, N, H].
    """
    return _forward(q, k, v, ids)[0]


def _forward(q, k, v, ids):
    size = blocks(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    b, _, g, h = k.shape

    def one(block):
        mine, seen, low, high = block
        rows = mine.shape[2]

        def step(j, carry):
            top, total, out = carry
            keys, values, keep, _ = _keys(k, v, ids, seen, j, size[1])
            scores = _scores(mine, keys, keep)
            new = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - new[..., None])
            old = jnp.exp(top - new)
            total = total * old + weights.sum(-1)
            weights = weights.astype(v.dtype)
            more = jnp.einsum("bgqs,bsgh->bgqh", weights, values, preferred_element_type=_F32)
            return new, total, out * old[..., None] + more

        start = (
            jnp.full((b, g, rows), UNSEEN, _F32),
            jnp.zeros((b, g, rows), _F32),
            jnp.zeros((b, g, rows, h), _F32),
        )
        top, total, out = jax.lax.fori_loop(low, high, step, start)
        # A query that saw nothing gives zero, and its normaliser no gradient.
        some, total = top > UNSEEN, jnp.maximum(total, 1.0)
        out = jnp.where(some[..., None], out / total[..., None], 0).astype(v.dtype)
        return out, jnp.where(some, top + jnp.log(total), -UNSEEN)

    out, normaliser = jax.lax.map(one, (_queries(q, g, size[0]), *_plan(ids, q, k, size)))
    return _joined(out, q.shape), normaliser


def _chunked_fwd(q, k, v, ids):
    out, normaliser = _forward(q, k, v, ids)
    return out, (q, k, v, ids, out, normaliser)


def _chunked_bwd(kept, given):
    q, k, v, ids, out, normaliser = kept
    size = blocks(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    scale = q.shape[-1] ** -0.5
    g = k.shape[2]
    # sum_s p_s dp_s of the softmax's derivative, from the output alone.
    mean = (out.astype(_F32) * given.astype(_F32)).sum(-1, keepdims=True)

    def one(carry, block):
        mine, (seen, low, high), normal, given, mean = block

        def step(j, carry):
            dq, dk, dv = carry
            keys, values, keep, at = _keys(k, v, ids, seen, j, size[1])
            scores = _scores(mine, keys, keep)
            weights = jnp.exp(scores - normal[..., None])
            pull = weights * (_product(given, values) - mean) * scale
            pull, weights = pull.astype(q.dtype), weights.astype(v.dtype)
            dq = dq + jnp.einsum("bgqs,bsgh->bgqh", pull, keys, preferred_element_type=_F32)
            dk = _added(dk, at, "bgqs,bgqh->bsgh", pull, mine)
            dv = _added(dv, at, "bgqs,bgqh->bsgh", weights, given)
            return dq, dk, dv

        zero = jnp.zeros(mine.shape, _F32)
        dq, *carry = jax.lax.fori_loop(low, high, step, (zero, *carry))
        return tuple(carry), dq.astype(q.dtype)

    inputs = (
        _queries(q, g, size[0]),
        _plan(ids, q, k, size),
        normaliser,
        _queries(given, g, size[0]),
        _queries(mean, g, size[0]),
    )
    zeros = (jnp.zeros(k.shape, _F32), jnp.zeros(v.shape, _F32))
    (dk, dv), dq = jax.lax.scan(one, zeros, inputs)
    return _joined(dq, q.shape), dk.astype(k.dtype), dv.astype(v.dtype), None


chunked.defvjp(_chunked_fwd, _chunked_bwd)

_F32 = jnp.float32


def _product(q, k):
    """Scores float32 [B, G, Q, S] of queries [B, G, Q, H] and keys [B, S, G, H]."""
    return jnp.einsum("bgqh,bsgh->bgqs", q, k, preferred_element_type=_F32)


def _scores(q, k, keep):
    """Scaled scores, `UNSEEN` where a query doesn't see a key; `keep` bool [B, T, S] of the queries
    of one head."""
    scores = _product(q, k) * q.shape[-1] ** -0.5
    heads = scores.reshape(*scores.shape[:2], -1, *keep.shape[1:])
    return jnp.where(keep[:, None, None], heads, UNSEEN).reshape(scores.shape)


def _added(whole, at, equation, a, b):
    """`whole` with the product of a and b added to its slots from `at` on."""
    more = jnp.einsum(equation, a, b, preferred_element_type=_F32)
    held = jax.lax.dynamic_slice_in_dim(whole, at, more.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(whole, held + more, at, 1)


def _queries(x, groups, size):
    """[B, T, N, H] -> blocks [T / size, B, G, N / G * size, H], the last one padded."""
    b, t, n, h = x.shape
    x = jnp.pad(x, ((0, 0), (0, -t % size), (0, 0), (0, 0)))
    x = x.reshape(b, -1, size, groups, n // groups, h).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(len(x), b, groups, -1, h)


def _joined(x, shape):
    """Blocks of queries back to [B, T, N, H]."""
    b, t, n, h = shape
    c, _, g, _, _ = x.shape
    x = x.reshape(c, b, g, n // g, -1, h).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(b, -1, n, h)[:, :t]


def _plan(ids, q, k, size):
    """(what each block of queries sees, the first block of keys it reads, the last one + 1)."""
    (b, t), s = q.shape[:2], k.shape[1]

    def split(a, fill):
        if a is None:
            return None
        a = jnp.pad(a, ((0, 0), (0, -t % size[0])), constant_values=fill)
        return jnp.moveaxis(a.reshape(b, -1, size[0]), 1, 0)

    # No key's segment is -1.
    own = None if ids.segments is None else jnp.where(ids.segments > 0, ids.segments, -1)
    seen = Ids(split(ids.last, -1), split(own, -1), split(ids.parents, 0))
    count, starts = -(-t // size[0]), jnp.arange(0, s, size[1])
    reads = jnp.ones((count, len(starts)), bool)
    if seen.last is not None:
        reads &= starts <= seen.last.max((1, 2))[:, None]
    if seen.segments is not None:
        # A pair is read if its ranges of segments overlap in any row.
        parents = seen.segments if seen.parents is None else seen.parents
        keys = jnp.pad(ids.segments, ((0, 0), (0, -s % size[1]))).reshape(b, -1, size[1])
        least, most = _range(jnp.concatenate([seen.segments, parents], -1))
        low, high = _range(keys)
        reads &= ((least[:, None] <= high.T) & (most[:, None] >= low.T)).any(-1)
    some = reads.any(-1)
    low = jnp.where(some, jnp.argmax(reads, -1), 0)
    high = jnp.where(some, len(starts) - jnp.argmax(reads[:, ::-1], -1), 0)
    return seen, low, high


def _range(ids):
    """The least and the greatest positive entry along the last axis; an empty range for none."""
    return jnp.where(ids > 0, ids, jnp.iinfo(jnp.int32).max).min(-1), ids.max(-1)


def _keys(k, v, ids, seen, j, size):
    """Block j of keys and values [B, size, G, H], which of them a block of queries sees, bool
    [B or 1, queries or 1, size], and its first slot."""
    s, g = k.shape[1:3]
    at = jnp.minimum(j * size, s - size)  # the last block reaches back over the one before it
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, at, size, 1)
    slots = at + jnp.arange(size)
    keep = (slots >= j * size)[None, None]
    if seen.last is not None:
        keep = keep & (slots <= seen.last[..., None])
    if seen.segments is not None:
        theirs = cut(ids.segments)[:, None]
        same = theirs == seen.segments[..., None]
        if seen.parents is not None:
            parents = seen.parents[..., None]
            same = same | ((parents > 0) & (theirs == parents))
        keep = keep & same
    return cut(k), cut(v), keep, at
