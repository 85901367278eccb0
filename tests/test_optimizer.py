"""Updates that change the critic alone at first, and a critic's names wherever they stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrrl_jax import optimizer, testing
from vrrl_jax.config import OptimizerConfig
from vrrl_jax.models import critic
from vrrl_jax.parallel.rules import path_name

FIRST = 3  # updates of the critic alone
RATE = 0.01


def flat(tree):
    return {path_name(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(tree)}


def small(separate):
    """Matrices of a layer that Muon takes, a scale that it leaves to Adam, and a critic."""
    model = {
        "layers": {"q_proj": {"kernel": np.ones((2, 4, 3), np.float32)}},
        "norm": {"scale": np.linspace(-1, 1, 4, dtype=np.float32)},
    }
    head = {"value_head": {"kernel": np.zeros((4, 1), np.float32)}}
    params = model | {"critic": model | head} if separate else model | head
    return jax.tree.map(jnp.asarray, params)


def gradients(params, step):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda a: jnp.float32(rng.normal(size=a.shape)), params)


def trained(tx, params, steps, first=0):
    """Parameters after every update with the gradients of steps `first` and later."""
    state, out = tx.init(params), [params]
    update = jax.jit(tx.update)
    for step in range(first, first + steps):
        updates, state = update(gradients(params, step), state, out[-1])
        out.append(jax.tree.map(jnp.add, out[-1], updates))
    return out


def config(name, **options):
    return OptimizerConfig(name=name, learning_rate=RATE, grad_clip=None, **options)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_policy_waits_as_if_there_were_no_updates(name, separate):
    """Not even decay touches it, whatever its gradients; then it does what a run without those
    updates would. The critic is as in a run of its own from the first."""
    options = config(name, weight_decay=0.1, schedule="linear")
    params, total = small(separate), FIRST + 4
    found = trained(optimizer.make_optimizer(options, total, FIRST), params, total)
    alone = trained(optimizer.make_optimizer(options, total - FIRST), params, 4, FIRST)
    plain = trained(optimizer.make_optimizer(options, total), params, total)
    for i, now in enumerate(map(flat, found)):
        policys = flat(alone[max(0, i - FIRST)])
        critics = flat(plain[i])
        for path, value in now.items():
            wanted = critics if critic.is_critic(path) else policys
            np.testing.assert_allclose(value, wanted[path], rtol=0, atol=1e-6, err_msg=path)
            if i <= FIRST and not critic.is_critic(path):
                assert value.tobytes() == flat(params)[path].tobytes(), path
    assert all(np.any(flat(found[-1])[path] != flat(params)[path]) for path in flat(params))


def test_gradients_of_zero_leave_every_bit_without_decay():
    """What a shared critic's first updates leave behind where nothing waits."""
    params = small(separate=False)
    tx = optimizer.make_optimizer(config("adamw", weight_decay=0.0), 5)
    grads = jax.tree.map(jnp.zeros_like, params) | {"value_head": {"kernel": jnp.ones((4, 1))}}
    state, now, update = tx.init(params), params, jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(grads, state, now)
        now = jax.tree.map(jnp.add, now, updates)
    for path, value in flat(now).items():
        same = value.tobytes() == flat(params)[path].tobytes()
        assert same == (path != "value_head/kernel"), path


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_separate_critic_learns_like_the_policy_its_head_faster(name):
    params = small(separate=True)
    half = gradients({k: params[k] for k in ("layers", "norm")}, 0)
    grads = half | {"critic": half | {"value_head": {"kernel": jnp.ones((4, 1))}}}

    def first(scale):
        options = config(name, weight_decay=0.0, value_head_scale=scale)
        tx = optimizer.make_optimizer(options, 5)
        return jax.jit(tx.update)(grads, tx.init(params), params)[0]

    updates, slow = first(7.0), first(1.0)
    own = updates.pop("critic")
    head, slow = own.pop("value_head")["kernel"], slow["critic"]["value_head"]["kernel"]
    np.testing.assert_allclose(head, 7 * slow, rtol=1e-5)
    assert np.abs(slow).min() > 0.9 * RATE
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, updates)


def test_muon_takes_the_matrices_of_a_separate_critic():
    policy, params = testing.tiny_policy(value_head=True)
    labels = optimizer.muon_dimensions(critic.add_critic(policy, params))
    own = labels.pop("critic")
    assert own.pop("value_head") == {"kernel": None, "bias": None}
    assert own == labels and labels["layers"]["q_proj"]["kernel"] is not None
