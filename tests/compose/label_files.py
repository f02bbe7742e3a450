"""For tests: reads labels as the composer does."""

import numpy as np
from PIL import Image

from mirg_jax.compose.sources import parse_source, read_source
from mirg_jax.data.images import ImageRoot
from mirg_jax.data.left_out import LeftOut


def picture(path, size=(40, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def read(root, text, complete=()):
    """Reads a source below a root; returns photos by path, and what was left out."""
    left_out = LeftOut()
    source = parse_source(text.replace("ROOT", str(root)), complete)
    photos = list(read_source(source, ImageRoot(root), left_out))
    return {photo.path: photo for photo in photos}, left_out.to_json()


def boxes(photo):
    return {(each.name, each.box) for each in photo.objects}
