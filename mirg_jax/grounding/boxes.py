"""The box format, conversions to other units, and intersection over union.

A box is (x1, y1, x2, y2): integers on a grid of 0..1000 relative to the image as stored, with the
origin at the top left, x to the right and y down. MIG-Bench files have the same four numbers as
fractions of the image's sides.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num

GRID = 1000

Box = tuple[int, int, int, int]


def is_valid(box: Sequence[float]) -> bool:
    """Returns whether a box has a positive area and lies on the grid; False for NaN."""
    x1, y1, x2, y2 = box
    return bool(0 <= x1 < x2 <= GRID and 0 <= y1 < y2 <= GRID)


def fraction_to_grid(fractions: Sequence[float]) -> Box:
    """Converts fractions of the image's sides to the grid, rounded and clipped to 0..GRID.

    Raises:
      ValueError: if a value is NaN.
      OverflowError: if a value is infinite.
    """
    x1, y1, x2, y2 = (min(max(round(value * GRID), 0), GRID) for value in fractions)
    return x1, y1, x2, y2


def grid_to_fraction(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Converts a box on the grid to fractions of the image's sides."""
    x1, y1, x2, y2 = (value / GRID for value in box)
    return x1, y1, x2, y2


def grid_to_pixels(
    box: Sequence[float], width: int, height: int
) -> tuple[float, float, float, float]:
    """Converts a box on the grid to pixels of an image of the given size, without rounding."""
    x1, y1, x2, y2 = grid_to_fraction(box)
    return x1 * width, y1 * height, x2 * width, y2 * height


def iou(
    a: Num[np.ndarray, "*#batch 4"] | Sequence, b: Num[np.ndarray, "*#batch 4"] | Sequence
) -> Float[np.ndarray, "*batch"]:
    """Computes the intersection over union of boxes in any common unit, in float64.

    Leading axes broadcast. The result is 0 if either box is empty or inverted.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def area(low, high):
        return np.prod(np.maximum(high - low, 0.0), axis=-1)

    intersection = area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1.0), 0.0)
