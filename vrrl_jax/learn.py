"""The update of a step: episodes in, optimizer steps taken, figures out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vrrl_jax import label, layout, packing, selecting
from vrrl_jax.collect import MASK_KEY, PREFIX_MASK_KEY, key_for
from vrrl_jax.config import AlgorithmConfig, TrainConfig
from vrrl_jax.models.lora import join_params
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.packing import Packing
from vrrl_jax.parallel import distributed
from vrrl_jax.parallel.mesh import fetch, put_rows
from vrrl_jax.rl import advantages as adv
from vrrl_jax.rl import losses, replay, update
from vrrl_jax.rollout import episodes
from vrrl_jax.selecting import Samples
from vrrl_jax.types import Episode


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same through a run.

    Attributes:
      policy, config: as loaded.
      frozen: parameters that don't learn.
      reference: the policy that a KL term holds on to, or None.
      programs: of the update.
      shapes: of the rollout.
      packed: of a microbatch.
      key: the run's.
      recall: makes the episode of a stored sample again; None where none are stored.
    """

    policy: Policy
    config: TrainConfig
    frozen: Params
    reference: Params | None
    programs: update.Programs
    shapes: episodes.Shapes
    packed: layout.PackShape
    key: jax.Array
    recall: Callable[[dict[str, np.ndarray]], Episode] | None = None

    @property
    def rows(self) -> int:
        """Episodes of a rollout."""
        return self.config.rollout.questions * self.config.rollout.samples

    def pack(self, episodes: list[Episode], indices: list[int]) -> Packing:
        """Episodes in microbatches of the run's shape."""
        # A mask of states differs from sample to sample: they share no states then.
        share = self.config.update.share_prompts and not self.config.prefix_mask.hides
        return packing.pack(self.policy, episodes, indices, self.packed, share)


def learn(
    run: Run,
    state: update.TrainState,
    memory: replay.State | None,
    played: list[Episode],
    step: int,
) -> tuple[update.TrainState, replay.State | None, dict[str, float]]:
    """Labels the episodes of a step, chooses what to train on, takes the optimizer steps.

    Args:
      state: donated.
      memory: the ring of stored samples, donated; None without one.
      played: whole groups.
      step: of the run, 0-based; draws are seeded with it.
    """
    algorithm, n = run.config.algorithm, len(played)
    whole = run.pack(played, list(range(n)))
    params = join_params(state.params, run.frozen)
    fresh, metrics = labelled(run, params, played, whole, step)
    chosen = selecting.choose(run.config, fresh, memory, run.key, step, run.recall)
    stored, figures = relabelled(run, params, chosen.stored)
    del params  # the state's are donated
    samples = fresh.joined(stored)
    metrics |= chosen.metrics | figures
    metrics |= {"update_occupancy": whole.occupancy, "update_spared": whole.spared}

    totals: list[dict[str, Any]] = []
    sums: list[float] = []
    for copies in chosen.steps:
        indices = np.flatnonzero(copies).tolist()
        if not indices:
            continue
        rows = whole
        if indices != list(range(n)):
            rows = run.pack(samples.episodes, indices)
        # Processes that pack differently would wait for one another.
        shapes = [batch.tokens.shape for batch in rows.rows]
        distributed.agree(f"step {step + 1}", samples=copies, microbatches=shapes)
        warming = int(fetch(state.step)) < algorithm.critic_warmup
        weighted = weights(run.config, samples, copies, n, warming)
        batches = packing.microbatches(run.policy, rows, samples.fields | weighted)
        state, metrics_now = update.run(run.programs, state, batches, run.frozen)
        totals.append(metrics_now)
        sums.append(float(weighted["loss_weights"].sum()) or 1.0)
    metrics["count/updates"] = len(totals)
    metrics["count/updates_without_samples"] = len(chosen.steps) - len(totals)
    if not totals:
        return state, chosen.memory, metrics
    totals = [
        {name: float(v) / (total if name in update.MEANS else 1.0) for name, v in t.items()}
        for t, total in zip(fetch(totals), sums, strict=True)
    ]
    for name in totals[0]:
        values = [t[name] for t in totals]
        metrics[name] = float(np.sum(values) if name.startswith("count/") else np.mean(values))
    # The first update sees unchanged parameters: its ratio tells sampler and trainer apart.
    metrics["ratio_deviation_first"] = totals[0]["ratio_deviation"]
    return state, chosen.memory, metrics


# --- labels ------------------------------------------------------------------------------------


def labelled(
    run: Run, params: Params, played: list[Episode], whole: Packing, step: int
) -> tuple[Samples, dict[str, float]]:
    """Fresh episodes with their masks, old log-probabilities, advantages and returns."""
    config, algorithm, n = run.config, run.config.algorithm, len(played)
    padded, actor, unscored, metrics = masked(run, played, step)
    hidden = padded.hidden if config.prefix_mask.hides else None
    scored = {}
    if run.policy.value_head or algorithm.importance != "behaviour" or unscored.any():
        scored = score(run, params, whole, padded.loss_mask, hidden)
    logprobs, weight = old_logprobs(algorithm, padded, unscored, scored)
    fields = {"loss_mask": padded.loss_mask, "actor": actor, "logprobs": logprobs}
    fields["hidden"] = padded.hidden
    if run.reference is not None:
        referred = score(run, run.reference, whole, padded.loss_mask, hidden)
        fields["ref_logprobs"] = referred["logprobs"]

    rewards, extra, figures = paid(run, played, padded, fields)
    metrics |= figures
    if algorithm.name == "ppo" or algorithm.advantage == "returns":
        values = scored.get("values", np.zeros_like(rewards))
        per_token, returns, earned = label.estimate(rewards, values, padded, algorithm)
        if algorithm.name == "ppo":
            fields |= {"values": values, "returns": returns, "rewards": rewards}
            metrics["explained_variance"] = float(
                losses.explained_variance(values, earned, padded.loss_mask)
            )
        else:
            per_token = earned
        if algorithm.whiten:
            per_token = np.asarray(label.whitened(per_token, padded.loss_mask))
        advantage = (per_token * padded.loss_mask).sum(1) / np.maximum(padded.loss_mask.sum(1), 1)
    else:
        advantage = label.episode_advantages(played, run.rows, algorithm, extra)
        per_token = np.broadcast_to(advantage[:, None], padded.loss_mask.shape)
    fields["advantages"] = per_token
    if weight is not None:
        fields["advantages"] = per_token * weight
        metrics["importance_weight"] = _mean(weight, padded.loss_mask)
    if config.rethinking.nll:
        fields["nll"] = rethought(config, played, padded, advantage)
    kept = {name: np.float32(fields[name][:n]) for name in selecting.field_names(config)}
    # What is drawn by them is drawn alike, whatever a process's own device rounded.
    kept, advantage = distributed.of_first((kept, np.float32(advantage[:n])))
    return Samples(played, kept, advantage), metrics


def masked(
    run: Run, played: list[Episode], step: int
) -> tuple[label.Padded, np.ndarray, np.ndarray, dict[str, float]]:
    """What every masking mechanism does to a step's episodes.

    Returns:
      (padded episodes, hidden inputs included; the weight [B, S] of each token in the policy's
      loss; bool [B, S], tokens whose old log-probability has to be recomputed; counters).
    """
    config, algorithm = run.config, run.config.algorithm
    padded = label.pad(played, run.rows, run.shapes.slots, run.policy.config.image_token_id)
    actor = label.turn_masked(key_for(run.key, MASK_KEY, step), played, padded, config.rtm)
    metrics = {"count/rtm_masked_tokens": float(padded.loss_mask.sum() - actor.sum())}
    unscored = np.isnan(padded.logprobs)
    if config.prefix_mask.in_place:
        key = key_for(run.key, PREFIX_MASK_KEY, step)
        drawn = label.prefix_masked(key, padded, config.prefix_mask)
        padded = dataclasses.replace(padded, hidden=padded.hidden | drawn.state_mask)
        actor = actor * (drawn.loss_mask > 0)
        if config.prefix_mask.logprobs == "recomputed":
            # Under masked states: or the ratio isn't 1 at an unchanged policy.
            unscored |= (padded.loss_mask > 0) & padded.hidden.any(1, keepdims=True)
        metrics["count/prefix_masked_episodes"] = int((drawn.length > 0).sum())
        metrics["count/prefix_masked_tokens"] = int(drawn.length.sum())
    if algorithm.overlong == "mask":
        actor = actor * ~padded.cut[:, None]
        metrics["count/overlong_masked"] = int(padded.cut.sum())
    metrics["count/logprobs_recomputed"] = int(unscored.sum())
    return padded, actor, unscored, metrics


def old_logprobs(
    algorithm: AlgorithmConfig,
    padded: label.Padded,
    unscored: np.ndarray,
    scored: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray | None]:
    """The log-probabilities that ratios are measured from, and importance weights if wanted.

    Args:
      unscored: bool [B, S], where the sampler's don't serve.
      scored: what the policy says before the update; empty where nobody asks.
    """
    if algorithm.importance == "recomputed":
        return scored["logprobs"], None
    recorded = padded.logprobs
    if unscored.any():
        recorded = np.where(unscored, scored["logprobs"], recorded)
    if algorithm.importance == "behaviour":
        return recorded, None
    weight = losses.importance_weights(
        scored["logprobs"], recorded, padded.loss_mask, cap=algorithm.importance_cap
    )
    return scored["logprobs"], np.asarray(weight)


def paid(
    run: Run, played: list[Episode], padded: label.Padded, fields: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Rewards on tokens [B, S], and what penalties add to a whole episode's score [B]."""
    config, algorithm, n = run.config, run.config.algorithm, len(played)
    extra = label.overlong_penalties(padded, algorithm, config.rollout.max_new_tokens)
    rewards = label.placed_rewards(played, padded) + padded.final * extra[:, None]
    metrics = {}
    if algorithm.overlong == "penalty":
        metrics["count/overlong_penalised"] = int((extra < 0).sum())
    if algorithm.kl_in == "reward" and run.reference is not None:
        charged = adv.kl_rewards(
            np.zeros_like(rewards),
            fields["logprobs"],
            fields["ref_logprobs"],
            padded.loss_mask,
            algorithm.kl_coefficient,
            algorithm.estimator,
        )
        charged = np.asarray(charged)
        rewards, extra = rewards + charged, extra + charged.sum(1)
        metrics["kl_reward"] = float(charged.sum(1)[:n].mean())
    return rewards, extra, metrics


def rethought(
    config: TrainConfig, played: list[Episode], padded: label.Padded, advantage: np.ndarray
) -> np.ndarray:
    """Tokens of the rethinking NLL term, float32 [B, S].

    Paper: second thoughts that end in a right answer. Code: all of a reply that holds a "wait" and
    has a positive advantage.
    """
    rows = np.zeros((len(padded.loss_mask), 1), np.float32)
    if config.rethinking.nll_tokens == "second":
        rows[: len(played), 0] = [e.rewards["success"] > 0 for e in played]
        return padded.second * rows
    waits = [any("wait" in text.lower() for text in e.texts) for e in played]
    rows[: len(played), 0] = np.array(waits) & (advantage[: len(played)] > 0)
    return padded.loss_mask * rows


def relabelled(run: Run, params: Params, stored: Samples) -> tuple[Samples, dict[str, float]]:
    """Stored samples with what they need of the policy and the critic of now, if anything.

    Their reference log-probabilities are stored: the reference never changes.
    """
    algorithm, replayed = run.config.algorithm, run.config.replay
    critic = replayed.labels == "recomputed" and algorithm.name == "ppo"
    truncated = replayed.importance == "truncated"
    n = len(stored.episodes)
    if n == 0 or not (critic or truncated):
        return stored, {}
    # A multiple of a rollout's rows: few shapes, few programs.
    rows = -(-n // run.rows) * run.rows
    widen = lambda a: np.pad(a, ((0, rows - n), (0, 0)))
    padded = label.pad(stored.episodes, rows, run.shapes.slots)
    whole = run.pack(stored.episodes, list(range(n)))
    hidden = padded.hidden if run.config.prefix_mask.hides else None
    scored = score(run, params, whole, padded.loss_mask, hidden)
    fields, metrics = dict(stored.fields), {}
    if critic:
        rewards = widen(fields["rewards"])
        per_token, returns, _ = label.estimate(rewards, scored["values"], padded, algorithm)
        if algorithm.whiten:
            per_token = np.asarray(label.whitened(per_token, padded.loss_mask))
        fields |= {
            "values": scored["values"][:n],
            "returns": returns[:n],
            "advantages": per_token[:n],
        }
    if truncated:
        weight = np.asarray(
            losses.importance_weights(
                scored["logprobs"], widen(fields["logprobs"]), padded.loss_mask, cap=replayed.cap
            )
        )
        metrics["replayed_importance"] = _mean(weight, padded.loss_mask)
        fields |= {
            "logprobs": scored["logprobs"][:n],
            "advantages": fields["advantages"] * weight[:n],
        }
    return dataclasses.replace(stored, fields=fields), metrics


def weights(
    config: TrainConfig, samples: Samples, copies: np.ndarray, fresh: int, warming: bool
) -> dict[str, np.ndarray]:
    """The weights of every term of the loss, each normalised over the batch: float32 [N, S].

    Args:
      copies: [N], how often a sample stands in the batch.
      fresh: how many of the samples are of this step.
      warming: whether the critic learns alone.
    """
    algorithm, fields = config.algorithm, samples.fields
    scaled = functools.partial(label.loss_weights, copies=copies)
    actor = scaled(fields["actor"], algorithm.normalization, config.rollout.max_new_tokens)
    out = {"loss_weights": actor * (not warming)}
    if len(samples.episodes) > fresh:
        old = actor * (np.arange(len(actor)) >= fresh)[:, None]
        out["replayed_weights"] = old / max(float(old.sum()), 1e-8)
    if algorithm.name == "ppo":
        # Masking mechanisms touch the actor's loss only: the critic sees every token.
        out["value_weights"] = scaled(fields["loss_mask"], "token_mean", 1)
        out["trunk"] = np.full_like(actor, 0.0 if warming else algorithm.value_trunk)
    if "nll" in fields:
        out["nll_weights"] = scaled(fields["nll"], "token_mean", 1) * (not warming)
    return out


# --- passes --------------------------------------------------------------------------------------

_score_rows = jax.jit(update.score, static_argnums=(0, 3))


def score(
    run: Run, params: Params, whole: Packing, like: np.ndarray, hidden: np.ndarray | None
) -> dict[str, np.ndarray]:
    """One teacher-forced pass over all microbatches: `logprobs` and, with a critic, `values`.

    Args:
      whole: episodes in packed rows.
      like: [B, S], padded arrays of them.
      hidden: bool [B, S], inputs that the policy doesn't see; None for none.

    Returns:
      float32 [B, S] each.
    """
    masks = [None] * len(whole.rows)
    if hidden is not None:
        masks = [put_rows(run.policy.mesh, mask > 0) for mask in packing.gather(whole, hidden)]
    temperature = run.config.rollout.temperature
    out = [
        _score_rows(run.policy, params, rows, temperature, mask)
        for rows, mask in zip(whole.rows, masks, strict=True)
    ]
    out = fetch(out)
    return {name: packing.scatter(whole, [o[name] for o in out], like) for name in out[0]}


def _mean(values: np.ndarray, mask: np.ndarray) -> float:
    return float((values * mask).sum() / max(1.0, mask.sum()))


def objective(config: TrainConfig) -> update.Objective:
    """The loss's coefficients."""
    a = config.algorithm
    return update.Objective(
        clip_low=a.clip_low,
        clip_high=a.clip_high,
        dual_clip=a.dual_clip,
        kl_coefficient=a.kl_coefficient if a.kl_in == "loss" else 0.0,
        kl_estimator=a.estimator,
        entropy_coefficient=a.entropy_coefficient,
        value_coefficient=a.value_coefficient if a.name == "ppo" else 0.0,
        value_clip=a.value_clip,
        nll_coefficient=config.rethinking.nll,
        temperature=config.rollout.temperature,
    )


def update_shape(config: TrainConfig, policy: Policy, shapes: episodes.Shapes) -> layout.PackShape:
    """Packed rows that hold any episode, several short ones, and their pictures."""
    tokens, reply = max(config.update.row_tokens or 0, shapes.slots), config.rollout.max_new_tokens
    return layout.PackShape(
        rows=config.update.rows_per_microbatch,
        tokens=tokens,
        # Of the largest pictures, one for each reply that a row has room for; smaller ones share.
        slots=shapes.pictures * max(config.env.max_turns, -(-tokens // (shapes.prompt + reply))),
        patches=max(config.update.picture_patches or 0, shapes.patches),
        features=shapes.features,
    )
