"""Prefix masking of states: what an episode looks like once its first tokens are hidden.

Hidden tokens stay in the transcript, where the environment reads them, but the policy sees zero
embeddings in their places, and samples what follows them again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from vrrl_jax import layout
from vrrl_jax.models.policy import Policy, View
from vrrl_jax.parallel.mesh import fetch
from vrrl_jax.processing import encode
from vrrl_jax.processing.processor import Processor
from vrrl_jax.processing.processor import encode as encode_text
from vrrl_jax.rollout import engine, transcript
from vrrl_jax.rollout.episodes import Environment, answered, prefill_copies, streams
from vrrl_jax.rollout.transcript import Group, Row, Settings, Shapes
from vrrl_jax.types import Array, Episode, Prompt

STREAM = 0x6D61736B  # folded into the key: what is sampled again isn't drawn as it was before


def hidden_tokens(
    episode: Episode, length: int, image_id: int, *, pictures: bool = False
) -> np.ndarray:
    """bool [t], the first `length` generated tokens; with `pictures` picture tokens before them.

    The same as `rl.random_prefix_mask` hides, of one episode.
    """
    generated = episode.loss_mask != 0
    rank = np.cumsum(generated)
    hidden = generated & (rank <= length)
    if pictures:
        hidden |= (episode.tokens == image_id) & (rank < length)
    return hidden


@dataclasses.dataclass(frozen=True)
class Kept:
    """What stays of an episode that is sampled again.

    Attributes:
      number: of the episode among those given.
      episode: as it was.
      hidden: bool [size], of the tokens that stay.
      whole: replies that stay whole, the first ones.
      part: tokens that stay of the reply after those, a forced opening not counted; 0 for none.
    """

    number: int
    episode: Episode
    hidden: np.ndarray
    whole: int
    part: int

    def recorded(self, turn: int) -> bool:
        """Whether the user turn before reply `turn` stays."""
        return turn < self.whole + (self.part > 0)


def regenerate(
    policy: Policy,
    view: View,
    processor: Processor,
    environment: Environment,
    episodes: Sequence[Episode],
    lengths: Array,
    groups: list[Group],
    settings: Settings,
    shapes: Shapes,
    key: jax.Array,
    step: int,
    score: Callable[..., dict[str, float]],
    *,
    hide_pictures: bool = False,
) -> tuple[list[Episode], dict[str, float]]:
    """Hides the first generated tokens of episodes and samples what follows them again.

    The last hidden token may end a reply: then the environment's answer to it follows. Otherwise
    its reply goes on with the tokens that are left of its budget; a reply of which no generated
    token is left counts as ended. The environment and the scorer read hidden tokens as any others.
    Rolled-in replies and openings stay visible where they carry no loss. A rolled-in reply that
    does carry loss and is cut counts as sampled, and so do those after it.

    Args:
      view: of the policy that samples; it sees zero embeddings in place of hidden tokens.
      episodes: of one `rollout`, or some of them.
      lengths: int [n >= len(episodes)], generated tokens to hide, such as `rl.PrefixMask.length`;
        an episode with 0 is spared.
      groups, settings, key, step, score: the rollout's.
      shapes: planned with `roll_in=True`: what stays of a reply is appended as a chunk.
      hide_pictures: whether pictures before the last hidden token are hidden as well.

    Returns:
      (episodes in their order; those that were hit have `hidden`, no loss on what stayed, and
      behaviour log-probabilities under the masked states. Figures.)

    Raises:
      ValueError: an episode isn't its group's or was made to think again, or a chunk exceeds the
        plan.
    """
    started = time.perf_counter()
    if shapes.follow < settings.max_new_tokens + 10:
        raise ValueError(
            f"a reply of {settings.max_new_tokens} tokens and its forced ones don't fit a chunk of "
            f"{shapes.follow}: plan shapes with roll_in=True"
        )
    rows = [
        Row(g, s, spec, done=True) for g, spec in enumerate(groups) for s in range(settings.samples)
    ]
    questions = np.array([row.spec.question for row in rows], np.int32)
    samples = streams(rows, settings.samples)
    image_id = policy.config.layout.image_id
    lengths, kept = np.asarray(lengths), {}
    for number, episode in enumerate(episodes):
        if lengths[number] > 0 and episode.loss_mask.any():
            b = episode.group * settings.samples + episode.sample
            hidden = hidden_tokens(episode, lengths[number], image_id, pictures=hide_pictures)
            kept[b] = _open(rows[b], number, episode, hidden, processor)
    key = jax.random.fold_in(key, STREAM)
    stops = np.array(policy.stop_ids or (-1,), np.int32)
    state, sampled = None, 0
    alive = lambda: [(b, row) for b, row in enumerate(rows) if not row.done]
    for turn in range(settings.max_turns):
        if not alive():
            break
        for b, row in alive():
            _ask(policy, row, kept[b], turn, processor, settings)
        if turn == 0:
            state = _prefill(policy, view, rows, shapes, settings, hide_pictures)
        else:
            state = _append(policy, view, state, rows, shapes, settings.max_new_tokens)
        for _, row in alive():
            transcript.appended(policy, row)
        parts = [(b, row) for b, row in alive() if kept[b].part and kept[b].whole == turn]
        for b, row in parts:
            tokens = _keep(row, kept[b], turn, row.size + kept[b].part)
            row.carry, row.said = tokens, tuple(tokens)
        if parts:
            # The budget was checked with the user turn: the reply is in it.
            state = _append(policy, view, state, rows, shapes, 1)
            for _, row in parts:
                transcript.appended(policy, row)
        active = np.array([not row.done and turn >= kept[b].whole for b, row in enumerate(rows)])
        if active.any():
            said = np.array([len(row.said) for row in rows], np.int32)
            state, decoded = engine.decode(
                policy,
                view,
                state,
                active,
                engine.make_keys(key, step, questions, samples, turn),
                settings.sampling,
                stops,
                np.maximum(settings.max_new_tokens - said, 1),
                settings.max_new_tokens,
            )
            decoded = fetch(decoded)
            sampled += int(decoded.lengths.sum())
        for b, row in alive():
            if active[b]:
                transcript.sampled(row, turn, decoded, b, processor, settings)
            else:
                _replay(policy, row, kept[b], turn, settings)
            if not kept[b].recorded(turn + 1):
                outcome = answered(environment, row.spec.example, row.texts)
                row.done, row.prompt = outcome.done, outcome.prompt
    out = list(episodes)
    for b, what in kept.items():
        again = transcript.finish(rows[b], score)
        hidden = np.pad(what.hidden, (0, again.tokens.size - what.hidden.size))
        out[what.number] = dataclasses.replace(again, hidden=hidden)
    return out, {
        "regenerate_seconds": time.perf_counter() - started,
        "regenerated_episodes": len(kept),
        "regenerated_tokens": sampled,
        "hidden_tokens": sum(int(what.hidden.sum()) for what in kept.values()),
    }


def _open(row: Row, number: int, episode: Episode, hidden: np.ndarray, processor) -> Kept:
    """Sets a row going, and tells what stays of its episode."""
    if row.spec.question != episode.question:
        raise ValueError(
            f"episode {number} is of question {episode.question}, its group of {row.spec.question}"
        )
    if episode.trigger is not None:
        raise ValueError(f"episode {number} was made to think again: it can't be sampled again")
    last = int(np.flatnonzero(hidden & (episode.loss_mask != 0))[-1])
    turn = next(u for u, (_, end) in enumerate(episode.spans) if last < end)
    start, end = episode.spans[turn]
    over = not episode.loss_mask[last + 1 : end].any()
    whole, size = (turn + 1, end) if over else (turn, last + 1)
    prefix = len(row.spec.prefix)
    if whole < prefix:
        logprobs = row.spec.prefix_logprobs[:whole]
        row.spec = dataclasses.replace(
            row.spec, prefix=row.spec.prefix[:whole], prefix_logprobs=logprobs, prefix_right=False
        )
        prefix = -1
    row.opening = row.spec.opening if prefix > 0 else ""
    if row.opening and turn == prefix:
        start += len(encode_text(processor, row.opening))
    row.hidden, row.done = hidden[:size], False
    return Kept(number, episode, row.hidden, whole, 0 if over else max(0, size - start))


def _ask(policy: Policy, row: Row, kept: Kept, turn: int, processor, settings: Settings) -> None:
    """Adds the user turn: the recorded one with what was forced after it, or a new one."""
    if not kept.recorded(turn):
        return transcript.feedback(row, turn, processor, settings)
    episode, place, seen = kept.episode, policy.config.layout, len(row.pictures)
    tokens = episode.tokens[row.size : episode.spans[turn][0]]
    left, stop = int((tokens == place.image_id).sum()), seen
    while left > 0:
        left -= layout.token_count(episode.pictures[stop].grid, place.merge)
        stop += 1
    images = episode.images[turn] if episode.images else ()
    chunk = encode.Chunk(tokens, episode.pictures[seen:stop], images)
    row.say(Prompt(episode.prompts[turn]), chunk, turn, settings.keep_images)
    if row.opening and turn == len(row.spec.prefix):
        forced = encode_text(processor, row.opening)
        row.record(forced, turn)
        row.carry += forced
    return None


def _prefill(policy, view, rows, shapes: Shapes, settings: Settings, masked: bool) -> engine.State:
    """One prefill a group: those of its rows that go on have one opening turn, pictures hidden or
    not."""
    n = settings.samples
    copies = prefill_copies(policy, len(rows) // n, n)
    leaders = []
    for at in range(0, len(rows), n):
        leader = next((row for row in rows[at : at + n] if not row.done), rows[at])
        leader = dataclasses.replace(leader, hidden=leader.hidden if masked else None)
        leaders += [leader] * copies
    state = engine.init(policy, len(leaders), shapes.slots)
    chunk = transcript.chunk_of(policy, leaders, shapes.prompt, shapes, settings.max_new_tokens)
    state = engine.append(policy, view, state, transcript.to_device(policy, chunk))
    return engine.repeat(policy, state, n // copies)


def _append(policy, view, state, rows, shapes: Shapes, budget: int) -> engine.State:
    chunk = transcript.chunk_of(policy, rows, shapes.follow, shapes, budget)
    return engine.append(policy, view, state, transcript.to_device(policy, chunk))


def _keep(row: Row, kept: Kept, turn: int, end: int) -> list[int]:
    """Books the recorded tokens up to `end`, without loss."""
    here = slice(row.size, end)
    logprobs = np.where(kept.hidden[here], 0, kept.episode.logprobs[here])
    row.record(kept.episode.tokens[here], turn, 0.0, logprobs)
    return kept.episode.tokens[here].tolist()


def _replay(policy: Policy, row: Row, kept: Kept, turn: int, settings: Settings) -> None:
    """Books a reply that stays whole."""
    start, end = kept.episode.spans[turn]
    row.carry = _keep(row, kept, turn, end)
    row.texts.append(kept.episode.texts[turn])
    row.spans.append((start, end))
    # A reply that its budget cut has a forced end, and no other before it.
    long = len(row.carry) > settings.max_new_tokens and turn >= len(row.spec.prefix)
    row.truncated |= long and row.carry[-2] not in policy.stop_ids
