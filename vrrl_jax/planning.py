"""What `vrrl plan` says of a recipe before anything runs: memory a device, whether it fits, and
the floor of a step. No weights are read and no device is needed."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import NamedTuple

from vrrl_jax import compiled, layout, plan, playing, roofline, tasks, topology
from vrrl_jax.checkpoint import hf
from vrrl_jax.config import MeshConfig, TrainConfig
from vrrl_jax.models.config import from_hf
from vrrl_jax.models.policy import Policy
from vrrl_jax.processing.processor import load_processor
from vrrl_jax.rollout import episodes
from vrrl_jax.roofline import CHIPS, Work
from vrrl_jax.strict_yaml import ConfigError

MOST_PARTS = 1024  # of fsdp, where the smallest that fits is looked for
KINDS = ("parameters", "optimizer", "reference", "view", "cache", "rollout", "gradients", "update")


class Phase(NamedTuple):
    """A part of a step.

    Attributes:
      name: for people.
      work: of `chips` chips together.
      chips: that share it.
    """

    name: str
    work: Work
    chips: int


def main(
    config: TrainConfig,
    devices: list[str] | None = None,
    *,
    model: str | None = None,
    slots: int | None = None,
    patches: int | None = None,
) -> str:
    """The whole answer, as text.

    Args:
      config: the recipe.
      devices: names of `roofline.CHIPS`; None for all.
      model: a config.json in place of that in `policy.path`; goes with slots and patches.
      slots, patches: of an episode's cache and of a picture. None asks the task and the processor.

    Raises:
      FileNotFoundError: no policy, processor or data, and nothing given in their place.
      ValueError: unknown devices, adapters, shapes that can't be, or a mesh that doesn't divide the
        query heads.
    """
    devices = list(dict.fromkeys(devices or CHIPS))
    if strange := [name for name in devices if name not in CHIPS]:
        raise ValueError(f"no device {', '.join(strange)}: there are {', '.join(CHIPS)}")
    policy, shapes = asked(config, model, slots, patches)
    sizes = {name: max(1, n) for name, n in dataclasses.asdict(config.mesh).items()}
    left = [name for name, n in dataclasses.asdict(config.mesh).items() if n < 1]
    config = dataclasses.replace(config, mesh=MeshConfig(**sizes))
    memory = memory_of(config, policy, shapes)
    least = smallest(config, policy, shapes, [name for name in devices if not memory.fits(name)])
    steps = phases(config, policy, shapes)
    lines = [
        *heading(config, policy, shapes),
        *(f"          mesh.{name} is -1, what is left: counted as 1" for name in left),
        "",
        *table(memory),
        "",
        *verdicts(memory, least, steps, devices),
        "",
        "Where it doesn't fit: the smallest power of two as mesh.fsdp, with at least as many rows",
        "a microbatch. Floors are of a step on the mesh above, in all and by phase, whether it",
        "fits or not. They are computed, not measured: matrix products and memory traffic at the",
        "vendors' published figures, for episodes that use all their turns and tokens, show a full",
        "picture in each turn and are all trained on; without communication, evaluation, repeated",
        "tries and what is recomputed.",
    ]
    return "\n".join(lines)


def compiled_for(
    config: TrainConfig,
    name: str,
    *,
    model: str | None = None,
    slots: int | None = None,
    patches: int | None = None,
    only: list[str] | None = None,
) -> str:
    """The recipe's programs, compiled for a slice of TPU chips; the whole answer, as text.

    Args:
      name: of the slice, such as "v5e:4x4".
      model, slots, patches: as in `main`.
      only: of `topology.NAMES`; None for all.

    Raises:
      FileNotFoundError: as `main`.
      ValueError: as `main`; no libtpu, a slice that it doesn't know, or a mesh that isn't the
        slice's size.
    """
    if strange := sorted(set(only or ()) - set(topology.NAMES)):
        raise ValueError(f"no program {', '.join(strange)}: there are {', '.join(topology.NAMES)}")
    if (chip := topology.chip_of(name)) not in CHIPS:
        known = [c for c in CHIPS if c.startswith("v")]
        raise ValueError(f"topology {name!r}: chips are {', '.join(known)}; {topology.NAMING}")
    devices = topology.devices_of(name)
    mesh = topology.mesh_of(config.mesh, devices, name)
    config = dataclasses.replace(config, mesh=MeshConfig(**mesh.shape))
    policy, shapes = asked(config, model, slots, patches)
    policy = dataclasses.replace(policy, mesh=mesh)
    memory = memory_of(config, policy, shapes)
    wanted = tuple(only or topology.NAMES)
    make = functools.partial(topology.programs, config, policy, shapes, wanted)
    found = compiled.measure(make, memory)
    lines = compiled.report(found, name, only is None, suggested(config, policy, shapes, chip))
    return "\n".join([*heading(config, policy, shapes), "", *lines, "", *EXPLAINED])


EXPLAINED = """\
held: what of the run lies there beside the arguments (state, reference, sampling copy). reused:
outputs that take the place of arguments. A call's TFLOP are its matrix products, loops as often as
they run; GB moved are those of fused operations to and from memory; GB received is the least that
its collectives bring from other chips, over all links at once. Of a branch the lighter way counts,
and all replies have all their tokens.""".splitlines()


def suggested(config: TrainConfig, policy: Policy, shapes: episodes.Shapes, chip: str) -> str:
    """A mesh that holds the recipe on paper: of as many chips if there is one, else of more."""
    mesh, heads = config.mesh, policy.config.text.heads
    count = mesh.data * mesh.fsdp * mesh.tensor
    while count <= MOST_PARTS:
        for tensor in (t for t in (1, 2, 4, 8, 16) if heads % t == 0 and count % t == 0):
            sizes = MeshConfig(data=1, fsdp=1, tensor=tensor)
            try:
                tried = spread(dataclasses.replace(config, mesh=sizes), count // tensor)
                memory = memory_of(tried, policy, shapes)
            except ConfigError:
                continue
            if memory.fits(chip) and tried.mesh != mesh:
                rows = tried.update.rows_per_microbatch
                return (
                    f"on paper this holds it: {count} chips of {chip}, mesh.data=1 "
                    f"mesh.fsdp={tried.mesh.fsdp} mesh.tensor={tensor} "
                    f"update.rows_per_microbatch={rows}"
                )
        count *= 2
    return f"on paper no mesh of up to {MOST_PARTS} chips of {chip} holds it"


# --- the recipe's policy and shapes --------------------------------------------------------------


def asked(
    config: TrainConfig, model: str | None, slots: int | None, patches: int | None
) -> tuple[Policy, episodes.Shapes]:
    """The policy and the shapes that a recipe, or what is given in its place, stands for.

    Raises:
      FileNotFoundError, ValueError: as `main`.
    """
    if config.policy.lora.rank:
        raise ValueError(
            "adapters aren't counted: policy.lora.rank=0 gives the plan of training all "
            "parameters, and adapters need less"
        )
    policy = architecture(config, model)
    if slots is not None and patches is not None:
        return policy, given_shapes(config, policy, slots, patches)
    if slots is not None or patches is not None or model is not None:
        raise ValueError("--slots and --patches go together, and with --model they are needed")
    return policy, planned_shapes(config, policy)


def architecture(config: TrainConfig, model: str | None = None) -> Policy:
    """The static part of a recipe's policy; in bfloat16 where the recipe leaves the dtype open."""
    wanted = config.policy
    options = {
        "compute_dtype": wanted.compute_dtype or "bfloat16",
        "value_head": wanted.value_head,
        "remat": wanted.remat,
        "remat_keeps": wanted.remat_keeps,
        "attention": wanted.attention,
        "gather_view": wanted.gather_view,
    }
    if model is not None:
        raw = json.loads(pathlib.Path(model).read_text(encoding="utf-8"))
        return Policy(from_hf(raw, model), **options)
    try:
        return hf.load_policy(wanted.path, **options)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"{e}; or plan without it: --model config.json --slots N --patches P"
        ) from e


def planned_shapes(config: TrainConfig, policy: Policy) -> episodes.Shapes:
    """The shapes that a run plans, from the task's largest examples."""
    try:
        processor = load_processor(policy.directory)
        task = tasks.make(config, processor)
        probes = task.probes(task.training())
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{e}; or give the shapes: --slots N --patches P") from e
    stages = playing.stages_of(config, task, processor)
    return playing.plan_shapes(policy, processor, config, stages, probes)


def given_shapes(config: TrainConfig, policy: Policy, slots: int, patches: int) -> episodes.Shapes:
    """Shapes of S slots and pictures of P patches, one a turn; every turn as long as the others.

    Raises:
      ValueError: the recipe's replies and the pictures leave no slot for a prompt.
    """
    turns, new = config.env.max_turns, config.rollout.max_new_tokens
    shown = patches // policy.config.vision.merge**2
    turn = (slots - turns * (new + 1) - (turns - 1) * 10) // turns
    if patches < 1 or turn <= shown:
        raise ValueError(
            f"{slots} slots leave {max(0, turn)} tokens for the prompt of each of {turns} turns "
            f"beside replies of {new}; a picture of {patches} patches takes {shown} of them"
        )
    window, vision = policy.config.layout.block, policy.config.vision
    return episodes.Shapes(
        prompt=layout.round_up(turn, 8),
        follow=layout.round_up(turn + 10 + (new if config.modes.roll_in else 0), 8),
        patches=layout.round_up(patches, window),
        slots=layout.round_up(slots, 32),
        features=vision.channels * vision.patch**2,  # raw, as the processor hands them over
    )


# --- memory --------------------------------------------------------------------------------------


def memory_of(config: TrainConfig, policy: Policy, shapes: episodes.Shapes) -> plan.Memory:
    """A device's share on the recipe's mesh."""
    mesh = plan.abstract_mesh(**dataclasses.asdict(config.mesh))
    policy = dataclasses.replace(policy, mesh=mesh)
    return plan.plan(
        policy,
        plan.workload(config, policy, shapes),
        config.optimizer,
        dtype=config.policy.dtype,
        reference=config.algorithm.kl_coefficient > 0,
        freeze_vision=config.policy.freeze_vision,
        separate_critic=config.policy.critic == "separate",
    )


def spread(config: TrainConfig, fsdp: int) -> TrainConfig:
    """The recipe over so many parts of fsdp, a row a part in a microbatch at least.

    Raises:
      ConfigError: its episodes or its buffer don't divide.
    """
    mesh = dataclasses.replace(config.mesh, fsdp=fsdp)
    rows = layout.round_up(config.update.rows_per_microbatch, mesh.data * fsdp)
    shape = dataclasses.replace(config.update, rows_per_microbatch=rows)
    return dataclasses.replace(config, mesh=mesh, update=shape)


def smallest(
    config: TrainConfig, policy: Policy, shapes: episodes.Shapes, devices: list[str]
) -> dict[str, int | None]:
    """Device -> the smallest power of two as fsdp on which the recipe fits; None for none."""
    found: dict[str, int | None] = dict.fromkeys(devices)
    fsdp = 1
    while fsdp <= MOST_PARTS and None in found.values():
        try:
            memory = memory_of(spread(config, fsdp), policy, shapes)
        except ConfigError:
            break
        for name in devices:
            if found[name] is None and memory.fits(name):
                found[name] = fsdp
        fsdp *= 2
    return found


# --- time ----------------------------------------------------------------------------------------


def phases(config: TrainConfig, policy: Policy, shapes: episodes.Shapes) -> list[Phase]:
    """What a step of full episodes can't do without, a part of the mesh's rows at a time.

    Every part of data x fsdp reads all weights for its share of the rows, `tensor` chips share a
    part's work, and an optimizer step is split over fsdp and tensor.
    """
    model, mesh, wanted = policy.config, config.mesh, config.policy
    size, algorithm = policy.dtype.itemsize, config.algorithm
    share = lambda count: -(-count // (mesh.data * mesh.fsdp))
    rows, turns, new = (
        share(config.rollout.questions * config.rollout.samples),
        config.env.max_turns,
        config.rollout.max_new_tokens,
    )
    questions = share(config.rollout.questions)
    shown = lambda count: (count * shapes.pictures, shapes.patches, size)
    a_turn = (shapes.slots - shapes.prompt - new) // max(1, turns - 1)
    asked = roofline.prefill(model, questions, shapes.prompt, *shown(questions))
    drawn = Work(0, 0)
    for turn in range(turns):
        start = shapes.prompt + turn * a_turn
        # The context grows by one a token, and the work with it: the middle stands for all.
        drawn += roofline.decode(model, rows, start + new // 2, size).times(new)
        if turn + 1 < turns:
            more = a_turn - new
            held = start + new
            asked += roofline.prefill(model, rows, more, *shown(rows), context=held)
    pictures = rows * turns * shapes.pictures
    episode = (model, rows, shapes.slots)
    loss_tokens = rows * turns * new
    options = {"freeze_vision": wanted.freeze_vision, "remat": policy.remat, "itemsize": size}
    learned = roofline.gradients(*episode, loss_tokens, pictures, shapes.patches, **options)
    if wanted.critic == "separate":
        learned += roofline.gradients(*episode, 0, pictures, shapes.patches, **options)
    step = roofline.optimizer_step(
        model,
        freeze_vision=wanted.freeze_vision,
        master=2 if wanted.dtype == "bfloat16" else 4,
        moments=1 if config.optimizer.name == "muon" else 2,
    )
    found = [Phase("prompts", asked, mesh.tensor), Phase("replies", drawn, mesh.tensor)]
    if algorithm.kl_coefficient:
        scored = roofline.forward(*episode, loss_tokens, size)
        if not wanted.freeze_vision:
            scored += roofline.vision(model, pictures, shapes.patches, size)
        found.append(Phase("reference", scored, mesh.tensor))
    found.append(Phase("gradients", learned.times(algorithm.epochs), mesh.tensor))
    updates = algorithm.epochs * algorithm.minibatches
    return [*found, Phase("optimizer", step.times(updates), mesh.fsdp * mesh.tensor)]


def seconds(phase: Phase, device: str) -> float:
    return roofline.lower_bound(phase.work.flops, phase.work.bytes, CHIPS[device], phase.chips)


# --- text ----------------------------------------------------------------------------------------


def heading(config: TrainConfig, policy: Policy, shapes: episodes.Shapes) -> list[str]:
    mesh, work = config.mesh, plan.workload(config, policy, shapes)
    count = mesh.data * mesh.fsdp * mesh.tensor
    return [
        f"policy    {roofline.all_params(policy.config):,} parameters in {config.policy.dtype}, "
        f"computing in {policy.compute_dtype}",
        f"rollout   {work.rows:,} episodes of {work.slots:,} slots, chunks of {work.chunk:,} "
        f"tokens, pictures of {work.patches:,} patches",
        f"update    microbatches of {work.batch_rows} rows of {work.batch_tokens:,} tokens",
        f"mesh      data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}: {count} "
        f"device{'s' if count > 1 else ''}",
    ]


def table(memory: plan.Memory) -> list[str]:
    """Gigabytes a device by kind."""
    rows = [(kind, getattr(memory, kind)) for kind in KINDS] + [("peak", memory.peak)]
    said = [f"{kind:<10}{size / 1e9:>12,.3f}" for kind, size in rows]
    return [f"{'GB a device':<10}", *said]


def verdicts(
    memory: plan.Memory,
    least: dict[str, int | None],
    steps: list[Phase],
    devices: list[str],
) -> list[str]:
    """A line a device: whether it fits, the smallest fsdp that does, and floors by phase."""
    names = "".join(f"{phase.name:>12}" for phase in steps)
    lines = [f"{'device':<8}{'usable GB':>10}  {'fits':<20}{'floor, s':>12}{names}"]
    for name in devices:
        fits = "yes"
        if not memory.fits(name):
            fits = f"no; fsdp={least[name]} does" if least[name] else "no, at no fsdp"
        times = [seconds(phase, name) for phase in steps]
        cells = "".join(f"{t:>12.3g}" for t in times)
        usable = plan.USABLE * CHIPS[name].memory / 1e9
        lines.append(f"{name:<8}{usable:>10.1f}  {fits:<20}{sum(times):>12.3g}{cells}")
    return lines
