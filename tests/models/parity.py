"""One checkpoint on both sides: what parity tests compare, and how far off it is.

Differences are measured in standard deviations of the reference. Importing this needs torch.
"""

from typing import Any, NamedTuple

import make_goldens as hf
import numpy as np

import vrrl_jax as vr
from vrrl_jax.models.policy import Params, Policy

LIMIT = 1e-4  # of logits
VISION_LIMIT = 2e-5  # tighter: tanh for erf in the merger's GELU moves embeddings by 5e-4
# Text only, one picture, two of different sizes (truncated, whole and single-unit windows), one in
# a later turn, one at the start of the row.
MIXED = [
    [7],
    [4, (3, 5), 3],
    [2, (2, 2), (5, 3), 2],
    [3, (1, 3), 6, (4, 4), 4],
    [(2, 1), 3],
]
CASES: dict[str, dict[str, Any]] = {
    # Two query heads a key-value head, windows of 2, one full block.
    "nested untied": {"seed": 1},
    # Three query heads a key-value head, windows of 3, two full blocks, other widths and theta.
    "flat tied": {
        "seed": 2,
        "std": 0.2,
        "layout": "flat",
        "tied": True,
        "text": {
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 1, 1],
            },
        },
        "vision": {
            "depth": 4,
            "hidden_size": 32,
            "patch_size": 6,
            "window_size": 36,
            "fullatt_block_indexes": [0, 2],
        },
    },
    # Deepstack of two blocks, interleaved axes, normalised queries and keys, wide heads.
    "qwen3 untied": {"family": "qwen3_vl", "seed": 1},
    # Another head ratio, features of three blocks into a decoder of three layers, a large table.
    "qwen3 tied": {
        "family": "qwen3_vl",
        "seed": 4,
        "std": 0.2,
        "layout": "nested4",
        "tied": True,
        "text": {
            "num_attention_heads": 6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        "vision": {
            "depth": 5,
            "hidden_size": 32,
            "patch_size": 6,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [1, 2, 4],
        },
    },
}


class Reference(NamedTuple):
    """A checkpoint on both sides, and a batch with what transformers makes of it."""

    model: Any
    policy: Policy
    params: Params
    batch: hf.Batch
    logits: np.ndarray
    embeddings: np.ndarray


def reference(directory, rows=MIXED, **case) -> Reference:
    model = hf.random_checkpoint(directory, **case)
    policy, params = vr.load_pretrained(directory)
    batch = make_batch(policy, rows, "left")
    return Reference(
        model, policy, params, batch, hf.logits(model, batch), hf.embeddings(model, batch)
    )


def make_batch(policy, rows, side, seed=3) -> hf.Batch:
    v = policy.config.vision
    features = v.channels * v.temporal * v.patch**2
    return hf.batch(rows, policy.config.text.vocab_size, features, side, seed, v.merge)


def compare(name: str, ours, theirs: np.ndarray, mask=None) -> float:
    """Largest difference in standard deviations of the reference, printed."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    if mask is not None:
        ours, theirs = ours[mask.astype(bool)], theirs[mask.astype(bool)]
    assert np.isfinite(theirs).all() and theirs.std() > 0.3, "a reference that shows nothing"
    relative = float(np.abs(ours - theirs).max() / theirs.std())
    print(f"{name}: {relative:.2e} of {theirs.std():.2f}")
    return relative


def logits_off(at: Reference, policy=None) -> float:
    ours = vr.logits(policy or at.policy, at.params, *at.batch)
    return compare("logits", ours, at.logits, at.batch.attention_mask)


def embeddings_off(at: Reference, policy=None) -> float:
    pictures = (at.batch.pixel_values, at.batch.image_grid_thw)
    ours = vr.encode_images(policy or at.policy, at.params, *pictures)
    return compare("embeddings", ours, at.embeddings)
