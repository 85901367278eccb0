"""Multi-turn episodes: host and device meet once a turn.

The host encodes a chunk a row (the reply's last token, the feedback turn, its picture), the
device appends it and decodes; the host parses and draws. Rolled-in turns go through the same two
programs: their stored reply simply opens the next chunk, and the row sits out the decoding.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np

from vrrl_jax import layout
from vrrl_jax.models.policy import Policy, View
from vrrl_jax.parallel.mesh import put_rows, row_parts
from vrrl_jax.processing import encode
from vrrl_jax.processing.processor import Processor
from vrrl_jax.processing.processor import decode as decode_text
from vrrl_jax.processing.processor import encode as encode_text
from vrrl_jax.rollout import engine
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Episode, Pictures


class Environment(Protocol):
    """What answers a policy. `example` is whatever the data source holds."""

    def reset(self, example: Any) -> Any:
        """The opening prompt: `.text` and `.picture` (uint8 [H, W, 3])."""

    def step(self, example: Any, text: str, turn: int) -> Any:
        """The answer to reply `turn` (0-based): `.done` and, if not done, `.prompt`."""


@dataclasses.dataclass(frozen=True)
class Group:
    """The n episodes of one question.

    Attributes:
      question: global id of the example.
      example: what the environment needs.
      mode: "normal", "rtm" or "roll_in".
      prefix: token ids of rolled-in replies, end tokens included, one array a turn.
      prefix_logprobs: their behaviour log-probabilities, likewise.
      prefix_right: whether the last rolled-in proposal is right.
      opening: text forced at the start of the first turn that is sampled.
    """

    question: int
    example: Any
    mode: str = "normal"
    prefix: tuple[np.ndarray, ...] = ()
    prefix_logprobs: tuple[np.ndarray, ...] = ()
    prefix_right: bool = False
    opening: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How episodes are rolled out.

    Attributes:
      samples: episodes a question, n.
      max_turns: replies an episode, rolled-in ones included.
      max_new_tokens: sampled tokens a reply.
      sampling: how tokens are drawn.
      train_prefix: whether rolled-in replies carry loss.
      train_end: whether the sampled end token of a reply carries loss; without it nothing teaches
        the policy to stop.
      keep_images: keep the uint8 pictures in the episodes, for people.
    """

    samples: int
    max_turns: int
    max_new_tokens: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    train_prefix: bool = False
    train_end: bool = True
    keep_images: bool = False


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Static shapes of a rollout, all its programs compiled once for them.

    Attributes:
      prompt: tokens of the opening chunk.
      follow: tokens of a later chunk, room for a rolled-in reply included.
      patches: patch slots of a picture.
      slots: cache slots of a row.
    """

    prompt: int
    follow: int
    patches: int
    slots: int


@dataclasses.dataclass
class _Row:
    """An episode in flight. `carry` are tokens of the transcript that no cache holds yet."""

    group: int
    sample: int
    spec: Group
    position: int = 0
    filled: int = 0
    carry: list[int] = dataclasses.field(default_factory=list)
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    mask: list[np.ndarray] = dataclasses.field(default_factory=list)
    turns: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    pictures: list[Any] = dataclasses.field(default_factory=list)
    images: list[np.ndarray] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    size: int = 0
    prompt: Any = None
    opening: str = ""
    done: bool = False
    truncated: bool = False

    def record(self, tokens, turn: int, mask: float = 0.0, logprobs=None) -> None:
        n = len(tokens)
        self.size += n
        self.tokens.append(np.asarray(tokens, np.int32))
        self.mask.append(np.full(n, mask, np.float32))
        self.turns.append(np.full(n, turn, np.int32))
        empty = np.zeros(n, np.float32)
        self.logprobs.append(empty if logprobs is None else np.float32(logprobs))


def plan_shapes(
    policy: Policy,
    processor: Processor,
    environment: Environment,
    examples: Iterable[Any],
    settings: Settings,
    *,
    roll_in: bool = False,
    probe: str = "<ANSWER>up</ANSWER>",
) -> Shapes:
    """Shapes that hold every episode over `examples`; give the largest ones.

    Args:
      probe: a well-formed reply that an environment answers with feedback.

    Raises:
      ValueError: no examples, or the environment ends an episode at the probe.
    """
    place = policy.config.layout
    prompt = follow = patches = 0
    for example in examples:
        first = environment.reset(example)
        chunk = encode.first_chunk(processor, first.text, first.picture)
        prompt = max(prompt, chunk.tokens.size)
        patches = max(patches, layout.slot_patches(chunk.picture.grid, place))
        if settings.max_turns > 1:
            after = environment.step(example, probe, 0).prompt
            if after is None:
                raise ValueError(f"the environment ends an episode at the probe {probe!r}")
            chunk = encode.next_chunk(processor, after.text, after.picture)
            follow = max(follow, chunk.tokens.size)
            patches = max(patches, layout.slot_patches(chunk.picture.grid, place))
    if not prompt:
        raise ValueError("no examples to plan for")
    # The pending token, a forced end token, a forced opening; or a whole rolled-in reply.
    carry = 2 + 8 + (settings.max_new_tokens if roll_in else 0)
    turns = settings.max_turns
    slots = prompt + turns * (settings.max_new_tokens + 1) + (turns - 1) * (follow + 10)
    return Shapes(
        # Rounded and no more: a recipe has one set of shapes, so coarse buckets would only pad.
        prompt=layout.round_up(prompt, 8),
        follow=layout.round_up(follow + carry, 8),
        patches=patches,
        slots=layout.round_up(slots, 32),
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
) -> tuple[list[Episode], dict[str, float]]:
    """Plays every group's n episodes to their ends.

    Args:
      view: from `engine.make_view`, of the current parameters.
      groups: one a question; their number is a static shape.
      shapes: from `plan_shapes`.
      key, step: with question, sample and turn they seed every token.
      score: (texts, example, group) -> named rewards.

    Returns:
      (episodes, group by group, sample by sample; figures of the rollout).

    Raises:
      ValueError: a chunk is larger than its planned shape, or a row's cache than its slots.
    """
    started = time.perf_counter()
    rows = [_Row(g, s, spec) for g, spec in enumerate(groups) for s in range(settings.samples)]
    for row in rows:
        row.opening = row.spec.opening if row.spec.prefix else ""
    questions = np.array([row.spec.question for row in rows], np.int32)
    samples = _streams(rows, settings.samples)
    stops = np.array(policy.stop_ids or (-1,), np.int32)
    state = None
    sampled = decode_steps = 0
    for turn in range(settings.max_turns):
        if all(row.done for row in rows):
            break
        if turn == 0:
            # One prefill a group: its rows are copies of one another.
            copies = _copies(policy, len(groups), settings.samples)
            leaders = [row for row in rows if row.sample < copies]
            _open(rows, environment, processor, settings)
            chunk = _chunk(policy, leaders, shapes.prompt, shapes, settings.max_new_tokens)
            state = engine.init(policy, len(leaders), shapes.slots)
            state = engine.append(policy, view, state, _place(policy, chunk))
            state = engine.repeat(policy, state, settings.samples // copies)
            for row in rows:
                _appended(policy, row)
        else:
            for row in rows:
                if not row.done:
                    _feedback(row, turn, processor, settings)
            chunk = _chunk(policy, rows, shapes.follow, shapes, settings.max_new_tokens)
            state = engine.append(policy, view, state, _place(policy, chunk))
            for row in rows:
                if not row.done:
                    _appended(policy, row)
        active = np.array([not row.done and turn >= len(row.spec.prefix) for row in rows])
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
        decoded = jax.device_get(decoded)
        sampled += int(decoded.lengths.sum())
        decode_steps += int(decoded.lengths.max())
        for b, row in enumerate(rows):
            if row.done:
                continue
            if active[b]:
                _sampled(row, turn, decoded, b, processor, settings)
            else:
                _rolled_in(row, turn, processor, settings)
            outcome = environment.step(row.spec.example, row.texts[-1], turn)
            row.done, row.prompt = outcome.done, outcome.prompt
    episodes = [_finish(row, score) for row in rows]
    seconds = time.perf_counter() - started
    return episodes, {
        "rollout_seconds": seconds,
        "sampled_tokens": sampled,
        "tokens_per_second": sampled / seconds,
        "decode_steps": decode_steps,
        # Share of row-steps of decoding that produced a token of an unfinished row.
        "decode_occupancy": sampled / max(1, decode_steps * len(rows)),
    }


def _streams(rows: list[_Row], samples: int) -> np.ndarray:
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


def _copies(policy: Policy, groups: int, samples: int) -> int:
    """Rows a group in the opening prefill: on a mesh the fewest that split over it."""
    parts = row_parts(policy.mesh)
    fits = lambda copies: samples % copies == 0 and groups * copies % parts == 0
    return next(filter(fits, range(1, samples + 1)), samples)


def _open(rows, environment, processor, settings) -> None:
    """The opening chunk of every group, shared by its rows."""
    chunks = {}
    for row in rows:
        if row.group not in chunks:
            prompt = environment.reset(row.spec.example)
            chunks[row.group] = encode.first_chunk(processor, prompt.text, prompt.picture)
        chunk = chunks[row.group]
        row.record(chunk.tokens, 0)
        row.carry = chunk.tokens.tolist()
        row.pictures.append(chunk.picture)
        if settings.keep_images:
            row.images.append(chunk.image)


def _feedback(row: _Row, turn: int, processor: Processor, settings: Settings) -> None:
    """Adds the user turn with its picture, and a forced opening where one is due."""
    chunk = encode.next_chunk(processor, row.prompt.text, row.prompt.picture)
    row.record(chunk.tokens, turn)
    row.carry = [*row.carry, *chunk.tokens.tolist()]
    row.pictures.append(chunk.picture)
    if settings.keep_images:
        row.images.append(chunk.image)
    if row.opening and turn == len(row.spec.prefix):
        forced = encode_text(processor, row.opening)
        row.record(forced, turn)
        row.carry += forced


def _chunk(
    policy: Policy, rows: list[_Row], width: int, shapes: Shapes, budget: int
) -> engine.Chunk:
    """The rows' carried tokens, right-padded, with the newest picture of each."""
    place = policy.config.layout
    b = len(rows)
    tokens = np.zeros((b, width), np.int32)
    position = np.zeros((3, b, width), np.int32)
    count, after = np.zeros(b, np.int32), np.zeros(b, np.int32)
    source = np.full((b, width), -1, np.int32)
    shown = [[] if row.done else row.pictures[-1:] for row in rows]
    data, coords, segments, sources = layout.pack_pictures(shown, place, 1, shapes.patches)
    for i, row in enumerate(rows):
        if row.done:
            continue
        n = len(row.carry)
        if n > width:
            raise ValueError(
                f"question {row.spec.question}: a chunk of {n} tokens, the plan holds {width}"
            )
        # Writes past the end of a cache are dropped: later tokens would see another text.
        if row.filled + n + budget - 1 > shapes.slots:
            raise ValueError(
                f"question {row.spec.question}: {row.filled + n} tokens and a reply of {budget} "
                f"exceed the {shapes.slots} slots of the plan"
            )
        tokens[i, :n] = row.carry
        grids = [p.grid for p in shown[i]]
        position[:, i, :n], after[i] = layout.positions(tokens[i, :n], grids, place, row.position)
        source[i, :n][tokens[i, :n] == place.image_id] = sources[i][0]
        count[i] = n
    return engine.Chunk(tokens, count, position, after, Pictures(data, coords, segments, source))


def _place(policy: Policy, chunk: engine.Chunk) -> engine.Chunk:
    """Host arrays to the device; over a mesh, rows over (data, fsdp)."""
    if policy.mesh is None:
        return chunk
    placed = put_rows(policy.mesh, chunk._replace(positions=None))
    return placed._replace(positions=put_rows(policy.mesh, chunk.positions, axis=1))


def _appended(policy: Policy, row: _Row) -> None:
    """Books what an append put into the cache."""
    place = policy.config.layout
    grids = [row.pictures[-1].grid]
    _, row.position = layout.positions(np.array(row.carry), grids, place, row.position)
    row.filled += len(row.carry)
    row.carry = []


def _sampled(
    row: _Row, turn: int, decoded, b: int, processor: Processor, settings: Settings
) -> None:
    """Books a sampled reply; one that its budget cut gets a forced end without loss."""
    n = int(decoded.lengths[b])
    tokens = decoded.tokens[b, :n]
    opening = row.opening if turn == len(row.spec.prefix) else ""
    start = row.size - len(encode_text(processor, opening))
    row.record(tokens, turn, 1.0, decoded.logprobs[b, :n])
    if decoded.stopped[b] and not settings.train_end:
        row.mask[-1][-1] = 0.0
    # All but the last sampled token were fed back and lie in the cache.
    row.filled += n - 1
    row.position += n - 1
    row.carry = [int(tokens[-1])]
    spoken = tokens[:-1] if decoded.stopped[b] else tokens
    row.texts.append(opening + decode_text(processor, spoken))
    end = processor.ids.im_end
    if row.carry[-1] != end:
        row.truncated |= not bool(decoded.stopped[b])
        row.record([end], turn)
        row.carry.append(end)
    row.spans.append((start, row.size))


def _rolled_in(row: _Row, turn: int, processor: Processor, settings: Settings) -> None:
    """Books a stored reply as if it had been spoken."""
    tokens, logprobs = row.spec.prefix[turn], row.spec.prefix_logprobs[turn]
    row.record(tokens, turn, float(settings.train_prefix), logprobs)
    # A forced token has no behaviour log-probability, hence no ratio.
    row.mask[-1][np.asarray(logprobs) == 0] = 0.0
    if not settings.train_end:
        row.mask[-1][-1] = 0.0
    row.spans.append((row.size - len(tokens), row.size))
    row.carry = [int(t) for t in tokens]
    row.texts.append(decode_text(processor, tokens))


def _finish(row: _Row, score: Callable[..., dict[str, float]]) -> Episode:
    """The record of a finished episode, scored."""
    return Episode(
        question=row.spec.question,
        sample=row.sample,
        group=row.group,
        tokens=np.concatenate(row.tokens),
        loss_mask=np.concatenate(row.mask),
        turn_index=np.concatenate(row.turns),
        logprobs=np.concatenate(row.logprobs),
        pictures=tuple(row.pictures),
        texts=tuple(row.texts),
        spans=tuple(row.spans),
        rewards=score(tuple(row.texts), row.spec.example, row.spec),
        mode=row.spec.mode,
        prefix_turns=len(row.spec.prefix),
        prefix_right=row.spec.prefix_right,
        truncated=row.truncated or not row.done,
        images=tuple(row.images),
    )
