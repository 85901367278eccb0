"""From questions to a step's episodes: order, modes, prefixes, and the filter."""

import dataclasses

import jax
import numpy as np
import pytest

from vrrl_jax import collect
from vrrl_jax.config import FilterConfig, ModesConfig, RollInConfig
from vrrl_jax.data.mixture import Mixture, Numbered
from vrrl_jax.rl import prefix_buffer
from vrrl_jax.types import Episode

KEY = jax.random.key(0)
ROLL_IN = RollInConfig(capacity=8, min_size=1, max_prefix_turns=2, max_per_question=4)
WIDTH = 6


def episode(question, group=0, sample=0, turns=3, right=True, mode="normal", clean=True, total=1.0):
    """`turns` replies of turn + 2 tokens each, three prompt tokens before each."""
    tokens, spans = [], []
    for turn in range(turns):
        tokens += [0] * 3
        spans.append((len(tokens), len(tokens) + turn + 2))
        tokens += [100 * question + 10 * turn + i for i in range(turn + 2)]
    tokens = np.int32(tokens)
    return Episode(
        question=question,
        sample=sample,
        group=group,
        tokens=tokens,
        loss_mask=np.float32(tokens > 0),
        turn_index=np.zeros(tokens.size, np.int32),
        logprobs=-np.float32(tokens) / 7,
        pictures=(),
        texts=("text",) * turns,
        spans=tuple(spans),
        rewards={"total": total, "clean_commit": float(clean), "commit_em": float(right)},
        mode=mode,
    )


# --- the stream of questions ---------------------------------------------------------------------


def test_every_epoch_asks_every_question_once_in_its_own_order():
    cursor, asked = 0, []
    for _ in range(9):
        ids, cursor = collect.next_questions(7, range(10), cursor, 4)
        asked += ids
    assert cursor == 36
    epochs = [asked[i : i + 10] for i in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # From any position on it is the same stream.
    assert collect.next_questions(7, range(10), 8, 5) == (asked[8:13], 13)
    assert collect.next_questions(8, range(10), 0, 10)[0] != asked[:10]
    # More questions than there are.
    assert sorted(collect.next_questions(7, range(3), 0, 6)[0]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_a_mixture_asks_in_its_own_order_and_goes_on_from_anywhere(weights):
    sources = (("few", ["a", "b", "c"]), ("many", [str(i) for i in range(9)]))
    mixture = Mixture(sources, weights, seed=4)
    examples = Numbered(mixture)
    stream = [mixture[position] for position in range(40)]
    cursor, asked = 0, []
    while cursor < 40:
        # The run's seed has no say: the mixture has its own.
        ids, cursor = collect.next_questions(cursor, examples, cursor, 8)
        asked += ids
    assert [examples[i] for i in asked] == stream and cursor == 40
    assert collect.next_questions(7, examples, 13, 9) == (asked[13:22], 22)
    assert {i for i in asked if i < 3} == {0, 1, 2} and max(asked) <= 11
    if weights:
        assert [sum(i < 3 for i in asked[k : k + 4]) for k in range(0, 40, 4)] == [1] * 10


def test_keys_differ_by_purpose_step_and_try():
    keys = [
        collect.key_for(KEY, purpose, *numbers)
        for purpose in (collect.MODES_KEY, collect.PREFIX_KEY, collect.MASK_KEY)
        for numbers in ((0,), (1,), (0, 1), (1, 0))
    ]
    assert len({tuple(np.asarray(jax.random.key_data(k))) for k in keys}) == 12


# --- prefixes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "collected"),
    [
        ({}, True),
        ({"right": False}, True),
        ({"mode": "rtm"}, True),
        ({"mode": "roll_in"}, False),  # never from what was rolled in itself
        ({"clean": False}, False),
        ({"turns": 2}, True),
        ({"turns": 4}, False),  # three proposals, two are allowed
    ],
)
def test_a_prefix_is_a_cleanly_committed_episode_without_its_commit(options, collected):
    source = episode(3, **options)
    prefix = collect.prefix_of(source, ROLL_IN)
    assert (prefix is not None) == collected
    if collected:
        assert prefix["turns"] == len(source.texts) - 1 and prefix["question"] == 3
        assert prefix["right"] == options.get("right", True)
        replies = [*prefix["replies"], prefix["commit"]]
        for (a, b), (tokens, logprobs) in zip(source.spans, replies, strict=True):
            assert tokens.tolist() == source.tokens[a:b].tolist()
            assert logprobs.tolist() == source.logprobs[a:b].tolist()


def test_rolled_in_episodes_that_fail_are_recycled_on_demand():
    config = dataclasses.replace(ROLL_IN, recycle=True)
    failed, solved = (episode(3, mode="roll_in", right=right) for right in (False, True))
    assert collect.prefix_of(failed, config)["right"] is False
    assert collect.prefix_of(solved, config) is None
    assert collect.prefix_of(failed, ROLL_IN) is None


@pytest.mark.parametrize(
    ("gate", "inside"), [((0.0, 1.0), [1]), ((-1.0, 0.5), [0]), (None, [0, 1, 2])]
)
def test_a_gate_is_open_at_both_ends(gate, inside):
    """Groups with no, one of two, and two right commits."""
    rights = [(False, False), (True, False), (True, True)]
    played = [episode(g, group=g, right=right) for g, pair in enumerate(rights) for right in pair]
    kept = collect.gated(played, dataclasses.replace(ROLL_IN, gate=gate))
    assert sorted({e.group for e in kept}) == inside


def filled(*episodes, config=ROLL_IN):
    buffer = collect.empty_prefixes(config, WIDTH)
    return collect.collect_prefixes(buffer, list(episodes), config, 5)


def test_a_stored_commit_comes_back_after_a_right_prefix():
    config = dataclasses.replace(ROLL_IN, replay_commit=True)
    source = {2: episode(2), 4: episode(4, turns=2, right=False)}
    buffer, _ = filled(*source.values(), config=config)
    made, _ = groups(buffer, ModesConfig(normal=0, roll_in=1), config=config)
    rolled = {g.question: g for g in made if g.prefix}
    (a, b), e = source[2].spans[-1], source[2]
    tokens, logprobs = rolled[2].commit
    assert tokens.tolist() == e.tokens[a:b].tolist()
    assert logprobs.tolist() == e.logprobs[a:b].tolist()
    assert rolled[4].commit is None


def test_collected_prefixes_keep_tokens_and_their_logprobs():
    source = [episode(2), episode(3, clean=False), episode(4, turns=2, right=False)]
    buffer, offered = filled(*source)
    assert offered == 2
    valid = np.flatnonzero(buffer.valid)
    assert sorted(np.asarray(buffer.question)[valid]) == [2, 4]
    for i in valid:
        e = source[0] if buffer.question[i] == 2 else source[2]
        assert buffer.turns[i] == len(e.texts) - 1 and buffer.step[i] == 5
        for turn, (a, b) in enumerate(e.spans[:-1]):
            assert buffer.payload["counts"][i, turn] == b - a
            stored = {k: np.asarray(buffer.payload[k])[i, turn] for k in ("tokens", "logprobs")}
            assert stored["tokens"][: b - a].tolist() == e.tokens[a:b].tolist()
            assert stored["logprobs"][: b - a].tolist() == e.logprobs[a:b].tolist()
            assert not stored["tokens"][b - a :].any()


# --- groups --------------------------------------------------------------------------------------

EXAMPLES = [f"map {i}" for i in range(10)]


def groups(buffer, modes, ids=(7, 8, 9), config=ROLL_IN, step=6, attempt=0):
    return collect.make_groups(
        list(ids), EXAMPLES, buffer, modes, config, "<THINK>", KEY, step, attempt
    )


def test_a_rolled_in_group_takes_everything_from_its_prefix():
    source = {2: episode(2), 4: episode(4, turns=2, right=False)}
    buffer, _ = filled(*source.values())
    made, after = groups(buffer, ModesConfig(normal=0, roll_in=1))
    rolled = [g for g in made if g.prefix]
    assert {g.question for g in rolled} == {2, 4}
    for group in rolled:
        e = source[group.question]
        assert group.example == EXAMPLES[group.question] and group.mode == "roll_in"
        assert group.prefix_right == (group.question == 2)
        # After a wrong prefix the next turn opens as a revision.
        assert group.opening == ("" if group.prefix_right else "<THINK>")
        for (a, b), tokens, logprobs in zip(
            e.spans, group.prefix, group.prefix_logprobs, strict=False
        ):
            assert tokens.tolist() == e.tokens[a:b].tolist()
            assert logprobs.tolist() == e.logprobs[a:b].tolist()
    # Two prefixes for three questions: the third falls back to turn masking.
    (fresh,) = [g for g in made if not g.prefix]
    assert fresh.mode == "rtm" and fresh.question == 9 and fresh.example == "map 9"
    assert np.asarray(after.used)[np.asarray(after.valid)].all()


def test_no_opening_is_forced_where_that_is_switched_off():
    buffer, _ = filled(episode(4, right=False))
    made, _ = groups(
        buffer, ModesConfig(normal=0, roll_in=1), config=RollInConfig(min_size=1, force_think=False)
    )
    assert [g.opening for g in made] == [""] * 3


def test_used_prefixes_come_again_only_when_the_round_is_over():
    buffer, _ = filled(*(episode(q) for q in range(4)))
    modes, seen = ModesConfig(normal=0, roll_in=1), []
    for step in range(2):
        made, buffer = groups(buffer, modes, ids=(7, 8), step=step)
        seen += [g.question for g in made]
    assert sorted(seen) == [0, 1, 2, 3]
    made, buffer = groups(buffer, modes, ids=(7, 8), step=2)
    assert all(g.prefix for g in made)


@pytest.mark.parametrize(
    "config",
    [
        RollInConfig(capacity=8, min_size=3),
        RollInConfig(capacity=8, min_size=1, max_staleness=0),  # collected at step 5, it is 6
    ],
)
def test_a_small_or_stale_buffer_falls_back_to_turn_masking(config):
    buffer, _ = filled(episode(2), episode(3))
    made, _ = groups(buffer, ModesConfig(normal=0, roll_in=1), config=config)
    assert [(g.mode, g.question) for g in made] == [("rtm", 7), ("rtm", 8), ("rtm", 9)]


def test_modes_are_drawn_by_weight_and_by_step():
    ids = tuple(range(10)) * 40
    draw = lambda step, attempt=0: [
        g.mode
        for g in groups(None, ModesConfig(normal=1, rtm=3), ids, step=step, attempt=attempt)[0]
    ]
    share = np.mean([m == "rtm" for m in draw(1)])
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)
    assert draw(1) == draw(1) != draw(2)
    assert draw(1) != draw(1, attempt=1)


# --- the filter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("totals", "kept"),
    [([0, 0], False), ([1, 1], False), ([0, 1], True), ([0, 0.02], False), ([0.02, 0.01], True)],
)
def test_the_band_is_open_at_both_ends(totals, kept):
    group = [episode(0, total=t) for t in totals]
    assert collect.keeps(group, FilterConfig(enabled=True, low=0.01, high=0.99)) == kept


def run(totals, *, questions=2, **filtering):
    """Each try plays two groups of two, with the next two of `totals` as their scores."""
    seen = []

    def play(groups, attempt):
        seen.append(attempt)
        played = [
            episode(q, group=g, sample=s, total=totals[q] * s)
            for g, q in enumerate(groups)
            for s in range(2)
        ]
        figures = {"rollout_seconds": 2.0, "sampled_tokens": 10, "decode_occupancy": 0.5}
        return played, figures

    out = collect.collect(
        play,
        lambda cursor, attempt, buffer: ([cursor, cursor + 1], cursor + 2, buffer + 1),
        lambda buffer, played: (buffer + 10, len(played)),
        cursor=0,
        buffer=0,
        questions=questions,
        samples=2,
        filtering=FilterConfig(**filtering),
    )
    return out, seen


def test_without_a_filter_everything_of_one_try_is_kept():
    out, seen = run([0, 0, 1, 1])
    assert seen == [0] and out.cursor == 2 and out.buffer == 11
    assert [e.question for e in out.episodes] == [0, 0, 1, 1]
    assert out.metrics["count/groups_filtered"] == 0 and out.metrics["count/rollouts"] == 1


def test_a_filter_asks_on_until_enough_groups_are_left():
    out, seen = run([0, 1, 0, 0, 1, 1, 1, 1], enabled=True, max_tries=9)
    assert seen == [0, 1, 2] and out.cursor == 6
    assert [e.question for e in out.episodes] == [1, 1, 4, 4]
    # Whole groups, told apart by their numbers through the tries.
    assert [e.group for e in out.episodes] == [1, 1, 4, 4]
    assert len(out.generated) == 12 and out.buffer == 33
    assert out.metrics["count/groups_filtered"] == 3
    assert out.metrics["count/groups_left_over"] == 1
    assert out.metrics["count/prefixes_offered"] == 12
    assert out.metrics["tokens_per_second"] == 5.0 and out.metrics["rollout_seconds"] == 6.0


def test_a_filter_gives_up_after_its_tries():
    out, seen = run([0] * 8, enabled=True, max_tries=3)
    assert seen == [0, 1, 2] and out.episodes == [] and len(out.generated) == 12
    assert out.metrics["count/groups_filtered"] == 6


def test_the_empty_buffer_has_the_recipe_s_shape():
    buffer = collect.empty_prefixes(ROLL_IN, WIDTH)
    assert buffer.payload["tokens"].shape == (8, 2, WIDTH)
    assert not bool(prefix_buffer.can_sample(buffer, step=0))
