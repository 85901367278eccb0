"""Trained samples go into the ring, and the same episodes come out of it, pictures included."""

import dataclasses

import jax
import numpy as np
import pytest

from vrrl_jax import compiles, testing, trajectories
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.data import shapes as questions
from vrrl_jax.data.frozenlake import Map
from vrrl_jax.data.shapes import Question
from vrrl_jax.envs import frozenlake as env
from vrrl_jax.envs import questions as asking
from vrrl_jax.parallel.mesh import make_mesh
from vrrl_jax.processing import processor as processing
from vrrl_jax.rl import replay
from vrrl_jax.rollout import engine, episodes
from vrrl_jax.rollout.episodes import Group, Settings
from vrrl_jax.types import Outcome, Prompt

TURNS, BUDGET = 3, 6
SETTINGS = Settings(samples=2, max_turns=TURNS, max_new_tokens=BUDGET)
MAPS = testing.tiny_maps(3)
PROPOSED = ("<ANSWER>up right</ANSWER>", "<THINK> step 1 hole</THINK><ANSWER>down</ANSWER>")
TRIGGER = " Wait, let me reconsider this."
ASKED = questions.generate(0, "train", 40, questions.NANO)
SHOWN = next(q for q in ASKED if q.scene is not None)
TOLD = next(q for q in ASKED if q.scene is None)


def drawn(width, seed):
    return np.random.default_rng(seed).integers(0, 256, (28, width, 3), np.uint8)


# Two pictures among words, then none and a forced opening, then one picture.
CHAT = (
    Prompt("Solve<image>off<image>", (drawn(56, 0), drawn(112, 1))),
    Prompt("Verify", opening="<THINK>"),
    Prompt("<image>Verify", (drawn(28, 2),)),
)
EXAMPLES = (MAPS[0], MAPS[1], MAPS[2], SHOWN, TOLD, CHAT)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Maps, questions and chats. On a map every reply so far bends the path that is drawn."""

    def reset(self, example):
        if isinstance(example, Map):
            return env.reset(example, env.Settings(cell=testing.CELL, question="Solve"))
        return asking.reset(example) if isinstance(example, Question) else example[0]

    def answer(self, example, texts):
        if isinstance(example, Question) or len(texts) == TURNS:
            return Outcome(True)
        if not isinstance(example, Map):
            return Outcome(False, example[len(texts)])
        path = [("right", "down", "left", "up")[sum(t.encode()) % 4] for t in texts]
        return Outcome(False, Prompt("Verify", (env.render(example, path, testing.CELL),)))


BOARD = Mixed()


@pytest.fixture(scope="module")
def policy(tiny):
    """Special tokens end a turn, so that some replies stop and others are cut by their budget."""
    ids = [i for i in range(322, 331) if i not in tiny[0].placeholder_ids]
    return dataclasses.replace(tiny[0], stop_ids=(*tiny[0].stop_ids, *ids))


def rolled(processor, question, *texts, opening=""):
    ids = [np.int32([*processing.encode(processor, t), processor.ids.im_end]) for t in texts]
    logprobs = tuple(np.full(len(i), -0.5, np.float32) for i in ids)
    return Group(question, EXAMPLES[question], "roll_in", tuple(ids), logprobs, False, opening)


@pytest.fixture(scope="module")
def play(policy, tiny, tiny_processor):
    view = engine.make_view(policy, tiny[1])
    shapes = episodes.plan_shapes(
        policy, tiny_processor, BOARD, [(e, "") for e in (MAPS[0], CHAT)], SETTINGS, roll_in=True
    )
    # Questions are longer, as is a reply with a trigger, and their pictures of another size.
    shapes = dataclasses.replace(shapes, prompt=160, follow=80, slots=448, patches=64)

    def play(groups, board=BOARD):
        score = lambda texts, example, group: {"total": float(len(texts))}
        return episodes.rollout(
            policy,
            view,
            tiny_processor,
            board,
            groups,
            SETTINGS,
            shapes,
            jax.random.key(0),
            1,
            score,
        )[0]

    return play


@pytest.fixture(scope="module")
def played(play, tiny_processor):
    rewritten = PROPOSED[0] + TRIGGER + PROPOSED[1]
    return play(
        [
            Group(0, MAPS[0]),
            rolled(tiny_processor, 1, PROPOSED[0], opening="<THINK>"),
            rolled(tiny_processor, 2, rewritten, PROPOSED[1]),
            Group(3, SHOWN),
            Group(4, TOLD),
            Group(5, CHAT),
        ]
    )


SLOTS, NAMES = 320, ("loss_mask", "logprobs", "advantages", "hidden")


def fields_of(found, slots=SLOTS):
    """Their fields as padded arrays; advantages are drawn."""
    out = {name: np.zeros((len(found), slots), np.float32) for name in NAMES}
    rng = np.random.default_rng(0)
    for b, e in enumerate(found):
        n = e.tokens.size
        out["loss_mask"][b, :n], out["logprobs"][b, :n] = e.loss_mask, e.logprobs
        out["advantages"][b] = rng.normal(size=slots)
        out["hidden"][b, :n] = 0 if e.hidden is None else e.hidden
    return out


def rows_of(found, first=0, step=0, count=None, advantage=None):
    return trajectories.rows(
        found,
        fields_of(found),
        SLOTS,
        TURNS,
        advantage=np.arange(len(found)) - 2.0 if advantage is None else advantage,
        serials=np.arange(first, first + len(found)),
        step=step,
        count=len(found) if count is None else count,
    )


def row_of(batch, i):
    return jax.tree.map(lambda a: a[i], batch)


def through(found, n=None):
    """Rows that went through a ring, by serial."""
    state = trajectories.empty(SLOTS, TURNS, NAMES, 16)
    count = len(found) + 2
    mask = np.arange(count) < len(found)
    state = trajectories.add(state, rows_of(found, count=count), mask, mask)
    drawn, ok = trajectories.draw(state, jax.random.key(0), 14, replacement=False, exponent=1)
    assert ok.tolist() == [i < len(found) for i in range(14)]
    out = [row_of(drawn, i) for i in range(len(found))]
    return sorted(out, key=lambda row: int(row["serial"]))


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_restored(found, wanted):
    for name in ("tokens", "turn_index", "loss_mask", "logprobs"):
        same_bits(getattr(found, name), getattr(wanted, name))
    for name in ("question", "texts", "spans", "prompts"):
        assert getattr(found, name) == getattr(wanted, name)
    assert (found.rewards, found.mode) == ({}, "normal")
    assert len(found.pictures) == len(wanted.pictures)
    for picture, other in zip(found.pictures, wanted.pictures, strict=True):
        assert picture.grid == other.grid
        same_bits(picture.patches, other.patches)


def test_episodes_come_back_bit_for_bit(played, policy, tiny_processor):
    advantages = fields_of(played)["advantages"]
    for i, (row, episode) in enumerate(zip(through(played), played, strict=True)):
        found = trajectories.rebuild(row, EXAMPLES[episode.question], BOARD, tiny_processor)
        assert_restored(found, episode)
        assert found.hidden is None
        same_bits(row["fields"]["advantages"], advantages[i])
        assert (row["advantage"], row["serial"]) == (i - 2, i)
    # The cases that it is about did occur.
    forced = lambda e, a, b: b - a > 1 and e.tokens[b - 2] in policy.stop_ids
    assert any(forced(e, a, b) for e in played for a, b in e.spans)
    assert any(e.truncated for e in played)
    assert all(e.texts[1].startswith("<THINK>") for e in played[2:4])
    assert all(TRIGGER in e.texts[0] for e in played[4:6])
    assert [len(e.spans) for e in played] == [3] * 6 + [1] * 4 + [3] * 2
    assert [len(e.pictures) for e in played] == [3] * 6 + [1, 1, 0, 0] + [3] * 2
    # Different replies had led to different pictures.
    assert any(trajectories.digest(a.pictures).tolist() != trajectories.digest(b.pictures).tolist()
               for a, b in zip(played[:4:2], played[1:4:2], strict=True))  # fmt: skip


def test_episodes_of_frozenlake_itself(play, tiny_processor):
    """Its answers hang on what the replies say; garbage ends an episode."""
    board = testing.tiny_environment()
    groups = [rolled(tiny_processor, q % 3, *PROPOSED[: q // 3 + 1]) for q in range(6)]
    found = play(groups, board)
    assert {len(e.spans) for e in found} == {2, 3}
    for row, episode in zip(through(found), found, strict=True):
        again = trajectories.rebuild(row, MAPS[episode.question], board, tiny_processor)
        assert_restored(again, episode)


def test_a_forced_second_thought_comes_back(played, tiny_processor):
    """One reply covers the first thought, the trigger and the second thought."""
    for episode in (played[1], played[7]):
        cut = episode.tokens.size - 1  # before the reply's last token
        trigger = processing.encode(tiny_processor, TRIGGER)
        second = processing.encode(tiny_processor, PROPOSED[0])
        tokens = [*episode.tokens[:cut], *trigger, *second, tiny_processor.ids.im_end]
        more = len(tokens) - episode.tokens.size
        longer = lambda values, fill, more=more: np.pad(values, (0, more), constant_values=fill)
        start = episode.spans[-1][0]
        hidden = np.zeros(len(tokens), bool)
        hidden[3:9] = True
        thought = dataclasses.replace(
            episode,
            tokens=np.int32(tokens),
            turn_index=longer(episode.turn_index, episode.turn_index[-1]),
            loss_mask=longer(episode.loss_mask, 1),
            logprobs=longer(episode.logprobs, np.nan),
            spans=(*episode.spans[:-1], (start, len(tokens))),
            texts=(*episode.texts[:-1], processing.decode(tiny_processor, tokens[start:])),
            trigger=(cut, cut + len(trigger)),
            second=(cut + len(trigger), len(tokens)),
            trigger_kind="questioning",
            hidden=hidden,
        )
        (row,) = through([thought])
        example = EXAMPLES[episode.question]
        found = trajectories.rebuild(row, example, BOARD, tiny_processor)
        assert_restored(found, thought)
        same_bits(found.hidden, hidden)
        assert TRIGGER + PROPOSED[0] in found.texts[-1]


@dataclasses.dataclass(frozen=True)
class Changed(Mixed):
    """As `Mixed`, but for one thing."""

    what: str = ""

    def reset(self, example):
        if self.what == "missing":
            raise OSError("no such file")
        return super().reset(example)

    def answer(self, example, texts):
        if self.what == "ends" and len(texts) == 2:
            return Outcome(True)
        outcome = super().answer(example, texts)
        if self.what == "text" and len(texts) == 2:
            return Outcome(False, dataclasses.replace(outcome.prompt, text="Solve"))
        return outcome


def test_what_was_not_trained_on_is_refused(played, tiny_processor):
    rows = through(played)
    first, _, chat = rows[0], rows[8], rows[10]
    rebuild = lambda row, example, board=BOARD: trajectories.rebuild(
        row, example, board, tiny_processor
    )
    # Same tokens, another picture: a map, a pixel, an order.
    with pytest.raises(ValueError, match=r"question 0.*pictures"):
        rebuild(first, MAPS[1])
    pixel = CHAT[2].pictures[0].copy()
    pixel[5, 5, 1] ^= 1
    with pytest.raises(ValueError, match=r"question 5.*pictures"):
        rebuild(chat, (*CHAT[:2], Prompt("<image>Verify", (pixel,))))
    turned = dataclasses.replace(CHAT[0], pictures=(CHAT[0].pictures[0], drawn(112, 9)))
    with pytest.raises(ValueError, match=r"question 5.*pictures"):
        rebuild(chat, (turned, *CHAT[1:]))
    # A reply that leads to another picture.
    other = {**first, "tokens": first["tokens"].copy()}
    other["tokens"][first["spans"][0, 0]] += 1
    with pytest.raises(ValueError, match=r"question 0.*pictures"):
        rebuild(other, MAPS[0])
    # Another text, another size, another end.
    with pytest.raises(ValueError, match=r"question 4.*user turn 0"):
        rebuild(rows[8], next(q for q in ASKED if q.scene is None and q != TOLD))
    with pytest.raises(ValueError, match=r"question 5.*user turn 0"):
        rebuild(chat, (dataclasses.replace(CHAT[0], pictures=CHAT[0].pictures[::-1]), *CHAT[1:]))
    with pytest.raises(ValueError, match=r"question 0.*user turn 2"):
        rebuild(first, MAPS[0], Changed(what="text"))
    with pytest.raises(ValueError, match=r"question 0.*ends the episode at reply 2 of 3"):
        rebuild(first, MAPS[0], Changed(what="ends"))
    with pytest.raises(ValueError, match=r"question 0.*no such file"):
        rebuild(first, MAPS[0], Changed(what="missing"))


def test_rows_have_one_shape_and_refuse_what_does_not_fit(played):
    batch = rows_of(played[:3], first=7, step=4, count=5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        assert len(leaf) == 5 and not leaf[3:].any(), path
    assert batch["step"].tolist() == [4, 4, 4, 0, 0] and batch["serial"].tolist() == [7, 8, 9, 0, 0]
    assert batch["length"][:3].tolist() == [e.tokens.size for e in played[:3]]
    labels = {"advantage": np.ones(1), "serials": np.ones(1, int), "step": 0, "count": 1}
    make = lambda slots=SLOTS, turns=TURNS, fields=None, **changes: trajectories.rows(
        played[:1], fields or {}, slots, turns, **(labels | changes)
    )
    n = played[0].tokens.size
    assert make(slots=n)["tokens"].tolist() == [played[0].tokens.tolist()]
    with pytest.raises(ValueError, match=f"question 0.*{n} tokens.*{n - 1} in 3"):
        make(slots=n - 1)
    with pytest.raises(ValueError, match=r"3 replies.*in 2"):
        make(turns=2)
    with pytest.raises(ValueError, match="1 episodes in 0 rows"):
        make(count=0)
    with pytest.raises(ValueError, match=r"values: \(1, 8\)"):
        make(fields={"values": np.zeros((1, 8))})
    with pytest.raises(ValueError, match="1 episodes"):
        make(serials=np.zeros(0, int))


def ring(mesh=None):
    return trajectories.empty(SLOTS, TURNS, NAMES, 16, mesh)


def filled(found, mesh=None):
    """Three steps of the same episodes under new serials: the ring has gone round."""
    state = ring(mesh)
    for step in range(3):
        batch = rows_of(found, first=100 * step, step=step, count=14)
        mask = np.arange(14) < len(found) - step
        state = trajectories.add(state, batch, mask, np.abs(batch["advantage"]))
    return state


def drawings(state):
    return [
        trajectories.draw(state, jax.random.key(seed), 8, replacement=r, exponent=1, offset=1e-4)
        for seed, r in ((0, False), (1, True))
    ]


def test_a_ring_over_a_mesh_is_the_same_ring(played):
    mesh = make_mesh(4, 2)
    plain, split = filled(played), filled(played, mesh)
    jax.tree.map(same_bits, split, plain)
    assert plain.size == 16 and plain.cursor == (12 + 11 + 10) % 16
    for leaf in jax.tree.leaves(split.payload):
        assert {s.data.shape[0] for s in leaf.addressable_shards} == {2}
    jax.tree.map(same_bits, drawings(split), drawings(plain))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(drawings(split)))
    with pytest.raises(ValueError, match="capacity"):
        trajectories.empty(SLOTS, TURNS, NAMES, 12, mesh)


@pytest.mark.parametrize("parts", [None, (4, 2)])
def test_a_checkpoint_holds_it_all(played, tmp_path, parts):
    mesh = parts and make_mesh(*parts)
    state = filled(played, mesh)
    with checkpoints.open_checkpoints(tmp_path) as saved:
        checkpoints.save(saved, 3, {"samples": state}, {})
        arrays, _, _ = checkpoints.restore(saved, {"samples": ring(mesh)})
    restored = arrays["samples"]
    assert isinstance(restored, replay.State)
    jax.tree.map(same_bits, restored, state)
    jax.tree.map(same_bits, drawings(restored), drawings(state))
    more = rows_of(played, first=900, step=9, count=14)
    on = np.arange(14) < 12
    again, went = (trajectories.add(s, more, on, on) for s in (restored, state))
    jax.tree.map(same_bits, again, went)


def test_a_steady_state_compiles_nothing_and_copies_no_ring(played):
    state = filled(played)
    drawings(state)
    count = compiles.Counter()
    before = jax.tree.map(lambda leaf: leaf.unsafe_buffer_pointer(), state.payload)
    batch = rows_of(played[:5], step=7, count=14)
    state = trajectories.add(state, batch, np.arange(14) < 5, np.ones(14))
    drawings(state)
    assert count.count == 0
    after = jax.tree.map(lambda leaf: leaf.unsafe_buffer_pointer(), state.payload)
    assert after == before


def test_an_offset_draws_what_had_no_advantage(played):
    state = trajectories.add(ring(), rows_of(played), np.ones(12), np.r_[0.0, 2.0, np.zeros(10)])
    for offset, count in ((0.0, 1), (1e-4, 12)):
        drawn, ok = trajectories.draw(
            state, jax.random.key(0), 14, replacement=False, exponent=1, offset=offset
        )
        assert ok.sum() == count and len(set(drawn["serial"][ok])) == count
        assert drawn["serial"][0] == 1
