"""Adapters out to PEFT's layout and back; PEFT itself where it is installed."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import vrrl_jax as vr
from vrrl_jax.checkpoint import adapters
from vrrl_jax.models import lora
from vrrl_jax.parallel.rules import path_name
from vrrl_jax.testing import random_adapters as adapted

TARGETS = [("decoder",), ("vision", "merger"), ("q_proj", "down_proj"), ("decoder", "vision")]


def flat(tree):
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(params=["qwen2_5_vl_tiny", "qwen3_vl_tiny"])
def golden(request, pytestconfig):
    return pytestconfig.rootpath / "tests/models/goldens" / request.param


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_round_trip_is_bit_identical(golden, targets, tmp_path):
    policy, params = vr.load_pretrained(golden)
    changed = adapted(policy, params, targets)
    adapters.save_adapter(tmp_path, policy, changed)
    back = flat(adapters.load_adapter(tmp_path, policy, params))
    assert back.keys() == flat(changed).keys()
    for name, leaf in flat(changed).items():
        np.testing.assert_array_equal(back[name], leaf, err_msg=name)


def test_what_does_not_fit_is_listed(golden, tmp_path):
    policy, params = vr.load_pretrained(golden)
    with pytest.raises(ValueError, match="no adapters"):
        adapters.save_adapter(tmp_path, policy, params)
    adapters.save_adapter(tmp_path, policy, adapted(policy, params, ("q_proj",)))
    file = tmp_path / adapters.WEIGHTS
    stored = safetensors.numpy.load_file(file)
    names = sorted(stored)
    del stored[names[0]]
    stored[names[1]] = stored[names[1]][:1].copy()
    stored["base_model.model.model.elsewhere.lora_A.weight"] = np.zeros((3, 4), np.float32)
    safetensors.numpy.save_file(stored, file)
    with pytest.raises(ValueError, match="don't fit") as caught:
        adapters.load_adapter(tmp_path, policy, params)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 3 and "None" in lines[0] and "unexpected" in lines[2]
    config = json.loads((tmp_path / adapters.CONFIG).read_text())
    (tmp_path / adapters.CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora is not supported"):
        adapters.load_adapter(tmp_path, policy, params)


@pytest.mark.slow
@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_peft_gives_the_same_logits(golden, targets, tmp_path):
    """The adapter on the base, and its merged export, in PEFT and transformers."""
    hf = pytest.importorskip("make_goldens")
    peft = pytest.importorskip("peft")
    family = golden.name.removesuffix("_tiny")
    model = hf.CLASSES[family][1].from_pretrained(golden).eval()
    policy, params = vr.load_pretrained(golden)
    changed = adapted(policy, params, targets)
    with np.load(golden / "goldens.npz") as stored:
        batch = hf.Batch(*(stored[name] for name in hf.Batch._fields))
        base = stored["logits"]
    real = batch.attention_mask.astype(bool)
    adapters.save_adapter(tmp_path / "adapter", policy, changed, base=str(golden))
    vr.save_pretrained(tmp_path / "merged", policy, changed)
    ours = np.asarray(vr.logits(policy, changed, *batch))[real]
    merged = hf.CLASSES[family][1].from_pretrained(tmp_path / "merged").eval()
    theirs = hf.logits(merged, batch)[real]
    limit = 1e-4 * theirs.std()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    modules = {n for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    assert len(modules) == sum(
        leaf.shape[0] if leaf.ndim == 3 else 1
        for name, leaf in flat(changed).items()
        if name.endswith("lora_a")
    )
    theirs = hf.logits(wrapped.base_model.model, batch)[real]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)
    assert np.abs(theirs - base[real]).max() > 100 * limit


def test_adapters_lie_like_their_kernels_on_a_mesh(golden):
    from vrrl_jax.parallel.mesh import make_mesh

    policy, params = vr.load_pretrained(golden, mesh=make_mesh(fsdp=2, tensor=2))
    placed = flat(lora.place(policy, adapted(policy, params)))
    plain_policy, plain = vr.load_pretrained(golden)
    alone = flat(adapted(plain_policy, plain))
    split = 0
    for name, leaf in placed.items():
        assert isinstance(leaf, jax.Array)
        np.testing.assert_array_equal(leaf, alone[name])
        split += "lora_" in name and not leaf.sharding.is_fully_replicated
    assert split > 10
