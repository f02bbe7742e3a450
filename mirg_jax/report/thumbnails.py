"""Thumbnails, small enough for a page with all images of a benchmark."""

import base64
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from mirg_jax.data.images import Root, load_image
from mirg_jax.errors import DataError
from mirg_jax.files.streams import progress_bar

SIDE = 480  # longest side in pixels
_LEAST_SIDE = 32
_MOST_BYTES = 24_000  # per picture, however few there are
_BUDGET = 64_000_000  # characters in total
_MANY = 200  # number of pictures from which a progress bar is shown


class Thumbnail(NamedTuple):
    """A picture's size, and its WebP file in base64 or the reason why it can't be shown."""

    width: int
    height: int
    data: str = ""
    problem: str = ""


BLANK = Thumbnail(4, 3)


def make(images: Sequence[tuple[Root, str]], budget: int = _BUDGET) -> list[Thumbnail]:
    """Makes thumbnails of images; the more there are, the smaller is each.

    Args:
      images: root and path of each image.
      budget: maximum number of characters of all thumbnails. An image that is too large even at
        32 pixels may exceed its share, which photos and scenes don't.
    """
    share = min(_MOST_BYTES, budget // 4 * 3 // max(1, len(images)))

    def one(image: tuple[Root, str]) -> Thumbnail:
        try:
            return encode(load_image(*image), share)
        except DataError as error:
            return BLANK._replace(problem=str(error))

    # Pillow works outside the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = progress_bar(
            pool.map(one, images),
            total=len(images),
            unit="picture",
            desc="report",
            mininterval=1,
            disable=len(images) < _MANY,
        )
        return list(bar)


def encode(image: Image.Image, most: int) -> Thumbnail:
    """Makes a thumbnail.

    Args:
      image: the image, which is changed.
      most: maximum number of bytes; the thumbnail is roughly as large as it allows, up to SIDE.
    """
    # Most photos take a ninth of a byte per pixel.
    side = min(SIDE, max(_LEAST_SIDE, int(math.sqrt(most * 9 * 4 / 3))))
    while True:
        image.thumbnail((side, side), reducing_gap=2)
        buffer = io.BytesIO()
        # A small picture is shown enlarged, where low quality would be visible.
        image.save(buffer, "WEBP", quality=90 if max(image.size) <= 112 else 70, method=2)
        size = buffer.tell()
        if size <= most or side <= _LEAST_SIDE:
            data = base64.b64encode(buffer.getvalue()).decode("ascii")
            return Thumbnail(image.width, image.height, data)
        side = min(side, max(image.size))
        side = max(_LEAST_SIDE, int(min(0.95, 0.95 * math.sqrt(most / size)) * side))
