"""Which samples an optimizer step trains on, as multiplicities.

A sample drawn k times weighs k in a sum over tokens, so that a batch made of repetitions is the
batch itself under weights [B]: nothing is copied and shapes stay. (`losses.sequence_mean` divides
the weights of a sequence by their sum: there the multiplicity has to weigh the sequence's mean.)
Everything is pure and jittable.

A sample whose advantage is 0, isn't finite, or is masked out is never drawn; where nothing can be
drawn all multiplicities are 0, and it is for the caller to skip the update and count that.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vrrl_jax import masked
from vrrl_jax.types import Array


def counts(indices: Array, ok: Array, size: int) -> jax.Array:
    """How often each of `size` samples was drawn.

    Args:
      indices: int [n]; those outside 0 .. size - 1 count for nothing.
      ok: [n], 0 where a draw is void, whatever its index.
      size: B, static.

    Returns:
      int32 [B].

    Raises:
      ValueError: `indices` and `ok` differ in shape.
    """
    indices, ok = jnp.asarray(indices), jnp.asarray(ok) != 0
    if indices.shape != ok.shape:
        raise ValueError(f"indices and ok need one shape, not {indices.shape} and {ok.shape}")
    # A negative index would count from the end.
    slots = jnp.where(ok & (indices >= 0), indices, size)
    return jnp.zeros((size,), jnp.int32).at[slots].add(1, mode="drop")


def filtered(key: jax.Array, advantages: Array, mask: Array | None = None) -> jax.Array:
    """Drops samples of advantage 0 and refills the batch by repeating the others.

    Of N samples n survive: each weighs floor(N / n), and N mod n of them, drawn without
    replacement, one more. Source: the filter baseline of VL-Rethinker (arXiv 2504.08837).

    Args:
      key: a random key.
      advantages: [B], one a sample.
      mask: [B], 0 where there is no sample (padding); None for B samples.

    Returns:
      int32 [B] that sum to N, the number of samples with mask 1; all 0 where none survives.
    """
    keep = _drawable(advantages, mask)
    total = keep.shape[0] if mask is None else jnp.sum(jnp.asarray(mask) != 0, dtype=jnp.int32)
    left = jnp.maximum(jnp.sum(keep, dtype=jnp.int32), 1)
    order = jnp.argsort(jnp.where(keep, jax.random.uniform(key, keep.shape), jnp.inf))
    rank = jnp.zeros(keep.shape, jnp.int32).at[order].set(jnp.arange(keep.shape[0]))
    return jnp.where(keep, total // left + (rank < total % left), 0).astype(jnp.int32)


def prioritised(
    key: jax.Array,
    priority: Array,
    n: int,
    mask: Array | None = None,
    alpha: float | Array = 1.0,
    replacement: bool = True,
) -> jax.Array:
    """n draws with P(j) = |priority_j|^alpha / sum_k |priority_k|^alpha.

    Source: Selective Sample Replay, VL-Rethinker (arXiv 2504.08837), section 3.2, with the
    advantage as the priority.

    Args:
      key: a random key.
      priority: [B], of any sign.
      n: how many draws, static; more than B are allowed.
      mask: [B], 0 where there is no sample; None for B samples.
      alpha: >= 0, may be traced; 0 is uniform over the samples whose priority isn't 0.
      replacement: static. Without it a sample is drawn once at most, one after the other by that
        law, and fewer than n where fewer can be drawn.

    Returns:
      int32 [B] that sum to n, without replacement to the smaller of n and the number of samples
      that can be drawn; all 0 where none can.
    """
    logits = _log_weights(priority, mask, alpha)
    size = logits.shape[0]
    drawable = jnp.sum(logits > -jnp.inf, dtype=jnp.int32)
    if replacement:
        indices = _categorical(key, logits, n)
        return counts(indices, jnp.broadcast_to(drawable > 0, (n,)), size)
    # The n largest of logit + Gumbel noise (Kool et al. 2019, arXiv 1903.06059).
    noisy = logits + jax.random.gumbel(key, (size,))
    indices = jax.lax.top_k(noisy, min(n, size))[1]
    return counts(indices, jnp.arange(min(n, size)) < drawable, size)


def code_split(
    key: jax.Array, priority: Array, n: int, mask: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The fresh part of a batch by the rule of VL-Rethinker's released code.

    As many draws as there are fresh samples with a nonzero advantage, n at most, with replacement
    and in proportion to |advantage|. What is missing comes from a ring of earlier samples, in
    proportion to |advantage| + 1e-4.

    Args:
      key: a random key.
      priority: [B], the advantages.
      n: how many samples the step trains on, static.
      mask: [B], 0 where there is no fresh sample; None for B samples.

    Returns:
      (multiplicities, missing): int32 [B] that sum to n - missing, and int32 [] in 0 .. n.
    """
    logits = _log_weights(priority, mask, 1.0)
    drawn = jnp.minimum(jnp.sum(logits > -jnp.inf, dtype=jnp.int32), n)
    indices = _categorical(key, logits, n)
    return counts(indices, jnp.arange(n) < drawn, logits.shape[0]), n - drawn


def effective_queries(
    advantages: Array, group_ids: Array, num_groups: int, mask: Array | None = None
) -> jax.Array:
    """The share of groups with any nonzero advantage: of what was sampled, what can be learnt from.

    Args:
      advantages: [B].
      group_ids: int [B] in 0 .. num_groups - 1.
      num_groups: static.
      mask: [B], 0 where there is no sample; a group without samples isn't counted.

    Returns:
      A float32 scalar, 0 without groups.
    """
    present = jnp.ones(jnp.shape(advantages)) if mask is None else jnp.asarray(mask) != 0
    some = masked.segment_sum(_drawable(advantages, mask), group_ids, num_groups) > 0
    return masked.mean(some, masked.segment_sum(present, group_ids, num_groups) > 0)


def effective_batch(advantages: Array, weights: Array) -> jax.Array:
    """The share of the weight that lies on samples with a nonzero advantage.

    Args:
      advantages: [B].
      weights: [B], the multiplicities that are trained with, or a mask.

    Returns:
      A float32 scalar, 0 without weight.
    """
    return masked.mean(_drawable(advantages, None), weights)


def _drawable(priority: Array, mask: Array | None) -> jax.Array:
    """bool [B]: samples that carry a signal."""
    size = jnp.abs(jnp.asarray(priority))
    keep = (size > 0) & jnp.isfinite(size)
    return keep if mask is None else keep & (jnp.asarray(mask) != 0)


def _log_weights(priority: Array, mask: Array | None, alpha: float | Array) -> jax.Array:
    """alpha * log |priority| [B], -inf for what can't be drawn."""
    keep = _drawable(priority, mask)
    size = jnp.where(keep, jnp.abs(jnp.asarray(priority)), 1.0)
    return jnp.where(keep, alpha * jnp.log(size), -jnp.inf)


def _categorical(key: jax.Array, logits: jax.Array, n: int) -> jax.Array:
    """n draws with replacement, int [n]; without meaning where nothing can be drawn."""
    safe = jnp.where(jnp.any(logits > -jnp.inf), logits, 0.0)
    return jax.random.categorical(key, safe, shape=(n,))
