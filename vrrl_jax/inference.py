"""A policy for people who hold a Hugging Face processor's arrays: logits, embeddings, samples."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from vrrl_jax import layout
from vrrl_jax.models import critic
from vrrl_jax.models import policy as models
from vrrl_jax.models.policy import Params, Policy, View
from vrrl_jax.rollout import engine
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Array, Picture, Pictures, Rows, Sequence


def split_pictures(pixel_values: Array | None, image_grid_thw: Array | None) -> list[Picture]:
    """A processor's packed `pixel_values` [patches, F] as one record a picture.

    Raises:
      ValueError: the patches are not those of the grids.
    """
    if (pixel_values is None) != (image_grid_thw is None):
        raise ValueError("pixel_values and image_grid_thw come together")
    if pixel_values is None:
        return []
    values = np.asarray(pixel_values, np.float32)
    grids = [tuple(int(n) for n in grid) for grid in np.asarray(image_grid_thw)]
    ends = np.cumsum([math.prod(grid) for grid in grids])
    if not grids or ends[-1] != len(values):
        raise ValueError(
            f"pixel_values has {len(values)} patches, image_grid_thw {grids} "
            f"asks for {ends[-1] if grids else 0}"
        )
    parts = np.split(values, ends[:-1])
    return [Picture(part, grid) for part, grid in zip(parts, grids, strict=True)]


def split_rows(
    policy: Policy,
    input_ids: Array,
    attention_mask: Array | None,
    pixel_values: Array | None,
    image_grid_thw: Array | None,
) -> list[Sequence]:
    """A padded batch as sequences without padding; pictures go to rows in order.

    Raises:
      ValueError: shapes don't match, a row's mask has holes, or picture tokens and pictures
        don't agree.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2:
        raise ValueError(f"input_ids must be [B, T], not {list(ids.shape)}")
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask {list(mask.shape)}, input_ids {list(ids.shape)}")
    pictures = split_pictures(pixel_values, image_grid_thw)
    place = policy.config.layout
    sequences, used = [], 0
    for r in range(len(ids)):
        real = np.flatnonzero(mask[r])
        if real.size and real[-1] - real[0] + 1 != real.size:
            raise ValueError(f"attention_mask of row {r} has holes; pad on the left or the right")
        tokens = ids[r, real].astype(np.int32)
        wanted, mine = int((tokens == place.image_id).sum()), []
        while wanted > 0 and used < len(pictures):
            mine.append(pictures[used])
            wanted -= layout.token_count(pictures[used].grid, place.merge)
            used += 1
        if wanted:
            raise ValueError(f"row {r}: picture tokens and pictures differ by {abs(wanted)} tokens")
        sequences.append(Sequence(tokens, tuple(mine)))
    if used < len(pictures):
        raise ValueError(f"{len(pictures) - used} pictures have no tokens in input_ids")
    return sequences


def one_a_row(
    policy: Policy,
    sequences: list[Sequence],
    tokens: int | None = None,
    *,
    rows: int | None = None,
    bucketed: bool = False,
) -> Rows:
    """Each sequence left-aligned in a row of its own; without pictures a text-only program.

    Args:
      tokens: of a row; by default those of the longest sequence.
      rows: at least one a sequence, the rest stays empty; by default none is.
      bucketed: whether picture slots and their patches are rounded up to `layout.bucket`.
    """
    place = policy.config.layout
    sizes = [layout.slot_patches(p.grid, place) for s in sequences for p in s.pictures]
    slots = max(1, *(len(s.pictures) for s in sequences))
    patches = max([place.block, *sizes])
    if bucketed:
        slots = layout.bucket(slots, 1)
        patches = place.block * layout.bucket(-(-patches // place.block), 1)
    shape = layout.PackShape(
        rows=rows or len(sequences),
        tokens=tokens or max(1, *(s.tokens.size for s in sequences)),
        slots=slots,
        patches=patches,
    )
    packed, _ = layout.pack(sequences, place, shape, range(len(sequences)))
    return packed if sizes else packed._replace(pictures=None)


_forward = jax.jit(models.forward, static_argnums=0)
_encode = jax.jit(models.encode_pictures, static_argnums=0)


def logits(
    policy: Policy,
    params: Params,
    input_ids: Array,
    attention_mask: Array | None = None,
    pixel_values: Array | None = None,
    image_grid_thw: Array | None = None,
) -> jax.Array:
    """Raw next-token logits, float32 [B, T, V].

    Args:
      input_ids: int [B, T], padded on either side.
      attention_mask: [B, T], 1 on real tokens; None: all.
      pixel_values: [patches, F], all pictures in row order, as a Qwen-VL processor returns.
      image_grid_thw: [pictures, 3].

    Returns:
      Entry [b, t] follows token t of row b; zeros at padding.
    """
    sequences = split_rows(policy, input_ids, attention_mask, pixel_values, image_grid_thw)
    batch, tokens = np.shape(input_ids)
    raw = _forward(policy, params, one_a_row(policy, sequences, tokens))
    if attention_mask is None:
        return raw
    # Rows are left-aligned inside; put them back where the caller's padding had them.
    mask = np.asarray(attention_mask).astype(bool)
    origin = np.where(mask, np.cumsum(mask, 1) - 1, 0)
    return jax.numpy.take_along_axis(raw, origin[..., None], 1) * mask[..., None]


def token_logprobs(policy: Policy, params: Params, rows: Rows, temperature: float = 1.0):
    """log p(token t | tokens before it) of packed rows: float32 [R, T], 0-th of a segment void."""
    return _token_logprobs(policy, params, rows, temperature)


@functools.partial(jax.jit, static_argnums=0)
def _token_logprobs(policy, params, rows, temperature):
    hidden = models.hidden_states(policy, params, rows)
    return models.token_logprobs(policy, params, hidden, rows.tokens, temperature=temperature)[0]


@functools.partial(jax.jit, static_argnums=0)
def values(policy: Policy, params: Params, rows: Rows) -> jax.Array:
    """The critic on the state that emits each token of packed rows: float32 [R, T]."""
    return critic.values(policy, params, rows, models.hidden_states(policy, params, rows))


def encode_images(
    policy: Policy, params: Params, pixel_values: Array, image_grid_thw: Array
) -> jax.Array:
    """Picture embeddings, float32 [merged tokens, D], in picture order."""
    pictures = split_pictures(pixel_values, image_grid_thw)
    place = policy.config.layout
    patches = max(layout.slot_patches(p.grid, place) for p in pictures)
    packed = layout.pack_pictures([[p] for p in pictures], place, 1, patches)
    data, coords, segments, sources = packed
    empty = np.zeros((len(pictures), 1), np.int32)
    units = _encode(policy, params, Pictures(data, coords, segments, empty)).embeddings
    return jax.numpy.concatenate([units[i, sources[i][0]] for i in range(len(pictures))]).astype(
        jax.numpy.float32
    )


class Generation(NamedTuple):
    """Completions; row b * n + i is sample i of prompt b.

    Attributes:
      tokens: int32 [B * n, max_new_tokens], the stop token included, 0 after it.
      logprobs: float32 likewise, under softmax(logits / temperature) with picture placeholders
        excluded, before top-k and top-p.
      lengths: int32 [B * n].
    """

    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """How replies are sampled; the fields are the options of `generate`.

    Raises:
      ValueError: out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    stop_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.n < 1:
            wrong = f"max_new_tokens={self.max_new_tokens} and n={self.n}"
            raise ValueError(f"{wrong} must be at least 1")
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"out of range: {temperature=} (>= 0), {top_k=} (>= 0), {top_p=} (0..1]"
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(float(self.temperature), int(self.top_k), float(self.top_p))

    def stops(self, policy: Policy) -> np.ndarray:
        """int32 [1 or more], the tokens that end a reply."""
        stops = policy.stop_ids if self.stop_ids is None else self.stop_ids
        # An impossible id stands for "no stop": the shape must not be empty.
        return np.array(tuple(stops) or (-1,), np.int32)


def prefill(
    policy: Policy,
    view: View,
    sequences: list[Sequence],
    options: Options,
    rows: int | None = None,
) -> engine.State:
    """Prompts in a cache with room for their replies: n neighbouring rows a prompt.

    Shapes are bucketed: prompts of similar sizes share their programs.

    Args:
      view: from `engine.make_view`.
      sequences: at least one.
      rows: prompts in the state, at least len(sequences); those left over stay empty.
    """
    place, rows = policy.config.layout, rows or len(sequences)
    counts, after = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for i, s in enumerate(sequences):
        counts[i] = s.tokens.size
        after[i] = layout.positions(s.tokens, [p.grid for p in s.pictures], place)[1]
    width = layout.bucket(int(counts.max()), 16)
    packed = one_a_row(policy, sequences, width, rows=rows, bucketed=True)
    chunk = engine.Chunk(packed.tokens, counts, packed.positions, after, packed.pictures)
    slots = layout.round_up(width + options.max_new_tokens, 16)
    state = engine.append(policy, view, engine.init(policy, rows, slots), chunk)
    return engine.repeat(policy, state, options.n) if options.n > 1 else state


def generate(
    policy: Policy,
    params: Params,
    input_ids: Array,
    attention_mask: Array | None = None,
    pixel_values: Array | None = None,
    image_grid_thw: Array | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    n: int = 1,
    stop_ids: tuple[int, ...] | None = None,
    key: jax.Array | None = None,
) -> Generation:
    """Samples completions of a padded batch; see `logits` for the inputs.

    Args:
      max_new_tokens: of each completion, at least 1.
      temperature: 0 is greedy.
      top_k, top_p: truncation; 0 and 1.0 keep everything.
      n: completions a prompt; they share its prefill.
      stop_ids: None takes the generation configuration's end tokens.
      key: required unless greedy.

    Raises:
      ValueError: sampling without a key, options out of range, or inputs that don't fit.
    """
    options = Options(max_new_tokens, temperature, top_k, top_p, n, stop_ids)
    if key is None:
        if temperature > 0:
            raise ValueError("sampling needs key=jax.random.key(...); temperature=0 is greedy")
        key = jax.random.key(0)
    sequences = split_rows(policy, input_ids, attention_mask, pixel_values, image_grid_thw)
    view = engine.make_view(policy, params)
    state = prefill(policy, view, sequences, options)
    questions, samples = np.divmod(np.arange(len(sequences) * n, dtype=np.int32), n)
    _, out = engine.decode(
        policy,
        view,
        state,
        np.ones(len(questions), bool),
        engine.make_keys(key, 0, questions, samples, 0),
        options.sampling,
        options.stops(policy),
        max_new_tokens,
        max_new_tokens,
    )
    return Generation(out.tokens, out.logprobs, out.lengths)
