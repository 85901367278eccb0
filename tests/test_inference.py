"""The functions for people who hold a Hugging Face processor's arrays."""

import jax
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import answer, inference, testing
from vrrl_jax.envs.frozenlake import render
from vrrl_jax.processing import processor as processing

NEW = 6


def prompt(processor, text, images):
    """(ids, pixel values, grids) of one user turn."""
    pictures = [processing.picture(processor, image) for image in images]
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    ids = processing.chat_prompt(processor, [{"role": "user", "content": content}], pictures)
    values = [processing.pixel_values(processor, p) for p in pictures]
    return ids, values, [p.grid for p in pictures]


@pytest.fixture(scope="module")
def prompts(tiny_processor):
    """No picture, one, and two of different sizes."""
    one, two, three = testing.tiny_maps(3)
    images = [[], [render(one, cell=28)], [render(two, cell=28)[:28], render(three, cell=14)]]
    texts = ["Solve", "Verify", "up down left"]
    return [prompt(tiny_processor, *pair) for pair in zip(texts, images, strict=True)]


def batch(prompts, side):
    """Arguments as a processor returns them for a padded batch."""
    width = max(len(ids) for ids, _, _ in prompts) + 2
    ids, mask = np.full((len(prompts), width), 322), np.zeros((len(prompts), width), int)
    for b, (row, _, _) in enumerate(prompts):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[b, at], mask[b, at] = row, 1
    values = np.concatenate([v for _, values, _ in prompts for v in values])
    grids = np.array([grid for _, _, grids in prompts for grid in grids])
    return ids, mask, values, grids


def alone(row):
    ids, values, grids = row
    pictures = {"pixel_values": np.concatenate(values), "image_grid_thw": grids} if values else {}
    return {"input_ids": ids[None], **pictures}


# --- logits and embeddings -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(tiny, prompts, side):
    arrays = batch(prompts, side)
    out = np.asarray(vr.logits(*tiny, *arrays))
    assert out.shape == (*arrays[0].shape, 384) and out.dtype == np.float32
    assert not out[arrays[1] == 0].any()
    for b, row in enumerate(prompts):
        wanted = np.asarray(vr.logits(*tiny, **alone(row)))[0]
        np.testing.assert_allclose(out[b, arrays[1][b] == 1], wanted, atol=2e-5)
        assert wanted.std() > 0.1


def test_pictures_are_embedded_in_their_order(tiny, prompts):
    _, _, values, grids = batch(prompts, "left")
    whole = np.asarray(vr.encode_images(*tiny, values, grids))
    counts = [int(np.prod(grid)) // 4 for grid in grids]
    assert whole.shape == (sum(counts), 32) and len(set(counts)) > 1
    start = patch = 0
    for grid, n in zip(grids, counts, strict=True):
        one = vr.encode_images(*tiny, values[patch : patch + 4 * n], grid[None])
        np.testing.assert_allclose(whole[start : start + n], one, atol=2e-5)
        start, patch = start + n, patch + 4 * n


def test_values_need_a_critic(tiny, prompts):
    policy, params = testing.tiny_policy(value_head=True)
    rows = inference.one_a_row(policy, inference.split_rows(policy, *batch(prompts, "left")))
    assert not np.asarray(vr.values(policy, params, rows)).any()  # it starts at zero
    params["value_head"]["bias"] = np.float32([2.0])
    np.testing.assert_allclose(vr.values(policy, params, rows), 2.0)
    with pytest.raises(ValueError, match="value_head=True"):
        vr.values(*tiny, rows)


# --- inputs that don't fit -----------------------------------------------------------------------


def test_rows_get_their_own_pictures(tiny, prompts):
    for side in ("left", "right"):
        sequences = inference.split_rows(tiny[0], *batch(prompts, side))
        for sequence, (ids, values, grids) in zip(sequences, prompts, strict=True):
            assert sequence.tokens.tolist() == ids.tolist()
            assert [p.grid for p in sequence.pictures] == grids
            for picture, value in zip(sequence.pictures, values, strict=True):
                assert (picture.patches == value).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda i, m, v, g: (i[0], m, v, g), r"must be \[B, T\]"),
        (lambda i, m, v, g: (i, m[:, 1:], v, g), "attention_mask"),
        (lambda i, m, v, g: (i, m * (np.arange(m.shape[1]) != 3), v, g), "holes"),
        (lambda i, m, v, g: (i, m, v, None), "come together"),
        (lambda i, m, v, g: (i, m, None, g), "come together"),
        (lambda i, m, v, g: (i, m, v[:-4], g), "patches"),
        (lambda i, m, v, g: (i, m, v[:0], g[:0]), "patches"),
        (lambda i, m, v, g: (i, m, None, None), "row 1: picture tokens and pictures differ"),
        (lambda i, m, v, g: (np.where(i == 334, 5, i), m, v, g), "3 pictures have no tokens"),
        (lambda i, m, v, g: (i, m, v[: -int(np.prod(g[-1]))], g[:-1]), "row 2"),
        (lambda i, m, v, g: (np.where(np.cumsum(i == 334, 1) == 1, 5, i), m, v, g), "row 1"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tiny, prompts, spoil, words):
    arrays = batch(prompts, "right")
    with pytest.raises(ValueError, match=words):
        vr.logits(*tiny, *spoil(*arrays))
    with pytest.raises(ValueError, match=words):
        vr.generate(*tiny, *spoil(*arrays), max_new_tokens=1, temperature=0)


# --- generation ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(tiny, prompts):
    """Two samples a prompt, nothing stops them."""
    options = {"max_new_tokens": NEW, "n": 2, "stop_ids": (), "key": jax.random.key(1)}
    return jax.device_get(vr.generate(*tiny, *batch(prompts, "left"), **options))


def test_samples_come_prompt_by_prompt(tiny, prompts, sampled):
    assert sampled.tokens.shape == sampled.logprobs.shape == (6, NEW)
    assert sampled.lengths.tolist() == [NEW] * 6
    assert len({tuple(row) for row in sampled.tokens}) == 6
    assert not np.isin(sampled.tokens, tiny[0].placeholder_ids).any()
    # A sample depends on neither the number of samples nor the side of the padding.
    one = vr.generate(
        *tiny,
        *batch(prompts, "right"),
        max_new_tokens=NEW,
        stop_ids=(),
        key=jax.random.key(1),
    )
    assert np.asarray(one.tokens).tolist() == sampled.tokens[::2].tolist()
    np.testing.assert_allclose(one.logprobs, sampled.logprobs[::2], atol=1e-4)


def test_logprobs_are_those_of_the_finished_text(tiny, prompts, sampled):
    """Scored again in one pass; `token_logprobs` excludes placeholders as the sampler does."""
    policy, params = tiny
    arrays = batch(prompts, "left")
    for i in range(2):
        grown = np.concatenate([arrays[0], sampled.tokens[i::2]], 1)
        mask = np.concatenate([arrays[1], np.ones((3, NEW), int)], 1)
        sequences = inference.split_rows(policy, grown, mask, *arrays[2:])
        rows = inference.one_a_row(policy, sequences)
        scored = np.asarray(vr.token_logprobs(policy, params, rows))
        for b, sequence in enumerate(sequences):
            n = sequence.tokens.size
            wanted = sampled.logprobs[2 * b + i]
            np.testing.assert_allclose(scored[b, n - NEW : n], wanted, atol=1e-4)


def test_greedy_follows_the_logits(tiny, prompts):
    policy, params = tiny
    out = vr.generate(
        *tiny, *batch(prompts, "left"), max_new_tokens=NEW, n=2, stop_ids=(), temperature=0
    )
    tokens = np.asarray(out.tokens)
    assert (tokens[::2] == tokens[1::2]).all()
    for b, row in enumerate(prompts):
        ids = row[0]
        for token in tokens[2 * b][:2]:
            raw = np.array(vr.logits(policy, params, **alone((ids, *row[1:]))))[0, -1]
            raw[list(policy.placeholder_ids)] = -np.inf
            assert raw.argmax() == token
            ids = np.append(ids, token)
    # The likeliest of one is no draw.
    top = vr.generate(
        *tiny,
        *batch(prompts, "left"),
        max_new_tokens=NEW,
        n=2,
        stop_ids=(),
        top_k=1,
        key=jax.random.key(5),
    )
    assert np.asarray(top.tokens).tolist() == tokens.tolist()


def test_a_stop_token_ends_a_sample_and_is_its_last(tiny, prompts, sampled):
    stop = int(sampled.tokens[2, 2])
    out = jax.device_get(
        vr.generate(
            *tiny,
            *batch(prompts, "left"),
            max_new_tokens=NEW,
            n=2,
            stop_ids=(stop,),
            key=jax.random.key(1),
        )
    )
    for row, whole, n in zip(out.tokens, sampled.tokens, out.lengths, strict=True):
        first = [*whole.tolist(), stop].index(stop) + 1
        assert n == min(first, NEW)
        assert row.tolist() == whole.tolist()[:n] + [0] * (NEW - n)
    assert out.lengths[2] <= 3


def test_end_tokens_default_to_the_generation_config_s(tiny, prompts, sampled):
    import dataclasses

    policy = dataclasses.replace(tiny[0], stop_ids=(int(sampled.tokens[0, 0]),))
    options = {"max_new_tokens": NEW, "n": 2, "key": jax.random.key(1)}
    out = vr.generate(policy, tiny[1], *batch(prompts, "left"), **options)
    assert int(out.lengths[0]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 2}, "key"),
        ({"max_new_tokens": 0, "temperature": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2, "temperature": 0, "n": 0}, "n=0"),
        ({"max_new_tokens": 2, "temperature": -1}, "temperature"),
        ({"max_new_tokens": 2, "temperature": 0, "top_k": -1}, "top_k"),
        ({"max_new_tokens": 2, "temperature": 0, "top_p": 0}, "top_p"),
        ({"max_new_tokens": 2, "temperature": 0, "top_p": 1.5}, "top_p"),
    ],
)
def test_options_out_of_range_are_named(tiny, prompts, options, words):
    with pytest.raises(ValueError, match=words):
        vr.generate(*tiny, **alone(prompts[0]), **options)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_an_answer_is_the_text_of_what_was_generated(tiny, tiny_processor, pictures):
    images = [render(map, cell=28) for map in testing.tiny_maps(pictures)]
    options = {"max_new_tokens": NEW, "temperature": 0, "stop_ids": ()}
    text = answer.answer(*tiny, tiny_processor, "Solve", images, **options)
    row = alone(prompt(tiny_processor, "Solve", images))
    out = vr.generate(*tiny, **row, **options)
    assert text == processing.decode(tiny_processor, np.asarray(out.tokens)[0])
