"""The optimizer of a run: AdamW or Muon, a schedule, clipping."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
from optax import contrib

from vrrl_jax.config import OptimizerConfig
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
    """Linear warm-up, then constant, linear or cosine; the last two fall to zero.

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
            optax.linear_schedule(peak, 0.0, falling)
            if config.schedule == "linear"
            else optax.cosine_decay_schedule(peak, falling)
        )
        tail = optax.join_schedules([optax.constant_schedule(peak), shape], [flat])
    # Warm-up is shifted by one: the first update must not have rate 0, nor the last one.
    return optax.join_schedules([lambda count: warm(count + 1), tail], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon (with AdamW for all that is no hidden matrix)."""
    rate = schedule(config, steps)
    if config.name == "muon":
        core = contrib.muon(
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
    else:
        core = optax.adamw(
            rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
        )
    clip = optax.identity()
    if config.grad_clip is not None:
        clip = optax.clip_by_global_norm(config.grad_clip)

    def hasten(updates):
        def scaled(path, update):
            faster = path_name(path).startswith("value_head")
            return update * config.value_head_scale if faster else update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.chain(clip, core, optax.stateless(lambda updates, _: hasten(updates)))
