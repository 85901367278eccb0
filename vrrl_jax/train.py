"""Reinforcement learning: roll out, label, update, log, save.

`main` reads top to bottom and is the only place that knows every room.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax import collect, compiles, evaluate, learn, report, start, tasks
from vrrl_jax import log as logs
from vrrl_jax.checkpoint import adapters, hf
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.config import TrainConfig
from vrrl_jax.data import loading
from vrrl_jax.models.lora import has_lora, join_params, strip_lora
from vrrl_jax.models.policy import Params
from vrrl_jax.optimizer import make_optimizer, schedule
from vrrl_jax.processing.processor import load_processor
from vrrl_jax.progress import bytes_bar
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Episode


def main(config: TrainConfig, *, resume: bool = False) -> pathlib.Path:
    """Trains a policy; returns the run's directory.

    Raises:
      ConfigError, FileNotFoundError, ValueError: before training, for anything that can't run.
      FloatingPointError: too many updates in a row had no finite gradient; the last good state
        is saved.
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
    settings = episodes.Settings(
        samples=rollout.samples,
        max_turns=config.env.max_turns,
        max_new_tokens=rollout.max_new_tokens,
        sampling=Sampling(rollout.temperature, rollout.top_k, rollout.top_p),
        train_prefix=config.roll_in.train_prefix,
        train_end=rollout.train_end_token,
    )
    rolls_in = config.modes.roll_in > 0
    shapes = episodes.plan_shapes(
        policy, processor, task.environment, task.probes(examples), settings, roll_in=rolls_in
    )
    shape = learn.update_shape(config, policy, shapes)

    # --- what learns: state, reference, buffers, programs ---
    # A schedule counts optimizer steps, of which a rollout may give several.
    updates = config.steps * algorithm.epochs * algorithm.minibatches
    tx = make_optimizer(config.optimizer, updates)
    reference = reference_params(params, frozen) if algorithm.kl_coefficient else None
    state = update.init_state(policy, params, tx)
    del params  # donated with the state
    whole = lambda: join_params(state.params, frozen)
    buffer = None
    if rolls_in:
        # A reply may hold a forced opening and a forced end beside what was sampled.
        buffer = collect.empty_prefixes(config.roll_in, rollout.max_new_tokens + 10, mesh)
    programs = update.make_programs(
        functools.partial(update.policy_loss, policy, learn.objective(config)), tx, policy
    )
    open_group = functools.partial(episodes.open_group, policy, task.environment, processor, shapes)
    skipped: dict[int, str] = {}  # examples that can't be shown, and why
    most_skipped = loading.allowed_bad(len(examples))

    def next_question(cursor: int) -> tuple[int, int]:
        (question,), cursor = collect.next_questions(config.seed, examples, cursor, 1)
        return question, cursor

    rate = schedule(config.optimizer, updates)
    key = jax.random.key(config.seed)

    run_dir = logs.open_run(config, resume=resume)
    print(
        f"{len(examples)} training {task.noun}, {len(tested.examples)} evaluation {task.noun}; "
        f"run directory {run_dir}"
    )
    with (
        checkpoints.open_checkpoints(run_dir / "checkpoints", config.checkpoint.keep) as saved,
        logs.Writer(run_dir, config.steps, config.log, resume=resume) as log,
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
            arrays, meta, first = checkpoints.restore(saved, resumable(state, buffer))
            state, buffer = arrays["state"], arrays.get("buffer")
            cursor, generated = meta["cursor"], meta["generated"]
            log.truncate(first)

        # --- the loop ---
        for step in range(first, config.steps):
            began = time.perf_counter()
            before = compilations.count
            view = engine.make_view(policy, whole())
            keeps = config.log.episodes_every and step % config.log.episodes_every == 0

            def play(groups, attempt, view=view, step=step, keeps=keeps):
                chosen = dataclasses.replace(settings, keep_images=bool(keeps) and attempt == 0)
                return episodes.rollout(
                    policy,
                    view,
                    processor,
                    task.environment,
                    groups,
                    chosen,
                    shapes,
                    collect.key_for(key, collect.SAMPLE_KEY, attempt),
                    step,
                    score,
                )

            def draw_groups(cursor, attempt, buffer, step=step):
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
                mask_key = collect.key_for(key, collect.MASK_KEY, step)
                state, trained = learn.learn(
                    policy, config, state, frozen, reference, programs, collected.episodes, shapes,
                    shape, mask_key,
                )  # fmt: skip
                metrics |= trained
            guard(state, config, saved, step, buffer, cursor, generated)
            now = time.perf_counter()
            log.step(
                step + 1,
                metrics
                | {
                    "episodes_generated": generated,
                    "learning_rate": float(rate(max(0, int(state.step) - 1))),
                    "update_seconds": now - rolled,
                    "step_seconds": now - began,
                    "compilations": compilations.count - before,
                    "count/examples_skipped": len(skipped),
                },
            )
            if keeps:
                shown = [e for e in collected.generated if e.images][:: rollout.samples]
                logs.save_episodes(run_dir, step + 1, shown[: config.log.episodes])
            if (step + 1) % config.checkpoint.every == 0 or step + 1 == config.steps:
                meta = {"cursor": cursor, "generated": generated}
                checkpoints.save(saved, step + 1, resumable(state, buffer), meta)
            if evaluates(config, step + 1):
                scores = measure(whole())
                evaluate.save(
                    run_dir / f"evaluation_step{step + 1:06d}.json", evaluate.tables(scores)
                )
        final = measure(whole()) if config.eval.enabled else None

    # --- what is left behind ---
    with bytes_bar("written") as progress:
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
    print(f"report          {report.write_report(run_dir)}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes, {generated} episodes generated")
    return run_dir


def reference_params(trained: Params, frozen: Params) -> Params:
    """The policy that a KL term holds on to: the one at the start. Under adapters that is the
    base itself, whose arrays are there anyway; else a copy, as the trained ones are donated."""
    if has_lora(trained):
        return strip_lora(join_params(trained, frozen))
    return join_params(jax.tree.map(jnp.copy, trained), frozen)


def resumable(state: update.TrainState, buffer: Any) -> dict[str, Any]:
    """The arrays of a checkpoint; keys are folded from the seed and need no saving."""
    return {"state": state} if buffer is None else {"state": state, "buffer": buffer}


def evaluates(config: TrainConfig, done: int) -> bool:
    """Whether to evaluate after `done` steps; the ends of a run are evaluated anyway."""
    every = config.eval.every
    return config.eval.enabled and every > 0 and done % every == 0 and done < config.steps


# --- figures, guards ---------------------------------------------------------------------------


def summary(played: list[Episode], metrics: Sequence[str]) -> dict[str, float]:
    """Means over the episodes of a rollout, before any filter."""
    means = {name: float(np.mean([e.rewards[name] for e in played])) for name in metrics}
    reward = means.pop("total")
    return {
        "reward": reward,
        "reward_std": float(np.std([e.rewards["total"] for e in played])),
        "truncated": float(np.mean([e.truncated for e in played])),
        "episode_tokens": float(np.mean([e.tokens.size for e in played])),
        **means,
    }


def guard(state, config, saved, step, buffer, cursor, generated) -> None:
    """Ends a run whose gradients stay non-finite, with the last good state saved."""
    bad = int(state.bad_steps)
    if bad <= config.guard.max_bad_steps:
        return
    meta = {"cursor": cursor, "generated": generated}
    checkpoints.save(saved, step + 1, resumable(state, buffer), meta)
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
