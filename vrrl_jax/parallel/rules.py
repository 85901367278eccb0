"""One table from parameter names to mesh axes."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# First match wins. Stacked leaves have a leading layer axis that is never split. The vision
# tower is small and its head count rarely divides: fsdp alone. Optimizer state carries the
# parameter's path at its end and so falls under the same rules.
RULES: tuple[tuple[str, P], ...] = (
    (r"visual/patch_embed/kernel$", P("fsdp", None)),
    (r"visual/blocks/.*kernel$", P(None, "fsdp", None)),
    (r"visual/merger_\d/kernel$", P("fsdp", None)),
    (r"visual/.*(scale|bias)$", P()),
    (r"embed_tokens/embedding$", P("tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"layers/([qkv]_proj|mlp/(gate|up)_proj)/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/([qkv]_proj)/bias$", P(None, "tensor")),
    (r"layers/(o_proj|mlp/down_proj)/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/.*scale$", P()),
    (r"norm/scale$", P()),
    (r"value_head/kernel$", P("fsdp", None)),
    (r"value_head/bias$", P()),
)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of jax as "a/b/c"."""
    names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(n) for n in names)


def spec(name: str, shape: tuple[int, ...], mesh: Mesh, notes: list[str] | None = None) -> P:
    """The partition of one array.

    An axis that doesn't divide its dimension is left whole, as declared here, and noted.

    Raises:
      ValueError: no rule covers the name of an array with dimensions.
    """
    if not shape or max(shape) == 1:
        return P()
    rule = next((rule for pattern, rule in RULES if re.search(pattern, name)), None)
    if rule is None:
        raise ValueError(f"no sharding rule covers {name} {shape}: add one to parallel/rules.py")
    axes = []
    for size, axis in zip(shape, (*rule, *(None,) * len(shape)), strict=False):
        if axis is not None and size % mesh.shape[axis]:
            if notes is not None:
                notes.append(f"{name} {shape}: {size} does not divide by {axis}, left whole")
            axis = None
        axes.append(axis)
    return P(*axes)


def param_shardings(tree: Any, mesh: Mesh | None, notes: list[str] | None = None) -> Any:
    """Shardings like `tree` (parameters, gradients or optimizer state), or None without a mesh."""
    if mesh is None:
        return None
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), leaf.shape, mesh, notes)), tree
    )
