"""Pictures of mazes: walls where there are walls, marks in their cells, and the path over them."""

import itertools
import random
import time

import numpy as np
import pytest

from vrrl_jax.data import mazes
from vrrl_jax.data.demonstrations import optimal_path
from vrrl_jax.data.frozenlake import ACTIONS
from vrrl_jax.data.mazes import ALGORITHMS, Maze
from vrrl_jax.render.mazes import SPATIALEVAL, STYLES, render, render_example, style

HAND = Maze(("#######", "#S    #", "# ### #", "#   # #", "##### #", "#    E#", "#######"))
LIGHT = [s for s in STYLES if sum(s.floor) > 600]
every_style = pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
every_size = pytest.mark.parametrize("side", [14, 28, 33])


def some_mazes(count=20):
    rng = random.Random(0)
    return [mazes.draw(n, a, rng) for n, a in itertools.product((2, 3, 5, 7), ALGORITHMS)][:count]


def middles(maze, style, side):
    """Pixels of the middles of rows and of columns: walls first, cells share what is left."""
    n, whole = maze.size, maze.size * side
    wall = whole / (2 * n + 1)
    if style.thickness is not None:
        wall = max(1, round(style.thickness * side))
    wide = (whole - (n + 1) * wall) / n
    return [int((k + 1) * wall + (k + 0.5) * wide) for k in range(n)], round(wide + wall)


def between(picture, maze, style, cell, action):
    """The pixels from the middle of a cell to the middle of its neighbour, or to the edge."""
    at, reach = middles(maze, style, picture.shape[0] // maze.size)
    y, x = at[cell // maze.size], at[cell % maze.size]
    return {
        "left": picture[y, max(0, x - reach) : x + 1][::-1],
        "right": picture[y, x : x + reach],
        "up": picture[max(0, y - reach) : y + 1, x][::-1],
        "down": picture[y : y + reach, x],
    }[action]


def in_cell(picture, maze, style, cell):
    """The pixels about the middle of a cell: a fifth of its pitch each way."""
    side = picture.shape[0] // maze.size
    at, _ = middles(maze, style, side)
    y, x, half = at[cell // maze.size], at[cell % maze.size], max(1, side // 5)
    return picture[y - half : y + half + 1, x - half : x + half + 1]


def is_colour(pixels, colour):
    return (pixels == np.uint8(colour)).all(-1)


def touched(maze, style, actions, side):
    """Cells whose middles a path changes."""
    differs = (render(maze, style, actions, side) != render(maze, style, None, side)).any(-1)
    return {cell for cell in range(maze.size**2) if in_cell(differs, maze, style, cell).any()}


# --- the bare maze -------------------------------------------------------------------------------


@every_style
@every_size
def test_shape_and_type(style, side):
    picture = render(HAND, style, cell=side)
    assert picture.shape == (3 * side, 3 * side, 3) and picture.dtype == np.uint8
    assert render(HAND, style, ["down"], side).shape == picture.shape
    np.testing.assert_array_equal(picture, render(HAND, style, None, side))


@every_style
@every_size
def test_walls_stand_exactly_where_there_is_no_passage(style, side):
    seen = set()
    for maze in some_mazes():
        picture = render(maze, style, cell=side)
        for cell, action in itertools.product(range(maze.size**2), ACTIONS):
            _, legal = maze.move(cell, action)
            line = between(picture, maze, style, cell, action)
            assert is_colour(line, style.wall).any() != legal
            seen.add(legal)
    assert seen == {True, False}


@every_size
def test_walls_are_dark_and_passages_light(side):
    for maze in some_mazes():
        for look in LIGHT:
            picture = render(maze, look, cell=side)
            for cell, action in itertools.product(range(maze.size**2), ACTIONS):
                line = between(picture, maze, look, cell, action).astype(int)
                legal = maze.move(cell, action)[1]
                marked = {cell, maze.move(cell, action)[0]} & {maze.start, maze.target}
                if legal and not marked:
                    assert line.mean(-1).min() > 190
                elif not legal:
                    assert line.mean(-1).min() < 120


def test_the_block_look_is_a_picture_of_the_characters():
    colours = {"#": (0, 0, 0), " ": (255, 255, 255), "S": SPATIALEVAL.start, "E": SPATIALEVAL.end}
    for maze in some_mazes():
        blocks = 2 * maze.size + 1
        picture = render(maze, SPATIALEVAL, cell=28)
        for r, c in itertools.product(range(blocks), repeat=2):
            y, x = (int((k + 0.5) * 28 * maze.size / blocks) for k in (r, c))
            assert tuple(picture[y, x]) == colours[maze.layout[r][c]]
    # Every pixel is one of the four, so nothing is smeared.
    assert {tuple(colour) for colour in picture.reshape(-1, 3).tolist()} == set(colours.values())


def widths(ink):
    """Lengths of the runs of a line of pixels that are, and of those between that aren't."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], ink.astype(int), [0]])))
    return np.diff(bounds)[::2].tolist(), np.diff(bounds)[1::2].tolist()


def test_blocks_are_equal_squares_up_to_a_pixel():
    # 84 pixels for seven blocks: rows 18 and 42 pass the first and the second row of cells.
    ink = is_colour(render(HAND, SPATIALEVAL, cell=28), (0, 0, 0))
    assert widths(ink[18]) == ([12, 12], [60]) and widths(ink[42]) == ([12, 12, 12], [36, 12])
    uneven = Maze(("#####", "#S#E#", "# # #", "#   #", "#####"))  # 28 pixels for five blocks
    walls, cells = widths(is_colour(render(uneven, cell=14), (0, 0, 0))[8])
    assert len(walls) == 3 and {*walls, *cells} == {5, 6}


def test_thin_walls_have_one_width():
    look = style("lines")
    for maze in some_mazes():
        walls = is_colour(render(maze, look, cell=28), look.wall)
        sides = walls[14]  # through the top row of cells
        assert set(widths(sides)[0]) == {2}


def test_a_corner_without_walls_is_drawn_in_blocks_alone():
    middle = Maze(("#####", "#S  #", "# # #", "#  E#", "#####"))
    blocks = render(middle, SPATIALEVAL, cell=28)
    assert is_colour(blocks[28, 28], (0, 0, 0))
    lines = render(middle, style("lines"), cell=28)
    assert not is_colour(lines[4:-4, 4:-4], (0, 0, 0)).any()


@every_style
@every_size
def test_start_is_green_and_end_is_red(style, side):
    picture = render(HAND, style, cell=side)
    for cell, colour in ((HAND.start, style.start), (HAND.target, style.end)):
        # Nothing else has the colour; the mark is seen, and stays inside of its cell.
        shown = is_colour(picture, colour)
        r, c = divmod(cell, 3)
        inside = shown[r * side : (r + 1) * side, c * side : (c + 1) * side]
        if side > 14 or style.marks == "block":
            assert inside.sum() > 0.01 * side**2
        assert shown.sum() == inside.sum()
        middle = in_cell(picture, HAND, style, cell).reshape(-1, 3).astype(int).mean(0)
        empty = in_cell(picture, HAND, style, 4).reshape(-1, 3).astype(int).mean(0)
        assert np.abs(middle - empty).max() > 15
    assert style.start[1] > style.start[0] + 50 and style.start[1] > style.start[2] + 50
    assert style.end[0] > max(style.end[1:]) + 90


def test_marks_of_start_and_end_differ_by_shape_too():
    for marks in ("disc", "letter"):
        look = next(s for s in STYLES if s.marks == marks)
        a = render(HAND, look, cell=56)
        start = (in_cell(a, HAND, look, 0) != look.floor).any(-1)
        end = (in_cell(a, HAND, look, 8) != look.floor).any(-1)
        assert (start != end).mean() > 0.1


def test_looks_differ_and_two_or_more_are_held_out():
    pictures = {render(HAND, s, cell=28).tobytes() for s in STYLES}
    assert len(pictures) == len(STYLES) == len({s.name for s in STYLES})
    assert sum(s.held_out for s in STYLES) >= 2 and not SPATIALEVAL.held_out
    with pytest.raises(KeyError):
        style("cubist")


# --- a path that belongs to the picture ----------------------------------------------------------


@every_style
def test_a_trail_fills_what_it_covers(style):
    path = optimal_path(HAND, random.Random(0))
    picture = render(HAND, style, cell=28, trail=path)
    shown = is_colour(picture, style.trail)
    visited, cell = [HAND.start], HAND.start
    for action in path:
        line = is_colour(between(picture, HAND, style, cell, action), style.trail)
        assert line[len(line) // 2 - 1 : len(line) // 2 + 1].all()
        cell, _ = HAND.move(cell, action)
        visited.append(cell)
    for cell in set(range(9)) - {HAND.start, HAND.target}:
        assert in_cell(shown, HAND, style, cell).all() == (cell in visited)
        assert in_cell(shown, HAND, style, cell).any() == (cell in visited)
    for cell in (HAND.start, HAND.target):  # their marks stay
        assert not in_cell(shown, HAND, style, cell).all()


def test_a_trail_runs_through_no_wall():
    with pytest.raises(ValueError, match="step 1, up, runs into a wall"):
        render(HAND, trail=["up"])


# --- a proposed path -----------------------------------------------------------------------------


@every_style
@every_size
def test_a_path_touches_exactly_the_cells_it_visits(style, side):
    rng = random.Random(1)
    for maze in some_mazes():
        actions = rng.choices(ACTIONS, k=rng.randint(0, 12))
        at = maze.start
        visited = {at}
        for action in actions:
            at, _ = maze.move(at, action)
            visited.add(at)
        assert touched(maze, style, actions, side) == visited


@every_style
def test_the_line_is_red_and_runs_from_middle_to_middle(style):
    picture = render(HAND, style, ["right", "right", "left", "left"], 28).astype(int)
    bare = render(HAND, style, None, 28)
    differs = (picture != bare).any(-1)
    first, second, last = middles(HAND, style, 28)[0]
    assert differs[first, first : last + 1].all()
    # Narrow: what is beside it in the cell between stays as it was.
    assert 4 <= differs[:28, second].sum() <= 7
    column = picture[:28, second]
    red = column[:, 0] - column[:, 1:].max(1) > 90
    rows = np.flatnonzero(red)
    assert rows.size == 3 and (np.diff(rows) == 1).all()
    for edge in (rows[0] - 1, rows[-1] + 1):  # an outline that stands off the floor
        assert abs(column[edge].mean() - np.mean(style.floor)) > 60


@every_style
@every_size
def test_a_step_into_a_wall_ends_at_the_wall(style, side):
    walled = Maze(("#######", "#     #", "# ### #", "# #S# #", "# ### #", "#    E#", "#######"))
    start = walled.start
    for action in ACTIONS:
        picture, bare = render(walled, style, [action], side), render(walled, style, None, side)
        differs = (picture != bare).any(-1)
        line = between(differs, walled, style, start, action)
        wall = is_colour(between(bare, walled, style, start, action), style.wall)
        face = int(np.flatnonzero(wall)[0])
        assert line[:face].all()  # all the way
        assert not line[face + max(2, side // 14) :].any()  # and hardly into it
        # A legal step looks otherwise: nothing is changed in the cell beyond.
        assert touched(walled, style, [action], side) == {start}


@every_style
def test_the_walker_stays_and_walks_on(style):
    bumped = render(HAND, style, ["right", "down", "right", "down", "down"], 28)
    plain = render(HAND, style, ["right", "right", "down", "down"], 28)
    differs = (bumped != plain).any(-1)
    assert {c for c in range(9) if in_cell(differs, HAND, style, c).any()} == {1}


@every_style
def test_no_path_and_an_empty_path_are_different_things(style):
    assert touched(HAND, style, [], 28) == {0}  # a star on S


@every_style
@every_size
def test_the_star_marks_the_end_and_nothing_else(style, side):
    there, back = ["right", "right"], ["right", "right", "left"]
    a, b = render(HAND, style, there, side), render(HAND, style, back, side)
    differs = (a != b).any(-1)
    assert {c for c in range(9) if in_cell(differs, HAND, style, c).any()} == {1, 2}
    yellow = in_cell(a, HAND, style, 2).astype(int)
    yellow = (yellow[..., 0] - yellow[..., 2] > 80) & (yellow[..., 1] - yellow[..., 2] > 60)
    assert yellow.mean() > 0.05
    # A star on the end stays a star.
    done = in_cell(render(HAND, style, optimal_path(HAND, random.Random(0)), side), HAND, style, 8)
    done = done.astype(int)
    assert (done[..., 1] - done[..., 2] > 60).mean() > 0.05


@every_style
def test_what_overlaps_is_drawn_once(style):
    once, twice = ["right", "right"], ["right", "left", "right", "right"]
    np.testing.assert_array_equal(render(HAND, style, once), render(HAND, style, twice))


def test_an_example_is_drawn_in_its_style():
    example = mazes.example(0, "test_ood", 0)
    for actions in (None, ["up"]):
        expected = render(example.maze, example.style, actions, 20)
        np.testing.assert_array_equal(render_example(example, actions, 20), expected)


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="unknown action 'north'"):
        render(HAND, actions=["north"])
    with pytest.raises(ValueError, match="a cell of 5 pixels shows nothing"):
        render(HAND, cell=5)
    for side, look in itertools.product((6, 7), STYLES):
        assert render(HAND, look, ["right", "up"], side).shape == (3 * side, 3 * side, 3)


def test_drawing_is_fast():
    maze = mazes.generate(1, 1, sizes=(5,), min_steps=8)[0]
    actions = optimal_path(maze, random.Random(0))
    best = []
    for look in STYLES:
        render(maze, look, actions, 28)
        times = []
        for _ in range(4):  # the best of four; CPU time, as other work may hold the cores
            started = time.process_time()
            for _ in range(40):
                render(maze, look, actions, 28)
            times.append((time.process_time() - started) / 40)
        best.append(min(times))
    assert max(best) < 0.5e-3
