"""The Qwen2.5-VL vision tower over packed picture slots (arXiv 2502.13923, section 2.1.1)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax.models.attention import ANYWHERE, Kernel, attend, frame_sight, windows
from vrrl_jax.models.config import VisionConfig
from vrrl_jax.models.layers import (
    GatedMLP,
    Linear,
    RMSNorm,
    rotate,
    stacked,
    vision_angles,
)
from vrrl_jax.parallel.mesh import over_rows

EPS = 1e-6  # fixed in the published architecture, no field of config.json


class Block(nn.Module):
    """Pre-norm attention and gated MLP. `full` chooses the frame or the window of a patch."""

    config: VisionConfig
    dtype: jnp.dtype
    kernel: Kernel

    @nn.compact
    def __call__(self, x, full, cos, sin, segments):
        c = self.config
        n, p, d = x.shape
        # The kernels are split along the width: left to itself the compiler splits pictures so.
        x = over_rows(self.kernel.mesh, x)
        h = RMSNorm(EPS, self.dtype, name="norm1")(x)
        qkv = Linear(3 * d, dtype=self.dtype, name="qkv")(h).reshape(n, p, 3, c.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)

        def whole(q, k, v):
            return attend(q, k, v, frame_sight(segments, c.heads, self.kernel))

        def window_attention(q, k, v):
            return windows(q, k, v, segments, (c.window * c.merge) ** 2)

        if not c.windowed:
            out = whole(q, k, v)
        elif not c.full_blocks:
            out = window_attention(q, k, v)
        else:
            out = jax.lax.cond(full, whole, window_attention, q, k, v)
        x = x + Linear(d, dtype=self.dtype, name="proj")(out)
        h = RMSNorm(EPS, self.dtype, name="norm2")(x)
        x = x + GatedMLP(c.intermediate, True, self.dtype, name="mlp")(h)
        return over_rows(self.kernel.mesh, x), None


class VisionTower(nn.Module):
    """Patches to language-model embeddings, one for each merged unit."""

    config: VisionConfig
    dtype: jnp.dtype
    remat: str | None = None
    kernel: Kernel = ANYWHERE

    @nn.compact
    def __call__(self, patches, coords, segments):
        """patches [N, P, C * tp * p * p] normalised -> ([N, P / merge**2, out_width], None)."""
        c = self.config
        x = nn.Dense(c.width, use_bias=False, dtype=self.dtype, name="patch_embed")(patches)
        cos, sin = vision_angles(coords[..., :2], c.width // c.heads, c.rope_theta)
        full = jnp.asarray(np.isin(np.arange(c.layers), c.full_blocks))
        blocks = stacked(Block, c.layers, self.remat, shared=3)
        x, _ = blocks(c, self.dtype, self.kernel, name="blocks")(x, full, cos, sin, segments)
        x = RMSNorm(EPS, self.dtype, name="ln_q")(x)
        x = x.reshape(x.shape[0], -1, c.width * c.merge**2)
        x = Linear(c.width * c.merge**2, dtype=self.dtype, name="merger_0")(x)
        x = nn.gelu(x, approximate=False)  # the tanh form is off by 4e-3
        return Linear(c.out_width, dtype=self.dtype, name="merger_2")(x), None
