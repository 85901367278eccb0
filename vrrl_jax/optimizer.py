"""The optimizer of a run: AdamW or Muon, a schedule, clipping."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vrrl_jax.config import OptimizerConfig
from vrrl_jax.models import critic
from vrrl_jax.models.lora import join_params, split_params
from vrrl_jax.parallel.rules import path_name

# Which leaves Muon orthogonalises, and over which axes: hidden matrices alone. optax labels 2-D
# leaves by default, which would leave every stacked kernel to Adam and give Muon the embedding.
MUON: tuple[tuple[str, contrib.MuonDimensionNumbers], ...] = (
    (r"(^|/)layers/.*kernel$", contrib.MuonDimensionNumbers(1, 2)),
    (r"visual/(blocks|deepstack)/.*kernel$", contrib.MuonDimensionNumbers(1, 2)),
    (r"visual/merger.*/kernel$", contrib.MuonDimensionNumbers(0, 1)),
)


def muon_dimensions(params: Any) -> Any:
    """Like `params`: the matrix axes of leaves that Muon updates, None where Adam does."""

    def numbers(path, leaf):
        del leaf
        name = path_name(path)
        return next((d for pattern, d in MUON if re.search(pattern, name)), None)

    return jax.tree_util.tree_map_with_path(numbers, params)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, linear or cosine; the last two fall to a share of the peak.

    `decay_fraction` is the share of the run, at its end, over which the rate falls.
    """
    peak = config.learning_rate
    warm = optax.linear_schedule(0.0, peak, max(1, config.warmup_steps))
    if config.schedule == "constant":
        tail = optax.constant_schedule(peak)
    else:
        falling = max(1, round(config.decay_fraction * steps))
        flat = max(0, steps - falling - config.warmup_steps)
        shape = (
            optax.linear_schedule(peak, peak * config.final_fraction, falling)
            if config.schedule == "linear"
            else optax.cosine_decay_schedule(peak, falling, config.final_fraction)
        )
        tail = optax.join_schedules([optax.constant_schedule(peak), shape], [flat])
    # Warm-up is shifted by one: the first update must not have rate 0, nor the last one.
    return optax.join_schedules([lambda count: warm(count + 1), tail], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, steps: int, critic_first: int = 0
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon (with AdamW for all that is no hidden matrix).

    Args:
      steps: updates of the run, over which the rate falls.
      critic_first: of these, updates at the start that change the critic alone. The policy's
        schedule begins after them.
    """
    core = _core(config, schedule(config, steps))
    if critic_first:
        after = _core(config, schedule(config, max(1, steps - critic_first)))
        core = critic_ahead(core, after, critic_first)
    clip = optax.identity()
    if config.grad_clip is not None:
        clip = optax.clip_by_global_norm(config.grad_clip)

    def hasten(updates):
        def scaled(path, update):
            faster = critic.is_head(path_name(path))
            return update * config.value_head_scale if faster else update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.chain(clip, core, optax.stateless(lambda updates, _: hasten(updates)))


def _core(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    if config.name == "muon":
        return contrib.muon(
            rate,
            beta=config.b1,
            weight_decay=config.weight_decay,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            adam_learning_rate=lambda count: rate(count) * config.adam_scale,
            muon_weight_dimension_numbers=muon_dimensions,
            # Updates of the same RMS as Adam's, whatever the matrix's shape (arXiv 2502.16982).
            consistent_rms=0.2,
        )
    return optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )


class Ahead(NamedTuple):
    """State of `critic_ahead`: updates so far, int32, and each part's own state."""

    count: jax.Array
    critic: Any
    policy: Any


def critic_ahead(
    of_critic: optax.GradientTransformation, of_policy: optax.GradientTransformation, updates: int
) -> optax.GradientTransformation:
    """One transformation for the critic, another for the policy that starts `updates` later.

    Gradients of zero wouldn't do: a policy without gradients still decays, and its moments would
    count the steps as taken, so that Adam's first steps came out too large.
    """
    parts = lambda tree: split_params(tree, critic.is_critic)

    def init(params):
        own, policy = parts(params)
        return Ahead(jnp.zeros((), jnp.int32), of_critic.init(own), of_policy.init(policy))

    def update(grads, state, params):
        (own_grads, grads), (own, policy) = parts(grads), parts(params)
        ahead, critic_state = of_critic.update(own_grads, state.critic, own)
        after, policy_state = of_policy.update(grads, state.policy, policy)
        begun = state.count >= updates
        choose = lambda new, old: jax.tree.map(lambda n, o: jnp.where(begun, n, o), new, old)
        after = choose(after, jax.tree.map(jnp.zeros_like, after))
        state = Ahead(state.count + 1, critic_state, choose(policy_state, state.policy))
        return join_params(ahead, after), state

    return optax.GradientTransformation(init, update)
