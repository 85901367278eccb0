"""Prompts as tokens: where the text marks its pictures, there they stand."""

import numpy as np
import pytest

from vrrl_jax.processing import encode
from vrrl_jax.processing import processor as processing
from vrrl_jax.types import Prompt

IMAGE = {"type": "image"}


def picture(width: int, seed: int = 0) -> np.ndarray:
    """28 pixels high: a token every 28 pixels."""
    return np.random.default_rng(seed).integers(0, 256, (28, width, 3), np.uint8)


NARROW, WIDE = picture(56, 1), picture(84, 2)


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("text", "pictures", "content"),
    [
        ("a<image>b<image>c", (NARROW, WIDE), [said("a"), IMAGE, said("b"), IMAGE, said("c")]),
        ("<image><image>b", (NARROW, WIDE), [IMAGE, IMAGE, said("b")]),
        ("b<image>", (WIDE,), [said("b"), IMAGE]),
        ("no marks", (NARROW, WIDE), [IMAGE, IMAGE, said("no marks")]),
        ("no picture", (), [said("no picture")]),
    ],
)
def test_marks_place_the_pictures_and_without_them_they_come_first(
    tiny_processor, text, pictures, content
):
    encoded = [processing.picture(tiny_processor, image) for image in pictures]
    message = {"role": "user", "content": content}
    wanted = {
        encode.first_chunk: processing.chat_prompt(tiny_processor, [message], encoded),
        encode.next_chunk: processing.next_user(tiny_processor, message, encoded),
    }
    for chunk_of, tokens in wanted.items():
        chunk = chunk_of(tiny_processor, Prompt(text, pictures))
        assert chunk.tokens.tolist() == tokens.tolist()
        # Runs of placeholders are as long as their pictures, in the pictures' order.
        shown = (chunk.tokens == tiny_processor.ids.image_pad).astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], shown, [0]])))
        runs = (edges[1::2] - edges[::2]).tolist()
        assert runs == [image.shape[1] // 28 for image in pictures]
        assert [p.grid for p in chunk.pictures] == [p.grid for p in encoded]
        assert all(a is b for a, b in zip(chunk.images, pictures, strict=True))
        # The mark itself is never read out.
        assert encode.MARK not in processing.decode(tiny_processor, chunk.tokens.tolist())


@pytest.mark.parametrize(
    ("text", "pictures", "words"),
    [
        ("a<image>b", (), "0 pictures, but 1"),
        ("a<image>b", (NARROW, WIDE), "2 pictures, but 1"),
        ("<image>a<image>", (NARROW,), "1 pictures, but 2"),
    ],
)
def test_marks_and_pictures_that_differ_in_number_are_an_error(
    tiny_processor, text, pictures, words
):
    for chunk_of in (encode.first_chunk, encode.next_chunk):
        with pytest.raises(ValueError, match=words):
            chunk_of(tiny_processor, Prompt(text, pictures))


@pytest.mark.parametrize("chunk_of", [encode.first_chunk, encode.next_chunk])
def test_an_opening_stands_where_the_assistant_speaks(tiny_processor, chunk_of):
    plain = chunk_of(tiny_processor, Prompt("Which?", (WIDE,)))
    opened = chunk_of(tiny_processor, Prompt("Which?", (WIDE,), "<think> so"))
    forced = processing.encode(tiny_processor, "<think> so")
    assert opened.tokens.tolist() == [*plain.tokens.tolist(), *forced]
    assert opened.tokens.dtype == plain.tokens.dtype
