"""Pictures: Gymnasium's own drawing pixel for pixel, and what an overlay must show."""

import hashlib
import json
import os
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vrrl_jax.data import frozenlake
from vrrl_jax.data.frozenlake import ACTIONS, Map
from vrrl_jax.render.frozenlake import render

OPEN = Map(("SFFF", "FFFF", "FFHF", "FFFG"), 0, 15)
CELLS = (64, 28)
# SHA-256 of the raw bytes, uint8 [256, 256, 3], that Gymnasium 1.3.0's FrozenLake-v1 drew of
# OPEN's rows in rgb_array mode, right after reset(seed=0). Not drawn by the code under test.
OPEN_BY_GYMNASIUM = "f45ce5c1f463f5f3ed4e8f526b496ab166331a87be9aeeb14afb3373e77bc00b"
# Mean colours of 4 x 4 blocks of a frozen cell of 28 pixels where a path from the left ends.
# These are this renderer's own: policies are trained on such pictures, so they must stay.
END_OF_A_PATH = (
    ((223, 237, 251), (235, 244, 250), (240, 246, 250), (233, 242, 250)),
    ((212, 191, 196), (205, 196, 154), (207, 203, 159), (224, 239, 251)),
    ((206, 188, 197), (198, 184, 147), (214, 210, 170), (233, 244, 251)),
    ((236, 244, 251), (235, 244, 251), (234, 244, 252), (225, 238, 251)),
)


def in_cell(picture, map, cell):
    """The pixels of one cell of the map."""
    side = picture.shape[0] // map.size
    r, c = divmod(cell, map.size)
    return picture[r * side : (r + 1) * side, c * side : (c + 1) * side]


def changed(map, actions, side):
    """bool [size, size]: cells that a path changes."""
    differs = (render(map, actions, side) != render(map, None, side)).any(-1)
    return differs.reshape(map.size, side, map.size, side).any((1, 3))


# --- the bare map ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gymnasium():
    """Gymnasium with a pygame that opens no window."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    pytest.importorskip("pygame")
    return pytest.importorskip("gymnasium")


@pytest.mark.filterwarnings("ignore")  # pygame's and Gymnasium's own
def test_bare_map_equals_gymnasium(gymnasium):
    maps = frozenlake.generate(3, 12, levels=(2, 3, 4, 5, 6, 7, 8), weights=[1] * 7)
    maps += [Map(("HHS", "HGF", "FFH"), 2, 4), Map(("SG", "HH"), 0, 1), Map(("SH", "HG"), 0, 3)]
    assert {map.size for map in maps} >= {2, 3, 5, 8}
    for map in maps:
        env = gymnasium.make("FrozenLake-v1", desc=list(map.layout), render_mode="rgb_array")
        env.reset(seed=0)
        np.testing.assert_array_equal(render(map), env.render())
        env.close()


def test_bare_map_equals_what_gymnasium_drew():
    assert hashlib.sha256(render(OPEN).tobytes()).hexdigest() == OPEN_BY_GYMNASIUM


@pytest.mark.parametrize("cell", [4, 14, 28, 33, 64])
def test_shape_and_type(cell):
    picture = render(OPEN, cell=cell)
    assert picture.shape == (4 * cell, 4 * cell, 3) and picture.dtype == np.uint8
    assert render(OPEN, ["down"], cell).shape == picture.shape


@pytest.mark.parametrize("cell", [14, 28, 96])
def test_other_sizes_show_the_same_picture(cell):
    # Area averages of both agree: nothing moved, nothing was dropped.
    ours = Image.fromarray(render(OPEN, cell=cell)).resize((28, 28), Image.BOX)
    gyms = Image.fromarray(render(OPEN)).resize((28, 28), Image.BOX)
    assert np.abs(np.float32(ours) - np.float32(gyms)).mean() < 3


def test_the_four_kinds_of_cell_differ():
    for side in CELLS:
        picture = render(OPEN, cell=side)
        frozen, start, hole, goal = (in_cell(picture, OPEN, c) for c in (1, 0, 10, 15))
        np.testing.assert_array_equal(frozen, in_cell(picture, OPEN, 7))
        for other in (start, hole, goal):
            assert np.abs(np.float32(other) - frozen).mean() > 5


def test_published_pictures_are_recognised(shared_data):
    """The published pictures were drawn by Gymnasium and enlarged; each finds its own map."""
    folder = shared_data / "frozenlake" / "rl_3k"
    maps = frozenlake.load(folder / "maps.json", limit=40).maps
    manifest = [json.loads(s) for s in (folder / "manifest.jsonl").read_text().splitlines()[:40]]
    ours = [np.float32(render(map, cell=16)) for map in maps]
    found = 0
    for i, entry in enumerate(manifest):
        file = folder / "images" / f"{entry['example_id']}.png"
        if not file.is_file():
            continue
        side = 16 * maps[i].size
        shown = Image.open(file).convert("RGB").resize((side, side), Image.BOX)
        errors = [
            np.abs(np.float32(shown) - o).mean() if o.shape[0] == side else np.inf for o in ours
        ]
        assert int(np.argmin(errors)) == i
        found += 1
    assert found >= 20


# --- the path ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [*CELLS, 14])
def test_a_path_touches_exactly_the_cells_it_visits(side):
    rng = np.random.default_rng(0)
    for map in frozenlake.generate(11, 25, levels=(3, 4, 5, 6)):
        actions = [ACTIONS[i] for i in rng.integers(0, 4, rng.integers(0, 12))]
        at = map.start
        visited = {at}
        for action in actions:
            at, _ = map.move(at, action)
            visited.add(at)
        assert set(np.flatnonzero(changed(map, actions, side).reshape(-1))) == visited


@pytest.mark.parametrize("side", CELLS)
def test_no_path_and_an_empty_path_are_different_things(side):
    bare = render(OPEN, None, side)
    np.testing.assert_array_equal(bare, render(OPEN, cell=side))
    assert changed(OPEN, [], side).sum() == 1 and changed(OPEN, [], side)[0, 0]  # a star on S


@pytest.mark.parametrize("side", CELLS)
def test_the_line_runs_from_centre_to_centre(side):
    picture, bare = render(OPEN, ["right", "right"], side), render(OPEN, None, side)
    differs = (picture != bare).any(-1)
    middle = side // 2
    assert differs[middle, middle : 2 * side].all()
    # Narrow: the rest of the cell between stays as it was.
    assert differs[:, side + middle].sum() <= side // 4


@pytest.mark.parametrize("side", CELLS)
def test_the_line_is_red_between_black_edges(side):
    picture, bare = render(OPEN, ["right", "right", "right"], side), render(OPEN, None, side)
    column = np.float32(picture[:side, side + side // 2])
    before = np.float32(bare[:side, side + side // 2])
    red = column[:, 0] - column[:, 1:].max(1) > 60
    rows = np.flatnonzero(red)
    assert 2 <= rows.size <= side // 6 and (np.diff(rows) == 1).all()
    assert abs(rows.mean() + 0.5 - side / 2) <= 1
    for edge in (rows[0] - 1, rows[-1] + 1):  # darker than the snow on both sides
        assert column[edge].max() < 200 and before[edge].min() > 200


@pytest.mark.parametrize("side", CELLS)
def test_the_line_lets_through_what_lies_beneath(side):
    """Over a hole and over snow the same line has different colours."""
    beside = Map(("SFFF", "FHFF", "FFFF", "FFFG"), 0, 15)
    path = ["down", "right", "right", "right"]
    line = slice(side // 2 - 1, side // 2 + 1)
    shown = np.float32(render(beside, path, side))
    hole, snow = in_cell(shown, beside, 5)[line], in_cell(shown, beside, 6)[line]
    assert np.abs(hole - snow).mean() > 15
    # Three levels of the holes' own pixels survive under the line: it isn't one flat colour.
    assert in_cell(shown, beside, 5)[line].reshape(-1, 3).std(0).max() > 4


@pytest.mark.parametrize("side", CELLS)
def test_the_elf_stays_visible_beneath_its_path(side):
    picture, bare = render(OPEN, ["right"], side), render(OPEN, None, side)
    same = (in_cell(picture, OPEN, 0) == in_cell(bare, OPEN, 0)).all(-1)
    assert same.mean() > 0.7


@pytest.mark.parametrize("side", [*CELLS, 14])
def test_steps_off_the_grid_leave_the_picture(side):
    for action, cells, edge in (
        ("up", 0, np.s_[0, :side]),
        ("left", 0, np.s_[:side, 0]),
        ("down", 15, np.s_[-1, -side:]),
        ("right", 15, np.s_[-side:, -1]),
    ):
        corner = Map(("SFFF", "FFFF", "FFHF", "FFFG"), 0, 15)
        if cells == 15:
            corner = Map(("GFFF", "FFFF", "FFHF", "FFFS"), 15, 0)
        picture, bare = render(corner, [action], side), render(corner, None, side)
        differs = (picture != bare).any(-1)
        assert differs[edge].any(), action
        assert set(np.flatnonzero(changed(corner, [action], side))) == {cells}, "the elf moved"


@pytest.mark.parametrize("side", CELLS)
def test_the_path_goes_on_after_a_hole_and_after_a_wall(side):
    through = ["right", "right", "down", "down", "down", "right"]  # over the hole at 10
    assert changed(OPEN, through, side)[3, 3]
    walled = ["left", "down"]
    assert changed(OPEN, walled, side)[1, 0]


@pytest.mark.parametrize("side", CELLS)
def test_the_star_marks_the_end_and_nothing_else(side):
    """Paths with the same line and different ends differ in two stars only."""
    there, back = ["right", "down"], ["right", "down", "up"]
    a, b = render(OPEN, there, side), render(OPEN, back, side)
    differs = (a != b).any(-1).reshape(4, side, 4, side).any((1, 3))
    assert set(np.flatnonzero(differs)) == {1, 5}
    yellow = in_cell(a, OPEN, 5)[side // 2, side // 2].astype(int)
    assert yellow[0] - yellow[2] > 80 and yellow[1] - yellow[2] > 60
    # Big enough to be seen, small enough to leave most of the cell alone.
    cell = in_cell(a, OPEN, 5).astype(int)
    share = (cell[..., 0] - cell[..., 2] > 80) & (cell[..., 1] - cell[..., 2] > 60)
    assert 0.02 < share.mean() < 0.15
    assert in_cell((a != render(OPEN, None, side)).any(-1), OPEN, 5).mean() < 0.35
    # Its outline is darker than anything that the line makes of snow.
    line = in_cell(a, OPEN, 1).max(-1)
    assert (cell.max(-1) < 85).sum() >= 3 and line.min() > 85


def test_the_overlay_stays_as_policies_know_it():
    cell = in_cell(render(OPEN, ["right"], 28), OPEN, 1)
    means = np.float32(cell).reshape(4, 7, 4, 7, 3).mean((1, 3))
    # Room for another Pillow's rounding; a star of another size is off by 20 and more.
    assert np.abs(means - np.float32(END_OF_A_PATH)).max() < 4


@pytest.mark.parametrize("side", CELLS)
def test_what_overlaps_is_drawn_once(side):
    """A retraced line is no thicker and no darker."""
    once, twice = ["right", "right"], ["right", "left", "right", "right"]
    np.testing.assert_array_equal(render(OPEN, once, side), render(OPEN, twice, side))


def test_different_paths_give_different_pictures():
    pictures = {
        render(OPEN, actions, 28).tobytes()
        for actions in ([], ["left"], ["up"], ["right"], ["down"], ["right", "left"])
    }
    assert len(pictures) == 6


# --- conduct -----------------------------------------------------------------------------------


def test_a_picture_belongs_to_the_caller():
    picture = render(OPEN, ["down"], 28)
    kept = picture.copy()
    picture[:] = 0
    np.testing.assert_array_equal(render(OPEN, ["down"], 28), kept)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="unknown action 'north'"):
        render(OPEN, ["north"])
    with pytest.raises(ValueError, match="a cell of 3 pixels"):
        render(OPEN, cell=3)


def test_other_art_is_an_error_that_names_the_release(monkeypatch, tmp_path):
    """Gymnasium 1.4 ships no elf: a picture without it must not pass for one."""
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gymnasium<1\.4"):
        render(OPEN, cell=7)  # a size that no other test has cached


def test_drawing_is_fast():
    actions = ["right", "down", "left", "down", "right", "right", "down"]
    render(OPEN, actions, 28)
    times = []
    for _ in range(5):  # the best of five; CPU time, as other work may hold the cores
        started = time.process_time()
        for _ in range(100):
            render(OPEN, actions, 28)
        times.append((time.process_time() - started) / 100)
    assert min(times) < 0.4e-3


def test_nothing_at_run_time_needs_pygame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)  # importing it now fails
    assert render(OPEN, ["down"], 9).shape == (36, 36, 3)  # a size that no other test has cached
