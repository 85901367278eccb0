"""Advantage estimators against their identities and against plain NumPy loops."""

import jax
import numpy as np
import pytest

import vrrl_jax.rl as rl

GAMMA, LAMBDA = 0.93, 0.8
# Compiled once: estimators traced by hand cost a compilation an operation.
_gae, _returns = jax.jit(rl.gae), jax.jit(rl.discounted_returns)
_group = jax.jit(rl.group_advantages, static_argnames=("num_groups", "normalize_std"))
_rloo = jax.jit(rl.rloo_advantages)


def _episodes(rows=5, length=17, seed=0):
    """Random rewards and values, and a mask with prompts, feedback turns and padding."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, length)) < 0.6
    mask[:, :2] = False
    mask[0, -4:] = False
    mask[-1, -1] = True
    rewards, values = rng.normal(size=(2, rows, length)).astype(np.float32)
    return rewards, values, mask, rng.normal(size=rows).astype(np.float32)


def _gae_loop(rewards, values, discount, lambda_, mask, bootstrap):
    """One row: the definition as a sum over the generated tokens only."""
    steps = np.flatnonzero(mask)
    next_values = np.append(values[steps][1:], bootstrap)
    deltas = rewards[steps] + discount * next_values - values[steps]
    advantages = np.zeros(len(rewards))
    for i, t in enumerate(steps):
        powers = (discount * lambda_) ** np.arange(len(steps) - i)
        advantages[t] = (powers * deltas[i:]).sum()
    return advantages


def test_gae_equals_the_sum_over_generated_tokens():
    rewards, values, mask, bootstrap = _episodes()
    advantages, returns = _gae(rewards, values, GAMMA, LAMBDA, mask, bootstrap)
    for row in range(len(rewards)):
        expected = _gae_loop(rewards[row], values[row], GAMMA, LAMBDA, mask[row], bootstrap[row])
        np.testing.assert_allclose(advantages[row], expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, advantages + values, 0), atol=1e-6)


def test_lambda_one_is_returns_minus_values():
    rewards, values, mask, bootstrap = _episodes(seed=1)
    advantages, returns = _gae(rewards, values, GAMMA, 1.0, mask, bootstrap)
    discounted = _returns(rewards, GAMMA, mask, bootstrap)
    np.testing.assert_allclose(returns, discounted, atol=1e-5)
    np.testing.assert_allclose(advantages, np.where(mask, discounted - values, 0), atol=1e-5)


def test_lambda_zero_is_the_td_error():
    rewards, values, _, bootstrap = _episodes(seed=2)
    advantages, _ = _gae(rewards, values, GAMMA, 0.0, np.ones_like(rewards), bootstrap)
    following = np.concatenate([values[:, 1:], bootstrap[:, None]], axis=1)
    np.testing.assert_allclose(advantages, rewards + GAMMA * following - values, atol=1e-5)


def test_discounted_returns_by_hand():
    # A generated token, an observation, two generated tokens, padding: 1 + 0.5 (2 + 0.5 (4 + 0.5
    # 8)) at the first.
    rewards = np.array([1.0, 100.0, 2.0, 4.0, 100.0])
    mask = np.array([1, 0, 1, 1, 0])
    out = _returns(rewards, 0.5, mask, bootstrap_value=8.0)
    assert out.tolist() == [4.0, 0.0, 6.0, 8.0, 0.0]


def test_observations_and_padding_change_nothing():
    rewards, values, mask, bootstrap = _episodes(seed=3)
    clean = _gae(rewards, values, GAMMA, LAMBDA, mask, bootstrap)
    dirty = _gae(
        np.where(mask, rewards, np.nan),
        np.where(mask, values, np.inf),
        GAMMA,
        LAMBDA,
        mask,
        bootstrap,
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert all((np.asarray(x)[~mask] == 0).all() for x in dirty)
    # The generated tokens moved together to the left, the padding to the right.
    order = np.argsort(~mask, axis=-1, kind="stable")
    packed = [np.take_along_axis(x, order, -1) for x in (rewards, values, mask)]
    moved = _gae(*packed[:2], GAMMA, LAMBDA, packed[2], bootstrap)
    for x, y in zip(clean, moved, strict=True):
        np.testing.assert_allclose(np.take_along_axis(np.asarray(x), order, -1), y, atol=1e-6)


def test_rows_of_any_rank_and_traced_per_token_discounts():
    rewards, values, mask, bootstrap = _episodes(rows=4, seed=4)
    flat = _gae(rewards, values, GAMMA, LAMBDA, mask, bootstrap)
    discount = np.full_like(rewards, GAMMA)
    shaped = _gae(
        *(x.reshape(2, 2, -1) for x in (rewards, values, discount)),
        LAMBDA,
        mask.reshape(2, 2, -1),
        bootstrap.reshape(2, 2),
    )
    single = _gae(rewards[1], values[1], GAMMA, LAMBDA, mask[1], bootstrap[1])
    for a, b, c in zip(flat, shaped, single, strict=True):
        np.testing.assert_allclose(a, b.reshape(a.shape), atol=1e-6)
        np.testing.assert_allclose(a[1], c, atol=1e-6)


def test_gae_without_any_generated_token_is_zero():
    rewards, values, mask, bootstrap = _episodes()
    advantages, returns = _gae(rewards, values, GAMMA, LAMBDA, np.zeros_like(mask), bootstrap)
    assert not advantages.any() and not returns.any()


def test_gae_refuses_mismatched_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3,\)"):
        rl.gae(np.ones((2, 3)), np.ones((2, 3)), 1.0, 1.0, np.ones(3))


SCORES = np.array([1.0, 0.0, 0.3, 0.1, 0.1, 2.0, 0.1, 0.7], np.float32)
GROUPS = np.array([9, 9, -4, 30, 30, 9, 30, 1000])


def _group_loop(function):
    out = np.zeros(len(SCORES))
    for g in set(GROUPS.tolist()):
        rows = np.flatnonzero(g == GROUPS)
        out[rows] = function(SCORES[rows].astype(np.float64))
    return out


def test_group_advantages_divide_by_the_sample_std():
    def _reference(s):
        return (s - s.mean()) / (s.std(ddof=1) + 1e-6) if len(s) > 1 else np.zeros(1)

    expected = np.where(GROUPS == 30, 0, _group_loop(_reference))
    np.testing.assert_allclose(_group(SCORES, GROUPS), expected, atol=1e-5)


def test_dr_grpo_and_rloo_equal_a_loop():
    dr_grpo = _group(SCORES, GROUPS, normalize_std=False)
    np.testing.assert_allclose(dr_grpo, _group_loop(lambda s: s - s.mean()), atol=1e-6)

    def _leave_one_out(s):
        if len(s) == 1:
            return np.zeros(1)
        return np.array([s[i] - np.delete(s, i).mean() for i in range(len(s))])

    np.testing.assert_allclose(_rloo(SCORES, GROUPS), _group_loop(_leave_one_out), atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-3, -3.3])
def test_equal_scores_and_single_rows_have_exactly_no_advantage(value):
    # Rounding in the mean of seven 0.1s over an eps of 1e-6 must not look like a signal.
    scores = np.full(8, value, np.float32)
    ids = np.array([0] * 7 + [1])
    for advantages in (_group(scores, ids), _rloo(scores, ids)):
        assert (np.asarray(advantages) == 0).all()


def test_groups_of_two_are_plus_minus_a_constant():
    advantages = _group(np.array([5, -3, 1, 2, 0, 1, 8, 7], np.float32), np.arange(8) // 2)
    # The sample's standard deviation of two numbers is their distance over sqrt(2).
    signs = np.array([1, -1, -1, 1, -1, 1, 1, -1])
    np.testing.assert_allclose(advantages, signs * np.sqrt(0.5), rtol=1e-5)


def test_group_advantages_ignore_masked_rows_and_the_order_of_rows():
    mask = np.array([1, 1, 1, 1, 1, 0, 1, 1], bool)
    poisoned = np.where(mask, SCORES, np.float32(np.nan))
    order = np.array([3, 7, 0, 5, 1, 6, 2, 4])
    for function in (_group, _rloo):
        out = np.asarray(function(poisoned, GROUPS, mask=mask))
        # A group of its own is as good as none for the row that is left out.
        apart = function(SCORES, np.where(mask, GROUPS, 77))
        np.testing.assert_allclose(out, apart, atol=1e-6)
        assert out[5] == 0 and out[0] > 0 > out[1]
        shuffled = function(SCORES[order], GROUPS[order])
        np.testing.assert_allclose(shuffled, function(SCORES, GROUPS)[order], atol=1e-6)


def test_num_groups_only_names_the_ids():
    ids = np.array([0, 0, 1, 2, 2, 0, 2, 3])
    with_count = _group(SCORES, ids, num_groups=4)
    np.testing.assert_allclose(with_count, _group(SCORES, GROUPS), atol=1e-6)


def test_group_advantages_refuse_mismatched_shapes():
    with pytest.raises(ValueError, match="one shape"):
        rl.group_advantages(np.ones(3), np.zeros(4, int))
