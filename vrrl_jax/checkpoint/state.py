"""Everything a run needs to go on as if it had never stopped, through Orbax."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vrrl_jax.parallel.rules import path_name


@contextlib.contextmanager
def open_checkpoints(directory: str | pathlib.Path, keep: int = 2) -> Iterator[Any]:
    """An Orbax manager over `directory`; on leaving, waits until the last save is on disk.

    Args:
      directory: created if missing.
      keep: newest checkpoints kept.
    """
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # one line a save about single processes
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    manager = ocp.CheckpointManager(pathlib.Path(directory).resolve(), options=options)
    try:
        yield manager
    finally:
        manager.wait_until_finished()
        manager.close()


def save(manager: Any, step: int, arrays: Any, meta: dict[str, Any]) -> None:
    """Writes a checkpoint in the background.

    Args:
      step: updates done; names the checkpoint.
      arrays: a pytree of arrays (parameters, optimizer, buffers); its structure is fixed by the
        configuration.
      meta: JSON: counters, positions, whatever is no array.
    """
    import orbax.checkpoint as ocp

    if step in manager.all_steps():
        return
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
    manager.save(step, args=items)


def latest(manager: Any) -> int | None:
    """The newest checkpoint's step, or None."""
    return manager.latest_step()


def restore(manager: Any, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int]:
    """Reads a checkpoint into the shapes, dtypes and shardings of `like`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it was written under another configuration: names the arrays that differ.
    """
    import orbax.checkpoint as ocp

    step = manager.latest_step() if step is None else step
    if step is None:
        raise FileNotFoundError(f"{manager.directory}: no checkpoint to resume from")
    manager.wait_until_finished()  # the newest may be on its way to the disk
    directory = pathlib.Path(manager.directory) / str(step)
    with ocp.StandardCheckpointer() as reader:
        saved = _kinds(reader.metadata(directory / "arrays").item_metadata.tree)
    wanted = _kinds(like)
    # Asked beforehand: Orbax would find out in the middle, cast dtypes, and explain it in pages.
    differ = [
        f"{name} is {saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differ:
        raise ValueError(
            f"{directory} doesn't fit this configuration. {len(differ)} arrays differ, the first "
            f"of them: {'; '.join(differ[:3])}"
        )
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            arrays=ocp.args.StandardRestore(jax.tree.map(_abstract, like)),
            meta=ocp.args.JsonRestore(),
        ),
    )
    return restored.arrays, restored.meta, step


def _kinds(tree: Any) -> dict[str, str]:
    """Each array's dtype and shape by its path, in words."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{a.dtype}{list(a.shape)}" for path, a in leaves}


def restore_raw(manager: Any, part: Callable[[dict], dict] = lambda tree: tree) -> dict[str, Any]:
    """The newest checkpoint's arrays; see `read_arrays`.

    Raises:
      FileNotFoundError: there is none.
    """
    step = manager.latest_step()
    if step is None:
        raise FileNotFoundError(f"{manager.directory}: holds no checkpoint")
    manager.wait_until_finished()
    return read_arrays(pathlib.Path(manager.directory) / str(step) / "arrays", part)


def read_arrays(
    directory: pathlib.Path, part: Callable[[dict], dict] = lambda tree: tree
) -> dict[str, Any]:
    """A tree that Orbax saved, as nested dicts of numpy arrays.

    It stays in the host's memory: the machine that wrote it may have had other devices.

    Args:
      directory: the tree's.
      part: cuts the saved tree (with shapes for leaves) down to what is to be read.
    """
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        wanted = part(reader.metadata(directory).item_metadata.tree)
        like = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), wanted)
        how = jax.tree.map(lambda a: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        return reader.restore(
            directory, ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=True)
        )


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.zeros_like(leaf)
