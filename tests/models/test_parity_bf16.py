"""bfloat16 against transformers' bfloat16: how far each is from transformers in float32.

On the machine's own devices: a CPU here, a GPU where jax and torch have one.
"""

import numpy as np
import pytest

import vrrl_jax as vr

torch = pytest.importorskip("torch")
parity = pytest.importorskip("parity")
hf = parity.hf

SEEDS = range(6)  # one model's error is a matter of luck


def error(raw, reference, mask) -> float:
    """Root mean square over the tokens that are real."""
    off = (np.asarray(raw, np.float32) - reference)[mask.astype(bool)]
    return float(np.sqrt((off**2).mean()))


def half(model, batch) -> np.ndarray:
    """transformers' logits with weights and activations in bfloat16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, torch.bfloat16)
    model.model.rope_deltas = None
    inputs = {k: v.to(device) for k, v in hf.torch_inputs(model, batch).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with torch.no_grad():
        return model(**inputs).logits.float().cpu().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_bfloat16_loses_no_more_than_transformers(family, tmp_path):
    ours, theirs = [], []
    for seed in SEEDS:
        directory = tmp_path / str(seed)
        model = hf.random_checkpoint(directory, family=family, seed=seed, std=0.2)
        policy, params = vr.load_pretrained(directory, "bfloat16", compute_dtype="bfloat16")
        batch = parity.make_batch(policy, parity.MIXED, "left")
        # The reference holds the weights that bfloat16 holds.
        model = model.to(torch.bfloat16).float()
        reference = hf.logits(model, batch)
        mask, scale = batch.attention_mask, reference.std()
        ours.append(error(vr.logits(policy, params, *batch), reference, mask) / scale)
        theirs.append(error(half(model, batch), reference, mask) / scale)
    print(f"{family}: ours {np.mean(ours):.4f}, transformers {np.mean(theirs):.4f} of a deviation")
    assert np.mean(ours) <= 1.25 * np.mean(theirs)
    assert np.mean(ours) > 1e-3, "this is no bfloat16"
