"""Pictures: opened, resized to a legal size, cut into patches, normalised.

Equal value for value to a Hugging Face Qwen-VL image processor (its Pillow backend), from numpy and
Pillow alone. Pictures stay uint8, one frame, until `pixel_values`: a quarter of the bytes to the
device, an eighth with the second frame that a still picture would only repeat.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vrrl_jax import types

MAX_ASPECT_RATIO = 200
MAX_PIXELS_OPENED = 89_478_485  # Pillow's own bound for a 0.25 GiB picture, here without exception.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What happens to every picture; fields of a configuration that may say otherwise.
_ALWAYS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": int(Image.Resampling.BICUBIC),
}

_ORIENTATION = 0x0112  # the EXIF tag

# What Pillow's decoders raise on broken bytes.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError)


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How pictures become patches: the fields of `preprocessor_config.json`.

    Attributes:
      patch_size: side of a patch in pixels.
      merge_size: patches a side of one picture token.
      temporal_patch_size: frames of a patch; a still picture repeats its one frame.
      min_pixels: smallest area in pixels after resizing.
      max_pixels: largest area in pixels after resizing.
      image_mean: per channel, on the scale 0..1.
      image_std: per channel, on the scale 0..1.
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels}")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError("image_mean and image_std need three values, image_std above zero")

    @property
    def factor(self) -> int:
        """Side of a picture token in pixels: legal heights and widths are its multiples."""
        return self.patch_size * self.merge_size

    @property
    def features(self) -> int:
        """Values of a raw patch: three channels of one frame."""
        return 3 * self.patch_size**2


def settings_from_config(config: Mapping[str, Any]) -> ImageSettings:
    """Reads the fields of a `preprocessor_config.json`; what it lacks has Qwen2-VL's defaults.

    Areas stand as `min_pixels` and `max_pixels`, or as `size` with "shortest_edge" and
    "longest_edge" (areas as well, despite the names; older files have "min_pixels" and
    "max_pixels" there); the former win, as in transformers.

    Raises:
      ValueError: for values that are out of range, a `size` of another form, and steps that this
        module always takes, in one way, and the configuration does not (`do_resize` false, say).
    """
    for name, ours in _ALWAYS.items():
        if config.get(name, ours) not in (ours, None):
            raise ValueError(f"{name} {config[name]!r} is not supported, only {ours!r}")
    fields: dict[str, Any] = {}
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        if config.get(name) is not None:
            fields[name] = int(config[name])
    for name in ("image_mean", "image_std"):
        if config.get(name) is not None:
            fields[name] = tuple(float(value) for value in config[name])
    size = config.get("size")
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        sizes = size if isinstance(size, Mapping) else {}
        places = (config.get(name), sizes.get(edge), sizes.get(name))
        area = next((place for place in places if place is not None), None)
        if area is not None:
            fields[name] = int(area)
        elif size is not None:  # no default: of a size that is given, transformers wants both
            raise ValueError(f"size {size!r} holds no {edge!r}, and there is no {name!r}")
    return ImageSettings(**fields)


@functools.lru_cache(maxsize=4096)
def resized(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """(width, height) of a picture as the model sees it, from its own (width, height).

    Raises:
      ValueError: as `smart_resize`.
    """
    height, width = smart_resize(
        size[1], size[0], settings.factor, settings.min_pixels, settings.max_pixels
    )
    return width, height


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
) -> tuple[int, int]:
    """The legal size nearest to a picture's: multiples of `factor`, area within the bounds.

    Rounds half to even, as Qwen2-VL's processor does.

    Args:
      height: in pixels, >= 1.
      width: in pixels, >= 1.
      factor: side of a picture token in pixels.
      min_pixels: smallest area.
      max_pixels: largest area.

    Returns:
      (height, width) in pixels.

    Raises:
      ValueError: for an empty picture, and for an aspect ratio above 200.
    """
    if height < 1 or width < 1:
        raise ValueError(f"empty picture: {height} x {width} pixels (height x width)")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"aspect ratio of a {height} x {width} picture (height x width) is above "
            f"{MAX_ASPECT_RATIO}"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def _check_size(height: int, width: int, name: str) -> None:
    """Refuses a picture by its header's size, before its pixels are decoded."""
    size = f"{height} x {width} pixels (height x width)"
    if height < 1 or width < 1:
        raise ValueError(f"{name}: empty, {size}")
    if height * width > MAX_PIXELS_OPENED:
        raise ValueError(f"{name}: {size}, more than {MAX_PIXELS_OPENED} in all")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{name}: aspect ratio of {size} is above {MAX_ASPECT_RATIO}")


def to_rgb(image: Image.Image, name: str = "") -> Image.Image:
    """Turns a picture upright (EXIF) and makes it RGB.

    Transparency shows white, as in transformers from 5.23 on and in Qwen's own tools. 16-bit grey
    keeps its upper eight bits (Pillow alone would clip it to white).

    Args:
      image: of any mode that Pillow knows.
      name: what errors call it; its file by default.

    Raises:
      ValueError: for a picture without pixels, with too many, of an aspect ratio above 200, or one
        that Pillow cannot decode or convert.
    """
    name = name or str(getattr(image, "filename", "") or "picture")
    _check_size(image.height, image.width, name)  # from the header: nothing is decoded yet
    try:
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            grey = np.asarray(image).astype(np.uint16) >> 8
            image = Image.fromarray(grey.astype(np.uint8))
        if image.mode == "RGB":
            image.load()  # Pillow opens lazily: a truncated file has to fail here
            if "transparency" not in image.info:
                return image
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    except _BROKEN as error:
        raise ValueError(f"{name}: cannot be decoded: {error}") from error


def open_image(source: str | os.PathLike | bytes, name: str = "") -> np.ndarray:
    """Reads a picture file, or its bytes, as upright RGB.

    Args:
      source: a path, or a file's bytes.
      name: what errors call it; a path by default.

    Returns:
      uint8 [height, width, 3], read-only.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: naming the file, when it is no picture, truncated, empty, too large, or narrower
        than an aspect ratio of 200 allows.
    """
    name = name or ("picture bytes" if isinstance(source, bytes) else os.fspath(source))
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(stream)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (*_BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: cannot be opened: {error}") from error
    with image:
        return np.asarray(to_rgb(image, name))


def _pixels(image: np.ndarray | Image.Image, settings: ImageSettings) -> np.ndarray:
    """uint8 [height, width, 3] at a legal size; no copy where nothing has to change."""
    image = np.asarray(to_rgb(image) if isinstance(image, Image.Image) else image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(
            f"a picture array must be uint8 [height, width, 3], got {image.dtype} "
            f"{list(image.shape)}"
        )
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels not in (1, 3, 4):
        raise ValueError(f"a picture array must have 1, 3 or 4 channels, got {channels}")
    if channels == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    elif channels == 4 and image.size:
        image = np.asarray(to_rgb(Image.fromarray(image)))
    height, width = image.shape[:2]
    size = smart_resize(height, width, settings.factor, settings.min_pixels, settings.max_pixels)
    if size == (height, width):
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    return np.asarray(resized)


def patchify(image: np.ndarray | Image.Image, settings: ImageSettings) -> types.Picture:
    """Resizes a picture where needed and cuts it into uint8 patches in merge-block order.

    Block rows, block columns, then the merge x merge patches of a block row by row: patch
    4 b + 2 i + j (merge 2) is row i, column j of block b. Features are (channel, row, column).

    Args:
      image: uint8 [height, width, 3] (also grey or with alpha), or a Pillow picture.
      settings: patch size and bounds.

    Returns:
      Picture with uint8 patches [n, 3 * patch_size**2] and grid (1, rows, columns).

    Raises:
      ValueError: for an empty picture, another dtype or shape, or an aspect ratio above 200.
    """
    pixels = _pixels(image, settings)
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    blocks = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3 * patch * patch)
    return types.Picture(patches=patches, grid=(1, rows, columns))


@functools.lru_cache(maxsize=16)
def _normalised(settings: ImageSettings) -> np.ndarray:
    """float32 [3, 256]: the normalised value of each channel's grey levels."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = np.asarray(settings.image_mean, np.float32)[:, None]
    std = np.asarray(settings.image_std, np.float32)[:, None]
    return (levels - mean) / std


def pixel_values(picture: types.Picture, settings: ImageSettings) -> np.ndarray:
    """The `pixel_values` of a Hugging Face processor: normalised, the frame repeated.

    Args:
      picture: uint8 patches [n, 3 * p * p], or float32 ones, which are returned as they are.
      settings: mean, deviation and frames of a patch.

    Returns:
      float32 [n, 3 * tp * p * p], features (channel, frame, row, column).
    """
    if picture.patches.dtype != np.uint8:
        return picture.patches
    count, area = len(picture.patches), settings.patch_size**2
    levels = picture.patches.reshape(count, 3, area)
    values = np.empty((count, 3, settings.temporal_patch_size, area), np.float32)
    for channel, table in enumerate(_normalised(settings)):
        values[:, channel] = table[levels[:, channel]][:, None]
    return values.reshape(count, -1)


def token_count(picture: types.Picture, settings: ImageSettings) -> int:
    """How many picture tokens a picture fills: its grid over merge_size squared."""
    return math.prod(picture.grid) // settings.merge_size**2
