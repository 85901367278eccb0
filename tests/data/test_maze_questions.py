"""Questions about mazes: answers read back from the characters and from the picture's colours."""

import collections
import io
import itertools
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from vrrl_jax.data import loading, maze_questions, mazes
from vrrl_jax.data.demonstrations import optimal_path
from vrrl_jax.data.maze_questions import DIRECTIONS, LETTERS, MODES, characters, questions, turns
from vrrl_jax.data.mazes import Maze, Settings, bucket_of
from vrrl_jax.data.records import Id
from vrrl_jax.rewards import benchmarks

HAND = Maze(("#######", "#S    #", "# ### #", "#   # #", "##### #", "#    E#", "#######"))
FIELDS = {"id", "image", "text", "oracle_answer", "oracle_option", "oracle_full_answer"}
COLOURS = {(0, 0, 0): "#", (255, 255, 255): " ", (0, 190, 0): "S", (255, 0, 0): "E"}
COLOURS[40, 90, 235] = "X"


def maze_in(text):
    """The lines of characters in a question's text."""
    return [line for line in text.splitlines() if line.startswith("#")]


def read_picture(data):
    """The characters of a picture, block by block, from its colours alone."""
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    blocks = 2 * (picture.shape[0] // 28) + 1
    middles = [int((k + 0.5) * picture.shape[0] / blocks) for k in range(blocks)]
    return ["".join(COLOURS[tuple(picture[y, x].tolist())] for x in middles) for y in middles]


def walk(rows):
    """Directions (down, right) of the steps from S over X to E, one for every block."""
    place = next((r, row.index("S")) for r, row in enumerate(rows) if "S" in row)
    steps, seen = [], {place}
    while rows[place[0]][place[1]] != "E":
        (after,) = [
            (dr, dc)
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if rows[place[0] + dr][place[1] + dc] in "XE"
            and (place[0] + dr, place[1] + dc) not in seen
        ]
        place = place[0] + after[0], place[1] + after[1]
        seen.add(place)
        steps.append(after)
    return steps


def counted(rows):
    """(right turns, all turns) by the cross product of every two steps in a row."""
    steps = walk(rows)
    crosses = [a[1] * b[0] - a[0] * b[1] for a, b in itertools.pairwise(steps)]
    return crosses.count(1), len(crosses) - crosses.count(0)


def place_of(rows, letter):
    return next((r, row.index(letter)) for r, row in enumerate(rows) if letter in row)


def options(row):
    """{letter: text} of the last four lines."""
    *_, heading, a, b, c, d = row["text"].splitlines()
    assert heading == "Available options:"
    assert [line[:3] for line in (a, b, c, d)] == [f"{letter}. " for letter in LETTERS]
    return {line[0]: line[3:] for line in (a, b, c, d)}


@pytest.fixture(scope="module")
def rows():
    return {mode: list(questions(3, 150, mode)) for mode in MODES}


def test_rows_have_the_published_shape(rows):
    for mode in MODES:
        assert len(rows[mode]) == 450
        for i, row in enumerate(rows[mode]):
            assert set(row) == FIELDS and row["id"] == f"mazenav.{mode}.{i // 3}.{i % 3}"
            shown = options(row)
            assert len(set(shown.values())) == 4
            assert shown[row["oracle_option"]] == row["oracle_answer"]
            assert row["oracle_full_answer"] == f"{row['oracle_option']}. {row['oracle_answer']}"
            assert (row["image"] is None) == (mode == "tqa")
            assert bool(maze_in(row["text"])) == (mode != "vqa")


def test_all_modes_ask_the_same_of_the_same_mazes(rows):
    for vqa, tqa, vtqa in zip(*rows.values(), strict=True):
        assert vqa["image"] == vtqa["image"]
        assert maze_in(tqa["text"]) == maze_in(vtqa["text"]) == read_picture(vqa["image"]["bytes"])
        assert options(vqa) == options(tqa) == options(vtqa)
        assert vqa["oracle_option"] == tqa["oracle_option"] == vtqa["oracle_option"]


def test_turns_equal_a_count_over_the_picture(rows):
    seen = collections.Counter()
    for row in rows["vqa"]:
        number = int(row["id"][-1])
        if number < 2:
            assert int(row["oracle_answer"]) == counted(read_picture(row["image"]["bytes"]))[number]
            seen[row["oracle_answer"]] += 1
    assert len(seen) > 6


def test_the_position_is_where_the_letters_stand(rows):
    asked = collections.Counter()
    for row in rows["tqa"][2::3]:
        (r0, c0), (r1, c1) = (place_of(maze_in(row["text"]), letter) for letter in "SE")
        (said,) = re.findall(r"is E (.+) S\?", row["text"])
        true = (
            ("above" in said) == (r1 < r0)
            and ("below" in said) == (r1 > r0)
            and ("left" in said) == (c1 < c0)
            and ("right" in said) == (c1 > c0)
        )
        assert ("straight" in said) == (said.count(" and ") == 0)
        assert row["oracle_answer"] == ("Yes" if true else "No")
        asked[said, row["oracle_answer"]] += 1
    assert {said for said, _ in asked} == set(DIRECTIONS.values())
    yes = sum(count for (_, answer), count in asked.items() if answer == "Yes")
    assert abs(yes - 75) < 4 * (150 / 4) ** 0.5


def test_the_path_is_a_shortest_one(rows):
    for row in rows["tqa"][::3]:
        drawn = maze_in(row["text"])
        maze = Maze([line.replace("X", " ") for line in drawn])
        assert len(walk(drawn)) == 2 * maze.shortest >= 6


def test_letters_and_ranks_give_nothing_away():
    letters, ranks = collections.Counter(), collections.Counter()
    for row in questions(5, 600, "tqa"):
        letters[row["oracle_option"]] += 1
        if row["id"].endswith("1") and int(row["oracle_answer"]) >= 3:
            ordered = sorted(options(row).values(), key=int)
            ranks[ordered.index(row["oracle_answer"])] += 1
    for counts in (letters, ranks):
        total = sum(counts.values())
        assert total > 200 and len(counts) == 4
        assert all(abs(n - total / 4) < 4 * (total * 3 / 16) ** 0.5 for n in counts.values())


def test_splits_and_settings():
    keys = {}
    for split in ("train", "test_id", "test_ood"):
        made = [maze_in(row["text"]) for row in questions(0, 60, "tqa", split)][::3]
        shown = [Maze([line.replace("X", " ") for line in lines]) for lines in made]
        assert {bucket_of(maze.key) for maze in shown} == {split}
        keys[split] = {maze.key for maze in shown}
        assert ({maze.size for maze in shown} <= {3, 4, 5}) == (split != "test_ood")
    assert not keys["train"] & keys["test_id"]
    (row, *_) = questions(0, 1, settings=Settings(sizes=(5,), min_steps=9), cell=20)
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (100, 100)


def test_a_seed_is_a_data_set(rows):
    assert list(questions(3, 10)) == rows["vqa"][:30]
    assert list(questions(4, 10)) != rows["vqa"][:30]
    with pytest.raises(ValueError, match="unknown mode 'aqa'"):
        next(questions(0, 1, "aqa"))
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        next(questions(0, 1, split="dev"))


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ("", []),
        ("up up", []),
        ("right down", ["right"]),
        ("down left up right", ["right"] * 3),
        ("down right up left", ["left"] * 3),
        ("up left left down right", ["left"] * 3),
        ("up right up", ["right", "left"]),
        ("left right", ["back"]),
    ],
)
def test_turns_as_the_walker_sees_them(actions, expected):
    assert turns(actions.split()) == expected


def test_characters():
    shown = characters(HAND, ["right", "right", "down", "down"]).splitlines()
    assert shown == ["#######", "#SXXXX#", "# ###X#", "#   #X#", "#####X#", "#    E#", "#######"]
    assert characters(HAND).splitlines() == list(HAND.layout)
    with pytest.raises(ValueError, match="step 2, down, runs into a wall"):
        characters(HAND, ["right", "down"])


def test_every_direction_is_named():
    rng, seen = random.Random(0), set()
    for maze in mazes.generate(0, 200):
        (r0, c0), (r1, c1) = divmod(maze.start, maze.size), divmod(maze.target, maze.size)
        assert DIRECTIONS[np.sign(r1 - r0), np.sign(c1 - c0)] == maze_questions.direction(maze)
        seen.add(maze_questions.direction(maze))
        asked = maze_questions.ask(maze, optimal_path(maze, rng), rng)
        assert len(asked) == 3 and all(q.answer in q.options for q in asked)
    assert len(seen) == 8


@pytest.mark.parametrize("mode", MODES)
def test_the_mapper_of_published_rows_reads_them(mode, tmp_path):
    import pyarrow
    import pyarrow.parquet

    made = list(questions(6, 5, mode))
    text = pyarrow.string()
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    schema = pyarrow.schema([(n, image if n == "image" else text) for n in sorted(FIELDS)])
    file = tmp_path / "test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made, schema=schema), file)
    loaded = loading.load(file, "spatialeval", max_bad=0)
    assert loaded.skipped == [] and len(loaded.records) == 15
    for i, (record, row) in enumerate(zip(loaded.records, made, strict=True)):
        assert record.id == Id("spatialeval", i, 0)
        assert (record.kind, record.category) == ("choice", "mazenav")
        assert record.answer == row["oracle_option"]
        marked = row["text"] if mode == "tqa" else "<image>" + row["text"]
        assert record.question == marked
        assert [bytes(p) for p in record.pictures] == (
            [] if mode == "tqa" else [row["image"]["bytes"]]
        )
        assert record.extra["oracle_full_answer"] == row["oracle_full_answer"]
        reply = f"The answer is {row['oracle_full_answer']}"
        shown = list(options(row).values())
        assert benchmarks.spatialeval(reply, record.answer, shown).correct
    json.dumps([row | {"image": None} for row in made])  # and nothing but plain values
