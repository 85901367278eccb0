"""The policy against transformers on random checkpoints.

At most 1e-4 of the reference's standard deviation may be lost to float32 rounding (measured: 1e-5);
test_parity_sharp.py and test_parity_sharp_qwen3.py show what that limit would catch. More
architectures are in test_parity_wider.py, the cache over several turns in test_parity_cache.py. Run
with -s to see the numbers.
"""

import numpy as np
import pytest

import vrrl_jax as vr

parity = pytest.importorskip("parity")
hf = parity.hf


@pytest.fixture(params=parity.CASES)
def case(request, references):
    return references(request.param)


# --- equal ---------------------------------------------------------------------------------------


def test_logits_left_padded(case):
    assert parity.logits_off(case) <= parity.LIMIT


def test_logits_right_padded(case):
    batch = parity.make_batch(case.policy, parity.MIXED, "right")
    ours = vr.logits(case.policy, case.params, *batch)
    mask = batch.attention_mask
    assert parity.compare("right", ours, hf.logits(case.model, batch), mask) <= parity.LIMIT
    assert not np.asarray(ours)[mask == 0].any()
    # The side changes nothing but where a row stands.
    left = np.asarray(vr.logits(case.policy, case.params, *case.batch))
    np.testing.assert_array_equal(np.asarray(ours)[mask == 1], left[case.batch.attention_mask == 1])


def test_vision_embeddings(case):
    assert parity.embeddings_off(case) <= parity.VISION_LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
def test_position_ids(case, side):
    parity.check_positions(case, parity.make_batch(case.policy, parity.MIXED, side))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs(case, temperature):
    assert parity.logprobs_off(case, temperature=temperature) <= parity.LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_only(either, side):
    batch = parity.make_batch(either.policy, [[9], [4], [1]], side)
    theirs = hf.logits(either.model, batch)
    ours = vr.logits(either.policy, either.params, batch.input_ids, batch.attention_mask)
    assert parity.compare("text only", ours, theirs, batch.attention_mask) <= parity.LIMIT


def test_one_row_without_mask(either):
    batch = parity.make_batch(either.policy, [[3, (4, 3), 2]], "left")
    theirs = hf.logits(either.model, batch)
    ours = vr.logits(either.policy, either.params, *batch._replace(attention_mask=None))
    assert parity.compare("one row", ours, theirs) <= parity.LIMIT


def test_rows_do_not_see_each_other(either):
    """Changed text and pixels of two rows leave the others as they are, bit for bit."""
    together = np.asarray(vr.logits(either.policy, either.params, *either.batch))
    alone = parity.make_batch(either.policy, parity.MIXED, "left")
    ids, pixels = alone.input_ids.copy(), alone.pixel_values.copy()
    real = alone.attention_mask[0].astype(bool)
    ids[0, real] = (ids[0, real] + 11) % 80 + 3
    first, second = np.cumsum(alone.image_grid_thw.prod(-1))[:2]
    pixels[first:second] *= -1  # the first picture of row 2
    changed = np.asarray(
        vr.logits(either.policy, either.params, ids, alone.attention_mask, pixels, alone[3])
    )
    np.testing.assert_array_equal(changed[[1, 3, 4]], together[[1, 3, 4]])
    assert np.abs(changed[2] - together[2]).max() > 0.1
    assert np.abs(changed[0] - together[0]).max() > 0.1


# --- greedy --------------------------------------------------------------------------------------

STEPS = 24


def check_greedy(at: parity.Reference):
    assert parity.greedy_off(at, STEPS) <= parity.LIMIT
    theirs = hf.greedy(at.model, at.batch, STEPS)
    options = {"max_new_tokens": STEPS, "temperature": 0.0}
    right = parity.make_batch(at.policy, parity.MIXED, "right")
    again = vr.generate(at.policy, at.params, *right, stop_ids=(-1,), **options)
    np.testing.assert_array_equal(again.tokens, theirs)

    # An end token from the middle of a row ends the rows that say it.
    stop = int(theirs[1, STEPS // 2])
    theirs = hf.greedy(at.model, at.batch, STEPS, stop)
    ours = vr.generate(at.policy, at.params, *at.batch, stop_ids=(stop,), **options)
    np.testing.assert_array_equal(np.asarray(ours.tokens)[:, : theirs.shape[1]], theirs)
    for row, n in zip(theirs, np.asarray(ours.lengths), strict=True):
        said = np.flatnonzero(row == stop)
        assert n == (said[0] + 1 if said.size else STEPS)
    assert ours.lengths.min() < STEPS


def test_greedy_token_for_token(either):
    check_greedy(either)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat tied", "qwen3 tied"])
def test_greedy_token_for_token_tied(name, references):
    check_greedy(references(name))
