"""Views of a photo: windows, perhaps mirrored and in another size, and where boxes are in them."""

import dataclasses

import numpy as np
from PIL import Image

from mirg_jax.compose.edits import Corners, Pixels
from mirg_jax.compose.photos import Sides

_EDGE = 0.02  # of an object's side that stays free around it


@dataclasses.dataclass(frozen=True)
class View:
    """A window of a photo in pixels, the size that it is shown in, and whether it is mirrored."""

    window: Corners
    size: tuple[int, int]
    mirrored: bool = False

    def show(self, pixels: Pixels) -> Pixels:
        """Returns the view of a picture."""
        image = Image.fromarray(pixels).resize(self.size, Image.Resampling.BICUBIC, self.window)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    def place(self, box: Sides | Corners) -> Sides:
        """Returns where a box of the picture is in the view, in its pixels."""
        left, top, right, bottom = self.window
        by = self.size[0] / (right - left), self.size[1] / (bottom - top)
        x1, x2 = (box[0] - left) * by[0], (box[2] - left) * by[0]
        y1, y2 = (box[1] - top) * by[1], (box[3] - top) * by[1]
        if self.mirrored:
            x1, x2 = self.size[0] - x2, self.size[0] - x1
        return x1, y1, x2, y2

    def holds(self, box: Sides | Corners) -> bool:
        """Returns whether all of a box is in the window."""
        left, top, right, bottom = self.window
        return left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom


def whole(size: tuple[int, int]) -> View:
    """Returns the view of all of a picture, as it is."""
    return View((0, 0, *size), size)


def draw_window(
    rng: np.random.Generator,
    size: tuple[int, int],
    box: Sides,
    share: float,
) -> Corners | None:
    """Draws a window that holds a box with some space around it.

    Args:
      rng: random number generator.
      size: width and height of the picture.
      box: the box.
      share: the window's sides, as a share of the picture's.

    Returns:
      The window; None if the box is too large for one.
    """
    found = []
    for low, high, side in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        length = round(share * side)
        free = _EDGE * (high - low)
        least = max(0, int(np.ceil(high + free)) - length)
        most = min(side - length, int(np.floor(low - free)))
        if least > most:
            return None
        start = int(rng.integers(least, most + 1))
        found.append((start, start + length))
    (x1, x2), (y1, y2) = found
    return x1, y1, x2, y2


def shown(window: Corners, by: float, mirrored: bool = False) -> View:
    """Returns the view of a window that is enlarged or shrunk by a factor."""
    width, height = window[2] - window[0], window[3] - window[1]
    return View(window, (max(1, round(width * by)), max(1, round(height * by))), mirrored)
