"""The Qwen2.5 decoder: one block, scanned over stacked layers in training."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vrrl_jax.models.config import TextConfig
from vrrl_jax.models.layers import GatedMLP, RMSNorm, attend, rotate


class DecoderBlock(nn.Module):
    """Pre-norm grouped-query attention and gated MLP.

    Without a cache, keys are the row's own tokens. With one (`(k, v)`, each [B, S, G, H]), the
    new keys are written at each row's `offset` first; writes past the end are dropped.
    """

    config: TextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cos, sin, mask, cache=None, offset=None):
        c = self.config
        b, t, _ = x.shape
        dense = lambda n, name, bias: nn.Dense(n, use_bias=bias, dtype=self.dtype, name=name)
        h = RMSNorm(c.eps, self.dtype, name="input_layernorm")(x)
        q = dense(c.heads * c.head_dim, "q_proj", True)(h).reshape(b, t, c.heads, c.head_dim)
        k = dense(c.kv_heads * c.head_dim, "k_proj", True)(h).reshape(b, t, c.kv_heads, -1)
        v = dense(c.kv_heads * c.head_dim, "v_proj", True)(h).reshape(b, t, c.kv_heads, -1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            slots = offset[:, None] + jnp.arange(t)
            # Row by row: indices that name the row make a mesh gather every row's tokens.
            write = jax.vmap(lambda held, at, new: held.at[at].set(new, mode="drop"))
            k = write(cache[0], slots, k.astype(cache[0].dtype))
            v = write(cache[1], slots, v.astype(cache[1].dtype))
            cache = (k, v)
        x = x + dense(c.width, "o_proj", False)(attend(q, k, v, mask))
        h = RMSNorm(c.eps, self.dtype, name="post_attention_layernorm")(x)
        return x + GatedMLP(c.intermediate, False, self.dtype, name="mlp")(h), cache


def scanned(config: TextConfig, dtype: jnp.dtype, remat: bool) -> nn.Module:
    """All blocks as one scan over parameters stacked along a leading layer axis."""
    block = nn.remat(DecoderBlock, prevent_cse=False) if remat else DecoderBlock
    layers = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.layers,
    )
    return layers(config, dtype)
