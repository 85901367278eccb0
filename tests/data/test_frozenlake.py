"""Maps: distances against an independent loop, generation, and the published files."""

import collections
import itertools
import json
import shutil
import time

import numpy as np
import pytest

from vrrl_jax.data import frozenlake
from vrrl_jax.data.frozenlake import ACTIONS, Map

STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
OPEN = Map(("SFF", "FFF", "FFG"), 0, 8)
WALLED = Map(("SHG", "FHF", "FFF"), 0, 2)


def relaxed_distances(layout) -> np.ndarray:
    """Distances by relaxing every cell until nothing changes: no queue, no frontier."""
    n = len(layout)
    far = n * n + 1
    steps = np.full((n, n), far)
    for _ in range(n * n + 1):
        for r in range(n):
            for c in range(n):
                if layout[r][c] == "H":
                    continue
                around = [
                    steps[r + dr, c + dc]
                    for dr, dc in STEPS.values()
                    if 0 <= r + dr < n and 0 <= c + dc < n
                ]
                steps[r, c] = 0 if layout[r][c] == "G" else min(steps[r, c], 1 + min(around))
    return np.where(steps >= far, -1, steps).reshape(-1)


def random_maps(count, seed=0):
    """Maps of any kind, unsolvable ones among them."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        n = int(rng.integers(2, 8))
        cells = rng.choice(list("FH"), n * n, p=[0.6, 0.4])
        start, target = (int(x) for x in rng.choice(n * n, 2, replace=False))
        cells[start], cells[target] = "S", "G"
        yield Map([list(row) for row in cells.reshape(n, n)], start, target)


def all_open_maps():
    """The twelve maps of 2 x 2 cells without a hole."""
    for start, target in itertools.permutations(range(4), 2):
        cells = ["F"] * 4
        cells[start], cells[target] = "S", "G"
        yield Map([cells[:2], cells[2:]], start, target)


# --- one map -----------------------------------------------------------------------------------


def test_distances_equal_relaxation():
    unsolvable = 0
    for map in random_maps(300):
        np.testing.assert_array_equal(map.distances, relaxed_distances(map.layout))
        assert map.distances.dtype == np.int32 and map.distances.shape == (map.size**2,)
        assert map.shortest == map.distances[map.start]
        assert map.solvable == (map.shortest >= 1)
        unsolvable += not map.solvable
    assert 30 < unsolvable < 270  # both kinds were seen


def test_known_distances():
    np.testing.assert_array_equal(WALLED.distances, [6, -1, 0, 5, -1, 1, 4, 3, 2])
    assert (WALLED.shortest, OPEN.shortest) == (6, 4)
    island = Map(("SH", "HG"), 0, 3)
    assert island.shortest == -1 and not island.solvable


def test_distances_are_read_only():
    with pytest.raises(ValueError):
        OPEN.distances[0] = 7


def test_moves_equal_a_naive_walk():
    for map in random_maps(40, seed=1):
        for cell in range(map.size**2):
            for action, (dr, dc) in STEPS.items():
                r, c = divmod(cell, map.size)
                inside = 0 <= r + dr < map.size and 0 <= c + dc < map.size
                expected = (r + dr) * map.size + c + dc if inside else cell
                legal = inside and map.layout[r + dr][c + dc] != "H"
                assert map.move(cell, action) == (expected, legal)


def test_optimal_actions_are_exactly_the_ones_that_gain_a_step():
    for map in random_maps(60, seed=2):
        for cell in range(map.size**2):
            gains = []
            for action in ACTIONS:
                after, legal = map.move(cell, action)
                nearer = map.distances[after] == map.distances[cell] - 1
                if legal and map.distances[cell] > 0 and nearer:
                    gains.append(action)
            assert map.optimal_actions(cell) == tuple(gains)


def test_hand_checked_moves():
    assert OPEN.move(0, "left") == (0, False)  # off the grid: stays
    assert WALLED.move(0, "right") == (1, False)  # into a hole: moves
    assert OPEN.optimal_actions(0) == ("down", "right")
    assert OPEN.optimal_actions(8) == ()
    with pytest.raises(ValueError, match="unknown action 'north'"):
        OPEN.move(0, "north")


def test_rows_may_be_lists_and_equal_maps_are_one():
    listed = Map([["S", "F", "F"], ["F", "F", "F"], ["F", "F", "G"]], 0, 8)
    assert listed == OPEN and hash(listed) == hash(OPEN) and listed.key == OPEN.key
    assert listed.layout == ("SFF", "FFF", "FFG")


def test_keys_tell_layouts_apart():
    assert Map(("SFG", "FFF", "FFF"), 0, 2).key != Map(("GFS", "FFF", "FFF"), 2, 0).key
    # The same cells in one string, in other rows, would be no square: sizes can't collide either.
    assert Map(("SF", "FG"), 0, 3).key != OPEN.key


@pytest.mark.parametrize(
    ("layout", "start", "target", "message"),
    [
        ((), 0, 0, "square"),
        (("SF", "FFG"), 0, 4, "square"),
        (("SFG",), 0, 2, "square"),
        (("SX", "FG"), 0, 3, r"unknown cells \['X'\]"),
        (("FF", "FG"), 0, 3, "exactly one S, got 0"),
        (("SS", "FG"), 0, 3, "exactly one S, got 2"),
        (("SF", "FF"), 0, 3, "exactly one G, got 0"),
        (("SG", "FG"), 0, 1, "exactly one G, got 2"),
        (("SF", "FG"), 1, 3, "S is at 0, start says 1"),
        (("SF", "FG"), 0, 2, "G is at 3, target says 2"),
        (((1, 2), (3, 4)), 0, 3, "rows of characters"),
        (None, 0, 3, "rows of characters"),
    ],
)
def test_bad_maps_say_what_is_wrong(layout, start, target, message):
    with pytest.raises(ValueError, match=message):
        Map(layout, start, target)


# --- generation --------------------------------------------------------------------------------


def test_generated_maps_are_solvable_new_and_disjoint():
    held_out = frozenset(map.key for map in frozenlake.generate(1, 300))
    maps = frozenlake.generate(2, 2000, exclude=held_out)
    keys = {map.key for map in maps}
    assert len(maps) == len(keys) == 2000
    assert not keys & held_out
    assert all(map.solvable for map in maps)
    assert {map.size for map in maps} == {3, 4, 5}
    # `exclude` did bite: small maps are few, so two draws without it meet.
    assert held_out & {map.key for map in frozenlake.generate(2, 2000)}


def test_a_seed_is_a_data_set():
    first = frozenlake.generate(7, 50)
    assert first == frozenlake.generate(7, 50)
    assert first != frozenlake.generate(8, 50)
    assert first[:20] == frozenlake.generate(7, 20)


def test_levels_weights_holes_and_least_length():
    maps = frozenlake.generate(3, 600, levels=(4, 6), weights=(1, 3), min_steps=4)
    sizes = collections.Counter(map.size for map in maps)
    assert set(sizes) == {4, 6} and sizes[6] > 2 * sizes[4]
    assert min(map.shortest for map in maps) == 4
    bare = frozenlake.generate(4, 20, levels=(5,), hole_probability=(0.0, 0.0))
    assert all("H" not in map.cells for map in bare)
    full = frozenlake.generate(4, 20, levels=(5,), hole_probability=(1.0, 1.0))
    assert all(map.cells.count("H") == 23 and map.shortest == 1 for map in full)


def test_generation_is_fast():
    rates = []
    for seed in range(3):  # the best of three; CPU time, as other work may hold the cores
        started = time.process_time()
        frozenlake.generate(seed, 1000)
        rates.append(1000 / (time.process_time() - started))
    assert max(rates) > 3000


def test_maps_that_do_not_exist_are_an_error():
    with pytest.raises(ValueError, match=r"only 1?\d of 100 maps found at levels \[2\]"):
        frozenlake.generate(0, 100, levels=(2,), hole_probability=(0.0, 0.0))
    with pytest.raises(ValueError, match="levels are at least 2"):
        frozenlake.generate(0, 1, levels=(1,))
    with pytest.raises(ValueError, match="min_steps must be at least 1, got 0"):
        frozenlake.generate(0, 1, min_steps=0)
    everything = frozenset(map.key for map in all_open_maps())
    assert len(everything) == 12
    with pytest.raises(ValueError, match="only 0 of 1 maps found"):
        frozenlake.generate(0, 1, levels=(2,), hole_probability=(0.0, 0.0), exclude=everything)
    assert frozenlake.generate(0, 0) == []


def test_split_follows_the_key():
    maps = frozenlake.generate(6, 1000)
    training, validation = frozenlake.split(maps, 0.2)
    assert sorted(m.key for m in training + validation) == sorted(m.key for m in maps)
    assert 140 < len(validation) < 260
    # A map's side depends neither on its neighbours nor on their order.
    again, other = frozenlake.split(maps[::-2], 0.2)
    assert set(again) <= set(training) and set(other) <= set(validation)
    assert frozenlake.split(maps, 0.0) == (maps, [])
    assert frozenlake.split(maps, 1.0) == ([], maps)


# --- published files ---------------------------------------------------------------------------


def test_published_training_maps(shared_data):
    folder = shared_data / "frozenlake" / "rl_3k"
    loaded = frozenlake.load(folder / "maps.json")
    assert len(loaded.maps) == 3000 and loaded.skipped == []
    assert collections.Counter(m.size for m in loaded.maps) == {4: 1000, 5: 2000}
    letters = {"L": "left", "D": "down", "R": "right", "U": "up"}
    records = json.loads((folder / "maps.json").read_text())
    for map, record in zip(loaded.maps, records, strict=True):
        assert map.shortest == record["optimal_path_len"]
        known = {int(cell): steps for cell, steps in record["distance_map"].items()}
        assert {c: int(d) for c, d in enumerate(map.distances) if d >= 0} == known
        cell = map.start
        for letter in record["optimal_actions"]:
            assert letters[letter] in map.optimal_actions(cell)
            cell, _ = map.move(cell, letters[letter])
        assert cell == map.target
    assert frozenlake.load(folder).maps == loaded.maps


def test_published_evaluation_maps(shared_data):
    folder = shared_data / "frozenlake" / "eval"
    loaded = frozenlake.load(folder)
    assert len(loaded.maps) == 1000 and loaded.skipped == []
    assert collections.Counter(m.size for m in loaded.maps) == {3: 250, 4: 250, 5: 250, 6: 250}
    records = json.loads((folder / "eval_data.json").read_text())
    for map, record in zip(loaded.maps, records, strict=True):
        assert map.shortest == record["metadata"]["n_steps"] == len(record["metadata"]["actions"])
    assert frozenlake.load(folder / "eval_data.json", limit=7).maps == loaded.maps[:7]


def test_saved_data_set_holds_the_same_maps(shared_data):
    folder = shared_data / "frozenlake" / "rl_3k"
    saved = frozenlake.load(folder / "hf_dataset")
    assert saved.skipped == []
    assert saved.maps == frozenlake.load(folder / "maps.json").maps
    assert frozenlake.load(folder / "hf_dataset" / "train", limit=5).maps == saved.maps[:5]


def test_only_the_files_that_the_state_names_are_data(shared_data, tmp_path):
    source = shared_data / "frozenlake" / "rl_3k" / "hf_dataset" / "train"
    for name in ("state.json", "data-00000-of-00001.arrow"):
        shutil.copyfile(source / name, tmp_path / name)
    shutil.copyfile(source / "data-00000-of-00001.arrow", tmp_path / "cache-0123456789.arrow")
    assert len(frozenlake.load(tmp_path).maps) == 3000


def record(**changes):
    return {"layout": ["SF", "FG"], "start_pos": 0, "target_pos": 3} | changes


BROKEN = [
    ("not an object", "expected an object, got str"),
    (None, "expected an object, got NoneType"),
    (record(layout=[[1, 2], [3, 4]]), "rows of characters"),
    (record(start_pos=2), "S is at 0, start says 2"),
    (record(start_pos=0.5), "count cells, got [0.5, 3]"),
    ({"layout": ["SF", "FG"], "start_pos": 0}, "no field 'target_pos'"),
    (record(target_pos=float("inf")), "infinity"),
    (record(target_pos="three"), "invalid literal"),
    (record(layout=["SH", "HG"]), "can't be reached"),
]


def test_bad_records_are_skipped_named_and_counted(tmp_path):
    file = tmp_path / "maps.json"
    broken = [bad for bad, _ in BROKEN]
    records = [record(), *broken, {"metadata": record()}, {"map": record()}]
    file.write_text(json.dumps(records))
    loaded = frozenlake.load(tmp_path)
    assert loaded.maps == [Map(("SF", "FG"), 0, 3)] * 3
    assert len(loaded.skipped) == len(BROKEN)
    for place, (line, (_, reason)) in enumerate(zip(loaded.skipped, BROKEN, strict=True), 1):
        assert line.startswith(f"{file}, record {place}: ") and reason in line


def test_too_many_bad_records_name_the_first(tmp_path):
    file = tmp_path / "maps.json"
    file.write_text(json.dumps([record()] * 30 + [{}] * 11))
    with pytest.raises(ValueError, match=r"11 of 41 records are unreadable, 10 are allowed") as got:
        frozenlake.load(file)
    assert str(file) in str(got.value) and "record 30: no field 'layout'" in str(got.value)
    assert len(frozenlake.load(file, max_bad=11).skipped) == 11
    # One in a hundred, once that is more than ten.
    file.write_text(json.dumps([record()] * 2985 + [{}] * 15))
    assert len(frozenlake.load(file).skipped) == 15
    with pytest.raises(ValueError, match="14 are allowed"):
        frozenlake.load(file, max_bad=14)
    file.write_text(json.dumps([record()] * 2969 + [{}] * 31))
    with pytest.raises(ValueError, match="31 of 3000 records are unreadable, 30 are allowed"):
        frozenlake.load(file)


def test_files_that_hold_nothing_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected maps\.json, eval_data\.json"):
        frozenlake.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="save_to_disk"):
        frozenlake.load(tmp_path)
    file = tmp_path / "maps.json"
    for text, message in (
        ("[{", "not valid JSON"),
        ("{}", "expected a list of maps, got dict"),
        ("[]", "holds no maps"),
        ("[{}]", "1 of 1 records are unreadable"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message) as got:
            frozenlake.load(file)
        assert str(file) in str(got.value)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not valid JSON"):
        frozenlake.load(file)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        frozenlake.load(file, limit=0)


def write_saved(folder, shards, chunk=3):
    """A split as Hugging Face's `save_to_disk` lays it out: Arrow streams, in record batches."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    schema = pyarrow.schema([("problem", pyarrow.string()), ("answer", pyarrow.string())])
    for name, maps in zip(names, shards, strict=True):
        fields = [{"layout": m.layout, "start_pos": m.start, "target_pos": m.target} for m in maps]
        columns = {"problem": ["Solve"] * len(maps), "answer": [json.dumps(f) for f in fields]}
        table = pyarrow.table(columns, schema)
        with (folder / name).open("wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table, max_chunksize=chunk)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_saved_data_set_of_several_shards_and_batches(tmp_path):
    maps = frozenlake.generate(12, 20)
    write_saved(tmp_path / "a" / "hf_dataset" / "train", [maps[:11], [], maps[11:]])
    for path in ("a", "a/hf_dataset", "a/hf_dataset/train"):
        loaded = frozenlake.load(tmp_path / path)
        assert loaded.maps == maps and loaded.skipped == []
    assert frozenlake.load(tmp_path / "a", limit=13).maps == maps[:13]
    write_saved(tmp_path / "b", [maps])
    assert frozenlake.load(str(tmp_path / "b")).maps == maps
    # Rows are counted on through the shards.
    write_saved(tmp_path / "c", [maps[:5], [*maps[5:7], Map(("SH", "HG"), 0, 3)]])
    (skipped,) = frozenlake.load(tmp_path / "c").skipped
    assert skipped.startswith(f"{tmp_path / 'c'}, row 7: ") and "can't be reached" in skipped
    write_saved(tmp_path / "d", [[]])
    with pytest.raises(ValueError, match="holds no maps"):
        frozenlake.load(tmp_path / "d")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_data_files": 1}', '{"_data_files": [{}]}'])
def test_a_damaged_state_is_named(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match="not the state of a saved data set") as got:
        frozenlake.load(tmp_path)
    assert str(tmp_path / "state.json") in str(got.value)


def test_a_saved_data_set_may_be_damaged(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")

    def save(columns):
        table = pyarrow.table(columns)
        file = tmp_path / "data.arrow"
        with file.open("wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    save({"answer": [json.dumps(record()), "{", None, json.dumps(record())]})
    loaded = frozenlake.load(tmp_path)
    assert len(loaded.maps) == 2
    assert [line.split(", ")[1].split(":")[0] for line in loaded.skipped] == ["row 1", "row 2"]
    save({"question": ["x"]})
    with pytest.raises(ValueError, match="no column named answer"):
        frozenlake.load(tmp_path)
    (tmp_path / "data.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"data\.arrow: no Arrow stream"):
        frozenlake.load(tmp_path)
    (tmp_path / "data.arrow").unlink()
    with pytest.raises(ValueError, match=r"data\.arrow: no Arrow stream"):
        frozenlake.load(tmp_path)
