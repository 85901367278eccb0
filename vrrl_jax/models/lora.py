"""Low-rank adapters as leaves beside the kernels they change (LoRA, arXiv 2106.09685).

An adapted projection {kernel, bias} gains `lora_a` [in, r], `lora_b` [r, out] and `lora_scale`,
stacked over layers like its kernel, and computes x W + b + scale (x A) B. Whoever holds the
parameters holds the adapters: forward passes need no other setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.parallel.mesh import put
from vrrl_jax.parallel.rules import param_shardings, path_name

# What a recipe may name -> our paths. Embedding, head, norms and the patch embedding have none.
TARGETS = {
    "decoder": r"layers/.*_proj",
    "attention": r"layers/[qkvo]_proj",
    "mlp": r"layers/mlp/.*_proj",
    "vision": r"visual/blocks/(qkv|proj|mlp/.*|linear_.*)",
    "merger": r"visual/(merger|deepstack).*",
    **{f"{name}_proj": rf"layers/{name}_proj" for name in "qkvo"},
    **{f"{name}_proj": rf"layers/mlp/{name}_proj" for name in ("gate", "up", "down")},
}
ADAPTER = re.compile(r"/lora_(a|b|scale)$")


def add_lora(
    policy: Policy,
    params: Params,
    *,
    rank: int,
    alpha: float,
    targets: tuple[str, ...],
    seed: int,
) -> Params:
    """Parameters with fresh adapters; the policy is the same until they are trained.

    A is uniform within 1 / sqrt(in), as in PEFT, B zero, the scale alpha / rank.

    Args:
      targets: of `TARGETS`.
      seed: of the draw, the same on every backend.

    Raises:
      ValueError: an unknown target, or none of them names a projection of this policy.
    """
    if unknown := set(targets) - set(TARGETS):
        raise ValueError(f"lora targets {sorted(unknown)}: choose from {', '.join(TARGETS)}")
    pattern = re.compile("|".join(f"(?:{TARGETS[name]})/kernel$" for name in targets))
    rng, found = np.random.default_rng(seed), []

    def adapt(node: Params, path: str) -> Params:
        out = {k: adapt(v, f"{path}{k}/") if isinstance(v, dict) else v for k, v in node.items()}
        if not pattern.match(f"{path}kernel") or "kernel" not in node:
            return out
        found.append(path)
        *stack, width, features = node["kernel"].shape
        drawn = rng.uniform(-(width**-0.5), width**-0.5, (*stack, width, rank))
        return out | {
            "lora_a": drawn.astype(np.float32),
            "lora_b": np.zeros((*stack, rank, features), np.float32),
            "lora_scale": np.full(stack, alpha / rank, np.float32),
        }

    adapted = adapt(params, "")
    if not found:
        raise ValueError(f"lora targets {list(targets)} name no projection of this policy")
    return place(policy, adapted)


def place(policy: Policy, params: Params) -> Params:
    """Host arrays among the parameters onto the policy's devices, in their shardings."""
    leaves, tree = jax.tree.flatten(params)
    shardings = param_shardings(params, policy.mesh, head_dim=policy.config.text.head_dim)
    spread = jax.tree.leaves(shardings) if policy.mesh is not None else [None] * len(leaves)
    onto = lambda a, s: put(a, s) if isinstance(a, np.ndarray) else a
    return tree.unflatten([onto(a, s) for a, s in zip(leaves, spread, strict=True)])


def is_adapter(name: str) -> bool:
    """Whether a parameter's path is a trained part of an adapter."""
    return bool(re.search(r"/lora_[ab]$", name))


def has_lora(params: Any) -> bool:
    """Whether any projection has an adapter."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return any(ADAPTER.search(path_name(path)) for path, _ in leaves)


def strip_lora(params: Params) -> Params:
    """The base policy: the same arrays without the adapters."""
    return {
        k: strip_lora(v) if isinstance(v, dict) else v
        for k, v in params.items()
        if not ADAPTER.search(f"/{k}")
    }


def with_scale(params: Params, scale: float) -> Params:
    """Adapters that hold only what is trained, completed with their scale."""
    out = {k: with_scale(v, scale) if isinstance(v, dict) else v for k, v in params.items()}
    if "lora_a" in params:
        out["lora_scale"] = np.full(np.shape(params["lora_a"])[:-2], scale, np.float32)
    return out


@jax.jit
def _merged(kernel, a, b, scale):
    delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale[..., None, None] * delta).astype(kernel.dtype)


def merge_lora(params: Params) -> Params:
    """Parameters without adapters whose kernels are W + scale A B."""
    out = {k: merge_lora(v) if isinstance(v, dict) else v for k, v in params.items()}
    if "lora_a" not in params:
        return out
    kernel = _merged(*(out[k] for k in ("kernel", "lora_a", "lora_b", "lora_scale")))
    return strip_lora(out) | {"kernel": kernel}


# --- what is trained ---------------------------------------------------------------------------


def split_params(params: Params, trained: Callable[[str], bool]) -> tuple[Params, Params]:
    """(trained, frozen): two nested dicts that share no leaf and together hold all.

    Args:
      trained: decides by a leaf's path, such as "layers/q_proj/kernel".
    """

    def pick(node, path, wanted):
        out = {}
        for key, value in node.items():
            if isinstance(value, dict):
                if inner := pick(value, f"{path}{key}/", wanted):
                    out[key] = inner
            elif trained(path + key) is wanted:
                out[key] = value
        return out

    return pick(params, "", True), pick(params, "", False)


def join_params(trained: Params, frozen: Params) -> Params:
    """The reverse of `split_params`; no array is copied."""
    out = dict(frozen)
    for key, value in trained.items():
        both = isinstance(value, dict) and key in frozen
        out[key] = join_params(value, frozen[key]) if both else value
    return out
