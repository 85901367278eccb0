"""Proof that the parity tests see: each of these mistakes is ten times over their limits."""

import dataclasses

import jax
import numpy as np
import pytest

from vrrl_jax import layout
from vrrl_jax.models import decoder, layers, qwen2_5_vision
from vrrl_jax.models.policy import Policy

parity = pytest.importorskip("parity")
LIMIT, VISION_LIMIT = parity.LIMIT, parity.VISION_LIMIT
logits_off, embeddings_off = parity.logits_off, parity.embeddings_off


def traced_anew(policy: Policy, number: int) -> Policy:
    """A policy equal in effect (float pictures aren't normalised) that no jit cache knows."""
    return dataclasses.replace(policy, image_mean=(float(number),) * 3)


def with_text(policy, **changes):
    text = dataclasses.replace(policy.config.text, **changes)
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, text=text))


def with_vision(policy, **changes):
    tower = dataclasses.replace(policy.config.vision, **changes)
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, vision=tower))


def test_swapped_mrope_sections_fail(plain):
    assert plain.policy.config.text.mrope_section == (1, 2, 3)
    assert logits_off(plain, with_text(plain.policy, mrope_section=(1, 3, 2))) > 10 * LIMIT


def test_windows_off_fail(plain):
    wrong = with_vision(plain.policy, full_blocks=(0, 1, 2))
    assert embeddings_off(plain, wrong) > 10 * VISION_LIMIT
    assert logits_off(plain, wrong) > 10 * LIMIT


def test_tanh_gelu_fails(plain, monkeypatch):
    monkeypatch.setattr(
        qwen2_5_vision.nn, "gelu", lambda x, approximate: jax.nn.gelu(x, approximate=True)
    )
    assert embeddings_off(plain, traced_anew(plain.policy, 1)) > 10 * VISION_LIMIT


def _window_order(order, coords, frames, units):
    return order, coords, frames, np.sort(units)  # never put back into reading order


def _reversed_windows(order, coords, frames, units):
    return order, coords, frames, units.max() - units


def _swapped_axes(order, coords, frames, units):
    return order, coords[:, ::-1], frames, units


@pytest.mark.parametrize("mistake", [_window_order, _reversed_windows, _swapped_axes])
def test_wrong_patch_layout_fails(plain, monkeypatch, mistake):
    right = layout.patch_order
    monkeypatch.setattr(layout, "patch_order", lambda *args: mistake(*right(*args)))
    assert embeddings_off(plain) > 10 * VISION_LIMIT
    assert logits_off(plain) > 10 * LIMIT


def _one_dimensional(out, after):
    return np.broadcast_to(np.arange(out.shape[1], dtype=np.int32), out.shape), after


def _height_for_width(out, after):
    return out[[0, 2, 1]], after


def _no_gap_after_picture(out, after):
    """Text after a picture goes on at its first position, not past its largest side."""
    jump = np.diff(out[0], prepend=0)
    return out - np.cumsum(np.maximum(jump - 1, 0)).astype(np.int32), after


@pytest.mark.parametrize("mistake", [_one_dimensional, _height_for_width, _no_gap_after_picture])
def test_wrong_positions_fail(plain, monkeypatch, mistake):
    right = layout.positions
    monkeypatch.setattr(layout, "positions", lambda *args: mistake(*right(*args)))
    assert logits_off(plain) > 10 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mrope_section": (2, 1, 3)},
        {"mrope_section": (3, 2, 1)},
        {"rope_theta": 1e5},
        {"eps": 1e-3},
    ],
    ids=str,
)
def test_wrong_text_config_fails(plain, changes):
    assert logits_off(plain, with_text(plain.policy, **changes)) > 10 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"full_blocks": (0,)}, {"full_blocks": ()}, {"window": 3}, {"rope_theta": 1e3}],
    ids=str,
)
def test_wrong_vision_config_fails(plain, changes):
    assert embeddings_off(plain, with_vision(plain.policy, **changes)) > 10 * VISION_LIMIT


@pytest.mark.slow
def test_tiled_heads_fail(plain, monkeypatch):
    def tiled(q, k, v, mask):
        share = q.shape[2] // k.shape[2]
        k, v = jax.numpy.tile(k, (1, 1, share, 1)), jax.numpy.tile(v, (1, 1, share, 1))
        return layers.attend(q, k, v, mask)

    monkeypatch.setattr(decoder, "attend", tiled)
    assert logits_off(plain, traced_anew(plain.policy, 2)) > 10 * LIMIT


@pytest.mark.slow
def test_interleaved_rotation_fails(plain, monkeypatch):
    def interleaved(x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = cos[..., None, :], sin[..., None, :]
        out = jax.numpy.stack([a * cos - b * sin, b * cos + a * sin], -1)
        return out.reshape(x.shape)

    monkeypatch.setattr(decoder, "rotate", interleaved)
    assert logits_off(plain, traced_anew(plain.policy, 3)) > 10 * LIMIT
