"""Where a picture shows a part of another one, found by trying: no code of the composer.

Boxes are x1, y1, x2, y2 in pixels; a window may lie between pixels, and may be mirrored.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.signal import fftconvolve

# Pixels that small pictures have at least: the whole's longer side, the view's shorter one.
_COARSE, _COARSE_VIEW = 64, 12


class Window(NamedTuple):
    """Which part of a whole picture a view shows."""

    box: tuple[float, float, float, float]  # of the whole picture
    mirrored: bool
    score: float  # correlation of the brightness, 1 at most

    def place(self, box, view):
        """Where a box of the whole is in a view, in pixels of the view."""
        height, width = view.shape[:2]
        x1, y1, x2, y2 = self.box
        a, c = ((x - x1) / (x2 - x1) * width for x in (box[0], box[2]))
        b, d = ((y - y1) / (y2 - y1) * height for y in (box[1], box[3]))
        return (width - c, b, width - a, d) if self.mirrored else (a, b, c, d)

    def cut(self, whole, view):
        """The window's pixels of the whole, in the view's size."""
        height, width = view.shape[:2]
        image = Image.fromarray(whole)
        cut = image.resize((width, height), Image.Resampling.BICUBIC, self.box)
        pixels = np.asarray(cut)
        return pixels[:, ::-1] if self.mirrored else pixels


def find_window(view, whole, scales, mirrored=(False, True), hidden=None):
    """The window of a whole picture that a view shows best.

    Args:
      view: pixels [height, width, 3].
      whole: pixels of the whole picture.
      scales: pixels of the view to one of the whole's, to be tried.
      mirrored: whether mirrored windows are tried, and others.
      hidden: a box of the view that isn't compared, in fractions of its sides.
    """
    found = [_coarse(view, whole, scale, each, hidden) for scale in scales for each in mirrored]
    return _closer(view, whole, max(found, key=lambda each: each.score), hidden)


def _grey(pixels):
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _small(pixels, width, height):
    image = Image.fromarray(_grey(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)).astype(float)


def compared(shape, hidden):
    """Which pixels of a view of a shape are compared, where a box in fractions is hidden."""
    mask = np.ones(shape, bool)
    if hidden:
        x1, y1, x2, y2 = hidden
        columns = slice(max(0, int(x1 * shape[1])), int(np.ceil(x2 * shape[1])))
        rows = slice(max(0, int(y1 * shape[0])), int(np.ceil(y2 * shape[0])))
        mask[rows, columns] = False
    return mask


def _coarse(view, whole, scale, mirrored, hidden):
    """By correlation at every place of a small picture."""
    by = _COARSE / max(whole.shape[:2]), _COARSE_VIEW * scale / min(view.shape[:2])
    by = min(1.0, max(by))
    big = _small(whole, *(max(1, round(side * by)) for side in whole.shape[1::-1]))
    width, height = (max(1, round(side * by / scale)) for side in view.shape[1::-1])
    if width > big.shape[1] or height > big.shape[0]:
        return Window((0, 0, 1, 1), mirrored, -1.0)
    part, mask = _small(view, width, height), compared((height, width), hidden)
    if mirrored:
        part, mask = part[:, ::-1], mask[:, ::-1]
    part = (part - part[mask].mean()) * mask
    big = big - big.mean()
    mask, part = mask[::-1, ::-1].astype(float), part[::-1, ::-1]
    sums = fftconvolve(big, mask, "valid")
    squares = fftconvolve(big**2, mask, "valid") - sums**2 / mask.sum()
    scores = fftconvolve(big, part, "valid")
    scores /= np.sqrt(np.maximum(squares, 1e-6) * max((part**2).sum(), 1e-6))
    y, x = np.unravel_index(np.argmax(scores), scores.shape)
    box = tuple(float(side) / by for side in (x, y, x + width, y + height))
    return Window(box, mirrored, float(scores[y, x]))


_MOVES = np.array(  # of a window's four sides
    [(1, 0, 1, 0), (0, 1, 0, 1), (-1, -1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]
    + [(0, 0, 0, 1)]
)


def _closer(view, whole, window, hidden):
    """Moves a window's sides by less and less, as long as it then shows more of the same."""
    image, target = Image.fromarray(_grey(whole)), _grey(view).astype(float)
    mask = compared(target.shape, hidden)
    if window.mirrored:
        target, mask = target[:, ::-1], mask[:, ::-1]
    size, target = target.shape[::-1], target[mask]
    sides = np.array([*image.size] * 2, float)

    def score(box):
        if box[2] - box[0] < 4 or box[3] - box[1] < 4:
            return -1.0
        cut = np.asarray(image.resize(size, Image.Resampling.BICUBIC, tuple(box)))
        return float(np.corrcoef(target, cut[mask].astype(float))[0, 1])

    box = np.clip(np.array(window.box), 0, sides)
    best = score(box)
    for step in (2.0, 1.0, 0.5, 0.25):
        moved = True
        while moved:
            moved = False
            for move in (*_MOVES, *-_MOVES):
                tried = np.clip(box + step * move, 0, sides)
                if (found := score(tried)) > best + 1e-9:
                    box, best, moved = tried, found, True
    return Window(tuple(map(float, box)), window.mirrored, best)
