"""The processor: everything between people and tokens that a model's directory defines.

`load_processor` reads a Hugging Face directory (tokenizer.json, chat template, image settings)
without transformers; pure functions over the frozen `Processor` do the rest, and give the same ids
and arrays as transformers does.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vrrl_jax import types
from vrrl_jax.processing import chat, images

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Token ids of Qwen's special tokens, each named as its text between the bars."""

    endoftext: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int


# Compared and hashed by identity: it keys the cache of `next_user`.
@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
    """A model's tokenizer, chat template and image settings.

    Attributes:
      directory: where it came from.
      tokenizer: the tokenizer of tokenizer.json, without padding and truncation.
      template: source of the chat template (jinja).
      images: how pictures become patches.
      ids: the special tokens that the package itself speaks of.
      special_tokens: the text of every special token; no message may contain one.
      vocab_size: token ids lie in 0 .. vocab_size - 1 (an embedding may have more rows).
      named_tokens: what the template knows as `eos_token` and the like, (name, text).
    """

    directory: pathlib.Path
    tokenizer: tokenizers.Tokenizer
    template: str
    images: images.ImageSettings
    ids: SpecialIds
    special_tokens: tuple[str, ...]
    vocab_size: int
    named_tokens: tuple[tuple[str, str], ...] = ()


def load_processor(
    directory: str | os.PathLike,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Processor:
    """Reads a processor from a Hugging Face directory.

    Args:
      directory: holds tokenizer.json, a chat template (see `chat.find_template`), and
        preprocessor_config.json or a processor_config.json with an image_processor.
      min_pixels: smallest area of a picture in pixels, in place of the directory's.
      max_pixels: largest area of a picture in pixels, in place of the directory's.

    Raises:
      FileNotFoundError: naming the missing file and what was expected.
      ValueError: for unreadable files, a template with a syntax error, image settings out of
        range, or a tokenizer that lacks one of Qwen's special tokens.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no such directory: {directory}")
    tokenizer = _load_tokenizer(directory / "tokenizer.json")
    template = chat.find_template(directory)
    chat.compile_template(template)
    settings = images.settings_from_config(_image_config(directory))
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    settings = dataclasses.replace(
        settings, **{name: value for name, value in bounds.items() if value is not None}
    )
    ids = {}
    for field in dataclasses.fields(SpecialIds):
        ids[field.name] = tokenizer.token_to_id(f"<|{field.name}|>")
        if ids[field.name] is None:
            raise ValueError(f"{directory / 'tokenizer.json'} lacks the token <|{field.name}|>")
    added = tokenizer.get_added_tokens_decoder()
    special = tuple(added[key].content for key in sorted(added) if added[key].special)
    return Processor(
        directory=directory,
        tokenizer=tokenizer,
        template=template,
        images=settings,
        ids=SpecialIds(**ids),
        special_tokens=special,
        vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        named_tokens=chat.named_tokens(directory),
    )


def _load_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
    import tokenizers  # here, so that using the pictures alone does not load it

    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer.json in {path.parent}: only fast tokenizers are read; one saved as "
            "vocab.json and merges.txt alone has to be saved again with transformers"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is no valid tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _image_config(directory: pathlib.Path) -> Mapping[str, Any]:
    # transformers 5 saves a whole processor into one file, which wins where both are there.
    nested = chat.read_json(directory / "processor_config.json").get("image_processor")
    path = directory / "preprocessor_config.json"
    if nested is None and not path.is_file():
        raise FileNotFoundError(
            f"no preprocessor_config.json in {directory}, and no image_processor in a "
            "processor_config.json"
        )
    return chat.read_json(path) if nested is None else nested


def encode(processor: Processor, text: str) -> list[int]:
    """Token ids of a text, nothing added; special tokens in the text become their ids.

    For text of the program's own. Text from people goes through `chat_prompt` and `next_user`,
    which refuse special tokens.
    """
    return processor.tokenizer.encode(text, add_special_tokens=False).ids


def decode(processor: Processor, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
    """The text of token ids; bytes that are no UTF-8 become the replacement character."""
    ids = np.asarray(ids, dtype=np.int64).tolist()
    return processor.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def chat_prompt(
    processor: Processor,
    messages: Sequence[Mapping[str, Any]],
    pictures: Sequence[types.Picture] = (),
    *,
    add_generation_prompt: bool = True,
) -> np.ndarray:
    """Token ids of a chat, each picture's placeholder repeated once a picture token.

    Args:
      processor: the model's.
      messages: Hugging Face form, [{"role": ..., "content": text or parts}].
      pictures: in the order of the messages' image parts.
      add_generation_prompt: whether the assistant's turn is opened at the end.

    Returns:
      int32 [n].

    Raises:
      ValueError: when the pictures do not match the image parts, or a text contains a special
        token.
    """
    frozen = tuple(chat.freeze(message, processor.special_tokens) for message in messages)
    text = chat.render(processor.template, frozen, add_generation_prompt, processor.named_tokens)
    return _expand(processor, text, chat.pictures_in(frozen), _counts(processor, pictures))


def next_user(
    processor: Processor,
    message: Mapping[str, Any],
    pictures: Sequence[types.Picture] = (),
) -> np.ndarray:
    """Token ids of what follows the end of the assistant's reply when `message` comes next.

    The reply's own <|im_end|> is not among them: it was sampled, or forced. The assistant's next
    turn is opened at the end. Cached by text and picture sizes.

    Args:
      processor: the model's.
      message: the next message, Hugging Face form.
      pictures: in the order of the message's image parts.

    Returns:
      int32 [n], read-only.

    Raises:
      ValueError: as `chat_prompt`; also when the template does not close a reply with <|im_end|>.
    """
    frozen = chat.freeze(message, processor.special_tokens)
    return _next_user(processor, frozen, _counts(processor, pictures))


@functools.lru_cache(maxsize=4096)
def _next_user(processor: Processor, message: chat.Message, counts: tuple[int, ...]) -> np.ndarray:
    text = chat.render_after_reply(
        processor.template, message, "<|im_end|>", processor.named_tokens
    )
    ids = _expand(processor, text, chat.pictures_in([message]), counts)
    ids.setflags(write=False)  # shared by every caller
    return ids


def _counts(processor: Processor, pictures: Sequence[types.Picture]) -> tuple[int, ...]:
    return tuple(images.token_count(picture, processor.images) for picture in pictures)


def _expand(processor: Processor, text: str, places: int, counts: tuple[int, ...]) -> np.ndarray:
    """Encodes a rendered chat and repeats its i-th picture placeholder counts[i] times."""
    if places != len(counts):
        raise ValueError(f"{len(counts)} pictures given, but the messages have {places} images")
    ids = np.asarray(encode(processor, text), np.int32)
    placeholder = ids == processor.ids.image_pad
    # The texts are known to hold no special token: a difference is the template's doing.
    if placeholder.sum() != places or (ids == processor.ids.video_pad).any():
        raise ValueError(
            f"the chat template wrote {placeholder.sum()} picture placeholders for {places} images"
        )
    repeats = np.ones(len(ids), np.int64)
    repeats[placeholder] = counts
    return np.repeat(ids, repeats)


def picture(processor: Processor, image: np.ndarray | Image.Image) -> types.Picture:
    """Resizes a picture to a legal size and cuts it into uint8 patches; see `images.patchify`."""
    return images.patchify(image, processor.images)


def pixel_values(processor: Processor, picture: types.Picture) -> np.ndarray:
    """float32 [n, C * tp * p * p], as a Hugging Face processor; see `images.pixel_values`."""
    return images.pixel_values(picture, processor.images)
