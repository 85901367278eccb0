"""Accelerators that aren't there: the programs of a run, compiled for a slice of TPU chips on any
machine, from shapes alone.

The compiler of libtpu (the extra `topology`) needs no chip. What it gets is what a run would give
it: the same jitted functions, abstract arrays laid out as the run lays out its own, the devices of
a named slice. No weight exists at any time. What comes out is the memory that the compiler plans,
the work and the communication in its text; nothing is run, and no time is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax import layout, learn, plan, playing, start
from vrrl_jax.config import MeshConfig, TrainConfig
from vrrl_jax.models import critic
from vrrl_jax.models.lora import join_params, split_params
from vrrl_jax.models.policy import Policy
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.parallel.mesh import AXES, ROWS
from vrrl_jax.parallel.rules import check_heads, param_shardings
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.types import Pictures, Rows, Shared

NAMING = (
    "a name is a chip and its grid, such as v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4 or "
    "v6e:2x4"
)


class Program(NamedTuple):
    """A jitted function as a step calls it.

    Attributes:
      name: for people.
      function: jitted.
      args: abstract arrays, and what is static.
      calls: a step.
      beside: what of `plan.Memory` a device holds meanwhile that is no argument; "trained" and
        "frozen" are the two parts of its parameters.
      rounds: of a loop whose length only a run knows; 0 where there is none.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    calls: int
    beside: tuple[str, ...]
    rounds: int = 0


class Result(NamedTuple):
    """A program as the compiler left it.

    Attributes:
      program: what was compiled.
      compiled: of jax; None where it doesn't fit.
      refused: what the compiler said of memory then, else "".
    """

    program: Program
    compiled: Any
    refused: str = ""


def compile_program(program: Program) -> Result:
    """Compiles for the devices that the arguments lie on."""
    lowered = program.function.lower(*program.args)
    try:
        with uncached():
            return Result(program, lowered.compile())
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        used = re.search(r"Used [\d.]+\w* of [\d.]+\w* \w+", str(e))
        return Result(program, None, used[0].lower() if used else str(e).splitlines()[0])


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Without jax's persistent cache: programs for absent devices are written, but never read."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # what was decided at an earlier program
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


Compile = Callable[[Program], Result]


# --- the chips -----------------------------------------------------------------------------------


def chip_of(topology: str) -> str:
    """The name in `roofline.CHIPS` of a slice's chips: what stands before the colon."""
    return topology.partition(":")[0]


def devices_of(topology: str) -> list[Any]:
    """The devices of a slice, such as "v5e:4x4".

    Raises:
      ValueError: libtpu isn't installed, or it knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "--topology asks the TPU compiler, libtpu, which isn't installed: "
            'pip install "vrrl-jax[topology]"'
        )
    quieten()
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as e:  # jaxlib's own error for a strange name, others for a strange library
        raise ValueError(f"topology {topology!r}: {str(e).splitlines()[0]}; {NAMING}") from e


def quieten() -> None:
    """What libtpu would otherwise ask a metadata server for, and warn that it isn't there. Arrays
    of our own lie on the CPU: a chip of this machine, if it has one, is left alone."""
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Several processes may ask the compiler at a time: none of them holds a chip.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def mesh_of(sizes: MeshConfig, devices: list[Any], topology: str) -> Mesh:
    """The recipe's mesh over all devices of a slice.

    Raises:
      ValueError: it needs more of them, or leaves some.
    """
    wanted = dataclasses.asdict(sizes)
    known = int(np.prod([n for n in wanted.values() if n > 0]))
    if list(wanted.values()).count(-1) == 1 and len(devices) % known == 0:
        wanted = {name: len(devices) // known if n == -1 else n for name, n in wanted.items()}
    count = int(np.prod(list(wanted.values())))
    if count != len(devices):
        said = " x ".join(f"{name} {n}" for name, n in wanted.items())
        raise ValueError(
            f"{topology} has {len(devices)} chips, the mesh {said} takes {count}: choose sizes "
            f"whose product is {len(devices)}, such as mesh.fsdp={len(devices)}"
        )
    axes = (AxisType.Auto,) * 3
    return jax.make_mesh(tuple(wanted[a] for a in AXES), AXES, axis_types=axes, devices=devices)


# --- abstract arrays -----------------------------------------------------------------------------


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with places."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        shardings,
    )


def rows_of(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.int32, axis: int = 0) -> Any:
    """An array of rows, as `parallel.mesh.put_rows` places it."""
    spec = P(*(None,) * axis, ROWS)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def pictures_of(
    mesh: Mesh, rows: int, slots: int, patches: int, tokens: int, features: int
) -> Pictures:
    """Raw pictures, `slots` a row, whose units stand among `tokens` tokens."""
    spread = functools.partial(rows_of, mesh)
    return Pictures(
        spread((rows, slots, patches, features), jnp.uint8),
        spread((rows, slots, patches, 4)),
        spread((rows, slots, patches)),
        spread((rows, tokens)),
    )


def chunk_of(policy: Policy, shapes: episodes.Shapes, rows: int, tokens: int) -> engine.Chunk:
    """Tokens to append to every row, as `transcript.to_device` places them."""
    spread = functools.partial(rows_of, policy.mesh)
    shown = (shapes.pictures, shapes.patches, tokens, shapes.features)
    return engine.Chunk(
        spread((rows, tokens)),
        spread((rows,)),
        spread((3, rows, tokens), axis=1),
        spread((rows,)),
        pictures_of(policy.mesh, rows, *shown),
    )


def batch_of(policy: Policy, shape: layout.PackShape, share: bool = False) -> Rows:
    """Packed rows of a microbatch, as `packing.place_rows` places them.

    Args:
      share: whether sequences share their beginnings.
    """
    spread, size = functools.partial(rows_of, policy.mesh), (shape.rows, shape.tokens)
    shown = (shape.rows, shape.slots, shape.patches, shape.tokens, shape.features)
    shared = Shared(spread(size), spread(size)) if share else None
    return Rows(
        spread(size), spread((3, *size), axis=1), spread(size),
        pictures_of(policy.mesh, *shown), shared,
    )  # fmt: skip


def fields_of(config: TrainConfig, policy: Policy, shape: layout.PackShape) -> dict[str, Any]:
    """What stands beside the tokens of a microbatch; see `update.policy_loss`."""
    objective = learn.objective(config)
    names = ["loss_weights", "logprobs", "advantages"]
    if objective.kl_coefficient:
        names.append("ref_logprobs")
    if config.algorithm.name == "ppo":
        names += ["value_weights", "values", "returns", "trunk"]
    if objective.nll_coefficient:
        names.append("nll_weights")
    size = (shape.rows, shape.tokens)
    return {name: rows_of(policy.mesh, size, jnp.float32) for name in names}


# --- the programs of a step ----------------------------------------------------------------------

NAMES = (
    "view",
    "prompt",
    "repeat",
    "place",
    "follow-up",
    "decode",
    "reference",
    "score",
    "accumulate",
)
NAMES += ("apply",)
ROLLOUT = ("prompt", "repeat", "place", "follow-up", "decode")
STATE = ("parameters", "optimizer", "reference")  # what is there while episodes are played


def programs(
    config: TrainConfig,
    policy: Policy,
    shapes: episodes.Shapes,
    wanted: tuple[str, ...] = NAMES,
    compile: Compile = compile_program,
) -> Iterator[Program]:
    """What a step of full episodes calls, in its order.

    Every episode uses all turns and tokens; no group is drawn again. Programs of the rollout take
    the sampler's copy as the compiler lays it out, so that one is compiled to know.

    Args:
      config: with the policy's mesh.
      policy: on a mesh of devices that needn't be there.
      shapes: of its episodes.
      wanted: of `NAMES`.
      compile: what others depend on.

    Raises:
      ValueError: heads that don't divide over the mesh, or a program that others depend on and
        that finds no room.
    """
    text = policy.config.text
    check_heads(policy.mesh, text.heads)
    lay = lambda tree: placed(tree, param_shardings(tree, policy.mesh, head_dim=text.head_dim))
    whole = lay(
        plan.master_params(
            dataclasses.replace(policy, mesh=None),
            config.policy.dtype,
            separate_critic=config.policy.critic == "separate",
        )
    )
    trained, frozen = split_params(whole, lambda name: start.trains(config.policy, name))
    args = (policy, join_params(trained, frozen))
    # The last one is dropped when this one takes its place.
    made = Program("view", engine.make_view, args, 1, ("optimizer", "reference", "view"))
    if "view" in wanted:
        yield made
    if set(wanted) & set(ROLLOUT):
        rollout = rollout_programs(config, policy, shapes, results(made, compile), compile)
        yield from (program for program in rollout if program.name in wanted)
    updates = update_programs(config, policy, shapes, trained, frozen, lay)
    yield from (program for program in updates if program.name in wanted)


def rollout_programs(
    config: TrainConfig, policy: Policy, shapes: episodes.Shapes, view: Any, compile: Compile
) -> Iterator[Program]:
    """Prompts read once a question, replies drawn for every episode; see `episodes.rollout` and,
    with `rollout.in_flight`, `continuous.play`."""
    rollout, turns = config.rollout, config.env.max_turns
    in_flight = playing.in_flight_of(rollout, policy.mesh)
    total = rollout.questions * rollout.samples

    def state(rows: int) -> engine.State:
        args = (policy, rows, shapes.slots)
        return results(Program(f"init of {rows}", engine.init, args, 1, ()), compile)

    chunk = functools.partial(chunk_of, policy, shapes)
    # What is neither placed nor committed in a run: the compiler chooses where it lies.
    integers = lambda rows: jax.ShapeDtypeStruct((rows,), jnp.int32)
    flags = lambda rows: jax.ShapeDtypeStruct((rows,), bool)
    keys = lambda rows: jax.ShapeDtypeStruct((rows,), jax.random.key(0).dtype)
    sampling = playing.settings_of(config).sampling
    stops, new = np.array(policy.stop_ids or (-1,), np.int32), rollout.max_new_tokens
    if in_flight is not None:
        few, rows, drawn = in_flight.appended, in_flight.rows, in_flight.chunk
        opened, held = state(few), state(rows)
        calls = lambda count: -(-count // few)
        args = (policy, view, opened, chunk(few, shapes.prompt))
        yield Program("prompt", engine.append, args, calls(rollout.questions), STATE)
        args = (policy, held, opened, integers(few), integers(few))
        yield Program("place", engine.place, args, calls(total), (*STATE, "view"))
        if turns > 1:
            args = (policy, view, held, chunk(few, shapes.follow), integers(few))
            yield Program("follow-up", engine.append, args, (turns - 1) * calls(total), STATE)
        replies = engine.Replies(flags(rows), integers(rows), keys(rows))
        args = (policy, view, held, replies, sampling, stops, new, drawn)
        count = -(-total * turns * new // (rows * drawn))
        yield Program("decode", engine.decode_chunk, args, count, STATE, rounds=drawn - 1)
        return
    leaders = rollout.questions * episodes.prefill_copies(
        policy, rollout.questions, rollout.samples
    )
    first = state(leaders)
    args = (policy, view, first, chunk(leaders, shapes.prompt))
    yield Program("prompt", engine.append, args, 1, STATE)
    if total > leaders:
        args = (policy, first, total // leaders)
        yield Program("repeat", engine.repeat, args, 1, (*STATE, "view"))
    held = state(total) if total > leaders else first
    if turns > 1:
        args = (policy, view, held, chunk(total, shapes.follow))
        yield Program("follow-up", engine.append, args, turns - 1, STATE)
    args = (policy, view, held, flags(total), keys(total), sampling, stops, new, new)
    yield Program("decode", engine.decode, args, turns, STATE, rounds=new - 1)


def update_programs(
    config: TrainConfig,
    policy: Policy,
    shapes: episodes.Shapes,
    trained: Any,
    frozen: Any,
    lay: Callable[[Any], Any],
) -> Iterator[Program]:
    """Reference and old log-probabilities where they are asked for, gradients, the optimizer.

    Args:
      lay: shapes to shapes in the layout of parameters.
    """
    algorithm, shape = config.algorithm, learn.update_shape(config, policy, shapes)
    share = config.update.share_prompts and not config.prefix_mask.hides
    batch = batch_of(policy, shape, share)
    count = config.rollout.questions * config.rollout.samples
    scoring = jax.jit(update.score, static_argnums=(0, 3))
    temperature = config.rollout.temperature
    once = microbatches(count, shape, shapes.slots)
    if algorithm.kl_coefficient:
        reference = critic.without_critic(join_params(trained, frozen))
        args, beside = (policy, reference, batch, temperature), ("trained", "optimizer", "view")
        yield Program("reference", scoring, args, once, beside)
    if policy.value_head or algorithm.importance != "behaviour":
        args = (policy, join_params(trained, frozen), batch, temperature)
        yield Program("score", scoring, args, once, ("optimizer", "reference", "view"))

    updates = algorithm.epochs * algorithm.minibatches
    tx = make_optimizer(config.optimizer, config.steps * updates, algorithm.critic_warmup)
    loss = functools.partial(update.policy_loss, policy, learn.objective(config))
    made = update.make_programs(loss, tx, policy)
    batch = update.Microbatch(batch, fields_of(config, policy, shape))
    part = microbatches(-(-count // algorithm.minibatches), shape, shapes.slots)
    args, beside = (trained, frozen, trained, batch), ("optimizer", "reference", "view")
    yield Program("accumulate", made.accumulate, args, updates * part, beside)
    counter = jax.ShapeDtypeStruct((), jnp.int32)
    state = lay(update.TrainState(trained, jax.eval_shape(tx.init, trained), counter, counter))
    beside = ("frozen", "reference", "view")
    yield Program("apply", made.apply, (state, trained), updates, beside)


def results(program: Program, compile: Compile) -> Any:
    """What a program returns, where the compiler places it.

    Raises:
      ValueError: it finds no room.
    """
    result = compile(program)
    if result.compiled is None:
        raise ValueError(f"{program.name} doesn't fit a chip by itself: {result.refused}")
    shapes = program.function.lower(*program.args).out_info
    return placed(shapes, result.compiled.output_shardings)


def microbatches(episodes: int, shape: layout.PackShape, slots: int) -> int:
    """How many hold so many episodes of full length."""
    a_row = max(1, shape.tokens // slots)
    return -(-episodes // (a_row * shape.rows))
