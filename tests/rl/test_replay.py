"""The replay ring against a plain Python model, its sampling laws, and sharded against not."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vrrl_jax.rl import replay

CAPACITY, BATCH = 8, 5
EXAMPLE = {"id": jnp.zeros((), jnp.int32), "tokens": jnp.zeros((3,), jnp.float32)}


def _batch(ids):
    ids = np.asarray(ids, np.int32)
    return {"id": ids, "tokens": np.repeat(ids[:, None], 3, 1).astype(np.float32) / 2}


_add = jax.jit(replay.add, donate_argnums=0)
_sample = jax.jit(
    lambda state, seed, n, replacement, exponent: replay.sample(
        state, jax.random.key(seed), n, replacement=replacement, exponent=exponent
    ),
    static_argnums=(2, 3),
)
_draws = jax.jit(
    lambda state, n, replacement, exponent, offset=0.0: jax.vmap(
        lambda k: replay.sample(
            state, k, n, replacement=replacement, exponent=exponent, offset=offset
        )
    )(jax.random.split(jax.random.key(0), 8000)),
    static_argnums=(1, 2),
)
_can_sample = jax.jit(replay.can_sample)

# Thousands of random operations: many rings beside one another, each through a long sequence.
RINGS, STEPS, ENOUGH = 48, 60, (1, 5, 9)


@functools.partial(jax.jit, static_argnums=0)
def _lives(capacity, operations):
    """After every operation of every ring: the ring, draws with and without replacement, and
    whether so many could be drawn."""

    def _live(state, operation):
        state = jax.lax.cond(operation["clear"], replay.clear, lambda s: s, state)
        state = replay.add(state, operation["batch"], operation["mask"], operation["priority"])
        law = {name: operation[name] for name in ("exponent", "offset")}
        draws = [
            replay.sample(state, operation["key"], 6, replacement=replacement, **law)
            for replacement in (False, True)
        ]
        can = jnp.stack([replay.can_sample(state, n, **law) for n in ENOUGH])
        return state, (state, draws, can)

    live = lambda operations: jax.lax.scan(_live, replay.init(EXAMPLE, capacity), operations)[1]
    return jax.vmap(live)(operations)


def _operations(rng):
    shape = (RINGS, STEPS, BATCH)
    ids = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return {
        "batch": {"id": ids, "tokens": np.repeat(ids[..., None], 3, -1).astype(np.float32) / 2},
        "mask": rng.random(shape) < rng.choice([0.0, 0.5, 1.0], (*shape[:2], 1)),
        "priority": rng.choice(np.float32([0, 0, 1, 2, -2, np.nan, np.inf]), shape),
        "clear": rng.random(shape[:2]) < 0.05,
        "exponent": rng.choice(np.float32([0, 0.7, 1, 3]), shape[:2]),
        "offset": rng.choice(np.float32([0, 0, 1e-4, 0.5]), shape[:2]),
        "key": jax.random.split(jax.random.key(0), shape[:2]),
    }


@pytest.mark.parametrize("capacity", [3, CAPACITY, 11])
def test_random_operations_agree_with_a_deque(capacity):
    operations = _operations(np.random.default_rng(capacity))
    states, draws, can = jax.device_get(_lives(capacity, operations))
    held = states.payload["id"]
    for batch, indices, _ in draws:
        assert (np.take_along_axis(held, indices, -1) == batch["id"]).all()
        assert (batch["tokens"] == batch["id"][..., None] / 2).all()
    drawn = [(np.where(ok, batch["id"], -1), ok.sum(-1), ok) for batch, _, ok in draws]
    done = {name: operations[name] for name in ("mask", "priority", "clear", "exponent", "offset")}
    around = 0
    for at in np.ndindex(RINGS, STEPS):
        mask, priority, clear, exponent, offset = (column[at] for column in done.values())
        if at[1] == 0 or clear:
            model, count = collections.deque(maxlen=capacity), 0
        for i in np.flatnonzero(mask):
            model.append((count % capacity, operations["batch"]["id"][at][i], priority[i]))
            count += 1
        around += count > capacity
        # Every row lies where it should, and nothing else is held.
        assert (states.size[at], states.cursor[at]) == (len(model), count % capacity)
        assert len({slot for slot, _, _ in model}) == len(model)
        there, weights = held[at].tolist(), states.priority[at].tolist()
        drawable = set()
        for slot, i, p in model:
            assert there[slot] == i and (weights[slot] == p or p != p)
            # Not so for NaN.
            if abs(p) + offset < np.inf and (exponent == 0 or abs(p) + offset > 0):
                drawable.add(int(i))
        for replacement, (ids, drew, ok) in zip((False, True), drawn, strict=True):
            got = ids[at][: drew[at]].tolist()
            assert set(got) <= drawable and ok[at][: len(got)].all()
            if replacement:
                assert len(got) == 6 * bool(drawable)
            else:
                assert len(set(got)) == len(got) == min(6, len(drawable))
        assert can[at].tolist() == [len(drawable) >= n for n in ENOUGH]
    assert around > RINGS * STEPS / 3  # the sequences do go around the ring


def test_a_batch_larger_than_the_ring_leaves_its_last_rows():
    state = _add(replay.init(EXAMPLE, 4), _batch(range(11)), np.arange(11) != 9)
    assert sorted(state.payload["id"].tolist()) == [6, 7, 8, 10]
    state = _add(state, _batch([20, 21]))
    assert sorted(state.payload["id"].tolist()) == [8, 10, 20, 21]


def test_no_slot_is_written_twice_in_one_call(monkeypatch):
    # Which row would win is undefined, and only some devices show it.
    write, seen = replay.write_rows, []

    def _checked(payload, batch, slots):
        kept = [s for s in np.asarray(slots).tolist() if s < 4]
        assert len(set(kept)) == len(kept)
        seen.append(kept)
        return write(payload, batch, slots)

    monkeypatch.setattr(replay, "write_rows", _checked)
    replay.add(replay.init(EXAMPLE, 4), _batch(range(11)), np.arange(11) != 9)
    assert [len(kept) for kept in seen] == [4]


def _filled(priority):
    state, size = replay.init(EXAMPLE, CAPACITY), len(priority)
    ids, held = np.arange(2 * BATCH), np.arange(2 * BATCH) < size
    priority = np.resize(np.asarray(priority, np.float32), 2 * BATCH)
    for part in (slice(0, BATCH), slice(BATCH, 2 * BATCH)):
        state = _add(state, _batch(ids[part]), held[part], priority[part])
    return state


def test_uniform_without_replacement():
    _, indices, ok = _draws(_filled([0.0, 5.0, 1.0, 1.0, 2.0]), 4, False, 0.0)
    assert ok.all()
    np.testing.assert_allclose(np.bincount(indices[:, 0], minlength=5) / 8000, 0.2, atol=0.03)
    np.testing.assert_allclose(np.bincount(np.ravel(indices)) / 8000, 0.8, atol=0.03)


@pytest.mark.parametrize("exponent, offset", [(1.0, 0.0), (0.5, 0.0), (1.0, 0.25), (2.0, 1e-4)])
def test_prioritised_laws(exponent, offset):
    priority = np.array([-3.0, 0.0, 1.0, np.nan, 0.5, np.inf], np.float32)
    finite = np.array([1, 1, 1, 0, 1, 0])
    weights = finite * (np.array([3.0, 0, 1.0, 0, 0.5, 0]) + offset) ** exponent
    law = weights / weights.sum()
    state = _filled(priority)
    assert _can_sample(state, 4, exponent=exponent, offset=offset) == (offset > 0)
    _, indices, ok = _draws(state, 4, True, exponent, offset)
    assert ok.all()
    np.testing.assert_allclose(np.bincount(np.ravel(indices), minlength=6) / 32000, law, atol=0.02)
    # Without replacement: the second draw follows the law of what is left.
    _, indices, ok = map(np.asarray, _draws(state, 4, False, exponent, offset))
    assert (ok == [True, True, True, offset > 0]).all()
    np.testing.assert_allclose(np.bincount(indices[:, 0], minlength=6) / 8000, law, atol=0.03)
    second = sum(
        law[i] * np.where(np.arange(6) == i, 0, law) / (1 - law[i]) for i in range(6) if law[i]
    )
    np.testing.assert_allclose(np.bincount(indices[:, 1], minlength=6) / 8000, second, atol=0.03)


def test_empty_and_cleared_buffers_draw_nothing():
    empty = replay.init(EXAMPLE, CAPACITY)
    cleared = replay.clear(_filled([1.0, 2.0]))
    zero = _filled([0.0, 0.0])
    for state, exponent in ((empty, 0.0), (cleared, 0.0), (empty, 1.0), (zero, 1.0)):
        for replacement in (False, True):
            batch, indices, ok = _sample(state, 0, 6, replacement, exponent)
            assert not ok.any() and ((indices >= 0) & (indices < CAPACITY)).all()
            assert np.isfinite(batch["tokens"]).all()
        assert not _can_sample(state, 1, exponent=exponent)
    assert cleared.size == 0
    _, indices, ok = _sample(_filled([1.0]), 0, 12, False, 0.0)
    assert indices.shape == (12,) and ok.sum() == 1


def test_bad_rows_are_refused():
    state = replay.init(EXAMPLE, 4)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 1\)"):
        replay.add(state, {"id": np.zeros(2, np.int32), "tokens": np.zeros((2, 1))})
    with pytest.raises(ValueError, match="tokens"):
        replay.add(state, {"id": np.zeros(2, np.int32)})
    with pytest.raises(ValueError, match="truncate"):
        replay.add(state, {"id": np.zeros(2), "tokens": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="capacity"):
        replay.init(EXAMPLE, 0)


def test_sharded_equals_unsharded_and_gathers_no_payload():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    everywhere = NamedSharding(mesh, PartitionSpec())
    example = {"id": EXAMPLE["id"], "tokens": jnp.zeros((40,), jnp.float32)}
    init = functools.partial(replay.init, example, 256)
    shapes = jax.eval_shape(init)
    split = jax.tree.map(lambda _: rows, shapes.payload)
    shardings = jax.tree.map(lambda _: everywhere, shapes)._replace(payload=split)
    state = jax.jit(init, out_shardings=shardings)()
    add = jax.jit(
        replay.add,
        in_shardings=(shardings, split, everywhere, everywhere),
        out_shardings=shardings,
        donate_argnums=0,
    )
    sample = jax.jit(
        functools.partial(replay.sample, n=16, exponent=1.0),
        in_shardings=(shardings, everywhere),
        out_shardings=(split, everywhere, everywhere),
    )
    plain, rng, key = init(), np.random.default_rng(0), jax.random.key(3)
    batch = {"id": np.zeros(32, np.int32), "tokens": np.zeros((32, 40), np.float32)}
    add = add.lower(state, batch, np.ones(32, bool), np.ones(32, np.float32)).compile()
    sample = sample.lower(state, key).compile()
    for step in range(10):
        ids = np.arange(step * 32, step * 32 + 32, dtype=np.int32)
        batch = {"id": ids, "tokens": rng.normal(size=(32, 40)).astype(np.float32)}
        mask, priority = rng.random(32) < 0.9, rng.random(32).astype(np.float32)
        plain = _add(plain, batch, mask, priority)
        placed = jax.device_put((batch, mask, priority), (split, everywhere, everywhere))
        state = add(state, *placed)
    assert state.size == 256 and state.payload["tokens"].sharding.is_equivalent_to(rows, 2)
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    expected = _sample(plain, 3, 16, False, 1.0)
    got = sample(state, jax.device_put(key, everywhere))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    # What crosses devices is the batch (32 or 16 rows), never the ring.
    for text in (add.as_text(), sample.as_text()):
        moved = re.findall(r"= \w+\[(\d*)\S* (?:all-\w+|collective-permute|reduce-scatter)\(", text)
        assert moved and all(int(size or 1) <= 32 for size in moved)
