"""Patches against transformers' own processor, and files of every bad kind."""

import io
import itertools
import math
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from mirg_jax.data.images import (
    PATCH_BYTES,
    DataError,
    load_image,
    patchify,
    resolve_image,
    smart_resize,
)

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


def photo(width=64, height=48, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def differences(image, min_pixels, max_pixels):
    """Largest difference of our normalised patches to transformers' pixel_values."""
    processor = reference.Qwen2VLImageProcessorPil(min_pixels=min_pixels, max_pixels=max_pixels)
    expected = processor(images=[image], return_tensors="np")
    patches, grid = vars(patchify(image, min_pixels, max_pixels)).values()
    assert patches.dtype == np.uint8
    assert patches.shape == (math.prod(grid), PATCH_BYTES)
    assert expected["image_grid_thw"].tolist() == [[1, *grid]]
    frame = patches.reshape(-1, 3, 1, 14, 14) / 255.0
    frame = (frame - CLIP_MEAN[:, None, None, None]) / CLIP_STD[:, None, None, None]
    frames = np.repeat(frame, 2, axis=2).reshape(len(patches), -1)
    return np.abs(frames - expected["pixel_values"]).max()


def test_patches_equal_transformers_on_real_photos(shared):
    root = shared("real_photos", "images")
    files = sorted(path.relative_to(root) for path in root.rglob("*.jpg"))[::10]
    limits = itertools.cycle([(3136, 12_845_056), (3136, 100_352), (401_408, 640_000)])
    assert len({file.parts[0] for file in files}) == 5
    for file, (min_pixels, max_pixels) in zip(files, limits, strict=False):
        image = load_image(root, str(file))
        assert differences(image, min_pixels, max_pixels) < 1e-3, file


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (28, 28), (30, 1900), (333, 41)])
def test_patches_equal_transformers_on_odd_sizes(size):
    assert differences(photo(*size), 3136, 200_704) < 1e-3


def test_smart_resize_equals_transformers():
    rng = random.Random(0)
    for _ in range(20_000):
        height, width = (int(math.exp(rng.uniform(0, 9))) for _ in range(2))
        low, high = rng.choice([(3136, 12_845_056), (784, 50_176), (401_408, 640_000)])
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError):
                smart_resize(height, width, low, high)
        else:
            expected = reference.smart_resize(
                height, width, factor=28, min_pixels=low, max_pixels=high
            )
            assert smart_resize(height, width, low, high) == expected


# Modes --------------------------------------------------------------------------------------------


def load_saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    loaded = load_image(tmp_path, name)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


def test_rgb_is_as_stored(tmp_path):
    np.testing.assert_array_equal(load_saved(tmp_path, photo(), "a.png"), np.asarray(photo()))


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("L", "a.jpg")])
def test_other_colour_spaces(tmp_path, mode, name):
    converted = photo().convert(mode)
    loaded = load_saved(tmp_path, converted, name).astype(int)
    assert np.abs(loaded - np.asarray(converted.convert("RGB"))).mean() < 3


def test_palette_and_bilevel(tmp_path):
    palette = photo().quantize(16)
    np.testing.assert_array_equal(
        load_saved(tmp_path, palette, "a.gif"), np.asarray(palette.convert("RGB"))
    )
    bilevel = photo().convert("1")
    np.testing.assert_array_equal(
        load_saved(tmp_path, bilevel, "a.png")[..., 0] > 0, np.asarray(bilevel)
    )


def test_transparency_is_laid_on_white(tmp_path):
    image = photo().convert("RGBA")
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 20:40], alpha[:, 40:] = 128, 255
    image.putalpha(Image.fromarray(alpha))
    loaded = load_saved(tmp_path, image, "a.png").astype(int)
    original = np.asarray(photo()).astype(int)
    assert (loaded[:, :20] == 255).all()
    assert np.abs(loaded[:, 20:40] - (original[:, 20:40] + 255) / 2).max() <= 2
    np.testing.assert_array_equal(loaded[:, 40:], original[:, 40:])


def test_transparent_palette_and_grey(tmp_path):
    palette = Image.new("P", (30, 30), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    palette.paste(0, (0, 0, 10, 30))
    loaded = load_saved(tmp_path, palette, "a.png", transparency=0)
    assert loaded[0, 0].tolist() == [255, 255, 255]
    assert loaded[0, 20].tolist() == [200, 100, 50]
    loaded = load_saved(tmp_path, Image.new("LA", (30, 30), (7, 0)), "b.png")
    assert (loaded == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    values = np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)
    loaded = load_saved(tmp_path, Image.fromarray(values), name)
    assert np.abs(loaded.astype(float) - values[..., None] / 257).max() <= 0.51


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_saved(tmp_path, photo(), "a.jpg", exif=exif).shape == (48, 64, 3)


# Files that can't be used -------------------------------------------------------------------------


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (chunk, data)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def encoded(image, format):
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; check the image root"),
        (b"", "the file is empty; get the file again"),
        (b"This is no picture.\n" * 9, "not an image"),
        (encoded(photo(640, 480), "JPEG")[:3000], "truncated"),
        (encoded(photo(640, 480), "PNG")[:3000], "truncated"),
        (encoded(photo(640, 480), "JPEG")[:10], "get the file again"),
        (encoded(photo(1, 5000), "PNG"), "1x5000 is narrower than 1:200; crop it"),
        (encoded(photo(5000, 1), "PNG"), "5000x1 is narrower"),
        (png_header(9000, 8000), "9000x8000 pixels are more than"),
        (png_header(100_000, 100_000), "pixels; make it smaller"),
        (png_header(0, 10), "get the file again"),
        (encoded(photo().convert("F"), "TIFF"), "no known range"),
        (encoded(photo(), "PDF"), "not an image"),
        (encoded(photo(), "EPS"), "not an image"),
    ],
)
def test_unusable_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_image(tmp_path, "a.jpg")
    text = str(caught.value)
    assert str(tmp_path / "a.jpg") in text
    assert "; " in text and "\n" not in text


def test_one_pixel_is_an_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(1, 1), "PNG"))
    assert load_image(tmp_path, "a.jpg").size == (1, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damaged_files_load_or_are_refused(tmp_path, format):
    rng = random.Random(0)
    sound = encoded(photo(120, 80), format)
    refused = 0
    for _ in range(100):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 5)):
            # Headers are where decoders trust what they read.
            where = rng.randrange(min(len(data), rng.choice((40, 10**9))))
            data[where] = rng.randrange(256)
        (tmp_path / "a").write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            load_image(tmp_path, "a")
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


# Paths --------------------------------------------------------------------------------------------


def test_paths_do_not_leave_the_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    photo().save(tmp_path / "secret.png")
    photo().save(root / "open.png")
    (root / "folder").mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "inner.png").symlink_to(root / "open.png")
    for path in (
        "../secret.png",
        "a/../../secret.png",
        "folder/../open.png",
        str(tmp_path / "secret.png"),
        str(root / "open.png"),
        "link.png",
        "up/secret.png",
        "MGrounding-630k/../../secret.png",
        "MGrounding-630k/link.png",
    ):
        with pytest.raises(DataError, match="out of|leaves") as caught:
            load_image(root, path)
        assert repr(path) in str(caught.value)
    for path in ("loop", "", ".", "a\0b.png", "a" * 5000, "\ud800.png", "new\nline.png"):
        with pytest.raises(DataError) as caught:
            load_image(root, path)
        assert "\n" not in str(caught.value)
    assert load_image(root, "inner.png").size == (64, 48)


@pytest.mark.parametrize("folder", ["MGrounding-630k", "MIG-Bench"])
def test_published_paths_are_found_from_the_folder_and_from_above(tmp_path, folder):
    file = tmp_path / folder / "Group_Grounding" / "a.png"
    file.parent.mkdir(parents=True)
    photo().save(file)
    for root in (tmp_path, tmp_path / folder):
        for start in ("./", ""):
            assert resolve_image(root, f"{start}{folder}/Group_Grounding/a.png") == file
    assert resolve_image(tmp_path / folder, "Group_Grounding/a.png") == file
