"""Losses against scalar Python, reducers against loops, and what a masked position may hold."""

import ast
import math
import pathlib
import sys

import jax
import numpy as np
import pytest

import vrrl_jax.rl as rl

RNG = np.random.default_rng(0)
# Compiled once, the coefficients traced: by hand every operation would compile on its own.
_ppo = jax.jit(rl.ppo_loss)
_token_mean, _sequence_mean = jax.jit(rl.token_mean), jax.jit(rl.sequence_mean)
_reduce = jax.jit(rl.reduce, static_argnames="how")
MASK = RNG.random((4, 11)) < 0.6
MASK[2] = False
LOGPROBS = RNG.normal(-1, 0.7, MASK.shape).astype(np.float32)
OLD = RNG.normal(-1, 0.7, MASK.shape).astype(np.float32)
ADVANTAGES = RNG.normal(size=MASK.shape).astype(np.float32)


def _poison(x):
    """`x` with inf, -inf and NaN where the mask is 0."""
    bad = np.resize(np.array([np.inf, -np.inf, np.nan], np.float32), x.shape)
    return np.where(MASK, x, bad)


def _surrogate(logprob, old, advantage, low, high, dual):
    """One token of the clipped surrogate, case by case, and where it was clipped."""
    ratio = math.exp(logprob - old)
    if advantage >= 0:
        above = ratio > 1 + high
        return -advantage * (1 + high if above else ratio), (above and advantage > 0, False, False)
    below, over = ratio < 1 - low, dual is not None and ratio > dual
    used = 1 - low if below else dual if over else ratio
    return -advantage * used, (False, below, over)


@pytest.mark.parametrize("low, high, dual", [(0.2, 0.2, None), (0.2, 0.3, 3.0), (0.0, 0.5, 1.1)])
def test_ppo_loss_equals_the_cases(low, high, dual):
    losses, metrics = jax.tree.map(
        np.asarray,
        _ppo(LOGPROBS, OLD, ADVANTAGES, MASK, clip_low=low, clip_high=high, dual_clip=dual),
    )
    fired = np.zeros(3)
    for i in np.ndindex(MASK.shape):
        if not MASK[i]:
            assert losses[i] == 0 and all(m[i] == 0 for m in metrics.values())
            continue
        loss, clips = _surrogate(
            float(LOGPROBS[i]), float(OLD[i]), float(ADVANTAGES[i]), low, high, dual
        )
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
        flags = tuple(bool(metrics[k][i]) for k in ("clip_high", "clip_low", "dual_clip"))
        assert flags == clips
        fired += clips
    assert fired[:2].all() and bool(fired[2]) == (dual is not None)
    ratio = np.exp(LOGPROBS - OLD)
    np.testing.assert_allclose(_token_mean(metrics["ratio"], MASK), ratio[MASK].mean(), rtol=1e-5)
    kl = ratio - 1 - (LOGPROBS - OLD)
    np.testing.assert_allclose(_token_mean(metrics["approx_kl"], MASK), kl[MASK].mean(), rtol=1e-4)


def test_an_unchanged_policy_has_ratio_one_and_the_policy_gradient():
    def _loss(logprobs):
        losses, metrics = rl.ppo_loss(logprobs, LOGPROBS, ADVANTAGES, MASK, dual_clip=3.0)
        return losses.sum(), metrics

    gradient, metrics = jax.jit(jax.grad(_loss, has_aux=True))(LOGPROBS)
    assert (np.asarray(metrics["ratio"]) == MASK).all()
    assert not any(metrics[k].any() for k in ("clip_low", "clip_high", "dual_clip", "approx_kl"))
    np.testing.assert_allclose(gradient, np.where(MASK, -ADVANTAGES, 0), rtol=1e-6)


def test_clipped_tokens_have_no_gradient_and_the_rest_ratio_times_advantage():
    def _loss(logprobs, old, advantages):
        losses, metrics = rl.ppo_loss(
            logprobs, old, advantages, MASK, clip_low=0.2, clip_high=0.3, dual_clip=3.0
        )
        return losses.sum(), metrics

    gradient = jax.jit(jax.grad(_loss, argnums=(0, 1, 2), has_aux=True))
    gradients, metrics = gradient(LOGPROBS, OLD, ADVANTAGES)
    clipped = sum(np.asarray(metrics[k]) for k in ("clip_low", "clip_high", "dual_clip")) > 0
    expected = np.where(MASK & ~clipped, -ADVANTAGES * np.exp(LOGPROBS - OLD), 0)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-5)
    assert not gradients[1].any() and not gradients[2].any()


def test_masked_positions_may_hold_anything():
    clean = _ppo(LOGPROBS, OLD, ADVANTAGES, MASK, dual_clip=3.0)
    bad = [_poison(x) for x in (LOGPROBS, OLD, ADVANTAGES)]
    dirty = _ppo(*bad, MASK, dual_clip=3.0)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)

    losses = {
        "ppo": lambda x: rl.ppo_loss(x, *bad[1:], MASK, dual_clip=3.0)[0],
        "value": lambda x: rl.value_loss(x, bad[1], bad[2], MASK, clip=0.2),
        "kl": lambda x: rl.kl_penalty(x, bad[1], mask=MASK),
        "nll": lambda x: rl.nll(x, MASK),
        "entropy": lambda x: rl.entropy_loss(x, MASK),
    }

    @jax.jit
    def _gradients(x):
        def _reduced(loss, reducer):
            return jax.value_and_grad(lambda x: reducer(loss(x), MASK))(x)

        return {
            f"{name} {reducer.__name__}": _reduced(loss, reducer)
            for name, loss in losses.items()
            for reducer in (rl.token_mean, rl.sequence_mean)
        }

    for name, (value, gradient) in _gradients(bad[0]).items():
        gradient = np.asarray(gradient)
        assert np.isfinite(value), name
        assert np.isfinite(gradient).all() and (gradient[~MASK] == 0).all(), name
        assert np.abs(gradient).max() > 0, name


def test_far_off_policies_stay_finite():
    advantages = np.resize(np.array([1.0, -1.0], np.float32), OLD.shape)
    everything = np.ones_like(MASK)
    losses, metrics = _ppo(0 * OLD, 0 * OLD - 500, advantages, everything)
    assert np.isfinite(losses).all() and np.isfinite(metrics["ratio"]).all()
    assert losses[0, 0] == np.float32(-1.2)


def test_importance_weights_truncate():
    weights = rl.importance_weights(_poison(LOGPROBS), _poison(OLD), MASK, cap=1.5)
    expected = np.where(MASK, np.minimum(np.exp(LOGPROBS - OLD), 1.5), 0)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert (expected == 1.5).any()
    gradient = jax.grad(lambda x: rl.importance_weights(x, OLD, MASK).sum())(LOGPROBS)
    assert not gradient.any()


def test_value_loss_plain_and_clipped():
    returns, old = ADVANTAGES, OLD
    plain = rl.value_loss(LOGPROBS, None, returns, MASK)
    np.testing.assert_allclose(plain, np.where(MASK, (LOGPROBS - returns) ** 2, 0), rtol=1e-5)
    clipped = rl.value_loss(LOGPROBS, old, returns, MASK, clip=0.3)
    moved = np.clip(LOGPROBS, old - 0.3, old + 0.3)
    expected = np.maximum((LOGPROBS - returns) ** 2, (moved - returns) ** 2)
    np.testing.assert_allclose(clipped, np.where(MASK, expected, 0), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="old_values"):
        rl.value_loss(LOGPROBS, None, returns, MASK, clip=0.3)


def test_explained_variance():
    assert rl.explained_variance(OLD, OLD, MASK) == 1
    np.testing.assert_allclose(rl.explained_variance(0 * OLD, OLD, MASK), 0, atol=1e-6)
    assert rl.explained_variance(OLD, np.ones_like(OLD), MASK) == 0
    expected = 1 - np.var((OLD - LOGPROBS)[MASK]) / np.var(OLD[MASK])
    np.testing.assert_allclose(rl.explained_variance(LOGPROBS, OLD, MASK), expected, rtol=1e-4)


def test_kl_estimators_have_the_right_expectation():
    # Two distributions over four tokens: expectations are sums, no sampling.
    p, q = np.array([0.5, 0.2, 0.2, 0.1]), np.array([0.3, 0.3, 0.1, 0.3])
    kl = (p * np.log(p / q)).sum()
    for estimator in ("k1", "k3"):
        estimate = rl.kl_penalty(np.log(p), np.log(q), estimator)
        np.testing.assert_allclose((p * estimate).sum(), kl, rtol=1e-5)
    k2 = rl.kl_penalty(np.log(p), np.log(q), "k2")
    np.testing.assert_allclose(k2, np.log(p / q) ** 2 / 2, rtol=1e-4)
    assert (rl.kl_penalty(LOGPROBS, OLD) >= 0).all()
    assert not rl.kl_penalty(LOGPROBS, LOGPROBS).any()
    d = OLD - LOGPROBS
    gradient = jax.grad(lambda x: rl.kl_penalty(x, OLD).sum())(LOGPROBS)
    np.testing.assert_allclose(gradient, 1 - np.exp(d), rtol=1e-3, atol=1e-5)
    assert rl.kl_penalty(np.zeros(1), np.full(1, 9.0), max_value=10.0) == 10
    with pytest.raises(ValueError, match="k4"):
        rl.kl_penalty(LOGPROBS, OLD, "k4")


def test_reducers_equal_loops():
    losses = np.where(MASK, ADVANTAGES, np.nan)
    rows = [x[m] for x, m in zip(losses, MASK, strict=True)]
    np.testing.assert_allclose(_token_mean(losses, MASK), np.concatenate(rows).mean(), rtol=1e-5)
    filled = [r for r in rows if len(r)]
    assert len(filled) == 3
    np.testing.assert_allclose(
        _sequence_mean(losses, MASK), np.mean([r.mean() for r in filled]), rtol=1e-5
    )
    total = sum(r.sum() for r in rows)
    np.testing.assert_allclose(rl.fixed_length(losses, MASK, 50), total / (50 * 4), rtol=1e-5)
    for how in ("token_mean", "sequence_mean"):
        expected = {"token_mean": _token_mean, "sequence_mean": _sequence_mean}[how](losses, MASK)
        assert _reduce(losses, MASK, how) == expected
        assert _reduce(losses, np.zeros_like(MASK), how) == 0
    assert rl.reduce(losses, MASK, "fixed_length", length=50) == rl.fixed_length(losses, MASK, 50)
    for how in ("fixed_length", "batch_mean"):
        with pytest.raises(ValueError, match=how):
            rl.reduce(losses, MASK, how)


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "fixed_length"])
def test_microbatches_add_up_to_the_batch(how):
    counts = {
        "token_mean": MASK.sum(),
        "sequence_mean": rl.sequence_count(MASK),
        "fixed_length": len(MASK),
    }
    length = 50 if how == "fixed_length" else None
    whole = _reduce(ADVANTAGES, MASK, how, length=length)
    parts = sum(
        _reduce(ADVANTAGES[s], MASK[s], how, length=length, denominator=counts[how])
        for s in (slice(0, 2), slice(2, 4))
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_packed_sequences_reduce_like_rows_of_their_own():
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0]] * 4)
    mask = MASK & (segments > 0)
    means = [
        ADVANTAGES[r][keep].mean()
        for r in range(4)
        for g in (1, 2, 3)
        if (keep := mask[r] & (segments[r] == g)).any()
    ]
    packed = rl.sequence_mean(ADVANTAGES, mask, segments=segments)
    np.testing.assert_allclose(packed, np.mean(means), rtol=1e-5)
    assert rl.sequence_count(mask, segments=segments) == len(means)


def test_bad_arguments_are_refused_with_their_values():
    with pytest.raises(ValueError, match=r"clip_low.*-0\.1"):
        rl.ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, clip_low=-0.1)
    with pytest.raises(ValueError, match=r"dual_clip.*0\.5"):
        rl.ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, dual_clip=0.5)
    with pytest.raises(ValueError, match=r"\(4, 11\).*\(11,\)"):
        rl.ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK[0])
    # Traced coefficients are data: no recompilation, no check.
    loss = jax.jit(lambda low: rl.ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, clip_low=low)[0])
    loss(0.1), loss(0.2)
    assert loss._cache_size() == 1


def test_rl_imports_no_model_environment_or_tokenizer():
    room = pathlib.Path(rl.__file__).parent
    files = [f for f in room.glob("*.py") if f.name != "update.py"] + [room.parent / "masked.py"]
    assert len(files) >= 8
    allowed = ("vrrl_jax.rl", "vrrl_jax.types", "vrrl_jax.masked", "vrrl_jax.parallel")
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file.name}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                top = name.split(".")[0]
                if top == "vrrl_jax":
                    assert name.startswith(allowed) and ".update" not in name, (file.name, name)
                else:
                    assert top in {"jax", "chex"} | sys.stdlib_module_names, (file.name, name)
