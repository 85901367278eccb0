"""Drawing one token a row, each row with a key of its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vrrl_jax.models.policy import Policy, sampling_logits
from vrrl_jax.types import Array


class Sampling(NamedTuple):
    """How tokens are drawn; traced, so changing a number compiles nothing.

    Attributes:
      temperature: float scalar; 0 is greedy.
      top_k: int scalar, keep the k likeliest; 0 keeps all.
      top_p: float scalar, keep the smallest set of at least this probability; 1 keeps all.
    """

    temperature: Array | float = 1.0
    top_k: Array | int = 0
    top_p: Array | float = 1.0


class Draw(NamedTuple):
    """A drawn token of each row.

    Attributes:
      token: int32 [B].
      logprob: float32 [B] under softmax(logits / temperature), placeholders excluded, before
        top-k and top-p: what training reproduces. At temperature 0 that of temperature 1.
      sampled_logprob: float32 [B] under the distribution drawn from, after top-k and top-p.
    """

    token: Array
    logprob: Array
    sampled_logprob: Array


def row_keys(key: Array, step: Array, questions: Array, samples: Array, turn: Array) -> Array:
    """One key a row, from what the row is and not from where it stands: keys [B].

    Args:
      key: the run's.
      step: int scalar.
      questions, samples: int32 [B].
      turn: int scalar or int32 [B].
    """
    key = jax.random.fold_in(key, step)

    def fold(question, sample, turn):
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.fold_in(key, question), sample), turn
        )

    return jax.vmap(fold)(questions, samples, jnp.broadcast_to(turn, jnp.shape(questions)))


def truncate(logits: Array, top_k: Array | int, top_p: Array | float) -> Array:
    """Sets logits [B, V] outside the top-k and the top-p set to -inf; ties at the edge stay."""
    ordered = -jnp.sort(-logits, -1)
    k = jnp.where(jnp.asarray(top_k) > 0, top_k, logits.shape[-1])
    kth = jnp.take_along_axis(
        ordered, jnp.broadcast_to(jnp.clip(k - 1, 0, logits.shape[-1] - 1), (len(logits), 1)), -1
    )
    ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, -1)
    # A token is in the set while the probability before it is below top_p: never an empty set.
    before = jnp.cumsum(probabilities, -1) - probabilities
    inside = (before < top_p) & (probabilities > 0)
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), -1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def draw(policy: Policy, raw: Array, keys: Array, sampling: Sampling) -> Draw:
    """Draws from raw logits [B, V] with keys [B]."""
    scaled = sampling_logits(policy, raw, sampling.temperature)
    logprobs = jax.nn.log_softmax(scaled, -1)
    # Sorting the vocabulary on every token is only paid for where it changes anything.
    truncated = jax.lax.cond(
        (jnp.asarray(sampling.top_k) > 0) | (jnp.asarray(sampling.top_p) < 1.0),
        lambda x: jax.nn.log_softmax(truncate(x, sampling.top_k, sampling.top_p), -1),
        lambda x: x,
        logprobs,
    )
    noise = jax.vmap(lambda key: jax.random.gumbel(key, raw.shape[-1:]))(keys)
    noise = jnp.where(jnp.asarray(sampling.temperature) > 0, noise, 0.0)
    token = jnp.argmax(truncated + noise, -1).astype(jnp.int32)
    pick = lambda a: jnp.take_along_axis(a, token[:, None], -1)[:, 0]
    return Draw(token, pick(logprobs), pick(truncated))
