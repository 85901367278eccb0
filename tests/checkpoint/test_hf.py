"""Hugging Face directories in and out: the same bits, the same logits, split over a mesh."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vrrl_jax as vr
from vrrl_jax.parallel.mesh import make_mesh

TINY = pathlib.Path(__file__).parents[1] / "models" / "goldens" / "qwen2_5_vl_tiny"
HEAD = "value_head.safetensors"


def tensors(directory) -> dict[str, np.ndarray]:
    """Everything in a directory's weight files."""
    out = {}
    for path in sorted(pathlib.Path(directory).glob("model*.safetensors")):
        part = load_file(path)
        assert not part.keys() & out.keys()
        out |= part
    return out


def same(ours, theirs):
    """Equal keys, dtypes and bits."""
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype, key
        assert ours[key].shape == value.shape, key
        assert ours[key].tobytes() == value.tobytes(), key


def same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert all(x.dtype == y.dtype for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


# --- out and in again ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["5GB", "50kB", 20_000, 1], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bit_identical(tmp_path, dtype, limit):
    policy, params = vr.load_pretrained(TINY, dtype=dtype)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    vr.save_pretrained(tmp_path, policy, params, max_shard_size=limit)
    original = {k: v.astype(np.dtype(dtype)) for k, v in tensors(TINY).items()}
    same(tensors(tmp_path), original)
    again = vr.load_pretrained(tmp_path, dtype=dtype)
    assert again[0] == policy
    same_params(again[1], params)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == dtype

    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if limit == "5GB":
        assert files == ["model.safetensors"]
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in original.values())
    n = len(files)
    assert files == [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    assert n == len(original) if limit == 1 else 2 < n < len(original)
    for name in files:
        held = load_file(tmp_path / name)
        assert {k for k, v in index["weight_map"].items() if v == name} == held.keys()
        size = sum(v.nbytes for v in held.values())
        assert size <= (50_000 if limit == "50kB" else limit) or len(held) == 1


def test_written_dtype_can_be_chosen(tmp_path):
    policy, params = vr.load_pretrained(TINY)
    vr.save_pretrained(tmp_path, policy, params, dtype="bfloat16")
    written = tensors(tmp_path)
    same(written, {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors(TINY).items()})
    # Read back as float32 master weights and written as bfloat16 again: nothing is lost.
    policy, params = vr.load_pretrained(tmp_path)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    vr.save_pretrained(tmp_path / "again", policy, params, dtype="bfloat16")
    same(tensors(tmp_path / "again"), written)


def test_saving_over_shards_leaves_no_stale_ones(tmp_path):
    policy, params = vr.load_pretrained(TINY)
    vr.save_pretrained(tmp_path, policy, params, max_shard_size=20_000)
    policy, params = vr.load_pretrained(tmp_path)
    doubled = jax.tree.map(lambda a: 2 * a, params)
    vr.save_pretrained(tmp_path, policy, doubled)  # onto its own source
    assert [p.name for p in tmp_path.glob("model*")] == ["model.safetensors"]
    same_params(vr.load_pretrained(tmp_path)[1], doubled)


def test_tied_head_is_not_written(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (copy / "config.json").write_text(json.dumps(config))
    # Some published tied checkpoints hold a head all the same; it is not used.
    policy, params = vr.load_pretrained(copy)
    assert policy.config.text.tied
    assert "lm_head" not in params
    vr.save_pretrained(tmp_path / "out", policy, params)
    wanted = tensors(TINY)
    del wanted["lm_head.weight"]
    same(tensors(tmp_path / "out"), wanted)
    same_params(vr.load_pretrained(tmp_path / "out")[1], params)


def test_module_names_are_read_like_published_ones(copy):
    def rename(key):
        if key.startswith("visual."):
            return f"model.{key}"
        return key.replace("model.", "model.language_model.", 1)

    weights = {rename(k): v for k, v in tensors(copy).items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "model.language_model.norm.weight" in tensors(copy)
    same_params(vr.load_pretrained(copy)[1], vr.load_pretrained(TINY)[1])


def test_files_beside_the_weights_travel(copy, tmp_path):
    (copy / "tokenizer.json").write_text("{}")
    (copy / "merges.txt").write_text("a b")
    (copy / "notes.txt").write_text("not part of a model")
    policy, params = vr.load_pretrained(copy)
    vr.save_pretrained(tmp_path / "default", policy, params)
    vr.save_pretrained(tmp_path / "explicit", policy, params, source=TINY)
    names = lambda name: {p.name for p in (tmp_path / name).iterdir()}
    base = {"config.json", "generation_config.json", "model.safetensors"}
    assert names("default") == base | {"tokenizer.json", "merges.txt"}
    assert names("explicit") == base


def test_saving_needs_a_source(tmp_path):
    policy, params = vr.load_pretrained(TINY)
    with pytest.raises(FileNotFoundError, match=r"no config\.json here"):
        vr.save_pretrained(tmp_path / "out", policy, params, source=tmp_path)


@pytest.mark.parametrize("size", ["5 apples", "GB", "-1GB", ""])
def test_bad_shard_sizes_are_refused(size, tmp_path):
    policy, params = vr.load_pretrained(TINY)
    with pytest.raises(ValueError, match="max_shard_size"):
        vr.save_pretrained(tmp_path, policy, params, max_shard_size=size)


# --- transformers reads what we write ------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"max_shard_size": 20_000}, {"dtype": "bfloat16"}], ids=str
)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_exports_load_in_transformers(tmp_path, family, options):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model = {
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    }[family]
    source = TINY.with_name(f"{family}_tiny")
    policy, params = vr.load_pretrained(source)
    vr.save_pretrained(tmp_path, policy, params, **options)
    ours, info = model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    dtype = torch.bfloat16 if "dtype" in options else torch.float32
    theirs = model.from_pretrained(source, dtype=dtype)
    assert {p.dtype for p in ours.parameters()} == {dtype}

    with np.load(source / "goldens.npz") as stored:
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        inputs = {name: torch.from_numpy(stored[name]) for name in names}
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == 92).long()
    with torch.no_grad():
        logits = [m.eval()(**inputs).logits.float().numpy() for m in (ours, theirs)]
    np.testing.assert_array_equal(*logits)
    assert logits[0].std() > 1


# --- value head ----------------------------------------------------------------------------------


def test_value_head_has_a_file_of_its_own(tmp_path):
    policy, params = vr.load_pretrained(TINY, value_head=True)
    assert not np.any(params["value_head"]["kernel"])
    rng = np.random.default_rng(0)
    head = {"kernel": rng.standard_normal((48, 1)), "bias": rng.standard_normal(1)}
    params["value_head"] = jax.tree.map(np.float32, head)
    vr.save_pretrained(tmp_path, policy, params, dtype="bfloat16")
    assert load_file(tmp_path / HEAD).keys() == {"value_head.kernel", "value_head.bias"}
    assert "value_head" not in str(tensors(tmp_path).keys())
    again = vr.load_pretrained(tmp_path, value_head=True)[1]
    same_params(again["value_head"], params["value_head"])  # float32 whatever the rest is
    assert "value_head" not in vr.load_pretrained(tmp_path)[1]


def test_misshapen_value_head_is_refused(copy):
    save_file({"value_head.kernel": np.zeros((3, 1), np.float32)}, copy / HEAD)
    with pytest.raises(ValueError, match="value_head"):
        vr.load_pretrained(copy, value_head=True)


# --- a mesh --------------------------------------------------------------------------------------


def test_mesh_splits_parameters_and_changes_no_logits():
    mesh = make_mesh(fsdp=4, tensor=2)
    policy, params = vr.load_pretrained(TINY)
    sharded_policy, sharded = vr.load_pretrained(TINY, mesh=mesh)
    same_params(sharded, params)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    held = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in jax.tree.leaves(sharded):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert len(held) == 8
    assert max(held.values()) <= 0.3 * total
    print(f"a device holds at most {max(held.values()) / total:.0%}")

    with np.load(TINY / "goldens.npz") as stored:
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        inputs = [stored[name] for name in names]
    alone = np.asarray(vr.logits(policy, params, *inputs))
    together = np.asarray(vr.logits(sharded_policy, sharded, *inputs))
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4 * alone.std())


def test_mesh_export_is_the_same_file(tmp_path):
    policy, params = vr.load_pretrained(TINY, mesh=make_mesh(fsdp=4, tensor=2))
    vr.save_pretrained(tmp_path, policy, params)
    same(tensors(tmp_path), tensors(TINY))
