"""The device mesh: axes `data`, `fsdp` and `tensor`."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS = ("data", "fsdp")  # batch and buffer rows are split over both


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first data * fsdp * tensor devices.

    One of the sizes may be -1: it takes the devices that are left.

    Raises:
      ValueError: more devices are asked for than there are.
    """
    sizes = [data, fsdp, tensor]
    available = jax.device_count()
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ValueError(f"mesh {sizes}: sizes are positive, at most one of them -1")
    if -1 in sizes:
        known = -(sizes[0] * sizes[1] * sizes[2])
        sizes[sizes.index(-1)] = max(1, available // known)
    wanted = sizes[0] * sizes[1] * sizes[2]
    if wanted > available:
        raise ValueError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {wanted} devices, "
            f"{available} are there"
        )
    return jax.make_mesh(
        tuple(sizes),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:wanted],
    )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def put_rows(mesh: Mesh | None, tree: Any, axis: int = 0) -> Any:
    """Host arrays onto the mesh, `axis` over (data, fsdp); without a mesh as they are.

    Raises:
      ValueError: the axis doesn't divide by data * fsdp.
    """
    if mesh is None:
        return tree
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(a):
        if a.shape[axis] % parts:
            raise ValueError(
                f"{a.shape[axis]} rows don't divide over data*fsdp={parts}: choose questions, "
                "samples and rows a microbatch as multiples of it"
            )
        spec = P(*(None,) * axis, ROWS)
        return jax.device_put(a, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)
