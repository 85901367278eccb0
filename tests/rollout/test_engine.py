"""The device side of a rollout, against teacher forcing and against itself."""

import jax
import numpy as np
import pytest

from vrrl_jax import compiles, inference
from vrrl_jax.models import policy as models
from vrrl_jax.rollout import engine
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Sequence

SLOTS, WIDTH, CAPACITY = 32, 12, 8
LENGTHS = (3, 12, 7)
NO_STOP = np.array([-1], np.int32)


def prompts(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 320, n).astype(np.int32) for n in lengths]


def chunk(texts, starts=None):
    """Text-only chunk; `starts` are the rows' next positions."""
    starts = [0] * len(texts) if starts is None else starts
    tokens = np.zeros((len(texts), WIDTH), np.int32)
    position = np.zeros((3, len(texts), WIDTH), np.int32)
    for b, text in enumerate(texts):
        tokens[b, : len(text)] = text
        position[:, b, : len(text)] = np.arange(len(text)) + starts[b]
    count = np.array([len(text) for text in texts], np.int32)
    return engine.Chunk(tokens, count, position, np.int32(starts) + count, None)


@pytest.fixture(scope="module")
def view(tiny):
    return engine.make_view(*tiny)


@pytest.fixture
def prefilled(tiny, view):
    policy, _ = tiny
    return engine.append(policy, view, engine.init(policy, len(LENGTHS), SLOTS), chunk(prompts()))


def keys(rows, seed=0):
    ids = np.arange(rows, dtype=np.int32)
    return engine.make_keys(jax.random.key(seed), 0, ids, np.zeros(rows, np.int32), 0)


def decode(tiny, view, state, active=None, sampling=Sampling(), stops=NO_STOP, limit=CAPACITY):  # noqa: B008
    rows = state.lengths.shape[0]
    active = np.ones(rows, bool) if active is None else active
    out = engine.decode(tiny[0], view, state, active, keys(rows), sampling, stops, limit, CAPACITY)
    return jax.device_get(out)


def row(state, b):
    """What is defined about a row: its filled slots, and the scalars."""
    n = int(state.lengths[b])
    cache = [np.asarray(a)[b, :n] for pair in state.cache for a in pair]
    return [*cache, np.asarray(state.hidden)[b], n, int(state.next_position[b])]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


_score = jax.jit(models.forward, static_argnums=0)


def teacher_forced(tiny, texts, temperature=1.0):
    """log p of every token in one forward pass over the whole texts, placeholders excluded."""
    policy, params = tiny
    rows = inference.one_a_row(policy, [Sequence(t) for t in texts], SLOTS)
    raw = np.array(_score(policy, params, rows), np.float64) / temperature
    raw[..., list(policy.placeholder_ids)] = -np.inf
    logprobs = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    return [np.append(0.0, logprobs[b, np.arange(len(t) - 1), t[1:]]) for b, t in enumerate(texts)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_decoded_logprobs_are_the_forward_pass_s(tiny, view, prefilled, temperature):
    _, out = decode(tiny, view, prefilled, sampling=Sampling(temperature))
    whole = [
        np.append(p, out.tokens[b, : out.lengths[b]]).astype(np.int32)
        for b, p in enumerate(prompts())
    ]
    wanted = teacher_forced(tiny, whole, temperature)
    for b, p in enumerate(prompts()):
        np.testing.assert_allclose(out.logprobs[b], wanted[b][len(p) :], atol=1e-4)
    assert (out.lengths == CAPACITY).all() and not out.stopped.any()
    assert (out.logprobs < -0.5).all()  # the comparison isn't one of zeros


def test_a_row_goes_on_after_its_pending_token_and_another_chunk(tiny, view, prefilled):
    """The last sampled token is in no cache yet; the next chunk opens with it."""
    state, out = decode(tiny, view, prefilled, limit=3)
    assert (state.lengths == np.array(LENGTHS) + 2).all()
    assert (state.next_position == np.array(LENGTHS) + 2).all()
    extra = prompts((4, 1, 2), seed=1)
    texts = [np.append(out.tokens[b, 2], e) for b, e in enumerate(extra)]
    state = engine.append(tiny[0], view, state, chunk(texts, state.next_position))
    _, more = decode(tiny, view, state)
    whole = [
        np.concatenate([p, out.tokens[b, :3], extra[b], more.tokens[b]]).astype(np.int32)
        for b, p in enumerate(prompts())
    ]
    wanted = teacher_forced(tiny, whole)
    for b in range(3):
        np.testing.assert_allclose(more.logprobs[b], wanted[b][-CAPACITY:], atol=1e-4)


def test_repeated_rows_equal_rows_that_were_prefilled_separately(tiny, view, prefilled):
    policy, _ = tiny
    spread = engine.repeat(policy, prefilled, 2)
    texts = [p for p in prompts() for _ in range(2)]
    apart = engine.append(policy, view, engine.init(policy, len(texts), SLOTS), chunk(texts))
    for b in range(len(texts)):
        for x, y in zip(row(spread, b), row(apart, b), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
        assert equal(row(spread, b), row(prefilled, b // 2))


def test_an_empty_chunk_leaves_a_row_as_it_is(tiny, view, prefilled):
    before = [row(prefilled, b) for b in range(3)]
    texts = [np.int32([5, 6]), np.zeros(0, np.int32), np.int32([7])]
    after = engine.append(tiny[0], view, prefilled, chunk(texts, prefilled.next_position))
    assert equal(row(after, 1), before[1])
    for b, n in ((0, 2), (2, 1)):
        assert int(after.lengths[b]) == LENGTHS[b] + n
        filled = [a[: LENGTHS[b]] for a in row(after, b)[:4]]
        assert equal(filled, before[b][:4])
        assert not np.array_equal(row(after, b)[4], before[b][4])


def test_inactive_rows_keep_their_state_and_sample_nothing(tiny, view, prefilled):
    before = row(prefilled, 1)
    state, out = decode(tiny, view, prefilled, active=np.array([True, False, True]))
    assert equal(row(state, 1), before)
    assert out.lengths.tolist() == [CAPACITY, 0, CAPACITY]
    assert not out.tokens[1].any() and not out.logprobs[1].any() and not out.stopped[1]


def test_a_row_that_stops_early_keeps_its_state_while_others_go_on(tiny, view, prefilled):
    _, free = decode(tiny, view, jax.tree.map(lambda a: a.copy(), prefilled))
    stop = free.tokens[1, 2]  # where row 1 will stop, if not before
    state, out = decode(tiny, view, prefilled, stops=np.array([stop, 383], np.int32))
    for b in range(3):
        said = free.tokens[b].tolist()
        n = next((i + 1 for i, token in enumerate(said) if token in (stop, 383)), CAPACITY)
        assert out.lengths[b] == n
        assert out.stopped[b] == (said[n - 1] in (stop, 383))
        assert out.tokens[b].tolist() == said[:n] + [0] * (CAPACITY - n)
        assert not out.logprobs[b, n:].any()
        assert int(state.lengths[b]) == LENGTHS[b] + n - 1
    assert out.lengths[1] <= 3


def test_the_limit_cuts_and_counts(tiny, view, prefilled):
    state, out = decode(tiny, view, prefilled, limit=1)
    assert out.lengths.tolist() == [1, 1, 1] and not out.stopped.any()
    assert (state.lengths == np.array(LENGTHS)).all()  # one token is out, none was fed back


def test_numbers_of_sampling_stops_and_limits_compile_nothing(tiny, view, prefilled):
    state, _ = decode(tiny, view, prefilled)
    state = engine.append(tiny[0], view, state, chunk([np.int32([1])] * 3, state.next_position))
    counter = compiles.Counter()
    sampling = Sampling(0.3, 5, 0.9)
    state, out = decode(
        tiny, view, state, sampling=sampling, stops=np.array([4], np.int32), limit=2
    )
    state = engine.append(tiny[0], view, state, chunk([np.int32([2])] * 3, state.next_position))
    assert counter.count == 0
