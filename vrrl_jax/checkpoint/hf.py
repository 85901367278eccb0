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

from vrrl_jax.models.config import ModelConfig, from_hf
from vrrl_jax.models.policy import CLIP_MEAN, CLIP_STD, Params, Policy, abstract_params
from vrrl_jax.parallel.mesh import canonical
from vrrl_jax.parallel.rules import check_heads, param_shardings

ASSETS = pathlib.Path(__file__).parent.parent / "assets"
SHIPPED = ("nano", "nano-early")
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

# Our path -> (published name, kind). `dense` transposes torch's [out, in]; `conv` also flattens
# [out, channels, frames, rows, columns]; {i} runs over the layers of a stacked leaf.
TABLE: dict[str, tuple[str, str]] = {
    "visual/patch_embed/kernel": ("visual.patch_embed.proj.weight", "conv"),
    "visual/blocks/norm1/scale": ("visual.blocks.{i}.norm1.weight", "vector"),
    "visual/blocks/norm2/scale": ("visual.blocks.{i}.norm2.weight", "vector"),
    "visual/blocks/qkv/kernel": ("visual.blocks.{i}.attn.qkv.weight", "dense"),
    "visual/blocks/qkv/bias": ("visual.blocks.{i}.attn.qkv.bias", "vector"),
    "visual/blocks/proj/kernel": ("visual.blocks.{i}.attn.proj.weight", "dense"),
    "visual/blocks/proj/bias": ("visual.blocks.{i}.attn.proj.bias", "vector"),
    "visual/ln_q/scale": ("visual.merger.ln_q.weight", "vector"),
    "visual/merger_0/kernel": ("visual.merger.mlp.0.weight", "dense"),
    "visual/merger_0/bias": ("visual.merger.mlp.0.bias", "vector"),
    "visual/merger_2/kernel": ("visual.merger.mlp.2.weight", "dense"),
    "visual/merger_2/bias": ("visual.merger.mlp.2.bias", "vector"),
    "embed_tokens/embedding": ("model.embed_tokens.weight", "vector"),
    "layers/input_layernorm/scale": ("model.layers.{i}.input_layernorm.weight", "vector"),
    "layers/post_attention_layernorm/scale": (
        "model.layers.{i}.post_attention_layernorm.weight",
        "vector",
    ),
    "norm/scale": ("model.norm.weight", "vector"),
    "lm_head/kernel": ("lm_head.weight", "dense"),
}
for _name in ("q_proj", "k_proj", "v_proj"):
    TABLE[f"layers/{_name}/kernel"] = (f"model.layers.{{i}}.self_attn.{_name}.weight", "dense")
    TABLE[f"layers/{_name}/bias"] = (f"model.layers.{{i}}.self_attn.{_name}.bias", "vector")
TABLE["layers/o_proj/kernel"] = ("model.layers.{i}.self_attn.o_proj.weight", "dense")
for _name in ("gate_proj", "up_proj", "down_proj"):
    TABLE[f"layers/mlp/{_name}/kernel"] = (f"model.layers.{{i}}.mlp.{_name}.weight", "dense")
    TABLE[f"visual/blocks/mlp/{_name}/kernel"] = (
        f"visual.blocks.{{i}}.mlp.{_name}.weight",
        "dense",
    )
    TABLE[f"visual/blocks/mlp/{_name}/bias"] = (f"visual.blocks.{{i}}.mlp.{_name}.bias", "vector")


def resolve(directory: str | pathlib.Path) -> pathlib.Path:
    """A checkpoint directory; the words "nano" and "nano-early" name the shipped policies.

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
    compute_dtype: str | None = None,
    value_head: bool = False,
    remat: bool = False,
) -> tuple[Policy, Params]:
    """Loads a policy from a Hugging Face directory.

    Args:
      directory: config.json, safetensors (one file or shards with an index), or "nano".
      dtype: of the parameters.
      mesh: shards the parameters over it by the table of `parallel.rules`.
      compute_dtype: of activations and cache; None is float32 on CPU, bfloat16 elsewhere.
      value_head: adds a scalar head, read from `value_head.safetensors` beside the model where
        that exists, else zero.
      remat: recompute blocks in the backward pass.

    Returns:
      (policy, params).

    Raises:
      FileNotFoundError: files are missing.
      ValueError: unsupported configuration, or tensors missing, unexpected or misshapen; the
        message lists all of them.
    """
    path = resolve(directory)
    policy = load_policy(
        path, mesh=mesh, compute_dtype=compute_dtype, value_head=value_head, remat=remat
    )
    return policy, load_params(path, policy, dtype)


def load_policy(
    directory: str | pathlib.Path,
    *,
    mesh: Mesh | None = None,
    compute_dtype: str | None = None,
    value_head: bool = False,
    remat: bool = False,
) -> Policy:
    """The static part alone: reads the configuration files, no weights.

    Raises:
      ValueError: unsupported configuration, or a mesh that the policy can't be split over.
    """
    path = resolve(directory)
    config = from_hf(_read_json(path / "config.json"), str(path / "config.json"))
    if mesh is not None:
        mesh = canonical(mesh)
        check_heads(mesh, config.text.heads)
    generation = _read_json(path / "generation_config.json", {})
    raw = _read_json(path / "config.json")
    places = (generation, raw, raw.get("text_config") or {})
    stop = next((p["eos_token_id"] for p in places if p.get("eos_token_id") is not None), ())
    images = _read_json(path / "preprocessor_config.json", {})
    if compute_dtype is None:
        compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Policy(
        config=config,
        compute_dtype=compute_dtype,
        value_head=value_head,
        remat=remat,
        stop_ids=tuple(stop) if isinstance(stop, (list, tuple)) else (stop,),
        image_mean=tuple(images.get("image_mean", CLIP_MEAN)),
        image_std=tuple(images.get("image_std", CLIP_STD)),
        mesh=mesh,
        directory=str(path),
    )


def load_params(path: pathlib.Path, policy: Policy, dtype: str = "float32") -> Params:
    """Reads the weights of `policy` tensor by tensor; see `load_pretrained`."""
    tensors = {_canonical(key): (handle, key) for key, handle in _weights(path).items()}
    abstract = abstract_params(policy)
    leaves = dict(_flatten(abstract))
    expected = {
        key: (our, layer)
        for our, leaf in leaves.items()
        if not our.startswith("value_head")
        for key, layer in _published(our, leaf.shape)
    }
    problems = [f"missing {key}" for key in sorted(expected.keys() - tensors.keys())]
    ignorable = {"lm_head.weight"} if policy.config.text.tied else set()
    problems += [f"unexpected {k}" for k in sorted(tensors.keys() - expected.keys() - ignorable)]
    for key in sorted(expected.keys() & tensors.keys()):
        our, _ = expected[key]
        handle, name = tensors[key]
        shape = tuple(handle.get_slice(name).get_shape())
        want = _published_shape(our, leaves[our].shape, policy.config)
        if shape != want:
            problems.append(f"{key} has shape {list(shape)}, the configuration says {list(want)}")
    if problems:
        raise ValueError(f"{path}: the weights don't fit config.json:\n  " + "\n  ".join(problems))

    shardings = param_shardings(abstract, policy.mesh, head_dim=policy.config.text.head_dim)
    flat_shardings = dict(_flatten(shardings)) if policy.mesh is not None else {}

    def read(our: str, leaf) -> jax.Array:
        value = np.empty(leaf.shape, jnp.dtype(dtype))
        for key, layer in _published(our, leaf.shape):
            handle, name = tensors[key]
            part = _to_ours(our, handle.get_tensor(name))
            if layer is None:
                value = part.astype(value.dtype)
            else:
                value[layer] = part
        return jax.device_put(value, flat_shardings.get(our))

    flat = {our: read(our, leaf) for our, leaf in leaves.items() if "value_head" not in our}
    if policy.value_head:
        flat |= _load_value_head(path, leaves, flat_shardings)
    return _unflatten(flat)


def save_pretrained(
    directory: str | pathlib.Path,
    policy: Policy,
    params: Params,
    source: str | pathlib.Path | None = None,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
) -> pathlib.Path:
    """Writes a Hugging Face directory that transformers loads, and that imports bit-identically.

    Args:
      directory: created if missing.
      policy, params: what to write; a value head goes into a file of its own.
      source: where config, tokenizer and processor files are copied from; by default the
        directory that the policy was loaded from.
      dtype: of the written tensors; None keeps that of the parameters.
      max_shard_size: bytes, or a string such as "5GB" or "500MB".

    Raises:
      FileNotFoundError: no source directory with a config.json is known.
    """
    from safetensors.numpy import save_file

    source = resolve(source or policy.directory or "")
    path = pathlib.Path(directory).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    for name in CARRIED:
        if (source / name).is_file() and source.resolve() != path.resolve():
            shutil.copyfile(source / name, path / name)
    flat = dict(_flatten(params))
    written = jnp.dtype(dtype or flat["norm/scale"].dtype)
    raw = _read_json(path / "config.json")
    raw["dtype" if "dtype" in raw else "torch_dtype"] = written.name
    (path / "config.json").write_text(json.dumps(raw, indent=2) + "\n")

    shards: list[dict[str, np.ndarray]] = [{}]
    limit, size = _parse_size(max_shard_size), 0
    for key, array in _to_published(flat, policy.config, written):
        if shards[-1] and size + array.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = array
        size += array.nbytes
    for stale in [*path.glob("model*.safetensors"), path / "model.safetensors.index.json"]:
        stale.unlink(missing_ok=True)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, path / name, metadata={"format": "pt"})
        # safetensors leaves its file to its owner alone; the other files are anyone's to read.
        (path / name).chmod((path / "config.json").stat().st_mode)
    if len(shards) > 1:
        weight_map = {k: n for n, shard in zip(names, shards, strict=True) for k in shard}
        total = sum(a.nbytes for shard in shards for a in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    if policy.value_head:
        head = {k: np.asarray(v) for k, v in flat.items() if k.startswith("value_head")}
        save_file({k.replace("/", "."): v for k, v in head.items()}, path / VALUE_HEAD)
    return path


# --- the table, applied ------------------------------------------------------------------------


def _published(our: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None]]:
    """Published names of one of our leaves, with the layer each holds."""
    pattern, _ = TABLE[our]
    if "{i}" not in pattern:
        yield pattern, None
        return
    for i in range(shape[0]):
        yield pattern.format(i=i), i


def _published_shape(our: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    pattern, kind = TABLE[our]
    shape = shape[1:] if "{i}" in pattern else shape
    if kind == "conv":
        v = config.vision
        return (shape[1], v.channels, v.temporal, v.patch, v.patch)
    return shape[::-1] if kind == "dense" else shape


def _to_ours(our: str, tensor: np.ndarray) -> np.ndarray:
    kind = TABLE[our][1]
    if kind == "vector":
        return tensor
    return tensor.reshape(tensor.shape[0], -1).T


def _to_published(
    flat: dict[str, Any], config: ModelConfig, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    for our, leaf in flat.items():
        if our.startswith("value_head"):
            continue
        for key, layer in _published(our, leaf.shape):
            part = np.asarray(leaf if layer is None else leaf[layer])
            shape = _published_shape(our, leaf.shape, config)
            part = part if TABLE[our][1] == "vector" else part.T
            # Contiguous: safetensors writes the buffer, not the view, of a transposed array.
            yield key, np.ascontiguousarray(part.reshape(shape).astype(dtype))


def _canonical(key: str) -> str:
    """Module names of raw state dicts to the published ones."""
    key = re.sub(r"^model\.language_model\.", "model.", key)
    return re.sub(r"^model\.visual\.", "visual.", key)


# --- files -------------------------------------------------------------------------------------


def _weights(path: pathlib.Path) -> dict[str, Any]:
    """Every tensor name and the open file that holds it."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: no weight_map")
        names = sorted(set(weight_map.values()))
        if lost := [name for name in names if not (path / name).is_file()]:
            raise FileNotFoundError(f"{path}: the index names files that are missing: {lost}")
        handles = {name: _open(path / name) for name in names}
        held = {name: set(handle.keys()) for name, handle in handles.items()}
        if lost := [f"{path / n}: no {k}" for k, n in weight_map.items() if k not in held[n]]:
            raise ValueError("the index names tensors that are missing:\n  " + "\n  ".join(lost))
        return {key: handles[name] for key, name in weight_map.items()}
    single = path / "model.safetensors"
    if not single.is_file():
        pickled = [p.name for p in path.glob("*.bin")] + [p.name for p in path.glob("*.pt*")]
        hint = f"; pickled weights are refused ({pickled[0]})" if pickled else ""
        raise FileNotFoundError(f"{path}: no model.safetensors and no index{hint}")
    handle = _open(single)
    return dict.fromkeys(handle.keys(), handle)


def _open(file: pathlib.Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{file}: broken or incomplete, copy it again ({error})") from None


def _load_value_head(path: pathlib.Path, leaves, shardings) -> dict[str, jax.Array]:
    ours = {our: leaf for our, leaf in leaves.items() if our.startswith("value_head")}
    values = {our: np.zeros(leaf.shape, np.float32) for our, leaf in ours.items()}
    if (path / VALUE_HEAD).is_file():
        handle = _open(path / VALUE_HEAD)
        names = handle.keys()
        stored = {name.replace(".", "/"): handle.get_tensor(name) for name in names}
        wanted, found = ({k: v.shape for k, v in d.items()} for d in (values, stored))
        if wanted != found:
            raise ValueError(f"{path / VALUE_HEAD}: holds {found}, not {wanted}")
        values = stored
    return {our: jax.device_put(values[our], shardings.get(our)) for our in ours}


def _read_json(path: pathlib.Path, default: dict | None = None) -> dict[str, Any]:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


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
