"""PPO's critic: a value head on the policy's states, or a whole model of its own.

Whoever holds the parameters holds the critic: with a subtree "critic" it is a model of the
policy's architecture with a value head and no output projection, else the value head beside the
policy's own parameters reads the policy's states.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax.models import policy as models
from vrrl_jax.models.lora import place
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.types import Array, Rows

PREFIX = "critic/"  # of the names of a separate critic's parameters
HEAD = re.compile(rf"^({PREFIX})?value_head/")


def values(
    policy: Policy,
    params: Params,
    rows: Rows,
    hidden_states: Array,
    hidden: Array | None = None,
    trunk: Array | float = 1.0,
) -> Array:
    """The critic on the state that emits each token of packed rows: float32 [R, T].

    A head that is still zero says exactly 0.

    Args:
      hidden_states: the policy's [R, T, D], which a shared critic reads.
      hidden: bool [R, T], as in `models.hidden_states`; a separate critic's forward pass takes it.
      trunk: scales the gradient of a shared critic into `hidden_states`, as a whole or, as
        [R, T, 1], that of each value; at 0 there is none. The values are the same. A separate
        critic never reaches the policy.

    Raises:
      ValueError: the parameters hold no value head.
    """
    if "critic" in params:
        own = params["critic"]
        states = models.hidden_states(policy, own, rows, hidden)
        return _read(own["value_head"], models.emitting(states, rows.shared).astype(jnp.float32))
    if "value_head" not in params:
        raise ValueError("these parameters hold no value head: load with value_head=True")
    states = models.emitting(hidden_states, rows.shared).astype(jnp.float32)
    still = jax.lax.stop_gradient(states)
    return _read(params["value_head"], still + trunk * (states - still))


def _read(head: Params, states: Array) -> Array:
    return (states @ head["kernel"] + head["bias"])[..., 0]


def add_critic(
    policy: Policy, params: Params, held: Callable[[str], bool] = lambda name: False
) -> Params:
    """Parameters with a separate critic that starts as a copy of the policy.

    Its value head is the policy's, which then has none, or zero. Adapters are copied like all else.

    Args:
      held: whether the parameter of this path, such as "critic/visual/ln_q/scale", is never
        trained; the critic then shares the policy's array. Others may be donated.
    """
    width = policy.config.text.width
    head = {"kernel": np.zeros((width, 1), np.float32), "bias": np.zeros(1, np.float32)}
    head = params.get("value_head", head)
    rest = {k: v for k, v in params.items() if k != "value_head"}

    def own(path, leaf):
        if held(PREFIX + path_name(path)):
            return leaf
        return jnp.copy(leaf) if isinstance(leaf, jax.Array) else np.array(leaf)

    body = {k: v for k, v in rest.items() if k != "lm_head"}
    copied = jax.tree_util.tree_map_with_path(own, body)
    return place(policy, rest | {"critic": copied | {"value_head": head}})


def without_critic(params: Params) -> Params:
    """The same arrays without a separate critic; a value head of the policy's own stays."""
    return {k: v for k, v in params.items() if k != "critic"}


def has_critic(params: Params) -> bool:
    """Whether `values` has anything to read."""
    return "critic" in params or "value_head" in params


def is_head(name: str) -> bool:
    """Whether a parameter's path is a value head's."""
    return bool(HEAD.match(name))


def is_critic(name: str) -> bool:
    """Whether a parameter's path is the critic's alone: its own model, or the value head."""
    return name.startswith(PREFIX) or is_head(name)
