"""Times a whole training step of a recipe by stage, and what of it is padding or waiting.

    python scripts/bench_step.py configs/grpo_frozenlake_nano.yaml
    python scripts/bench_step.py RECIPE --device gpu --repeat 5 rollout.in_flight=64

What `vrrl train` calls for a step: `collect.make_groups` and `open_groups`, `playing.play`,
`learn.learn`, without evaluation, checkpoints, filtering and buffers of prefixes. The functions
under them are timed by replacing them while they are called, and each result is waited for, so
that a program's seconds are its own; work that overlaps in a run doesn't overlap here. There is no
peer: `bench_decode.py` and `bench_update.py` have one. Prints tables, then one line of JSON.

    view      parameters cast for sampling          decode   its steps on the device
    prefill   chunks appended, rows copied          host     encoding, parsing, the environment
    label     masks, advantages                     score    teacher-forced passes
    packing   rows and fields onto the device       update   gradients, AdamW

A step after the warm-up that still compiles something is counted, and left out of the seconds where
another one doesn't.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import Any

import benching
import jax
from benching import ZERO, Stages, percent

from vrrl_jax import collect, compiles, learn, packing, playing, selecting, start, tasks
from vrrl_jax.config import TrainConfig, load
from vrrl_jax.models import critic
from vrrl_jax.models.lora import join_params
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.processing.processor import load_processor
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine, episodes

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs/grpo_frozenlake_nano.yaml"
SMALL = ("rollout.questions=2", "rollout.samples=2", "rollout.max_new_tokens=8",
         "env.max_turns=2", "update.rows_per_microbatch=2", "data.count=8")  # fmt: skip
DEVICE = ("prefill", "decode", "score", "update", "view")  # stages in which the host waits
WATCHED = (
    (engine, "init", "prefill"),
    (engine, "append", "prefill"),
    (engine, "repeat", "prefill"),
    (engine, "place", "prefill"),
    (engine, "decode", "decode"),
    (engine, "decode_chunk", "decode"),
    (learn, "score", "score"),
    (learn, "labelled", "label"),
    (packing, "pack", "packing"),
    (packing, "microbatches", "packing"),
    (update, "run", "update"),
    (selecting, "choose", "select"),
)
FIGURES = ("decode_occupancy", "prefill_occupancy", "update_occupancy", "update_spared",
           "sampled_tokens")  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = read(arguments)
    benching.settle(options.device, options.threads)
    clock = benching.clock_of(options)
    config = load(options.recipe, options.overrides, TrainConfig)
    steps, compiled = run(config, options.warm + options.repeat)
    later = range(options.warm, len(steps))
    # Microbatches of fewer rows compile when a step first has one: such a step is told apart.
    kept = [steps[i] for i in later if not compiled[i]] or [steps[i] for i in later]
    out = {
        "benchmark": "step",
        "clock": clock,
        "recipe": str(options.recipe),
        "overrides": list(options.overrides),
        "episodes": config.rollout.questions * config.rollout.samples,
        "machine": benching.machine(options.threads),
        "compilations": compiled,
        "compilations_after_warm_up": sum(compiled[options.warm :]),
        "steps_timed": len(kept),
        "seconds": benching.report([s for s, _ in kept]),
        "steps": [
            {k: f[k] for k in FIGURES if k in f} | shares(s, clock) for s, f in kept
        ],
        "peak_memory": benching.peak_memory(),
    }  # fmt: skip
    benching.emit(out, options.json, tables(out, clock))
    return out


def read(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benching.add_options(parser, 3)
    parser.add_argument("recipe", nargs="?", default=str(RECIPE))
    parser.add_argument("overrides", nargs="*", help="of the recipe, key=value")
    parser.add_argument("--warm", type=int, default=2, help="steps before, which compile")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.overrides = [*SMALL, *options.overrides]
        options.warm, options.repeat = 2, 1
    elif options.dtype != "float32":
        options.overrides = [*options.overrides, f"policy.compute_dtype={options.dtype}"]
    return options


def run(config: TrainConfig, count: int) -> tuple[list[tuple[Stages, dict]], list[int]]:
    """Steps of the recipe: (seconds by stage and figures of each, how often each compiled).

    Raises:
      SystemExit: the recipe asks for something that isn't timed here.
    """
    if config.modes.roll_in or config.filter.max_tries > 1:
        raise SystemExit("modes.roll_in and filter.max_tries > 1 aren't timed here: set them off")
    counter = compiles.Counter()
    step = prepare(config, count)
    steps, compiled = [], []
    for i in range(count):
        before = counter.count
        steps.append(step(i))
        compiled.append(counter.count - before)
    return steps, compiled


def prepare(config: TrainConfig, count: int):
    """All that `train.main` sets up before its loop; then step number -> (stages, figures)."""
    mesh = start.open_mesh(config)
    policy, params, frozen = start.start(config.policy, mesh, config.seed)
    processor = load_processor(policy.directory)
    task = tasks.make(config, processor)
    score, examples = tasks.score_of(config, task), task.training()
    stages = playing.stages_of(config, task, processor)
    shapes = playing.plan_shapes(policy, processor, config, stages, task.probes(examples))
    key = jax.random.key(config.seed)
    watch = benching.Watch()
    game = playing.Game(
        policy, processor, config, playing.settings_of(config), shapes, stages, score, key,
        playing.in_flight_of(config.rollout, mesh),
    )  # fmt: skip
    updates = config.algorithm.epochs * config.algorithm.minibatches
    tx = make_optimizer(config.optimizer, count * updates, config.algorithm.critic_warmup)
    reference = None
    if config.algorithm.kl_coefficient:
        whole = join_params(critic.without_critic(params), critic.without_critic(frozen))
        reference = jax.tree.map(lambda a: a + 0, whole)
    state = [update.init_state(policy, params, tx)]
    memory = [selecting.empty_memory(config, shapes.slots, mesh)]
    programs = update.make_programs(
        functools.partial(update.policy_loss, policy, learn.objective(config)), tx, policy
    )
    shape = learn.update_shape(config, policy, shapes)
    run = learn.Run(policy, config, frozen, reference, programs, shapes, shape, key)
    targets = [*WATCHED, (episodes, "answered", "environment")]

    def one(number: int) -> tuple[Stages, dict[str, Any]]:
        watch.stages.clear()
        with watch.watching(targets):
            view = watch.wrap("view", engine.make_view)(
                policy, join_params(state[0].params, frozen)
            )
            played, figures = watch.wrap("host", play)(view, number)
            state[0], memory[0], learnt = watch.wrap("learn, rest", learn.learn)(
                run, state[0], memory[0], played, number
            )
        return dict(watch.stages), figures | learnt

    def play(view, number):
        rollout = config.rollout
        ids, _ = collect.next_questions(
            config.seed, examples, number * rollout.questions, rollout.questions
        )
        groups, _ = collect.make_groups(
            ids, examples, None, config.modes, config.roll_in, task.revision, key, number, 0
        )
        open_group = functools.partial(
            episodes.open_group, policy, game.stage(number).environment, processor, shapes
        )
        groups = [open_group(group) for group in groups]
        return playing.play(game, view, groups, number, 0, False)

    return one


def shares(stages: Stages, clock: str) -> dict[str, float]:
    """Shares of a step: of the whole in which the device waits for the host, and the like of its
    rollout alone."""
    pick = lambda names: sum(getattr(stages.get(n, ZERO), clock) for n in names)
    whole = pick(stages)
    rollout = pick(("prefill", "decode", "host", "environment"))
    return {
        "seconds": whole,
        "device_waits": 1 - pick(DEVICE) / whole,
        "device_waits_in_rollout": pick(("host", "environment")) / rollout,
    }


# --- output --------------------------------------------------------------------------------------


def tables(out: dict[str, Any], clock: str) -> list[str]:
    seconds = out["seconds"][clock]
    whole = seconds["total"]["median"]
    stages = [
        [name, benching.Spread(**s), percent(s["median"] / whole)] for name, s in seconds.items()
    ]
    steps = out["steps"]
    names = [name for name in steps[0] if name != "seconds"]
    middle = [[name, benching.spread(step[name] for step in steps)] for name in names]
    middle.append(["compilations of each step, warm-up first", out["compilations"]])
    return [
        benching.table(("stage", f"s of {clock} time", "share"), stages),
        benching.table(("figure", "of a step"), middle),
    ]


if __name__ == "__main__":
    main()
