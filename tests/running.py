"""What tests of whole runs share: a recipe, its maps, how random replies are read, comparisons."""

import json
import pathlib

import jax
import numpy as np

from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.log import read_metrics

NAVIGATION = """
steps: 4
policy: {path: CHECKPOINT}
data: {path: MAPS}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {questions: 4, samples: 4, max_new_tokens: 4}
algorithm: {kl_coefficient: 0.1}
modes: {normal: 0.0, rtm: 0.5, roll_in: 0.5}
roll_in: {max_prefix_turns: 2, min_size: 1, capacity: 16, max_per_question: 2}
filter: {enabled: true, max_tries: 3}
optimizer: {learning_rate: 0.01, weight_decay: 0.0}
update: {rows_per_microbatch: 8}
checkpoint: {every: 2, keep: 5}
eval: {enabled: false}
log: {episodes_every: 2, episodes: 2, tensorboard: false}
"""
DEMONSTRATIONS = """
steps: 2
policy: {path: CHECKPOINT}
data: {levels: [3]}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
demonstrations: {max_turns: 3}
batch: {rows: 4, row_tokens: 128, picture_slots: 4, slot_patches: 64, sequences: 6}
optimizer: {learning_rate: 0.01, eps: 1.0e-3}
ema_decay: 0.9
checkpoint: {every: 2}
eval: {enabled: false}
log: {tensorboard: false}
"""
# What a clock, or the history of a process, decides.
INCIDENTAL = {"time", "compilations", "rollout_seconds", "update_seconds", "step_seconds"}
INCIDENTAL |= {"tokens_per_second"}


def say(processor, ids) -> str:
    """Reads a random reply as a proposal or a commit of "right", by its tokens alone."""
    del processor
    return f"<{'FINAL' if sum(map(int, ids)) % 2 else 'ANSWER'}>right</" + (
        "FINAL>" if sum(map(int, ids)) % 2 else "ANSWER>"
    )


def write_maps(path: pathlib.Path) -> pathlib.Path:
    """Six maps; "right" solves every other one."""
    records = []
    for i in range(6):
        layout = [list("FFF"), list("FFF"), list("FFF")]
        row, target = i // 2, (i // 2, 1) if i % 2 == 0 else ((i // 2 + 1) % 3, 2)
        layout[row][0], layout[target[0]][target[1]] = "S", "G"
        records.append(
            {
                "layout": ["".join(cells) for cells in layout],
                "start_pos": 3 * row,
                "target_pos": 3 * target[0] + target[1],
            }
        )
    path.write_text(json.dumps(records))
    return path


def saved_arrays(run_dir):
    """(step, arrays) of the newest checkpoint."""
    with checkpoints.open_checkpoints(run_dir / "checkpoints") as saved:
        return checkpoints.latest(saved), checkpoints.restore_raw(saved)


def lines(run_dir, incidental):
    """Metrics step by step, without those that a clock or the process's history decides."""
    return [
        {k: v for k, v in line.items() if k not in incidental}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


def assert_same(a, b):
    """Two trees of arrays, bit for bit."""
    flat, other = (jax.tree_util.tree_leaves_with_path(t) for t in (a, b))
    assert [p for p, _ in flat] == [p for p, _ in other]
    for (path, x), (_, y) in zip(flat, other, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)
