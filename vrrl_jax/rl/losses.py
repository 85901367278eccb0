"""Losses: per token and unreduced, and the reducers that turn them into a number.

Every loss is 0 where its mask is 0, whatever stands there (inf and NaN included), in value and in
gradient. A reducer's `denominator` makes it additive: given the count of the whole batch, its
results over microbatches, devices or processes sum to that of the batch.

The mask of a reducer is 0/1 or holds weights, such as those of `closed_form_turn_weights`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vrrl_jax import masked
from vrrl_jax.types import Array

# exp(20) is 4.9e8: far outside any clip range, yet finite after products with advantages.
_LOG_RATIO_BOUND = 20.0


def ppo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_low: float | Array = 0.2,
    clip_high: float | Array = 0.2,
    dual_clip: float | Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped surrogate of PPO, a loss a token.

        ratio = exp(logprobs - old_logprobs)
        loss = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high))
        loss = min(loss, -A dual_clip)   where A < 0, if dual_clip is given

    Sources: Schulman et al. 2017 (arXiv 1707.06347), equation 7; two clip ranges, Yu et al. 2025
    (arXiv 2503.14476), equation 10; dual clip, Ye et al. 2020 (arXiv 1912.09729), equation 5.

    Args:
      logprobs: [..., T], of the tokens under the policy being trained.
      old_logprobs: [..., T], under the policy that the ratio is measured from; no gradient.
      advantages: [..., T], no gradient.
      mask: [..., T], nonzero where a token carries loss.
      clip_low: in [0, 1]. Coefficients may be traced.
      clip_high: >= 0.
      dual_clip: > 1, bounds the loss of a token with negative advantage; None for no bound.

    Returns:
      (losses, metrics). Losses are float32 [..., T]. Metrics are float32 [..., T] too, without
      gradient and 0 where masked, so that the losses' reducer averages them as well:
        ratio: the importance ratio; its mean is 1 at an unchanged policy.
        clip_low: 1 where A < 0 and the ratio is below 1 - clip_low: no gradient.
        clip_high: 1 where A > 0 and the ratio is above 1 + clip_high: no gradient.
        dual_clip: 1 where A < 0 and the ratio is above dual_clip: no gradient.
        approx_kl: ratio - 1 - log ratio, the k3 estimate of KL(old || new).

    Raises:
      ValueError: shapes differ, or a coefficient that isn't traced is out of its range.
    """
    _check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    _check_range("clip_low", clip_low, 0.0, 1.0)
    _check_range("clip_high", clip_high, 0.0, math.inf)
    _check_range("dual_clip", dual_clip, 1.0, math.inf)
    log_ratio = _log_ratio(logprobs, jax.lax.stop_gradient(jnp.asarray(old_logprobs)), mask)
    advantages = jax.lax.stop_gradient(_float(advantages, mask))
    ratio = jnp.exp(jnp.clip(log_ratio, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND))
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    losses = jnp.maximum(-advantages * ratio, -advantages * clipped)
    negative = advantages < 0
    dual = jnp.zeros_like(negative)
    if dual_clip is not None:
        losses = jnp.where(negative, jnp.minimum(losses, -advantages * dual_clip), losses)
        dual = negative & (ratio > dual_clip)
    metrics = {
        "ratio": ratio,
        "clip_low": negative & (ratio < 1 - clip_low),
        "clip_high": (advantages > 0) & (ratio > 1 + clip_high),
        "dual_clip": dual,
        "approx_kl": ratio - 1 - log_ratio,
    }
    metrics = {k: jax.lax.stop_gradient(_float(v, mask)) for k, v in metrics.items()}
    return masked.zero_masked(losses, mask), metrics


def importance_weights(
    logprobs: Array, behavior_logprobs: Array, mask: Array, *, cap: float | Array | None = None
) -> jax.Array:
    """min(exp(logprobs - behavior_logprobs), cap): truncated importance sampling.

    For replayed rows, and for a sampler that differs from the training forward: the policy before
    the update serves as the old one of `ppo_loss`, and its loss is multiplied by these weights,
    which correct from the policy that acted. Source: Espeholt et al. 2018 (arXiv 1802.01561),
    section 4.1, the truncated weight rho.

    Args:
      logprobs: [..., T], under the policy before the update.
      behavior_logprobs: [..., T], as stored when the tokens were sampled.
      mask: [..., T].
      cap: the largest weight; None for no truncation.

    Returns:
      Float32 [..., T] without gradient, 0 where the mask is 0.
    """
    _check_shapes(logprobs=logprobs, behavior_logprobs=behavior_logprobs, mask=mask)
    log_ratio = _log_ratio(logprobs, behavior_logprobs, mask)
    weights = jnp.exp(jnp.clip(log_ratio, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND))
    if cap is not None:
        weights = jnp.minimum(weights, cap)
    return jax.lax.stop_gradient(masked.zero_masked(weights, mask))


def value_loss(
    values: Array,
    old_values: Array | None,
    returns: Array,
    mask: Array,
    *,
    clip: float | Array | None = None,
) -> jax.Array:
    """The critic's squared error, (V - G)^2, a token. There is no factor of one half.

    With `clip`, max((V - G)^2, (clip(V, V_old - clip, V_old + clip) - G)^2): the critic gains
    nothing from moving further than `clip` away from its old estimate.

    Args:
      values: [..., T], V, of the critic being trained.
      old_values: [..., T], V_old, those the returns were computed with; None without `clip`.
      returns: [..., T], G, no gradient.
      mask: [..., T].
      clip: > 0 in units of the return, or None.

    Returns:
      Float32 [..., T], 0 where the mask is 0.

    Raises:
      ValueError: shapes differ, or `clip` comes without `old_values`.
    """
    _check_shapes(values=values, returns=returns, mask=mask)
    _check_range("clip", clip, 0.0, math.inf)
    values = _float(values, mask)
    returns = jax.lax.stop_gradient(_float(returns, mask))
    losses = jnp.square(values - returns)
    if clip is not None:
        if old_values is None:
            raise ValueError("value_loss with clip needs old_values")
        _check_shapes(values=values, old_values=old_values)
        old_values = jax.lax.stop_gradient(_float(old_values, mask))
        moved = old_values + jnp.clip(values - old_values, -clip, clip)
        losses = jnp.maximum(losses, jnp.square(moved - returns))
    return masked.zero_masked(losses, mask)


def explained_variance(values: Array, returns: Array, mask: Array) -> jax.Array:
    """1 - var(G - V) / var(G) over the mask, a scalar; 0 where the returns don't vary."""
    _check_shapes(values=values, returns=returns, mask=mask)
    spread = masked.var(returns, mask)
    rest = masked.var(_float(returns, mask) - _float(values, mask), mask)
    return jnp.where(spread > 0, 1 - rest / jnp.where(spread > 0, spread, 1), 0)


def kl_penalty(
    logprobs: Array,
    ref_logprobs: Array,
    estimator: str = "k3",
    *,
    mask: Array | None = None,
    max_value: float | None = None,
) -> jax.Array:
    """An estimate of KL(policy || reference) from the sampled tokens, a token.

    With d = ref_logprobs - logprobs:  k1 = -d,  k2 = d^2 / 2,  k3 = exp(d) - d - 1.
    k1 and k3 are unbiased as values; as a loss term k2 has the gradient of the KL in expectation,
    k1 has gradient 0 in expectation. "k1+" and "k3+" have the value of k1 or k3 and the gradient
    of k2. Source: Schulman 2020, joschu.net/blog/kl-approx.html; the "+" is verl's.

    Args:
      logprobs: [..., T], under the policy.
      ref_logprobs: [..., T], under the reference, no gradient.
      estimator: "k1", "k2", "k3", "k1+" or "k3+".
      mask: [..., T]; with it, masked positions may hold anything and become 0.
      max_value: values above are cut to it, with gradient 0 (10 in the released recipe).

    Returns:
      Float32 [..., T].

    Raises:
      ValueError: shapes differ, or an unknown estimator.
    """
    _check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    mask = jnp.ones(jnp.shape(logprobs), bool) if mask is None else mask
    _check_shapes(logprobs=logprobs, mask=mask)
    difference = -_log_ratio(logprobs, jax.lax.stop_gradient(jnp.asarray(ref_logprobs)), mask)
    difference = jnp.clip(difference, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    k2 = jnp.square(difference) / 2
    if estimator in ("k1", "k1+"):
        kl = -difference
    elif estimator == "k2":
        kl = k2
    elif estimator in ("k3", "k3+"):
        kl = jnp.expm1(difference) - difference  # expm1: near 0 the rest would be rounding
    else:
        raise ValueError(f"unknown KL estimator {estimator!r}: k1, k2, k3, k1+ or k3+")
    if estimator.endswith("+"):
        kl = jax.lax.stop_gradient(kl) + (k2 - jax.lax.stop_gradient(k2))
    return kl if max_value is None else jnp.minimum(kl, max_value)


def nll(logprobs: Array, mask: Array) -> jax.Array:
    """-logprobs [..., T] where the mask is set, 0 elsewhere: supervised fine-tuning."""
    _check_shapes(logprobs=logprobs, mask=mask)
    return -_float(logprobs, mask)


def entropy_loss(entropies: Array, mask: Array) -> jax.Array:
    """-entropies [..., T] where the mask is set: times a positive weight, an entropy bonus."""
    _check_shapes(entropies=entropies, mask=mask)
    return -_float(entropies, mask)


def token_mean(losses: Array, mask: Array, denominator: float | Array | None = None) -> jax.Array:
    """sum(mask * losses) / denominator: every token of the batch weighs the same.

    Args:
      losses: [..., T].
      mask: [..., T], 0/1 or weights.
      denominator: the number of loss tokens in the whole batch, when this is a part of it; None
        for sum(mask).

    Returns:
      A scalar, 0 where the denominator is 0.
    """
    _check_shapes(losses=losses, mask=mask)
    if denominator is None:
        return masked.mean(losses, mask)
    return _over(masked.sum(losses, mask), denominator)


def sequence_mean(
    losses: Array,
    mask: Array,
    denominator: float | Array | None = None,
    *,
    segments: Array | None = None,
) -> jax.Array:
    """The mean over sequences of each sequence's token mean: long and short weigh the same.

    Args:
      losses: [..., T].
      mask: [..., T], 0/1 or weights.
      denominator: the number of sequences in the whole batch; None for the number of sequences
        here that have any loss token.
      segments: int [..., T] in 0 .. T, the sequence of its row that a token belongs to, for
        packed rows; None for one sequence a row.

    Returns:
      A scalar, 0 where the denominator is 0.
    """
    _check_shapes(losses=losses, mask=mask)
    length = jnp.shape(losses)[-1]

    def _row(losses, mask, segments):
        return masked.segment_mean(losses, segments, length + 1, mask).sum()

    totals = jax.vmap(_row)(*_as_rows(losses, mask, _segments(mask, segments)))
    if denominator is None:
        denominator = sequence_count(mask, segments=segments)
    return _over(totals.sum(), denominator)


def sequence_count(mask: Array, *, segments: Array | None = None) -> jax.Array:
    """The number of sequences with any loss token, float32: the denominator of `sequence_mean`."""
    length = jnp.shape(mask)[-1]

    def _row(mask, segments):
        return (jax.ops.segment_max(mask, segments, length + 1) > 0).sum()

    rows = _as_rows(jnp.asarray(mask) != 0, _segments(mask, segments))
    return jax.vmap(_row)(rows[0].astype(jnp.int32), rows[1]).sum().astype(jnp.float32)


def fixed_length(
    losses: Array, mask: Array, length: float, denominator: float | Array | None = None
) -> jax.Array:
    """sum(mask * losses) / (length * denominator): a normaliser that doesn't see the mask.

    With it a sampled mask and its expected weights have the same expected loss, and no bias
    towards short or long answers remains. Source: Liu et al. 2025 (arXiv 2503.20783), section 3.

    Args:
      losses: [..., T].
      mask: [..., T], 0/1 or weights.
      length: a constant number of tokens, such as the generation budget; 1 for the mean over
        sequences of their token sums.
      denominator: the number of sequences in the whole batch; None for the number of rows here,
        empty ones included.

    Returns:
      A scalar, 0 where the denominator is 0.
    """
    _check_shapes(losses=losses, mask=mask)
    rows = math.prod(jnp.shape(losses)[:-1]) if denominator is None else denominator
    return _over(masked.sum(losses, mask), jnp.asarray(rows, jnp.float32) * length)


def reduce(
    losses: Array,
    mask: Array,
    how: str = "token_mean",
    *,
    denominator: float | Array | None = None,
    length: float | None = None,
    segments: Array | None = None,
) -> jax.Array:
    """The reducer named `how`: "token_mean", "sequence_mean" or "fixed_length".

    `length` belongs to fixed_length, which needs it, `segments` to sequence_mean.

    Raises:
      ValueError: an unknown name, or fixed_length without a length.
    """
    if how == "token_mean":
        return token_mean(losses, mask, denominator)
    if how == "sequence_mean":
        return sequence_mean(losses, mask, denominator, segments=segments)
    if how == "fixed_length" and length is not None:
        return fixed_length(losses, mask, length, denominator)
    if how == "fixed_length":
        raise ValueError("fixed_length needs a length")
    raise ValueError(f"unknown reducer {how!r}: token_mean, sequence_mean or fixed_length")


def _segments(mask: Array, segments: Array | None) -> jax.Array:
    """The sequence of its row that each token belongs to; all one where nothing is packed."""
    segments = jnp.zeros(jnp.shape(mask), jnp.int32) if segments is None else segments
    _check_shapes(mask=mask, segments=segments)
    return segments


def _as_rows(*arrays: Array) -> list[jax.Array]:
    return [jnp.reshape(x, (-1, jnp.shape(x)[-1])) for x in arrays]


def _float(x: Array, mask: Array) -> jax.Array:
    """float32 `x`, 0 where masked: before the arithmetic, or NaN would enter gradients."""
    return masked.zero_masked(x, mask).astype(jnp.float32)


def _log_ratio(logprobs: Array, other_logprobs: Array, mask: Array) -> jax.Array:
    return _float(logprobs, mask) - _float(other_logprobs, mask)


def _over(total: jax.Array, denominator: Array) -> jax.Array:
    positive = jnp.asarray(denominator) > 0
    return jnp.where(positive, total / jnp.where(positive, denominator, 1), 0)


def _check_shapes(**arrays: Array) -> None:
    shapes = {name: jnp.shape(x) for name, x in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"these need one shape: {shapes}")


def _check_range(name: str, value: float | Array | None, low: float, high: float) -> None:
    """Refuses a Python number outside [low, high]; traced values are not looked at."""
    if isinstance(value, int | float) and not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], not {value}")
