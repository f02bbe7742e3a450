"""Photos drawn at random from the index, by what they show."""

import dataclasses
import functools
import json
import pathlib
import sqlite3

import numpy as np
from jaxtyping import UInt8

from mirg_jax.compose.index import ANY, SEVERAL, read_vocabularies
from mirg_jax.compose.photos import Photo, all_known, from_text
from mirg_jax.data.images import ImageRoot, load_image, shrink

Pixels = UInt8[np.ndarray, "height width 3"]


class NotPossible(Exception):
    """No example came of a draw; the message is a reason that is counted, without names in it."""


@dataclasses.dataclass(frozen=True)
class Track:
    """An object of a sequence: its number in the index, its name, and how many frames show it."""

    number: int
    name: str
    frames: int


class Library:
    """The photos of one split."""

    def __init__(self, index: pathlib.Path, root: ImageRoot, split: int, max_pixels: int):
        """
        Args:
          index: the file that `build_index` has written.
          root: folder that images are relative to.
          split: TRAIN or EVAL.
          max_pixels: upper limit on the pixels of images that are made.
        """
        self._kept = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
        self._root, self._split, self._max_pixels = root, split, max_pixels
        self._vocabularies = read_vocabularies(self._kept)
        self._counts: dict[str, dict[int, int]] = {}
        counted = "SELECT name, times, COUNT(*) FROM shows WHERE split = ? GROUP BY name, times"
        for name, times, count in self._kept.execute(counted, (split,)):
            self._counts.setdefault(name, {})[times] = count
        (self.tracks,) = self._kept.execute(
            "SELECT COUNT(DISTINCT track) FROM sighting WHERE split = ?", (split,)
        ).fetchone()
        self.photo = functools.lru_cache(maxsize=1 << 13)(self._photo)
        self.pixels = functools.lru_cache(maxsize=8)(self._pixels)
        self.names = functools.cache(self._names)

    def __len__(self) -> int:
        """The number of photos."""
        return self.count("photo")

    def close(self) -> None:
        """Closes the file."""
        self._kept.close()

    def count(self, name: str, times: int = ANY) -> int:
        """Returns how many photos are listed under a name."""
        return self._counts.get(name, {}).get(times, 0)

    def _names(self, prefix: str, least: int = 1, times: int = ANY) -> tuple[str, ...]:
        """Returns the names with a prefix, without it, under which enough photos are listed."""
        names = (name for name in sorted(self._counts) if name.startswith(prefix))
        return tuple(each[len(prefix) :] for each in names if self.count(each, times) >= least)

    def draw_name(
        self, rng: np.random.Generator, prefix: str, least: int = 1, times: int = ANY
    ) -> str:
        """Draws one of `names`.

        Raises:
          NotPossible: there is none.
        """
        names = self.names(prefix, least, times)
        if not names:
            few = {"label:": "label", "attribute:": "attribute"}.get(prefix, "name")
            often = {ANY: "", SEVERAL: " several times"}.get(times, " exactly once")
            raise NotPossible(f"no {few} is in {least} or more photos{often}")
        return names[int(rng.integers(len(names)))]

    def draw(self, rng: np.random.Generator, name: str = "photo", times: int = ANY) -> Photo:
        """Draws a photo that is listed under a name.

        Raises:
          NotPossible: there is none.
        """
        count = self.count(name, times)
        if not count:
            kind = name.partition(":")[0]
            what = {"label": "a drawn label", "attribute": "a drawn attribute"}.get(kind, kind)
            often = {ANY: "", SEVERAL: " several times"}.get(times, " exactly once")
            raise NotPossible(f"no photo is known to show {what}{often}")
        where = self._split, name, times, int(rng.integers(count))
        (number,) = self._kept.execute(
            "SELECT photo FROM shows WHERE split = ? AND name = ? AND times = ? AND n = ?", where
        ).fetchone()
        return self.photo(number)

    def draw_track(self, rng: np.random.Generator) -> Track:
        """Draws an object of a sequence.

        Raises:
          NotPossible: there is none.
        """
        if not self.tracks:
            raise NotPossible("no source has tracks")
        number = int(rng.integers(self.tracks))
        name, frames = self._kept.execute(
            "SELECT MIN(name), COUNT(*) FROM sighting WHERE split = ? AND track = ?",
            (self._split, number),
        ).fetchone()
        return Track(number, name, frames)

    def frame(self, track: Track, n: int) -> Photo:
        """Returns the photo of a track's n-th sighting, from 0."""
        (number,) = self._kept.execute(
            "SELECT photo FROM sighting WHERE split = ? AND track = ? AND n = ?",
            (self._split, track.number, n),
        ).fetchone()
        return self.photo(number)

    def _photo(self, number: int) -> Photo:
        sources, group, data = self._kept.execute(
            "SELECT sources, grp, data FROM photo WHERE id = ?", (number,)
        ).fetchone()
        photo = from_text(data)
        names = [self._vocabularies.get(each, frozenset()) for each in json.loads(sources)]
        return dataclasses.replace(photo, known=all_known(photo.looked_for, *names), group=group)

    def _pixels(self, photo: Photo) -> Pixels:
        """Returns a photo's pixels, of at most `max_pixels`.

        Raises:
          DataError: if the file can't be read.
        """
        pixels = np.asarray(shrink(load_image(self._root, photo.path), self._max_pixels))
        pixels.setflags(write=False)
        return pixels
