"""Whole episodes: what is recorded is what was sampled, and what training will see."""

import dataclasses

import jax
import numpy as np
import pytest

from vrrl_jax import compiles, inference, layout, testing
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.processing import processor as processing
from vrrl_jax.rl import update
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.rollout.continuous import Continuous
from vrrl_jax.rollout.episodes import Group, Settings
from vrrl_jax.rollout.sampling import Sampling
from vrrl_jax.types import Outcome, Prompt, Sequence

TURNS, BUDGET = 3, 6
SETTINGS = Settings(samples=2, max_turns=TURNS, max_new_tokens=BUDGET, keep_images=True)
MAPS = testing.tiny_maps(4)
PROBES = [(map, env.PROBE) for map in MAPS]
PROPOSED = ("<ANSWER>up right</ANSWER>", "<THINK> step 1 hole</THINK><ANSWER>down</ANSWER>")


@dataclasses.dataclass(frozen=True)
class Endless:
    """FrozenLake that answers anything, until `turns` replies are out; one map, just once."""

    turns: int = TURNS
    short: str | None = None

    def reset(self, example):
        return env.reset(example, env.Settings(cell=testing.CELL, question="Solve"))

    def step(self, example, text, turn):
        if turn + 1 >= self.turns or example.key == self.short:
            return Outcome(True)
        path = ("right", "down", "left")[: turn + 1]
        return Outcome(False, Prompt("Verify", (env.render(example, path, testing.CELL),)))


def score(texts, example, group):
    return {"total": float(len(texts)), "question": float(group.question)}


@pytest.fixture(scope="module")
def policy(tiny):
    """Many tokens end a turn, so that some replies stop and others are cut by their budget."""
    return dataclasses.replace(tiny[0], stop_ids=(*tiny[0].stop_ids, *range(60)))


@pytest.fixture(scope="module")
def view(policy, tiny):
    return engine.make_view(policy, tiny[1])


@pytest.fixture(scope="module")
def shapes(policy, tiny_processor):
    return episodes.plan_shapes(policy, tiny_processor, Endless(), PROBES, SETTINGS, roll_in=True)


@pytest.fixture(scope="module")
def play(policy, view, tiny_processor, shapes):
    def play(
        groups,
        settings=SETTINGS,
        seed=0,
        step=5,
        shapes=shapes,
        board=Endless(),
        view=view,
        in_flight=None,
    ):
        return episodes.rollout(
            policy,
            view,
            tiny_processor,
            board,
            groups,
            settings,
            shapes,
            jax.random.key(seed),
            step,
            score,
            in_flight=in_flight,
        )

    return play


def spoken(processor, *texts):
    """Replies as the ids a prefix holds, and log-probabilities as if they had been sampled."""
    ids = [np.int32([*processing.encode(processor, t), processor.ids.im_end]) for t in texts]
    return tuple(ids), tuple(np.full(len(i), -0.5, np.float32) for i in ids)


def rolled(processor, question, *texts, right=False, opening=""):
    ids, logprobs = spoken(processor, *texts)
    return Group(question, MAPS[question], "roll_in", ids, logprobs, right, opening)


@pytest.fixture(scope="module")
def groups(tiny_processor):
    """One that starts afresh, one after a wrong turn, one after two turns."""
    return [
        Group(0, MAPS[0]),
        rolled(tiny_processor, 1, PROPOSED[0], opening="<THINK>"),
        rolled(tiny_processor, 2, *PROPOSED, right=True),
    ]


@pytest.fixture(scope="module")
def played(play, groups):
    return play(groups)


_score = jax.jit(update.score, static_argnums=(0, 3))


def teacher_forced(policy, params, played, temperature=1.0):
    rows = inference.one_a_row(policy, [Sequence(e.tokens, e.pictures) for e in played])
    return np.asarray(_score(policy, params, rows, temperature)["logprobs"])


def test_an_environment_may_see_all_replies(play, groups, played):
    seen = []

    class Whole:
        reset = Endless().reset

        def answer(self, example, texts):
            seen.append(texts)
            return Endless().step(example, texts[-1], len(texts) - 1)

    found, _ = play(groups, board=Whole())
    assert [e.texts for e in found] == [e.texts for e in played[0]]
    assert sorted(seen) == sorted(e.texts[:n] for e in found for n in range(1, TURNS + 1))


# --- what was sampled is what is trained on ------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_equal_teacher_forced_ones(policy, tiny, play, groups, temperature):
    """Over turns, pictures, prefixes, forced openings and turns that were cut."""
    settings = dataclasses.replace(SETTINGS, sampling=Sampling(temperature))
    played, _ = play(groups, settings)
    wanted = teacher_forced(policy, tiny[1], played, temperature)
    for row, episode in zip(wanted, played, strict=True):
        mask = episode.loss_mask > 0
        np.testing.assert_allclose(
            episode.logprobs[mask], row[: mask.size][mask], atol=1e-4, rtol=0
        )
    # The cases that it is about did occur.
    assert {len(e.spans) for e in played} == {TURNS}
    assert any(e.truncated for e in played) and not all(e.truncated for e in played)


def test_the_ratio_is_one_where_nothing_was_learnt(policy, tiny, played):
    """The importance ratio of an update's first pass, token by token."""
    wanted = teacher_forced(policy, tiny[1], played[0])
    deviation = [
        np.abs(np.exp(row[: e.tokens.size] - e.logprobs) - 1)[e.loss_mask > 0].max()
        for row, e in zip(wanted, played[0], strict=True)
    ]
    assert max(deviation) < 1e-4


def test_the_loss_mask_marks_sampled_tokens_and_nothing_else(policy, played, tiny_processor):
    end, forced = tiny_processor.ids.im_end, 0
    for episode in played[0]:
        wanted = np.zeros(episode.tokens.size)
        for turn, (a, b) in enumerate(episode.spans):
            if turn < episode.prefix_turns:
                continue
            opening = episode.prefix_turns == turn and episode.question == 1
            a += opening  # one token
            sampled = episode.tokens[a:b]
            if sampled[-2] in policy.stop_ids or len(sampled) > BUDGET:
                # Ended by another stop token, or by its budget: the end is forced.
                assert sampled[-1] == end
                sampled, forced = sampled[:-1], forced + 1
            assert 0 < len(sampled) <= BUDGET
            assert not np.isin(sampled[:-1], policy.stop_ids).any()
            wanted[a : a + len(sampled)] = 1
        assert (episode.loss_mask == wanted).all()
        prefix = [t for a, b in episode.spans[: episode.prefix_turns] for t in range(a, b)]
        elsewhere = wanted == 0
        elsewhere[prefix] = False
        assert not episode.logprobs[elsewhere].any()
        assert (episode.logprobs[wanted > 0] < 0).all()
    assert forced
    figures = played[1]
    assert figures["sampled_tokens"] == sum(e.loss_mask.sum() for e in played[0])
    assert 0 < figures["decode_occupancy"] <= 1


def test_turn_index_counts_the_replies_that_are_over(played):
    for episode in played[0]:
        ends = np.array([b for _, b in episode.spans])
        wanted = (np.arange(episode.tokens.size)[:, None] >= ends).sum(1)
        assert (episode.turn_index == np.minimum(wanted, TURNS - 1)).all()
        assert episode.spans[-1][1] == episode.tokens.size


def test_placeholders_stand_for_pictures_only(policy, played):
    image = policy.config.image_token_id
    for episode in played[0]:
        counts = [layout.token_count(p.grid, 2) for p in episode.pictures]
        assert (episode.tokens == image).sum() == sum(counts)
        assert not np.isin(episode.tokens[episode.loss_mask > 0], policy.placeholder_ids).any()
        assert len(episode.images) == len(episode.pictures) == TURNS


def test_texts_are_what_the_tokens_say(policy, played, tiny_processor):
    for episode in played[0]:
        for turn, (a, b) in enumerate(episode.spans):
            ids = episode.tokens[a:b].tolist()
            assert ids.pop() == tiny_processor.ids.im_end
            if turn >= episode.prefix_turns and ids and ids[-1] in policy.stop_ids:
                ids.pop()
            assert episode.texts[turn] == processing.decode(tiny_processor, ids)
    assert [e.texts[0] for e in played[0][2:]] == [PROPOSED[0]] * 4
    assert played[0][4].texts[1] == PROPOSED[1]
    assert all(e.texts[1].startswith("<THINK>") for e in played[0][2:4])
    assert not played[0][0].texts[1].startswith("<THINK>")


def test_tokens_equal_the_encoded_chat_of_the_texts(played, tiny_processor):
    """Where every reply was well-behaved: the transcript is the one a chat template gives."""
    episode = played[0][4]
    user = lambda text: {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": text}],
    }
    said = lambda text: {"role": "assistant", "content": text}
    chat = [user("Solve"), said(PROPOSED[0]), user("Verify"), said(PROPOSED[1]), user("Verify")]
    wanted = processing.chat_prompt(tiny_processor, chat, episode.pictures)
    assert episode.tokens[: episode.spans[2][0]].tolist() == wanted.tolist()
    one_turn = processing.chat_prompt(tiny_processor, chat[:3], episode.pictures[:2])
    assert played[0][2].tokens[: len(one_turn)].tolist() == one_turn.tolist()
    # The forced opening follows, and only then what was sampled.
    opening = processing.encode(tiny_processor, "<THINK>")
    assert played[0][2].tokens[len(one_turn)] == opening[0]
    assert played[0][2].loss_mask[len(one_turn)] == 0 < played[0][2].loss_mask[len(one_turn) + 1]


def test_pictures_are_those_of_the_group_s_own_question(played):
    for episode in played[0]:
        assert (episode.images[0][0] == env.render(MAPS[episode.question], cell=testing.CELL)).all()
        drawn = env.render(MAPS[episode.question], ("right",), testing.CELL)
        assert (episode.images[1][0] == drawn).all()
        assert episode.rewards["question"] == episode.question


def test_episodes_come_group_by_group(played):
    assert [(e.group, e.sample, e.question) for e in played[0]] == [
        (g, s, g) for g in range(3) for s in range(2)
    ]
    assert [e.prefix_turns for e in played[0]] == [0, 0, 1, 1, 2, 2]
    assert [e.prefix_right for e in played[0]] == [False] * 4 + [True] * 2
    assert [e.mode for e in played[0]] == ["normal"] * 2 + ["roll_in"] * 4


# --- turns of several pictures, and of none ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """An environment whose examples are their two user turns."""

    def reset(self, example):
        return example[0]

    def step(self, example, text, turn):
        return Outcome(True) if turn else Outcome(False, example[1])


def drawn(width, seed):
    return np.random.default_rng(seed).integers(0, 256, (28, width, 3), np.uint8)


# Two pictures among words, then none; none, then one; three of two sizes, then two; no picture.
CHATS = (
    (Prompt("Solve<image>off<image>", (drawn(56, 0), drawn(112, 1))), Prompt("Verify")),
    (Prompt("What is 3 + 4?"), Prompt("Verify", (drawn(84, 2),))),
    (
        Prompt("Solve", (drawn(28, 3), drawn(28, 4), drawn(84, 5))),
        Prompt("<image>Verify<image>", (drawn(56, 6), drawn(28, 7))),
    ),
    (Prompt("Solve"), Prompt("Verify")),
)


@pytest.fixture(scope="module")
def chats(play, policy, tiny_processor):
    """chats(numbers): episodes of those chats, all batches of four groups in one plan."""
    settings = dataclasses.replace(SETTINGS, max_turns=2)
    plan = episodes.plan_shapes(policy, tiny_processor, Asked(), [(c, "") for c in CHATS], settings)
    assert plan.pictures == 3

    def chats(*numbers):
        groups = [Group(i, CHATS[i]) for i in numbers]
        return play(groups, settings, shapes=plan, board=Asked())[0]

    return chats


def test_pictures_of_a_mixed_batch_are_each_row_s_own(chats, policy, tiny):
    """Rows of two pictures, three, one and none: what is sampled is what is trained on."""
    mixed = chats(0, 1, 2, 3)
    assert [len(e.pictures) for e in mixed] == [2, 2, 1, 1, 5, 5, 0, 0]
    assert all(len(e.spans) == 2 for e in mixed)
    wanted = teacher_forced(policy, tiny[1], mixed)
    for row, episode in zip(wanted, mixed, strict=True):
        mask = episode.loss_mask > 0
        np.testing.assert_allclose(
            episode.logprobs[mask], row[: mask.size][mask], atol=1e-4, rtol=0
        )
    for number in range(4):
        # Beside rows of its own kind a row is the same: no neighbour's picture reaches it.
        for alone, beside in zip(chats(*[number] * 4)[:2], mixed[2 * number :], strict=False):
            assert alone.tokens.tolist() == beside.tokens.tolist()
            np.testing.assert_allclose(alone.logprobs, beside.logprobs, atol=1e-5)


def test_a_mixed_batch_s_tokens_are_the_encoded_chats(chats, tiny_processor):
    image, said = {"type": "image"}, lambda text: {"type": "text", "text": text}
    contents = [
        [said("Solve"), image, said("off"), image],
        [said("What is 3 + 4?")],
        [image, image, image, said("Solve")],
        [said("Solve")],
    ]
    follows = [[said("Verify")], [image, said("Verify")], [image, said("Verify"), image]]
    follows.append([said("Verify")])
    for episode in chats(0, 1, 2, 3):
        first, later = contents[episode.question], follows[episode.question]
        n = len([part for part in first if part is image])
        opening = processing.chat_prompt(
            tiny_processor, [{"role": "user", "content": first}], episode.pictures[:n]
        )
        (start, end), (second, _) = episode.spans
        assert episode.tokens[:start].tolist() == opening.tolist()
        message = {"role": "user", "content": later}
        between = processing.next_user(tiny_processor, message, episode.pictures[n:])
        assert episode.tokens[end:second].tolist() == between.tolist()
        assert [len(images) for images in episode.images] == [n, len(episode.pictures) - n]


def test_a_batch_without_any_picture_is_played(chats, policy, tiny):
    played = chats(3, 3, 3, 3)
    assert not any(e.pictures for e in played)
    wanted = teacher_forced(policy, tiny[1], played)
    mask = played[0].loss_mask > 0
    np.testing.assert_allclose(
        played[0].logprobs[mask], wanted[0][: mask.size][mask], atol=1e-4, rtol=0
    )


def test_more_pictures_than_the_plan_has_are_an_error(play, groups, shapes):
    # Three pictures of 24 patches, where there is one slot of 64.
    wide = Prompt("Solve", (drawn(168, 8),) * 3), Prompt("Verify")
    with pytest.raises(ValueError, match="doesn't fit into 1 slots"):
        play([Group(i, wide) for i in range(len(groups))], board=Asked())


# --- options -------------------------------------------------------------------------------------


def test_the_end_token_can_be_left_out_of_the_loss(play, groups, played, policy):
    settings = dataclasses.replace(SETTINGS, train_end=False)
    dropped = 0
    for with_end, without in zip(played[0], play(groups, settings)[0], strict=True):
        assert with_end.tokens.tolist() == without.tokens.tolist()
        gone = np.flatnonzero(with_end.loss_mask != without.loss_mask)
        assert np.isin(with_end.tokens[gone], policy.stop_ids).all()
        kept = without.tokens[without.loss_mask > 0]
        assert not np.isin(kept, policy.stop_ids).any()
        dropped += gone.size
    assert dropped


def test_a_prefix_can_carry_loss_where_it_was_sampled(play, groups, played):
    settings = dataclasses.replace(SETTINGS, train_prefix=True)
    logprobs = groups[1].prefix_logprobs[0].copy()
    logprobs[-1] = 0.0  # as if its end had been forced
    changed = [groups[0], dataclasses.replace(groups[1], prefix_logprobs=(logprobs,)), groups[2]]
    for plain, trained in zip(played[0], play(changed, settings)[0], strict=True):
        assert plain.tokens.tolist() == trained.tokens.tolist()
        prefix = np.zeros(plain.tokens.size)
        for a, b in plain.spans[: plain.prefix_turns]:
            prefix[a : b - (plain.question == 1)] = 1
        assert (trained.loss_mask == plain.loss_mask + prefix).all()
        assert (trained.logprobs[prefix > 0] == -0.5).all()


# --- whom a sample depends on --------------------------------------------------------------------


def tokens(played):
    return [e.tokens.tolist() for e in played]


def test_samples_depend_on_neither_neighbours_nor_the_size_of_the_batch(play, groups, played):
    alone, _ = play(groups[1:2])
    assert tokens(alone) == tokens(played[0][2:4])
    backwards, _ = play(groups[::-1])
    assert tokens(backwards) == tokens(played[0][4:] + played[0][2:4] + played[0][:2])
    more, _ = play(groups[:1], dataclasses.replace(SETTINGS, samples=3))
    assert tokens(more[:2]) == tokens(played[0][:2])
    assert more[2].tokens.tolist() not in tokens(more[:2])


def test_step_seed_and_question_change_the_samples(play, groups, played):
    first = tokens(played[0][:2])
    assert tokens(play(groups[:1])[0]) == first
    for other in (
        play(groups[:1], step=6),
        play(groups[:1], seed=1),
        play([dataclasses.replace(groups[0], question=9)]),
    ):
        assert not set(map(tuple, tokens(other[0]))) & set(map(tuple, first))


def test_a_question_that_comes_twice_is_not_played_twice_alike(play, groups, played):
    out, _ = play([groups[0], groups[0], groups[2]])
    assert tokens(out[:2]) == tokens(played[0][:2])
    assert len(set(map(tuple, tokens(out[:4])))) == 4
    # Neither is a prefix of a question that also runs afresh.
    again = dataclasses.replace(groups[2], question=0)
    last = lambda e: e.tokens[e.spans[2][0] :].tolist()
    assert last(play([groups[0], again, again])[0][2]) != last(played[0][0])


def test_a_steady_state_compiles_nothing(play, groups, policy, tiny):
    play(groups)
    count = compiles.Counter()
    other = jax.tree.map(lambda a: a * 1.01, tiny[1])
    counted = count.count
    settings = dataclasses.replace(SETTINGS, sampling=Sampling(0.5, 3, 0.9))
    play(groups[::-1], settings, seed=3, step=8, view=engine.make_view(policy, other))
    assert count.count == counted


# --- continuous batching -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(groups, tiny_processor):
    """Groups of every kind, one with a stored commit, more than are ever under way."""
    (commit,), (logprobs,) = spoken(tiny_processor, "<ANSWER>left</ANSWER>")
    stored = dataclasses.replace(groups[1], question=3, commit=(commit, logprobs))
    return [*groups, stored, dataclasses.replace(groups[0], question=4)]


@pytest.mark.parametrize(
    "in_flight",
    [
        Continuous(4, 2, 2),
        Continuous(4, 2, 2, overlap=True),
        Continuous(3, 3, 5, overlap=True),
        Continuous(1, 1, BUDGET),
        Continuous(16, 16, BUDGET),
    ],
    ids=str,
)
def test_fewer_rows_than_episodes_play_the_same(play, many, in_flight):
    wanted, together = play(many)
    ours, figures = play(many, in_flight=in_flight)
    for a, b in zip(ours, wanted, strict=True):
        assert (a.question, a.sample, a.group, a.mode) == (b.question, b.sample, b.group, b.mode)
        assert a.tokens.tolist() == b.tokens.tolist()
        assert (a.texts, a.spans, a.truncated) == (b.texts, b.spans, b.truncated)
        assert (a.rewards, a.prompts) == (b.rewards, b.prompts)
        np.testing.assert_array_equal(a.loss_mask, b.loss_mask)
        np.testing.assert_array_equal(a.turn_index, b.turn_index)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        for p, q in zip(a.pictures, b.pictures, strict=True):
            np.testing.assert_array_equal(p.patches, q.patches)
    assert figures["sampled_tokens"] == together["sampled_tokens"]
    for name in ("decode_occupancy", "prefill_occupancy"):
        assert 0 < figures[name] <= 1


def test_an_episode_that_ends_leaves_its_slot_to_the_next(play, many):
    """One long group among short ones: rows that are over aren't computed to the end."""
    board = Endless(short=MAPS[0].key)
    groups = [dataclasses.replace(many[0], question=q) for q in range(5)] + [many[2]]
    settings = dataclasses.replace(SETTINGS, samples=4)
    wanted, together = play(groups, settings, board=board)
    ours, figures = play(groups, settings, board=board, in_flight=Continuous(4, 2, 2))
    assert tokens(ours) == tokens(wanted)
    assert figures["decode_occupancy"] > 1.1 * together["decode_occupancy"]


def test_rows_in_flight_compile_nothing_in_a_steady_state(play, many, groups):
    in_flight = Continuous(4, 2, 2)
    play(many, in_flight=in_flight)
    count = compiles.Counter()
    counted = count.count
    play(groups[::-1], seed=3, in_flight=in_flight)
    assert count.count == counted


@pytest.mark.parametrize("sizes", [(2, 3, 1), (0, 0, 1), (2, 2, 0)])
def test_sizes_that_cannot_be_are_an_error(sizes):
    with pytest.raises(ValueError, match="appended <= rows"):
        Continuous(*sizes)


# --- episodes that end, plans that don't hold ----------------------------------------------------


def test_an_unreadable_reply_ends_its_episode_alone(play, groups, tiny_processor):
    """The real environment: prefixes go on, what the random policy says is unreadable."""
    out, _ = play(groups, board=testing.tiny_environment(TURNS))
    assert [len(e.texts) for e in out] == [1, 1, 2, 2, 3, 3]
    for episode in out:
        assert episode.spans[-1][1] == episode.tokens.size
        assert len(episode.pictures) == len(episode.texts)


def test_rows_that_are_over_leave_the_others_as_they_are(play, groups, played):
    mixed, _ = play(groups, board=Endless(short=MAPS[1].key))
    assert [len(e.texts) for e in mixed] == [3, 3, 1, 1, 3, 3]
    assert tokens(mixed[:2] + mixed[4:]) == tokens(played[0][:2] + played[0][4:])


def test_a_turn_budget_below_the_environment_s_counts_as_truncated(play, groups):
    settings = dataclasses.replace(SETTINGS, max_turns=1)
    out, _ = play(groups[:1], settings)
    assert all(e.truncated and len(e.texts) == 1 for e in out)


def test_a_plan_needs_examples_and_an_environment_that_goes_on(policy, tiny_processor):
    with pytest.raises(ValueError, match="no examples"):
        episodes.plan_shapes(policy, tiny_processor, Endless(), [], SETTINGS)
    with pytest.raises(ValueError, match="at the probe"):
        episodes.plan_shapes(policy, tiny_processor, Endless(1), PROBES, SETTINGS)


def test_a_plan_holds_the_longest_episode(play, tiny_processor, shapes):
    """Every reply at its budget, prefixes as long as they get, and a forced opening."""
    ids, logprobs = spoken(tiny_processor, *["<ANSWER>up up up up</ANSWER>"] * 2)
    assert [len(i) for i in ids] == [BUDGET + 1] * 2
    spec = Group(0, MAPS[0], "roll_in", ids, logprobs, False, "<THINK>")
    out, _ = play([spec, spec, spec])
    assert max(e.tokens.size for e in out) <= shapes.slots


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("prompt", 16, "a chunk of"),
        ("follow", 16, "a chunk of"),
        ("patches", 16, "doesn't fit"),
        ("slots", 64, "slots of the plan"),
    ],
)
def test_what_exceeds_the_plan_is_an_error(play, groups, shapes, field, value, words):
    with pytest.raises(ValueError, match=words):
        play(groups, shapes=dataclasses.replace(shapes, **{field: value}))
