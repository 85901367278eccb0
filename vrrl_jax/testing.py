"""Tiny doubles for tests: a random policy, its processor, a 3x3 environment, a checkpoint.

Everything is real code at toy size: about 110,000 parameters of the Qwen2.5-VL architecture that
speak the vocabulary of the shipped policy. Nothing is trained and nothing is downloaded:

    policy, params = testing.tiny_policy()
    board, maps = testing.tiny_environment(), testing.tiny_maps(4)
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from vrrl_jax.checkpoint import hf
from vrrl_jax.config import NavigationEnv
from vrrl_jax.data import frozenlake
from vrrl_jax.data.frozenlake import Map
from vrrl_jax.envs.frozenlake import PROBE, Environment, Settings
from vrrl_jax.models import policy as models
from vrrl_jax.models.config import from_hf
from vrrl_jax.models.lora import add_lora, place
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.processing.processor import Processor, load_processor
from vrrl_jax.tasks.frozenlake import FrozenLake

CELL = 28  # pixels a cell: one picture token each
# The architecture in words of a Hugging Face config.json, over that of the shipped policy.
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "rope_theta": 1000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
}
# One block of each kind: within windows of 2 x 2 picture tokens, and over the whole picture.
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
RECIPE = """\
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {max_new_tokens: 8}
"""


# Qwen3-VL's own: heads wider than their share, features of the first block for the decoder.
TEXT3 = {"head_dim": 16, "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]}}
VISION3 = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
VISION3 |= {"hidden_act": "gelu_pytorch_tanh"}


def tiny_config(family: str = "qwen2_5_vl") -> dict[str, Any]:
    """The config.json of the tiny policy of a family."""
    raw = json.loads((hf.resolve("nano") / "config.json").read_text(encoding="utf-8"))
    raw |= TEXT | {"vision_config": raw["vision_config"] | VISION}
    if family == "qwen2_5_vl":
        return raw
    vision = raw["vision_config"] | VISION3 | {"model_type": family}
    for field in ("window_size", "fullatt_block_indexes"):
        del vision[field]
    return raw | TEXT3 | {"model_type": family, "vision_config": vision}


def tiny_policy(seed: int = 0, family: str = "qwen2_5_vl", **changes: Any) -> tuple[Policy, Params]:
    """A random policy of width 32, two layers and two vision blocks.

    Args:
      seed: of the parameters.
      family: "qwen2_5_vl" or "qwen3_vl".
      changes: fields of `Policy` to replace, such as value_head=True or stop_ids=(1, 2).

    Returns:
      (policy, params), the parameters as numpy arrays in float32. `policy.directory` is that of
      the shipped policy, whose tokenizer and processor fit.
    """
    policy = dataclasses.replace(hf.load_policy("nano"), config=from_hf(tiny_config(family)))
    policy = dataclasses.replace(policy, **changes)
    return policy, models.init_params(policy, seed)


def tiny_processor() -> Processor:
    """The shipped policy's processor: 384 tokens, one an action and tag word."""
    return load_processor(hf.resolve("nano"))


def tiny_environment(max_turns: int = 3) -> Environment:
    """FrozenLake in pictures of 28 pixels a cell, with texts of one word."""
    return Environment(Settings(cell=CELL, max_turns=max_turns, question="Solve", verify="Verify"))


def tiny_task(max_turns: int = 4) -> FrozenLake:
    """The environment's task: examples, reward and demonstrations beside it."""
    env = NavigationEnv(cell=CELL, max_turns=max_turns, question="Solve", verify="Verify")
    return FrozenLake(env=env)


def tiny_maps(count: int, seed: int = 0) -> list[Map]:
    """`count` different solvable 3x3 maps."""
    return frozenlake.generate(seed, count, levels=(3,))


def tiny_probes() -> list[tuple[Map, str]]:
    """What `rollout.episodes.plan_shapes` plans for: a map of theirs and a reply to it."""
    return [(tiny_maps(1)[0], PROBE)]


def write_tiny_checkpoint(
    directory: str | pathlib.Path, seed: int = 0, family: str = "qwen2_5_vl"
) -> pathlib.Path:
    """Writes the tiny policy as a Hugging Face directory; returns its path.

    It holds config.json, model.safetensors, the shipped policy's tokenizer and processor files,
    and vrrl.yaml, which says how episodes are shown to it.

    Args:
      directory: created if missing.
      seed, family: as in `tiny_policy`.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    shipped = hf.resolve("nano")
    for name in hf.CARRIED:
        if (shipped / name).is_file():
            shutil.copyfile(shipped / name, path / name)
    (path / "config.json").write_text(json.dumps(tiny_config(family), indent=2) + "\n")
    (path / hf.RECIPE).write_text(RECIPE)
    policy, params = tiny_policy(seed, family)
    return hf.save_pretrained(path, policy, params, source=path)


def random_adapters(
    policy: Policy,
    params: Params,
    targets: tuple[str, ...] = ("decoder",),
    *,
    rank: int = 3,
    alpha: float = 12.0,
    seed: int = 0,
) -> Params:
    """Parameters with LoRA adapters that do something: unlike fresh ones, B is drawn too."""
    fresh = add_lora(policy, params, rank=rank, alpha=alpha, targets=targets, seed=seed)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key != "lora_b":
            return leaf
        return (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return place(policy, jax.tree_util.tree_map_with_path(draw, fresh))
