"""Labels of episodes: masks, rewards on tokens, advantages, loss weights.

Everything is an array [B, S], one episode a row, padded to the longest that the run plans for.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from vrrl_jax import masked
from vrrl_jax.config import AlgorithmConfig, PrefixMaskConfig, RtmConfig
from vrrl_jax.rl import advantages as adv
from vrrl_jax.rl import masking
from vrrl_jax.types import Episode


@dataclasses.dataclass(frozen=True)
class Padded:
    """Episodes as arrays [B, S]; rows past the last episode are all zero.

    Attributes:
      loss_mask: 1 on generated tokens, before any masking mechanism.
      turn_index: int32.
      logprobs: behaviour log-probabilities; NaN where they have to be recomputed.
      last: bool, the last generated token of each turn.
      final: bool, the last generated token of the episode.
      hidden: bool, tokens whose input the policy doesn't see.
      pictures: bool, tokens that show a picture.
      second: 1 on a forced second thought.
      cut: bool [B], episodes that a budget ended.
    """

    loss_mask: np.ndarray
    turn_index: np.ndarray
    logprobs: np.ndarray
    last: np.ndarray
    final: np.ndarray
    hidden: np.ndarray
    pictures: np.ndarray
    second: np.ndarray
    cut: np.ndarray


def pad(episodes: list[Episode], rows: int, slots: int, picture_id: int = -1) -> Padded:
    """Episodes in rows of `slots` tokens, `rows` of them; `picture_id` stands for pictures."""
    floats = [np.zeros((rows, slots), np.float32) for _ in range(3)]
    flags = [np.zeros((rows, slots), bool) for _ in range(4)]
    loss_mask, logprobs, second = floats
    last, final, hidden, pictures = flags
    turn_index = np.zeros((rows, slots), np.int32)
    cut = np.zeros(rows, bool)
    for b, episode in enumerate(episodes):
        n = episode.tokens.size
        loss_mask[b, :n] = episode.loss_mask
        turn_index[b, :n] = episode.turn_index
        logprobs[b, :n] = episode.logprobs
        pictures[b, :n] = episode.tokens == picture_id
        cut[b] = episode.truncated
        if episode.hidden is not None:
            hidden[b, :n] = episode.hidden
        if episode.second is not None:
            second[b, slice(*episode.second)] = 1
        generated = np.flatnonzero(episode.loss_mask)
        if generated.size:
            turns = episode.turn_index[generated]
            last[b, generated[np.append(turns[1:] != turns[:-1], True)]] = True
            final[b, generated[-1]] = True
    return Padded(
        loss_mask, turn_index, logprobs, last, final, hidden, pictures, second * loss_mask, cut
    )


# --- masks -------------------------------------------------------------------------------------


def turn_masked(
    key: jax.Array, episodes: list[Episode], padded: Padded, config: RtmConfig
) -> np.ndarray:
    """Random Turn Masking on the episodes of that mode: float32 [B, S] weights of the actor."""
    rtm = np.zeros(len(padded.loss_mask), bool)
    rtm[: len(episodes)] = [e.mode == "rtm" for e in episodes]
    drawn = _turn_mask(key, padded.turn_index, padded.loss_mask, config.k_min, config.kind)
    return np.where(rtm[:, None], drawn, padded.loss_mask)


@functools.partial(jax.jit, static_argnames="kind")
def _turn_mask(key, turn_index, loss_mask, k_min, kind):
    if kind == "closed_form":
        # Weights already carry the mask.
        return masking.closed_form_turn_weights(turn_index, loss_mask, k_min=k_min)
    if kind == "final_turn":
        return masking.final_turn_mask(turn_index, loss_mask)
    return masking.random_turn_mask(key, turn_index, loss_mask, k_min=k_min)


def prefix_masked(key: jax.Array, padded: Padded, config: PrefixMaskConfig) -> masking.PrefixMask:
    """Random prefix masking of the padded episodes, as numpy."""
    drawn = _prefix_mask(
        key,
        padded.loss_mask,
        padded.pictures & config.pictures,
        config.probability,
        config.what != "loss",
        config.what != "states",
    )
    return jax.device_get(drawn)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _prefix_mask(key, loss_mask, pictures, probability, states, loss):
    return masking.random_prefix_mask(
        key,
        loss_mask,
        probability=probability,
        mask_states=states,
        mask_loss=loss,
        picture_mask=pictures,
    )


def loss_weights(
    weights: np.ndarray, normalization: str, length: int, copies: np.ndarray | None = None
) -> np.ndarray:
    """Weights [B, S] scaled so that a weighted sum over the batch is the wanted mean.

    token_mean: every token alike. sequence_mean: every episode alike, its tokens alike within.
    fixed_length: every token over (episodes x `length`), so that no draw changes the scale.

    Args:
      weights: of tokens, 0 without loss.
      copies: [B], how often an episode stands in the batch; None for once. The result is that of
        a batch in which it does.
    """
    copies = np.ones(len(weights), np.float32) if copies is None else np.float32(copies)
    copies = copies[:, None]
    counts = weights.sum(1, keepdims=True)
    alive = max(1.0, float((copies * (counts > 0)).sum()))
    if normalization == "token_mean":
        return weights * copies / max((weights * copies).sum(), 1e-8)
    if normalization == "sequence_mean":
        return weights / np.maximum(counts, 1e-8) * copies / alive
    return weights * copies / (alive * length)


# --- rewards and advantages --------------------------------------------------------------------


def overlong_penalties(padded: Padded, config: AlgorithmConfig, budget: int) -> np.ndarray:
    """What the length of an episode's last reply costs, float32 [B] in -1 .. 0, if wanted."""
    if config.overlong != "penalty":
        return np.zeros(len(padded.loss_mask), np.float32)
    turn = np.where(padded.final, padded.turn_index, 0).max(1, keepdims=True)
    lengths = (padded.loss_mask * (padded.turn_index == turn)).sum(1)
    return np.asarray(adv.overlong_penalty(lengths, budget, config.overlong_margin))


def episode_advantages(
    episodes: list[Episode],
    rows: int,
    config: AlgorithmConfig,
    extra: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Group-relative advantages of whole episodes: float32 [rows], 0 past the last episode.

    Args:
      extra: [rows], added to the scores: penalties.
    """
    scores, groups = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    mask = np.zeros(rows, np.float32)
    # A filter drops groups: number those that are left.
    numbers = {g: i for i, g in enumerate(dict.fromkeys(e.group for e in episodes))}
    for b, episode in enumerate(episodes):
        scores[b], mask[b] = episode.rewards["total"], 1
        groups[b] = numbers[episode.group]
    return np.asarray(_group_advantages(scores + extra, groups, mask, config.advantage))


@functools.partial(jax.jit, static_argnames="kind")
def _group_advantages(scores, groups, mask, kind):
    if kind == "rloo":
        return adv.rloo_advantages(scores, groups, num_groups=scores.shape[0], mask=mask)
    return adv.group_advantages(
        scores, groups, num_groups=scores.shape[0], normalize_std=kind == "grpo", mask=mask
    )


def placed_rewards(episodes: list[Episode], padded: Padded) -> np.ndarray:
    """Rewards on the last generated tokens: float32 [B, S].

    The total on the episode's last; or, where the reward is placed on turns, each turn's own on
    its last. What belongs to rolled-in turns, which weren't generated, is nobody's.
    """
    rewards = np.zeros_like(padded.loss_mask)
    for b, episode in enumerate(episodes):
        if not episode.turn_rewards:
            rewards[b, padded.final[b]] = episode.rewards["total"]
            continue
        at = np.flatnonzero(padded.last[b])
        rewards[b, at] = np.asarray(episode.turn_rewards)[padded.turn_index[b, at]]
    return rewards


def estimate(
    rewards: np.ndarray, values: np.ndarray, padded: Padded, config: AlgorithmConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(advantages, returns to fit the critic to, discounted returns), float32 [B, S] each.

    The last are what was really earned: what a critic's explained variance is measured against.
    """
    following = np.zeros(len(rewards), np.float32)
    if config.bootstrap:
        # A reply that its budget cut is followed by a forced end token: the critic on the state
        # that emits that one is the critic after the last generated token.
        after = np.roll(padded.final, 1, 1)
        following = (values * after).sum(1) * padded.cut
    turns = config.discount if config.turn_discount is None else config.turn_discount
    lambdas = config.lambda_ if config.turn_lambda is None else config.turn_lambda
    out = _estimate(
        rewards,
        values,
        padded.loss_mask,
        padded.turn_index,
        following,
        (config.discount, config.lambda_, turns, lambdas),
        config.level,
    )
    return jax.device_get(out)


@functools.partial(jax.jit, static_argnames="level")
def _estimate(rewards, values, mask, turn_index, following, factors, level):
    discount, lambda_, turn_discount, turn_lambda = factors
    if level == "turn":
        found = adv.turn_gae(rewards, values, discount, lambda_, mask, turn_index, following)
        # Within a turn nothing is discounted, between turns all of it.
        between = adv.turn_discounts(mask, turn_index, 1.0, discount)
    else:
        between = adv.turn_discounts(mask, turn_index, discount, turn_discount)
        decay = adv.turn_discounts(mask, turn_index, lambda_, turn_lambda)
        found = adv.gae(rewards, values, between, decay, mask, following)
    return *found, adv.discounted_returns(rewards, between, mask, following)


whitened = jax.jit(masked.whiten)
