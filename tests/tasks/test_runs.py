"""Whole runs of the tasks beside navigation: tables, and questions with pictures and without."""

import io
import json
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from running import INCIDENTAL, assert_same, lines, saved_arrays

import vrrl_jax as vr
from vrrl_jax import collect, label, sft, tasks, train
from vrrl_jax import log as logs
from vrrl_jax.config import SftConfig, TrainConfig, load
from vrrl_jax.log import read_metrics
from vrrl_jax.processing.processor import decode, encode, load_processor
from vrrl_jax.rollout import transcript

SHARED = """
steps: 2
policy: {path: CHECKPOINT}
rollout: {questions: 4, samples: 2, max_new_tokens: 4}
optimizer: {learning_rate: 0.01, weight_decay: 0.0}
update: {rows_per_microbatch: 4}
checkpoint: {every: 1, keep: 5}
log: {episodes_every: 1, episodes: 4, tensorboard: false}
"""
TABLES = """
task: tables
data: {preset: nano, count: 6, written: spaced}
env: {max_turns: 3, question: "{question}", verify: Verify}
algorithm: {kl_coefficient: 0}
eval: {enabled: false, count: 2}
"""
QUESTIONS = """
task: questions
data: {preset: nano, count: 16, text_share: 0.5}
env: {style: r1, suffix: "", joint: " "}
reward: {style: r1}
scorer: own_scorer:odd
algorithm: {kl_coefficient: 0}
eval: {enabled: false, count: 2, temperatures: [0]}
"""
MAZES = """
task: maze
data: {count: 6, sizes: [2, 3]}
env: {cell: 28, max_turns: 2, question: Solve, verify: Verify}
algorithm: {kl_coefficient: 0}
eval: {enabled: false, count: 5, held_out_sizes: [6]}
"""
SUPERVISED = """
steps: 2
policy: {path: CHECKPOINT}
demonstrations: {max_turns: MAX_TURNS, single_turn_fraction: 0.3}
rollout: {max_new_tokens: 4}
batch: {rows: 4, row_tokens: 256, picture_slots: 4, slot_patches: 96, sequences: 8, fill: 0.9}
optimizer: {learning_rate: 0.01, schedule: constant, warmup_steps: 0}
checkpoint: {every: 2}
log: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def configure(tiny_checkpoint, tmp_path_factory):
    """configure(recipe, run_dir, *overrides): a recipe of either kind as a configuration."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"

    def configure(recipe, run_dir, *overrides, cls=TrainConfig):
        path.write_text(recipe.replace("CHECKPOINT", str(tiny_checkpoint)))
        return load(path, [f"run_dir={run_dir}", *overrides], cls)

    return configure


@pytest.fixture(autouse=True)
def own_scorer(monkeypatch):
    """A reward that a random policy earns now and then: an odd number of letters."""
    module = types.SimpleNamespace(odd=lambda texts, example: float(len(texts[-1]) % 2))
    monkeypatch.setitem(sys.modules, "own_scorer", module)


@pytest.fixture
def learnt(monkeypatch):
    """The episodes of every step, as the update gets them."""
    steps, pad = [], label.pad

    def spy(played, *rest):
        steps.append(list(played))
        return pad(played, *rest)

    monkeypatch.setattr(label, "pad", spy)
    return steps


def speak(monkeypatch, place):
    """Random replies are read as proposals and commits of `place` of their tokens' sum."""

    def say(processor, ids):
        total = sum(map(int, ids))
        tag = "FINAL" if total % 2 else "ANSWER"
        return f"<{tag}>{place(total)}</{tag}>"

    monkeypatch.setattr(transcript, "decode_text", say)


def changed(run_dir, checkpoint):
    """The share of arrays that training changed."""
    before, after = (vr.load_pretrained(path)[1] for path in (checkpoint, run_dir / "hf"))
    moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), before, after)
    return float(np.mean(jax.tree.leaves(moved)))


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ppo_pays_tables_turn_by_turn(configure, monkeypatch, learnt, tmp_path):
    """What each proposal gains lies on its own last token, and the critic sees it."""
    speak(monkeypatch, lambda total: f"{total % 168} {total // 7 % 112}")
    placed, place = [], label.placed_rewards

    def spy(*args):
        placed.append(place(*args))
        return placed[-1]

    monkeypatch.setattr(label, "placed_rewards", spy)
    config = configure(
        SHARED + TABLES,
        tmp_path / "ppo",
        "algorithm={name: ppo, kl_coefficient: 0}",
        "policy.value_head=true",
        "reward={placement: turn, style: distance}",
    )
    run_dir = train.main(config)
    first, second = read_metrics(run_dir / "metrics.jsonl")
    for line in (first, second):
        assert line["count/updates"] == 1 and line["value_loss"] > 0 and line["grad_norm"] > 0
        assert abs(line["ratio_deviation_first"]) < 1e-4
        assert 0 < line["progress"] < 1
    paid = 0
    for played, rewards in zip(learnt, placed, strict=True):
        for row, episode in zip(rewards, played, strict=True):
            assert len(episode.turn_rewards) == len(episode.texts) == len(episode.spans)
            assert sum(episode.turn_rewards) == pytest.approx(episode.rewards["total"], abs=1e-5)
            wanted = np.zeros(row.size)
            for (start, end), reward in zip(episode.spans, episode.turn_rewards, strict=True):
                generated = start + np.flatnonzero(episode.loss_mask[start:end])
                wanted[generated[-1]] = reward
            np.testing.assert_allclose(row, wanted, atol=1e-6)
            paid = max(paid, np.count_nonzero(wanted))
            # Every picture of the nano preset is 168 x 112 pixels, 24 tokens.
            assert {p.grid for p in episode.pictures} == {(1, 8, 12)}
    assert paid >= 2


def test_grpo_rolls_prefixes_of_tables_in(configure, monkeypatch, learnt, tmp_path):
    speak(monkeypatch, lambda total: "84 56")
    config = configure(
        SHARED + TABLES,
        tmp_path / "grpo",
        "modes={normal: 0, rtm: 0.3, roll_in: 0.7}",
        "roll_in={max_prefix_turns: 2, min_size: 1, capacity: 16, max_per_question: 2}",
    )
    run_dir = train.main(config)
    first, second = read_metrics(run_dir / "metrics.jsonl")
    assert first["count/prefixes_offered"] > 0 and first["count/roll_in_groups"] == 0
    assert second["count/roll_in_groups"] > 0 and first["count/rtm_groups"] > 0
    assert first["effective_batch"] > 0 and changed(run_dir, config.policy.path) > 0.9
    asked = {e.question: e.prompts[0] for e in learnt[0]}
    for episode in learnt[1]:
        if episode.mode == "roll_in":
            # Its own question's words, and the prefix's place.
            assert episode.prompts[0] == asked[episode.question] and episode.prefix_turns
            assert episode.texts[0] == "<ANSWER>84 56</ANSWER>"
    _, arrays = saved_arrays(run_dir)
    assert np.asarray(arrays["buffer"]["valid"]).any()


# --- questions -----------------------------------------------------------------------------------


def test_questions_with_pictures_and_without_share_a_batch(configure, learnt, tmp_path):
    config = configure(SHARED + QUESTIONS, tmp_path / "mixed", "eval.enabled=true")
    run_dir = train.main(config)
    for line, played in zip(read_metrics(run_dir / "metrics.jsonl"), learnt, strict=True):
        shown = {len(episode.pictures) for episode in played}
        assert shown == {0, 1} and line["count/skipped_updates"] == 0
        assert abs(line["ratio_deviation_first"]) < 1e-4
        assert line["reward"] == np.mean([e.rewards["total"] for e in played])
    assert changed(run_dir, config.policy.path) > 0.9
    kept = json.loads((run_dir / "episodes" / "step_000001.json").read_text())["episodes"]
    assert {len(turn["pictures"]) for e in kept for turn in e["turns"]} <= {0, 1}
    # Tables of a task without turns: its own columns, success in the middle of them.
    compared, table = json.loads((run_dir / "evaluation_final.json").read_text())
    assert {"before", "after", "gain"} <= set(compared["rows"][0])
    assert "of turn 1" not in compared["rows"][0] and table["rows"][0]["questions"] == 1
    assert [row["split"] for row in table["rows"]] == ["OOD", "in-domain", "all"]


def test_questions_of_text_alone_are_a_run(configure, learnt, tmp_path):
    """Microbatches none of whose rows has a picture go through the same program."""
    config = configure(SHARED + QUESTIONS, tmp_path / "text", "data.text_share=1.0")
    run_dir = train.main(config)
    for line in read_metrics(run_dir / "metrics.jsonl"):
        assert line["count/updates"] == 1 and abs(line["ratio_deviation_first"]) < 1e-4
    assert not any(episode.pictures for played in learnt for episode in played)
    assert sum(line["effective_batch"] for line in read_metrics(run_dir / "metrics.jsonl")) > 0
    # The vision tower learns nothing where nothing is seen.
    before, after = (vr.load_pretrained(path)[1] for path in (config.policy.path, run_dir / "hf"))
    assert_same(before["visual"], after["visual"])


@pytest.fixture
def sources(tmp_path) -> list[pathlib.Path]:
    """Three questions about a picture, and nine about none."""
    made = []
    for name, count in (("shown", 3), ("told", 9)):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for i in range(count):
            file = io.BytesIO()
            Image.new("RGB", (56, 28 + 28 * i), (9 * i, 99, 200)).save(file, "png")
            (folder / f"{i}.png").write_bytes(file.getvalue())
            image = f"{i}.png" if name == "shown" else None
            rows.append({"question": f"{name} {i}", "image": image, "answer": str(i)})
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        made.append(folder)
    return made


def test_rows_of_virl39k_with_pictures_and_without_share_a_step(configure, learnt, tmp_path):
    """In the release's layout, replies made to open with a text that carries no loss."""
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (tmp_path / "images").mkdir()
    rows = []
    for i, count in enumerate((1, 0, 1, 0)):
        names = [f"images/{i}.png"] * count
        for name in names:
            Image.new("RGB", (56, 56), (9 * i, 99, 200)).save(tmp_path / name)
        rows.append({"question": "<image>" * count + f" Which is {i}?", "image": names})
        rows[-1] |= {"answer": f"\\boxed{{{'ABCD'[i]}}}", "category": "Spatial Reasoning"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "39Krelease.parquet")
    config = configure(
        SHARED + QUESTIONS,
        tmp_path / "run",
        f"data.sources=[{{path: {tmp_path}, mapper: virl39k}}]",
        "env.opening=<think>",
        "steps=1",
    )
    run_dir = train.main(config)
    (line,), (played,) = read_metrics(run_dir / "metrics.jsonl"), learnt
    assert line["count/updates"] == 1 and abs(line["ratio_deviation_first"]) < 1e-4
    assert sorted(len(e.pictures) for e in played) == [0] * 4 + [1] * 4
    assert {e.prompts[0].count("<image>") for e in played} == {0, 1}
    processor = load_processor(config.policy.path)
    forced = encode(processor, "<think>")
    for episode in played:
        start, end = episode.spans[0]
        given = slice(start - len(forced), start)
        assert episode.tokens[given].tolist() == forced
        assert not episode.loss_mask[given].any() and episode.loss_mask[start:end].any()


class Killed(Exception):
    pass


def test_a_mixture_of_sources_resumes_as_the_run_it_was(
    configure, sources, learnt, monkeypatch, tmp_path
):
    """One in four questions has a picture, at every step; killed and resumed, the same bits."""
    shown, told = sources
    mixed = (
        f"data.sources=[{{path: {shown}, mapper: fields, weight: 1}}, "
        f"{{path: {told}, mapper: fields, weight: 3}}]"
    )
    asked, ask = [], collect.next_questions

    def spy(seed, examples, cursor, count):
        ids, cursor = ask(seed, examples, cursor, count)
        asked.append((cursor - count, ids, [len(examples[i].pictures) for i in ids]))
        return ids, cursor

    monkeypatch.setattr(collect, "next_questions", spy)
    whole = train.main(configure(SHARED + QUESTIONS, tmp_path / "whole", mixed))
    assert [cursor for cursor, _, _ in asked] == [0, 4]
    assert all(sum(pictures) == 1 for _, _, pictures in asked)
    played = [[e.question for e in step] for step in learnt]
    assert played == [np.repeat(ids, 2).tolist() for _, ids, _ in asked]
    write = logs.Writer.step

    def die(self, number, metrics):
        write(self, number, metrics)
        if number == 2:
            raise Killed

    config = configure(SHARED + QUESTIONS, tmp_path / "killed", mixed)
    with monkeypatch.context() as patch:
        patch.setattr(logs.Writer, "step", die)
        with pytest.raises(Killed):
            train.main(config)
    resumed = train.main(config, resume=True)
    assert asked[-1] == asked[1]
    assert_same(saved_arrays(resumed)[1], saved_arrays(whole)[1])
    assert lines(resumed, INCIDENTAL) == lines(whole, INCIDENTAL)


# --- mazes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mazes_are_trained_on_and_told_apart(configure, monkeypatch, tmp_path):
    speak(monkeypatch, lambda total: "right")
    config = configure(
        SHARED + MAZES, tmp_path / "maze", "eval.enabled=true", "eval.temperatures=[0]"
    )
    run_dir = train.main(config)
    assert all(line["count/updates"] == 1 for line in read_metrics(run_dir / "metrics.jsonl"))
    _, table = json.loads((run_dir / "evaluation_final.json").read_text())
    named = {row["split"]: row["mazes"] for row in table["rows"]}
    singles = {"in-domain": 1, "size": 1, "algorithm": 1, "style": 1, "size+algorithm+style": 1}
    assert named == singles | {"OOD": 4, "all": 5}


# --- supervised ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "turns"),
    [
        pytest.param(TABLES, 3, id="tables"),
        pytest.param(QUESTIONS, 1, id="questions"),
        pytest.param(MAZES, 2, id="mazes", marks=pytest.mark.slow),
    ],
)
def test_demonstrations_of_a_task_are_learnt(configure, tmp_path, recipe, turns):
    recipe = recipe.replace("algorithm: {kl_coefficient: 0}\n", "")
    recipe = SUPERVISED.replace("MAX_TURNS", str(turns)) + recipe
    config = configure(recipe, tmp_path / "sft", cls=SftConfig)
    run_dir = sft.main(config)
    first, second = read_metrics(run_dir / "metrics.jsonl")
    assert first["sequences"] > 2 and second["grad_norm"] > 0
    assert 0 < first["loss"] < 2 * np.log(384) and first["count/skipped_updates"] == 0
    assert changed(run_dir, config.policy.path) > 0.9


def test_corrections_written_elsewhere_are_learnt(monkeypatch, tiny_checkpoint, tmp_path):
    """The recipe that ships, on the lines that ship: what is wrong first carries no loss."""
    root = pathlib.Path(__file__).resolve().parents[2]
    monkeypatch.chdir(root)
    config = load(
        root / "configs" / "reflection_sft_jsonl.yaml",
        [f"policy.path={tiny_checkpoint}", f"run_dir={tmp_path / 'sft'}", "steps=2"]
        + ["batch={rows: 4, row_tokens: 256, picture_slots: 4, slot_patches: 96, sequences: 8}"]
        + ["log.tensorboard=false"],
        SftConfig,
    )
    processor = load_processor(tiny_checkpoint)
    rows = pathlib.Path(config.data.sources[0].path).read_text().splitlines()
    rows = {row["first_reply"]: row for row in map(json.loads, rows)}
    seen = set()
    for step in range(4):
        task = tasks.make(config, processor)
        for sequence in sft.draw_sequences(step, config, processor, task):
            trained = sequence.fields["target_weights"].sum(-1) > 0
            taught = decode(processor, sequence.tokens[trained])
            text = decode(processor, sequence.tokens)
            (row,) = (row for first, row in rows.items() if first in text)
            assert taught == f"\n{row['critique']}\n{row['corrected_reply']}"
            assert trained[-1] and sequence.tokens[-1] == processor.ids.im_end
            assert len(sequence.pictures) == (row["image"] is not None)
            seen.add(row["question"])
    assert len(seen) == len(rows) == 3
    first, second = read_metrics(sft.main(config) / "metrics.jsonl")
    assert first["sequences"] > 2 and second["grad_norm"] > 0
