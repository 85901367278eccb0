"""Proof that the parity tests see: each of these mistakes is ten times over their limits.

Qwen2.5-VL, and what both families share; test_parity_sharp_qwen3.py has what is Qwen3-VL's own.
"""

import jax
import numpy as np
import pytest

from vrrl_jax import layout
from vrrl_jax.models import attention, decoder, qwen2_5_vision

parity = pytest.importorskip("parity")
LIMIT, VISION_LIMIT = parity.LIMIT, parity.VISION_LIMIT
logits_off, embeddings_off = parity.logits_off, parity.embeddings_off
logprobs_off, traced_anew = parity.logprobs_off, parity.traced_anew
with_text, with_vision = parity.with_text, parity.with_vision


def test_a_perturbed_mrope_section_fails(plain):
    """One frequency moved from the width to the height."""
    assert plain.policy.config.text.mrope_section == (1, 2, 3)
    wrong = with_text(plain.policy, mrope_section=(1, 3, 2))
    assert logits_off(plain, wrong) > 10 * LIMIT
    assert logprobs_off(plain, wrong) > 10 * LIMIT


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


def _two_window_indices(order, coords, frames, units):
    """The first unit and the last change places on the way in, and not back on the way out."""
    order, coords = order.copy(), coords.copy()
    for array in (order, coords):
        first, last = (slice(4 * units[i], 4 * units[i] + 4) for i in (0, -1))
        array[first], array[last] = array[last].copy(), array[first].copy()
    return order, coords, frames, units


def _two_units_in_each_other_s_window(order, coords, frames, units):
    """They are put back to where they belong: nothing is wrong but whom they attended to."""
    order, coords, frames, _ = _two_window_indices(order, coords, frames, units)
    units = units.copy()
    units[[0, -1]] = units[[-1, 0]]
    return order, coords, frames, units


@pytest.mark.parametrize(
    "mistake",
    [
        _window_order,
        _reversed_windows,
        _swapped_axes,
        _two_window_indices,
        _two_units_in_each_other_s_window,
    ],
)
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
def test_wrong_positions_fail(either, monkeypatch, mistake):
    right = layout.positions
    monkeypatch.setattr(layout, "positions", lambda *args: mistake(*right(*args)))
    assert logits_off(either) > 10 * LIMIT
    with pytest.raises(AssertionError):
        parity.check_positions(either, either.batch)


@pytest.mark.slow
def test_other_weights_say_other_tokens(either):
    """The greedy tests compare choices; a head that is off by a hundredth changes some."""
    rng = np.random.default_rng(0)
    kernel = np.asarray(either.params["lm_head"]["kernel"])
    noise = 0.05 * kernel.std() * rng.standard_normal(kernel.shape, np.float32)
    off = either._replace(params=either.params | {"lm_head": {"kernel": kernel + noise}})
    with pytest.raises(AssertionError):
        parity.greedy_off(off, 24)


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
def test_tiled_heads_fail(either, monkeypatch):
    def tiled(q, k, v, mask):
        share = q.shape[2] // k.shape[2]
        k, v = jax.numpy.tile(k, (1, 1, share, 1)), jax.numpy.tile(v, (1, 1, share, 1))
        return attention.attend(q, k, v, mask)

    monkeypatch.setattr(decoder, "attend", tiled)
    assert logits_off(either, traced_anew(either.policy, 2)) > 10 * LIMIT


@pytest.mark.slow
def test_interleaved_rotation_fails(either, monkeypatch):
    def interleaved(x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = cos[..., None, :], sin[..., None, :]
        out = jax.numpy.stack([a * cos - b * sin, b * cos + a * sin], -1)
        return out.reshape(x.shape)

    monkeypatch.setattr(decoder, "rotate", interleaved)
    assert logits_off(either, traced_anew(either.policy, 3)) > 10 * LIMIT
