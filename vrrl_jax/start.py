"""Where a run starts: a policy, and which of its parameters learn."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

from jax.sharding import Mesh

from vrrl_jax.checkpoint import hf
from vrrl_jax.config import MeshConfig, PolicyConfig
from vrrl_jax.models import critic, lora
from vrrl_jax.models.policy import Params, Policy, init_params
from vrrl_jax.parallel import distributed
from vrrl_jax.parallel.mesh import connect, make_mesh
from vrrl_jax.parallel.rules import left_whole
from vrrl_jax.progress import bytes_bar


class Start(NamedTuple):
    """A policy with its parameters in two parts that share no leaf; see `lora.join_params`.

    Attributes:
      policy: static part.
      trained: what the optimizer holds.
      frozen: what stays as it is: the base under adapters, or the vision tower. A separate critic
        shares the policy's.
    """

    policy: Policy
    trained: Params
    frozen: Params


def open_mesh(config: Any) -> Mesh | None:
    """The mesh of a recipe, None for one device; checks what -1 stands for against the recipe."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    dataclasses.replace(config, mesh=MeshConfig(**mesh.shape))
    if distributed.several():
        connect(mesh)
    return mesh if mesh.size > 1 else None


def start(config: PolicyConfig, mesh: Mesh | None, seed: int) -> Start:
    """Loads or draws the policy of a recipe, adds adapters and a critic, says what is trained.

    Args:
      seed: of fresh parameters and adapters.
    """
    options = {
        "mesh": mesh,
        "compute_dtype": config.compute_dtype,
        "value_head": config.value_head,
        "remat": config.remat,
        "remat_keeps": config.remat_keeps,
        "attention": config.attention,
        "gather_view": config.gather_view,
    }
    if config.init == "pretrained":
        with bytes_bar("read", stream=distributed.stream()) as progress:
            loaded = hf.load_pretrained(config.path, config.dtype, **options, progress=progress)
        policy, params = loaded
    else:
        directory = pathlib.Path(config.config or config.path)
        directory = directory.parent if directory.name == "config.json" else directory
        policy = hf.load_policy(directory, **options)
        params = lora.place(policy, init_params(policy, seed))
    if config.lora.rank:
        params = lora.add_lora(
            policy,
            params,
            rank=config.lora.rank,
            alpha=config.lora.scaling * config.lora.rank,
            targets=config.lora.targets,
            seed=seed,
        )
    whole = left_whole(params, mesh, head_dim=policy.config.text.head_dim)
    if whole and distributed.first():
        print(whole)
    if config.critic == "separate":
        held = lambda name: not trains(config, name)
        params = critic.add_critic(policy, params, held)
    return Start(policy, *lora.split_params(params, lambda name: trains(config, name)))


def trains(config: PolicyConfig, name: str) -> bool:
    """Whether the parameter of this path learns: adapters alone where there are any, else all but
    a frozen vision tower. A separate critic learns as the policy does, a value head always."""
    if critic.is_head(name):
        return True
    name = name.removeprefix(critic.PREFIX)
    if config.lora.rank:
        return lora.is_adapter(name)
    return not (config.freeze_vision and name.startswith("visual"))
