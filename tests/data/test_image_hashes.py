"""Hashes of images: by content, and as earlier versions recorded them."""

import os
import shutil

import pytest
from PIL import Image

from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import ImageRoot
from mirg_jax.files.hashes import agrees


@pytest.mark.parametrize("size", [1, 700, 30_000, 2_000_000])
def test_images_are_told_apart_by_content(size, tmp_path):
    content = bytearray(n % 251 for n in range(size))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    before = ImageHashes(tmp_path).of(["a.png"])
    shutil.copy(path, tmp_path / "b.png")
    os.utime(tmp_path / "b.png", (0, 0))
    assert ImageHashes(tmp_path).of(["b.png"]) == before
    for place in (0, size // 2, size - 1, size // 3, size // 40):
        path.write_bytes(content[:place] + bytes([255]) + content[place + 1 :])
        assert ImageHashes(tmp_path).of(["a.png"]) != before
    both = ImageHashes(tmp_path).of(["a.png", "b.png"])
    assert both != ImageHashes(tmp_path).of(["b.png", "a.png"])
    assert ImageHashes(tmp_path).of(["b.png", "../b.png"]) is None
    assert ImageHashes(tmp_path).of(["none.png"]) is None


def test_images_that_an_earlier_version_recorded_by_samples_are_accepted(tmp_path):
    content = bytearray(n % 251 for n in range(300_000))
    (tmp_path / "a.bmp").write_bytes(content)
    samples = "7edf53ff82327045c792324c4b3f9cd8"
    assert not ImageHashes(tmp_path).differ(["a.bmp", "a.bmp"], samples)
    whole = ImageHashes(tmp_path).of(["a.bmp", "a.bmp"])
    assert whole.partition(".")[0] == samples and not agrees(whole.partition(".")[2], whole)
    content[5000] += 1  # between the samples
    (tmp_path / "a.bmp").write_bytes(content)
    assert not ImageHashes(tmp_path).differ(["a.bmp", "a.bmp"], samples)
    assert ImageHashes(tmp_path).differ(["a.bmp", "a.bmp"], whole)
    content[0] += 1
    (tmp_path / "a.bmp").write_bytes(content)
    assert ImageHashes(tmp_path).differ(["a.bmp", "a.bmp"], samples)
    (tmp_path / "a.bmp").unlink()  # one that has gone is no other
    assert not ImageHashes(tmp_path).differ(["a.bmp", "a.bmp"], whole)


def test_an_image_that_is_turned_is_another(tmp_path):
    for name, orientation in (("plain.jpg", 1), ("turned.jpg", 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (40, 20)).save(tmp_path / name, exif=exif)
    stored, upright = (
        ImageHashes(ImageRoot(tmp_path, apply_exif=turns)) for turns in (False, True)
    )
    assert stored.of(["plain.jpg"]) == upright.of(["plain.jpg"])
    assert stored.of(["turned.jpg"]) != upright.of(["turned.jpg"])
