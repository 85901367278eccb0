"""Hidden tokens: zero embeddings in their places, and nothing of what they were."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrrl_jax import inference, layout, testing
from vrrl_jax.models import policy as models
from vrrl_jax.types import Picture, Sequence

T = 32


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def tiny(request):
    return testing.tiny_policy(family=request.param)


@pytest.fixture(scope="module")
def sequences(tiny):
    """Text, a picture, text, a smaller picture, text; and a text alone."""
    policy, rng = tiny[0], np.random.default_rng(0)
    patch, image = policy.config.vision.patch, policy.config.image_token_id
    text = lambda n: rng.integers(3, 60, n).tolist()
    tokens = [*text(3), *[image] * 6, *text(5), *[image] * 4, *text(9)]
    pixels = lambda n: rng.integers(0, 256, (n, 3 * patch**2), np.uint8)
    pictures = Picture(pixels(24), (1, 4, 6)), Picture(pixels(16), (1, 4, 4))
    return [Sequence(np.int32(tokens), pictures), Sequence(np.int32(text(20)))]


@pytest.fixture(scope="module")
def rows(tiny, sequences):
    return inference.one_a_row(tiny[0], sequences, tokens=T)


@pytest.fixture(scope="module")
def hidden(rows):
    """The second picture, some words around it, and the start of the other row."""
    hidden = np.zeros((2, T), bool)
    hidden[0, 11:20] = True
    hidden[1, 0:7] = True
    return hidden


_forward = jax.jit(
    lambda policy, params, rows, hidden: models.logits(
        policy, params, models.hidden_states(policy, params, rows, hidden)
    ),
    static_argnums=0,
)


@pytest.fixture(scope="module")
def masked(tiny, rows, hidden):
    return np.asarray(_forward(*tiny, rows, hidden))


def test_nothing_hidden_is_the_plain_forward(tiny, rows):
    policy, params = tiny
    plain = _forward(*tiny, rows, None)
    np.testing.assert_array_equal(_forward(*tiny, rows, np.zeros((2, T), bool)), plain)
    traced = lambda *hidden: str(
        jax.make_jaxpr(functools.partial(models.hidden_states, policy))(params, rows, *hidden)
    )
    assert traced() == traced(None)


def test_hiding_changes_later_logits_alone(tiny, rows, hidden, masked):
    plain = np.asarray(_forward(*tiny, rows, None))
    np.testing.assert_array_equal(masked[0, :11], plain[0, :11])
    for row, first in enumerate((11, 0)):
        end = int((rows.segments[row] > 0).sum())
        assert (np.abs(masked[row, first:end] - plain[row, first:end]).max(-1) > 1e-3).all()
    assert np.isfinite(masked).all()


def test_hidden_tokens_and_pictures_leave_no_trace(tiny, rows, hidden, masked):
    """Neither ids nor pixels, nor features of deep layers; a picture half shown still does."""
    rng, pictures = np.random.default_rng(1), rows.pictures
    tokens = np.where(hidden, rng.integers(3, 60, (2, T)), rows.tokens)
    assert (tokens != rows.tokens).sum() > 10
    unseen = np.zeros(pictures.segments.shape, bool)
    unseen[0] = pictures.segments[0] == 2  # the smaller picture follows in its slot, or
    if not unseen.any():
        unseen[0, 1] = pictures.segments[0, 1] > 0  # has one of its own
    assert unseen.sum() == 16
    noise = rng.integers(0, 256, pictures.patches.shape, np.uint8)
    other = pictures._replace(patches=np.where(unseen[..., None], noise, pictures.patches))
    changed = rows._replace(tokens=tokens, pictures=other)
    np.testing.assert_array_equal(_forward(*tiny, changed, hidden), masked)
    half = hidden.copy()
    half[0, 16] = False  # a token of that picture
    shown = [np.asarray(_forward(*tiny, r, half)) for r in (rows, changed)]
    assert np.abs(shown[0] - shown[1]).max() > 1e-3


def test_a_hidden_picture_shows_no_deep_features(tiny, rows, hidden):
    """Where there are features for the decoder, they are dropped along with the embeddings."""
    policy, params = tiny
    encode = functools.partial(models.encode_pictures, policy)
    units = jax.eval_shape(encode, params, rows.pictures)
    assert (units.features is None) == (policy.config.family == "qwen2_5_vl")
    everything = np.asarray(_forward(*tiny, rows, np.ones((2, T), bool)))
    textual = rows._replace(pictures=None)
    alone = np.asarray(_forward(*tiny, textual, np.ones((2, T), bool)))
    np.testing.assert_allclose(everything, alone, rtol=0, atol=1e-5)


def test_cached_forward_hides_alike(tiny, sequences, rows, hidden, masked):
    """In pieces, the second of which begins among hidden tokens."""
    policy, params = tiny
    place = policy.config.layout
    view = jax.jit(models.rollout_view, static_argnums=0)(policy, params)
    cache = models.init_cache(policy, 1, T)
    tokens, pictures = sequences[0].tokens, sequences[0].pictures
    ends, out = [0, 12, tokens.size], []
    positions, _ = layout.positions(tokens, [p.grid for p in pictures], place)
    forward = jax.jit(models.cached_forward, static_argnums=0)
    for a, b, picture in zip(ends, ends[1:], pictures, strict=False):
        data, coords, segments, units = layout.pack_pictures(
            [[picture]], place, 1, layout.round_up(32, place.block)
        )
        wide = lambda x, fill=0: np.pad(x, (0, 16 - (b - a)), constant_values=fill)[None]  # noqa: B023
        source = np.full(b - a, -1, np.int32)
        source[tokens[a:b] == place.image_id] = units[0][0]
        x, cache = forward(
            policy,
            view,
            cache,
            wide(tokens[a:b]),
            np.stack([wide(p) for p in positions[:, a:b]]),
            np.int32([a]),
            models.Pictures(data, coords, segments, wide(source, -1)),
            wide(hidden[0, a:b]),
        )
        out.append(np.asarray(models.logits(policy, params, x))[0, : b - a])
    np.testing.assert_allclose(np.concatenate(out), masked[0, : tokens.size], rtol=0, atol=1e-4)


def test_gradients_are_finite_and_none_reach_what_is_hidden(tiny, rows, hidden):
    """Of norms at a zero vector too: rows that are hidden from their first token on."""
    policy, params = tiny
    tokens = np.where(hidden, 377, rows.tokens).astype(np.int32)  # an id that stands nowhere else
    tokens[1] = np.where(hidden[1] | (np.arange(T) > 12), 377, tokens[1])
    hidden = hidden | (tokens == 377)
    assert hidden.any() and (hidden == (tokens == 377)).all()
    changed = rows._replace(tokens=tokens)

    @jax.jit
    def gradient(params):
        def loss(params):
            h = models.hidden_states(policy, params, changed, hidden)
            weights = jnp.sin(jnp.arange(h.size)).reshape(h.shape)
            return (h * weights * (changed.segments > 0)[..., None]).sum()

        return jax.grad(loss)(params)

    found = gradient(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    embedding = np.asarray(found["embed_tokens"]["embedding"])
    assert not embedding[377].any()
    assert embedding[int(tokens[0, 0])].any()
