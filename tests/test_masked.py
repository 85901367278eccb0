"""Masked reductions against NumPy on the kept elements, and their empty and one-element cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrrl_jax import masked

RNG = np.random.default_rng(0)
MASK = RNG.random((6, 9)) < 0.5
MASK[2] = False  # an empty row
MASK[3] = np.arange(9) == 4  # a row of one
POISON = np.where(MASK, RNG.normal(size=MASK.shape), np.nan).astype(np.float32)
POISON[0, ~MASK[0]] = np.inf


def _rows(function):
    """`function` on the kept elements of each row; 0 for an empty row."""
    return np.array([function(x[m]) if m.any() else 0.0 for x, m in zip(POISON, MASK, strict=True)])


@jax.jit
def _reductions(x, mask):
    names = ("sum", "mean", "var", "std")
    return {n: (getattr(masked, n)(x, mask, axis=-1), getattr(masked, n)(x, mask)) for n in names}


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_reductions_equal_numpy_on_the_kept_elements(dtype):
    for name, (rows, everything) in _reductions(POISON, MASK.astype(dtype)).items():
        reference = getattr(np, name)
        np.testing.assert_allclose(rows, _rows(reference), atol=1e-6)
        np.testing.assert_allclose(everything, reference(POISON[MASK]), rtol=1e-5)


def test_sample_variance_of_none_and_one_is_zero():
    variance = masked.var(POISON, MASK, axis=-1, ddof=1)
    assert variance[2] == 0 and variance[3] == 0
    for row in (0, 1, 4, 5):
        kept = POISON[row][MASK[row]]
        np.testing.assert_allclose(variance[row], kept.var(ddof=1), rtol=1e-5)


def test_no_mask_reduces_everything():
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(masked.mean(x), x.mean(), rtol=1e-5)
    np.testing.assert_allclose(masked.std(x, axis=0), x.std(0), rtol=1e-5)


def test_weights_and_broadcasting():
    weights = np.array([0.5, 0.0, 2.0], np.float32)
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    expected = np.average(x, axis=1, weights=weights)
    np.testing.assert_allclose(masked.mean(x, weights, axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(masked.mean(x, weights), expected.mean(), rtol=1e-4)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten(shift_mean):
    white = np.asarray(masked.whiten(POISON, MASK, shift_mean=shift_mean))
    kept = POISON[MASK]
    np.testing.assert_allclose(white[MASK].std(), 1, rtol=1e-4)
    np.testing.assert_allclose(white[MASK].mean(), 0 if shift_mean else kept.mean(), atol=1e-5)
    assert (white[~MASK] == 0).all()
    rows = np.asarray(masked.whiten(POISON, MASK, axis=-1, ddof=1))
    assert np.isfinite(rows).all() and (rows[2:4] == 0).all()
    kept = POISON[1][MASK[1]]
    expected = (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(rows[1][MASK[1]], expected, rtol=1e-4)


def test_bfloat16_counts_past_256():
    x = jnp.ones((1000,), jnp.bfloat16)
    assert masked.sum(x) == 1000 and masked.mean(x) == 1


def test_gradients_ignore_what_is_masked():
    def _whitened(x, mask):
        return (masked.whiten(x, mask) * np.arange(9)).sum()

    @jax.jit
    def _gradients(x, mask):
        functions = (masked.mean, masked.var, masked.std, _whitened)
        return [jax.grad(function)(x, mask) for function in functions]

    for gradient in map(np.asarray, _gradients(POISON, MASK)):
        assert np.isfinite(gradient).all()
        assert (gradient[~MASK] == 0).all() and np.abs(gradient[MASK]).max() > 0
    # A spread of 0 has a square root without a slope.
    assert jax.grad(lambda x: masked.std(x, jnp.ones(3)))(jnp.ones(3)).tolist() == [0, 0, 0]


def test_segments_equal_a_loop():
    ids = np.array([3, 0, 3, 5, 0, 3, 1, 1])
    x = RNG.normal(size=8).astype(np.float32)
    mask = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
    x[~mask] = np.nan
    total = masked.segment_sum(x, ids, 6, mask)
    average = masked.segment_mean(x, ids, 6, mask)
    spread = masked.segment_std(x, ids, 6, mask)
    sample = masked.segment_std(x, ids, 6, mask, ddof=1)
    for g in range(6):
        kept = x[(ids == g) & mask]
        np.testing.assert_allclose(total[g], kept.sum(), rtol=1e-5)
        np.testing.assert_allclose(average[g], kept.mean() if len(kept) else 0, rtol=1e-5)
        np.testing.assert_allclose(spread[g], kept.std() if len(kept) else 0, atol=1e-6)
        expected = kept.std(ddof=1) if len(kept) > 1 else 0
        np.testing.assert_allclose(sample[g], expected, atol=1e-6)


def test_zero_masked_keeps_the_dtype():
    out = masked.zero_masked(jnp.array([1, 2, 3], jnp.int8), jnp.array([1.0, 0.0, 1.0]))
    assert out.dtype == jnp.int8 and out.tolist() == [1, 0, 3]
