"""The stream of examples: shares, epochs, hosts, batches, and going on from a number."""

import collections
import functools
import io
import itertools
import json
import pickle
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrrl_jax.data import loading, mappers
from vrrl_jax.data.loader import Batches, decode, grain_dataset
from vrrl_jax.data.mixture import MAX_CYCLE, Mixture, buckets, permutation, shares
from vrrl_jax.processing.images import open_image


def mixture(lengths, weights=(), seed=0):
    """Sources of (name, row)."""
    names = "abcdefgh"[: len(lengths)]
    made = (
        (name, [(name, row) for row in range(n)]) for name, n in zip(names, lengths, strict=True)
    )
    return Mixture(tuple(made), tuple(weights), seed)


STREAM = "a0b1a2a1a4a3b0a3a1b2a0a4"
ORDER = [1, 3, 0, 4, 2, 5]

# --- order -------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=4)
WEIGHT = st.sampled_from([1, 2, 7, 0.5, 0.1, 0.25, 3.0])


@st.composite
def mixtures(draw):
    lengths = draw(LENGTHS)
    weights = draw(st.just(()) | st.tuples(*[WEIGHT] * len(lengths)))
    return mixture(lengths, weights, draw(st.integers(0, 2**40)))


@settings(max_examples=60, deadline=None)
@given(mixtures())
def test_every_source_has_its_share_and_every_epoch_all_its_rows(mixed):
    lengths = [len(items) for _, items in mixed.sources]
    weights = mixed.weights or lengths
    cycle, total = sum(mixed.shares), sum(weights)
    places = [mixed.at(p) for p in range(3 * cycle)]
    for source, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        mine = [place for place in places if place.source == source]
        # The share is exact over a cycle, and near everywhere.
        assert len(mine) == pytest.approx(3 * cycle * weight / total)
        seen = np.cumsum([place.source == source for place in places])
        wanted = np.arange(1, len(places) + 1) * weight / total
        assert np.abs(seen - wanted).max() <= len(lengths) + 1
        # Epochs follow one another, each with all rows but the last, which isn't done.
        for number, start in enumerate(range(0, len(mine), length)):
            epoch = mine[start : start + length]
            assert {place.epoch for place in epoch} == {number}
            rows = [place.row for place in epoch]
            assert len(set(rows)) == len(rows) and set(rows) <= set(range(length))


@settings(max_examples=20, deadline=None)
@given(mixtures(), st.integers(1, 5), st.lists(st.integers(0, 200), min_size=1, max_size=9))
def test_any_position_is_the_same_alone_and_hosts_share_the_stream(mixed, hosts, positions):
    whole = [mixed[p] for p in range(201)]
    fresh = pickle.loads(pickle.dumps(mixed))
    assert [fresh[p] for p in positions] == [whole[p] for p in positions]
    parts = [mixed.shard(host, hosts) for host in range(hosts)]
    dealt = [parts[p % hosts][p // hosts] for p in range(201)]
    assert dealt == whole
    for p in positions:
        source, row, _ = mixed.at(p)
        number = mixed.number(source, row)
        assert mixed.locate(number) == (source, row) and mixed.example(number) == whole[p]


def test_numbers_count_on_from_source_to_source():
    mixed = mixture([3, 1, 4])
    every = [mixed.number(s, row) for s, n in enumerate([3, 1, 4]) for row in range(n)]
    assert every == list(range(8))
    for call in (lambda: mixed.locate(8), lambda: mixed.locate(-1), lambda: mixed.number(1, 1)):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(IndexError, match="before the stream"):
        mixed[-1]


def test_an_epoch_has_an_order_of_its_own():
    mixed = mixture([20], seed=1)
    epochs = [tuple(mixed[p][1] for p in range(20 * e, 20 * e + 20)) for e in range(3)]
    other = tuple(mixture([20], seed=2)[p][1] for p in range(20))
    assert len({*epochs, other, tuple(range(20))}) == 5


def test_the_stream_of_a_seed_stays_what_it_is():
    """Runs go on from a number: another order would show them examples twice."""
    mixed = mixture([5, 3], (0.75, 0.25), seed=11)
    assert "".join(f"{name}{row}" for name, row in (mixed[p] for p in range(12))) == STREAM
    assert permutation(6, 1, 2).tolist() == ORDER


def test_shares_are_the_weights_ratio():
    assert shares((0.7, 0.3)) == (7, 3) and shares((1000, 3000)) == (1, 3)
    assert shares((1e-9, 1.0)) == (1, MAX_CYCLE)
    rounded = shares((3.14159265, 2.71828183, 1.41421356))
    assert abs(sum(rounded) - MAX_CYCLE) <= 3
    assert rounded[0] / rounded[2] == pytest.approx(3.14159265 / 1.41421356, rel=1e-4)


def test_large_sources_cost_no_list():
    mixed = Mixture((("many", range(1_000_000)), ("few", range(7))), (0.5, 0.5))
    began = time.perf_counter()
    assert len({mixed[10**12 + 2 * k] for k in range(1000)}) > 400
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "sources need examples"),
        (((("a", []),),), r"empty \['a'\]"),
        (((("a", [1]), ("a", [2])),), "names of their own"),
        (((("a", [1]),), (1, 2)), "2 weights for 1 sources"),
        (((("a", [1]),), (0,)), "above zero"),
        (((("a", [1]),), (float("nan"),)), "above zero"),
        (((("a", [1]),), (), -1), "no seed -1"),
        (((("a", [1]),), (), 0, 2, 2), "no host 2 of 2"),
    ],
)
def test_a_mixture_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixture(*arguments)


def test_a_part_is_not_divided_again():
    with pytest.raises(ValueError, match="part 1 of 2 already"):
        mixture([3]).shard(1, 2).shard(0, 2)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60), st.integers(1, 9))
def test_buckets_lose_nothing_and_hold_like_sizes(sizes, batch):
    groups = buckets(sizes, batch, 5)
    assert sorted(itertools.chain(*groups)) == list(range(len(sizes)))
    assert sorted(map(len, groups))[1:] == [batch] * (len(groups) - 1)
    spans = sorted((min(s), max(s)) for s in ([sizes[i] for i in g] for g in groups))
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert groups == buckets(sizes, batch, 5)


# --- batches -----------------------------------------------------------------------------------


def slow(example):
    """Reads an example; some take longer, and rows 2 and 5 of "a" can't be read."""
    name, row = example
    time.sleep(0.001 * (row % 3))
    if name == "a" and row in (2, 5):
        raise (ValueError if row == 2 else OSError)("broken")
    return name, row


def reference(mixed, batch, window, count):
    """The same batches by a loop: windows of readable examples, cut by size."""
    made, position = [], 0
    while len(made) < count:
        first, items = position, []
        while len(items) < batch * window:
            example, position = mixed[position], position + 1
            items += [] if example in (("a", 2), ("a", 5)) else [example]
        order = sorted(range(len(items)), key=lambda i: (items[i][1], i)) if window > 1 else None
        if order is None:
            made.append(items)
            continue
        groups = [sorted(order[i : i + batch]) for i in range(0, len(items), batch)]
        for g in permutation(len(groups), mixed.seed, 2, first):
            made.append([items[i] for i in groups[g]])
    return made[:count]


def values(batches, count):
    return [[item.value for item in batch] for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("workers", [1, 4])
def test_batches_are_those_of_a_loop_and_go_on_from_anywhere(window, workers):
    mixed = mixture([9, 4], (0.6, 0.4), seed=3)
    kind = {"batch": 3, "size": (lambda value: value[1]) if window > 1 else None, "window": window}
    expected = reference(mixed, 3, window, 17)
    states = [None]
    with Batches(mixed, slow, workers=workers, **kind) as batches:
        for wanted in expected:
            batch = next(batches)
            assert [item.value for item in batch] == wanted
            assert [mixed.example(item.number) for item in batch] == wanted
            states.append(batches.state())
        assert sorted(batches.skipped.values()) == ["a, example 2: broken", "a, example 5: broken"]
    assert all(type(value) is int for state in states[1:] for value in state.values())
    for done in (0, 1, 2, 7, 11, 16):  # another number of workers makes no difference
        with Batches(mixed, slow, workers=5 - workers, state=states[done], **kind) as batches:
            assert values(batches, 17 - done) == expected[done:]


def test_hosts_read_parts_of_the_same_stream():
    mixed = mixture([7, 9], seed=4)
    whole = [mixed[p] for p in range(24)]
    parts = []
    for host in range(2):
        with Batches(mixed.shard(host, 2), lambda x: x, batch=4) as batches:
            parts.append(values(batches, 3))
    for step in range(3):
        together = sorted(parts[0][step] + parts[1][step])
        assert together == sorted(whole[8 * step : 8 * step + 8])


def test_no_more_is_read_ahead_than_was_said():
    read = collections.Counter()

    def count(example):
        read["n"] += 1
        return example

    with Batches(mixture([50]), count, batch=2, ahead=5, workers=3) as batches:
        for done in (2, 4, 6):
            next(batches)
            time.sleep(0.05)
            assert done <= read["n"] <= done + 5
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_too_many_unreadable_examples_are_named():
    def broken(example):
        raise ValueError(f"no picture in {example}")

    batches = Batches(mixture([500]), broken, batch=2)
    with pytest.raises(ValueError, match="11 examples can't be read, 10 may be:\n  a, example"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    # An example counts once, however often it comes.
    with Batches(mixture([9]), slow, batch=4, max_bad=2) as batches:
        assert len(values(batches, 20)) == 20 and len(batches.skipped) == 2
    with (
        pytest.raises(ValueError, match="2 examples can't be read, 1 may be"),
        Batches(mixture([9]), slow, batch=4, max_bad=1) as batches,
    ):
        values(batches, 20)


def test_a_fault_of_the_reader_surfaces_with_the_example():
    def faulty(example):
        return {"a": 1}[example[0]]

    batches = Batches(mixture([3, 3]), faulty, batch=6)
    with pytest.raises(RuntimeError, match=r"b, example \d: KeyError: 'b'") as error:
        next(batches)
    assert isinstance(error.value.__cause__, KeyError)
    assert batches.state() == {"position": 0, "done": 0}


@pytest.mark.parametrize(
    "more",
    [
        {"batch": 0},
        {"workers": 0},
        {"ahead": 0},
        {"state": {"position": 3}},
        {"state": {"position": 3, "done": 2}},
        {"state": {"position": 0, "done": 0, "step": 1}},
    ],
)
def test_counts_and_states_that_do_not_fit_are_refused(more):
    with pytest.raises(ValueError, match=r"at least 1|no state of 1 batches"):
        Batches(mixture([3]), str, **{"batch": 2} | more)


# --- Grain -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_grain_gives_the_same_stream_and_goes_on(workers):
    """`float` stands for a reader: processes import what they are given by its name."""
    mixed = Mixture((("a", [0, 1, "x", 3, 4]), ("b", [10, 11, 12])), (0.5, 0.5), seed=1)
    with Batches(mixed, float, batch=3) as batches:
        expected = values(batches, 9)
    dataset = grain_dataset(mixed, float, batch=3, workers=workers)
    iterator = iter(dataset)
    assert values(iterator, 4) == expected[:4]
    state = iterator.get_state()
    iterator.close()
    again = iter(dataset)
    again.set_state(state)
    assert values(again, 5) == expected[4:]
    again.close()


# --- rows that nobody vouches for ----------------------------------------------------------------


def png(size=(4, 3)):
    file = io.BytesIO()
    Image.new("RGB", size, (255, 0, 0)).save(file, "png")
    return file.getvalue()


def bomb():
    """A PNG of a few bytes whose header speaks of ten gigapixels."""
    data = png()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_hostile_rows_are_counted_and_named_from_file_to_batch(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    pictures = {"good": png(), "bomb": bomb(), "text": b"none", "cut": png((300, 300))[:200]}
    for name, data in pictures.items():
        (tmp_path / f"data/{name}.png").write_bytes(data)
    sound = {"question": "Q", "answer": "1", "image": "good.png"}
    hostile = [
        ({"image": "../secret.png"}, "leaves the data folder"),
        ({"image": ["good.png"] * 10_000}, "10000 pictures, at most 128 are taken"),
        ({"question": "<image><image>"}, "1 pictures, but 2 <image> marks"),
        ({"answer": "1" * 100_000_000}, "a text of 100000000 characters, at most 1048576"),
        ({"question": "Q" * 2_000_000}, "a text of 2000000 characters"),
        ({"answer": ["1", "y" * 2_000_000]}, "a text of 2000000 characters"),
    ]
    rows = [sound, *(sound | change for change, _ in hostile)]
    rows += [sound | {"image": f"{name}.png"} for name in ("bomb", "text", "cut")]
    file = tmp_path / "data/rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    loaded = loading.load(file, mappers.FieldMap())
    assert loaded.bad == len(hostile) == len(loaded.skipped)
    for number, (line, (_, message)) in enumerate(zip(loaded.skipped, hostile, strict=True), 1):
        assert line.startswith(f"{file}, row {number}: ") and message in line
        assert len(line) < 500
    # What only decoding shows is left out of the batches.
    read = functools.partial(decode, open_image=open_image)
    with Batches(Mixture((("rows", loaded.records),)), read, batch=3) as batches:
        (batch,) = itertools.islice(batches, 1)
        assert [item.number for item in batch] == [0, 0, 0]
        assert batch[0].value[0].tolist() == [[[255, 0, 0]] * 4] * 3
        said = [batches.skipped[number] for number in (1, 2, 3)]
    assert "picture 1 of fields/7: " in said[0] and "100000" in said[0]
    assert "picture 1 of fields/8: cannot be opened" in said[1]
    assert "picture 1 of fields/9: cannot be decoded" in said[2]
