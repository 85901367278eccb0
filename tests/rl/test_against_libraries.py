"""The formulas of TRL and verl, restated in NumPy, and what they are called here.

Sources: `trl/trainer/ppo_trainer.py` and `rloo_trainer.py` of huggingface/trl,
`verl/trainer/ppo/core_algos.py` and `verl/utils/torch_functional.py` of volcengine/verl.
"""

import jax
import numpy as np
import pytest

import vrrl_jax.rl as rl
from vrrl_jax import masked

RNG = np.random.default_rng(0)
B, T = 6, 13
REWARDS, VALUES, ADVANTAGES, RETURNS = RNG.normal(size=(4, B, T)).astype(np.float32)
LOGPROBS, OLD, REFERENCE = RNG.normal(-1, 0.8, size=(3, B, T)).astype(np.float32)
MASK = (RNG.random((B, T)) < 0.7).astype(np.float32)  # no row is empty
MASK[:, 3] = 1
GAMMA, LAMBDA = 0.97, 0.9
# Compiled once: by hand every operation would compile on its own.
_kl = jax.jit(rl.kl_penalty, static_argnames=("estimator", "max_value"))
_group = jax.jit(rl.group_advantages, static_argnames="normalize_std")
_gae, _rloo, _token_mean = jax.jit(rl.gae), jax.jit(rl.rloo_advantages), jax.jit(rl.token_mean)
_reduce = jax.jit(rl.reduce, static_argnames="how")
_fixed_length = jax.jit(rl.fixed_length)
_whiten = jax.jit(masked.whiten, static_argnames="ddof")


def _close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


def _masked_mean(x, mask):
    return (x * mask).sum() / mask.sum()


def _masked_whiten(x, mask):
    """Both libraries', with the unbiased variance."""
    mean, count = _masked_mean(x, mask), mask.sum()
    var = _masked_mean((x - mean) ** 2, mask) * count / (count - 1)
    return (x - mean) / np.sqrt(var + 1e-8)


def test_rewards_advantages_and_returns_of_trl_ppo():
    """`PPOTrainer.train`, steps 4 and 6, for responses without padding."""
    scores = RNG.normal(size=B).astype(np.float32)
    rewards = -0.05 * (LOGPROBS - REFERENCE)
    rewards[np.arange(B), T - 1] += scores
    last, reversed_advantages = np.zeros(B), []
    for t in reversed(range(T)):
        following = VALUES[:, t + 1] if t < T - 1 else 0.0
        delta = rewards[:, t] + GAMMA * following - VALUES[:, t]
        last = delta + GAMMA * LAMBDA * last
        reversed_advantages.append(last)
    expected = np.stack(reversed_advantages[::-1], axis=1)

    everything = np.ones_like(MASK)
    placed = np.zeros_like(REWARDS)
    placed[:, -1] = scores
    ours = rl.kl_rewards(placed, LOGPROBS, REFERENCE, everything, 0.05)
    _close(ours, rewards)
    advantages, returns = _gae(ours, VALUES, GAMMA, LAMBDA, everything)
    _close(advantages, expected)
    _close(returns, expected + VALUES)
    whitened = _whiten(advantages, everything, ddof=1)
    _close(whitened, _masked_whiten(expected, everything))


def test_advantages_of_verl_gae():
    """`compute_gae_advantage_return`, which passes observation tokens by."""
    following, last, reversed_advantages = 0.0, 0.0, []
    for t in reversed(range(T)):
        delta = REWARDS[:, t] + GAMMA * following - VALUES[:, t]
        new = delta + GAMMA * LAMBDA * last
        following = VALUES[:, t] * MASK[:, t] + (1 - MASK[:, t]) * following
        last = new * MASK[:, t] + (1 - MASK[:, t]) * last
        reversed_advantages.append(last)
    expected = np.stack(reversed_advantages[::-1], axis=1)
    advantages, returns = _gae(REWARDS, VALUES, GAMMA, LAMBDA, MASK)
    _close(advantages, expected * MASK)
    _close(returns, (expected + VALUES) * MASK)
    _close(_whiten(advantages, MASK, ddof=1), _masked_whiten(expected, MASK) * MASK)


def test_group_advantages_of_verl_and_trl():
    """`compute_grpo_outcome_advantage`, `compute_rloo_outcome_advantage`, `RLOOTrainer`.

    A group of one is left out: there verl's advantage is the score itself, here it is 0.
    """
    scores = RNG.normal(size=12).astype(np.float32)
    index = np.array([4, 4, 4, 4, 7, 7, 7, 9, 9, 9, 9, 9])
    group = {i: scores[index == i] for i in index.tolist()}
    mean = np.array([group[i].mean() for i in index])
    std = np.array([group[i].std(ddof=1) for i in index])
    _close(_group(scores, index), (scores - mean) / (std + 1e-6))
    _close(_group(scores, index, normalize_std=False), scores - mean)
    n = np.array([len(group[i]) for i in index])
    _close(_rloo(scores, index), scores * n / (n - 1) - mean * n / (n - 1))
    # TRL keeps rows as [k, questions].
    table = scores.reshape(4, 3)
    baseline = (table.sum(axis=0) - table) / 3
    trl = _rloo(scores, np.tile(np.arange(3), 4))
    _close(trl, (table - baseline).flatten())


def test_policy_loss_of_verl():
    """`compute_policy_loss`, with its three clip fractions."""
    low, high, dual = 0.2, 0.28, 3.0
    everywhere = OLD - 3 * (RNG.random(OLD.shape) < 0.2)  # ratios above the dual clip too
    ratio = np.exp(np.clip(LOGPROBS - everywhere, -20, 20))
    losses1 = -ADVANTAGES * ratio
    losses2 = -ADVANTAGES * np.clip(ratio, 1 - low, 1 + high)
    clipped1 = np.maximum(losses1, losses2)
    losses3 = -ADVANTAGES * dual
    clipped2 = np.minimum(losses3, clipped1)
    expected = np.where(ADVANTAGES < 0, clipped2, clipped1)
    fraction = _masked_mean(losses2 > losses1, MASK)
    lower = _masked_mean((clipped1 > losses3) * (ADVANTAGES < 0), MASK)

    losses, metrics = jax.jit(rl.ppo_loss)(
        *(LOGPROBS, everywhere, ADVANTAGES, MASK), clip_low=low, clip_high=high, dual_clip=dual
    )
    assert lower > 0
    _close(_token_mean(losses, MASK), _masked_mean(expected, MASK))
    _close(_token_mean(metrics["clip_low"] + metrics["clip_high"], MASK), fraction)
    _close(_token_mean(metrics["dual_clip"], MASK), lower)


def test_value_loss_of_verl():
    """`compute_value_loss`, which halves what is here a whole square."""
    predicted = VALUES + RNG.normal(size=VALUES.shape).astype(np.float32)
    clipped = np.clip(predicted, VALUES - 0.5, VALUES + 0.5)
    expected = np.maximum((predicted - RETURNS) ** 2, (clipped - RETURNS) ** 2)
    losses = rl.value_loss(predicted, VALUES, RETURNS, MASK, clip=0.5)
    _close(0.5 * _token_mean(losses, MASK), 0.5 * _masked_mean(expected, MASK))


def test_kl_penalties_of_verl():
    """`kl_penalty`: its "kl", "mse" and "low_var_kl", the last one cut at 10."""
    d = LOGPROBS - REFERENCE
    _close(_kl(LOGPROBS, REFERENCE, "k1"), d)
    _close(_kl(LOGPROBS, REFERENCE, "k2"), 0.5 * d**2)
    apart = REFERENCE + 5 * (RNG.random(d.shape) < 0.2)
    kl = np.clip(apart - LOGPROBS, -20, 20)
    expected = np.clip(np.exp(kl) - kl - 1, -10, 10)
    assert (expected == 10).any()
    _close(_kl(LOGPROBS, apart, "k3", max_value=10.0), expected)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_straight_through_kl_has_the_value_of_one_and_the_gradient_of_k2(name):
    """`kl_penalty` with a "+"."""
    plain = _kl(LOGPROBS, REFERENCE, name)
    np.testing.assert_array_equal(_kl(LOGPROBS, REFERENCE, name + "+"), plain)
    gradient = jax.grad(lambda x: _kl(x, REFERENCE, name + "+").sum())(LOGPROBS)
    _close(gradient, LOGPROBS - REFERENCE)
    # Over all tokens of a distribution it is the gradient of the KL itself.
    logits, other = RNG.normal(size=(2, 5)).astype(np.float32)

    def _exact(logits):
        p = jax.nn.log_softmax(logits)
        return (jax.numpy.exp(p) * (p - jax.nn.log_softmax(other))).sum()

    def _estimate(logits):
        p = jax.nn.log_softmax(logits)
        kl = rl.kl_penalty(p, jax.nn.log_softmax(other), name + "+")
        return (jax.lax.stop_gradient(jax.numpy.exp(p)) * kl).sum()

    exact, estimate = (jax.jit(jax.value_and_grad(f))(logits) for f in (_exact, _estimate))
    jax.tree.map(_close, estimate, exact)


def test_loss_aggregations_of_verl():
    """`agg_loss` in its four modes; sum-norm is Dr. GRPO's, there without a mean over rows."""
    sums = (ADVANTAGES * MASK).sum(axis=-1)
    assert (MASK.sum(axis=-1) > 0).all()
    _close(_reduce(ADVANTAGES, MASK, "token_mean"), _masked_mean(ADVANTAGES, MASK))
    means = sums / MASK.sum(axis=-1)
    _close(_reduce(ADVANTAGES, MASK, "sequence_mean"), means.mean())
    _close(_fixed_length(ADVANTAGES, MASK, 1), sums.mean())
    _close(_fixed_length(ADVANTAGES, MASK, T, denominator=1), sums.sum() / T)
