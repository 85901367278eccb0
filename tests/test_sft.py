"""Supervised runs: they learn, they resume, and a step's batch is a function of the step."""

import dataclasses
import json
import pathlib
import re
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from running import assert_same, lines, saved_arrays

import vrrl_jax as vr
from vrrl_jax import log as logs
from vrrl_jax import sft, start, tasks, testing
from vrrl_jax.checkpoint import adapters, convert
from vrrl_jax.config import SftConfig, load
from vrrl_jax.log import read_metrics
from vrrl_jax.models.lora import is_adapter, merge_lora
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.rl import update
from vrrl_jax.tasks.frozenlake import FrozenLake

STEPS = 6
RECIPE = """
steps: 6
policy: {path: CHECKPOINT, init: random, config: CHECKPOINT/config.json}
data: {levels: [3]}
demonstrations: {single_turn_steps: 2, single_turn_fraction: 0.3, max_turns: 3}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {max_new_tokens: 4}
batch: {rows: 4, row_tokens: 128, picture_slots: 3, slot_patches: 64, sequences: 16, fill: 0.6}
optimizer: {name: muon, learning_rate: 0.02, warmup_steps: 0, schedule: constant}
ema_decay: 0.9
checkpoint: {every: 2, keep: 5}
eval: {enabled: false}
log: {tensorboard: false}
"""
INCIDENTAL = {"time", "tokens_per_second"}


@pytest.fixture(scope="module")
def configure(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny_sft.yaml"
    path.write_text(RECIPE.replace("CHECKPOINT", str(tiny_checkpoint)))

    def configure(run_dir, *overrides) -> SftConfig:
        return load(path, [f"run_dir={run_dir}", *overrides], SftConfig)

    return configure


@pytest.fixture(scope="module")
def run(configure, tmp_path_factory) -> pathlib.Path:
    return sft.main(configure(tmp_path_factory.mktemp("run") / "whole"))


# --- runs ----------------------------------------------------------------------------------------


def test_the_loss_falls(run):
    metrics = read_metrics(run / "metrics.jsonl")
    losses = [line["loss"] for line in metrics]
    # From the uniform guess over 384 tokens towards a language of a dozen words.
    assert abs(losses[0] - np.log(384)) < 0.7
    assert losses[-1] < losses[0] - 0.5
    assert metrics[-1]["target_probability"] > 2 * metrics[0]["target_probability"]
    assert all(line["count/skipped_updates"] == 0 and line["sequences"] > 3 for line in metrics)
    assert all(0.3 < line["occupancy"] <= 1 for line in metrics)


def test_the_average_is_what_is_exported(run):
    step, arrays = saved_arrays(run)
    assert step == STEPS
    _, exported = vr.load_pretrained(run / "hf")
    assert_same(exported, arrays["average"])
    assert np.any(exported["norm"]["scale"] != arrays["state"]["params"]["norm"]["scale"])
    assert (run / "hf" / "tokenizer.json").is_file() and (run / "config.yaml").is_file()


class Killed(Exception):
    pass


def test_a_killed_and_resumed_run_is_the_same_run(run, configure, tmp_path, monkeypatch):
    config = configure(tmp_path / "killed")
    write = logs.Writer.step

    def die(self, number, metrics):
        write(self, number, metrics)
        if number == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(logs.Writer, "step", die)
        with pytest.raises(Killed):
            sft.main(config)
    resumed = sft.main(config, resume=True)
    assert_same(saved_arrays(resumed)[1], saved_arrays(run)[1])
    assert lines(resumed, INCIDENTAL) == lines(run, INCIDENTAL)


def test_it_starts_from_a_checkpoint_and_evaluates(configure, tiny_checkpoint, tmp_path):
    config = configure(
        tmp_path / "tuned",
        "steps=1",
        "policy.init=pretrained",
        "optimizer.learning_rate=0",
        "ema_decay=null",
        "eval={count: 3, levels: [3], temperatures: [0]}",
    )
    run_dir = sft.main(config)
    assert_same(vr.load_pretrained(run_dir / "hf")[1], vr.load_pretrained(tiny_checkpoint)[1])
    (table,) = json.loads((run_dir / "evaluation_step000001.json").read_text())
    assert table["name"] == "greedy" and table["rows"][0]["maps"] == 3
    assert "average" not in saved_arrays(run_dir)[1]


def test_gradients_that_stay_not_finite_end_the_run_with_a_checkpoint(
    configure, tmp_path, monkeypatch
):
    loss = update.supervised_loss

    def poisoned(policy, params, batch):
        total, metrics = loss(policy, params, batch)
        return total * np.nan, metrics

    monkeypatch.setattr(update, "supervised_loss", poisoned)
    config = configure(tmp_path / "nan", "guard.max_bad_steps=1", "checkpoint.every=50")
    with pytest.raises(FloatingPointError, match="saved as checkpoint 2"):
        sft.main(config)
    step, arrays = saved_arrays(tmp_path / "nan")
    assert step == 2 and arrays["state"]["bad_steps"] == 2
    fresh = start.start(config.policy, None, config.seed).trained
    assert_same(arrays["state"]["params"], fresh)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["policy.config=/no/such/config.json"], "no/such"),
        (["data.exclude=[/no/such/maps]"], "maps.json"),
        (["policy.init=pretrained", "policy.path=/no/such/policy"], "config.json"),
        (["eval.enabled=true", "eval.path=/no/such/maps"], "maps.json"),
    ],
)
def test_what_cannot_run_fails_before_anything_is_written(configure, tmp_path, overrides, words):
    with pytest.raises(FileNotFoundError, match=words):
        sft.main(configure(tmp_path / "bad", *overrides))
    assert not (tmp_path / "bad").exists()


# --- the stream of batches -----------------------------------------------------------------------


def sequences(config, step, processor, task=None):
    return sft.draw_sequences(step, config, processor, task or tasks.make(config, processor))


def test_a_step_s_batch_depends_on_seed_and_step_alone(configure, tiny, tiny_processor, tmp_path):
    config = configure(tmp_path)
    pack = lambda c, step: sft.pack_batch(tiny[0], sequences(c, step, tiny_processor), c.batch)
    first, occupancy = pack(config, 3)
    again, _ = pack(config, 3)
    assert_same(first, again)
    assert first.fields["target_weights"].sum() == pytest.approx(1, abs=1e-5)
    assert occupancy == pytest.approx(float((first.rows.segments > 0).mean()))
    for other in (pack(config, 4)[0], pack(dataclasses.replace(config, seed=1), 3)[0]):
        assert not np.array_equal(first.rows.tokens, other.rows.tokens)


def test_first_steps_hold_lone_proposals_only(configure, tiny_processor, tmp_path):
    config = configure(tmp_path)
    pictures = lambda step: {len(s.pictures) for s in sequences(config, step, tiny_processor)}
    assert pictures(0) == pictures(1) == {1}
    assert {1, 2} <= pictures(2) | pictures(3) | pictures(4) <= {1, 2, 3}


def test_excluded_maps_are_never_shown(configure, tiny_processor, tmp_path):
    config = configure(tmp_path)
    shown = []

    class Spy(FrozenLake):
        def demonstrate(self, example, rng, single_turn):
            shown.append(example)
            return super().demonstrate(example, rng, single_turn)

    sequences(
        config,
        2,
        tiny_processor,
        Spy(config.data, config.env, demonstrations=config.demonstrations),
    )
    path = tmp_path / "maps.json"
    records = [
        {"layout": m.layout, "start_pos": m.start, "target_pos": m.target} for m in shown[:4]
    ]
    path.write_text(json.dumps(records))
    banned, shown[:] = {map.key for map in shown[:4]}, []
    data = dataclasses.replace(config.data, exclude=(str(path),))
    sequences(
        config, 2, tiny_processor, Spy(data, config.env, demonstrations=config.demonstrations)
    )
    assert len(shown) > 4 and not banned & {map.key for map in shown}


def test_targets_are_the_written_tokens_behind_their_states(configure, tiny_processor, tmp_path):
    """Prompts and pictures carry no loss; of a trained token's targets one is what is written."""
    for sequence in sequences(configure(tmp_path), 3, tiny_processor):
        ids, weights = sequence.fields["target_ids"], sequence.fields["target_weights"]
        trained = weights.sum(1) > 0
        hit = ((ids == sequence.tokens[:, None]) & (weights > 0)).any(1)
        assert (hit == trained).all() and trained.any()
        assert not trained[sequence.tokens == tiny_processor.ids.image_pad].any()
        assert not trained[:5].any()


def test_a_batch_that_no_demonstration_fits_is_an_error(configure, tiny, tiny_processor, tmp_path):
    config = configure(tmp_path)
    drawn = sequences(config, 3, tiny_processor)
    for change in ({"row_tokens": 16}, {"slot_patches": 16}):
        with pytest.raises(ValueError, match=r"batch\.row_tokens"):
            sft.pack_batch(tiny[0], drawn, dataclasses.replace(config.batch, **change))


# --- prefetch ------------------------------------------------------------------------------------


def test_prefetch_yields_every_step_in_order():
    assert list(sft.prefetch(lambda step: step**2, iter(range(7)))) == [
        (i, i * i) for i in range(7)
    ]
    assert list(sft.prefetch(lambda step: step, iter(()))) == []


def test_prefetch_surfaces_an_error_where_its_step_would_be():
    def make(step):
        if step == 2:
            raise ValueError("map 7 is broken")
        return step

    stream = sft.prefetch(make, iter(range(9)))
    assert [next(stream), next(stream)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="map 7"):
        next(stream)


@pytest.mark.parametrize("length", [3, 5, 100])
def test_prefetch_stays_a_few_steps_ahead_and_ends_with_its_reader(length):
    made = []
    before = threading.active_count()
    stream = sft.prefetch(lambda step: made.append(step), iter(range(length)), depth=2)
    next(stream)
    time.sleep(0.1)
    assert len(made) <= 5
    stream.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before


def test_demonstrations_play_through_the_environment(tiny_processor, configure, tmp_path):
    """Every picture of a sequence is what the environment shows after the written reply."""
    import random

    from vrrl_jax.envs import frozenlake as env
    from vrrl_jax.processing import processor as processing

    config = configure(tmp_path)
    task = tasks.make(config, tiny_processor)
    settings = task.environment.settings
    for seed, map in enumerate(testing.tiny_maps(6)):
        sequence = sft.demonstration_sequence(task, map, random.Random(seed), tiny_processor, False)
        ids = tiny_processor.ids
        starts = np.flatnonzero(sequence.tokens == ids.im_start)[1::2]  # assistant turns
        replies = []
        for begin in starts:
            rest = sequence.tokens[begin:].tolist()
            body = rest[: rest.index(ids.im_end)]
            text = processing.decode(tiny_processor, body)
            replies.append(text.removeprefix("assistant\n"))
        shown = [env.reset(map, settings).pictures[0]]
        for turn, reply in enumerate(replies[:-1]):
            shown.append(env.step(map, reply, turn, settings).prompt.pictures[0])
        assert len(shown) == len(sequence.pictures)
        for image, picture in zip(shown, sequence.pictures, strict=True):
            wanted = processing.picture(tiny_processor, image)
            assert np.array_equal(picture.patches, wanted.patches)


# --- adapters ------------------------------------------------------------------------------------

LORA = (
    "policy.init=pretrained",
    "policy.config=null",
    "policy.lora.rank=2",
    "optimizer.name=adamw",
)
LORA += ("policy.lora.targets=[decoder,merger]",)


@pytest.fixture(scope="module")
def adapter_run(configure, tmp_path_factory) -> pathlib.Path:
    return sft.main(configure(tmp_path_factory.mktemp("lora") / "whole", *LORA))


def test_a_run_on_adapters_leaves_base_adapter_and_merged_policy(adapter_run, tiny_checkpoint):
    """The checkpoint holds what was trained; the exports say the same in two ways."""
    policy, base = vr.load_pretrained(tiny_checkpoint)
    _, arrays = saved_arrays(adapter_run)
    for tree in (arrays["state"]["params"], arrays["average"]):
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        assert names and all(is_adapter(name) for name in names)
    adapted = adapters.load_adapter(adapter_run / "adapter", policy, base)
    _, merged = vr.load_pretrained(adapter_run / "hf")
    assert_same(merge_lora(adapted), merged)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), merged, base)
    for path, changed in jax.tree_util.tree_leaves_with_path(moved):
        name = path_name(path)
        targeted = re.search(r"(layers/.*_proj|visual/merger_\d)/kernel", name) is not None
        assert changed is targeted, name


def test_a_run_on_adapters_resumes_and_converts(adapter_run, configure, tmp_path):
    whole = tmp_path / "resumed"
    shutil.copytree(adapter_run, whole)
    for step in ("4", "6"):
        shutil.rmtree(whole / "checkpoints" / step)
    shutil.rmtree(whole / "hf")
    sft.main(configure(whole, *LORA), resume=True)
    assert_same(saved_arrays(whole)[1], saved_arrays(adapter_run)[1])
    exported = convert.to_hugging_face(whole, tmp_path / "export")
    for name in ("model.safetensors", "config.json"):
        assert (exported / name).read_bytes() == (adapter_run / "hf" / name).read_bytes()
