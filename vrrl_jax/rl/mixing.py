"""Which mechanism each question of a step trains with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vrrl_jax.types import Array

MODES = ("normal", "rtm", "roll_in")
NORMAL, RTM, ROLL_IN = range(3)


def draw_modes(
    key: jax.Array,
    num_questions: int,
    weights: Array,
    *,
    roll_in_available: bool | int | Array | None = None,
) -> jax.Array:
    """Draws a mode a question; all samples of a question's group share it.

    With weights (0, 0.6, 0.4), the released ones, the objective is 0.6 J_RTM + 0.4 J_roll-in.
    Source: VRRL (arXiv 2607.02490), mixing. Roll-in falls back to Random Turn Masking where no
    prefix can be had.

    Args:
      key: a random key.
      num_questions: Q, static.
      weights: [3] in the order of `MODES`, nonnegative, not all 0; they need not sum to 1.
      roll_in_available: a bool, whether prefixes can be sampled at all; or an int, how many there
        are: the first so many roll-in questions keep their mode. None for no limit. A bool array
        of shape [] is a flag too.

    Returns:
      int32 [Q], indices into `MODES`.

    Raises:
      ValueError: `weights` isn't of shape [3].
    """
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(MODES),):
        raise ValueError(f"weights need one entry for each of {MODES}, not {weights.shape}")
    modes = jax.random.categorical(key, jnp.log(weights), shape=(num_questions,))
    modes = modes.astype(jnp.int32)
    if roll_in_available is None:
        return modes
    available = jnp.asarray(roll_in_available)
    if available.dtype == jnp.bool_:
        available = jnp.where(available, num_questions, 0)
    roll_in = modes == ROLL_IN
    return jnp.where(roll_in & (jnp.cumsum(roll_in) > available), RTM, modes)
