"""Advantages: from rewards and scores to what weighs the policy gradient.

Per-token estimators take arrays [..., T] and a mask of the tokens that the policy generated.
Observation tokens (prompts, feedback turns, pictures, forced openings, a rolled-in prefix) are no
steps of the process: rewards and values on them are ignored, and the next generated token's value
is what a token bootstraps from, however many observation tokens lie between.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vrrl_jax import masked
from vrrl_jax.rl import losses
from vrrl_jax.types import Array


def gae(
    rewards: Array,
    values: Array,
    discount: float | Array,
    lambda_: float | Array,
    mask: Array,
    bootstrap_value: float | Array = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation over the generated tokens.

        delta_t = r_t + discount_t V_t' - V_t        A_t = delta_t + discount_t lambda_t A_t'

    where t' is the next token after t with mask 1. The last one has V_t' = `bootstrap_value` and
    A_t' = 0. Source: Schulman et al. 2016 (arXiv 1506.02438), equations 11, 12 and 16.

    Args:
      rewards: [..., T], r_t is earned by the token t; put a turn's reward on its last generated
        token, rewards on masked positions are ignored.
      values: [..., T], V_t is the critic on the state that emits token t.
      discount: scalar or broadcastable to [..., T]; discount_t applies to the step from t to t'.
      lambda_: scalar or broadcastable to [..., T].
      mask: [..., T], nonzero on generated tokens, t in [0, T).
      bootstrap_value: [...], the critic after the last generated token: 0 for an episode that
        ended, its estimate for one that was cut off.

    Returns:
      (advantages, returns), float32 [..., T], both 0 where the mask is 0. Returns are
      advantages + values. No gradient is stopped here.

    Raises:
      ValueError: rewards, values and mask differ in shape.
    """
    rewards, values, mask = jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask)
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(
            "rewards, values and mask need one shape, not "
            f"{rewards.shape}, {values.shape} and {mask.shape}"
        )
    keep = mask != 0
    # float32: thousands of steps accumulate here.
    rewards = masked.zero_masked(rewards, keep).astype(jnp.float32)
    values = masked.zero_masked(values, keep).astype(jnp.float32)
    discount = jnp.broadcast_to(jnp.asarray(discount, jnp.float32), rewards.shape)
    lambda_ = jnp.broadcast_to(jnp.asarray(lambda_, jnp.float32), rewards.shape)
    last_value = jnp.broadcast_to(jnp.asarray(bootstrap_value, jnp.float32), rewards.shape[:-1])

    def _step(carry, x):
        next_value, next_advantage = carry
        reward, value, gamma, lam, keep_t = x
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = (
            jnp.where(keep_t, value, next_value),
            jnp.where(keep_t, advantage, next_advantage),
        )
        return carry, jnp.where(keep_t, advantage, 0.0)

    time_major = jax.tree.map(
        lambda x: jnp.moveaxis(x, -1, 0), (rewards, values, discount, lambda_, keep)
    )
    start = (last_value, jnp.zeros_like(last_value))
    advantages = jnp.moveaxis(jax.lax.scan(_step, start, time_major, reverse=True)[1], 0, -1)
    return advantages, advantages + values


def turn_gae(
    rewards: Array,
    values: Array,
    discount: float | Array,
    lambda_: float | Array,
    mask: Array,
    turn_index: Array,
    bootstrap_value: float | Array = 0.0,
    *,
    num_turns: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation whose steps are turns: a reply is one action.

    A turn's reward is the sum of those on its generated tokens, its value the critic's at the
    first of them, the state that the whole reply is given in. The recursion of `gae` runs over the
    turns in the order of their index; a turn without a generated token (one that was rolled in)
    is no step. Source: Turn-PPO, arXiv 2512.17008, which estimates advantages a turn.

    Args:
      rewards: [..., T], anywhere on a turn's generated tokens.
      values: [..., T]; those after a turn's first generated token aren't read.
      discount: scalar or broadcastable to [..., U], for the step from turn u to the next one.
      lambda_: scalar or broadcastable to [..., U].
      mask: [..., T], nonzero on generated tokens.
      turn_index: int [..., T], the turn in [0, U) that a token belongs to; where the mask is 0 it
        may be anything. A token of a turn outside the range counts as masked.
      bootstrap_value: [...], the critic after the last turn: 0 for an episode that ended.
      num_turns: U, static; None for T, which no row exceeds. With it the recursion is shorter.

    Returns:
      (advantages, returns), float32 [..., T]: a turn's own on each of its generated tokens, 0
      where the mask is 0. Returns are advantages + the turn's value. No gradient is stopped here.

    Raises:
      ValueError: rewards, values, mask and turn_index differ in shape.
    """
    arrays = [jnp.asarray(x) for x in (rewards, values, mask, turn_index)]
    shape = arrays[0].shape
    if any(x.shape != shape for x in arrays):
        raise ValueError(
            "rewards, values, mask and turn_index need one shape, not "
            + ", ".join(str(x.shape) for x in arrays)
        )
    turns = max(shape[-1], 1) if num_turns is None else num_turns
    rewards, values, mask, turn_index = (x.reshape(-1, shape[-1]) for x in arrays)
    keep = (mask != 0) & (turn_index >= 0) & (turn_index < turns)
    turn_index = jnp.where(keep, turn_index, 0)
    slots = jnp.broadcast_to(jnp.arange(shape[-1]), rewards.shape)
    # T stands for a turn without a generated token.
    first = jnp.full((len(rewards), turns), shape[-1])
    row = jnp.arange(len(rewards))[:, None]
    first = first.at[row, turn_index].min(jnp.where(keep, slots, shape[-1]))
    rewards = masked.zero_masked(rewards, keep).astype(jnp.float32)
    earned = jnp.zeros(first.shape, jnp.float32).at[row, turn_index].add(rewards)
    played = first < shape[-1]
    seen = jnp.take_along_axis(values, jnp.where(played, first, 0), -1)
    leading = (*shape[:-1], turns)
    by_turn = gae(
        earned.reshape(leading),
        seen.reshape(leading),
        discount,
        lambda_,
        played.reshape(leading),
        bootstrap_value,
    )
    on_tokens = [jnp.take_along_axis(x.reshape(-1, turns), turn_index, -1) for x in by_turn]
    advantages, returns = (jnp.where(keep, x, 0.0).reshape(shape) for x in on_tokens)
    return advantages, returns


def turn_discounts(
    mask: Array, turn_index: Array, discount: float | Array, turn_discount: float | Array
) -> jax.Array:
    """The discounts of a token-level `gae` that has another one between turns.

    Equally its lambdas. With `discount` 1 and `turn_discount` below it, time passes by turns and
    not by tokens: a long reply is not worth less than a short one.

    Args:
      mask: [..., T], nonzero on generated tokens.
      turn_index: int [..., T], the turn a token belongs to; must not fall along the generated
        tokens of a row.
      discount: within a turn; scalar or broadcastable to [..., T].
      turn_discount: from a turn's last generated token to the next turn's first one, or to the
        bootstrap value; scalar or broadcastable to [..., T].

    Returns:
      Float32 [..., T].

    Raises:
      ValueError: mask and turn_index differ in shape.
    """
    mask, turn_index = jnp.asarray(mask), jnp.asarray(turn_index)
    if mask.shape != turn_index.shape:
        raise ValueError(
            f"mask and turn_index need one shape, not {mask.shape} and {turn_index.shape}"
        )
    keep = mask != 0
    none = jnp.iinfo(jnp.int32).max  # a turn after all others: nothing follows
    turns = jnp.where(keep, turn_index.astype(jnp.int32), none)
    following = jax.lax.cummin(turns, axis=turns.ndim - 1, reverse=True)[..., 1:]
    following = jnp.pad(following, [(0, 0)] * (turns.ndim - 1) + [(0, 1)], constant_values=none)
    return jnp.where(keep & (turns < following), turn_discount, discount).astype(jnp.float32)


def discounted_returns(
    rewards: Array,
    discount: float | Array,
    mask: Array,
    bootstrap_value: float | Array = 0.0,
) -> jax.Array:
    """G_t = r_t + discount_t G_t', with t' the next generated token, arguments as in `gae`.

    Themselves advantages, those of REINFORCE without a baseline: Williams 1992, with the reward to
    go. `masked.whiten` over the generated tokens gives them a baseline and a scale.

    Returns:
      Float32 [..., T], 0 where the mask is 0. The last generated token has
      r_t + discount_t * bootstrap_value.
    """
    # The GAE of a critic that says 0 everywhere, at lambda 1.
    zeros = jnp.zeros_like(jnp.asarray(rewards))
    return gae(rewards, zeros, discount, 1.0, mask, bootstrap_value)[0]


def kl_rewards(
    rewards: Array,
    logprobs: Array,
    ref_logprobs: Array,
    mask: Array,
    coefficient: float | Array,
    estimator: str = "k1",
) -> jax.Array:
    """Rewards minus `coefficient` times an estimate of the token's KL: the penalty as a reward.

    It passes through returns and advantages, unlike a KL term of the loss. Source: Ziegler et al.
    2019 (arXiv 1909.08593), section 2, whose estimate is k1.

    Args:
      rewards: [..., T].
      logprobs: [..., T], of the policy that acted.
      ref_logprobs: [..., T], of the reference.
      mask: [..., T], nonzero on generated tokens; elsewhere the arrays may hold anything.
      coefficient: >= 0; may be traced.
      estimator: as in `losses.kl_penalty`.

    Returns:
      Float32 [..., T] without gradient through the log-probs, 0 where the mask is 0.

    Raises:
      ValueError: shapes differ, or an unknown estimator.
    """
    rewards = jnp.asarray(rewards)
    if rewards.shape != jnp.shape(logprobs):
        raise ValueError(
            f"rewards and logprobs need one shape, not {rewards.shape} and {jnp.shape(logprobs)}"
        )
    kl = losses.kl_penalty(logprobs, ref_logprobs, estimator, mask=mask)
    rewards = masked.zero_masked(rewards, mask).astype(jnp.float32)
    return rewards - coefficient * jax.lax.stop_gradient(kl)


def overlong_penalty(lengths: Array, limit: int | Array, margin: int | Array) -> jax.Array:
    """Soft overlong punishment: what to add to the score of a reply that is nearly too long.

        0                                 up to limit - margin
        (limit - margin - length) / margin   from there on to limit
        -1                                beyond

    Source: DAPO, Yu et al. 2025 (arXiv 2503.14476), equation 13.

    Args:
      lengths: [...], generated tokens.
      limit: L_max; may be traced.
      margin: L_cache, in 0 .. limit; 0 punishes lengths beyond the limit alone.

    Returns:
      Float32 [...] in [-1, 0].
    """
    over = jnp.asarray(lengths, jnp.float32) - (jnp.asarray(limit) - margin)
    # Lengths are whole numbers: over a margin of 0 the first token too many costs all.
    return -jnp.clip(over / jnp.maximum(margin, 1), 0.0, 1.0)


def group_advantages(
    scores: Array,
    group_ids: Array,
    *,
    num_groups: int | None = None,
    normalize_std: bool = True,
    eps: float = 1e-6,
    mask: Array | None = None,
) -> jax.Array:
    """Advantages relative to the group, as in GRPO and, with `normalize_std=False`, Dr. GRPO.

        A_i = (s_i - mean_g) / (std_g + eps)      or      A_i = s_i - mean_g

    with the sample's standard deviation (divided by n - 1), which is what the released recipe
    computes. Sources: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; Liu et al. 2025
    (arXiv 2503.20783), section 3.2.

    A group whose scores are all equal, and a group of one, have advantage exactly 0, not a
    rounding error divided by eps: whether a group carries signal is decided by A != 0 elsewhere.

    Args:
      scores: [B], one an episode.
      group_ids: int [B], equal within a group, in any order; groups may differ in size.
      num_groups: with it the ids lie in 0 .. num_groups - 1; without it they are any integers.
      normalize_std: whether to divide by the group's standard deviation.
      eps: added to the standard deviation.
      mask: [B], 0 leaves a row (padding, a failed episode) out of its group.

    Returns:
      Float32 [B], 0 where the mask is 0.
    """
    scores, keep, ids, num_groups = _grouped(scores, group_ids, num_groups, mask)
    centered = scores - masked.segment_mean(scores, ids, num_groups, keep)[ids]
    if normalize_std:
        centered /= masked.segment_std(scores, ids, num_groups, keep, ddof=1)[ids] + eps
    return jnp.where(keep, centered, 0.0)


def rloo_advantages(
    scores: Array,
    group_ids: Array,
    *,
    num_groups: int | None = None,
    mask: Array | None = None,
) -> jax.Array:
    """The score minus the mean of the group's other scores, arguments as in `group_advantages`.

        A_i = s_i - (sum_g s - s_i) / (n_g - 1) = (s_i - mean_g) n_g / (n_g - 1)

    Source: Ahmadian et al. 2024 (arXiv 2402.14740), section 3.3.

    Returns:
      Float32 [B], 0 where the mask is 0 and for a group of one, which has no baseline.
    """
    scores, keep, ids, num_groups = _grouped(scores, group_ids, num_groups, mask)
    count = masked.segment_sum(jnp.ones_like(scores), ids, num_groups, keep)
    factor = jnp.where(count > 1, count / jnp.maximum(count - 1, 1), 0.0)
    centered = scores - masked.segment_mean(scores, ids, num_groups, keep)[ids]
    return jnp.where(keep, centered * factor[ids], 0.0)


def _grouped(
    scores: Array, group_ids: Array, num_groups: int | None, mask: Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """Scores above their group's lowest, mask, dense ids [B] each, and a bound on the groups."""
    scores, group_ids = jnp.asarray(scores), jnp.asarray(group_ids)
    if scores.ndim != 1 or scores.shape != group_ids.shape:
        raise ValueError(
            f"scores and group_ids need one shape [B], not {scores.shape} and {group_ids.shape}"
        )
    keep = jnp.ones(scores.shape, bool) if mask is None else jnp.asarray(mask) != 0
    if num_groups is None:
        num_groups = scores.shape[0]
        _, group_ids = jnp.unique(group_ids, return_inverse=True, size=num_groups)
    scores = scores.astype(jnp.float32)
    # Measured from the group's lowest score, equal scores are exactly 0 and so is their mean.
    lowest = jax.ops.segment_min(jnp.where(keep, scores, jnp.inf), group_ids, num_groups)
    return jnp.where(keep, scores - lowest[group_ids], 0.0), keep, group_ids, num_groups
