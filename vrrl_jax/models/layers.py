"""What decoder and vision towers are made of: RMS norm, rotary angles, gated MLP."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax.models.config import TextConfig

# What rematerialised blocks keep: their inputs alone, or also their products with weights.
KEPT = {"nothing": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


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


def stacked(block: type[nn.Module], length: int, remat: str | None, shared: int) -> type[nn.Module]:
    """A block scanned over `length` layers, parameters stacked along a leading axis.

    It is called with what passes from layer to layer, one argument that has an entry a layer, and
    `shared` more that are the same for all.

    Args:
      remat: compute activations anew in the backward pass, all but what a key of `KEPT` names;
        None keeps all of them.
    """
    if remat is not None:
        block = nn.remat(block, prevent_cse=False, policy=KEPT[remat])
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
