"""Memory of a run on paper: bytes a device, from shapes alone. No device is asked, nothing is
allocated, so a mesh may be larger than any at hand.

What is held (parameters, optimizer, reference, sampling copy, cache) is counted exactly, by the
sharding table itself. What comes and goes inside a program is estimated by the formulae of
`update_bytes` and `rollout_bytes`: a compiler may do better by fusing or worse by keeping.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from vrrl_jax import learn, playing, roofline
from vrrl_jax.config import OptimizerConfig, TrainConfig
from vrrl_jax.models import attention, critic, flash
from vrrl_jax.models import policy as models
from vrrl_jax.models.config import ModelConfig
from vrrl_jax.models.lora import split_params
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.parallel.mesh import AXES, row_axes, row_parts
from vrrl_jax.parallel.rules import check_heads, param_shardings
from vrrl_jax.rollout import episodes

# Bytes of a device's memory, as it is sold: those that hold a run of a published model.
DEVICES = {name: roofline.CHIPS[name].memory for name in ("H100", "H200", "v5p", "v6e")}
# Of that, what a program may use: the rest is the runtime's, and lost between allocations.
USABLE = 0.9
FLOAT32 = 4
# Float32 copies of a chunk's logits alive at once: raw, log-probabilities, and a gradient of each.
LOGITS_COPIES = 4


@dataclasses.dataclass(frozen=True)
class Workload:
    """The static shapes of a run, over all devices.

    Attributes:
      rows: episodes of a rollout, B.
      slots: of a row's cache, S.
      chunk: tokens of a row's largest appended chunk.
      patches: of a picture slot, P.
      batch_rows: packed rows of a training microbatch, R.
      batch_tokens: tokens of a packed row, T.
      batch_pictures: picture slots of a packed row, K.
    """

    rows: int
    slots: int
    chunk: int
    patches: int
    batch_rows: int
    batch_tokens: int
    batch_pictures: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device.

    Attributes:
      parameters: the optimizer's, and frozen ones. A separate critic's are among them.
      optimizer: its state.
      reference: a copy of what is trained of the policy, where a KL penalty compares with it.
      view: the sampler's copy.
      cache: keys and values of a rollout.
      gradients: those accumulated, and those of the microbatch about to be added.
      rollout: what an appended chunk or a drawn token needs beside all that.
      update: what a microbatch's forward and backward pass needs beside all that.
    """

    parameters: int
    optimizer: int
    reference: int
    view: int
    cache: int
    gradients: int
    rollout: int
    update: int

    @property
    def resident(self) -> int:
        """Held from start to end. A rollout's copy stays until the next one replaces it."""
        return self.parameters + self.optimizer + self.reference + self.view

    @property
    def peak(self) -> int:
        """The larger of the two phases; cache and gradients are never held together."""
        return self.resident + max(self.cache + self.rollout, self.gradients + self.update)

    def fits(self, device: str) -> bool:
        """Whether the peak fits one of `roofline.CHIPS`, with the runtime's share left free."""
        return self.peak <= USABLE * roofline.CHIPS[device].memory


def abstract_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    """A mesh of devices that needn't be there."""
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def workload(config: TrainConfig, policy: Policy, shapes: episodes.Shapes) -> Workload:
    """The shapes of a recipe; `shapes` are those of its episodes (`episodes.plan_shapes`)."""
    packed, rollout = learn.update_shape(config, policy, shapes), config.rollout
    in_flight = playing.in_flight_of(rollout, policy.mesh)
    # Beside the episodes under way, the openings of the next ones lie ready.
    rows = in_flight and in_flight.rows + in_flight.appended
    return Workload(
        rows=rows or rollout.questions * rollout.samples,
        slots=shapes.slots,
        chunk=max(shapes.prompt, shapes.follow),
        patches=packed.patches,
        batch_rows=packed.rows,
        batch_tokens=packed.tokens,
        batch_pictures=packed.slots,
    )


def plan(
    policy: Policy,
    work: Workload,
    optimizer: OptimizerConfig,
    *,
    dtype: str = "float32",
    reference: bool = True,
    freeze_vision: bool = False,
    separate_critic: bool = False,
) -> Memory:
    """What a run holds and needs on each device of `policy.mesh`.

    Args:
      policy: its mesh may be abstract; None is one device.
      work: the shapes; see `Workload`.
      optimizer: which one.
      dtype: of the parameters that the optimizer holds.
      reference: whether there is a KL penalty.
      freeze_vision: whether the vision tower stays as it is: no gradient, no state, no copy.
      separate_critic: whether the critic is a model of its own, of a policy with a value head.

    Raises:
      ValueError: the mesh doesn't divide the query heads.
    """
    if policy.mesh is not None:
        check_heads(policy.mesh, policy.config.text.heads)
    params = master_params(policy, dtype, separate_critic=separate_critic)
    tower = lambda name: name.removeprefix(critic.PREFIX).startswith("visual")
    trained, frozen = split_params(params, lambda name: not (freeze_vision and tower(name)))
    count = lambda tree: held_bytes(tree, policy.mesh, head_dim=policy.config.text.head_dim)
    return Memory(
        # What stays as it is, a separate critic shares with the policy.
        parameters=count(trained) + count(critic.without_critic(frozen)),
        optimizer=count(jax.eval_shape(make_optimizer(optimizer, 1).init, trained)),
        reference=count(critic.without_critic(trained)) if reference else 0,
        view=view_bytes(policy, params),
        cache=cache_bytes(policy, work.rows, work.slots),
        gradients=2 * count(trained),
        rollout=rollout_bytes(policy, work),
        update=update_bytes(
            policy, work, gathered_bytes(policy, params), separate_critic=separate_critic
        ),
    )


# --- what is held --------------------------------------------------------------------------------


def master_params(policy: Policy, dtype: str, *, separate_critic: bool = False) -> Params:
    """Shapes of the parameters as the optimizer holds them; a value head is always float32."""
    params = _abstract(policy.config, policy.value_head)
    params = {k: _as(v, "float32" if k == "value_head" else dtype) for k, v in params.items()}
    if not separate_critic:
        return params
    # Nothing is placed while shapes are asked for: the mesh may be abstract.
    return jax.eval_shape(functools.partial(critic.add_critic, policy), params)


@functools.cache
def _abstract(config: ModelConfig, value_head: bool) -> Params:
    """Traced once a model: a table asks for the same one on many meshes."""
    return models.abstract_params(Policy(config, value_head=value_head))


def _as(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def held_bytes(
    tree: Any,
    mesh: Mesh | AbstractMesh | None,
    *,
    head_dim: int,
    whole: tuple[str, ...] = (),
) -> int:
    """Bytes a device of parameters, gradients or optimizer state, as the sharding table splits
    them; what doesn't divide is held whole, and nothing is split over the axes `whole`."""
    leaves = jax.tree.leaves(tree)
    if mesh is None:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    shardings = jax.tree.leaves(param_shardings(tree, mesh, head_dim=head_dim, whole=whole))
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(leaves, shardings, strict=True)
    )


def view_bytes(policy: Policy, params: Params) -> int:
    """The sampler's copy (`models.rollout_view`), laid out like the parameters or, with
    `gather_view`, whole over fsdp. A tied head is in it twice, once transposed."""
    whole = ("fsdp",) if policy.gather_view else ()
    head_dim = policy.config.text.head_dim
    count = lambda tree: held_bytes(tree, policy.mesh, head_dim=head_dim, whole=whole)
    shown = {k: v for k, v in params.items() if k not in ("value_head", "critic")}
    cast = jax.eval_shape(functools.partial(models.narrow_params, policy), shown)
    tied = {"embed_tokens": cast["embed_tokens"]} if policy.config.text.tied else {}
    return count(cast) + count(tied)


def cache_bytes(policy: Policy, rows: int, slots: int) -> int:
    """Keys and values of B rows of S slots: rows over (data, fsdp), key-value heads over tensor,
    each where they divide (`models.constrain_cache`)."""
    text = policy.config.text
    heads = _split(text.kv_heads, _tensor(policy))
    a_slot = 2 * text.layers * heads * text.head_dim * policy.dtype.itemsize
    return _rows(policy, rows) * slots * a_slot


def gathered_bytes(policy: Policy, params: Params) -> dict[str, int]:
    """What a device holds of a layer, of the head and of the embedding while it computes with
    them: whole over fsdp, split over tensor, the compute dtype."""
    mesh = None if policy.mesh is None else abstract_mesh(tensor=_tensor(policy))
    count = lambda tree: held_bytes(
        _as(tree, policy.dtype), mesh, head_dim=policy.config.text.head_dim
    )
    embedding = count({"embed_tokens": params["embed_tokens"]})
    return {
        "layer": count({"layers": params["layers"]}) // policy.config.text.layers,
        "block": count({"visual": {"blocks": params["visual"]["blocks"]}})
        // policy.config.vision.layers,
        "embedding": embedding,
        "head": embedding,  # the same shape, tied or not
    }


# --- what comes and goes -------------------------------------------------------------------------


def update_bytes(
    policy: Policy, work: Workload, gathered: dict[str, int], *, separate_critic: bool = False
) -> int:
    """A training microbatch: residuals + max(block, vision block, logits).

    With c bytes of the compute dtype, r = R / (data * fsdp) rows and t parts of tensor:

        residuals       L r T D c + Lv r K P Dv c + r K P F c + (deepstack features) + r T T
        block           `block_bytes` of r rows of T tokens + a layer, gathered, and its gradient
        vision block    `block_bytes` of r K slots of P patches + likewise
        logits          4 r C V / t * 4 for chunks of C tokens + the head, likewise

    Without rematerialisation every block's working set is kept instead of its input. The embedding
    is gathered, and its gradient formed, where there is neither head nor residual left. A separate
    critic has residuals and features of its own, beside the policy's until both turn back.
    """
    text, vision, c = policy.config.text, policy.config.vision, policy.dtype.itemsize
    rows, tokens = _rows(policy, work.batch_rows), work.batch_tokens
    slots = rows * work.batch_pictures
    block, tower = (
        text_block(policy, rows, tokens, tokens),
        vision_block(policy, slots, work.patches),
    )
    patch_features = vision.channels * vision.temporal * vision.patch**2
    inputs = rows * tokens * tokens + slots * work.patches * patch_features * c
    units = slots * work.patches // vision.merge**2
    features = (1 + len(vision.deepstack)) * units * text.width * c
    if policy.remat:
        residuals = text.layers * rows * tokens * text.width * c
        residuals += vision.layers * slots * work.patches * vision.width * c
    else:
        residuals = text.layers * block + vision.layers * tower
        block = tower = 0
    if separate_critic:
        residuals, features = 2 * residuals, 2 * features
    longest = max(1, min(tokens, models.CHUNK_ELEMENTS // (work.batch_rows * text.vocab_size)))
    a_token = _split(text.vocab_size, _tensor(policy)) * FLOAT32
    logits = LOGITS_COPIES * rows * longest * a_token
    working = max(
        block + 2 * gathered["layer"],
        tower + 2 * gathered["block"],
        logits + 2 * gathered["head"],
        2 * gathered["embedding"] - residuals,
    )
    return residuals + inputs + features + working


def rollout_bytes(policy: Policy, work: Workload) -> int:
    """An appended chunk of every row, or the logits that a token is drawn from; no gradients.

    max(chunk attending to S slots, vision block, 4 B V / t * 4), the rows of a device each, + the
    layer, gathered.
    """
    params = master_params(policy, policy.compute_dtype)
    gathered = gathered_bytes(policy, params)
    rows = _rows(policy, work.rows)
    a_row = _split(policy.config.text.vocab_size, _tensor(policy)) * FLOAT32
    return max(
        text_block(policy, rows, work.chunk, work.slots, backward=False) + gathered["layer"],
        vision_block(policy, rows, work.patches, backward=False) + gathered["block"],
        LOGITS_COPIES * rows * a_row + gathered["head"],
    )


def text_block(policy: Policy, rows: int, tokens: int, slots: int, *, backward: bool = True) -> int:
    """Working set of a decoder block, `rows` of a device; see `block_bytes`."""
    text, t = policy.config.text, _tensor(policy)
    heads = _split(text.heads, t)
    return block_bytes(
        rows * tokens,
        _written(policy, rows * tokens, slots * heads),
        text.width,
        (heads + 2 * _split(text.kv_heads, t)) * text.head_dim,
        3 * _split(text.intermediate, t),
        policy.dtype.itemsize,
        backward,
    )


def _written(policy: Policy, tokens: int, scores: int) -> int:
    """Scores a token that attention has in memory at a time: all, as far as they are written out
    (`attention.Kernel.chosen`), beyond that those of a kernel's blocks."""
    if policy.attention == "xla" or tokens * scores * FLOAT32 <= attention.PLAIN_BYTES:
        return scores
    return min(scores, -(-flash.PAIR_BYTES // (tokens * FLOAT32)))


def vision_block(policy: Policy, slots: int, patches: int, *, backward: bool = True) -> int:
    """Working set of a vision block, `slots` of a device, never split over tensor. Where some
    blocks attend within windows, one program holds the weights of both ways."""
    vision = policy.config.vision
    reach = patches + (vision.window * vision.merge) ** 2 * vision.windowed
    return block_bytes(
        slots * patches,
        _written(policy, slots * patches, reach * vision.heads),
        vision.width,
        3 * vision.width,
        (2 if policy.config.family == "qwen3_vl" else 3) * vision.intermediate,
        policy.dtype.itemsize,
        backward,
    )


def block_bytes(
    tokens: int, scores: int, width: int, projected: int, hidden: int, c: int, backward: bool
) -> int:
    """What a block needs for `tokens` tokens.

    A token counts `scores` attention scores, its softmax held in float32 and, where that is less,
    in the compute dtype; `projected` queries, keys and values before and after rotation; `hidden`
    activations of the MLP, products included; residual and normed states of `width`. A backward
    pass holds a gradient beside each of them, the forward pass one layer's alone.
    """
    attention = scores * (FLOAT32 + (c if c < FLOAT32 else 0))
    rest = (2 * projected + hidden + 3 * width) * c + width * FLOAT32
    if not backward:  # the scores are there when their exponentials are taken
        return tokens * max(attention + scores * FLOAT32 + 2 * projected * c, rest)
    return tokens * (attention + scores * 2 * FLOAT32 + 2 * rest)


# --- shares of a device --------------------------------------------------------------------------


def _tensor(policy: Policy) -> int:
    return 1 if policy.mesh is None else policy.mesh.shape["tensor"]


def _split(count: int, parts: int) -> int:
    """A dimension's share where it divides, else all of it."""
    return count // parts if count % parts == 0 else count


def _rows(policy: Policy, rows: int) -> int:
    """Rows of a device."""
    if policy.mesh is None or row_axes(policy.mesh, rows) is None:
        return rows
    return rows // row_parts(policy.mesh)
