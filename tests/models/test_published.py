"""The published configurations in configs/models: transformers reads them, and so does the loader,
and both build models of the published size."""

import json
import pathlib

import jax
import pytest

from vrrl_jax.models.config import from_hf
from vrrl_jax.models.policy import Policy, abstract_params

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "models"
# Parameters of the published checkpoints, in billions.
PUBLISHED = {
    "qwen2_5_vl_3b": 3.75,
    "qwen2_5_vl_7b": 8.29,
    "qwen2_5_vl_32b": 33.45,
    "qwen2_5_vl_72b": 73.4,
    "qwen3_vl_2b": 2.13,
    "qwen3_vl_4b": 4.44,
    "qwen3_vl_8b": 8.77,
    "qwen3_vl_32b": 33.4,
}


def raw(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def read(name):
    """The configuration as transformers takes it."""
    transformers = pytest.importorskip("transformers")
    kinds = {"qwen2_5_vl": "Qwen2_5_VLConfig", "qwen3_vl": "Qwen3VLConfig"}
    fields = raw(name)
    return getattr(transformers, kinds[fields["model_type"]]).from_dict(fields)


def test_every_file_has_a_published_size():
    assert {path.stem for path in FOLDER.iterdir()} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_it(name):
    fields, config = raw(name), read(name)
    text = fields.get("text_config", fields)
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert getattr(config.text_config, field) == text[field]
    assert config.tie_word_embeddings == fields["tie_word_embeddings"]
    assert config.vision_config.out_hidden_size == text["hidden_size"]
    # Half of a head's width has a frequency each, and an axis each.
    rope = config.text_config.rope_parameters
    head_dim = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    assert rope["rope_theta"] == text["rope_theta"] and 2 * sum(rope["mrope_section"]) == head_dim


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_policy_has_the_published_size(name):
    """Each tensor is compared in tests/checkpoint/test_published.py."""
    policy = Policy(from_hf(raw(name), name))
    ours = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(policy)))
    assert ours == pytest.approx(PUBLISHED[name] * 1e9, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_loader_reads_what_transformers_reads(name):
    """Fields that a file leaves out have transformers' defaults, and none is read as another."""
    ours, theirs = from_hf(raw(name), name), read(name)
    text, vision = theirs.text_config, theirs.vision_config
    rope = text.rope_parameters
    assert ours.text.heads == text.num_attention_heads
    assert ours.text.kv_heads == text.num_key_value_heads
    assert ours.text.eps == text.rms_norm_eps
    assert ours.text.rope_theta == rope["rope_theta"]
    assert list(ours.text.mrope_section) == list(rope["mrope_section"])
    assert ours.text.tied == theirs.tie_word_embeddings
    assert ours.image_token_id == theirs.image_token_id
    assert ours.video_token_id == theirs.video_token_id
    assert ours.vision.heads == vision.num_heads
    assert ours.vision.patch == vision.patch_size
    assert ours.vision.merge == vision.spatial_merge_size
    assert ours.vision.temporal == vision.temporal_patch_size
    if theirs.model_type == "qwen3_vl":
        assert list(ours.vision.deepstack) == list(vision.deepstack_visual_indexes)
        assert ours.vision.positions**2 == vision.num_position_embeddings
    else:
        unit = vision.spatial_merge_size * vision.patch_size
        assert ours.vision.window == vision.window_size // unit
        assert list(ours.vision.full_blocks) == list(vision.fullatt_block_indexes)
