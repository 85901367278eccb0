"""The released reward on random episodes against the rules written out as naive loops."""

import itertools
import random
import re

import pytest

from vrrl_jax.data.frozenlake import ACTIONS, generate
from vrrl_jax.rewards.frozenlake import score


def propose(actions):
    return f"<ANSWER>{actions}</ANSWER>"


def revise(actions):
    return f"<THINK>hm</THINK><ANSWER>{actions}</ANSWER>"


def commit(actions):
    return f"<FINAL>{actions}</FINAL>"


def episode(*proposals):
    """A well-formed episode of these proposals, the last one committed."""
    first, *later = proposals
    return [propose(first), *(revise(actions) for actions in later), commit(proposals[-1])]


def naive_score(turns, map, o):
    """The rules once more, as one loop a rule, on grids, with nothing of the package but the map's
    letters. `o` holds every option."""
    n, grid = map.size, [list(row) for row in map.layout]
    delta = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
    far = {}
    queue = [divmod(map.target, n)]
    far[queue[0]] = 0
    for r, c in queue:
        for dr, dc in delta.values():
            near = (r + dr, c + dc)
            if min(near) < 0 or max(near) >= n or near in far or grid[near[0]][near[1]] == "H":
                continue
            far[near] = far[r, c] + 1
            queue.append(near)
    best = far[divmod(map.start, n)]

    def walk(actions):
        place = divmod(map.start, n)
        for action in actions:
            place = (place[0] + delta[action][0], place[1] + delta[action][1])
            yield place

    def is_em(actions):
        places = list(walk(actions))
        return (
            len(places) == best
            and all(place in far for place in places)
            and grid[places[-1][0]][places[-1][1]] == "G"
        )

    def how_far(actions):
        good, left = 0, best
        for place in walk(actions):
            if far.get(place, best + 1) != left - 1:
                break
            good, left = good + 1, left - 1
        if o["overshoot_zero"] and left == 0 and len(actions) > best:
            return 0.0
        return good / best

    kinds, lists, thinks = [], [], []
    for text in turns:
        body = re.search("<final>(.*?)</final>", text, re.I | re.S)
        kind = "F" if body else "A"
        body = body or re.search("<answer>(.*?)</answer>", text, re.I | re.S)
        words = body.group(1).lower().replace(",", " ").split() if body else ["nothing"]
        bad = any(word not in delta for word in words)
        kinds.append("X" if bad else kind)
        lists.append([] if bad else words)
        thinks.append(bool(re.search("<think>.*?</think>", text, re.I | re.S)))

    formed = re.fullmatch("A+F", "".join(kinds)) is not None and len(turns) >= o["min_turns"]
    if formed:
        if any(len(actions) == 0 for actions in lists) or lists[-1] != lists[-2]:
            formed = False
        for i in range(len(lists) - 1):
            if lists[i] in lists[:i] or thinks[i] != (i > 0):
                formed = False
        if thinks[-1]:
            formed = False

    answer = []
    for wanted in ("A", "F"):
        for kind, actions in zip(kinds, lists, strict=True):
            if kind == wanted:
                answer = actions
    proposals = [actions for kind, actions in zip(kinds, lists, strict=True) if kind == "A"]
    reflected = 0.0
    for before, after in itertools.pairwise(proposals):
        change = how_far(after) - how_far(before)
        reflected += change if change > 0 else change * o["lambda_deg"]
    if reflected > 1:
        reflected = 1.0
    if len(proposals) > 1 and reflected < o["reflect_lower_clip"]:
        reflected = o["reflect_lower_clip"]

    if not formed:
        return {"total": 0.0, "format": 0.0, "em": is_em(answer), "reflect": reflected}
    revisions = len(proposals) - 1
    if is_em(answer):
        value = o["correct_value"]
        if reflected > 0:
            discounted = reflected
            for _ in range(revisions):
                discounted *= o["em_reflect_step_discount"]
            value += o["em_reflect_bonus_weight"] * discounted
        for _ in range(revisions):
            value -= o["step_cost"]
    else:
        value = o["format_value"] + o["reflect_weight"] * reflected
        if o["graded"]:
            value += o["outcome_weight"] * how_far(answer)
            if value > o["correct_value"]:
                value = o["correct_value"]
    if 0 < o["prefix_turns"] < len(turns):
        commits = kinds[o["prefix_turns"]] == "F"
        if commits != o["prefix_right"]:
            value -= o["decision_bonus"]
        elif is_em(answer):
            value += o["decision_bonus"]
    return {
        "total": value,
        "format": o["format_value"],
        "em": is_em(answer),
        "reflect": reflected,
    }


def random_turns(rng, map):
    """Mostly sensible episodes: paths near a shortest one, and the usual slips of form."""
    paths = []
    for _ in range(rng.randint(1, 4)):
        cell, path = map.start, []
        while cell != map.target:
            path.append(rng.choice(map.optimal_actions(cell)))
            cell, _ = map.move(cell, path[-1])
        kind = rng.random()
        if kind < 0.3:
            path[rng.randrange(len(path))] = rng.choice(ACTIONS)
        elif kind < 0.5:
            path = path[: rng.randrange(len(path) + 1)]
        elif kind < 0.6:
            path += rng.choices(ACTIONS, k=rng.randint(1, 2))
        elif kind < 0.65:
            path = rng.choices(ACTIONS, k=rng.randrange(6))
        paths.append(rng.choice((" ", ",", ", ", "\n")).join(path))
    turns = episode(*paths)
    if rng.random() < 0.3:
        slips = ("hm", commit(paths[0]), propose(paths[-1]), revise(paths[0]), commit("north"))
        turns[rng.randrange(len(turns))] = rng.choice(slips)
    if rng.random() < 0.1:
        turns = turns[: rng.randrange(len(turns) + 1)]
    return turns


def test_random_episodes_equal_the_naive_loop():
    rng = random.Random(0)
    maps = generate(0, 150, levels=(2, 3, 4, 5), weights=(1, 3, 3, 3))
    seen = {"formed": 0, "em": 0, "decided": 0, "reflected": 0}
    for _ in range(4000):
        map = rng.choice(maps)
        turns = random_turns(rng, map)
        options = {
            "correct_value": rng.choice((1.0, 0.6, 2.0)),
            "format_value": rng.choice((0.1, 0.0, 0.3)),
            "lambda_deg": rng.choice((0.5, 0.0, 1.0, 2.0)),
            "reflect_weight": rng.choice((0.9, 0.0, 3.0)),
            "reflect_lower_clip": rng.choice((0.0, -0.1, -1.0)),
            "em_reflect_bonus_weight": rng.choice((0.1, 0.0, 1.0)),
            "em_reflect_step_discount": rng.choice((1.0, 0.5, 0.0)),
            "step_cost": rng.choice((0.01, 0.0, 0.2)),
            "overshoot_zero": rng.random() < 0.5,
            "min_turns": rng.choice((1, 2, 3)),
            "graded": rng.random() < 0.5,
            "outcome_weight": rng.choice((0.9, 0.0, 0.3)),
            "prefix_turns": rng.choice((0, 0, 1, 2)),
            "prefix_right": rng.random() < 0.5,
            "decision_bonus": rng.choice((0.0, 0.25)),
        }
        got, expected = score(turns, map, **options), naive_score(turns, map, options)
        for name, value in expected.items():
            assert got[name] == pytest.approx(float(value), abs=1e-9), (
                name,
                turns,
                map,
                options,
            )
        seen["formed"] += got["format"] > 0
        seen["em"] += got["em"] > 0
        seen["reflected"] += got["reflect"] > 0
        seen["decided"] += got["format"] > 0 and 0 < options["prefix_turns"] < len(turns)
    assert min(seen.values()) > 300, seen  # every branch was reached often


def test_success_is_made_of_its_parts():
    """success = turn1_em + wrong_to_right - right_to_wrong - lost_to_format, always."""
    rng = random.Random(3)
    for map in generate(1, 300):
        parts = score(random_turns(rng, map), map)
        after = parts["turn1_em"] + parts["wrong_to_right"] - parts["right_to_wrong"]
        assert parts["success"] == after - parts["lost_to_format"]
        assert parts["final_em"] == after
