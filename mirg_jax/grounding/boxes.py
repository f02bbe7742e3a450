"""The box convention, in one place.

A box is (x1, y1, x2, y2), integers on a grid of 0..1000 relative to the image as given, origin at
the top left, x to the right, y down. MIG-Bench files hold the same four numbers as fractions.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num

GRID = 1000

Box = tuple[int, int, int, int]


def is_valid(box: Sequence[float]) -> bool:
    """True for a box with an area that lies on the grid; False for NaN coordinates."""
    x1, y1, x2, y2 = box
    return bool(0 <= x1 < x2 <= GRID and 0 <= y1 < y2 <= GRID)


def fraction_to_grid(fractions: Sequence[float]) -> Box:
    """Rounds four fractions of the image's sides to the grid, clipped to 0..GRID.

    Raises ValueError for NaN and OverflowError for infinity.
    """
    x1, y1, x2, y2 = (min(max(round(value * GRID), 0), GRID) for value in fractions)
    return x1, y1, x2, y2


def grid_to_fraction(box: Sequence[float]) -> tuple[float, float, float, float]:
    """The box in fractions of the image's sides."""
    x1, y1, x2, y2 = (value / GRID for value in box)
    return x1, y1, x2, y2


def grid_to_pixels(
    box: Sequence[float], width: int, height: int
) -> tuple[float, float, float, float]:
    """The box in pixels of an image of the given width and height, not rounded."""
    x1, y1, x2, y2 = grid_to_fraction(box)
    return x1 * width, y1 * height, x2 * width, y2 * height


def iou(
    a: Num[np.ndarray, "*#batch 4"] | Sequence, b: Num[np.ndarray, "*#batch 4"] | Sequence
) -> Float[np.ndarray, "*batch"]:
    """Intersection over union of boxes in any common unit, float64; leading axes broadcast.

    A box without area (empty or inverted) has an overlap of 0 with everything.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def area(low, high):
        return np.prod(np.maximum(high - low, 0.0), axis=-1)

    intersection = area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1.0), 0.0)
