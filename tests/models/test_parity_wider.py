"""The policy against transformers over a grid of architectures, its gradients, and its rounding."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import vrrl_jax as vr
from vrrl_jax import inference
from vrrl_jax.checkpoint import names
from vrrl_jax.models import policy as models

torch = pytest.importorskip("torch")
parity = pytest.importorskip("parity")
hf = parity.hf

pytestmark = pytest.mark.slow


QWEN2_5: dict[str, dict[str, Any]] = {
    "one key-value head": {"seed": 3, "std": 0.35, "text": {"num_key_value_heads": 1}},
    "as many key-value heads": {"seed": 4, "text": {"num_key_value_heads": 4}, "layout": "nested4"},
    "wide heads": {
        "seed": 5,
        "std": 0.3,
        "text": {
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 6, 6],
            },
        },
        "tied": True,
    },
    "no windows": {"seed": 6, "vision": {"fullatt_block_indexes": [0, 1, 2]}},
    "windows alone": {"seed": 7, "std": 0.35, "vision": {"fullatt_block_indexes": []}},
    "windows of one unit": {"seed": 8, "vision": {"window_size": 8}},
    "window larger than any picture": {"seed": 9, "vision": {"window_size": 80}},
    "window not a multiple of a unit": {"seed": 10, "vision": {"window_size": 30}},
    "patches of 14": {
        "seed": 11,
        "std": 0.2,
        "vision": {"patch_size": 14, "window_size": 112, "hidden_size": 32, "depth": 5},
    },
    "merge 3": {"seed": 12, "vision": {"spatial_merge_size": 3, "window_size": 24}},
    "interleaved sections": {
        "seed": 14,
        "text": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e3,
                "mrope_section": [1, 1, 1, 1, 1, 1],
            }
        },
    },
    "deep": {
        "seed": 13,
        "std": 0.2,
        "text": {"num_hidden_layers": 6},
        "vision": {"depth": 8, "fullatt_block_indexes": [1, 3, 7]},
    },
    "sections of one axis": {
        "seed": 15,
        "text": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [0, 5, 1],
            }
        },
    },
    "merge 1": {"seed": 16, "vision": {"spatial_merge_size": 1, "window_size": 12}},
    "one channel, one frame a patch": {
        "seed": 17,
        "vision": {"in_channels": 1, "temporal_patch_size": 1},
    },
}


def rope3(section, theta=1e4):
    return {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta,
            "mrope_section": section,
            "mrope_interleaved": True,
        }
    }


QWEN3: dict[str, dict[str, Any]] = {
    "one key-value head": {"seed": 21, "text": {"num_key_value_heads": 1}},
    "as many key-value heads": {"seed": 22, "text": {"num_key_value_heads": 4}, "tied": True},
    "heads of the customary width": {
        "seed": 23,
        "text": {"head_dim": 12} | rope3([2, 2, 2]),
        "layout": "nested4",
    },
    "narrow heads": {"seed": 24, "text": {"head_dim": 6, "hidden_size": 64} | rope3([1, 1, 1])},
    "mostly time": {"seed": 25, "text": rope3([6, 1, 1], 1e6)},
    # The width's section wants more frequencies than there are.
    "sections past the end": {"seed": 26, "text": rope3([1, 3, 4])},
    "sections of one axis": {"seed": 27, "text": rope3([8, 0, 0])},
    "no deepstack": {"seed": 28, "vision": {"deepstack_visual_indexes": []}},
    "deepstack of the last block": {"seed": 29, "vision": {"deepstack_visual_indexes": [3]}},
    "deepstack of every block": {
        "seed": 30,
        "text": {"num_hidden_layers": 5},
        "vision": {"deepstack_visual_indexes": [0, 1, 2, 3]},
    },
    "more features than layers": {
        "seed": 31,
        "text": {"num_hidden_layers": 2},
        "vision": {"deepstack_visual_indexes": [0, 1, 3]},
    },
    "a table of one": {"seed": 32, "vision": {"num_position_embeddings": 1}},
    "a table of four": {"seed": 33, "vision": {"num_position_embeddings": 4}},
    "a table larger than any picture": {"seed": 34, "vision": {"num_position_embeddings": 400}},
    "a table as large as a picture": {"seed": 35, "vision": {"num_position_embeddings": 64}},
    "patches of 16": {
        "seed": 36,
        "std": 0.15,
        "vision": {"patch_size": 16, "hidden_size": 32, "depth": 5},
    },
    "merge 1": {"seed": 37, "vision": {"spatial_merge_size": 1}},
    "merge 3": {"seed": 38, "vision": {"spatial_merge_size": 3}},
    "one channel, one frame a patch": {
        "seed": 39,
        "vision": {"in_channels": 1, "temporal_patch_size": 1},
    },
    "deep": {
        "seed": 40,
        "std": 0.2,
        "text": {"num_hidden_layers": 6},
        "vision": {"depth": 8, "deepstack_visual_indexes": [1, 3, 7]},
    },
}


def check_everything(at: parity.Reference) -> None:
    parity.check_positions(at, at.batch)
    assert parity.embeddings_off(at) <= parity.VISION_LIMIT
    assert parity.logits_off(at) <= parity.LIMIT
    assert parity.logprobs_off(at) <= parity.LIMIT
    assert parity.greedy_off(at, 8) <= parity.LIMIT


@pytest.mark.parametrize("name", QWEN2_5)
def test_qwen2_5(name, tmp_path):
    check_everything(parity.reference(tmp_path, **QWEN2_5[name]))


@pytest.mark.parametrize("name", QWEN3)
def test_qwen3(name, tmp_path):
    check_everything(parity.reference(tmp_path, family="qwen3_vl", **QWEN3[name]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", hf.CLASSES)
def test_as_near_to_float64_as_transformers(family, seed, tmp_path):
    """At deviation 0.5 float32 alone costs transformers 2e-4; ours must not lose more."""
    at = parity.reference(tmp_path, family=family, seed=seed, std=0.5)
    pictures = (at.batch.pixel_values, at.batch.image_grid_thw)
    exact_model = at.model.double()
    exact_batch = at.batch._replace(pixel_values=at.batch.pixel_values.astype(np.float64))
    exact = hf.logits(exact_model, exact_batch)
    mask = at.batch.attention_mask
    ours = parity.compare("ours", vr.logits(at.policy, at.params, *at.batch), exact, mask)
    assert ours <= parity.LIMIT + parity.compare("transformers", at.logits, exact, mask)
    exact = hf.embeddings(exact_model, exact_batch)
    ours = parity.compare("ours", vr.encode_images(at.policy, at.params, *pictures), exact)
    assert ours <= parity.VISION_LIMIT + parity.compare("transformers", at.embeddings, exact)


@pytest.mark.parametrize(
    "name, remat",
    [(name, False) for name in parity.CASES] + [("nested untied", True), ("qwen3 untied", True)],
)
def test_gradients(references, name, remat, tmp_path):
    """Of the mean log-probability of the text, every parameter, recomputed blocks or not."""
    at = references(name)
    batch = parity.make_batch(at.policy, parity.MIXED, "right")
    labels = np.where(batch.attention_mask > 0, batch.input_ids, -100)
    labels[batch.input_ids == at.policy.config.image_token_id] = -100
    shown = torch.from_numpy(labels[:, 1:])
    at.model.zero_grad()
    at.model.model.rope_deltas = None
    raw = at.model(**hf.torch_inputs(at.model, batch)).logits[:, :-1]
    raw[..., list(at.policy.placeholder_ids)] = -1e30
    torch.nn.functional.cross_entropy(raw.flatten(0, 1), shown.flatten()).backward()
    policy = dataclasses.replace(at.policy, remat=remat)
    rows = inference.one_a_row(policy, inference.split_rows(policy, *batch), labels.shape[1])
    weights = (labels >= 0) & (np.arange(labels.shape[1]) > 0)

    def loss(params):
        hidden = models.hidden_states(policy, params, rows)
        logprobs, _ = models.token_logprobs(policy, params, hidden, rows.tokens)
        return -(logprobs * weights).sum() / weights.sum()

    # Gradients have the shape of parameters: the export names and turns them like weights.
    vr.save_pretrained(tmp_path, policy, jax.jit(jax.grad(loss))(at.params))
    ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    worst = 0.0
    for key, parameter in at.model.named_parameters():
        theirs, key = parameter.grad.numpy(), names.canonical(key, policy.config)
        assert np.abs(theirs).max() > 1e-6, f"{key} has no gradient to compare"
        worst = max(worst, np.abs(ours.pop(key) - theirs).max() / np.abs(theirs).max())
    print(f"gradients: {worst:.1e} of their largest")
    assert not ours
    assert worst <= 1e-4


def test_frames_of_a_clip_do_not_attend_to_each_other(either):
    values = either.batch.pixel_values[: 3 * 4 * 6 + 16]
    clip = either.batch._replace(
        pixel_values=values, image_grid_thw=np.array([[3, 4, 6], [1, 4, 4]])
    )
    ours = vr.encode_images(either.policy, either.params, values, clip.image_grid_thw)
    assert parity.compare("clip", ours, hf.embeddings(either.model, clip)) <= parity.VISION_LIMIT
