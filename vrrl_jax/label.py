"""From episodes to training batches: masks, weights, advantages, packed microbatches.

Per-token quantities live in padded arrays [B, S], one episode a row, where the pure functions of
`vrrl_jax.rl` work on them under jit with one fixed shape; `Packing` moves them to and from the
packed rows that the model sees.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from vrrl_jax import layout, masked
from vrrl_jax.config import AlgorithmConfig, RtmConfig
from vrrl_jax.models.policy import Policy
from vrrl_jax.parallel.mesh import put_rows
from vrrl_jax.rl import advantages as adv
from vrrl_jax.rl import masking
from vrrl_jax.rl.update import Microbatch
from vrrl_jax.types import Episode, Rows, Sequence


@dataclasses.dataclass(frozen=True)
class Padded:
    """Episodes as arrays [B, S]; rows past the last episode are all zero.

    Attributes:
      loss_mask: 1 on generated tokens, before any masking mechanism.
      turn_index: int32.
      logprobs: behaviour log-probabilities.
      last: bool, the last generated token of each turn.
      final: bool, the last generated token of the episode.
    """

    loss_mask: np.ndarray
    turn_index: np.ndarray
    logprobs: np.ndarray
    last: np.ndarray
    final: np.ndarray


def pad(episodes: list[Episode], rows: int, slots: int) -> Padded:
    """Episodes in rows of `slots` tokens, `rows` of them."""
    loss_mask = np.zeros((rows, slots), np.float32)
    turn_index = np.zeros((rows, slots), np.int32)
    logprobs = np.zeros((rows, slots), np.float32)
    last = np.zeros((rows, slots), bool)
    final = np.zeros((rows, slots), bool)
    for b, episode in enumerate(episodes):
        n = episode.tokens.size
        loss_mask[b, :n] = episode.loss_mask
        turn_index[b, :n] = episode.turn_index
        logprobs[b, :n] = episode.logprobs
        generated = np.flatnonzero(episode.loss_mask)
        if generated.size:
            turns = episode.turn_index[generated]
            last[b, generated[np.append(turns[1:] != turns[:-1], True)]] = True
            final[b, generated[-1]] = True
    return Padded(loss_mask, turn_index, logprobs, last, final)


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


def loss_weights(weights: np.ndarray, normalization: str, length: int) -> np.ndarray:
    """Weights [B, S] scaled so that a weighted sum over the batch is the wanted mean.

    token_mean: every token alike. sequence_mean: every episode alike, its tokens alike within.
    fixed_length: every token over (episodes x `length`), so that no draw changes the scale.
    """
    counts = weights.sum(1, keepdims=True)
    alive = max(1, int((counts > 0).sum()))
    if normalization == "token_mean":
        return weights / max(weights.sum(), 1e-8)
    if normalization == "sequence_mean":
        return weights / np.maximum(counts, 1e-8) / alive
    return weights / (alive * length)


def episode_advantages(episodes: list[Episode], rows: int, config: AlgorithmConfig) -> np.ndarray:
    """Group-relative advantages of whole episodes: float32 [rows], 0 past the last episode."""
    scores, groups = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    mask = np.zeros(rows, np.float32)
    # A filter drops groups: number those that are left.
    numbers = {g: i for i, g in enumerate(dict.fromkeys(e.group for e in episodes))}
    for b, episode in enumerate(episodes):
        scores[b], mask[b] = episode.rewards["total"], 1
        groups[b] = numbers[episode.group]
    return np.asarray(_group_advantages(scores, groups, mask, config.advantage))


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


generalised_advantages = jax.jit(adv.gae)
whitened = jax.jit(masked.whiten)


# --- packing -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Packing:
    """Rows of microbatches and where each of their tokens comes from.

    Attributes:
      rows: one record a microbatch, on the device.
      episode: int32 [M, R, T], row of the padded arrays, -1 in padding.
      offset: int32 [M, R, T], token within the episode.
      occupancy: share of token slots in use.
    """

    rows: list[Rows]
    episode: np.ndarray
    offset: np.ndarray
    occupancy: float


def pack(
    policy: Policy, episodes: list[Episode], indices: list[int], shape: layout.PackShape
) -> Packing:
    """Packs the episodes `indices` into as few microbatches of one shape as first fit finds.

    Raises:
      ValueError: an episode is longer than a row, or has more pictures than a row has slots.
    """
    place = policy.config.layout
    left = [
        Sequence(
            episodes[i].tokens,
            episodes[i].pictures,
            {
                "episode": np.full(episodes[i].tokens.size, i + 1, np.int32),
                "offset": np.arange(episodes[i].tokens.size, dtype=np.int32),
            },
        )
        for i in indices
    ]
    rows, members, offsets, used = [], [], [], 0.0
    while left:
        assignment = layout.assign_rows(left, place, shape)
        if max(assignment) < 0:
            size = max(s.tokens.size for s in left)
            raise ValueError(f"an episode of {size} tokens doesn't fit a row of {shape}")
        packed, fields = layout.pack(left, place, shape, assignment)
        used += float((packed.segments > 0).mean())
        rows.append(place_rows(policy, packed))
        members.append(fields["episode"] - 1)
        offsets.append(fields["offset"])
        left = [s for s, r in zip(left, assignment, strict=True) if r < 0]
    return Packing(rows, np.stack(members), np.stack(offsets), used / len(rows))


def place_rows(policy: Policy, rows: Rows) -> Rows:
    """Packed rows onto the device or the mesh."""
    if policy.mesh is None:
        return jax.device_put(rows)
    placed = put_rows(policy.mesh, rows._replace(positions=None))
    return placed._replace(positions=put_rows(policy.mesh, rows.positions, axis=1))


def gather(packing: Packing, padded: np.ndarray) -> np.ndarray:
    """Padded [B, S] to packed [M, R, T], zero in padding."""
    return np.where(packing.episode >= 0, padded[packing.episode, packing.offset], 0)


def scatter(packing: Packing, packed: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    """Packed [R, T] of every microbatch back to padded [B, S]."""
    out = np.zeros(like.shape, np.float32)
    valid = packing.episode >= 0
    out[packing.episode[valid], packing.offset[valid]] = np.stack(packed)[valid]
    return out


def microbatches(
    policy: Policy, packing: Packing, fields: dict[str, np.ndarray]
) -> list[Microbatch]:
    """Microbatches whose fields are the padded arrays' values."""
    packed = {name: gather(packing, value).astype(np.float32) for name, value in fields.items()}
    return [
        Microbatch(rows, put_rows(policy.mesh, {name: value[m] for name, value in packed.items()}))
        for m, rows in enumerate(packing.rows)
    ]
