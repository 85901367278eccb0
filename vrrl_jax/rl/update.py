"""The update step: gradients of microbatches, accumulated, guarded, applied.

Two programs serve a whole run whatever the number of microbatches: one adds a microbatch's
gradient to a donated accumulator, one applies the sum. Losses are weighted sums whose weights
are normalised over the whole batch beforehand (`loss_weights`), so accumulation equals the
large batch up to the order of float32 additions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vrrl_jax.models import critic
from vrrl_jax.models import policy as models
from vrrl_jax.models.lora import join_params
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.parallel.rules import param_shardings
from vrrl_jax.rl import losses
from vrrl_jax.types import Array, Rows

# The released recipe cuts a token's KL estimate here: k3 grows exponentially.
KL_LIMIT = 10.0
# Metrics of `policy_loss` that are means over tokens once divided by the sum of the weights, which
# isn't 1 under every normalisation.
MEANS = ("entropy", "ratio_mean", "ratio_deviation", "kl_old", "kl_reference")
MEANS += ("clip_fraction_low", "clip_fraction_high", "clip_fraction_dual")


class TrainState(NamedTuple):
    """What an optimizer step changes.

    Attributes:
      params: float32 master parameters that are trained; frozen ones stand beside the state.
      opt_state: of optax.
      step: int32 scalar, updates applied or skipped.
      bad_steps: int32 scalar, updates skipped in a row for a non-finite gradient.
    """

    params: Params
    opt_state: Any
    step: Array
    bad_steps: Array


class Microbatch(NamedTuple):
    """Packed rows and their per-token fields, each [R, T] or [R, T, A]."""

    rows: Rows
    fields: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The policy objective's coefficients; see `policy_loss`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coefficient: float = 0.0
    kl_estimator: str = "k3"
    entropy_coefficient: float = 0.0
    value_coefficient: float = 0.0
    value_clip: float | None = None
    nll_coefficient: float = 0.0
    temperature: float = 1.0


class Programs(NamedTuple):
    """The jitted programs of an update; see `make_programs`."""

    zeros: Callable[[Params], Params]
    accumulate: Callable[[Params, Params, Params, Microbatch], tuple[Params, dict[str, Array]]]
    apply: Callable[[TrainState, Params], tuple[TrainState, dict[str, Array]]]


def init_state(policy: Policy, params: Params, tx: optax.GradientTransformation) -> TrainState:
    """A fresh state, the optimizer's part born with the parameters' shardings."""

    def fresh(params):
        return tx.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    # Counters lie on the mesh too: a restored state has the shardings of a fresh one.
    born = _shardings(policy, jax.eval_shape(fresh, params))
    return TrainState(params, *jax.jit(fresh, out_shardings=born)(params))


def _shardings(policy: Policy, tree: Any) -> Any:
    return param_shardings(tree, policy.mesh, head_dim=policy.config.text.head_dim)


def make_programs(
    loss: Callable[[Params, Microbatch], tuple[Array, dict[str, Array]]],
    tx: optax.GradientTransformation,
    policy: Policy | None = None,
) -> Programs:
    """Compiles-once programs for a loss and an optimizer. Call this once a run.

    Args:
      loss: (params, microbatch) -> (scalar, metrics), both sums that add up over microbatches.
      tx: the optimizer.
      policy: whose mesh gradients and state keep their layout on; None for one device.
    """

    def laid_out(tree):
        if policy is None or policy.mesh is None:
            return tree
        # Otherwise a result lies as the compiler likes: gradients whole on every device.
        return jax.lax.with_sharding_constraint(tree, _shardings(policy, tree))

    def accumulate(params, frozen, grads, microbatch):
        whole = lambda trained: loss(join_params(trained, frozen), microbatch)
        (value, metrics), new = jax.value_and_grad(whole, has_aux=True)(params)
        return laid_out(jax.tree.map(jnp.add, grads, new)), metrics | {"loss": value}

    def apply(state, grads):
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm)
        # A skipped update must not touch the moments either: zero gradients would decay them.
        safe = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)
        updates, opt_state = tx.update(safe, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        bad = jnp.where(finite, 0, state.bad_steps + 1)
        state = TrainState(
            keep(params, state.params), keep(opt_state, state.opt_state), state.step + 1, bad
        )
        metrics = {"grad_norm": norm, "count/skipped_updates": (~finite).astype(jnp.int32)}
        return laid_out(state), metrics

    return Programs(
        zeros=jax.jit(lambda params: laid_out(jax.tree.map(jnp.zeros_like, params))),
        accumulate=jax.jit(accumulate, donate_argnums=2),
        apply=jax.jit(apply, donate_argnums=0),
    )


def run(
    programs: Programs,
    state: TrainState,
    microbatches: list[Microbatch],
    frozen: Params | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step over all microbatches; metrics stay on the device.

    Args:
      frozen: parameters that get no gradient; with the state's they are the whole policy.
    """
    grads, totals = programs.zeros(state.params), {}
    for microbatch in microbatches:
        grads, metrics = programs.accumulate(state.params, frozen or {}, grads, microbatch)
        totals = {k: totals[k] + v if totals else v for k, v in metrics.items()}
    state, metrics = programs.apply(state, grads)
    return state, totals | metrics


# --- losses over a microbatch ------------------------------------------------------------------


def policy_loss(
    policy: Policy, objective: Objective, params: Params, batch: Microbatch
) -> tuple[Array, dict[str, Array]]:
    """Clipped policy loss, KL, entropy, value loss and NLL of one microbatch.

    Fields, each float32 [R, T]: `loss_weights` (the actor's, normalised over the batch, 0 where a
    token isn't trained), `logprobs` (the old policy's), `advantages`; with a KL term
    `ref_logprobs`; with a value loss `value_weights`, `values` and `returns`; with an NLL term
    `nll_weights`. And, where there is a use for them, `trunk` (the share of the critic's gradient
    that goes on into the policy's states), `replayed_weights` (of replayed samples, summing to 1
    over the batch) and `hidden` (1 where the policy doesn't see its input).
    """
    fields, weights = batch.fields, batch.fields["loss_weights"]
    mask, unseen = weights > 0, _unseen(fields)
    hidden = models.hidden_states(policy, params, batch.rows, unseen)
    logprobs, entropy = models.token_logprobs(
        policy,
        params,
        hidden,
        batch.rows.tokens,
        temperature=objective.temperature,
        shared=batch.rows.shared,
    )
    per_token, stats = losses.ppo_loss(
        logprobs,
        fields["logprobs"],
        fields["advantages"],
        mask,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        dual_clip=objective.dual_clip,
    )
    mean = lambda x: jnp.sum(jnp.where(mask, x, 0.0) * weights)
    total = mean(per_token)
    metrics = {
        "policy_loss": total,
        "entropy": mean(entropy),
        "ratio_mean": mean(stats["ratio"]),
        "ratio_deviation": mean(jnp.abs(stats["ratio"] - 1)),
        "clip_fraction_low": mean(stats["clip_low"]),
        "clip_fraction_high": mean(stats["clip_high"]),
        "clip_fraction_dual": mean(stats["dual_clip"]),
        "kl_old": mean(stats["approx_kl"]),
    }
    if objective.kl_coefficient > 0:
        kl = losses.kl_penalty(
            logprobs,
            fields["ref_logprobs"],
            estimator=objective.kl_estimator,
            mask=mask,
            max_value=KL_LIMIT,
        )
        metrics["kl_reference"] = mean(kl)
        total += objective.kl_coefficient * metrics["kl_reference"]
    if objective.entropy_coefficient:
        total -= objective.entropy_coefficient * metrics["entropy"]
    if objective.value_coefficient:
        value_weights = fields["value_weights"]
        trunk = fields["trunk"][..., None] if "trunk" in fields else 1.0
        predicted = critic.values(policy, params, batch.rows, hidden, unseen, trunk)
        value = losses.value_loss(
            predicted,
            fields["values"],
            fields["returns"],
            value_weights > 0,
            clip=objective.value_clip,
        )
        metrics["value_loss"] = jnp.sum(value * value_weights)
        total += objective.value_coefficient * metrics["value_loss"]
    if objective.nll_coefficient:
        nll_weights = fields["nll_weights"]
        metrics["nll"] = jnp.sum(losses.nll(logprobs, nll_weights > 0) * nll_weights)
        total += objective.nll_coefficient * metrics["nll"]
    if "replayed_weights" in fields:
        metrics["ratio_replayed"] = jnp.sum(stats["ratio"] * fields["replayed_weights"])
    return total, metrics


def _unseen(fields: dict[str, Array]) -> Array | None:
    return fields["hidden"] > 0 if "hidden" in fields else None


def supervised_loss(
    policy: Policy, params: Params, batch: Microbatch
) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy with soft targets.

    Fields: `target_ids` int32 [R, T, A] and `target_weights` float32 [R, T, A], which sum to 1
    over the batch. The entropy of the targets isn't subtracted.
    """
    ids, weights = batch.fields["target_ids"], batch.fields["target_weights"]
    hidden = models.hidden_states(policy, params, batch.rows)
    logprobs, _ = models.token_logprobs(policy, params, hidden, ids, shared=batch.rows.shared)
    total = -jnp.sum(logprobs * weights)
    # The share of trained tokens whose target is the one written: hard accuracy needs the argmax
    # over the vocabulary, which is never built; the likelihood tells as much.
    return total, {"nll": total, "target_probability": jnp.sum(jnp.exp(logprobs) * weights)}


def score(
    policy: Policy,
    params: Params,
    rows: Rows,
    temperature: float,
    unseen: Array | None = None,
) -> dict[str, Array]:
    """What one teacher-forced pass tells: `logprobs` and, with a critic, `values` [R, T].

    Args:
      unseen: bool [R, T], inputs that the policy doesn't see; None for none.
    """
    hidden = models.hidden_states(policy, params, rows, unseen)
    logprobs, _ = models.token_logprobs(
        policy, params, hidden, rows.tokens, temperature=temperature, shared=rows.shared
    )
    out = {"logprobs": logprobs}
    if critic.has_critic(params):
        out["values"] = critic.values(policy, params, rows, hidden, unseen)
    return out
