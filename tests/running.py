"""What tests of whole runs look at: checkpoints, metrics, and trees that must be equal."""

import jax
import numpy as np

from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.log import read_metrics


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
