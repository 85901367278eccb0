"""The Qwen2.5-VL vision tower over packed picture slots (arXiv 2502.13923, section 2.1.1)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax.models.config import VisionConfig
from vrrl_jax.models.layers import (
    GatedMLP,
    Linear,
    RMSNorm,
    attend,
    frame_attention,
    rotate,
    stacked,
    vision_angles,
)

EPS = 1e-6  # fixed in the published architecture, no field of config.json


class Block(nn.Module):
    """Pre-norm attention and gated MLP. `full` chooses the frame or the window of a patch."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, full, cos, sin, segments):
        c = self.config
        n, p, d = x.shape
        h = RMSNorm(EPS, self.dtype, name="norm1")(x)
        qkv = Linear(3 * d, dtype=self.dtype, name="qkv")(h).reshape(n, p, 3, c.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)

        def whole(q, k, v):
            return frame_attention(q, k, v, segments)

        def window_attention(q, k, v):
            # The host laid every window into one aligned block, so a reshape finds them.
            block = (c.window * c.merge) ** 2
            split = lambda a: a.reshape(n * p // block, block, *a.shape[2:])
            valid = split(segments) > 0
            mask = jnp.broadcast_to(valid[:, None, :], (*valid.shape, block))
            return attend(split(q), split(k), split(v), mask).reshape(n, p, d)

        if not c.windowed:
            out = whole(q, k, v)
        elif not c.full_blocks:
            out = window_attention(q, k, v)
        else:
            out = jax.lax.cond(full, whole, window_attention, q, k, v)
        x = x + Linear(d, dtype=self.dtype, name="proj")(out)
        h = RMSNorm(EPS, self.dtype, name="norm2")(x)
        return x + GatedMLP(c.intermediate, True, self.dtype, name="mlp")(h), None


class VisionTower(nn.Module):
    """Patches to language-model embeddings, one for each merged unit."""

    config: VisionConfig
    dtype: jnp.dtype
    remat: bool = False

    @nn.compact
    def __call__(self, patches, coords, segments):
        """patches [N, P, C * tp * p * p] normalised -> ([N, P / merge**2, out_width], None)."""
        c = self.config
        x = nn.Dense(c.width, use_bias=False, dtype=self.dtype, name="patch_embed")(patches)
        cos, sin = vision_angles(coords[..., :2], c.width // c.heads, c.rope_theta)
        full = jnp.asarray(np.isin(np.arange(c.layers), c.full_blocks))
        blocks = stacked(Block, c.layers, self.remat, shared=3)
        x, _ = blocks(c, self.dtype, name="blocks")(x, full, cos, sin, segments)
        x = RMSNorm(EPS, self.dtype, name="ln_q")(x)
        x = x.reshape(x.shape[0], -1, c.width * c.merge**2)
        x = Linear(c.width * c.merge**2, dtype=self.dtype, name="merger_0")(x)
        x = nn.gelu(x, approximate=False)  # the tanh form is off by 4e-3
        return Linear(c.out_width, dtype=self.dtype, name="merger_2")(x), None
