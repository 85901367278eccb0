"""The FrozenLake task: its examples, its reward's options, its environment."""

import json
import random

import numpy as np
import pytest

from vrrl_jax import testing
from vrrl_jax.config import (
    FrozenLakeData,
    NavigationEnv,
    NavigationEval,
    NavigationReward,
)
from vrrl_jax.data import frozenlake
from vrrl_jax.rewards import frozenlake as rewards
from vrrl_jax.rollout import episodes
from vrrl_jax.tasks.frozenlake import FrozenLake


def keys(maps) -> list[str]:
    return [map.key for map in maps]


def test_evaluation_maps_are_even_over_levels_and_disjoint(tmp_path):
    task = FrozenLake(eval=NavigationEval(count=10, levels=(3, 4, 5), seed=5))
    found = task.evaluation()
    first = found.examples
    assert [m.size for m in first] == [3] * 4 + [4] * 4 + [5] * 4
    assert found.labels == ("3x3",) * 4 + ("4x4",) * 4 + ("5x5",) * 4
    assert found.in_domain == {"3x3", "4x4", "5x5"}
    assert not set(keys(first)) & set(keys(task.evaluation(first).examples))
    assert keys(task.evaluation().examples) == keys(first)
    path = tmp_path / "maps.json"
    records = [
        {"layout": m.layout, "start_pos": m.start, "target_pos": m.target} for m in first[:3]
    ]
    path.write_text(json.dumps(records))
    published = FrozenLake(eval=NavigationEval(path=str(path))).evaluation(first)
    assert keys(published.examples) == keys(first[:3]) and published.source == str(path)
    # And maps can be kept out of training by naming their file.
    plain = FrozenLakeData(seed=5 + 3, count=30, levels=(3,))
    assert set(keys(first[:3])) & set(keys(FrozenLake(data=plain).training()))
    without = FrozenLakeData(seed=5 + 3, count=30, levels=(3,), exclude=(str(path),))
    assert not set(keys(first[:3])) & set(keys(FrozenLake(data=without).training()))
    read = FrozenLakeData(path=str(path), exclude=(str(path),))
    with pytest.raises(ValueError, match="none of the 3 maps"):
        FrozenLake(data=read).training()


def test_the_scorer_passes_on_every_option():
    map = frozenlake.Map(("SFG", "FFF", "FFF"), 0, 2)
    turns = ["<ANSWER>down</ANSWER>", "<THINK>x</THINK><ANSWER>right right</ANSWER>"]
    turns.append("<FINAL>right right</FINAL>")
    wrong = episodes.Group(0, map, "roll_in", (np.zeros(1, np.int32),))
    plain = FrozenLake().score(turns, map, wrong)
    assert plain == rewards.score(turns, map, prefix_turns=1)
    options = NavigationReward(correct_value=2.0, step_cost=0.25)
    found = FrozenLake(reward=options, decision_bonus=0.5).score(turns, map, wrong)
    assert found["decision"] == 0.5 and plain["decision"] == 0
    assert found["total"] == pytest.approx(plain["total"] + 1 - 0.24 + 0.5)


def test_environment_texts_default_to_its_own():
    board = FrozenLake(env=NavigationEnv(cell=20, question="Solve")).environment
    assert board.settings.cell == 20 and board.settings.question == "Solve"
    assert "verify" not in board.settings.verify and len(board.settings.verify) > 50
    # What a run plays and what the library offers are one environment.
    assert testing.tiny_task(3).environment == testing.tiny_environment(3)


def test_the_largest_map_is_the_probe():
    maps = frozenlake.generate(0, 9, levels=(3, 5, 4))
    ((largest, reply),) = FrozenLake().probes(maps)
    assert largest.size == 5
    assert not FrozenLake().environment.step(largest, reply, 0).done


@pytest.mark.parametrize(
    ("text", "total", "success", "format_error"),
    [
        ("<ANSWER>right right</ANSWER>", 1.0, 1, 0),
        ("<FINAL>right right</FINAL>", 1.0, 1, 0),
        ("<THINK>two steps</THINK><ANSWER>right right</ANSWER>", 1.0, 1, 0),
        ("<ANSWER>right down</ANSWER>", 0.1, 0, 0),
        ("<ANSWER></ANSWER>", 0.0, 0, 0),
        ("right right", 0.0, 0, 1),
    ],
)
def test_a_lone_proposal_is_the_answer_of_a_single_turn(text, total, success, format_error):
    map = frozenlake.Map(("SFG", "FFF", "FFF"), 0, 2)
    task = FrozenLake(env=NavigationEnv(max_turns=1))
    assert task.environment.step(map, text, 0).done
    found = task.score((text,), map, episodes.Group(0, map))
    assert found["total"] == total and found["budget_exhausted"] == 0
    assert (found["success"], found["lost_to_format"]) == (success, 0)
    assert found["format_error"] == format_error or text == "<ANSWER></ANSWER>"
    # Where there are further turns, it is an episode cut short.
    multi = FrozenLake().score((text,), map, episodes.Group(0, map))
    assert multi["total"] == multi["success"] == 0


def test_single_turn_demonstrations_are_lone_right_proposals():
    task = FrozenLake(env=NavigationEnv(max_turns=1))
    for map in task.fresh(random.Random(0), 8):
        (reply,) = task.demonstrate(map, random.Random(1), False)
        assert task.score((reply.text,), map, episodes.Group(0, map))["total"] == 1.0
        assert all(piece.weight for piece in reply.pieces) and reply.end_weight == 1.0
