"""Hugging Face directories in and out: config.json, safetensors, and the files beside them."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vrrl_jax.checkpoint import names, weights
from vrrl_jax.models.config import ModelConfig, from_hf
from vrrl_jax.models.critic import without_critic
from vrrl_jax.models.lora import merge_lora
from vrrl_jax.models.policy import CLIP_MEAN, CLIP_STD, Params, Policy, abstract_params
from vrrl_jax.parallel.mesh import canonical
from vrrl_jax.parallel.rules import check_heads, param_shardings

ASSETS = pathlib.Path(__file__).parent.parent / "assets"
SHIPPED = ("nano", "nano-early", "nano-tables", "nano-charts", "nano-questions")
RECIPE = "vrrl.yaml"  # how episodes are shown to a policy that this project trained
CARRIED = (
    RECIPE,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
VALUE_HEAD = "value_head.safetensors"


def resolve(directory: str | pathlib.Path) -> pathlib.Path:
    """A checkpoint directory; the names of `SHIPPED` stand for the policies that ship.

    Raises:
      FileNotFoundError: no such directory, or no config.json in it.
    """
    shipped = str(directory) in SHIPPED
    path = ASSETS / str(directory) if shipped else pathlib.Path(directory).expanduser()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path}: no config.json here. Give a Hugging Face checkpoint directory "
            "(config.json, *.safetensors, tokenizer.json), or 'nano' for the shipped policy"
        )
    return path


def load_pretrained(
    directory: str | pathlib.Path,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    *,
    progress: weights.Progress | None = None,
    **options: Any,
) -> tuple[Policy, Params]:
    """Loads a policy from a Hugging Face directory, tensor by tensor straight onto the devices.

    The host holds at most two of the largest tensor beside a fixed slack.

    Args:
      directory: config.json, safetensors (one file or shards with an index), or "nano".
      dtype: of the parameters.
      mesh: shards the parameters over it by the table of `parallel.rules`.
      progress: told (bytes read, bytes in all).
      options: of `load_policy`. With `value_head`, a scalar head is read from
        `value_head.safetensors` beside the model where that exists, else it is zero.

    Returns:
      (policy, params).

    Raises:
      FileNotFoundError: files are missing.
      ValueError: unsupported configuration, or tensors missing, unexpected or misshapen; the
        message lists all of them.
    """
    path = resolve(directory)
    policy = load_policy(path, mesh=mesh, **options)
    return policy, load_params(path, policy, dtype, progress)


def load_policy(
    directory: str | pathlib.Path,
    *,
    mesh: Mesh | None = None,
    compute_dtype: str | None = None,
    value_head: bool = False,
    remat: bool = False,
    remat_keeps: str = "nothing",
    attention: str = "auto",
    gather_view: bool = True,
) -> Policy:
    """The static part alone: reads the configuration files, no weights.

    Args:
      directory: as in `load_pretrained`.
      compute_dtype: of activations and cache; None is float32 on CPU, bfloat16 elsewhere.
      mesh, value_head, remat, remat_keeps, attention, gather_view: as in `Policy`.

    Raises:
      ValueError: unsupported configuration, or a mesh that the policy can't be split over.
    """
    path = resolve(directory)
    raw = weights.read_json(path / "config.json")
    config = from_hf(raw, str(path / "config.json"))
    if mesh is not None:
        mesh = canonical(mesh)
        check_heads(mesh, config.text.heads)
    generation = weights.read_json(path / "generation_config.json", {})
    places = (generation, raw, raw.get("text_config") or {})
    stop = next((p["eos_token_id"] for p in places if p.get("eos_token_id") is not None), ())
    # transformers 5 may save a processor as one file; where both are there, it reads that one.
    images = weights.read_json(path / "processor_config.json", {}).get("image_processor")
    images = images or weights.read_json(path / "preprocessor_config.json", {})
    if compute_dtype is None:
        compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Policy(
        config=config,
        compute_dtype=compute_dtype,
        value_head=value_head,
        remat=remat,
        remat_keeps=remat_keeps,
        attention=attention,
        gather_view=gather_view,
        stop_ids=tuple(stop) if isinstance(stop, (list, tuple)) else (stop,),
        image_mean=tuple(images.get("image_mean") or CLIP_MEAN),
        image_std=tuple(images.get("image_std") or CLIP_STD),
        mesh=mesh,
        directory=str(path),
    )


def load_params(
    path: pathlib.Path,
    policy: Policy,
    dtype: str = "float32",
    progress: weights.Progress | None = None,
) -> Params:
    """Reads the weights of `policy`; see `load_pretrained` and `weights.read_leaf`."""
    config = policy.config
    abstract = abstract_params(policy)
    leaves = dict(_flatten(abstract))
    ours = {name: leaf for name, leaf in leaves.items() if not name.startswith("value_head")}
    parts = _match(path, config, ours)
    shardings = param_shardings(abstract, policy.mesh, head_dim=config.text.head_dim)
    flat_shardings = dict(_flatten(shardings)) if policy.mesh is not None else {}
    size = jnp.dtype(dtype).itemsize
    total, read = sum(leaf.size for leaf in ours.values()) * size, 0

    def done(elements):
        nonlocal read
        read += elements * size
        if progress is not None:
            progress(read, total)

    flat = {
        name: weights.read_leaf(leaf.shape, parts[name], dtype, flat_shardings.get(name), done)
        for name, leaf in ours.items()
    }
    if policy.value_head:
        flat |= _load_value_head(path, leaves, flat_shardings)
    return _unflatten(flat)


def _match(
    path: pathlib.Path, config: ModelConfig, leaves: dict[str, Any]
) -> dict[str, list[tuple[names.Tensor, weights.Stored]]]:
    """What each of our leaves is made of, or an error that lists all that doesn't fit."""
    files: dict[str, weights.Stored] = {}
    missing, strange, wrong = [], [], []
    for stored in weights.open_all(path):
        name = names.canonical(stored.name, config)
        if name in files:
            others = f"{files[name].name} in {files[name].file.name}"
            strange.append(f"twice {stored.name} in {stored.file.name}, {others}")
        files[name] = stored
    parts: dict[str, list] = {name: [] for name in leaves}
    expected = {"lm_head.weight"} if config.text.tied else set()  # some hold it all the same
    for tensor in names.tensors(config, leaves):
        expected.add(tensor.name)
        if tensor.name not in files:
            missing.append(f"missing {tensor.name}")
            continue
        stored = files[tensor.name]
        parts[tensor.ours].append((tensor, stored))
        if stored.dtype not in weights.FLOATS:
            wrong.append(f"{tensor.name} holds {stored.dtype}: quantised weights")
        elif stored.shape != tensor.shape:
            wrong.append(
                f"{tensor.name} has shape {list(stored.shape)}, "
                f"the configuration says {list(tensor.shape)}"
            )
    strange += [f"unexpected {name}" for name in files.keys() - expected]
    if problems := sorted(missing) + sorted(strange) + sorted(wrong):
        raise ValueError(f"{path}: the weights don't fit config.json:\n  " + "\n  ".join(problems))
    return parts


def save_pretrained(
    directory: str | pathlib.Path,
    policy: Policy,
    params: Params,
    source: str | pathlib.Path | None = None,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    progress: weights.Progress | None = None,
) -> pathlib.Path:
    """Writes a Hugging Face directory that transformers loads, and that imports bit-identically.

    The host holds a tensor at a time, whatever the size of the model. An export that ends early
    leaves an earlier checkpoint in `directory` as it was. On several processes every one must
    call this; the first writes.

    Args:
      directory: created if missing.
      policy, params: what to write; a value head goes into a file of its own, adapters are merged
        into their kernels, a separate critic is left out.
      source: where config, tokenizer and processor files are copied from; by default the
        directory that the policy was loaded from.
      dtype: of the written tensors; None keeps that of the parameters.
      max_shard_size: bytes, or a string such as "5GB" or "500MB".
      progress: told (bytes gathered, bytes in all).

    Raises:
      FileNotFoundError: no source directory with a config.json is known.
    """
    limit = _parse_size(max_shard_size)
    source = resolve(source or policy.directory or "")
    path = pathlib.Path(directory).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    flat = dict(_flatten(merge_lora(without_critic(params))))
    written = jnp.dtype(dtype or flat["norm/scale"].dtype)
    if written not in map(jnp.dtype, weights.FLOATS.values()):
        raise ValueError(f"dtype {written.name}: weights are written as float32 or bfloat16")
    head = {k: weights.gather(flat.pop(k)) for k in list(flat) if k.startswith("value_head")}
    writes = jax.process_index() == 0
    if writes:
        weights.discard(path)
    try:
        tensors = list(names.tensors(policy.config, flat))
        parts = weights.write(path, flat, tensors, written, limit, progress)
        if writes and head:
            head = {k.replace("/", "."): v for k, v in head.items()}
            weights.save(head, path / (VALUE_HEAD + weights.PART))
            parts.insert(0, VALUE_HEAD)
        if writes:
            _carry(source, path, written.name)
            weights.commit(path, parts)
    except BaseException:
        if writes:
            weights.discard(path)
        raise
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"exported {path}")  # it is there for every process
    return path


def _carry(source: pathlib.Path, path: pathlib.Path, dtype: str) -> None:
    """The files beside the weights, config.json with the dtype of the tensors."""
    if source.resolve() != path.resolve():
        for name in CARRIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, path / name)
    raw = _with_dtype(weights.read_json(path / "config.json"), dtype)
    (path / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _with_dtype(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """A config.json that says what the tensors are, wherever it said so before."""
    for section in (raw, raw.get("text_config"), raw.get("vision_config")):
        for field in ("dtype", "torch_dtype"):
            if section and section.get(field):
                section[field] = name
    if "dtype" not in raw:
        raw["torch_dtype"] = name
    return raw


# --- files -------------------------------------------------------------------------------------


def _load_value_head(path: pathlib.Path, leaves, shardings) -> dict[str, jax.Array]:
    ours = {our: leaf for our, leaf in leaves.items() if our.startswith("value_head")}
    values = {our: np.zeros(leaf.shape, np.float32) for our, leaf in ours.items()}
    if (path / VALUE_HEAD).is_file():
        stored = {k.replace(".", "/"): v for k, v in weights.read_header(path / VALUE_HEAD).items()}
        wanted, found = ({k: v.shape for k, v in d.items()} for d in (values, stored))
        if wanted != found:
            raise ValueError(f"{path / VALUE_HEAD}: holds {found}, not {wanted}")
        values = {k: np.array(weights.mapped(v), np.float32) for k, v in stored.items()}
    return {our: weights.put(values[our], shardings.get(our)) for our in ours}


def _parse_size(size: str | int) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)B\s*", size, re.IGNORECASE)
    if not match:
        raise ValueError(f"max_shard_size {size!r}: give bytes or a string such as '5GB'")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * 1000**power)


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in sorted(tree):
        value = tree[name]
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
