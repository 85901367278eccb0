"""Resumable checkpoints: what comes back is what went in, or an error that says why not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax.checkpoint import state as checkpoints


class Counts(NamedTuple):
    step: jax.Array
    used: jax.Array


def make(seed: int):
    """A tree with everything a run saves: nested dicts, optax states, counters, masks."""
    rng = np.random.default_rng(seed)
    params = {
        "a": {"kernel": jnp.float32(rng.normal(size=(8, 4)))},
        "b": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    _, opt_state = tx.update(params, tx.init(params), params)
    counts = Counts(jnp.int32(seed), jnp.asarray(rng.random(6) < 0.5))
    return {"params": params, "opt": opt_state, "counts": counts}


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_what_was_saved_comes_back(tmp_path):
    tree, meta = make(3), {"cursor": 12, "rate": 0.1, "names": ["a", "b"]}
    with checkpoints.open_checkpoints(tmp_path / "new" / "folder") as saved:
        assert checkpoints.latest(saved) is None
        checkpoints.save(saved, 7, tree, meta)
    with checkpoints.open_checkpoints(tmp_path / "new" / "folder") as saved:
        assert checkpoints.latest(saved) == 7
        restored, found, step = checkpoints.restore(saved, zeros(tree))
    assert step == 7 and found == meta
    assert_same(restored, tree)


def test_the_newest_are_kept_and_any_of_them_can_be_read(tmp_path):
    with checkpoints.open_checkpoints(tmp_path, keep=2) as saved:
        for step in (1, 2, 3):
            checkpoints.save(saved, step, make(step), {"step": step})
    with checkpoints.open_checkpoints(tmp_path, keep=2) as saved:
        assert saved.all_steps() == [2, 3]
        assert_same(checkpoints.restore(saved, zeros(make(0)))[0], make(3))
        older, meta, step = checkpoints.restore(saved, zeros(make(0)), step=2)
    assert step == 2 and meta == {"step": 2}
    assert_same(older, make(2))


def test_a_step_is_saved_once(tmp_path):
    """A resumed run reaches a step that is there already."""
    with checkpoints.open_checkpoints(tmp_path) as saved:
        checkpoints.save(saved, 1, make(1), {})
        checkpoints.save(saved, 1, make(2), {})
        assert_same(checkpoints.restore(saved, zeros(make(0)))[0], make(1))


def test_arrays_may_be_donated_while_a_save_runs(tmp_path):
    """The next update overwrites the buffers before the background write is through."""
    scramble = jax.jit(lambda a: -2 * a, donate_argnums=0)
    tree = {"w": jnp.arange(300_000, dtype=jnp.float32)}
    wanted = np.array(tree["w"])
    with checkpoints.open_checkpoints(tmp_path) as saved:
        checkpoints.save(saved, 1, tree, {})
        for _ in range(3):
            tree["w"] = scramble(tree["w"])
        jax.block_until_ready(tree)
    with checkpoints.open_checkpoints(tmp_path) as saved:
        restored = checkpoints.restore(saved, zeros(tree))[0]
    assert (np.asarray(restored["w"]) == wanted).all()


def test_restored_arrays_lie_where_the_fresh_ones_lay(tmp_path):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    split = NamedSharding(mesh, P("data", "fsdp"))
    tree = {"w": jax.device_put(np.arange(64.0).reshape(8, 8), split)}
    with checkpoints.open_checkpoints(tmp_path) as saved:
        checkpoints.save(saved, 1, tree, {})
        # The same layout, another one, and a single device.
        for like in (tree["w"], jax.device_put(tree["w"], NamedSharding(mesh, P(None, "data")))):
            restored = checkpoints.restore(saved, {"w": jnp.zeros_like(like)})[0]["w"]
            assert restored.sharding.is_equivalent_to(like.sharding, 2)
            assert (np.asarray(restored) == np.asarray(tree["w"])).all()
        one = checkpoints.restore(saved, {"w": jnp.zeros((8, 8))})[0]["w"]
    assert len(one.devices()) == 1 and (np.asarray(one) == np.asarray(tree["w"])).all()


def test_raw_arrays_need_no_structure(tmp_path):
    tree = make(4)
    with checkpoints.open_checkpoints(tmp_path) as saved:
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            checkpoints.restore_raw(saved)
        checkpoints.save(saved, 2, tree, {})
    with checkpoints.open_checkpoints(tmp_path) as saved:
        raw = checkpoints.restore_raw(saved)
    assert (np.asarray(raw["params"]["a"]["kernel"]) == tree["params"]["a"]["kernel"]).all()
    assert (np.asarray(raw["counts"]["used"]) == tree["counts"].used).all()


def test_nothing_to_resume_is_an_error_that_names_the_folder(tmp_path):
    with (
        checkpoints.open_checkpoints(tmp_path) as saved,
        pytest.raises(FileNotFoundError, match=str(tmp_path)),
    ):
        checkpoints.restore(saved, make(0))


def with_b(tree, b):
    return tree | {"params": tree["params"] | {"b": b}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tree: tree | {"more": jnp.zeros(3)},
            r"more is missing there and float32\[3\] here",
        ),
        (lambda tree: {k: v for k, v in tree.items() if k != "counts"}, "2 arrays differ"),
        (lambda tree: tree | {"params": {"a": tree["params"]["a"]}}, "params/b .* missing here"),
        (lambda tree: with_b(tree, jnp.zeros(6, jnp.bfloat16)), r"\[5\] there .*\[6\] here"),
        (lambda tree: with_b(tree, jnp.zeros((5, 1), jnp.bfloat16)), r"\[5, 1\] here"),
        (lambda tree: with_b(tree, jnp.zeros(5)), r"bfloat16\[5\] there and float32\[5\] here"),
    ],
    ids=["more", "fewer", "a leaf fewer", "longer", "another rank", "another dtype"],
)
def test_another_configuration_s_checkpoint_is_refused(tmp_path, change, words):
    with checkpoints.open_checkpoints(tmp_path) as saved:
        checkpoints.save(saved, 1, make(0), {})
    with (
        checkpoints.open_checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=f"doesn't fit this configuration.*{words}"),
    ):
        checkpoints.restore(saved, change(zeros(make(0))))
