"""The policy against transformers on random checkpoints, and proof that the comparison is sharp.

Every difference is measured against the standard deviation of the reference; at most 1e-4 of it
may be lost to float32 rounding (measured: 1e-5). Run with -s to see the numbers.
"""

import dataclasses
import functools
import importlib
import json
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import safetensors.numpy

import vrrl_jax as vr
from vrrl_jax import inference, layout
from vrrl_jax.models import config as configs
from vrrl_jax.models import decoder, layers, vision
from vrrl_jax.models import policy as models
from vrrl_jax.models.policy import Params, Policy

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
hf = importlib.import_module("make_goldens")

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
}
WIDER: dict[str, dict[str, Any]] = {
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
    "deep": {
        "seed": 13,
        "std": 0.2,
        "text": {"num_hidden_layers": 6},
        "vision": {"depth": 8, "fullatt_block_indexes": [1, 3, 7]},
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


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: reference(folder / name, **CASES[name]))


@pytest.fixture(scope="module", params=CASES)
def case(request, references) -> Reference:
    return references(request.param)


@pytest.fixture(scope="module")
def plain(references) -> Reference:
    return references("nested untied")


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


# --- equal ---------------------------------------------------------------------------------------


def test_logits_left_padded(case):
    assert logits_off(case) <= LIMIT


def test_logits_right_padded(case):
    batch = make_batch(case.policy, MIXED, "right")
    ours = vr.logits(case.policy, case.params, *batch)
    mask = batch.attention_mask
    assert compare("right", ours, hf.logits(case.model, batch), mask) <= LIMIT
    assert not np.asarray(ours)[mask == 0].any()
    # The side changes nothing but where a row stands.
    left = np.asarray(vr.logits(case.policy, case.params, *case.batch))
    np.testing.assert_array_equal(np.asarray(ours)[mask == 1], left[case.batch.attention_mask == 1])


def test_vision_embeddings(case):
    assert embeddings_off(case) <= VISION_LIMIT


def test_position_ids(case):
    theirs = hf.positions(case.model, case.batch)
    grids = [tuple(grid) for grid in case.batch.image_grid_thw.tolist()]
    place = case.policy.config.layout
    for r, real in enumerate(case.batch.attention_mask.astype(bool)):
        tokens = case.batch.input_ids[r, real]
        count = sum(isinstance(part, tuple) for part in MIXED[r])
        ours, after = layout.positions(tokens, [grids.pop(0) for _ in range(count)], place)
        np.testing.assert_array_equal(ours, theirs[:, r, real])
        assert after == ours.max() + 1
    assert not grids


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_only(plain, side):
    batch = make_batch(plain.policy, [[9], [4], [1]], side)
    theirs = hf.logits(plain.model, batch)
    ours = vr.logits(plain.policy, plain.params, batch.input_ids, batch.attention_mask)
    assert compare("text only", ours, theirs, batch.attention_mask) <= LIMIT


def test_one_row_without_mask(plain):
    batch = make_batch(plain.policy, [[3, (4, 3), 2]], "left")
    theirs = hf.logits(plain.model, batch)
    ours = vr.logits(plain.policy, plain.params, *batch._replace(attention_mask=None))
    assert compare("one row", ours, theirs) <= LIMIT


def test_rows_do_not_see_each_other(plain):
    """A row's logits are those it has without the others, up to a last bit."""
    together = np.asarray(vr.logits(plain.policy, plain.params, *plain.batch))
    alone = make_batch(plain.policy, MIXED, "left")
    ids, pixels = alone.input_ids.copy(), alone.pixel_values.copy()
    real = alone.attention_mask[0].astype(bool)
    ids[0, real] = (ids[0, real] + 11) % 80 + 3
    first, second = np.cumsum(alone.image_grid_thw.prod(-1))[:2]
    pixels[first:second] *= -1  # the first picture of row 2
    changed = np.asarray(
        vr.logits(plain.policy, plain.params, ids, alone.attention_mask, pixels, alone[3])
    )
    np.testing.assert_array_equal(changed[[1, 3, 4]], together[[1, 3, 4]])
    assert np.abs(changed[2] - together[2]).max() > 0.1
    assert np.abs(changed[0] - together[0]).max() > 0.1


@pytest.mark.parametrize("kind", ["nested4", "flat"])
@pytest.mark.parametrize("tied", [False, True])
def test_config_layouts_say_the_same(plain, kind, tied):
    raw = json.loads((pathlib.Path(plain.policy.directory) / "config.json").read_text())
    raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = tied
    config = configs.from_hf(raw)
    assert config.text.tied == tied
    assert configs.from_hf(hf.config_layout(raw, kind)) == config


# --- greedy --------------------------------------------------------------------------------------

STEPS = 24


def check_greedy(at: Reference):
    theirs = hf.greedy(at.model, at.batch, STEPS)
    options = {"max_new_tokens": STEPS, "temperature": 0.0}
    ours = vr.generate(at.policy, at.params, *at.batch, stop_ids=(-1,), **options)
    np.testing.assert_array_equal(ours.tokens, theirs)
    np.testing.assert_array_equal(ours.lengths, STEPS)
    right = make_batch(at.policy, MIXED, "right")
    again = vr.generate(at.policy, at.params, *right, stop_ids=(-1,), **options)
    np.testing.assert_array_equal(again.tokens, ours.tokens)

    # An end token from the middle of a row ends the rows that say it.
    stop = int(theirs[1, STEPS // 2])
    theirs = hf.greedy(at.model, at.batch, STEPS, stop)
    ours = vr.generate(at.policy, at.params, *at.batch, stop_ids=(stop,), **options)
    np.testing.assert_array_equal(np.asarray(ours.tokens)[:, : theirs.shape[1]], theirs)
    for row, n in zip(theirs, np.asarray(ours.lengths), strict=True):
        said = np.flatnonzero(row == stop)
        assert n == (said[0] + 1 if said.size else STEPS)
    assert ours.lengths.min() < STEPS


def test_greedy_token_for_token(plain):
    check_greedy(plain)


@pytest.mark.slow
def test_greedy_token_for_token_tied(tmp_path):
    check_greedy(reference(tmp_path, **CASES["flat tied"]))


# --- sharp: each of these mistakes is far outside the limit --------------------------------------


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
    monkeypatch.setattr(vision.nn, "gelu", lambda x, approximate: jax.nn.gelu(x, approximate=True))
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


# --- slow: the same over more architectures and mistakes -----------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDER)
def test_wider(name, tmp_path):
    at = reference(tmp_path, **WIDER[name])
    assert logits_off(at) <= LIMIT
    assert embeddings_off(at) <= LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_as_near_to_float64_as_transformers(seed, tmp_path):
    """At deviation 0.5 float32 alone costs transformers 2e-4; ours must not lose more."""
    at = reference(tmp_path, seed=seed, std=0.5)
    pictures = (at.batch.pixel_values, at.batch.image_grid_thw)
    exact_model = at.model.double()
    exact_batch = at.batch._replace(pixel_values=at.batch.pixel_values.astype(np.float64))
    exact = hf.logits(exact_model, exact_batch)
    mask = at.batch.attention_mask
    ours = compare("ours", vr.logits(at.policy, at.params, *at.batch), exact, mask)
    assert ours <= LIMIT + compare("transformers", at.logits, exact, mask)
    exact = hf.embeddings(exact_model, exact_batch)
    ours = compare("ours", vr.encode_images(at.policy, at.params, *pictures), exact)
    assert ours <= VISION_LIMIT + compare("transformers", at.embeddings, exact)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_gradients(plain, remat, tmp_path):
    """Of the mean log-probability of the text, every parameter, recomputed blocks or not."""
    batch = make_batch(plain.policy, MIXED, "right")
    labels = np.where(batch.attention_mask > 0, batch.input_ids, -100)
    labels[batch.input_ids == plain.policy.config.image_token_id] = -100
    shown = torch.from_numpy(labels[:, 1:])
    plain.model.zero_grad()
    plain.model.model.rope_deltas = None
    raw = plain.model(**hf.torch_inputs(plain.model, batch)).logits[:, :-1]
    raw[..., list(plain.policy.placeholder_ids)] = -1e30
    torch.nn.functional.cross_entropy(raw.flatten(0, 1), shown.flatten()).backward()
    policy = dataclasses.replace(plain.policy, remat=remat)
    rows = inference.one_a_row(policy, inference.split_rows(policy, *batch), labels.shape[1])
    weights = (labels >= 0) & (np.arange(labels.shape[1]) > 0)

    def loss(params):
        hidden = models.hidden_states(policy, params, rows)
        logprobs, _ = models.token_logprobs(policy, params, hidden, rows.tokens)
        return -(logprobs * weights).sum() / weights.sum()

    # Gradients have the shape of parameters: the export names and turns them like weights.
    vr.save_pretrained(tmp_path, policy, jax.jit(jax.grad(loss))(plain.params))
    ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    worst = 0.0
    for name, parameter in plain.model.named_parameters():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        theirs = parameter.grad.numpy()
        worst = max(worst, np.abs(ours.pop(name) - theirs).max() / np.abs(theirs).max())
    print(f"gradients: {worst:.1e} of their largest")
    assert not ours
    assert worst <= 1e-4


@pytest.mark.slow
def test_frames_of_a_clip_do_not_attend_to_each_other(plain):
    values = plain.batch.pixel_values[: 3 * 4 * 6 + 16]
    clip = plain.batch._replace(
        pixel_values=values, image_grid_thw=np.array([[3, 4, 6], [1, 4, 4]])
    )
    ours = vr.encode_images(plain.policy, plain.params, values, clip.image_grid_thw)
    assert compare("clip", ours, hf.embeddings(plain.model, clip)) <= VISION_LIMIT


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
