"""Log-probabilities and entropies over a vocabulary, in chunks of tokens.

Logits exist for one chunk at a time, forward and backward: [R, T, V] never does. The backward pass
is written out (see `_backward`), since what it asks for is known: from the logits, once more, the
softmax less what was picked, without the entropy's part where no gradient of it is wanted.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax.parallel.mesh import row_axes, row_parts
from vrrl_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def score(
    hidden: Array,
    kernel: Array,
    targets: Array,
    temperature: Array,
    banned: tuple[int, ...],
    dtype: jnp.dtype,
    chunk: int,
    mesh: Mesh | None = None,
) -> tuple[Array, Array]:
    """Log-probabilities of tokens and the entropies of what they are drawn from.

    Args:
      hidden: [R, T, D], the states that emit the tokens.
      kernel: [D, V], the output projection as the optimizer holds it.
      targets: int32 [R, T, A], A alternatives a token.
      temperature: float32 scalar, positive; no gradient comes to it.
      banned: ids that have no probability; as targets they give 0.
      dtype: of the products' operands.
      chunk: tokens of each row at a time.
      mesh: over which rows are split; None for one device.

    Returns:
      (float32 [R, T, A], float32 [R, T] entropies).
    """
    return _forward(hidden, kernel, targets, temperature, banned, dtype, chunk, mesh)[:2]


def logits(raw: Array, temperature: Array | float, banned: tuple[int, ...]) -> Array:
    """Raw logits [..., V] over temperature, -inf at the ids that are banned."""
    ids = jnp.asarray(banned)
    excluded = (jnp.arange(raw.shape[-1])[:, None] == ids).any(-1)
    return jnp.where(excluded, -jnp.inf, raw / temperature)


def _gathered(kernel: Array, mesh: Mesh | None) -> Array:
    """The projection over tensor alone: gathered over fsdp once, and not in each chunk."""
    if mesh is None:
        return kernel
    split = "tensor" if kernel.shape[1] % mesh.shape["tensor"] == 0 else None
    return jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, P(None, split)))


def _forward(hidden, kernel, targets, temperature, banned, dtype, chunk, mesh):
    kernel = _gathered(kernel.astype(dtype), mesh)

    def one(h, ids):
        raw = jnp.matmul(h, kernel, preferred_element_type=jnp.float32)
        scaled = logits(raw, temperature, banned)
        normaliser = jax.nn.logsumexp(scaled, -1, keepdims=True)
        logprobs = scaled - normaliser
        # Compared with iota, not gathered: a gather over a sharded vocabulary moves all of it.
        finite = jnp.where(jnp.isfinite(logprobs), logprobs, 0.0)
        position = jnp.arange(raw.shape[-1])
        picked = [
            jnp.sum(jnp.where(position == ids[..., a, None], finite, 0.0), -1)
            for a in range(ids.shape[-1])
        ]
        entropy = -jnp.sum(jnp.exp(logprobs) * finite, -1)
        return jnp.stack(picked, -1), entropy, normaliser[..., 0]

    if chunk >= hidden.shape[1]:
        return one(hidden, targets)
    xs = _split(hidden, chunk), _split(targets, chunk)
    _, out = jax.lax.scan(lambda carry, xs: (carry, one(*xs)), None, xs)
    return tuple(_join(a, hidden.shape[1]) for a in out)


def _score_fwd(hidden, kernel, targets, temperature, banned, dtype, chunk, mesh):
    arrays = (hidden.value, kernel.value, targets.value, temperature.value)
    picked, entropy, normaliser = _forward(*arrays, banned, dtype, chunk, mesh)
    # A head that isn't trained (adapters) gets no gradient: whether it does is kept as structure.
    trained = () if kernel.perturbed else None
    return (picked, entropy), (*arrays, entropy, normaliser, trained)


def _backward(banned, dtype, chunk, mesh, kept, given):
    """With p the softmax, L its log, H = -sum p L and cotangents g_a, g_H, a logit's gradient is

    sum_a g_a ([a picked] - p) - g_H p (L + H), over the temperature.

    On a mesh each part of the rows sums the projection's gradient for itself, and the parts are
    added at the end: adding them in every chunk would send the whole gradient round each time.
    """
    hidden, kernel, targets, temperature, entropy, normaliser, trained = kept
    narrow = _gathered(kernel.astype(dtype), mesh)
    parts = row_parts(mesh) if len(hidden) % row_parts(mesh) == 0 else 1
    position = jnp.arange(kernel.shape[1])
    picked_by, entropy_by = given
    if isinstance(picked_by, SymbolicZero):
        picked_by = jnp.zeros(picked_by.shape, picked_by.dtype)
    # A banned target's log-probability is constant.
    allowed = (targets[..., None] != jnp.asarray(banned)).all(-1)
    picked_by = jnp.where(allowed, picked_by, 0.0)

    def one(total, h, ids, normaliser, by, spread):
        raw = jnp.matmul(h, narrow, preferred_element_type=jnp.float32)
        logprobs = logits(raw, temperature, banned) - normaliser[..., None]
        share = jnp.exp(logprobs)
        pull = -share * by.sum(-1, keepdims=True)
        for a in range(ids.shape[-1]):
            pull += jnp.where(position == ids[..., a, None], by[..., a, None], 0.0)
        if spread is not None:
            entropy, by = (a[..., None] for a in spread)
            # A banned id has no share; its logarithm is -inf.
            pull -= by * jnp.where(share > 0, share * (logprobs + entropy), 0.0)
        pull = (pull / temperature).astype(dtype)
        dh = jnp.matmul(pull, narrow.T, preferred_element_type=jnp.float32).astype(h.dtype)
        if total is not None:
            apart = lambda a: a.reshape(parts, -1, *a.shape[1:])
            total = _apart(total, mesh) + jnp.einsum(
                "prtd,prtv->pdv", apart(h), apart(pull), preferred_element_type=jnp.float32
            )
        return total, dh

    spread = None if isinstance(entropy_by, SymbolicZero) else (entropy, entropy_by)
    xs = (hidden, targets, normaliser, picked_by, spread)
    total = None if trained is None else jnp.zeros((parts, *kernel.shape), jnp.float32)
    if chunk >= hidden.shape[1]:
        total, dh = one(total, *xs)
    else:
        xs = jax.tree.map(lambda a: _split(a, chunk), xs)
        total, dh = jax.lax.scan(lambda total, xs: one(total, *xs), total, xs)
        dh = _join(dh, hidden.shape[1])
    return dh, None if total is None else total.sum(0).astype(kernel.dtype), None, None


def _apart(total: Array, mesh: Mesh | None) -> Array:
    """[parts, D, V], each part of the mesh's rows with its own."""
    if mesh is None:
        return total
    split = "tensor" if total.shape[2] % mesh.shape["tensor"] == 0 else None
    axes = P(row_axes(mesh, len(total)), None, split)
    return jax.lax.with_sharding_constraint(total, NamedSharding(mesh, axes))


score.defvjp(_score_fwd, _backward, symbolic_zeros=True)


def _split(a, chunk):
    """[R, T, ...] -> [chunks, R, chunk, ...], the last chunk padded with zeros."""
    r, t = a.shape[:2]
    a = jnp.pad(a, ((0, 0), (0, -t % chunk)) + ((0, 0),) * (a.ndim - 2))
    return jnp.moveaxis(a.reshape(r, -1, chunk, *a.shape[2:]), 1, 0)


def _join(a, tokens):
    """Chunks back to [R, T, ...]."""
    a = jnp.moveaxis(a, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :tokens]
