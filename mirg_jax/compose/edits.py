"""Changes to a picture's pixels: something removed, pasted or recoloured, other light, a mark.

Each returns a new array and leaves all pixels outside its box as they were.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

Pixels = UInt8[np.ndarray, "height width 3"]
Corners = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels

_SEEN = 24  # of 255: a change of a pixel's channel that is seen
_MARK = (255, 0, 0)
_MOST_GRAIN = 6.0  # of 255, standard deviation: what is more in a photo is texture


def whole_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> Corners:
    """Returns the pixels that a box touches, within an image of a width and height."""
    width, height = size
    x1, y1 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    return x1, y1, min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))


def size_of(pixels: Pixels) -> tuple[int, int]:
    """Returns width and height."""
    return pixels.shape[1], pixels.shape[0]


def crop(pixels: Pixels, box: Corners) -> Pixels:
    """Returns a copy of the pixels in a box."""
    x1, y1, x2, y2 = box
    return pixels[y1:y2, x1:x2].copy()


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Returns the picture in another width and height."""
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def remove(rng: np.random.Generator, pixels: Pixels, box: Corners) -> Pixels:
    """Fills a box smoothly from the pixels around it, with their grain."""
    x1, y1, x2, y2 = box
    height, width = pixels.shape[:2]
    rim = pixels.astype(np.float32)
    left, right = rim[y1:y2, max(x1 - 1, 0)], rim[y1:y2, min(x2, width - 1)]
    top, bottom = rim[max(y1 - 1, 0), x1:x2], rim[min(y2, height - 1), x1:x2]
    # At the picture's edge there is nothing on one side; the other side counts for both.
    left, right = (right, right) if x1 == 0 else (left, left) if x2 == width else (left, right)
    top, bottom = (bottom, bottom) if y1 == 0 else (top, top) if y2 == height else (top, bottom)
    u = ((np.arange(x2 - x1) + 0.5) / (x2 - x1))[None, :, None]
    v = ((np.arange(y2 - y1) + 0.5) / (y2 - y1))[:, None, None]
    across = (1 - u) * _smooth(left)[:, None] + u * _smooth(right)[:, None]
    down = (1 - v) * _smooth(top)[None] + v * _smooth(bottom)[None]
    # Each of the two counts the more, the nearer its sides are.
    weight = np.minimum(v, 1 - v) / (np.minimum(u, 1 - u) + np.minimum(v, 1 - v))
    filled = weight * across + (1 - weight) * down
    filled += rng.normal(0, min(_grain(left, right, top, bottom), _MOST_GRAIN), filled.shape)
    return _with(pixels, box, np.clip(np.rint(filled), 0, 255).astype(np.uint8))


def _grain(*lines: np.ndarray) -> float:
    """Returns the standard deviation of the noise in lines of pixels.

    It follows from the median of neighbours' differences, to which an object's edge that crosses a
    line counts for nothing; if all are normal, that is 0.954 standard deviations.
    """
    steps = np.concatenate([np.abs(np.diff(line, axis=0)) for line in lines])
    return float(np.median(steps)) / 0.954 if len(steps) else 0.0


def _smooth(line: np.ndarray) -> np.ndarray:
    """Means of a line of pixels over a ninth of its length."""
    reach = max(1, len(line) // 9)
    padded = np.pad(line, ((reach, reach), (0, 0)), mode="edge")
    sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0)
    return (sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)


def paste(pixels: Pixels, box: Corners, patch: Pixels) -> Pixels:
    """Puts a patch, resized to the box, into its inscribed rounded shape."""
    x1, y1, x2, y2 = box
    patch = resize(patch, (x2 - x1, y2 - y1))
    inside = rounded(x2 - x1, y2 - y1)[..., None]
    return _with(pixels, box, np.where(inside, patch, crop(pixels, box)))


def recolour(pixels: Pixels, box: Corners, turn: int) -> Pixels:
    """Turns the hues within a box's inscribed rounded shape.

    Args:
      pixels: the picture.
      box: where.
      turn: how far, in 256ths of the circle of hues.
    """
    x1, y1, x2, y2 = box
    before = crop(pixels, box)
    hsv = np.array(Image.fromarray(before).convert("HSV"))
    hsv[..., 0] += np.uint8(turn)
    after = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    inside = rounded(x2 - x1, y2 - y1)[..., None]
    return _with(pixels, box, np.where(inside, after, before))


def rounded(width: int, height: int) -> np.ndarray:
    """Returns a mask of a box with rounded corners, which touches all four sides."""
    u = np.abs((np.arange(width) + 0.5) / width * 2 - 1)
    v = np.abs((np.arange(height) + 0.5) / height * 2 - 1)
    return (u**4 + v[:, None] ** 4) <= 1.0


def light(pixels: Pixels, gain: float, contrast: float, tint: tuple[float, float, float]) -> Pixels:
    """Returns a picture in other light.

    Args:
      pixels: the picture.
      gain: factor of the brightness.
      contrast: factor of the distance from mid-grey.
      tint: factors of red, green and blue.
    """
    values = np.arange(256, dtype=np.float32)
    values = (values - 128) * contrast + 128
    tables = [np.clip(np.rint(values * gain * each), 0, 255).astype(np.uint8) for each in tint]
    return np.stack([table[pixels[..., i]] for i, table in enumerate(tables)], axis=-1)


def mark(pixels: Pixels, box: Corners) -> Pixels:
    """Draws a red frame around a box."""
    width = max(1, round(max(pixels.shape) / 200))
    image = Image.fromarray(pixels)
    x1, y1, x2, y2 = box
    around = (max(x1 - width, 0), max(y1 - width, 0), x2 + width - 1, y2 + width - 1)
    last_x, last_y = image.width - 1, image.height - 1
    around = (*around[:2], min(around[2], last_x), min(around[3], last_y))
    ImageDraw.Draw(image).rectangle(around, outline=_MARK, width=width)
    return np.asarray(image)


def changed_box(before: Pixels, after: Pixels) -> Corners | None:
    """Returns the box around all pixels that differ; None if there are none."""
    rows, columns = np.nonzero((before != after).any(axis=-1))
    if not len(rows):
        return None
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return tuple(map(int, box))


def is_seen(before: Pixels, after: Pixels, box: Corners, share: float = 0.35) -> bool:
    """Returns whether enough of a box's pixels have changed enough to be seen."""
    changes = np.abs(crop(before, box).astype(np.int16) - crop(after, box)).max(axis=-1)
    return bool((changes >= _SEEN).mean() >= share)


def is_plain(pixels: Pixels) -> bool:
    """Returns whether a picture shows next to nothing, as a patch of sky."""
    return bool(pixels.reshape(-1, 3).std(axis=0).max() < 12)


def is_repeated(pixels: Pixels, box: Corners) -> bool:
    """Returns whether a picture shows about the same at another place, as a wall of tiles.

    Both are compared at a small size, at which the longer side has 48 pixels.
    """
    width, height = size_of(pixels)
    by = min(1.0, 48 / max(width, height))
    small = resize(pixels, (max(1, round(width * by)), max(1, round(height * by))))
    small = small.astype(np.float32)
    x1, y1 = round(box[0] * by), round(box[1] * by)
    w, h = max(2, round((box[2] - box[0]) * by)), max(2, round((box[3] - box[1]) * by))
    x1, y1 = min(x1, small.shape[1] - w), min(y1, small.shape[0] - h)
    if x1 < 0 or y1 < 0:
        return False
    own = small[y1 : y1 + h, x1 : x1 + w]
    windows = np.lib.stride_tricks.sliding_window_view(small, (h, w), axis=(0, 1))
    apart = np.square(windows - own.transpose(2, 0, 1)).mean(axis=(2, 3, 4))
    ys, xs = np.mgrid[: apart.shape[0], : apart.shape[1]]
    elsewhere = (np.abs(xs - x1) > w / 2) | (np.abs(ys - y1) > h / 2)
    if not elsewhere.any():
        return False
    return bool(apart[elsewhere].min() < 0.15 * own.var(axis=(0, 1)).mean())


def _with(pixels: Pixels, box: Corners, inside: Pixels) -> Pixels:
    """Returns a copy of a picture with other pixels in a box."""
    x1, y1, x2, y2 = box
    changed = pixels.copy()
    changed[y1:y2, x1:x2] = inside
    return changed
