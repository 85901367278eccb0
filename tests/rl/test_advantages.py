"""Advantage estimators against their identities and against plain NumPy loops."""

import jax
import numpy as np
import pytest

import vrrl_jax.rl as rl

GAMMA, LAMBDA = 0.93, 0.8
# Compiled once: estimators traced by hand cost a compilation an operation.
_gae, _returns = jax.jit(rl.gae), jax.jit(rl.discounted_returns)
_turn_gae = jax.jit(rl.turn_gae, static_argnames="num_turns")
_turn_discounts = jax.jit(rl.turn_discounts)
_kl_rewards = jax.jit(rl.kl_rewards, static_argnames="estimator")
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


def _turns(rows=6, length=40, seed=0):
    """Rows of turns: observations, then a reply, then padding; some turns are rolled in."""
    rng = np.random.default_rng(seed)
    mask, turn_index = np.zeros((rows, length), bool), np.full((rows, length), -1)
    for row in range(rows):
        end, turn = 0, 0
        while (start := end + rng.integers(1, 4)) < length - 5 and turn < 5:
            turn_index[row, end:], end = turn, start + rng.integers(1, 6)
            # A reply may have an observation in it, such as a forced word.
            mask[row, start:end] = rng.random(end - start) < 0.8
            turn_index[row, end:] = -1
            turn += 1
    mask[0, turn_index[0] <= 1] = False  # two turns rolled in
    mask[1, turn_index[1] == 2] = False  # a turn without a token between others
    mask[-1] = False
    rewards, values = rng.normal(size=(2, rows, length)).astype(np.float32)
    return rewards, values, mask, turn_index, rng.normal(size=rows).astype(np.float32)


def _turn_gae_loop(rewards, values, discount, lambda_, mask, turn_index, bootstrap):
    """One row, turns as a list of token lists."""
    turns = [np.flatnonzero(mask & (turn_index == u)) for u in range(len(mask))]
    turns = [tokens for tokens in turns if len(tokens)]
    advantages, returns = np.zeros((2, len(mask)))
    following = (bootstrap, 0.0)
    for tokens in reversed(turns):
        value = float(values[tokens[0]])
        delta = rewards[tokens].sum() + discount * following[0] - value
        advantage = delta + discount * lambda_ * following[1]
        advantages[tokens], returns[tokens] = advantage, advantage + value
        following = (value, advantage)
    return advantages, returns


@pytest.mark.parametrize("num_turns", [None, 5])
def test_turn_gae_equals_a_loop_over_turns(num_turns):
    rewards, values, mask, turn_index, bootstrap = _turns()
    # What stands on masked tokens isn't read, nor is a turn's value after its first token.
    bad = [np.where(mask, x, np.nan) for x in (rewards, values)]
    out = _turn_gae(
        *bad, GAMMA, LAMBDA, mask, np.where(mask, turn_index, 99), bootstrap, num_turns=num_turns
    )
    assert not mask[1, turn_index[1] == 2].any() and mask[1, turn_index[1] == 3].any()
    for row in range(len(mask)):
        expected = _turn_gae_loop(
            *(x[row] for x in (rewards, values)),
            GAMMA,
            LAMBDA,
            *(x[row] for x in (mask, turn_index, bootstrap)),
        )
        np.testing.assert_allclose([x[row] for x in out], expected, atol=1e-5)


def test_turn_gae_of_one_token_a_turn_is_gae_and_of_one_turn_a_bandit():
    rewards, values, mask, bootstrap = _episodes(seed=5)
    turn_index = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    by_turn = _turn_gae(rewards, values, GAMMA, LAMBDA, mask, turn_index, bootstrap)
    by_token = _gae(rewards, values, GAMMA, LAMBDA, mask, bootstrap)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), by_turn, by_token)
    advantages, _ = _turn_gae(
        rewards, values, GAMMA, LAMBDA, mask, np.zeros_like(turn_index), bootstrap
    )
    for row in range(len(mask)):
        first = np.flatnonzero(mask[row])[0]
        expected = rewards[row][mask[row]].sum() + GAMMA * bootstrap[row] - values[row, first]
        np.testing.assert_allclose(advantages[row][mask[row]], expected, atol=1e-5)


def test_turn_gae_takes_any_rank_a_discount_a_turn_and_leaves_out_turns_beyond_the_last():
    rewards, values, mask, turn_index, bootstrap = _turns(seed=1)
    flat = _turn_gae(rewards, values, GAMMA, LAMBDA, mask, turn_index, bootstrap, num_turns=5)
    shaped = _turn_gae(
        *(x.reshape(2, 3, -1) for x in (rewards, values)),
        np.full((2, 3, 5), GAMMA, np.float32),
        LAMBDA,
        *(x.reshape(2, 3, -1) for x in (mask, turn_index)),
        bootstrap.reshape(2, 3),
        num_turns=5,
    )
    for a, b in zip(flat, shaped, strict=True):
        np.testing.assert_allclose(a, b.reshape(a.shape), atol=1e-6)
    early = mask & (turn_index < 2)
    short = _turn_gae(rewards, values, GAMMA, LAMBDA, mask, turn_index, bootstrap, num_turns=2)
    only = _turn_gae(rewards, values, GAMMA, LAMBDA, early, turn_index, bootstrap, num_turns=2)
    jax.tree.map(np.testing.assert_array_equal, short, only)
    assert (mask & ~early).any()
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3,\)"):
        rl.turn_gae(*np.ones((2, 2, 3)), 1.0, 1.0, np.ones((2, 3)), np.ones(3))


def test_turn_discounts_stand_on_the_last_generated_token_of_a_turn():
    _, _, mask, turn_index, _ = _turns(seed=2)
    out = _turn_discounts(mask, np.where(mask, turn_index, 7), 0.99, 0.5)
    expected = np.full(mask.shape, 0.99, np.float32)
    for row in range(len(mask)):
        for turn in set(turn_index[row][mask[row]].tolist()):
            expected[row, np.flatnonzero(mask[row] & (turn_index[row] == turn))[-1]] = 0.5
    np.testing.assert_array_equal(out, expected)
    assert (expected == 0.5).sum() > 10
    with pytest.raises(ValueError, match="one shape"):
        rl.turn_discounts(mask, turn_index[0], 1.0, 0.5)


def test_time_that_passes_by_turns_alone_gives_the_returns_of_turns():
    rewards, values, mask, turn_index, bootstrap = _turns(seed=3)
    discounts = _turn_discounts(mask, turn_index, 1.0, GAMMA)
    by_token = np.asarray(_returns(rewards, discounts, mask, bootstrap))
    _, by_turn = _turn_gae(rewards, values, GAMMA, 1.0, mask, turn_index, bootstrap)
    for row, turn in {(r, turn_index[r, t]) for r, t in np.argwhere(mask).tolist()}:
        first = np.flatnonzero(mask[row] & (turn_index[row] == turn))[0]
        np.testing.assert_allclose(by_token[row, first], by_turn[row, first], atol=1e-5)


def test_kl_rewards_take_the_penalty_off_each_generated_token():
    rng = np.random.default_rng(0)
    rewards, logprobs, reference = rng.normal(size=(3, 4, 9)).astype(np.float32)
    mask = rng.random((4, 9)) < 0.6
    bad = [np.where(mask, x, np.nan) for x in (rewards, logprobs, reference)]
    d = logprobs - reference
    for estimator, kl in (("k1", d), ("k2", d**2 / 2), ("k3", np.exp(-d) - 1 + d)):
        out = _kl_rewards(*bad, mask, 0.3, estimator)
        np.testing.assert_allclose(out, np.where(mask, rewards - 0.3 * kl, 0), atol=1e-5)
    gradient = jax.grad(lambda x: _kl_rewards(rewards, x, reference, mask, 0.3).sum())(logprobs)
    assert not gradient.any()
    with pytest.raises(ValueError, match="one shape"):
        rl.kl_rewards(rewards[0], logprobs, reference, mask, 0.3)


@pytest.mark.parametrize("limit, margin", [(20, 8), (20, 20), (20, 0)])
def test_overlong_penalty_falls_to_minus_one_at_the_limit(limit, margin):
    def _reference(length):
        if length <= limit - margin:
            return 0.0
        return (limit - margin - length) / margin if length <= limit else -1.0

    out = jax.jit(rl.overlong_penalty)(np.arange(30), limit, margin)
    np.testing.assert_allclose(out, [_reference(length) for length in range(30)], atol=1e-6)


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
