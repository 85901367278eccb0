"""What decoder and vision towers are made of: RMS norm, rotary angles, attention, gated MLP."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax.models.config import TextConfig


class RMSNorm(nn.Module):
    """x / rms(x) * scale, in float32: squares of bfloat16 activations lose the mean."""

    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps)
        return (x * scale).astype(self.dtype)


class Linear(nn.Dense):
    """x W + b, and where the parameters hold an adapter, + s (x A) B (LoRA, arXiv 2106.09685).

    An adapter is what `models.lora` put beside `kernel`: `lora_a` [in, rank], `lora_b` [rank, out]
    and `lora_scale`. The base product is the same whether or not there is one.
    """

    @nn.compact
    def __call__(self, x):
        y = super().__call__(x)
        if not self.has_variable("params", "lora_a"):
            return y
        a, b, scale = (
            self.get_variable("params", f"lora_{part}").astype(self.dtype)
            for part in ("a", "b", "scale")
        )
        return y + scale * ((x.astype(self.dtype) @ a) @ b)


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x)."""

    intermediate: int
    bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        dense = lambda n, name: Linear(n, use_bias=self.bias, dtype=self.dtype, name=name)
        gated = nn.silu(dense(self.intermediate, "gate_proj")(x))
        return dense(x.shape[-1], "down_proj")(gated * dense(self.intermediate, "up_proj")(x))


def stacked(block: type[nn.Module], length: int, remat: bool, shared: int) -> type[nn.Module]:
    """A block scanned over `length` layers, parameters stacked along a leading axis.

    It is called with what passes from layer to layer, one argument that has an entry a layer, and
    `shared` more that are the same for all.

    Args:
      remat: compute activations anew in the backward pass.
    """
    block = nn.remat(block, prevent_cse=False) if remat else block
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, *(nn.broadcast,) * shared),
        length=length,
    )


def text_angles(positions, config: TextConfig):
    """M-RoPE angles: which of time, height and width each frequency reads.

    In sections that follow one another (Qwen2.5-VL); more than three start over with time, as in
    transformers. Or interleaved (Qwen3-VL): every third frequency reads the height and every
    third the width, as far as their sections reach, and all others the time.

    Args:
      positions: int32 [3, R, T].

    Returns:
      (cos, sin), float32 [R, T, head_dim / 2].
    """
    d, section = config.head_dim, config.mrope_section
    inverse = config.rope_theta ** (-np.arange(0, d, 2, dtype=np.float32) / d)
    if config.interleaved:
        axis = np.zeros(d // 2, np.int32)
        for name in (1, 2):
            axis[name : 3 * section[name] : 3] = name
    else:
        axis = np.repeat(np.arange(len(section)) % 3, section)
    angles = jnp.moveaxis(positions[axis].astype(jnp.float32), 0, -1) * inverse
    return jnp.cos(angles), jnp.sin(angles)


def vision_angles(coords, head_dim: int, theta: float):
    """Two-dimensional RoPE angles: half the frequencies read the row, half the column.

    Args:
      coords: int32 [..., 2].

    Returns:
      (cos, sin), float32 [..., head_dim / 2].
    """
    quarter = head_dim // 4
    inverse = theta ** (-np.arange(quarter, dtype=np.float32) / quarter)
    angles = coords.astype(jnp.float32)[..., None] * inverse
    angles = angles.reshape(*coords.shape[:-1], 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """Rotary embedding, half-split pairs, in float32. x [..., T, N, H]; cos [..., T, H / 2]."""
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attend(q, k, v, mask):
    """Grouped-query attention: key-value head g serves query heads g * N/G .. (g + 1) * N/G - 1.

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


def frame_attention(q, k, v, segments):
    """Attention of picture patches within their frames.

    Args:
      q, k, v: [N, P, heads, H].
      segments: int32 [N, P], 0 is padding.

    Returns:
      [N, P, heads * H].
    """
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    return attend(q, k, v, same)
