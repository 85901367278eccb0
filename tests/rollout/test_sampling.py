"""The law of sampling: frequencies against softmax, truncation against a loop."""

import dataclasses

import jax
import numpy as np
import pytest

from vrrl_jax.rollout import sampling
from vrrl_jax.rollout.sampling import Sampling

VOCAB, DRAWS = 16, 20_000
IMAGE, VIDEO = 3, 11


@pytest.fixture(scope="module")
def policy(tiny):
    config = dataclasses.replace(tiny[0].config, image_token_id=IMAGE, video_token_id=VIDEO)
    return dataclasses.replace(tiny[0], config=config)


@pytest.fixture(scope="module")
def raw():
    """Logits whose likeliest tokens are the placeholders."""
    logits = np.random.default_rng(0).normal(0, 1.5, VOCAB).astype(np.float32)
    logits[[IMAGE, VIDEO]] = 6.0
    return logits


_draw = jax.jit(sampling.draw, static_argnums=0)
_keys = jax.vmap(jax.random.key)(np.arange(DRAWS))
_truncate = jax.jit(sampling.truncate)


def draw(policy, raw, settings):
    return jax.device_get(_draw(policy, np.tile(raw, (DRAWS, 1)), _keys, settings))


def softmax(raw, temperature=1.0):
    x = np.float64(raw) / temperature
    x[[IMAGE, VIDEO]] = -np.inf
    p = np.exp(x - x.max())
    return p / p.sum()


def kept(p, top_k, top_p):
    """The truncated distribution, token by token from the likeliest on."""
    out, before = np.zeros_like(p), 0.0
    order = np.argsort(-p, kind="stable")
    order = order[:top_k] if top_k else order
    total = p[order].sum()
    for token in order:
        if before / total >= top_p:
            break
        out[token] = p[token]
        before += p[token]
    return out / out.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.7), (1.5, 6, 0.6)],
)
def test_frequencies_follow_the_law(policy, raw, temperature, top_k, top_p):
    p = kept(softmax(raw, temperature), top_k, top_p)
    out = draw(policy, raw, Sampling(temperature, top_k, top_p))
    seen = np.bincount(out.token, minlength=VOCAB) / DRAWS
    # Four deviations of a binomial share; exactly none outside the support.
    assert (np.abs(seen - p) <= 4 * np.sqrt(p * (1 - p) / DRAWS)).all()
    # The distribution drawn from, and the one that training reproduces.
    np.testing.assert_allclose(out.sampled_logprob, np.log(p[out.token]), atol=1e-5)
    whole = softmax(raw, temperature)
    np.testing.assert_allclose(out.logprob, np.log(whole[out.token]), atol=1e-5)


def test_greedy_takes_the_likeliest_and_records_temperature_one(policy, raw):
    out = draw(policy, raw, Sampling(0.0))
    p = softmax(raw)
    assert (out.token == p.argmax()).all()
    np.testing.assert_allclose(out.logprob, np.log(p.max()), atol=1e-5)


@pytest.mark.parametrize("settings", [Sampling(0.0), Sampling(0.0, 1, 0.1), Sampling(5.0, 2)])
def test_placeholders_are_never_drawn(policy, raw, settings):
    out = draw(policy, raw, settings)
    assert not np.isin(out.token, (IMAGE, VIDEO)).any()
    assert np.isfinite(out.logprob).all() and np.isfinite(out.sampled_logprob).all()


@pytest.mark.parametrize("top_k", [0, 1, 3, VOCAB, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_truncation_equals_a_loop(top_k, top_p):
    logits = np.random.default_rng(1).normal(0, 2, (50, VOCAB)).astype(np.float32)
    out = np.asarray(_truncate(logits, top_k, top_p))
    for x, y in zip(logits, out, strict=True):
        p = np.exp(np.float64(x)) / np.exp(np.float64(x)).sum()
        inside = kept(p, min(top_k, VOCAB), top_p) > 0
        assert (np.isfinite(y) == inside).all()
        assert (y[inside] == x[inside]).all()


def test_ties_at_the_edge_of_top_k_stay():
    logits = np.float32([[2.0, 1.0, 1.0, 0.0]])
    assert np.isfinite(np.asarray(_truncate(logits, 2, 1.0))).tolist() == [
        [True, True, True, False]
    ]


def test_a_row_s_key_is_its_own_and_independent_of_its_place():
    key = jax.random.key(3)
    questions, samples = np.int32([4, 4, 5, 5]), np.int32([0, 1, 0, 1])

    def data(step, turn, order=slice(None), seed=key):
        out = sampling.row_keys(seed, step, questions[order], samples[order], turn)
        return [tuple(k) for k in np.asarray(jax.random.key_data(out))]

    base = data(0, 0)
    assert data(0, 0, slice(None, None, -1)) == base[::-1]
    assert data(0, 0, slice(2, 3)) == base[2:3]
    others = base + data(1, 0) + data(0, 1) + data(0, 0, seed=jax.random.key(4))
    assert len(set(others)) == 16
