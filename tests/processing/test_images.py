"""Pictures against transformers' own processor, and pictures that are no good."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vrrl_jax import types
from vrrl_jax.processing import images

NANO = images.ImageSettings(min_pixels=784, max_pixels=78400)
QWEN3 = images.ImageSettings(
    patch_size=16, min_pixels=4096, max_pixels=40960, image_mean=(0.5,) * 3, image_std=(0.5,) * 3
)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def reference(settings):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.Qwen2VLImageProcessorPil(
        patch_size=settings.patch_size,
        merge_size=settings.merge_size,
        temporal_patch_size=settings.temporal_patch_size,
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
    )


def png(width, height, rows=b""):
    """A PNG whose header claims a size, whatever rows follow."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


SIZES = [
    (140, 140), (84, 84), (28, 28), (1, 1), (3, 200), (200, 1), (14, 14), (42, 70), (41, 43),
    (300, 280), (97, 640), (1000, 333), (13, 15), (280, 283), (56, 2000), (512, 512),
]  # fmt: skip


@pytest.mark.parametrize(
    "settings", [NANO, QWEN3, images.ImageSettings()], ids=lambda s: str(s)[:40]
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixel_values_equal_transformers(size, settings):
    image = noise(*size)
    expected = reference(settings)(images=[Image.fromarray(image)], return_tensors="np")
    picture = images.patchify(image, settings)
    assert picture.grid == tuple(expected["image_grid_thw"][0])
    values = images.pixel_values(picture, settings)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected["pixel_values"])
    assert images.token_count(picture, settings) == np.prod(picture.grid) // 4


def of_mode(mode):
    if mode in ("RGBA", "CMYK"):
        return Image.fromarray(noise(90, 121, 4), mode)
    image = Image.fromarray(noise(90, 121)).convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(noise(90, 121, seed=1)[:, :, 0]))
    elif mode == "P":
        image.info["transparency"] = 7  # one colour of the palette is clear
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_modes_equal_transformers(mode):
    image = of_mode(mode)
    assert image.mode == mode
    processor = reference(NANO)
    import transformers

    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    if mode in ("RGBA", "LA", "P") and version < (5, 23):
        pytest.skip("older transformers drop the transparency")
    expected = processor(images=[image], return_tensors="np")
    picture = images.patchify(image, NANO)
    np.testing.assert_array_equal(images.pixel_values(picture, NANO), expected["pixel_values"])


def test_transparency_shows_white():
    image = noise(40, 60, 4)
    alpha = image[:, :, 3:] / 255
    expected = alpha * image[:, :, :3] + (1 - alpha) * 255
    shown = np.asarray(images.to_rgb(Image.fromarray(image)))
    assert np.abs(shown - expected).max() <= 1
    assert (np.abs(image[:, :, :3] - expected) > 100).any()


def test_arrays_of_one_two_and_four_channels():
    grey, colour = noise(56, 56, 1), noise(56, 56, 4)
    three = np.repeat(grey, 3, axis=2)
    expected = images.patchify(three, NANO).patches
    for array in (grey, grey[:, :, 0]):
        np.testing.assert_array_equal(images.patchify(array, NANO).patches, expected)
    np.testing.assert_array_equal(
        images.patchify(colour, NANO).patches,
        images.patchify(Image.fromarray(colour), NANO).patches,
    )


def test_patches_stand_in_merge_block_order():
    image = noise(84, 140)  # 6 x 10 patches, 3 x 5 blocks
    picture = images.patchify(image, NANO)
    assert picture.grid == (1, 6, 10) and picture.patches.dtype == np.uint8
    n = 0
    for block_row in range(3):
        for block_column in range(5):
            for i in range(2):
                for j in range(2):
                    row, column = 14 * (2 * block_row + i), 14 * (2 * block_column + j)
                    patch = image[row : row + 14, column : column + 14]
                    np.testing.assert_array_equal(
                        picture.patches[n], patch.transpose(2, 0, 1).ravel()
                    )
                    n += 1
    assert n == len(picture.patches)


def test_a_legal_picture_is_not_touched_and_others_keep_their_input():
    image = noise(140, 140)
    before = image.copy()
    patches = images.patchify(image, NANO).patches
    assert not np.shares_memory(patches, image)
    images.patchify(image[:139], NANO)
    images.patchify(image[::-1, ::2], NANO)  # not contiguous
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(np.sort(patches.ravel()), np.sort(image.ravel()))


def test_float_patches_pass_through():
    values = np.ones((4, 1176), np.float32)
    assert images.pixel_values(types.Picture(values, (1, 2, 2)), NANO) is values


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((42, 70), (56, 56)),  # 1.5 and 2.5 units both round to 2: half to even
        ((1, 200), (28, 420)),  # no unit high after rounding: grown to min_pixels instead
        ((2000, 2000), (280, 280)),
        ((28, 5600), (28, 3948)),  # a side never falls below one unit, even above max_pixels
    ],
)
def test_smart_resize(size, expected):
    assert images.smart_resize(*size, 28, 784, 78400) == expected


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((0, 28, 3), np.uint8), "empty picture: 0 x 28"),
        (np.zeros((28, 28, 3), np.float32), "must be uint8.*float32"),
        (np.zeros((28, 28, 2), np.uint8), "1, 3 or 4 channels, got 2"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"must be uint8 \[height"),
        (np.zeros((28, 28, 4), np.float32), "must be uint8.*float32"),
        (np.zeros((28, 0, 4), np.uint8), "empty picture: 28 x 0"),
        (np.zeros((1, 201, 3), np.uint8), "aspect ratio.*1 x 201"),
    ],
)
def test_bad_arrays(array, match):
    with pytest.raises(ValueError, match=match):
        images.patchify(array, NANO)


def test_opens_paths_and_bytes_upright(tmp_path):
    image = Image.fromarray(noise(30, 50))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held on its side: turn 90 degrees clockwise to see it upright
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    expected = np.rot90(np.asarray(image), k=-1)
    np.testing.assert_array_equal(images.open_image(path), expected)
    np.testing.assert_array_equal(images.open_image(path.read_bytes()), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(
            images.patchify(opened, NANO).patches, images.patchify(expected, NANO).patches
        )


def test_sixteen_bit_grey_keeps_its_shades():
    grey = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    opened = np.asarray(images.to_rgb(Image.fromarray(grey)))
    np.testing.assert_array_equal(opened[:, :, 0], grey >> 8)


def broken_files():
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "PNG")
    jpeg = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(jpeg, "JPEG")
    return {
        "truncated.png": (whole.getvalue()[:-3000], "cannot be"),
        "truncated.jpg": (jpeg.getvalue()[:-1500], "cannot be decoded"),
        "header_only.png": (whole.getvalue()[:20], "cannot be"),
        "text.png": (b"this is no picture", "cannot be opened"),
        "nothing.png": (b"", "cannot be opened"),
        "bomb.png": (png(9500, 9500), "more than 89478485"),
        "large_bomb.png": (png(60000, 60000), "cannot be opened.*decompression bomb"),
        "flat.png": (png(0, 7), "flat.png: "),
        "stripe.png": (png(1, 201, b"\0rgb" * 201), "aspect ratio of 201 x 1"),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", sorted(broken_files()))
def test_bad_files_are_named(name, tmp_path):
    data, match = broken_files()[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        images.open_image(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ValueError, match="row 7 of train"):
        images.open_image(data, name="row 7 of train")


def test_a_lazily_opened_truncated_picture_names_its_file(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(broken_files()["truncated.jpg"][0])
    with Image.open(path) as image, pytest.raises(ValueError, match=r"cut\.jpg"):
        images.patchify(image, NANO)


def test_a_missing_file_is_no_broken_picture(tmp_path):
    with pytest.raises(FileNotFoundError):
        images.open_image(tmp_path / "absent.png")


def test_settings_from_both_forms():
    areas = {"min_pixels": 784, "max_pixels": 7840}
    size = {"size": {"shortest_edge": 784, "longest_edge": 7840}}
    assert images.settings_from_config(areas) == images.settings_from_config(size)
    both = {**areas, "size": {"shortest_edge": 1, "longest_edge": 2}}
    assert images.settings_from_config(both).max_pixels == 7840
    assert images.settings_from_config({}) == images.ImageSettings()
    config = {"patch_size": 16, "merge_size": 2, "image_std": [0.5, 0.5, 0.5], "do_resize": True}
    assert images.settings_from_config(config).factor == 32
    with pytest.raises(ValueError, match="max_pixels 10 is below min_pixels 784"):
        images.settings_from_config({"min_pixels": 784, "max_pixels": 10})
    with pytest.raises(ValueError, match="patch_size"):
        images.settings_from_config({"patch_size": 0})
    with pytest.raises(ValueError, match="image_std"):
        images.settings_from_config({"image_std": [0.5, 0.0, 0.5]})
    older = {"size": {"min_pixels": 784, "max_pixels": 7840}, "max_pixels": None}
    assert images.settings_from_config(older) == images.settings_from_config(areas)


@pytest.mark.parametrize(
    "config",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 2},
        {"size": {"height": 224, "width": 224}},
        {"size": {"shortest_edge": 224}},
        {"size": 224},
    ],
    ids=str,
)
def test_settings_that_would_be_ignored_are_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        images.settings_from_config(config)
    same = {"do_resize": True, "rescale_factor": 0.00392156862745098, "resample": 3, "size": None}
    assert images.settings_from_config(same) == images.ImageSettings()
