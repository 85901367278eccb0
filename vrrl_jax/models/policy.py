"""A policy as plain functions of (policy, params, ...): forward, log-probs, cache.

`Policy` is what is fixed at trace time, hashable, hence a static argument of jit. Parameters
are a plain nested dict of float32 master arrays; the compute dtype is the policy's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax.models import qwen2_5_vision, qwen3_vision, scoring
from vrrl_jax.models.attention import Kernel, cached_sight, packed_sight
from vrrl_jax.models.config import ModelConfig
from vrrl_jax.models.decoder import DecoderBlock, scanned
from vrrl_jax.models.layers import RMSNorm, text_angles
from vrrl_jax.parallel.mesh import over_rows, row_axes
from vrrl_jax.parallel.rules import param_shardings, path_name
from vrrl_jax.types import Array, Pictures, Rows, Shared

Params = dict[str, Any]
TOWERS = {"qwen2_5_vl": qwen2_5_vision.VisionTower, "qwen3_vl": qwen3_vision.VisionTower}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FLOAT32 = re.compile(r"norm|ln_q|pos_embed")  # what modules read as it is, whatever they compute in
# Float32 logits of one chunk: 2**24 elements are 64 MB.
CHUNK_ELEMENTS = 2**24


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is static about a policy.

    Attributes:
      config: architecture.
      compute_dtype: of activations, products and the cache.
      value_head: whether parameters hold a scalar head.
      remat: recompute blocks in the backward pass.
      remat_keeps: what of them is kept all the same, a key of `layers.KEPT`.
      attention: one of `attention.NAMES`.
      gather_view: on a mesh, whether the sampler's copy of the weights lies whole on every part of
        fsdp; split, each drawn token gathers them anew.
      stop_ids: end-of-turn tokens.
      image_mean, image_std: normalisation of raw pictures.
      mesh: where rows are sharded over (data, fsdp); None for one device.
      directory: the Hugging Face directory it came from.
    """

    config: ModelConfig
    compute_dtype: str = "float32"
    value_head: bool = False
    remat: bool = False
    stop_ids: tuple[int, ...] = ()
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    mesh: Mesh | None = None
    directory: str | None = dataclasses.field(default=None, compare=False)
    attention: str = "auto"
    remat_keeps: str = "nothing"
    gather_view: bool = True

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute_dtype)

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.attention, self.mesh)

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Ids that stand for picture features and must never be sampled."""
        return (self.config.image_token_id, self.config.video_token_id)


class QwenVL(nn.Module):
    """The whole model; its methods are called through the functions below."""

    config: ModelConfig
    dtype: jnp.dtype
    remat: str | None
    with_value_head: bool
    kernel: Kernel

    def setup(self):
        text = self.config.text
        tower = TOWERS[self.config.family]
        self.visual = tower(self.config.vision, self.dtype, self.remat, self.kernel)
        self.embed_tokens = nn.Embed(text.vocab_size, text.width, dtype=self.dtype)
        self.layers = scanned(text, self.dtype, self.remat)
        self.norm = RMSNorm(text.eps, self.dtype)
        if not text.tied:
            self.lm_head = nn.Dense(text.vocab_size, use_bias=False, dtype=self.dtype)
        if self.with_value_head:
            self.value_head = nn.Dense(1, dtype=jnp.float32, kernel_init=nn.initializers.zeros)

    def encode(self, patches, coords, segments):
        return self.visual(patches, coords, segments)

    def embed(self, tokens, source, units, hidden=None):
        """Token embeddings [R, T, D] with picture units [R, K * U, D] in their places, and zero
        where `hidden` [R, T] says so."""
        x = self.embed_tokens(tokens)
        if units is not None:
            shown = jnp.take_along_axis(units, jnp.maximum(source, 0)[..., None], 1)
            x = jnp.where((source >= 0)[..., None], shown.astype(x.dtype), x)
        return x if hidden is None else jnp.where(hidden[..., None], 0, x)

    def decode_rows(self, x, positions, segments, deepstack=None, parents=None):
        """Embeddings [R, T, D] -> final hidden states [R, T, D], causal within sequences."""
        cos, sin = text_angles(positions, self.config.text)
        sight = packed_sight(segments, parents, self.config.text.heads, self.kernel)
        index = jnp.arange(self.config.text.layers)
        x, _ = self.layers(x, index, cos, sin, sight, deepstack)
        return self.norm(x)

    def __call__(self, rows: Rows):
        """For initialisation alone: touches every parameter."""
        x = self.embed(rows.tokens, None, None)
        pictures = rows.pictures
        self.encode(pictures.patches, pictures.coords, pictures.segments)
        x = self.decode_rows(x, rows.positions, rows.segments)
        if not self.config.text.tied:
            self.lm_head(x)
        if self.with_value_head:
            self.value_head(x)
        return x


def module(policy: Policy) -> QwenVL:
    """The Flax module; equal policies give equal modules, so jit caches hit."""
    remat = policy.remat_keeps if policy.remat else None
    return QwenVL(policy.config, policy.dtype, remat, policy.value_head, policy.kernel)


def abstract_params(policy: Policy) -> Params:
    """Shapes of all parameters, float32, without allocating any."""
    vision = policy.config.vision
    side = vision.merge * max(vision.window, 1)
    features = vision.channels * vision.temporal * vision.patch**2
    picture = Pictures(
        jnp.zeros((1, side**2, features)),
        jnp.zeros((1, side**2, 4), jnp.int32),
        jnp.ones((1, side**2), jnp.int32),
        jnp.full((1, 2), -1),
    )
    ones = jnp.ones((1, 2), jnp.int32)
    rows = Rows(ones, jnp.zeros((3, 1, 2), jnp.int32), ones, picture)
    return jax.eval_shape(module(policy).init, jax.random.key(0), rows)["params"]


def init_params(policy: Policy, seed: int) -> Params:
    """Fresh parameters drawn with numpy: the same on every backend and version.

    Kernels are normal with deviation 1/sqrt(fan in), embeddings 0.02 * sqrt(1024 / width) capped
    at 0.1, norm scales one, biases and the value head zero.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, parent = path[-1].key, path[-2].key
        if name == "scale":
            return np.ones(leaf.shape, np.float32)
        if name == "bias" or parent == "value_head":
            return np.zeros(leaf.shape, np.float32)
        scale = leaf.shape[-2] ** -0.5
        if name == "embedding":
            scale = min(0.1, 0.02 * math.sqrt(1024 / leaf.shape[-1]))
        return (rng.standard_normal(leaf.shape, np.float32) * scale).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(policy))


# --- forward -----------------------------------------------------------------------------------


def features(policy: Policy, patches: Array) -> Array:
    """Patches as the tower's input: raw uint8 [..., C * p * p] are normalised and repeated over
    the temporal patch; floats are a processor's `pixel_values` and pass through."""
    if patches.dtype != jnp.uint8:
        return patches.astype(policy.dtype)
    vision = policy.config.vision
    x = patches.reshape(*patches.shape[:-1], vision.channels, -1).astype(jnp.float32)
    mean, std = np.float32(policy.image_mean), np.float32(policy.image_std)
    x = ((x / 255 - mean[:, None]) / std[:, None]).astype(policy.dtype)
    x = jnp.repeat(x[..., :, None, :], vision.temporal, -2)
    return x.reshape(*patches.shape[:-1], -1)


class Units(NamedTuple):
    """Pictures as the decoder takes them, one entry for each merged unit, U = K * P / merge**2.

    Attributes:
      embeddings: [R, U, D], in the places of picture tokens.
      features: [layers, R, U, D], added there after the first layers (deepstack), or None.
    """

    embeddings: Array
    features: Array | None


def encode_pictures(policy: Policy, params: Params, pictures: Pictures) -> Units:
    """Picture slots through the vision tower."""
    r, k, p, _ = pictures.patches.shape
    flat = lambda a: a.reshape(r * k, *a.shape[2:])
    x = constrain_rows(policy, features(policy, flat(pictures.patches)))
    units, deepstack = module(policy).apply(
        {"params": params}, x, flat(pictures.coords), flat(pictures.segments), method="encode"
    )
    if deepstack is not None:
        deepstack = deepstack.reshape(len(deepstack), r, -1, deepstack.shape[-1])
    return Units(units.reshape(r, -1, units.shape[-1]), deepstack)


def _shown(policy: Policy, params: Params, pictures: Pictures | None, hidden: Array | None):
    """(embeddings, source, deepstack) for `embed` and the decoder; all None without pictures."""
    if pictures is None:
        return None, None, None
    units, source = encode_pictures(policy, params, pictures), pictures.source
    if hidden is not None:
        source = jnp.where(hidden, -1, source)  # the decoder adds no features there either
    deepstack = None if units.features is None else (units.features, source)
    return units.embeddings, source, deepstack


def hidden_states(policy: Policy, params: Params, rows: Rows, hidden: Array | None = None) -> Array:
    """Final hidden states [R, T, D] of packed rows, the compute dtype.

    Args:
      hidden: bool [R, T], tokens whose input is a zero embedding in place of their own or of the
        picture unit that they show; they keep their positions and are attended to. None for none.
    """
    units, source, deepstack = _shown(policy, params, rows.pictures, hidden)
    call = functools.partial(module(policy).apply, {"params": params})
    x = constrain_rows(policy, call(rows.tokens, source, units, hidden, method="embed"))
    parents = None if rows.shared is None else rows.shared.parents
    return call(x, rows.positions, rows.segments, deepstack, parents, method="decode_rows")


def head_kernel(policy: Policy, params: Params) -> Array:
    """The output projection [D, V]; the transposed embedding where the head is tied."""
    if policy.config.text.tied:
        return params["embed_tokens"]["embedding"].T
    return params["lm_head"]["kernel"]


def logits(policy: Policy, params: Params, hidden: Array) -> Array:
    """float32 [..., V], raw: no temperature, nothing masked."""
    kernel = head_kernel(policy, params).astype(policy.dtype)
    return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)


def forward(policy: Policy, params: Params, rows: Rows) -> Array:
    """Raw logits float32 [R, T, V]. For scoring, `token_logprobs` never builds them whole."""
    return logits(policy, params, hidden_states(policy, params, rows))


def sampling_logits(policy: Policy, raw: Array, temperature: Array | float) -> Array:
    """Raw logits over temperature (0 counts as 1), placeholders at -inf: what `logprobs` mean."""
    return scoring.logits(raw, _positive(temperature), policy.placeholder_ids)


def _positive(temperature: Array | float) -> Array:
    return jnp.where(jnp.asarray(temperature) > 0, temperature, 1.0)


def emitting(hidden: Array, shared: Shared | None = None) -> Array:
    """The states that emit each token: [R, T, D] shifted right by one, zeros at 0; where sequences
    share their beginnings, each token's predecessor in its own sequence."""
    if shared is None:
        return jnp.pad(hidden, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jnp.take_along_axis(hidden, shared.before[..., None], 1)


def token_logprobs(
    policy: Policy,
    params: Params,
    hidden: Array,
    targets: Array,
    *,
    temperature: Array | float = 1.0,
    shared: Shared | None = None,
) -> tuple[Array, Array]:
    """Log-probabilities of tokens under the states that emit them, and the entropy there.

    The vocabulary is read in chunks of tokens whose logits are recomputed in the backward pass,
    so that [R, T, V] never exists.

    Args:
      hidden: [R, T, D] from `hidden_states`; entry t - 1 emits token t.
      targets: int32 [R, T], or [R, T, A] for A alternatives a token.
      temperature: as in sampling.
      shared: of the rows; None where no sequences share anything.

    Returns:
      (float32 like targets, float32 [R, T] entropy). Entry 0 of a sequence means nothing.
    """
    alternatives = targets if targets.ndim == 3 else targets[..., None]
    kernel = head_kernel(policy, params)
    # Of a device: its own rows, its own part of the vocabulary.
    elements = len(hidden) * kernel.shape[1]
    if policy.mesh is not None:
        elements = -(-elements // policy.mesh.size)
    chunk = max(1, min(hidden.shape[1], CHUNK_ELEMENTS // elements))
    picked, entropy = scoring.score(
        emitting(hidden, shared),
        kernel,
        alternatives,
        _positive(temperature),
        policy.placeholder_ids,
        policy.dtype,
        chunk,
        policy.mesh,
    )
    return (picked if targets.ndim == 3 else picked[..., 0]), entropy


# --- cached decoding ---------------------------------------------------------------------------


class View(NamedTuple):
    """Parameters for sampling: compute dtype, layers unstacked. Made once per policy version."""

    visual: Any
    embedding: Array
    layers: tuple[Any, ...]
    norm: Any
    head: Array


def narrow_params(policy: Policy, params: Params) -> Params:
    """Parameters in the compute dtype. What modules read in float32, norms and learned positions,
    stays as it is: the sampler rounds where training does, and nowhere else."""

    def narrow(path, leaf):
        return leaf if FLOAT32.search(path_name(path)) else leaf.astype(policy.dtype)

    return jax.tree_util.tree_map_with_path(narrow, params)


def rollout_view(policy: Policy, params: Params) -> View:
    """Casts and unstacks: the decode loop then slices no stacked weights on every token.

    On a mesh the weights are gathered over fsdp, once a policy version and not once a token,
    unless `policy.gather_view` says otherwise.
    """
    cast = narrow_params(policy, params)
    if policy.mesh is not None and policy.gather_view:
        head_dim = policy.config.text.head_dim
        laid_out = param_shardings(cast, policy.mesh, head_dim=head_dim, whole=("fsdp",))
        cast = jax.lax.with_sharding_constraint(cast, laid_out)
    layers = tuple(
        jax.tree.map(lambda a, i=i: a[i], cast["layers"]) for i in range(policy.config.text.layers)
    )
    return View(
        visual=cast["visual"],
        embedding=cast["embed_tokens"]["embedding"],
        layers=layers,
        norm=cast["norm"],
        head=head_kernel(policy, cast),
    )


def init_cache(policy: Policy, rows: int, slots: int) -> tuple[tuple[Array, Array], ...]:
    """Empty keys and values, one pair a layer: [B, S, G, H] in the compute dtype."""
    text = policy.config.text
    empty = lambda: constrain_cache(
        policy, jnp.zeros((rows, slots, text.kv_heads, text.head_dim), policy.dtype)
    )
    return tuple((empty(), empty()) for _ in range(text.layers))


def cached_forward(
    policy: Policy, view: View, cache, tokens, positions, offset, pictures=None, hidden=None
):
    """Runs new tokens of each row against its cache.

    Args:
      tokens: int32 [B, N], right-padded.
      positions: int32 [3, B, N].
      offset: int32 [B], filled slots of each row: where its new tokens go.
      pictures: of these tokens, or None.
      hidden: bool [B, N], as in `hidden_states`, or None.

    Returns:
      (hidden states after the final norm [B, N, D], the new cache). Causality is by slot: a new
      token sees every slot up to its own.
    """
    text = policy.config.text
    net = module(policy)
    params = {"visual": view.visual, "embed_tokens": {"embedding": view.embedding}}
    units, source, deepstack = _shown(policy, params, pictures, hidden)
    x = net.apply({"params": params}, tokens, source, units, hidden, method="embed")
    cos, sin = text_angles(positions, text)
    slots = cache[0][0].shape[1]
    sight = cached_sight(offset, tokens.shape[1], slots, text.heads, policy.kernel)
    block = DecoderBlock(text, policy.dtype)
    out = []
    for i, (layer, pair) in enumerate(zip(view.layers, cache, strict=True)):
        x, pair = block.apply({"params": layer}, x, i, cos, sin, sight, deepstack, pair, offset)
        out.append(tuple(constrain_cache(policy, a) for a in pair))
    x = RMSNorm(text.eps, policy.dtype).apply({"params": view.norm}, x)
    return x, tuple(out)


# --- sharding of activations -------------------------------------------------------------------


def constrain_rows(policy: Policy, x: Array) -> Array:
    """Rows over (data, fsdp) where they divide, everything else whole."""
    return over_rows(policy.mesh, x)


def constrain_cache(policy: Policy, x: Array) -> Array:
    """Cache rows over (data, fsdp), key-value heads over tensor, each where they divide."""
    if policy.mesh is None:
        return x
    heads = "tensor" if x.shape[2] % policy.mesh.shape["tensor"] == 0 else None
    spec = P(row_axes(policy.mesh, x.shape[0]), None, heads, None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(policy.mesh, spec))
