"""Thumbnails: as they should look, within their budget, with the reason where there is none."""

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from mirg_jax.report import thumbnails


def opened(thumbnail):
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail.data)))
    assert image.format == "WEBP" and image.size == (thumbnail.width, thumbnail.height)
    return image.convert("RGB")


def test_large_pictures_shrink_and_small_ones_stay(tmp_path):
    half = Image.new("RGB", (1200, 600), "blue")
    half.paste("red", (600, 0, 1200, 600))
    half.save(tmp_path / "a.jpg")
    Image.new("RGB", (90, 60), "lime").save(tmp_path / "b.png")
    large, small = map(opened, thumbnails.make([(tmp_path, "a.jpg"), (tmp_path, "b.png")]))
    assert large.size == (480, 240) and small.size == (90, 60)
    assert large.getpixel((20, 20))[2] > 200 and large.getpixel((460, 20))[0] > 200
    assert small.getpixel((9, 9))[1] > 240


@pytest.mark.parametrize("share", [20_000, 4_000, 1_000])
def test_pictures_keep_within_their_share(tmp_path, share):
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for i in range(3):
        os.link(tmp_path / "a.png", tmp_path / f"{i}.png")
    images = [(tmp_path, f"{i}.png") for i in range(3)]
    made = thumbnails.make(images, budget=4 * share)  # three quarters of it, as bytes
    assert all(len(each.data) <= 4 * share / 3 for each in made)
    for each in made:  # smaller, but the same in shape, and not much smaller than it must be
        assert opened(each).width / each.height == pytest.approx(500 / 400, rel=0.05)
        assert len(each.data) > 0.4 * share


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    made = thumbnails.make([(tmp_path, "cut.jpg"), (tmp_path, "gone.jpg"), (tmp_path, "../x.jpg")])
    for each, reason in zip(made, ("cut.jpg", "no such file", "leaves"), strict=True):
        assert not each.data and reason in each.problem
