"""The prefix buffer against a plain Python model of its rules, its laws, and sharded runs."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vrrl_jax.rl import prefix_buffer, replay

CAPACITY, BATCH, N = 10, 4, 12
EXAMPLE = {"uid": jnp.zeros((), jnp.int32), "tokens": jnp.zeros((2,), jnp.int32)}


def _payload(uids):
    uids = np.asarray(uids, np.int32)
    return {"uid": uids, "tokens": np.stack([uids, uids + 1], 1)}


_add = jax.jit(prefix_buffer.add, donate_argnums=0)
_reset = jax.jit(prefix_buffer.reset_used)
_can_sample = jax.jit(prefix_buffer.can_sample)
_gather = jax.jit(prefix_buffer.gather)


@jax.jit
def _sample(state, seed, step, wrong_ratio, max_staleness, min_size, count):
    return prefix_buffer.sample(
        state,
        jax.random.key(seed),
        N,
        step=step,
        wrong_ratio=wrong_ratio,
        max_staleness=max_staleness,
        min_size=min_size,
        count=count,
    )


class Entry:
    """A prefix of the model."""

    def __init__(self, uid, question, turns, right, step):
        self.uid, self.question, self.turns = int(uid), int(question), int(turns)
        self.right, self.step, self.used = bool(right), int(step), False

    def record(self):
        return self.uid, self.question, self.turns, self.right, self.step, self.used


def _model_add(entries, new, max_per_question):
    """The rules of `add` on a list in order of arrival."""
    same = [e for e in entries if e.question == new.question]
    if len(same) >= max_per_question:
        alike = [e for e in same if e.turns == new.turns]
        if not alike:
            counts = collections.Counter(e.turns for e in same)
            alike = [e for e in same if counts[e.turns] == max(counts.values())]
        entries.remove(alike[0])
    elif len(entries) == CAPACITY:
        entries.pop(0)
    entries.append(new)


def _records(state, at=()):
    """What the buffer holds, oldest first; `at` is its place among several."""
    fields = [state.payload["uid"], state.question, state.turns, state.right, state.step]
    fields = [np.asarray(x)[at].tolist() for x in (*fields, state.used, state.order, state.valid)]
    rows = sorted(zip(*fields, strict=True), key=lambda r: r[6])
    return [tuple(r[:6]) for r in rows if r[7]]


def _round_robins(sizes, n):
    """Every result of drawing n by round-robin: {turns: drawn}, one for each start."""
    turns = sorted(t for t, size in sizes.items() if size)
    results = []
    for start in range(max(len(turns), 1)):
        left, drawn = dict(sizes), collections.Counter()
        cycle = turns[start:] + turns[:start]
        while sum(drawn.values()) < n and any(left.values()):
            for t in cycle:
                if left[t] and sum(drawn.values()) < n:
                    left[t] -= 1
                    drawn[t] += 1
        results.append(drawn)
    return results


def _check_draw(available, drawn, count, wrong_ratio):
    """Whether `drawn` can come out of the rules applied to `available`."""
    strata = {
        right: collections.Counter(e.turns for e in available if e.right == right)
        for right in (False, True)
    }
    got = {
        right: collections.Counter(e.turns for e in drawn if e.right == right)
        for right in (False, True)
    }
    expected = np.float32(count) * np.float32(wrong_ratio)
    possible = []
    for wanted_wrong in {int(np.floor(expected)), int(np.ceil(expected))}:
        for wrong in _round_robins(strata[False], wanted_wrong):
            for right in _round_robins(strata[True], count - wanted_wrong):
                rest = collections.Counter()
                for kind, taken in ((False, wrong), (True, right)):
                    left = strata[kind] - taken
                    rest.update({(kind, t): size for t, size in left.items()})
                short = count - sum(wrong.values()) - sum(right.values())
                # What is left when something is short is all of one kind.
                for fill in _round_robins(rest, short):
                    result = {False: wrong.copy(), True: right.copy()}
                    for (kind, t), size in fill.items():
                        result[kind][t] += size
                    possible.append(result)
    assert any(all(+got[k] == +p[k] for k in (False, True)) for p in possible), (got, possible)


# Thousands of random operations: many buffers beside one another, each through a long sequence.
BUFFERS, STEPS = 160, 32
ADD, SAMPLE, RESET = range(3)


@jax.jit
def _lives(operations, max_per_question):
    """After every operation of every buffer: the buffer; and what each would have drawn."""

    def _live(state, operation, limit):
        limits = {name: operation[name] for name in ("step", "min_size", "max_staleness")}
        can = prefix_buffer.can_sample(state, **limits)
        labels = {name: operation[name] for name in ("question", "turns", "right", "step", "mask")}
        added = prefix_buffer.add(state, operation["payload"], **labels, max_per_question=limit)
        ratio, count = operation["wrong_ratio"], operation["count"]
        sampled, indices, ok = prefix_buffer.sample(
            state, operation["key"], N, wrong_ratio=ratio, count=count, **limits
        )
        choices = (added, sampled, prefix_buffer.reset_used(state))
        state = jax.tree.map(lambda *a: jnp.stack(a)[operation["action"]], *choices)
        return state, (state, prefix_buffer.gather(state, indices), ok, can)

    def life(operations, limit):
        state = prefix_buffer.init(EXAMPLE, CAPACITY)
        return jax.lax.scan(lambda s, o: _live(s, o, limit), state, operations)[1]

    return jax.vmap(life)(operations, max_per_question)


def _operations(rng):
    shape = (BUFFERS, STEPS)
    batch = (*shape, BATCH)
    uids = np.arange(np.prod(batch), dtype=np.int32).reshape(batch)
    integers = lambda low, high, size: rng.integers(low, high, size).astype(np.int32)
    return {
        "payload": {"uid": uids, "tokens": np.stack([uids, uids + 1], -1)},
        "action": rng.choice(np.int32([ADD, SAMPLE, RESET]), shape, p=[0.6, 0.35, 0.05]),
        "question": integers(0, rng.choice([2, 4, 30], (BUFFERS, 1, 1)), batch),
        "turns": integers(1, 5, batch),
        "right": rng.random(batch) < 0.5,
        "mask": rng.random(batch) < 0.8,
        "step": np.broadcast_to(np.arange(STEPS, dtype=np.int32), shape),
        "max_staleness": integers(1, 9, shape),
        "min_size": integers(0, 6, shape),
        "wrong_ratio": rng.choice(np.float32([0, 0.3, 0.5, 0.8, 1]), shape),
        "count": integers(0, N + 1, shape),
        "key": jax.random.split(jax.random.key(0), shape),
    }


def test_random_operations_agree_with_the_model():
    rng, seen = np.random.default_rng(0), collections.Counter()
    operations = _operations(rng)
    limits = rng.choice(np.int32([1, 2, 3, 100]), BUFFERS)
    states, got, ok, can = jax.device_get(_lives(operations, limits))
    for payload in (states.payload, got):
        filled = payload["tokens"].any(-1)
        wanted = np.stack([payload["uid"], payload["uid"] + 1], -1)
        assert (payload["tokens"] == wanted)[filled].all()
    uids, operations["uid"] = got["uid"], operations.pop("payload")["uid"]
    del operations["key"]
    for at in np.ndindex(BUFFERS, STEPS):
        o = {name: column[at] for name, column in operations.items()}
        if at[1] == 0:
            entries = []
        fresh = [e for e in entries if not e.used and o["step"] - e.step <= o["max_staleness"]]
        available = fresh if len(entries) >= o["min_size"] else []
        assert can[at] == bool(available)
        if o["action"] == ADD:
            labels = [o[name].tolist() for name in ("uid", "question", "turns", "right")]
            for *label, kept in zip(*labels, o["mask"], strict=True):
                if kept:
                    _model_add(entries, Entry(*label, o["step"]), limits[at[0]])
        elif o["action"] == RESET:
            for e in entries:
                e.used = False
        else:
            drew = set(uids[at][ok[at]].tolist())
            drawn = [e for e in available if e.uid in drew]
            assert len(drawn) == len(drew) == ok[at].sum() == min(o["count"], len(available))
            assert ok[at][: len(drew)].all()
            _check_draw(available, drawn, int(o["count"]), o["wrong_ratio"])
            seen["short"] += len(drawn) < o["count"]
            seen["stale"] += len(fresh) < sum(not e.used for e in entries)
            seen["drawn"] += len(drawn)
            for e in drawn:
                e.used = True
        assert _records(states, at) == [e.record() for e in entries]
        seen["full"] += len(entries) == CAPACITY
    assert all(seen[k] > 200 for k in ("drawn", "short", "stale", "full")), seen


def _filled(question, turns, right, step=0, max_per_question=100, state=None):
    """The buffer after adding prefixes with payloads 0, 1, ... one after the other."""
    state = prefix_buffer.init(EXAMPLE, CAPACITY) if state is None else state
    count = len(turns)
    columns = (range(count), question, turns, right, np.broadcast_to(step, count))
    columns = np.stack([np.asarray(x, np.int32) for x in columns])
    for start in range(0, count, BATCH):
        part = columns[:, start : start + BATCH]
        mask = np.arange(BATCH) < part.shape[1]
        uids, *labels = np.pad(part, ((0, 0), (0, BATCH - part.shape[1])))
        labels = dict(zip(("question", "turns", "right", "step"), labels, strict=True))
        labels["right"] = labels["right"] > 0
        state = _add(state, _payload(uids), **labels, mask=mask, max_per_question=max_per_question)
    return state


def test_eviction_within_a_question_by_hand():
    def _kept(turns):
        state = _filled([7] * len(turns), turns, [0] * len(turns), max_per_question=3)
        return [r[0] for r in _records(state)]

    assert _kept([1, 2, 1]) == [0, 1, 2]
    assert _kept([1, 2, 1, 2]) == [0, 2, 3]  # the oldest of the same number of turns
    assert _kept([2, 1, 1, 3]) == [0, 2, 3]  # unseen: the oldest of the most frequent number
    assert _kept([3, 1, 2, 4]) == [1, 2, 3]  # all equally frequent: the oldest


def test_a_full_buffer_makes_room_within_a_crowded_question_first():
    questions = [1, 2, 2, 3, 4, 5, 6, 7, 8, 9]
    for new, gone in ((2, 1), (20, 0)):
        state = _filled([*questions, new], [1] * 11, [0] * 11, max_per_question=2)
        assert [r[0] for r in _records(state)] == [i for i in range(11) if i != gone]


def test_a_batch_larger_than_the_buffer_keeps_payload_and_metadata_together(monkeypatch):
    write, written = replay.write_rows, []

    def _recorded(payload, batch, slots):
        jax.debug.callback(lambda s: written.append(s.tolist()), slots)
        return write(payload, batch, slots)

    monkeypatch.setattr(replay, "write_rows", _recorded)
    labels = {"question": np.arange(9), "turns": np.arange(9) % 3, "right": np.arange(9) % 2 > 0}
    state = prefix_buffer.init(EXAMPLE, 4)
    state = jax.jit(prefix_buffer.add)(state, _payload(range(9)), **labels, step=3)
    jax.effects_barrier()
    # Rows that the batch itself pushes out aren't written: of two in one slot either could win.
    assert len(written) == 1 and sorted(written[0]) == [0, 1, 2, 3] + [4] * 5
    assert _records(state) == [(i, i, i % 3, i % 2 > 0, 3, False) for i in range(5, 9)]
    np.testing.assert_array_equal(state.payload["tokens"], _payload(state.payload["uid"])["tokens"])


@jax.jit
def _draws(state, count, wrong_ratio):
    """Many draws of `count`: indices and ok, [draws, N]."""
    keys = jax.random.split(jax.random.key(1), 6000)
    options = {"step": 0, "count": count, "wrong_ratio": wrong_ratio}
    indices, ok = jax.vmap(lambda k: prefix_buffer.sample(state, k, N, **options)[1:])(keys)
    return indices, ok


LAYOUT = {
    # wrong: one of 1 turn, four of 2, one of 6; right: two of 1, two of 3.
    "turns": [1, 2, 2, 2, 2, 6, 1, 1, 3, 3],
    "right": [0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
    "question": range(10),
}


def test_single_draws_balance_kinds_and_numbers_of_turns():
    indices, ok = map(np.asarray, _draws(_filled(**LAYOUT), 1, 0.7))
    assert (ok == (np.arange(N) < 1)).all()
    frequencies = np.bincount(indices[:, 0], minlength=10) / len(indices)
    wrong = 0.7 / 3 * np.array([1, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1])
    np.testing.assert_allclose(frequencies, [*wrong, *[0.3 / 4] * 4], atol=0.025)


@pytest.mark.parametrize("count, wrong_ratio", [(3, 0.5), (4, 0.7), (4, 0.75)])
def test_the_number_of_wrong_ones_is_rounded_without_bias(count, wrong_ratio):
    indices, ok = map(np.asarray, _draws(_filled(**LAYOUT), count, wrong_ratio))
    assert (ok == (np.arange(N) < count)).all()
    wrong = indices[:, :count] < 6
    expected = count * wrong_ratio
    assert set(wrong.sum(1)) == {int(np.floor(expected)), int(np.ceil(expected))}
    np.testing.assert_allclose(wrong.sum(1).mean(), expected, atol=0.03)
    # The order says nothing about the kind: each place is wrong as often.
    np.testing.assert_allclose(wrong.mean(0), wrong_ratio, atol=0.035)


def test_the_other_kind_fills_a_shortage():
    indices, ok = map(np.asarray, _draws(_filled(**LAYOUT), 8, 0.0))
    assert (ok.sum(1) == 8).all() and ((indices[:, :8] >= 6).sum(1) == 4).all()
    indices, ok = map(np.asarray, _draws(_filled(**LAYOUT), N, 0.5))
    assert (ok.sum(1) == 10).all()
    assert (np.sort(indices[:, :10], 1) == np.arange(10)).all()


def test_limits_of_sampling():
    state = _filled(**LAYOUT, step=np.arange(10))

    def _drawn(step, max_staleness, min_size, count):
        return _sample(state, 0, step, 0.5, max_staleness, min_size, count)

    assert not _drawn(9, 100, 11, 4)[2].any()
    assert _drawn(9, 100, 10, 4)[2].tolist() == [True] * 4 + [False] * 8
    new, indices, ok = _drawn(12, 4, 10, 4)
    assert ok.tolist() == [True] * 2 + [False] * 10
    assert set(indices[:2].tolist()) == {8, 9}  # collected at steps 8 and 9
    assert np.flatnonzero(new.used).tolist() == [8, 9]
    assert prefix_buffer.num_available(new, step=12, max_staleness=4) == 0
    assert prefix_buffer.num_available(new, step=12) == 8
    empty = prefix_buffer.init(EXAMPLE, CAPACITY)
    assert not _can_sample(empty, step=0, min_size=0, max_staleness=5)
    assert not _sample(empty, 0, 0, 0.5, 5, 0, 4)[2].any()


def test_everything_comes_once_between_resets():
    state = _filled(**LAYOUT)
    for rnd in range(2):
        uids = []
        for draw in range(4):
            state, indices, ok = _sample(state, 4 * rnd + draw, 0, 0.5, 5, 1, 3)
            uids += np.asarray(_gather(state, indices)["uid"])[np.asarray(ok)].tolist()
        assert sorted(uids) == list(range(10))
        state = _reset(state)


def test_bad_rows_are_refused():
    labels = {"question": np.ones(3, int), "turns": np.ones(2, int), "right": np.ones(2, bool)}
    with pytest.raises(ValueError, match=r"shapes.*\(3,\)"):
        prefix_buffer.add(prefix_buffer.init(EXAMPLE, 4), _payload([1, 2]), **labels, step=0)
    with pytest.raises(ValueError, match="capacity"):
        prefix_buffer.init(EXAMPLE, 0)


def test_sharded_equals_unsharded_and_gathers_no_payload():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    everywhere = NamedSharding(mesh, PartitionSpec())
    init = functools.partial(prefix_buffer.init, EXAMPLE, 64)
    shapes = jax.eval_shape(init)
    split = jax.tree.map(lambda _: rows, shapes.payload)
    shardings = jax.tree.map(lambda _: everywhere, shapes)._replace(payload=split)

    def _step(state, payload, question, turns, right, step):
        labels = {"question": question, "turns": turns, "right": right}
        state = prefix_buffer.add(state, payload, **labels, step=step, max_per_question=3)
        key = jax.random.key(step)
        state, indices, ok = prefix_buffer.sample(state, key, 8, step=step, max_staleness=5)
        return state, prefix_buffer.gather(state, indices), ok

    sharded = jax.jit(
        _step,
        in_shardings=(shardings, split) + (everywhere,) * 4,
        out_shardings=(shardings, split, everywhere),
        donate_argnums=0,
    )
    plain, compiled = jax.jit(_step), None
    state, reference = jax.jit(init, out_shardings=shardings)(), init()
    rng = np.random.default_rng(0)
    for step in range(10):
        arguments = (
            _payload(np.arange(16) + 16 * step),
            rng.integers(0, 12, 16),
            rng.integers(1, 5, 16),
            rng.random(16) < 0.5,
            step,
        )
        reference_arguments = arguments
        arguments = jax.device_put(arguments, (split,) + (everywhere,) * 4)
        compiled = compiled or sharded.lower(state, *arguments).compile()
        state, *got = compiled(state, *arguments)
        reference, *expected = plain(reference, *reference_arguments)
        jax.tree.map(np.testing.assert_array_equal, (state, got), (reference, expected))
    assert state.valid.sum() > 30 and state.payload["tokens"].sharding.is_equivalent_to(rows, 2)
    assert len(state.payload["tokens"].sharding.device_set) == 8
    collective = r"= \w+\[(\d*)\S* (?:all-\w+|collective-permute|reduce-scatter)\("
    moved = re.findall(collective, compiled.as_text())
    assert moved and all(int(size or 1) <= 16 for size in moved)
