"""From questions to the episodes of a step: modes, roll-in, online filtering."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vrrl_jax.config import FilterConfig, ModesConfig, RollInConfig
from vrrl_jax.data.mixture import Numbered
from vrrl_jax.parallel.mesh import buffer_mesh, buffer_shardings, constrain_buffer, fetch
from vrrl_jax.rl import mixing, prefix_buffer
from vrrl_jax.rollout.episodes import Group
from vrrl_jax.types import Episode

# What the run's key is folded with first, so that no two uses of the seed meet.
MODES_KEY, PREFIX_KEY, MASK_KEY, SAMPLE_KEY, SHUFFLE_KEY = range(1, 6)
PREFIX_MASK_KEY, SELECT_KEY = range(6, 8)


def key_for(key: jax.Array, purpose: int, *numbers: int) -> jax.Array:
    """The run's key folded with a purpose and what it is drawn for (step, try)."""
    for number in (purpose, *numbers):
        key = jax.random.fold_in(key, number)
    return key


def question_order(seed: int, examples: int, epoch: int) -> np.ndarray:
    """The permutation of example ids that epoch `epoch` walks through."""
    return np.random.default_rng((seed, SHUFFLE_KEY, epoch)).permutation(examples)


def next_questions(
    seed: int, examples: Sequence[Any], cursor: int, count: int
) -> tuple[list[int], int]:
    """The next `count` ids from position `cursor` (counted over epochs) and the new position.

    A mixture has an order of its own; other examples are permuted anew every epoch.
    """
    if isinstance(examples, Numbered):
        return [examples.order(cursor + i) for i in range(count)], cursor + count
    ids: list[int] = []
    while len(ids) < count:
        epoch, offset = divmod(cursor, len(examples))
        taken = question_order(seed, len(examples), epoch)[offset : offset + count - len(ids)]
        ids += taken.tolist()
        cursor += len(taken)
    return ids, cursor


# --- prefixes ----------------------------------------------------------------------------------


def empty_prefixes(
    config: RollInConfig, reply_tokens: int, mesh: Mesh | None = None
) -> prefix_buffer.State:
    """An empty buffer for prefixes of up to max_prefix_turns replies of `reply_tokens` tokens.

    Over a mesh its payload is split by rows, its metadata replicated.
    """
    shape = (config.max_prefix_turns, reply_tokens)
    payload = {
        "tokens": jnp.zeros(shape, jnp.int32),
        "logprobs": jnp.zeros(shape, jnp.float32),
        "counts": jnp.zeros(shape[:1], jnp.int32),
    }
    if config.replay_commit:
        payload |= {
            "commit": jnp.zeros(shape[1:], jnp.int32),
            "commit_logprobs": jnp.zeros(shape[1:], jnp.float32),
            "commit_count": jnp.zeros((), jnp.int32),
        }
    empty = functools.partial(prefix_buffer.init, payload, config.capacity)
    if mesh is None:
        return empty()
    return jax.jit(empty, out_shardings=buffer_shardings(mesh, jax.eval_shape(empty)))()


def prefix_of(episode: Episode, config: RollInConfig) -> dict[str, Any] | None:
    """The prefix that an episode leaves behind: all its replies but the clean commit.

    None where the episode was rolled in itself (unless it failed and those are recycled), didn't
    end in a clean commit, or proposed more than `max_prefix_turns` times.
    """
    proposals = len(episode.texts) - 1
    recycled = config.recycle and not episode.rewards["commit_em"]
    if (episode.mode == "roll_in" and not recycled) or not episode.rewards["clean_commit"]:
        return None
    if not 1 <= proposals <= config.max_prefix_turns:
        return None
    replies = [(episode.tokens[a:b], episode.logprobs[a:b]) for a, b in episode.spans]
    return {
        "replies": replies[:proposals],
        "commit": replies[proposals],
        "question": episode.question,
        "turns": proposals,
        "right": bool(episode.rewards["commit_em"]),
    }


def gated(episodes: list[Episode], config: RollInConfig) -> list[Episode]:
    """The episodes of groups whose share of right commits lies inside the gate, all without one."""
    if config.gate is None:
        return episodes
    rights: dict[int, list[float]] = {}
    for episode in episodes:
        rights.setdefault(episode.group, []).append(episode.rewards["commit_em"])
    low, high = config.gate
    inside = {g for g, right in rights.items() if low < np.mean(right) < high}
    return [episode for episode in episodes if episode.group in inside]


def collect_prefixes(
    buffer: prefix_buffer.State,
    episodes: list[Episode],
    config: RollInConfig,
    step: int,
) -> tuple[prefix_buffer.State, int]:
    """Adds the prefixes of a rollout; (buffer, how many were offered). Shapes are fixed by the
    number of episodes, so that one program serves the run."""
    found = [prefix_of(episode, config) for episode in gated(episodes, config)]
    found = [prefix for prefix in found if prefix is not None]
    # Tokens of any reply are padded to the buffer's width.
    payload = jax.tree.map(
        lambda held: np.zeros((len(episodes), *held.shape[1:]), held.dtype), buffer.payload
    )
    metadata = {name: np.zeros(len(episodes), np.int32) for name in ("question", "turns", "right")}
    for i, prefix in enumerate(found):
        for u, (ids, values) in enumerate(prefix["replies"]):
            payload["tokens"][i, u, : len(ids)] = ids
            payload["logprobs"][i, u, : len(ids)] = values
            payload["counts"][i, u] = len(ids)
        if config.replay_commit:
            ids, values = prefix["commit"]
            payload["commit"][i, : len(ids)] = ids
            payload["commit_logprobs"][i, : len(ids)] = values
            payload["commit_count"][i] = len(ids)
        for name, values in metadata.items():
            values[i] = prefix[name]
    mask = np.arange(len(episodes)) < len(found)
    limit = config.max_per_question
    question, turns, right = metadata.values()
    buffer = _add(
        buffer, payload, question, turns, right != 0, step, mask, limit, buffer_mesh(buffer)
    )
    return buffer, len(found)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=8)
def _add(buffer, payload, question, turns, right, step, mask, max_per_question, mesh):
    buffer = prefix_buffer.add(
        buffer,
        payload,
        question=question,
        turns=turns,
        right=right,
        step=step,
        mask=mask,
        max_per_question=max_per_question,
    )
    return constrain_buffer(mesh, buffer)


@functools.partial(jax.jit, static_argnums=(2, 8), donate_argnums=0)
def _draw(buffer, key, n, step, min_size, wrong_ratio, max_staleness, count, mesh):
    """Samples with one restart: when unused prefixes run out, a new round begins."""
    limits = {"step": step, "min_size": min_size, "max_staleness": max_staleness}
    left = prefix_buffer.num_available(buffer, **limits)
    buffer = jax.lax.cond(left < count, prefix_buffer.reset_used, lambda b: b, buffer)
    buffer, slots, ok = prefix_buffer.sample(
        buffer, key, n, wrong_ratio=wrong_ratio, count=count, **limits
    )
    buffer = constrain_buffer(mesh, buffer)
    drawn = prefix_buffer.gather(buffer, slots)
    return buffer, drawn, ok, buffer.question[slots], buffer.turns[slots], buffer.right[slots]


# --- groups ------------------------------------------------------------------------------------


def make_groups(
    ids: list[int],
    examples: Sequence[Any],
    buffer: prefix_buffer.State | None,
    modes: ModesConfig,
    roll_in: RollInConfig,
    opening: str,
    key: jax.Array,
    step: int,
    attempt: int,
) -> tuple[list[Group], prefix_buffer.State | None]:
    """One group a question, each in the mode drawn for it.

    A rolled-in group takes everything (chat, pictures, truth) from its prefix's own question; the
    batch's question waits for no one and is not played.
    """
    n = len(ids)
    opening = opening if roll_in.force_think else ""
    weights = np.float32([modes.normal, modes.rtm, modes.roll_in])
    staleness = 2**30 if roll_in.max_staleness is None else roll_in.max_staleness
    drawn = fetch(mixing.draw_modes(key_for(key, MODES_KEY, step, attempt), n, weights))
    wanted = int((drawn == mixing.ROLL_IN).sum())
    prefixes: list[Group] = []
    if buffer is not None and wanted:
        prefix_key = key_for(key, PREFIX_KEY, step, attempt)
        least, ratio = roll_in.min_size, roll_in.wrong_ratio
        buffer, payload, ok, question, turns, right = _draw(
            buffer, prefix_key, n, step, least, ratio, staleness, wanted, buffer_mesh(buffer)
        )
        payload, ok, question, turns, right = fetch((payload, ok, question, turns, right))
        for i in np.flatnonzero(ok):
            stored = jax.tree.map(lambda a, i=i: a[i], payload)
            prefixes.append(
                rolled_in(
                    stored, int(question[i]), int(turns[i]), bool(right[i]), examples, opening
                )
            )
    groups = []
    for i, mode in zip(ids, drawn, strict=True):
        if mode == mixing.ROLL_IN and prefixes:
            groups.append(prefixes.pop())
            continue
        # Roll-in falls back to turn masking while the buffer is too small.
        name = mixing.MODES[mixing.RTM if mode == mixing.ROLL_IN else mode]
        groups.append(Group(question=i, example=examples[i], mode=name))
    return groups, buffer


def rolled_in(
    stored: dict[str, np.ndarray],
    question: int,
    turns: int,
    right: bool,
    examples: Sequence[Any],
    opening: str,
) -> Group:
    """The group that goes on from a stored prefix; after a wrong one it opens with `opening`."""
    counts = stored["counts"][:turns]
    cut = lambda name: tuple(stored[name][u, :c] for u, c in enumerate(counts))
    group = Group(
        question=question,
        example=examples[question],
        mode="roll_in",
        prefix=cut("tokens"),
        prefix_logprobs=cut("logprobs"),
        prefix_right=right,
        opening="" if right else opening,
    )
    if not (right and "commit" in stored):
        return group
    n = int(stored["commit_count"])
    commit = stored["commit"][:n], stored["commit_logprobs"][:n]
    return dataclasses.replace(group, commit=commit)


def open_groups(
    groups: list[Group],
    examples: Sequence[Any],
    open_group: Callable[[Group], Group],
    next_question: Callable[[int], tuple[int, int]],
    cursor: int,
    skipped: dict[int, str],
    most: int,
) -> tuple[list[Group], int]:
    """Groups with their opening turns made, others in place of those that can't be shown.

    Args:
      groups: as drawn.
      examples: where replacements come from.
      open_group: `rollout.episodes.open_group`; ValueError or OSError says what is wrong.
      next_question: cursor -> (example id, cursor after it).
      cursor: position in the stream of questions.
      skipped: example id -> why it can't be shown; added to.
      most: how many may be.

    Returns:
      (groups, the cursor after the replacements).

    Raises:
      ValueError: more than `most` can't be shown.
    """
    opened = []
    for group in groups:
        while True:
            try:
                opened.append(open_group(group))
                break
            except (ValueError, OSError) as error:
                skipped[group.question] = str(error)
            if len(skipped) > most:
                first = "\n  ".join(f"example {i}: {why}" for i, why in list(skipped.items())[:5])
                raise ValueError(
                    f"{len(skipped)} examples can't be shown, {most} may be:\n  {first}"
                )
            question, cursor = next_question(cursor)
            mode = "rtm" if group.mode == "roll_in" else group.mode
            group = Group(question=question, example=examples[question], mode=mode)
    return opened, cursor


@dataclasses.dataclass(frozen=True)
class Collected:
    """The episodes of a step.

    Attributes:
      episodes: those to train on, whole groups, at most `questions` of them.
      generated: every episode that was rolled out, filtered ones included.
      cursor: position in the stream of questions afterwards.
      buffer: the prefix buffer afterwards.
      metrics: counters and figures.
    """

    episodes: list[Episode]
    generated: list[Episode]
    cursor: int
    buffer: prefix_buffer.State | None
    metrics: dict[str, float]


def by_group(episodes: list[Episode], samples: int) -> list[list[Episode]]:
    """Episodes in order as one list a group."""
    return [episodes[i : i + samples] for i in range(0, len(episodes), samples)]


def keeps(group: list[Episode], config: FilterConfig) -> bool:
    """Whether a group's mean score lies strictly inside the filter's band."""
    mean = float(np.mean([e.rewards["total"] for e in group]))
    return config.low < mean < config.high


def collect(
    play: Callable[[list[Group], int], tuple[list[Episode], dict[str, float]]],
    draw_groups: Callable[[int, int, Any], tuple[list[Group], int, Any]],
    absorb: Callable[[Any, list[Episode]], tuple[Any, int]],
    *,
    cursor: int,
    buffer: Any,
    questions: int,
    samples: int,
    filtering: FilterConfig,
) -> Collected:
    """Rolls out until enough groups pass the filter, or its tries are spent.

    Args:
      play: (groups, try) -> (episodes, figures).
      draw_groups: (cursor, try, buffer) -> (groups, cursor, buffer).
      absorb: (buffer, episodes) -> (buffer, prefixes offered).
    """
    kept: list[list[Episode]] = []
    generated: list[Episode] = []
    offered = dropped = 0
    figures: list[dict[str, float]] = []
    tries = filtering.max_tries if filtering.enabled else 1
    for attempt in range(tries):
        groups, cursor, buffer = draw_groups(cursor, attempt, buffer)
        episodes, played = play(groups, attempt)
        figures.append(played)
        # Groups are numbered through the tries of a step.
        first = attempt * len(groups)
        episodes = [dataclasses.replace(e, group=e.group + first) for e in episodes]
        generated += episodes
        buffer, new = absorb(buffer, episodes)
        offered += new
        for group in by_group(episodes, samples):
            if filtering.enabled and not keeps(group, filtering):
                dropped += 1
            else:
                kept.append(group)
        if len(kept) >= questions:
            break
    seconds = sum(f["rollout_seconds"] for f in figures)
    sampled = sum(f["sampled_tokens"] for f in figures)
    metrics = {
        "rollout_seconds": seconds,
        "tokens_per_second": sampled / seconds,
        "count/rollouts": len(figures),
        "count/groups_filtered": dropped,
        "count/groups_left_over": max(0, len(kept) - questions),
        "count/prefixes_offered": offered,
        "count/roll_in_groups": sum(e.mode == "roll_in" for e in generated) // samples,
        "count/rtm_groups": sum(e.mode == "rtm" for e in generated) // samples,
    }
    for name in ("decode_occupancy", "prefill_occupancy"):
        if values := [f[name] for f in figures if name in f]:
            metrics[name] = float(np.mean(values))
    for name in sorted({name for f in figures for name in f if name.startswith("count/")}):
        metrics[name] = sum(f.get(name, 0) for f in figures)
    chosen = [episode for group in kept[:questions] for episode in group]
    return Collected(chosen, generated, cursor, buffer, metrics)
