"""Reinforcement learning: roll out, label, update, log, save.

`main` reads top to bottom and is the only place that knows every room.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax import (
    collect,
    compiles,
    evaluate,
    learn,
    playing,
    report,
    selecting,
    start,
    tasks,
    trajectories,
)
from vrrl_jax import log as logs
from vrrl_jax.checkpoint import adapters, hf
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.config import TrainConfig
from vrrl_jax.data import loading
from vrrl_jax.models import critic
from vrrl_jax.models.lora import has_lora, join_params, strip_lora
from vrrl_jax.models.policy import Params
from vrrl_jax.optimizer import make_optimizer, schedule
from vrrl_jax.parallel import distributed
from vrrl_jax.parallel.mesh import fetch
from vrrl_jax.processing.processor import load_processor
from vrrl_jax.progress import bytes_bar
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.types import Episode


def main(config: TrainConfig, *, resume: bool = False) -> pathlib.Path:
    """Trains a policy; returns the run's directory.

    Raises:
      ConfigError, FileNotFoundError, ValueError: before training, for anything that can't run.
      FloatingPointError: too many updates in a row had no finite gradient; the last good state
        is saved.
      Preempted: the process, or another one of the run, was asked to stop; a checkpoint is saved.
      Disagreement: the processes of the run don't do the same.
    """
    started = time.perf_counter()
    compilations = compiles.Counter()

    # --- what plays: policy, examples, environment ---
    mesh = start.open_mesh(config)
    algorithm, rollout = config.algorithm, config.rollout
    for path in config.eval.references:
        hf.resolve(path)
    policy, params, frozen = start.start(config.policy, mesh, config.seed)
    processor = load_processor(policy.directory)
    task = tasks.make(config, processor)
    score = tasks.score_of(config, task)
    examples = task.training()
    tested = task.evaluation(examples) if config.eval.enabled else tasks.NONE
    stages = playing.stages_of(config, task, processor)
    probes = task.probes(examples)
    shapes = playing.plan_shapes(policy, processor, config, stages, probes)
    shape = learn.update_shape(config, policy, shapes)
    key = jax.random.key(config.seed)
    game = playing.Game(
        policy, processor, config, playing.settings_of(config), shapes, stages, score, key,
        playing.in_flight_of(rollout, mesh),
    )  # fmt: skip

    # --- what learns: state, reference, buffers, programs ---
    # A schedule counts optimizer steps, of which a rollout may give several.
    updates = config.steps * algorithm.epochs * algorithm.minibatches
    tx = make_optimizer(config.optimizer, updates, algorithm.critic_warmup)
    reference = None
    if algorithm.kl_coefficient:
        reference = reference_params(critic.without_critic(params), critic.without_critic(frozen))
    state = update.init_state(policy, params, tx)
    del params  # donated with the state
    whole = lambda: join_params(state.params, frozen)
    buffer = None
    if config.modes.roll_in > 0:
        # A reply may hold a forced opening and a forced end beside what was sampled.
        buffer = collect.empty_prefixes(config.roll_in, rollout.max_new_tokens + 10, mesh)
    memory = selecting.empty_memory(config, shapes.slots, mesh)
    programs = update.make_programs(
        functools.partial(update.policy_loss, policy, learn.objective(config)), tx, policy
    )

    def recall(row):
        environment = game.stage(int(row["step"])).environment
        return trajectories.rebuild(row, examples[int(row["question"])], environment, processor)

    run = learn.Run(policy, config, frozen, reference, programs, shapes, shape, key, recall)
    skipped: dict[int, str] = {}  # examples that can't be shown, and why
    most_skipped = loading.allowed_bad(len(examples))

    def next_question(cursor: int) -> tuple[int, int]:
        (question,), cursor = collect.next_questions(config.seed, examples, cursor, 1)
        return question, cursor

    waits = algorithm.critic_warmup  # the policy's schedule begins after it
    rate = schedule(config.optimizer, max(1, updates - waits))

    run_dir = logs.open_run(config, resume=resume)
    print(
        f"{len(examples)} training {task.noun}, {len(tested.examples)} evaluation {task.noun}; "
        f"run directory {run_dir}"
    )
    with (
        checkpoints.open_checkpoints(run_dir / "checkpoints", config.checkpoint.keep) as saved,
        logs.Writer(
            run_dir, config.steps, config.log, resume=resume, active=distributed.first()
        ) as log,
    ):
        measure = functools.partial(
            _measure, policy, task=task, examples=tested, score=score, processor=processor,
            config=config, log=log,
        )  # fmt: skip
        # Before anything is restored: a resumed run compares with the same base.
        base = measure(whole()) if config.eval.enabled else None
        if base is not None:
            evaluate.save(run_dir / "evaluation_base.json", evaluate.tables(base))
        first, cursor, generated = 0, 0, 0
        if resume and checkpoints.latest(saved) is not None:
            arrays, meta, first = checkpoints.restore(saved, resumable(state, buffer, memory))
            state, buffer, memory = (arrays.get(k) for k in ("state", "buffer", "memory"))
            cursor, generated = meta["cursor"], meta["generated"]
            skipped |= {int(question): why for question, why in meta["skipped"].items()}
            log.truncate(first)
        distributed.agree("start", step=first, cursor=cursor)

        # --- the loop ---
        for step in range(first, config.steps):
            began = time.perf_counter()
            before = compilations.count
            view = engine.make_view(policy, whole())
            keeps = config.log.episodes_every and step % config.log.episodes_every == 0

            def play(groups, attempt, view=view, step=step, keeps=keeps):
                return playing.play(game, view, groups, step, attempt, bool(keeps) and not attempt)

            environment = game.stage(step).environment
            open_group = functools.partial(
                episodes.open_group, policy, environment, processor, shapes
            )

            def draw_groups(cursor, attempt, buffer, step=step, open_group=open_group):
                ids, cursor = collect.next_questions(
                    config.seed, examples, cursor, rollout.questions
                )
                groups, buffer = collect.make_groups(
                    ids, examples, buffer, config.modes, config.roll_in, task.revision, key, step,
                    attempt,
                )  # fmt: skip
                groups, cursor = collect.open_groups(
                    groups, examples, open_group, next_question, cursor, skipped, most_skipped
                )
                return groups, cursor, buffer

            def absorb(buffer, played, step=step):
                if buffer is None:
                    return None, 0
                return collect.collect_prefixes(buffer, played, config.roll_in, step)

            collected = collect.collect(
                play,
                draw_groups,
                absorb,
                cursor=cursor,
                buffer=buffer,
                questions=rollout.questions,
                samples=rollout.samples,
                filtering=config.filter,
            )
            cursor, buffer = collected.cursor, collected.buffer
            generated += len(collected.generated)
            metrics = collected.metrics | summary(collected.generated, task.metrics)
            rolled = time.perf_counter()

            if collected.episodes:
                state, memory, trained = learn.learn(run, state, memory, collected.episodes, step)
                metrics |= trained
            save = functools.partial(
                checkpoints.save,
                saved,
                step + 1,
                resumable(state, buffer, memory),
                {"cursor": cursor, "generated": generated, "skipped": dict(skipped)},
            )
            guard(int(fetch(state.bad_steps)), config.guard.max_bad_steps, step, save)
            now = time.perf_counter()
            log.step(
                step + 1,
                metrics
                | {
                    "episodes_generated": generated,
                    "learning_rate": float(rate(max(0, int(fetch(state.step)) - 1 - waits))),
                    "update_seconds": now - rolled,
                    "step_seconds": now - began,
                    "compilations": compilations.count - before,
                    "count/examples_skipped": len(skipped),
                },
            )
            if keeps:
                shown = [e for e in collected.generated if e.images][:: rollout.samples]
                logs.save_episodes(run_dir, step + 1, shown[: config.log.episodes])
            last, stopped = step + 1 == config.steps, distributed.stopping()
            if (step + 1) % config.checkpoint.every == 0 or last or stopped:
                save()
            if stopped and not last:
                raise distributed.Preempted(f"stopped after step {step + 1} of {run_dir}")
            if evaluates(config, step + 1):
                scores = measure(whole())
                evaluate.save(
                    run_dir / f"evaluation_step{step + 1:06d}.json", evaluate.tables(scores)
                )
        final = measure(whole()) if config.eval.enabled else None

    # --- what is left behind ---
    with bytes_bar("written", stream=distributed.stream()) as progress:
        exported = hf.save_pretrained(run_dir / "hf", policy, whole(), progress=progress)
    if config.policy.lora.rank:
        print(f"adapters        {adapters.save_adapter(run_dir / 'adapter', policy, whole())}")
    if final is not None:
        name = f"success before ({config.policy.path}) and after, in percent of {task.noun}"
        compared = evaluate.comparison(base, final) | {"name": name}
        evaluate.save(run_dir / "evaluation_final.json", [compared, *evaluate.tables(final)])
        evaluate.show(compared)
        for path in config.eval.references:
            other, weights = hf.load_pretrained(path, compute_dtype=config.policy.compute_dtype)
            scores = evaluate.measure(
                other,
                weights,
                processor,
                task,
                tested,
                config.eval,
                rollout,
                config.env.max_turns,
                score,
            )
            name = f"for comparison: {path}, in percent of {task.noun}"
            evaluate.show(evaluate.brief(scores, name))
    print(f"trained policy  {exported}")
    if distributed.first():
        print(f"report          {report.write_report(run_dir)}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes, {generated} episodes generated")
    return run_dir


def reference_params(trained: Params, frozen: Params) -> Params:
    """The policy that a KL term holds on to: the one at the start. Under adapters that is the
    base itself, whose arrays are there anyway; else a copy, as the trained ones are donated."""
    if has_lora(trained):
        return strip_lora(join_params(trained, frozen))
    return join_params(jax.tree.map(jnp.copy, trained), frozen)


def resumable(state: update.TrainState, buffer: Any, memory: Any) -> dict[str, Any]:
    """The arrays of a checkpoint; keys are folded from the seed and need no saving."""
    arrays = {"state": state, "buffer": buffer, "memory": memory}
    return {name: value for name, value in arrays.items() if value is not None}


def evaluates(config: TrainConfig, done: int) -> bool:
    """Whether to evaluate after `done` steps; the ends of a run are evaluated anyway."""
    every = config.eval.every
    return config.eval.enabled and every > 0 and done % every == 0 and done < config.steps


# --- figures, guards ---------------------------------------------------------------------------


def summary(played: list[Episode], metrics: Sequence[str]) -> dict[str, float]:
    """Means over the episodes of a rollout, before any filter."""
    means = {name: float(np.mean([e.rewards[name] for e in played])) for name in metrics}
    reward = means.pop("total")
    groups: dict[int, set[float]] = {}
    for episode in played:
        groups.setdefault(episode.group, set()).add(episode.rewards["total"])
    return {
        # Groups that tell one reply from another: of what was sampled, what can be learnt from.
        "effective_queries": float(np.mean([len(totals) > 1 for totals in groups.values()])),
        "reward": reward,
        "reward_std": float(np.std([e.rewards["total"] for e in played])),
        "truncated": float(np.mean([e.truncated for e in played])),
        "episode_tokens": float(np.mean([e.tokens.size for e in played])),
        **means,
    }


def guard(bad: int, most: int, step: int, save: Callable[[], None]) -> None:
    """Ends a run whose gradients stay non-finite, with the last good state saved."""
    if bad <= most:
        return
    save()
    raise FloatingPointError(
        f"{bad} updates in a row had no finite gradient. The parameters are those before the "
        f"first of them, saved as checkpoint {step + 1}. Lower optimizer.learning_rate or "
        "optimizer.grad_clip and go on with --resume"
    )


def _measure(policy, params, *, task, examples, score, processor, config, log) -> evaluate.Scores:
    def progress(name, done, of):
        if done == of:
            log.note(f"evaluated {of} {task.noun}, {name}")

    return evaluate.measure(
        policy,
        params,
        processor,
        task,
        examples,
        config.eval,
        config.rollout,
        config.env.max_turns,
        score,
        progress=progress,
    )
