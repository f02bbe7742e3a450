"""Boxes drawn into images: in their places, legible, and in the image that they name."""

import numpy as np
import pytest
from PIL import Image

from mirg_jax.errors import DataError
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.inference import pictures


def test_draw_boxes_puts_the_outline_on_the_grid_and_leaves_the_image(tmp_path):
    image = Image.new("RGB", (400, 200), "white")
    drawn = pictures.draw_boxes(image, [pictures.Drawing((250, 500, 750, 900), "red")])
    assert np.all(np.asarray(image) == 255)
    red = np.argwhere(np.all(np.asarray(drawn) == (255, 0, 0), axis=-1))
    assert red.min(axis=0).tolist() == [100, 100] and red.max(axis=0).tolist() == [180, 300]
    assert drawn.getpixel((200, 140)) == (255, 255, 255)  # the inside is left free


@pytest.mark.parametrize("box", [(250, 500, 750, 900), (0, 0, 300, 300), (900, 950, 1000, 1000)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_captions_are_legible_and_inside_the_image(box, mode):
    image = Image.new(mode, (500, 400))
    plain = pictures.draw_boxes(image, [pictures.Drawing(box, "yellow")])
    captioned = pictures.draw_boxes(image, [pictures.Drawing(box, "yellow", "[1-1] a dog\nhere")])
    changed = np.argwhere(np.any(np.asarray(plain) != np.asarray(captioned), axis=-1))
    height, width = np.ptp(changed, axis=0) + 1
    assert height >= 10 and width >= 60
    plate = np.asarray(captioned)[changed[:, 0].min() :, changed[:, 1].min() :][:height, :width]
    dark, yellow = np.mean(plate.sum(-1) < 200), np.mean(np.all(plate == (255, 255, 0), axis=-1))
    assert dark > 0.05 and yellow > 0.4  # black ink on yellow


def test_a_caption_longer_than_the_image_is_cut():
    image = Image.new("RGB", (120, 90), "white")
    drawn = pictures.draw_boxes(image, [pictures.Drawing((0, 0, 1000, 1000), "navy", "word " * 90)])
    assert drawn.size == image.size
    assert np.any(np.all(np.asarray(drawn) == 255, axis=-1))


def test_objects_are_drawn_into_the_image_they_name(tmp_path):
    paths = [tmp_path / "small.png", tmp_path / "large.png"]
    Image.new("RGB", (56, 28), "white").save(paths[0])
    Image.new("RGB", (300, 400), "white").save(paths[1])
    objects = [
        GroundedObject((500, 500, 900, 900), image=2, label="dog"),
        GroundedObject((100, 100, 900, 900)),  # no image: the first
    ]
    sheet = pictures.draw_objects(paths, objects, ("red", "blue"))
    small = 4 * 56  # enlarged to be seen
    assert sheet.size == (small + 8 + 300, 400)
    red, blue = (
        np.argwhere(np.all(np.asarray(sheet) == colour, axis=-1))
        for colour in ((255, 0, 0), (0, 0, 255))
    )
    assert blue[:, 1].max() < small and blue[:, 0].max() < 4 * 28
    assert red[:, 1].min() == small + 8 + 150 and red.max(axis=0).tolist() == [360, small + 8 + 270]
    with pytest.raises(DataError, match="nowhere.png"):
        pictures.draw_objects([tmp_path / "nowhere.png"], [])
