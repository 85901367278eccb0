"""Demonstrations: right where they are taught, wrong where they are shown, never in between."""

import hashlib
import itertools
import random

import pytest

from vrrl_jax.data.demonstrations import demonstrate, diagnose, mistake, optimal_path
from vrrl_jax.data.frozenlake import ACTIONS, Map, generate
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.processing.parsing import parse_reply
from vrrl_jax.rewards.frozenlake import em, score

STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
OPEN = Map(("SFF", "FFF", "FFG"), 0, 8)
HOLED = Map(("SHF", "FFH", "FFG"), 0, 8)
KNOWN = "f55c3fe00207a9d3ce1eaeb84d2bf8ff6dc484eb8d24cbd6c164bdde9520891b"
NEIGHBOURS = Map(("SG", "HH"), 0, 1)  # one step, and three ways to miss it
MAPS = [
    *generate(0, 60, levels=(2, 3, 4, 5, 6), weights=(1, 4, 4, 4, 2)),
    OPEN,
    HOLED,
    NEIGHBOURS,
    Map(("HHS", "HGF", "FFH"), 2, 4),
]


def played(reply):
    return parse_reply(reply.text).actions


def body(reply):
    """(opening, actions, closing) pieces of the list that an answer holds."""
    texts = [piece.text for piece in reply.pieces]
    tag = "ANSWER" if "<ANSWER>" in texts else "FINAL"
    first, last = texts.index(f"<{tag}>"), texts.index(f"</{tag}>")
    assert last == len(texts) - 1
    return reply.pieces[first], reply.pieces[first + 1 : last], reply.pieces[last]


def episodes(count=400, **options):
    """(map, replies) with mistakes in plenty."""
    options = {"wrong_first": 0.7, "second_error": 0.6, "max_turns": 6} | options
    rng = random.Random(0)
    for i in range(count):
        map = MAPS[i % len(MAPS)]
        yield map, demonstrate(map, rng, **options)


# --- what an episode is ------------------------------------------------------------------------


def test_episodes_end_by_committing_a_shortest_path():
    lengths = set()
    for map, replies in episodes():
        *proposals, commit = replies
        kinds = [parse_reply(reply.text).kind for reply in replies]
        assert kinds == ["proposal"] * len(proposals) + ["commit"]
        assert played(commit) == played(proposals[-1])
        assert em(played(commit), map)
        lengths.add(len(replies))
    assert lengths == {2, 3, 4, 5, 6}


def test_earlier_proposals_are_wrong_and_never_repeat():
    wrong = 0
    for map, replies in episodes():
        proposals = [played(reply) for reply in replies[:-1]]
        assert not any(em(actions, map) for actions in proposals[:-1])
        assert len(set(proposals)) == len(proposals) and all(proposals)
        wrong += len(proposals) - 1
    assert wrong > 400


@pytest.mark.parametrize("max_turns", [2, 3, 4, 8])
def test_the_reward_likes_them(max_turns):
    for map, replies in episodes(200, max_turns=max_turns):
        parts = score([reply.text for reply in replies], map)
        revisions = len(replies) - 2
        assert parts["format"] > 0 and parts["success"] == 1
        assert parts["total"] >= 1 - 0.01 * revisions - 1e-12
        assert parts["wrong_to_right"] == (revisions > 0)


def test_the_environment_plays_them_to_the_end():
    settings = env.Settings(cell=4, max_turns=6)
    for map, replies in episodes(60):
        done = [env.step(map, r.text, turn, settings).done for turn, r in enumerate(replies)]
        assert done == [False] * (len(replies) - 1) + [True]


@pytest.mark.parametrize(
    ("options", "turns"),
    [
        ({"wrong_first": 0.0, "second_error": 1.0}, 2),  # nothing to repair
        ({"wrong_first": 1.0, "second_error": 0.0}, 3),
        ({"wrong_first": 1.0, "second_error": 1.0, "max_turns": 5}, 5),
        ({"wrong_first": 1.0, "second_error": 1.0, "max_turns": 3}, 3),
        # The last two turns are a right proposal's and the commit's.
        ({"wrong_first": 1.0, "second_error": 1.0, "max_turns": 2}, 2),
    ],
)
def test_options_set_the_number_of_turns(options, turns):
    for seed in range(20):
        assert len(demonstrate(OPEN, random.Random(seed), **options)) == turns


@pytest.mark.parametrize("max_turns", [2, 3, 4, 7])
def test_max_turns_bounds_every_episode(max_turns):
    options = {"wrong_first": 0.9, "second_error": 0.9, "max_turns": max_turns}
    lengths = [len(replies) for _, replies in episodes(200, **options)]
    assert max(lengths) == max_turns and min(lengths) == 2


def test_one_turn_is_a_lone_right_proposal():
    for seed, map in enumerate(MAPS):
        (reply,) = demonstrate(map, random.Random(seed), wrong_first=1.0, max_turns=1)
        assert parse_reply(reply.text).kind == "proposal" and em(played(reply), map)
        assert "THINK" not in reply.text and reply.end_weight == 1.0
        assert all(piece.weight == 1.0 for piece in reply.pieces)


def test_probabilities_are_kept():
    """Four standard deviations of 2,000 draws at most."""
    rng = random.Random(1)
    first = second = 0
    for _ in range(2000):
        replies = demonstrate(OPEN, rng, wrong_first=0.6, second_error=0.2)
        first += len(replies) > 2
        second += len(replies) > 3
    assert abs(first / 2000 - 0.6) < 4 * (0.6 * 0.4 / 2000) ** 0.5
    assert abs(second / first - 0.2) < 4 * (0.2 * 0.8 / first) ** 0.5


def test_an_rng_is_an_episode():
    for map in MAPS[:20]:
        assert demonstrate(map, random.Random(5)) == demonstrate(map, random.Random(5))
    drawn = {demonstrate(OPEN, random.Random(seed)) for seed in range(50)}
    assert len(drawn) > 25
    # Nothing but the rng is drawn from: Python's own generator stands where it stood.
    before = random.getstate()
    demonstrate(OPEN, random.Random(5))
    assert random.getstate() == before


def test_the_distribution_stays_as_policies_know_it():
    """Texts and weights of 200 episodes, by their checksum: this module's own, so a change of
    what is shown or taught is seen here before a policy meets it."""
    rng = random.Random(0)
    digest = hashlib.sha256()
    for i in range(200):
        for reply in demonstrate((OPEN, HOLED)[i % 2], rng, second_error=0.5, max_turns=5):
            told = [(piece.text, piece.alternatives, piece.weight) for piece in reply.pieces]
            digest.update(repr((told, reply.end_weight)).encode())
    assert digest.hexdigest() == KNOWN


# --- what is written, and what is taught -------------------------------------------------------


def test_the_texts_of_an_episode():
    """Word by word, spaces included: a policy trained on these texts writes no others."""
    seen = set()
    for map, replies in episodes(100):
        *proposals, commit = replies
        for i, reply in enumerate(proposals):
            said = ""
            if i:
                step, kind = diagnose(map, played(proposals[i - 1]))
                said = f"<THINK> step {step} {kind}</THINK>"
                seen.add(kind)
            assert reply.text == f"{said}<ANSWER>{' '.join(played(reply))}</ANSWER>"
        assert commit.text == f"<FINAL>{' '.join(played(commit))}</FINAL>"
    assert seen == {"hole", "off", "detour", "over", "short"}


def test_wrong_proposals_teach_their_thought_alone():
    checked = 0
    for _, replies in episodes(decision_weight=3.0):
        for reply in replies[:-2]:
            opening, actions, closing = body(reply)
            assert actions and all(piece.weight == 0.0 for piece in actions)
            assert all(piece.alternatives == () for piece in actions)
            assert closing.weight == reply.end_weight == 0.0
            assert opening.weight == 1.0  # that an answer comes is right; which, is not
            before = reply.pieces[: reply.pieces.index(opening)]
            assert [piece.weight for piece in before] in ([], [3.0, 1.0, 1.0, 1.0, 1.0])
            checked += 1
    assert checked > 400


def test_right_proposals_and_commits_are_taught_whole():
    for _, replies in episodes(100, decision_weight=3.0):
        for reply in replies[-2:]:
            assert reply.end_weight == 1.0
            for piece in reply.pieces:
                decides = piece.text in ("<THINK>", "<FINAL>")
                assert piece.weight == (3.0 if decides else 1.0), piece
    plain = demonstrate(OPEN, random.Random(0), wrong_first=1.0)[-2:]
    assert all(piece.weight == 1.0 for reply in plain for piece in reply.pieces)


def test_alternatives_are_exactly_the_optimal_actions():
    ties = 0
    for map, replies in episodes():
        _, actions, _ = body(replies[-2])
        cell = map.start
        for i, piece in enumerate(actions):
            lead = " " if i else ""
            good = map.optimal_actions(cell)
            assert piece.alternatives == tuple(lead + action for action in good)
            assert piece.text in piece.alternatives
            ties += len(good) > 1
            cell, _ = map.move(cell, piece.text.strip())
        assert cell == map.target
        # A commit repeats: another path, as short as it may be, would be a fault.
        others = [piece for piece in replies[-2].pieces if piece not in actions]
        assert all(piece.alternatives == () for piece in (*others, *replies[-1].pieces))
    assert ties > 100


def test_soft_targets_change_nothing_but_the_alternatives():
    for map in MAPS[:30]:
        soft = demonstrate(map, random.Random(2), max_turns=6, second_error=0.6)
        hard = demonstrate(map, random.Random(2), max_turns=6, second_error=0.6, soft_targets=False)
        assert [reply.text for reply in soft] == [reply.text for reply in hard]
        for a, b in zip(soft, hard, strict=True):
            assert [piece.weight for piece in a.pieces] == [piece.weight for piece in b.pieces]
            assert all(piece.alternatives == () for piece in b.pieces)


# --- its parts ---------------------------------------------------------------------------------


def naive_distances(map):
    """{(row, column): steps to the goal} by relaxing until nothing changes."""
    n = map.size
    open_ = [(r, c) for r in range(n) for c in range(n) if map.layout[r][c] != "H"]
    steps = {divmod(map.target, n): 0}
    for _ in open_:
        for r, c in open_:
            around = [(r + dr, c + dc) for dr, dc in STEPS.values()]
            known = [steps[near] + 1 for near in around if near in steps]
            if known:
                steps[r, c] = min(min(known), steps.get((r, c), n * n))
    return steps


def naive_diagnosis(map, actions, distances):
    """Judges step by step on the grid, with distances of its own."""
    n, place = map.size, divmod(map.start, map.size)
    for number, action in enumerate(actions, 1):
        r, c = place[0] + STEPS[action][0], place[1] + STEPS[action][1]
        if distances[place] == 0:
            return number, "over"
        if r < 0 or c < 0 or r == n or c == n:
            return number, "off"
        if map.layout[r][c] == "H":
            return number, "hole"
        if distances[r, c] != distances[place] - 1:
            return number, "detour"
        place = r, c
    return len(actions), "good" if distances[place] == 0 else "short"


def test_diagnoses_equal_a_naive_loop():
    rng = random.Random(4)
    kinds = set()
    for map in MAPS:
        distances = naive_distances(map)
        for _ in range(60):
            actions = optimal_path(map, rng)[: rng.randint(0, 9)]
            actions += tuple(rng.choices(ACTIONS, k=rng.choice((0, 0, 1, 3))))
            found = diagnose(map, actions)
            assert found == naive_diagnosis(map, actions, distances), (map, actions)
            assert (found[1] == "good") == em(actions, map)
            kinds.add(found[1])
    assert kinds == {"good", "over", "off", "hole", "detour", "short"}


def test_every_short_sequence_is_judged_as_the_naive_loop_does():
    for map in (HOLED, NEIGHBOURS, Map(("FGF", "FHF", "FSF"), 7, 1)):
        distances = naive_distances(map)
        for length in range(6):
            for actions in itertools.product(ACTIONS, repeat=length):
                assert diagnose(map, actions) == naive_diagnosis(map, actions, distances)


@pytest.mark.parametrize(
    ("actions", "fault"),
    [
        ("down down right right", (4, "good")),
        ("down down right right up", (5, "over")),
        ("down down right right down", (5, "over")),
        ("down down", (2, "short")),
        ("right down", (1, "hole")),
        ("down left", (2, "off")),
        ("up", (1, "off")),
        ("down up down", (2, "detour")),
        ("", (0, "short")),
    ],
)
def test_hand_checked_diagnoses(actions, fault):
    assert diagnose(HOLED, tuple(actions.split())) == fault


def test_optimal_paths_are_optimal_and_reach_every_tie():
    rng = random.Random(6)
    for map in MAPS:
        assert em(optimal_path(map, rng), map)
    paths = [optimal_path(OPEN, rng) for _ in range(600)]
    assert len(set(paths)) == 6  # two rights and two downs in any order
    share = sum(path[0] == "down" for path in paths) / len(paths)
    assert abs(share - 0.5) < 4 * (0.25 / len(paths)) ** 0.5


def test_mistakes_are_wrong_and_new():
    rng = random.Random(8)
    for map in MAPS:
        earlier = []
        for _ in range(12):
            earlier.append(mistake(map, rng, earlier))
            assert earlier[-1] and set(earlier[-1]) <= set(ACTIONS)
            assert diagnose(map, earlier[-1])[1] != "good"
        assert len(set(earlier)) == len(earlier)


def test_mistakes_are_of_every_kind():
    """One fault alone would teach a policy to look for that one."""
    rng = random.Random(9)
    counts = dict.fromkeys(("hole", "off", "detour", "over", "short"), 0)
    for i in range(1500):
        counts[diagnose(MAPS[i % len(MAPS)], mistake(MAPS[i % len(MAPS)], rng, []))[1]] += 1
    assert min(counts.values()) > 1500 // 40, counts
