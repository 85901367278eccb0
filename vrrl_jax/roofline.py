"""Floors on time: the arithmetic and the memory traffic that a program can't do without.

From shapes alone; no device is asked and nothing is run. What is counted:

- FLOPs of matrix products, 2 a multiply-add: projections, attention scores and their weighted sum,
  the head. Attention is counted causal: a token with itself and those before it. Norms, softmax,
  rotary angles and sampling are left out; a program that computes masked scores does more.
- Bytes that cross the device's memory at least once: weights, keys and values, and where many
  tokens pass at once the residual stream between blocks. What may stay on the chip inside a block
  is left out, logits of a decode step among it.

A measured time can't be below `lower_bound`; how far above it lies says what there is to gain.
"""

from __future__ import annotations

import dataclasses

from vrrl_jax.models.config import ModelConfig, TextConfig, VisionConfig


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as its vendor publishes it.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes.
      interconnect: to other chips of its kind, bytes/s as published, both directions of all links
        together: at most half of it comes in.
    """

    flops: float
    bandwidth: float
    memory: float
    interconnect: float


CHIPS = {
    # Published figures: NVIDIA H100 Tensor Core GPU datasheet, SXM; NVLink, both directions.
    "H100": Chip(989e12, 3.35e12, 80e9, 900e9),
    # Published figures: NVIDIA H200 Tensor Core GPU datasheet, SXM; NVLink, both directions.
    "H200": Chip(989e12, 4.8e12, 141e9, 900e9),
    # Published figures: Google Cloud documentation, "TPU v5e", "TPU v5p", "TPU v6e". Their
    # "bidirectional inter-chip interconnect (ICI) bandwidth per chip" is 400, 1200 and 800 GBps.
    "v5e": Chip(197e12, 819e9, 16e9, 400e9),
    "v5p": Chip(459e12, 2.765e12, 95e9, 1200e9),
    "v6e": Chip(918e12, 1.64e12, 32e9, 800e9),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program can't do without.

    Attributes:
      flops: of the model. A backward pass counts twice its forward pass, whatever is recomputed.
      bytes: read from and written to device memory.
      recomputed: FLOPs done a second time to save memory; no part of `flops`, so a utilisation
        reckoned from `flops` falls where they are spent.
    """

    flops: int
    bytes: int
    recomputed: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.recomputed + other.recomputed,
        )

    def times(self, count: int) -> Work:
        """The same work `count` times."""
        return Work(count * self.flops, count * self.bytes, count * self.recomputed)


def lower_bound(flops: float, bytes: float, chip: Chip, chips: int = 1) -> float:
    """Seconds: max(flops / (n F), bytes / (n W)) for n chips of F FLOP/s and W bytes/s.

    Both amounts are those of all chips together: weights that n chips read each count n times.
    """
    return max(flops / (chips * chip.flops), bytes / (chips * chip.bandwidth))


def exchange_bound(received: float, chip: Chip) -> float:
    """Seconds in which a chip gets so many bytes from others, with all of its links busy."""
    return received / (chip.interconnect / 2)


# --- parameters ----------------------------------------------------------------------------------


def layer_kernels(text: TextConfig) -> int:
    """Elements of a decoder layer's kernels: D (N + 2 G) H + N H D + 3 D I."""
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    return text.width * (2 * queries + 2 * keys + 3 * text.intermediate)


def layer_params(text: TextConfig) -> int:
    """Its kernels, biases and norm scales."""
    biases = (text.heads + 2 * text.kv_heads) * text.head_dim * text.qkv_bias
    return layer_kernels(text) + biases + 2 * text.head_dim * text.qk_norm + 2 * text.width


def decode_params(config: ModelConfig) -> int:
    """What a decode step reads: layers, final norm and head. Of an embedding that is no head it
    reads one row a token, and nothing of the vision tower."""
    text = config.text
    return text.layers * layer_params(text) + text.width + text.vocab_size * text.width


def block_kernels(config: ModelConfig) -> int:
    """Elements of a vision block's kernels: 4 d^2 + (2 or 3) d i; a gated MLP has three."""
    vision = config.vision
    products = 2 if config.family == "qwen3_vl" else 3
    return 4 * vision.width**2 + products * vision.width * vision.intermediate


def merger_kernels(vision: VisionConfig) -> int:
    """Elements of a merger's kernels, m^2 patches to one unit: (m^2 d)^2 + m^2 d D."""
    joined = vision.merge**2 * vision.width
    return joined * (joined + vision.out_width)


def patch_features(vision: VisionConfig) -> int:
    """Numbers that describe a patch."""
    return vision.channels * vision.temporal * vision.patch**2


def vision_params(config: ModelConfig) -> int:
    """All of the tower's: kernels, biases, norms and learned positions."""
    vision, qwen3 = config.vision, config.family == "qwen3_vl"
    d, i, joined = vision.width, vision.intermediate, vision.merge**2 * vision.width
    # Qwen3-VL: layer norms with biases, two products an MLP. Qwen2.5-VL: RMS norms, three.
    block = block_kernels(config) + 4 * d + (4 * d + i + d if qwen3 else 2 * d + 2 * i + d)
    merger = merger_kernels(vision) + joined + vision.out_width
    total = patch_features(vision) * d + vision.layers * block + merger
    if not qwen3:
        return total + d
    deepstack = len(vision.deepstack) * (merger + 2 * joined)
    return total + d + vision.positions**2 * d + 2 * d + deepstack


def all_params(config: ModelConfig) -> int:
    """The whole model's, a value head aside."""
    embedding = 0 if config.text.tied else config.text.vocab_size * config.text.width
    return decode_params(config) + embedding + vision_params(config)


# --- programs ------------------------------------------------------------------------------------


def slot_bytes(text: TextConfig, itemsize: int = 2) -> int:
    """Keys and values of one token in all layers."""
    return 2 * text.layers * text.kv_heads * text.head_dim * itemsize


def head_flops(text: TextConfig, tokens: int) -> int:
    """The vocabulary's logits of some tokens."""
    return 2 * text.width * text.vocab_size * tokens


def decode(config: ModelConfig, rows: int, context: int, itemsize: int = 2) -> Work:
    """One token for each of B rows that hold S tokens in their caches.

        flops = B (2 (L layer + D V) + 4 L N H (S + 1))
        bytes = c (decode parameters + B (S + 1) cache slots + B embedding rows)

    Args:
      rows: B, at least 1.
      context: S, tokens held before this one.
      itemsize: bytes of a weight, a key and a value.
    """
    text = config.text
    products = 2 * text.layers * layer_kernels(text) + head_flops(text, 1)
    attention = 4 * text.layers * text.heads * text.head_dim * (context + 1)
    held = rows * (context + 1) * slot_bytes(text, itemsize)
    moved = (decode_params(config) + rows * text.width) * itemsize
    return Work(rows * (products + attention), moved + held)


def vision(config: ModelConfig, pictures: int, patches: int, itemsize: int = 2) -> Work:
    """The tower for K pictures of P patches each.

    A full block has P^2 pairs of patches, a windowed one P min(P, w) for windows of w patches:
    whole windows are counted, those cut short at a picture's edge hold somewhat fewer.

        flops = K (2 P (F d + Lv block) + 4 d pairs + 2 U (1 + deepstack) merger), U = P / m^2
        bytes = c (tower + K (P F + 2 Lv P d + (1 + deepstack) U D))
    """
    if not pictures:
        return Work(0, 0)
    v = config.vision
    units, outputs = patches // v.merge**2, 1 + len(v.deepstack)
    full = len(set(v.full_blocks) & set(range(v.layers)))
    window = min(patches, (v.window * v.merge) ** 2)
    pairs = full * patches**2 + (v.layers - full) * patches * window
    products = patches * (patch_features(v) * v.width + v.layers * block_kernels(config))
    merged = units * outputs * merger_kernels(v)
    passed = patches * (patch_features(v) + 2 * v.layers * v.width) + outputs * units * v.out_width
    return Work(
        pictures * (2 * products + 4 * v.width * pairs + 2 * merged),
        (vision_params(config) + pictures * passed) * itemsize,
    )


def forward(
    config: ModelConfig,
    rows: int,
    tokens: int,
    head_tokens: int,
    itemsize: int = 2,
    context: int = 0,
) -> Work:
    """The decoder over B rows of T tokens, and the head over `head_tokens` of them, all rows'.

        flops = B (2 T L layer + 4 L N H (T S + T (T + 1) / 2)) + 2 D V head_tokens
        bytes = c (decode parameters + B T (2 L + 1) D + B S cache slots)

    Args:
      context: S, tokens of each row that are in a cache already.
    """
    text, n = config.text, rows * tokens
    attention = 2 * text.layers * text.heads * text.head_dim * n * (2 * context + tokens + 1)
    products = 2 * n * text.layers * layer_kernels(text)
    passed = n * (2 * text.layers + 1) * text.width
    flops = products + attention + head_flops(text, head_tokens)
    held = rows * context * slot_bytes(text, itemsize)
    return Work(flops, (decode_params(config) + passed) * itemsize + held)


def prefill(
    config: ModelConfig,
    rows: int,
    tokens: int,
    pictures: int = 0,
    patches: int = 0,
    itemsize: int = 2,
    context: int = 0,
) -> Work:
    """Adds T tokens to the caches of B rows and gives the logits of the last ones.

    Args:
      rows, tokens: B, T; the tokens that stand for pictures are among them.
      pictures: of all rows together.
      patches: of each picture.
      context: tokens of each row that its cache holds already.
    """
    written = Work(0, rows * tokens * slot_bytes(config.text, itemsize))
    decoder = forward(config, rows, tokens, rows, itemsize, context)
    return decoder + written + vision(config, pictures, patches, itemsize)


def gradients(
    config: ModelConfig,
    rows: int,
    tokens: int,
    loss_tokens: int,
    pictures: int = 0,
    patches: int = 0,
    *,
    freeze_vision: bool = False,
    remat: bool = False,
    itemsize: int = 2,
) -> Work:
    """Forward and backward pass over B sequences of T tokens.

    Model FLOPs are three times the forward pass, or once where a frozen tower only encodes. Bytes:
    weights once forward and once backward (more microbatches read them more often), and the
    residual stream five times (written, read twice, its gradient written and read).
    Log-probabilities recompute the head's logits; `remat` recomputes every block too.

    Args:
      rows, tokens: B, T; those that stand for pictures are among them.
      loss_tokens: that the head is computed for, of all sequences together.
      pictures: of all sequences together.
      patches: of each picture.
    """
    text, tower = config.text, config.vision
    trunk = forward(config, rows, tokens, loss_tokens, itemsize)
    seen = vision(config, pictures, patches, itemsize)
    head = head_flops(text, loss_tokens)
    recomputed = head + remat * (trunk.flops - head)
    stream = 5 * text.layers * rows * tokens * text.width
    weights = 2 * decode_params(config)
    if pictures and not freeze_vision:  # beside what the forward pass alone moves
        stream += 3 * tower.layers * pictures * patches * tower.width
        weights += vision_params(config)
        recomputed += remat * seen.flops
    return Work(
        3 * trunk.flops + (1 if freeze_vision else 3) * seen.flops,
        (weights + stream) * itemsize + seen.bytes,
        recomputed,
    )


def optimizer_step(
    config: ModelConfig, *, freeze_vision: bool = False, master: int = 4, moments: int = 2
) -> Work:
    """Gradient, parameter and moments of all that is trained, each written and read once.

    Args:
      master: bytes of a number that the optimizer holds.
      moments: 2 of AdamW; the least of Muon is 1.
    """
    trained = all_params(config) - (vision_params(config) if freeze_vision else 0)
    return Work(0, 2 * (2 + moments) * trained * master)


def update(
    config: ModelConfig,
    rows: int,
    tokens: int,
    loss_tokens: int,
    pictures: int = 0,
    patches: int = 0,
    *,
    freeze_vision: bool = False,
    remat: bool = False,
    itemsize: int = 2,
    master: int = 4,
) -> Work:
    """`gradients` and an `optimizer_step` of AdamW."""
    step = optimizer_step(config, freeze_vision=freeze_vision, master=master)
    shape = (rows, tokens, loss_tokens, pictures, patches)
    options = {"freeze_vision": freeze_vision, "remat": remat, "itemsize": itemsize}
    return gradients(config, *shape, **options) + step
