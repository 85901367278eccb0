"""The TPU's attention kernel, JAX's Pallas splash attention, under the masks of packed rows.

Its static mask is causal or whole, and segment ids narrow it. Where sequences share beginnings a
mask of two segments a query is needed, which ids can't say: such rows give the kernel their mask
as an array, eleven bytes a pair of tokens in all, and it leaves out the blocks that are empty.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from vrrl_jax.types import Array

LANES = 128  # blocks are multiples of it
BLOCK = 512


def padded(tokens: int) -> tuple[int, int]:
    """(length, block): the length is a multiple of the block, and at least `tokens`."""
    block = min(BLOCK, -(-tokens // LANES) * LANES)
    return -(-tokens // block) * block, block


def splash(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    mask: Array | None = None,
    *,
    causal: bool,
    interpret: bool,
) -> Array:
    """Attention within segments by the kernel, padded to its blocks.

    Args:
      q: [R, T, N, H].  k, v: [R, T, G, H].
      segments: int32 [R, T]; 0 is padding, whose result means nothing.
      mask: bool [R, T, T] in place of the segments; every query sees a key, itself.
      causal: whether a token sees none that come after it.
      interpret: run the kernel's program step by step, on any platform.

    Returns:
      [R, T, N, H].
    """
    t, heads, h = q.shape[1:]
    length, block = padded(t)
    more = length - t
    q = (q.astype(jnp.float32) * h**-0.5).astype(q.dtype)  # the kernel doesn't scale
    widen = lambda a: jnp.pad(a.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, 0)))
    q, k, v = widen(q), widen(k), widen(v)
    options = {
        "block_sizes": kernels.BlockSizes(*(block,) * 8),
        "head_shards": 1,
        "q_seq_shards": 1,
        "interpret": interpret,
    }
    if mask is None:
        shape = (length, length)
        one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
        kernel = kernels.make_splash_mha(masks.MultiHeadMask([one] * heads), **options)
        segments = jnp.pad(segments, ((0, 0), (0, more)))
        out = jax.vmap(kernel)(q, k, v, kernels.SegmentIds(segments, segments))
    else:
        # What pads sees itself: the kernel divides by the sum over the keys that a query sees.
        mask = jnp.pad(mask, ((0, 0), (0, more), (0, more))) | jnp.eye(length, dtype=bool)

        def row(one):
            *qkv, mask = one
            kernel = kernels.make_splash_mha(mask[None], **options)
            # Read as a plain bool, and an array after the call that makes it.
            kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
            return kernel(*qkv)

        out = jax.lax.map(row, (q, k, v, mask))
    return out.swapaxes(1, 2)[:, :t]
