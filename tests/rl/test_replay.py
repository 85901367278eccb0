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
    lambda state, n, replacement, exponent: jax.vmap(
        lambda k: replay.sample(state, k, n, replacement=replacement, exponent=exponent)
    )(jax.random.split(jax.random.key(0), 8000)),
    static_argnums=(1, 2),
)
_can_sample = jax.jit(replay.can_sample)


def test_random_operations_agree_with_a_deque():
    rng = np.random.default_rng(0)
    next_id = 0
    for sequence in range(60):
        state, model = replay.init(EXAMPLE, CAPACITY), collections.deque(maxlen=CAPACITY)
        for _ in range(6):
            ids = np.arange(next_id, next_id + BATCH)
            next_id += BATCH
            mask = rng.random(BATCH) < rng.choice([0.0, 0.5, 1.0])
            priority = rng.integers(0, 3, BATCH).astype(np.float32)
            state = _add(state, _batch(ids), mask, priority)
            model.extend((i, p) for i, p, m in zip(ids, priority, mask, strict=True) if m)

            held = dict(zip(np.asarray(state.payload["id"]), state.priority.tolist(), strict=True))
            slots = np.asarray(state.payload["id"])[: int(state.size)]
            assert sorted((i, held[i]) for i in slots) == sorted(model)
            assert int(state.size) == len(model)

            for replacement, exponent in ((False, 0.0), (False, 1.0), (True, 0.7)):
                batch, indices, ok = _sample(state, next_id, 6, replacement, exponent)
                got = np.asarray(batch["id"])[np.asarray(ok)]
                np.testing.assert_array_equal(state.payload["id"][indices], batch["id"])
                np.testing.assert_array_equal(batch["tokens"], _batch(batch["id"])["tokens"])
                drawable = {i for i, p in model if p > 0 or exponent == 0}
                assert set(got) <= drawable
                if replacement:
                    assert ok.all() == ok.any() == bool(drawable)
                else:
                    assert len(set(got)) == len(got) == min(6, len(drawable))
                    assert ok[: len(got)].all()
                for n in (1, 5, 9):
                    assert _can_sample(state, n, exponent=exponent) == (len(drawable) >= n)
        if sequence == 0:
            assert len(model) == CAPACITY  # the sequences do go around the ring


def test_a_batch_larger_than_the_ring_leaves_its_last_rows():
    state = replay.add(replay.init(EXAMPLE, 4), _batch(range(11)), np.arange(11) != 9)
    assert sorted(state.payload["id"].tolist()) == [6, 7, 8, 10]
    state = replay.add(state, _batch([20, 21]))
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


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_prioritised_laws(exponent):
    priority = np.array([-3.0, 0.0, 1.0, np.nan, 0.5, np.inf], np.float32)
    weights = np.array([3.0, 0, 1.0, 0, 0.5, 0]) ** exponent
    law = weights / weights.sum()
    state = _filled(priority)
    _, indices, ok = _draws(state, 4, True, exponent)
    assert ok.all()
    np.testing.assert_allclose(np.bincount(np.ravel(indices), minlength=6) / 32000, law, atol=0.02)
    # Without replacement: the second draw follows the law of what is left.
    _, indices, ok = map(np.asarray, _draws(state, 4, False, exponent))
    assert (ok == [True, True, True, False]).all()
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
