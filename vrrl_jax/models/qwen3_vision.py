"""The Qwen3-VL vision tower over packed picture slots (arXiv 2511.21631): learned positions beside
rotary ones, whole frames, and features of some blocks for the decoder's first layers."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vrrl_jax.models.attention import ANYWHERE, Kernel, attend, frame_sight
from vrrl_jax.models.config import VisionConfig
from vrrl_jax.models.layers import Linear, rotate, stacked, vision_angles
from vrrl_jax.parallel.mesh import over_rows

EPS = 1e-6  # fixed in the published architecture, no field of config.json


def layer_norm(x, dtype, name: str):
    """(x - mean) / deviation * scale + bias, in float32; to be called inside a module."""
    norm = nn.LayerNorm(EPS, dtype=jnp.float32, use_fast_variance=False, name=name)
    return norm(x).astype(dtype)


class Block(nn.Module):
    """Pre-norm attention and MLP; keeps its output where deepstack wants it.

    `held` [N, P, D] stacked over the deepstack entries; `slot` is this block's entry, -1 if none.
    """

    config: VisionConfig
    dtype: jnp.dtype
    kernel: Kernel

    @nn.compact
    def __call__(self, carry, slot, cos, sin, segments):
        c = self.config
        x, held = carry
        n, p, d = x.shape
        # The kernels are split along the width: left to itself the compiler splits pictures so.
        x = over_rows(self.kernel.mesh, x)
        h = layer_norm(x, self.dtype, "norm1")
        qkv = Linear(3 * d, dtype=self.dtype, name="qkv")(h).reshape(n, p, 3, c.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        sight = frame_sight(segments, c.heads, self.kernel)
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, sight)
        x = x + Linear(d, dtype=self.dtype, name="proj")(out)
        h = layer_norm(x, self.dtype, "norm2")
        h = Linear(c.intermediate, dtype=self.dtype, name="linear_fc1")(h)
        h = nn.gelu(h, approximate=True)
        x = over_rows(self.kernel.mesh, x + Linear(d, dtype=self.dtype, name="linear_fc2")(h))
        if held is not None:
            mine = jnp.arange(len(held)) == slot
            held = jnp.where(mine[:, None, None, None], x, held)
        return (x, held), None


class Merger(nn.Module):
    """merge**2 neighbouring patches to one embedding; normalised before joining them, or after."""

    config: VisionConfig
    dtype: jnp.dtype
    norm_joined: bool

    @nn.compact
    def __call__(self, x):
        c = self.config
        joined = c.width * c.merge**2
        join = lambda x: x.reshape(*x.shape[:-2], -1, joined)
        x = join(x) if self.norm_joined else x
        x = layer_norm(x, self.dtype, "norm")
        x = x if self.norm_joined else join(x)
        x = Linear(joined, dtype=self.dtype, name="linear_fc1")(x)
        x = nn.gelu(x, approximate=False)  # the blocks have the tanh form, mergers the exact one
        return Linear(c.out_width, dtype=self.dtype, name="linear_fc2")(x)


def position_weights(coords, side: int):
    """Bilinear resampling of the learned table to a picture's grid, corners aligned.

    Args:
      coords: int32 [..., 4]: row and column of a patch, rows and columns of its picture.
      side: of the square table.

    Returns:
      (indices int32 [..., 4] into the flattened table, weights float32 [..., 4]).
    """
    place, extent = coords[..., :2].astype(jnp.float32), coords[..., 2:]
    at = place * (side - 1) / jnp.maximum(extent - 1, 1).astype(jnp.float32)
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, side - 1)
    part = at - low
    ends, shares = jnp.stack([low, high], -1), jnp.stack([1 - part, part], -1)
    # [..., axis, end]: every row end with every column end.
    indices = ends[..., 0, :, None] * side + ends[..., 1, None, :]
    weights = shares[..., 0, :, None] * shares[..., 1, None, :]
    shape = (*coords.shape[:-1], 4)
    return indices.reshape(shape), weights.reshape(shape)


class VisionTower(nn.Module):
    """Patches to language-model embeddings, one for each merged unit, and deepstack features."""

    config: VisionConfig
    dtype: jnp.dtype
    remat: str | None = None
    kernel: Kernel = ANYWHERE

    @nn.compact
    def __call__(self, patches, coords, segments):
        """patches [N, P, C * tp * p * p] normalised -> ([N, U, out_width], features
        [deepstack, N, U, out_width] or None), U = P / merge**2."""
        c = self.config
        x = nn.Dense(c.width, dtype=self.dtype, name="patch_embed")(patches)
        indices, weights = position_weights(coords, c.positions)
        learned = nn.Embed(c.positions**2, c.width, name="pos_embed")(indices)
        x = x + (learned * weights[..., None]).sum(-2).astype(self.dtype)
        cos, sin = vision_angles(coords[..., :2], c.width // c.heads, c.rope_theta)

        count = len(c.deepstack)
        slots = np.full(c.layers, -1, np.int32)
        slots[list(c.deepstack)] = np.arange(count)
        held = jnp.zeros((count, *x.shape), self.dtype) if count else None
        blocks = stacked(Block, c.layers, self.remat, shared=3)
        (x, held), _ = blocks(c, self.dtype, self.kernel, name="blocks")(
            (x, held), jnp.asarray(slots), cos, sin, segments
        )
        units = Merger(c, self.dtype, False, name="merger")(x)
        if held is None:
            return units, None
        mergers = nn.vmap(Merger, variable_axes={"params": 0}, split_rngs={"params": True})
        return units, mergers(c, self.dtype, True, name="deepstack")(held)
