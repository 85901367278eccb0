"""What is Qwen3-VL's own, done wrong: each mistake is ten times over the parity tests' limits."""

import jax
import jax.numpy as jnp
import pytest

from vrrl_jax.models import decoder, qwen3_vision

parity = pytest.importorskip("parity")
LIMIT, VISION_LIMIT = parity.LIMIT, parity.VISION_LIMIT
logits_off, embeddings_off = parity.logits_off, parity.embeddings_off
logprobs_off, traced_anew = parity.logprobs_off, parity.traced_anew
with_text, with_vision = parity.with_text, parity.with_vision


def test_dropped_deepstack_fails(plain3):
    assert plain3.policy.config.vision.deepstack == (0, 2)
    wrong = with_vision(plain3.policy, deepstack=())
    assert logits_off(plain3, wrong) > 10 * LIMIT
    assert logprobs_off(plain3, wrong) > 10 * LIMIT
    # The embeddings themselves don't need it: the test of logits is the one that sees.
    assert embeddings_off(plain3, wrong) <= VISION_LIMIT


def test_a_perturbed_mrope_section_fails(plain3):
    """The height's section one frequency shorter."""
    assert plain3.policy.config.text.mrope_section == (4, 2, 2)
    assert logits_off(plain3, with_text(plain3.policy, mrope_section=(4, 1, 2))) > 10 * LIMIT


def test_sections_in_a_row_fail(plain3):
    assert logits_off(plain3, with_text(plain3.policy, interleaved=False)) > 10 * LIMIT


# --- slow ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mrope_section": (4, 2, 1)},
        {"mrope_section": (4, 3, 2)},
        {"mrope_section": (4, 0, 2)},
        {"rope_theta": 1e5},
        {"eps": 1e-3},
        {"qk_norm": False},
    ],
    ids=str,
)
def test_wrong_text_config_fails(plain3, changes):
    assert logits_off(plain3, with_text(plain3.policy, **changes)) > 10 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("deepstack", [(0, 1), (1, 2), (0, 3), (1, 3)])
def test_features_of_other_blocks_fail(plain3, deepstack):
    wrong = with_vision(plain3.policy, deepstack=deepstack)
    assert logits_off(plain3, wrong) > 10 * LIMIT


def _one_layer_late(features, source):
    return jnp.concatenate([jnp.zeros_like(features[:1]), features]), source


def _in_reverse(features, source):
    return features[::-1], source


def _without_the_last(features, source):
    return features[:-1], source


def _at_the_next_token(features, source):
    return features, jnp.roll(source, 1, -1)


def _twice(features, source):
    return 2 * features, source


DEEPSTACK = [_one_layer_late, _in_reverse, _without_the_last, _at_the_next_token, _twice]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", DEEPSTACK)
def test_wrong_deepstack_fails(plain3, monkeypatch, mistake):
    right = decoder._add_features
    monkeypatch.setattr(decoder, "_add_features", lambda x, i, *a: right(x, i, *mistake(*a)))
    wrong = traced_anew(plain3.policy, 10 + DEEPSTACK.index(mistake))
    assert logits_off(plain3, wrong) > 10 * LIMIT


def _swapped(coords, side, right):
    return right(coords[..., jnp.array([1, 0, 3, 2])], side)


def _centres_aligned(coords, side, right):
    """align_corners off: a table's cells cover the picture, and their centres are sampled."""
    place, extent = coords[..., :2].astype(jnp.float32), coords[..., 2:]
    at = jnp.clip((place + 0.5) * side / extent - 0.5, 0, side - 1)
    low = jnp.floor(at).astype(jnp.int32)
    part, high = at - low, jnp.minimum(low + 1, side - 1)
    ends, shares = jnp.stack([low, high], -1), jnp.stack([1 - part, part], -1)
    indices = ends[..., 0, :, None] * side + ends[..., 1, None, :]
    weights = shares[..., 0, :, None] * shares[..., 1, None, :]
    return indices.reshape(*at.shape[:-1], 4), weights.reshape(*at.shape[:-1], 4)


def _nearest(coords, side, right):
    indices, weights = right(coords, side)
    best = weights.argmax(-1)
    return indices, jax.nn.one_hot(best, 4)


def _none(coords, side, right):
    indices, weights = right(coords, side)
    return indices, 0 * weights


def _unscaled(coords, side, right):
    place = jnp.minimum(coords[..., :2], side - 1)
    return right(jnp.concatenate([place, jnp.full_like(place, side)], -1), side)


TABLE = [_swapped, _centres_aligned, _nearest, _none, _unscaled]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", TABLE)
def test_wrong_learned_positions_fail(plain3, monkeypatch, mistake):
    right = qwen3_vision.position_weights
    monkeypatch.setattr(qwen3_vision, "position_weights", lambda c, s: mistake(c, s, right))
    wrong = traced_anew(plain3.policy, 20 + TABLE.index(mistake))
    assert embeddings_off(plain3, wrong) > 10 * VISION_LIMIT
    assert logits_off(plain3, wrong) > 10 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("tanh", [False, True], ids=["exact in blocks", "tanh in mergers"])
def test_wrong_gelu_fails(plain3, monkeypatch, tanh):
    right = jax.nn.gelu
    monkeypatch.setattr(qwen3_vision.nn, "gelu", lambda x, approximate: right(x, tanh))
    wrong = traced_anew(plain3.policy, 30 + tanh)
    assert embeddings_off(plain3, wrong) > 10 * VISION_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"rope_theta": 1e3}, {"full_blocks": ()}], ids=str)
def test_vision_config(plain3, changes):
    """The base of rotary positions matters; blocks know no windows, whatever is said of them."""
    off = embeddings_off(plain3, with_vision(plain3.policy, **changes))
    assert off > 10 * VISION_LIMIT if "rope_theta" in changes else off <= VISION_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("eps", [1e-4, 1e-3])
def test_wrong_eps_of_the_tower_fails(plain3, monkeypatch, eps):
    monkeypatch.setattr(qwen3_vision, "EPS", eps)
    wrong = traced_anew(plain3.policy, 40 + int(eps * 1e5))
    assert embeddings_off(plain3, wrong) > 2 * VISION_LIMIT
