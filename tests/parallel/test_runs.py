"""Whole runs and the public functions on a mesh, against the same on one device."""

import json
import re

import jax
import numpy as np
import pytest
from running import DEMONSTRATIONS
from safetensors.numpy import load_file

import vrrl_jax as vr
from vrrl_jax import sft, train, trajectories
from vrrl_jax.config import ConfigError, SftConfig, TrainConfig, load
from vrrl_jax.log import read_metrics
from vrrl_jax.parallel.mesh import make_mesh
from vrrl_jax.rl import update
from vrrl_jax.rollout import transcript

RECIPE = """
steps: 2
policy: {path: CHECKPOINT}
data: {count: 6, levels: [3]}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {questions: 4, samples: 4, max_new_tokens: 4}
algorithm: {kl_coefficient: 0.1}
modes: {normal: 0.0, rtm: 0.5, roll_in: 0.5}
roll_in: {max_prefix_turns: 2, min_size: 1, capacity: 16, max_per_question: 2}
optimizer: {learning_rate: 0.01, eps: 1.0e-3}
update: {rows_per_microbatch: 8}
checkpoint: {every: 1}
eval: {count: 3, levels: [3], in_domain: [3], temperatures: [1.0]}
log: {episodes_every: 0, tensorboard: false}
"""


def say(processor, ids) -> str:
    """Reads a random reply as a proposal or a commit, by its tokens alone."""
    del processor
    tag = "FINAL" if sum(map(int, ids)) % 2 else "ANSWER"
    return f"<{tag}>{('right', 'down', 'right down down')[sum(map(int, ids)) % 3]}</{tag}>"


def spoken(processor, ids) -> str:
    """The same with end tokens left out, which a stored reply has and a sampled one has not."""
    ends = (processor.ids.im_end, processor.ids.endoftext)
    return say(processor, [i for i in ids if i not in ends])


@pytest.fixture(scope="module")
def configure(tiny_checkpoint, tmp_path_factory):
    """configure(recipe, run_dir, *overrides) as a configuration."""
    directory = tmp_path_factory.mktemp("recipes")

    def configure(recipe, run_dir, *overrides):
        path = directory / "recipe.yaml"
        path.write_text(recipe.replace("CHECKPOINT", str(tiny_checkpoint)))
        kind = SftConfig if recipe is DEMONSTRATIONS else TrainConfig
        return load(path, [f"run_dir={run_dir}", *overrides], kind)

    return configure


def weights(directory):
    return load_file(directory / "model.safetensors")


def assert_same_policy(ours, theirs, start, bound):
    """Exports equal to `bound`, and not for want of having moved."""
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        np.testing.assert_allclose(ours[name], want, rtol=0, atol=bound, err_msg=name)
    assert max(np.abs(want - start[name]).max() for name, want in theirs.items()) > 100 * bound


@pytest.fixture
def gradients(monkeypatch):
    """How the embedding's and a projection's gradients lay, for every microbatch of a run."""
    seen, make = [], update.make_programs

    def watched(*args):
        programs = make(*args)

        def accumulate(params, frozen, grads, batch):
            grads, metrics = programs.accumulate(params, frozen, grads, batch)
            leaves = grads["embed_tokens"]["embedding"], grads["layers"]["q_proj"]["kernel"]
            seen.append(tuple(leaf.sharding.shard_shape(leaf.shape) for leaf in leaves))
            return grads, metrics

        return programs._replace(accumulate=accumulate)

    monkeypatch.setattr(update, "make_programs", watched)
    return seen


def test_training_is_the_same(configure, gradients, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Two steps; on the mesh the run stops after the first one and is resumed."""
    monkeypatch.setattr(transcript, "decode_text", say)
    alone = train.main(configure(RECIPE, tmp_path / "alone"))
    assert "left whole" not in capsys.readouterr().out
    assert set(gradients) == {((384, 32), (2, 32, 32))}
    gradients.clear()
    mesh = ("mesh.data=2", "mesh.fsdp=-1", "mesh.tensor=2")
    train.main(configure(RECIPE, tmp_path / "split", "steps=1", *mesh))
    split = train.main(configure(RECIPE, tmp_path / "split", *mesh), resume=True)

    assert set(gradients) == {((192, 16), (2, 16, 16))}
    lines = [read_metrics(run / "metrics.jsonl") for run in (alone, split)]
    assert [len(run) for run in lines] == [2, 2]
    for a, b in zip(*lines, strict=True):
        assert a["count/updates"] == b["count/updates"] == 1
        for name in ("reward", "success", "loss", "grad_norm", "kl_reference", "entropy"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), name
        assert {k: v for k, v in a.items() if k.startswith("count/")} == {
            k: v for k, v in b.items() if k.startswith("count/")
        }
        assert b["ratio_deviation_first"] < 1e-4
    assert lines[0][0]["grad_norm"] > 0 and lines[0][1]["count/roll_in_groups"] > 0
    assert_same_policy(weights(split / "hf"), weights(alone / "hf"), weights(tiny_checkpoint), 2e-6)
    tables = [json.loads((run / "evaluation_final.json").read_text()) for run in (alone, split)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_critic_and_replayed_trajectories_train_the_same(
    configure, tiny_checkpoint, tmp_path, monkeypatch
):
    """PPO with a critic of its own, masked prefixes and a ring split over the mesh."""
    for module in (transcript, trajectories):
        monkeypatch.setattr(module, "decode_text", spoken)
    overrides = (
        "steps=3",
        "algorithm={name: ppo, dual_clip: null, kl_coefficient: 0.1, lambda_: 0.9, minibatches: 2}",
        "policy={path: CHECKPOINT, value_head: true, critic: separate}",
        "modes={normal: 1.0, rtm: 0, roll_in: 0}",
        "prefix_mask={probability: 0.5, pictures: true}",
        "replay={method: mix, labels: recomputed, importance: truncated}",
        "eval.enabled=false",
    )
    overrides = [o.replace("CHECKPOINT", str(tiny_checkpoint)) for o in overrides]
    mesh = ("mesh.data=2", "mesh.fsdp=-1", "mesh.tensor=2")
    alone = train.main(configure(RECIPE, tmp_path / "alone", *overrides))
    split = train.main(configure(RECIPE, tmp_path / "split", *overrides, *mesh))
    lines = [read_metrics(run / "metrics.jsonl") for run in (alone, split)]
    for a, b in zip(*lines, strict=True):
        for name in ("reward", "loss", "grad_norm", "value_loss", "explained_variance"):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), name
        assert {k: v for k, v in a.items() if k.startswith("count/")} == {
            k: v for k, v in b.items() if k.startswith("count/")
        }
    assert sum(line["count/replayed"] for line in lines[0]) > 0
    assert_same_policy(weights(split / "hf"), weights(alone / "hf"), weights(tiny_checkpoint), 1e-5)


@pytest.mark.slow
def test_supervised_training_is_the_same(configure, gradients, tiny_checkpoint, tmp_path, capsys):
    alone = sft.main(configure(DEMONSTRATIONS, tmp_path / "alone"))
    assert "left whole" not in capsys.readouterr().out
    gradients.clear()
    mesh = ("mesh.fsdp=2", "mesh.tensor=4")
    split = sft.main(configure(DEMONSTRATIONS, tmp_path / "split", *mesh))
    assert set(gradients) == {((96, 16), (2, 16, 8))}
    said = re.findall(r"^left whole on this mesh: .*$", capsys.readouterr().out, re.MULTILINE)
    assert len(said) == 1 and "layers/k_proj/kernel (2 heads over tensor=4)" in said[0]
    assert_same_policy(weights(split / "hf"), weights(alone / "hf"), weights(tiny_checkpoint), 2e-6)


@pytest.mark.parametrize(
    "recipe, overrides, error, message",
    [
        (RECIPE, ["mesh.tensor=16"], ValueError, "needs 16 devices, 8 are there"),
        (RECIPE, ["mesh.tensor=8"], ValueError, "4 query heads"),
        (RECIPE, ["mesh.fsdp=-1", "roll_in.capacity=20"], ConfigError, "roll_in.capacity"),
        (RECIPE, ["mesh.fsdp=-1", "update.rows_per_microbatch=4"], ConfigError, "rows_per_micro"),
        (DEMONSTRATIONS, ["mesh.data=-1"], ConfigError, "batch.rows"),
        (DEMONSTRATIONS, ["mesh.tensor=8"], ValueError, "4 query heads"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_at_the_start(
    configure, tmp_path, recipe, overrides, error, message
):
    main = sft.main if recipe is DEMONSTRATIONS else train.main
    with pytest.raises(error, match=message):
        main(configure(recipe, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_public_functions_take_any_batch(tiny_checkpoint):
    """Three rows on four parts: they are left whole, and nothing else changes."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, (3, 12))
    mask = np.arange(12) >= np.array([0, 3, 7])[:, None]
    alone = vr.load_pretrained(tiny_checkpoint)
    split = vr.load_pretrained(tiny_checkpoint, mesh=make_mesh(fsdp=4, tensor=2))
    raw = [np.asarray(vr.logits(*pair, ids, mask)) for pair in (alone, split)]
    np.testing.assert_allclose(raw[1], raw[0], rtol=0, atol=2e-6 * np.abs(raw[0]).max())
    options = {"max_new_tokens": 6, "key": jax.random.key(0), "stop_ids": ()}
    said = [vr.generate(*pair, ids, mask, **options) for pair in (alone, split)]
    np.testing.assert_array_equal(said[1].tokens, said[0].tokens)
    np.testing.assert_allclose(said[1].logprobs, said[0].logprobs, rtol=0, atol=1e-4)
