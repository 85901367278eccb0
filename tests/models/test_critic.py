"""The critic, on the policy's states or a model of its own, and that the policy has none of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import inference, testing
from vrrl_jax.config import OptimizerConfig
from vrrl_jax.models import critic
from vrrl_jax.models import policy as models
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine
from vrrl_jax.types import Picture, Sequence


def flat(tree):
    return {path_name(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(tree)}


def drawn_head(width, seed):
    rng = np.random.default_rng(seed)
    head = {"kernel": rng.normal(size=(width, 1)), "bias": rng.normal(size=1)}
    return jax.tree.map(np.float32, head)


@pytest.fixture(scope="module")
def policy():
    return testing.tiny_policy(value_head=True)[0]


@pytest.fixture(scope="module")
def shared(policy):
    """Parameters whose critic says something."""
    params = models.init_params(policy, 0) | {"value_head": drawn_head(32, 1)}
    return jax.device_put(params)


@pytest.fixture(scope="module")
def separate(policy, shared):
    """Parameters with a critic that has moved away from the policy."""
    other = models.init_params(policy, 7) | {"value_head": drawn_head(32, 2)}
    rest = {k: v for k, v in shared.items() if k != "value_head"}
    return rest | {"critic": jax.device_put(other)}


@pytest.fixture(scope="module")
def rows(policy):
    """Two rows of text around a picture of 2 x 2 tokens."""
    rng, config = np.random.default_rng(3), policy.config
    sequences = []
    for before, after in ((3, 5), (1, 4)):
        text = lambda n: rng.integers(5, 300, n).tolist()
        tokens = text(before) + [config.image_token_id] * 4 + text(after)
        patches = rng.integers(0, 256, (16, 3 * 14 * 14), np.uint8)
        sequences.append(Sequence(np.int32(tokens), (Picture(patches, (1, 4, 4)),)))
    return inference.one_a_row(policy, sequences, 16)


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(4).normal(size=(2, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def learned(policy, rows, weights):
    """(params, trunk, hidden) -> (values, gradients of a weighted sum of them)."""

    @jax.jit
    def learned(params, trunk, hidden):
        def loss(params):
            states = models.hidden_states(policy, params, rows, hidden)
            values = critic.values(policy, params, rows, states, hidden, trunk)
            return jnp.sum(weights * values), values

        (_, values), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return values, gradient

    return learned


@pytest.fixture(scope="module")
def plain(policy, rows, weights):
    """The same of a head written out beside the states that emit the tokens."""

    @jax.jit
    def plain(params, hidden):
        def loss(params):
            states = models.hidden_states(policy, params, rows, hidden)
            states = jnp.concatenate([jnp.zeros_like(states[:, :1]), states[:, :-1]], 1)
            head = params["value_head"]
            values = jnp.einsum("rtd,d->rt", states, head["kernel"][:, 0]) + head["bias"]
            return jnp.sum(weights * values), values

        (_, values), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return values, gradient

    return plain


def assert_close(found, wanted, scale=1.0):
    found, wanted = flat(found), flat(wanted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        bound = 1e-5 * max(1e-3, np.abs(value).max())
        np.testing.assert_allclose(found[name], scale * value, rtol=0, atol=bound, err_msg=name)


@pytest.fixture(scope="module")
def covered():
    """bool [R, T]: a token and a part of the picture are hidden."""
    hidden = np.zeros((2, 16), bool)
    hidden[:, 2:5] = True
    return hidden


# --- shared --------------------------------------------------------------------------------------


def test_at_full_trunk_it_is_the_plain_head(learned, plain, shared, covered):
    found, wanted = learned(shared, 1.0, covered), plain(shared, covered)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-5)
    assert_close(found[1], wanted[1])
    assert all(np.any(a) for n, a in flat(wanted[1]).items() if "layers/q_proj/kernel" in n)


def test_the_trunk_scales_the_gradient_and_not_the_values(learned, shared, covered):
    whole, part, none = (learned(shared, trunk, covered) for trunk in (1.0, 0.25, 0.0))
    for values, _ in (part, none):
        np.testing.assert_array_equal(values, whole[0])
    for gradient, trunk in ((part[1], 0.25), (none[1], 0.0)):
        head, rest = gradient.pop("value_head"), whole[1] | {}
        assert_close(head, rest.pop("value_head"))
        assert np.any(head["kernel"]) and np.any(head["bias"])
        assert_close(gradient, rest, trunk)
    assert not any(np.any(a) for a in jax.tree.leaves(none[1])), "exactly zero without a trunk"


@pytest.mark.parametrize("separately", [False, True])
def test_a_fresh_critic_says_exactly_zero(policy, learned, covered, separately):
    params = models.init_params(policy, 0)
    params = jax.device_put(critic.add_critic(policy, params) if separately else params)
    values, gradient = learned(params, 0.0, covered)
    assert not np.asarray(values).any()
    # Nor does its head, being zero, send anything into the states: all that moves is itself.
    assert {n for n, a in flat(gradient).items() if a.any()} == {
        n for n in flat(gradient) if critic.is_head(n)
    }


def test_parameters_without_a_head_are_an_error(policy, shared, rows):
    bare = {k: v for k, v in shared.items() if k != "value_head"}
    assert critic.has_critic(shared) and not critic.has_critic(bare)
    with pytest.raises(ValueError, match="value_head=True"):
        critic.values(policy, bare, rows, np.zeros((2, 16, 32), np.float32))


@pytest.fixture(scope="module")
def warming(policy, shared, rows, weights):
    """Gradients of the whole loss whose policy terms weigh nothing and whose trunk is cut."""
    objective = update.Objective(kl_coefficient=0.1, entropy_coefficient=0.1, value_coefficient=1.0)
    noise = lambda seed: np.random.default_rng(seed).normal(size=(2, 16)).astype(np.float32)
    none = np.zeros((2, 16), np.float32)
    fields = {"loss_weights": none, "trunk": none, "value_weights": np.abs(weights)}
    # Ratios beyond float32: what weighs nothing must not bring in a NaN either.
    fields |= {"logprobs": none - 1e3, "ref_logprobs": none - 1e3, "advantages": noise(1)}
    fields |= {"values": noise(2), "returns": noise(3)}
    loss = lambda params: update.policy_loss(policy, objective, params, batch)[0]
    batch = update.Microbatch(rows, fields)
    return jax.jit(jax.grad(loss))(shared)


@pytest.mark.parametrize(("decay", "critic_first"), [(0.0, 0), (0.1, 2)])
def test_a_shared_critic_warms_up_alone(warming, shared, decay, critic_first):
    """The policy keeps every bit: without decay anyway, with decay where the optimizer waits."""
    config = OptimizerConfig(learning_rate=0.1, weight_decay=decay)
    tx = make_optimizer(config, 4, critic_first)
    update = jax.jit(lambda state, now: tx.update(warming, state, now))
    state, now = tx.init(shared), shared
    for _ in range(2):
        updates, state = update(state, now)
        now = jax.tree.map(np.add, now, updates)
    before = flat(shared)
    for name, value in flat(now).items():
        assert (value.tobytes() == before[name].tobytes()) != critic.is_head(name), name


# --- separate ------------------------------------------------------------------------------------


def test_it_is_a_second_policy_with_a_value_head(learned, plain, shared, separate, covered):
    """Its values and gradients are that policy's; the first one has none of either."""
    values, gradient = learned(separate, 0.0, covered)
    wanted, wanted_gradient = plain(separate["critic"], covered)
    np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-5)
    assert np.abs(values - plain(shared, covered)[0]).max() > 0.1
    assert_close(gradient.pop("critic"), wanted_gradient)
    assert not any(np.any(a) for a in jax.tree.leaves(gradient)), "exactly zero in the policy"


def test_hidden_tokens_are_hidden_from_it(learned, separate, covered):
    """What is covered may change: only what sees it differs."""
    seen, blind = (learned(separate, 1.0, h)[0] for h in (np.zeros_like(covered), covered))
    assert np.abs(seen - blind)[:, 4:].max() > 1e-3
    np.testing.assert_allclose(seen[:, :3], blind[:, :3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_it_starts_as_a_copy_of_the_policy(policy, shared, tied):
    params = shared if tied else shared | {"lm_head": {"kernel": np.ones((32, 384), np.float32)}}
    held = lambda name: name.startswith("critic/visual/")
    whole = critic.add_critic(policy, params, held)
    own = flat(whole["critic"])
    assert own.keys() == flat(shared).keys() and "value_head" not in whole
    assert ("lm_head" in whole) is not tied
    for name, leaf in flat(shared).items():
        np.testing.assert_array_equal(own[name], leaf)
    # What is trained may be donated; what isn't, is held once.
    for name, leaf in jax.tree_util.tree_leaves_with_path(whole["critic"]):
        if path_name(name).startswith("value_head"):
            continue
        theirs = params
        for key in name:
            theirs = theirs[key.key]
        assert (leaf is theirs) == path_name(name).startswith("visual/"), name


def test_its_head_is_zero_where_the_policy_has_none(policy, shared):
    half = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), shared)
    half = critic.add_critic(policy, {k: v for k, v in half.items() if k != "value_head"})
    head = half["critic"]["value_head"]
    assert head["kernel"].shape == (32, 1) and head["bias"].shape == (1,)
    assert not any(np.any(a) or a.dtype != jnp.float32 for a in jax.tree.leaves(head))
    assert half["critic"]["norm"]["scale"].dtype == jnp.bfloat16


# --- what has none of it -------------------------------------------------------------------------


def test_names():
    critics = ("critic/layers/q_proj/kernel", "critic/value_head/bias", "value_head/kernel")
    others = ("layers/q_proj/kernel", "visual/critic/kernel", "opt/value_head/kernel")
    assert [critic.is_critic(n) for n in critics + others] == [True] * 3 + [False] * 3
    assert [critic.is_head(n) for n in critics + others] == [False, True, True] + [False] * 3


def test_the_sampler_s_copy_has_none(policy, shared, separate):
    """Not even as an input of the program that makes it."""
    alone, beside = (engine.make_view(policy, params) for params in (shared, separate))
    jax.tree.map(np.testing.assert_array_equal, alone, beside)
    sizes = [
        engine.make_view.lower(policy, params).compile().memory_analysis().argument_size_in_bytes
        for params in (shared, separate)
    ]
    assert sizes[0] == sizes[1]


def test_the_reference_has_none(shared, separate):
    left = critic.without_critic(separate)
    assert left.keys() == separate.keys() - {"critic"}
    assert all(left[k] is separate[k] for k in left)
    assert critic.without_critic(shared) == shared


def test_an_export_has_none(policy, shared, separate, tmp_path):
    """File by file the directory of a policy that never had a critic."""
    without = {k: v for k, v in shared.items() if k != "value_head"}
    for name, params in (("beside", separate), ("alone", without)):
        vr.save_pretrained(tmp_path / name, policy, params)
    beside, alone = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for name in ("beside", "alone")
    )
    assert beside == alone and "model.safetensors" in alone
    assert "value_head.safetensors" not in alone
