"""Qwen3-VL through every loop: what a run starts from, plays, learns and leaves behind."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import sft, testing, train
from vrrl_jax.checkpoint import adapters
from vrrl_jax.config import SftConfig, TrainConfig, load
from vrrl_jax.log import read_metrics
from vrrl_jax.models.lora import merge_lora
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.rollout import transcript

TRAIN = """
steps: 3
policy: {path: CHECKPOINT}
data: {count: 8, levels: [3]}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {questions: 4, samples: 4, max_new_tokens: 4}
algorithm: {kl_coefficient: 0.1}
modes: {normal: 0.0, rtm: 0.5, roll_in: 0.5}
roll_in: {max_prefix_turns: 2, min_size: 1, capacity: 16, max_per_question: 2}
optimizer: {learning_rate: 0.01, weight_decay: 0.0}
update: {rows_per_microbatch: 8}
checkpoint: {every: 1, keep: 3}
eval: {enabled: false}
log: {tensorboard: false}
"""
SFT = """
steps: 4
policy: {path: CHECKPOINT}
data: {levels: [3]}
demonstrations: {single_turn_steps: 0, max_turns: 3}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {max_new_tokens: 4}
batch: {rows: 4, row_tokens: 128, picture_slots: 3, slot_patches: 64, sequences: 16, fill: 0.6}
optimizer: {learning_rate: 0.01, warmup_steps: 0, schedule: constant}
eval: {enabled: false}
log: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen3") / "tiny"
    return testing.write_tiny_checkpoint(directory, family="qwen3_vl")


def configure(checkpoint, text, cls, run_dir, *overrides):
    recipe = run_dir.with_suffix(".yaml")
    recipe.write_text(text.replace("CHECKPOINT", str(checkpoint)))
    return load(recipe, [f"run_dir={run_dir}", *overrides], cls)


def moved(checkpoint, run_dir):
    (_, before), (policy, after) = vr.load_pretrained(checkpoint), vr.load_pretrained(run_dir)
    assert policy.config.family == "qwen3_vl"
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), before, after)
    return jax.tree_util.tree_leaves_with_path(changed)


def test_qwen3_trains_plays_and_resumes(checkpoint, monkeypatch, tmp_path):
    replies = lambda _, ids: "<ANSWER>right</ANSWER>" if sum(map(int, ids)) % 2 else "<FINAL>up"
    monkeypatch.setattr(transcript, "decode_text", replies)
    run = train.main(configure(checkpoint, TRAIN, TrainConfig, tmp_path / "run"))
    metrics = read_metrics(run / "metrics.jsonl")
    # Sampler and trainer agree, pictures of later turns and their features included.
    assert all(line["ratio_deviation_first"] < 1e-4 for line in metrics)
    assert max(line["turns"] for line in metrics) > 1
    for path, changed in moved(checkpoint, run / "hf"):
        assert changed, jax.tree_util.keystr(path)
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "3")
    shutil.rmtree(again / "hf")
    train.main(configure(checkpoint, TRAIN, TrainConfig, again), resume=True)
    names = ("model.safetensors", "config.json")
    for name in names:
        assert (again / "hf" / name).read_bytes() == (run / "hf" / name).read_bytes()
    assert json.loads((run / "hf" / "config.json").read_text())["model_type"] == "qwen3_vl"


def test_qwen3_learns_from_demonstrations(checkpoint, tmp_path):
    run = sft.main(configure(checkpoint, SFT, SftConfig, tmp_path / "run"))
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.3
    assert all(changed for _, changed in moved(checkpoint, run / "hf"))


def test_adapters_learn_by_reinforcement(checkpoint, monkeypatch, tmp_path):
    """The reference is the base under the adapters, and only they move."""
    tags = ("FINAL", "ANSWER")
    reply = lambda tag: f"<{tag}>right</{tag}>"
    monkeypatch.setattr(transcript, "decode_text", lambda _, ids: reply(tags[sum(ids) % 2]))
    solved = {"layout": ["SGF", "FFF", "FFF"], "start_pos": 0, "target_pos": 1}
    other = {"layout": ["SFF", "GFF", "FFF"], "start_pos": 0, "target_pos": 3}
    (tmp_path / "maps.json").write_text(json.dumps([solved, other] * 2))
    overrides = ("policy.lora.rank=2", "policy.lora.targets=[attention,vision]")
    overrides += (f"data.path={tmp_path}/maps.json",)
    run = train.main(configure(checkpoint, TRAIN, TrainConfig, tmp_path / "run", *overrides))
    metrics = read_metrics(run / "metrics.jsonl")
    assert all(line["ratio_deviation_first"] < 1e-4 for line in metrics)
    assert metrics[0]["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert all(line["kl_reference"] > 1e-6 for line in metrics[1:])
    for path, changed in moved(checkpoint, run / "hf"):
        name = path_name(path)
        adapted = re.search(r"(layers/[qkvo]_proj|visual/blocks/.*)/kernel$", name) is not None
        assert changed is adapted, name
    policy, params = vr.load_pretrained(checkpoint)
    whole = merge_lora(adapters.load_adapter(run / "adapter", policy, params))
    _, merged = vr.load_pretrained(run / "hf")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, merged))
