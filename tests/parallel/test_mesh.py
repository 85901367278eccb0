"""Meshes, rows put onto them, and the layout of buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from vrrl_jax.parallel import mesh as meshes
from vrrl_jax.parallel.mesh import canonical, make_mesh, put_rows
from vrrl_jax.rl import prefix_buffer, replay

DEVICES = 8


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({}, (1, 1, 1)),
        ({"data": 8}, (8, 1, 1)),
        ({"fsdp": 4, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 3}, (3, 1, 1)),
        ({"data": -1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"fsdp": -1, "tensor": 8}, (1, 1, 8)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
    ],
)
def test_sizes(sizes, shape):
    mesh = make_mesh(**sizes)
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp", "tensor")) == shape
    assert mesh.devices.size == np.prod(shape) <= DEVICES
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": 16}, "data=16 fsdp=1 tensor=1 needs 16 devices, 8 are there"),
        ({"fsdp": 3, "tensor": 3}, "needs 9 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 0}, "positive"),
        ({"tensor": -2}, "positive"),
        ({"data": -1, "fsdp": 3}, "8 devices don't divide by 3"),
        ({"data": -1, "fsdp": 16}, "8 devices don't divide by 16"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_other_peoples_meshes_get_our_axes():
    devices = np.array(jax.devices()).reshape(2, 4)
    ours = canonical(Mesh(devices, ("tensor", "fsdp")))
    assert dict(ours.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert (ours.devices[0] == devices.T).all()
    assert set(ours.axis_types) == {AxisType.Auto}
    assert canonical(make_mesh(2, 2, 2)) == make_mesh(2, 2, 2)
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    assert canonical(explicit) == make_mesh(data=8)
    with pytest.raises(ValueError, match=r"\['model'\].*data, fsdp, tensor"):
        canonical(Mesh(devices, ("fsdp", "model")))


# --- rows ----------------------------------------------------------------------------------------


def test_rows_are_split_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert meshes.row_parts(mesh) == 4 and meshes.row_parts(None) == 1
    host = {"a": np.arange(24).reshape(8, 3), "b": np.arange(8)}
    placed = put_rows(mesh, host)
    jax.tree.map(np.testing.assert_array_equal, placed, host)
    assert {s.data.shape for s in placed["a"].addressable_shards} == {(2, 3)}
    positions = put_rows(mesh, np.zeros((3, 8, 5)), axis=1)
    assert {s.data.shape for s in positions.addressable_shards} == {(3, 2, 5)}
    assert put_rows(None, host) is host


def test_indivisible_rows_are_refused():
    with pytest.raises(ValueError, match=r"6 rows don't divide over data\*fsdp=4"):
        put_rows(make_mesh(fsdp=4), np.zeros((6, 2)))


# --- buffers -------------------------------------------------------------------------------------


def example():
    return {"tokens": jnp.zeros((5,), jnp.int32), "score": jnp.zeros((), jnp.float32)}


def rows(n, seed):
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, 99, (n, 5), np.int32),
        "score": rng.random(n, dtype=np.float32),
    }


def born(mesh, init):
    return jax.jit(init, out_shardings=meshes.buffer_shardings(mesh, jax.eval_shape(init)))()


def assert_split(buffer, parts):
    """The payload in `parts` parts, everything else whole on every device."""
    for leaf in jax.tree.leaves(buffer.payload):
        sizes = [s.data.shape[0] for s in leaf.addressable_shards]
        assert sizes == [leaf.shape[0] // parts] * DEVICES
        assert len({s.index[0].start or 0 for s in leaf.addressable_shards}) == parts
    for leaf in jax.tree.leaves(buffer._replace(payload=None)):
        assert all(s.data.shape == leaf.shape for s in leaf.addressable_shards)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_replay_is_one_global_buffer_on_a_mesh(sizes):
    mesh = make_mesh(*sizes)
    parts = sizes[0] * sizes[1]

    def step(mesh, state, batch, key):
        priority = batch["score"]
        state = replay.add(state, batch, mask=priority > 0.2, priority=priority)
        drawn, slots, ok = replay.sample(state, key, 4, exponent=1.0)
        return meshes.constrain_buffer(mesh, state), drawn, slots, ok

    step = jax.jit(step, static_argnums=0, donate_argnums=1)
    init = lambda: replay.init(example(), 16)
    alone, split = init(), born(mesh, init)
    assert_split(split, parts)
    for i in range(3):  # 24 rows: the ring comes round
        key = jax.random.key(i)
        alone, *drawn = step(None, alone, rows(8, i), key)
        split, *theirs = step(mesh, split, rows(8, i), key)
        assert_split(split, parts)
        jax.tree.map(np.testing.assert_array_equal, (split, theirs), (alone, drawn))
    assert int(alone.size) == 16 and drawn[-1].all()


def test_prefix_buffer_is_one_global_buffer_on_a_mesh():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def step(mesh, state, batch, key, now):
        turns = batch["tokens"][:, 0] % 3
        right = batch["score"] > 0.5
        state = prefix_buffer.add(
            state, batch, question=batch["tokens"][:, 1] % 4, turns=turns, right=right, step=now
        )
        state, slots, ok = prefix_buffer.sample(state, key, 4, step=now)
        return meshes.constrain_buffer(mesh, state), prefix_buffer.gather(state, slots), ok

    step = jax.jit(step, static_argnums=0, donate_argnums=1)
    init = lambda: prefix_buffer.init(example(), 16)
    alone, split = init(), born(mesh, init)
    for i in range(3):
        alone, *drawn = step(None, alone, rows(8, i), jax.random.key(i), i)
        split, *theirs = step(mesh, split, rows(8, i), jax.random.key(i), i)
        assert_split(split, 4)
        jax.tree.map(np.testing.assert_array_equal, (split, theirs), (alone, drawn))
    assert drawn[-1].all() and alone.valid.all()


def test_a_capacity_that_does_not_divide_is_refused():
    buffer = jax.eval_shape(lambda: replay.init(example(), 18))
    with pytest.raises(ValueError, match=r"a buffer of 18 rows .* data\*fsdp=4"):
        meshes.buffer_shardings(make_mesh(fsdp=4), buffer)


def test_no_mesh_changes_nothing():
    buffer = replay.init(example(), 4)
    assert meshes.constrain_buffer(None, buffer) is buffer
    assert meshes.row_axes(make_mesh(fsdp=4), 8) == ("data", "fsdp")
    assert meshes.row_axes(make_mesh(fsdp=4), 6) is None
    assert meshes.row_sharding(make_mesh(fsdp=4)).spec == P(("data", "fsdp"))
