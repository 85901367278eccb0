"""Exports: whole or not at all, and what transformers makes of them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vrrl_jax as vr
from vrrl_jax.checkpoint import convert, weights
from vrrl_jax.checkpoint import state as checkpoints
from vrrl_jax.models import critic

GOLDENS = pathlib.Path(__file__).parents[1] / "models" / "goldens"
FAMILIES = ("qwen2_5_vl_tiny", "qwen3_vl_tiny")


def files(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


class Full(Exception):
    """The disk is."""


@pytest.mark.parametrize("earlier", ["5GB", "50kB"])
def test_an_export_that_ends_early_leaves_the_earlier_one(monkeypatch, tmp_path, earlier):
    policy, params = vr.load_pretrained(GOLDENS / FAMILIES[0])
    vr.save_pretrained(tmp_path, policy, params, max_shard_size=earlier)
    before = files(tmp_path)
    doubled = jax.tree.map(lambda a: 2 * a, params)
    genuine, calls = weights.write_file, []

    def write_file(file, *arguments):
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half")
            raise Full
        genuine(file, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(weights, "write_file", write_file)
        with pytest.raises(Full):
            vr.save_pretrained(tmp_path, policy, doubled, dtype="bfloat16", max_shard_size="50kB")
    assert len(calls) == 2
    assert files(tmp_path) == before

    # Killed outright it leaves parts behind; the next export takes them away.
    (tmp_path / "model-00001-of-00009.safetensors.part").write_bytes(b"half")
    jax.tree.map(np.testing.assert_array_equal, vr.load_pretrained(tmp_path)[1], params)
    vr.save_pretrained(tmp_path, policy, doubled)
    assert set(files(tmp_path)) == {"config.json", "generation_config.json", "model.safetensors"}
    jax.tree.map(np.testing.assert_array_equal, vr.load_pretrained(tmp_path)[1], doubled)


def test_progress_ends_at_the_whole(tmp_path):
    seen = []
    policy, params = vr.load_pretrained(
        GOLDENS / FAMILIES[1], progress=lambda *now: seen.append(now)
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert seen == sorted(seen) and seen[-1] == (size, size) and len(seen) > 50
    seen.clear()
    vr.save_pretrained(tmp_path, policy, params, progress=lambda *now: seen.append(now))
    assert seen == sorted(seen) and seen[-1] == (size, size) and len(seen) > 50


# --- names and configuration ---------------------------------------------------------------------

OTHERS = {  # how raw state dicts and files of the other layout spell the published names
    "qwen2_5_vl_tiny": [("visual.", "model.visual."), ("model.", "model.language_model.")],
    "qwen3_vl_tiny": [("model.visual.", "visual."), ("model.language_model.", "model.")],
}


def respell(name, pairs):
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@pytest.mark.parametrize("family", FAMILIES)
def test_other_spellings_are_read(tmp_path, family):
    published = load_file(GOLDENS / family / "model.safetensors")
    renamed = {respell(name, OTHERS[family]): value for name, value in published.items()}
    assert len(renamed) == len(published)
    assert len(renamed.keys() & published.keys()) == 1  # lm_head.weight
    shutil.copy(GOLDENS / family / "config.json", tmp_path)
    save_file(renamed, tmp_path / "model.safetensors")
    _, plain = vr.load_pretrained(GOLDENS / family)
    jax.tree.map(np.testing.assert_array_equal, vr.load_pretrained(tmp_path)[1], plain)

    save_file(published | renamed, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="don't fit") as caught:
        vr.load_pretrained(tmp_path)
    assert str(caught.value).count("\n  twice ") == len(published) - 1


def test_tensors_that_the_index_leaves_out_are_unexpected(tmp_path):
    policy, params = vr.load_pretrained(GOLDENS / FAMILIES[0])
    vr.save_pretrained(tmp_path, policy, params, max_shard_size="50kB")
    shard = tmp_path / "model-00002-of-00007.safetensors"
    save_file(load_file(shard) | {"model.extra": np.zeros(1, np.float32)}, shard)
    with pytest.raises(ValueError, match=r"unexpected model\.extra"):
        vr.load_pretrained(tmp_path)


def test_pickles_in_disguise_are_refused(tmp_path):
    shutil.copy(GOLDENS / FAMILIES[0] / "config.json", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "pytorch_model.bin"}}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"pickled weights are refused \(pytorch_model\.bin\)"):
        vr.load_pretrained(tmp_path)
    index.unlink()
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04K\x01." * 100)
    with pytest.raises(ValueError, match="broken or incomplete"):
        vr.load_pretrained(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_configuration_and_names_come_back(tmp_path, family, dtype):
    policy, params = vr.load_pretrained(GOLDENS / family, dtype=dtype)
    vr.save_pretrained(tmp_path, policy, params)
    source, out = (
        json.loads((place / "config.json").read_text()) for place in (GOLDENS / family, tmp_path)
    )

    def bare(node):
        drop = ("dtype", "torch_dtype")
        return (
            {k: bare(v) for k, v in node.items() if k not in drop}
            if isinstance(node, dict)
            else node
        )

    assert bare(out) == bare(source)
    assert list(out) == list(source)
    assert out["dtype"] == dtype
    assert (
        files(tmp_path)["generation_config.json"]
        == files(GOLDENS / family)["generation_config.json"]
    )
    shapes = [
        {k: v.shape for k, v in load_file(place / "model.safetensors").items()}
        for place in (GOLDENS / family, tmp_path)
    ]
    assert shapes[0] == shapes[1]


def test_integer_weights_are_not_written(tmp_path):
    policy, params = vr.load_pretrained(GOLDENS / FAMILIES[0])
    with pytest.raises(ValueError, match="dtype int8"):
        vr.save_pretrained(tmp_path, policy, params, dtype="int8")


def test_a_run_s_separate_critic_stays_in_its_checkpoint(tiny_checkpoint, tmp_path):
    """Saved for a resume, and not so much as read for an export."""
    policy, params = vr.load_pretrained(tiny_checkpoint)
    for name, held in (("with", critic.add_critic(policy, params)), ("without", params)):
        (tmp_path / name).mkdir()
        config = json.dumps({"policy": {"path": str(tiny_checkpoint)}})
        (tmp_path / name / "config.yaml").write_text(config)
        with checkpoints.open_checkpoints(tmp_path / name / "checkpoints") as saved:
            checkpoints.save(saved, 1, {"state": {"params": held}}, {})
        convert.to_hugging_face(tmp_path / name, tmp_path / f"{name}_exported")
    assert files(tmp_path / "with_exported") == files(tmp_path / "without_exported")
    with checkpoints.open_checkpoints(tmp_path / "with" / "checkpoints") as saved:
        kept = checkpoints.restore_raw(saved)["state"]["params"]["critic"]
    assert kept.keys() == params.keys() | {"value_head"}
    read, _, value_head = convert.read_params(tmp_path / "with")
    assert read.keys() == params.keys() and not value_head
