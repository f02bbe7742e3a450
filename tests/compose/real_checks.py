"""Composed examples of real photos, checked by labels and pixels without the composer's code.

Boxes of labels and answers are on the grid of 1000 a side, as the rows have them.
"""

import collections
import itertools
import re
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from place_views import compared, find_window

from mirg_jax.grounding.boxes import grid_to_pixels

_WORDS = ("first", "second", "third", "fourth", "fifth", "sixth")
_NTH = re.compile(rf"\b({'|'.join(_WORDS)}) image|(\d)th image|image-(\d)", re.IGNORECASE)
_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")
_ORDER = re.compile("leftmost|rightmost|topmost|lowest|largest")
_RED = (255, 0, 0)


class Asked(NamedTuple):
    """An example: what is asked for, and the pixels of its images."""

    task: str
    question: str
    image: int  # of the answer, from 1
    box: tuple[float, ...]  # the answer
    label: str  # "" where the row has none
    photos: list[str]
    shown: list[np.ndarray]

    def pixels_box(self, box=None, image=0):
        """A box, or the answer's, in pixels of an image, or of the answer's."""
        height, width = self.shown[(image or self.image) - 1].shape[:2]
        return grid_to_pixels(box or self.box, width, height)


def read_asked(row, folder):
    """The example of a row in the project's own form, or in MIG-Bench's, in a folder."""
    shown = [np.asarray(Image.open(folder / path).convert("RGB")) for path in row["images"]]
    named = _nth(row["question"])
    if "answer" in row:
        image = 1 if row["task"] == "region" else _nth(row["additional_info"]) or named
        box, label = tuple(1000 * side for side in row["answer"]), ""
    else:
        (target,) = row["targets"]
        image, box, label = target["image"], tuple(target["box"]), target["label"]
    assert row["task"] == "region" or named in (None, image)
    return Asked(row["task"], row["question"], image, box, label, row["photos"], shown)


def _nth(text):
    """The image that a text names last; None if it names none."""
    found = list(_NTH.finditer(text))
    if not found:
        return None
    word, *digits = found[-1].groups()
    return _WORDS.index(word.lower()) + 1 if word else int(digits[0] or digits[1])


class Checks:
    """Checks examples of photos with known labels."""

    def __init__(self, photos, things, max_pixels):
        """
        Args:
          photos: folder of the photos.
          things: names and boxes of the objects by photo.
          max_pixels: of the images that were made.
        """
        self._photos, self._things, self._max_pixels = photos, things, max_pixels
        self.counts = collections.Counter()

    def check(self, asked: Asked) -> None:
        """Raises AssertionError if the answer isn't right."""
        getattr(self, f"_{asked.task}")(asked)
        self.counts[asked.task] += 1

    def _photo(self, path):
        """A photo in about the size of images that are made."""
        image = Image.open(self._photos / path).convert("RGB")
        by = min(1.0, (self._max_pixels / (image.width * image.height)) ** 0.5)
        return np.asarray(
            image.resize([int(side * by) for side in image.size], Image.Resampling.LANCZOS)
        )

    # What labels say ------------------------------------------------------------------------------

    def _names(self, asked):
        """The names of each photo's objects."""
        return [[name for name, _ in self._things[path]] for path in asked.photos]

    def _answer(self, asked, photo):
        """The name of the one object of its name in a photo, which is at the answer's box."""
        things = self._things[asked.photos[photo]]
        found = {n for n, box in things if np.abs(np.subtract(box, asked.box)).max() <= 1}
        assert asked.label in found if asked.label else len(found) == 1
        label = asked.label or found.pop()
        alone = [name for name, _ in things].count(label) == 1
        assert alone or _ORDER.search(asked.question)
        return label

    def _common_object(self, asked):
        label = self._answer(asked, asked.image - 1)
        assert set.intersection(*map(set, self._names(asked))) == {label}

    def _group_grounding(self, asked):
        label = self._answer(asked, asked.image - 1)
        assert f"|>{label}<|" in asked.question
        assert [label in names for names in self._names(asked)].count(True) == 1

    def _refer_grounding(self, asked):
        if "kind" in asked.question:
            assert asked.image == 2
            label = self._answer(asked, 1)
            self._check_close(asked, asked.photos[0], label)
            return
        label = self._answer(asked, asked.image - 2)  # the close view is no photo
        assert [label in names for names in self._names(asked)].count(True) == 1
        self._check_close(asked, asked.photos[asked.image - 2], label, asked.box)

    def _reasoning(self, asked):
        label = self._answer(asked, asked.image - 1)
        if _ORDER.search(asked.question):
            assert asked.image == 2
            self._check_close(asked, asked.photos[0], label)

    def _correspondence(self, asked):
        assert asked.image == 2
        label = self._answer(asked, 1)
        boxes = [box for name, box in self._things[asked.photos[0]] if name == label]
        assert any(_is_marked(asked.shown[0], asked.pixels_box(box, 1)) for box in boxes)

    def _check_close(self, asked, path, label, box=None):
        """The first image is a close view of an object of a photo, with little around it."""
        whole, close = self._photo(path), asked.shown[0]
        scales = np.arange(0.72, 1.56, 0.04) if box else [1.0]
        seen = find_window(close, whole, scales, (False, True) if box else (False,))
        assert seen.score > 0.9
        boxes = [box] if box else [found for name, found in self._things[path] if name == label]
        assert any(self._is_around(seen.box, each, whole) for each in boxes)

    def _is_around(self, window, box, whole):
        x1, y1, x2, y2 = grid_to_pixels(box, *whole.shape[1::-1])
        rims = x1 - window[0], y1 - window[1], window[2] - x2, window[3] - y2
        sides = 0.08 * np.array([x2 - x1, y2 - y1] * 2)
        return all(-2 < rim < side + 2 for rim, side in zip(rims, sides, strict=True))

    # What pixels say ------------------------------------------------------------------------------

    def _diff(self, asked):
        one, other = asked.shown
        ys, xs = np.nonzero((one != other).any(axis=-1))
        found = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        assert np.abs(np.subtract(found, asked.pixels_box())).max() <= 0.6

    def _region(self, asked):
        assert asked.image == 1
        n = int(re.search(r"(\d)(?:th region|\b in the source)", asked.question)[1])
        part, (x1, y1, x2, y2) = asked.shown[n], np.rint(asked.pixels_box()).astype(int)
        assert part.shape == (y2 - y1, x2 - x1, 3)
        assert np.array_equal(asked.shown[0][y1:y2, x1:x2], part)
        rivals = sliding_window_view(asked.shown[0][..., 0], part.shape[:2])
        ys, xs = np.nonzero(rivals[..., 0, 0] == part[0, 0, 0])
        same = [p for p in zip(ys, xs, strict=True) if (rivals[p] == part[..., 0]).all()]
        assert same == [(y1, x1)]

    def _view_diff(self, asked):
        """One image is a window of the other: laid over it, only the answer differs.

        But for the answer both are the same picture, so that a linear light, and Pillow's own
        resampling of the right window, leave less than three of 255 everywhere else.
        """
        hidden = [self._differing(asked, n) for n in (0, 1)]
        scales = np.arange(0.84, 1.12, 0.02)
        one, other = (
            find_window(asked.shown[1 - n], asked.shown[n], scales, [False], hidden[n])
            for n in (0, 1)
        )
        for n in (0, 1) if one.score > other.score else (1, 0):
            whole, view = asked.shown[n], asked.shown[1 - n]
            window, apart, is_exact = _laid_over((one, other)[n], whole, view, hidden[n])
            if is_exact:
                break
        x1, y1, x2, y2 = asked.pixels_box()
        if asked.image == n + 1:
            x1, y1, x2, y2 = window.place((x1, y1, x2, y2), view)
        ys, xs = np.nonzero(apart >= 3)
        found = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        # Resampling spreads the change by two pixels.
        assert np.abs(np.subtract(found, (x1, y1, x2, y2))).max() <= 4
        inside = apart[round(max(y1, 0)) : round(y2), round(max(x1, 0)) : round(x2)]
        assert (inside >= 12).mean() > 0.25

    def _differing(self, asked, n):
        """Where the other image than n (from 0) may differ from it, if the answer is right.

        It is given in fractions of the sides; what is there is in the images at most 14 % apart.
        """
        free = 0.14 if asked.image == n + 1 else 0.01
        x1, y1, x2, y2 = (side / 1000 for side in asked.box)
        return x1 - free, y1 - free, x2 + free, y2 + free

    def _multi_view(self, asked):
        seen = self._check_windows(asked, np.arange(0.68, 1.23, 0.02), (False, True))
        asked_box = tuple(map(int, _BOX.search(asked.question).groups()))
        assert _is_marked(asked.shown[0], asked.pixels_box(asked_box, 1))
        assert len({(each.mirrored, *np.rint(each.box)) for each in seen}) == len(seen)

    def _object_tracking(self, asked):
        if len(asked.photos) > 1:
            self._check_track(asked)
            return
        seen = self._check_windows(asked, [1.0], (False,))
        for (one, at), (other, to) in itertools.pairwise(zip(asked.shown, seen, strict=True)):
            by = np.rint(np.subtract(to.box[:2], at.box[:2])).astype(int)
            shifts = itertools.product((0, -1, 1), repeat=2)
            assert any(_share_part(one, other, *(by + shift)) for shift in shifts)

    def _check_windows(self, asked, scales, mirrored):
        """Each image is a window of the photo; one object is where the question and answer say."""
        (path,) = asked.photos
        assert asked.image > 1
        whole = self._photo(path)
        seen = [find_window(view, whole, scales, mirrored) for view in asked.shown]
        assert all(window.score > 0.9 for window in seen)
        question = tuple(map(int, _BOX.search(asked.question).groups()))
        places = {1: question, asked.image: asked.box}
        fitting = []
        for name, box in self._things[path]:
            box = grid_to_pixels(box, *whole.shape[1::-1])
            if all(
                _near(seen[n - 1].place(box, asked.shown[n - 1]), asked.pixels_box(told, n))
                for n, told in places.items()
            ):
                fitting.append(name)
                assert all(_holds(window.box, box) for window in seen)
        assert fitting == [asked.label] if asked.label else len(fitting) == 1
        return seen

    def _check_track(self, asked):
        """The images are frames as they are; question and answer are the labels of the object."""
        question = tuple(map(int, _BOX.search(asked.question).groups()))
        assert asked.image > 1
        for path, pixels in zip(asked.photos, asked.shown, strict=True):
            frame = Image.open(self._photos / path).convert("RGB")
            assert np.array_equal(np.asarray(frame), pixels)
        for n, box in ((1, question), (asked.image, asked.box)):
            ((_, truth),) = self._things[asked.photos[n - 1]]
            assert np.abs(np.subtract(truth, box)).max() <= 1


def _near(box, other):
    """Whether two boxes are the same but for what the search for windows and the grid round."""
    return np.abs(np.subtract(box, other)).max() <= 1.5


def _holds(window, box):
    return all(window[i] - 1 <= box[i] and box[i + 2] <= window[i + 2] + 1 for i in (0, 1))


def _is_marked(pixels, box):
    """Whether a red frame is around a box in pixels, on the sides that aren't cut."""
    height, width = pixels.shape[:2]
    red = (pixels == _RED).all(axis=-1)
    x1, y1, x2, y2 = int(box[0]), int(box[1]), int(np.ceil(box[2])), int(np.ceil(box[3]))
    rows, columns = slice(max(y1, 0), y2), slice(max(x1, 0), x2)
    sides = (
        [red[rows, x] for x in range(x1 - 2, x1 + 1) if x >= 0],
        [red[rows, x] for x in range(x2 - 1, x2 + 2) if x < width],
        [red[y, columns] for y in range(y1 - 2, y1 + 1) if y >= 0],
        [red[y, columns] for y in range(y2 - 1, y2 + 2) if y < height],
    )
    return all(any(line.mean() > 0.9 for line in lines) for lines in sides)


def _share_part(one, other, dx, dy):
    """Whether two windows of a picture, the second shifted by that, are the same where they can."""
    a, b = one[max(dy, 0) :, max(dx, 0) :], other[max(-dy, 0) :, max(-dx, 0) :]
    height, width = np.minimum(a.shape[:2], b.shape[:2])
    return min(height, width) > 0 and np.array_equal(a[:height, :width], b[:height, :width])


def _laid_over(window, whole, view, hidden):
    """The window in whole pixels, how far the view then is from it at each pixel, whether it is it.

    Each side is at most a pixel off at first; what is hidden doesn't count.
    """
    mask = compared(view.shape[:2], hidden)
    shifts = sorted(itertools.product((0, -1, 1), repeat=4), key=lambda each: np.abs(each).sum())
    best, least = window, np.inf
    for shift in shifts:
        box = tuple(map(float, np.rint(window.box) + shift))
        if min(box) < 0 or box[2] > whole.shape[1] or box[3] > whole.shape[0]:
            continue
        tried = window._replace(box=box)
        cut = tried.cut(whole, view)
        off = _apart(cut[..., 1:2], view[..., 1:2], mask)
        if (most := np.quantile(off[mask], 0.99)) < least:
            best, least = tried, most
        if least < 2:  # nothing but what is rounded
            break
    return best, _apart(best.cut(whole, view), view, mask), least < 2


def _apart(cut, view, mask):
    """How far a view is from the same in other light, by the worst channel of each pixel."""
    worst = np.zeros(view.shape[:2])
    for a, b in zip(np.moveaxis(cut, -1, 0), np.moveaxis(view, -1, 0), strict=True):
        told = mask & (b > 2) & (b < 253)  # not cut by the light
        values = np.flatnonzero(np.bincount(a[told], minlength=256))
        became = np.array([np.median(b[told & (a == value)]) for value in values])
        for _ in range(3):  # the light: a line, to which values that were changed don't count
            light = np.polyfit(values, became, 1)
            off = np.abs(np.polyval(light, values) - became)
            kept = off <= max(np.quantile(off, 0.8), 1)
            values, became = values[kept], became[kept]
        light = np.clip(np.polyval(np.polyfit(values, became, 1), a), 0, 255)
        worst = np.maximum(worst, np.abs(light - b))
    return worst
