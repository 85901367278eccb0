"""One table from our parameters to the tensors of a published checkpoint, for both families."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vrrl_jax.models.config import ModelConfig

# Our path -> (published name, kind). `dense` transposes torch's [out, in]; `conv` also flattens
# [out, channels, frames, rows, columns]; {i} runs over the leading axis of a stacked leaf.
Table = dict[str, tuple[str, str]]


def _dense(ours: str, theirs: str, bias: bool = True) -> Table:
    table = {f"{ours}/kernel": (f"{theirs}.weight", "dense")}
    return table | ({f"{ours}/bias": (f"{theirs}.bias", "vector")} if bias else {})


def _layer_norm(ours: str, theirs: str) -> Table:
    return {
        f"{ours}/scale": (f"{theirs}.weight", "vector"),
        f"{ours}/bias": (f"{theirs}.bias", "vector"),
    }


def _decoder(prefix: str, config: ModelConfig) -> Table:
    text, layer = config.text, f"{prefix}layers.{{i}}."
    table: Table = {
        "embed_tokens/embedding": (f"{prefix}embed_tokens.weight", "vector"),
        "norm/scale": (f"{prefix}norm.weight", "vector"),
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        table[f"layers/{name}/scale"] = (f"{layer}{name}.weight", "vector")
    for name in ("q_proj", "k_proj", "v_proj"):
        table |= _dense(f"layers/{name}", f"{layer}self_attn.{name}", text.qkv_bias)
    table |= _dense("layers/o_proj", f"{layer}self_attn.o_proj", bias=False)
    for name in ("gate_proj", "up_proj", "down_proj"):
        table |= _dense(f"layers/mlp/{name}", f"{layer}mlp.{name}", bias=False)
    for name in ("q_norm", "k_norm") if text.qk_norm else ():
        table[f"layers/{name}/scale"] = (f"{layer}self_attn.{name}.weight", "vector")
    if not text.tied:
        table |= _dense("lm_head", "lm_head", bias=False)
    return table


def _qwen2_5_tower() -> Table:
    block = "visual.blocks.{i}."
    table: Table = {
        "visual/patch_embed/kernel": ("visual.patch_embed.proj.weight", "conv"),
        "visual/blocks/norm1/scale": (f"{block}norm1.weight", "vector"),
        "visual/blocks/norm2/scale": (f"{block}norm2.weight", "vector"),
        "visual/ln_q/scale": ("visual.merger.ln_q.weight", "vector"),
    }
    table |= _dense("visual/blocks/qkv", f"{block}attn.qkv")
    table |= _dense("visual/blocks/proj", f"{block}attn.proj")
    for name in ("gate_proj", "up_proj", "down_proj"):
        table |= _dense(f"visual/blocks/mlp/{name}", f"{block}mlp.{name}")
    for layer in (0, 2):
        table |= _dense(f"visual/merger_{layer}", f"visual.merger.mlp.{layer}")
    return table


def _qwen3_tower(config: ModelConfig) -> Table:
    prefix = "model.visual."
    block = f"{prefix}blocks.{{i}}."
    table: Table = {
        "visual/patch_embed/kernel": (f"{prefix}patch_embed.proj.weight", "conv"),
        "visual/patch_embed/bias": (f"{prefix}patch_embed.proj.bias", "vector"),
        "visual/pos_embed/embedding": (f"{prefix}pos_embed.weight", "vector"),
    }
    for name in ("norm1", "norm2"):
        table |= _layer_norm(f"visual/blocks/{name}", f"{block}{name}")
    table |= _dense("visual/blocks/qkv", f"{block}attn.qkv")
    table |= _dense("visual/blocks/proj", f"{block}attn.proj")
    mergers = {"merger": "merger"}
    if config.vision.deepstack:
        mergers["deepstack"] = "deepstack_merger_list.{i}"
    for ours, theirs in mergers.items():
        table |= _layer_norm(f"visual/{ours}/norm", f"{prefix}{theirs}.norm")
    for name in ("linear_fc1", "linear_fc2"):
        table |= _dense(f"visual/blocks/{name}", f"{block}mlp.{name}")
        for ours, theirs in mergers.items():
            table |= _dense(f"visual/{ours}/{name}", f"{prefix}{theirs}.{name}")
    return table


def table(config: ModelConfig) -> Table:
    """The names that published checkpoints of this family have on disk."""
    if config.family == "qwen3_vl":
        return _decoder("model.language_model.", config) | _qwen3_tower(config)
    return _decoder("model.", config) | _qwen2_5_tower()


class Tensor(NamedTuple):
    """One published tensor and where it lies in our parameters.

    Attributes:
      name: as on disk.
      shape: as on disk.
      kind: "vector" (as it is), "dense" (transposed) or "conv" (flattened and transposed).
      ours: path of our leaf.
      layer: its entry of a stacked leaf; None where the leaf is not stacked.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    ours: str
    layer: int | None


def tensors(config: ModelConfig, leaves: dict[str, Any]) -> Iterator[Tensor]:
    """Every published tensor of a model, our leaves one after another.

    Args:
      leaves: our path -> array or shape, the value head not among them.
    """
    known = table(config)
    for ours, leaf in leaves.items():
        name, kind = known[ours]
        stacked = "{i}" in name
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        if kind == "conv":
            v = config.vision
            shape = (shape[1], v.channels, v.temporal, v.patch, v.patch)
        elif kind == "dense":
            shape = shape[::-1]
        for i in range(leaf.shape[0]) if stacked else (None,):
            yield Tensor(name if i is None else name.format(i=i), shape, kind, ours, i)


def canonical(name: str, config: ModelConfig) -> str:
    """Other spellings of a tensor's name (raw state dicts, older files) to the published one."""
    bare = re.sub(r"^model\.(language_model|visual)\.", r"\1.", name)
    bare = re.sub(r"^model\.", "language_model.", bare)
    prefix = "model." if config.family == "qwen3_vl" else ""
    if bare.startswith("visual."):
        return prefix + bare
    inner = "model.language_model." if prefix else "model."
    return re.sub(r"^language_model\.", inner, bare)


def module_name(name: str) -> str:
    """The module path that transformers gives a published weight, without its last part."""
    module = name.rpartition(".")[0]
    if not module.startswith(("model.language_model.", "model.visual.")):
        module = re.sub(r"^model\.", "model.language_model.", module)
        module = re.sub(r"^visual\.", "model.visual.", module)
    return module


def to_ours(kind: str, array: Any) -> Any:
    """A published tensor, numpy or jax, in our layout."""
    return array if kind == "vector" else array.reshape(array.shape[0], -1).T


def to_published(tensor: Tensor, array: Any) -> Any:
    """The reverse."""
    return array if tensor.kind == "vector" else array.T.reshape(tensor.shape)
