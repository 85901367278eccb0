"""Times a training step against the same step in torch on the same checkpoint; needs torch.

    python scripts/bench_update.py --size nano --case even grpo
    python scripts/bench_update.py --size 3b --device gpu --dtype bfloat16 --remat

Two cases. `even`: `--rows` episodes, each of a question of its own, all of one length. `grpo`:
`--rows` samples of one question with one picture, replies of half the length and more; ours with
each episode whole ("packed") and with the prompt standing once ("shared", what a run does by
default). Ours is `packing.pack`, `packing.microbatches` and `update.run` with `policy_loss`; the
peer computes the same clipped loss from transformers' forward pass with sdpa attention, logits for
trained tokens alone, no entropies, rows padded on the right, and torch's fused AdamW, also under
torch.compile. Losses and gradient norms of both are compared. MFU counts the model's FLOPs alone,
three times the forward pass. Prints a table a case, then one line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import tempfile
from typing import Any

import bench_peer as peer
import benching
import jax
import jax.numpy as jnp
import numpy as np
import torch
from benching import Spread, percent

from vrrl_jax import layout, packing, roofline
from vrrl_jax.checkpoint import hf
from vrrl_jax.config import OptimizerConfig
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.rl import update
from vrrl_jax.types import Episode

SMOKE = {"size": ["nano"], "rows": 2, "prompt": 24, "reply": 8, "picture": 2, "repeat": 2}
SIDES = {"nano": 8, "100m": 8, "3b": 16, "7b": 16}
RATE, DECAY, CLIP = 1e-5, 0.01, 1.0
CASES = ("even", "grpo")
PEER, COMPILED = "peer", "peer, compiled"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = read(arguments)
    benching.settle(options.device, options.threads)
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = benching.clock_of(options)
    peak = benching.peak_flops(options.dtype, clock, torch, 256 if options.smoke else 1024)
    found = [
        measure(size, case, options, clock, peak["best"])
        for size in options.size
        for case in options.case
    ]
    out = {
        "benchmark": "update",
        "clock": clock,
        "dtype": options.dtype,
        "machine": benching.machine(options.threads),
        "peak_flops": peak,
        "cells": found,
    }
    tables = [benching.table(HEADER, [row for cell in found for row in lines(cell)])]
    tables += [benching.table(STAGE_HEADER, [r for c in found for r in stage_lines(c, clock)])]
    benching.emit(out, options.json, [*tables, *missing(found)])
    return out


def read(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benching.add_options(parser, 3)
    parser.add_argument("--size", nargs="+", choices=peer.SIZES, default=["nano"])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", type=int, default=8, help="episodes")
    parser.add_argument("--prompt", type=int, default=128, help="tokens, the picture's among them")
    parser.add_argument("--reply", type=int, default=64, help="tokens of the longest reply")
    parser.add_argument("--picture", type=int, help="its side in tokens; default by size")
    parser.add_argument("--attention", default="auto", help="our kernel, see models/attention.py")
    parser.add_argument("--remat", action="store_true", help="ours recomputes blocks")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
        options.no_compile = True
    return options


# --- what is trained on --------------------------------------------------------------------------


def episodes_of(prompts: peer.Prompts, rows: int, reply: int, shared: bool) -> list[Episode]:
    """Episodes of random replies.

    Args:
      prompts: one a row, or where `shared` one for all.
      reply: tokens of a reply; where `shared` of the longest, the others have half of it and more.
    """
    rng, vocabulary = np.random.default_rng(1), int(prompts.tokens.max())
    lengths = np.full(rows, reply)
    if shared:
        lengths = np.linspace(reply // 2, reply, rows).astype(int)
    pictures, out = prompts.pictures, []
    for i, length in enumerate(lengths):
        question = 0 if shared else i
        prompt = prompts.tokens[question].astype(np.int32)
        # No placeholders: the largest ids of a vocabulary are special.
        said = rng.integers(3, max(4, vocabulary // 2), length).astype(np.int32)
        tokens = np.concatenate([prompt, said])
        mask = (np.arange(tokens.size) >= prompt.size).astype(np.float32)
        out.append(
            Episode(
                question=question, sample=i, group=question, tokens=tokens, loss_mask=mask,
                turn_index=np.zeros(tokens.size, np.int32), logprobs=np.zeros_like(mask),
                pictures=(pictures[question],), texts=(), spans=((prompt.size, tokens.size),),
                rewards={},
            )
        )  # fmt: skip
    return out


def fields_of(episodes: list[Episode], vocabulary: int) -> dict[str, np.ndarray]:
    """Padded fields of the loss, float32 [B, S]: advantages of both signs, and old
    log-probabilities that are near those of a random policy, so that some ratios are clipped."""
    width = max(e.tokens.size for e in episodes)
    pad = lambda a: np.pad(a, (0, width - a.size)).astype(np.float32)
    mask = np.stack([pad(e.loss_mask) for e in episodes])
    sign = np.where(np.arange(len(episodes)) % 2, -1.0, 1.0)[:, None]
    return {
        "loss_weights": mask / mask.sum(),
        "logprobs": np.float32(-np.log(vocabulary) * mask),
        "advantages": np.float32(sign * mask),
    }


def padded(episodes: list[Episode], fields: dict[str, np.ndarray]) -> peer.Padded:
    """The same for torch: rows padded on the right, pictures one a row."""
    width = fields["advantages"].shape[1]
    tokens = np.stack([np.pad(e.tokens, (0, width - e.tokens.size)) for e in episodes])
    pictures = [p for e in episodes for p in e.pictures]
    return peer.Padded(
        tokens.astype(np.int64),
        np.concatenate([p.patches for p in pictures]),
        np.array([p.grid for p in pictures]),
        fields["loss_weights"],
        fields["logprobs"],
        fields["advantages"],
    )


# --- a cell --------------------------------------------------------------------------------------


def measure(
    size: str, case: str, options: argparse.Namespace, clock: str, peak: float
) -> dict[str, Any]:
    """All contenders of a case; their parameters move, and alike."""
    grpo = case == "grpo"
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        # Both hold float32 parameters, whatever they compute in.
        model = peer.load(directory, size, "float32", options.device)
        policy, params = hf.load_pretrained(
            directory, compute_dtype=options.dtype, remat=options.remat,
            attention=options.attention,
        )  # fmt: skip
    config, side = policy.config, options.picture or SIDES[size]
    given = peer.prompts(config, 1 if grpo else options.rows, options.prompt, side)
    episodes = episodes_of(given, options.rows, options.reply, grpo)
    fields = fields_of(episodes, config.text.vocab_size)
    contenders = {"ours, packed": ours(policy, params, episodes, fields, False)}
    if grpo:
        contenders["ours, shared"] = ours(policy, params, episodes, fields, True)
    batch = padded(episodes, fields)
    train = functools.partial(
        peer.training, model, batch, options.dtype, rate=RATE, clip=CLIP, decay=DECAY
    )
    contenders[PEER] = train()
    if not options.no_compile:
        contenders[COMPILED] = train(compiled=True)
    told, failed = {}, {COMPILED: "left out by --no-compile"} if options.no_compile else {}
    for name in list(contenders):
        try:
            told[name] = contenders[name]()[1:]  # compiles, and tells the first step's loss
        except Exception as error:  # whatever a compiler raises
            if name != COMPILED:
                raise
            del contenders[name]
            failed[name] = benching.reason(error)
    stages = {name: lambda step=step: step()[0] for name, step in contenders.items()}
    runs = benching.interleaved(stages, options.repeat, warm=0)
    work = {name: floor(config, episodes, name, options.dtype) for name in runs}
    tokens = sum(e.tokens.size for e in episodes)
    return {
        "size": size,
        "case": case,
        "parameters": roofline.all_params(config),
        "rows": options.rows,
        "tokens": tokens,
        "trained_tokens": int(sum(e.loss_mask.sum() for e in episodes)),
        "contenders": {
            name: figures(found, clock, tokens, work[name], peak) | {
                "loss": told[name][0], "grad_norm": told[name][1], "flops": work[name].flops,
            }
            for name, found in runs.items()
        },
        "failed": failed,
        "peak_memory": {"jax": benching.peak_memory(), "torch": peer.memory(options.device)},
    }  # fmt: skip


def ours(policy, params, episodes, fields, share):
    """A step as `learn.learn` takes it: rows packed, microbatches made, gradients, AdamW."""
    optimizer = OptimizerConfig(learning_rate=RATE, weight_decay=DECAY, grad_clip=CLIP)
    tx = make_optimizer(optimizer, 100)
    # A copy: a step donates its state, and there may be another contender.
    state = [update.init_state(policy, jax.tree.map(jnp.array, params), tx)]
    loss = functools.partial(update.policy_loss, policy, update.Objective())
    programs = update.make_programs(loss, tx, policy)
    shape = row_shape(policy, episodes, share)
    indices = list(range(len(episodes)))

    def step():
        watch = benching.Watch()
        watched = update.Programs(
            zeros=watch.wrap("optimizer", programs.zeros),
            accumulate=watch.wrap("gradients", programs.accumulate),
            apply=watch.wrap("optimizer", programs.apply),
        )

        def pack():
            whole = packing.pack(policy, episodes, indices, shape, share)
            return [tuple(m) for m in packing.microbatches(policy, whole, fields)]

        batches = [update.Microbatch(*m) for m in watch.wrap("packing", pack)()]
        state[0], metrics = update.run(watched, state[0], batches)
        return watch.stages, float(metrics["loss"]), float(metrics["grad_norm"])

    return step


def row_shape(policy, episodes: list[Episode], share: bool) -> layout.PackShape:
    """Rows with little padding: one an episode, or one for all with the prompt that they share."""
    sizes = [e.tokens.size for e in episodes]
    picture = max(layout.slot_patches(p.grid, policy.config.layout) for p in episodes[0].pictures)
    if not share:
        return layout.PackShape(len(episodes), max(sizes), 1, picture)
    shared = int(episodes[0].loss_mask.argmax())
    whole = shared + sum(size - shared for size in sizes)
    return layout.PackShape(1, layout.round_up(whole, 8), 1, picture)


def floor(config, episodes: list[Episode], name: str, dtype: str) -> roofline.Work:
    """What a step can't do without, in the form that a contender takes: with a shared prompt its
    forward and backward pass, and its picture's, are counted once."""
    size = 4 if dtype == "float32" else 2
    patches = int(np.prod(episodes[0].pictures[0].grid))
    trained = [int(e.loss_mask.sum()) for e in episodes]
    counted = functools.partial(roofline.gradients, config, itemsize=size)
    if name != "ours, shared":
        parts = [
            counted(1, e.tokens.size, n, 1, patches) for e, n in zip(episodes, trained, strict=True)
        ]
        return sum(parts, roofline.Work(0, 0))
    prompt = episodes[0].tokens.size - trained[0]
    total = counted(1, prompt, 0, 1, patches)
    for n in trained:
        own = roofline.forward(config, 1, n, n, size, context=prompt)
        total += roofline.Work(3 * own.flops, 2 * own.bytes)
    return total


# --- figures -------------------------------------------------------------------------------------


def figures(runs, clock, tokens, work, peak) -> dict[str, Any]:
    total = benching.by_stage(runs, clock)["total"]
    return {
        "tokens_per_second": Spread(tokens / total.median, tokens / total.high, tokens / total.low),
        "mfu": work.flops / total.median / peak,
        "seconds": benching.report(runs),
    }


HEADER = ("update", "size", "case", "tokens/s", "of the peer's best", "MFU", "loss", "grad norm")


def lines(cell: dict[str, Any]) -> list[list[Any]]:
    """A line a contender. Tokens are the episodes': a shared prompt's count for each."""
    rates = {name: f["tokens_per_second"] for name, f in cell["contenders"].items()}
    best = max((r.median for name, r in rates.items() if name.startswith(PEER)), default=None)
    return [
        [
            name, cell["size"], cell["case"], rates[name],
            rates[name].median / best if best else None, percent(f["mfu"]),
            f"{f['loss']:.6f}", f"{f['grad_norm']:.5f}",
        ]
        for name, f in cell["contenders"].items()
    ]  # fmt: skip


STAGE_HEADER = ("seconds of a step", "size", "case", "stages")


def stage_lines(cell: dict[str, Any], clock: str) -> list[list[Any]]:
    return [
        [
            name, cell["size"], cell["case"],
            ", ".join(f"{k} {benching.number(v['median'])}" for k, v in
                      f["seconds"][clock].items()),
        ]
        for name, f in cell["contenders"].items()
    ]  # fmt: skip


def missing(cells: list[dict[str, Any]]) -> list[str]:
    """What didn't run, and why."""
    return [
        f"not measured: {name}, {cell['size']}, {cell['case']}: {why}"
        for cell in cells
        for name, why in cell["failed"].items()
    ]


if __name__ == "__main__":
    main()
