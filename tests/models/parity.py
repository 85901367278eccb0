"""One checkpoint on both sides: what parity tests compare, and how far off it is.

Differences are measured in standard deviations of the reference. Importing this needs torch.
"""

import dataclasses
from typing import Any, NamedTuple

import make_goldens as hf
import numpy as np

import vrrl_jax as vr
from vrrl_jax import inference, layout
from vrrl_jax.models.policy import Params, Policy

LIMIT = 1e-4  # of logits
VISION_LIMIT = 2e-5  # tighter: tanh for erf in the merger's GELU moves embeddings by 5e-4
# Text only, one picture, two of different sizes (truncated, whole and single-unit windows), one in
# a later turn, one at the start of the row; strips and a single unit among them.
MIXED = [
    [7],
    [4, (3, 5), 3],
    [2, (2, 2), (5, 3), 2],
    [3, (1, 7), 6, (4, 4), 4],
    [(8, 1), 3, (1, 1), 2],
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


def scores(at: Reference, raw, ids, temperature: float = 1.0) -> np.ndarray:
    """log p of `ids` [...] under `raw` [..., V], float64, placeholders excluded; 0 for them."""
    raw = np.asarray(raw, np.float64) / temperature
    raw[..., list(at.policy.placeholder_ids)] = -np.inf
    raw -= raw.max(-1, keepdims=True)
    logprobs = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    picked = np.take_along_axis(logprobs, np.asarray(ids)[..., None], -1)[..., 0]
    return np.where(np.isfinite(picked), picked, 0)


def logprobs_off(at: Reference, policy=None, temperature: float = 1.0) -> float:
    """Of every token but the first of each row and the placeholders."""
    policy = policy or at.policy
    rows = inference.one_a_row(policy, inference.split_rows(policy, *at.batch))
    dense = np.asarray(vr.token_logprobs(policy, at.params, rows, temperature))
    ours, theirs = [], []
    for r, real in enumerate(at.batch.attention_mask.astype(bool)):
        tokens = at.batch.input_ids[r, real][1:]
        text = tokens != policy.config.image_token_id
        theirs.append(scores(at, at.logits[r, real][:-1], tokens, temperature)[text])
        ours.append(dense[r, 1 : tokens.size + 1][text])
    return compare("log-probs", np.concatenate(ours), np.concatenate(theirs))


def check_positions(at: Reference, batch: hf.Batch) -> None:
    """Position ids, every one of them, and where each row goes on."""
    theirs = hf.positions(at.model, batch)
    place = at.policy.config.layout
    sequences = inference.split_rows(at.policy, *batch)
    for r, (sequence, real) in enumerate(
        zip(sequences, batch.attention_mask.astype(bool), strict=True)
    ):
        grids = [picture.grid for picture in sequence.pictures]
        ours, after = layout.positions(sequence.tokens, grids, place)
        np.testing.assert_array_equal(ours, theirs[:, r, real])
        assert after == ours.max() + 1


def greedy_off(at: Reference, steps: int) -> float:
    """Checks that greedy decoding says the same tokens; how far off their log-probs are."""
    theirs = hf.greedy(at.model, at.batch, steps)
    options = {"max_new_tokens": steps, "temperature": 0.0, "stop_ids": (-1,)}
    ours = vr.generate(at.policy, at.params, *at.batch, **options)
    np.testing.assert_array_equal(ours.tokens, theirs)
    np.testing.assert_array_equal(ours.lengths, steps)
    whole = at.batch._replace(
        input_ids=np.concatenate([at.batch.input_ids, theirs], 1),
        attention_mask=np.pad(at.batch.attention_mask, ((0, 0), (0, steps)), constant_values=1),
    )
    raw = hf.logits(at.model, whole)[:, -steps - 1 : -1]
    return compare("decoded log-probs", ours.logprobs, scores(at, raw, theirs))


# --- mistakes ------------------------------------------------------------------------------------


def traced_anew(policy: Policy, number: int) -> Policy:
    """A policy equal in effect (float pictures aren't normalised) that no jit cache knows."""
    return dataclasses.replace(policy, image_mean=(float(number),) * 3)


def with_text(policy: Policy, **changes) -> Policy:
    text = dataclasses.replace(policy.config.text, **changes)
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, text=text))


def with_vision(policy: Policy, **changes) -> Policy:
    tower = dataclasses.replace(policy.config.vision, **changes)
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, vision=tower))
