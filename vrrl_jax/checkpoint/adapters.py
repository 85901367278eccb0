"""LoRA adapters as PEFT directories: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

from vrrl_jax.checkpoint import names, weights
from vrrl_jax.models.lora import place
from vrrl_jax.models.policy import Params, Policy

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def save_adapter(
    directory: str | pathlib.Path, policy: Policy, params: Params, base: str | None = None
) -> pathlib.Path:
    """Writes the adapters of a policy as a directory that PEFT loads onto the base.

    Args:
      directory: created if missing.
      params: with adapters, all of one rank and scale.
      base: what the configuration calls the base model; None is where the policy came from.

    Raises:
      ValueError: no adapters.

    On several processes every one must call this; the first writes.
    """
    path = pathlib.Path(directory).expanduser()
    arrays, modules, kinds = {}, [], set()
    for node, module, count in _places(policy, params):
        a, b, scale = (weights.gather(node[f"lora_{part}"]) for part in ("a", "b", "scale"))
        kinds.add((a.shape[-1], float(np.max(scale))))
        modules.append(re.escape(module).replace(r"\{i\}", r"\d+"))
        for i in range(count) if count else (None,):
            name = PREFIX + (module if i is None else module.format(i=i))
            at = ... if i is None else i
            arrays[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[at].T)
            arrays[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[at].T)
    if not arrays:
        raise ValueError("these parameters have no adapters: train with policy.lora.rank > 0")
    ((rank, scale),) = kinds
    if jax.process_index() > 0:
        return path
    path.mkdir(parents=True, exist_ok=True)
    weights.save(arrays, path / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or policy.directory,
        "r": rank,
        "lora_alpha": scale * rank,
        # One expression, matched whole: bare names would also hit the other tower's modules.
        "target_modules": "|".join(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
    }
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return path


def load_adapter(directory: str | pathlib.Path, policy: Policy, params: Params) -> Params:
    """The parameters with the adapters of a PEFT directory beside their kernels.

    Raises:
      FileNotFoundError: the directory lacks one of its two files.
      ValueError: another kind of adapter, or tensors that don't fit this policy (all are named).
    """
    path = pathlib.Path(directory).expanduser()
    config = weights.read_json(path / CONFIG)
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise ValueError(f"{path / CONFIG}: only LoRA without trained biases is supported")
    for option in ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern"):
        if config.get(option):
            raise ValueError(f"{path / CONFIG}: {option} is not supported")
    if not (path / WEIGHTS).is_file():
        raise FileNotFoundError(f"{path}: no {WEIGHTS}; pickled adapters are refused")
    handle = weights.open_file(path / WEIGHTS)
    stored = {name: handle.get_tensor(name).astype(np.float32) for name in handle.keys()}  # noqa: SIM118
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    out, problems = params, []
    for ours, module, count in _modules(policy, params):
        layers = [module.format(i=i) for i in range(count)] if count else [module]
        parts = [
            [stored.pop(f"{PREFIX}{layer}.lora_{part}.weight", None) for layer in layers]
            for part in "AB"
        ]
        if all(p is None for part in parts for p in part):
            continue
        kernel = _node(params, ours)["kernel"]
        shapes = (rank, kernel.shape[-2]), (kernel.shape[-1], rank)
        for part, shape in zip(parts, shapes, strict=True):
            problems += [
                f"{layer}: {None if p is None else list(p.shape)}, not {list(shape)}"
                for layer, p in zip(layers, part, strict=True)
                if p is None or p.shape != shape
            ]
        if not problems:
            a, b = (np.stack([p.T for p in part]) for part in parts)
            a, b = (a, b) if count else (a[0], b[0])
            filled = np.full(a.shape[:-2], scale, np.float32)
            out = _with(out, ours.split("/"), {"lora_a": a, "lora_b": b, "lora_scale": filled})
    problems += [f"unexpected {name}" for name in stored]
    if problems:
        raise ValueError(f"{path}: the adapters don't fit:\n  " + "\n  ".join(problems))
    return place(policy, out)


def _modules(policy: Policy, params: Params):
    """(our path, module name, layers or None) of every projection that could be adapted."""
    for ours, (published, kind) in names.table(policy.config).items():
        if kind == "dense" and ours != "lm_head/kernel":
            parent = ours.removesuffix("/kernel")
            kernel = _node(params, parent)["kernel"]
            count = kernel.shape[0] if "{i}" in published else None
            yield parent, names.module_name(published), count


def _places(policy: Policy, params: Params):
    """(parameters, module name, layers or None) of every projection with an adapter."""
    for ours, module, count in _modules(policy, params):
        node = _node(params, ours)
        if "lora_a" in node:
            yield node, module, count


def _node(params: Params, path: str) -> dict[str, Any]:
    for key in path.split("/"):
        params = params[key]
    return params


def _with(tree: Params, path: list[str], leaves: dict[str, Any]) -> Params:
    if not path:
        return tree | leaves
    return tree | {path[0]: _with(tree[path[0]], path[1:], leaves)}
