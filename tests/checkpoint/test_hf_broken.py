"""Hugging Face directories that are broken or unsupported, and the settings beside the weights."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vrrl_jax as vr
from vrrl_jax.checkpoint import hf


def edit(directory, name="config.json", **changes):
    """Changes fields of a JSON file; section__field reaches into a section, None deletes."""
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
        ({"model_type": "llama"}, "model_type is 'llama'; supported: qwen2_5_vl, qwen3_vl"),
        ({"model_type": None}, "model_type"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"text_config__use_sliding_window": True}, "use_sliding_window"),
        ({"text_config__hidden_act": "gelu"}, r"text_config\.hidden_act"),
        ({"vision_config__hidden_act": "gelu"}, r"vision_config\.hidden_act"),
        ({"text_config__rope_parameters__rope_type": "yarn"}, "yarn"),
        ({"text_config__rope_parameters__mrope_section": [2, 2, 3]}, "mrope_section"),
        ({"text_config__rope_parameters": None}, "mrope_section"),
        ({"vision_config": None}, "vision_config"),
        ({"text_config__vocab_size": None}, "vocab_size"),
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
