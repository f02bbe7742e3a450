"""Procedural pictures with labels as COCO has them, one of many sources of the composer."""

import json
import pathlib

import numpy as np
from PIL import Image

from mirg_jax.grounding.boxes import grid_to_pixels
from mirg_jax.scenes.drawing import SHAPES, SIDE, Ground, choose_looks, draw, place

_MOST_THINGS = 3


def write_labelled(folder: pathlib.Path, *, seed: int, count: int) -> None:
    """Writes pictures of one to three objects, and boxes, shapes and colours of all of these.

    Shapes are categories, colours are attributes. No picture is one of the demo's own.

    Args:
      folder: gets `images/` and `instances.json`, whose paths are relative to `images`.
      seed: random seed.
      count: number of pictures.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    categories = [{"id": n, "name": shape} for n, shape in enumerate(SHAPES, start=1)]
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, 3, number])  # the demo's splits are 0 to 2
        # Three large objects seldom have room beside one another.
        looks = choose_looks(rng, int(rng.integers(1, _MOST_THINGS + 1)))
        things = place(rng, looks, sides=(200, 460 if len(looks) < _MOST_THINGS else 300))
        name = f"{number:06d}.png"
        pixels = draw(rng, things, Ground.random(rng))
        Image.fromarray(pixels).save(folder / "images" / name, compress_level=1)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for thing in things:
            x1, y1, x2, y2 = grid_to_pixels(thing.box, SIDE, SIDE)
            row = {"id": len(annotations), "image_id": number, "iscrowd": 0}
            row |= {
                "category_id": SHAPES.index(thing.shape) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            annotations.append(row | {"attributes": {"color": thing.colour}})
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(labels) + "\n", encoding="utf-8")
