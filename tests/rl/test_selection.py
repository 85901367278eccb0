"""Which samples a step trains on: plain Python models, and laws over thousands of draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vrrl_jax.rl as rl
from vrrl_jax.rl import selection

ADVANTAGES = np.array([0.5, 0.0, -1.0, 0.25, 0.0, 2.0, np.nan, 1.0, -0.75], np.float32)
MASK = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1])
SURVIVORS = np.array([0, 2, 3, 5, 8])
DRAWS = 4000
_prioritised = jax.jit(selection.prioritised, static_argnums=(2, 5))


def _draws(function, *arrays, seed=0):
    """The results of `DRAWS` keys, compiled once."""
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    out = jax.jit(jax.vmap(lambda key: function(key, *arrays)))(keys)
    return jax.tree.map(np.asarray, out)


def _agree(samples, expected, deviations=5.0):
    """Means [B] over draws of samples [DRAWS, B] lie within their standard errors."""
    error = samples.std(axis=0) / np.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - expected), deviations * error + 1e-6)


def test_counts_are_a_histogram_of_the_valid_draws():
    indices = np.array([3, 3, 0, -1, 7, 5, 3, 1])
    ok = np.array([1, 1, 1, 1, 1, 1, 0, 1])
    out = selection.counts(indices, ok, 6)
    assert out.tolist() == [1, 1, 0, 2, 0, 1] and out.dtype == jnp.int32
    with pytest.raises(ValueError, match="one shape"):
        selection.counts(indices, ok[1:], 6)


def test_filtered_repeats_the_survivors_to_the_size_of_the_batch():
    # Eight samples, five of which survive: once each, and three of them twice.
    drawn = _draws(selection.filtered, ADVANTAGES, MASK)
    assert drawn.dtype == np.int32 and (drawn.sum(axis=1) == MASK.sum()).all()
    assert (np.delete(drawn, SURVIVORS, axis=1) == 0).all()
    repeated = drawn[:, SURVIVORS] - 1
    assert set(np.unique(repeated)) == {0, 1}
    _agree(repeated, 3 / 5)
    # Which three: every set of three equally often.
    sets = np.unique(repeated, axis=0, return_counts=True)[1]
    assert len(sets) == 10
    expected = DRAWS / 10
    assert ((sets - expected) ** 2 / expected).sum() < 28  # chi-square, 9 degrees, p < 0.001


def test_filtered_without_a_remainder_is_no_draw():
    advantages = np.array([0, 1, 0, -1, 0, 0], np.float32)
    filtered = jax.jit(selection.filtered)
    assert filtered(jax.random.key(0), advantages).tolist() == [0, 3, 0, 3, 0, 0]
    everything = np.ones(6, np.float32)
    assert filtered(jax.random.key(0), everything).tolist() == [1] * 6


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_prioritised_draws_follow_the_law(alpha):
    n = 12
    drawn = _draws(
        lambda key, a, m, alpha: selection.prioritised(key, a, n, m, alpha),
        *(ADVANTAGES, MASK, np.float32(alpha)),
    )
    assert (drawn.sum(axis=1) == n).all()
    weights = np.zeros(len(MASK))
    weights[SURVIVORS] = np.abs(ADVANTAGES[SURVIVORS]) ** alpha
    law = weights / weights.sum()
    assert (drawn[:, law == 0] == 0).all()
    _agree(drawn, n * law)
    # Independent draws: the variance of a binomial, n p (1 - p).
    np.testing.assert_allclose(drawn.var(axis=0), n * law * (1 - law), rtol=0.15)


def test_prioritised_without_replacement_draws_one_after_the_other():
    priority = np.array([3.0, 0.0, -1.0, 0.5, 2.0], np.float32)
    drawn = _draws(lambda key, p: selection.prioritised(key, p, 2, replacement=False), priority)
    assert (drawn.sum(axis=1) == 2).all() and drawn.max() == 1
    weights = np.abs(priority)
    expected = np.zeros(5)
    for i, j in itertools.permutations(np.flatnonzero(weights), 2):
        chance = weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i])
        expected[[i, j]] += chance
    _agree(drawn, expected)


def test_without_replacement_all_that_can_be_drawn_is_drawn_once():
    for n in (6, 50):
        out = _prioritised(jax.random.key(0), ADVANTAGES, n, MASK, 1.0, False)
        assert np.flatnonzero(out).tolist() == SURVIVORS.tolist() and out.max() == 1


@pytest.mark.parametrize("n", [3, 12])
def test_code_split_draws_as_many_as_there_are_and_says_what_is_missing(n):
    drawn, missing = _draws(lambda key, a, m: selection.code_split(key, a, n, m), ADVANTAGES, MASK)
    fresh = min(n, len(SURVIVORS))
    assert (missing == n - fresh).all() and (drawn.sum(axis=1) == fresh).all()
    weights = np.zeros(len(MASK))
    weights[SURVIVORS] = np.abs(ADVANTAGES[SURVIVORS])
    _agree(drawn, fresh * weights / weights.sum())
    assert drawn.max() > 1  # with replacement


def test_nothing_to_draw_is_all_zeros():
    @jax.jit
    def _all(key, advantages, mask):
        return (
            selection.filtered(key, advantages, mask),
            selection.prioritised(key, advantages, 5, mask),
            selection.prioritised(key, advantages, 3, mask, replacement=False),
            *selection.code_split(key, advantages, 5, mask),
        )

    key = jax.random.key(0)
    hidden = (np.ones(4, np.float32), np.zeros(4))
    for advantages, mask in [(np.zeros(4, np.float32), np.ones(4)), hidden]:
        *results, missing = _all(key, advantages, mask)
        for out in results:
            assert out.shape == (4,) and out.dtype == jnp.int32 and not out.any()
        assert missing == 5


def test_multiplicities_weigh_like_repeated_rows():
    rng = np.random.default_rng(0)
    losses, mask = rng.normal(size=(6, 7)), rng.random((6, 7)) < 0.7
    drawn = np.asarray(_prioritised(jax.random.key(3), rng.normal(size=6), 9))
    repeated = np.repeat(np.arange(6), drawn)
    weighted = jax.jit(rl.token_mean)(losses, mask * drawn[:, None])
    np.testing.assert_allclose(weighted, losses[repeated][mask[repeated]].mean(), rtol=1e-5)


def test_effective_queries_and_batch_are_shares():
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])
    # Group 0 has a signal, 1 has none, 2's is masked out, 3 isn't there at all.
    advantages = np.array([0.5, -0.5, 0, 0, 0, 1, 1, 1, 1], np.float32)
    mask = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0])
    share = jax.jit(selection.effective_queries, static_argnums=2)
    np.testing.assert_allclose(share(advantages, groups, 5, mask), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(share(advantages, groups, 4), 3 / 4, rtol=1e-6)
    assert share(advantages, groups, 4, 0 * mask) == 0
    weights = np.array([3, 0, 1, 0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(selection.effective_batch(advantages, weights), 4 / 5, rtol=1e-6)
    assert selection.effective_batch(advantages, 0 * weights) == 0
