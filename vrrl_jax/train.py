"""Reinforcement learning: roll out, label, update, log, save.

`main` reads top to bottom and is the only place that knows every room.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrrl_jax import collect, compiles, evaluate, label, layout, report
from vrrl_jax import log as logs
from vrrl_jax.checkpoint import hf
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.config import MeshConfig, TrainConfig
from vrrl_jax.data import frozenlake
from vrrl_jax.data.frozenlake import Map
from vrrl_jax.envs.frozenlake import THINK
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.optimizer import make_optimizer, schedule
from vrrl_jax.parallel.mesh import make_mesh
from vrrl_jax.parallel.rules import left_whole
from vrrl_jax.processing.processor import load_processor
from vrrl_jax.rl import losses, update
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

    # --- what plays: maps, policy, environment ---
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    dataclasses.replace(config, mesh=MeshConfig(**mesh.shape))  # checks what -1 stands for
    mesh = mesh if mesh.size > 1 else None
    algorithm, rollout = config.algorithm, config.rollout
    exclude = frozenset(m.key for path in config.data.exclude for m in frozenlake.load(path).maps)
    maps = training_maps(config, exclude)
    for path in config.eval.references:
        hf.resolve(path)
    test_maps = evaluate.evaluation_maps(config.eval, frozenset(m.key for m in maps))
    policy, params = hf.load_pretrained(
        config.policy.path,
        config.policy.dtype,
        mesh,
        compute_dtype=config.policy.compute_dtype,
        value_head=config.policy.value_head,
    )
    if whole := left_whole(params, mesh, head_dim=policy.config.text.head_dim):
        print(whole)
    processor = load_processor(policy.directory)
    board = evaluate.environment(config.env)
    score = evaluate.scorer(config.reward, config.roll_in.decision_bonus)
    settings = episodes.Settings(
        samples=rollout.samples,
        max_turns=config.env.max_turns,
        max_new_tokens=rollout.max_new_tokens,
        sampling=Sampling(rollout.temperature, rollout.top_k, rollout.top_p),
        train_prefix=config.roll_in.train_prefix,
        train_end=rollout.train_end_token,
    )
    largest = max(maps, key=lambda map: map.size)
    rolls_in = config.modes.roll_in > 0
    shapes = episodes.plan_shapes(policy, processor, board, [largest], settings, roll_in=rolls_in)
    shape = update_shape(config, policy, shapes)

    # --- what learns: state, reference, buffers, programs ---
    # A schedule counts optimizer steps, of which a rollout may give several.
    updates = config.steps * algorithm.epochs * algorithm.minibatches
    tx = make_optimizer(config.optimizer, updates, freeze_vision=config.policy.freeze_vision)
    reference = jax.tree.map(jnp.copy, params) if algorithm.kl_coefficient else None
    state = update.init_state(policy, params, tx)
    del params  # donated with the state
    buffer = None
    if rolls_in:
        # A reply may hold a forced opening and a forced end beside what was sampled.
        buffer = collect.empty_prefixes(config.roll_in, rollout.max_new_tokens + 10, mesh)
    programs = update.make_programs(
        functools.partial(update.policy_loss, policy, objective(config)), tx, policy
    )
    rate = schedule(config.optimizer, updates)
    key = jax.random.key(config.seed)

    run_dir = logs.open_run(config, resume=resume)
    print(f"{len(maps)} training maps, {len(test_maps)} evaluation maps; run directory {run_dir}")
    with (
        checkpoints.open_checkpoints(run_dir / "checkpoints", config.checkpoint.keep) as saved,
        logs.Writer(run_dir, config.steps, config.log, resume=resume) as log,
    ):
        measure = functools.partial(
            _measure, policy, processor=processor, maps=test_maps, config=config, log=log
        )
        # Before anything is restored: a resumed run compares with the same base.
        base = measure(state.params) if config.eval.enabled else None
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
            view = engine.make_view(policy, state.params)
            keeps = config.log.episodes_every and step % config.log.episodes_every == 0

            def play(groups, attempt, view=view, step=step, keeps=keeps):
                chosen = dataclasses.replace(settings, keep_images=bool(keeps) and attempt == 0)
                return episodes.rollout(
                    policy,
                    view,
                    processor,
                    board,
                    groups,
                    chosen,
                    shapes,
                    collect.key_for(key, collect.SAMPLE_KEY, attempt),
                    step,
                    score,
                )

            def draw_groups(cursor, attempt, buffer, step=step):
                ids, cursor = collect.next_questions(
                    config.seed, len(maps), cursor, rollout.questions
                )
                groups, buffer = collect.make_groups(
                    ids, maps, buffer, config.modes, config.roll_in, THINK, key, step, attempt
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
            metrics = collected.metrics | summary(collected.generated)
            rolled = time.perf_counter()

            if collected.episodes:
                mask_key = collect.key_for(key, collect.MASK_KEY, step)
                state, trained = learn(
                    policy, config, state, reference, programs, collected.episodes, shapes, shape,
                    mask_key,
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
                },
            )
            if keeps:
                shown = [e for e in collected.generated if e.images][:: rollout.samples]
                logs.save_episodes(run_dir, step + 1, shown[: config.log.episodes])
            if (step + 1) % config.checkpoint.every == 0 or step + 1 == config.steps:
                meta = {"cursor": cursor, "generated": generated}
                checkpoints.save(saved, step + 1, resumable(state, buffer), meta)
            if evaluates(config, step + 1):
                scores = measure(state.params)
                evaluate.save(
                    run_dir / f"evaluation_step{step + 1:06d}.json", evaluate.tables(scores)
                )
        final = measure(state.params) if config.eval.enabled else None

    # --- what is left behind ---
    exported = hf.save_pretrained(run_dir / "hf", policy, state.params)
    if final is not None:
        name = f"success before ({config.policy.path}) and after, in percent of maps"
        compared = evaluate.comparison(base, final) | {"name": name}
        evaluate.save(run_dir / "evaluation_final.json", [compared, *evaluate.tables(final)])
        evaluate.show(compared)
        for path in config.eval.references:
            other, weights = hf.load_pretrained(path, compute_dtype=config.policy.compute_dtype)
            scores = evaluate.measure(
                other,
                weights,
                processor,
                test_maps,
                config.eval,
                config.env,
                rollout,
                config.reward,
            )
            evaluate.show(evaluate.brief(scores, f"for comparison: {path}, in percent of maps"))
    print(f"trained policy  {exported}")
    print(f"report          {report.write_report(run_dir)}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes, {generated} episodes generated")
    return run_dir


# --- the update of a step ----------------------------------------------------------------------


def learn(
    policy: Policy,
    config: TrainConfig,
    state: update.TrainState,
    reference: Params | None,
    programs: update.Programs,
    played: list[Episode],
    shapes: episodes.Shapes,
    shape: layout.PackShape,
    key: jax.Array,
) -> tuple[update.TrainState, dict[str, float]]:
    """Labels the episodes of a step and takes its optimizer steps."""
    algorithm = config.algorithm
    rows = config.rollout.questions * config.rollout.samples
    padded = label.pad(played, rows, shapes.slots)
    actor = label.turn_masked(key, played, padded, config.rtm)
    advantage = label.episode_advantages(played, rows, algorithm)
    per_token = np.broadcast_to(advantage[:, None], padded.loss_mask.shape)
    metrics = {
        "advantage_nonzero": float((advantage[: len(played)] != 0).mean()),
        "count/rtm_masked_tokens": float(padded.loss_mask.sum() - actor.sum()),
    }
    fields = {"logprobs": padded.logprobs}
    whole = label.pack(policy, played, list(range(len(played))), shape)
    metrics["update_occupancy"] = whole.occupancy
    scored = None
    if policy.value_head or algorithm.importance == "recomputed":
        scored = _score(policy, state.params, whole, padded, config.rollout.temperature)
    if algorithm.importance == "recomputed":
        fields["logprobs"] = scored["logprobs"]
    if reference is not None:
        referred = _score(policy, reference, whole, padded, config.rollout.temperature)
        fields["ref_logprobs"] = referred["logprobs"]
    if algorithm.name == "ppo":
        rewards = label.terminal_rewards(played, padded)
        estimate, returns = label.generalised_advantages(
            rewards, scored["values"], algorithm.discount, algorithm.lambda_, padded.loss_mask
        )
        fields |= {"values": scored["values"], "returns": np.asarray(returns)}
        metrics["explained_variance"] = float(
            losses.explained_variance(scored["values"], returns, padded.loss_mask)
        )
        per_token = label.whitened(estimate, padded.loss_mask) if algorithm.whiten else estimate
    fields["advantages"] = np.asarray(per_token)

    totals: list[dict[str, Any]] = []
    sums: list[float] = []
    for epoch in range(algorithm.epochs):
        for indices in minibatches(config, played, epoch, int(state.step)):
            packing = whole if len(indices) == len(played) else None
            packing = packing or label.pack(policy, played, indices, shape)
            chosen = np.zeros((rows, 1), np.float32)
            chosen[indices] = 1
            weights = label.loss_weights(
                actor * chosen, algorithm.normalization, config.rollout.max_new_tokens
            )
            fields["loss_weights"] = weights
            if algorithm.name == "ppo":
                # Masking mechanisms touch the actor's loss only: the critic sees every token.
                fields["value_weights"] = label.loss_weights(
                    padded.loss_mask * chosen, "token_mean", 1
                )
            batches = label.microbatches(policy, packing, fields)
            state, metrics_now = update.run(programs, state, batches)
            totals.append(metrics_now)
            sums.append(float(weights.sum()) or 1.0)
    totals = [
        {name: float(v) / (total if name in update.MEANS else 1.0) for name, v in t.items()}
        for t, total in zip(jax.device_get(totals), sums, strict=True)
    ]
    for name in totals[0]:
        values = [t[name] for t in totals]
        metrics[name] = float(np.sum(values) if name.startswith("count/") else np.mean(values))
    metrics["count/updates"] = len(totals)
    # The first update sees unchanged parameters: its ratio tells sampler and trainer apart.
    metrics["ratio_deviation_first"] = totals[0]["ratio_deviation"]
    return state, metrics


_score_rows = jax.jit(update.score, static_argnums=(0, 3))


def _score(policy, params, packing, padded, temperature) -> dict[str, np.ndarray]:
    """One teacher-forced pass over all microbatches, back in padded form."""
    out = [_score_rows(policy, params, rows, temperature) for rows in packing.rows]
    out = jax.device_get(out)
    return {
        name: label.scatter(packing, [o[name] for o in out], padded.loss_mask) for name in out[0]
    }


def minibatches(
    config: TrainConfig, played: list[Episode], epoch: int, step: int
) -> list[list[int]]:
    """Indices of each optimizer step's episodes: whole groups, shuffled where there are several."""
    n = config.algorithm.minibatches
    if n == 1:
        return [list(range(len(played)))]
    groups = list(dict.fromkeys(e.group for e in played))
    order = np.random.default_rng((config.seed, step, epoch)).permutation(len(groups))
    parts = np.array_split(np.array(groups)[order], min(n, len(groups)))
    members = {g: [i for i, e in enumerate(played) if e.group == g] for g in groups}
    return [[i for g in part.tolist() for i in members[g]] for part in parts]


def objective(config: TrainConfig) -> update.Objective:
    """The loss's coefficients."""
    a = config.algorithm
    return update.Objective(
        clip_low=a.clip_low,
        clip_high=a.clip_high,
        dual_clip=a.dual_clip,
        kl_coefficient=a.kl_coefficient,
        kl_estimator=a.kl_estimator,
        entropy_coefficient=a.entropy_coefficient,
        value_coefficient=a.value_coefficient if a.name == "ppo" else 0.0,
        value_clip=a.value_clip,
        temperature=config.rollout.temperature,
    )


def update_shape(config: TrainConfig, policy: Policy, shapes: episodes.Shapes) -> layout.PackShape:
    """Packed rows that hold any episode, several short ones, and their pictures."""
    tokens = max(config.update.row_tokens or 0, shapes.slots)
    return layout.PackShape(
        rows=config.update.rows_per_microbatch,
        tokens=tokens,
        # Of the largest pictures; smaller ones share a slot.
        slots=max(config.env.max_turns, -(-tokens // shapes.prompt)),
        patches=max(config.update.picture_patches or 0, shapes.patches),
    )


def resumable(state: update.TrainState, buffer: Any) -> dict[str, Any]:
    """The arrays of a checkpoint; keys are folded from the seed and need no saving."""
    return {"state": state} if buffer is None else {"state": state, "buffer": buffer}


def evaluates(config: TrainConfig, done: int) -> bool:
    """Whether to evaluate after `done` steps; the ends of a run are evaluated anyway."""
    every = config.eval.every
    return config.eval.enabled and every > 0 and done % every == 0 and done < config.steps


# --- figures, guards ---------------------------------------------------------------------------


def summary(played: list[Episode]) -> dict[str, float]:
    """Means over the episodes of a rollout, before any filter."""
    means = {name: float(np.mean([e.rewards[name] for e in played])) for name in evaluate.METRICS}
    reward = means.pop("total")
    return {
        "reward": reward,
        "reward_std": float(np.std([e.rewards["total"] for e in played])),
        "truncated": float(np.mean([e.truncated for e in played])),
        "episode_tokens": float(np.mean([e.tokens.size for e in played])),
        **means,
    }


def training_maps(config: TrainConfig, exclude: frozenset[str]) -> list[Map]:
    """Published or generated maps, none of `exclude`; what was skipped is printed.

    Raises:
      ValueError: `exclude` leaves none.
    """
    data = config.data
    if data.path is None:
        return frozenlake.generate(
            data.seed,
            data.count,
            data.levels,
            data.weights,
            tuple(data.hole_probability),
            exclude,
        )
    loaded = frozenlake.load(data.path, data.limit)
    for line in loaded.skipped:
        print(f"skipped: {line}")
    maps = [map for map in loaded.maps if map.key not in exclude]
    if not maps:
        raise ValueError(f"data.exclude leaves none of the {len(loaded.maps)} maps of {data.path}")
    return maps


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


def _measure(policy, params, *, processor, maps, config, log) -> evaluate.Scores:
    def progress(name, done, of):
        if done == of:
            log.note(f"evaluated {of} maps, {name}")

    return evaluate.measure(
        policy,
        params,
        processor,
        maps,
        config.eval,
        config.env,
        config.rollout,
        config.reward,
        progress=progress,
    )
