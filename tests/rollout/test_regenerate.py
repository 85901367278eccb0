"""Episodes sampled again behind hidden tokens: what stays, what is new, and under which states."""

import dataclasses

import jax
import numpy as np
import pytest

from vrrl_jax import compiles, inference, layout, testing
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.models import policy as models
from vrrl_jax.processing import processor as processing
from vrrl_jax.rl import masking
from vrrl_jax.rollout import engine, episodes, regenerate
from vrrl_jax.rollout.episodes import Group, Settings
from vrrl_jax.types import Outcome, Prompt, Sequence

TURNS, BUDGET = 3, 6
SETTINGS = Settings(samples=2, max_turns=TURNS, max_new_tokens=BUDGET, keep_images=True)
MAPS = testing.tiny_maps(3)
PROPOSED = "<ANSWER>up right</ANSWER>"


@dataclasses.dataclass
class Board:
    """FrozenLake that answers anything, and remembers what it was told."""

    told: list = dataclasses.field(default_factory=list)

    def reset(self, example):
        return env.reset(example, env.Settings(cell=testing.CELL, question="Solve"))

    def answer(self, example, texts):
        self.told.append((example.key, texts))
        if len(texts) >= TURNS:
            return Outcome(True)
        path = ("right", "down", "left")[: len(texts)]
        return Outcome(False, Prompt("Verify", (env.render(example, path, testing.CELL),)))


def score(texts, example, group):
    return {"total": float(sum(map(len, texts))), "question": float(group.question)}


@pytest.fixture(scope="module")
def tiny():
    """Many tokens end a turn, so that some replies stop and others are cut by their budget."""
    policy, params = testing.tiny_policy()
    return dataclasses.replace(policy, stop_ids=(*policy.stop_ids, *range(60))), params


@pytest.fixture(scope="module")
def shared(tiny, tiny_processor):
    """What both rollouts take: (policy, view, processor)."""
    return tiny[0], engine.make_view(*tiny), tiny_processor


@pytest.fixture(scope="module")
def shapes(tiny, tiny_processor):
    probes = [(map, env.PROBE) for map in MAPS]
    return episodes.plan_shapes(tiny[0], tiny_processor, Board(), probes, SETTINGS, roll_in=True)


@pytest.fixture(scope="module")
def groups(tiny_processor):
    """Two that start afresh; one after a wrong turn, whose first new reply is made to open."""
    ids = np.int32([*processing.encode(tiny_processor, PROPOSED), tiny_processor.ids.im_end])
    prefix = (ids,), (np.full(ids.size, -0.5, np.float32),)
    return [
        Group(0, MAPS[0]),
        Group(1, MAPS[1]),
        Group(2, MAPS[2], "roll_in", *prefix, opening="<THINK>"),
    ]


@pytest.fixture(scope="module")
def played(shared, groups, shapes):
    key = jax.random.key(0)
    return episodes.rollout(*shared, Board(), groups, SETTINGS, shapes, key, 5, score)[0]


@pytest.fixture(scope="module")
def again(shared, groups, shapes, played):
    def again(lengths, board=None, settings=SETTINGS, shapes=shapes, of=played, **options):
        return regenerate.regenerate(
            *shared,
            board or Board(),
            of,
            lengths,
            groups,
            settings,
            shapes,
            jax.random.key(0),
            5,
            score,
            **options,
        )

    return again


def ends(episode):
    """Generated tokens up to the end of each reply."""
    return [int(episode.loss_mask[:end].sum()) for _, end in episode.spans]


@pytest.fixture(scope="module")
def lengths(played):
    """In the first reply, at its end, spared, in the second; after a roll-in the same."""
    first = [ends(e) for e in played]
    chosen = [2, first[1][0], 0, first[3][0] + 1, 1, first[5][1]]
    parts = [m not in first[b] for b, m in enumerate(chosen)]
    assert parts == [True, False, True, True, True, False], first
    return np.int32(chosen)


@pytest.fixture(scope="module", params=[False, True], ids=["pictures kept", "pictures hidden"])
def hit(request, again, lengths):
    """(hide_pictures, episodes, figures, what the environment was told)."""
    board = Board()
    return request.param, *again(lengths, board, hide_pictures=request.param), board.told


def kept(episode, length):
    """Tokens up to the last hidden one, its reply's end included where nothing else is left."""
    last = np.flatnonzero(episode.loss_mask)[length - 1]
    end = next(end for _, end in episode.spans if last < end)
    return last + 1 if episode.loss_mask[last + 1 : end].any() else end


_hidden_score = jax.jit(
    lambda policy, params, rows, hidden: models.token_logprobs(
        policy, params, models.hidden_states(policy, params, rows, hidden), rows.tokens
    )[0],
    static_argnums=0,
)


def teacher_forced(policy, params, played, hide=True):
    rows = inference.one_a_row(policy, [Sequence(e.tokens, e.pictures) for e in played], 160)
    hidden = np.zeros(rows.tokens.shape, bool)
    for r, episode in enumerate(played):
        if hide and episode.hidden is not None:
            hidden[r, : episode.tokens.size] = episode.hidden
    return np.asarray(_hidden_score(policy, params, rows, hidden))


def test_log_probabilities_are_those_under_the_masked_states(tiny, hit):
    """Over partial replies, whole ones, roll-ins, forced openings, pictures and cut turns."""
    found = hit[1]
    masked, plain = (teacher_forced(*tiny, found, hide) for hide in (True, False))
    for b, episode in enumerate(found):
        at = np.flatnonzero(episode.loss_mask)
        np.testing.assert_allclose(episode.logprobs[at], masked[b, at], atol=1e-4, rtol=0)
        off = np.abs(episode.logprobs[at] - plain[b, at]).max()
        assert off < 1e-4 if episode.hidden is None else off > 1e-3


def test_what_stays_and_what_is_new(hit, played, lengths):
    for old, new, m in zip(played, hit[1], lengths, strict=True):
        if m == 0:
            assert new is old
            continue
        size = kept(old, m)
        assert new.tokens[:size].tolist() == old.tokens[:size].tolist()
        assert new.tokens[size:].tolist() != old.tokens[size:].tolist()
        assert not new.loss_mask[:size].any() and not new.hidden[size:].any()
        assert new.hidden.shape == new.loss_mask.shape == new.logprobs.shape == new.tokens.shape
        assert not new.logprobs[new.hidden].any()
        assert new.loss_mask.any() and (new.logprobs[new.loss_mask > 0] < 0).all()
        same = ("question", "sample", "group", "mode", "prefix_turns", "prefix_right")
        assert all(getattr(new, name) == getattr(old, name) for name in same)
        assert len(new.texts) == len(new.spans) == len(new.prompts) == len(new.images) == TURNS
        assert new.rewards == score(new.texts, None, new)


def test_what_is_hidden_is_what_prefix_masking_draws(hit, tiny, played, lengths):
    """The first m generated tokens, and pictures before the last of them."""
    image = tiny[0].config.image_token_id
    width = max(e.tokens.size for e in played)
    wide = lambda x: np.pad(x, (0, width - x.size))
    loss_mask = np.stack([wide(e.loss_mask) for e in played])
    picture_mask = np.stack([wide(e.tokens == image) for e in played]) if hit[0] else None
    drawn = masking.random_prefix_mask(
        jax.random.key(3), loss_mask, probability=1.0, picture_mask=picture_mask
    )
    for b, episode in enumerate(played):
        mine = regenerate.hidden_tokens(episode, int(drawn.length[b]), image, pictures=hit[0])
        np.testing.assert_array_equal(wide(mine), drawn.state_mask[b])
        if lengths[b]:
            new = hit[1][b]
            mine = regenerate.hidden_tokens(episode, lengths[b], image, pictures=hit[0])
            size = min(mine.size, new.hidden.size)
            np.testing.assert_array_equal(new.hidden[:size], mine[:size])
            assert (new.hidden.sum() > lengths[b]) == hit[0]


def test_the_environment_reads_hidden_words(hit, played, lengths, tiny_processor, tiny):
    _, found, _, told = hit
    keys = {MAPS[e.question].key: e.question for e in played}
    for old, new, m in zip(played, found, lengths, strict=True):
        mine = [texts for key, texts in told if keys[key] == new.question]
        if m == 0:
            continue
        whole = sum(m >= n for n in ends(old))
        assert new.texts[:whole] == old.texts[:whole]
        # From the first reply on whose answer isn't recorded.
        first = whole if m in ends(old) else whole + 1
        assert all(new.texts[:n] in mine for n in range(first, TURNS + 1))
        for turn, (a, b) in enumerate(new.spans):
            ids = new.tokens[a:b].tolist()
            assert ids.pop() == tiny_processor.ids.im_end
            if turn >= new.prefix_turns and ids and ids[-1] in tiny[0].stop_ids:
                ids.pop()
            assert new.texts[turn] == processing.decode(tiny_processor, ids)
    hit_rows = [b for b in range(len(played)) if lengths[b]]
    assert {key for key, _ in told} <= {MAPS[played[b].question].key for b in hit_rows}


def test_transcripts_are_as_a_rollout_s(hit, tiny):
    """Turns count the replies that are over; pictures stand where their tokens are; budgets."""
    for episode in hit[1]:
        over = np.array([b for _, b in episode.spans])
        wanted = (np.arange(episode.tokens.size)[:, None] >= over).sum(1)
        assert (episode.turn_index == np.minimum(wanted, TURNS - 1)).all()
        counts = [layout.token_count(p.grid, 2) for p in episode.pictures]
        assert (episode.tokens == tiny[0].config.image_token_id).sum() == sum(counts)
        cut = False
        for turn, (a, b) in enumerate(episode.spans):
            opening = turn == episode.prefix_turns == 1
            assert b - a - opening <= BUDGET + 1
            if turn >= episode.prefix_turns and b - a - opening == BUDGET + 1:
                cut |= episode.tokens[b - 2] not in tiny[0].stop_ids
        assert episode.truncated == cut
        drawn = env.render(MAPS[episode.question], ("right", "down"), testing.CELL)
        assert (episode.images[2][0] == drawn).all()


def test_figures_count(hit, lengths):
    found, figures = hit[1:3]
    new = [e for e in found if e.hidden is not None]
    assert figures["regenerated_episodes"] == len(new) == (lengths > 0).sum()
    assert figures["regenerated_tokens"] == sum(e.loss_mask.sum() for e in new)
    assert figures["hidden_tokens"] == sum(e.hidden.sum() for e in new)


def test_a_sample_depends_on_no_other_hit(again, played, lengths, hit):
    """Alone, and among others of the batch: the same tokens. Nothing new is compiled."""
    before = compiles.Counter()
    count = before.count
    alone = np.where(np.arange(6) == 3, lengths, 0)
    found, _ = again(alone, hide_pictures=hit[0])
    assert before.count == count
    assert found[3].tokens.tolist() == hit[1][3].tokens.tolist()
    assert [a is b for a, b in zip(found, played, strict=True)] == [b != 3 for b in range(6)]
    fewer, _ = again(lengths[2:4], of=played[2:4], hide_pictures=hit[0])
    assert fewer[1].tokens.tolist() == found[3].tokens.tolist()


def test_nothing_hit_is_nothing_done(again, played):
    found, figures = again(np.zeros(6, np.int32), board=None)
    assert all(a is b for a, b in zip(found, played, strict=True))
    assert figures["regenerated_tokens"] == 0


def test_an_episode_that_is_hidden_whole_stays(again, played):
    """Nothing is left to sample: no token carries loss."""
    whole = np.int32([played[0].loss_mask.sum(), 0, 0, 0, 0, 0])
    (found, *_), _ = again(whole)
    assert found.tokens.tolist() == played[0].tokens.tolist()
    assert found.texts == played[0].texts and found.truncated == played[0].truncated
    assert not found.loss_mask.any()


def test_a_trained_prefix_that_is_cut_counts_as_sampled(shared, groups, shapes, again, tiny):
    settings = dataclasses.replace(SETTINGS, train_prefix=True)
    key = jax.random.key(0)
    played = episodes.rollout(*shared, Board(), groups, settings, shapes, key, 5, score)[0]
    found, _ = again(np.int32([0, 0, 0, 0, 2, 0]), settings=settings, of=played)
    assert found[4].prefix_turns == 0 < found[5].prefix_turns
    wanted = teacher_forced(*tiny, found[4:5])[0]
    at = np.flatnonzero(found[4].loss_mask)
    np.testing.assert_allclose(found[4].logprobs[at], wanted[at], atol=1e-4, rtol=0)


def test_mistakes_are_told(again, played, lengths, shapes):
    with pytest.raises(ValueError, match="roll_in=True"):
        again(lengths, shapes=dataclasses.replace(shapes, follow=8))
    with pytest.raises(ValueError, match="a chunk of"):
        again(lengths, shapes=dataclasses.replace(shapes, follow=24))
    with pytest.raises(ValueError, match="its group of"):
        again(lengths, of=[dataclasses.replace(e, group=1) for e in played])


# --- the rest is kept ----------------------------------------------------------------------------
