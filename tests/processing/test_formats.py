"""Picture files of every format, mode and orientation against transformers, and broken ones."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vrrl_jax.processing import images

SETTINGS = {
    "patch 14": images.ImageSettings(min_pixels=784, max_pixels=7840),
    "patch 16": images.ImageSettings(
        patch_size=16, min_pixels=1024, max_pixels=9216, image_mean=(0.5,) * 3, image_std=(0.5,) * 3
    ),
}


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def reference(settings):
    """The processor of transformers, or a skip where it is absent or too old for transparency."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    return transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        patch_size=settings.patch_size,
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
    )


def of_mode(mode):
    """A picture of 50 x 71 pixels; "P+" and the like have a transparent colour or palette."""
    kind, _, clear = mode.partition("+")
    if kind in ("RGBA", "CMYK"):
        return Image.fromarray(noise(50, 71, 4), kind)
    image = Image.fromarray(noise(50, 71)).convert(kind)
    if kind == "LA":
        image.putalpha(Image.fromarray(noise(50, 71, seed=1)[:, :, 0]))
    if clear == "key":
        image.info["transparency"] = tuple(image.getpixel((3, 4))) if kind == "RGB" else 7
    elif clear == "alphas":
        image.info["transparency"] = bytes(range(0, 256, 2)) + bytes(128)
    return image


def file_of(image, kind, **options):
    stream = io.BytesIO()
    options = {"transparency": image.info.get("transparency"), **options}
    image.save(stream, kind, **{k: v for k, v in options.items() if v is not None})
    return stream.getvalue()


FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "P+key", "P+alphas", "L+key", "RGB+key"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("L", "RGB", "RGBA", "P", "P+key"),
    "GIF": ("1", "L", "P", "RGB", "RGBA", "P+key"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
}


def both(data, settings):
    """(ours, transformers') of a file: grid and pixel values."""
    opened = images.open_image(data)
    picture = images.patchify(opened, settings)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        expected = reference(settings)(images=[upright], return_tensors="np")
    return (picture.grid, images.pixel_values(picture, settings)), (
        tuple(expected["image_grid_thw"][0]),
        expected["pixel_values"],
    )


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("kind", "mode"), [(f, m) for f, modes in FORMATS.items() for m in modes])
def test_files_equal_transformers(kind, mode, settings):
    ours, theirs = both(file_of(of_mode(mode), kind), settings)
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"progressive": True, "subsampling": 2}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "RGBA", {"compression": "tiff_deflate"}),
        ("GIF", "P", {"interlace": 1}),
        *[
            (kind, "RGB", {"save_all": True, "append_images": [Image.new("RGB", (71, 50), "red")]})
            for kind in ("GIF", "WEBP", "PNG", "TIFF")
        ],  # of an animation the first picture counts
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_variants_of_formats_equal_transformers(kind, mode, options):
    ours, theirs = both(file_of(of_mode(mode), kind, **options), SETTINGS["patch 14"])
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations_are_turned_as_transformers_turns_them(kind, tmp_path):
    upright = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{kind.lower()}"
        path.write_bytes(file_of(Image.fromarray(noise(30, 50)), kind, exif=exif))
        opened = images.open_image(path)
        assert opened.shape == ((30, 50, 3) if orientation < 5 else (50, 30, 3))
        transformers = pytest.importorskip("transformers")
        np.testing.assert_array_equal(opened, transformers.image_utils.load_image(str(path)))
        upright.add(opened.tobytes())
    assert len(upright) == 8


def test_arrays_with_alpha_equal_transformers():
    settings = images.ImageSettings(patch_size=16)  # 256 x 256: nothing is resized
    grey, alpha = np.meshgrid(np.arange(256), np.arange(256))
    array = np.stack([grey, grey[::-1], grey, alpha], axis=-1).astype(np.uint8)
    expected = reference(settings)(images=[array], return_tensors="np")["pixel_values"]
    values = images.pixel_values(images.patchify(array, settings), settings)
    np.testing.assert_array_equal(values, expected)


# How a resize must come out, written down from the definition.


def kernel(x):
    """Keys' cubic with a = -1/2."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def one_pass(image, size):
    """Resizes the first axis of float levels [n, ...], and rounds to grey levels."""
    count = len(image)
    if count == size:
        return image
    scale = max(count / size, 1)
    centres = (np.arange(size) + 0.5) * count / size
    weights = kernel((np.arange(count) + 0.5 - centres[:, None]) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.floor(np.tensordot(weights, image, 1) + 0.5), 0, 255)


def from_definition(image, height, width):
    """The two orders of the passes: Pillow before 13 has the first, later ones choose."""
    turned = image.astype(np.float64).swapaxes(0, 1)
    across_first = one_pass(one_pass(turned, width).swapaxes(0, 1), height)
    down_first = one_pass(one_pass(turned.swapaxes(0, 1), height).swapaxes(0, 1), width)
    return across_first, down_first.swapaxes(0, 1)


QWEN3 = images.ImageSettings(
    patch_size=16,
    min_pixels=65536,
    max_pixels=16777216,
    image_mean=(0.5,) * 3,
    image_std=(0.5,) * 3,
)
SIZES = [(97, 640), (1000, 333), (41, 43), (300, 280), (13, 15), (256, 256), (250, 187), (1, 200)]


def unpatched(picture, settings):
    """uint8 [height, width, 3] back from patches in merge-block order."""
    _, rows, columns = picture.grid
    patch = settings.patch_size
    blocks = picture.patches.reshape(rows // 2, columns // 2, 2, 2, 3, patch, patch)
    image = blocks.transpose(0, 2, 5, 1, 3, 6, 4)
    return image.reshape(rows * patch, columns * patch, 3)


@pytest.mark.parametrize(
    "settings", [SETTINGS["patch 14"], images.ImageSettings(), QWEN3], ids=["small", "2.5", "3"]
)
def test_resampling_is_within_one_grey_level_of_its_definition(settings):
    worst, differing, total = 0, 0, 0
    for size in SIZES:
        image = noise(*size)
        resized = unpatched(images.patchify(image, settings), settings).astype(int)
        gaps = [np.abs(resized - e) for e in from_definition(image, *resized.shape[:2])]
        gap = min(gaps, key=np.max)
        worst = max(worst, int(gap.max()))
        differing += int((gap > 0).sum())
        total += gap.size
    print(f"largest difference {worst} of 255, in {differing / total:.1e} of the values of noise")
    assert worst <= 1 and differing < 0.02 * total


def test_resampling_is_within_one_grey_level_of_torchs():
    """On pictures of the smoothness of photographs, which torch does not round halfway."""
    torch = pytest.importorskip("torch")
    worst, differing, total = 0, 0, 0
    for settings in (SETTINGS["patch 14"], images.ImageSettings(), QWEN3):
        for height, width in SIZES[:-1]:
            grid = Image.fromarray(noise(max(2, height // 24), max(2, width // 24)))
            image = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
            resized = unpatched(images.patchify(image, settings), settings).astype(int)
            levels = torch.tensor(image.astype(np.float64)).permute(2, 0, 1)[None]
            expected = torch.nn.functional.interpolate(
                levels, resized.shape[:2], mode="bicubic", antialias=True
            )
            expected = expected.round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
            gap = np.abs(resized - expected)
            worst = max(worst, int(gap.max()))
            differing += int((gap > 0).sum())
            total += gap.size
    print(f"largest difference {worst} of 255, in {differing / total:.2f} of the values")
    assert worst <= 1


# Files that are no good.


def plain(kind):
    return file_of(Image.fromarray(noise(24, 30)), kind)


def with_size(kind, height, width):
    """A file of 24 x 30 pixels whose header claims another size."""
    data = bytearray(plain(kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        frame = data.index(b"\x2c\0\0\0\0") + 5
        data[6:10] = data[frame : frame + 4] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "TIFF":
        for tag, old, new in ((256, 30, width), (257, 24, height)):
            entry = next(
                struct.pack("<HHI", tag, code, 1) + struct.pack("<I", old)
                for code in (3, 4)
                if struct.pack("<HHI", tag, code, 1) + struct.pack("<I", old) in data
            )
            wide = struct.pack("<HHII", tag, 4, 1, new)
            data[data.index(entry) : data.index(entry) + 12] = wide
    return bytes(data)


def refused(data, path, match):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        images.open_image(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_named(kind, tmp_path):
    data = plain(kind)
    for kept in (0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.98):
        refused(data[: int(kept * len(data))], tmp_path / "cut", "cannot be")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(0, 30), (24, 0), (0, 0)], ids=str)
def test_zero_sized_files_are_named(size, kind, tmp_path):
    refused(with_size(kind, *size), tmp_path / "flat", "empty|cannot be")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)], ids=str)
def test_bombs_are_named_before_they_are_decoded(size, kind, tmp_path):
    refused(with_size(kind, *size), tmp_path / "bomb", "more than|decompression bomb")


@pytest.mark.parametrize("kind", FORMATS)
def test_stripes_are_named_and_their_limit_is_transformers(kind, tmp_path):
    for shape in ((1, 201), (402, 2)):
        data = file_of(Image.fromarray(noise(*shape)), kind)
        refused(data, tmp_path / "stripe", r"aspect ratio.*above 200")
        with Image.open(tmp_path / "stripe") as image:
            with pytest.raises(ValueError, match=r"stripe: aspect ratio"):
                images.patchify(image, SETTINGS["patch 14"])
            with pytest.raises(ValueError, match="aspect ratio"):
                reference(SETTINGS["patch 14"])(images=[image])
    data = file_of(Image.fromarray(noise(2, 400)), kind)
    ours, theirs = both(data, SETTINGS["patch 16"])
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_scrambled_files_open_or_are_named(kind, tmp_path):
    chance = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind in ("GIF", "BMP") else {"exif": exif}
    data = file_of(Image.fromarray(noise(24, 30)), kind, **options)
    complaints = []
    for _ in range(60):
        scrambled = bytearray(data)
        for _ in range(chance.choice([1, 2, 8])):
            # Mostly in the headers.
            place = chance.randrange(min(len(data), chance.choice([64, 300, len(data)])))
            scrambled[place] = chance.randrange(256)
        try:
            assert images.open_image(bytes(scrambled), name="row 7").dtype == np.uint8
        except ValueError as error:
            complaints.append(str(error))
    assert complaints and all(text.startswith("row 7: ") for text in complaints)
