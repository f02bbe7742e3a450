"""Patches against transformers' own processor, and files of every bad kind."""

import io
import itertools
import math
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from mirg_jax.data.images import (
    DataError,
    ImageRoot,
    image_size,
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


HALF = np.full(3, 0.5)
# By the side of a patch: what pixels are normalised with.
STATISTICS = {14: (CLIP_MEAN, CLIP_STD), 16: (HALF, HALF)}


def differences(image, min_pixels, max_pixels, patch=14):
    """Largest difference of our normalised patches to transformers' pixel_values."""
    mean, std = STATISTICS[patch]
    processor = reference.Qwen2VLImageProcessorPil(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        patch_size=patch,
        image_mean=mean.tolist(),
        image_std=std.tolist(),
    )
    expected = processor(images=[image], return_tensors="np")
    patches, grid = vars(patchify(image, min_pixels, max_pixels, patch)).values()
    assert patches.dtype == np.uint8
    assert patches.shape == (math.prod(grid), 3 * patch**2)
    assert expected["image_grid_thw"].tolist() == [[1, *grid]]
    frame = patches.reshape(-1, 3, 1, patch, patch) / 255.0
    frame = (frame - mean[:, None, None, None]) / std[:, None, None, None]
    frames = np.repeat(frame, 2, axis=2).reshape(len(patches), -1)
    return np.abs(frames - expected["pixel_values"]).max()


@pytest.mark.parametrize("patch", STATISTICS)
def test_patches_equal_transformers_on_real_photos(shared, patch):
    root = shared("real_photos", "images")
    files = sorted(path.relative_to(root) for path in root.rglob("*.jpg"))[::10]
    limits = itertools.cycle([(3136, 12_845_056), (3136, 100_352), (401_408, 640_000)])
    assert len({file.parts[0] for file in files}) == 5
    for file, (min_pixels, max_pixels) in zip(files, limits, strict=False):
        image = load_image(root, str(file))
        assert differences(image, min_pixels, max_pixels, patch) < 1e-3, file


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (28, 28), (30, 1900), (333, 41)])
@pytest.mark.parametrize("patch", STATISTICS)
def test_patches_equal_transformers_on_odd_sizes(size, patch):
    assert differences(photo(*size), 3136, 200_704, patch) < 1e-3


@pytest.mark.parametrize("patch", STATISTICS)
def test_smart_resize_equals_transformers(patch):
    rng = random.Random(0)
    for _ in range(20_000):
        height, width = (int(math.exp(rng.uniform(0, 9))) for _ in range(2))
        low, high = rng.choice([(3136, 12_845_056), (784, 50_176), (401_408, 640_000)])
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError):
                smart_resize(height, width, low, high, patch)
        else:
            expected = reference.smart_resize(
                height, width, factor=2 * patch, min_pixels=low, max_pixels=high
            )
            assert smart_resize(height, width, low, high, patch) == expected


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.avif"])
def test_exif_orientation(tmp_path, name, orientation, caplog):
    """By default images are as stored; otherwise they are as Pillow turns them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(tmp_path / name, exif=exif, lossless=True)
    with Image.open(tmp_path / name) as image:
        stored, upright = image.convert("RGB"), ImageOps.exif_transpose(image).convert("RGB")
    for root, wanted in (
        (ImageRoot(tmp_path), stored),
        (ImageRoot(tmp_path, apply_exif=True), upright),
    ):
        loaded = load_image(root, name)
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(wanted))
        assert image_size(root, name) == loaded.size
        load_image(root, name)
        assert root.rotated == ({name} if orientation > 1 else set())
    assert len(caplog.records) == (2 if orientation > 1 else 0)  # one for each root


@pytest.mark.parametrize("turn", [False, True])
def test_tiffs_are_turned_by_pillow(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = 6
    root = ImageRoot(tmp_path, apply_exif=turn)
    photo().save(tmp_path / "a.tif", exif=exif)
    assert load_image(root, "a.tif").size == image_size(root, "a.tif")
    assert not root.rotated


def test_damaged_exif_is_no_obstacle(tmp_path):
    photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    root = ImageRoot(tmp_path, apply_exif=True)
    assert load_image(root, "a.jpg").size == image_size(root, "a.jpg") == (64, 48)


def test_avif_is_read(tmp_path):
    loaded = load_saved(tmp_path, photo(), "a.avif", quality=95).astype(int)
    assert np.abs(loaded - np.asarray(photo())).mean() < 6
    assert image_size(tmp_path, "a.avif") == (64, 48)


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
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS.*; fetch the file",
        ),
        (
            b"\n<!DOCTYPE html><html>Sign in</html>",
            "a page of HTML and no image; download the file",
        ),
    ],
    ids=itertools.count(),  # an EPS file has the time at which it was made
)
def test_unusable_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_image(tmp_path, "a.jpg")
    text = str(caught.value)
    assert str(tmp_path / "a.jpg") in text
    assert "; " in text and "\n" not in text


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (load_image, image_size):
        with pytest.raises(DataError, match="a device or a pipe"):
            read(tmp_path, "a.png")


def test_one_pixel_is_an_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(1, 1), "PNG"))
    assert load_image(tmp_path, "a.jpg").size == (1, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"])
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
        str(tmp_path / "secret.png"),
        str(root / ".." / "secret.png"),
        "link.png",
        str(root / "link.png"),
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
    inside = ("inner.png", "folder/../open.png", str(root / "open.png"), "folder/../inner.png")
    for path in (*inside, str(root / "inner.png")):
        assert load_image(root, path).size == image_size(root, path) == (64, 48)


def test_absolute_paths_and_a_root_that_is_a_link(tmp_path):
    real = tmp_path / "disk" / "data"
    real.mkdir(parents=True)
    photo().save(real / "a.png")
    root = tmp_path / "data"
    root.symlink_to(real)
    for folder in (root, real):
        for path in ("a.png", str(root / "a.png"), str(real / "a.png")):
            for given in (folder, "/", tmp_path):
                if given is folder or path.startswith("/"):
                    assert load_image(given, path).size == (64, 48)
    with pytest.raises(DataError, match="leaves the image root"):
        load_image(root, "/etc/passwd")


def test_a_snapshot_of_the_hub(tmp_path):
    """Its files are links into the repository's own store."""
    repository = tmp_path / "hub" / "datasets--a--b"
    snapshot = repository / "snapshots" / "0123abc" / "MIG-Bench"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    photo().save(repository / "blobs" / "5f3a", "PNG")
    photo().save(tmp_path / "secret.png")
    (snapshot / "a.png").symlink_to("../../../blobs/5f3a")
    (snapshot / "b.png").symlink_to(tmp_path / "secret.png")
    for root in (snapshot, snapshot.parent, tmp_path / "hub"):
        path = "a.png" if root is snapshot else str((snapshot / "a.png").relative_to(root))
        assert load_image(root, path).size == (64, 48)
        with pytest.raises(DataError, match="a link leads out of the image root; copy"):
            load_image(root, path.replace("a.png", "b.png"))
    with pytest.raises(DataError, match="leaves the image root"):
        load_image(snapshot, "../../../blobs/5f3a")
    (repository / "blobs").rename(tmp_path / "elsewhere")  # a store is no link
    (repository / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="a link leads out of the image root"):
        load_image(snapshot, "a.png")


def test_links_elsewhere_are_followed_when_allowed(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "other").mkdir()
    photo().save(tmp_path / "other" / "a.png")
    (tmp_path / "root" / "a.png").symlink_to(tmp_path / "other" / "a.png")
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "other")
    root = ImageRoot(tmp_path / "root", follow_links=True)
    for path in ("a.png", "folder/a.png", str(tmp_path / "root" / "folder" / "a.png")):
        assert load_image(root, path).size == image_size(root, path) == (64, 48)
        with pytest.raises(DataError, match="set follow_links"):
            load_image(root.path, path)
    for path in ("../other/a.png", str(tmp_path / "other" / "a.png")):
        with pytest.raises(DataError, match="leaves the image root"):
            load_image(root, path)


@pytest.mark.parametrize("folder", ["MGrounding-630k", "MIG-Bench"])
def test_published_paths_are_found_from_the_folder_and_from_above(tmp_path, folder):
    file = tmp_path / folder / "Group_Grounding" / "a.png"
    file.parent.mkdir(parents=True)
    photo().save(file)
    for root in (tmp_path, tmp_path / folder):
        for start in ("./", ""):
            assert resolve_image(root, f"{start}{folder}/Group_Grounding/a.png") == file
    assert resolve_image(tmp_path / folder, "Group_Grounding/a.png") == file
