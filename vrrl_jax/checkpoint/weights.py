"""Safetensors files to device arrays and back, a tensor at a time."""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax.checkpoint.names import Tensor, to_ours, to_published

# Leaves up to this size are put together and taken apart in the host's memory: the slack that a
# load or an export may take beside twice its largest tensor. Larger ones are on the devices only,
# with a program each.
SLACK = 32 * 2**20
FLOATS = {"BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
PART = ".part"  # ends the names of files that are being written

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


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
      name, dtype, shape: as the file says them; a dtype is such as "BF16".
      offset: of its first byte in the file.
    """

    file: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


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


def read_header(file: pathlib.Path) -> dict[str, Stored]:
    """What a safetensors file holds, by name.

    Raises:
      ValueError: the file is broken.
    """
    with open_file(file), file.open("rb") as opened:  # the former checks header and length
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {
        name: Stored(
            file, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def open_all(path: pathlib.Path) -> list[Stored]:
    """Every tensor of a directory.

    Raises:
      FileNotFoundError: no safetensors, or shards that the index names are missing.
      ValueError: a broken index or file, or an index that names pickled files or absent tensors.
    """
    index = path / INDEX
    if not index.is_file():
        if not (path / SINGLE).is_file():
            pickled = [p.name for p in path.glob("*.bin")] + [p.name for p in path.glob("*.pt*")]
            hint = f"; pickled weights are refused ({pickled[0]})" if pickled else ""
            raise FileNotFoundError(f"{path}: no {SINGLE} and no index{hint}")
        return list(read_header(path / SINGLE).values())
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: no weight_map")
    files = sorted(set(weight_map.values()))
    if strange := [f for f in files if pathlib.PurePath(f).name != f]:
        raise ValueError(f"{index}: names files outside of its folder: {strange}")
    if pickled := [f for f in files if not f.endswith(".safetensors")]:
        raise ValueError(f"{index}: pickled weights are refused ({', '.join(pickled)})")
    if lost := [name for name in files if not (path / name).is_file()]:
        raise FileNotFoundError(f"{path}: the index names files that are missing: {lost}")
    held = {name: read_header(path / name) for name in files}
    if lost := [f"{path / n}: no {k}" for k, n in weight_map.items() if k not in held[n]]:
        raise ValueError("the index names tensors that are missing:\n  " + "\n  ".join(lost))
    return [stored for tensors in held.values() for stored in tensors.values()]


# --- reading -----------------------------------------------------------------------------------


def mapped(stored: Stored) -> np.ndarray:
    """A tensor where it lies in its file, read as it is touched.

    A mapping of its own: its pages are given back with it. Those of a mapping of the whole file
    would stay in this process until the file is closed.
    """
    array = np.memmap(stored.file, FLOATS[stored.dtype], "r", stored.offset, stored.shape)
    # jax has no float64 by default; casting on the host and on a device shall give the same bits.
    return np.asarray(array) if stored.dtype != "F64" else array.astype(np.float32)


def read_leaf(
    shape: tuple[int, ...],
    parts: list[tuple[Tensor, Stored]],
    dtype: Any,
    sharding: NamedSharding | None,
    done: Callable[[int], None] = lambda n: None,
) -> jax.Array:
    """One of our leaves, born in its sharding.

    Args:
      shape: of the leaf.
      parts: (tensor, where it is stored) of each published tensor in it.
      dtype: of the result.
      sharding: of the result; None for one device.
      done: told the elements of each part when it has been read.
    """
    dtype = jnp.dtype(dtype)
    elements = math.prod(shape) // len(parts)
    if math.prod(shape) * dtype.itemsize <= SLACK:
        leaf = np.empty(shape, dtype)
        for tensor, stored in parts:
            at = ... if tensor.layer is None else tensor.layer
            leaf[at] = to_ours(tensor.kind, mapped(stored))
            done(elements)
        # Transfers of several leaves under way would add up on the host.
        return jax.block_until_ready(put(leaf, sharding))
    empty, fill, place = _programs(shape, dtype, sharding)
    value = empty() if parts[0][0].layer is not None else None
    for tensor, stored in parts:
        # Waiting here lets go of the file's pages before the next copy is made.
        piece = jax.block_until_ready(put(mapped(stored), _layout(tensor, sharding)))
        if tensor.layer is None:
            value = place(piece, tensor.kind)
        else:
            value = fill(value, piece, tensor.layer, tensor.kind)
        # The next piece must not pile up behind this one.
        jax.block_until_ready(value)
        done(elements)
    return value


@functools.cache
def _programs(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding | None):
    """Transpose and cast on the devices, where there is room: programs that make a leaf of zeros,
    write a layer of it, and make an unstacked one."""

    def fill(leaf, piece, layer, kind):
        piece = to_ours(kind, piece).astype(dtype)
        return jax.lax.dynamic_update_index_in_dim(leaf, piece, layer, 0)

    def place(piece, kind):
        # A copy even where nothing changes: on CPU the piece may be the file itself.
        return jnp.copy(to_ours(kind, piece).astype(dtype))

    return (
        jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding),
        jax.jit(fill, static_argnums=3, donate_argnums=0, out_shardings=sharding),
        jax.jit(place, static_argnums=1, out_shardings=sharding),
    )


def _layout(tensor: Tensor, sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of a published tensor under which each device gets what its part of the leaf
    is made of."""
    if sharding is None:
        return None
    if tensor.kind == "conv":  # small; its axes are not ours
        return NamedSharding(sharding.mesh, P())
    axes = len(tensor.shape) + (tensor.layer is not None)
    spec = (*sharding.spec, *(None,) * axes)[:axes]
    spec = spec if tensor.layer is None else spec[1:]
    return NamedSharding(sharding.mesh, P(*(spec[::-1] if tensor.kind == "dense" else spec)))


def put(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """Onto the devices; each gets its slice, and no other part of `array` is touched.

    On several processes each is to call it with the same array, and fills its own devices.
    """
    if sharding is None:
        return jax.device_put(array)
    places = sharding.addressable_devices_indices_map(array.shape)
    pieces = [jax.device_put(array[index], device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)


# --- writing -----------------------------------------------------------------------------------


def published(flat: dict[str, Any], tensors: Iterable[Tensor], dtype: Any) -> Iterator[np.ndarray]:
    """The published tensors as contiguous numpy arrays, one at a time.

    Sharded leaves are gathered a tensor at a time. On several processes every one must run this.
    """
    held: tuple[str, Any] = ("", None)
    for tensor in tensors:
        if held[0] != tensor.ours:
            leaf = flat[tensor.ours]
            held = "", None  # lets go of the last one
            # Small leaves in one go: indexing on a device costs a dispatch each.
            held = tensor.ours, gather(leaf) if leaf.nbytes <= SLACK else leaf
        part = held[1] if tensor.layer is None else _layer(held[1], tensor.layer)
        yield np.ascontiguousarray(to_published(tensor, gather(part)), jnp.dtype(dtype))


def gather(array: Any) -> np.ndarray:
    """The whole of an array in the host's memory; on several processes every one must ask."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if array.is_fully_replicated:
        return _fetch(array.addressable_data(0))
    if not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = _fetch(shard.data)
    return whole


def _fetch(data: jax.Array) -> np.ndarray:
    """An array keeps what numpy was given of it, and the model would pile up on the host; a second
    one over the same buffer takes that along."""
    return np.asarray(jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data]))


def _layer(leaf: Any, layer: int) -> Any:
    """An entry of a stacked leaf, split over the devices as the leaf is."""
    if not isinstance(leaf, jax.Array):
        return leaf[layer]
    mesh, spec = getattr(leaf.sharding, "mesh", None), getattr(leaf.sharding, "spec", ())
    return _take(None if mesh is None else NamedSharding(mesh, P(*spec[1:])))(leaf, layer)


@functools.cache
def _take(sharding: NamedSharding | None):
    take = functools.partial(jax.lax.dynamic_index_in_dim, axis=0, keepdims=False)
    return jax.jit(take, out_shardings=sharding)


def save(arrays: dict[str, np.ndarray], file: pathlib.Path) -> None:
    """One small safetensors file of contiguous arrays."""
    from safetensors.numpy import save_file

    save_file(arrays, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors leaves it to its owner alone


def write_file(
    file: pathlib.Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: Any,
    arrays: Iterable[np.ndarray],
) -> None:
    """One safetensors file of tensors of one dtype, whose arrays are taken one by one.

    safetensors' own writer wants all of a file's tensors in memory. Format:
    https://huggingface.co/docs/safetensors, "Format".
    """
    kind = next(name for name, known in FLOATS.items() if np.dtype(known) == np.dtype(dtype))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            out.write(array.reshape(-1).view(np.uint8).data)
            del array  # before the next one is made


def plan_shards(tensors: list[Tensor], itemsize: int, limit: int) -> list[list[Tensor]]:
    """Tensors in order, grouped so that a group stays under `limit` bytes where it can."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        more = math.prod(tensor.shape) * itemsize
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
) -> list[str]:
    """Writes model.safetensors, or shards of at most `limit` bytes with an index, as parts that
    `commit` puts in place.

    The host holds a tensor at a time. On several processes every one must call this; the first
    writes.

    Returns:
      the names to commit.
    """
    itemsize = jnp.dtype(dtype).itemsize
    shards = plan_shards(tensors, itemsize, limit)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = [SINGLE] if len(shards) == 1 else names
    total, done = sum(math.prod(t.shape) for t in tensors) * itemsize, 0

    def arrays(shard):
        nonlocal done
        for array in published(flat, shard, dtype):
            done += array.nbytes
            yield array
            del array
            if progress is not None:
                progress(done, total)

    for name, shard in zip(names, shards, strict=True):
        if jax.process_index() == 0:
            shapes = {tensor.name: tensor.shape for tensor in shard}
            write_file(path / (name + PART), shapes, dtype, arrays(shard))
        else:
            for _ in arrays(shard):
                pass
    if len(shards) == 1:
        return names
    if jax.process_index() == 0:
        weight_map = {t.name: n for n, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / (INDEX + PART)).write_text(json.dumps(index, indent=2) + "\n")
    return [*names, INDEX]


def commit(path: pathlib.Path, names: list[str]) -> None:
    """Puts written parts in place of whatever weights were there.

    The index comes last, and what it doesn't name goes after it: until then a reader sees the
    earlier weights, but for shards of the very same names.
    """
    for name in names:
        os.replace(path / (name + PART), path / name)
    if INDEX not in names:
        (path / INDEX).unlink(missing_ok=True)
    for stale in [path / SINGLE, *path.glob(SHARDS)]:
        if stale.name not in names:
            stale.unlink(missing_ok=True)


def discard(path: pathlib.Path) -> None:
    """Removes the parts of an export that didn't end."""
    for part in path.glob(f"*.safetensors*{PART}"):
        part.unlink(missing_ok=True)
