"""Safetensors files to device arrays and back, a tensor at a time."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax.checkpoint.names import Tensor, to_ours, to_published

# Leaves up to this size are put together in the host's memory: the slack that a load may take
# beside twice its largest tensor. Larger ones grow on the devices, a program each.
SLACK = 64 * 2**20
FLOATS = ("BF16", "F16", "F32", "F64")
INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


def read_json(path: pathlib.Path, default: dict | None = None) -> dict[str, Any]:
    """The JSON object in a file; `default` where there is no file.

    Raises:
      FileNotFoundError: no file and no default.
      ValueError: the file holds anything else.
    """
    if default is not None and not path.is_file():
        return default
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return content


def open_file(file: pathlib.Path) -> Any:
    """A handle whose tensors are read when asked for.

    Raises:
      ValueError: the file is broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{file}: broken or incomplete, copy it again ({error})") from None


def open_all(path: pathlib.Path) -> dict[str, Any]:
    """Every tensor name of a directory and the handle of the file that holds it.

    Raises:
      FileNotFoundError: no safetensors, or shards that the index names are missing.
      ValueError: a broken index or file, or an index that names absent tensors.
    """
    index = path / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: no weight_map")
        files = sorted(set(weight_map.values()))
        if strange := [f for f in files if pathlib.PurePath(f).name != f]:
            raise ValueError(f"{index}: names files outside of its folder: {strange}")
        if lost := [name for name in files if not (path / name).is_file()]:
            raise FileNotFoundError(f"{path}: the index names files that are missing: {lost}")
        handles = {name: open_file(path / name) for name in files}
        held = {name: set(handle.keys()) for name, handle in handles.items()}
        if lost := [f"{path / n}: no {k}" for k, n in weight_map.items() if k not in held[n]]:
            raise ValueError("the index names tensors that are missing:\n  " + "\n  ".join(lost))
        return {key: handles[name] for key, name in weight_map.items()}
    single = path / "model.safetensors"
    if not single.is_file():
        pickled = [p.name for p in path.glob("*.bin")] + [p.name for p in path.glob("*.pt*")]
        hint = f"; pickled weights are refused ({pickled[0]})" if pickled else ""
        raise FileNotFoundError(f"{path}: no model.safetensors and no index{hint}")
    handle = open_file(single)
    return dict.fromkeys(handle.keys(), handle)


# --- reading -----------------------------------------------------------------------------------


def read_leaf(
    shape: tuple[int, ...],
    parts: list[tuple[Tensor, Any, str]],
    dtype: Any,
    sharding: NamedSharding | None,
    slack: int = SLACK,
    done: Callable[[int], None] = lambda n: None,
) -> jax.Array:
    """One of our leaves, born in its sharding.

    Args:
      shape: of the leaf.
      parts: (tensor, file handle, name in the file) of each published tensor in it.
      dtype: of the result.
      sharding: of the result; None for one device.
      slack: bytes up to which the leaf is put together on the host.
      done: told the elements of each part when it has been read.
    """
    dtype = jnp.dtype(dtype)
    if np.prod(shape) * dtype.itemsize <= slack:
        value = np.empty(shape, dtype)
        for tensor, handle, name in parts:
            value[... if tensor.layer is None else tensor.layer] = to_ours(
                tensor.kind, handle.get_tensor(name)
            )
            done(value.size // len(parts))
        return jax.device_put(value, sharding)
    value = _empty(shape, dtype, sharding)
    for tensor, handle, name in parts:
        piece = _piece(tensor, handle, name, sharding)
        value = _write(value, piece, tensor.layer, tensor.kind, sharding)
        # The next piece must not pile up behind this one.
        jax.block_until_ready(value)
        done(value.size // len(parts))
    return value


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(shape, dtype, sharding):
    value = jnp.zeros(shape, dtype)
    return value if sharding is None else jax.lax.with_sharding_constraint(value, sharding)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _write(value, piece, layer, kind, sharding):
    """Transposes and casts on the device, where there is room for it."""
    piece = to_ours(kind, piece).astype(value.dtype)
    value = piece if layer is None else value.at[layer].set(piece)
    return value if sharding is None else jax.lax.with_sharding_constraint(value, sharding)


def _piece(tensor: Tensor, handle: Any, name: str, sharding: NamedSharding | None) -> jax.Array:
    """A published tensor on the devices; each is sent what it needs, read as a slice."""
    if sharding is None:
        return jnp.asarray(handle.get_tensor(name))
    spec = list(sharding.spec) + [None] * (tensor.layer is not None)
    spec = spec[1:] if tensor.layer is not None else spec
    spec += [None] * (len(tensor.shape) - len(spec))
    if tensor.kind == "dense":
        spec = spec[: len(tensor.shape)][::-1]
    elif tensor.kind == "conv":
        spec = []  # small; its axes are not ours
    source, read = handle.get_slice(name), {}

    def fetch(index):
        # Replicas ask for the same slice once more.
        key = tuple((i.start, i.stop) for i in index)
        if key not in read:
            read[key] = source[index]
        return read[key]

    layout = NamedSharding(sharding.mesh, P(*spec[: len(tensor.shape)]))
    return jax.make_array_from_callback(tensor.shape, layout, fetch)


# --- writing -----------------------------------------------------------------------------------


def published(
    flat: dict[str, Any], tensors: Iterable[Tensor], dtype: Any, slack: int = SLACK
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Each published tensor as a contiguous numpy array, one at a time.

    Sharded leaves are gathered a tensor at a time. On several processes every one must run this.
    """
    held: tuple[str, Any] = ("", None)
    for tensor in tensors:
        if held[0] != tensor.ours:
            leaf = flat[tensor.ours]
            # Small leaves in one go: indexing on a device costs a dispatch each.
            held = tensor.ours, gather(leaf) if leaf.nbytes <= slack else leaf
        part = held[1] if tensor.layer is None else held[1][tensor.layer]
        array = to_published(tensor, gather(part)).astype(jnp.dtype(dtype))
        # safetensors writes the buffer, not the view, of a transposed array.
        yield tensor, np.ascontiguousarray(array)


def gather(array: Any) -> np.ndarray:
    """The whole of an array in the host's memory; on several processes every one must ask."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def save(arrays: dict[str, np.ndarray], file: pathlib.Path) -> None:
    """One safetensors file of contiguous arrays."""
    from safetensors.numpy import save_file

    save_file(arrays, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors leaves it to its owner alone


def plan_shards(tensors: list[Tensor], itemsize: int, limit: int) -> list[list[Tensor]]:
    """Tensors in order, grouped so that a group stays under `limit` bytes where it can."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        more = int(np.prod(tensor.shape)) * itemsize
        if shards[-1] and size + more > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += more
    return shards


def write(
    path: pathlib.Path,
    flat: dict[str, Any],
    tensors: list[Tensor],
    dtype: Any,
    limit: int,
    progress: Progress | None = None,
) -> None:
    """Writes model.safetensors, or shards of at most `limit` bytes with an index.

    The host holds one shard. Earlier files are replaced when all new ones are complete. On several
    processes every one must call this; the first writes.
    """
    itemsize = jnp.dtype(dtype).itemsize
    shards = plan_shards(tensors, itemsize, limit)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = ["model.safetensors"] if len(shards) == 1 else names
    writes = jax.process_index() == 0
    total, done = sum(int(np.prod(t.shape)) for t in tensors) * itemsize, 0
    for name, shard in zip(names, shards, strict=True):
        arrays = {}
        for tensor, array in published(flat, shard, dtype):
            if writes:
                arrays[tensor.name] = array
            done += array.nbytes
            if progress is not None:
                progress(done, total)
        if writes:
            save(arrays, path / f"{name}.part")
    if not writes:
        return
    for stale in [*path.glob("model*.safetensors"), path / INDEX]:
        stale.unlink(missing_ok=True)
    for name in names:
        os.replace(path / f"{name}.part", path / name)
    if len(shards) > 1:
        weight_map = {t.name: n for n, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")
