"""Everything a run needs to go on as if it had never stopped, through Orbax."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


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
      ValueError: it was written under another configuration (structure or shapes differ).
    """
    import orbax.checkpoint as ocp

    step = manager.latest_step() if step is None else step
    if step is None:
        raise FileNotFoundError(f"{manager.directory}: no checkpoint to resume from")
    abstract = jax.tree.map(_abstract, like)
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
            ),
        )
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{manager.directory}/{step}: doesn't fit this configuration ({error})"
        ) from error
    return restored.arrays, restored.meta, step


def restore_raw(manager: Any) -> dict[str, Any]:
    """The newest checkpoint's arrays; see `read_arrays`.

    Raises:
      FileNotFoundError: there is none.
    """
    step = manager.latest_step()
    if step is None:
        raise FileNotFoundError(f"{manager.directory}: holds no checkpoint")
    return read_arrays(pathlib.Path(manager.directory) / str(step) / "arrays")


def read_arrays(directory: pathlib.Path) -> dict[str, Any]:
    """A tree that Orbax saved, as nested dicts of numpy arrays.

    It stays in the host's memory: the machine that wrote it may have had other devices.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(directory).item_metadata.tree
        return reader.restore(directory, jax.tree.map(lambda a: np.empty(a.shape, a.dtype), saved))


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.zeros_like(leaf)
