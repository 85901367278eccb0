"""Between Hugging Face directories and our own checkpoints, both ways."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import yaml

from vrrl_jax.checkpoint import hf, weights
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.config import LoraConfig
from vrrl_jax.models.critic import without_critic
from vrrl_jax.models.lora import join_params, with_scale
from vrrl_jax.models.policy import Params

PARAMS = "params"  # the Orbax folder of an imported checkpoint


def to_checkpoint(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    *,
    dtype: str | None = None,
    progress: weights.Progress | None = None,
) -> pathlib.Path:
    """Imports a Hugging Face directory: parameters as an Orbax checkpoint, files beside them.

    Args:
      source: as in `hf.load_pretrained`.
      target: a new directory; `read_params` and `to_hugging_face` take it.
      dtype: of the parameters; None is float32.
      progress: told (bytes read, bytes in all).

    Raises:
      FileExistsError: `target` holds something already.
    """
    import orbax.checkpoint as ocp

    path = pathlib.Path(target).expanduser().resolve()
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty: give a new directory")
    critic = (hf.resolve(source) / hf.VALUE_HEAD).is_file()
    policy, params = hf.load_pretrained(
        source, dtype or "float32", value_head=critic, progress=progress
    )
    path.mkdir(parents=True, exist_ok=True)
    for name in hf.CARRIED:
        if (pathlib.Path(policy.directory) / name).is_file():
            shutil.copyfile(pathlib.Path(policy.directory) / name, path / name)
    with ocp.StandardCheckpointer() as writer:
        writer.save(path / PARAMS, params)
    return path


def to_hugging_face(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    progress: weights.Progress | None = None,
) -> pathlib.Path:
    """Exports a run's newest checkpoint, or an imported one, as a Hugging Face directory.

    Of a supervised run with averaged weights, the average is what counts.

    Raises:
      FileNotFoundError: `source` is neither.
    """
    path = pathlib.Path(source).expanduser().resolve()
    params, origin, value_head = read_params(path)
    policy = hf.load_policy(origin, value_head=value_head)
    return hf.save_pretrained(
        target,
        policy,
        params,
        origin,
        dtype=dtype,
        max_shard_size=max_shard_size,
        progress=progress,
    )


def read_params(path: pathlib.Path) -> tuple[Params, str, bool]:
    """Parameters of a run or an imported checkpoint, where its files are, and whether it has a
    value head. Adapters stand beside their kernels."""
    if (path / PARAMS).is_dir():
        params = checkpoints.read_arrays(path / PARAMS)
        return params, str(path), "value_head" in params
    if not (path / "checkpoints").is_dir() or not (path / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{path}: expected a run directory (config.yaml, checkpoints/) or a checkpoint that "
            "`vrrl convert import` wrote"
        )
    policy: dict[str, Any] = yaml.safe_load((path / "config.yaml").read_text())["policy"]
    with checkpoints.open_checkpoints(path / "checkpoints") as saved:
        arrays = checkpoints.restore_raw(saved, _weights_alone)
    params = arrays.get("average") or arrays["state"]["params"]
    origin = policy["path"]
    if policy.get("init") == "random":
        config = pathlib.Path(policy["config"])
        origin = str(config.parent if config.name == "config.json" else config)
    value_head = "value_head" in params
    lora = LoraConfig(**policy.get("lora") or {})
    if lora.rank or policy.get("freeze_vision"):
        # The checkpoint holds what was trained; the rest is where the run took it from.
        _, frozen = hf.load_pretrained(origin, policy.get("dtype", "float32"))
        if lora.rank:
            params = with_scale(params, lora.scaling)
        params = join_params(params, frozen)
    return params, origin, value_head


def _weights_alone(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a run's checkpoint what a policy is made of: no optimizer state, no
    buffers, no separate critic."""
    if tree.get("average"):
        return {"average": without_critic(tree["average"])}
    return {"state": {"params": without_critic(tree["state"]["params"])}}
