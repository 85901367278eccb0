"""Reductions over masked arrays, with the empty and the one-element case defined.

A mask is 0/1 (bool, int or float) or holds nonnegative weights, and broadcasts against its
values. What it hides may be anything, inf and NaN included: neither results nor gradients see it.
Sums run in float32 at least: bfloat16 counts stop growing at 256.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vrrl_jax.types import Array

Axis = int | tuple[int, ...] | None


def _prepare(x: Array, mask: Array | None) -> tuple[jax.Array, jax.Array]:
    """Values with hidden entries zeroed, and weights, both float32 and of one shape."""
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype, jnp.float32)  # half precision loses counts above 256
    weights = jnp.ones((), dtype) if mask is None else jnp.asarray(mask).astype(dtype)
    shape = jnp.broadcast_shapes(x.shape, weights.shape)
    weights = jnp.broadcast_to(weights, shape)
    return jnp.where(weights != 0, x.astype(dtype), 0), weights


def zero_masked(x: Array, mask: Array | None) -> jax.Array:
    """`x` [...] with 0 wherever `mask` is 0: what must run before arithmetic on padded data."""
    x = jnp.asarray(x)
    return x if mask is None else jnp.where(jnp.asarray(mask) != 0, x, jnp.zeros((), x.dtype))


def sum(x: Array, mask: Array | None = None, axis: Axis = None) -> jax.Array:
    """sum_i w_i x_i over `axis`, 0 where the mask is empty."""
    x, weights = _prepare(x, mask)
    return jnp.sum(x * weights, axis=axis)


def mean(x: Array, mask: Array | None = None, axis: Axis = None) -> jax.Array:
    """sum_i w_i x_i / sum_i w_i over `axis`, 0 where the mask is empty."""
    x, weights = _prepare(x, mask)
    return _ratio(jnp.sum(x * weights, axis=axis), jnp.sum(weights, axis=axis))


def var(x: Array, mask: Array | None = None, axis: Axis = None, ddof: int = 0) -> jax.Array:
    """sum_i w_i (x_i - mean)^2 / (sum_i w_i - ddof) over `axis`.

    Args:
      x: values [...].
      mask: 0/1 or weights, broadcastable to `x`.
      axis: the axes to reduce; None for all.
      ddof: 0 for the population's variance, 1 for the sample's.

    Returns:
      0 wherever sum_i w_i <= ddof: an empty mask, and one element with ddof 1, have no spread.
    """
    x, weights = _prepare(x, mask)
    center = _ratio(
        jnp.sum(x * weights, axis=axis, keepdims=True), jnp.sum(weights, axis=axis, keepdims=True)
    )
    squares = jnp.sum(weights * jnp.square(x - center), axis=axis)
    return _ratio(squares, jnp.sum(weights, axis=axis) - ddof)


def std(x: Array, mask: Array | None = None, axis: Axis = None, ddof: int = 0) -> jax.Array:
    """The square root of `var`, with gradient 0 where it is 0."""
    return _sqrt(var(x, mask, axis, ddof))


def whiten(
    x: Array,
    mask: Array | None = None,
    axis: Axis = None,
    *,
    shift_mean: bool = True,
    ddof: int = 0,
    eps: float = 1e-8,
) -> jax.Array:
    """(x - mean) / sqrt(var + eps) where the mask is set, 0 elsewhere.

    Args:
      x: values [...].
      mask: 0/1, of `x`'s shape.
      axis: the axes that mean and variance run over; None for all.
      shift_mean: False adds the mean back, so that only the scale changes.
      ddof: 0 for the population's variance, 1 for the sample's.
      eps: added to the variance: a single element, or equal ones, become 0 (or their mean).

    Returns:
      Float32 (or wider) [...] of `x`'s shape.
    """
    x, weights = _prepare(x, mask)
    keep = (weights != 0).astype(x.dtype)
    count = jnp.sum(keep, axis=axis, keepdims=True)
    center = _ratio(jnp.sum(x, axis=axis, keepdims=True), count)
    squares = jnp.sum(keep * jnp.square(x - center), axis=axis, keepdims=True)
    white = (x - center) * jax.lax.rsqrt(_ratio(squares, count - ddof) + eps)
    return keep * (white if shift_mean else white + center)


def segment_sum(
    x: Array, segment_ids: Array, num_segments: int, mask: Array | None = None
) -> jax.Array:
    """Sums [G] of the elements x [B] of each segment; ids outside 0 .. G - 1 are dropped."""
    x, weights = _prepare(x, mask)
    return jax.ops.segment_sum(x * weights, segment_ids, num_segments)


def segment_mean(
    x: Array, segment_ids: Array, num_segments: int, mask: Array | None = None
) -> jax.Array:
    """Means [G] of the elements x [B] of each segment, 0 for a segment without any."""
    x, weights = _prepare(x, mask)
    total = jax.ops.segment_sum(x * weights, segment_ids, num_segments)
    return _ratio(total, jax.ops.segment_sum(weights, segment_ids, num_segments))


def segment_std(
    x: Array, segment_ids: Array, num_segments: int, mask: Array | None = None, ddof: int = 0
) -> jax.Array:
    """Standard deviations [G] of the elements x [B] of each segment.

    0 for a segment with no more than `ddof` elements, hence for one element under either
    convention. `ddof` 1 is the sample's, what `torch.std` computes.
    """
    x, weights = _prepare(x, mask)
    center = segment_mean(x, segment_ids, num_segments, weights)[segment_ids]
    squares = jax.ops.segment_sum(weights * jnp.square(x - center), segment_ids, num_segments)
    count = jax.ops.segment_sum(weights, segment_ids, num_segments)
    return _sqrt(_ratio(squares, count - ddof))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Their quotient, 0 where the denominator isn't positive."""
    positive = denominator > 0
    # The inner where keeps 0/0 out of the gradient, the outer one out of the result.
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def _sqrt(x: jax.Array) -> jax.Array:
    """The square root, whose gradient at 0 is 0 instead of inf."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
