"""The transcript of an episode in flight: what was said, and what of it no cache holds yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from vrrl_jax import layout
from vrrl_jax.models.policy import Policy
from vrrl_jax.parallel.mesh import put_rows
from vrrl_jax.processing import encode
from vrrl_jax.processing.processor import Processor
from vrrl_jax.processing.processor import decode as decode_text
from vrrl_jax.processing.processor import encode as encode_text
from vrrl_jax.rollout import engine
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Episode, Picture, Pictures, Prompt


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
      ended: for the scorer, whether every reply of the episode came to its end by itself.
      opened: the opening turn and its encoding, where `open_group` has made them already.
      commit: (token ids, log-probabilities) of a stored reply that the group's first episode says
        after the prefix, with loss, in place of sampling one; None for none.
    """

    question: int
    example: Any
    mode: str = "normal"
    prefix: tuple[np.ndarray, ...] = ()
    prefix_logprobs: tuple[np.ndarray, ...] = ()
    prefix_right: bool = False
    opening: str = ""
    ended: bool = True
    opened: tuple[Prompt, encode.Chunk] | None = None
    commit: tuple[np.ndarray, np.ndarray] | None = None


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
      pictures: pictures of a chunk, at most.
      features: of a patch; a batch without any picture runs the same program.
    """

    prompt: int
    follow: int
    patches: int
    slots: int
    pictures: int = 1
    features: int = 1


@dataclasses.dataclass
class Row:
    """An episode in flight. `carry` are tokens of the transcript that no cache holds yet, `shown`
    the pictures among them; `said` are tokens of a reply under way that weren't sampled now, and
    `hidden` tells which of the transcript's first tokens are seen as zero embeddings."""

    group: int
    sample: int
    spec: Group
    position: int = 0
    filled: int = 0
    carry: list[int] = dataclasses.field(default_factory=list)
    shown: tuple[Picture, ...] = ()
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    mask: list[np.ndarray] = dataclasses.field(default_factory=list)
    turns: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    prompts: list[str] = dataclasses.field(default_factory=list)
    images: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    size: int = 0
    prompt: Prompt | None = None
    opening: str = ""
    said: tuple[int, ...] = ()
    hidden: np.ndarray | None = None
    done: bool = False
    truncated: bool = False

    @property
    def stored(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(token ids, log-probabilities) of the replies that aren't sampled, in order."""
        spec = self.spec
        replies = list(zip(spec.prefix, spec.prefix_logprobs, strict=True))
        commits = spec.commit is not None and self.sample == 0
        return [*replies, spec.commit] if commits else replies

    def say(self, prompt: Prompt, chunk: encode.Chunk, turn: int, keep_images: bool) -> None:
        """Adds a user turn."""
        self.record(chunk.tokens, turn)
        self.carry = [*self.carry, *chunk.tokens.tolist()]
        self.shown = chunk.pictures
        self.pictures += chunk.pictures
        self.prompts.append(prompt.text)
        if keep_images:
            self.images.append(chunk.images)

    def record(self, tokens, turn: int, mask: float = 0.0, logprobs=None) -> None:
        n = len(tokens)
        self.size += n
        self.tokens.append(np.asarray(tokens, np.int32))
        self.mask.append(np.full(n, mask, np.float32))
        self.turns.append(np.full(n, turn, np.int32))
        empty = np.zeros(n, np.float32)
        self.logprobs.append(empty if logprobs is None else np.float32(logprobs))


def feedback(row: Row, turn: int, processor: Processor, settings: Settings) -> None:
    """Adds the user turn with its pictures, and a forced opening where one is due."""
    chunk = encode.next_chunk(processor, row.prompt)
    row.say(row.prompt, chunk, turn, settings.keep_images)
    if row.opening and turn == len(row.spec.prefix):
        forced = encode_text(processor, row.opening)
        row.record(forced, turn)
        row.carry += forced


def chunk_of(
    policy: Policy, rows: list[Row], width: int, shapes: Shapes, budget: int
) -> engine.Chunk:
    """The rows' carried tokens, right-padded, with the pictures among them."""
    place = policy.config.layout
    b = len(rows)
    tokens = np.zeros((b, width), np.int32)
    position = np.zeros((3, b, width), np.int32)
    count, after = np.zeros(b, np.int32), np.zeros(b, np.int32)
    source = np.full((b, width), -1, np.int32)
    masked = any(row.hidden is not None for row in rows)
    hidden = np.zeros((b, width), bool) if masked else None
    shown = [() if row.done else row.shown for row in rows]
    data, coords, segments, sources = layout.pack_pictures(
        shown, place, shapes.pictures, shapes.patches, shapes.features
    )
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
        if shown[i]:
            source[i, :n][tokens[i, :n] == place.image_id] = np.concatenate(sources[i])
        if row.hidden is not None:
            mine = row.hidden[row.filled : row.filled + n]
            hidden[i, : mine.size] = mine
        count[i] = n
    pictures = Pictures(data, coords, segments, source)
    return engine.Chunk(tokens, count, position, after, pictures, hidden)


def to_device(policy: Policy, chunk: engine.Chunk) -> engine.Chunk:
    """Host arrays to the device; over a mesh, rows over (data, fsdp)."""
    if policy.mesh is None:
        return chunk
    placed = put_rows(policy.mesh, chunk._replace(positions=None))
    return placed._replace(positions=put_rows(policy.mesh, chunk.positions, axis=1))


def appended(policy: Policy, row: Row) -> None:
    """Books what an append put into the cache."""
    place = policy.config.layout
    grids = [picture.grid for picture in row.shown]
    _, row.position = layout.positions(np.array(row.carry), grids, place, row.position)
    row.filled += len(row.carry)
    row.carry, row.shown = [], ()


def sampled(row: Row, turn: int, decoded, b: int, processor: Processor, settings: Settings) -> None:
    """Books a sampled reply; one that its budget cut gets a forced end without loss."""
    n = int(decoded.lengths[b])
    tokens = decoded.tokens[b, :n]
    opening = row.opening if turn == len(row.spec.prefix) else ""
    start = row.size - len(encode_text(processor, opening)) - len(row.said)
    row.record(tokens, turn, 1.0, decoded.logprobs[b, :n])
    if decoded.stopped[b] and not settings.train_end:
        row.mask[-1][-1] = 0.0
    # All but the last sampled token were fed back and lie in the cache.
    row.filled += n - 1
    row.position += n - 1
    row.carry = [int(tokens[-1])]
    spoken = tokens[:-1] if decoded.stopped[b] else tokens
    row.texts.append(opening + decode_text(processor, [*row.said, *spoken]))
    row.said = ()
    end = processor.ids.im_end
    if row.carry[-1] != end:
        row.truncated |= not bool(decoded.stopped[b])
        row.record([end], turn)
        row.carry.append(end)
    row.spans.append((start, row.size))


def rewound(row: Row, kept: int) -> Row:
    """A copy of a row whose only reply was sampled, back where `kept` tokens of it were out.

    All of them lie in the cache then; what is booked next goes on with the same reply.
    """
    prompt, reply = (part.size for part in row.tokens[:2])
    back = reply - 1 - kept  # the last sampled token isn't in the cache
    cut = lambda parts: [parts[0], parts[1][:kept]]
    return dataclasses.replace(
        row,
        position=row.position - back,
        filled=row.filled - back,
        carry=[],
        tokens=cut(row.tokens),
        mask=cut(row.mask),
        turns=cut(row.turns),
        logprobs=cut(row.logprobs),
        texts=[],
        spans=[],
        size=prompt + kept,
        said=tuple(row.tokens[1][:kept].tolist()),
        truncated=False,
    )


def rolled_in(row: Row, turn: int, processor: Processor, settings: Settings) -> None:
    """Books a stored reply as if it had been spoken."""
    tokens, logprobs = row.stored[turn]
    trained = settings.train_prefix or turn >= len(row.spec.prefix)
    row.record(tokens, turn, float(trained), logprobs)
    # A forced token has no behaviour log-probability, hence no ratio.
    row.mask[-1][np.asarray(logprobs) == 0] = 0.0
    if not settings.train_end:
        row.mask[-1][-1] = 0.0
    row.spans.append((row.size - len(tokens), row.size))
    row.carry = [int(t) for t in tokens]
    row.texts.append(decode_text(processor, tokens))


def finish(row: Row, score: Callable[..., dict[str, float]]) -> Episode:
    """The record of a finished episode, scored."""
    group = dataclasses.replace(row.spec, ended=not row.truncated)
    rewards = dict(score(tuple(row.texts), row.spec.example, group))
    turn_rewards = rewards.pop("turn_rewards", ())
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
        rewards=rewards,
        turn_rewards=tuple(turn_rewards),
        mode=row.spec.mode,
        prefix_turns=len(row.spec.prefix),
        prefix_right=row.spec.prefix_right,
        truncated=row.truncated or not row.done,
        prompts=tuple(row.prompts),
        images=tuple(row.images),
    )
