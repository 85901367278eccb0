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
    (r"visual/pos_embed/embedding$", P(None, "fsdp")),
    # The intermediate width of the published towers, 3420, divides by nothing large.
    (r"visual/blocks/.*(down_proj|linear_fc2)/kernel$", P(None, None, "fsdp")),
    (r"visual/(blocks|deepstack)/.*kernel$", P(None, "fsdp", None)),
    (r"visual/merger.*/kernel$", P("fsdp", None)),
    (r"visual/.*(scale|bias)$", P()),
    (r"embed_tokens/embedding$", P("tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"layers/([qkv]_proj|mlp/(gate|up)_proj)/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/([qkv]_proj)/bias$", P(None, "tensor")),
    (r"layers/(o_proj|mlp/down_proj)/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/.*scale$", P()),
    (r"norm/scale$", P()),
    # Adapters: the long axis lies as in the kernel beside them.
    (r"layers/(o_proj|mlp/down_proj)/lora_a$", P(None, "tensor", None)),
    (r"layers/(o_proj|mlp/down_proj)/lora_b$", P(None, None, "fsdp")),
    (r"layers/.*lora_a$", P(None, "fsdp", None)),
    (r"layers/.*lora_b$", P(None, None, "tensor")),
    (r"visual/(blocks|deepstack)/.*lora_a$", P(None, "fsdp", None)),
    (r"visual/(blocks|deepstack)/.*lora_b$", P(None, None, "fsdp")),
    (r"visual/merger.*lora_a$", P("fsdp", None)),
    (r"visual/merger.*lora_b$", P(None, "fsdp")),
    (r"value_head/kernel$", P("fsdp", None)),
    (r"value_head/bias$", P()),
    # Muon's: the coefficients of its polynomial.
    (r"ns_coeffs$", P()),
)
# Their tensor axis runs over heads and is cut between heads or not at all: with fewer key-value
# heads than parts, every part holds them all.
BY_HEAD = re.compile(r"layers/[qkvo]_proj/")


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of jax as "a/b/c"."""
    names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(n) for n in names)


def spec(
    name: str,
    shape: tuple[int, ...],
    mesh: Mesh,
    *,
    head_dim: int,
    notes: list[str] | None = None,
    whole: tuple[str, ...] = (),
) -> P:
    """The partition of one array.

    An axis that doesn't divide its dimension is left whole, as declared here, and noted.

    Args:
      name: its path, as `path_name` writes it.
      shape: its shape.
      mesh: with the axes data, fsdp and tensor.
      head_dim: width of an attention head; projections are cut between heads.
      notes: gets a line for every axis left whole.
      whole: mesh axes that nothing is split over.

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
        axis = None if axis in whole else axis
        heads = axis == "tensor" and BY_HEAD.search(name)
        pieces, what = (size // head_dim, "heads") if heads else (size, f"of {list(shape)}")
        if axis is not None and pieces % mesh.shape[axis]:
            if notes is not None:
                notes.append(f"{name} ({pieces} {what} over {axis}={mesh.shape[axis]})")
            axis = None
        axes.append(axis)
    return P(*axes)


def param_shardings(
    tree: Any,
    mesh: Mesh | None,
    *,
    head_dim: int,
    notes: list[str] | None = None,
    whole: tuple[str, ...] = (),
) -> Any:
    """Shardings like `tree` (parameters, gradients or optimizer state), or None without a mesh.

    Args as in `spec`.
    """
    if mesh is None:
        return None

    def sharding(path, leaf):
        name = path_name(path)
        options = {"head_dim": head_dim, "notes": notes, "whole": whole}
        return NamedSharding(mesh, spec(name, leaf.shape, mesh, **options))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def left_whole(params: Any, mesh: Mesh | None, *, head_dim: int) -> str:
    """One line on what doesn't divide on this mesh and is held whole, or "" if nothing is."""
    notes: list[str] = []
    param_shardings(params, mesh, head_dim=head_dim, notes=notes)
    return f"left whole on this mesh: {', '.join(notes)}" if notes else ""


def check_heads(mesh: Mesh, heads: int) -> None:
    """Query heads are what tensor parallelism divides: there is no fallback for them.

    Raises:
      ValueError: they don't divide by the mesh's tensor axis; the message names sizes that do.
    """
    tensor = mesh.shape["tensor"]
    if heads % tensor:
        valid = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"mesh.tensor={tensor} doesn't divide the {heads} query heads of this policy: "
            f"use one of {', '.join(valid)}"
        )
