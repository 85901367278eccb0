"""Large leaves go straight to the devices and come straight back: the same bits as small ones."""

import pathlib

import jax
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax.checkpoint import hf, names, weights
from vrrl_jax.models.policy import abstract_params
from vrrl_jax.parallel.mesh import make_mesh
from vrrl_jax.parallel.rules import param_shardings

GOLDENS = pathlib.Path(__file__).parents[1] / "models" / "goldens"
FAMILIES = ("qwen2_5_vl_tiny", "qwen3_vl_tiny")


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def files(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        (None, "bfloat16"),
        ({"fsdp": 4, "tensor": 2}, "float32"),
        pytest.param(None, "float32", marks=SLOW),
        pytest.param({"fsdp": 4, "tensor": 2}, "bfloat16", marks=SLOW),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, "float32", marks=SLOW),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, "bfloat16", marks=SLOW),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_is_what_is_put_together_on_the_host(monkeypatch, tmp_path, family, sizes, dtype):
    mesh = sizes and make_mesh(**sizes)
    _, plain = vr.load_pretrained(GOLDENS / family, dtype=dtype)
    policy, hosted = vr.load_pretrained(GOLDENS / family, dtype=dtype, mesh=mesh)
    monkeypatch.setattr(weights, "SLACK", 0)
    streamed = hf.load_params(GOLDENS / family, policy, dtype)
    same(hosted, plain)
    same(streamed, plain)
    if mesh is not None:
        wanted = param_shardings(hosted, mesh, head_dim=policy.config.text.head_dim)
        for tree in (hosted, streamed):
            assert jax.tree.map(lambda a: a.sharding, tree) == wanted

    # And out: file for file what one device writes.
    options = {"max_shard_size": 50_000}
    alone, _ = vr.load_pretrained(GOLDENS / family, dtype=dtype)
    out = vr.save_pretrained(tmp_path / "streamed", policy, streamed, **options)
    monkeypatch.undo()
    assert files(out) == files(vr.save_pretrained(tmp_path / "plain", alone, plain, **options))
    assert len(files(out)) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_devices_are_sent_their_parts_alone(monkeypatch, family):
    mesh = make_mesh(fsdp=4, tensor=2)
    policy = hf.load_policy(GOLDENS / family, mesh=mesh)
    sent = {}

    class Asked(np.ndarray):
        def __getitem__(self, index):
            part = np.asarray(self)[index]
            sent.setdefault(self.name, []).append(part.size)
            return part

    def mapped(stored):
        array = genuine(stored).view(Asked)
        array.name = names.canonical(stored.name, policy.config)
        return array

    genuine = weights.mapped
    monkeypatch.setattr(weights, "mapped", mapped)
    monkeypatch.setattr(weights, "SLACK", 0)
    params = dict(hf._flatten(hf.load_params(GOLDENS / family, policy)))
    split = 0
    for tensor in names.tensors(policy.config, dict(hf._flatten(abstract_params(policy)))):
        if tensor.kind == "conv":
            continue
        leaf = params[tensor.ours]
        layers = 1 if tensor.layer is None else leaf.shape[0]
        part = leaf.addressable_shards[0].data.size // layers
        assert sent[tensor.name] == [part] * 8
        split += part < leaf.size // layers
    assert split > 20


def test_what_a_device_copy_takes_is_let_go(monkeypatch):
    """Numpy's copy of an array would stay with it as long as the array lives."""
    policy, params = vr.load_pretrained(GOLDENS / FAMILIES[0], mesh=make_mesh(fsdp=4, tensor=2))
    flat = dict(hf._flatten(params))
    for _ in weights.published(flat, names.tensors(policy.config, flat), "float32"):
        pass
    assert all(leaf._npy_value is None for leaf in flat.values())
