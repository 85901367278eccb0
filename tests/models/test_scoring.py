"""Log-probabilities' own backward pass against the gradient of a plain log_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax import hlo_cost
from vrrl_jax.models import scoring
from vrrl_jax.parallel.mesh import make_mesh

BANNED = (3, 8)
ROWS, TOKENS, WIDTH, WORDS, ALTERNATIVES = 2, 7, 6, 20, 2


def drawn(dtype=np.float32):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((ROWS, TOKENS, WIDTH)).astype(np.float32)
    kernel = rng.standard_normal((WIDTH, WORDS)).astype(np.float32)
    targets = rng.integers(0, WORDS, (ROWS, TOKENS, ALTERNATIVES)).astype(np.int32)
    targets[0, 0, 0] = BANNED[0]
    given = rng.standard_normal((ROWS, TOKENS, ALTERNATIVES)).astype(np.float32)
    spread = rng.standard_normal((ROWS, TOKENS)).astype(np.float32)
    return jnp.asarray(hidden, dtype), kernel, targets, given, spread


def score(hidden, kernel, targets, chunk=3):
    temperature = jnp.float32(0.7)
    return scoring.score(hidden, kernel, targets, temperature, BANNED, hidden.dtype, chunk)


def plain(hidden, kernel, targets):
    raw = (hidden @ kernel / 0.7).at[..., jnp.array(BANNED)].set(-1e30)
    logprobs = jax.nn.log_softmax(raw)
    picked = jnp.take_along_axis(logprobs, targets, -1)
    allowed = (targets[..., None] != jnp.array(BANNED)).all(-1)
    entropy = -(jnp.exp(logprobs) * jnp.maximum(logprobs, -1e3)).sum(-1)
    return jnp.where(allowed, picked, 0.0), entropy


@pytest.mark.parametrize("parts", [(1, 0), (0, 1), (1, 1)], ids=["picked", "entropy", "both"])
@pytest.mark.parametrize("chunk", [3, TOKENS])
def test_gradients(parts, chunk):
    hidden, kernel, targets, *given = drawn()

    def loss(call, *args):
        terms = zip(parts, call(*args), given, strict=True)
        # What has no part isn't mentioned, so that no gradient of it exists.
        return sum((weight * out).sum() for part, out, weight in terms if part)

    ours = lambda h, k: loss(lambda h, k: score(h, k, targets, chunk), h, k)
    wanted = lambda h, k: loss(lambda h, k: plain(h, k, targets), h, k)
    found = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, kernel)
    exact = jax.jit(jax.value_and_grad(wanted, (0, 1)))(hidden, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_a_frozen_head_costs_no_gradient():
    """Beside adapters the head isn't trained: its gradient, float32 [D, V], is in no program."""
    hidden, kernel, targets, given, _ = drawn()
    loss = lambda h, k: (given * score(h, k, targets)[0]).sum()
    summed = f"f32[1,{WIDTH},{WORDS}] = add"
    both = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, kernel))
    alone = str(jax.make_jaxpr(jax.grad(loss))(hidden, kernel))
    assert summed in both and summed not in alone
    one, two = jax.grad(loss)(hidden, kernel), jax.grad(loss, (0, 1))(hidden, kernel)[0]
    np.testing.assert_array_equal(one, two)


def test_bfloat16_states():
    """Operands in bfloat16, sums in float32: near what float32 gives for the same states."""
    hidden, kernel, targets, given, _ = drawn(jnp.bfloat16)
    kernel = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32)
    loss = lambda h, k: (given * score(h, k, targets)[0]).sum()
    ours = jax.jit(jax.grad(loss, (0, 1)))(hidden, kernel)
    exact = jax.jit(jax.grad(loss, (0, 1)))(hidden.astype(jnp.float32), kernel)
    assert ours[0].dtype == jnp.bfloat16 and ours[1].dtype == jnp.float32
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0.02, atol=0.03)


def test_the_head_moves_once_a_call_and_not_once_a_chunk():
    """Rows and head split over a mesh, eight chunks: gathered once a pass, its gradient added up
    once; and the numbers of one device."""
    mesh = make_mesh(fsdp=4, tensor=2)
    rng = np.random.default_rng(0)
    rows, tokens, width, words = 4, 8, 16, 64
    place = lambda a, *axes: jax.device_put(np.float32(a), NamedSharding(mesh, P(*axes)))
    hidden = place(rng.standard_normal((rows, tokens, width)), "fsdp")
    kernel = place(rng.standard_normal((width, words)), "fsdp", "tensor")
    targets = rng.integers(0, words, (rows, tokens, 1)).astype(np.int32)

    def gradient(hidden, kernel, mesh, chunk):
        loss = lambda h, k: scoring.score(
            h, k, targets, jnp.float32(1.0), BANNED, jnp.dtype("float32"), chunk, mesh
        )[0].sum()
        return jax.value_and_grad(loss, (0, 1))(hidden, kernel)

    program = jax.jit(lambda h, k: gradient(h, k, mesh, 1)).lower(hidden, kernel).compile()
    once, rest = hlo_cost.costs(program.as_text())
    assert rest == hlo_cost.Cost()
    share = 4 * width * words / 2  # bytes of a device's half of the vocabulary
    large = [c for c in once.collectives if c.bytes / c.count >= share / 4]
    assert 0 < sum(c.bytes for c in large) <= 4 * share
    alone = gradient(np.asarray(hidden), np.asarray(kernel), None, tokens)
    for a, b in zip(jax.tree.leaves(program(hidden, kernel)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
