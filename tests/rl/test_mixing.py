"""The mode of each question: its law, and the fallback of roll-in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vrrl_jax.rl as rl

NORMAL, RTM, ROLL_IN = range(3)


def test_modes_follow_the_weights():
    for weights in [(0, 0.6, 0.4), (2.0, 1.0, 1.0)]:
        modes = rl.draw_modes(jax.random.key(0), 20_000, weights)
        assert modes.dtype == jnp.int32 and rl.MODES == ("normal", "rtm", "roll_in")
        frequencies = np.bincount(modes, minlength=3) / 20_000
        np.testing.assert_allclose(frequencies, np.array(weights) / sum(weights), atol=0.02)
    assert frequencies.min() > 0
    assert (rl.draw_modes(jax.random.key(1), 50, (0, 0, 1)) == ROLL_IN).all()


@pytest.mark.parametrize("traced", [False, True])
def test_roll_in_falls_back_to_rtm(traced):
    draw = rl.draw_modes
    if traced:
        draw = jax.jit(draw, static_argnums=1)
    weights = jnp.array([0.2, 0.4, 0.4])
    free = np.asarray(draw(jax.random.key(2), 40, weights))
    np.testing.assert_array_equal(
        free, draw(jax.random.key(2), 40, weights, roll_in_available=True)
    )
    none = draw(jax.random.key(2), 40, weights, roll_in_available=False)
    np.testing.assert_array_equal(none, np.where(free == ROLL_IN, RTM, free))
    for count in (0, 3, 1000):
        limited = np.asarray(draw(jax.random.key(2), 40, weights, roll_in_available=count))
        expected, left = free.copy(), count
        for q in range(40):
            if free[q] == ROLL_IN:
                expected[q] = ROLL_IN if left > 0 else RTM
                left -= 1
        np.testing.assert_array_equal(limited, expected)


def test_weights_need_one_entry_a_mode():
    with pytest.raises(ValueError, match="roll_in"):
        rl.draw_modes(jax.random.key(0), 4, (0.5, 0.5))
