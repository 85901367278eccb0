"""The update of a step: episodes in, optimizer steps taken, figures out."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vrrl_jax import label, layout
from vrrl_jax.config import TrainConfig
from vrrl_jax.models.lora import join_params
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.rl import losses, update
from vrrl_jax.rollout import episodes
from vrrl_jax.types import Episode


def learn(
    policy: Policy,
    config: TrainConfig,
    state: update.TrainState,
    frozen: Params,
    reference: Params | None,
    programs: update.Programs,
    played: list[Episode],
    shapes: episodes.Shapes,
    shape: layout.PackShape,
    key: jax.Array,
) -> tuple[update.TrainState, dict[str, float]]:
    """Labels the episodes of a step and takes its optimizer steps."""
    algorithm = config.algorithm
    rows = config.rollout.questions * config.rollout.samples
    padded = label.pad(played, rows, shapes.slots)
    actor = label.turn_masked(key, played, padded, config.rtm)
    advantage = label.episode_advantages(played, rows, algorithm)
    per_token = np.broadcast_to(advantage[:, None], padded.loss_mask.shape)
    metrics = {
        "advantage_nonzero": float((advantage[: len(played)] != 0).mean()),
        "count/rtm_masked_tokens": float(padded.loss_mask.sum() - actor.sum()),
    }
    fields = {"logprobs": padded.logprobs}
    whole = label.pack(policy, played, list(range(len(played))), shape)
    metrics["update_occupancy"] = whole.occupancy
    scored = None
    if policy.value_head or algorithm.importance == "recomputed":
        params = join_params(state.params, frozen)
        scored = _score(policy, params, whole, padded, config.rollout.temperature)
    if algorithm.importance == "recomputed":
        fields["logprobs"] = scored["logprobs"]
    if reference is not None:
        referred = _score(policy, reference, whole, padded, config.rollout.temperature)
        fields["ref_logprobs"] = referred["logprobs"]
    if algorithm.name == "ppo":
        rewards = label.placed_rewards(played, padded)
        estimate, returns = label.generalised_advantages(
            rewards, scored["values"], algorithm.discount, algorithm.lambda_, padded.loss_mask
        )
        fields |= {"values": scored["values"], "returns": np.asarray(returns)}
        metrics["explained_variance"] = float(
            losses.explained_variance(scored["values"], returns, padded.loss_mask)
        )
        per_token = label.whitened(estimate, padded.loss_mask) if algorithm.whiten else estimate
    fields["advantages"] = np.asarray(per_token)

    totals: list[dict[str, Any]] = []
    sums: list[float] = []
    for epoch in range(algorithm.epochs):
        for indices in minibatches(config, played, epoch, int(state.step)):
            packing = whole if len(indices) == len(played) else None
            packing = packing or label.pack(policy, played, indices, shape)
            chosen = np.zeros((rows, 1), np.float32)
            chosen[indices] = 1
            weights = label.loss_weights(
                actor * chosen, algorithm.normalization, config.rollout.max_new_tokens
            )
            fields["loss_weights"] = weights
            if algorithm.name == "ppo":
                # Masking mechanisms touch the actor's loss only: the critic sees every token.
                fields["value_weights"] = label.loss_weights(
                    padded.loss_mask * chosen, "token_mean", 1
                )
            batches = label.microbatches(policy, packing, fields)
            state, metrics_now = update.run(programs, state, batches, frozen)
            totals.append(metrics_now)
            sums.append(float(weights.sum()) or 1.0)
    totals = [
        {name: float(v) / (total if name in update.MEANS else 1.0) for name, v in t.items()}
        for t, total in zip(jax.device_get(totals), sums, strict=True)
    ]
    for name in totals[0]:
        values = [t[name] for t in totals]
        metrics[name] = float(np.sum(values) if name.startswith("count/") else np.mean(values))
    metrics["count/updates"] = len(totals)
    # The first update sees unchanged parameters: its ratio tells sampler and trainer apart.
    metrics["ratio_deviation_first"] = totals[0]["ratio_deviation"]
    return state, metrics


_score_rows = jax.jit(update.score, static_argnums=(0, 3))


def _score(policy, params, packing, padded, temperature) -> dict[str, np.ndarray]:
    """One teacher-forced pass over all microbatches, back in padded form."""
    out = [_score_rows(policy, params, rows, temperature) for rows in packing.rows]
    out = jax.device_get(out)
    return {
        name: label.scatter(packing, [o[name] for o in out], padded.loss_mask) for name in out[0]
    }


def minibatches(
    config: TrainConfig, played: list[Episode], epoch: int, step: int
) -> list[list[int]]:
    """Indices of each optimizer step's episodes: whole groups, shuffled where there are several."""
    n = config.algorithm.minibatches
    if n == 1:
        return [list(range(len(played)))]
    groups = list(dict.fromkeys(e.group for e in played))
    order = np.random.default_rng((config.seed, step, epoch)).permutation(len(groups))
    parts = np.array_split(np.array(groups)[order], min(n, len(groups)))
    members = {g: [i for i, e in enumerate(played) if e.group == g] for g in groups}
    return [[i for g in part.tolist() for i in members[g]] for part in parts]


def objective(config: TrainConfig) -> update.Objective:
    """The loss's coefficients."""
    a = config.algorithm
    return update.Objective(
        clip_low=a.clip_low,
        clip_high=a.clip_high,
        dual_clip=a.dual_clip,
        kl_coefficient=a.kl_coefficient,
        kl_estimator=a.kl_estimator,
        entropy_coefficient=a.entropy_coefficient,
        value_coefficient=a.value_coefficient if a.name == "ppo" else 0.0,
        value_clip=a.value_clip,
        temperature=config.rollout.temperature,
    )


def update_shape(config: TrainConfig, policy: Policy, shapes: episodes.Shapes) -> layout.PackShape:
    """Packed rows that hold any episode, several short ones, and their pictures."""
    tokens = max(config.update.row_tokens or 0, shapes.slots)
    return layout.PackShape(
        rows=config.update.rows_per_microbatch,
        tokens=tokens,
        # Of the largest pictures; smaller ones share a slot.
        slots=shapes.pictures * max(config.env.max_turns, -(-tokens // shapes.prompt)),
        patches=max(config.update.picture_patches or 0, shapes.patches),
        features=shapes.features,
    )
