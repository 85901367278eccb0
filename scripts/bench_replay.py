"""Times the buffers: what adding to them and sampling from them costs a training step.

    JAX_PLATFORMS=cpu python scripts/bench_replay.py                     # both settings, in ms
    JAX_PLATFORMS=cpu python scripts/bench_replay.py --setting nano --step-seconds 8

`nano` is a step of the shipped policy on FrozenLake, `large` one of published sizes; `large` holds
4 GB of rows and pictures. Shares are of `--step-seconds`, what a whole step of the run takes. One
line of JSON (ms, the fastest of --repeat: other programs' load is not the buffers'), then a table:

    rows     episodes to arrays on the host, pictures digested
    add      into the ring of trained samples
    draw     from it by |advantage|, onto the host
    rebuild  the drawn episodes, their pictures drawn again (nano alone: it has an environment)
    prefix add, prefix sample   the same two of the buffer of prefixes, payloads onto the host
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time

import jax
import numpy as np

from vrrl_jax import testing, trajectories
from vrrl_jax.envs import frozenlake
from vrrl_jax.processing import encode
from vrrl_jax.processing import processor as processing
from vrrl_jax.rl import prefix_buffer
from vrrl_jax.types import Episode, Picture

FIELDS = (
    "loss_mask", "logprobs", "advantages", "returns", "values", "rewards", "weights", "hidden"
)  # fmt: skip
SAMPLES = 8  # episodes a question
PROPOSED = ("<ANSWER>right</ANSWER>", "<THINK> step 1 hole</THINK><ANSWER>down</ANSWER>")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of a run.

    Attributes:
      capacity, slots, turns: of the ring of trained samples.
      batch: samples added, and drawn, a step.
      prefixes, prefix_turns, reply: slots of the prefix buffer, replies of a prefix, tokens each.
      sampled: prefixes drawn a step.
    """

    capacity: int
    slots: int
    turns: int
    batch: int
    prefixes: int
    prefix_turns: int
    reply: int
    sampled: int


SETTINGS = {
    "nano": Setting(10_000, 288, 4, 256, 2_048, 3, 42, 32),
    "large": Setting(10_000, 4_096, 8, 512, 10_000, 7, 522, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="default: both")
    parser.add_argument("--repeat", type=int, default=10, help="timed steps")
    parser.add_argument("--step-seconds", type=float, help="print shares of a step of so long")
    options = parser.parse_args()
    names = options.setting or list(SETTINGS)
    found = {name: measure(name, SETTINGS[name], options.repeat) for name in names}
    print(json.dumps({"unit": "ms", "device": jax.devices()[0].device_kind, **found}))
    for name, times in found.items():
        sizes = SETTINGS[name]
        print(f"\n{name}: {sizes}, {len(FIELDS)} fields")
        for what, ms in (*times.items(), ("a step", sum(times.values()))):
            share = ""
            if options.step_seconds:
                share = f"  {ms / 10 / options.step_seconds:8.3f} %"
            print(f"  {what:<14}{ms:10.2f} ms{share}")


def measure(name: str, sizes: Setting, repeat: int) -> dict[str, float]:
    """Milliseconds of each part, the buffers full."""
    maps = testing.tiny_maps(4)
    episodes = played(maps, sizes) if name == "nano" else invented(sizes)
    return _samples(name, sizes, episodes, maps, repeat) | _prefixes(sizes, repeat)


def _samples(name, sizes: Setting, episodes: list[Episode], maps, repeat: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    n = sizes.batch
    fields = {f: rng.normal(size=(n, sizes.slots)).astype(np.float32) for f in FIELDS}
    advantage = rng.normal(size=n).astype(np.float32)
    rows = functools.partial(
        trajectories.rows, episodes, fields, sizes.slots, sizes.turns,
        advantage=advantage, serials=np.arange(n), step=0, count=n,
    )  # fmt: skip
    state = trajectories.empty(sizes.slots, sizes.turns, FIELDS, sizes.capacity)
    batch, on = rows(), np.ones(n, bool)
    while state.size < sizes.capacity:
        state = trajectories.add(state, batch, on, np.abs(advantage))

    def add():
        nonlocal state
        state = trajectories.add(state, batch, on, np.abs(advantage))
        jax.block_until_ready(state)

    keys = iter(jax.random.split(jax.random.key(0), 10 * repeat))
    draw = lambda: trajectories.draw(state, next(keys), n, replacement=False, exponent=1)
    times = {
        "rows": timed(rows, repeat),
        "add": timed(add, repeat),
        "draw": timed(draw, repeat),
    }
    if name == "nano":
        board, processor = testing.tiny_environment(sizes.turns), testing.tiny_processor()
        drawn, _ = draw()
        found = [jax.tree.map(lambda a, i=i: a[i], drawn) for i in range(n)]

        def rebuild():
            for row in found:
                example = maps[row["question"]]
                trajectories.rebuild(row, example, board, processor)

        times["rebuild"] = timed(rebuild, repeat)
    return times


def _prefixes(sizes: Setting, repeat: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    shape = (sizes.prefix_turns, sizes.reply)
    row = {
        "tokens": np.zeros(shape, np.int32),
        "logprobs": np.zeros(shape, np.float32),
        "counts": np.zeros(shape[:1], np.int32),
    }
    n = sizes.batch
    batch = {k: np.broadcast_to(v, (n, *v.shape)).copy() for k, v in row.items()}
    program = jax.jit(prefix_buffer.add, donate_argnums=0)
    state = prefix_buffer.init(row, sizes.prefixes)
    draw_labels = lambda: {
        "question": rng.integers(0, 3_000, n).astype(np.int32),
        "turns": rng.integers(1, sizes.prefix_turns + 1, n).astype(np.int32),
        "right": rng.random(n) < 0.5,
        "step": np.int32(0),
        "max_per_question": np.int32(3),
    }

    def add():
        nonlocal state
        state = program(state, batch, **draw_labels())
        jax.block_until_ready(state)

    @functools.partial(jax.jit, donate_argnums=0)
    def drawn(state, key):
        state, slots, ok = prefix_buffer.sample(state, key, sizes.sampled, step=0)
        return prefix_buffer.reset_used(state), (prefix_buffer.gather(state, slots), ok)

    keys = iter(jax.random.split(jax.random.key(0), 10 * repeat))

    def sample():
        nonlocal state
        state, out = drawn(state, next(keys))
        jax.device_get(out)

    for _ in range(2 * sizes.prefixes // n):
        add()
    return {"prefix add": timed(add, repeat), "prefix sample": timed(sample, repeat)}


def timed(what, repeat: int) -> float:
    """Milliseconds of the fastest call, after one that compiles."""
    what()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        what()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


# --- episodes ------------------------------------------------------------------------------------


def played(maps, sizes: Setting) -> list[Episode]:
    """FrozenLake with as many replies as an episode may have."""
    board, processor = testing.tiny_environment(sizes.turns), testing.tiny_processor()
    out = []
    for b in range(sizes.batch):
        question = b // SAMPLES % len(maps)
        prompt, parts, pictures, spans, texts = board.reset(maps[question]), [], [], [], []
        for turn in range(sizes.turns):
            chunk = (encode.next_chunk if turn else encode.first_chunk)(processor, prompt)
            text = PROPOSED[min(turn, 1)]
            reply = [*processing.encode(processor, text), processor.ids.im_end]
            parts += [chunk.tokens, np.int32(reply)]
            end = sum(map(len, parts))
            spans.append((end - len(reply), end))
            pictures += chunk.pictures
            texts.append(text)
            prompt = frozenlake.step(maps[question], text, turn, board.settings).prompt
        out.append(_episode(question, np.concatenate(parts), pictures, spans, texts))
    return out


def invented(sizes: Setting) -> list[Episode]:
    """As many tokens as fit, a picture of 1,024 patches a turn; a group shares its first."""
    rng = np.random.default_rng(0)
    picture = lambda: Picture(rng.integers(0, 256, (1_024, 588), np.uint8), (1, 32, 32))
    tokens = rng.integers(0, 150_000, sizes.slots).astype(np.int32)
    ends = np.linspace(0, sizes.slots, sizes.turns + 1).astype(int)[1:]
    spans = [(int(b) - 100, int(b)) for b in ends]
    out = []
    for question in range(sizes.batch // SAMPLES):
        first = picture()
        for _ in range(SAMPLES):
            pictures = [first, *(picture() for _ in range(sizes.turns - 1))]
            out.append(_episode(question, tokens, pictures, spans, ()))
    return out


def _episode(question, tokens, pictures, spans, texts) -> Episode:
    zeros = np.zeros(tokens.size, np.float32)
    return Episode(
        question=question, sample=0, group=0, tokens=tokens, loss_mask=zeros,
        turn_index=np.zeros(tokens.size, np.int32), logprobs=zeros, pictures=tuple(pictures),
        texts=tuple(texts), spans=tuple(spans), rewards={},
    )  # fmt: skip


if __name__ == "__main__":
    main()
