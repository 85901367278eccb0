"""Which samples each optimizer step trains on: fresh ones, repeated ones, those of earlier steps.

A choice is a multiplicity a sample and step: what is drawn k times weighs k in the loss, and
nothing is copied.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vrrl_jax import trajectories
from vrrl_jax.collect import SELECT_KEY, key_for
from vrrl_jax.config import ReplayConfig, TrainConfig
from vrrl_jax.parallel.mesh import buffer_mesh, constrain_buffer, fetch, row_parts
from vrrl_jax.rl import replay, selection
from vrrl_jax.types import Episode

# Added to |advantage| where VL-Rethinker's released code fills up from its ring.
OFFSET = 1e-4


@dataclasses.dataclass(frozen=True)
class Samples:
    """Labelled episodes.

    Attributes:
      episodes: N of them.
      fields: float32 [N, S] each: loss_mask, actor (the weight of a token in the policy's loss, any
        masking mechanism included), logprobs, advantages; where there is a use for them hidden,
        ref_logprobs, values, returns, rewards, nll.
      advantage: float32 [N], of an episode as a whole.
    """

    episodes: list[Episode]
    fields: dict[str, np.ndarray]
    advantage: np.ndarray

    def joined(self, other: Samples) -> Samples:
        """These, then the others."""
        fields = {k: np.concatenate([v, other.fields[k]]) for k, v in self.fields.items()}
        advantage = np.concatenate([self.advantage, other.advantage])
        return Samples(self.episodes + other.episodes, fields, advantage)


class Choice(NamedTuple):
    """What a step trains on.

    Attributes:
      steps: int [fresh + stored] for each optimizer step, how often it trains on a sample.
      stored: samples of earlier steps, or of earlier draws; they follow the fresh ones.
      memory: the ring afterwards.
      metrics: counters and figures.
    """

    steps: list[np.ndarray]
    stored: Samples
    memory: replay.State | None
    metrics: dict[str, float]


def field_names(config: TrainConfig) -> tuple[str, ...]:
    """The fields of a run's samples, hence of its ring."""
    algorithm, names = config.algorithm, ["loss_mask", "actor", "logprobs", "advantages"]
    if config.prefix_mask.hides:
        names += ["hidden"]
    if algorithm.kl_coefficient and algorithm.kl_in == "loss":
        names += ["ref_logprobs"]
    if algorithm.name == "ppo":
        names += ["values", "returns", "rewards"]
    if config.rethinking.nll:
        names += ["nll"]
    return tuple(names)


def empty_memory(config: TrainConfig, slots: int, mesh: Mesh | None = None) -> replay.State | None:
    """The ring that a run needs, None where it keeps nothing."""
    if not config.replay.holds:
        return None
    samples = config.rollout.questions * config.rollout.samples
    capacity = config.replay.size(samples, row_parts(mesh))
    return trajectories.empty(slots, config.env.max_turns, field_names(config), capacity, mesh)


def choose(
    config: TrainConfig,
    fresh: Samples,
    memory: replay.State | None,
    key: jax.Array,
    step: int,
    recall: Callable[[dict[str, Any]], Episode] | None,
) -> Choice:
    """The samples of each optimizer step of a training step.

    Args:
      config: the recipe.
      fresh: this rollout's, at most questions x samples of them.
      memory: the ring, donated; None where nothing is kept.
      key: the run's.
      step: of the run.
      recall: the episode of a stored row.
    """
    wanted, key = config.replay, key_for(key, SELECT_KEY, step)
    rows = config.rollout.questions * config.rollout.samples
    parts, n = config.algorithm.minibatches, len(fresh.episodes)
    metrics: dict[str, float] = {}
    memory = _remembered(config, fresh, memory, step, rows, metrics)
    found: dict[int, dict[str, Any]] = {}  # serial -> row of the ring that isn't fresh
    located = functools.partial(_located, first=step * rows, fresh=n, found=found)
    if wanted.method == "ssr" and wanted.preset == "paper":
        keys = jax.random.split(key, config.algorithm.epochs * parts)
        places = [located(_draw(memory, k, rows // parts, True, wanted.alpha)) for k in keys]
        steps = [_copies(place, n + len(found)) for place in places]
    else:
        counts, drawn = _of_a_rollout(wanted, fresh, memory, key, rows)
        places = located(drawn)
        whole = _copies(places, n + len(found))
        whole[:n] += counts[:n]
        groups = [e.group for e in fresh.episodes] + [-1 - i for i in range(len(found))]
        steps = [
            whole * part
            for epoch in range(config.algorithm.epochs)
            for part in minibatches(groups, whole > 0, parts, (config.seed, step, epoch))
        ]
    if wanted.clear and memory is not None:
        memory = _clear(memory)
    stored = _stored(list(found.values()), fresh, recall)
    total = np.sum(steps, axis=0)
    advantage = np.concatenate([fresh.advantage, stored.advantage])
    # A multiple of a rollout's rows: few shapes, few programs.
    rest = (0, -len(total) % rows)
    metrics["effective_batch"] = float(
        _effective_batch(np.pad(advantage, rest), np.pad(total, rest))
    )
    metrics["count/replayed"] = int(total[n:].sum())
    if found:
        ages = [step - int(row["step"]) for row in found.values()]
        metrics["replayed_age"] = float(np.average(ages, weights=total[n:]))
    return Choice(steps, stored, memory, metrics)


def _of_a_rollout(
    wanted: ReplayConfig,
    fresh: Samples,
    memory: replay.State | None,
    key: jax.Array,
    rows: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """How often a pass over a rollout trains on each fresh sample, [rows], and rows of the ring."""
    n = len(fresh.episodes)
    counts = (np.arange(rows) < n).astype(np.int64)
    priority = np.pad(fresh.advantage, (0, rows - n))
    if wanted.method == "filter":
        return fetch(_filtered(key, priority, counts)), []
    if wanted.method == "ssr":
        half = max(1, rows // 2)
        counts, missing = fetch(_code_split(key, priority, half, counts))
        return counts, _draw(memory, key, half, True, 1.0, OFFSET)[: int(missing)]
    if wanted.method == "mix" and int(fetch(memory.size)) > rows:
        return counts, _draw(memory, key, rows, False, 0.0)
    return counts, []


def minibatches(
    groups: Sequence[Hashable], wanted: np.ndarray, parts: int, seed: tuple[int, ...]
) -> list[np.ndarray]:
    """Masks [N] of each optimizer step's samples: whole groups, shuffled where there are several.

    Args:
      groups: [N], the group of each sample.
      wanted: bool [N]; groups without any wanted sample are left out.
      parts: optimizer steps, or as many as there are groups, if that is fewer.
    """
    if parts == 1:
        return [np.ones(len(groups), np.int64)]
    alive = list(dict.fromkeys(g for g, w in zip(groups, wanted, strict=True) if w))
    order = np.random.default_rng(seed).permutation(len(alive))
    parts = max(1, min(parts, len(alive)))
    chosen = [{alive[i] for i in part} for part in np.array_split(order, parts)]
    return [np.array([g in part for g in groups], np.int64) for part in chosen]


# --- the ring ------------------------------------------------------------------------------------


def _remembered(config, fresh, memory, step, rows, metrics) -> replay.State | None:
    """The ring with this rollout's samples in it and those past their lifetime out of it."""
    if memory is None:
        return None
    lifetime, n = config.replay.rollouts(), len(fresh.episodes)
    if lifetime is not None:
        memory = _expire(memory, step - lifetime, buffer_mesh(memory))
    # A sample without a signal is never drawn by its advantage; evenly drawn ones may be any.
    mixes = config.replay.method == "mix"
    kept = np.arange(n) if mixes else np.flatnonzero(fresh.advantage)
    batch = trajectories.rows(
        [fresh.episodes[i] for i in kept],
        {name: values[kept] for name, values in fresh.fields.items()},
        memory.payload["tokens"].shape[1],
        memory.payload["spans"].shape[1],
        advantage=fresh.advantage[kept],
        serials=step * rows + kept,
        step=step,
        count=rows,
    )
    wanted = np.arange(rows) < len(kept)
    memory = trajectories.add(memory, batch, wanted, np.abs(batch["advantage"]))
    metrics["count/remembered"] = len(kept)
    priority, size = fetch((memory.priority, memory.size))
    held = priority[:size]
    metrics["replay_size"] = int(np.isfinite(held).sum())  # those past their lifetime aren't
    return memory


def _draw(memory, key, n, replacement, exponent, offset=0.0) -> list[dict[str, Any]]:
    """n rows of the ring, or as many as can be drawn."""
    rows, ok = trajectories.draw(
        memory, key, n, replacement=replacement, exponent=exponent, offset=offset
    )
    return [jax.tree.map(lambda a, i=i: a[i], rows) for i in np.flatnonzero(ok)]


@functools.partial(jax.jit, donate_argnums=0, static_argnums=2)
def _expire(memory: replay.State, last: int, mesh: Mesh | None) -> replay.State:
    """Samples of step `last` and before are never drawn again: their priority isn't a number."""
    old = memory.payload["step"] <= last
    memory = memory._replace(priority=jnp.where(old, jnp.nan, memory.priority))
    return constrain_buffer(mesh, memory)


_clear = jax.jit(replay.clear, donate_argnums=0)
_filtered = jax.jit(selection.filtered)
_effective_batch = jax.jit(selection.effective_batch)
_code_split = jax.jit(selection.code_split, static_argnums=2)


def _located(
    drawn: list[dict[str, Any]], *, first: int, fresh: int, found: dict[int, dict[str, Any]]
) -> list[int]:
    """Where drawn rows stand: a fresh sample at its place, each other one once, after those.

    Args:
      drawn: rows of the ring.
      first: serial of the first fresh sample.
      fresh: how many there are.
      found: serial -> row of those that aren't fresh, in the order of their places; added to.
    """
    out = []
    for row in drawn:
        serial = int(row["serial"])
        if 0 <= serial - first < fresh:
            out.append(serial - first)
            continue
        found.setdefault(serial, row | {"place": fresh + len(found)})
        out.append(found[serial]["place"])
    return out


def _stored(
    rows: list[dict[str, Any]], fresh: Samples, recall: Callable[[dict[str, Any]], Episode] | None
) -> Samples:
    """Rows of the ring as samples."""
    fields = {
        name: np.stack([row["fields"][name] for row in rows]) if rows else values[:0]
        for name, values in fresh.fields.items()
    }
    advantage = np.array([row["advantage"] for row in rows], np.float32)
    return Samples([recall(row) for row in rows], fields, advantage)


def _copies(places: list[int], total: int) -> np.ndarray:
    return np.bincount(np.asarray(places, np.int64), minlength=total)
