"""Cached decoding against that of transformers over two turns, the second with its own pictures.

Both sides are fed the same chunks: prompts, a reply token by token, feedback, another reply. After
each their next-token logits are compared, and with those of one forward pass over everything.
"""

from typing import NamedTuple

import numpy as np
import pytest

from vrrl_jax import inference, layout
from vrrl_jax.models import policy as models
from vrrl_jax.rollout import engine
from vrrl_jax.types import Pictures, Sequence

parity = pytest.importorskip("parity")
torch = pytest.importorskip("torch")
hf = parity.hf

# A picture, none, two; in the second turn a picture, a strip, none.
FIRST = [[4, (3, 5), 3], [5], [2, (2, 2), 1, (1, 3), 2]]
SECOND = [[2, (2, 3), 3], [1, (6, 1), 2], [4]]
REPLIES = 4, 3
SLOTS = 48


def length(parts) -> int:
    return sum(part if isinstance(part, int) else part[0] * part[1] + 2 for part in parts)


class Chat(NamedTuple):
    """What both sides are fed, and what a forward pass over the whole says.

    Attributes:
      batch: the whole rows, padded on the right.
      sequences: the same without padding.
      ends: int [pieces, rows], where each piece ends.
      logits: float32 [rows, T, V] of transformers' forward pass.
    """

    batch: hf.Batch
    sequences: list[Sequence]
    ends: np.ndarray
    logits: np.ndarray


def make_chat(at) -> Chat:
    rows = [a + [REPLIES[0]] + b + [REPLIES[1]] for a, b in zip(FIRST, SECOND, strict=True)]
    batch = parity.make_batch(at.policy, rows, "right", seed=5)
    steps = [[length(a)] + [1] * REPLIES[0] for a in FIRST]
    steps = [s + [length(b)] + [1] * REPLIES[1] for s, b in zip(steps, SECOND, strict=True)]
    return Chat(
        batch,
        inference.split_rows(at.policy, *batch),
        np.cumsum(steps, 1).T,
        hf.logits(at.model, batch),
    )


def shown_in(at, tokens) -> int:
    return int((tokens == at.policy.config.vision_start_token_id).sum())


def cut(at, chat):
    """Per piece and row (tokens, pictures)."""
    left = [list(s.pictures) for s in chat.sequences]
    for before, end in zip(np.r_[0 * chat.ends[:1], chat.ends[:-1]], chat.ends, strict=True):
        piece = []
        for r, s in enumerate(chat.sequences):
            tokens = s.tokens[before[r] : end[r]]
            shown = shown_in(at, tokens)
            piece.append((tokens, left[r][:shown]))
            left[r] = left[r][shown:]
        yield piece
    assert not any(left)


def chunk(at, piece, start):
    """A piece as the engine takes it; the padding is no quiet zero."""
    place, rows = at.policy.config.layout, len(piece)
    width = max(tokens.size for tokens, _ in piece)
    width = 32 if width > 1 else 1  # the programs of a prompt and of a step
    tokens, positions = np.full((rows, width), 7, np.int32), np.full((3, rows, width), 9, np.int32)
    after, source = np.zeros(rows, np.int32), np.full((rows, width), -1, np.int32)
    pictures = None
    if width > 1:
        packed = layout.pack_pictures(
            [p for _, p in piece], place, 2, layout.round_up(160, place.block)
        )
        data, coords, segments, units = packed
        pictures = Pictures(data, coords, segments, source)
    for r, (ids, shown) in enumerate(piece):
        grids = [p.grid for p in shown]
        tokens[r, : ids.size] = ids
        positions[:, r, : ids.size], after[r] = layout.positions(ids, grids, place, int(start[r]))
        if shown:
            source[r, np.flatnonzero(ids == place.image_id)] = np.concatenate(units[r])
    count = np.array([ids.size for ids, _ in piece], np.int32)
    return engine.Chunk(tokens, count, positions, after, pictures)


def ours(at, chat, policy=None, shift=0) -> np.ndarray:
    """Next-token logits after each piece, [pieces, rows, V]; `shift` misplaces the second turn."""
    policy = policy or at.policy
    view = engine.make_view(policy, at.params)
    state = engine.init(policy, len(FIRST), SLOTS)
    start, out = np.zeros(len(FIRST), np.int32), []
    for i, piece in enumerate(cut(at, chat)):
        made = chunk(at, piece, start + (shift if i == 1 + REPLIES[0] else 0))
        state = engine.append(policy, view, state, made)
        start = np.asarray(state.next_position)
        out.append(np.asarray(models.logits(policy, at.params, state.hidden)))
    np.testing.assert_array_equal(state.lengths, [s.tokens.size for s in chat.sequences])
    return np.stack(out)


@torch.no_grad()
def theirs(at, chat) -> np.ndarray:
    """The same through transformers' cache: pieces padded on the left, padding masked for good."""
    at.model.model.rope_deltas = None
    positions = hf.positions(at.model, chat.batch)
    cache, seen, before, out = None, np.zeros((len(FIRST), 0), np.int64), 0 * chat.ends[0], []
    for piece, end in zip(cut(at, chat), chat.ends, strict=True):
        width = max(tokens.size for tokens, _ in piece)
        ids, mask = np.full((2, len(piece), width), 0, np.int64)
        place = np.zeros((3, len(piece), width), np.int64)
        for r, (tokens, _) in enumerate(piece):
            ids[r, width - tokens.size :], mask[r, width - tokens.size :] = tokens, 1
            place[:, r, width - tokens.size :] = positions[:, r, before[r] : end[r]]
        seen, before = np.concatenate([seen, mask], 1), end
        shown = [p for _, pictures in piece for p in pictures]
        batch = hf.Batch(ids, seen, None, None)
        if shown:
            values, grids = [p.patches for p in shown], [p.grid for p in shown]
            batch = batch._replace(
                pixel_values=np.concatenate(values), image_grid_thw=np.array(grids)
            )
        result = at.model(
            **hf.torch_inputs(at.model, batch),
            position_ids=torch.from_numpy(place),
            past_key_values=cache,
            use_cache=True,
        )
        cache = result.past_key_values
        out.append(result.logits[:, -1].numpy())
    return np.stack(out)


@pytest.fixture(scope="module")
def chats():
    made = {}
    return lambda at: made.setdefault(id(at), make_chat(at))


def after_pieces(chat) -> np.ndarray:
    """The forward pass where the pieces end."""
    return np.stack([chat.logits[np.arange(len(FIRST)), end - 1] for end in chat.ends])


def test_two_turns(either, chats):
    chat = chats(either)
    mine, cached = ours(either, chat), theirs(either, chat)
    assert mine.shape == (2 + sum(REPLIES), len(FIRST), 96)
    assert parity.compare("cache", mine, cached) <= parity.LIMIT
    assert parity.compare("forward", mine, after_pieces(chat)) <= parity.LIMIT
    # The log-probs of the replies' tokens, as a rollout hands them on.
    for i, end in enumerate(chat.ends[:-1]):
        if (chat.ends[i + 1] - end == 1).all():
            said = [s.tokens[n] for s, n in zip(chat.sequences, end, strict=True)]
            a, b = (parity.scores(either, raw, said) for raw in (mine[i], cached[i]))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_a_second_turn_one_position_late_fails(either, chats):
    off = np.abs(ours(either, chats(either), shift=1) - after_pieces(chats(either)))
    late = 1 + REPLIES[0]
    assert off[:late].max() <= parity.LIMIT * 3
    assert (off[late:].max((1, 2)) > 100 * parity.LIMIT).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat tied", "qwen3 tied"])
def test_two_turns_tied(name, references):
    at = references(name)
    chat = make_chat(at)
    mine = ours(at, chat)
    assert parity.compare("cache", mine, theirs(at, chat)) <= parity.LIMIT
    assert parity.compare("forward", mine, after_pieces(chat)) <= parity.LIMIT
