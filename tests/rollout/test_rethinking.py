"""Forced rethinking: on the cache that is there, booked as it was sampled, kept by the rules."""

import collections
import dataclasses
import zlib

import jax
import numpy as np
import pytest

from vrrl_jax import compiles, inference, testing
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.processing import processor as processing
from vrrl_jax.rl import update
from vrrl_jax.rollout import cuts, engine, episodes, rethinking
from vrrl_jax.rollout.episodes import Group, Settings
from vrrl_jax.rollout.rethinking import COUNTS, FATES, KINDS, Rethinking
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Outcome, Sequence

BUDGET, MOST, SAMPLES = 12, 7, 6
SETTINGS = Settings(samples=SAMPLES, max_turns=1, max_new_tokens=BUDGET)
MAPS = testing.tiny_maps(3)
GROUPS = [Group(i, board) for i, board in enumerate(MAPS)]
ALL = Rethinking(share=1.0, most=MOST)
CUT = dataclasses.replace(ALL, cut_back=1.0)


@dataclasses.dataclass(frozen=True)
class Once:
    """A picture and one reply."""

    goes_on: bool = False

    def reset(self, example):
        return env.reset(example, env.Settings(cell=testing.CELL, question="Solve"))

    def step(self, example, text, turn):
        return Outcome(not self.goes_on, self.reset(example) if self.goes_on else None)


def score(texts, example, group):
    """Another total for every text; about half of them are right."""
    (text,) = texts
    number = zlib.crc32(f"{text}|{example.key}|{group.ended}".encode())
    return {"total": number / 2**32, "success": float(number % 2), "ended": float(group.ended)}


@pytest.fixture(scope="module")
def policy(tiny):
    """Many tokens end a turn, so that some replies stop and others are cut by their budget."""
    return dataclasses.replace(tiny[0], stop_ids=(*tiny[0].stop_ids, *range(40)))


@pytest.fixture(scope="module")
def shapes(policy, tiny_processor):
    probes = [(board, "") for board in MAPS]
    most = dataclasses.replace(ALL, informed=1.0)
    return episodes.plan_shapes(policy, tiny_processor, Once(), probes, SETTINGS, rethink=most)


@pytest.fixture(scope="module")
def play(policy, tiny, tiny_processor, shapes):
    view = engine.make_view(policy, tiny[1])

    def play(wanted, groups=GROUPS, step=3, board=Once(), shapes=shapes, settings=SETTINGS):
        key = jax.random.key(0)
        return episodes.rollout(
            policy, view, tiny_processor, board, groups, settings, shapes, key, step, score, wanted
        )

    return play


@pytest.fixture(scope="module")
def plain(play):
    return play(None)[0]


@pytest.fixture(scope="module")
def forced(play):
    """Every reply that can think again does, and is kept."""
    return play(ALL)


@pytest.fixture
def halved(monkeypatch):
    """A random policy says neither "wait" nor a box: what is cut is cut in the middle."""
    monkeypatch.setattr(cuts, "cut_place", lambda text, back: len(text) // 2 if back else len(text))


def counted(figures):
    return {name: figures[f"count/rethinking_{name}"] for name in COUNTS}


def same(a, b):
    fields = ("tokens", "loss_mask", "logprobs", "turn_index")
    assert all(np.array_equal(getattr(a, f), getattr(b, f), equal_nan=True) for f in fields)
    assert (a.texts, a.spans, a.rewards, a.trigger) == (b.texts, b.spans, b.rewards, b.trigger)


def first_reply(episode):
    (start, end) = episode.spans[0]
    return episode.tokens[start:end]


def thinks(policy, episode):
    """Whether a plain episode's reply may think again: not empty, ended by a stop token."""
    sampled = first_reply(episode)[episode.loss_mask[slice(*episode.spans[0])] > 0]
    return sampled.size > 1 and sampled[-1] in policy.stop_ids


_score = jax.jit(update.score, static_argnums=(0, 3))


def agrees(policy, params, played):
    """Recorded log-probabilities against one pass over the finished tokens."""
    sequences = [Sequence(e.tokens, e.pictures) for e in played]
    rows = inference.one_a_row(policy, sequences, tokens=128)
    wanted = np.asarray(_score(policy, params, rows, 1.0)["logprobs"])
    for row, e in zip(wanted, played, strict=True):
        told = (e.loss_mask > 0) & np.isfinite(e.logprobs)
        np.testing.assert_allclose(e.logprobs[told], row[: told.size][told], atol=1e-4, rtol=0)


# --- what is booked ------------------------------------------------------------------------------


def test_no_share_is_the_plain_rollout(play, plain, forced):
    out, figures = play(dataclasses.replace(ALL, share=0.0))
    for a, b in zip(out, plain, strict=True):
        same(a, b)
    candidates = forced[1]["count/rethinking_candidates"]
    assert counted(figures) == dict.fromkeys(COUNTS, 0) | {"candidates": candidates}
    assert figures["sampled_tokens"] == sum(e.loss_mask.sum() for e in plain)


def check_booking(policy, processor, plain, out, wanted):
    """One reply: y1 as it was sampled, a trigger without loss, y2. Returns tokens cut from y1."""
    end, gone = processor.ids.im_end, []
    for first, e in zip(plain, out, strict=True):
        if not thinks(policy, first):
            same(first, e)
            continue
        (start, stop), (a, b), (c, d) = e.spans[0], e.trigger, e.second
        assert len(e.texts) == len(e.spans) == 1 and b == c and d == stop == e.tokens.size
        assert start == first.spans[0][0]
        # y1: the same tokens and log-probabilities, without its end.
        assert e.tokens[:a].tolist() == first.tokens[:a].tolist()
        assert e.logprobs[:a].tolist() == first.logprobs[:a].tolist()
        said = int(first.loss_mask.sum()) - 1
        gone.append(said - (a - start))
        (text,) = getattr(wanted, e.trigger_kind)
        assert e.tokens[a:b].tolist() == processing.encode(processor, " " + text)
        sampled = e.tokens[c:d]
        if sampled[-2] in policy.stop_ids or len(sampled) > MOST:
            assert sampled[-1] == end
            sampled = sampled[:-1]
        assert 0 < len(sampled) <= MOST and not np.isin(sampled[:-1], policy.stop_ids).any()
        ended = sampled[-1] in policy.stop_ids
        assert e.truncated == (not ended) == (not e.rewards["ended"])
        mask = np.zeros(e.tokens.size)
        mask[start:a] = mask[c : c + len(sampled)] = 1
        if wanted.train_trigger:
            mask[a:b] = 1
        assert (e.loss_mask == mask).all() and not e.turn_index.any()
        assert not e.logprobs[mask == 0].any()
        text = e.tokens[start : c + len(sampled) - ended]
        assert e.texts[0] == processing.decode(processor, text)
        assert e.rewards == score(e.texts, MAPS[e.question], Group(0, None, ended=bool(ended)))
    assert len(gone) > 5
    return gone


def test_a_whole_first_thought_goes_on(policy, tiny, tiny_processor, plain, forced):
    out, figures = forced
    assert set(check_booking(policy, tiny_processor, plain, out, ALL)) == {0}
    assert {e.trigger_kind for e in out} == {"", *KINDS}
    again = [e for e in out if e.trigger]
    assert {e.truncated for e in again} == {True, False}
    agrees(policy, tiny[1], out)
    tokens = sum(e.loss_mask[slice(*e.second)].sum() for e in again)
    assert figures["sampled_tokens"] == sum(e.loss_mask.sum() for e in plain) + tokens
    assert 0 < figures["decode_occupancy"] <= 1


def test_a_first_thought_is_cut_back(policy, tiny, tiny_processor, play, plain, halved):
    out, _ = play(CUT)
    gone = check_booking(policy, tiny_processor, plain, out, CUT)
    assert max(gone) > 1
    agrees(policy, tiny[1], out)


def test_what_the_sampler_can_t_tell_is_not_a_number(
    policy, tiny, tiny_processor, play, plain, forced
):
    trained = dataclasses.replace(ALL, train_trigger=True)
    out, _ = play(trained)
    check_booking(policy, tiny_processor, plain, out, trained)
    for e in out:
        nan = np.isnan(e.logprobs)
        assert np.flatnonzero(nan).tolist() == list(range(*e.trigger or (0, 0)))
    agrees(policy, tiny[1], out)
    cooler, _ = play(dataclasses.replace(ALL, temperature=0.5))
    check_booking(policy, tiny_processor, plain, cooler, ALL)
    for e in cooler:
        second = np.zeros(e.tokens.size)
        second[slice(*e.second or (0, 0))] = 1
        assert (np.isnan(e.logprobs) == second * e.loss_mask).all()
    assert [e.tokens.tolist() for e in cooler] != [e.tokens.tolist() for e in forced[0]]
    # The rollout's own temperature, said aloud, changes nothing.
    for a, b in zip(play(dataclasses.replace(ALL, temperature=1.0))[0], forced[0], strict=True):
        same(a, b)


def test_the_end_token_can_be_left_out_of_the_loss(play, policy, forced):
    settings = dataclasses.replace(SETTINGS, train_end=False)
    for a, b in zip(play(ALL, settings=settings)[0], forced[0], strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        gone = np.flatnonzero(a.loss_mask != b.loss_mask)
        assert np.isin(a.tokens[gone], policy.stop_ids).all()
        assert gone.size == (not a.truncated)


# --- whom a draw depends on ----------------------------------------------------------------------


def test_draws_depend_on_no_neighbour(play, forced):
    backwards, _ = play(ALL, GROUPS[::-1])
    by = lambda played: {(e.question, e.sample): e for e in played}
    for where, e in by(forced[0]).items():
        same(e, by(backwards)[where])
    # Those of a smaller share are among those of a larger one, and the same.
    some, figures = play(dataclasses.replace(ALL, share=0.5))
    chosen = [e for e in some if e.trigger]
    assert 0 < len(chosen) == figures["count/rethinking_forced"]
    assert len(chosen) < forced[1]["count/rethinking_forced"]
    for e in chosen:
        same(e, by(forced[0])[e.question, e.sample])


def test_the_step_changes_who_is_chosen(play):
    half = dataclasses.replace(ALL, share=0.5)
    chosen = [[bool(e.trigger) for e in play(half, step=step)[0]] for step in (3, 4)]
    assert chosen[0] != chosen[1]


def test_a_steady_state_compiles_nothing(play, forced, halved):
    count = compiles.Counter()
    before = count.count
    play(dataclasses.replace(CUT, share=0.7, temperature=0.8, accept="correct"), step=9)
    play(dataclasses.replace(ALL, informed=0.5, spare_accuracy=0.5, train_trigger=True), step=10)
    assert count.count == before


# --- who may, and what is kept -------------------------------------------------------------------


def lengths(e):
    return int(e.loss_mask[slice(*e.second)].sum())


@pytest.mark.parametrize(
    "rules",
    [
        {"accept": "correct"},
        {"accept": "correct", "per_query": 1},
        {"accept": "correct", "least": 3, "per_query": 2},
        {"accept": "any", "least": 4},
        {"accept": "any", "per_query": 1},
    ],
)
def test_what_is_kept_follows_the_rules(play, plain, forced, rules):
    """Against the run that keeps all: the same second thoughts, judged here by hand.

    Each kept episode has the reward of its own text, whatever was rejected before it.
    """
    wanted = dataclasses.replace(ALL, **rules)
    out, figures = play(wanted)
    kept, fates = collections.Counter(), collections.Counter()
    for first, second, e in zip(plain, forced[0], out, strict=True):
        assert e.rewards == score(e.texts, MAPS[e.question], Group(0, None, ended=not e.truncated))
        if second.trigger is None:
            same(first, e)
            continue
        wrong = wanted.accept == "correct" and not second.rewards["success"]
        late = wanted.accept == "correct" and second.truncated
        if lengths(second) < wanted.least or late:
            fate = "rejected_length"
        elif wrong:
            fate = "rejected_wrong"
        elif kept[e.group] == rules.get("per_query"):
            fate = "rejected_surplus"
        else:
            fate = "accepted"
            kept[e.group] += 1
        fates[fate] += 1
        same(second if fate == "accepted" else first, e)
    counts = counted(figures)
    assert {name: counts[name] for name in FATES} == {name: fates[name] for name in FATES}
    assert counts["forced"] == counts["candidates"] == sum(fates.values())
    assert fates["accepted"] and len(fates) > 1


def test_changes_of_mind_are_counted(plain, forced, policy):
    out, figures = forced
    pairs = [
        (a.rewards["success"], b.rewards["success"])
        for a, b in zip(plain, out, strict=True)
        if b.trigger
    ]
    counts = counted(figures)
    assert counts["right_to_wrong"] == pairs.count((1.0, 0.0)) > 0
    assert counts["wrong_to_right"] == pairs.count((0.0, 1.0)) > 0
    assert counts["candidates"] == sum(thinks(policy, e) for e in plain) == len(pairs)


def test_wrong_replies_of_accurate_groups_are_spared(play, plain, policy):
    rate = [np.mean([e.rewards["success"] for e in plain if e.group == g]) for g in range(3)]
    limit = sorted(rate)[-1] - 0.01
    out, figures = play(dataclasses.replace(ALL, spare_accuracy=limit))
    spared = 0
    for first, e in zip(plain, out, strict=True):
        alone = rate[e.group] > limit and not first.rewards["success"]
        assert bool(e.trigger) == (thinks(policy, first) and not alone)
        spared += thinks(policy, first) and alone
    assert counted(figures)["spared"] == spared > 0


def test_replies_without_room_are_left_alone(play, plain, policy):
    out, _ = play(dataclasses.replace(ALL, room=BUDGET - 4))
    for first, e in zip(plain, out, strict=True):
        assert bool(e.trigger) == (thinks(policy, first) and first.loss_mask.sum() <= 4)
    assert len({bool(e.trigger) for e in out}) == 2


def test_a_trigger_can_say_whether_the_first_thought_was_right(play, plain, tiny_processor):
    told = dataclasses.replace(ALL, informed=1.0, when_right=("right",), when_wrong=("wrong",))
    out, _ = play(told)
    seen = set()
    for first, e in zip(plain, out, strict=True):
        if e.trigger:
            was = first.rewards["success"] > 0
            wanted = processing.encode(tiny_processor, " right" if was else " wrong")
            assert e.tokens[slice(*e.trigger)].tolist() == wanted
            assert e.trigger_kind == ("verification" if was else "correction")
            seen.add(was)
    assert seen == {True, False}
    both, _ = play(dataclasses.replace(told, informed=0.5))
    assert {e.texts == f.texts for e, f in zip(out, both, strict=True) if e.trigger} == {
        True,
        False,
    }
    narrow, _ = play(dataclasses.replace(ALL, kinds=("questioning",)))
    assert {e.trigger_kind for e in narrow} == {"", "questioning"}


# --- plans ---------------------------------------------------------------------------------------


def test_what_a_rollout_can_t_do_is_said(play, policy, tiny_processor, shapes):
    plan = lambda settings, wanted: episodes.plan_shapes(
        policy, tiny_processor, Once(), [(MAPS[0], "")], settings, rethink=wanted
    )
    turns = dataclasses.replace(SETTINGS, max_turns=2)
    for call in (
        lambda: rethinking.check(turns, ALL),
        lambda: play(ALL, settings=turns),
        lambda: play(ALL, board=Once(goes_on=True)),
    ):
        with pytest.raises(ValueError, match="tasks of one turn"):
            call()
    with pytest.raises(ValueError, match="left over"):
        plan(SETTINGS, dataclasses.replace(ALL, room=BUDGET))
    with pytest.raises(ValueError, match="at least 20"):
        plan(SETTINGS, Rethinking(least=20))
    with pytest.raises(ValueError, match="special token"):
        plan(SETTINGS, dataclasses.replace(ALL, correction=("<|im_end|>",)))
    tight = plan(SETTINGS, None)
    with pytest.raises(ValueError, match="the plan"):
        play(ALL, shapes=dataclasses.replace(tight, slots=shapes.slots))


def test_a_plan_holds_the_longest_episode(policy, tiny_processor, forced, shapes):
    trigger, more = rethinking.extra(tiny_processor, SETTINGS, ALL)
    assert shapes.follow >= trigger > 10 and more == trigger + MOST
    prompt = min(e.spans[0][0] for e in forced[0])
    assert shapes.slots >= prompt + BUDGET - 1 + trigger + MOST + 1
    # Where second thoughts fit into what a reply left over, rows are no longer.
    roomy = dataclasses.replace(ALL, room=8, most=4, verification=("so",), kinds=("verification",))
    few, none = rethinking.extra(tiny_processor, SETTINGS, roomy)
    assert few <= 4 and none == 0


def test_sampling_of_another_temperature_is_compared_with_the_rollout_s(play):
    settings = dataclasses.replace(SETTINGS, sampling=Sampling(0.5))
    out, _ = play(dataclasses.replace(ALL, temperature=0.5), settings=settings)
    assert not any(np.isnan(e.logprobs).any() for e in out)
