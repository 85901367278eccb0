"""Hugging Face directories in and out, and those that are broken."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vrrl_jax as vr
from vrrl_jax.checkpoint import hf
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


@pytest.fixture
def copy(tmp_path):
    """A copy of the checkpoint to break: (directory, edit config, edit tensors)."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(TINY, directory, ignore=shutil.ignore_patterns("*.npz"))
    return directory


def edit(directory, name="config.json", **changes):
    """Changes fields of a JSON file; "section.field" reaches into a section, None deletes."""
    path = directory / name
    raw = json.loads(path.read_text())
    for key, value in changes.items():
        *sections, field = key.split("__")
        node = raw
        for section in sections:
            node = node[section]
        node.pop(field, None)
        if value is not None:
            node[field] = value
    path.write_text(json.dumps(raw))


def rewrite(directory, change):
    """Replaces the weights by change(weights)."""
    weights = change(load_file(directory / "model.safetensors"))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


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
    edit(copy, tie_word_embeddings=True, text_config__tie_word_embeddings=True)
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

    rewrite(copy, lambda weights: {rename(k): v for k, v in weights.items()})
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
def test_exports_load_in_transformers(tmp_path, options):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model = transformers.Qwen2_5_VLForConditionalGeneration
    policy, params = vr.load_pretrained(TINY)
    vr.save_pretrained(tmp_path, policy, params, **options)
    ours, info = model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    dtype = torch.bfloat16 if "dtype" in options else torch.float32
    theirs = model.from_pretrained(TINY, dtype=dtype)
    assert {p.dtype for p in ours.parameters()} == {dtype}

    with np.load(TINY / "goldens.npz") as stored:
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


# --- broken directories --------------------------------------------------------------------------


def test_every_bad_tensor_is_listed(copy):
    def spoil(weights):
        del weights["model.layers.1.mlp.up_proj.weight"]
        del weights["visual.blocks.2.attn.qkv.bias"]
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].copy()
        weights["visual.patch_embed.proj.weight"] = np.zeros((24, 3, 1, 4, 4), np.float32)
        weights["model.layers.2.input_layernorm.weight"] = np.zeros(48, np.float32)
        return weights

    rewrite(copy, spoil)
    with pytest.raises(ValueError, match=r"don't fit config\.json") as caught:
        vr.load_pretrained(copy)
    assert str(copy) in str(caught.value)
    assert str(caught.value).splitlines()[1:] == [
        "  missing model.layers.1.mlp.up_proj.weight",
        "  missing visual.blocks.2.attn.qkv.bias",
        "  unexpected model.layers.2.input_layernorm.weight",
        "  model.norm.weight has shape [47], the configuration says [48]",
        "  visual.patch_embed.proj.weight has shape [24, 3, 1, 4, 4], "
        "the configuration says [24, 3, 2, 4, 4]",
    ]


def test_missing_head_of_an_untied_model(copy):
    rewrite(copy, lambda weights: {k: v for k, v in weights.items() if k != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        vr.load_pretrained(copy)


def sharded(directory):
    policy, params = vr.load_pretrained(directory)
    vr.save_pretrained(directory, policy, params, max_shard_size=50_000)


def spoil_config(directory):
    (directory / "config.json").write_text('{"model_type": "qwen2_5_vl",')


def spoil_index(directory):
    sharded(directory)
    (directory / "model.safetensors.index.json").write_text("{")


def empty_index(directory):
    sharded(directory)
    (directory / "model.safetensors.index.json").write_text("{}")


def lose_shard(directory):
    sharded(directory)
    (directory / "model-00002-of-00007.safetensors").unlink()


def wrong_index(directory):
    sharded(directory)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00007.safetensors"
    path.write_text(json.dumps(index))


def truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (spoil_config, ValueError, r"config\.json: not valid JSON"),
        (spoil_index, ValueError, r"index\.json: not valid JSON"),
        (empty_index, ValueError, r"index\.json.*weight_map"),
        (lose_shard, FileNotFoundError, "missing.*model-00002-of-00007"),
        (wrong_index, ValueError, r"model-00001-of-00007\.safetensors.*model\.norm\.weight"),
        (truncate, ValueError, r"model\.safetensors"),
        (pickled, FileNotFoundError, r"pickled weights are refused \(pytorch_model\.bin\)"),
        (lambda d: (d / "model.safetensors").unlink(), FileNotFoundError, "no model.safetensors"),
        (lambda d: (d / "config.json").unlink(), FileNotFoundError, r"no config\.json here"),
        (shutil.rmtree, FileNotFoundError, r"no config\.json here"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_files_are_named(copy, spoil, error, words):
    spoil(copy)
    with pytest.raises(error, match=words) as caught:
        vr.load_pretrained(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; supported: 'qwen2_5_vl'"),
        ({"model_type": None}, "model_type"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"text_config__use_sliding_window": True}, "use_sliding_window"),
        ({"text_config__hidden_act": "gelu"}, r"text_config\.hidden_act"),
        ({"vision_config__hidden_act": "gelu"}, r"vision_config\.hidden_act"),
        ({"text_config__rope_parameters__rope_type": "yarn"}, "yarn"),
        ({"text_config__rope_parameters__mrope_section": [2, 2, 3]}, "mrope_section"),
        ({"text_config__rope_parameters": None}, "mrope_section"),
        ({"vision_config": None}, "vision_config"),
        ({"vision_config__window_size": None}, "window_size"),
        ({"text_config__hidden_size": None}, "hidden_size"),
    ],
    ids=str,
)
def test_unsupported_configurations_are_named(copy, changes, words):
    edit(copy, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        vr.load_pretrained(copy)
    assert str(copy / "config.json") in str(caught.value)


# --- the files beside ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "text", "stop"),
    [
        (7, 2, (7,)),
        ([7, 8], 2, (7, 8)),
        (None, 2, (2,)),  # the model's own, as transformers takes it
        (None, [2, 3], (2, 3)),
        (None, None, ()),
    ],
)
def test_stop_ids(copy, generation, text, stop):
    edit(copy, "generation_config.json", eos_token_id=generation)
    edit(copy, text_config__eos_token_id=text)
    assert hf.load_policy(copy).stop_ids == stop


def test_null_end_token_is_none(copy):
    raw = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(raw | {"eos_token_id": None}))
    edit(copy, text_config__eos_token_id=5)
    assert hf.load_policy(copy).stop_ids == (5,)


def test_picture_normalisation_is_read(copy):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    settings = {"image_mean": mean, "image_std": std}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    policy = hf.load_policy(copy)
    assert (policy.image_mean, policy.image_std) == (tuple(mean), tuple(std))
