"""Mazes: distances against an independent search, algorithms by their properties, and splits."""

import collections
import itertools
import random
import time

import numpy as np
import pytest

from vrrl_jax.data import mazes
from vrrl_jax.data.demonstrations import demonstrate, diagnose, mistake, optimal_path
from vrrl_jax.data.frozenlake import ACTIONS
from vrrl_jax.data.mazes import ALGORITHMS, IN_DOMAIN, SPLITS, Example, Maze, Settings
from vrrl_jax.processing.parsing import parse_reply
from vrrl_jax.render.mazes import STYLES
from vrrl_jax.rewards import frozenlake as rewards

STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
HELD_OUT = tuple(set(ALGORITHMS) - set(IN_DOMAIN))
# Right, right, down, down; the middle is a dead end from the left.
HAND = Maze(
    (
        "#######",
        "#S    #",
        "# ### #",
        "#   # #",
        "##### #",
        "#    E#",
        "#######",
    )
)
LOOP = Maze(("#####", "#S  #", "# # #", "#  E#", "#####"))


def search(maze):
    """{cell: steps to E} by breadth-first search over the characters, two blocks a step."""
    blocks, n = maze.layout, maze.size
    ((r, c),) = [(r, c) for r, row in enumerate(blocks) for c, b in enumerate(row) if b == "E"]
    steps, queue = {(r, c): 0}, collections.deque([(r, c)])
    while queue:
        r, c = queue.popleft()
        for dr, dc in STEPS.values():
            if blocks[r + dr][c + dc] != "#" and (r + 2 * dr, c + 2 * dc) not in steps:
                steps[r + 2 * dr, c + 2 * dc] = steps[r, c] + 1
                queue.append((r + 2 * dr, c + 2 * dc))
    return {r // 2 * n + c // 2: number for (r, c), number in steps.items()}


def drawn(count=25, sizes=(2, 3, 4, 5, 7)):
    """Mazes of every algorithm and size, unsolvable ones among them."""
    rng = random.Random(0)
    for algorithm, size, _ in itertools.product(ALGORITHMS, sizes, range(count)):
        yield mazes.draw(size, algorithm, rng)


# --- one maze ------------------------------------------------------------------------------------


def test_distances_equal_a_search_over_the_characters():
    unsolvable = 0
    for maze in drawn():
        found = search(maze)
        expected = [found.get(cell, -1) for cell in range(maze.size**2)]
        np.testing.assert_array_equal(maze.distances, expected)
        assert maze.distances.dtype == np.int32
        assert maze.shortest == expected[maze.start]
        assert maze.solvable == (maze.shortest > 0)
        unsolvable += not maze.solvable
    assert unsolvable > 5  # both kinds were seen
    with pytest.raises(ValueError):
        maze.distances[0] = 7


def test_moves_read_the_block_between_two_cells():
    for maze in drawn(6):
        n = maze.size
        for cell, (action, (dr, dc)) in itertools.product(range(n * n), STEPS.items()):
            r, c = divmod(cell, n)
            free = maze.layout[2 * r + 1 + dr][2 * c + 1 + dc] != "#"
            after = (r + dr) * n + c + dc if free else cell
            assert maze.move(cell, action) == (after, free)


def test_walls_have_two_sides():
    for maze in drawn(6):
        for cell, action in itertools.product(range(maze.size**2), ACTIONS):
            after, legal = maze.move(cell, action)
            if legal:
                assert maze.move(after, OPPOSITE[action]) == (cell, True)


def test_optimal_actions_are_exactly_the_ones_that_gain_a_step():
    ties = 0
    for maze in drawn(6):
        for cell in range(maze.size**2):
            here = maze.distances[cell]
            moves = [(action, *maze.move(cell, action)) for action in ACTIONS]
            gains = [a for a, after, _ in moves if here > 0 and maze.distances[after] == here - 1]
            assert maze.optimal_actions(cell) == tuple(gains)
            ties += len(gains) > 1
    assert ties > 100


def test_hand_checked():
    assert (HAND.size, HAND.start, HAND.target, HAND.shortest) == (3, 0, 8, 4)
    np.testing.assert_array_equal(HAND.distances, [4, 3, 2, 5, 6, 1, 2, 1, 0])
    assert HAND.move(0, "up") == (0, False)  # the border is a wall like any other
    assert HAND.move(1, "down") == (1, False)
    assert HAND.move(0, "down") == (3, True)
    assert HAND.optimal_actions(0) == ("right",) and HAND.optimal_actions(8) == ()
    assert LOOP.optimal_actions(0) == ("down", "right")
    with pytest.raises(ValueError, match="unknown action 'north'"):
        HAND.move(0, "north")
    covered = ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 5), (3, 5))
    assert HAND.trail(["right", "right", "down"]) == covered
    with pytest.raises(ValueError, match="step 2, down, runs into a wall"):
        HAND.trail(["right", "down"])


def test_the_algorithm_is_no_part_of_a_maze():
    other = Maze([list(row) for row in HAND.layout], "prim")
    assert other == HAND and hash(other) == hash(HAND) and other.key == HAND.key
    swapped = [row.translate(str.maketrans("SE", "ES")) for row in HAND.layout]
    assert Maze(swapped).key != HAND.key


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ((), "square"),
        (("###", "#S#", "###"), "odd side from 5"),
        (("####", "#SE#", "#  #", "####"), "odd side from 5"),
        (("#####", "#S  #", "# # #", "# E#", "#####"), "square"),
        (("#####", "#S  #", "# #x#", "#  E#", "#####"), r"unknown blocks \['x'\]"),
        (("#####", "#S   ", "# # #", "#  E#", "#####"), "border"),
        (("## ##", "#S  #", "# # #", "#  E#", "#####"), "border"),
        (("#####", "#S  #", "#   #", "#  E#", "#####"), "corners"),
        (("#####", "#S ##", "# # #", "#  E#", "#####"), "cells"),
        (("#####", "#   #", "# # #", "#  E#", "#####"), "exactly one S, got 0"),
        (("#####", "#S E#", "# # #", "#  E#", "#####"), "exactly one E, got 2"),
        (("#####", "#SE #", "# # #", "#   #", "#####"), "E must be on a cell"),
        (((1, 2), (3, 4)), "rows of characters"),
        (None, "rows of characters"),
    ],
)
def test_bad_mazes_say_what_is_wrong(layout, message):
    with pytest.raises(ValueError, match=message):
        Maze(layout)


# --- algorithms and generation -------------------------------------------------------------------


def open_sides(maze):
    n = maze.size
    pairs = itertools.product(range(n * n), ("right", "down"))
    return sum(maze.move(cell, action)[1] for cell, action in pairs)


@pytest.mark.parametrize("algorithm", ["depth_first", "wilson", "prim", "division"])
def test_trees_join_every_cell_in_one_way(algorithm):
    rng = random.Random(1)
    for size in (2, 3, 5, 7) * 10:
        maze = mazes.draw(size, algorithm, rng)
        assert len(search(maze)) == size**2
        assert open_sides(maze) == size**2 - 1


def test_braided_mazes_have_loops_and_ties():
    rng, tied = random.Random(2), 0
    for _ in range(100):
        maze = mazes.draw(5, "braided", rng)
        assert len(search(maze)) == 25 and open_sides(maze) > 24
        cell, paths = maze.start, 1
        while cell != maze.target:
            good = maze.optimal_actions(cell)
            paths *= len(good)
            cell, _ = maze.move(cell, good[0])
        tied += paths > 1
    assert tied > 15


def test_wilson_draws_every_tree_as_often():
    """2 x 2 cells have four trees: each lacks one of four sides."""
    rng = random.Random(3)
    seen = collections.Counter(
        "".join(mazes.draw(2, "wilson", rng).layout).translate(str.maketrans("SE", "  "))
        for _ in range(2000)
    )
    assert len(seen) == 4
    assert all(abs(count - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5 for count in seen.values())


def test_algorithms_look_different():
    """Dead ends a maze: few for the backtracker, many for Prim."""
    rng = random.Random(4)

    def dead_ends(algorithm):
        drawn = [mazes.draw(7, algorithm, rng) for _ in range(60)]
        return sum(len(p) == 1 for maze in drawn for p in maze.passages) / 60

    few, some, many = (dead_ends(name) for name in ("depth_first", "wilson", "prim"))
    assert few + 3 < some < many - 0.5


def test_generated_mazes_are_solvable_new_and_disjoint():
    held_out = frozenset(maze.key for maze in mazes.generate(1, 300, sizes=(3,)))
    made = mazes.generate(2, 1500, exclude=held_out, weights=(3, 1, 1))
    keys = {maze.key for maze in made}
    assert len(made) == len(keys) == 1500 and not keys & held_out
    assert all(maze.solvable for maze in made)
    assert {maze.size for maze in made} == {3, 4, 5}
    assert {maze.algorithm for maze in made} == set(IN_DOMAIN)
    assert held_out & {maze.key for maze in mazes.generate(2, 1500, weights=(3, 1, 1))}


def test_a_seed_is_a_data_set():
    first = mazes.generate(7, 40)
    assert first == mazes.generate(7, 40) and first[:10] == mazes.generate(7, 10)
    assert first != mazes.generate(8, 40)


def test_sizes_algorithms_and_least_length():
    made = mazes.generate(3, 200, (4, 6), (1, 3), algorithms=("scattered",), min_steps=4)
    sizes = collections.Counter(maze.size for maze in made)
    assert set(sizes) == {4, 6} and sizes[6] > sizes[4]
    assert min(maze.shortest for maze in made) == 4
    assert {maze.algorithm for maze in made} == {"scattered"}


def test_mazes_that_do_not_exist_are_an_error():
    # Four trees of 2 x 2 cells, twelve pairs of start and end.
    assert len(mazes.generate(0, 48, sizes=(2,), algorithms=("wilson",))) == 48
    with pytest.raises(ValueError, match=r"only 48 of 49 mazes found at sizes \[2\]"):
        mazes.generate(0, 49, sizes=(2,), algorithms=("wilson",))
    with pytest.raises(ValueError, match="at least 4 steps"):
        mazes.generate(0, 1, sizes=(2,), min_steps=4)
    with pytest.raises(ValueError, match="sizes are at least 2"):
        mazes.generate(0, 1, sizes=(1,))
    with pytest.raises(ValueError, match="min_steps must be at least 1, got 0"):
        mazes.generate(0, 1, min_steps=0)
    with pytest.raises(ValueError, match="unknown algorithm 'eller'"):
        mazes.generate(0, 1, algorithms=("eller",))


def test_generation_is_fast():
    rates = []
    for seed in range(3):  # the best of three; CPU time, as other work may hold the cores
        started = time.process_time()
        mazes.generate(seed, 200, sizes=(7,))
        rates.append(200 / (time.process_time() - started))
    assert max(rates) > 800


# --- splits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples():
    return {split: [mazes.example(0, split, i) for i in range(400)] for split in SPLITS}


def test_splits_share_no_maze(examples):
    keys = {split: {maze.key for maze, _ in examples[split]} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not keys[a] & keys[b]
    # By contents, whatever the seed: small mazes do come again.
    small = Settings(sizes=(3,))
    train, test = (
        {mazes.example(1, split, i, small).maze.key for i in range(400)}
        for split in ("train", "test_id")
    )
    assert not train & test and len(test) < 400


def test_what_is_held_out_is_in_test_ood_alone(examples):
    for split in ("train", "test_id"):
        assert {maze.size for maze, _ in examples[split]} == {3, 4, 5}
        assert {maze.algorithm for maze, _ in examples[split]} == set(IN_DOMAIN)
        assert {s.name for _, s in examples[split]} == {s.name for s in STYLES if not s.held_out}
    kinds = collections.Counter()
    for maze, style in examples["test_ood"]:
        shifted = (maze.size > 5, maze.algorithm in HELD_OUT, style.held_out)
        names = tuple(itertools.compress(("size", "algorithm", "style"), shifted))
        assert mazes.shifts(maze, style) == names
        kinds[names] += 1
    every = ("size", "algorithm", "style")
    assert set(kinds) == {every, *((name,) for name in every)} and min(kinds.values()) > 60
    assert {maze.size for maze, _ in examples["test_ood"]} == {3, 4, 5, 6, 7}
    assert {s.name for _, s in examples["test_ood"]} == {s.name for s in STYLES}


def test_every_example_may_be_where_it_is(examples):
    for split in SPLITS:
        for maze, style in examples[split]:
            assert mazes.split_of(maze, style) == split
            assert maze.shortest >= 2
    # Unseen contents that look as in training belong nowhere, nor does what is held out elsewhere.
    known, held = next(s for s in STYLES if not s.held_out), next(s for s in STYLES if s.held_out)
    maze = examples["train"][0].maze
    assert mazes.split_of(maze, known) == "train" and mazes.split_of(maze, held) is None
    inside = next(m for m, _ in examples["test_ood"] if m.size < 6 and m.algorithm in IN_DOMAIN)
    assert mazes.split_of(inside, known) is None and mazes.split_of(inside, held) == "test_ood"


def test_shares_of_the_splits():
    buckets = collections.Counter(mazes.bucket_of(m.key) for m in mazes.generate(5, 3000))
    for split, share in SPLITS.items():
        assert abs(buckets[split] / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5


def test_examples_are_drawn_at_random_access(examples):
    assert mazes.example(0, "test_ood", 7) == examples["test_ood"][7]
    assert mazes.example(1, "train", 3) != examples["train"][3]
    assert isinstance(examples["train"][0], Example)


def test_settings_choose_within_the_splits():
    settings = Settings((4,), (7,), 5, ("lines", "neon"))
    for i in range(40):
        maze, style = mazes.example(0, "train", i, settings)
        assert (maze.size, style.name) == (4, "lines") and maze.shortest >= 5
        maze, style = mazes.example(0, "test_ood", i, settings)
        assert maze.size in (4, 7) and style.name in ("lines", "neon")


def test_a_style_may_be_given(examples):
    lines, neon = (next(s for s in STYLES if s.name == name) for name in ("lines", "neon"))
    for i in range(30):
        assert mazes.split_of(*mazes.example(0, "train", i, style=lines)) == "train"
        for style in (lines, neon):
            made = mazes.example(0, "test_ood", i, style=style)
            assert made.style == style and mazes.split_of(*made) == "test_ood"
    assert mazes.example(0, "train", 5, style=lines).maze == examples["train"][5].maze
    with pytest.raises(ValueError, match="style 'neon' is held out: 'train'"):
        mazes.example(0, "train", 0, style=neon)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (3, 6)}, r"sizes must be in 2 \.\. 5, got \(3, 6\)"),
        ({"sizes": ()}, "sizes must be"),
        ({"held_out_sizes": (5,)}, "held_out_sizes must be above 5"),
        ({"styles": ("cubist",)}, r"unknown styles \['cubist'\]"),
        ({"styles": ("lines",)}, "both kinds"),
    ],
)
def test_bad_settings_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_impossible_examples_are_an_error():
    with pytest.raises(ValueError, match="unknown split 'test'"):
        mazes.example(0, "test", 0)
    with pytest.raises(ValueError, match="10,000 mazes in a row"):
        mazes.example(0, "train", 0, Settings(sizes=(2,), min_steps=4))


# --- one scorer and one way to demonstrate serve maps and mazes ----------------------------------


def test_an_optimal_path_is_success():
    rng = random.Random(6)
    for maze in mazes.generate(9, 60, sizes=(3, 5, 7), algorithms=tuple(ALGORITHMS)):
        path = " ".join(optimal_path(maze, rng))
        parts = rewards.score([f"<ANSWER>{path}</ANSWER>", f"<FINAL>{path}</FINAL>"], maze)
        assert parts["success"] == parts["em"] == parts["strict_success"] == 1
        assert parts["total"] == 1
        assert len(path.split()) == search(maze)[maze.start]


def test_a_wall_stops_the_strict_and_not_the_lenient():
    bumps = ("right", "down", "right", "down", "down")
    assert not rewards.strict(bumps, HAND) and rewards.lenient(bumps, HAND)
    assert not rewards.em(bumps, HAND)
    assert rewards.progress(bumps, HAND) == 1 / 4
    unsolvable = Maze(("#####", "#S# #", "# ###", "# #E#", "#####"))
    with pytest.raises(ValueError, match="can't be reached"):
        rewards.score(["<ANSWER>down</ANSWER>"], unsolvable)


@pytest.mark.parametrize(
    ("actions", "fault"),
    [
        ("right right down down", (4, "good")),
        ("right right down down up", (5, "over")),
        ("right right", (2, "short")),
        ("right down", (2, "wall")),
        ("up", (1, "wall")),
        ("down right", (1, "detour")),
        ("", (0, "short")),
    ],
)
def test_diagnoses(actions, fault):
    assert diagnose(HAND, tuple(actions.split())) == fault


def test_mistakes_are_of_every_kind():
    rng, counts = random.Random(7), collections.Counter()
    made = mazes.generate(11, 100)
    for i in range(1000):
        counts[diagnose(made[i % 100], mistake(made[i % 100], rng, []))[1]] += 1
    assert set(counts) == {"wall", "detour", "over", "short"}
    assert min(counts.values()) > 1000 // 40, counts


def test_demonstrations_repair_what_walls_stop():
    rng, said = random.Random(8), set()
    for maze in mazes.generate(12, 200, algorithms=tuple(ALGORITHMS)):
        replies = demonstrate(maze, rng, wrong_first=0.8, second_error=0.5, max_turns=5)
        parts = rewards.score([reply.text for reply in replies], maze)
        assert parts["success"] == 1 and parts["clean_commit"] == 1
        for earlier, later in itertools.pairwise(replies[:-1]):
            step, kind = diagnose(maze, parse_reply(earlier.text).actions)
            assert later.text.startswith(f"<THINK> step {step} {kind}</THINK>")
            said.add(kind)
    assert said == {"wall", "detour", "over", "short"}
