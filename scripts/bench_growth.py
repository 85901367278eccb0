"""Times how the cost of a rollout grows with its batch, turns, pictures and tokens.

    python scripts/bench_growth.py --size nano
    python scripts/bench_growth.py --size 3b --device gpu --dtype bfloat16

One line a cell, one axis at a time from a base of one row, one picture and `--prompt` tokens.
Every cell opens with a prefill and decodes `--new` tokens; then a chunk of `--chunk` tokens, a
second turn, is appended beside what the caches hold, and `--new` tokens follow it. "own share" says
what part of the cache the chunk is, "append / prefill" what part of the first prefill's time it
took: a second turn that computes its own tokens only takes little more than its share, whatever
lies in the cache. Parameters are random. A cell that doesn't fit says so, and why.
Prints a table, then one line of JSON. There is no peer here: `bench_decode.py` has one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import benching
import jax
import numpy as np
from benching import Stages

from vrrl_jax import inference, layout, roofline
from vrrl_jax.checkpoint import hf
from vrrl_jax.models import policy as models
from vrrl_jax.models.config import from_hf
from vrrl_jax.rollout import engine
from vrrl_jax.types import Picture, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {
    "nano": hf.resolve("nano") / "config.json",
    "3b": ROOT / "configs/models/qwen2_5_vl_3b.json",
    "7b": ROOT / "configs/models/qwen2_5_vl_7b.json",
}
SIDES = {"nano": 8, "3b": 16, "7b": 16}  # of a picture in merged units
AXES = {
    "batch": (1, 4, 16, 64, 256),
    "turns": tuple(range(1, 9)),
    "pictures": (1, 2, 4, 8, 16),
    "tokens": (512, 1024, 2048, 4096, 8192, 16384),
}
SMOKE = {
    "size": "nano", "prompt": 32, "new": 2, "chunk": 8, "repeat": 2, "side": 2,
    "batch": [1, 2], "turns": [1, 2], "pictures": [], "tokens": [],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is grown: rows, turns after the first, pictures of a prompt, its tokens."""

    axis: str
    batch: int = 1
    turns: int = 2
    pictures: int = 1
    tokens: int = 512


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = read(arguments)
    benching.settle(options.device, options.threads)
    clock = benching.clock_of(options)
    raw = json.loads(FILES[options.size].read_text(encoding="utf-8"))
    policy = models.Policy(from_hf(raw), compute_dtype=options.dtype, attention=options.attention)
    peak = benching.peak_flops(options.dtype, clock, size=256 if options.smoke else 1024)["best"]
    view = engine.make_view(policy, models.init_params(policy, 0))
    found = []
    for cell in cells(options):
        reason = unfit(policy, cell, options, peak, benching.available_memory())
        line = dataclasses.asdict(cell)
        if reason is None:
            line |= measure(policy, view, cell, options, clock)
        found.append(line | {"left_out": reason})
        print(shown_line(found[-1]), flush=True)
    out = {
        "benchmark": "growth",
        "clock": clock,
        "size": options.size,
        "dtype": options.dtype,
        "new": options.new,
        "chunk": options.chunk,
        "machine": benching.machine(options.threads),
        "cells": found,
    }
    benching.emit(out, options.json, ["", benching.table(HEADER, [row(f) for f in found])])
    return out


def read(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benching.add_options(parser, 3)
    parser.add_argument("--size", choices=FILES, default="nano")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the base")
    parser.add_argument("--new", type=int, default=16, help="tokens of a reply")
    parser.add_argument("--chunk", type=int, default=32, help="tokens of a follow-up turn")
    parser.add_argument("--side", type=int, help="of a picture in tokens; default by size")
    parser.add_argument("--attention", default="auto", help="the kernel, see models/attention.py")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a prefill may take")
    for axis, values in AXES.items():
        parser.add_argument(f"--{axis}", nargs="*", type=int, default=list(values))
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
    options.side = options.side or SIDES[options.size]
    return options


def cells(options: argparse.Namespace) -> list[Cell]:
    """One axis at a time. With many pictures a prompt is as long as they ask for."""
    base = Cell("base", tokens=options.prompt)
    out = [dataclasses.replace(base, axis=a, **{a: v}) for a in ("batch", "tokens")
           for v in getattr(options, a)]  # fmt: skip
    text = options.prompt - shown_tokens(options, 1)
    for count in options.pictures:
        tokens = text + shown_tokens(options, count)
        out.append(dataclasses.replace(base, axis="pictures", pictures=count, tokens=tokens))
    if options.turns:
        out.append(dataclasses.replace(base, axis="turns", turns=max(options.turns)))
    return out


def shown_tokens(options: argparse.Namespace, pictures: int) -> int:
    return pictures * (options.side**2 + 2)


def unfit(policy, cell: Cell, options, peak: float, memory: int) -> str | None:
    """Why a cell can't run here, or None. Computed, so that nothing is tried that ends the run."""
    config, size = policy.config, 4 if options.dtype == "float32" else 2
    if cell.tokens <= shown_tokens(options, cell.pictures):
        return f"{cell.tokens} tokens have no room for {cell.pictures} pictures and text"
    slots = cell.tokens + cell.turns * (options.new + options.chunk)
    # The cache, a copy of it while it is repeated or donated, and the scores of a layer.
    cache = 2 * cell.batch * slots * roofline.slot_bytes(config.text, size)
    kernel = policy.kernel.chosen(cell.batch, config.text.heads, cell.tokens, slots, cache=True)
    scores = 3 * 4 * cell.batch * config.text.heads * cell.tokens * slots
    need = cache + (scores if kernel == "xla" else 0)
    if need > 0.7 * memory:
        return f"needs {need / 1e9:.1f} GB, of {memory / 1e9:.1f} GB that are free"
    patches = (options.side * config.vision.merge) ** 2
    work = roofline.prefill(
        config, cell.batch, cell.tokens, cell.batch * cell.pictures, patches, size
    )
    seconds = work.flops / peak
    if seconds > options.limit:
        return f"its prefill takes {seconds:.0f} s at the measured peak, --limit is {options.limit}"
    return None


# --- a cell --------------------------------------------------------------------------------------


def measure(policy, view, cell: Cell, options, clock: str) -> dict[str, Any]:
    """Median seconds: prefill, a decode step, and of each later turn the append and a step."""
    sequences = prompts(policy, cell, options)
    room = cell.turns * (options.new + options.chunk)
    asked = inference.Options(room, temperature=1.0, stop_ids=(-1,))
    rows, new = cell.batch, options.new
    active, stops = np.ones(rows, bool), asked.stops(policy)
    numbers = np.arange(rows, dtype=np.int32)

    def decode(state, turn):
        keys = engine.make_keys(jax.random.key(0), 0, numbers, numbers, turn)
        state, out = engine.decode(
            policy, view, state, active, keys, asked.sampling, stops, new, new
        )
        return state, np.asarray(out.tokens)

    def once() -> Stages:
        stages = {}
        stages["prefill"], state = benching.timed(
            lambda: inference.prefill(policy, view, sequences, asked)
        )
        stages["decode 1"], (state, said) = benching.timed(lambda: decode(state, 0))
        for turn in range(2, cell.turns + 1):
            chunk = follow(policy, state, said[:, -1], options.chunk)
            stages[f"append {turn}"], state = benching.timed(
                lambda state=state, chunk=chunk: engine.append(policy, view, state, chunk)
            )
            stages[f"decode {turn}"], (state, said) = benching.timed(
                lambda state=state, turn=turn: decode(state, turn - 1)
            )
        return stages

    runs = benching.interleaved({"ours": once}, options.repeat)["ours"]
    return results(runs, cell, options, policy, clock)


def prompts(policy, cell: Cell, options) -> list[Sequence]:
    """A prompt a row: pictures between their marks, then text."""
    rng, config = np.random.default_rng(0), policy.config
    merge, side = config.vision.merge, options.side
    grid = (1, side * merge, side * merge)
    features = config.vision.channels * config.vision.patch**2
    count = layout.token_count(grid, merge)
    shown = [config.vision_start_token_id, *[config.image_token_id] * count]
    shown = np.array([*shown, config.vision_end_token_id] * cell.pictures, np.int32)
    out = []
    for _ in range(cell.batch):
        text = rng.integers(3, 300, cell.tokens - shown.size).astype(np.int32)
        patches = rng.integers(0, 256, (count * merge**2, features), np.uint8)
        pictures = (Picture(patches, grid),) * cell.pictures
        out.append(Sequence(np.concatenate([shown, text]), pictures))
    return out


def follow(policy, state, pending: np.ndarray, tokens: int) -> engine.Chunk:
    """A follow-up turn of every row: the token that was drawn last, then text."""
    rows = len(pending)
    ids = np.random.default_rng(1).integers(3, 300, (rows, tokens)).astype(np.int32)
    ids[:, 0] = pending
    start = np.asarray(state.next_position)
    position = start[:, None] + np.arange(tokens, dtype=np.int32)
    positions = np.broadcast_to(position, (3, rows, tokens)).copy()
    return engine.Chunk(ids, np.full(rows, tokens, np.int32), positions, start + tokens, None)


def results(runs: list[Stages], cell: Cell, options, policy, clock: str) -> dict[str, Any]:
    found = benching.by_stage(runs, clock)
    steps = {name: s.median / options.new for name, s in found.items() if "decode" in name}
    appends = {name: s for name, s in found.items() if "append" in name}
    held = cell.tokens + options.new - 1  # when the second turn comes
    out = {
        "prefill": found["prefill"],
        "prefill_ms_a_token": 1e3 * found["prefill"].median / (cell.batch * cell.tokens),
        "step_ms": {name: 1e3 * s for name, s in steps.items()},
        "append_ms": {name: 1e3 * s.median for name, s in appends.items()},
        "cache_bytes": cell.batch * held * roofline.slot_bytes(policy.config.text,
                                                               policy.dtype.itemsize),
        "own_share": options.chunk / cell.tokens,
        "seconds": benching.report(runs),
    }  # fmt: skip
    if "append 2" in found:
        out["append_over_prefill"] = found["append 2"].median / found["prefill"].median
    return out


# --- output --------------------------------------------------------------------------------------

HEADER = (
    "axis", "rows", "turns", "pictures", "tokens", "prefill ms", "ms a token", "step ms",
    "tokens/s", "append ms, turn 2", "append / prefill", "own share", "last turn: append, step ms",
)  # fmt: skip


def row(found: dict[str, Any]) -> list[Any]:
    """A cell's line."""
    start = [found[k] for k in ("axis", "batch", "turns", "pictures", "tokens")]
    if found["left_out"]:
        return [*start, f"not measured: {found['left_out']}", *[None] * (len(HEADER) - 6)]
    prefill, steps, appends = found["prefill"], found["step_ms"], found["append_ms"]
    last = f"decode {found['turns']}"
    later = f"{benching.number(list(appends.values())[-1])}, {benching.number(steps[last])}"
    return [
        *start, benching.Spread(*(1e3 * getattr(prefill, k) for k in ("median", "low", "high"))),
        found["prefill_ms_a_token"], steps["decode 1"], 1e3 * found["batch"] / steps["decode 1"],
        appends.get("append 2"), found.get("append_over_prefill"), found["own_share"], later,
    ] if appends else [
        *start, 1e3 * prefill.median, found["prefill_ms_a_token"], steps["decode 1"],
        1e3 * found["batch"] / steps["decode 1"], None, None, None, None,
    ]  # fmt: skip


def shown_line(found: dict[str, Any]) -> str:
    """A cell while others run."""
    return ", ".join(
        f"{name} {benching.shown(cell)}" for name, cell in zip(HEADER, row(found), strict=True)
        if cell is not None
    )  # fmt: skip


if __name__ == "__main__":
    main()
