"""What transformers computed with the checkpoints in goldens/, needing neither torch nor a network.

Made by scripts/make_goldens.py with transformers 5.23 and torch 2.13 (float32, CPU).
"""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import inference, layout
from vrrl_jax.models.policy import Params, Policy
from vrrl_jax.types import Sequence

GOLDENS = pathlib.Path(__file__).parent / "goldens"
STEPS = 8


class Golden(NamedTuple):
    policy: Policy
    params: Params
    inputs: tuple[np.ndarray, ...]
    logits: np.ndarray
    embeddings: np.ndarray
    positions: np.ndarray
    greedy: np.ndarray


@pytest.fixture(scope="module", params=["qwen2_5_vl_tiny", "qwen3_vl_tiny"])
def golden(request) -> Golden:
    directory = GOLDENS / request.param
    with np.load(directory / "goldens.npz") as stored:
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        outputs = {k: stored[k] for k in ("logits", "embeddings", "positions", "greedy")}
        inputs = tuple(stored[name] for name in names)
    return Golden(*vr.load_pretrained(directory), inputs, **outputs)


def test_logits(golden):
    ours = np.asarray(vr.logits(golden.policy, golden.params, *golden.inputs))
    real = golden.inputs[1].astype(bool)
    limit = 1e-4 * golden.logits[real].std()
    np.testing.assert_allclose(ours, golden.logits, rtol=0, atol=limit)
    # What they are compared with is no constant: another row's logits are far away.
    assert np.abs(ours[0, -1] - golden.logits[1, -1]).max() > 1e4 * limit


def test_embeddings(golden):
    ours = vr.encode_images(golden.policy, golden.params, *golden.inputs[2:])
    limit = 2e-5 * golden.embeddings.std()
    np.testing.assert_allclose(ours, golden.embeddings, rtol=0, atol=limit)


def test_positions(golden):
    ids, mask, _, grids = golden.inputs
    grids = [tuple(grid) for grid in grids.tolist()]
    place = golden.policy.config.layout
    for r, real in enumerate(mask.astype(bool)):
        count = int((ids[r, real] == golden.policy.config.vision_start_token_id).sum())
        mine, grids = grids[:count], grids[count:]
        ours, _ = layout.positions(ids[r, real], mine, place)
        np.testing.assert_array_equal(ours, golden.positions[:, r, real])


# --- sampling ------------------------------------------------------------------------------------


def sample(golden, **options):
    options = {"max_new_tokens": STEPS, "stop_ids": (-1,)} | options
    return vr.generate(golden.policy, golden.params, *golden.inputs, **options)


def test_greedy(golden):
    ours = sample(golden, temperature=0.0)
    np.testing.assert_array_equal(ours.tokens, golden.greedy)
    np.testing.assert_array_equal(ours.lengths, STEPS)


def completed(golden, out) -> tuple:
    """Packed rows of prompts with their completions, and where the completions stand."""
    prompts = inference.split_rows(golden.policy, *golden.inputs)
    whole = [
        Sequence(np.concatenate([p.tokens, np.asarray(t)[:n]]).astype(np.int32), p.pictures)
        for p, t, n in zip(prompts, out.tokens, out.lengths, strict=True)
    ]
    rows = inference.one_a_row(golden.policy, whole, tokens=64)
    at = [slice(p.tokens.size, w.tokens.size) for p, w in zip(prompts, whole, strict=True)]
    return rows, at


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_decode_logprobs_equal_teacher_forced_ones(golden, temperature):
    out = sample(golden, temperature=temperature, key=jax.random.key(3))
    rows, at = completed(golden, out)
    forced = np.asarray(vr.token_logprobs(golden.policy, golden.params, rows, temperature))
    for r, here in enumerate(at):
        n = here.stop - here.start
        np.testing.assert_allclose(out.logprobs[r, :n], forced[r, here], rtol=0, atol=2e-5)
        assert not np.asarray(out.logprobs)[r, n:].any()


def test_a_bfloat16_sampler_rounds_where_training_does(golden):
    """Measured 0.009 and 0.012 nats a token; 0.042 and 0.045 if norms were rounded as well."""
    half = golden._replace(policy=dataclasses.replace(golden.policy, compute_dtype="bfloat16"))
    out = sample(half, temperature=1.0, key=jax.random.key(0), max_new_tokens=16)
    rows, at = completed(half, out)
    forced = np.asarray(vr.token_logprobs(half.policy, half.params, rows))
    off = [np.abs(out.logprobs[r] - forced[r, here]) for r, here in enumerate(at)]
    assert 1e-4 < np.mean(off) < 0.025


def test_stop_token_ends_a_row(golden):
    stop = int(golden.greedy[1, 3])
    out = sample(golden, temperature=0.0, stop_ids=(stop,))
    for tokens, logprobs, n, whole in zip(
        *map(np.asarray, (out.tokens, out.logprobs, out.lengths)), golden.greedy, strict=True
    ):
        said = np.flatnonzero(whole == stop)
        assert n == (said[0] + 1 if said.size else STEPS)
        np.testing.assert_array_equal(tokens[:n], whole[:n])
        assert not tokens[n:].any()
        assert not logprobs[n:].any()
    assert 1 < out.lengths[1] <= 4


def test_stop_ids_default_to_the_generation_config(golden):
    assert golden.policy.stop_ids == (2,)
    said = dataclasses.replace(golden.policy, stop_ids=(int(golden.greedy[1, 3]),))
    by_default = sample(golden._replace(policy=said), temperature=0.0, stop_ids=None)
    given = sample(golden, temperature=0.0, stop_ids=said.stop_ids)
    np.testing.assert_array_equal(by_default.tokens, given.tokens)


def test_placeholders_are_never_sampled(golden):
    """Not even by a policy whose logits prefer them by far."""
    config = golden.policy.config
    banned = [config.image_token_id, config.video_token_id]
    kernel = np.array(golden.params["lm_head"]["kernel"])
    biased = kernel.copy()
    biased[:, banned] = 40 * kernel[:, :2]
    eager = golden._replace(params=golden.params | {"lm_head": {"kernel": biased}})
    raw = np.asarray(vr.logits(eager.policy, eager.params, *eager.inputs))[:, -1]
    assert np.isin(raw.argmax(-1), banned).any(), "the bias must prefer placeholders somewhere"
    for temperature, seed in ((0.0, 0), (1.0, 1), (1.0, 2), (5.0, 3)):
        out = sample(eager, temperature=temperature, key=jax.random.key(seed))
        assert not np.isin(out.tokens, banned).any()
        assert np.isfinite(out.logprobs).all()


def test_samples_depend_on_key_row_and_temperature(golden):
    draw = lambda seed, t: np.asarray(sample(golden, temperature=t, key=jax.random.key(seed))[0])
    np.testing.assert_array_equal(draw(5, 1.0), draw(5, 1.0))
    assert (draw(5, 1.0) != draw(6, 1.0)).any()
    cold = np.asarray(sample(golden, temperature=1e-4, key=jax.random.key(7)).tokens)
    np.testing.assert_array_equal(cold, golden.greedy)


def test_group_shares_a_prompt(golden):
    out = sample(golden, n=3, temperature=1.0, key=jax.random.key(11))
    assert out.tokens.shape == (12, STEPS)
    tokens = np.asarray(out.tokens).reshape(4, 3, STEPS)
    assert all(len({tuple(s) for s in group}) == 3 for group in tokens.tolist())
    same = sample(golden, n=3, temperature=0.0)
    np.testing.assert_array_equal(same.tokens, np.repeat(golden.greedy, 3, 0))


def test_bad_sampling_options_are_refused(golden):
    for options, words in [
        ({"temperature": 1.0}, "key"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 0.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 0.0, "top_k": -1}, "top_k"),
        ({"temperature": 0.0, "max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": 0.0, "n": 0}, "n=0"),
    ]:
        with pytest.raises(ValueError, match=words):
            sample(golden, **options)


# --- what callers get wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, m, p, g: (i[0], m, p, g), r"input_ids must be \[B, T\]"),
        (lambda i, m, p, g: (i, m[:, :-1], p, g), "attention_mask"),
        (lambda i, m, p, g: (i, m, p, None), "come together"),
        (lambda i, m, p, g: (i, m, p[:-1], g), "asks for"),
        (lambda i, m, p, g: (i, m, p[:-36], g[:-1]), "row 3"),
        (lambda i, m, p, g: (i, m, p, g[::-1]), "row|run of"),
        (lambda i, m, p, g: (i, m, *[np.concatenate([a, a[-36:]]) for a in (p, g)]), "asks for"),
        (lambda i, m, p, g: (i, np.roll(m, 3, 1), p, g), "holes"),
        (lambda i, m, p, g: (np.where(i == 92, 5, i), m, p, g), "no tokens"),
    ],
)
def test_inconsistent_inputs_are_refused(golden, change, words):
    with pytest.raises(ValueError, match=words):
        vr.logits(golden.policy, golden.params, *change(*golden.inputs))
