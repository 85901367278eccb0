"""The decoder of both families: one block, scanned over stacked layers in training."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vrrl_jax.models.attention import attend
from vrrl_jax.models.config import TextConfig
from vrrl_jax.models.layers import GatedMLP, Linear, RMSNorm, rotate, stacked


class DecoderBlock(nn.Module):
    """Pre-norm grouped-query attention and gated MLP.

    Without a cache, keys are the row's own tokens. With one (`(k, v)`, each [B, S, G, H]), the
    new keys are written at each row's `offset` first; writes past the end are dropped. `sight` says
    which of them each token sees.
    `deepstack` (features [K, R, U, D], source [R, T]) is added after layer `index` < K, where a
    token shows a picture unit.
    """

    config: TextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, index, cos, sin, sight, deepstack=None, cache=None, offset=None):
        c = self.config
        b, t, _ = x.shape
        dense = lambda n, name, bias: Linear(n, use_bias=bias, dtype=self.dtype, name=name)
        h = RMSNorm(c.eps, self.dtype, name="input_layernorm")(x)
        q = dense(c.heads * c.head_dim, "q_proj", c.qkv_bias)(h).reshape(b, t, c.heads, -1)
        k = dense(c.kv_heads * c.head_dim, "k_proj", c.qkv_bias)(h).reshape(b, t, c.kv_heads, -1)
        v = dense(c.kv_heads * c.head_dim, "v_proj", c.qkv_bias)(h).reshape(b, t, c.kv_heads, -1)
        if c.qk_norm:
            q = RMSNorm(c.eps, self.dtype, name="q_norm")(q)
            k = RMSNorm(c.eps, self.dtype, name="k_norm")(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            slots = offset[:, None] + jnp.arange(t)
            # Row by row: indices that name the row make a mesh gather every row's tokens.
            write = jax.vmap(lambda held, at, new: held.at[at].set(new, mode="drop"))
            k = write(cache[0], slots, k.astype(cache[0].dtype))
            v = write(cache[1], slots, v.astype(cache[1].dtype))
            cache = (k, v)
        x = x + dense(c.width, "o_proj", False)(attend(q, k, v, sight))
        h = RMSNorm(c.eps, self.dtype, name="post_attention_layernorm")(x)
        x = x + GatedMLP(c.intermediate, False, self.dtype, name="mlp")(h)
        return (x if deepstack is None else _add_features(x, index, *deepstack)), cache


def _add_features(x, index, features, source):
    """x [R, T, D] plus the features of layer `index`, for layers past the last one unchanged."""
    count = len(features)

    def add(x):
        mine = features[jnp.minimum(index, count - 1)]
        shown = jnp.take_along_axis(mine, jnp.maximum(source, 0)[..., None], 1)
        return x + jnp.where((source >= 0)[..., None], shown, 0).astype(x.dtype)

    if isinstance(index, int):  # layers that are unrolled
        return add(x) if index < count else x
    return jax.lax.cond(index < count, add, lambda x: x, x)


def scanned(config: TextConfig, dtype: jnp.dtype, remat: str | None) -> nn.Module:
    """All blocks as one scan over parameters stacked along a leading layer axis."""
    return stacked(DecoderBlock, config.layers, remat, shared=4)(config, dtype)
