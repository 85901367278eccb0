"""Tabulates what runs of the published models hold on common meshes: docs/memory.md.

    JAX_PLATFORMS=cpu python scripts/memory_table.py

Nothing is run and no accelerator is needed: `vrrl_jax/plan.py` counts from shapes alone.
"""

from __future__ import annotations

import json
import pathlib

from vrrl_jax import layout, plan
from vrrl_jax.config import TrainConfig, load
from vrrl_jax.models.config import ModelConfig, from_hf
from vrrl_jax.models.policy import Policy
from vrrl_jax.rollout import episodes

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = "configs/vrrl_frozenlake_qwen2_5_vl_3b.yaml"
MODELS = {
    "qwen2_5_vl_3b": "Qwen2.5-VL-3B",
    "qwen2_5_vl_7b": "Qwen2.5-VL-7B",
    "qwen2_5_vl_32b": "Qwen2.5-VL-32B",
    "qwen2_5_vl_72b": "Qwen2.5-VL-72B",
    "qwen3_vl_2b": "Qwen3-VL-2B",
    "qwen3_vl_4b": "Qwen3-VL-4B",
    "qwen3_vl_8b": "Qwen3-VL-8B",
    "qwen3_vl_32b": "Qwen3-VL-32B",
}
MESHES = ((1, 1), (8, 1), (16, 1), (32, 1), (64, 1), (16, 4), (32, 4), (64, 4))  # fsdp, tensor
DTYPES = ("float32", "bfloat16")
SIDE = 320  # pixels of a 5x5 map, the largest that the recipe trains on
TEXT = 128  # tokens of a user turn beside its picture: the texts have some 270 letters
COLUMNS = (
    ("parameters", "optimizer", "reference", "view", "cache", "rollout", "gradients", "update")
)  # fmt: skip

HEADER = f"""\
# Memory a device, on paper

Made by `JAX_PLATFORMS=cpu python scripts/memory_table.py` from shapes alone (`vrrl_jax/plan.py`).
Nothing here was run at these sizes.

What is counted, for full-parameter training by `{RECIPE}`:

- {{rows}} episodes a rollout (32 questions of 8 samples), {{turns}} turns of at most {{new}} new
  tokens each, pictures of {SIDE} pixels a side, {TEXT} tokens of text a user turn (assumed):
  {{slots}} cache slots a row. One packed row of as many tokens a microbatch for each part of
  data x fsdp.
- Held exactly, by the sharding table: `parameters` in the dtype of the section; `optimizer`,
  AdamW's two moments in the same dtype; `reference`, a copy for the KL term; `view`, the sampler's
  copy in bfloat16, whole over fsdp (`policy.gather_view: false` splits it); `cache`, keys and
  values in bfloat16; `gradients`, those accumulated and those of one microbatch.
- Estimated: `rollout`, an appended chunk or a drawn token; `update`, a forward and backward pass
  with blocks rematerialised (`policy.remat`). The formulae are in
  `plan.update_bytes` and `plan.block_bytes`: an input a layer, the working set of the
  largest block, attention scores written out up to 512 MiB and in a kernel's blocks beyond
  (`docs/attention.md`), and float32 logits in chunks.
  Tests compare them with XLA's own count for small models on a CPU and allow a half either way.
- `peak` = parameters + optimizer + reference + view + the larger of (cache + rollout) and
  (gradients + update). It fits if it takes at most {plan.USABLE:.0%} of the memory:
  {", ".join(f"{name} {size / 1e9:.0f} GB" for name, size in plan.DEVICES.items())}.
- Not counted: what the runtime holds, loading and saving, the short time in which a prompt's cache
  is copied for its samples, and weights that a compiler gathers early. Where a dimension doesn't
  divide over tensor it is held whole, as in a run.

GB are 10^9 bytes. A mesh of `fsdp 16 x tensor 4` has 64 devices.
"""


def shapes(config: ModelConfig, recipe: TrainConfig) -> episodes.Shapes:
    """What `episodes.plan_shapes` gives for pictures of SIDE pixels and TEXT tokens of text."""
    unit = config.vision.patch * config.vision.merge
    side = round(SIDE / unit) * config.vision.merge
    grid = (1, side, side)
    new, turns = recipe.rollout.max_new_tokens, recipe.env.max_turns
    turn = TEXT + layout.token_count(grid, config.vision.merge)
    slots = turn + turns * (new + 1) + (turns - 1) * (turn + 10)
    return episodes.Shapes(
        prompt=layout.round_up(turn, 8),
        follow=layout.round_up(turn + 10 + new, 8),  # room for a rolled-in reply
        patches=layout.slot_patches(grid, config.layout),
        slots=layout.round_up(slots, 32),
    )


def memory(config: ModelConfig, fsdp: int, tensor: int, dtype: str) -> plan.Memory:
    """A device's share in the recipe, one packed row a part in each microbatch."""
    overrides = [f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}"]
    recipe = load(ROOT / RECIPE, [*overrides, f"update.rows_per_microbatch={fsdp}"], TrainConfig)
    mesh = plan.abstract_mesh(fsdp=fsdp, tensor=tensor)
    policy = Policy(config, compute_dtype="bfloat16", remat=True, mesh=mesh)
    work = plan.workload(recipe, policy, shapes(config, recipe))
    return plan.plan(policy, work, recipe.optimizer, dtype=dtype)


def mesh_name(fsdp: int, tensor: int) -> str:
    if fsdp * tensor == 1:
        return "one device"
    return f"fsdp {fsdp}" + (f" x tensor {tensor}" if tensor > 1 else "")


def smallest(rows: dict[tuple[int, int], plan.Memory], device: str) -> str:
    """The mesh of fewest devices that holds the run."""
    fitting = [mesh for mesh, found in rows.items() if found.fits(device)]
    return mesh_name(*min(fitting, key=lambda m: m[0] * m[1])) if fitting else "none of these"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def overview(found: dict[str, dict[tuple[int, int], plan.Memory]]) -> list[str]:
    """The smallest mesh of each model on each device."""
    lines = [line(["model", *plan.DEVICES]), line(["---"] * (1 + len(plan.DEVICES)))]
    for name, rows in found.items():
        lines.append(line([MODELS[name], *(smallest(rows, device) for device in plan.DEVICES)]))
    return lines


def details(rows: dict[tuple[int, int], plan.Memory]) -> list[str]:
    """A model's table: gigabytes a device on each mesh."""
    lines = [
        line(["mesh", *COLUMNS, "peak", "fits"]),
        line(["---", *["---:"] * (len(COLUMNS) + 1), "---"]),
    ]
    for mesh, found in rows.items():
        figures = [getattr(found, column) for column in (*COLUMNS, "peak")]
        fits = ", ".join(device for device in plan.DEVICES if found.fits(device)) or "-"
        lines.append(line([mesh_name(*mesh), *(f"{f / 1e9:.1f}" for f in figures), fits]))
    return lines


def main() -> None:
    configs = {
        name: from_hf(json.loads((ROOT / f"configs/models/{name}.json").read_text()), name)
        for name in MODELS
    }
    recipe = load(ROOT / RECIPE, [], TrainConfig)
    lengths = [shapes(config, recipe).slots for config in configs.values()]
    lines = [
        HEADER.format(
            rows=recipe.rollout.questions * recipe.rollout.samples,
            turns=recipe.env.max_turns,
            new=recipe.rollout.max_new_tokens,
            slots=f"{min(lengths):,} to {max(lengths):,}",
        )
    ]
    for dtype in DTYPES:
        found = {
            name: {mesh: memory(config, *mesh, dtype) for mesh in MESHES}
            for name, config in configs.items()
        }
        lines += [f"## Parameters and optimizer in {dtype}", ""]
        lines += ["The smallest of these meshes that holds a run:", "", *overview(found), ""]
        for name, rows in found.items():
            lines += [f"### {MODELS[name]}, {dtype}", "", *details(rows), ""]
    (ROOT / "docs/memory.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
