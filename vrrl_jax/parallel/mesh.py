"""The device mesh: axes `data`, `fsdp` and `tensor`; arrays onto it and back to the host.

A mesh may span several processes. Each of them then holds the same arrays on its host, puts its
devices' parts of them onto the mesh, and gets whole arrays back.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # batch and buffer rows are split over both


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first data * fsdp * tensor devices.

    One of the sizes may be -1: it takes the devices that are left.

    Raises:
      ValueError: more devices are asked for than there are, or the others don't divide them; or
        devices are left idle while there are several processes.
    """
    sizes = [data, fsdp, tensor]
    available = jax.device_count()
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ValueError(f"mesh {sizes}: sizes are positive, at most one of them -1")
    if -1 in sizes:
        known = -math.prod(sizes)
        if available % known:
            raise ValueError(
                f"mesh data={data} fsdp={fsdp} tensor={tensor}: {available} devices don't divide "
                f"by {known}, so -1 has no value; give all three sizes to leave devices idle"
            )
        sizes[sizes.index(-1)] = available // known
    wanted = math.prod(sizes)
    if wanted > available:
        raise ValueError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {wanted} devices, "
            f"{available} are there"
        )
    if wanted < available and jax.process_count() > 1:
        raise ValueError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} leaves {available - wanted} "
            f"of {available} devices idle: with {jax.process_count()} processes it must hold all; "
            "mesh.fsdp=-1 takes what is left"
        )
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:wanted]
    )


def connect(mesh: Mesh) -> None:
    """Lets every group of devices that programs may talk in talk once.

    Connections are made by a group's first program, whose processes must come to it within seconds
    of one another on some backends: these programs are compiled in no time, a run's own aren't.
    """
    axes = [axis for axis in AXES if mesh.shape[axis] > 1]
    for group in (g for n in range(len(axes)) for g in itertools.combinations(axes, n + 1)):
        add = functools.partial(jax.lax.psum, axis_name=group)
        whole = jax.shard_map(add, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        jax.block_until_ready(jax.jit(whole)(np.zeros((), np.float32)))


def canonical(mesh: Mesh) -> Mesh:
    """A mesh of somebody else's with our three axes in order, those it lacks of size 1.

    Raises:
      ValueError: it has an axis of another name.
    """
    strange = sorted(set(mesh.axis_names) - set(AXES))
    if strange:
        raise ValueError(f"mesh axes {strange}: the axes are {', '.join(AXES)}; see make_mesh")
    order = [mesh.axis_names.index(axis) for axis in AXES if axis in mesh.axis_names]
    devices = mesh.devices.transpose(order).reshape([mesh.shape.get(axis, 1) for axis in AXES])
    # Shardings are constraints here, not parts of types: jax's own default may be the other.
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def row_parts(mesh: Mesh | None) -> int:
    """How many parts rows are split into, data * fsdp."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def row_axes(mesh: Mesh, rows: int) -> tuple[str, ...] | None:
    """The axes that `rows` rows are split over, None where they don't divide."""
    return ROWS if rows % row_parts(mesh) == 0 else None


def over_rows(mesh: Mesh | None, x: Any) -> Any:
    """Inside a program: leading axis over (data, fsdp) where it divides, everything else whole."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(row_axes(mesh, x.shape[0]))))


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
    parts = row_parts(mesh)

    def put_axis(a):
        if a.shape[axis] % parts:
            raise ValueError(
                f"{a.shape[axis]} rows don't divide over data*fsdp={parts}: choose questions, "
                "samples and rows a microbatch as multiples of it"
            )
        spec = P(*(None,) * axis, ROWS)
        return put(a, NamedSharding(mesh, spec))

    return jax.tree.map(put_axis, tree)


def put(array: Any, sharding: Any) -> jax.Array:
    """A host array onto devices; on several processes each puts its own devices' part."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # device_put would send the whole array round first, to compare it.
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(tree: Any) -> Any:
    """Arrays to the host: numpy arrays, whole, also where several processes hold their parts.

    Whatever a host reads of an array goes through here. In one process it is `jax.device_get`; on
    several processes all of them must ask, for the same arrays in the same order.
    """
    leaves, structure = jax.tree.flatten(tree)
    spread = [i for i, leaf in enumerate(leaves) if _is_spread(leaf)]
    if spread:
        meshes = {getattr(leaves[i].sharding, "mesh", None) for i in spread}
        if len(meshes) == 1 and None not in meshes:
            whole = _gather(*meshes)([leaves[i] for i in spread])
        else:
            from jax.experimental import multihost_utils

            whole = multihost_utils.process_allgather([leaves[i] for i in spread], tiled=True)
        for i, leaf in zip(spread, whole, strict=True):
            leaves[i] = leaf
    return jax.device_get(structure.unflatten(leaves))


def _is_spread(leaf: Any) -> bool:
    """Whether no process has all of an array."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return False
    return not leaf.is_fully_replicated


@functools.cache
def _gather(mesh: Mesh):
    return jax.jit(lambda leaves: leaves, out_shardings=replicated(mesh))


# --- buffers -----------------------------------------------------------------------------------


def buffer_shardings(mesh: Mesh, buffer: Any) -> Any:
    """Shardings like `buffer`, any NamedTuple with a `payload`: payload rows split over (data,
    fsdp), all other fields whole on every device, so that selection is the same on each.

    Raises:
      ValueError: the capacity doesn't divide by data * fsdp.
    """
    rows, whole = row_sharding(mesh), replicated(mesh)
    capacity = {leaf.shape[0] for leaf in jax.tree.leaves(buffer.payload)}
    if any(c % row_parts(mesh) for c in capacity):
        raise ValueError(
            f"a buffer of {max(capacity)} rows doesn't split over data*fsdp={row_parts(mesh)}: "
            "choose a capacity that is a multiple"
        )
    others = jax.tree.map(lambda _: whole, buffer._replace(payload=None))
    return others._replace(payload=jax.tree.map(lambda _: rows, buffer.payload))


def buffer_mesh(buffer: Any) -> Mesh | None:
    """The mesh that a buffer's payload lies on, None for one device."""
    sharding = jax.tree.leaves(buffer.payload)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def constrain_buffer(mesh: Mesh | None, buffer: Any) -> Any:
    """Keeps a buffer in its layout inside a program; without a mesh as it is."""
    if mesh is None:
        return buffer
    return jax.lax.with_sharding_constraint(buffer, buffer_shardings(mesh, buffer))
