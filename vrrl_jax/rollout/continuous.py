"""Continuous batching: fewer rows in flight than there are episodes, refilled as episodes end.

Where every episode has a row of its own, the longest reply of a turn holds all others up, and rows
whose episode is over are computed to the end. Here replies are drawn in chunks of a few tokens.
Between two chunks the host looks at what has ended: an episode that goes on has its next turn
appended, one that is over leaves its slot to the next in the queue. What is drawn depends on
question, sample, turn and token alone, never on the slot or on when it came free.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vrrl_jax.models.policy import Policy, View
from vrrl_jax.parallel.mesh import fetch
from vrrl_jax.processing.processor import Processor
from vrrl_jax.rollout import engine, transcript
from vrrl_jax.rollout.transcript import Row, Settings, Shapes
from vrrl_jax.types import Outcome

# (example, an episode's replies) -> what the environment says to the last of them.
Answer = Callable[[Any, Sequence[str]], Outcome]


@dataclasses.dataclass(frozen=True)
class Continuous:
    """How many episodes are in flight, and how often the host looks after them.

    Attributes:
      rows: B, the episodes in flight; each has a slot, a row of the cache.
      appended: A, rows of one prefill, at most B.
      chunk: C, tokens of each reply between two looks.
      overlap: draw the next chunk while the host looks at the last one. Rows whose reply ended sit
        that chunk out: worth it where the host's work takes long and a row more costs little.
    """

    rows: int
    appended: int
    chunk: int = 16
    overlap: bool = False

    def __post_init__(self):
        if not 1 <= self.appended <= self.rows or self.chunk < 1:
            raise ValueError(f"1 <= appended <= rows and chunk >= 1 must hold, got {self}")


def sized(
    rows: int | None, appended: int | None, chunk: int, overlap: bool, parts: int
) -> Continuous | None:
    """What a recipe asks for, None where it names no number of rows.

    Args:
      appended: None is a quarter of the rows.
      parts: of the mesh, data * fsdp.

    Raises:
      ValueError: rows or prefills don't divide over the parts.
    """
    if rows is None:
        return None
    appended = appended or -(-rows // (4 * parts)) * parts
    for name, count in (("in_flight", rows), ("prefills", appended)):
        if count % parts:
            raise ValueError(
                f"rollout.{name}={count} rows don't split over data*fsdp={parts}: use a multiple"
            )
    return Continuous(rows, appended, chunk, overlap)


@dataclasses.dataclass
class Flight:
    """Episodes under way.

    Attributes:
      state, replies: on the device.
      rows: the episode of each slot, None for none.
      speaking: what is out of the reply of each slot that has one under way.
      waiting: slots whose episode's next turn has to be appended.
      opened: the openings of the groups that are up next, prefilled, and group -> row of it.
      sampled, steps, appended, room: tokens drawn, decoding steps, tokens appended and the tokens
        that the calls had room for.
    """

    state: engine.State
    replies: engine.Replies
    rows: list[Row | None]
    speaking: dict[int, list[engine.Decoded]] = dataclasses.field(default_factory=dict)
    waiting: list[int] = dataclasses.field(default_factory=list)
    opened: tuple[engine.State, dict[int, int]] | None = None
    sampled: int = 0
    steps: int = 0
    appended: int = 0
    room: int = 0


def play(
    policy: Policy,
    view: View,
    processor: Processor,
    answer: Answer,
    rows: list[Row],
    samples: np.ndarray,
    settings: Settings,
    shapes: Shapes,
    key: jax.Array,
    step: int,
    wanted: Continuous,
) -> dict[str, float]:
    """Plays every episode to its end, in place.

    Args:
      rows: of whole groups, their opening turns said.
      samples: int32 [rows], the sample numbers that seed them.

    Returns:
      figures of the rollout.

    Raises:
      ValueError: a chunk is larger than its planned shape, or a row's cache than its slots.
    """
    game = _Game(policy, view, processor, answer, settings, shapes, wanted)
    seeds = {id(row): int(sample) for row, sample in zip(rows, samples, strict=True)}
    stops = np.array(policy.stop_ids or (-1,), np.int32)
    none = np.zeros(wanted.rows, np.int32)
    start = engine.Replies(none > 0, none, engine.make_keys(key, step, none, none, none))
    flight = Flight(engine.init(policy, wanted.rows, shapes.slots), start, [None] * wanted.rows)
    queue = collections.deque(rows)
    drawn: collections.deque[tuple[engine.Decoded, dict[int, Row]]] = collections.deque()
    while True:
        ready = _refill(game, flight, queue)
        ready += _follow_up(game, flight, busy=bool(flight.speaking or ready))
        if ready:
            flight.replies = _begin(flight, ready, seeds, key, step)
        if flight.speaking:
            flight.state, flight.replies, out = engine.decode_chunk(
                policy, view, flight.state, flight.replies, settings.sampling, stops,
                settings.max_new_tokens, wanted.chunk,
            )  # fmt: skip
            drawn.append((out, {slot: flight.rows[slot] for slot in flight.speaking}))
        if len(drawn) > wanted.overlap or (drawn and not flight.speaking):
            _listen(game, flight, *drawn.popleft())
        if not (queue or drawn or flight.speaking or flight.waiting):
            break
    return {
        "sampled_tokens": flight.sampled,
        "decode_steps": flight.steps,
        "decode_occupancy": flight.sampled / max(1, flight.steps * wanted.rows),
        "prefill_occupancy": flight.appended / max(1, flight.room),
    }


@dataclasses.dataclass(frozen=True)
class _Game:
    """What stays the same through a rollout; see `play`."""

    policy: Policy
    view: View
    processor: Processor
    answer: Answer
    settings: Settings
    shapes: Shapes
    wanted: Continuous


def _refill(game: _Game, flight: Flight, queue: collections.deque[Row]) -> list[int]:
    """Puts episodes from the queue into free slots; returns the slots whose reply is to begin."""
    free = [slot for slot, row in enumerate(flight.rows) if row is None]
    ready: list[int] = []
    while free and queue:
        if flight.opened is None or queue[0].group not in flight.opened[1]:
            flight.opened = _prefill(game, flight, queue)
        source, at = flight.opened
        taken = []
        while free and queue and queue[0].group in at and len(taken) < game.wanted.appended:
            taken.append((free.pop(0), queue.popleft()))
        origins = np.zeros(game.wanted.appended, np.int32)
        origins[: len(taken)] = [at[row.group] for _, row in taken]
        places = _named(game, [slot for slot, _ in taken])
        flight.state = engine.place(game.policy, flight.state, source, places, origins)
        for slot, row in taken:
            flight.rows[slot] = row
            transcript.appended(game.policy, row)
            if _opens(game, flight, slot):
                ready.append(slot)
    return ready


def _prefill(
    game: _Game, flight: Flight, queue: collections.deque[Row]
) -> tuple[engine.State, dict[int, int]]:
    """The openings of the next groups of the queue, one row each."""
    leaders: dict[int, Row] = {}
    for row in queue:
        if row.group not in leaders and len(leaders) == game.wanted.appended:
            break
        leaders.setdefault(row.group, row)
    chunk = _chunk(game, flight, list(leaders.values()), game.shapes.prompt)
    state = engine.init(game.policy, game.wanted.appended, game.shapes.slots)
    state = engine.append(game.policy, game.view, state, chunk)
    return state, {group: i for i, group in enumerate(leaders)}


def _follow_up(game: _Game, flight: Flight, busy: bool) -> list[int]:
    """Appends the next turns that wait, a call's worth at a time; returns the slots whose reply is
    to begin. While others speak, half a call's worth isn't worth a call."""
    ready: list[int] = []
    while flight.waiting:
        if busy and 2 * len(flight.waiting) < game.wanted.appended:
            break
        places = flight.waiting[: game.wanted.appended]
        flight.waiting = flight.waiting[game.wanted.appended :]
        rows = [flight.rows[slot] for slot in places]
        for row in rows:
            transcript.feedback(row, len(row.texts), game.processor, game.settings)
        chunk = _chunk(game, flight, rows, game.shapes.follow)
        flight.state = engine.append(
            game.policy, game.view, flight.state, chunk, _named(game, places)
        )
        for slot, row in zip(places, rows, strict=True):
            transcript.appended(game.policy, row)
            if _opens(game, flight, slot):
                ready.append(slot)
    return ready


def _named(game: _Game, slots: list[int]) -> np.ndarray:
    """Slots as one call names them: filled up with distinct ones that aren't there."""
    spare = game.wanted.appended - len(slots)
    return np.int32([*slots, *range(game.wanted.rows, game.wanted.rows + spare)])


def _chunk(game: _Game, flight: Flight, rows: list[Row], width: int) -> engine.Chunk:
    """What the rows carry, as one call appends it."""
    spare = [Row(0, 0, None, done=True)] * (game.wanted.appended - len(rows))
    flight.appended += sum(len(row.carry) for row in rows)
    flight.room += game.wanted.appended * width
    chunk = transcript.chunk_of(
        game.policy, [*rows, *spare], width, game.shapes, game.settings.max_new_tokens
    )
    return transcript.to_device(game.policy, chunk)


def _opens(game: _Game, flight: Flight, slot: int) -> bool:
    """Whether a row whose turn has been appended has a reply to draw; a stored one is booked."""
    row = flight.rows[slot]
    if len(row.texts) >= len(row.stored):
        flight.speaking[slot] = []
        return True
    transcript.rolled_in(row, len(row.texts), game.processor, game.settings)
    _settle(game, flight, slot)
    return False


def _begin(flight: Flight, ready: list[int], seeds: dict[int, int], key, step) -> engine.Replies:
    """Replies with those of the slots `ready`."""
    count = len(flight.rows)
    questions, samples, turns = (np.zeros(count, np.int32) for _ in range(3))
    for slot in ready:
        row = flight.rows[slot]
        questions[slot] = row.spec.question
        samples[slot], turns[slot] = seeds[id(row)], len(row.texts)
    fresh = np.isin(np.arange(count), ready)
    keys = engine.make_keys(key, step, questions, samples, turns)
    return engine.begin(flight.replies, fresh, keys)


def _listen(game: _Game, flight: Flight, out: engine.Decoded, spoke: dict[int, Row]) -> None:
    """Books what a chunk drew; `spoke` are the rows that had a reply under way when it began."""
    out = fetch(out)
    flight.sampled += int(out.lengths.sum())
    flight.steps += int(out.lengths.max())
    for slot, row in spoke.items():
        n = int(out.lengths[slot])
        # One that ended in the chunk before, before the host knew.
        if n == 0 or flight.rows[slot] is not row:
            continue
        flight.speaking[slot].append(jax.tree.map(lambda a, s=slot: a[s : s + 1], out))
        said = sum(int(piece.lengths[0]) for piece in flight.speaking[slot])
        if not out.stopped[slot] and said < game.settings.max_new_tokens:
            continue
        reply = _joined(flight.speaking.pop(slot))
        transcript.sampled(row, len(row.texts), reply, 0, game.processor, game.settings)
        _settle(game, flight, slot)


def _joined(pieces: list[engine.Decoded]) -> engine.Decoded:
    """A reply of one row from its pieces."""
    join = lambda name: np.concatenate(
        [getattr(piece, name)[:, : int(piece.lengths[0])] for piece in pieces], 1
    )
    lengths = sum(piece.lengths for piece in pieces)
    names = ("tokens", "logprobs", "sampled_logprobs")
    return engine.Decoded(*map(join, names), lengths, pieces[-1].stopped)


def _settle(game: _Game, flight: Flight, slot: int) -> None:
    """Asks the environment about a reply: the episode's next turn waits, or its slot is free."""
    row = flight.rows[slot]
    outcome = game.answer(row.spec.example, row.texts)
    row.done, row.prompt = outcome.done, outcome.prompt
    if row.done or len(row.texts) == game.settings.max_turns:
        flight.rows[slot] = None
    else:
        flight.waiting.append(slot)
