"""What docs/your_own.md shows: its code runs as it stands, and Sokoban is a task."""

import json
import pathlib
import random
import re
import sys

import numpy as np
import pytest

from vrrl_jax import cli, sft, tasks, testing
from vrrl_jax.checkpoint import hf
from vrrl_jax.config import SftConfig, TrainConfig, load
from vrrl_jax.log import read_metrics
from vrrl_jax.rollout.episodes import Group, Settings, answered, plan_shapes
from vrrl_jax.tasks.base import Task

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "your_own.md").read_text(encoding="utf-8")
SOKOBAN = DOCS / "examples" / "sokoban.yaml"


def blocks(language) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """sys.path is put back, and so are the modules of the examples."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("sokoban", "dots", "brief"):
        sys.modules.pop(name, None)


@pytest.fixture
def sokoban(monkeypatch):
    monkeypatch.syspath_prepend(str(SOKOBAN.parent))
    import sokoban

    return sokoban


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture
def dots(tmp_path):
    """The page's blocks as the files they say they are; the recipe's path."""
    (environment, _, reward, brief, task), (recipe, _) = blocks("python"), blocks("yaml")
    assert environment.startswith("# dots.py") and brief.startswith("# brief.py")
    (tmp_path / "dots.py").write_text(environment + "\n\n" + reward + "\n\n" + task)
    (tmp_path / "brief.py").write_text(brief)
    (tmp_path / "dots.yaml").write_text(recipe)
    assert all(len(block.splitlines()) < 30 for block in blocks("python"))
    cli._importable(str(tmp_path / "dots.yaml"))
    return tmp_path / "dots.yaml"


def test_the_page_s_task_runs(dots):
    import dots as module

    processor = testing.tiny_processor()
    task = tasks.make(load(dots, [], TrainConfig), processor)
    assert list(task.training()) == [1, 2, 4, 5, 7, 8]
    found = task.evaluation()
    assert list(found.examples) == [3, 6, 9, *range(10, 17)] and found.in_domain == {"between"}
    assert not set(task.training()) & set(found.examples)
    # Dots are 12 pixels wide, in cells of 28: so many corners that start one.
    for count in (1, 7, 16):
        image = module.picture(count)
        assert image.shape == (112, 112, 3) and (image == 0).sum() == count * 12 * 12 * 3
        starts = (image[8::28, 8::28, 0] == 0).ravel()
        assert starts.tolist() == [True] * count + [False] * (16 - count)
    outcome = answered(task.environment, 3, ["<ANSWER>5</ANSWER>"])
    said, asked = outcome.prompt.pictures
    assert outcome.prompt.text.count("<image>") == 2
    assert np.array_equal(said, module.picture(5)) and np.array_equal(asked, module.picture(3))
    group = Group(0, 3)
    assert task.score(("<ANSWER>5</ANSWER>", "<FINAL>3</FINAL>"), 3, group)["success"] == 1
    assert task.score(("<ANSWER>5</ANSWER>",), 3, group)["total"] == 0.1
    assert task.score(("five",), 3, group)["total"] == 0
    # Supervised as well, and the shapes can be planned.
    policy = hf.load_policy("nano")
    shapes = plan_shapes(
        policy, processor, task.environment, task.probes(task.training()), Settings(8, 2, 16)
    )
    assert shapes.pictures == 2
    sequence = sft.demonstration_sequence(task, 4, random.Random(0), processor, False)
    assert len(sequence.pictures) == 3


def test_the_page_s_sum_sees_every_reply():
    scope = {}
    exec("from vrrl_jax.types import Outcome, Prompt\n" + blocks("python")[1], scope)
    board = scope["Sum"]()
    assert answered(board, 9, ["4", "3"]).prompt.text == "7 so far."
    assert answered(board, 9, ["4", "5"]).done and answered(board, 9, ["4", "x"]).done


def test_the_page_s_scorer_replaces_a_reward(dots, tmp_path):
    recipe = tmp_path / "lake.yaml"
    recipe.write_text("scorer: brief:reward\n")
    config, map = load(recipe, [], TrainConfig), testing.tiny_maps(1)[0]
    task = tasks.make(config, testing.tiny_processor())
    texts = ("<ANSWER>up</ANSWER>", "<FINAL>up</FINAL>")
    plain = task.score(texts, map, Group(0, map))
    found = tasks.score_of(config, task)(texts, map, Group(0, map))
    assert found == plain | {"total": pytest.approx(plain["total"] - 0.02)}


def test_the_page_s_game_is_a_task(tmp_path):
    pytest.importorskip("pygame")
    recipe = tmp_path / "game.yaml"
    recipe.write_text(blocks("yaml")[1])
    config = load(recipe, [], TrainConfig)
    task = tasks.make(config, testing.tiny_processor())
    prompt = task.environment.reset(task.training()[0])
    assert prompt.pictures[0].shape == (112, 112, 3) and "left, down, right, up" in prompt.text
    plan = "down down right right down right"
    texts = (f"<ANSWER>{plan}</ANSWER>", f"<FINAL>{plan}</FINAL>")
    assert task.score(texts, 0, Group(0, 0))["success"] == 1


def test_the_page_links_to_what_is_there():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (DOCS / target).is_file(), target
    for target in re.findall(r"vrrl train (\S+)", PAGE):
        assert "." not in target or (DOCS.parent / target).is_file(), target


# --- Sokoban -------------------------------------------------------------------------------------


def brute(room, longest) -> int | None:
    """The fewest moves that solve a room, by the rules written down anew: text and all plans."""
    deltas = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    inside = lambda r, c: 0 <= r < room.size and 0 <= c < room.size and (r, c) not in room.walls
    states = {(room.player, room.box)}
    for moves in range(longest + 1):
        if any(box == room.mark for _, box in states):
            return moves
        after = set()
        for (r, c), box in states:
            for dr, dc in deltas.values():
                to, far = (r + dr, c + dc), (r + 2 * dr, c + 2 * dc)
                if inside(*to) and to != box:
                    after.add((to, box))
                elif to == box and inside(*far):
                    after.add((to, far))
        states |= after
    return None


def test_rooms_can_be_solved_and_differ(sokoban):
    rooms = sokoban.rooms(0, 25, 4, 8)
    assert len(set(rooms)) == 25 and rooms == sokoban.rooms(0, 25, 4, 8)
    for room in rooms:
        assert not {room.mark, room.box, room.player} & room.walls and room.mark != room.box
        solution = sokoban.solve(room)
        assert 2 <= len(solution) == brute(room, 8) <= 8
        assert sokoban.play(room, solution).box == room.mark
    stuck = sokoban.Room(3, frozenset(), mark=(1, 1), box=(0, 0), player=(2, 2))
    assert sokoban.solve(stuck) is None  # nobody pulls a box out of a corner


def test_moves_push_and_are_blocked(sokoban):
    room = sokoban.Room(4, frozenset({(3, 0)}), mark=(0, 3), box=(1, 1), player=(1, 0))
    assert sokoban.move(room, "left") == room  # outside is wall
    assert sokoban.move(room, "down").player == (2, 0)
    pushed = sokoban.play(room, ["right", "right"])
    assert (pushed.player, pushed.box) == ((1, 2), (1, 3))
    assert sokoban.move(pushed, "right") == pushed  # the box stands at the wall
    under = room._replace(player=(2, 0))
    assert sokoban.move(under, "down") == under  # a wall inside


def test_pictures_show_every_thing_in_its_cell(sokoban):
    room = sokoban.Room(4, frozenset({(3, 0)}), mark=(0, 3), box=(1, 1), player=(2, 2))
    picture = sokoban.draw(room, 28)
    assert picture.shape == (112, 112, 3) and picture.dtype == np.uint8
    colours = picture[14::28, 14::28].tolist()
    wanted = {(3, 0): "WALL", (0, 3): "MARK", (1, 1): "BOX", (2, 2): "PLAYER"}
    for cell in np.ndindex(4, 4):
        colour = getattr(sokoban, wanted.get(cell, "FLOOR"))
        assert colours[cell[0]][cell[1]] == list(colour), cell
    # A box that is home shows its mark.
    home = sokoban.draw(room._replace(box=(0, 3)), 28)
    assert home[14, 98].tolist() == list(sokoban.MARK) and home[5, 98].tolist() == list(
        sokoban.HOME
    )


def test_rewards(sokoban):
    room = sokoban.Room(4, frozenset(), mark=(1, 3), box=(1, 1), player=(1, 0))
    right, wrong = "right right", "right"
    say = lambda moves, tag="ANSWER": f"<{tag}>{moves}</{tag}>"
    found = sokoban.reward((say(wrong), say(right, "FINAL")), room)
    assert found == {"total": 1, "success": 1, "turn1": 0, "readable": 1}
    assert sokoban.reward((say(right), say(wrong)), room)["total"] == pytest.approx(0.2)
    assert sokoban.reward((say("up"),), room)["total"] == pytest.approx(0.1)
    found = sokoban.reward((say(right), "what?"), room)
    assert found == {"total": 0, "success": 0, "turn1": 1, "readable": 0}


@pytest.mark.parametrize("cls", [TrainConfig, SftConfig])
def test_the_recipe_makes_the_task(cls):
    cli._importable(str(SOKOBAN))
    config = load(SOKOBAN, ["options={size: 4, count: 6, longest: 4}", "eval.count=3"], cls)
    task: Task = tasks.make(config, testing.tiny_processor())
    training, tested = task.training(), task.evaluation()
    assert len(training) == 6 and tested.labels == ("4x4",) * 3 + ("5x5",) * 3
    assert not set(training) & set(tested.examples) and tested.in_domain == {"4x4"}
    outcome = answered(task.environment, training[0], ["<ANSWER>left</ANSWER>"])
    assert outcome.prompt.pictures[0].shape == (112, 112, 3)
    texts = [reply.text for reply in task.demonstrate(training[0], random.Random(0), False)]
    assert task.score(tuple(texts), training[0], Group(0, None))["success"] == 1
    assert answered(task.environment, training[0], texts).done


@pytest.mark.slow
def test_sokoban_trains_from_one_command(tiny_checkpoint, tmp_path, monkeypatch):
    """From another directory; no matter of learning."""
    monkeypatch.chdir(tmp_path)
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "unused")
    overrides = ["options={count: 8, longest: 4}", "eval.count=2", "steps=2"]
    overrides += ["rollout.questions=2", "rollout.samples=2", "rollout.max_new_tokens=4"]
    overrides += [f"policy.path={tiny_checkpoint}", "run_dir=run", "log.tensorboard=false"]
    assert cli.main(["train", str(SOKOBAN), *overrides]) == 0
    lines = read_metrics("run/metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2] and "readable" in lines[0]
    assert "task: sokoban:task" in pathlib.Path("run/config.yaml").read_text()
    (compared, _) = json.loads(pathlib.Path("run/evaluation_final.json").read_text())
    assert {row["split"] for row in compared["rows"]} == {"4x4", "5x5", "in-domain", "OOD", "all"}
    # A run's own recipe lies elsewhere than the module.
    assert cli.main(["eval", "run", "--config", str(SOKOBAN), *overrides[:2]]) == 0
