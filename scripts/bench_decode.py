"""Times prefill and decode against transformers' `generate` on the same checkpoint; needs torch.

    python scripts/bench_decode.py --size nano --batch 1 8
    python scripts/bench_decode.py --size 3b --device gpu --dtype bfloat16 --batch 1 8 64 --new 256

A checkpoint of random weights is written by transformers and loaded by both; same prompts with a
picture, same precision, a fixed number of greedy tokens (`--temperature` draws instead). Ours is
what a rollout calls: `engine.init`, `append`, `repeat` and `decode`, which also record each token's
log-probability; `generate` doesn't. The peer runs with its default, a cache that grows, with a
static cache, and with a static cache and a compiled step; what fails is named and left out. Prints
tables, then one line of JSON. Rates and shares are of `--clock`, see `benching.py`.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import Any

import bench_peer as peer
import benching
import jax
import numpy as np
import torch
from benching import Spread, percent

from vrrl_jax import inference, roofline
from vrrl_jax.checkpoint import hf
from vrrl_jax.models.config import ModelConfig
from vrrl_jax.rollout import engine
from vrrl_jax.types import Sequence

OURS = "ours"
SMOKE = {"size": ["nano"], "batch": [2], "new": 4, "prompt": 24, "picture": 2, "repeat": 2}
SIDES = {"nano": 8, "100m": 8, "3b": 16, "7b": 16}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = read(arguments)
    benching.settle(options.device, options.threads)
    if options.threads:
        torch.set_num_threads(options.threads)
    clock, found, rows, stages = benching.clock_of(options), [], [], []
    speed = benching.bandwidth(clock, 16 if options.smoke else 128)
    peak = benching.peak_flops(options.dtype, clock, torch, 256 if options.smoke else 1024)
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(pathlib.Path(folder), size, options)
        for batch in options.batch:
            cell = pair.measure(batch, clock, speed["best"], peak["best"])
            found.append(cell)
            rows += lines(cell)
            stages += stage_lines(cell, clock)
    out = {
        "benchmark": "decode",
        "clock": clock,
        "dtype": options.dtype,
        "machine": benching.machine(options.threads),
        "bandwidth": speed,
        "peak_flops": peak,
        "cells": found,
    }
    benching.emit(out, options.json, [benching.table(HEADER, rows), *missing(found), *[
        benching.table(STAGE_HEADER, stages)
    ]])  # fmt: skip
    return out


def read(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benching.add_options(parser)
    parser.add_argument("--size", nargs="+", choices=peer.SIZES, default=["nano"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="rows that decode")
    parser.add_argument("--samples", type=int, default=1, help="rows that share a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of a reply")
    parser.add_argument("--prompt", type=int, default=256, help="tokens, the picture's among them")
    parser.add_argument("--picture", type=int, help="its side in tokens; default by size")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--attention", default="auto", help="our kernel, see models/attention.py")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
        options.no_compile = True
    if strange := [b for b in options.batch if b % options.samples]:
        parser.error(f"--batch {strange} is no multiple of --samples {options.samples}")
    return options


class Pair:
    """A checkpoint on both sides."""

    def __init__(self, folder: pathlib.Path, size: str, options: argparse.Namespace):
        self.size, self.options = size, options
        self.model = peer.load(folder, size, options.dtype, options.device)
        self.policy, params = hf.load_pretrained(
            folder, options.dtype, compute_dtype=options.dtype, attention=options.attention
        )
        self.view = jax.block_until_ready(engine.make_view(self.policy, params))

    def measure(self, batch: int, clock: str, speed: float, peak: float) -> dict[str, Any]:
        """A cell: all contenders over the same prompts."""
        options, config = self.options, self.policy.config
        side = options.picture or SIDES[self.size]
        given = peer.prompts(config, batch // options.samples, options.prompt, side)
        said: dict[str, np.ndarray] = {}
        calls = {OURS: self.ours(given)}
        for way in peer.WAYS:
            if way != peer.COMPILED or not options.no_compile:
                calls[way] = peer.generating(
                    self.model, way, given, options.new, options.samples, options.temperature
                )
        calls, failed = usable(calls, said)
        if options.no_compile:
            failed[peer.COMPILED] = "left out by --no-compile"

        def stages_of(name):
            stages, said[name] = calls[name]()
            return stages

        contenders = {name: lambda name=name: stages_of(name) for name in calls}
        runs = benching.interleaved(contenders, options.repeat, warm=0)
        work = decode_work(config, batch, options.prompt, options.new, options.dtype)
        grid = given.grids[0].prod().item()
        # Every row's prompt is the peer's to compute; ours computes one a question.
        opening = roofline.prefill(
            config, batch // options.samples, options.prompt, len(given.grids), grid,
            itemsize(options.dtype),
        )  # fmt: skip
        return {
            "size": self.size,
            "parameters": roofline.all_params(config),
            "batch": batch,
            "samples": options.samples,
            "prompt": options.prompt,
            "picture_tokens": side**2,
            "new": options.new,
            "decode_bytes": work.bytes,
            "decode_flops": work.flops,
            "prefill_flops": opening.flops,
            "contenders": {
                name: figures(found, clock, batch, options.new, work, opening, speed, peak)
                for name, found in runs.items()
            },
            "equal_tokens": {
                name: float((said[name] == said[OURS]).mean()) for name in runs if name != OURS
            },
            "failed": failed,
            "peak_memory": {
                "jax": benching.peak_memory(), "torch": peer.memory(options.device)
            },
        }  # fmt: skip

    def ours(self, given: peer.Prompts):
        """As a rollout does: prefill each question once, copy its rows, decode them together."""
        options, policy, view = self.options, self.policy, self.view
        count, shown = len(given.tokens), given.pictures
        each = len(shown) // count
        sequences = [
            Sequence(tokens.astype(np.int32), tuple(shown[i * each : (i + 1) * each]))
            for i, tokens in enumerate(given.tokens)
        ]
        asked = inference.Options(
            options.new, options.temperature, n=options.samples, stop_ids=(-1,)
        )
        questions, samples = np.divmod(np.arange(count * options.samples, dtype=np.int32),
                                       options.samples)  # fmt: skip
        active, stops = np.ones(len(questions), bool), asked.stops(policy)
        keys = engine.make_keys(jax.random.key(0), 0, questions, samples, 0)

        def call():
            prefill, state = benching.timed(
                lambda: inference.prefill(policy, view, sequences, asked)
            )

            def decode():
                _, out = engine.decode(
                    policy, view, state, active, keys, asked.sampling, stops, options.new,
                    options.new,
                )  # fmt: skip
                return np.asarray(out.tokens), np.asarray(out.logprobs)

            span, (tokens, _) = benching.timed(decode)
            return {"prefill": prefill, "decode": span}, tokens

        return call


def usable(calls, said):
    """Those that run, each after two runs that aren't timed (compiled ones compile twice), and why
    the others don't."""
    failed, kept = {}, {}
    for name, call in calls.items():
        try:
            for _ in range(2 if name == peer.COMPILED else 1):
                said[name] = call()[1]
            kept[name] = call
        except Exception as error:  # whatever a compiler or a cache class raises
            if name == OURS:
                raise
            failed[name] = benching.reason(error)
    return kept, failed


# --- figures -------------------------------------------------------------------------------------


def itemsize(dtype: str) -> int:
    return {"float32": 4, "bfloat16": 2}[dtype]


def decode_work(config: ModelConfig, rows: int, prompt: int, new: int, dtype: str) -> roofline.Work:
    """What the steps after the first token can't do without: weights once a step, and every row's
    cache as far as it is filled."""
    steps = [
        roofline.decode(config, rows, context, itemsize(dtype))
        for context in range(prompt, prompt + new - 1)
    ]
    return sum(steps, roofline.Work(0, 0))


def figures(runs, clock, batch, new, work, opening, speed, peak) -> dict[str, Any]:
    """Of a contender: rates, shares of what the device can do, seconds by stage."""
    found = benching.by_stage(runs, clock)
    decode, total = found["decode"], found["total"]
    return {
        "decode_tokens_per_second": inverse(decode, batch * (new - 1)),
        "tokens_per_second": inverse(total, batch * new),
        "bandwidth_share": work.bytes / decode.median / speed,
        "flop_share": work.flops / decode.median / peak,
        "prefill_flop_share": opening.flops / found["prefill"].median / peak,
        "seconds": benching.report(runs),
    }


def inverse(seconds: Spread, amount: float) -> Spread:
    """Amounts a second."""
    return Spread(amount / seconds.median, amount / seconds.high, amount / seconds.low)


def best_peer(cell: dict[str, Any], figure: str) -> tuple[str, float] | None:
    """The peer's setting with the highest median."""
    others = {n: f[figure].median for n, f in cell["contenders"].items() if n != OURS}
    return max(others.items(), key=lambda item: item[1]) if others else None


HEADER = (
    "decode", "size", "batch", "tokens/s", "of the peer's best", "bandwidth", "FLOP/s",
    "with prefill: tokens/s", "of the peer's best", "equal tokens",
)  # fmt: skip


def lines(cell: dict[str, Any]) -> list[list[Any]]:
    """A line a contender."""
    out, rates = [], ("decode_tokens_per_second", "tokens_per_second")
    best = [best_peer(cell, rate) for rate in rates]
    for name, figure in cell["contenders"].items():
        ratios = [
            figure[rate].median / b[1] if b else None for rate, b in zip(rates, best, strict=True)
        ]
        equal = cell["equal_tokens"].get(name)
        out.append([
            name, cell["size"], cell["batch"], figure[rates[0]], ratios[0],
            percent(figure["bandwidth_share"]), percent(figure["flop_share"]), figure[rates[1]],
            ratios[1], percent(equal),
        ])  # fmt: skip
    return out


STAGE_HEADER = ("stage", "size", "batch", "prefill ms", "of peak FLOP/s", "decode ms a step")


def stage_lines(cell: dict[str, Any], clock: str) -> list[list[Any]]:
    out = []
    for name, figure in cell["contenders"].items():
        prefill, decode = (figure["seconds"][clock][stage] for stage in ("prefill", "decode"))
        step = 1e3 / (cell["new"] - 1)
        out.append([
            name, cell["size"], cell["batch"], scaled(prefill, 1e3),
            percent(figure["prefill_flop_share"]), scaled(decode, step),
        ])  # fmt: skip
    return out


def scaled(spread: dict[str, float], factor: float) -> Spread:
    return Spread(*(factor * spread[name] for name in ("median", "low", "high")))


def missing(cells: list[dict[str, Any]]) -> list[str]:
    """What didn't run, and why."""
    return [
        f"not measured: {name}, {cell['size']}, batch {cell['batch']}: {why}"
        for cell in cells
        for name, why in cell["failed"].items()
    ]


if __name__ == "__main__":
    main()
