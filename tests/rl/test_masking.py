"""Random Turn Masking and random prefix masking: support, law, and the closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vrrl_jax.rl as rl

# Three turns of different lengths behind a prompt; the fourth row is padding throughout.
TURNS = np.array(
    [
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
LOSS = np.array(
    [
        [0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0],  # turn 2 has no loss token: two turns
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    np.float32,
)
NUM_TURNS = np.array([3, 1, 2, 0])
KEYS = jax.random.split(jax.random.key(0), 6000)


@functools.partial(jax.jit, static_argnames="k_min")
def _many(keys, k_min=0):
    return jax.vmap(lambda k: rl.random_turn_mask(k, TURNS, LOSS, k_min=k_min))(keys)


def _expected_weights(k_min):
    """P(k <= t) by enumerating the draws."""
    weights = np.zeros_like(LOSS)
    for row, turns in enumerate(NUM_TURNS):
        draws = range(min(k_min, max(turns - 1, 0)), turns)
        for k in draws:
            weights[row] += (TURNS[row] >= k) * LOSS[row] / len(draws)
    return weights


@pytest.mark.parametrize("k_min", [0, 1, 5])
def test_sampled_masks_average_to_the_closed_form(k_min):
    masks = np.asarray(_many(KEYS, k_min))
    assert set(np.unique(masks)) <= {0.0, 1.0}
    weights = rl.closed_form_turn_weights(TURNS, LOSS, k_min=k_min)
    np.testing.assert_allclose(weights, _expected_weights(k_min), atol=1e-6)
    # Six standard deviations of a mean of 6000 coins.
    np.testing.assert_allclose(masks.mean(0), weights, atol=6 * 0.5 / np.sqrt(len(KEYS)))


def test_every_draw_drops_whole_leading_turns():
    masks = np.asarray(_many(KEYS[:200]))
    for mask in masks:
        for row, turns in enumerate(NUM_TURNS):
            options = [(TURNS[row] >= k) * LOSS[row] for k in range(max(turns, 1))]
            assert any((mask[row] == option).all() for option in options)
    # Rows draw on their own: both orders of two rows' numbers of dropped tokens occur.
    dropped = (LOSS.sum(-1) - masks.sum(-1))[:, [0, 2]] > 0
    assert {tuple(d) for d in dropped.tolist()} == {(a, b) for a in (0, 1) for b in (0, 1)}


def test_closed_form_is_t_plus_one_over_turns():
    weights = np.asarray(rl.closed_form_turn_weights(TURNS[0], LOSS[0]))
    np.testing.assert_allclose(weights, LOSS[0] * (TURNS[0] + 1) / 3, rtol=1e-6)
    given = rl.closed_form_turn_weights(TURNS[0], LOSS[0], num_turns=4)
    np.testing.assert_allclose(given, LOSS[0] * (TURNS[0] + 1) / 4, rtol=1e-6)


def test_last_turn_always_stays_and_final_is_the_largest_k():
    final = np.asarray(rl.final_turn_mask(TURNS, LOSS))
    np.testing.assert_array_equal(final, LOSS * (NUM_TURNS[:, None] - 1 == TURNS))
    np.testing.assert_array_equal(_many(KEYS[:50], 99), np.broadcast_to(final, (50, *final.shape)))
    assert (np.asarray(_many(KEYS[:200])) >= final).all()


def test_one_row_with_its_own_key_and_the_dtype_of_the_mask():
    for dtype in (bool, np.int32, np.float32):
        mask = jax.eval_shape(rl.random_turn_mask, KEYS[0], TURNS[0], LOSS[0].astype(dtype))
        assert mask.dtype == dtype and mask.shape == (12,)
    # Rows under keys of their own don't depend on their neighbours.
    one = jax.jit(rl.random_turn_mask)
    together = jax.jit(jax.vmap(rl.random_turn_mask))(KEYS[:3], TURNS[:3], LOSS[:3])
    for row in range(3):
        np.testing.assert_array_equal(together[row], one(KEYS[row], TURNS[row], LOSS[row]))


def test_expected_loss_agrees_under_a_fixed_normaliser_only():
    # One episode of 2, 2 and 3 loss tokens, whose turns cost 4, 1 and 1 a token.
    losses = np.where(TURNS[0] == 0, 4.0, 1.0).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def _both(how, masks, weights, denominator):
        def _loss(mask):
            return rl.reduce(losses, mask, how, length=7, denominator=denominator)

        return jax.vmap(_loss)(masks).mean(), _loss(weights)

    masks, weights = _many(KEYS)[:, 0], rl.closed_form_turn_weights(TURNS, LOSS)[0]
    # By hand: (13 + 5 + 3) / 3 = 8 / 3 + 4 / 3 + 3 = 7, over 7 tokens.
    for how, denominator in (("fixed_length", None), ("token_mean", 7.0)):
        drawn, closed = _both(how, masks, weights, denominator)
        np.testing.assert_allclose(drawn, 1, rtol=0.03)
        np.testing.assert_allclose(closed, 1, rtol=1e-5)
    # Normalised by what the draw left: the mean of 13/7, 1 and 1. By the weights' own sum: 7/5.
    for how in ("token_mean", "sequence_mean"):
        drawn, closed = _both(how, masks, weights, None)
        np.testing.assert_allclose(drawn, 9 / 7, rtol=0.02)
        np.testing.assert_allclose(closed, 7 / 5, rtol=1e-5)


GENERATED = np.zeros((3, 16), np.float32)
GENERATED[0, 3:8] = GENERATED[0, 11:15] = 1  # nine tokens in two turns
GENERATED[1, 5] = 1  # too short for a prefix
PICTURES = np.zeros((3, 16), bool)
PICTURES[:, 1] = PICTURES[:, 9:10] = True


@jax.jit
def _prefixes(keys, probability):
    def _one(key):
        return rl.random_prefix_mask(key, GENERATED, probability=probability, picture_mask=PICTURES)

    return jax.vmap(_one)(keys)


def test_prefix_length_is_uniform_over_half_of_the_generated_tokens():
    length = np.asarray(_prefixes(KEYS, 0.3).length)
    assert not length[:, 1:].any()
    frequencies = np.bincount(length[:, 0], minlength=5) / len(KEYS)
    assert len(frequencies) == 5  # 9 // 2 = 4 is the longest
    np.testing.assert_allclose(frequencies, [0.7] + [0.3 / 4] * 4, atol=0.025)


def test_prefix_masks_hide_the_first_generated_tokens():
    drawn = jax.tree.map(np.asarray, _prefixes(KEYS[:100], 1.0))
    rank = np.cumsum(GENERATED[0])
    for state_mask, loss_mask, length in zip(*drawn, strict=True):
        m = length[0]
        assert 1 <= m <= 4
        hidden = (GENERATED[0] == 1) & (rank <= m)
        first_picture = np.arange(16) == 1
        # The second picture comes after eight tokens, the prefix ends before: it is kept.
        np.testing.assert_array_equal(state_mask[0], hidden | first_picture)
        np.testing.assert_array_equal(loss_mask[0], GENERATED[0] * ~hidden)
        assert not state_mask[1:].any()
        np.testing.assert_array_equal(loss_mask[1:], GENERATED[1:])


def test_prefix_mask_options():
    draw = jax.jit(
        functools.partial(rl.random_prefix_mask, KEYS[3], GENERATED),
        static_argnames=("mask_states", "mask_loss"),
    )
    both, states = draw(probability=1.0), draw(probability=1.0, mask_loss=False)
    actions, none = draw(probability=1.0, mask_states=False), draw(probability=0.0)
    assert both.length[0] == states.length[0] == actions.length[0] > 0
    np.testing.assert_array_equal(both.state_mask, states.state_mask)
    np.testing.assert_array_equal(states.loss_mask, GENERATED)
    np.testing.assert_array_equal(both.loss_mask, actions.loss_mask)
    assert not actions.state_mask.any() and not none.state_mask.any()
    np.testing.assert_array_equal(none.loss_mask, GENERATED)
    # Without a picture mask only generated tokens are hidden.
    assert (np.asarray(both.state_mask) <= GENERATED).all()


def test_a_picture_inside_the_prefix_is_hidden():
    generated = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1, 1], bool)  # eight tokens
    pictures = np.array([0, 1, 0, 0, 1, 0, 0, 0, 0, 0], bool)
    draw = functools.partial(rl.random_prefix_mask, probability=1.0, picture_mask=pictures)
    out = jax.jit(jax.vmap(lambda key: draw(key, generated)))(KEYS[:60])
    # The pictures stand after one and after three generated tokens.
    np.testing.assert_array_equal(out.state_mask[:, 1], out.length > 1)
    np.testing.assert_array_equal(out.state_mask[:, 4], out.length > 3)
    assert set(out.length.tolist()) == {1, 2, 3, 4}


def test_turn_masks_refuse_mismatched_shapes():
    with pytest.raises(ValueError, match="one shape"):
        rl.random_turn_mask(KEYS[0], TURNS, jnp.ones(12))
