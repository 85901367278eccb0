"""Supervised fine-tuning on demonstrations, and training a small policy from nothing.

`main` reads top to bottom: load, build the batch stream, step, save, export.
"""

from __future__ import annotations

import functools
import pathlib
import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from vrrl_jax import evaluate, layout, packing, start, tasks
from vrrl_jax import log as logs
from vrrl_jax.checkpoint import adapters, hf
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.config import SftConfig
from vrrl_jax.models.lora import join_params
from vrrl_jax.models.policy import Policy
from vrrl_jax.optimizer import make_optimizer, schedule
from vrrl_jax.parallel import distributed
from vrrl_jax.parallel.mesh import fetch, put_rows
from vrrl_jax.processing import encode
from vrrl_jax.processing.processor import Processor, load_processor
from vrrl_jax.progress import bytes_bar
from vrrl_jax.rl import update
from vrrl_jax.rl.update import Microbatch
from vrrl_jax.rollout.episodes import answered
from vrrl_jax.tasks import Task
from vrrl_jax.types import Sequence


def main(config: SftConfig, *, resume: bool = False) -> pathlib.Path:
    """Trains, evaluates, exports; returns the run's directory.

    Raises:
      ConfigError, FileNotFoundError, ValueError: before training, for anything that can't run.
      FloatingPointError: more updates in a row than the guard allows had no finite gradient; the
        last good state is saved.
      Preempted: the process, or another one of the run, was asked to stop; a checkpoint is saved.
      Disagreement: the processes of the run don't do the same.
    """
    # --- what is trained ---
    policy, params, frozen = start.start(config.policy, start.open_mesh(config), config.seed)
    processor = load_processor(policy.directory)
    task = tasks.make(config, processor)
    task.fresh(random.Random(config.seed), 1)  # fails now rather than after a run was begun
    tx = make_optimizer(config.optimizer, config.steps)
    state = update.init_state(policy, params, tx)
    del params  # the state's buffers are donated: nobody else may hold them
    programs = update.make_programs(functools.partial(update.supervised_loss, policy), tx, policy)
    ema = None if config.ema_decay is None else jax.tree.map(jnp.copy, state.params)
    blend = jax.jit(
        lambda ema, params, decay: jax.tree.map(
            lambda e, p: e + (1 - decay) * (p - e), ema, params
        ),
        donate_argnums=0,
    )
    rate = schedule(config.optimizer, config.steps)

    measure = functools.partial(
        evaluate.measure,
        policy,
        processor=processor,
        task=task,
        examples=task.evaluation() if config.eval.enabled else tasks.NONE,
        config=config.eval,
        rollout=config.rollout,
        max_turns=config.env.max_turns,
        score=tasks.score_of(config, task),
    )
    run_dir = logs.open_run(config, resume=resume)
    with (
        checkpoints.open_checkpoints(run_dir / "checkpoints", config.checkpoint.keep) as saved,
        logs.Writer(
            run_dir, config.steps, config.log, resume=resume, active=distributed.first()
        ) as log,
    ):
        first = 0
        if resume and checkpoints.latest(saved) is not None:
            arrays, _, first = checkpoints.restore(saved, resumable(state, ema))
            state, ema = arrays["state"], arrays.get("average")
            log.truncate(first)
        distributed.agree("start", step=first)

        # --- the loop ---
        def make(step: int):
            sequences = draw_sequences(step, config, processor, task)
            return pack_batch(policy, sequences, config.batch, processor.images.features)

        for step, (batch, occupancy) in prefetch(make, iter(range(first, config.steps))):
            started = time.perf_counter()
            distributed.agree(f"step {step + 1}", tokens=batch.rows.tokens, fields=batch.fields)
            placed = Microbatch(
                packing.place_rows(policy, batch.rows), put_rows(policy.mesh, batch.fields)
            )
            state, metrics = update.run(programs, state, [placed], frozen)
            if ema is not None:
                # A young average would keep the random start: it warms up with the step.
                decay = min(config.ema_decay, (1 + step) / (10 + step))
                ema = blend(ema, state.params, decay)
            metrics = {name: float(value) for name, value in fetch(metrics).items()}
            seconds = time.perf_counter() - started
            tokens = int((batch.rows.segments > 0).sum())
            metrics |= {
                "learning_rate": float(rate(step)),
                "occupancy": occupancy,
                "tokens_per_second": tokens / seconds,
                "sequences": int(batch.rows.segments.max(1).sum()),
            }
            log.step(step + 1, metrics)
            guard(state, ema, config.guard.max_bad_steps, saved, step)
            last, stopped = step + 1 == config.steps, distributed.stopping()
            if (step + 1) % config.checkpoint.every == 0 or last or stopped:
                checkpoints.save(saved, step + 1, resumable(state, ema), {})
            if stopped and not last:
                raise distributed.Preempted(f"stopped after step {step + 1} of {run_dir}")
            if config.eval.enabled and (
                last or (config.eval.every and (step + 1) % config.eval.every == 0)
            ):
                scores = measure(join_params(best(state, ema), frozen))
                path = run_dir / f"evaluation_step{step + 1:06d}.json"
                evaluate.save(path, evaluate.tables(scores))

    # --- what is left behind ---
    params = join_params(best(state, ema), frozen)
    with bytes_bar("written", stream=distributed.stream()) as progress:
        exported = hf.save_pretrained(run_dir / "hf", policy, params, progress=progress)
    print(f"exported {exported}")
    if config.policy.lora.rank:
        print(f"adapters {adapters.save_adapter(run_dir / 'adapter', policy, params)}")
    return run_dir


def best(state: update.TrainState, ema):
    """The averaged weights where there are any."""
    return state.params if ema is None else ema


def resumable(state: update.TrainState, average) -> dict:
    """The arrays of a checkpoint."""
    return {"state": state} if average is None else {"state": state, "average": average}


def guard(state: update.TrainState, average, limit: int, saved, step: int) -> None:
    """Ends a run whose gradients stay non-finite, with the last good state saved."""
    bad = int(fetch(state.bad_steps))
    if bad > limit:
        checkpoints.save(saved, step + 1, resumable(state, average), {})
        raise FloatingPointError(
            f"{bad} updates in a row had no finite gradient. The parameters are "
            f"those before the first of them, saved as checkpoint {step + 1}. Lower "
            "optimizer.learning_rate or optimizer.grad_clip and go on with --resume"
        )


def demonstration_sequence(
    task: Task, example: Any, rng: random.Random, processor: Processor, single_turn: bool
) -> Sequence:
    """One demonstration, played through the real environment and tokenised."""
    replies = task.demonstrate(example, rng, single_turn)
    chunks = [encode.first_chunk(processor, task.environment.reset(example))]
    for turn in range(1, len(replies)):
        outcome = answered(task.environment, example, [reply.text for reply in replies[:turn]])
        chunks.append(encode.next_chunk(processor, outcome.prompt))
    return encode.demonstration(processor, chunks, list(replies))


def draw_sequences(
    step: int, config: SftConfig, processor: Processor, task: Task
) -> list[Sequence]:
    """The demonstrations of a step: a function of (seed, step) alone, so a run can resume."""
    demo = config.demonstrations
    rng = random.Random(f"{config.seed}/{step}")
    sequences, tokens = [], 0
    for example in task.fresh(rng, config.batch.sequences):
        single = step < demo.single_turn_steps or rng.random() < demo.single_turn_fraction
        if step < demo.reading_steps or rng.random() < demo.reading_fraction:
            prompt, reply = task.transcribe(example)
            chunk = encode.first_chunk(processor, prompt)
            sequences.append(encode.demonstration(processor, [chunk], [reply]))
        else:
            sequences.append(demonstration_sequence(task, example, rng, processor, single))
        tokens += sequences[-1].tokens.size
        if tokens >= config.batch.rows * config.batch.row_tokens * config.batch.fill:
            break
    return sequences


def pack_batch(
    policy: Policy, sequences: list[Sequence], batch, features: int = 1
) -> tuple[Microbatch, float]:
    """Packed rows with weights that sum to 1, and the share of token slots in use."""
    shape = layout.PackShape(
        batch.rows, batch.row_tokens, batch.picture_slots, batch.slot_patches, features
    )
    place = policy.config.layout
    assignment = layout.assign_rows(sequences, place, shape)
    if max(assignment) < 0:
        longest = max(s.tokens.size for s in sequences)
        raise ValueError(
            f"no demonstration fits a row of {shape}; the longest has {longest} tokens: raise "
            "batch.row_tokens, batch.picture_slots or batch.slot_patches"
        )
    rows, fields = layout.pack(sequences, place, shape, assignment)
    fields["target_weights"] /= fields["target_weights"].sum()
    used = float((rows.segments > 0).mean())
    del fields["sequence"]
    return Microbatch(rows, fields), used


def prefetch(make, steps: Iterator[int], depth: int = 3) -> Iterator:
    """Runs `make(step)` in a thread, a few steps ahead; an error surfaces where it is consumed."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def offer(*item):
        # Not a plain put: the reader may have left a full queue behind.
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work():
        try:
            for step in steps:
                if stop.is_set():
                    return
                offer(step, make(step), None)
            offer(None, None, None)
        except Exception as error:
            offer(None, None, error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            step, item, error = ready.get()
            if error is not None:
                raise error
            if step is None:
                return
            yield step, item
    finally:
        stop.set()
