"""Which generated tokens carry loss, and which states the policy may see.

Random Turn Masking keeps the loss on the turns from a random one on; random prefix masking hides
the first tokens of an episode. Both take arrays [..., T] and draw once a row. For draws that don't
depend on a row's neighbours, `vmap` the one-row form over a key a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vrrl_jax.types import Array


class PrefixMask(NamedTuple):
    """What `random_prefix_mask` hides.

    Attributes:
      state_mask: bool [..., T], tokens whose input embedding is to be replaced.
      loss_mask: [..., T], the loss mask without the hidden actions, in its own dtype.
      length: int32 [...], m, the number of hidden generated tokens; 0 where the row was spared.
    """

    state_mask: jax.Array
    loss_mask: jax.Array
    length: jax.Array


def random_turn_mask(
    key: jax.Array,
    turn_index: Array,
    loss_mask: Array,
    *,
    k_min: int | Array = 0,
    num_turns: int | Array | None = None,
) -> jax.Array:
    """Random Turn Masking: drops the loss on every turn before k ~ Uniform{k_min .. U - 1}.

    In expectation turn t weighs P(k <= t) = (t + 1) / U at k_min 0: later turns, where mistakes
    are recovered, count more. Source: VRRL (arXiv 2607.02490), Random Turn Masking.

    Args:
      key: one random key; every row draws its own k from it.
      turn_index: int [..., T], the turn in [0, U) that a token belongs to.
      loss_mask: [..., T], nonzero on the tokens that carry loss.
      k_min: the smallest k. Where it exceeds U - 1, k is U - 1: the last turn always stays.
      num_turns: U, int or int [...]; None for the last turn with a loss token, plus one.

    Returns:
      The new loss mask [..., T], in the dtype of `loss_mask`.
    """
    turn_index, loss_mask = _turns(turn_index, loss_mask)
    num_turns = _num_turns(turn_index, loss_mask, num_turns)
    k = jax.random.randint(
        key, num_turns.shape, _first_turn(k_min, num_turns), jnp.maximum(num_turns, 1)
    )
    return jnp.where(turn_index >= k[..., None], loss_mask, jnp.zeros((), loss_mask.dtype))


def closed_form_turn_weights(
    turn_index: Array,
    loss_mask: Array,
    *,
    k_min: int | Array = 0,
    num_turns: int | Array | None = None,
) -> jax.Array:
    """The expectation of `random_turn_mask`, in place of a draw: no variance from the mask.

        w_t = P(k <= t) = max(t - k_min + 1, 0) / (U - k_min)

    The expected loss of the draw equals the loss under these weights only where the normaliser
    doesn't depend on the draw: `fixed_length`, or `token_mean` with a denominator counted before
    masking. Dividing by the drawn mask's own count weighs a row with few tokens left more.

    Args:
      turn_index, loss_mask, k_min, num_turns: as in `random_turn_mask`.

    Returns:
      Float32 [..., T], weights in [0, 1] times the loss mask: the mask of a reducer.
    """
    turn_index, loss_mask = _turns(turn_index, loss_mask)
    num_turns = _num_turns(turn_index, loss_mask, num_turns)
    first = _first_turn(k_min, num_turns)[..., None]
    span = jnp.maximum(num_turns[..., None] - first, 1)
    weights = jnp.clip((turn_index - first + 1) / span, 0.0, 1.0)
    return weights.astype(jnp.float32) * loss_mask.astype(jnp.float32)


def final_turn_mask(
    turn_index: Array, loss_mask: Array, *, num_turns: int | Array | None = None
) -> jax.Array:
    """The variant of `random_turn_mask` with k = U - 1: only the final turn carries loss."""
    turn_index, loss_mask = _turns(turn_index, loss_mask)
    last = _num_turns(turn_index, loss_mask, num_turns)[..., None] - 1
    return jnp.where(turn_index >= last, loss_mask, jnp.zeros((), loss_mask.dtype))


def random_prefix_mask(
    key: jax.Array,
    loss_mask: Array,
    *,
    probability: float | Array,
    mask_states: bool = True,
    mask_loss: bool = True,
    picture_mask: Array | None = None,
) -> PrefixMask:
    """Random prefix masking of token prefixes (the summary recipe).

    With `probability` a row has its first m generated tokens hidden, m ~ Uniform{1 .. n // 2} for
    n generated tokens; a row with n < 2 is spared. Hidden tokens are to be replaced in the input
    states, and their actions carry no loss. Observation tokens between them stay visible, apart
    from pictures where `picture_mask` says so.

    The state mask changes what the policy is conditioned on: old log-probs have to be computed
    under the masked states too, or the ratio isn't 1 at an unchanged policy.

    Args:
      key: one random key; every row draws its own coin and m from it.
      loss_mask: [..., T], nonzero on the generated tokens.
      probability: in [0, 1]; may be traced.
      mask_states: whether the state mask is set at all.
      mask_loss: whether the loss mask changes at all.
      picture_mask: [..., T], nonzero on picture tokens that are to be hidden with the prefix: in
        a row that is not spared, those before its last hidden generated token. None keeps all.

    Returns:
      A `PrefixMask`. With neither mask wanted `length` still says what was drawn.
    """
    loss_mask = jnp.asarray(loss_mask)
    generated = loss_mask != 0
    rank = jnp.cumsum(generated, axis=-1)  # 1-based among generated tokens
    limit = rank[..., -1] // 2
    coin_key, length_key = jax.random.split(key)
    hit = jax.random.bernoulli(coin_key, probability, limit.shape) & (limit > 0)
    # randint's upper end is exclusive; where limit is 0 the draw is thrown away.
    drawn = jax.random.randint(length_key, limit.shape, 1, jnp.maximum(limit, 1) + 1)
    length = jnp.where(hit, drawn, 0).astype(jnp.int32)
    hidden = generated & (rank <= length[..., None])
    state_mask = hidden
    if picture_mask is not None:
        # Before the m-th generated token, fewer than m of them have been passed.
        state_mask |= (jnp.asarray(picture_mask) != 0) & (rank < length[..., None])
    return PrefixMask(
        state_mask=state_mask if mask_states else jnp.zeros_like(hidden),
        loss_mask=jnp.where(hidden & mask_loss, jnp.zeros((), loss_mask.dtype), loss_mask),
        length=length,
    )


def _turns(turn_index: Array, loss_mask: Array) -> tuple[jax.Array, jax.Array]:
    turn_index, loss_mask = jnp.asarray(turn_index), jnp.asarray(loss_mask)
    if turn_index.shape != loss_mask.shape:
        raise ValueError(
            f"turn_index and loss_mask need one shape, not {turn_index.shape}, {loss_mask.shape}"
        )
    return turn_index, loss_mask


def _num_turns(turn_index, loss_mask, num_turns) -> jax.Array:
    """U [...]: given, or the last turn with a loss token plus one (0 for a row without any)."""
    if num_turns is None:
        return jnp.max(jnp.where(loss_mask != 0, turn_index + 1, 0), axis=-1, initial=0)
    return jnp.broadcast_to(jnp.asarray(num_turns), loss_mask.shape[:-1])


def _first_turn(k_min, num_turns: jax.Array) -> jax.Array:
    return jnp.clip(jnp.asarray(k_min), 0, jnp.maximum(num_turns - 1, 0))
