r"""Forced rethinking: a reply that is over goes on behind a text that makes it think again.

VL-Rethinker (arXiv 2504.08837): y = y1 + trigger + y2. The first thought, y1, lies in the cache
already: its row goes back to where y1 is to be left, the trigger is appended in place of y1's end
token, and y2 is decoded. Nothing is prefilled twice, decoded and encoded again, or seen otherwise
in training than in sampling.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from vrrl_jax.models.policy import Policy, View
from vrrl_jax.parallel.mesh import fetch
from vrrl_jax.processing.processor import Processor
from vrrl_jax.processing.processor import encode as encode_text
from vrrl_jax.rollout import engine, transcript
from vrrl_jax.rollout.cuts import kept_tokens
from vrrl_jax.rollout.transcript import Row, Settings, Shapes
from vrrl_jax.types import Episode

KINDS = ("verification", "correction", "questioning")
FIRST, SECOND, CHOICES = range(3)  # what a row's keys are folded with: y1, y2, the choices
# Fates of a forced thought, one of which each has; counted, as in `count/rethinking_accepted`.
FATES = ("accepted", "rejected_length", "rejected_wrong", "rejected_surplus")
COUNTS = ("candidates", "spared", "forced", *FATES, "right_to_wrong", "wrong_to_right")


@dataclasses.dataclass(frozen=True)
class Rethinking:
    r"""Which replies think again, behind what, and which of these are kept.

    A reply can think again that came to its end by itself. One in `<think>` tags goes on inside
    them: it is cut before `</think>` at the latest, for its form would break otherwise.

    Attributes:
      share: chance of a reply to be made to, 0 .. 1.
      verification, correction, questioning: triggers by kind.
      kinds: those of them that are drawn from, evenly.
      informed: chance of a trigger that says whether y1 was right, in place of those.
      when_right, when_wrong: what it says then.
      joint: stands between y1 and the trigger.
      cut_back: chance of y1 to be cut before its last "wait" (in any case), or, where it has none,
        before its final answer: `</think>`, `<answer>`, `<CONCLUSION>`, or a box.
      spare_accuracy: wrong replies are left alone in groups of which a larger share is right; None
        spares none.
      accept: whether all y are kept, or those alone that end in time in a right answer. A kept one
        takes the place of its y1.
      least: tokens of y2, its end token included.
      most: likewise, its budget of its own; None: that of a reply.
      per_query: kept ones a group, the first ones; None for no limit.
      room: tokens of a reply's budget that y1 must have left over.
      temperature: of y2; None: the rollout's. Under another one the log-probabilities of y2 are
        NaN, to be recomputed before the update.
      train_trigger: whether the trigger, which the policy didn't choose, carries loss.

    Raises:
      ValueError: chances out of range, an unknown kind or rule, a kind without a text, or limits
        that exclude each other.
    """

    share: float = 0.5
    verification: tuple[str, ...] = ("Let me double-check my answer...",)
    correction: tuple[str, ...] = ("On second thought, I made a mistake...",)
    questioning: tuple[str, ...] = ("Wait, let me reconsider this problem...",)
    kinds: tuple[str, ...] = KINDS
    informed: float = 0.0
    when_right: tuple[str, ...] = ("Let me double-check my answer, it should be right...",)
    when_wrong: tuple[str, ...] = ("On second thought, I made a mistake...",)
    joint: str = " "
    cut_back: float = 0.0
    spare_accuracy: float | None = None
    accept: Literal["any", "correct"] = "any"
    least: int = 1
    most: int | None = None
    per_query: int | None = None
    room: int = 0
    temperature: float | None = None
    train_trigger: bool = False

    def __post_init__(self):
        for name in ("share", "informed", "cut_back", "spare_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0 .. 1, got {value}")
        unknown = set(self.kinds) - set(KINDS)
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be some of {KINDS}, got {self.kinds}")
        for name in (*self.kinds, *(("when_right", "when_wrong") if self.informed else ())):
            if not all(getattr(self, name)) or not getattr(self, name):
                raise ValueError(f"{name} needs a text, got {getattr(self, name)}")
        if self.accept not in ("any", "correct"):
            raise ValueError(f"accept must be any or correct, got {self.accept!r}")
        if self.most is not None and not 1 <= self.least <= self.most:
            raise ValueError(f"1 <= least <= most must hold, got {self.least}, {self.most}")
        for name, low in (("least", 1), ("room", 0), ("per_query", 1), ("temperature", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")


# The paper, which gives no number for the share, and its released code.
PRESETS: dict[str, Rethinking] = {
    "paper": Rethinking(),
    "code": Rethinking(
        share=0.65,
        kinds=("verification", "questioning"),
        informed=0.5,
        joint="\n\n",
        cut_back=0.5,
        spare_accuracy=0.7,
        accept="correct",
        least=30,
        most=1024,
        per_query=2,
        room=1024,
        temperature=0.9,
    ),
}


class Forced(NamedTuple):
    """A row that thinks again: tokens of y1 that stay, the trigger's kind and its tokens."""

    kept: int
    kind: str
    trigger: list[int]


# --- room ----------------------------------------------------------------------------------------


def budget(settings: Settings, wanted: Rethinking) -> int:
    """Tokens of y2 at most."""
    return settings.max_new_tokens if wanted.most is None else wanted.most


def check(settings: Settings, wanted: Rethinking) -> None:
    """Whether a rollout can do it.

    Raises:
      ValueError: for episodes of several turns, or where no reply could leave the room.
    """
    if settings.max_turns != 1:
        raise ValueError(
            f"rethinking is for tasks of one turn, and these episodes have {settings.max_turns}"
        )
    if wanted.room >= settings.max_new_tokens:
        raise ValueError(
            f"rethinking asks for {wanted.room} tokens left over of a reply's budget of "
            f"{settings.max_new_tokens}: lower room, or raise the budget"
        )
    if wanted.least > budget(settings, wanted):
        raise ValueError(
            f"second thoughts of at least {wanted.least} tokens exceed their budget of "
            f"{budget(settings, wanted)}"
        )


def extra(processor: Processor, settings: Settings, wanted: Rethinking) -> tuple[int, int]:
    """(tokens of the longest trigger, slots of a row beyond those of a plain reply)."""
    trigger = max(len(ids) for texts in _triggers(processor, wanted).values() for ids in texts)
    return trigger, max(0, trigger + budget(settings, wanted) - wanted.room)


def _triggers(processor: Processor, wanted: Rethinking) -> dict[str, list[list[int]]]:
    """Token ids of every text by the name of its field."""
    names = (*wanted.kinds, *(("when_right", "when_wrong") if wanted.informed else ()))
    special = processor.special_tokens
    for text in (text for name in names for text in getattr(wanted, name)):
        if any(token in text for token in special):
            raise ValueError(f"a trigger may hold no special token: {text!r}")
    encoded = lambda text: encode_text(processor, wanted.joint + text)
    return {name: [encoded(text) for text in getattr(wanted, name)] for name in names}


# --- who thinks again ----------------------------------------------------------------------------


def right(rewards: dict[str, float]) -> bool:
    """Whether the score calls an answer right.

    Raises:
      ValueError: it says nothing about it.
    """
    if "success" not in rewards:
        raise ValueError(f"rethinking needs a score with `success`, got {sorted(rewards)}")
    return rewards["success"] > 0.5


_uniform = jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (5,))))


def choose(
    policy: Policy,
    processor: Processor,
    rows: Sequence[Row],
    firsts: Sequence[Episode],
    draws: np.ndarray,
    settings: Settings,
    wanted: Rethinking,
) -> tuple[dict[int, Forced], dict[str, int]]:
    """Which rows think again, and how.

    Args:
      rows: after y1.
      firsts: their episodes as they are, scored.
      draws: float [B, 5], uniform in 0 .. 1: whether to force, to cut, to inform; kind; text.

    Returns:
      (row number -> how; counts of candidates, spared and forced).
    """
    triggers = _triggers(processor, wanted)
    group_right = collections.defaultdict(list)
    for first in firsts:
        group_right[first.group].append(right(first.rewards))
    forced, counts = {}, collections.Counter()
    for b, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        if not _can(policy, row, settings, wanted):
            continue
        counts["candidates"] += 1
        was_right, others = right(first.rewards), group_right[first.group]
        limit = 1.0 if wanted.spare_accuracy is None else wanted.spare_accuracy
        if not was_right and sum(others) > limit * len(others):
            counts["spared"] += 1
            continue
        force, cut, inform, kind, text = draws[b].tolist()
        if force >= wanted.share:
            continue
        kept = kept_tokens(processor, row.tokens[1][:-1], cut < wanted.cut_back)
        kind = wanted.kinds[int(kind * len(wanted.kinds))]
        texts = triggers[kind]
        if inform < wanted.informed:
            kind = "verification" if was_right else "correction"
            texts = triggers["when_right" if was_right else "when_wrong"]
        forced[b] = Forced(kept, kind, texts[int(text * len(texts))])
    counts["forced"] = len(forced)
    return forced, counts


def _can(policy: Policy, row: Row, settings: Settings, wanted: Rethinking) -> bool:
    """Whether a reply was sampled, said something, ended by itself and left room."""
    if row.stored:
        return False
    reply = row.tokens[1]
    room = settings.max_new_tokens - reply.size >= wanted.room
    return reply.size > 1 and int(reply[-1]) in policy.stop_ids and room


# --- thinking again ------------------------------------------------------------------------------


def rethink(
    policy: Policy,
    view: View,
    processor: Processor,
    state: engine.State,
    rows: Sequence[Row],
    firsts: Sequence[Episode],
    samples: np.ndarray,
    settings: Settings,
    shapes: Shapes,
    key: jax.Array,
    step: int,
    score: Callable[..., dict[str, float]],
    wanted: Rethinking,
) -> tuple[list[Episode], dict[str, float]]:
    """Lets replies think again, and puts those that are kept in their places.

    Args:
      state: after y1; donated.
      rows, firsts: the transcripts of y1 and their episodes.
      samples: int32 [B], the sample numbers that seed the rows.
      shapes: planned with `wanted`.
      key, step: those of the rollout; with question and sample they seed all that is drawn.

    Returns:
      (episodes in the order of `firsts`; counters, `sampled_tokens` and `decode_steps`).

    Raises:
      ValueError: a score without `success`, a plan without room, or an environment that goes on
        after a reply.
    """
    if not all(row.done for row in rows):
        raise ValueError("rethinking is for tasks of one turn: this environment goes on after it")
    questions = np.array([row.spec.question for row in rows], np.int32)
    keys = lambda turn: engine.make_keys(key, step, questions, samples, turn)
    draws = fetch(_uniform(keys(CHOICES)))
    forced, counts = choose(policy, processor, rows, firsts, draws, settings, wanted)
    if not forced:
        return list(firsts), _figures(counts, 0, 0)
    again = [
        transcript.rewound(row, forced[b].kept) if b in forced else row
        for b, row in enumerate(rows)
    ]
    for b, how in forced.items():
        _say(again[b], how.trigger, wanted)
    decoded = _continue(policy, view, state, again, keys(SECOND), forced, settings, shapes, wanted)
    episodes, kept = list(firsts), collections.Counter()
    for b, how in forced.items():
        row, first = again[b], firsts[b]
        second = _book(row, how, decoded, b, processor, settings, score, wanted)
        was, now = right(first.rewards), right(second.rewards)
        counts["right_to_wrong"] += was and not now
        counts["wrong_to_right"] += now and not was
        length, ended = int(decoded.lengths[b]), bool(decoded.stopped[b])
        fate = verdict(wanted, length, ended, now, kept[first.group])
        counts[fate] += 1
        if fate == "accepted":
            kept[first.group] += 1
            episodes[b] = second
    return episodes, _figures(counts, int(decoded.lengths.sum()), int(decoded.lengths.max()))


def verdict(wanted: Rethinking, length: int, ended: bool, is_right: bool, kept: int) -> str:
    """The fate of a second thought, out of `FATES`.

    Args:
      length: tokens of y2.
      ended: whether y2 came to its end within its budget.
      is_right: whether the whole reply's answer is right.
      kept: how many of its group are kept already.
    """
    correct = wanted.accept == "correct"
    if length < wanted.least or (correct and not ended):
        return "rejected_length"
    if correct and not is_right:
        return "rejected_wrong"
    if wanted.per_query is not None and kept >= wanted.per_query:
        return "rejected_surplus"
    return "accepted"


def _figures(counts: collections.Counter, sampled: int, steps: int) -> dict[str, float]:
    named = {f"count/rethinking_{name}": int(counts[name]) for name in COUNTS}
    return named | {"sampled_tokens": sampled, "decode_steps": steps}


def _continue(policy, view, state, rows, keys, forced, settings, shapes, wanted) -> engine.Decoded:
    """Rewinds the rows, appends their triggers and decodes their second thoughts."""
    most = budget(settings, wanted)
    # A trigger shows no picture: the program of a chunk without any leaves the vision tower out.
    bare = dataclasses.replace(shapes, pictures=1, patches=policy.config.layout.block, features=1)
    waiting = [dataclasses.replace(row, done=b not in forced) for b, row in enumerate(rows)]
    chunk = transcript.chunk_of(policy, waiting, shapes.follow, bare, most)
    chunk = transcript.to_device(policy, chunk._replace(pictures=None))
    lengths, positions = (
        np.array([getattr(row, name) for row in rows], np.int32) for name in ("filled", "position")
    )
    state = engine.rewind(policy, state, lengths, positions)
    state = engine.append(policy, view, state, chunk)
    for b in forced:
        transcript.appended(policy, rows[b])
    sampling = settings.sampling
    if wanted.temperature is not None:
        sampling = sampling._replace(temperature=wanted.temperature)
    active = np.array([b in forced for b in range(len(rows))])
    stops = np.array(policy.stop_ids, np.int32)
    _, decoded = engine.decode(policy, view, state, active, keys, sampling, stops, most, most)
    return fetch(decoded)


def _say(row: Row, trigger: list[int], wanted: Rethinking) -> None:
    """Puts a trigger behind what is left of y1."""
    unknown = np.full(len(trigger), np.nan) if wanted.train_trigger else None
    row.record(trigger, 0, float(wanted.train_trigger), unknown)
    row.carry, row.said = list(trigger), (*row.said, *trigger)


def _book(row: Row, how: Forced, decoded, b, processor, settings, score, wanted) -> Episode:
    """The episode of y1, trigger and y2: one reply, scored as a whole."""
    trigger, second = row.size - len(how.trigger), row.size
    transcript.sampled(row, 0, decoded, b, processor, settings)
    if wanted.temperature is not None and wanted.temperature != settings.sampling.temperature:
        row.logprobs[3] = np.where(row.mask[3] > 0, np.float32(np.nan), np.float32(0))
    return dataclasses.replace(
        transcript.finish(row, score),
        trigger=(trigger, second),
        second=(second, row.size),
        trigger_kind=how.kind,
    )
