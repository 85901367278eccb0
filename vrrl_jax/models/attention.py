"""Attention of the decoder and the vision towers: what a query sees, and which kernel computes it.

    out = packed(q, k, v, segments, parents)     rows of packed sequences
    out = cached(q, k, v, offset)                new tokens against a cache
    out = vision(q, k, v, segments)              patches within their frames

Where layers share what is seen, it is made once: `packed_sight`, `cached_sight`, then `attend`.
The kernels are those of `NAMES`; `plain` is the reference for all others.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vrrl_jax.models.flash import Ids, chunked
from vrrl_jax.parallel.mesh import row_axes, row_parts
from vrrl_jax.types import Array

NAMES = ("auto", "xla", "chunked", "splash", "cudnn")
# Float32 scores of one device up to which "auto" writes them out: 2**29 bytes are 512 MB.
PLAIN_BYTES = 2**29
# What a mask given as an array costs the TPU's kernel, and up to where "auto" pays it.
MASK_BYTES_A_PAIR, MASK_BYTES = 11, 2**30
NO_IDS = Ids()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How attention is computed; static.

    Attributes:
      name: one of `NAMES`. "auto" is "xla" while the scores take at most `PLAIN_BYTES` a device;
        beyond, "splash" on a TPU and "chunked" elsewhere. A cache is read by "xla" or "chunked"
        whatever the name of a platform's kernel: those have no mask that moves with the offset.
      mesh: where rows are split over (data, fsdp) and heads over tensor; None for one device.
    """

    name: str = "auto"
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"attention={self.name!r}: is one of {', '.join(NAMES)}")

    @property
    def platform(self) -> str:
        """Of the mesh's devices, which need not be here: programs are compiled ahead for others."""
        if self.mesh is None:
            return jax.default_backend()
        return self.mesh.devices.flat[0].platform

    def chosen(
        self,
        rows: int,
        heads: int,
        queries: int,
        keys: int,
        *,
        cache: bool = False,
        parents: bool = False,
    ) -> str:
        """The kernel for these sizes, never "auto"."""
        platforms = cache and self.name in ("splash", "cudnn")
        if self.name != "auto" and not platforms:
            return self.name
        if score_bytes(self.mesh, rows, heads, queries, keys) <= PLAIN_BYTES:
            return "xla"
        heavy = parents and MASK_BYTES_A_PAIR * queries * keys > MASK_BYTES
        return "splash" if self.platform == "tpu" and not cache and not heavy else "chunked"


ANYWHERE = Kernel()


def score_bytes(mesh: Mesh | None, rows: int, heads: int, queries: int, keys: int) -> int:
    """Bytes a device of scores written out in float32."""
    if mesh is not None:
        rows = rows // row_parts(mesh) if row_axes(mesh, rows) else rows
        tensor = mesh.shape["tensor"]
        heads = heads // tensor if heads % tensor == 0 else heads
    return rows * heads * queries * keys * 4


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "ids"],
    meta_fields=["kernel", "causal"],
)
@dataclasses.dataclass(frozen=True)
class Sight:
    """What each query sees, in the form that the kernel takes.

    Attributes:
      kernel: its name is never "auto".
      causal: whether tokens of a row see those before them alone.
      mask: bool [B, T, S], or None.
      ids: the same as numbers a token.
    """

    kernel: Kernel
    causal: bool
    mask: Array | None = None
    ids: Ids = NO_IDS


def packed_sight(
    segments: Array, parents: Array | None, heads: int, kernel: Kernel = ANYWHERE
) -> Sight:
    """Token t of a row sees token s if s <= t and s lies in t's segment, or in its parent.

    Args:
      segments: int32 [R, T], 0 is padding, whose results mean nothing.
      parents: int32 [R, T], the segment before a token's own in its sequence, 0 for none; or None.
      heads: of queries.
    """
    r, t = segments.shape
    name = kernel.chosen(r, heads, t, t, parents=parents is not None)
    kernel = dataclasses.replace(kernel, name=name)
    mask = None
    if kernel.name in ("xla", "cudnn") or (kernel.name == "splash" and parents is not None):
        mask = segments[:, :, None] == segments[:, None, :]
        if parents is not None:
            mask |= (parents[:, :, None] > 0) & (parents[:, :, None] == segments[:, None, :])
        mask &= np.tril(np.ones((t, t), bool))
    if kernel.name in ("xla", "cudnn"):
        return Sight(kernel, True, mask)
    last = jnp.broadcast_to(jnp.arange(t), (r, t)) if kernel.name == "chunked" else None
    return Sight(kernel, True, mask, Ids(last, segments, None if mask is not None else parents))


def cached_sight(
    offset: Array, tokens: int, slots: int, heads: int, kernel: Kernel = ANYWHERE
) -> Sight:
    """New token i of row b sees the cache's slots up to offset[b] + i, its own.

    Args:
      offset: int32 [B], filled slots of each row before its new tokens.
    """
    own = offset[:, None] + jnp.arange(tokens)
    name = kernel.chosen(len(offset), heads, tokens, slots, cache=True)
    kernel = dataclasses.replace(kernel, name=name)
    if name == "xla":
        return Sight(kernel, True, jnp.arange(slots) <= own[..., None])
    return Sight(kernel, True, None, Ids(own))


def frame_sight(segments: Array, heads: int, kernel: Kernel = ANYWHERE) -> Sight:
    """Patches see those of their own segment. segments: int32 [N, P], 0 is padding."""
    n, p = segments.shape
    kernel = dataclasses.replace(kernel, name=kernel.chosen(n, heads, p, p))
    if kernel.name in ("xla", "cudnn"):
        same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
        return Sight(kernel, False, same)
    return Sight(kernel, False, None, Ids(None, segments))


def packed(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    parents: Array | None = None,
    *,
    implementation: str = "auto",
    mesh: Mesh | None = None,
) -> Array:
    """Causal attention in packed rows; see `packed_sight` and `attend`."""
    kernel = Kernel(implementation, mesh)
    return attend(q, k, v, packed_sight(segments, parents, q.shape[2], kernel))


def cached(
    q: Array,
    k: Array,
    v: Array,
    offset: Array,
    *,
    implementation: str = "auto",
    mesh: Mesh | None = None,
) -> Array:
    """New tokens against a cache; see `cached_sight` and `attend`."""
    kernel = Kernel(implementation, mesh)
    return attend(q, k, v, cached_sight(offset, q.shape[1], k.shape[1], q.shape[2], kernel))


def vision(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    *,
    implementation: str = "auto",
    mesh: Mesh | None = None,
) -> Array:
    """Attention of patches within frames; see `frame_sight` and `attend`."""
    kernel = Kernel(implementation, mesh)
    return attend(q, k, v, frame_sight(segments, q.shape[2], kernel))


def windows(q: Array, k: Array, v: Array, segments: Array, size: int) -> Array:
    """Attention of patches within windows, which are aligned blocks of `size` patches.

    A window is small, so scores are written out whatever the kernel: `size` a patch and head.

    Args:
      q, k, v: [N, P, heads, H].
      segments: int32 [N, P], 0 is padding.

    Returns:
      [N, P, heads * H].
    """
    n, p = segments.shape
    # The host laid every window into one aligned block, so a reshape finds them.
    split = lambda a: a.reshape(n * p // size, size, *a.shape[2:])
    valid = split(segments) > 0
    mask = jnp.broadcast_to(valid[:, None, :], (*valid.shape, size))
    return plain(split(q), split(k), split(v), mask).reshape(n, p, -1)


def attend(q: Array, k: Array, v: Array, sight: Sight) -> Array:
    """Grouped-query attention: key-value head g serves query heads g * N/G .. (g + 1) * N/G - 1.

    Args:
      q: [B, T, N, H].  k, v: [B, S, G, H].
      sight: what is seen, and by which kernel. Queries that see no key give something finite.

    Returns:
      [B, T, N * H].

    Raises:
      ValueError: the kernel doesn't take the dtype.
    """
    kernel = sight.kernel
    if kernel.name == "xla":
        return plain(q, k, v, sight.mask)
    if kernel.name == "cudnn":
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            raise ValueError(f"attention=cudnn computes in bfloat16, not {q.dtype}")

        def call(q, k, v, given):
            mask = given[0][:, None]
            return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    elif kernel.name == "chunked":

        def call(q, k, v, given):
            return chunked(q, k, v, given[1])
    else:
        from vrrl_jax.models.splash import splash  # Pallas takes its time, and few runs need it

        options = {"causal": sight.causal, "interpret": kernel.platform != "tpu"}

        def call(q, k, v, given):
            mask, ids = given
            return splash(q, k, v, ids.segments, mask, **options)

    out = _on_each_device(call, kernel.mesh, q, k, v, (sight.mask, sight.ids))
    return out.reshape(*q.shape[:2], -1)


def _on_each_device(call, mesh, q, k, v, given):
    """call(q, k, v, given) with each device's rows and heads. `given`: arrays with leading rows."""
    if mesh is None or mesh.size == 1:
        return call(q, k, v, given)
    tensor, n, g = mesh.shape["tensor"], q.shape[2], k.shape[2]
    rows, heads = row_axes(mesh, q.shape[0]), "tensor" if n % tensor == 0 else None
    shared = heads and tensor % g == 0 and tensor > g  # several devices read one key-value head
    if heads and g % tensor and not shared:
        k, v = (jnp.repeat(a, n // g, 2) for a in (k, v))

    def local(q, k, v, given):
        if shared:
            mine = jax.lax.axis_index("tensor") // (tensor // g)
            k, v = (jax.lax.dynamic_slice_in_dim(a, mine, 1, 2) for a in (k, v))
        return call(q, k, v, given)

    split = P(rows, None, heads)
    held = P(rows) if shared else split
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, held, held, P(rows)),
        out_specs=split,
        check_vma=False,  # a Pallas call doesn't say what varies over the mesh
    )(q, k, v, given)


def plain(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """`attend` with scores written out: the reference.

    Args:
      q: [B, T, N, H].  k, v: [B, S, G, H].
      mask: bool [B, T, S]; a row without any True gives a finite, meaningless average.

    Returns:
      [B, T, N * H].
    """
    b, t, n, h = q.shape
    s, g = k.shape[1:3]
    # Batch axes lead, and a group's query heads share one product with its keys.
    q = q.reshape(b, t, g, n // g, h).transpose(0, 2, 3, 1, 4).reshape(b, g, n // g * t, h)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgqh,bgsh->bgqs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, g, n // g, t, s) * h**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    # Normalised after the product: H numbers a query to divide, not S.
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bgqs,bgsh->bgqh", weights.astype(v.dtype).reshape(b, g, -1, s), v)
    out = (out.reshape(b, g, n // g, t, h) / total).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n * h)
