"""Policy functions against each other: scoring in chunks, the cache in pieces, raw pictures."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import inference, layout
from vrrl_jax.models import policy as models
from vrrl_jax.types import Picture, Sequence

TINY = pathlib.Path(__file__).parent / "goldens" / "qwen2_5_vl_tiny"
IMAGE, VIDEO, START, END = 92, 93, 94, 95
# What each row holds: text lengths, or pictures of (rows, columns) patches.
ROWS = [[4, (4, 6), 5], [12], [2, (2, 2), 3, (6, 4), 4], [1, (2, 6), 2]]


def picture(rows, columns, rng) -> Picture:
    return Picture(rng.integers(0, 256, (rows * columns, 48), np.uint8), (1, rows, columns))


def sequence(parts, rng) -> Sequence:
    tokens, pictures = [], []
    for part in parts:
        if isinstance(part, int):
            tokens += rng.integers(3, 90, part).tolist()
        else:
            tokens += [START, *[IMAGE] * (part[0] * part[1] // 4), END]
            pictures.append(picture(*part, rng))
    return Sequence(np.array(tokens, np.int32), tuple(pictures))


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [sequence(parts, rng) for parts in ROWS]


@pytest.fixture(scope="module")
def loaded():
    return vr.load_pretrained(TINY, value_head=True)


@pytest.fixture(scope="module")
def rows(loaded, sequences):
    return inference.one_a_row(loaded[0], sequences, tokens=24)


_hidden = jax.jit(models.hidden_states, static_argnums=0)


@pytest.fixture(scope="module")
def hidden(loaded, rows):
    return _hidden(*loaded, rows)


# --- log-probabilities and entropy ---------------------------------------------------------------


def naive_scores(policy, params, hidden, targets, temperature):
    """log_softmax of all logits in float64 numpy, and its entropy; entry t scores token t."""
    kernel = np.asarray(models.head_kernel(policy, params), np.float64)
    raw = np.asarray(hidden, np.float64) @ kernel / (temperature or 1.0)
    raw = np.concatenate([np.zeros_like(raw[:, :1]), raw[:, :-1]], 1)
    raw[..., [IMAGE, VIDEO]] = -np.inf
    logprobs = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    finite = np.where(np.isfinite(logprobs), logprobs, 0)
    entropy = -(np.exp(logprobs) * finite).sum(-1)
    return np.take_along_axis(finite, np.asarray(targets)[..., None], -1)[..., 0], entropy


def score(policy, params, hidden, targets, temperature=1.0):
    """A fresh jit a call: the chunk size is read while tracing."""
    call = functools.partial(models.token_logprobs, policy, temperature=temperature)
    return jax.jit(call)(params, hidden, targets)


# 24 tokens in 1, 4 (the last short), and 24 chunks.
@pytest.mark.parametrize("chunk", [24, 7, 1])
def test_chunked_logprobs_equal_log_softmax(loaded, rows, hidden, monkeypatch, chunk):
    monkeypatch.setattr(models, "CHUNK_ELEMENTS", chunk * 4 * 96)
    ours, entropy = score(*loaded, hidden, rows.tokens)
    wanted, wanted_entropy = naive_scores(*loaded, hidden, rows.tokens, 1.0)
    at = np.arange(24) > 0
    np.testing.assert_allclose(ours[:, at], wanted[:, at], rtol=0, atol=1e-5)
    np.testing.assert_allclose(entropy[:, at], wanted_entropy[:, at], rtol=0, atol=1e-5)
    assert wanted_entropy[:, at].min() < 0.8 * np.log(94), "an entropy that shows nothing"


def test_forward_is_the_same_scores(loaded, rows):
    """The public function equals log_softmax of the public logits, placeholders left out."""
    raw = np.array(jax.jit(models.forward, static_argnums=0)(*loaded, rows))
    raw[..., [IMAGE, VIDEO]] = -np.inf
    logprobs = np.asarray(jax.nn.log_softmax(raw[:, :-1] / 0.7))
    wanted = np.take_along_axis(logprobs, rows.tokens[:, 1:, None], -1)[..., 0]
    ours = np.asarray(vr.token_logprobs(*loaded, rows, 0.7))[:, 1:]
    text = (rows.tokens[:, 1:] != IMAGE) & (rows.segments[:, 1:] > 0)
    np.testing.assert_allclose(ours[text], wanted[text], rtol=0, atol=1e-5)
    assert np.isfinite(ours).all(), "a placeholder as target must not poison a sum"


def test_temperature_zero_counts_as_one(loaded, rows, hidden):
    cold, one = score(*loaded, hidden, rows.tokens, 0.0), score(*loaded, hidden, rows.tokens, 1.0)
    np.testing.assert_array_equal(cold[0], one[0])


def test_alternatives_are_scored_like_single_targets(loaded, rows, hidden):
    targets = np.stack([rows.tokens, np.roll(rows.tokens, 1, 0), np.full_like(rows.tokens, 7)], -1)
    ours, _ = score(*loaded, hidden, targets)
    assert ours.shape == targets.shape
    for a in range(3):
        single, _ = score(*loaded, hidden, targets[..., a])
        np.testing.assert_allclose(ours[..., a], single, rtol=0, atol=1e-6)


def test_gradients_do_not_depend_on_chunks(loaded, rows, hidden, monkeypatch):
    """Of states and head, against the gradient of a plain log_softmax."""
    policy, params = loaded
    weights = np.random.default_rng(1).random((2, 4, 24)).astype(np.float32)
    weights[:, :, 0] = 0
    weights *= rows.segments > 0

    def chunked(kernel, hidden):
        head = params | {"lm_head": {"kernel": kernel}}
        logprobs, entropy = models.token_logprobs(policy, head, hidden, rows.tokens)
        return (weights[0] * logprobs + weights[1] * entropy).sum()

    def plain(kernel, hidden):
        raw = (hidden @ kernel)[:, :-1].at[..., jnp.array([IMAGE, VIDEO])].set(-1e30)
        logprobs = jax.nn.log_softmax(raw)
        shown = rows.tokens[:, 1:] != IMAGE
        ids = jnp.where(shown, rows.tokens[:, 1:], 0)
        picked = jnp.take_along_axis(logprobs, ids[..., None], -1)[..., 0] * shown
        entropy = -(jnp.exp(logprobs) * jnp.maximum(logprobs, -1e3)).sum(-1)
        return (weights[0, :, 1:] * picked + weights[1, :, 1:] * entropy).sum()

    at = params["lm_head"]["kernel"], hidden
    wanted_value, wanted = jax.jit(jax.value_and_grad(plain, (0, 1)))(*at)
    monkeypatch.setattr(models, "CHUNK_ELEMENTS", 5 * 4 * 96)
    value, ours = jax.jit(jax.value_and_grad(chunked, (0, 1)))(*at)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
    for a, b in zip(ours, wanted, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_values_read_the_emitting_state(loaded, rows, hidden):
    policy, params = loaded
    rng = np.random.default_rng(2)
    head = {"kernel": rng.standard_normal((48, 1)), "bias": np.array([0.5])}
    params = params | {"value_head": jax.tree.map(np.float32, head)}
    ours = np.asarray(vr.values(policy, params, rows))
    wanted = np.asarray(hidden, np.float64)[:, :-1] @ head["kernel"][:, 0] + 0.5
    np.testing.assert_allclose(ours[:, 1:], wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours[:, 0], 0.5)


# --- cache ---------------------------------------------------------------------------------------

_cached = jax.jit(models.cached_forward, static_argnums=0)
SLOTS = 32


def cut(sequence: Sequence, policy, ends) -> list[tuple[np.ndarray, np.ndarray, list]]:
    """A sequence in pieces (tokens, positions, pictures) that end at `ends`."""
    grids = [p.grid for p in sequence.pictures]
    positions, _ = layout.positions(sequence.tokens, grids, policy.config.layout)
    out, start, left = [], 0, list(sequence.pictures)
    for end in ends:
        tokens = sequence.tokens[start:end]
        shown = int((tokens == START).sum())
        out.append((tokens, positions[:, start:end], left[:shown]))
        start, left = end, left[shown:]
    assert start == sequence.tokens.size
    assert not left
    return out


def run_pieces(policy, view, sequences, ends, width) -> list[np.ndarray]:
    """Appends every row's pieces, right-padded to `width`; hidden states of each row's tokens."""
    place = policy.config.layout
    cache = models.init_cache(policy, len(sequences), SLOTS)
    lengths = np.zeros(len(sequences), np.int32)
    pieces = [cut(s, policy, e) for s, e in zip(sequences, ends, strict=True)]
    out: list[list[np.ndarray]] = [[] for _ in sequences]
    for step in range(len(ends[0])):
        now = [row[step] for row in pieces]
        # The padding is no quiet zero: it must leave no trace.
        tokens = np.full((len(now), width), 17, np.int32)
        positions = np.full((3, len(now), width), 9, np.int32)
        data, coords, segments, units = layout.pack_pictures([p for *_, p in now], place, 2, 32)
        data = data if data.shape[-1] == 48 else np.zeros((*data.shape[:3], 48), np.uint8)
        source = np.full((len(now), width), -1, np.int32)
        for r, (ids, position, pictures) in enumerate(now):
            tokens[r, : ids.size], positions[:, r, : ids.size] = ids, position
            if pictures:
                source[r, np.flatnonzero(ids == IMAGE)] = np.concatenate(units[r])
        shown = models.Pictures(data, coords, segments, source)
        x, cache = _cached(policy, view, cache, tokens, positions, lengths, shown)
        for r, (ids, *_) in enumerate(now):
            out[r].append(np.asarray(x[r, : ids.size]))
            lengths[r] += ids.size
    return [np.concatenate(row) for row in out]


@pytest.fixture(scope="module")
def view(loaded):
    return jax.jit(models.rollout_view, static_argnums=0)(*loaded)


# Where each row's pieces end; row lengths are 17, 12, 20 and 8; never inside a picture.
SPLITS = {
    "at once": [[17], [12], [20], [8]],
    "two ragged pieces": [[4, 17], [9, 12], [6, 20], [8, 8]],
    "empty pieces and single tokens": [
        [12, 13, 14, 17],
        [0, 1, 11, 12],
        [5, 5, 6, 20],
        [0, 8, 8, 8],
    ],
}


@pytest.mark.parametrize("name", SPLITS)
def test_cache_in_pieces_equals_one_forward(loaded, view, sequences, hidden, name):
    ends = SPLITS[name]
    assert [e[-1] for e in ends] == [s.tokens.size for s in sequences]
    pieces = run_pieces(loaded[0], view, sequences, ends, width=20)
    for r, states in enumerate(pieces):
        np.testing.assert_allclose(states, hidden[r, : len(states)], rtol=0, atol=2e-5)
    assert np.abs(np.asarray(hidden)).std() > 0.5


def test_cache_one_token_at_a_time(loaded, view, sequences, hidden):
    """The program of decoding: a text suffix token by token after a prefill."""
    policy = loaded[0]
    place = policy.config.layout
    text = sequences[1]
    positions, _ = layout.positions(text.tokens, [], place)
    cache = models.init_cache(policy, 1, SLOTS)
    for t in range(12):
        x, cache = _cached(
            policy,
            view,
            cache,
            text.tokens[None, t : t + 1],
            positions[:, None, t : t + 1],
            np.array([t], np.int32),
        )
        np.testing.assert_allclose(x[0, 0], hidden[1, t], rtol=0, atol=2e-5)


# --- pictures and dtypes -------------------------------------------------------------------------


def as_pixel_values(picture: Picture) -> Picture:
    """What a processor makes of raw patches, by loops: normalised, twice in time."""
    channels = picture.patches.reshape(-1, 3, 16).astype(np.float64) / 255
    for c, (mean, std) in enumerate(zip(models.CLIP_MEAN, models.CLIP_STD, strict=True)):
        channels[:, c] = (channels[:, c] - mean) / std
    values = np.stack([channels, channels], 2).reshape(len(picture.patches), -1)
    return Picture(values.astype(np.float32), picture.grid)


def test_raw_patches_equal_pixel_values(loaded, sequences, hidden):
    floats = [
        dataclasses.replace(s, pictures=tuple(map(as_pixel_values, s.pictures))) for s in sequences
    ]
    rows = inference.one_a_row(loaded[0], floats, tokens=24)
    assert rows.pictures.patches.dtype == np.float32
    ours = np.asarray(_hidden(*loaded, rows))
    real = rows.segments > 0
    np.testing.assert_allclose(ours[real], np.asarray(hidden)[real], rtol=0, atol=2e-5)


def test_bfloat16_compute_is_finite_and_near(loaded, rows):
    policy, params = loaded
    half = dataclasses.replace(policy, compute_dtype="bfloat16")
    ours = np.asarray(vr.token_logprobs(half, params, rows))
    exact = np.asarray(vr.token_logprobs(policy, params, rows))
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    real = (rows.segments > 0) & (np.arange(24) > 0)
    off = np.abs(ours - exact)[real]
    print(f"bfloat16: median {np.median(off):.3f}, largest {off.max():.3f}")
    assert np.median(off) < 0.05 * exact[real].std()


def test_padding_holds_no_infinities(loaded, rows):
    """Rows of nothing but padding give finite states, hence finite gradients after masking."""
    empty = rows._replace(segments=np.zeros_like(rows.segments))
    assert np.isfinite(np.asarray(_hidden(*loaded, empty))).all()


def test_init_is_the_same_everywhere(loaded):
    """Drawn by numpy from the seed: shapes of the checkpoint, known moments."""
    policy, params = loaded
    one, same, other = (models.init_params(policy, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, params)
    kernel = one["layers"]["mlp"]["gate_proj"]["kernel"]
    assert (kernel != other["layers"]["mlp"]["gate_proj"]["kernel"]).all()
    np.testing.assert_allclose(kernel.std(), 48**-0.5, rtol=0.05)
    assert not np.any(one["value_head"]["kernel"])
