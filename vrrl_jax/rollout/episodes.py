"""Multi-turn episodes: host and device meet once a turn.

The host encodes a chunk a row (the reply's last token, the feedback turn, its picture), the
device appends it and decodes; the host parses and draws. Rolled-in turns go through the same two
programs: their stored reply simply opens the next chunk, and the row sits out the decoding.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from vrrl_jax import layout
from vrrl_jax.models.policy import Policy, View
from vrrl_jax.parallel.mesh import fetch, row_parts
from vrrl_jax.processing import encode
from vrrl_jax.processing.processor import Processor
from vrrl_jax.rollout import continuous, engine, rethinking, transcript
from vrrl_jax.rollout.continuous import Continuous
from vrrl_jax.rollout.rethinking import Rethinking
from vrrl_jax.rollout.transcript import Group, Row, Settings, Shapes
from vrrl_jax.types import Episode, Outcome, Prompt

__all__ = ["Environment", "Group", "Settings", "Shapes", "open_group", "plan_shapes", "rollout"]


class Environment(Protocol):
    """What answers a policy. `example` is whatever the data source holds.

    One whose answer depends on earlier replies too has, in place of `step`,
    `answer(example, texts) -> Outcome`: the answer to the last of an episode's replies.
    """

    def reset(self, example: Any) -> Prompt:
        """The opening turn."""

    def step(self, example: Any, text: str, turn: int) -> Outcome:
        """The answer to reply `turn` (0-based)."""


def answered(environment: Environment, example: Any, texts: Sequence[str]) -> Outcome:
    """What an environment answers to the last of an episode's replies."""
    if hasattr(environment, "answer"):
        return environment.answer(example, tuple(texts))
    return environment.step(example, texts[-1], len(texts) - 1)


def plan_shapes(
    policy: Policy,
    processor: Processor,
    environment: Environment,
    probes: Iterable[tuple[Any, str]],
    settings: Settings,
    *,
    roll_in: bool = False,
    rethink: Rethinking | None = None,
) -> Shapes:
    """Shapes that hold every episode over some examples.

    Args:
      probes: the largest examples, each with a well-formed reply that the environment answers with
        feedback (where an episode has one turn, any).
      roll_in: leaves room for rolled-in replies.
      rethink: leaves room for second thoughts.

    Raises:
      ValueError: no examples, the environment ends an episode at its probe, or a second thought
        in episodes of several turns.
    """
    prompts: list[encode.Chunk] = []
    follows: list[encode.Chunk] = []
    for example, probe in probes:
        prompts.append(encode.first_chunk(processor, environment.reset(example)))
        if settings.max_turns > 1:
            after = answered(environment, example, (probe,)).prompt
            if after is None:
                raise ValueError(f"the environment ends an episode at the probe {probe!r}")
            follows.append(encode.next_chunk(processor, after))
    if not prompts:
        raise ValueError("no examples to plan for")
    # The pending token, a forced end token, a forced opening; or a whole rolled-in reply.
    carry = 2 + 8 + (settings.max_new_tokens if roll_in else 0)
    turns = settings.max_turns
    prompt, follow = (max((c.tokens.size for c in cs), default=0) for cs in (prompts, follows))
    slots = prompt + turns * (settings.max_new_tokens + 1) + (turns - 1) * (follow + 10)
    if rethink is not None:
        rethinking.check(settings, rethink)
        trigger, more = rethinking.extra(processor, settings, rethink)
        carry, slots = max(carry, trigger), slots + more
    place = policy.config.layout
    shown = [c.pictures for c in (*prompts, *follows)]
    sizes = [layout.slot_patches(p.grid, place) for pictures in shown for p in pictures]
    return Shapes(
        # Rounded and no more: a recipe has one set of shapes, so coarse buckets would only pad.
        prompt=layout.round_up(prompt, 8),
        follow=layout.round_up(follow + carry, 8),
        patches=max(sizes, default=place.block),
        slots=layout.round_up(slots, 32),
        pictures=max(1, *map(len, shown)),
        features=processor.images.features,
    )


def rollout(
    policy: Policy,
    view: View,
    processor: Processor,
    environment: Environment,
    groups: list[Group],
    settings: Settings,
    shapes: Shapes,
    key: jax.Array,
    step: int,
    score: Callable[..., dict[str, float]],
    rethink: Rethinking | None = None,
    in_flight: Continuous | None = None,
) -> tuple[list[Episode], dict[str, float]]:
    """Plays every group's n episodes to their ends.

    Args:
      view: from `engine.make_view`, of the current parameters.
      groups: one a question; their number is a static shape.
      shapes: from `plan_shapes`.
      key, step: with question, sample and turn they seed every token.
      score: (texts, example, group) -> named rewards.
      rethink: makes replies think again, in episodes of one turn.
      in_flight: how many episodes are under way at a time; None: all of them, turn by turn.

    Returns:
      (episodes, group by group, sample by sample; figures of the rollout).

    Raises:
      ValueError: a chunk is larger than its planned shape, or a row's cache than its slots; a
        second thought in episodes of several turns, or with `in_flight`.
    """
    if rethink is not None:
        rethinking.check(settings, rethink)
    started = time.perf_counter()
    rows = [Row(g, s, spec) for g, spec in enumerate(groups) for s in range(settings.samples)]
    for row in rows:
        row.opening = row.spec.opening if row.spec.prefix else ""
    samples = streams(rows, settings.samples)
    _open(rows, environment, processor, settings)
    play = (policy, view, processor, functools.partial(answered, environment), rows, samples)
    how = (settings, shapes, key, step)
    if in_flight is not None:
        if rethink is not None:
            raise ValueError("second thoughts need a row for every episode: leave in_flight out")
        figures = continuous.play(*play, *how, in_flight)
        return [transcript.finish(row, score) for row in rows], _timed(figures, started)
    state, figures = _together(*play, *how)
    episodes = [transcript.finish(row, score) for row in rows]
    if rethink is not None:
        episodes, counts = rethinking.rethink(
            policy, view, processor, state, rows, episodes, samples, *how, score, rethink
        )
        for name in ("sampled_tokens", "decode_steps"):
            figures[name] += counts.pop(name)
        figures |= counts
    # Share of row-steps of decoding that produced a token of an unfinished row.
    figures["decode_occupancy"] = figures["sampled_tokens"] / max(
        1, figures["decode_steps"] * len(rows)
    )
    return episodes, _timed(figures, started)


def _timed(figures: dict[str, float], started: float) -> dict[str, float]:
    seconds = time.perf_counter() - started
    return figures | {
        "rollout_seconds": seconds,
        "tokens_per_second": figures["sampled_tokens"] / seconds,
    }


def _together(
    policy: Policy,
    view: View,
    processor: Processor,
    answer: continuous.Answer,
    rows: list[Row],
    samples: np.ndarray,
    settings: Settings,
    shapes: Shapes,
    key: jax.Array,
    step: int,
) -> tuple[engine.State, dict[str, float]]:
    """Every episode in a row of its own, turn by turn: the rows' last state, and figures."""
    groups = len({row.group for row in rows})
    questions = np.array([row.spec.question for row in rows], np.int32)
    stops = np.array(policy.stop_ids or (-1,), np.int32)
    state = None
    sampled = decode_steps = appended = room = 0
    for turn in range(settings.max_turns):
        if all(row.done for row in rows):
            break
        if turn == 0:
            # One prefill a group: its rows are copies of one another.
            copies = prefill_copies(policy, groups, settings.samples)
            leaders = [row for row in rows if row.sample < copies]
            chunk = transcript.chunk_of(
                policy, leaders, shapes.prompt, shapes, settings.max_new_tokens
            )
            appended += int(chunk.count.sum())
            room += chunk.tokens.size
            state = engine.init(policy, len(leaders), shapes.slots)
            state = engine.append(policy, view, state, transcript.to_device(policy, chunk))
            state = engine.repeat(policy, state, settings.samples // copies)
            for row in rows:
                transcript.appended(policy, row)
        else:
            for row in rows:
                if not row.done:
                    transcript.feedback(row, turn, processor, settings)
            chunk = transcript.chunk_of(
                policy, rows, shapes.follow, shapes, settings.max_new_tokens
            )
            appended += int(chunk.count.sum())
            room += chunk.tokens.size
            state = engine.append(policy, view, state, transcript.to_device(policy, chunk))
            for row in rows:
                if not row.done:
                    transcript.appended(policy, row)
        active = np.array([not row.done and turn >= len(row.stored) for row in rows])
        keys = engine.make_keys(key, step, questions, samples, turn)
        state, decoded = engine.decode(
            policy,
            view,
            state,
            active,
            keys,
            settings.sampling,
            stops,
            settings.max_new_tokens,
            settings.max_new_tokens,
        )
        decoded = fetch(decoded)
        sampled += int(decoded.lengths.sum())
        decode_steps += int(decoded.lengths.max())
        for b, row in enumerate(rows):
            if row.done:
                continue
            if active[b]:
                transcript.sampled(row, turn, decoded, b, processor, settings)
            else:
                transcript.rolled_in(row, turn, processor, settings)
            outcome = answer(row.spec.example, row.texts)
            row.done, row.prompt = outcome.done, outcome.prompt
    return state, {
        "sampled_tokens": sampled,
        "decode_steps": decode_steps,
        "prefill_occupancy": appended / max(1, room),
    }


def streams(rows: list[Row], samples: int) -> np.ndarray:
    """The sample number that seeds each row: int32 [B], unlike any other of its question.

    A rolled-in group may continue a question that also runs afresh, and a small data source comes
    round within a step: neither may repeat the other's draws.
    """
    played, first = collections.Counter(), {}
    for row in rows:
        kind = row.spec.question, bool(row.spec.prefix)
        if row.sample == 0:
            first[row.group] = samples * (2 * played[kind] + kind[1])
            played[kind] += 1
    return np.array([first[row.group] + row.sample for row in rows], np.int32)


def prefill_copies(policy: Policy, groups: int, samples: int) -> int:
    """Rows a group in the opening prefill: on a mesh the fewest that split over it."""
    parts = row_parts(policy.mesh)
    fits = lambda copies: samples % copies == 0 and groups * copies % parts == 0
    return next(filter(fits, range(1, samples + 1)), samples)


def open_group(
    policy: Policy, environment: Environment, processor: Processor, shapes: Shapes, group: Group
) -> Group:
    """The group with its opening turn drawn, read and encoded.

    Raises:
      ValueError, OSError: the example can't be shown, or its opening exceeds the plan.
    """
    prompt, chunk = _opening(environment, processor, group)
    place = policy.config.layout
    patches = max((layout.slot_patches(p.grid, place) for p in chunk.pictures), default=0)
    for what, size, room in (
        ("tokens", chunk.tokens.size, shapes.prompt),
        ("pictures", len(chunk.pictures), shapes.pictures),
        ("patches in a picture", patches, shapes.patches),
    ):
        if size > room:
            raise ValueError(f"its opening turn has {size} {what}, the plan holds {room}")
    return dataclasses.replace(group, opened=(prompt, chunk))


def _opening(environment, processor, group: Group) -> tuple[Prompt, encode.Chunk]:
    prompt = environment.reset(group.example)
    return prompt, encode.first_chunk(processor, prompt)


def _open(rows, environment, processor, settings) -> None:
    """The opening chunk of every group, shared by its rows."""
    opened = {}
    for row in rows:
        if row.group not in opened:
            opened[row.group] = row.spec.opened or _opening(environment, processor, row.spec)
        row.say(*opened[row.group], 0, settings.keep_images)
