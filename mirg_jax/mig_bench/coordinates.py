"""Absolute pixels of the resized image ↔ our grid.

Qwen2.5-VL's published models were taught boxes in pixels of the image as they get it. Ours, trained
on the grid of the data, speak the grid whichever family they come from.
"""

from collections.abc import Sequence

from mirg_jax.data.images import image_size, smart_resize
from mirg_jax.errors import DataError
from mirg_jax.mig_bench import families, scoring
from mirg_jax.mig_bench.families import Size

_FAMILY = families.FAMILIES["qwen2_5_vl"]


def sizes(row: scoring.Row, root: str, min_pixels: int, max_pixels: int) -> list[Size]:
    """Width and height of each image of a row as the model gets it; none if one can't be read."""
    limits = min_pixels, max_pixels
    try:
        found = [image_size(root, path) for path in row["images"]]
    except DataError:
        return []  # the row is rejected with the reason where its images are loaded
    return [smart_resize(height, width, *limits)[::-1] for width, height in found]


def question_in_pixels(row: scoring.Row, sizes: Sequence[Size]) -> str:
    """A row's question, its boxes as these models write them."""
    if not sizes:
        return row["question"]
    return families.rewrite(row["question"], _FAMILY, authors=False, sizes=sizes)


def response_on_grid(row: scoring.Row, response: str | None, sizes: Sequence[Size]) -> str | None:
    """A response, its boxes in our own form; those past an image's edge end there."""
    if response is None or not sizes:
        return response
    size_of = dict(zip(row["images"], sizes, strict=True)).__getitem__
    return families.read(_FAMILY, response, row, size_of)
